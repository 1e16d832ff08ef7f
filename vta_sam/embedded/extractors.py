"""Words that the tiny models know, their near names, and what stands for a word that they don't."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..media.picture_reader import Squeeze
from ..perception.base import Grounding
from ..runtime.errors import InputError
from ..runtime.randomness import generator
from .trunk import HEAT_SIZE, IMAGE_SIZE, SHIPPED_TRUNK, load_trunk

# MERGED-DOC """The trunk at work on clips: looked at once, for the grounder and the encoder alike."""
# MERGED-DOC """The tiny grounder: heat maps of ten words. It stands where Grounding SAM stands when the embedded
# world is used."""
# MERGED-DOC """The tiny encoder: a vector per picture, per known word and per caption token. It stands where CLIP
# stands when the embedded world is used."""


# what people call a thing that the tiny models know by another name; none of these is a look-alike's name
NEAR_NAMES = {
    "car": "racing car",
    "race car": "racing car",
    "racecar": "racing car",
    "sports car": "racing car",
    "pop corn": "popcorn",
    "dove": "pigeon",
    "puppy": "dog",
    "hound": "dog",
    "badminton racket": "badminton",
    "shuttlecock": "badminton",
    "hen": "chicken",
    "cembalo": "harpsichord",
}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_warned: set[str] = set()


class Vocabulary:
    """The known words in the order of a table's rows."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        rows = {word: row for row, word in enumerate(self.words)}
        self._rows = rows | {near: rows[word] for near, word in NEAR_NAMES.items() if word in rows}
        self._longest = max(len(name.split()) for name in self._rows)

    def row(self, word: str) -> int | None:
        """The row of a word or of one of its near names, in any case and with any spacing; None when unknown."""
        name = " ".join(word.lower().split())
        return self._rows.get(name, self._rows.get(name.removesuffix("s")))

    def rows(self, words: Sequence[str], asker: str) -> list[int | None]:
        """Rows of several words; warns once in a process for each that is unknown. asker: who says so."""
        found = [self.row(word) for word in words]
        for word, row in zip(words, found):
            if row is None and word not in _warned:
                _warned.add(word)
                warnings.warn(
                    f"{asker} does not know the word {word!r}: its probability is 0 and its embedding is zero. It "
                    f"knows {', '.join(self.words)}; name a real grounder and encoder for other things.",
                    stacklevel=3,
                )
        return found

    def tokens(self, caption: str) -> list[tuple[str, int | None]]:
        """A caption ⇒ its words, each with its row or None; known names of two words are one token."""
        words = _WORD.findall(caption.lower())
        tokens: list[tuple[str, int | None]] = []
        start = 0
        while start < len(words):
            for length in range(min(self._longest, len(words) - start), 0, -1):
                name = " ".join(words[start : start + length])
                row = self.row(name)
                if row is not None or length == 1:
                    tokens.append((name, row))
                    start += length
                    break
        return tokens


def hashed_vector(word: str, dim: int) -> Tensor:
    """A fixed random vector of length 1 for any word ⇒ (dim,). Near words are as far apart as any others."""
    vector = torch.randn(dim, generator=generator("tiny word", word))
    return vector / vector.norm()


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


SPECK = 0.25  # of the largest patch's area: smaller ones are not the thing


class TinyGrounder:
    """A :class:`~vta_sam.perception.base.Grounder` for the ten words of the embedded world, on the CPU.

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


class TinyEncoder:
    """A :class:`~vta_sam.perception.base.Encoder` for the embedded world, on the CPU.

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
