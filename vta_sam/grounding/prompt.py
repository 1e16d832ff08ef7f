"""Objects ⇒ the one prompt that Grounding DINO reads, and which of its tokens are whose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError

MAX_TOKENS = 256  # Grounding DINO cuts longer prompts off (max_text_len of its configs)


@dataclass(frozen=True)
class Prompt:
    """text: "car . man .", empty where nothing can be read. spans: for each object the indices of its own tokens in the
    tokenised text; () where nothing of the object can be read (an object of punctuation alone). tokens: how many the
    text has, its start and end included."""

    text: str
    spans: tuple[tuple[int, ...], ...]
    tokens: int

    def token_mask(self) -> torch.Tensor:
        """⇒ (K, tokens) bool, True at each object's own."""
        mask = torch.zeros(len(self.spans), self.tokens, dtype=torch.bool)
        for k, span in enumerate(self.spans):
            mask[k, list(span)] = True
        return mask


def build_prompt(objects: Sequence[str], tokenizer: Any) -> Prompt:
    """Words ⇒ their prompt. Raises InputError where they are too long for one prompt.

    Tokens are assigned by where they stand in the text, never by looking a word up in it: so "car" in ["car", "cart",
    "racing car"] owns its one token, and no piece of another word. Full stops and question marks part a prompt's
    phrases in Grounding DINO, so within a word they become spaces.

    tokenizer: a fast tokenizer of transformers, which tells each token's place.
    """
    text, places = "", []
    for word in objects:
        written = " ".join(re.sub(r"[.?]", " ", word.lower()).split())
        places.append((len(text), len(text) + len(written)))
        text += f"{written} . " if written else ""
    text = text.rstrip()
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) > MAX_TOKENS:
        raise InputError(f"the objects {', '.join(objects)[:60]!r}… make {len(offsets)} tokens; Grounding DINO reads "
                         f"at most {MAX_TOKENS}; name fewer or shorter objects")
    spans = tuple(tuple(i for i, (first, end) in enumerate(offsets) if start <= first < end <= stop)
                  for start, stop in places)
    return Prompt(text, spans, len(offsets))
