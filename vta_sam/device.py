"""Where a model computes."""

from __future__ import annotations

import os

import torch

from .errors import InputError


def choose_device(name: str, threads: int | None = None) -> torch.device:
    """A name of torch's, or "auto" ⇒ a device that is there. threads: torch's processor threads, if given.

    "auto" is a GPU where there is one; of several, each process that torchrun or SLURM started on a machine takes its
    own.
    """
    if threads is not None:
        torch.set_num_threads(int(threads))
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        return torch.device("cuda", local % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name} is not a device; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name} is not here ({torch.cuda.device_count()} GPUs found); say device=cpu")
    return device


_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_format(name: str, device: torch.device) -> str:
    """"fp32", "bf16" or "fp16" for a network that only looks. "auto" is fp16 on a GPU, since features are stored as
    fp16 anyway, and fp32 on a processor."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in _FORMATS:
        raise InputError(f"precision={name} is not known; it is auto, {', '.join(_FORMATS)}")
    return name


def mixed_precision(number_format: str, device: torch.device) -> torch.autocast:
    """What :func:`choose_format` says ⇒ the context to compute in."""
    return torch.autocast(device.type, dtype=_FORMATS[number_format] if number_format != "fp32" else None,
                          enabled=number_format != "fp32")
