"""Programs that part their work among processes, by ``rank`` of ``world``: how many shards there are to part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..runtime.errors import InputError


def shares(config_name: str, settings: Mapping[str, Any], shards_per_job: int) -> list[tuple[str, str]]:
    """Overrides of each task of the array that does a program's work, at most ``shards_per_job`` shards a task.

    settings: the program's, composed. Raises InputError for programs that don't part their work, where nothing tells
    how much there is, and where the share is given by hand as well.
    """
    if config_name not in _SHARDS:
        raise InputError(f"launcher.shards_per_job={shards_per_job} is for what parts its work: "
                         f"{', '.join(f'{name}.py' for name in _SHARDS)}; leave it out here")
    tasks = math.ceil(_SHARDS[config_name](settings) / shards_per_job)
    return [(f"rank={task}", f"world={tasks}") for task in range(tasks)]


def _to_extract(settings: Mapping[str, Any]) -> int:
    """A slice of the manifest becomes a shard."""
    from .manifests.manifest import read_manifest, slices

    for key in ("videos", "out"):
        if settings[key] is None:
            raise InputError(f"{key}= is missing; it names a folder. --help shows all keys")
    return len(slices(read_manifest(settings["manifest"]), settings["shard_size"]))


def _to_generate(settings: Mapping[str, Any]) -> int:
    """Clips are dealt one by one; the shards that they lie in say how many there are."""
    from .shards.schema import read_dataset

    if settings["shards"] is None:
        raise InputError("launcher.shards_per_job goes with shards=FOLDER; leave it out with video=")
    return len(read_dataset(settings["shards"]).shards(settings["split"]))


def _to_encode(settings: Mapping[str, Any]) -> int:
    from .shards.schema import read_dataset

    if settings["shards"] is None:
        raise InputError("shards= is missing; it names a dataset's folder or URL. --help shows all keys")
    info = read_dataset(settings["shards"])
    return sum(len(info.shards(split)) for split in info.splits)


_SHARDS = {"extract": _to_extract, "generate": _to_generate, "encode_latents": _to_encode}
