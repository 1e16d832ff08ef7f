"""The oracle grounder: reads the truth that the embedded world writes beside its clips. It looks at no picture, and
proves the path from shards to sound apart from any vision model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..clip import ClipSpec
from ..media.picture_reader import Squeeze
from ..perception.base import Grounding
from ..runtime.errors import InputError

# MERGED-DOC """The oracle encoder: what happens in a clip of the embedded world, read from the truth beside it. No
# vision model."""


def shown_at(frames: int, start_s: float, fps: float, truth_fps: float, truth_pictures: int) -> np.ndarray:
    """For each of ``frames`` frames the index of the truth's picture on screen at its time ⇒ (frames,) int."""
    times_s = start_s + ClipSpec(duration_s=1.0, fps=fps, latent_stride_frames=1).frame_times_s(frames)
    return np.floor(times_s * truth_fps + 1e-6).astype(int).clip(0, truth_pictures - 1)


class OracleGrounder:
    """A :class:`~vta_sam.perception.base.Grounder` per clip: ``for_clip`` gives the one of a video, which must then be
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
        from .truth import read_truth

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


def _words() -> tuple[str, ...]:
    from .classes import WORDS

    return WORDS


class OracleEncoder:
    """An :class:`~vta_sam.perception.base.Encoder` per clip; ``for_clip`` as in the oracle grounder.

    frame_embedding (T, 20): for the ten words in their order how far each is in its sounding pose, in [0, 1], while it
    is visible; then for the ten whether each is visible. Words are one-hot vectors (10); others are zero.

    Args:
        fps: frame rate of the frames it will be given, where ``for_clip`` isn't told.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"

    def __init__(self, fps: float = 12.5):
        self.fps = fps
        self.words = _words()
        self.object_dim = self.caption_dim = len(self.words)
        self.frame_dim = 2 * len(self.words)

    @property
    def known_words(self) -> tuple[str, ...]:
        return self.words

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None) -> "ClipOracleEncoder":
        """The encoder of one clip that starts ``start_s`` into ``video``. InputError: there is no truth beside it."""
        return ClipOracleEncoder(Path(video), start_s, fps or self.fps)

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        raise InputError("the oracle encoder has to be told which video it is asked about; it works with clips of the "
                         "embedded world alone")

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, 10)."""
        vectors = np.zeros((len(objects), self.object_dim), np.float32)
        for k, word in enumerate(objects):
            if word in self.words:
                vectors[k, self.words.index(word)] = 1.0
        return vectors

    def encode_caption(self, caption: str) -> np.ndarray:
        """The known words that the caption holds, in the order of the ten ⇒ (L, 10); none ⇒ one token of zeros."""
        text = f" {''.join(c if c.isalpha() else ' ' for c in caption.lower())} "
        found = [word for word in self.words if f" {word} " in text]
        return self.encode_objects(found) if found else np.zeros((1, self.caption_dim), np.float32)


class ClipOracleEncoder(OracleEncoder):
    """The oracle of one clip."""

    def __init__(self, video: Path, start_s: float, fps: float):
        from .truth import read_truth

        super().__init__(fps)
        self.truth, self.start_s = read_truth(video), start_s

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """frames (T, h, w, 3), of which only T counts ⇒ (T, 20)."""
        truth = self.truth
        shown = shown_at(len(frames), self.start_s, self.fps, truth.fps, len(truth.visible))
        pose, visible = np.zeros((2, len(frames), len(self.words)), np.float32)
        for thing, scene_object in enumerate(truth.objects):
            if scene_object.word in self.words:
                k = self.words.index(scene_object.word)
                seen = truth.visible[shown, thing].astype(np.float32)
                visible[:, k] = np.maximum(visible[:, k], seen)
                pose[:, k] = np.maximum(pose[:, k], seen * truth.pose[shown, thing].astype(np.float32))
        return np.concatenate([pose, visible], axis=1)
