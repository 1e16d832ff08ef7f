"""Nobody looks for objects: for models that read the pictures alone, or the caption alone."""

from __future__ import annotations

import numpy as np

from ..media.fit import Squeeze
from .base import Grounding


class NoGrounder:
    """A :class:`~vta_sam.grounding.base.Grounder` that finds nothing: all probabilities, boxes and areas are zero.

    ``looks`` False tells a pipeline to leave objects out, and to say so where a user names some.
    """

    looks = False
    kind = "none"
    fingerprint = "none-0"
    fit = Squeeze(8, 8)  # pictures are not looked at

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """⇒ a Grounding of zeros."""
        zeros = np.zeros((len(frames), len(objects)), np.float32)
        return Grounding(zeros, np.zeros((*zeros.shape, 4), np.float32), zeros)
