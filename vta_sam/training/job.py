"""One training job: says what it will do, runs the stages that its experiment names, ends with a table of figures."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..checkpoints.model_folder import read_recipe
from ..checkpoints.parts import build, canonical, class_of, require_loadable
from ..clip import ClipSpec
from ..dataset.shards.schema import read_dataset
from ..importers.named_models import named_folder
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.files import write_text
from .data_sources import DataSource
from .figures_stage import run_figures
from .preemption import EXIT_STATUS, Preempted, Preemption, queue_name, requeue
from .pretraining import PRETRAINING
from .run_folder import StageFolder, decisive, locked, with_dimensions
from .stage_context import StageSettings, Workshop
from .stages import DiffusionParts, Starts, train_diffusion, train_part, train_vae, vocoder_folder
from .vocoder_stage import train_vocoder
from .warm_start import Start

STAGES = ("vae", "vocoder", *PRETRAINING, "diffusion", "figures")
# Settings of a job that name classes
_PARTS = ("data", "networks", "conditioner", "objective", "sampler", "vocoder", "grounder", "encoder", "logger")


@dataclass
class TrainingJob:
    """What ``conf/train.yaml`` describes; its comments say what each field is. Nested dictionaries are recipes."""

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
    grounder: dict[str, Any]
    encoder: dict[str, Any]
    logger: Sequence[dict[str, Any]]
    freeze: bool
    threads: int | None
    vae: str | None
    condition: str | None
    contrastive: str | None
    classifier: str | None
    onsets: str | None
    init: str | None
    vocoder_from: str | None
    model: str | None

    def __post_init__(self):
        unknown = [s for s in self.stages if s not in STAGES]
        if unknown:
            raise InputError(f"stages names {unknown[0]!r}; the stages are {', '.join(STAGES)}")
        if self.model is not None and list(self.stages) != ["figures"]:
            raise InputError("model=… is for measuring a finished model; give stages=[figures] with it")
        for key in _PARTS:
            setattr(self, key, canonical(getattr(self, key)))
        self.spec, self.processes = ClipSpec(**self.clip), Processes.of_environment()
        self.console = Console()
        self._seconds: dict[str, float] = {}

    @property
    def folder(self) -> Path:
        name = str(self.name or "").replace("/", "-")  # one made of overrides has the / of config groups
        return Path(self.runs) / "-".join([self.exp, str(self.seed), *([name] if name else [])])

    @cached_property
    def source(self) -> DataSource:
        return build(self.data)

    def run(self) -> Path:
        """Train what isn't trained yet ⇒ the run's folder. Several processes, by torchrun or srun, train together.

        Asked to stop, it saves, goes back into SLURM's queue where that is asked for, and ends with status 75.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        self.console.quiet = not self.processes.first
        preemption = Preemption(self.processes)
        try:
            with self.processes.connected(), preemption.watching(), self._locked():
                self._run_stages(preemption)
        except Preempted as asked:
            if self.processes.first:
                self._end_asked(asked)
            os._exit(EXIT_STATUS)  # processes that wait for this one would keep an ordinary end from happening
        self.console.print(f"\n[bold]{self.folder}[/bold] holds everything of this run.", highlight=False)
        return self.folder

    def _end_asked(self, asked: Preempted) -> None:
        """Say so, then go back into SLURM's queue where that is asked for: SLURM may be quick."""
        def say(words: str) -> None:
            print(f"asked to stop: {self.folder} is saved, {words}", file=sys.stderr, flush=True)

        job = queue_name() if asked.requeue else None
        say(f"job {job} goes back into the queue" if job else "the same command goes on from there")
        sys.stdout.flush()
        if job and (failure := requeue(job)):
            say(f"but job {job} could not go back into the queue ({failure}); submit it again")

    def _run_stages(self, preemption: Preemption) -> None:
        self._say_plan()
        if self.model is None:
            self._check_settings()
        root = self.timed("data", lambda: self.processes.alone(
            lambda: self.source.prepare(self.spec, self.grounder, self.encoder, self.console)))
        shop = Workshop(self.seed, self.spec, root, read_dataset(root), self.source,
                        [build(logger, _partial_=True) for logger in self.logger], self.console, preemption)
        shop.info.require(str(root), fps=self.spec.fps, sample_rate_hz=self.spec.sample_rate_hz)
        for stage in self.stages:
            self._stage(stage, shop)

    def _locked(self) -> AbstractContextManager:
        return locked(self.folder) if self.processes.first else nullcontext()

    # ------------------------------------------------------------------ what each stage is told

    def stage_folder(self, stage: str) -> StageFolder:
        """The stage's folder with the part of the config that it depends on."""
        told: dict[str, Any] = {"seed": self.seed, "clip": self.clip, "data": self.data}
        if stage == "vae":
            told |= {"codec": self.networks["codec"], "fit": self.fit["vae"]}
        if stage == "vocoder":
            told |= {"vocoder": self.vocoder, "adversary": self.networks["adversary"], "fit": self.fit["vocoder"]}
        if stage in PRETRAINING or stage == "diffusion":
            told |= {"grounder": self.grounder, "encoder": self.encoder, "dropout": self.dropout,
                     "augment": self.augment, "conditioner": self.conditioner}
            told |= {f"start_{key}": folder for key in PRETRAINING
                     if key != "condition" and (folder := getattr(self, key))}
        if stage in PRETRAINING:
            told |= {"fit": self.fit[stage]} | ({"vae": self.vae} if PRETRAINING[stage].on_latents else {})
        if stage == "diffusion":
            told |= {"fit": self.fit["diffusion"], "unet": self.networks["unet"], "objective": self.objective,
                     "validation": self.validation, "freeze": self.freeze, "pretrained": bool(self._pretrained),
                     "sampler": self.sampler, "vocoder": self.vocoder,
                     "vae": self.vae, "condition": self.condition, "init": self.init}
            told |= {"vocoder_from": self.vocoder_from} if self.vocoder_from else {}
        if stage == "figures":
            told |= {"figures": self.figures, "model": self.model, "sampler": self.sampler}
        return StageFolder(self.folder / stage, decisive(json.loads(json.dumps(told))))

    @property
    def _vae(self) -> Path:
        return named_folder(self.vae) if self.vae else self.stage_folder("vae").model

    @property
    def model_folder(self) -> Path | None:
        """Of the finished model to measure, where one is given."""
        return self._start(self.model)

    @staticmethod
    def _start(name: str | None) -> Path | None:
        """A folder, or the name of a released model ⇒ its folder."""
        return named_folder(name) if name else None

    @property
    def _pretrained(self) -> dict[str, Path]:
        """Stages whose part is trained already, or will be by this run ⇒ their model folders."""
        return {stage: Path(getattr(self, stage) or self.stage_folder(stage).model) for stage in PRETRAINING
                if getattr(self, stage) or stage in self.stages}

    def _check_settings(self) -> None:
        """Refuse a config that would only fail after hours."""
        for key, recipe in self._recipes_of_models().items():
            require_loadable(recipe, key)
        if "diffusion" in self.stages and "vae" not in self.stages and not self.vae:
            raise InputError("stage diffusion needs a VAE: add vae to stages=, or give vae=FOLDER of a trained one")
        if "classifier" in self.stages and "vae" not in self.stages and not self.vae:
            raise InputError("stage classifier listens to latents: add vae to stages=, or give vae=FOLDER of a trained "
                             "one")
        for key in ("vae", *PRETRAINING, "init", "vocoder_from"):
            if name := getattr(self, key):
                self.processes.alone(lambda: read_recipe(named_folder(name)))
        if "diffusion" in self.stages:
            vocoder_folder(self.vocoder, self._vae if self.vae else None, self._start(self.vocoder_from))
        kind = class_of(self.conditioner["_target_"])
        for stage in self._pretrained:
            if stage not in kind.pretrained:
                raise InputError(f"{kind.__name__} has nothing that stage {stage} could train; leave it out of stages= "
                                 f"and {stage}=")
        lacking = [stage for stage, part in kind.pretrained.items() if part.required and stage not in self._pretrained]
        same = self.init and Start(named_folder(self.init)).is_of(self.conditioner)
        if "diffusion" in self.stages and lacking and not same:
            raise InputError(f"{kind.__name__} needs what stage {lacking[0]} trains: add {lacking[0]} to stages=, or "
                             f"give {lacking[0]}=FOLDER of a trained one")

    def _recipes_of_models(self) -> dict[str, dict[str, Any]]:
        """{setting: recipe} of what the model folders of this run will name, and of what trains them."""
        found = {"networks.codec": self.networks["codec"]} if "vae" in self.stages else {}
        if "diffusion" in self.stages or "vocoder" in self.stages:
            found["vocoder"] = self.vocoder
        if "diffusion" in self.stages:
            found |= {"networks.unet": self.networks["unet"], "objective": self.objective, "sampler": self.sampler,
                      "grounder": self.grounder, "encoder": self.encoder}
        if "diffusion" in self.stages or any(stage in PRETRAINING for stage in self.stages):
            found["conditioner"] = self.conditioner
        return found

    def _recipes(self, shop: Workshop) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditioner's and UNet's recipes, with the dimensions that data and each other give them."""
        info = shop.info
        known = {"frame_dim": info.frame_dim, "object_dim": info.object_dim, "caption_dim": info.caption_dim,
                 "fps": info.fps}
        conditioner = with_dimensions(self.conditioner, known)
        unet = {**self.networks["unet"], "map_channels": conditioner.get("map_channels", 0)}
        return conditioner, unet

    # ------------------------------------------------------------------ running

    def _stage(self, stage: str, shop: Workshop) -> None:
        if stage == "figures":
            return self.processes.alone(lambda: run_figures(self, shop))
        folder = self.stage_folder(stage)
        self.processes.alone(lambda: folder.claim(self.overwrite))
        if folder.done:
            self.console.print(f"{stage}: done before, {folder.model}", highlight=False)
            return None
        settings = StageSettings.of(self.fit[stage])
        conditioner, unet = self._recipes(shop)
        before = {s: f for s, f in self._pretrained.items() if stage == "diffusion" or _comes_before(s, stage)}
        starts = Starts(self._vae, before, self._start(self.init), self._start(self.vocoder_from))
        if stage == "vae":
            self.timed(stage, lambda: train_vae(shop, folder, settings, self.networks["codec"]))
        elif stage == "vocoder":
            self.timed(stage, lambda: train_vocoder(shop, folder, settings, self.vocoder, self.networks["adversary"]))
        elif stage in PRETRAINING:
            self.timed(stage, lambda: train_part(shop, folder, settings, stage, conditioner, self.augment, starts))
        else:
            parts = DiffusionParts(
                unet=unet, conditioner=conditioner, objective=self.objective, dropout=self.dropout,
                augment=self.augment, freeze=self.freeze, starts=starts, sampler=self.sampler, vocoder=self.vocoder,
                validation=self.validation, grounder=self.grounder, encoder=self.encoder,
            )
            self.timed(stage, lambda: train_diffusion(shop, folder, settings, parts))
        self.processes.alone(folder.finish)
        return None

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """Run, and add the seconds to the run's account, which survives a restart."""
        start = time.perf_counter()
        result = work()
        if not self.processes.first:
            return result
        account = self.folder / "seconds.json"
        kept = json.loads(account.read_text()) if account.exists() else {}
        kept[name] = round(kept.get(name, 0.0) + time.perf_counter() - start, 1)
        write_text(account, json.dumps(kept) + "\n")
        return result

    def _say_plan(self) -> None:
        table = Table(title=f"{self.exp}, seed {self.seed}", title_justify="left", show_header=False, box=None)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
        if self.processes.world > 1:
            device = f"{self.processes.world} processes on {self.processes.machines} machines, each {device}"
        expected = 0.0
        table.add_row("data", self.source.describe())
        for stage in self.stages:
            if stage == "figures":
                expected += self.figures["expected_s"]
                table.add_row(stage, f"{self.figures['clips']} held-out clips")
                continue
            settings, done = StageSettings.of(self.fit[stage]), self.stage_folder(stage).done
            expected += 0 if done else settings.expected_s
            work = f"{settings.fit.steps} steps of {settings.batch_size} clips, precision {settings.fit.precision}"
            table.add_row(stage, "done before" if done else work)
        expected += getattr(self.source, "expected_s", 0.0)
        table.add_row("device", device)
        table.add_row("expected", f"about {expected / 60:.0f} minutes, if this machine is like the one it was measured "
                                  "on (conf/size)" if expected else "not measured for this size")
        table.add_row("writes to", f"{self.folder}")
        self.console.print(table)


def _comes_before(stage: str, other: str) -> bool:
    return STAGES.index(stage) < STAGES.index(other)
