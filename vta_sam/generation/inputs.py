"""Inputs of a generation: videos, words and numbers, checked before any network is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..media import VIDEO_SUFFIXES
from ..runtime.cli import check_number
from ..runtime.errors import InputError

if TYPE_CHECKING:  # the command line is checked before torch is imported
    from ..diffusion.sampler import BaseSampler


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


@dataclass(frozen=True)
class Sampling:
    """Settings of a model's sampler; None: the model's own. A further one is a field here and a key of
    conf/generate.yaml.

    Args:
        guidance: classifier-free guidance scale.
        steps: evaluations of the denoiser.
        solver: of a sampler that has several.
        overlap: of neighbouring windows of a long video, as a share of a window.
    """

    guidance: float | None = None
    steps: int | None = None
    solver: str | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.guidance, self.steps)
        if self.overlap is not None:
            check_number("overlap", self.overlap, 0, 0.95)

    def applied(self, sampler: BaseSampler) -> BaseSampler:
        """The sampler with these settings. InputError where it has no such setting."""
        from ..diffusion.sampler import with_settings

        return with_settings(sampler, **asdict(self))


def check_sampling(guidance: Any, steps: Any) -> None:
    """Raise InputError unless guidance is from 0 to 100 and steps from 1 to 1000, or None for the model's own."""
    if guidance is not None:
        check_number("guidance", guidance, 0, 100)
    if steps is not None:
        check_number("steps", steps, 1, 1000, whole=True)
