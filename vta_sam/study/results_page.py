"""Records ⇒ docs/results.md: every figure of a study; a row without a record says "not run"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..evaluation.metric_table import METRICS
from ..metrics.intervals import Interval, bootstrap_interval, interval_of, paired_difference, wilson_interval
from ..runtime.errors import InputError
from ..runtime.files import write_text, writing_to
from .record import Difference, Record, Row, Study, read_record, study_of

STUDIES = Path(__file__).resolve().parents[2] / "conf" / "study"
NOT_RUN = "not run"
SHOWN = {  # key ⇒ (heading, decimals)
    "envelope_correlation": ("envelope correlation ↑", 3), "onset_f1": ("onset F1 ↑", 3),
    "sound_class": ("sound class ↑", 3), "frechet_tiny": ("FAD (embedded tagger) ↓", 1),
    "kl_tiny": ("KL (embedded tagger) ↓", 2), "av_align_published": ("AV-Align ↑", 3),
}
PROPORTIONS = {metric.key for metric in METRICS if metric.proportion}
OF_SETS = {metric.of_backbone("tiny", "").key for metric in METRICS if metric.scope == "set"}
COMPARED = ("envelope_correlation", "onset_f1", "sound_class", "kl_tiny")

Records = dict[tuple[str, str, str], list[Record]]  # (study, table, row) ⇒ one per seed


def write_results(records: Path) -> Path:
    """``records``/*.json ⇒ the page beside the folder: docs/results ⇒ docs/results.md."""
    page = records.with_suffix(".md")
    with writing_to(page.parent, "records"):
        write_text(page, results_page(load_studies(), load_records(records)))
    return page


def load_studies(folder: Path = STUDIES) -> list[Study]:
    """The studies of conf/study that have a place on the page, in the order of their names, the comparison first."""
    studies = [study_of(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]
    return sorted((s for s in studies if s.name != "smoke"), key=lambda study: study.name != "comparison")


def load_records(folder: Path) -> Records:
    found: Records = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        found.setdefault((record.study, record.table, record.row), []).append(record)
    return {key: sorted(group, key=lambda record: record.seed) for key, group in found.items()}


def results_page(studies: Sequence[Study], records: Records) -> str:
    """⇒ Markdown."""
    lines = [
        "# Results", "",
        "Written by `python experiments/study.py` from the records in `docs/results/` (one per row and seed), not by "
        "hand. Rows of a table share clips, VAE, UNet, schedule, steps and vocoder, and differ in what the UNet "
        "listens to. Figures are means over the held-out clips of the embedded world with 95 % intervals. *Control* is "
        "a row's own sound against other clips' truth, *ceiling* the true sound through VAE and vocoder, each of one "
        "seed. [evaluation.md](evaluation.md) defines each figure.",
        "",
        "The intervals are new, the means are not. Those of several seeds were drawn over clips alone, of each clip's "
        "mean over seeds, as if another training run would give the same. They are drawn over clips *and* seeds now "
        "(pigeonhole bootstrap), from the same records. Those of sound class, a share, had no width where every clip "
        "agreed; they are Wilson's now, or the outer one of both where there are several seeds, and a difference of "
        "shares is Agresti and Min's. Two seeds still say little of a third: drawn from two, the variance between "
        "runs comes out at half its size on average. No difference that rests on one seed is bold. What a record "
        "doesn't hold per clip can't be drawn again: columns with † have intervals of the old kind, from the seeds' "
        "lowest low to their highest high.",
        "",
    ]
    for study in studies:
        lines += [f"## {study.title}", ""]
        if study.note:
            lines += [study.note.strip(), ""]
        lines += [f"Every row: `{' '.join(study.common)}`.", ""]
        for table, title in study.tables.items():
            rows = [row for row in study.rows if row.table == table]
            lines += [f"### {title}", "", *_table(study, rows, records), ""]
            lines += _details(rows, records)
            lines += _controls(rows, records)
            differences = [d for d in study.differences if d.table == table]
            if differences:
                lines += _differences(study, differences, records)
    return "\n".join(lines).rstrip() + "\n"


def _group(records: Records, row: Row) -> list[Record]:
    return records.get((row.study, row.table, row.name), [])


def _table(study: Study, rows: Sequence[Row], records: Records) -> list[str]:
    several = any(len(_group(records, row)) > 1 for row in rows)
    headings = [f"{heading}{' †' if several and key in OF_SETS else ''}" for key, (heading, _) in SHOWN.items()]
    lines = [f"| system | seeds | {' | '.join(headings)} |", "|---" * (len(SHOWN) + 2) + "|"]
    for row in rows:
        group = _group(records, row)
        if not group:
            lines.append(f"| {row.title} | {NOT_RUN} |" + "  |" * len(SHOWN))
            continue
        seeds = ", ".join(str(record.seed) for record in group)
        cells = [_text(score(group, key), decimals) for key, (_, decimals) in SHOWN.items()]
        lines.append(f"| {row.title} | {seeds} | " + " | ".join(cells) + " |")
    groups = [group for row in rows if (group := _group(records, row))]
    if groups:
        lines.append("| *control, highest of the rows* | one | " + " | ".join(
            _text(_highest_control(groups, key), decimals) for key, (_, decimals) in SHOWN.items()) + " |")
    ceiling = next((r.figures for key, group in records.items() if key[0] == study.name for r in group
                    if "ceiling" in r.figures.get("envelope_correlation", {})), None)
    if ceiling:
        bounds = {key: _interval(ceiling.get(key, {}).get("ceiling"), key) for key in SHOWN}
        lines.append("| *ceiling* | one | " + " | ".join(
            _text(bounds[key], decimals) for key, (_, decimals) in SHOWN.items()) + " |")
    return lines


def _details(rows: Sequence[Row], records: Records) -> list[str]:
    """⇒ a table of each row's condition and cost; none for a study whose rows don't state them."""
    if not any(row.sees for row in rows):
        return []
    lines = ["Times are of rows that had the machine to themselves.", "",
             "| system | sees | labels it learned from | time-aligned | parameters, UNet + conditioner | training, "
             "minutes | sampling, seconds a clip |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        group = _group(records, row)
        cost = [NOT_RUN] * 3
        if group:
            trained = group[0].parameters
            alone = [r for r in group if not r.made_by.get("beside")]
            minutes = [sum(s for stage, s in r.seconds.items() if stage not in ("data", "figures", "vae")) / 60
                       for r in alone]
            sampling = [r.sampling_s for r in alone if r.sampling_s is not None]
            denoiser = trained.get("denoiser") or trained["unet"]  # as records of before call it
            cost = [f"{(denoiser + trained['conditioner']) / 1e6:.2f} M",
                    f"{np.mean(minutes):.1f}" if minutes else "not measured",
                    f"{np.mean(sampling):.2f}" if sampling else "not measured"]
        lines.append(f"| {row.title} | {row.sees} | {row.labels} | {'yes' if row.aligned else 'no'} | "
                     + " | ".join(cost) + " |")
    return [*lines, ""]


def _controls(rows: Sequence[Row], records: Records) -> list[str]:
    """⇒ the rows' controls, as sentences."""
    lines = []
    for row in rows:
        for record in (r for r in _group(records, row) if r.controls):
            found = {name: _text(interval_of(interval), 3) for name, interval in record.controls.items()}
            lines += [f"{row.title}, seed {record.seed}, sampled with what must fail: told another clip's features its "
                      f"envelope correlation is {found['another_clip']}, under an untrained conditioner "
                      f"{found['untrained']}.", ""]
    return lines


def _differences(study: Study, differences: Sequence[Difference], records: Records) -> list[str]:
    lines = ["Paired differences over clips and seeds, first − second; bold where the interval of more than one seed "
             "leaves out 0.", "",
             "| question | first − second | seeds | " + " | ".join(SHOWN[key][0] for key in COMPARED) + " |",
             "|---" * (len(COMPARED) + 3) + "|"]
    for difference in differences:
        first, second = (study.row(difference.table, name) for name in (difference.first, difference.second))
        groups = _group(records, first), _group(records, second)
        cells = ["", *[NOT_RUN] * len(COMPARED)]
        if all(groups):
            cells = [", ".join(map(str, sorted(_shared_seeds(*groups)))),
                     *(_difference_text(between(*groups, key), SHOWN[key][1]) for key in COMPARED)]
        lines.append(f"| {difference.question} | {first.title} − {second.title} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def seed_values(group: Sequence[Record], key: str, clips: Iterable[str]) -> np.ndarray:
    """⇒ (seeds, clips); NaN in all seeds where one has no value."""
    table = np.array([[record.values[key].get(clip) for clip in clips] for record in group], np.float64)
    table[:, np.isnan(table).any(axis=0)] = np.nan
    return table


def score(group: Sequence[Record], key: str) -> Interval | None:
    """⇒ a row's score. Of one seed: as in evaluation.json. Of several: over clips and seeds; of a figure of a whole
    set: the seeds' mean, their lowest low and highest high."""
    if key in group[0].values and (len(group) > 1 or key in PROPORTIONS):
        return bootstrap_interval(seed_values(group, key, group[0].values[key]), proportion=key in PROPORTIONS)
    found = [i for record in group if (i := _interval(record.figures.get(key, {}).get("score"), key)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Interval(float(np.mean([i.mean for i in found])), min(i.low for i in found), max(i.high for i in found),
                    found[0].n, seeds=len(found))


def between(first: Sequence[Record], second: Sequence[Record], key: str) -> Interval:
    """⇒ the paired difference over clips, of the seeds that both have.

    Raises:
        InputError: they share no seed.
    """
    shared, clips = _shared_seeds(first, second), list(first[0].values[key])
    if not shared:
        raise InputError("two rows without a seed in common can't be compared")
    one, other = (seed_values([r for r in group if r.seed in shared], key, clips) for group in (first, second))
    return paired_difference(one, other, proportion=key in PROPORTIONS)


def _shared_seeds(first: Sequence[Record], second: Sequence[Record]) -> set[int]:
    return {r.seed for r in first} & {r.seed for r in second}


def _highest_control(groups: Sequence[Sequence[Record]], key: str) -> Interval | None:
    found = [i for group in groups for r in group if (i := _interval(r.figures.get(key, {}).get("control"), key))]
    best = min if SHOWN[key][0].endswith("↓") else max
    return best(found, key=lambda interval: interval.mean) if found else None


def _interval(found: dict[str, Any] | None, key: str) -> Interval | None:
    """A record's interval, that of a share made anew ⇒ Interval, or None where it has no value."""
    if not found or found["mean"] is None:
        return None
    interval = interval_of(found)
    if key not in PROPORTIONS or interval.n < 2:
        return interval
    low, high = wilson_interval(round(interval.mean * interval.n) / interval.n, interval.n)  # records round to 4 places
    return replace(interval, low=low, high=high)


def _text(interval: Interval | None, decimals: int, sign: str = "") -> str:
    if interval is None or not interval.n:
        return ""
    mean, low, high = (f"{value:{sign}.{decimals}f}" for value in (interval.mean, interval.low, interval.high))
    return mean if np.isnan(interval.low) else f"{mean} [{low}, {high}]"


def _difference_text(interval: Interval, decimals: int) -> str:
    text = _text(interval, decimals, "+") or "not defined"
    return f"**{text}**" if interval.beyond_zero and interval.seeds > 1 else text
