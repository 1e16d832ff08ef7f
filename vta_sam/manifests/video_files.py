"""The video files of a folder, and which of them holds a clip that a dataset names by a video's id and a start."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..media import VIDEO_SUFFIXES

CUTS = ("auto", "yes", "no")
CLIP_S = 10.0  # AudioSet's clips, which VGGSound's and AudioCaps' are taken from, last ten seconds


def list_videos(folder: Path, recursive: bool = False) -> list[os.DirEntry[str]]:
    """Files with a video's suffix, in order of their path; hidden ones and folders behind links are passed over.

    One scandir per folder and no look at any file. Raises InputError where ``folder`` can't be listed or holds none.
    """
    found: list[os.DirEntry[str]] = []
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders += [entry.path] if recursive else []
                    elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                        found.append(entry)
        except OSError as error:
            raise InputError(f"--videos: {error.filename} can't be listed ({error.strerror}); name the folder "
                             "of the videos") from error
    if not found:
        raise InputError(f"--videos {folder} holds no video file"
                         f"{'' if recursive else ' (folders inside it are not looked into)'}; known suffixes are "
                         f"{' '.join(sorted(VIDEO_SUFFIXES))}")
    return sorted(found, key=lambda entry: entry.path)


def by_stem(paths: Iterable[str]) -> dict[str, str]:
    """Relative paths ⇒ {file name without suffix: path}; of files that differ in the suffix alone the mp4 counts."""
    stems: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (not path.lower().endswith(".mp4"), path)):
        stems.setdefault(PurePosixPath(path).stem, path)
    return stems


@dataclass(frozen=True)
class Found:
    """A clip's file and its stretch of it. rule: by what name it was found, and what that was taken for."""

    path: str
    start_s: float
    duration_s: float | None
    rule: str


def find_clip(stems: Mapping[str, str], video: str, start_s: int, cut: str = "auto") -> Found | None:
    """The clip that starts ``start_s`` into the video of that id ⇒ its file, or None.

    ``<id>_000030``, ``<id>_30`` and ``<id>`` are looked for, in this order. cut, is the file the clip itself (yes) or
    the whole video (no)? auto: a name with the start is the clip, a bare id the whole video.
    """
    for stem in (f"{video}_{start_s:06d}", f"{video}_{start_s}", video):
        if stem in stems:
            named = stem != video
            already_cut = named if cut == "auto" else cut == "yes"
            name = "named by id and start" if named else "named by the bare id"
            if already_cut:
                return Found(stems[stem], 0.0, None, f"{name}, taken as the clip itself")
            return Found(stems[stem], float(start_s), CLIP_S, f"{name}, taken as the whole video: {CLIP_S:g} s from "
                                                              "the start on")
    return None


def whole_seconds(where: str, text: str) -> int:
    """A start as a dataset writes it ⇒ seconds. Raises InputError unless it is a whole number >= 0."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6 or number != int(number):
        raise InputError(f"{where}: the start is {text!r}, expected whole seconds >= 0")
    return int(number)
