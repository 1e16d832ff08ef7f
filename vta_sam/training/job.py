"""One training job: prints its plan, runs the stages of its experiment, and ends with a table of figures."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..checkpoints.model_folder import read_recipe
from ..checkpoints.parts import build, class_of, require_loadable
from ..dataset.shards.schema import read_dataset
from ..importers.named_models import named_folder
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.files import write_text
from .data_sources import DataSource
from .preemption import EXIT_STATUS, Preempted, Preemption, queue_name, requeue
from .run_folder import StageFolder, locked
from .stage import JobSettings, Stage, StageContext
from .stages import STAGES


@dataclasses.dataclass
class TrainingJob(JobSettings):
    """A job of these settings, which :meth:`run` trains."""

    def __post_init__(self):
        super().__post_init__()
        _import_class(self.conditioner)
        if unknown := [name for name in self.stages if name not in STAGES]:
            raise InputError(f"stages names {unknown[0]!r}; the stages are {', '.join(STAGES)}")
        if self.model is not None and list(self.stages) != ["figures"]:
            raise InputError("model=… is for measuring a finished model; give stages=[figures] with it")
        self.processes = Processes.of_environment()
        self.console = Console()

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

    def stage_folder(self, stage: str) -> StageFolder:
        """The folder of a stage, with the part of the config that it depends on."""
        return STAGES[stage].folder(self)

    # ------------------------------------------------------------------ running

    def run(self) -> Path:
        """Train what isn't trained yet ⇒ the run's folder. Several processes, by torchrun or srun, train together.

        Asked to stop, the job saves, goes back into SLURM's queue where that is asked for, and ends with status 75.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        self.console.quiet = not self.processes.first
        preemption = Preemption(self.processes)
        try:
            with self.processes.connected(), preemption.watching(), self._locked():
                self._run_stages(preemption)
        except Preempted as preempted:
            if self.processes.first:
                self._end_preempted(preempted)
            os._exit(EXIT_STATUS)  # processes that wait for this one would keep an ordinary end from happening
        self.console.print(f"\n[bold]{self.folder}[/bold] holds everything of this run.", highlight=False)
        return self.folder

    def _end_preempted(self, preempted: Preempted) -> None:
        """Tell the user, then go back into SLURM's queue where that is asked for: SLURM may be quick."""
        def say(words: str) -> None:
            print(f"asked to stop: {self.folder} is saved, {words}", file=sys.stderr, flush=True)

        job = queue_name() if preempted.requeue else None
        say(f"job {job} goes back into the queue" if job else "the same command goes on from there")
        sys.stdout.flush()
        if job and (failure := requeue(job)):
            say(f"but job {job} could not go back into the queue ({failure}); submit it again")

    def _locked(self) -> AbstractContextManager:
        return locked(self.folder) if self.processes.first else nullcontext()

    def _run_stages(self, preemption: Preemption) -> None:
        grounder, encoder = self.source.recipes(self.grounder, self.encoder)
        self.grounder, self.encoder = grounder, encoder
        self._print_plan()
        if self.model is None:
            self._check_settings()
        else:
            self.processes.on_first_rank(lambda: named_folder(str(self.model)))  # a released one is fetched once
            STAGES["figures"].check(self)
        root = self.timed("data", lambda: self.processes.on_first_rank(
            lambda: self.source.prepare(self.spec, grounder, encoder, self.console)))
        context = StageContext(self.seed, self.spec, root, read_dataset(root), self.source,
                               [build(logger, _partial_=True) for logger in self.logger], self.console, preemption)
        context.info.require(str(root), fps=self.spec.fps, sample_rate_hz=self.spec.sample_rate_hz)
        for name in self.stages:
            self._run_stage(STAGES[name], context)

    def _run_stage(self, stage: Stage, context: StageContext) -> None:
        folder = stage.folder(self)
        self.processes.on_first_rank(lambda: folder.claim(self.overwrite))
        if folder.done:
            where = folder.model if folder.model.exists() else folder.path
            self.console.print(f"{stage.name}: done before, {where}", highlight=False)
        else:
            def train() -> None:
                stage.train(self, context)

            self.timed(stage.name, lambda: self.processes.on_first_rank(train) if stage.one_process else train())
            self.processes.on_first_rank(folder.finish)
        self.processes.on_first_rank(lambda: stage.report(self, context))

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Do ``work`` and add its seconds to the run's account, which survives a restart."""
        start = time.perf_counter()
        result = work()
        if not self.processes.first:
            return result
        account = self.folder / "seconds.json"
        seconds = json.loads(account.read_text()) if account.exists() else {}
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
        write_text(account, json.dumps(seconds) + "\n")
        return result

    # ------------------------------------------------------------------ before the first stage

    def _check_settings(self) -> None:
        """Refuse a config that would only fail after hours."""
        listed = [STAGES[name] for name in self.stages]
        for stage in listed:
            for key, recipe in stage.model_recipes(self).items():
                require_loadable(recipe, key)
        for stage in listed:
            stage.plan(self)  # reads the stage's numbers
            stage.require(self, stage.needs(self))
        for name in (*self.given.values(), self.init, self.vocoder_from):
            if name:
                self.processes.on_first_rank(lambda: read_recipe(named_folder(name)))
        for key in dict.fromkeys([*self.given, *self.stages]):
            STAGES[key].check(self)

    def _print_plan(self) -> None:
        table = Table(title=f"{self.exp}, seed {self.seed}", title_justify="left", show_header=False, box=None)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        if self.processes.world > 1:
            device = f"{self.processes.world} processes on {self.processes.machines} machines, each {device}"
        expected_s = getattr(self.source, "expected_s", 0.0)
        table.add_row("data", self.source.describe())
        for name in self.stages:
            work, stage_s = STAGES[name].plan(self)
            done = self.stage_folder(name).done
            expected_s += 0 if done else stage_s
            table.add_row(name, "done before" if done else work)
        table.add_row("device", device)
        table.add_row("expected", f"about {expected_s / 60:.0f} minutes, if this machine is like the one it was "
                                  "measured on (conf/size)" if expected_s else "not measured for this size")
        table.add_row("writes to", f"{self.folder}")
        self.console.print(table)


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
    found = _leaves(config["networks"].get("unet"), "networks.unet")
    before = _leaves(OmegaConf.to_container(plain.networks.get("unet"), resolve=True), "networks.unet")
    changed = [key for key in {**found, **before} if found.get(key) != before.get(key)]
    if changed:
        raise InputError(
            f"{', '.join(f'{key}={found.get(key)}' for key in changed)}: another denoiser stands in the place of "
            f"the UNet of size={size}, so that this would change nothing; leave out the experiment, ablation or "
            f"argument that says it, or give {' '.join(f'{key}={before.get(key)}' for key in changed)} back")


def _leaves(value: Any, name: str) -> dict[str, Any]:
    """{dotted key: value} of what a nested dictionary holds."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, nested in value.items() for key, leaf in _leaves(nested, f"{name}.{part}").items()}


def _import_class(recipe: dict[str, Any]) -> None:
    """Import the module of a recipe's class, which may register stages; one that can't be is refused later."""
    with suppress(InputError):
        class_of(str(recipe.get("_target_")))
