"""What must fail: a trained UNet told nothing of use has to score what chance does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..generation.parts import build_denoiser
from ..metrics.envelope import envelope_correlation
from ..metrics.statistics import bootstrap_interval, derangement
from ..model_folder import read_recipe
from ..pipeline import Pipeline, load
from ..randomness import seed_of
from ..shards.batch import ClipBatch, collate, window_of
from ..shards.datamodule import ShardReader
from ..shards.order import consecutive
from ..shards.schema import read_dataset
from ..training.figures import as_dict

_AT_ONCE = 16


def measure_controls(model: Path, shards: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Envelope correlation with the truth of the test split, 95 % interval over clips, of sound generated

    - untrained: under a conditioner with the weights it was born with;
    - another_clip: under another clip's features, by a fixed derangement.
    """
    pipeline = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    info = read_dataset(shards)
    reader = ShardReader(shards, info.shards("test"), 64, None)
    records = [reader.record(*place)[0] for place in consecutive(reader.counts)]
    batch = collate([window_of(record, pipeline.spec, 0) for record in records], pipeline.spec)
    found = {"another_clip": _correlations(pipeline, batch, batch.select(derangement(len(batch), seed).tolist()), seed)}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "untrained"))
        _, newborn = build_denoiser(read_recipe(model), model)
    pipeline.conditioner = newborn.to(pipeline.device)
    found["untrained"] = _correlations(pipeline, batch, batch, seed)
    return {name: as_dict(bootstrap_interval(values)) for name, values in found.items()}


def _correlations(pipeline: Pipeline, truth: ClipBatch, told: ClipBatch, seed: int) -> list[float]:
    assert truth.waveform is not None
    values = []
    for start in range(0, len(truth), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(truth)))
        sounds = pipeline.generate_batch(told.select(rows), [seed_of(seed, truth.keys[row], 0) for row in rows]).numpy()
        values += [envelope_correlation(sound, truth.waveform[row].numpy()) for sound, row in zip(sounds, rows)]
    return values
