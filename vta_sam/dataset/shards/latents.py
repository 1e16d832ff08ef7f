"""Latent shards: the VAE's posterior moments of every record, made once after stage 1.

For each ``<shard>.tar`` of a dataset stands, in a folder named by the VAE's hash and the extraction's,
``<shard>.safetensors`` with one fp16 array (2 · channels, columns, freq) per record: mean, then log-variance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Protocol

import numpy as np
import safetensors.numpy

from ...clip import ClipFeatures
from ...runtime.errors import InputError
from ...runtime.files import atomic_path, write_text
from ...runtime.randomness import seed_of
from .records import read_records
from .schema import DatasetInfo, ShardInfo
from .storage import Root, place_of

INFO_NAME = "latents.json"


class LatentEncoder(Protocol):
    """What a VAE has to offer here."""

    def encode_moments(self, waveform: np.ndarray) -> np.ndarray:
        """Waveform (samples,) ⇒ (2 · channels, columns, freq): the posterior's mean, then its log-variance."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its weights by name."""
        ...


def weights_hash(state: dict) -> str:
    """A state dict ⇒ 12 hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name].detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:12]


def latents_folder(root: Root, info: DatasetInfo, codec: LatentEncoder) -> Path:
    """Where a dataset's latents by this VAE lie: one folder per VAE and per extraction. Raises InputError for a URL
    without a local folder for latents."""
    # failed clips that were tried again come into shards of the same manifest and config
    held = "".join(f"{shard.name}:{shard.records};" for shards in info.splits.values() for shard in shards)
    made_of = seed_of(info.manifest_hash, info.config_hash, held)
    return place_of(root).latents_parent / f"latents-{weights_hash(codec.state_dict())}-{made_of % 16**6:06x}"


def encode_dataset(root: Root, info: DatasetInfo, codec: LatentEncoder, out: Path, rank: int = 0, world: int = 1,
                   progress: Callable[[int], None] | None = None) -> bool:
    """Make worker ``rank``'s share of the latent shards, of all splits ⇒ whether all of them are there by now.

    Of all shards it takes rank, rank + world, …; those that exist are done. Whoever finds them all at its end writes
    latents.json, so that of workers who end together at least one does. out: of :func:`latents_folder`. progress: as in
    :func:`write_latents`. Raises InputError where there is nothing to encode, or a shard can't be read.
    """
    if not 0 <= rank < world:
        raise InputError(f"rank={rank} of world={world}: ranks go from 0 to world - 1")
    place, shards = place_of(root), _shards_of(info, list(info.splits))
    if not shards:
        raise InputError(f"{place} holds no records to encode")
    made = _encode_shards(shards[rank::world], lambda shard: read_records(place, shard), codec, out, progress)
    if not _all_there(out, shards):
        return False
    if made or not (out / INFO_NAME).exists():
        _finish(shards, out)
    return True


def write_latents(
    shards: list[ShardInfo],
    records_of: Callable[[ShardInfo], Iterable[ClipFeatures]],
    codec: LatentEncoder,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Encode every record of the shards ⇒ the standard deviation of the latents (over all of them).

    records_of: reads one shard. out: the folder; a shard that exists there is done. progress: called with the number
    of records after each shard. The 1 / std is the scaling factor that diffusion trains with.
    """
    _encode_shards(shards, records_of, codec, out, progress)
    return _finish(shards, out)


def _encode_shards(shards: list[ShardInfo], records_of: Callable[[ShardInfo], Iterable[ClipFeatures]],
                   codec: LatentEncoder,
                   out: Path, progress: Callable[[int], None] | None) -> int:
    """⇒ how many shards were made; the others existed."""
    out.mkdir(parents=True, exist_ok=True)
    made = 0
    for shard in shards:
        path = _path(out, shard)
        if not path.exists():
            moments = {r.key: codec.encode_moments(r.waveform).astype(np.float16) for r in records_of(shard)}
            with atomic_path(path, sync=True) as temporary:
                safetensors.numpy.save_file(moments, temporary)
            made += 1
        if progress:
            progress(shard.records)
    return made


def _finish(shards: list[ShardInfo], out: Path) -> float:
    """Measure the shards, all of which are there, and write latents.json ⇒ their standard deviation."""
    std = _std_of(read_latents(out, shard) for shard in shards)
    write_text(out / INFO_NAME, json.dumps({"std": std, "vae": out.name}) + "\n", sync=True)
    return std


def read_latents(folder: Path, shard: ShardInfo) -> dict[str, np.ndarray]:
    """One latent shard ⇒ {record key: moments float32}. Raises InputError when it doesn't match the shard."""
    path = _path(folder, shard)
    try:
        moments = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} can't be read ({error}); delete the folder {folder}, and it is made again") from error
    if len(moments) != shard.records:
        raise InputError(f"{path} holds {len(moments)} records, {shard.name} holds {shard.records}; delete {folder}")
    return {key: array.astype(np.float32) for key, array in moments.items()}


def read_std(folder: Path) -> float:
    """The standard deviation that :func:`write_latents` found. Raises InputError when its file is damaged."""
    path = folder / INFO_NAME
    try:
        return float(json.loads(path.read_text())["std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read ({error}); delete the folder {folder}, and it is made again") from error


def is_complete(folder: Path, info: DatasetInfo, splits: list[str]) -> bool:
    return (folder / INFO_NAME).exists() and _all_there(folder, _shards_of(info, splits))


def _all_there(folder: Path, shards: list[ShardInfo]) -> bool:
    return all(_path(folder, shard).exists() for shard in shards)


def _shards_of(info: DatasetInfo, splits: list[str]) -> list[ShardInfo]:
    return [shard for split in splits for shard in info.shards(split)]


def _path(folder: Path, shard: ShardInfo) -> Path:
    return folder / (Path(shard.name).stem + ".safetensors")


def _std_of(shards: Iterable[dict[str, np.ndarray]]) -> float:
    """Standard deviation of samples of the posterior: variance of the means + mean of the variances."""
    count, total, squares, noise = 0, 0.0, 0.0, 0.0
    for shard in shards:
        for moments in shard.values():
            mean, log_variance = np.split(moments.astype(np.float64), 2)
            count += mean.size
            total += mean.sum()
            squares += (mean ** 2).sum()
            noise += np.exp(np.clip(log_variance, -30, 20)).sum()
    return float(np.sqrt(squares / count - (total / count) ** 2 + noise / count))
