"""The trunk at work on clips: looked at once, for the grounder and the encoder alike."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .trunk import HEAT_SIZE, IMAGE_SIZE, SHIPPED_TRUNK, load_trunk
from .words import Vocabulary

BATCH_FRAMES = 32  # pictures a pass: the activations of more leave the processor's cache


class Seen:
    """What the trunk saw in T pictures, float32: heat (T, W, 24, 32) logits, probs (T, W), embedding (T, Dv)."""

    def __init__(self, heat: np.ndarray, probs: np.ndarray, embedding: np.ndarray) -> None:
        self.heat, self.probs, self.embedding = heat, probs, embedding


class Eyes:
    """A loaded trunk that remembers the last pictures it saw, so that asking twice costs one look."""

    def __init__(self, path: Path) -> None:
        self.trunk, weights = load_trunk(path)
        self.vocabulary = Vocabulary(weights.classes)
        self.fingerprint = weights.fingerprint
        self.table = self.trunk.table().numpy()
        self._last: tuple[np.ndarray, Seen] | None = None

    def look(self, frames: np.ndarray) -> Seen:
        """frames (T, 72, 96, 3) uint8 RGB ⇒ :class:`Seen`. The last pictures are known by their content, not by the
        array's identity: a reader may refill its buffer."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*IMAGE_SIZE, 3):
            raise InputError(
                f"the tiny models look at frames of shape (T, {IMAGE_SIZE[0]}, {IMAGE_SIZE[1]}, 3) uint8, got "
                f"{frames.shape} {frames.dtype}; read the video as their fit says"
            )
        last = self._last
        if last is not None and np.array_equal(last[0], frames):
            return last[1]
        seen = self._look(frames)
        self._last = (frames.copy(), seen)
        return seen

    @torch.inference_mode()
    def _look(self, frames: np.ndarray) -> Seen:
        words = len(self.vocabulary.words)
        heat = np.empty((len(frames), words, *HEAT_SIZE), np.float32)
        probs = np.empty((len(frames), words), np.float32)
        embedding = np.empty((len(frames), self.trunk.embedding_dim), np.float32)
        for start in range(0, len(frames), BATCH_FRAMES):
            part = slice(start, start + BATCH_FRAMES)
            sight = self.trunk(torch.from_numpy(np.ascontiguousarray(frames[part])))
            heat[part], embedding[part] = sight.heat.numpy(), sight.embedding.numpy()
            probs[part] = sight.presence.sigmoid().numpy()
        return Seen(heat, probs, embedding)


def shared_eyes(path: str | Path | None = None) -> Eyes:
    """The one pair of eyes of this process for a weights file (default: the shipped one)."""
    return _eyes(Path(path).resolve() if path is not None else SHIPPED_TRUNK)


@lru_cache(maxsize=2)
def _eyes(path: Path) -> Eyes:
    return Eyes(path)
