"""The tiny grounder: heat maps of ten words. It stands where Grounding SAM stands when the embedded world is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..tiny.eyes import shared_eyes
from ..tiny.trunk import IMAGE_SIZE
from .base import Grounding


class TinyGrounder:
    """A :class:`~vta_sam.grounding.base.Grounder` for the ten words of the embedded world, on the CPU.

    probs are the trunk's calibrated presence; the mask is where the word's heat exceeds one half, on a grid of 24 × 32
    cells; the box encloses the mask, and is zero where the mask is empty. A word that it doesn't know: a warning, once,
    and probabilities, boxes and areas of zero.

    Args:
        weights: a file written by ``experiments/train_tiny.py model=trunk``; None takes the shipped one.
    """

    image_size = IMAGE_SIZE

    def __init__(self, weights: str | Path | None = None) -> None:
        self._eyes = shared_eyes(weights)
        self.fingerprint = self._eyes.fingerprint

    @property
    def known_words(self) -> tuple[str, ...]:
        return self._eyes.vocabulary.words

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, 72, 96, 3) uint8 RGB and K words ⇒ Grounding. Frames are judged one by one."""
        if not objects:
            return Grounding.empty(len(frames))
        grounding = Grounding(
            np.zeros((len(frames), len(objects)), np.float32),
            np.zeros((len(frames), len(objects), 4), np.float32),
            np.zeros((len(frames), len(objects)), np.float32),
        )
        seen = self._eyes.look(frames)
        for k, row in enumerate(self._eyes.vocabulary.rows(objects, "the tiny grounder")):
            if row is not None:
                masks = seen.heat[:, row] > 0
                grounding.probs[:, k] = seen.probs[:, row]
                grounding.boxes[:, k] = boxes_of(masks)
                grounding.areas[:, k] = masks.mean((1, 2))
        return grounding


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Masks (T, h, w) bool ⇒ boxes around them (T, 4) float32, cx cy w h as fractions; zeros where a mask is empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for axis, covered in enumerate((masks.any(1), masks.any(2))):  # columns give x, rows give y
        cells = covered.shape[1]
        first, end = covered.argmax(1), cells - covered[:, ::-1].argmax(1)
        boxes[:, axis] = (first + end) / (2 * cells)
        boxes[:, 2 + axis] = (end - first) / cells
    boxes[~masks.any((1, 2))] = 0
    return boxes
