"""Did a finished training run keep within the time and memory that the main job is promised to need?

    python benchmarks/main_job.py --run runs/vta_sam-0

Reads what the run wrote down; measures nothing itself. Exit status 1 where a limit was passed.
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
    options = arguments.parse_args()
    account, figures = read(options.run / "seconds.json"), read(options.run / "figures.json")
    total_s = sum(account.values())
    rows = [{"stage": stage, "minutes": round(spent / 60, 2), "share": f"{spent / max(total_s, 1e-9):.0%}"}
            for stage, spent in account.items()]
    peak_gb = float(figures.get("peak_memory_gb", float("nan")))
    within = total_s / 60 <= options.limit_minutes and peak_gb <= options.limit_gb
    rows.append({"stage": "all", "minutes": round(total_s / 60, 2), "share": "100%"})
    facts = {"limit_minutes": options.limit_minutes, "peak_memory_gb": peak_gb, "limit_gb": options.limit_gb,
             "within_limits": within, "run_device": figures.get("device"),
             "run_torch": figures.get("torch")}
    Report(f"main job in {options.run}", rows, facts, scores(figures)).show(options.json)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
