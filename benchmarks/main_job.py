"""Did a finished training run keep within the time and memory that the main job is promised to need?

    python benchmarks/main_job.py --run runs/vta_sam-0
    python benchmarks/main_job.py --run runs/vta_sam-0 --beside before/vta_sam-0 --picture stages.svg

Reads what the run wrote down; measures nothing itself. Exit status 1 where a limit was passed. A row is a stage, or a
part of one: beside its seconds stand those of conf/size, which were measured elsewhere, and those of another run, with
the ratio of this run's to that one's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _report import Report, parser

from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

LIMIT_MINUTES, LIMIT_GB = 20.0, 6.0


def read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; --run names the folder of a run that has finished") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} doesn't hold what a training run writes")
    return content


def stages(run: Path) -> dict[str, dict[str, float]]:
    """{stage: {part: seconds}} of a run; of a stage whose parts nobody has told, one part "" with all of them."""
    spent, path = read(run / "seconds.json"), run / "seconds_parts.json"
    told = read(path) if path.exists() else {}  # which runs of an earlier version lack
    return {stage: told.get(stage, {}).get("parts") or {"": seconds} for stage, seconds in spent.items()}


def elsewhere(run: Path) -> dict[str, float]:
    """{stage: seconds} as conf/size had them when the run was made; without the stages that it had none for."""
    path = run / "seconds_parts.json"
    told = read(path) if path.exists() else {}
    return {stage: found["expected_s"] for stage, found in told.items() if found.get("expected_s")}


def stage_rows(run: Path, beside: Path | None) -> list[dict[str, Any]]:
    """Rows of all stages, of their parts, and of the whole run."""
    account, other = read(run / "seconds.json"), read(beside / "seconds.json") if beside else {}
    parts, its_parts = stages(run), stages(beside) if beside else {}
    total_s, expected = sum(account.values()), elsewhere(run)

    def row(name: str, spent: float, its: float | None, expected_s: float | None = None) -> dict[str, Any]:
        found = {"stage": name, "minutes": round(spent / 60, 2), "share": f"{spent / max(total_s, 1e-9):.0%}",
                 "seconds": round(spent, 1)}
        if expected_s is not None:
            found["expected_s"] = expected_s
        if its is not None:
            found |= {"beside_s": round(its, 1), "ratio": round(spent / its, 3) if its else None}
        return found

    rows = []
    for stage in dict.fromkeys([*account, *other]):
        rows.append(row(stage, account.get(stage, 0.0), other.get(stage), expected.get(stage)))
        mine, its = parts.get(stage, {}), its_parts.get(stage, {})
        rows += [row(f"  {part}", mine.get(part, 0.0), its.get(part)) for part in dict.fromkeys([*mine, *its]) if part]
    both = [stage for stage in account if stage in other]  # a ratio is of the stages that both have
    whole = row("all", total_s, None, sum(expected.values()) if set(expected) == set(account) else None)
    if both:
        its_s = sum(other[stage] for stage in both)
        ratio = round(sum(account[stage] for stage in both) / its_s, 3) if its_s else None
        whole |= {"beside_s": round(sum(other.values()), 1), "ratio": ratio}
    return [*rows, whole]


def scores(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run achieved: one row per figure of timing, with its control."""
    rows = []
    for name, found in figures.get("timing", {}).items():
        rows.append({"figure": name} | {
            part: f"{found[part]['mean']} [{found[part]['low']}, {found[part]['high']}], n {found[part]['n']}"
            for part in ("score", "control") if part in found})
    return rows


@run
def main() -> int:
    arguments = parser("Minutes and memory of a finished training run against the limits.")
    arguments.add_argument("--run", type=Path, required=True, help="folder of the run")
    arguments.add_argument("--limit-minutes", type=float, default=LIMIT_MINUTES)
    arguments.add_argument("--limit-gb", type=float, default=LIMIT_GB)
    arguments.add_argument("--beside", type=Path, help="folder of another run, to compare with")
    arguments.add_argument("--picture", type=Path, help="svg or png to draw the seconds of the stages to")
    options = arguments.parse_args()
    account, figures = read(options.run / "seconds.json"), read(options.run / "figures.json")
    total_s = sum(account.values())
    rows = stage_rows(options.run, options.beside)
    if options.picture:
        from vta_sam.plots.clip_pictures import seconds_picture

        runs = [options.run, *([options.beside] if options.beside else [])]
        seconds_picture(options.picture, {str(run): stages(run) for run in runs})
    peak_gb = float(figures.get("peak_memory_gb", float("nan")))
    within = total_s / 60 <= options.limit_minutes and peak_gb <= options.limit_gb
    facts = {"limit_minutes": options.limit_minutes, "peak_memory_gb": peak_gb, "limit_gb": options.limit_gb,
             "within_limits": within, "run_device": figures.get("device"),
             "run_torch": figures.get("torch")}
    Report(f"main job in {options.run}", rows, facts, scores(figures)).show(options.json)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
