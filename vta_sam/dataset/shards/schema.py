"""The record of one clip as bytes, and dataset.json: what made a folder of shards.

A record is three members of a tar: ``<key>.json`` (words and numbers), ``<key>.flac`` (mono, PCM-16) and
``<key>.safetensors`` (fp16 arrays). There is no pickle anywhere, so a foreign shard can't run code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import safetensors
import safetensors.numpy
import soundfile

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import write_text
from ...runtime.randomness import seed_of
from .storage import Root, is_plain, place_of

FORMAT_VERSION = 1
MEMBERS = ("json", "flac", "safetensors")
_PCM_SCALE = 32768.0
_WORDS: dict[str, type | tuple[type, ...]] = {  # the members of ClipFeatures that the json holds, and their types
    "caption": str,
    "objects": list,
    "label": str,
    "source": str,
    "start_s": (int, float),
    "duration_s": (int, float),
    "fps": (int, float),
    "sample_rate_hz": int,
}


def member_key(key: str) -> str:
    """A clip's id ⇒ its name inside a tar: readers cut a member's name at the first dot, so dots (and whatever else a
    file name can't hold) are percent-encoded. ``decode_record`` undoes it."""
    return quote(key, safe="").replace(".", "%2E")


def encode_record(clip: ClipFeatures) -> dict[str, bytes]:
    """One clip ⇒ its members by suffix, in the order of MEMBERS. Same clip, same bytes.

    Arrays are rounded to fp16 and the waveform to 16 bits; samples beyond [-1, 1] are clipped. Raises InputError where
    shapes disagree or a value doesn't fit fp16.
    """
    clip.validate()
    arrays = {}
    for name in ClipFeatures.ARRAYS:
        array = getattr(clip, name)
        if array is None:
            continue
        if array.size and np.abs(array).max() > np.finfo(np.float16).max:
            raise InputError(f"clip {clip.key!r}: {name} reaches {np.abs(array).max():g}, which doesn't fit fp16")
        arrays[name] = np.ascontiguousarray(array, dtype=np.float16)
    words = {name: getattr(clip, name) for name in _WORDS}
    sound = io.BytesIO()
    soundfile.write(sound, to_pcm16(clip.waveform), clip.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return {
        "json": json.dumps(words, ensure_ascii=False, sort_keys=True).encode("utf-8"),
        "flac": sound.getvalue(),
        "safetensors": safetensors.numpy.save(arrays),
    }


def decode_record(key: str, members: dict[str, bytes]) -> ClipFeatures:
    """Members of one record ⇒ the clip, arrays as fp16 → float32, shapes checked.

    key: the name inside the tar (webdataset's ``__key__``). Members under other names are passed over. Raises
    InputError naming the clip when a member is missing, damaged or of the wrong form.
    """
    key = unquote(key)
    missing = [name for name in MEMBERS if name not in members]
    if missing:
        raise InputError(f"clip {key!r}: the record has no {' and no '.join(missing)} member; extract it again")
    words = _decode_words(key, members["json"])
    try:
        pcm, sample_rate_hz = soundfile.read(io.BytesIO(members["flac"]), dtype="int16")
    except soundfile.SoundFileError as error:
        raise InputError(f"clip {key!r}: its flac member can't be read ({error}); extract it again") from error
    if sample_rate_hz != words["sample_rate_hz"]:
        raise InputError(f"clip {key!r}: sound at {sample_rate_hz} Hz, its json says {words['sample_rate_hz']} Hz")
    try:
        arrays = safetensors.numpy.load(members["safetensors"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"clip {key!r}: its safetensors member can't be read ({error})") from error
    lost = [n for n in ClipFeatures.ARRAYS if n not in arrays and n != "mask_embedding"]
    if lost:
        raise InputError(f"clip {key!r}: its safetensors member lacks {', '.join(lost)}; extract it again")
    known: dict[str, Any] = {name: arrays[name].astype(np.float32) for name in ClipFeatures.ARRAYS if name in arrays}
    return ClipFeatures(key=key, waveform=from_pcm16(pcm), **words, **known).validate()


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
    """float in [-1, 1] ⇒ int16, rounded to the nearest and clipped."""
    return np.clip(np.rint(np.asarray(waveform, np.float64) * _PCM_SCALE), -32768, 32767).astype(np.int16)


def from_pcm16(pcm: np.ndarray) -> np.ndarray:
    """int16 ⇒ float32 in [-1, 1)."""
    return (pcm / _PCM_SCALE).astype(np.float32)


def _decode_words(key: str, data: bytes) -> dict[str, Any]:
    try:
        words = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"clip {key!r}: its json member can't be read ({error}); extract it again") from error
    for name, kind in _WORDS.items():
        found = words.get(name) if isinstance(words, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise InputError(f"clip {key!r}: {name!r} in its json member is {found!r}; extract it again")
    if not all(isinstance(word, str) for word in words["objects"]):
        raise InputError(f"clip {key!r}: 'objects' in its json member is {words['objects']!r}, expected words")
    return {name: words[name] for name in _WORDS}


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a dataset: its file name, how many records it holds, how many clips of its slice failed."""

    name: str
    records: int
    failed: int


@dataclass(frozen=True)
class DatasetInfo:
    """dataset.json: what made the shards beside it. Dimensions: frame_dim Dv, object_dim De, caption_dim Dc."""

    grounder: str  # fingerprints: name and hash of the weights
    encoder: str
    fps: float
    sample_rate_hz: int
    frame_dim: int
    object_dim: int
    caption_dim: int
    config_hash: str
    manifest_hash: str
    code_version: str
    splits: dict[str, list[ShardInfo]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def records(self, split: str) -> int:
        return sum(shard.records for shard in self.shards(split))

    def shards(self, split: str) -> list[ShardInfo]:
        """Shards of a split that hold at least one record. Raises InputError when there is no such split."""
        if split not in self.splits:
            raise InputError(f"the dataset has no split {split!r}; it has {', '.join(sorted(self.splits)) or 'none'}")
        return [shard for shard in self.splits[split] if shard.records]

    def require(self, where: str, **expected: object) -> None:
        """Refuse a dataset whose fields differ from what is asked: ``info.require("data/x", fps=12.5)``."""
        wrong = [f"{name} is {getattr(self, name)!r}, expected {value!r}"
                 for name, value in expected.items() if getattr(self, name) != value]
        if wrong:
            raise InputError(f"{where}: {'; '.join(wrong)}. Extract again, or change the config to match the dataset")

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change with anything that dataset.json says."""
        return f"{seed_of(json.dumps(dataclasses.asdict(self), sort_keys=True)) % 16**12:012x}"

    def write(self, folder: str | os.PathLike) -> Path:
        path = Path(folder) / "dataset.json"
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n", sync=True)
        return path


def read_dataset(root: Root) -> DatasetInfo:
    """dataset.json of a folder or URL ⇒ DatasetInfo.

    Raises InputError when it is missing, foreign, of another format version, names a shard by more than a plain file
    name, or one that isn't there (of a URL that is seen on reading).
    """
    place = place_of(root)
    path = place.where("dataset.json")
    try:
        content = json.loads(place.read_text("dataset.json"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; a dataset is made by data_prep/extract.py, and unfinished until it "
                         "has written this file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} can't be read ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is None:
        raise InputError(f"{path} was not written by data_prep/extract.py: it has no format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version}, this code reads {FORMAT_VERSION}; extract again")
    fields = {f.name for f in dataclasses.fields(DatasetInfo)}
    if set(content) != fields:
        lacking, unknown = sorted(fields - set(content)), sorted(set(content) - fields)
        raise InputError(f"{path} lacks {lacking or 'nothing'} and has unknown {unknown or 'nothing'}; extract again")
    try:
        splits = {split: [ShardInfo(**shard) for shard in shards] for split, shards in content["splits"].items()}
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path}: 'splits' doesn't have the expected form ({error}); extract again") from error
    for shard in (shard for shards in splits.values() for shard in shards):
        if not is_plain(shard.name):
            raise InputError(f"{path} names the shard {shard.name!r}, which is no plain file name, and was not opened; "
                             "extract again, and don't trust where it came from")
        if place.lacks(shard.name):
            raise InputError(f"{path} names the shard {shard.name!r}, which is not in the folder; extract again")
    return DatasetInfo(**{**content, "splits": splits})
