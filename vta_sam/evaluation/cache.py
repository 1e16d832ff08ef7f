"""Measured features on disk, by what they were measured from: a file is found again whatever it is called, and never
after its content, the policy or the measuring code has changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from ..atomic import write_bytes
from ..errors import InputError

Arrays = dict[str, np.ndarray]
_LARGEST_BYTES = 1 << 28


@dataclass(frozen=True)
class FeatureCache:
    """A folder of safetensors files named by their key; ``folder`` None keeps nothing. Any number of processes may
    share it: files are written whole, and equal keys mean equal content."""

    folder: Path | None

    def get(self, key: str) -> Arrays | None:
        """What was put, or None. A damaged file counts as absent: it is measured again and replaced."""
        path = self._path(key)
        if path is None:
            return None
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                return None
            return safetensors.numpy.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError, ValueError):
            return None

    def put(self, key: str, arrays: Arrays) -> None:
        """InputError where the folder can't be written to."""
        path = self._path(key)
        if path is not None:
            try:
                write_bytes(path, safetensors.numpy.save({k: np.asarray(a, order="C") for k, a in arrays.items()}))
            except OSError as error:
                raise InputError(f"cache={self.folder} can't be written to ({error.strerror}); name another folder, or "
                                 "cache=null") from error

    def _path(self, key: str) -> Path | None:
        return self.folder and self.folder / key[:2] / f"{key}.safetensors"


def cache_key(*parts: object) -> str:
    """Whatever decides a figure (content hashes, policy, versions, lengths) ⇒ 40 hex digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:40]
