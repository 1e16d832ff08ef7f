"""The tiny grounder and encoder of the embedded world, on the CPU, in place of Grounding SAM and CLIP.

Both share one trunk (tiny_networks.py), which runs once for the same pictures. Its vocabulary is ten words and their
near names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..media.picture_reader import Squeeze
from ..perception.base import Encoder, Grounder, Grounding
from ..runtime.errors import InputError
from ..runtime.randomness import generator
from .tiny_networks import HEAT_SIZE, IMAGE_SIZE, SHIPPED_TRUNK, load_trunk

BATCH_FRAMES = 32  # pictures in one pass: the activations of more leave the processor's cache
SPECK = 0.25  # of the largest patch's area: a smaller patch is noise
# other names of the ten things; no look-alike's name is among them
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
    """Words and the rows of a table that stand for them.

    Args:
        words: in the order of the table's rows.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        rows = {word: row for row, word in enumerate(self.words)}
        self._rows = rows | {near: rows[word] for near, word in NEAR_NAMES.items() if word in rows}
        self._longest = max(len(name.split()) for name in self._rows)

    def row(self, word: str) -> int | None:
        """The row of a word or of one of its near names, in any case and with any spacing; None when unknown."""
        name = " ".join(word.lower().split())
        return self._rows.get(name, self._rows.get(name.removesuffix("s")))

    def rows(self, words: Sequence[str], extractor: str) -> list[int | None]:
        """Rows of several words; None for an unknown word, with one warning in a process.

        Args:
            words: in any case.
            extractor: named by the warning.
        """
        found = [self.row(word) for word in words]
        for word, row in zip(words, found):
            if row is None and word not in _warned:
                _warned.add(word)
                warnings.warn(
                    f"{extractor} does not know the word {word!r}: its probability is 0 and its embedding is zero. It "
                    f"knows {', '.join(self.words)}; name a real grounder and encoder for other things.",
                    stacklevel=3,
                )
        return found

    def tokens(self, caption: str) -> list[tuple[str, int | None]]:
        """A caption ⇒ its words, each with its row or None. A known name of two words is one token."""
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
    """A fixed random vector of norm 1 for any word ⇒ (dim,). Similar words are as far apart as any others."""
    vector = torch.randn(dim, generator=generator("tiny word", word))
    return vector / vector.norm()


@dataclass(frozen=True)
class TrunkPredictions:
    """The trunk's predictions for T pictures and its W words, float32.

    Attributes:
        heat: (T, W, 24, 32) logits that the thing covers a cell.
        probs: (T, W) probabilities that the thing is visible.
        embedding: (T, Dv) of the pictures.
    """

    heat: np.ndarray
    probs: np.ndarray
    embedding: np.ndarray


class TrunkInference:
    """A loaded trunk and its last predictions. The cache serves grounder and encoder, which get the same pictures.

    Args:
        path: weights file.
    """

    def __init__(self, path: Path) -> None:
        self.trunk, weights = load_trunk(path)
        self.vocabulary = Vocabulary(weights.classes)
        self.fingerprint = weights.fingerprint
        self.table = self.trunk.table().numpy()
        self._last: tuple[np.ndarray, TrunkPredictions] | None = None

    def predict(self, frames: np.ndarray) -> TrunkPredictions:
        """frames (T, 72, 96, 3) uint8 RGB ⇒ :class:`TrunkPredictions`.

        Raises:
            InputError: the frames have another size or type.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*IMAGE_SIZE, 3):
            raise InputError(
                f"the tiny models take frames of shape (T, {IMAGE_SIZE[0]}, {IMAGE_SIZE[1]}, 3) uint8, got "
                f"{frames.shape} {frames.dtype}; read the video at their fit"
            )
        last = self._last
        if last is not None and np.array_equal(last[0], frames):  # not by identity: a reader may refill its buffer
            return last[1]
        predictions = self._run(frames)
        self._last = (frames.copy(), predictions)
        return predictions

    @torch.inference_mode()
    def _run(self, frames: np.ndarray) -> TrunkPredictions:
        words = len(self.vocabulary.words)
        heat = np.empty((len(frames), words, *HEAT_SIZE), np.float32)
        probs = np.empty((len(frames), words), np.float32)
        embedding = np.empty((len(frames), self.trunk.embedding_dim), np.float32)
        for start in range(0, len(frames), BATCH_FRAMES):
            part = slice(start, start + BATCH_FRAMES)
            output = self.trunk(torch.from_numpy(np.ascontiguousarray(frames[part])))
            heat[part], embedding[part] = output.heat.numpy(), output.embedding.numpy()
            probs[part] = output.presence.sigmoid().numpy()
        return TrunkPredictions(heat, probs, embedding)


def shared_trunk(path: str | Path | None = None) -> TrunkInference:
    """The trunk of a weights file, shared by the whole process; None: the shipped file."""
    return _shared(Path(path).resolve() if path is not None else SHIPPED_TRUNK)


@lru_cache(maxsize=2)
def _shared(path: Path) -> TrunkInference:
    return TrunkInference(path)


class TinyGrounder(Grounder):
    """A grounder for the ten words of the embedded world.

    probs are the trunk's calibrated presence. The mask is where the word's heat exceeds one half, on a grid of 24 × 32
    cells. areas count the cells of the mask. The box encloses the mask without its specks, and is zero where the mask
    is empty. An unknown word gets one warning, and probabilities, boxes and areas of zero.

    Args:
        weights: a file written by ``experiments/train_tiny.py model=trunk``; None takes the shipped one.
        every: only every such frame of a clip is looked at, and its last; the others are interpolated.
    """

    kind = "tiny"
    fit = Squeeze(*IMAGE_SIZE)
    execution = ()  # not the weights: other weights have another vocabulary
    draws_masks = True

    def __init__(self, weights: str | Path | None = None, every: int = 1) -> None:
        self._look_at(every)
        self._trunk = shared_trunk(weights)
        self.fingerprint = self._trunk.fingerprint
        self.known_words = self._trunk.vocabulary.words

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, 72, 96, 3) uint8 RGB and K words ⇒ Grounding. A frame's result doesn't depend on other frames."""
        if not objects:
            return Grounding.empty(len(frames))
        grounding = Grounding.zeros(len(frames), len(objects))
        predicted = self._trunk.predict(frames)
        for k, row in enumerate(self._trunk.vocabulary.rows(objects, "the tiny grounder")):
            if row is not None:
                masks = predicted.heat[:, row] > 0
                grounding.probs[:, k] = predicted.probs[:, row]
                grounding.boxes[:, k] = boxes_of(masks)
                grounding.areas[:, k] = masks.mean((1, 2))
        return grounding

    def masks(self, frames: np.ndarray, objects: list[str]) -> np.ndarray:
        """frames (T, 72, 96, 3) uint8 RGB and K words ⇒ masks (T, K, 24, 32) bool, empty for unknown words."""
        masks = np.zeros((len(frames), len(objects), *HEAT_SIZE), bool)
        if objects:
            heat = self._trunk.predict(frames).heat
            for k, row in enumerate(self._trunk.vocabulary.rows(objects, "the tiny grounder")):
                if row is not None:
                    masks[:, k] = heat[:, row] > 0
        return masks


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """Boxes (T, 4) float32 around masks (T, h, w) bool, cx cy w h as fractions; zeros where a mask is empty.

    Patches of connected cells under a quarter of the largest patch are left out, since one stray cell would stretch a
    box across the picture.
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


class TinyEncoder(Encoder):
    """An encoder for the embedded world.

    The embedding of a picture (64) is LayerNormed, and depends on that picture alone. Linear probes recover the
    visibility, position and pose of each of the ten things from it. The embedding of a known word (32) is its row of
    the trunk's table, of norm sqrt(32). In a caption, any other word is a fixed random vector of the same norm, a
    function of the word. As an object, an unknown word is zero, with one warning.

    Args:
        weights: a file written by ``experiments/train_tiny.py model=trunk``; None takes the shipped one.
    """

    kind = "tiny"
    fit = Squeeze(*IMAGE_SIZE)
    execution = ()  # not the weights: other weights have another vocabulary

    def __init__(self, weights: str | Path | None = None) -> None:
        self._trunk = shared_trunk(weights)
        self.fingerprint = self._trunk.fingerprint
        self.frame_dim = self._trunk.trunk.embedding_dim
        self.object_dim = self.caption_dim = self._trunk.trunk.word_dim

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """(T, 72, 96, 3) uint8 RGB ⇒ (T, 64) float32."""
        return self._trunk.predict(frames).embedding.copy()

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, 32) float32."""
        vectors = np.zeros((len(objects), self.object_dim), np.float32)
        for k, row in enumerate(self._trunk.vocabulary.rows(objects, "the tiny encoder")):
            if row is not None:
                vectors[k] = self._trunk.table[row]
        return vectors

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, 32) float32, one token per word; a fixed random token for a caption without words."""
        tokens = self._trunk.vocabulary.tokens(caption) or [("", None)]
        return np.stack([self._token(word, row) for word, row in tokens])

    def _token(self, word: str, row: int | None) -> np.ndarray:
        if row is not None:
            return self._trunk.table[row]
        return hashed_vector(word, self.caption_dim).numpy() * np.float32(self.caption_dim**0.5)
