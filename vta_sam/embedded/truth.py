"""The truth beside a clip of the embedded world: the position of each thing in each picture, and its sound events.

It is two files: ``<id>.truth.json`` (words and events) and ``<id>.truth.safetensors`` (arrays per picture). The oracle
grounder and encoder read them: no vision model is involved, so that the path from shards to sound can be tested without
one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from ..clip import FrameClock
from ..media.picture_reader import Squeeze
from ..perception.base import EXECUTION, Encoder, Grounder, Grounding
from ..runtime.errors import InputError
from ..runtime.files import write_bytes

SCENES_VERSION = 1
MASK_HEIGHT, MASK_WIDTH = 24, 32
MERGE_S = 0.03  # closer onsets of two objects sound like one, and count as one in the metric
KINDS = ("impulse", "sustained")
# The ten things that sound, in the order of one-hot vectors and class logits; timeline.py has a row for each
WORDS = ("racing car", "popcorn", "pigeon", "dog", "canary", "badminton", "chicken", "harpsichord", "clarinet",
         "ferret")


@dataclass(frozen=True)
class Event:
    """One sound of one object.

    Attributes:
        onset_s: start in seconds, inclusive.
        end_s: end in seconds, exclusive.
        kind: "impulse" (a hit, a bark) or "sustained" (a note).
    """

    onset_s: float
    end_s: float
    kind: str


@dataclass(frozen=True)
class SceneObject:
    """One thing in the picture.

    Attributes:
        word: one of the ten, or a look-alike's.
        named: whether the caption names it; only named objects sound.
        events: its sounds.
    """

    word: str
    named: bool
    events: tuple[Event, ...]


@dataclass
class SceneTruth:
    """Exact truth of one clip of T pictures at ``fps`` and K things (named ones first, then silent look-alikes).

    Picture i is on screen for [i, i + 1) / fps.

    Attributes:
        visible: (T, K) uint8, 1 where at least a quarter of the thing is in view.
        inside: (T, K) float16, fraction of the thing in view (inside the picture and not behind another).
        boxes: (T, K, 4) float16, cx cy w h of the part inside the picture, as fractions of the picture; zeros where
            nothing is inside.
        pose: (T, K) float16 in [0, 1], 0 at rest, 1 at the height of sounding.
        sounding: (T, K) uint8, 1 where an event is under way during the picture.
        packed_masks: (T, K, 24, 4) uint8, see :attr:`masks`.
    """

    id: str
    version: int
    seed: int
    split: str
    index: int
    fps: float
    duration_s: float
    caption: str
    objects: list[SceneObject]
    visible: np.ndarray
    inside: np.ndarray
    boxes: np.ndarray
    pose: np.ndarray
    sounding: np.ndarray
    packed_masks: np.ndarray

    ARRAYS = ("visible", "inside", "boxes", "pose", "sounding", "packed_masks")

    @cached_property
    def masks(self) -> np.ndarray:
        """Whether each thing covers more than half of a cell of the picture ⇒ (T, K, 24, 32) bool."""
        return np.unpackbits(self.packed_masks, axis=-1).astype(bool)

    @property
    def words(self) -> list[str]:
        """The named objects' words, in the order of the arrays' axis K."""
        return [o.word for o in self.objects if o.named]

    @property
    def named(self) -> np.ndarray:
        """Whether the caption names each thing ⇒ (K,) bool."""
        return np.array([o.named for o in self.objects], dtype=bool)

    def onsets_s(self) -> np.ndarray:
        """Reference onsets of the clip's sound, in seconds and sorted ⇒ (onsets,).

        They are the starts of all events of named objects. Onsets closer than 30 ms are merged into the first.
        """
        return merged_onsets_s(e.onset_s for o in self.objects if o.named for e in o.events)

    def stretch(self, first: int, pictures: int) -> "SceneTruth":
        """The truth of a stretch of the clip, as if that were the clip. An event that began before the stretch has no
        onset in it, and is left out.

        Args:
            first: its first picture.
            pictures: how many there are.
        """
        start_s, end_s = first / self.fps, (first + pictures) / self.fps
        objects = [replace(o, events=tuple(Event(e.onset_s - start_s, min(e.end_s, end_s) - start_s, e.kind)
                                           for e in o.events if start_s <= e.onset_s < end_s)) for o in self.objects]
        arrays = {name: getattr(self, name)[first:first + pictures] for name in self.ARRAYS}
        return replace(self, duration_s=pictures / self.fps, objects=objects, **arrays)

    def validate(self) -> "SceneTruth":
        """The truth itself, after checks of shapes and ranges.

        Raises:
            InputError: a check failed; the message has the clip's id, the expected and the found.
        """
        frames, things = round(self.duration_s * self.fps), len(self.objects)
        shapes = dict.fromkeys(("visible", "inside", "pose", "sounding"), (frames, things))
        masks = (frames, things, MASK_HEIGHT, MASK_WIDTH // 8)
        expected = {**shapes, "boxes": (frames, things, 4), "packed_masks": masks}
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise InputError(f"truth of clip {self.id!r}: {name} has shape {found}, not {shape}; make it anew")
        for name in ("inside", "boxes", "pose"):
            array = getattr(self, name)
            if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                raise InputError(f"truth of clip {self.id!r}: {name} leaves [0, 1]; make the clip anew")
        for thing in self.objects:
            if thing.events and not thing.named:
                raise InputError(f"truth of clip {self.id!r}: {thing.word!r} sounds, but is not named by the caption")
            for event in thing.events:
                if event.kind not in KINDS or not 0 <= event.onset_s < event.end_s <= self.duration_s + 1e-6:
                    raise InputError(f"truth of clip {self.id!r}: {thing.word!r} has the impossible event {event}")
        return self


def merged_onsets_s(onsets_s: Iterable[float]) -> np.ndarray:
    """Onsets of several objects ⇒ (onsets,) sorted, those closer than 30 ms merged into the first."""
    merged: list[float] = []
    for onset_s in sorted(onsets_s):
        if not merged or onset_s - merged[-1] >= MERGE_S:
            merged.append(onset_s)
    return np.array(merged, dtype=np.float64)


def truth_paths(video: Path | str) -> tuple[Path, Path]:
    """Paths of the two truth files beside a video ⇒ (json, safetensors)."""
    video = Path(video)
    return video.with_name(f"{video.stem}.truth.json"), video.with_name(f"{video.stem}.truth.safetensors")


def write_truth(video: Path | str, truth: SceneTruth) -> None:
    """Write both files of a clip, each whole or not at all. The json comes last: where it exists, both do."""
    truth.validate()
    json_path, array_path = truth_paths(video)
    write_bytes(array_path, save({name: np.ascontiguousarray(getattr(truth, name)) for name in truth.ARRAYS}))
    record = {name: getattr(truth, name) for name in truth.__dataclass_fields__ if name not in truth.ARRAYS}
    record["objects"] = [
        {"word": o.word, "named": o.named, "events": [vars(e) for e in o.events]} for o in truth.objects
    ]
    write_bytes(json_path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def read_truth(video: Path | str) -> SceneTruth:
    """The truth of a clip.

    Args:
        video: the clip's mp4 file.

    Raises:
        InputError: a file is missing, of another version, or inconsistent.
    """
    json_path, array_path = truth_paths(video)
    for path in (json_path, array_path):
        if not path.is_file():
            raise InputError(f"{path} is missing: {Path(video).name} is no embedded clip, or was moved alone")
    try:
        record = json.loads(json_path.read_text(encoding="utf-8"))
        if record["version"] != SCENES_VERSION:
            raise InputError(
                f"{json_path} is of scenes version {record['version']}, expected {SCENES_VERSION}; synthesize anew"
            )
        record["objects"] = [
            SceneObject(o["word"], bool(o["named"]), tuple(Event(**e) for e in o["events"])) for o in record["objects"]
        ]
        arrays = load(array_path.read_bytes())
        record.update({name: arrays[name] for name in SceneTruth.ARRAYS})
        truth = SceneTruth(**record)
    except InputError:
        raise
    except Exception as error:  # a torn or foreign file fails in many ways
        raise InputError(f"{json_path} and its .safetensors can't be read ({error!r}); make the clip anew") from error
    return truth.validate()


# ---------------------------------------------------------------------- the oracle grounder and encoder

def pictures_on_screen(frames: int, start_s: float, fps: float, truth_fps: float, truth_pictures: int) -> np.ndarray:
    """Indices (frames,) of the truth's pictures that are on screen at the times of a clip's frames.

    Args:
        frames: number of frames in the clip.
        start_s: start of the clip in the video, in seconds.
        fps: frame rate of the clip.
        truth_fps: frame rate of the truth.
        truth_pictures: number of pictures in the truth.
    """
    shown = FrameClock(truth_fps).frame_at(start_s + FrameClock(fps).times_s(frames))
    return shown.astype(int).clip(0, truth_pictures - 1)


class OracleGrounder(Grounder):
    """Makes a grounder for each clip (``for_clip``). That grounder counts the clip's frames and reads their truth.

    Args:
        fps: frame rate, where ``for_clip`` gets none.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"
    execution = (*EXECUTION, "fps")
    whole_clips = True

    def __init__(self, fps: float = 12.5):
        self.fps = fps

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None,
                 ) -> "ClipOracleGrounder":
        """The grounder of one clip.

        Args:
            video: file of the clip, with its truth beside it.
            start_s: start of the clip in the video, in seconds.
            fps: frame rate; None: the one given to the constructor.

        Raises:
            InputError: there is no truth beside the video.
        """
        return ClipOracleGrounder(Path(video), start_s, fps or self.fps)

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        raise InputError("the oracle grounder needs the video's file: it reads the truth beside clips of the embedded "
                         "world, and works with no others")


class ClipOracleGrounder(Grounder):
    """The oracle grounder of one clip.

    The probability is 1 where the word's thing is visible, else 0. The area is that of the truth's coarse mask. A word
    without a thing in the scene is never visible. Of two things with the same word the larger counts.
    """

    kind = OracleGrounder.kind
    fit = OracleGrounder.fit
    fingerprint = OracleGrounder.fingerprint

    def __init__(self, video: Path, start_s: float, fps: float):
        self.truth, self.start_s, self.fps = read_truth(video), start_s, fps

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        """frames (T, h, w, 3), whose number alone is used ⇒ Grounding."""
        truth, count = self.truth, len(frames)
        shown = pictures_on_screen(count, self.start_s, self.fps, truth.fps, len(truth.visible))
        probs, areas = np.zeros((2, count, len(objects)), np.float32)
        boxes = np.zeros((count, len(objects), 4), np.float32)
        for k, word in enumerate(objects):
            for thing, scene_object in enumerate(truth.objects):
                if scene_object.word != word:
                    continue
                visible = truth.visible[shown, thing].astype(bool)
                area = np.where(visible, truth.masks[shown, thing].mean((1, 2)), 0.0)
                larger = visible & (area >= areas[:, k])
                probs[visible, k] = 1.0
                areas[larger, k] = area[larger]
                boxes[larger, k] = truth.boxes[shown[larger], thing]
        return Grounding(probs, boxes, areas)


class OracleEncoder(Encoder):
    """Makes an encoder for each clip, as the oracle grounder does.

    frame_embedding (T, 20): the poses of the ten words in [0, 1], then their visibilities, 0 or 1. A pose is 1 at the
    height of sounding, and 0 while the thing is not visible. Words are one-hot vectors (10). Other words are zero.

    Args:
        fps: frame rate, where ``for_clip`` gets none.
    """

    kind = "oracle"
    fit = Squeeze(8, 8)  # the pictures are only counted
    fingerprint = "oracle-1"
    execution = (*EXECUTION, "fps")
    whole_clips = True

    def __init__(self, fps: float = 12.5):
        self.fps = fps
        self.words = WORDS
        self.object_dim = self.caption_dim = len(self.words)
        self.frame_dim = 2 * len(self.words)

    def for_clip(self, video: str | os.PathLike, start_s: float = 0.0, fps: float | None = None) -> "ClipOracleEncoder":
        """The encoder of one clip.

        Args:
            video: file of the clip, with its truth beside it.
            start_s: start of the clip in the video, in seconds.
            fps: frame rate; None: the one given to the constructor.

        Raises:
            InputError: there is no truth beside the video.
        """
        return ClipOracleEncoder(Path(video), start_s, fps or self.fps)

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        raise InputError("the oracle encoder needs the video's file: it reads the truth beside clips of the embedded "
                         "world, and works with no others")

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        """K words ⇒ (K, 10)."""
        vectors = np.zeros((len(objects), self.object_dim), np.float32)
        for k, word in enumerate(objects):
            if word in self.words:
                vectors[k, self.words.index(word)] = 1.0
        return vectors

    def encode_caption(self, caption: str) -> np.ndarray:
        """A caption ⇒ (L, 10): its known words in the order of the ten, or one token of zeros."""
        text = f" {''.join(c if c.isalpha() else ' ' for c in caption.lower())} "
        found = [word for word in self.words if f" {word} " in text]
        return self.encode_objects(found) if found else np.zeros((1, self.caption_dim), np.float32)


class ClipOracleEncoder(OracleEncoder):
    """The oracle encoder of one clip."""

    def __init__(self, video: Path, start_s: float, fps: float):
        super().__init__(fps)
        self.truth, self.start_s = read_truth(video), start_s

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """frames (T, h, w, 3), whose number alone is used ⇒ (T, 20)."""
        truth = self.truth
        shown = pictures_on_screen(len(frames), self.start_s, self.fps, truth.fps, len(truth.visible))
        pose, visible = np.zeros((2, len(frames), len(self.words)), np.float32)
        for thing, scene_object in enumerate(truth.objects):
            if scene_object.word in self.words:
                k = self.words.index(scene_object.word)
                visible_here = truth.visible[shown, thing].astype(np.float32)
                visible[:, k] = np.maximum(visible[:, k], visible_here)
                pose[:, k] = np.maximum(pose[:, k], visible_here * truth.pose[shown, thing].astype(np.float32))
        return np.concatenate([pose, visible], axis=1)
