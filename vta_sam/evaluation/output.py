"""The files that an evaluation leaves behind."""

from __future__ import annotations

from pathlib import Path

from .plots import figures_picture
from .results import Evaluation
from .table import write_clips

EVALUATION_NAME = "evaluation.json"


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """evaluation.json, clips.csv and, where there is something to draw, figures.png ⇒ what was written."""
    written = [folder / EVALUATION_NAME, folder / "clips.csv"]
    evaluation.save(written[0])
    write_clips(written[1], evaluation)
    if figures_picture(folder / "figures.png", evaluation):
        written.append(folder / "figures.png")
    return written
