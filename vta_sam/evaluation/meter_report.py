"""Accuracies of metrics, and what is written of them.

A pair is one clip in step and with a fault, both through one carrier. Accuracy is the share of clips in which the less
faulty sound scores better; a tie counts half, and chance is 0.5.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from scipy.stats import kendalltau, norm

from ..metrics.intervals import NORMAL, Interval, bootstrap_interval, wilson_interval
from ..runtime.files import atomic_path, printable, write_text, writing_to
from .aggregate import pair_name
from .faults import IN_STEP, MARGIN_S, VERSION, Fault
from .metric import Metric
from .metric_table import with_table
from .results import Evaluation, plain

METERS_NAME, PICTURE_NAME = "meters.json", "meters.png"
FORMAT = 1
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Published:
    """A meter's published accuracy over shifts. accuracy: share of pairs told apart; clips: how many pairs."""

    meter: str
    accuracy: float
    clips: int
    source: str


PUBLISHED = (
    Published("Synchformer, on which DeSync rests", 0.58, 38_390, "AV-SyncBench (2026)"),
    Published("ImageBind", 0.505, 38_390, "AV-SyncBench (2026)"),
)
ALL_SHIFTS_MS = (50, 100, 200, 500)  # of our shifts, those within the published range of 50 to 500 ms


@dataclass(frozen=True)
class Pairs:
    """Pairs of one metric and two strengths of a fault. accuracy: share in which the less faulty sound scores better,
    ties half, with its interval: Wilson's over clips; of a figure of a whole set the probability of the right order, as
    of a normal distribution, without one. n: clips whose both values are defined; undefined: the others; ties: of n."""

    accuracy: float
    low: float
    high: float
    n: int
    undefined: int = 0
    ties: int = 0

    @property
    def tells(self) -> bool:
        """Whether chance, 0.5, lies below the interval."""
        return self.low > 0.5


@dataclass
class FaultFigures:
    """One metric on one fault. against_in_step: {strength: pairs with the sound in step}; next: {strength: pairs with
    the next fainter strength}; monotony: mean over clips of Kendall's tau between strength and badness; pooled: over
    all of :data:`ALL_SHIFTS_MS`, of shifts alone."""

    against_in_step: dict[str, Pairs] = field(default_factory=dict)
    next: dict[str, Pairs] = field(default_factory=dict)
    monotony: Interval | None = None
    pooled: Pairs | None = None


def of_clips(evaluation: Evaluation, metric: Metric, fault: Fault, seed: int) -> FaultFigures:
    """⇒ the figures of a metric that has a value per clip."""
    sign = 1.0 if metric.better == "high" else -1.0
    names = [IN_STEP, *map(fault.system, fault.strengths)]
    clips = evaluation.clips
    table = np.full((len(names), len(clips)), np.nan)  # goodness
    made = np.zeros((len(names), len(clips)), bool)
    for row, name in enumerate(names):
        scores = evaluation.systems[name].clips if name in evaluation.systems else {}
        for column, clip in enumerate(clips):
            if clip in scores:
                value = scores[clip].values.get(metric.key)
                made[row, column] = True
                table[row, column] = np.nan if value is None else sign * value
    found = FaultFigures()
    for row, strength in enumerate(fault.strengths, 1):
        name = fault.strength_name(strength)
        found.against_in_step[name] = pairs_of(table[0], table[row], made[0] & made[row])
        if fault.ordered and row > 1:
            found.next[name] = pairs_of(table[row - 1], table[row], made[row - 1] & made[row])
    if fault.ordered:
        taus = [_tau(column[there]) if there.sum() > 1 else None for column, there in zip(table.T, made.T)]
        found.monotony = bootstrap_interval(taus, seed)
    if fault.name == "shift":
        rows = [row for row, strength in enumerate(fault.strengths, 1) if strength in ALL_SHIFTS_MS]
        all_pairs = [pairs_of(table[0, [i]], table[rows, i], made[rows, i]) for i in range(len(clips))]
        found.pooled = _pooled(all_pairs, seed)
    return found


def pairs_of(better: np.ndarray, worse: np.ndarray, there: np.ndarray) -> Pairs:
    """Goodness (n,) of less and of more faulty sounds ⇒ Pairs.

    Args:
        better: NaN: not defined.
        worse: likewise.
        there: (n,) bool, whether both sounds are there.
    """
    better, worse = np.broadcast_to(better, worse.shape)[there], worse[there]
    defined = ~np.isnan(better) & ~np.isnan(worse)
    better, worse = better[defined], worse[defined]
    ties = np.isclose(better, worse, rtol=1e-6, atol=1e-9)
    won = float(((better > worse) & ~ties).sum() + 0.5 * ties.sum())
    n = int(defined.sum())
    share = won / n if n else np.nan
    return Pairs(share, *wilson_interval(share, n), n, int(there.sum()) - n, int(ties.sum()))


def _pooled(of_clips: Sequence[Pairs], seed: int) -> Pairs:
    """Pairs of several strengths of each clip ⇒ those of all, with an interval by a bootstrap over clips, since a
    clip's pairs are no independent draws."""
    interval = bootstrap_interval([pairs.accuracy for pairs in of_clips], seed)
    return Pairs(interval.mean, interval.low, interval.high, sum(pairs.n for pairs in of_clips),
                 sum(pairs.undefined for pairs in of_clips), sum(pairs.ties for pairs in of_clips))


def _tau(goodness: np.ndarray) -> float | None:
    """Kendall's tau of growing faults and falling goodness; 0 where all are equal, None where one is not defined."""
    if np.isnan(goodness).any():
        return None
    tau = float(kendalltau(-np.arange(len(goodness)), goodness).statistic)
    return 0.0 if np.isnan(tau) else tau


def of_set(evaluation: Evaluation, metric: Metric, fault: Fault) -> FaultFigures:
    """⇒ the figures of a metric of whole sets: the probability of the right order, of a normal distribution about the
    paired difference with its standard error. A metric without one has 1, 0 or 0.5: the sets' order itself."""
    found = FaultFigures()
    names = [IN_STEP, *map(fault.system, fault.strengths)]
    for row, strength in enumerate(fault.strengths, 1):
        found.against_in_step[fault.strength_name(strength)] = _set_pair(evaluation, metric, names[0], names[row])
        if fault.ordered and row > 1:
            found.next[fault.strength_name(strength)] = _set_pair(evaluation, metric, names[row - 1], names[row])
    return found


def _set_pair(evaluation: Evaluation, metric: Metric, better: str, worse: str) -> Pairs:
    sign = 1.0 if metric.better == "high" else -1.0
    difference = evaluation.differences.get(pair_name(better, worse), {}).get(metric.key)
    if difference is not None and difference.high > difference.low:
        error = (difference.high - difference.low) / 2 / NORMAL
        return Pairs(float(norm.cdf(sign * difference.mean / error)), np.nan, np.nan, difference.n)
    figures = [evaluation.systems[name].figures[metric.key].score if name in evaluation.systems else None
               for name in (better, worse)]
    if figures[0] is None or figures[1] is None:
        return Pairs(np.nan, np.nan, np.nan, 0)
    order = sign * (figures[0].mean - figures[1].mean)
    return Pairs(float(np.sign(order) / 2 + 0.5), np.nan, np.nan, min(figures[0].n, figures[1].n))


# ---------------------------------------------------------------------- what is written

@dataclass
class Meters:
    """The result.

    Args:
        reference: as the user named it.
        carrier: that both sides of a pair went through.
        faults: in the order to be shown.
        evaluation: of all sounds.
        figures: {metric key: {fault: FaultFigures}} of the metrics with a better direction.
        left_out: {clip: why it could not be used}.
    """

    reference: str
    carrier: str
    faults: Sequence[Fault]
    evaluation: Evaluation
    figures: dict[str, dict[str, FaultFigures]]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[Metric]:
        return [metric for metric in self.evaluation.metrics if metric.key in self.figures]

    def columns(self, every: bool) -> list[tuple[Fault, str]]:
        """⇒ (fault, strength) to be shown: all of shifts, and of other faults one, or with ``every`` all too."""
        return [(fault, fault.strength_name(strength)) for fault in self.faults for strength in fault.strengths
                if every or fault.name == "shift" or strength == self._shown(fault)]

    def _shown(self, fault: Fault) -> float:
        """⇒ the strength that stands for a fault; the greatest where these clips can't have the usual one."""
        return fault.shown if fault.system(fault.shown) in self.evaluation.systems else fault.strengths[-1]

    def content(self) -> dict[str, Any]:
        """⇒ everything, in JSON's types; NaN is None."""
        faults = {fault.name: {"title": fault.title, "ordered": fault.ordered,
                               "strengths": [fault.strength_name(strength) for strength in fault.strengths]}
                  for fault in self.faults}
        figures = {key: {name: asdict(found) for name, found in of_faults.items()}
                   for key, of_faults in self.figures.items()}
        evaluation = self.evaluation
        return plain({
            "format": FORMAT, "reference": self.reference, "carrier": self.carrier, "clips": len(evaluation.clips),
            "margin_s": MARGIN_S, "faults_version": VERSION, "faults": faults,
            "metrics": [metric.described() for metric in self.metrics], "figures": figures,
            "published": [asdict(meter) for meter in PUBLISHED], "missing": evaluation.missing,
            "left_out": {clip: printable(why) for clip, why in self.left_out.items()},
            "sounds": {name: len(system.clips) for name, system in evaluation.systems.items()},
            "provenance": evaluation.provenance,
        })


def write_meters(folder: Path, meters: Meters) -> list[Path]:
    """Write meters.json and meters.png, which replace those of a former run together ⇒ their paths.

    Raises:
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    paths = [folder / METERS_NAME, folder / PICTURE_NAME]
    with writing_to(folder), ExitStack() as whole:
        content, picture = (whole.enter_context(atomic_path(path)) for path in paths)
        write_text(content, json.dumps(meters.content(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        draw(picture, meters)
    return paths


_CELL_IN, _ROW_IN, _LABELS_IN, _TOP_IN = 0.46, 0.24, 3.6, 1.5


def draw(path: Path, meters: Meters) -> None:
    """Write a PNG, a heat table: metrics by faults. A cell's colour is the accuracy; a figure in grey can't be told
    from chance, one on red is below it."""
    columns, metrics = meters.columns(every=True), meters.metrics
    size = (_LABELS_IN + _CELL_IN * len(columns), _TOP_IN + _ROW_IN * len(metrics))
    figure = Picture(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    pairs = [[meters.figures[metric.key][fault.name].against_in_step.get(name) for fault, name in columns]
             for metric in metrics]
    values = np.array([[np.nan if pair is None else pair.accuracy for pair in row] for row in pairs])
    axes.imshow(np.ma.masked_invalid(values), cmap="RdYlBu", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(pairs):
        for x, pair in enumerate(row):
            if pair is not None and pair.n:
                strong = abs(pair.accuracy - 0.5) > 0.25
                axes.text(x, y, f"{pair.accuracy:.2f}", ha="center", va="center", fontsize=6.5,
                          color="white" if strong else "black" if pair.tells or np.isnan(pair.low) else "0.4")
    axes.set_xticks(range(len(columns)), [f"{fault.name} {name}" for fault, name in columns], rotation=60, ha="left",
                    fontsize=7, rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(metrics)), [_row_title(metric) for metric in metrics], fontsize=7)
    for x in range(1, len(columns)):
        if columns[x][0] != columns[x - 1][0]:
            axes.axvline(x - 0.5, color="white", linewidth=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"share of {len(meters.evaluation.clips)} clips in which the sound in step scores better than the "
                    "faulty one (ties half; 0.5: chance; grey or red: not above it) · set: probability of right order",
                    fontsize=7)
    figure.savefig(path, format="png", metadata={"Software": None})


def _row_title(metric: Metric) -> str:
    return f"{metric.title}{' · set' if metric.scope == 'set' else ''}"


def markdown(meters: Meters) -> str:
    """⇒ the table of docs/evaluation.md, and sentences on the meters that fail."""
    columns = meters.columns(every=False)
    pooled = f"shift {ALL_SHIFTS_MS[0]} to {ALL_SHIFTS_MS[-1]} ms"
    has_shift = any(fault.name == "shift" for fault, _ in columns)
    heads = [f"{fault.name} {name}" for fault, name in columns]
    heads += [pooled, "monotony of shifts"] if has_shift else []
    lines = [f"| metric | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for metric in meters.metrics:
        found = meters.figures[metric.key]
        cells = [_cell(found[fault.name].against_in_step.get(name)) for fault, name in columns]
        if has_shift:
            tau = found["shift"].monotony
            cells += [_cell(found["shift"].pooled),
                      "–" if tau is None or tau.n < 2 else f"{tau.mean:.2f} [{tau.low:.2f}, {tau.high:.2f}]"]
        lines.append(f"| `{metric.key}`{' (set)' if metric.scope == 'set' else ''} | {' | '.join(cells)} |")
    for meter in PUBLISHED if has_shift else ():
        cells = ["–"] * len(columns) + [f"{meter.accuracy:g} (as published)", "–"]
        lines.append(f"| {meter.meter}: {meter.source}, {meter.clips:,} clips | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts(meters)])


def _cell(pairs: Pairs | None) -> str:
    if pairs is None or not pairs.n:
        return "–"
    if np.isnan(pairs.low):
        return f"{pairs.accuracy:.2f}"
    return f"{pairs.accuracy:.2f} [{pairs.low:.2f}, {pairs.high:.2f}]"


_TOLD = (("shift", "50 ms"), ("shift", "200 ms"))  # by sentences under the table, beside right time, wrong thing


def verdicts(meters: Meters) -> Iterator[str]:
    """Sentences on the meters of timing that don't tell a fault from none, the published ones first."""
    timing = [metric for metric in meters.metrics if metric.group == "Timing"]
    published = [metric for metric in timing if "published" in metric.key]
    own = [metric for metric in timing if metric not in published]
    for fault, name in meters.columns(every=False):
        if fault.name != "exchanged" and (fault.name, name) not in _TOLD:
            continue
        what = f"a shift of {name}" if fault.name == "shift" else "right time, wrong thing"
        for whose, metrics in (("published", published), ("own", own)):
            failing = [metric.key for metric in metrics if _fails(meters, metric, fault.name, name)]
            named = ", ".join(f"`{key}`" for key in failing)
            if failing:
                yield f"- {what}: {len(failing)} of {len(metrics)} {whose} meters of timing can't tell it from the " \
                      f"truth: {named}."
            elif metrics:
                yield f"- {what}: each of the {len(metrics)} {whose} meters of timing tells it from the truth."


def _fails(meters: Meters, metric: Metric, fault: str, strength: str) -> bool:
    pairs = meters.figures[metric.key][fault].against_in_step.get(strength)
    return pairs is not None and pairs.n > 0 and not pairs.tells


def page_with_meters(text: str, meters: Meters) -> str:
    """A page's text ⇒ the same with the table between the two markers of this reference.

    Raises:
        InputError: the page has not both markers.
    """
    which = EMBEDDED if meters.reference == EMBEDDED else "clips"
    begin = f"<!-- meters, {which}: written by experiments/meters.py docs=true -->"
    end = f"<!-- end of meters, {which} -->"
    return with_table(text, begin, markdown(meters), end)


def end_of_meters(meters: Meters) -> int:
    """Print to stderr which clips were left out ⇒ exit status: 0: none; 1: some."""
    if meters.left_out:
        told = "\n  ".join(f"{clip}: {why}" for clip, why in list(meters.left_out.items())[:_SHOWN])
        print(printable(f"{len(meters.left_out)} clips could not be used, and are left out ({METERS_NAME} lists all):\n"
                        f"  {told}"), file=sys.stderr)
    return 1 if meters.left_out else 0


_SHOWN = 5
