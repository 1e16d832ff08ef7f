"""What is known of a clip beside its true sound: events, words, and who is in the picture when."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..scenes.truth import read_truth, truth_paths
from ..shards.schema import read_dataset
from ..shards.writer import read_shard
from .files import Words


@dataclass(frozen=True)
class Timeline:
    """Probabilities (T, K) of K objects over a clip of ``duration_s``."""

    objects: list[str]
    probs: np.ndarray
    duration_s: float


def true_events(reference: Path) -> tuple[np.ndarray, Words] | None:
    """An embedded clip's true onsets in seconds and its words, from the files beside it; None for any other clip.

    label: the one object's word, empty where there are several. InputError: the truth is there, but damaged.
    """
    if not truth_paths(reference)[0].is_file():
        return None
    truth = read_truth(reference)
    label = truth.words[0] if len(truth.words) == 1 else ""
    return truth.onsets_s(), Words(label, truth.caption, tuple(truth.words))


def timelines(shards: Path, clips: Collection[str]) -> dict[str, Timeline]:
    """A dataset's stored probabilities of these clips ⇒ {id: Timeline}, as far as it has them. One shard at a time."""
    info, wanted = read_dataset(shards), set(clips)
    found: dict[str, Timeline] = {}
    for split in info.splits:
        for shard in info.shards(split):
            if len(found) == len(wanted):
                return found
            for record in read_shard(shards / shard.name):
                if record.key in wanted:
                    found[record.key] = Timeline(list(record.objects), np.asarray(record.probs, np.float32),
                                                 float(record.duration_s))
    if not found:
        raise InputError(f"shards={shards} has none of the {len(wanted)} clips; is it the dataset of these sounds?")
    return found
