"""Latent shards: the VAE's posterior moments of every record, made once after stage 1.

Each ``<shard>.tar`` of a dataset has a ``<shard>.safetensors``, in a folder named by the hashes of the VAE and of the
extraction, with one fp16 array (2 · channels, columns, freq) per record: mean, then log-variance.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Callable, Protocol

import numpy as np
import safetensors.numpy

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import claimed, sweep_claims, write_bytes, write_text, writing_to
from ...runtime.randomness import seed_of
from ...runtime.work_plan import Deed, Item, Plan, counted, share_of
from .records import read_records
from .schema import DatasetInfo, ShardInfo
from .storage import Root, storage_of

INFO_NAME = "latents.json"
_GPU_SAMPLES = 16 * 163_840  # encoded at a time: 16 clips of 10.24 s, some 5 GB of AudioLDM's activations
_LONGEST_WAIT_S = 1800.0  # for another process that makes the same shard


class LatentEncoder(Protocol):
    """A VAE, as far as latent shards need it."""

    def encode_moments(self, waveform: np.ndarray) -> np.ndarray:
        """The posterior's mean, then its log-variance ⇒ (2 · channels, columns, freq), of a waveform (samples,)."""
        ...

    def encode_batch(self, waveforms: np.ndarray) -> np.ndarray:
        """The same of waveforms of one length ⇒ (B, 2 · channels, columns, freq), of (B, samples)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The weights by name."""
        ...


def batch_samples_on(device: Any) -> int:
    """Samples that a codec on a torch device encodes at a time, for :func:`encode_dataset`. A processor is no faster
    with batches, and encodes clip by clip."""
    return 0 if device.type == "cpu" else _GPU_SAMPLES


def weights_hash(state: dict) -> str:
    """12 hex digits that change with any weight of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name].detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:12]


def latents_folder(root: Root, info: DatasetInfo, codec: LatentEncoder) -> Path:
    """The folder of a dataset's latents by a VAE: one per VAE and per extraction.

    Raises:
        InputError: the dataset is at a URL, and no local folder for latents was named.
    """
    # failed clips that were tried again come into shards of the same manifest and config
    held = "".join(f"{shard.name}:{shard.records};" for shards in info.splits.values() for shard in shards)
    made_of = seed_of(info.manifest_hash, info.config_hash, held)
    return storage_of(root).latents_parent / f"latents-{weights_hash(codec.state_dict())}-{made_of % 16**6:06x}"


@dataclass(frozen=True)
class LatentsPlan:
    """The plan of one worker's share of a dataset's latents.

    Args:
        out: folder of the latents.
        shards: of all workers.
        mine: of this one.
        plan: an item a shard of ``mine``, and latents.json.
    """

    out: Path
    shards: tuple[ShardInfo, ...]
    mine: tuple[ShardInfo, ...]
    plan: Plan


def plan_latents(root: Root, info: DatasetInfo, codec: LatentEncoder, out: Path, rank: int = 0, world: int = 1,
                 share: str = "", bytes_of_clip: int | None = None, consecutive: bool = False) -> LatentsPlan:
    """Work out what :func:`encode_dataset` does, without writing anything; arguments as there.

    Args:
        share: which share of the work this is, in words.
        bytes_of_clip: size of one record's latents, for sizes where no shard is there yet.
        consecutive: the worker's share is a run of shards; False: every world-th.

    Raises:
        InputError: there is nothing to encode, or the folder holds latents of another dataset.
    """
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} of world={world}: ranks go from 0 to world - 1")
    storage, shards = storage_of(root), _shards_of(info, list(info.splits))
    if not shards:
        raise InputError(f"{storage} holds no records to encode")
    _require_same_dataset(out, info)
    mine = [shards[i] for i in share_of(len(shards), rank, world, consecutive)]
    there = {shard.name: _path(out, shard) for shard in shards if _path(out, shard).exists()}
    known = [there[shard.name].stat().st_size / shard.records for shard in shards if shard.name in there]
    of_clip = mean(known) if known else bytes_of_clip
    items = [Item(_path(out, shard).name, Deed.KEEP) if shard.name in there else
             Item(_path(out, shard).name, Deed.MAKE, counted(shard.records, "clip"),
                  None if of_clip is None else round(shard.records * of_clip)) for shard in mine]
    finished = (out / INFO_NAME).exists()
    if finished and all(item.deed is Deed.KEEP for item in items):
        items.append(Item(INFO_NAME, Deed.KEEP))
    else:
        items.append(Item(INFO_NAME, Deed.MAKE_AGAIN if finished else Deed.MAKE, "once all shards are there"))
    return LatentsPlan(out, tuple(shards), tuple(mine), Plan(f"latents of {storage}", items, out, share))


def _require_same_dataset(out: Path, info: DatasetInfo) -> None:
    """Raise InputError where latents.json names another dataset; one of an earlier release names none."""
    try:
        known = json.loads((out / INFO_NAME).read_text()).get("dataset", info.fingerprint)
    except (OSError, ValueError, AttributeError):
        return  # it is missing, or measured anew
    if known != info.fingerprint:
        raise InputError(f"{out} holds latents of another dataset than this one ({known}, this is {info.fingerprint}, "
                         "by what dataset.json says); name another folder with out=, or delete it")


def encode_dataset(root: Root, info: DatasetInfo, codec: LatentEncoder, out: Path, rank: int = 0, world: int = 1,
                   progress: Callable[[int], None] | None = None, planned: LatentsPlan | None = None,
                   batch_samples: int = 0, measure: bool = True) -> bool:
    """Make worker ``rank``'s share of the latent shards of all splits ⇒ True where all of them exist by then.

    A worker makes the shards rank, rank + world, … that don't exist yet. A worker that finds all shards at its end
    writes latents.json, so that at least one does where several end together. A shard that another process is making
    comes last, and is waited for.

    Args:
        root: the dataset's folder, URL or storage.
        info: its dataset.json.
        codec: the VAE.
        out: folder of the latents, of :func:`latents_folder`.
        rank: of this worker.
        world: number of workers.
        progress: called with the number of records after each shard.
        planned: by :func:`plan_latents`; None: it is planned here.
        batch_samples: samples that the codec encodes at a time, of clips of one length; 0: clip by clip, so that the
            bytes don't depend on what else is in a shard.
        measure: whether latents.json may be written.

    Raises:
        InputError: there is nothing to encode, a shard can't be read, the folder holds latents of another dataset, or
            another process has been at a shard for half an hour.
        EndOfRun: the disk is full, or the folder can't be written to.
    """
    planned = planned or plan_latents(root, info, codec, out, rank, world)
    storage = storage_of(root)
    made = _encode_shards(planned.mine, lambda shard: read_records(storage, shard, info.rates), codec, out, progress,
                          batch_samples)
    if not _all_there(out, planned.shards):
        return False
    if measure and (made or not (out / INFO_NAME).exists()):
        _finish({split: info.shards(split) for split in info.splits}, out, info.fingerprint)
    return True


def write_latents(
    shards: list[ShardInfo],
    records_of: Callable[[ShardInfo], Iterable[ClipFeatures]],
    codec: LatentEncoder,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Encode every record of the shards of one dataset without splits ⇒ the standard deviation of all latents.

    Args:
        shards: to encode.
        records_of: reads one shard.
        codec: the VAE.
        out: folder of the latents; a shard that exists there is done.
        progress: called with the number of records after each shard.
    """
    _encode_shards(shards, records_of, codec, out, progress)
    return _finish({"": shards}, out)


def _encode_shards(shards: Sequence[ShardInfo], records_of: Callable[[ShardInfo], Iterable[ClipFeatures]],
                   codec: LatentEncoder, out: Path, progress: Callable[[int], None] | None,
                   batch_samples: int = 0) -> int:
    """Make the shards that don't exist ⇒ their number."""
    sweep_claims(out)
    made, left = 0, list(shards)
    for wait_s in (0.0, _LONGEST_WAIT_S):
        if left and wait_s:
            warnings.warn(f"another process is at {', '.join(_path(out, shard).name for shard in left[:3])} in {out}; "
                          "waiting for it")
        elsewhere = []
        for shard in left:
            path = _path(out, shard)
            with ExitStack() as until_made, writing_to(out, "latents"):
                if not path.exists():
                    if not until_made.enter_context(claimed(path, wait_s, repeatable=True)):
                        elsewhere.append(shard)
                        continue
                    if not path.exists():
                        moments = _encode_records(records_of(shard), codec, batch_samples)
                        # save_file would hide that a disk is full
                        write_bytes(path, safetensors.numpy.save(moments), sync=True)
                        made += 1
            if progress:
                progress(shard.records)
        left = elsewhere
    if left:
        raise InputError(f"{_path(out, left[0])}: another process has been at it for {_LONGEST_WAIT_S / 60:.0f} "
                         "minutes; see whether that one goes on, and give the same command again")
    return made


def _encode_records(records: Iterable[ClipFeatures], codec: LatentEncoder, batch_samples: int) -> dict[str, np.ndarray]:
    """The moments of one shard's records ⇒ {record key: fp16}, in the order of the records."""
    if not batch_samples:
        return {r.key: codec.encode_moments(r.waveform).astype(np.float16, order="C") for r in records}
    waveforms = {record.key: record.waveform for record in records}
    moments: dict[str, np.ndarray] = {}
    for samples in {len(waveform) for waveform in waveforms.values()}:
        keys = [key for key, waveform in waveforms.items() if len(waveform) == samples]
        size = max(1, batch_samples // max(1, samples))
        for start in range(0, len(keys), size):
            chunk = keys[start:start + size]
            found = codec.encode_batch(np.stack([waveforms[key] for key in chunk]))
            moments |= zip(chunk, found.astype(np.float16, order="C"))  # safetensors stores memory as it lies
    return {key: moments[key] for key in waveforms}


def _finish(splits: Mapping[str, Sequence[ShardInfo]], out: Path, fingerprint: str | None = None) -> float:
    """Write latents.json, once all shards exist ⇒ the standard deviation of all of them."""
    every, of_split = _Spread(), {split: _Spread() for split in splits}
    for split, shards in splits.items():
        for shard in shards:
            for moments in read_latents(out, shard).values():
                one = _Spread.of(moments)
                every, of_split[split] = every + one, of_split[split] + one
    dataset = {} if fingerprint is None else {"dataset": fingerprint}
    stds = {split: spread.std for split, spread in of_split.items() if split and spread.count}
    measured = {"std": every.std, **({"std_of_split": stds} if stds else {}), "vae": out.name, **dataset}
    with writing_to(out, "latents"):
        write_text(out / INFO_NAME, json.dumps(measured) + "\n", sync=True)
    return every.std


class OpenLatents:
    """One latent shard, out of which a record's moments are read when they are asked for.

    Args:
        folder: of the latents.
        shard: of the dataset.

    Raises:
        InputError: the file can't be read, or doesn't match the shard.
    """

    def __init__(self, folder: Path, shard: ShardInfo):
        self.folder, path = folder, _path(folder, shard)
        try:
            self._file: Any = safetensors.safe_open(path, framework="numpy")  # mapped: no byte is read yet
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path} can't be read ({error}); delete the folder {folder}, and it is made again"
                             ) from error
        self.keys = frozenset(self._file.keys())
        if len(self.keys) != shard.records:
            raise InputError(f"{path} holds {len(self.keys)} records, {shard.name} holds {shard.records}; delete "
                             f"{folder}")

    def moments(self, key: str) -> np.ndarray:
        """A record's moments, as stored: fp16. Raises InputError where the shard has none of it."""
        if key not in self.keys:
            raise InputError(f"{self.folder} has no latent of clip {key!r}; delete that folder")
        moments: np.ndarray = self._file.get_tensor(key)
        return moments


def read_latents(folder: Path, shard: ShardInfo) -> dict[str, np.ndarray]:
    """The moments of one latent shard ⇒ {record key: float32}. Raises InputError where it doesn't match the shard."""
    OpenLatents(folder, shard)  # which raises
    moments = safetensors.numpy.load_file(_path(folder, shard))
    return {key: array.astype(np.float32) for key, array in moments.items()}


def read_std(folder: Path, split: str | None = None) -> float:
    """The standard deviation of latents, measured when they were encoded.

    Args:
        folder: of the latents.
        split: whose; None: of all splits, which is also the answer where an earlier release measured nothing else.

    Raises:
        InputError: latents.json is damaged.
    """
    path = folder / INFO_NAME
    try:
        measured = json.loads(path.read_text())
        return float(measured.get("std_of_split", {}).get(split, measured["std"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} can't be read ({error}); delete the folder {folder}, and it is made again") from error


def is_complete(folder: Path, info: DatasetInfo, splits: list[str]) -> bool:
    """True where the latents of all shards of the splits, and latents.json, exist."""
    return (folder / INFO_NAME).exists() and _all_there(folder, _shards_of(info, splits))


def _all_there(folder: Path, shards: Sequence[ShardInfo]) -> bool:
    return all(_path(folder, shard).exists() for shard in shards)


def _shards_of(info: DatasetInfo, splits: list[str]) -> list[ShardInfo]:
    return [shard for split in splits for shard in info.shards(split)]


def _path(folder: Path, shard: ShardInfo) -> Path:
    return folder / (Path(shard.name).stem + ".safetensors")


@dataclass(frozen=True)
class _Spread:
    """Sums over latent values, from which the standard deviation of samples of their posteriors follows.

    Args:
        count: number of values.
        total: sum of their means.
        squares: sum of their squared means.
        noise: sum of their variances.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(cls, moments: np.ndarray) -> "_Spread":
        mean, log_variance = np.split(moments.astype(np.float64), 2)
        return cls(mean.size, mean.sum(), (mean ** 2).sum(), np.exp(np.clip(log_variance, -30, 20)).sum())

    def __add__(self, other: "_Spread") -> "_Spread":
        return _Spread(self.count + other.count, self.total + other.total, self.squares + other.squares,
                       self.noise + other.noise)

    @property
    def std(self) -> float:
        """Variance of the means + mean of the variances, under the root."""
        return float(np.sqrt(self.squares / self.count - (self.total / self.count) ** 2 + self.noise / self.count))
