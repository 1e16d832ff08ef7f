"""What a finished row leaves behind: one small json that results are written from, without its run."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import __version__
from ..atomic import write_text
from ..errors import InputError
from ..evaluation.evaluate import evaluate
from ..evaluation.files import read_words
from ..evaluation.request import Request
from ..model_folder import read_recipe
from ..pipeline import load
from ..randomness import seed_of
from ..shards.batch import collate, window_of
from ..shards.datamodule import ShardReader
from ..shards.schema import read_dataset
from ..training.data import embedded_shards
from ..training.figures import as_dict
from .controls import measure_controls
from .plan import Row

FORMAT = 1
KEYS = ("envelope_correlation", "onset_f1", "sound_class", "frechet_tiny", "kl_tiny", "av_align_published")
PER_CLIP = ("envelope_correlation", "onset_f1", "sound_class", "kl_tiny", "av_align_published")
TIMED_CLIPS = 16


@dataclass
class Record:
    """figures: {key: {score, control, ceiling, …}} of evaluate.py, intervals as dictionaries. values: {key: {clip:
    value}}, for paired differences between rows. parameters: of the finished model's parts. seconds: {stage: s}.
    sampling_s: seconds a clip. controls: {name: envelope correlation} of what
    must fail (controls.py). told: what train.py was told. made_by: code, torch, processor, beside: other rows that ran
    at the same time."""

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
    """Raises InputError where the file is no record."""
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

    ceiling: also send the true sound through the run's VAE and vocoder; the same for all rows, so once is enough.
    beside: how many other rows ran at the same time: their times say little about a row that has the machine to itself.
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
    kept = {key: {name: as_dict(interval) for name in ("score", "control", "score_minus_control", "ceiling")
                  if (interval := getattr(result.figures[key], name)) is not None}
            for key in KEYS if key in result.figures}
    values = {key: {clip: _rounded(scores.values.get(key)) for clip, scores in result.clips.items()}
              for key in PER_CLIP}
    return Record(
        row.study, row.table, row.name, seed, kept, values, figures["parameters"], figures["seconds"],
        round(sampling_seconds(model, shards), 4), measure_controls(model, shards, seed) if row.controls else {}, told,
        {"code_version": __version__, "torch": torch.__version__, "device": figures["device"],
         "processor": _processor(), "cores": os.cpu_count(), "clips": figures["clips"],
         "peak_memory_gb": figures["peak_memory_gb"], "beside": beside},
    )


def sampling_seconds(model: Path, shards: Path) -> float:
    """Latents of 16 clips in one batch, after a batch that doesn't count ⇒ seconds a clip."""
    pipeline = load(model, device="cuda" if torch.cuda.is_available() else "cpu")
    info = read_dataset(shards)
    reader = ShardReader(shards, info.shards("test"), 1, None)
    count = min(TIMED_CLIPS, reader.counts[0])
    batch = collate([window_of(reader.record(0, i)[0], pipeline.spec, 0) for i in range(count)], pipeline.spec)
    seeds = [seed_of("time", key) for key in batch.keys]
    pipeline.sample_latents(batch, seeds, steps=2)
    began = time.perf_counter()
    pipeline.sample_latents(batch, seeds).cpu()
    return (time.perf_counter() - began) / count


def _data_of(run: Path, model: Path) -> tuple[Path, Path]:
    """A run's shards, and the folder of its test videos."""
    told, recipe = yaml.safe_load((run / "figures" / "config.yaml").read_text()), read_recipe(model)
    assert recipe.grounder is not None and recipe.encoder is not None, "a finished model names them"
    root = Path(told["data"]["root"])
    if not (root / "videos").is_dir():
        raise InputError(f"{root} has no videos/; a study runs on the embedded world, whose truth is known")
    return embedded_shards(root, recipe.grounder, recipe.encoder, recipe.spec.fps), root / "videos" / "test"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
