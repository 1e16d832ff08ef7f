"""Who hears what, in which order: blind, random, balanced, and a function of the seed and the rater's number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .stimuli import HIDDEN

QUESTIONS = ("quality", "alignment")
FEWEST_HIDDEN = 3  # of the reference and of each anchor, for every rater, as far as there are clips


@dataclass(frozen=True)
class Item:
    """One stimulus of the test under its opaque name."""

    token: str
    clip: str
    condition: str


def tokens(count: int, seed: int) -> list[str]:
    """Opaque names: random, different, in no order that says anything."""
    rng = np.random.default_rng([seed, 1])
    made: dict[str, None] = {}
    while len(made) < count:
        made["".join(rng.choice(list("abcdefghijkmnpqrstuvwxyz23456789"), size=10))] = None
    return list(made)


def shares(items: Sequence[Item], raters: int, per_rater: int | None, seed: int) -> list[list[Item]]:
    """⇒ for each rater the stimuli to be judged, unordered.

    Without ``per_rater`` everything. Else so many systems' stimuli each, dealt in turn from one shuffled row, so that
    over all raters every stimulus is judged equally often (give or take one), and three hidden references and three of
    each anchor, likewise dealt in turn. InputError: per_rater < 1.
    """
    if per_rater is None:
        return [list(items)] * raters
    if per_rater < 1:
        raise InputError(f"--per-rater {per_rater}: expected at least 1")
    rng = np.random.default_rng([seed, 2])
    rows = {name: [item for item in items if item.condition == name] for name in HIDDEN}
    rows[""] = [item for item in items if item.condition not in HIDDEN]
    found: list[list[Item]] = [[] for _ in range(raters)]
    for name, row in rows.items():
        row = [row[i] for i in rng.permutation(len(row))]
        count = min(len(row), per_rater if not name else FEWEST_HIDDEN)
        for rater in range(raters):
            found[rater] += [row[(rater * count + i) % len(row)] for i in range(count)]
    return found


def order(items: Sequence[Item], seed: int, rater: int, question: str) -> list[Item]:
    """A random order in which no clip comes twice in a row, as far as that can be."""
    rng = np.random.default_rng([seed, 3, rater, QUESTIONS.index(question)])
    left: dict[str, list[Item]] = {}
    for i in rng.permutation(len(items)):
        left.setdefault(items[i].clip, []).append(items[i])
    ordered: list[Item] = []
    while left:
        names = [name for name in left if not ordered or name != ordered[-1].clip] or list(left)
        most = max(len(left[name]) for name in names)
        rest = sum(map(len, left.values()))
        # a clip that has more than half of what is left must come now, else it would meet itself later
        urgent = [name for name in names if len(left[name]) == most and 2 * most > rest]
        weights = np.array([len(left[name]) for name in names], float)
        name = urgent[0] if urgent else names[int(rng.choice(len(names), p=weights / weights.sum()))]
        ordered.append(left[name].pop())
        if not left[name]:
            del left[name]
    return ordered


def plans(items: Sequence[Item], raters: int, per_rater: int | None, seed: int) -> dict[str, list[tuple[str, str]]]:
    """{rater's number: [(token, question), …]}: one question about all stimuli, then the other; odd and even raters
    begin with different ones."""
    made = {}
    for rater, share in enumerate(shares(items, raters, per_rater, seed), 1):
        questions = QUESTIONS if rater % 2 else QUESTIONS[::-1]
        made[str(rater)] = [(item.token, question) for question in questions
                            for item in order(share, seed, rater, question)]
    return made
