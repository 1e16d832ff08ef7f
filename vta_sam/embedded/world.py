"""The embedded world on disk: videos, the truth beside each, a manifest, and statistics of its distribution."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..runtime.errors import InputError
from ..runtime.files import atomic_path, claimed, reason_of, sweep_claims, write_fault, write_text, writing_to
from ..runtime.work_plan import Deed, Item, Plan, counted
from .render import LEAST_VISIBLE, encode, render
from .scene_sounds import render_sound
from .timeline import (
    DURATION_S, HEIGHT_PX, IMPULSE, LEAST_IMPULSES, LEAST_SUSTAINED_S, WIDTH_PX, WORDS, Scene, frame_times_s,
    make_scene
)
from .truth import SCENES_VERSION, Event, SceneTruth, read_truth, write_truth

MANIFEST_COLUMNS = ("id", "path", "caption", "objects", "label", "split", "start", "duration")
Progress = Callable[[int, int], None]
Clip = tuple[str, int]  # split, index
_BYTES_OF_CLIP = 90_000  # of its mp4 and truth, about
_LONGEST_WAIT_S = 600.0  # for another process that makes the same clip
_SHOWN = 3  # failures that a sentence names


@dataclass(frozen=True)
class WorldPlan:
    """The plan of a world.

    Args:
        out: folder of the world.
        seed: of it.
        clips: (split, index) of all.
        missing: of those that are made.
        plan: an item a clip, and the manifest.
    """

    out: Path
    seed: int
    clips: tuple[Clip, ...]
    missing: tuple[Clip, ...]
    plan: Plan


def plan_world(out: Path, counts: dict[str, int], seed: int) -> WorldPlan:
    """Work out what :func:`make_world` does, without writing anything; arguments as of :func:`write_world`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; name a folder to write to")
    _require_same_world(out, seed)
    clips = tuple((split, index) for split, count in counts.items() for index in range(count))
    missing = tuple(clip for clip in clips if not _video_path(out, *clip).is_file())
    new = set(missing)
    items = [Item(_video_path(out, *clip).name, Deed.MAKE, size=_BYTES_OF_CLIP) if clip in new else
             Item(_video_path(out, *clip).name, Deed.KEEP) for clip in clips]
    found = (out / "manifest.csv").exists()
    kept = found and not missing and _lists(out, clips)
    manifest = Item("manifest.csv", Deed.KEEP if kept else Deed.REPLACE if found else Deed.MAKE,
                    f"of {counted(len(clips), 'clip')}")
    title = f"embedded world of seed {seed}: " + ", ".join(f"{count} {split}" for split, count in counts.items())
    return WorldPlan(out, seed, clips, missing, Plan(title, [*items, manifest], out))


def make_world(planned: WorldPlan, workers: int = 1, progress: Progress | None = None) -> dict[str, str]:
    """Make what was planned ⇒ {clip that could not be written: reason}. The manifest is written last, unless it is that
    of these clips already.

    Processes that make one world part its clips between them.

    Args:
        planned: by :func:`plan_world`.
        workers: rendering processes.
        progress: called with (done, all) after each clip.

    Raises:
        InputError: the folder holds a world of another version or seed.
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    out, seed, failures, rows = planned.out, planned.seed, dict[str, str](), dict[Clip, tuple]()
    done = len(planned.clips) - len(planned.missing)
    with writing_to(out):
        _claim(out, seed)
        for split in {split for split, _ in planned.clips}:
            sweep_claims(out / split)
        left = [(out, seed, *clip) for clip in planned.missing]
        for wait_s in (0.0, _LONGEST_WAIT_S):
            if left and wait_s:
                warnings.warn(f"another process is making {len(left)} of the clips in {out}; waiting for it")
            elsewhere = []
            for job, made in _each([(*job, wait_s) for job in left], workers):
                if made is None:
                    elsewhere.append(job[:-1])
                    continue
                if isinstance(made, str):
                    failures[_video_path(out, *job[2:4]).name] = made
                else:
                    rows[job[2:4]] = made
                done += 1
                if progress is not None:
                    progress(done, len(planned.clips))
            left = elsewhere
        for job in left:
            failures[_video_path(out, *job[2:4]).name] = "another process has been at it for too long"
        if not failures and not _lists(out, planned.clips):
            _write_manifest(out, [rows.get(clip) or _row(out, make_scene(seed, *clip)) for clip in planned.clips])
    return failures


def write_world(
    out: Path, counts: dict[str, int], seed: int, workers: int = 1, progress: Progress | None = None
) -> Path:
    """Write the clips of a world and their manifest ⇒ the manifest's path.

    A run that was cut off goes on: clips with an mp4 are kept, since their truth is written before it. The manifest is
    written last. The bytes of a clip depend on (version, seed, split, index) alone.

    Args:
        out: folder of the world.
        counts: {split: number of clips}.
        seed: of the world.
        workers: rendering processes.
        progress: called with (done, all) after each clip.

    Raises:
        InputError: the folder holds a world of another version or seed, or a clip can't be written.
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    if failures := make_world(plan_world(out, counts, seed), workers, progress):
        raise InputError(failed_clips(failures))
    return Path(out) / "manifest.csv"


def failed_clips(failures: dict[str, str]) -> str:
    """A sentence on the clips of :func:`make_world` that could not be written."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:_SHOWN])
    return (f"{len(failures)} clips could not be written ({first}{'; …' * (len(failures) > _SHOWN)}), so there is no "
            "manifest of all yet; the same command tries them again")


def write_clip(out: Path, scene: Scene) -> Path:
    """Render one clip and write its truth and then its mp4, each whole or not at all ⇒ the mp4's path."""
    path = _video_path(out, scene.split, scene.index)
    pictures, truth = render(scene)
    sound = render_sound(scene)
    write_truth(path, truth)
    with atomic_path(path) as temporary:
        encode(temporary, pictures, sound)
    return path


def _each(jobs: list[tuple], workers: int) -> Iterator[tuple[tuple, tuple | str | None]]:
    if workers <= 1:
        for job in jobs:
            yield job, _write_or_say(*job)
        return
    # spawn: a forked child could inherit the locks of the parent's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        running = {pool.submit(_write_or_say, *job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()


def _write_or_say(out: Path, seed: int, split: str, index: int, wait_s: float) -> tuple | str | None:
    """Write a clip ⇒ its row of the manifest; why it can't be written; None where another process is at it for longer
    than ``wait_s``."""
    path = _video_path(out, split, index)
    with writing_to(out):
        try:
            with claimed(path, wait_s) as mine:
                if not mine:
                    return None
                scene = make_scene(seed, split, index)
                if not path.is_file():
                    write_clip(out, scene)
        except Exception as error:
            if write_fault(error, out) is not None:
                raise
            return reason_of(error, path)
    return _row(out, scene)


def _video_path(out: Path, split: str, index: int) -> Path:
    return Path(out) / split / f"{split}-{index:06d}.mp4"


def _relative_path(out: Path, split: str, index: int) -> str:
    return _video_path(out, split, index).relative_to(out).as_posix()


def _require_same_world(out: Path, seed: int) -> bool:
    """Whether a world was begun in a folder. Raises InputError where world.json holds another version or seed."""
    expected = {"scenes_version": SCENES_VERSION, "seed": seed}
    path = out / "world.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); choose another out= or remove it") from error
    if found != expected:
        raise InputError(f"{path} holds {found}, and this run would write {expected}; choose another out= or "
                         "remove it")
    return True


def _claim(out: Path, seed: int) -> None:
    """Write version and seed to world.json. Raises InputError where the file holds others."""
    sweep_claims(out)
    with claimed(out / "world.json", _LONGEST_WAIT_S):
        if not _require_same_world(out, seed):
            write_text(out / "world.json", json.dumps({"scenes_version": SCENES_VERSION, "seed": seed}) + "\n")


def _row(out: Path, scene: Scene) -> tuple:
    """A clip's row of the manifest."""
    label = scene.words[0] if len(scene.words) == 1 else ""
    return (scene.id, _relative_path(out, scene.split, scene.index), scene.caption, ";".join(scene.words), label,
            scene.split, 0.0, DURATION_S)


def _write_manifest(out: Path, rows: list[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([MANIFEST_COLUMNS, *rows])
    write_text(out / "manifest.csv", text.getvalue())


def _lists(out: Path, clips: Sequence[Clip]) -> bool:
    """Whether the manifest there is that of these clips; a world's clips are the same wherever they are listed."""
    try:
        return [row["path"] for row in read_manifest(out)] == [_relative_path(out, *clip) for clip in clips]
    except (InputError, OSError, ValueError, KeyError):
        return False


def read_manifest(out: Path) -> list[dict[str, str]]:
    """The rows of a written world's manifest. Raises InputError where there is none."""
    path = Path(out) / "manifest.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: no finished embedded world; run data_prep/synthesize.py out={out}")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


CLASS_RATIO = 1.6  # of the commonest class to the rarest, in worlds of 500 clips and more
FULL_VIEW = 0.85  # least share of a thing's area in full view; the rest allows for a neighbour in front of it


@dataclass(frozen=True)
class ClipFacts:
    """Facts of one clip, from which statistics are computed, of its K named things.

    Attributes:
        words: of the things.
        look_alikes: number of look-alikes.
        inside: (T, K) fraction of the thing in view.
        sounding: (T, K) bool.
        events: K lists.
    """

    words: list[str]
    look_alikes: int
    inside: np.ndarray
    sounding: np.ndarray
    events: list[list[Event]]


def facts_of_truth(truth: SceneTruth) -> ClipFacts:
    """The facts of a rendered clip."""
    named = truth.named
    events = [list(o.events) for o in truth.objects if o.named]
    inside = truth.inside[:, named].astype(np.float64)
    return ClipFacts(truth.words, int((~named).sum()), inside, truth.sounding[:, named] > 0, events)


def facts_of_scene(scene: Scene) -> ClipFacts:
    """The facts of a clip that isn't rendered.

    ``inside`` is the share of a thing's canvas inside the picture, without the parts that neighbours hide.
    """
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
    overlapping: float  # clips in which two objects sound in the same picture
    sounding_unseen: float  # of sounding (object, picture) with the object not in full view
    too_quiet: int  # objects with neither enough impulses nor enough sustained sound
    events_each: float  # events per named object
    per_class: dict[str, int]  # named objects of each class

    def table(self) -> str:
        """The statistics as lines to be printed, with the limits of each."""
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
        sounding_unseen=sum(int((f.sounding & (f.inside < FULL_VIEW)).sum()) for f in facts) / max(sounding, 1),
        too_quiet=sum(not _sounds_enough(events) for events in lists),
        events_each=float(np.mean([len(events) for events in lists])),
        per_class={w: counts[w] for w in WORDS},
    )


def _sounds_enough(events: list[Event]) -> bool:
    sustained_s = sum(e.end_s - e.onset_s for e in events if e.kind != IMPULSE)
    return sum(e.kind == IMPULSE for e in events) >= LEAST_IMPULSES or sustained_s >= LEAST_SUSTAINED_S - 1e-3


def broken_promises(s: WorldStatistics) -> list[str]:
    """The limits of the embedded world's distribution that the statistics break, in words; empty when all hold.

    Below some 100 clips chance breaks a few.
    """
    rarest = min(s.per_class.values())
    promises = (
        (s.several >= 0.5, f"two or three named objects in >= 50 % of clips: {s.several:.1%}"),
        (0.3 <= s.look_alike <= 0.55, f"a look-alike in 30-55 % of clips: {s.look_alike:.1%}"),
        (s.off_screen >= 0.3, f"named objects off-screen >= 30 %: {s.off_screen:.1%}"),
        (s.visible_silent >= 0.3, f"visible objects silent >= 30 %: {s.visible_silent:.1%}"),
        (s.overlapping >= 0.1, f"overlapping sounds in >= 10 % of clips: {s.overlapping:.1%}"),
        (s.sounding_unseen <= 0.01, f"sounding out of full view <= 1 %: {s.sounding_unseen:.2%}"),
        (s.too_quiet == 0, f"every named object sounds enough: {s.too_quiet} do not"),
        (s.clips < 500 or max(s.per_class.values()) <= CLASS_RATIO * rarest, f"classes equally often: {s.per_class}"),
    )
    return [text for kept, text in promises if not kept]


def measure_world(folder: Path, split: str | None = None) -> WorldStatistics:
    """The statistics of a written world, from the truth beside its clips.

    Args:
        folder: of the world.
        split: None: all splits.
    """
    rows = [row for row in read_manifest(folder) if split is None or row["split"] == split]
    return measure(facts_of_truth(read_truth(Path(folder) / row["path"])) for row in rows)
