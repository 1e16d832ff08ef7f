"""The oracle grounder and encoder: they read the truth that the embedded world writes beside its clips.

No vision model is involved, so that the way from shards to sound can be tested apart from any.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..clip import FrameClock
from ..media.picture_reader import Squeeze
from ..perception.base import EXECUTION, Encoder, Grounder, Grounding
from ..runtime.errors import InputError
from .timeline import WORDS
from .truth import read_truth


def shown_at(frames: int, start_s: float, fps: float, truth_fps: float, truth_pictures: int) -> np.ndarray:
    """Indices (frames,) of the truth's pictures that are on screen at the times of a clip's frames.

    Args:
        frames: in the clip.
        start_s: where the clip begins in the video.
        fps: of the clip.
        truth_fps: of the truth.
        truth_pictures: how many the truth has.
    """
    shown = FrameClock(truth_fps).frame_at(start_s + FrameClock(fps).times_s(frames))
    return shown.astype(int).clip(0, truth_pictures - 1)


class OracleGrounder(Grounder):
    """Makes a grounder for each clip (``for_clip``), which counts the frames of the clip and reads their truth.

    Args:
        fps: frames a second, where ``for_clip`` gets none.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"
    execution = (*EXECUTION, "fps")
    whole_clips = True

    def __init__(self, fps: float = 12.5):
        self.fps = fps

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None,
                 ) -> "ClipOracleGrounder":
        """The grounder of one clip that starts ``start_s`` into ``video``. InputError: there is no truth beside it."""
        return ClipOracleGrounder(Path(video), start_s, fps or self.fps)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        raise InputError("the oracle grounder needs the video's file: it reads the truth beside clips of the embedded "
                         "world, and works with no others")


class ClipOracleGrounder(Grounder):
    """Probability 1 where the word's thing is visible, else 0; its box; its area from the truth's coarse mask. A word
    that the scene doesn't hold is never visible. Of two things with the same word the larger counts."""

    kind = OracleGrounder.kind
    fit = OracleGrounder.fit
    fingerprint = OracleGrounder.fingerprint

    def __init__(self, video: Path, start_s: float, fps: float):
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


class OracleEncoder(Encoder):
    """Makes an encoder for each clip, as the oracle grounder does.

    frame_embedding (T, 20): for each of the ten words its pose in [0, 1], 1 being that in which it sounds, while it is
    visible; then for each whether it is visible. Words are one-hot vectors (10); other words are zero.

    Args:
        fps: frames a second, where ``for_clip`` gets none.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"
    execution = (*EXECUTION, "fps")
    whole_clips = True

    def __init__(self, fps: float = 12.5):
        self.fps = fps
        self.words = WORDS
        self.object_dim = self.caption_dim = len(self.words)
        self.frame_dim = 2 * len(self.words)

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None) -> "ClipOracleEncoder":
        """The encoder of one clip that starts ``start_s`` into ``video``. InputError: there is no truth beside it."""
        return ClipOracleEncoder(Path(video), start_s, fps or self.fps)

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        raise InputError("the oracle encoder needs the video's file: it reads the truth beside clips of the embedded "
                         "world, and works with no others")

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
