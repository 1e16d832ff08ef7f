"""The oracle encoder: what happens in a clip of the embedded world, read from the truth beside it. No vision model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..grounding.oracle import shown_at
from ..media.fit import Squeeze


def _words() -> tuple[str, ...]:
    from ..scenes.classes import WORDS

    return WORDS


class OracleEncoder:
    """An :class:`~vta_sam.encoders.base.Encoder` per clip; ``for_clip`` as in the oracle grounder.

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
        from ..scenes.truth import read_truth

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
