"""Kernel distance between two sets of vectors (KID, Bińkowski et al., 2018)."""

from __future__ import annotations

import numpy as np

from ..errors import InputError


def kernel_distance(x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 100,
                    seed: int = 2020) -> tuple[float, float]:
    """Rows x (n, d), y (m, d) ⇒ (mean, standard deviation over subsets) of the squared maximum mean discrepancy.

    Kernel (x·y / d + 1)³, unbiased within a set, subsets without replacement by the legacy generator, as
    ``audioldm_eval`` and av-benchmark have it (``metrics/kid.py``). InputError: a set smaller than a subset.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < subset_size or subset_size < 2:
        raise InputError(f"a kernel distance over subsets of {subset_size} needs as many rows, got {len(x)}, {len(y)}")
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        first = x[rng.choice(len(x), subset_size, replace=False)]
        second = y[rng.choice(len(y), subset_size, replace=False)]
        found.append(_discrepancy(first, second))
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    within = sum(float(table.sum() - np.trace(table)) for table in (kernel(x, x), kernel(y, y))) / (n * (n - 1))
    return within - 2 * float(kernel(x, y).mean())
