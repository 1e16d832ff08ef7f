"""The distribution of the embedded world: measured on timelines or on written truth, printed, and held to promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .classes import IMPULSE, WORDS
from .render import LEAST_VISIBLE
from .timeline import HEIGHT_PX, LEAST_IMPULSES, LEAST_SUSTAINED_S, WIDTH_PX, Scene, frame_times_s
from .truth import SCENES_VERSION, Event, SceneTruth, read_truth
from .world import read_manifest

MOST_EVEN = 1.6  # times as frequent as the rarest class the commonest may be, in worlds of 500 clips and more
ALL_OF_IT = 0.85  # of a thing's area in view while it sounds; the rest allows for a neighbour in front of it


@dataclass(frozen=True)
class ClipFacts:
    """What one clip gives to the statistics. (T, K) arrays are of the K named things alone."""

    words: list[str]
    look_alikes: int
    inside: np.ndarray  # (T, K) fraction of the thing in view
    sounding: np.ndarray  # (T, K) bool
    events: list[list[Event]]  # K lists


def facts_of_truth(truth: SceneTruth) -> ClipFacts:
    named = truth.named
    events = [list(o.events) for o in truth.objects if o.named]
    inside = truth.inside[:, named].astype(np.float64)
    return ClipFacts(truth.words, int((~named).sum()), inside, truth.sounding[:, named] > 0, events)


def facts_of_scene(scene: Scene) -> ClipFacts:
    """From the timeline alone: how much of a thing's canvas is inside the picture; neighbours hide nothing."""
    named = [t for t in scene.things if t.named]
    fractions = []
    for thing in named:
        centres = thing.centres_px(frame_times_s()) + scene.camera_px
        size, picture = np.array([thing.width_px, thing.height_px]), np.array([WIDTH_PX, HEIGHT_PX])
        shared = np.minimum(centres + size / 2, picture) - np.maximum(centres - size / 2, 0)
        fractions.append(np.nan_to_num(np.clip(shared, 0, None).prod(axis=1) / size.prod()))
    sounding = np.stack([t.sounding() for t in named], 1)
    look_alikes = len(scene.things) - len(named)
    return ClipFacts(scene.words, look_alikes, np.stack(fractions, 1), sounding, [t.events for t in named])


@dataclass(frozen=True)
class WorldStatistics:
    """Fractions of a world. (object, picture) counts run over the named objects of all clips."""

    clips: int
    several: float  # clips with two or three named objects
    look_alike: float  # clips with a silent look-alike
    off_screen: float  # of all (object, picture)
    visible_silent: float  # of (object, picture) with the object visible
    overlapping: float  # clips in which two sound in the same picture
    sounding_unseen: float  # of (object, picture) that sound: the object is not in full view
    too_quiet: int  # objects with neither enough impulses nor enough sustained sound
    events_each: float  # events per named object
    per_class: dict[str, int]  # named objects of each class

    def table(self) -> str:
        """For people."""
        rows = (
            ("clips", f"{self.clips}", ""),
            ("two or three named objects", f"{self.several:.1%}", ">= 50 %"),
            ("silent look-alike", f"{self.look_alike:.1%}", "30-55 %"),
            ("named object off-screen", f"{self.off_screen:.1%}", ">= 30 % of (object, picture)"),
            ("visible object silent", f"{self.visible_silent:.1%}", ">= 30 % of (object, picture)"),
            ("overlapping sounds", f"{self.overlapping:.1%}", ">= 10 %"),
            ("sounding, not in full view", f"{self.sounding_unseen:.2%}", "<= 1 % of (object, picture)"),
            ("objects that sound too little", f"{self.too_quiet}", "0"),
            ("events per object", f"{self.events_each:.2f}", ""),
        )
        lines = [f"embedded world, version {SCENES_VERSION}"]
        lines += [f"  {name:<32}{value:>8}   {promise}".rstrip() for name, value, promise in rows]
        lines += ["  objects of each class: " + ", ".join(f"{w} {n}" for w, n in self.per_class.items())]
        return "\n".join(lines)


def measure(clips: Iterable[ClipFacts]) -> WorldStatistics:
    """The statistics of one or more clips."""
    facts = list(clips)
    visible = [f.inside >= LEAST_VISIBLE for f in facts]
    shown, pictures = sum(int(v.sum()) for v in visible), sum(v.size for v in visible)
    sounding = sum(int(f.sounding.sum()) for f in facts)
    lists = [events for f in facts for events in f.events]
    counts = Counter(w for f in facts for w in f.words)
    return WorldStatistics(
        clips=len(facts),
        several=float(np.mean([len(f.words) > 1 for f in facts])),
        look_alike=float(np.mean([f.look_alikes > 0 for f in facts])),
        off_screen=1 - shown / pictures,
        visible_silent=sum(int((v & ~f.sounding).sum()) for v, f in zip(visible, facts)) / max(shown, 1),
        overlapping=float(np.mean([(f.sounding.sum(axis=1) > 1).any() for f in facts])),
        sounding_unseen=sum(int((f.sounding & (f.inside < ALL_OF_IT)).sum()) for f in facts) / max(sounding, 1),
        too_quiet=sum(not _sounds_enough(events) for events in lists),
        events_each=float(np.mean([len(events) for events in lists])),
        per_class={w: counts[w] for w in WORDS},
    )


def _sounds_enough(events: list[Event]) -> bool:
    sustained_s = sum(e.end_s - e.onset_s for e in events if e.kind != IMPULSE)
    return sum(e.kind == IMPULSE for e in events) >= LEAST_IMPULSES or sustained_s >= LEAST_SUSTAINED_S - 1e-3


def broken_promises(s: WorldStatistics) -> list[str]:
    """The promises that these statistics break, in words; empty when all are kept. Below some 100 clips chance breaks
    a few."""
    lowest = min(s.per_class.values())
    promises = (
        (s.several >= 0.5, f"two or three named objects in >= 50 % of clips: {s.several:.1%}"),
        (0.3 <= s.look_alike <= 0.55, f"a look-alike in 30-55 % of clips: {s.look_alike:.1%}"),
        (s.off_screen >= 0.3, f"named objects off-screen >= 30 %: {s.off_screen:.1%}"),
        (s.visible_silent >= 0.3, f"visible objects silent >= 30 %: {s.visible_silent:.1%}"),
        (s.overlapping >= 0.1, f"overlapping sounds in >= 10 % of clips: {s.overlapping:.1%}"),
        (s.sounding_unseen <= 0.01, f"sounding out of full view <= 1 %: {s.sounding_unseen:.2%}"),
        (s.too_quiet == 0, f"every named object sounds enough: {s.too_quiet} do not"),
        (s.clips < 500 or max(s.per_class.values()) <= MOST_EVEN * lowest, f"classes equally often: {s.per_class}"),
    )
    return [text for kept, text in promises if not kept]


def measure_world(folder: Path, split: str | None = None) -> WorldStatistics:
    """The statistics of a written world (or one split of it), from the truth beside its clips."""
    rows = [row for row in read_manifest(folder) if split is None or row["split"] == split]
    return measure(facts_of_truth(read_truth(Path(folder) / row["path"])) for row in rows)
