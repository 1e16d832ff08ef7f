"""Where a model computes."""

from __future__ import annotations

import torch

from .errors import InputError


def choose_device(name: str, threads: int | None = None) -> torch.device:
    """A name of torch's, or "auto" ⇒ a device that is there. threads: torch's processor threads, if given."""
    if threads is not None:
        torch.set_num_threads(int(threads))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name} is not a device; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name} is not here ({torch.cuda.device_count()} GPUs found); say device=cpu")
    return device


def mixed_precision(name: str, device: torch.device) -> torch.autocast:
    """"auto", "fp32", "bf16" or "fp16" ⇒ the autocast context that networks which only look are run under.

    "auto" is fp16 on a GPU (features are stored as fp16 anyway) and fp32 on a processor.
    """
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in formats:
        raise InputError(f"precision={name} is not known; it is auto, {', '.join(formats)}")
    return torch.autocast(device.type, dtype=formats[name] if name != "fp32" else None, enabled=name != "fp32")
