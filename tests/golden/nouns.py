"""Captions with the nouns that version NOUN_RULES_VERSION of the rules finds in them, by the tagger that needs no data.

The record holds the captions too: a line is ``caption as JSON ⇒ noun; noun; no NOUN; +LEFT_OUT``, or the language of
one that is not in English. What a vocabulary of compounds changes stands after ``|``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nltk

from vta_sam.perception import captions, tagging

PATH = Path(__file__).parent / "nouns.txt"
KNOWN = ("racing car", "popcorn", "badminton", "harpsichord", "clarinet", "ferret")
RAISE = ("a caption has other nouns than by version {} of the rules: raise NOUN_RULES_VERSION in "
         "vta_sam/perception/captions.py, so that no dataset mixes both, and record anew by `python "
         "tests/golden/record.py nouns`")


@contextmanager
def without_data() -> Iterator[None]:
    """A context in which NLTK's data is not found, whatever this machine has."""
    before, nltk.data.path = nltk.data.path, []
    tagging._tagger.cache_clear()
    try:
        yield
    finally:
        nltk.data.path = before
        tagging._tagger.cache_clear()


def found_in(caption: str) -> str:
    """The right side of a line."""
    plain, known = (_words(captions.nouns(caption, vocabulary=vocabulary)) for vocabulary in ((), KNOWN))
    return plain if known == plain else f"{plain} | {known}"


def _words(found: captions.Nouns) -> str:
    if found.language is not None:
        return f"({found.language})"
    left_out = [f"+{found.dropped}"] if found.dropped else []
    return "; ".join([*found.words, *(f"no {word}" for word in found.negated), *left_out]) or "nothing"


def read() -> tuple[int, dict[str, str]]:
    """The record: the version of the rules, and {caption: what was found in it}."""
    first, *lines = PATH.read_text(encoding="utf-8").strip("\n").split("\n")
    pairs = [line.split(" ⇒ ", 1) for line in lines]
    return int(first.removeprefix("rules: ")), {json.loads(caption): found for caption, found in pairs}


def faults(now: dict[str, str]) -> list[str]:
    """What is wrong with the record and the version of the rules, as sentences.

    Args:
        now: {caption: what is found in it now}.
    """
    version, before = read()
    changed = [f"{caption!r:.60}: {before[caption]} then, {now[caption]} now" for caption in before
               if before[caption] != now[caption]]
    if changed and version == captions.NOUN_RULES_VERSION:
        return [RAISE.format(version), *changed]
    if version != captions.NOUN_RULES_VERSION:
        return [f"NOUN_RULES_VERSION is {captions.NOUN_RULES_VERSION}, the record is of {version}; record anew by "
                "`python tests/golden/record.py nouns`"]
    return []


def now() -> dict[str, str]:
    """{caption of the record: what is found in it}."""
    with without_data():
        return {caption: found_in(caption) for caption in read()[1]}


def write() -> None:
    """Write the record anew. A changed rule under the version of the record is refused."""
    found = now()
    if (wrong := faults(found)) and captions.NOUN_RULES_VERSION == read()[0]:
        sys.exit("\n".join(wrong))
    lines = [f"{json.dumps(caption, ensure_ascii=False)} ⇒ {words}" for caption, words in found.items()]
    PATH.write_text("\n".join([f"rules: {captions.NOUN_RULES_VERSION}", *lines]) + "\n", encoding="utf-8")
