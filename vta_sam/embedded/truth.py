"""The truth beside a clip of the embedded world: the position of each thing in each picture, and its sound events.

It is two files: ``<id>.truth.json`` (words and events) and ``<id>.truth.safetensors`` (arrays per picture).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from ..runtime.errors import InputError
from ..runtime.files import write_bytes

SCENES_VERSION = 1
MASK_HEIGHT, MASK_WIDTH = 24, 32
MERGE_S = 0.03  # closer onsets of two objects sound like one, and count as one in the metric
KINDS = ("impulse", "sustained")


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
        merged: list[float] = []
        for onset in sorted(e.onset_s for o in self.objects if o.named for e in o.events):
            if not merged or onset - merged[-1] >= MERGE_S:
                merged.append(onset)
        return np.array(merged, dtype=np.float64)

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
