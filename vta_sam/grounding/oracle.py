"""The oracle grounder: reads the truth that the embedded world writes beside its clips. It looks at no picture, and
proves the path from shards to sound apart from any vision model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..clip import ClipSpec
from ..errors import InputError
from ..media.fit import Squeeze
from .base import Grounding


def shown_at(frames: int, start_s: float, fps: float, truth_fps: float, truth_pictures: int) -> np.ndarray:
    """For each of ``frames`` frames the index of the truth's picture on screen at its time ⇒ (frames,) int."""
    times_s = start_s + ClipSpec(duration_s=1.0, fps=fps, latent_stride_frames=1).frame_times_s(frames)
    return np.floor(times_s * truth_fps + 1e-6).astype(int).clip(0, truth_pictures - 1)


class OracleGrounder:
    """A :class:`~vta_sam.grounding.base.Grounder` per clip: ``for_clip`` gives the one of a video, which must then be
    given all frames of the clip at once, since it tells them apart by their number alone.

    Args:
        fps: frame rate of the frames it will be given, where ``for_clip`` isn't told.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"

    def __init__(self, fps: float = 12.5):
        self.fps = fps

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None,
                 ) -> "ClipOracleGrounder":
        """The grounder of one clip that starts ``start_s`` into ``video``. InputError: there is no truth beside it."""
        return ClipOracleGrounder(Path(video), start_s, fps or self.fps)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        raise InputError("the oracle grounder has to be told which video it is asked about; it works with clips of the "
                         "embedded world alone")


class ClipOracleGrounder:
    """Probability 1 where the word's thing is visible, else 0; its box; its area from the truth's coarse mask. A word
    that the scene doesn't hold is never visible. Of two things with the same word the larger counts."""

    fit = OracleGrounder.fit
    fingerprint = OracleGrounder.fingerprint

    def __init__(self, video: Path, start_s: float, fps: float):
        from ..scenes.truth import read_truth

        self.truth, self.start_s, self.fps = read_truth(video), start_s, fps

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, h, w, 3), of which only T counts ⇒ Grounding."""
        truth, count = self.truth, len(frames)
        shown = shown_at(count, self.start_s, self.fps, truth.fps, len(truth.visible))
        probs, areas = np.zeros((2, count, len(objects)), np.float32)
        boxes = np.zeros((count, len(objects), 4), np.float32)
        for k, word in enumerate(objects):
            for thing, scene_object in enumerate(truth.objects):
                if scene_object.word != word:
                    continue
                visible = truth.visible[shown, thing].astype(bool)
                area = np.where(visible, truth.masks[shown, thing].mean((1, 2)), 0.0)
                larger = visible & (area >= areas[:, k])
                probs[visible, k] = 1.0
                areas[larger, k] = area[larger]
                boxes[larger, k] = truth.boxes[shown[larger], thing]
        return Grounding(probs, boxes, areas)
