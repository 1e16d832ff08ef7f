"""A record ⇔ what was computed now: the same text on the platform that it was made on, numbers within tolerances
elsewhere.

A record is lines of ``what: values``; the first is ``platform: …``, and ``[name]`` begins a section.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
# (rtol, atol) of a line's numbers on another platform; None: only its presence is compared there
Tolerance = Callable[[str], tuple[float, float] | None]


def read_record(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def platform_of(record: str) -> str:
    return record.splitlines()[0].partition(": ")[2]


def section(record: str, name: str) -> list[str]:
    """⇒ the lines under ``[name]``. Raises KeyError where there are none."""
    lines = record.splitlines()
    if f"[{name}]" not in lines:
        raise KeyError(f"no section [{name}]")
    rest = lines[lines.index(f"[{name}]") + 1:]
    return [line for line in rest[:next((i for i, line in enumerate(rest) if line.startswith("[")), None)] if line]


def sections(record: str) -> list[str]:
    return [line[1:-1] for line in record.splitlines() if line.startswith("[")]


def text_difference(record: Sequence[str], now: Sequence[str]) -> str:
    """⇒ "" where they are the same."""
    return "\n".join(difflib.unified_diff(list(record), list(now), "record", "now", lineterm="", n=0))


def far(record: Sequence[str], now: Sequence[str], tolerance: Tolerance) -> list[str]:
    """⇒ a sentence for each line that is only in one, or whose numbers are further apart than the tolerance."""
    before, after = (dict(line.rpartition(": ")[::2] for line in lines) for lines in (record, now))
    found = [f"{name} is only {'in the record' if name in before else 'here'}" for name in
             sorted(set(before) ^ set(after))]
    for name in filter(after.__contains__, before):
        allowed = tolerance(name)
        if allowed is not None and not _near(before[name].split(), after[name].split(), *allowed):
            found.append(f"{name} is {after[name]}, in the record {before[name]} (tolerance: {allowed[0]:g} relative, "
                         f"{allowed[1]:g} absolute)")
    return found


def _near(before: list[str], after: list[str], rtol: float, atol: float) -> bool:
    return len(before) == len(after) and all(_one_near(*pair, rtol, atol) for pair in zip(before, after))


def _one_near(before: str, after: str, rtol: float, atol: float) -> bool:
    try:
        return math.isclose(float(before), float(after), rel_tol=rtol, abs_tol=atol)
    except ValueError:
        return before == after
