"""Where a model computes."""

from __future__ import annotations

import torch

from ..errors import InputError


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
