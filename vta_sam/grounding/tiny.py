"""The tiny grounder: heat maps of ten words. It stands where Grounding SAM stands when the embedded world is used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..media.fit import Squeeze
from ..tiny.eyes import shared_eyes
from ..tiny.trunk import HEAT_SIZE, IMAGE_SIZE
from .base import Grounding

SPECK = 0.25  # of the largest patch's area: smaller ones are not the thing


class TinyGrounder:
    """A :class:`~vta_sam.grounding.base.Grounder` for the ten words of the embedded world, on the CPU.

    probs are the trunk's calibrated presence; the mask is where the word's heat exceeds one half, on a grid of 24 × 32
    cells; areas count its cells; the box encloses it but for specks, and is zero where it is empty. A word that it
    doesn't know: a warning, once, and probabilities, boxes and areas of zero.

    Args:
        weights: a file written by ``experiments/train_tiny.py model=trunk``; None takes the shipped one.
    """

    kind = "tiny"
    fit = Squeeze(*IMAGE_SIZE)

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

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """frames (T, 72, 96, 3) uint8 RGB and K words ⇒ masks (T, K, 24, 32) bool, empty for words it doesn't know."""
        masks = np.zeros((len(frames), len(objects), *HEAT_SIZE), bool)
        if objects:
            heat = self._eyes.look(frames).heat
            for k, row in enumerate(self._eyes.vocabulary.rows(objects, "the tiny grounder")):
                if row is not None:
                    masks[:, k] = heat[:, row] > 0
        return masks


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Masks (T, h, w) bool ⇒ boxes around them (T, 4) float32, cx cy w h as fractions; zeros where a mask is empty.

    Specks (connected cells, fewer than a quarter of the largest patch) are left out: one stray cell would otherwise
    stretch a box across the picture.
    """
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), np.float32)
    for i, mask in enumerate(masks):
        if mask.any():
            # columns of the statistics: left, top, width, height, area; row 0 is the background
            patches = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:]
            patches = patches[patches[:, 4] >= SPECK * patches[:, 4].max()]
            first, end = patches[:, :2].min(0), (patches[:, :2] + patches[:, 2:4]).max(0)
            boxes[i] = np.concatenate([(first + end) / 2, end - first]) / (width, height, width, height)
    return boxes
