"""Who is in which frame: what a grounder is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..media.picture_reader import Fit, Squeeze

# MERGED-DOC """Pictures and words to vectors: what an encoder is given and what it returns."""
# MERGED-DOC """Nobody looks for objects: for models that read the pictures alone, or the caption alone."""


@dataclass
class Grounding:
    """What a grounder says of T frames and K objects (K = 0 is legal). float32 arrays.

    probs (T, K) in [0, 1]: is object k visible in frame t. boxes (T, K, 4): cx cy w h as fractions of the picture.
    areas (T, K): mask area as a fraction of the picture. mask_embedding (T, K, 256) or None.
    """

    probs: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    mask_embedding: np.ndarray | None = None

    @classmethod
    def empty(cls, frames: int) -> "Grounding":
        """No objects named ⇒ arrays with K = 0."""
        zeros = np.zeros((frames, 0), np.float32)
        return cls(zeros, np.zeros((frames, 0, 4), np.float32), zeros)

    @classmethod
    def concatenate(cls, parts: list["Grounding"]) -> "Grounding":
        """Groundings of consecutive chunks of frames, of the same objects ⇒ one."""
        embeddings = [p.mask_embedding for p in parts if p.mask_embedding is not None]
        return cls(
            np.concatenate([p.probs for p in parts]),
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.areas for p in parts]),
            np.concatenate(embeddings) if embeddings else None,
        )


class Grounder(Protocol):
    """Frames and object words ⇒ Grounding.

    fit: how readers bring pictures to the size it wants. It keeps the whole picture, so that boxes as fractions hold
    for the original. fingerprint: name and hash of the weights, kept in dataset.json.

    A grounder may also have ``kind`` (the first word of its fingerprint, by which training knows what made shards; else
    its module's name), ``settings`` (a dict of what else changes a record; an extraction doesn't go on with
    others), ``known_words`` (where it knows no other), ``looks`` (False: it finds nothing), ``for_clip`` (see the
    oracle), and ``masks(frames, objects)`` ⇒
    (T, K, h, w) bool.
    """

    fingerprint: str

    @property
    def fit(self) -> Fit: ...

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, H, W, 3) uint8 RGB as ``fit`` makes them, up to 8 words. May be called chunk by chunk."""
        ...


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


class NoGrounder:
    """A :class:`~vta_sam.perception.base.Grounder` that finds nothing: all probabilities, boxes and areas are zero.

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
