"""Number of shards that a program has to make, which an array of jobs divides among its tasks.

Each function takes a program's composed and checked settings, and raises InputError where the number can't be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..runtime.errors import InputError


def shards_to_extract(settings: Mapping[str, Any]) -> int:
    """Shards of data_prep/extract.py: one for each slice of the manifest."""
    from .manifests.manifest import read_manifest, slices

    return len(slices(read_manifest(settings["manifest"]), settings["shard_size"]))


def shards_to_generate(settings: Mapping[str, Any]) -> int:
    """Shards that the clips of experiments/generate.py shards=… lie in; the clips are dealt one by one."""
    from .shards.schema import read_dataset

    if settings["shards"] is None:
        raise InputError("launcher.shards_per_job goes with shards=FOLDER; leave it out with video=")
    return len(read_dataset(settings["shards"]).shards(settings["split"]))


def shards_to_encode(settings: Mapping[str, Any]) -> int:
    """Shards of data_prep/encode_latents.py, of all splits."""
    from .shards.schema import read_dataset

    info = read_dataset(settings["shards"])
    return sum(len(info.shards(split)) for split in info.splits)
