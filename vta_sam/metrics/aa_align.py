"""AA-Align: do generated and true sound have their onsets at the same times? As published, and one to one."""

from __future__ import annotations

import numpy as np

from .onsets import WINDOW_S
from .peaks import matched_iou


def aa_align_published(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """STA-V2A ``EvalTools/aa_align.py``: I / (G + R − I), where I counts generated onsets that have *some* true onset
    within 0.1 s (strictly), G true and R generated ones.

    Not one to one: five generated onsets around one true one score 5.0, one around five 0.2, so stuttering is rewarded
    and the two sides differ. None where neither side has an onset (the published code divides by zero) or where the
    denominator is zero.
    """
    if not len(true_s) and not len(generated_s):
        return None
    near = np.abs(np.asarray(generated_s)[:, None] - np.asarray(true_s)[None]) < WINDOW_S
    hits = int(near.any(axis=1).sum()) if near.size else 0
    union = len(true_s) + len(generated_s) - hits
    return hits / union if union else None


def aa_align_matched(true_s: np.ndarray, generated_s: np.ndarray) -> float | None:
    """The same with a one-to-one matching within ±0.1 s: an intersection over union in [0, 1], equal both ways. None
    where neither side has an onset: there is nothing to be right or wrong about."""
    return matched_iou(true_s, generated_s, WINDOW_S)
