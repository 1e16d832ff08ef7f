"""Command line arguments that are plain text, before Hydra's grammar sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..media import VIDEO_SUFFIXES
from ..runtime.cli import check_number
from ..runtime.errors import InputError

# MERGED-DOC """What people type: videos, words and numbers, checked before anything heavy is loaded."""


def videos_in(path: Path) -> dict[str, Path]:
    """A file, or a folder ⇒ {output name: video}, sorted. Raises InputError when it doesn't exist or holds no video.

    The name is the file's without its suffix; where two files of a folder differ in the suffix alone it is kept.
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
    """A list, or text with commas or semicolons between words ⇒ the words; None stays None."""
    if given is None:
        return None
    words = re.split(r"[,;]", given) if isinstance(given, str) else [str(word) for word in given]
    return tuple(word.strip() for word in words if word.strip())


def check_solver(solver: str | None) -> None:
    """Raise InputError unless the solver is known, or None (the model's own)."""
    from ..diffusion.sampler import Sampler, with_solver

    with_solver(Sampler(), solver)


def check_sampling(guidance: Any, steps: Any) -> None:
    """Guidance 0 to 100, steps 1 to 1000, each or None (the model's own)."""
    if guidance is not None:
        check_number("guidance", guidance, 0, 100)
    if steps is not None:
        check_number("steps", steps, 1, 1000, whole=True)
