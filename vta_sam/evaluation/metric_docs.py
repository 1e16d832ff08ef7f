"""The table of metrics in docs/evaluation.md, written from the rows.

    python -m vta_sam.evaluation.metric_docs              # writes it
    python -m vta_sam.evaluation.metric_docs --print      # prints it, with rows of your own ($VTA_SAM_METRICS)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.files import write_text
from .metric import GROUPS, Metric
from .metric_table import METRICS, metric_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
BEGIN = "<!-- metrics: written by python -m vta_sam.evaluation.metric_docs -->"
END = "<!-- end of metrics -->"


def markdown_table(metrics: Sequence[Metric]) -> str:
    """⇒ a Markdown table, a line per row, in the order of an evaluation's table."""
    lines = ["| metric | better | definition | source |", "|---|---|---|---|"]
    ordered = sorted(metrics, key=lambda metric: GROUPS.index(metric.group))
    return "\n".join([*lines, *map(_line, ordered)])


def page_with_table(text: str, metrics: Sequence[Metric]) -> str:
    """A page's text ⇒ the same with the table between the two markers.

    Raises:
        InputError: the page has not both markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{PAGE} has no lines {BEGIN} and {END}, between which the table of metrics stands")
    return f"{before}{BEGIN}\n{markdown_table(metrics)}\n{END}{after}"


def _line(metric: Metric) -> str:
    name = f"`{metric.key.replace('{backbone}', '*')}`"
    better = " ".join(filter(None, (metric.arrow, metric.unit)))
    title = metric.title.replace(" ({title})", "").replace(", {title})", ")")
    more = " Only with `metrics=all`." if not metric.standard else ""
    figures = " Also in figures.json." if metric.in_figures else ""
    cells = (name, better, f"{title}: {metric.definition}{figures}{more}", metric.source)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the table of metrics into docs/evaluation.md.")
    parser.add_argument("--print", action="store_true", dest="shown", help="print it, with registered rows, instead")
    if parser.parse_args(arguments).shown:
        print(markdown_table(metric_table()))
        return
    write_text(PAGE, page_with_table(PAGE.read_text(encoding="utf-8"), METRICS))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
