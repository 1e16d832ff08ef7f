"""One training job: prints its plan, runs the stages of its experiment, and ends with a table of figures."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..checkpoints.model_folder import read_recipe
from ..checkpoints.parts import build, class_of, require_loadable
from ..dataset.shards.schema import read_dataset
from ..generation.build import identify
from ..importers.named_models import MODELS, named_folder, to_be_imported
from ..runtime.cluster.preemption import EXIT_STATUS, Preempted, Preemption, end_preempted
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.progress import JobProgress
from ..runtime.work_plan import Deed, Item, PartTimes, Plan, processor_name
from .codec_stages import VAEStage, VocoderStage
from .data_sources import DataSource
from .diffusion_stage import DiffusionStage
from .figures_stage import FiguresStage
from .part_stages import ClassifierStage, ConditionStage, ContrastiveStage, OnsetStage, SyncStage
from .run_folder import DATASET, StageFolder, TimeAccount, leaves, locked, seen_on
from .stage import JobSettings, Stage, StageContext

# in the order in which a job goes through them; a conditioner of one's own adds its row by register_stage
STAGES: dict[str, Stage] = {stage.name: stage for stage in (
    VAEStage(), VocoderStage(), ConditionStage(), ContrastiveStage(), ClassifierStage(), OnsetStage(),
    DiffusionStage(), FiguresStage(), SyncStage(),
)}


def register_stage(stage: Stage) -> None:
    """Let jobs name a stage of one's own, in ``stages=[…]``, in ``fit`` and, where it is replaceable, as
    ``+<name>=FOLDER``. Call it in the module of the conditioner, which a job imports before it reads its stages.

    Args:
        stage: its ``name`` is a plain word, and no key of ``conf/train.yaml``.

    Raises:
        InputError: another stage or a setting has that name, or it is no plain word.
    """
    taken = STAGES.get(stage.name)
    own = taken is not None and _path(taken) == _path(stage)  # its module was imported again
    keys = {field.name for field in dataclasses.fields(JobSettings)}
    if not own and (taken is not None or stage.name in keys or not stage.name.isidentifier()):
        of = f"the name of {_path(taken)}" if taken else "a setting" if stage.name in keys else "no plain word"
        raise InputError(f"register_stage({_path(stage)}): its name {stage.name!r} is {of}; choose another name")
    STAGES[stage.name] = stage


def _path(stage: Stage) -> str:
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


@dataclasses.dataclass
class TrainingJob(JobSettings):
    """A job of these settings, which :meth:`run` trains."""

    def __post_init__(self):
        super().__post_init__()
        self._identities = functools.cache(self._identity_of)
        _import_class(self.conditioner)
        if unknown := [name for name in self.stages if name not in STAGES]:
            raise InputError(f"stages names {unknown[0]!r}; the stages are {', '.join(STAGES)}")
        if self.model is not None and list(self.stages) != ["figures"]:
            raise InputError("model=… is for measuring a finished model; give stages=[figures] with it")
        self.processes = Processes.of_environment()
        self.console = Console()
        self.progress = JobProgress(self.console)

    @classmethod
    def of(cls, config: dict[str, Any]) -> "TrainingJob":
        """The job that a composed ``conf/train.yaml`` describes. Keys of other programs are left out."""
        _import_class(config["conditioner"])
        _require_unet_used(config)
        given = {name: config[name] for name, stage in STAGES.items() if stage.replaceable and config.get(name)}
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in fields} | {"given": given})

    @cached_property
    def source(self) -> DataSource:
        return build(self.data)

    def stage_folder(self, name: str) -> StageFolder:
        """The folder of a stage, with the part of the config that it depends on, and with what it is built on."""
        stage = STAGES[name]
        read = {other: self._identities(other) for other in stage.reads(self)}
        inputs = {DATASET: self._dataset_identity, **read}
        shorter = {} if stage.trains else {other: self.stage_folder(other).former for other in read
                                           if other in self.stages and other not in self.given}
        return dataclasses.replace(stage.folder(self), inputs={key: found for key, found in inputs.items() if found},
                                   shorter=shorter)

    @cached_property
    def _dataset_identity(self) -> str | None:
        """Of the clips, wherever they lie; None: their source doesn't say."""
        identity = getattr(self.source, "identity", None)
        return identity() if identity else None

    def _identity_of(self, name: str) -> str | None:
        """Of a stage of this job, or of the model folder that a setting names; None where there is neither."""
        given = self.given.get(name) or getattr(self, name, None)
        if given:
            return None if given in MODELS else identify(Path(given))["hash"]  # a released one is known by its name
        return self.stage_folder(name).identity if name in self.stages else None

    # ------------------------------------------------------------------ running

    def run(self) -> Path:
        """Train what isn't trained yet ⇒ the run's folder. Several processes, by torchrun or srun, train together.

        With ``plan`` the plan is said, and nothing is done. Asked to stop, the job saves, goes back into SLURM's queue
        where that is asked for, and ends with status 75.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        self.console.quiet = not self.processes.first
        if self.plan:
            if self.processes.first:
                self._prepare_plan().show(self.console)
            return self.folder
        preemption = Preemption(self.processes)
        try:
            with self.processes.connected(), preemption.watching(), self._locked():
                self._run_stages(preemption)
        except Preempted as preempted:
            if self.processes.first:
                end_preempted(preempted, f"{self.folder} is saved")
            os._exit(EXIT_STATUS)  # processes that wait for this one would keep an ordinary end from happening
        self.console.print(f"\n[bold]{self.folder}[/bold] holds everything of this run.", highlight=False)
        return self.folder

    def _locked(self) -> AbstractContextManager:
        return locked(self.folder) if self.processes.first else nullcontext()

    def _run_stages(self, preemption: Preemption) -> None:
        plan = self.processes.on_first_rank(self._prepare_plan)
        plan.show(self.console)
        grounder, encoder = self._name_extractors()
        if self.model is not None:
            self.processes.on_first_rank(lambda: named_folder(str(self.model)))  # a released one is fetched once
        self.progress = self._progress(plan.items)
        takes = inspect.signature(self.source.prepare).parameters  # a source of one's own may know of no progress
        shown = {"progress": self.progress} if "progress" in takes else {}
        root = self.timed("data", lambda: self.processes.on_first_rank(
            lambda: self.source.prepare(self.spec, grounder, encoder, self.console, **shown)))
        context = StageContext(self.seed, self.spec, root, read_dataset(root), self.source,
                               [build(logger, _partial_=True) for logger in self.logger], self.console, preemption,
                               self.progress)
        context.info.require(str(root), fps=self.spec.fps, sample_rate_hz=self.spec.sample_rate_hz)
        for name in self.stages:
            self._run_stage(STAGES[name], context)

    def _name_extractors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.grounder, self.encoder = self.source.recipes(self.grounder, self.encoder)
        return self.grounder, self.encoder

    def _run_stage(self, stage: Stage, context: StageContext) -> None:
        folder = stage.folder(self)
        deed = self.processes.on_first_rank(lambda: self.stage_folder(stage.name).claim(self.overwrite))
        if deed in (Deed.MAKE, Deed.MAKE_AGAIN) and self.processes.first:
            TimeAccount(self.folder).begin_anew(stage.name)
        if folder.done:
            where = folder.model if folder.model.exists() else folder.path
            self.console.print(f"{stage.name}: done before, {where}", highlight=False)
        else:
            def train() -> None:
                stage.train(self, context)

            self.timed(stage.name, lambda: self.processes.on_first_rank(train) if stage.one_process else train())
            self.processes.on_first_rank(self.stage_folder(stage.name).finish)
        self.processes.on_first_rank(lambda: stage.report(self, context))

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do ``work`` and add its seconds to the run's account, which survives a restart: also those up to a request to
        stop, after which the next start goes on."""
        with self.progress.stage(name) as times:
            try:
                result = work()
            except (Preempted, KeyboardInterrupt):
                self._note(name, times, None)
                raise
        self._note(name, times, self.progress.seen_s.get(name))
        return result

    def _note(self, name: str, times: PartTimes, whole_s: float | None) -> None:
        if self.processes.first:
            TimeAccount(self.folder).add(name, times.seconds(), {
                "machine": self._machine, "expected_s": self._elsewhere_s.get(name, 0.0),
                "whole_s": None if whole_s is None else round(whole_s, 1)})

    @property
    def _device(self) -> str:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        if self.processes.world > 1:
            return f"{self.processes.world} processes on {self.processes.machines} machines, each {device}"
        return device

    @property
    def _machine(self) -> str:
        """What times depend on, in words."""
        return f"{processor_name()}, {self._device}"

    @property
    def _elsewhere_s(self) -> dict[str, float]:
        """{stage: seconds where they were measured}, of the making of data too; 0: not known."""
        return {"data": getattr(self.source, "expected_s", 0.0)} | {
            name: STAGES[name].plan(self)[1] for name in self.stages}

    def _progress(self, items: Sequence[Item]) -> JobProgress:
        """The progress of the job. items: of its plan."""
        ahead = [item.name for item in items if item.deed not in (Deed.KEEP, Deed.TAKE_BACK)]
        if hasattr(self.source, "expected_s") and not getattr(self.source, "made", False):
            ahead = ["data", *ahead]
        seen_s = seen_on(self._machine, self.folder, [STAGES[name].folder(self) for name in self.stages])
        return JobProgress(self.console, self.stages, ahead, self._elsewhere_s, seen_s)

    # ------------------------------------------------------------------ before the first stage

    def _check_settings(self) -> None:
        """Refuse a config that would only fail after hours."""
        listed = [STAGES[name] for name in self.stages]
        for stage in listed:
            for key, recipe in stage.model_recipes(self).items():
                require_loadable(recipe, key)
        for stage in listed:
            stage.plan(self)  # reads the stage's numbers
            self._require_even_shares(stage.name)
            stage.require(self, stage.needs(self))
        for name in (*self.given.values(), self.init, self.vocoder_from):
            if name:
                read_recipe(named_folder(name))
        for key in dict.fromkeys([*self.given, *self.stages]):
            STAGES[key].check(self)

    def _require_even_shares(self, stage: str) -> None:
        if stage in self.fit:
            try:
                self.numbers(stage).split_over(self.processes.world)
                self.numbers(stage).require_streams(self.processes.world)
            except InputError as error:
                raise InputError(f"fit.{stage}: {error}") from None

    def _prepare_plan(self) -> Plan:
        """What this job will do, after its settings were checked and compared with what its folder holds.

        One process asks; released models may be fetched.

        Raises:
            InputError: a stage was made with another config, and may not be replaced.
        """
        self._name_extractors()
        fetched = [name for name in (*self.given.values(), self.init, self.vocoder_from, self.model)
                   if name and to_be_imported(name)]
        if not fetched or not self.plan:  # a plan fetches nothing
            self._check()
        items, refusals = [], []
        for name in self.stages:
            work, _ = STAGES[name].plan(self)
            try:
                deed, why = self.stage_folder(name).deed(self.overwrite)
            except InputError as error:
                refusals.append(str(error))
                continue
            writes = deed not in (Deed.KEEP, Deed.TAKE_BACK)
            items.append(Item(name, deed, "; ".join(filter(None, (work if writes else "", why))),
                              STAGES[name].size(self) if writes else None))
        if refusals:
            raise InputError("\n".join(refusals))
        return Plan(f"{self.exp}, seed {self.seed}", items, self.folder, facts=self._facts(items),
                    notes=[f"{name} is fetched first, and compared with the settings then" for name in fetched])

    def _check(self) -> None:
        if self.model is None:
            self._check_settings()
        else:
            STAGES["figures"].check(self)

    def _facts(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        return [("data", self.source.describe()), ("device", self._device),
                ("expected", self._progress(items).outlook())]


def _require_unet_used(config: dict[str, Any]) -> None:
    """Refuse changes of the size's UNet while another denoiser stands in its place: they would change nothing.

    Where Hydra runs the program it knows the size; without it nothing is compared.
    """
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not config.get("denoiser") or not (HydraConfig.initialized() and GlobalHydra.instance().is_initialized()):
        return
    started = HydraConfig.get()
    size = started.runtime.choices.get("size")
    plain = compose(started.job.config_name, [
        f"size={size}", *(part for part in started.overrides.hydra if part.startswith("hydra.searchpath="))])
    found = leaves(config["networks"].get("unet"), "networks.unet")
    before = leaves(OmegaConf.to_container(plain.networks.get("unet"), resolve=True), "networks.unet")
    changed = [key for key in {**found, **before} if found.get(key) != before.get(key)]
    if changed:
        raise InputError(
            f"{', '.join(f'{key}={found.get(key)}' for key in changed)}: another denoiser stands in the place of "
            f"the UNet of size={size}, so that this would change nothing; leave out the experiment, ablation or "
            f"argument that says it, or give {' '.join(f'{key}={before.get(key)}' for key in changed)} back")


def _import_class(recipe: dict[str, Any]) -> None:
    """Import the module of a recipe's class, which may register stages; one that can't be is refused later."""
    with suppress(InputError):
        class_of(str(recipe.get("_target_")))
