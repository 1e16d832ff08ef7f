"""Pictures and words to vectors: what an encoder is given and what it returns."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..media.fit import Fit


class Encoder(Protocol):
    """Where CLIP stands: one vector per picture, per object word, and per token of the caption. float32 arrays.

    fit: how readers bring pictures to the size it wants. fingerprint: name and hash of the weights. ``kind``,
    ``settings`` and ``for_clip`` may be there as in a grounder.
    """

    frame_dim: int
    object_dim: int
    caption_dim: int
    fingerprint: str

    @property
    def fit(self) -> Fit: ...

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB as ``fit`` makes them ⇒ (T, frame_dim). May be called chunk by chunk."""
        ...

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, object_dim); K = 0 ⇒ (0, object_dim)."""
        ...

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, caption_dim) token states, L ≥ 1."""
        ...
