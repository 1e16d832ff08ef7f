"""The record of a finished row: one small json, from which results are written without the run.

It holds the row's figures and values per clip, its cost, and its controls.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import __version__
from ..checkpoints.model_folder import read_recipe
from ..dataset.shards.batch import ClipBatch, collate, window_of
from ..dataset.shards.datamodule import consecutive
from ..dataset.shards.reader import ShardReader
from ..dataset.shards.schema import read_dataset
from ..evaluation.evaluate import evaluate
from ..evaluation.pairing import read_words
from ..evaluation.request import Request
from ..evaluation.results import interval_json
from ..generation.build import build_denoiser
from ..generation.pipeline import Pipeline, load
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.intervals import bootstrap_interval, derangement
from ..metrics.signal import envelope_correlation
from ..runtime.errors import InputError
from ..runtime.files import write_text
from ..runtime.randomness import seed_of
from ..runtime.work_plan import processor_name
from ..training.data_sources import embedded_shards
from .plan import Row

_AT_ONCE = 16


def measure_controls(model: Path, shards: Path, seed: int) -> dict[str, dict[str, Any]]:
    """⇒ {control: envelope correlation with the truth of the test split, with its interval over clips}.

    A trained denoiser has to score no more than chance when its condition carries no information:

    - untrained: the conditioner has its initial weights;
    - another_clip: the features are another clip's, by a fixed derangement.
    """
    pipeline = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    info = read_dataset(shards)
    reader = ShardReader(shards, info.shards("test"), 64, None, rates=info.rates)
    records = [reader.record(*place)[0] for place in consecutive(reader.counts)]
    batch = collate([window_of(record, pipeline.spec, 0) for record in records], pipeline.spec)
    found = {"another_clip": _correlations(pipeline, batch, batch.select(derangement(len(batch), seed).tolist()), seed)}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "untrained"))
        _, untrained = build_denoiser(read_recipe(model), model)
    pipeline.conditioner = untrained.to(pipeline.device)
    found["untrained"] = _correlations(pipeline, batch, batch, seed)
    return {name: interval_json(bootstrap_interval(values)) for name, values in found.items()}


def _correlations(pipeline: Pipeline, truth: ClipBatch, condition: ClipBatch, seed: int) -> list[float]:
    assert truth.waveform is not None
    values, rate_hz = [], pipeline.spec.sample_rate_hz
    for start in range(0, len(truth), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(truth)))
        seeds = [seed_of(seed, truth.keys[row], 0) for row in rows]
        sounds = pipeline.generate_batch(condition.select(rows), seeds).numpy()
        values += [envelope_correlation(*(resample(wave, rate_hz, SAMPLE_RATE_HZ) for wave in (
            sound, truth.waveform[row].numpy()))) for sound, row in zip(sounds, rows)]
    return values


FORMAT = 1
KEYS = ("envelope_correlation", "onset_f1", "sound_class", "frechet_tiny", "kl_tiny", "av_align_published")
PER_CLIP = ("envelope_correlation", "onset_f1", "sound_class", "kl_tiny", "av_align_published")
TIMED_CLIPS = 16


@dataclass
class Record:
    """One row of a study, trained with one seed.

    Args:
        study, table, row, seed: which.
        figures: {metric key: {score, control, ceiling, …}} of evaluate.py, intervals as dictionaries.
        values: {metric key: {clip: value}}, for paired differences between rows.
        parameters: {part: its number} of the finished model.
        seconds: {stage: seconds}.
        sampling_s: seconds a clip.
        controls: see :func:`measure_controls`.
        told: the arguments of train.py.
        made_by: code, torch, processor; beside: other rows that ran at the same time.
    """

    study: str
    table: str
    row: str
    seed: int
    figures: dict[str, dict[str, Any]]
    values: dict[str, dict[str, float | None]]
    parameters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sampling_s: float | None = None
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_record(path: Path) -> Record:
    """⇒ the record of a file.

    Raises:
        InputError: the file is no record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return Record(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no record of a study's row ({error}); delete it, and the row is measured again") \
            from error


def measure_row(row: Row, seed: int, run: Path, told: list[str], cache: Path | None, ceiling: bool,
                beside: int = 0) -> Record:
    """Evaluate a finished run's generated sound against the embedded world's test split ⇒ Record.

    Args:
        row, seed: which.
        run: its folder.
        told: the arguments of train.py.
        cache: of evaluation.
        ceiling: also score the true sound through the run's VAE and vocoder; it is the same for all rows.
        beside: how many other rows ran at the same time, which makes times incomparable.
    """
    figures = json.loads((run / "figures.json").read_text())
    model = Path(figures["model"])
    shards, truth = _data_of(run, model)
    sounds = run / "figures" / "generated"
    request = Request(
        {row.name: sounds}, truth, words=read_words(truth.parent / "captions.csv"), backbones=("tiny",),
        flows=("full",), ceiling=model if ceiling else None, cache=cache,
        workers=max(1, 2 // (1 + beside)),
        ids=sorted(path.stem for path in sounds.glob("*.wav")))
    evaluation, _ = evaluate(request)
    result = evaluation.systems[row.name]
    kept = {key: {name: interval_json(interval) for name in ("score", "control", "score_minus_control", "ceiling")
                  if (interval := getattr(result.figures[key], name)) is not None}
            for key in KEYS if key in result.figures}
    values = {key: {clip: _rounded(scores.values.get(key)) for clip, scores in result.clips.items()}
              for key in PER_CLIP}
    return Record(
        row.study, row.table, row.name, seed, kept, values, figures["parameters"], figures["seconds"],
        round(sampling_seconds(model, shards), 4), measure_controls(model, shards, seed) if row.controls else {}, told,
        {"code_version": __version__, "torch": torch.__version__, "device": figures["device"],
         "processor": processor_name(), "cores": os.cpu_count(), "clips": figures["clips"],
         "peak_memory_gb": figures["peak_memory_gb"], "beside": beside},
    )


def sampling_seconds(model: Path, shards: Path) -> float:
    """⇒ seconds a clip of sampling 16 clips' latents in one batch, after a warm-up."""
    pipeline = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    info = read_dataset(shards)
    reader = ShardReader(shards, info.shards("test"), 1, None, rates=info.rates)
    count = min(TIMED_CLIPS, reader.counts[0])
    batch = collate([window_of(reader.record(0, i)[0], pipeline.spec, 0) for i in range(count)], pipeline.spec)
    seeds = [seed_of("time", key) for key in batch.keys]
    pipeline.sample_latents(batch, seeds, steps=2)
    began = time.perf_counter()
    pipeline.sample_latents(batch, seeds).cpu()
    return (time.perf_counter() - began) / count


def _data_of(run: Path, model: Path) -> tuple[Path, Path]:
    """⇒ a run's shards, and the folder of its test videos."""
    settings, recipe = yaml.safe_load((run / "figures" / "config.yaml").read_text()), read_recipe(model)
    assert recipe.grounder is not None and recipe.encoder is not None, "a finished model names them"
    root = Path(settings["data"]["root"])
    if not (root / "videos").is_dir():
        raise InputError(f"{root} has no videos/; a study runs on the embedded world, whose truth is known")
    further = list(recipe.features.get("further", ()))
    return (embedded_shards(root, recipe.grounder, recipe.encoder, recipe.spec, further), root / "videos" / "test")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
