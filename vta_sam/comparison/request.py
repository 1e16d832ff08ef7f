"""What a comparison page is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.files import SoundFile, Words
from ..evaluation.results import Evaluation
from ..report.panels import check_probabilities


@dataclass
class PageClip:
    """One clip: a column of the page. timeline: K objects, their probabilities (T, K) in [0, 1] spread evenly over
    duration_s, and that duration; None ⇒ not known. events_s: true onsets in seconds; None ⇒ not known."""

    id: str
    words: Words = field(default_factory=Words)
    timeline: tuple[list[str], np.ndarray, float] | None = None
    events_s: np.ndarray | None = None


@dataclass
class PageRequest:
    """A page to be written. sounds: {system: {clip id: its first sample}}; rows stand in this order, the evaluation's
    true sound first. videos: {clip id: pictures} for systems that have only sound. out: the folder of index.html.
    note: a sentence under the title."""

    title: str
    evaluation: Evaluation
    sounds: dict[str, dict[str, SoundFile]]
    clips: list[PageClip]
    videos: dict[str, Path]
    out: Path
    note: str = ""

    @property
    def systems(self) -> list[str]:
        """The rows."""
        return sorted(self.sounds, key=lambda name: name != self.evaluation.reference)

    def check(self) -> None:
        """InputError: nothing to show, a clip twice, a timeline that doesn't fit, a source inside ``out``."""
        ids = [clip.id for clip in self.clips]
        if not ids or not self.sounds:
            raise InputError(f"{self.out}: a page needs a clip and a system at least, got {len(ids)} clips and "
                             f"{len(self.sounds)} systems")
        twice = sorted({clip_id for clip_id in ids if ids.count(clip_id) > 1}) if len(set(ids)) < len(ids) else []
        if twice:
            raise InputError(f"{self.out}: clip {twice[0]!r} is named twice; name each clip once")
        for clip in self.clips:
            if clip.timeline is not None:
                objects, probs, duration_s = clip.timeline
                check_probabilities(objects, probs)
                if not np.isfinite(probs).all() or not duration_s > 0:
                    raise InputError(f"clip {clip.id!r}: its object probabilities hold NaN or infinity, or last "
                                     f"{duration_s} s; extract it anew")
        out = self.out.resolve()
        sources = [file.path for files in self.sounds.values() for file in files.values()]
        for path in [*sources, *self.videos.values()]:
            if out in path.resolve().parents:
                raise InputError(f"{path} lies in out={self.out}, which the page replaces; name another folder")
