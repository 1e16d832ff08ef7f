"""Words that the tiny models know, their near names, and what stands for a word that they don't."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import generator

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
