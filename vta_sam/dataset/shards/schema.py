"""The record of one clip as bytes, and dataset.json: what made a folder of shards.

A record is three members of a tar: ``<key>.json`` (words and numbers), ``<key>.flac`` (mono, PCM-16) and
``<key>.safetensors`` (fp16 arrays). There is no pickle anywhere, so a foreign shard can't run code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import safetensors
import safetensors.numpy
import soundfile

from ...clip import FEATURES, ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import write_text
from ...runtime.randomness import seed_of
from .storage import Root, storage_of

FORMAT_VERSION = 1  # of a record, in the config of an extraction
DATASET_VERSIONS = (1, 2)  # of dataset.json, that are read; the last is written
MEMBERS = ("json", "flac", "safetensors")
SOUND_HEADER_BYTES = 42  # at the beginning of a flac member: its mark, and its STREAMINFO
_PCM_SCALE = 32768.0
_LONGEST_S = 4 * 3600.0  # of a clip
_UNKNOWN_S = 600.0  # where a record's duration can't be one, sound up to here is read
_MOST_SAMPLES = round((_LONGEST_S + 1) * 48_000)  # of a clip
_MOST_WORDS = 2**24  # bytes of a json member, whose objects take far more memory
_OPTIONAL_WORDS = {"dropped": 0}  # earlier releases pass over them; left out where they say nothing
_WORDS: dict[str, type | tuple[type, ...]] = {  # the fields of ClipFeatures that the json holds, and their types
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
    """The name of a clip's members inside a tar, without the suffix. Readers cut a name at the first dot, so dots (and
    other characters that a file name can't hold) are percent-encoded; ``decode_record`` decodes them."""
    return quote(key, safe="").replace(".", "%2E")


def encode_record(clip: ClipFeatures) -> dict[str, bytes]:
    """The members of a clip's record by suffix, in the order of MEMBERS. Same clip, same bytes.

    Arrays are rounded to fp16 and the waveform to 16 bits; samples beyond [-1, 1] are clipped.

    Raises:
        InputError: shapes disagree, or a value doesn't fit fp16.
    """
    clip.validate()
    arrays = {}
    for name in FEATURES:
        if name not in clip.features:
            continue
        array = clip.features[name]
        if array.size and np.abs(array).max() > np.finfo(np.float16).max:
            raise InputError(f"clip {clip.key!r}: {name} reaches {np.abs(array).max():g}, which doesn't fit fp16")
        arrays[name] = np.ascontiguousarray(array, dtype=np.float16)
    words = {name: getattr(clip, name) for name in _WORDS}
    words |= {name: found for name, default in _OPTIONAL_WORDS.items() if (found := getattr(clip, name)) != default}
    sound = io.BytesIO()
    soundfile.write(sound, to_pcm16(clip.waveform), clip.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return {
        "json": json.dumps(words, ensure_ascii=False, sort_keys=True).encode("utf-8"),
        "flac": sound.getvalue(),
        "safetensors": safetensors.numpy.save(arrays),
    }


def decode_record(key: str, members: dict[str, bytes], unread: Collection[str] = ()) -> ClipFeatures:
    """Members of one record ⇒ the clip, arrays as fp16 → float32, shapes checked.

    Members under other names are passed over, as are features that :data:`~vta_sam.clip.FEATURES` doesn't name.

    Args:
        key: the name inside the tar (webdataset's ``__key__``).
        members: as :func:`encode_record` returns them.
        unread: fields that nobody will read: "waveform", in whose place zeros of its length stand that take no memory
            (the flac member may end after its first ``SOUND_HEADER_BYTES``), and optional features, which are left out.

    Raises:
        InputError: a member is missing, damaged or of the wrong form; it names the clip.
    """
    key = unquote(key)
    missing = [name for name in MEMBERS if name not in members]
    if missing:
        raise InputError(f"clip {key!r}: the record has no {' and no '.join(missing)} member; extract it again")
    words = _decode_words(key, members["json"])
    decode_sound = _unread_sound if "waveform" in unread else _decode_sound
    waveform = decode_sound(key, members["flac"], words)
    try:
        arrays = safetensors.numpy.load(members["safetensors"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"clip {key!r}: its safetensors member can't be read ({error})") from error
    lost = [name for name, row in FEATURES.items() if name not in arrays and not row.optional]
    if lost:
        raise InputError(f"clip {key!r}: its safetensors member lacks {', '.join(lost)}; extract it again")
    features = {name: arrays[name].astype(np.float32) for name, row in FEATURES.items()
                if name in arrays and not (row.optional and name in unread)}
    return ClipFeatures(key=key, waveform=waveform, features=features, **words).validate()


def source_video(videos: Path, clip: ClipFeatures) -> Path:
    """The video that a clip was extracted from.

    Args:
        videos: folder of the videos.
        clip: of a shard, which may come from elsewhere.

    Raises:
        InputError: the clip's source leads out of the folder.
    """
    source = PurePosixPath(clip.source)
    if source.is_absolute() or ".." in source.parts or "\0" in clip.source:
        raise InputError(f"clip {clip.key!r} comes from {clip.source!r}, which leaves the folder of the videos; "
                         "extract it again")
    return videos / source


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
    """A waveform in [-1, 1] as int16, rounded to the nearest and clipped."""
    return np.clip(np.rint(np.asarray(waveform, np.float64) * _PCM_SCALE), -32768, 32767).astype(np.int16)


def from_pcm16(pcm: np.ndarray) -> np.ndarray:
    """int16 samples as float32 in [-1, 1)."""
    return pcm.astype(np.float32) / np.float32(_PCM_SCALE)  # exact: a power of two


def _decode_sound(key: str, data: bytes, words: dict[str, Any]) -> np.ndarray:
    """The samples of a flac member, float32.

    The sizes in its header are checked first, since a few bytes can claim more than memory holds.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            _require_sizes(key, sound.frames, sound.channels, sound.samplerate, words)
            return from_pcm16(sound.read(dtype="int16"))
    except soundfile.SoundFileError as error:
        raise InputError(f"clip {key!r}: its flac member can't be read ({error}); extract it again") from error


def _unread_sound(key: str, data: bytes, words: dict[str, Any]) -> np.ndarray:
    """Zeros of the length that a flac member's header tells, which share one number in memory."""
    if len(data) < SOUND_HEADER_BYTES or not data.startswith(b"fLaC"):
        raise InputError(f"clip {key!r}: its flac member can't be read (it has no header); extract it again")
    sizes = int.from_bytes(data[18:26], "big")  # 20 bits of rate, 3 of channels - 1, 5 of depth - 1, 36 of samples
    samples, channels, sample_rate_hz = sizes & (1 << 36) - 1, (sizes >> 41 & 7) + 1, sizes >> 44
    _require_sizes(key, samples, channels, sample_rate_hz, words)
    return np.broadcast_to(np.float32(0), (samples,))


def _require_sizes(key: str, samples: int, channels: int, sample_rate_hz: int, words: dict[str, Any]) -> None:
    """Raise InputError where a flac's header contradicts the record's json, or claims more than a clip can have."""
    duration_s = words["duration_s"]
    if sample_rate_hz != words["sample_rate_hz"]:
        raise InputError(f"clip {key!r}: sound at {sample_rate_hz} Hz, its json says {words['sample_rate_hz']} Hz")
    if channels != 1:
        raise InputError(f"clip {key!r}: its flac member has {channels} channels, expected 1; extract it again")
    longest_s = duration_s if 0 < duration_s <= _LONGEST_S else _UNKNOWN_S
    if not 0 <= samples <= min((longest_s + 1) * sample_rate_hz, _MOST_SAMPLES):
        raise InputError(f"clip {key!r}: its flac member claims {samples} samples at {sample_rate_hz} "
                         f"Hz, its json {duration_s} s, and it was not read; extract it again")


def _decode_words(key: str, data: bytes) -> dict[str, Any]:
    if len(data) > _MOST_WORDS:
        raise InputError(f"clip {key!r}: its json member has {len(data)} bytes, at most {_MOST_WORDS} are read; "
                         "extract it again")
    try:
        words = json.loads(data)
    except (ValueError, RecursionError) as error:  # of numbers and lists beyond reason, too
        raise InputError(f"clip {key!r}: its json member can't be read ({error}); extract it again") from error
    for name, kind in {**_WORDS, **{name: type(default) for name, default in _OPTIONAL_WORDS.items()}}.items():
        found = words.get(name, _OPTIONAL_WORDS.get(name)) if isinstance(words, dict) else None
        least = 0 if name in _OPTIONAL_WORDS else 1 - (1 << 53)
        beyond = isinstance(found, int) and not least <= found < 1 << 53  # what no float may hold
        if not isinstance(found, kind) or isinstance(found, bool) or beyond:
            raise InputError(f"clip {key!r}: {name!r} in its json member is {found!r:.100}; extract it again")
    if not all(isinstance(word, str) for word in words["objects"]):
        raise InputError(f"clip {key!r}: 'objects' in its json member is {words['objects']!r:.200}, expected words")
    return {name: words[name] for name in _WORDS} | {name: words.get(name, default)
                                                     for name, default in _OPTIONAL_WORDS.items()}


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a dataset.

    Args:
        name: of the file.
        records: in it.
        failed: clips of its slice that could not be extracted.
    """

    name: str
    records: int
    failed: int


@dataclass(frozen=True)
class DatasetInfo:
    """dataset.json: the origin of the shards beside it. Dimensions: frame_dim Dv, object_dim De, caption_dim Dc.

    Args:
        grounder: fingerprint, name and hash of the weights; encoder likewise.
        fps: frames a second.
        dims: dimensions of further features, by their names in a conditioner's config: {"flow_dim": 2}.
            See :meth:`~vta_sam.clip.Feature.dim_key`.
        features: fingerprints of the extractors of further features, by their names.
        recipes: of the extractors: {"grounder": recipe, "encoder": recipe, "features": {name: recipe}}. One is left
            out where an argument is no JSON value.
        settings: of the extractors that have some: {"encoder": {"template": …}, name of a further feature: {…}}.
        nouns: {"tagger": name, "rules": version}, by which captions gave objects; {} where it isn't known.
    """

    grounder: str
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
    format_version: int = DATASET_VERSIONS[-1]
    dims: dict[str, int] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    nouns: dict[str, Any] = field(default_factory=dict)

    @property
    def known_settings(self) -> dict[str, dict[str, Any]] | None:
        """The extractors' settings; None where an earlier release didn't say them."""
        return self.settings if self.settings or self.format_version > 1 else None

    @property
    def lacks(self) -> str:
        """The sentence on what a dataset of format 1 doesn't say of its making; "" where it says all."""
        said = {"the recipes of its extractors": self.recipes, "their settings": self.settings,
                "the rules that took nouns from captions": self.nouns}
        unsaid = [name for name, found in said.items() if not found]
        if self.format_version > 1 or not unsaid:
            return ""
        return (f"dataset.json is of format {self.format_version}, and doesn't say {', '.join(unsaid)}; the command of "
                "its extraction, given again, adds them and reads no video")

    @property
    def trained_on(self) -> dict[str, Any]:
        """The description of the features for a model folder: fingerprints, dimensions, settings and rules for nouns as
        far as they are known, and further features where there are some."""
        further = {name: {"fingerprint": fingerprint, "recipe": self.recipes.get("features", {}).get(name)}
                   for name, fingerprint in self.features.items()}
        optional = {"dims": self.dims or None, "settings": self.known_settings, "nouns": self.nouns or None,
                    "further": further or None}
        return {"grounder": self.grounder, "encoder": self.encoder, "fps": self.fps, "frame_dim": self.frame_dim,
                "object_dim": self.object_dim, "caption_dim": self.caption_dim,
                **{name: value for name, value in optional.items() if value is not None}}

    @property
    def rates(self) -> tuple[float, int]:
        return self.fps, self.sample_rate_hz

    @property
    def dimensions(self) -> dict[str, Any]:
        """Values for the keys of a conditioner's config that say ``from_data``."""
        fixed = {row.dim_key(name): row.axes[-1] for name, row in FEATURES.items() if isinstance(row.axes[-1], int)}
        return {"frame_dim": self.frame_dim, "object_dim": self.object_dim, "caption_dim": self.caption_dim,
                "fps": self.fps, **fixed, **self.dims}

    def records(self, split: str) -> int:
        return sum(shard.records for shard in self.shards(split))

    def shards(self, split: str) -> list[ShardInfo]:
        """Shards of a split that hold at least one record. Raises InputError where there is no such split."""
        if split not in self.splits:
            raise InputError(f"the dataset has no split {split!r}; it has {', '.join(sorted(self.splits)) or 'none'}")
        return [shard for shard in self.splits[split] if shard.records]

    def require(self, where: str, **expected: object) -> None:
        """Refuse a dataset whose fields differ from the expected ones: ``info.require("data/x", fps=12.5)``.

        Args:
            where: the dataset, for the message.
            expected: values of fields.

        Raises:
            InputError: a field has another value.
        """
        wrong = [f"{name} is {getattr(self, name)!r}, expected {value!r}"
                 for name, value in expected.items() if getattr(self, name) != value]
        if wrong:
            raise InputError(f"{where}: {'; '.join(wrong)}. Extract again, or change the config to match the dataset")

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change with anything that dataset.json says of the records. Recipes, settings, rules for
        nouns and the format don't count: the hash of the config covers them, and an older dataset may get them later.
        """
        content = {name: value for name, value in replace(self, format_version=1).content().items()
                   if name not in _OF_FORMAT_2}
        return f"{seed_of(json.dumps(content, sort_keys=True)) % 16**12:012x}"

    def content(self) -> dict[str, Any]:
        """The content of dataset.json; of format 1 without empty later fields."""
        kept = _OF_FORMAT_2 if self.format_version > 1 else ()
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if value or name in kept or name not in _LATER_FIELDS}

    def write(self, folder: str | os.PathLike) -> Path:
        path = Path(folder) / "dataset.json"
        write_text(path, json.dumps(self.content(), indent=1, sort_keys=True) + "\n", sync=True)
        return path


_OF_FORMAT_2 = ("recipes", "settings", "nouns")  # what made the records
_KINDS: dict[str, tuple[Any, str]] = {"str": (str, "a text"), "int": (int, "a whole number"),
                                      "float": ((int, float), "a number")}  # of a field; others hold {name: …}
_LATER_FIELDS = ("dims", "features", *_OF_FORMAT_2)  # datasets of earlier releases lack them


def read_dataset(root: Root) -> DatasetInfo:
    """The dataset.json of a folder or URL.

    Args:
        root: the dataset's folder, URL or storage.

    Raises:
        InputError: the file is missing, foreign, of another format version, or names a shard that is no plain file name
            or isn't in the folder (at a URL that shows when the shard is read).
    """
    storage = storage_of(root)
    path = storage.where("dataset.json")
    try:
        content = json.loads(storage.read_text("dataset.json"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; a dataset is made by data_prep/extract.py, and unfinished until it "
                         "has written this file") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # of numbers and lists beyond reason, too
        raise InputError(f"{path} can't be read ({error})") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is None:
        raise InputError(f"{path} was not written by data_prep/extract.py: it has no format_version")
    if version not in DATASET_VERSIONS:
        newer = isinstance(version, int) and version > DATASET_VERSIONS[-1]
        raise InputError(f"{path} has format version {version}, this code reads {DATASET_VERSIONS[0]} to "
                         f"{DATASET_VERSIONS[-1]}; {'update this program, or ' if newer else ''}extract again")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(DatasetInfo)}
    later = _LATER_FIELDS if version == 1 else ("dims", "features")
    lacking, unknown = sorted(set(kinds) - {*content, *later}), sorted(set(content) - set(kinds))
    if lacking:
        raise InputError(f"{path} lacks {lacking} and has unknown {unknown or 'nothing'}; extract again")
    for name, found in content.items():
        kind, words = _KINDS.get(kinds.get(name, ""), (dict, "{name: …}"))
        inner = found.values() if name in ("recipes", "settings") and isinstance(found, dict) else ()
        if name in kinds and not (isinstance(found, kind) and all(isinstance(value, dict) for value in inner)):
            raise InputError(f"{path}: {name!r} is {found!r:.200}, expected {words}; extract again")
    if unknown:  # a field of a later release adds information, and changes no known field
        warnings.warn(f"{path} says {', '.join(map(repr, unknown))}, which this release doesn't know, and passes over")
    try:
        splits = {split: [ShardInfo(shard["name"], shard["records"], shard["failed"]) for shard in shards]
                  for split, shards in content["splits"].items()}
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: 'splits' doesn't have the expected form ({error}); extract again") from error
    for shard in (shard for shards in splits.values() for shard in shards):
        if not _is_plain(shard.name):
            raise InputError(f"{path} names the shard {shard.name!r}, which is no plain file name, and was not opened; "
                             "extract again, and don't trust where it came from")
        if storage.lacks(shard.name):
            raise InputError(f"{path} names the shard {shard.name!r}, which is not in the folder; extract again")
    return DatasetInfo(**{**{name: content[name] for name in set(kinds) & set(content)}, "splits": splits})


def _is_plain(name: object) -> bool:
    """True for a plain file name: letters, digits, ``_ - .``, no dot or dash first. By such a name a foreign
    dataset.json can't lead out of its folder, to another server or to a command."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None
