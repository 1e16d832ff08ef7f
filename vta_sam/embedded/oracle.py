"""The oracle grounder and encoder: they read the truth that the embedded world writes beside its clips.

No vision model is involved, so that the path from shards to sound can be tested without one.
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


def pictures_on_screen(frames: int, start_s: float, fps: float, truth_fps: float, truth_pictures: int) -> np.ndarray:
    """Indices (frames,) of the truth's pictures that are on screen at the times of a clip's frames.

    Args:
        frames: number of frames in the clip.
        start_s: start of the clip in the video, in seconds.
        fps: frame rate of the clip.
        truth_fps: frame rate of the truth.
        truth_pictures: number of pictures in the truth.
    """
    shown = FrameClock(truth_fps).frame_at(start_s + FrameClock(fps).times_s(frames))
    return shown.astype(int).clip(0, truth_pictures - 1)


class OracleGrounder(Grounder):
    """Makes a grounder for each clip (``for_clip``). That grounder counts the clip's frames and reads their truth.

    Args:
        fps: frame rate, where ``for_clip`` gets none.
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
        """The grounder of one clip.

        Args:
            video: file of the clip, with its truth beside it.
            start_s: start of the clip in the video, in seconds.
            fps: frame rate; None: the one given to the constructor.

        Raises:
            InputError: there is no truth beside the video.
        """
        return ClipOracleGrounder(Path(video), start_s, fps or self.fps)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        raise InputError("the oracle grounder needs the video's file: it reads the truth beside clips of the embedded "
                         "world, and works with no others")


class ClipOracleGrounder(Grounder):
    """The oracle grounder of one clip.

    The probability is 1 where the word's thing is visible, else 0. The area is that of the truth's coarse mask. A word
    without a thing in the scene is never visible. Of two things with the same word the larger counts.
    """

    kind = OracleGrounder.kind
    fit = OracleGrounder.fit
    fingerprint = OracleGrounder.fingerprint

    def __init__(self, video: Path, start_s: float, fps: float):
        self.truth, self.start_s, self.fps = read_truth(video), start_s, fps

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, h, w, 3), whose number alone is used ⇒ Grounding."""
        truth, count = self.truth, len(frames)
        shown = pictures_on_screen(count, self.start_s, self.fps, truth.fps, len(truth.visible))
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

    frame_embedding (T, 20): the poses of the ten words in [0, 1], then their visibilities, 0 or 1. A pose is 1 at the
    height of sounding, and 0 while the thing is not visible. Words are one-hot vectors (10). Other words are zero.

    Args:
        fps: frame rate, where ``for_clip`` gets none.
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
        """The encoder of one clip.

        Args:
            video: file of the clip, with its truth beside it.
            start_s: start of the clip in the video, in seconds.
            fps: frame rate; None: the one given to the constructor.

        Raises:
            InputError: there is no truth beside the video.
        """
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
        """A caption ⇒ (L, 10): its known words in the order of the ten, or one token of zeros."""
        text = f" {''.join(c if c.isalpha() else ' ' for c in caption.lower())} "
        found = [word for word in self.words if f" {word} " in text]
        return self.encode_objects(found) if found else np.zeros((1, self.caption_dim), np.float32)


class ClipOracleEncoder(OracleEncoder):
    """The oracle encoder of one clip."""

    def __init__(self, video: Path, start_s: float, fps: float):
        super().__init__(fps)
        self.truth, self.start_s = read_truth(video), start_s

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """frames (T, h, w, 3), whose number alone is used ⇒ (T, 20)."""
        truth = self.truth
        shown = pictures_on_screen(len(frames), self.start_s, self.fps, truth.fps, len(truth.visible))
        pose, visible = np.zeros((2, len(frames), len(self.words)), np.float32)
        for thing, scene_object in enumerate(truth.objects):
            if scene_object.word in self.words:
                k = self.words.index(scene_object.word)
                visible_here = truth.visible[shown, thing].astype(np.float32)
                visible[:, k] = np.maximum(visible[:, k], visible_here)
                pose[:, k] = np.maximum(pose[:, k], visible_here * truth.pose[shown, thing].astype(np.float32))
        return np.concatenate([pose, visible], axis=1)
