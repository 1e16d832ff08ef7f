"""How alike two vectors are in direction: scores of paired embeddings."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Paired rows (n, d) ⇒ (n,) cosines in [-1, 1]; NaN ("not defined") where a vector is zero.

    What CLAP and ImageBind scores are: of sound and text, or of sound and picture. InputError: unequal shapes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"cosines need paired rows of one length, got {first.shape} and {second.shape}")
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lengths > 0, np.clip((first * second).sum(axis=1) / lengths, -1, 1), np.nan)
