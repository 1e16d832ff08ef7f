"""KAD, the kernel audio distance of two sets of embeddings (Chung et al., 2025, "KAD: No More FAD!")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist, pdist

from .intervals import Resampling, SetValue

Rows = Sequence[np.ndarray]  # of each clip (rows, d)
KAD_SCALE = 100.0  # kadtk's SCALE_FACTOR
KAD_ROWS = 20_000  # a side; the cost grows with their square
_KAD_EPSILON = 1e-8  # as kadtk adds it to 2σ²
_BLOCK_ROWS = 1024  # of a table of kernels


def median_distance(rows: np.ndarray, most: int = 4096) -> float:
    """⇒ the median distance of two rows (n, d); of an even number of pairs the lower middle one, as torch.median has
    it. Of more than ``most`` rows evenly chosen ones count."""
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    distances = pdist(rows)
    return float(np.partition(distances, (len(distances) - 1) // 2)[(len(distances) - 1) // 2])


def kad_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ the kernel audio distance (Chung et al., 2025, "KAD: No More FAD!") as kadtk has it: 100 times the unbiased
    squared maximum mean discrepancy of all rows, Gaussian kernel, its σ the median distance of the true rows. Or why
    there is none.

    Its spread is the delete-one-clip jackknife's, at that σ: a bootstrap repeats clips, whose kernel with themselves is
    1, which raises an unbiased estimate. ``resampled`` holds, for each clip, the value without it, spread so that the
    standard deviation of all is the jackknife's standard error; differences of systems stay paired by clips.
    """
    if len(true) < 2:
        return f"needs at least two clips long enough for the backbone, there are {len(true)}"
    kept, rows_a_clip = len(true), max(sum(map(len, true)), sum(map(len, generated))) / len(true)
    if rows_a_clip * kept > KAD_ROWS:
        kept = max(3, int(KAD_ROWS / rows_a_clip))
        chosen = np.sort(np.random.default_rng(resampling.seed).permutation(len(true))[:kept])
        true, generated = ([rows[clip] for clip in chosen] for rows in (true, generated))
    x, y = (np.concatenate(rows).astype(np.float64) for rows in (true, generated))
    if min(len(x), len(y)) < 2:
        return f"needs at least two clips long enough for the backbone, there are {len(true)}"
    sigma = median_distance(x)
    gamma = 1 / (2 * sigma**2 + _KAD_EPSILON)
    n, m = np.array([*map(len, true)]), np.array([*map(len, generated)])
    xx, yy, xy = (_kernel_sums(*pair, gamma) for pair in ((true, true), (generated, generated), (true, generated)))
    yx = _kernel_sums(generated, true, gamma)[0]
    xx, yy = (xx[0] - n, xx[1] - n), (yy[0] - m, yy[1] - m)  # a row's kernel with itself is 1

    def discrepancy(n: Any, m: Any, xx: Any, yy: Any, xy: Any) -> Any:
        return KAD_SCALE * (xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m))

    totals = xx[0].sum(), yy[0].sum(), xy[0].sum()
    value, resampled = float(discrepancy(n.sum(), m.sum(), *totals)), None
    if kept > 2 and min((n.sum() - n).min(), (m.sum() - m).min()) > 1:
        without = discrepancy(n.sum() - n, m.sum() - m, totals[0] - 2 * xx[0] + xx[1], totals[1] - 2 * yy[0] + yy[1],
                              totals[2] - xy[0] - yx + xy[1])
        resampled = value + (without - without.mean()) * (kept - 1) / np.sqrt(kept)
    detail = {"rows": len(y), "reference_rows": len(x), "dimensions": x.shape[1], "clips": kept, "sigma": sigma}
    note = "below 0: nearer than two draws of one distribution are, by chance or as the true sounds themselves" \
        if value < 0 else ""
    return SetValue(value, resampled, detail, note, signed=True)


def _kernel_sums(first: Rows, second: Rows, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums of exp(−γ |a − b|²) over the rows of each clip of ``first`` ⇒ with all rows of ``second``, and with those of
    the same clip, (clips,) each."""
    a, b = np.concatenate(first).astype(np.float64), np.concatenate(second).astype(np.float64)
    of_rows = np.concatenate([np.exp(-gamma * cdist(a[start:start + _BLOCK_ROWS], b, "sqeuclidean")).sum(1)
                              for start in range(0, len(a), _BLOCK_ROWS)])
    own = [np.exp(-gamma * cdist(one, other, "sqeuclidean")).sum() for one, other in zip(first, second)]
    return np.add.reduceat(of_rows, np.cumsum([0, *map(len, first)])[:-1]), np.array(own)
