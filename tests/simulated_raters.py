"""Raters made of numbers: they play the sessions that the page would have them play, and their taste is known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vta_sam.evaluation.listening.answers import Key, Rating, Session, checksum
from vta_sam.evaluation.listening.study_files import LOW_PASSED, REFERENCE, SHIFTED


@dataclass(frozen=True)
class Crowd:
    """A population of raters and clips. liking: {condition: mean on an endless scale}; the answer is that plus the
    rater's own bias, the clip's ease, how the clip suits the condition, and chance, rounded to 1…5."""

    liking: dict[str, float]
    rater_spread: float = 0.4
    clip_spread: float = 0.4
    suits_spread: float = 0.3
    noise: float = 0.7
    hidden: dict[str, float] = field(default_factory=lambda: {REFERENCE: 4.6, LOW_PASSED: 2.0, SHIFTED: 2.2})

    def true_difference(self, first: str, second: str, draws: int = 400_000) -> float:
        """Of mean opinion scores over all raters and clips there could be, rounding and ends of the scale included."""
        rng = np.random.default_rng(2024)
        shared = rng.normal(0, np.hypot(self.rater_spread, self.clip_spread), draws)
        own = np.hypot(self.suits_spread, self.noise)
        one, other = (np.clip(np.rint(self.liking[name] + shared + rng.normal(0, own, draws)), 1, 5)
                      for name in (first, second))
        return float(np.mean(one - other))

    def sessions(self, key: Key, seed: int, raters: int) -> list[Session]:
        """The first so many raters of a test, each answering everything planned for them, in order."""
        rng = np.random.default_rng(seed)
        clips = sorted({item.clip for item in key.items.values()})
        conditions = {**self.liking, **self.hidden}
        ease = dict(zip(clips, rng.normal(0, self.clip_spread, len(clips))))
        suits = {(clip, name): rng.normal(0, self.suits_spread) for clip in clips for name in self.liking}
        found = []
        for rater in list(key.plans)[:raters]:
            bias = rng.normal(0, self.rater_spread)
            ratings = []
            for token, question in key.plans[rater]:
                item = key.items[token]
                felt = conditions[item.condition] + bias + ease[item.clip] \
                    + suits.get((item.clip, item.condition), 0.0) + rng.normal(0, self.noise)
                value = int(np.clip(np.rint(felt), 1, 5))
                ratings.append(Rating(rater, item, question, value, 1, round(float(rng.uniform(4, 15)), 1)))
            found.append(Session(rater, tuple(ratings), 6, True, f"2026-01-{len(found) + 1:02d}T00:00:00.000Z"))
        return found


def write_session(folder: Path, key: Key, session: Session, name: str | None = None) -> Path:
    """A session as the page's export would be."""
    heard = [1] * session.headphones + [0] * (6 - session.headphones)
    answers = [{"item": r.item.token, "question": r.question, "value": r.value, "plays": r.plays, "seconds": r.seconds}
               for r in session.ratings]
    content = {"format": 1, "test": key.test, "rater": session.rater, "started": "2026-01-01T00:00:00.000Z",
               "finished": session.finished, "agent": "computer", "headphones": heard, "answers": answers,
               "checksum": checksum(key.test, session.rater, heard, session.ratings)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"ratings-{session.rater}.json")
    path.write_text(json.dumps(content))
    return path
