"""What an evaluation comes out as: figures with intervals, scores per clip, what was left out and why, and provenance.

Kept as JSON; nothing in it has to be computed again to draw a table, a plot or a page.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..metrics.intervals import Interval
from ..runtime.errors import InputError
from ..runtime.files import write_text
from .columns import Column

FORMAT = 1
MOST_SILENT = 0.05  # a system with more silent clips than this is marked, and never best


@dataclass(frozen=True)
class Figure:
    """One figure of one system. score: None ⇒ missing, and ``reason`` says why. control: the same sounds against a
    fixed derangement of the truth; score_minus_control: their paired difference; ceiling: the true sound through VAE
    and vocoder. detail: numbers that belong to it (dimensions, rows, splits)."""

    score: Interval | None
    control: Interval | None = None
    score_minus_control: Interval | None = None
    ceiling: Interval | None = None
    reason: str = ""
    detail: dict[str, float] = field(default_factory=dict)


@dataclass
class ClipScores:
    """One clip of one system: values by column key (None ⇒ not defined there), meaned over its samples; level in dBFS,
    silence, and notes in words (padded, stereo, …). onsets_s: of its first sample."""

    values: dict[str, float | None]
    onsets_s: list[float]
    silent: bool
    notes: list[str] = field(default_factory=list)


@dataclass
class SystemResult:
    """One system. figures and clips by column key and by clip id; bad: {file name: sentence} that were skipped;
    unmatched: files that belong to no clip; absent: ids without a sound; silent_share and short_share: of its clips."""

    name: str
    figures: dict[str, Figure]
    clips: dict[str, ClipScores]
    samples: int
    silent_share: Interval
    padded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> bool:
        """Whether it may be best: no more than 5 % of its clips are silent."""
        return not self.silent_share.mean > MOST_SILENT


@dataclass
class Evaluation:
    """Systems on the same clips. columns: in the order to be shown. differences: {"A − B": {column key: Interval}},
    paired over clips. best: {column key: system}, only where every paired difference to another ranked system excludes
    0. reference: name of the true sound among ``systems``, if it was evaluated too; it is never ranked. clips: ids."""

    columns: list[Column]
    systems: dict[str, SystemResult]
    clips: list[str]
    differences: dict[str, dict[str, Interval]] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    missing: dict[str, str] = field(default_factory=dict)  # column or backbone ⇒ why it could not be computed
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write JSON; NaN becomes null."""
        content = {"format": FORMAT, **asdict(self)}
        write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load_evaluation(path: Path) -> Evaluation:
    """What :meth:`Evaluation.save` wrote. InputError: missing, of another format, or not of this shape."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError(f"{path} is of another format than this version writes; evaluate again")
        content["columns"] = [Column(**column) for column in content["columns"]]
        content["systems"] = {name: _system(system) for name, system in content["systems"].items()}
        content["differences"] = {pair: {key: _interval(value) for key, value in rows.items()}
                                  for pair, rows in content["differences"].items()}
        return Evaluation(**content)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); run experiments/evaluate.py first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no evaluation ({error!r}); evaluate again") from error


def _system(content: dict[str, Any]) -> SystemResult:
    figures = {key: Figure(**{**figure, **{name: _interval(figure[name]) for name in
                                           ("score", "control", "score_minus_control", "ceiling")}})
               for key, figure in content.pop("figures").items()}
    clips = {clip_id: ClipScores(**scores) for clip_id, scores in content.pop("clips").items()}
    silent = _interval(content.pop("silent_share"))
    assert silent is not None
    return SystemResult(figures=figures, clips=clips, silent_share=silent, **content)


def _interval(content: dict[str, Any] | None) -> Interval | None:
    if content is None:
        return None
    mean, low, high = (float("nan") if content[name] is None else float(content[name])
                       for name in ("mean", "low", "high"))
    return Interval(mean, low, high, int(content["n"]), int(content["undefined"]))


def _plain(value: Any) -> Any:
    """NaN ⇒ None, numpy numbers ⇒ Python's, down through dicts and lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
