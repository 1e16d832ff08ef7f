"""A stage of a training job: its numbers, the job's settings, the shared context, and the contract of a stage."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from rich.console import Console

from .. import __version__
from ..checkpoints.model_folder import ModelRecipe, save_model
from ..checkpoints.parts import canonical, class_of
from ..clip import ClipSpec, MelSpec
from ..dataset.shards.datamodule import CACHED_GB, ShardDataModule
from ..dataset.shards.schema import DatasetInfo
from ..dataset.shards.storage import Root
from ..diffusion.condition import Pretrained
from ..importers.named_models import named_folder
from ..runtime.cluster.preemption import Preemption
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.progress import JobProgress
from ..runtime.randomness import seed_of
from .data_sources import DataSource
from .fit import FitSettings, LoggerFactory, fit
from .optimisation import AdamWithWarmup
from .run_folder import StageFolder, result_affecting, with_dimensions

# Settings of a job that name classes
_PARTS = ("data", "networks", "denoiser", "conditioner", "objective", "sampler", "vocoder", "grounder", "encoder",
          "logger")


@dataclass(frozen=True)
class StageSettings:
    """A stage's numbers, ``fit.<stage>`` of the config.

    Attributes:
        fit: steps, validations, checkpoints; see FitSettings.
        batch_size: clips a batch, of one process; times fit.accumulate, clips a step, of all.
        learning_rate, warmup_steps, weight_decay, betas: AdamW's.
        schedule_steps: over which the rate falls; it keeps its end for further ones. None: fit.steps.
        weights: of the loss terms.
        workers: loader processes.
        cached_gb: memory of all loader processes of a node, see ShardDataModule.
        streams: of the order of samples (dataset/shards/datamodule.py), a multiple of any number of processes times
            workers; another number is another order.
        expected_s: how long the stage took where it was measured (the config says where): its share of the job.
    """

    fit: FitSettings
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    betas: Sequence[float] = field(default_factory=lambda: [0.9, 0.99])
    weights: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    cached_gb: float = CACHED_GB
    streams: int = 8
    expected_s: float = 0.0
    schedule_steps: int | None = None

    def split_over(self, world: int) -> "StageSettings":
        """The same steps for each of ``world`` processes: as many clips a step over all of them, in batches no larger
        than one process takes.

        Raises:
            InputError: the clips of a step can't be split evenly.
        """
        clips = self.batch_size * self.fit.accumulate
        batch_size = min(self.batch_size, clips // world)
        if clips % world or not batch_size or (clips // world) % batch_size:
            raise InputError(f"{clips} clips a step (batch_size={self.batch_size} times accumulate="
                             f"{self.fit.accumulate}) can't be split evenly over {world} processes; change batch_size, "
                             "accumulate or the number of processes")
        accumulate = clips // world // batch_size
        return replace(self, batch_size=batch_size, fit=replace(self.fit, accumulate=accumulate))

    def require_streams(self, world: int) -> None:
        """Raise InputError where the streams of the order can't be parted among ``world`` processes and their
        workers."""
        if self.streams % (world * max(1, self.workers)):
            raise InputError(f"streams={self.streams} is not a multiple of {world} processes × {max(1, self.workers)} "
                             "workers, each of which reads streams of its own; change streams or workers")

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "StageSettings":
        return cls(**{**settings, "fit": FitSettings(**settings["fit"])})

    def optimise(self, slower: dict[str, float] | None = None) -> AdamWithWarmup:
        return AdamWithWarmup(self.learning_rate, self.schedule_steps or self.fit.steps, self.warmup_steps,
                              self.weight_decay, (self.betas[0], self.betas[1]), slower=slower or {})


@dataclass
class JobSettings:
    """``conf/train.yaml``, whose comments explain each field. Nested dictionaries are recipes.

    given: {stage: model folder, or a released model's name} in place of stages, the keys ``vae=``, ``condition=`` …
    """

    exp: str
    stages: Sequence[str]
    seed: int
    runs: str
    name: str | None
    overwrite: bool
    data: dict[str, Any]
    clip: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    conditioner: dict[str, Any]
    objective: dict[str, Any]
    dropout: float
    augment: dict[str, float]
    fit: dict[str, dict[str, Any]]
    sampler: dict[str, Any]
    vocoder: dict[str, Any]
    validation: dict[str, int]
    figures: dict[str, int]
    grounder: dict[str, Any] | None
    encoder: dict[str, Any] | None
    logger: Sequence[dict[str, Any]]
    freeze: bool
    threads: int | None
    given: dict[str, str]
    init: str | None
    vocoder_from: str | None
    model: str | None
    denoiser: dict[str, Any] | None = None  # a config that names none has no such key
    plan: bool = False

    def __post_init__(self):
        for key in _PARTS:
            setattr(self, key, canonical(getattr(self, key)))
        # run folders made before sizes had the key don't have it
        self.clip = {key: value for key, value in self.clip.items() if key != "mel" or value is not None}
        try:
            self.spec = ClipSpec(**self.clip)
        except TypeError as error:
            raise InputError(f"clip={self.clip} can't be used: {error}") from error
        self.networks = {name: with_front_end(recipe, self.spec.mel) if name == "codec" else recipe
                         for name, recipe in self.networks.items()}
        self.vocoder = with_front_end(self.vocoder, self.spec.mel)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        name = str(self.name or "").replace("/", "-")  # one made of overrides has the / of config groups
        return Path(self.runs) / "-".join([self.exp, str(self.seed), *([name] if name else [])])

    def model_of(self, stage: str) -> Path:
        """The model folder given in place of a stage, or the one that the stage writes in this run."""
        return named_folder(self.given[stage]) if stage in self.given else self.folder / stage / "model"

    def numbers(self, stage: str) -> StageSettings:
        """The numbers of a stage. Raises InputError where the config has none."""
        if stage not in self.fit:
            raise InputError(f"fit.{stage} is missing; a stage needs its numbers (fit, batch_size, learning_rate, "
                             f"warmup_steps), as fit.{next(iter(self.fit))} of conf/size has them")
        return StageSettings.of(self.fit[stage])

    @property
    def conditioner_parts(self) -> dict[str, Pretrained]:
        """{stage: part} of the conditioner that stages of their own train, in their order."""
        try:
            return class_of(self.conditioner["_target_"]).pretrained
        except InputError as error:
            raise InputError(f"conditioner.{error}") from error

    @property
    def pretrained(self) -> dict[str, Path]:
        """{stage: model folder} of the conditioner's parts that are given, or that this run trains."""
        return {stage: self.model_of(stage) for stage in self.conditioner_parts
                if stage in self.given or stage in self.stages}

    @property
    def denoiser_recipe(self) -> dict[str, Any]:
        """The configured denoiser's; the size's UNet where none is named."""
        return self.denoiser or self.networks["unet"]

    def network_recipes(self, info: DatasetInfo) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditioner's and denoiser's recipes, with the dimensions that data and each other give them."""
        conditioner = with_dimensions(self.conditioner, info.dimensions)
        return conditioner, self.denoiser_beside(conditioner)

    def denoiser_beside(self, conditioner: dict[str, Any]) -> dict[str, Any]:
        """The denoiser's recipe, with the arguments that a conditioner's recipe decides."""
        denoiser = dict(self.denoiser_recipe)
        if _takes(denoiser, "map_channels"):
            denoiser["map_channels"] = conditioner.get("map_channels", 0)
        return denoiser

    # Settings that affect a stage's result. Run folders keep these dictionaries, so that a key may not be renamed.

    def common_settings(self) -> dict[str, Any]:
        """Of every stage."""
        return {"seed": self.seed, "clip": self.clip, "data": self.data}

    def conditioner_settings(self) -> dict[str, Any]:
        """Of every stage that trains the conditioner, or a part of it."""
        starts = {f"start_{stage}": folder for stage, folder in self.given.items()
                  if stage not in ("vae", "condition")}  # these two stand under their own names
        return {**self.common_settings(), "grounder": self.grounder, "encoder": self.encoder, "dropout": self.dropout,
                "augment": self.augment, "conditioner": self.conditioner, **starts}


def with_front_end(recipe: dict[str, Any], mel: MelSpec) -> dict[str, Any]:
    """A codec's or vocoder's recipe with the clip's front end, where its class takes ``mel`` and the recipe names none.
    The default one is left out, as run folders and model folders have it."""
    if not recipe or mel == MelSpec() or recipe.get("mel") is not None:
        return recipe
    try:
        return {**recipe, "mel": asdict(mel)} if _takes(recipe, "mel") else recipe
    except InputError:  # of a class that can't be imported: refused, with its setting's name, before training
        return recipe


def _takes(recipe: dict[str, Any], argument: str) -> bool:
    """Does the class of a recipe take an argument of this name?"""
    return argument in inspect.signature(class_of(recipe["_target_"])).parameters


@dataclass(frozen=True)
class StageContext:
    """Context that all stages of a job share.

    Attributes:
        seed: of weights, order and every draw.
        spec: shape and rate of a clip.
        root, info: folder of the shards, and dataset.json.
        source: of the data, with videos and true onsets.
        loggers: factories, called for each stage.
        console: of the plan and the progress.
        preemption: a request to stop, and the processes that train together.
        of_job: the progress of the job; None: there is no job.
    """

    seed: int
    spec: ClipSpec
    root: Root
    info: DatasetInfo
    source: DataSource
    loggers: list[LoggerFactory]
    console: Console
    preemption: Preemption = field(default_factory=lambda: Preemption(Processes()))
    of_job: JobProgress | None = None

    @cached_property
    def progress(self) -> JobProgress:
        """What counts of steps and clips are shown on."""
        return self.of_job or JobProgress(self.console)

    @property
    def processes(self) -> Processes:
        return self.preemption.processes

    def datamodule(self, stage: str, settings: StageSettings, latents: Path | None = None) -> ShardDataModule:
        """The clips of a stage, in the order of its own name. latents: a folder of latent shards, where it reads them.
        """
        return ShardDataModule(
            self.root, self.spec, settings.split_over(self.processes.world).batch_size, self.seed, stage,
            streams=settings.streams, workers=settings.workers, cached_gb=settings.cached_gb, latents=latents,
            train_split=self.source.train_split, val_split=self.source.val_split, val_batch_size=settings.batch_size,
        )

    def fit(self, module: L.LightningModule, data: ShardDataModule, folder: StageFolder, settings: StageSettings,
            label: str, monitor: tuple[str, str], callbacks: Sequence[L.Callback] = ()) -> None:
        """See fit(); each process takes its share of a step."""
        fit(module, data, folder, settings.split_over(self.processes.world).fit, label, monitor, self.loggers,
            callbacks, self.preemption, self.progress)

    def save(self, folder: StageFolder, recipe: ModelRecipe, parts: dict[str, torch.nn.Module]) -> None:
        """Write the stage's model folder, once."""
        self.processes.on_first_rank(lambda: save_model(folder.model, recipe, parts))

    def about(self, stage: str, settings: StageSettings) -> dict[str, Any]:
        """The model card's facts of the training."""
        counts = ", ".join(f"{self.info.records(split)} {split}" for split in self.info.splits)
        data = f"{counts} clips at {self.info.fps:g} fps, seen by {self.info.grounder} and {self.info.encoder}"
        return {"stage": stage, "data": data, "steps": settings.fit.steps, "seed": self.seed,
                "code_version": __version__}

    @contextmanager
    def seeded(self, stage: str) -> Iterator[None]:
        """Inside, initial weights depend on (seed, stage), not on what ran before in this process."""
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(self.seed, stage, "weights"))
            yield


def written_bytes(*networks: torch.nn.Module) -> int:
    """About how many bytes a stage writes that trains these networks, which may be sketches.

    The last checkpoint holds fp32 weights, their average and Adam's two moments; the best one and the model folder hold
    averaged weights.
    """
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return 4 * parameters * (4 + 1 + 1)


class Stage(ABC):
    """One stage of a job. The table of them is ``stages.py``; a subclass is one row.

    Attributes:
        name: in ``stages=[…]`` and ``fit``, of the stage's folder, and on the screen.
        replaceable: whether ``<name>=FOLDER`` may stand in place of the stage.
        one_process: whether the first process trains while the others wait.
        trains: whether making it again throws training away.
    """

    name: ClassVar[str]
    replaceable: ClassVar[bool] = False
    one_process: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    @abstractmethod
    def settings(self, job: JobSettings) -> dict[str, Any]:
        """The part of the config that decides the result. The run's folder keeps it and refuses another one."""

    @abstractmethod
    def train(self, job: JobSettings, context: StageContext) -> None:
        """Train, from where an earlier attempt left off, and write the model folder ``self.folder(job).model``."""

    def needs(self, job: JobSettings) -> dict[str, str]:
        """{stage: why}: stages that come before this one, or are given by a folder."""
        return {}

    def reads(self, job: JobSettings) -> Sequence[str]:
        """Stages, and settings that name model folders, out of which this one is made: where one of them changes, this
        one is made again."""
        return list(self.needs(job))

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        """{setting: recipe} of the parts that the model folder will name, and of what trains them."""
        return {}

    def check(self, job: JobSettings) -> None:
        """Raise InputError where the job can't use this stage, which it trains or is given. No data are read yet."""

    def report(self, job: JobSettings, context: StageContext) -> None:
        """Show or write what belongs to a finished stage, whether it was finished now or before."""

    def plan(self, job: JobSettings) -> tuple[str, float]:
        """The plan's description of the work, and the seconds that it took where it was measured; 0: not known."""
        numbers = job.numbers(self.name)
        work = f"{numbers.fit.steps} steps of {numbers.batch_size} clips, precision {numbers.fit.precision}"
        return work, numbers.expected_s

    def size(self, job: JobSettings) -> int | None:
        """About how many bytes the stage writes; None: not known before."""
        return None

    def folder(self, job: JobSettings) -> StageFolder:
        """The stage's folder in the run, with the settings that it keeps."""
        settings = result_affecting(json.loads(json.dumps(self.settings(job))))
        return StageFolder(job.folder / self.name, settings)

    def require(self, job: JobSettings, needs: dict[str, str]) -> None:
        """Raise InputError where a stage of ``needs`` is neither listed before this one nor given."""
        before = list(job.stages)[:list(job.stages).index(self.name)]
        for stage, why in needs.items():
            if stage not in before and stage not in job.given:
                raise InputError(f"stage {self.name} needs {why}: add {stage} to stages= before {self.name}, or give "
                                 f"{stage}=FOLDER of a trained one")
