"""Latent shards: the VAE's posterior moments of every record, made once after stage 1.

Beside each ``<shard>.tar`` of a dataset stands, in a folder of its own named by the VAE's hash,
``<shard>.safetensors`` with one fp16 array (2 · channels, columns, freq) per record: mean, then log-variance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import numpy as np
import safetensors.numpy

from ..atomic import atomic_path, write_text
from ..clip import ClipFeatures
from ..errors import InputError
from .schema import DatasetInfo, ShardInfo

if TYPE_CHECKING:
    from ..vae.codec import MelCodec

INFO_NAME = "latents.json"


def weights_hash(state: dict) -> str:
    """A state dict ⇒ 12 hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name].detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:12]


def write_latents(
    shards: list[ShardInfo],
    records_of: Callable[[ShardInfo], Iterator[ClipFeatures]],
    codec: MelCodec,
    out: Path,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Encode every record of the shards ⇒ the standard deviation of the latents (over all of them).

    records_of: reads one shard. out: the folder; a shard that exists there is done. progress: called with the number
    of records after each shard. The 1 / std is the scaling factor that diffusion trains with.
    """
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        path = out / (Path(shard.name).stem + ".safetensors")
        if not path.exists():
            moments = {r.key: codec.encode_moments(r.waveform).astype(np.float16) for r in records_of(shard)}
            with atomic_path(path) as temporary:
                safetensors.numpy.save_file(moments, temporary)
        if progress:
            progress(shard.records)
    std = _std_of([read_latents(out, shard) for shard in shards])
    write_text(out / INFO_NAME, json.dumps({"std": std, "vae": out.name}) + "\n")
    return std


def read_latents(folder: Path, shard: ShardInfo) -> dict[str, np.ndarray]:
    """One latent shard ⇒ {record key: moments float32}. Raises InputError when it doesn't match the shard."""
    path = folder / (Path(shard.name).stem + ".safetensors")
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
    names = {Path(s.name).stem + ".safetensors" for split in splits for s in info.shards(split)}
    return (folder / INFO_NAME).exists() and all((folder / name).exists() for name in names)


def _std_of(shards: list[dict[str, np.ndarray]]) -> float:
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
