"""AA-Align: do generated and true sound have their onsets at the same times? As published, and one to one."""

from __future__ import annotations

import numpy as np

from .onsets import WINDOW_S
from .peaks import ascending, matched_iou


def aa_align_published(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """STA-V2A ``EvalTools/aa_align.py``: I / (G + R − I), where I counts generated onsets that have *some* true onset
    within 0.1 s (strictly), G true and R generated ones.

    Not one to one: five generated onsets around one true one score 5.0, one around five 0.2, so stuttering is rewarded
    and the two sides differ. None where neither side has an onset: the published code divides by zero. InputError: NaN
    or infinity among the times.
    """
    true, generated = ascending(true_s)[None], ascending(generated_s)[:, None]
    if not true.size and not generated.size:
        return None
    near = (true - WINDOW_S < generated) & (generated < true + WINDOW_S)  # as published, to the last bit
    hits = int(near.any(axis=1).sum())
    # not zero: a hit needs a true onset, and there are no more hits than generated ones
    return hits / (true.size + generated.size - hits)


def aa_align_matched(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """The same with a one-to-one matching within ±0.1 s: an intersection over union in [0, 1], equal both ways. None
    where neither side has an onset: there is nothing to be right or wrong about."""
    return matched_iou(true_s, generated_s, WINDOW_S)
