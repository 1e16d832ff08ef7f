"""A study, and the records of its rows.

Rows share data, VAE, UNet and steps, and differ in one thing each; they are read from conf/study/*.yaml. The record of
a finished row is one small json, from which results are written without the run: the row's figures and values per clip,
its cost, and its controls.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
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
from ..evaluation.evaluate import Request, evaluate
from ..evaluation.pairing import read_words
from ..generation.build import build_denoiser
from ..generation.pipeline import Pipeline, load
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.intervals import bootstrap_interval, derangement, interval_json
from ..metrics.signal import envelope_correlation
from ..runtime.errors import InputError
from ..runtime.files import write_text
from ..runtime.randomness import seed_of
from ..runtime.work_plan import processor_name
from ..training.data_sources import embedded_shards

_NAMED_ROW = re.compile(r"\{(\w+/\w+)\}")
_ROW_KEYS = {"exp", "stages", "overrides", "sees", "labels", "aligned", "title", "controls"}
TRAIN = Path(__file__).resolve().parents[2] / "experiments" / "train.py"


@dataclass(frozen=True)
class Row:
    """One trained system of a table.

    Args:
        study, table, name: which.
        exp, stages, overrides: arguments of train.py beside the shared ones.
        sees: its condition.
        labels: the labels that its condition learned from.
        aligned: whether a path keeps time by construction.
        title: for the page of results.
        controls: whether its controls are sampled too (record.py).
    """

    study: str
    table: str
    name: str
    exp: str
    stages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    sees: str = ""
    labels: str = ""
    aligned: bool = False
    title: str = ""
    controls: bool = False

    @property
    def run_name(self) -> str:
        """The last word of the run folder: two rows of one experiment differ by their own names."""
        return self.table if self.exp == self.name else f"{self.table}-{self.name}"

    def record_name(self, seed: int) -> str:
        return f"{self.study}-{self.table}-{self.name}-{seed}.json"


@dataclass(frozen=True)
class Difference:
    """A comparison of two rows of a table, clip by clip: mean of first − second. question: that it answers."""

    table: str
    first: str
    second: str
    question: str


@dataclass(frozen=True)
class Study:
    """name; title, note for its page; runs, folder of its runs; seeds, all rows with the first before any with the
    second; common, overrides of every row; shared, the run whose VAE all rows take; tables {table: its title}."""

    name: str
    title: str
    runs: Path
    seeds: tuple[int, ...]
    common: tuple[str, ...]
    shared: dict[str, Any]
    tables: dict[str, str]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...] = ()
    note: str = ""

    def row(self, table: str, name: str) -> Row:
        for row in self.rows:
            if (row.table, row.name) == (table, name):
                return row
        raise InputError(f"{self.name} has no row {table}/{name}; it has "
                         f"{', '.join(f'{r.table}/{r.name}' for r in self.rows)}")

    def order(self, only: Sequence[str] = ()) -> list[tuple[Row, int]]:
        """Rows and seeds in the order in which they run. only: names of rows or table/row; none: all."""
        unknown = set(only) - {r.name for r in self.rows} - {f"{r.table}/{r.name}" for r in self.rows}
        if unknown:
            raise InputError(f"only= names {sorted(unknown)[0]!r}, which is no row of {self.name}")
        return [(row, seed) for seed in self.seeds for row in self.rows
                if not only or row.name in only or f"{row.table}/{row.name}" in only]

    # ------------------------------------------------------------------ commands

    @property
    def shared_folder(self) -> Path:
        return self.runs / f"{self.shared['exp']}-{self.shared['seed']}-shared"

    def shared_command(self) -> list[str]:
        return self._command(self.shared["exp"], self.shared["seed"], "shared", self.shared["stages"], ())

    def folder(self, row: Row, seed: int) -> Path:
        return self.runs / f"{row.exp}-{seed}-{row.run_name}"

    def command(self, row: Row, seed: int) -> list[str]:
        start = (f"vae={self.shared_folder / 'vae' / 'model'}",) if "diffusion" in row.stages else ()
        return self._command(row.exp, seed, row.run_name, row.stages,
                             (*start, *(self._filled(override, seed) for override in row.overrides)))

    def model(self, row: Row, seed: int) -> Path:
        """The finished model of a row that trains one."""
        return self.folder(row, seed) / "diffusion" / "model"

    def needs(self, row: Row) -> list[Row]:
        """⇒ the rows whose finished models a row uses: its overrides name them as ``{table/row}``."""
        return [self.row(*name.split("/")) for override in row.overrides for name in _NAMED_ROW.findall(override)]

    def _filled(self, override: str, seed: int) -> str:
        return _NAMED_ROW.sub(lambda name: str(self.model(self.row(*name.group(1).split("/")), seed)), override)

    def _command(self, exp: str, seed: int, name: str, stages: Sequence[str], more: Sequence[str]) -> list[str]:
        return [sys.executable, str(TRAIN), f"+exp={exp}", f"seed={seed}", f"name={name}", f"runs={self.runs}",
                f"stages=[{','.join(stages)}]", *self.common, *more]


def study_of(settings: dict[str, Any]) -> Study:
    """The content of a conf/study/*.yaml ⇒ Study.

    Raises:
        InputError: a row lacks something, or has an unknown key.
    """
    rows, titles = [], {}
    for table, content in settings["tables"].items():
        titles[table] = content["title"]
        for name, given in content["rows"].items():
            of_row = {**content.get("defaults", {}), **(given or {})}
            unknown = set(of_row) - _ROW_KEYS
            if unknown or not of_row.get("stages"):
                raise InputError(f"study {settings['name']}, row {table}/{name}: "
                                 f"{'unknown ' + ', '.join(sorted(unknown)) if unknown else 'stages is missing'}")
            rows.append(Row(settings["name"], table, name, of_row.get("exp", name), tuple(of_row["stages"]),
                            tuple(of_row.get("overrides", ())), of_row.get("sees", ""), of_row.get("labels", ""),
                            bool(of_row.get("aligned", False)), of_row.get("title", name),
                            bool(of_row.get("controls", False))))
    study = Study(
        settings["name"], settings["title"], Path(settings["runs"]), tuple(settings["seeds"]),
        tuple(settings["common"]), dict(settings["shared"]), titles, tuple(rows),
        tuple(Difference(**difference) for difference in settings.get("differences", ())), settings.get("note", ""))
    for difference in study.differences:
        study.row(difference.table, difference.first)
        study.row(difference.table, difference.second)
    return study


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
