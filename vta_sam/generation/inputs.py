"""Inputs of a generation: videos, words and numbers, checked before any network is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..media import VIDEO_SUFFIXES
from ..runtime.cli import check_number
from ..runtime.errors import InputError


def videos_in(path: Path) -> dict[str, Path]:
    """The videos of a file or a folder ⇒ {output name: video}, sorted.

    The name is the file's without its suffix, or with it where two files of a folder differ in the suffix alone.

    Raises:
        InputError: the path doesn't exist, or the folder holds no video.
    """
    if not path.exists():
        raise InputError(f"{path} doesn't exist; name a video file, or a folder of videos")
    if not path.is_dir():
        return {path.stem: path}
    videos = sorted(file for file in path.iterdir()
                    if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file() and not file.name.startswith("."))
    if not videos:
        raise InputError(f"{path} holds no video; name a video file, or a folder with files such as .mp4 or .mov")
    stems = [video.stem for video in videos]
    return {v.stem if stems.count(v.stem) == 1 else f"{v.stem}-{v.suffix[1:]}": v for v in videos}


def word_list(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The words of a list, or of a text with commas or semicolons between words; None stays None."""
    if given is None:
        return None
    words = re.split(r"[,;]", given) if isinstance(given, str) else [str(word) for word in given]
    return tuple(word.strip() for word in words if word.strip())


def check_solver(solver: str | None) -> None:
    """Raise InputError unless the solver is known, or None for the model's own."""
    from ..diffusion.sampler import Sampler, with_solver

    with_solver(Sampler(), solver)


def check_sampling(guidance: Any, steps: Any) -> None:
    """Raise InputError unless guidance is from 0 to 100 and steps from 1 to 1000, or None for the model's own."""
    if guidance is not None:
        check_number("guidance", guidance, 0, 100)
    if steps is not None:
        check_number("steps", steps, 1, 1000, whole=True)
