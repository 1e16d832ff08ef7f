"""What the stages of a job share: a stage's numbers, and the workshop that they are trained in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, save_model
from ..clip import ClipSpec
from ..dataset.shards.datamodule import ShardDataModule
from ..dataset.shards.schema import DatasetInfo
from ..dataset.shards.storage import Root
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.randomness import seed_of
from .data_sources import DataSource
from .fit import FitSettings, LoggerFactory, fit
from .optimisation import AdamWithWarmup
from .preemption import Preemption
from .run_folder import StageFolder


@dataclass(frozen=True)
class StageSettings:
    """A stage's numbers. fit: see FitSettings. batch_size: clips a batch, of one process; times fit.accumulate, clips a
    step, of all. learning_rate, warmup_steps, weight_decay: AdamW's. weights: of the loss terms. workers: loader
    processes. streams: of the order of samples (shards/datamodule.py), a multiple of any number of processes times
    workers; another number is another order. expected_s: how long it took where it was measured (the config says
    where), for the plan."""

    fit: FitSettings
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    weights: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    streams: int = 8
    expected_s: float = 0.0

    def parted(self, world: int) -> "StageSettings":
        """The same steps for each of ``world`` processes: as many clips a step over all of them, in batches no larger
        than one process takes. InputError where the clips don't part evenly."""
        clips = self.batch_size * self.fit.accumulate
        batch_size = min(self.batch_size, clips // world)
        if clips % world or not batch_size or (clips // world) % batch_size:
            raise InputError(f"{clips} clips a step (batch_size={self.batch_size} times accumulate="
                             f"{self.fit.accumulate}) don't part evenly among {world} processes; change batch_size, "
                             "accumulate or the number of processes")
        accumulate = clips // world // batch_size
        return replace(self, batch_size=batch_size, fit=replace(self.fit, accumulate=accumulate))

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "StageSettings":
        return cls(**{**settings, "fit": FitSettings(**settings["fit"])})

    def optimise(self, slower: dict[str, float] | None = None) -> AdamWithWarmup:
        return AdamWithWarmup(self.learning_rate, self.fit.steps, self.warmup_steps, self.weight_decay,
                              slower=slower or {})


@dataclass(frozen=True)
class Workshop:
    """What all stages share: the seed, the clip, the data, who listens to the log, and who may ask to stop (with the
    processes that train together)."""

    seed: int
    spec: ClipSpec
    root: Root
    info: DatasetInfo
    source: DataSource
    loggers: list[LoggerFactory]
    console: Console
    preemption: Preemption = field(default_factory=lambda: Preemption(Processes()))

    @property
    def processes(self) -> Processes:
        return self.preemption.processes

    def datamodule(self, stage: str, settings: StageSettings, latents: Path | None = None) -> ShardDataModule:
        return ShardDataModule(
            self.root, self.spec, settings.parted(self.processes.world).batch_size, self.seed, stage,
            streams=settings.streams, workers=settings.workers, latents=latents,
            train_split=self.source.train_split, val_split=self.source.val_split, val_batch_size=settings.batch_size,
        )

    def fit(self, module: L.LightningModule, data: ShardDataModule, folder: StageFolder, settings: StageSettings,
            label: str, monitor: tuple[str, str], callbacks: Sequence[L.Callback] = ()) -> None:
        """See fit(); each process with its part of a step."""
        fit(module, data, folder, settings.parted(self.processes.world).fit, label, monitor, self.loggers, callbacks,
            self.preemption)

    def save(self, folder: StageFolder, recipe: ModelRecipe, parts: dict[str, torch.nn.Module]) -> None:
        """The stage's model folder, written once."""
        self.processes.alone(lambda: save_model(folder.model, recipe, parts))

    def about(self, stage: str, settings: StageSettings) -> dict[str, Any]:
        counts = ", ".join(f"{self.info.records(split)} {split}" for split in self.info.splits)
        data = f"{counts} clips at {self.info.fps:g} fps, seen by {self.info.grounder} and {self.info.encoder}"
        return {"stage": stage, "data": data, "steps": settings.fit.steps, "seed": self.seed,
                "code_version": __version__}

    @contextmanager
    def seeded(self, stage: str) -> Iterator[None]:
        """Initial weights depend on (seed, stage), not on what ran before in this process."""
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, stage, "weights"))
            yield
