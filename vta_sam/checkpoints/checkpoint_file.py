"""Reading the weights that others released: tensors only, whatever else a file may hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]

from ..runtime.errors import InputError


def read_state(path: Path, numpy_arrays: bool = False) -> dict[str, Any]:
    """A .pth, .ckpt, .bin or .safetensors file ⇒ the dict in it, on the CPU. Raises InputError where it is missing,
    damaged, or holds anything but tensors, numbers and texts (nothing in it is run). numpy_arrays: arrays of numbers
    may be among them."""
    allowed: list[Any] = [(_reconstruct, "numpy.core.multiarray._reconstruct"), _reconstruct, np.ndarray, np.dtype,
                          np.dtypes.Int64DType, np.dtypes.Float64DType, np.dtypes.Float32DType] if numpy_arrays else []
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with torch.serialization.safe_globals(allowed):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; `python data_prep/weights.py list` lists what there is") from None
    except MemoryError:
        raise
    except Exception as error:  # a foreign file makes torch's reader of tensors raise almost anything
        raise InputError(f"{path} can't be read as a file of weights ({str(error).strip().splitlines()[0]}); "
                         "`python data_prep/weights.py check` compares it with what was released") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a dict of weights")
    return state


def _is_zip(path: Path) -> bool:
    """Files of the format since torch 1.6 can be mapped, which saves a copy in memory; older ones can't."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def digest(path: Path) -> str:
    """The first 12 digits of a file's SHA-256: its name in fingerprints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
