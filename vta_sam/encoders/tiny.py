"""The tiny encoder: a vector per picture, per known word and per caption token. It stands where CLIP stands when the
embedded world is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..media.fit import Squeeze
from ..tiny.eyes import shared_eyes
from ..tiny.trunk import IMAGE_SIZE
from ..tiny.words import hashed_vector


class TinyEncoder:
    """A :class:`~vta_sam.encoders.base.Encoder` for the embedded world, on the CPU.

    A picture's vector (64) is LayerNormed and comes from that picture alone: it tells linearly which of the ten things
    are there, where, and how much each acts. A known word's vector (32) is its row of the trunk's table, of norm
    sqrt(32). In a caption, any other word is a fixed random vector of the same norm, drawn from the word itself. As an
    object, an unknown word is zero, with a warning once: nothing was seen of it.

    Args:
        weights: a file written by ``experiments/train_tiny.py model=trunk``; None takes the shipped one.
    """

    kind = "tiny"
    fit = Squeeze(*IMAGE_SIZE)

    def __init__(self, weights: str | Path | None = None) -> None:
        self._eyes = shared_eyes(weights)
        self.fingerprint = self._eyes.fingerprint
        self.frame_dim = self._eyes.trunk.embedding_dim
        self.object_dim = self.caption_dim = self._eyes.trunk.word_dim

    @property
    def known_words(self) -> tuple[str, ...]:
        return self._eyes.vocabulary.words

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, 72, 96, 3) uint8 RGB ⇒ (T, 64) float32."""
        return self._eyes.look(frames).embedding.copy()

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, 32) float32."""
        vectors = np.zeros((len(objects), self.object_dim), np.float32)
        for k, row in enumerate(self._eyes.vocabulary.rows(objects, "the tiny encoder")):
            if row is not None:
                vectors[k] = self._eyes.table[row]
        return vectors

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, 32) float32, a token per word; a caption without words is one token of its own."""
        tokens = self._eyes.vocabulary.tokens(caption) or [("", None)]
        return np.stack([self._token(word, row) for word, row in tokens])

    def _token(self, word: str, row: int | None) -> np.ndarray:
        if row is not None:
            return self._eyes.table[row]
        return hashed_vector(word, self.caption_dim).numpy() * np.float32(self.caption_dim**0.5)
