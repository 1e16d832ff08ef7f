"""docs/performance.md: what GPUs made of the project, from the records that benchmarks/gpu.py wrote into docs/gpu."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
FOLDER = DOCS / "gpu"
PAGE = DOCS / "performance.md"
BEGIN, END = "<!-- records: written by benchmarks/gpu.py --page -->", "<!-- end of records -->"
HEADINGS = {
    "what": "what", "size": "size", "stage": "stage", "clips": "clips", "form": "form",
    "parameters_m": "million parameters",
    "s": "s a step", "clips_per_s": "clips/s", "tflop": "TFLOP", "mfu": "share of the peak", "gb": "GB",
    "compiled_in_s": "compiled in s", "host_waits": "host waits",
    "steps": "steps", "latents_s": "s for latents", "sound_s": "s for sound",
    "evaluation_ms": "ms", "workers": "loader processes", "frames_per_s": "frames/s",
    "alone_per_s": "frames/s one by one", "hours": "h for 200,000 clips", "hours_64": "h on 64",
    "stored_gb": "GB stored",
    "bare_s": "s, bare step", "trainer_s": "s, in the trainer", "with_average_s": "s, with the average",
}
TITLES = {"training": "Training steps", "in_the_trainer": "Steps inside the trainer", "sampling": "Sampling",
          "evaluation": "One evaluation of the denoiser, one clip", "loading": "Loading", "extraction": "Extraction"}


def records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The records, the earliest first by their ``order``, then by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda record: record.get("order", 1))


def page_of(record: dict[str, Any]) -> list[str]:
    """One record ⇒ lines of Markdown."""
    lines = [f"### {record['device']}, commit {record['commit']}", ""]
    if record.get("note"):
        lines += [*textwrap.wrap(record["note"], 120), ""]
    reached = record.get("ceilings", {})
    if reached:
        lines += [f"Ceilings of the same run: {reached['tflop_per_s']:g} TFLOP/s (product of bf16 matrices), "
                  f"{reached['tb_per_s']:g} TB/s (copy).", ""]
    for name, title in TITLES.items():
        if rows := record.get(name):
            lines += [f"**{title}**", "", *table(rows), ""]
    if record.get("left_out"):
        lines += [*textwrap.wrap("Not measured: " + "; ".join(record["left_out"]) + ".", 120), ""]
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    columns = [key for key in HEADINGS if any(key in row for row in rows)]
    assert {key for row in rows for key in row} <= set(columns), "each figure has a heading"

    def cell(row: dict[str, Any], key: str) -> str:
        value = row.get(key, "")
        if key == "mfu" and value != "":
            return f"{value:.0%}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return ["| " + " | ".join(HEADINGS.get(key, key) for key in columns) + " |", "|" + "---|" * len(columns),
            *("| " + " | ".join(cell(row, key) for key in columns) + " |" for row in rows)]


def page(text: str, folder: Path = FOLDER) -> str:
    """The page with its part between BEGIN and END made of the records anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = [line for record in records(folder) for line in page_of(record)]
    return f"{before}{BEGIN}\n\n" + "\n".join(body) + f"{END}{after}"


def write_page() -> Path:
    """Write docs/performance.md ⇒ its path."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return PAGE
