"""One stage's training: a Trainer with checkpoints to resume from, averaged weights, and a choice by a validation
figure; on one device, on several by DDP, or sharded over them by FSDP2. And the logger that needs a decision before it
is made.
"""

from __future__ import annotations

import configparser
import logging
import netrc
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning as L
import yaml
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from rich.console import Console

from ..dataset.shards.datamodule import ShardDataModule
from ..generation.build import prepare_layers
from ..runtime.cluster.preemption import Preemption
from ..runtime.distributed import Processes, choose_accelerator, visible_gpus
from ..runtime.errors import InputError
from ..runtime.progress import JobProgress
from ..runtime.work_plan import StepPace
from .callbacks import CheckpointWriter, LastCheckpoint, StepProgress, TimesOfParts, load_mapped
from .optimisation import (
    ExponentialMovingAverage, GradientClipping, attention_kernels, choose_precision, fill_whole, may_leave_out,
    prepare_blocks, stage_device, to_be_sharded, training_device
)
from .run_folder import StageFolder


def wandb_offline_reason() -> str | None:
    """Why wandb's runs stay on this machine, in words; None: they don't, or the user has switched them off. No
    connection is opened to find out.

    Settings and keys are looked up where wandb does: environment variables, its settings files, and the entry of its
    server in netrc.
    """
    settings: dict[str, str] = {}
    mode_from = ""
    for path in _wandb_settings_files():
        found = _wandb_settings(path)
        mode_from = str(path) if "mode" in found else mode_from
        settings |= found
    mode = os.environ.get("WANDB_MODE") or settings.get("mode")
    if mode in ("offline", "dryrun"):  # two words for the same
        return f"WANDB_MODE={mode} is set" if os.environ.get("WANDB_MODE") else f"{mode_from} says mode = {mode}"
    keys = (os.environ.get("WANDB_API_KEY"), os.environ.get("WANDB_IDENTITY_TOKEN_FILE"), settings.get("api_key"))
    if mode == "disabled" or any(keys):
        return None
    hosts = _wandb_hosts(os.environ.get("WANDB_BASE_URL") or settings.get("base_url"))
    path = _netrc_path()
    try:
        entries = netrc.netrc(path)  # named, so that its mode doesn't matter; it doesn't to wandb either
    except FileNotFoundError:
        return f"there is no key for {hosts[0]}: WANDB_API_KEY is not set, and there is no {path} (`wandb login`)"
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        # of a line its number alone, about which netrc knows it: its words may be a password's
        reason = (f"an odd word about line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else
                  error.strerror if isinstance(error, OSError) else "it is no text")
        return f"there is no key for {hosts[0]}: {path} can't be read ({reason}), and WANDB_API_KEY is not set"
    if any((entry := entries.authenticators(host)) and entry[2] for host in hosts):
        return None
    return f"there is no key for {hosts[0]}: WANDB_API_KEY is not set, and {path} doesn't name it (`wandb login`)"


def _wandb_settings_files() -> list[Path]:
    """The user's, and the working folder's, which goes before it."""
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    return [user / "settings", Path(".wandb" if Path(".wandb").exists() else "wandb") / "settings"]


def _wandb_settings(path: Path) -> dict[str, str]:
    """What one of wandb's settings files says; nothing where it is absent or can't be read, as for wandb."""
    parser = configparser.ConfigParser()
    try:
        parser.read(path)
        return dict(parser.items("default"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}


def _wandb_hosts(url: str | None) -> list[str]:
    """The hosts, with their ports, under which a server's key may stand in netrc. url: None: wandb's own server."""
    if url is None:
        import wandb

        return list(dict.fromkeys((urlsplit(wandb.Settings().base_url).netloc, "api.wandb.ai")))
    if not urlsplit(url).netloc:
        raise InputError(f"WANDB_BASE_URL={url} (or base_url of wandb's settings file) is no address of a server; it "
                         "starts with http:// or https://")
    return [urlsplit(url).netloc]


def _netrc_path() -> Path:
    """$NETRC, else ~/.netrc, or ~/_netrc where only that exists."""
    if named := os.environ.get("NETRC"):
        return Path(named).expanduser()
    usual, other = Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()
    return other if other.exists() and not usual.exists() else usual


@cache
def _say_offline(run: Path, reason: str) -> None:
    """Once for all stages of a run, by the first of its processes."""
    if Processes.of_environment().first:
        warnings.warn(f"wandb's runs stay offline, since {reason}; later: wandb sync "
                      f"{shlex.quote(str(run))}/*/wandb/offline-run-*")


def wandb_logger(save_dir: str, name: str, project: str, tags: Sequence[str] = ()) -> WandbLogger:
    """A logger with a run of its own per stage, grouped by the job's folder; offline, with a warning that says why,
    unless there is an account.

    The run's config is the stage's settings, so that a table of runs shows the differences. In a sweep the agent has
    named one run for the whole job, which gets all stages.

    Args:
        save_dir: the stage's folder, <runs>/<run>/<stage>.
        name: not used; the folder names the run.
        project: wandb's.
        tags: of the run.

    Raises:
        InputError: WANDB_BASE_URL is no address.
    """
    stage = Path(save_dir)
    reason = wandb_offline_reason()
    if reason:
        _say_offline(stage.parent, reason)
    settings: dict[str, Any] = {"name": f"{stage.parent.name}/{stage.name}", "group": stage.parent.name,
                                "job_type": stage.name}
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        settings = {"name": stage.parent.name, "id": os.environ["WANDB_RUN_ID"], "resume": "allow"}
    config = stage / "config.yaml"
    if config.exists():
        settings["config"] = {stage.name: yaml.safe_load(config.read_text())}
    if reason:
        settings["mode"] = "offline"  # Lightning's offline=True would change WANDB_MODE for whatever comes next
    return WandbLogger(project=project, save_dir=save_dir, tags=list(tags), **settings)


def close(loggers: Iterable[Logger]) -> None:
    """End the stage's run, since wandb keeps one run open per process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


LoggerFactory = Callable[..., Logger]  # (save_dir=…, name=…) ⇒ Logger


@dataclass(frozen=True)
class FitSettings:
    """How a stage is fitted, ``fit.<stage>.fit`` of the config.

    Attributes:
        steps: optimiser steps.
        validate_every, checkpoint_every: in steps.
        accumulate: batches per step, of one process; see StageSettings.split_over for several.
        clip_norm: largest norm of the gradient, or of that of each of a module's ``sides``; 0: it is not clipped.
        ema_decay: of the averaged weights, which are validated and kept.
        ema_start: the step from which weights are averaged.
        precision: auto, fp32 or bf16.
        accelerator: Lightning's name of the kind of device, or auto.
        strategy: of several processes, ddp (each has the whole network) or fsdp2 (sharded; experimental: no
            averaged weights, which can't be sharded).
        gradient_checkpointing: of the denoiser's blocks; see :meth:`.Denoiser.checkpoint_blocks`.
        compile: the network's repeated blocks; without a compiler they run as they are, with a warning.
        checkpoint_aside: steps go on while a checkpoint is written, out of a copy of it in the host's memory.
    """

    steps: int
    validate_every: int
    checkpoint_every: int
    accumulate: int = 1
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    ema_start: int = 0
    precision: str = "auto"
    accelerator: str = "auto"
    strategy: str = "ddp"
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_aside: bool = True

    def __post_init__(self):
        if self.strategy not in ("ddp", "fsdp2"):
            raise InputError(f"strategy={self.strategy}: ddp or fsdp2")
        if not 0 < self.validate_every <= self.steps:
            raise InputError(f"validate_every={self.validate_every} with steps={self.steps}: a validation chooses the "
                             "weights that are kept, so there must be one; make it 1 … steps")
        if not self.ema_start < self.steps:
            raise InputError(f"ema_start={self.ema_start} with steps={self.steps}: the averaged weights are those that "
                             "are kept, and these would be the untrained ones")


def fit(
    module: L.LightningModule,
    data: ShardDataModule,
    folder: StageFolder,
    settings: FitSettings,
    label: str,
    monitor: tuple[str, str],
    loggers: Sequence[LoggerFactory] = (),
    callbacks: Sequence[L.Callback] = (),
    preemption: Preemption | None = None,
    progress: JobProgress | None = None,
) -> None:
    """Train ``module`` from where its folder left off, then fill it with the chosen checkpoint's averaged weights.

    Args:
        module: changed in place.
        data: of the stage.
        folder: of the stage, claimed.
        settings: how to fit.
        label: on the line of progress, where ``progress`` knows of no stage.
        monitor: (figure, "min" or "max") that chooses the checkpoint.
        loggers: factories.
        callbacks: the stage's own.
        preemption: a request to stop, and the processes that train together. None: this process alone, without
            such requests.
        progress: of the job. None: of this fit alone.

    Raises:
        Preempted: the job was asked to stop, and has saved its state.
        InputError: a step is not finite, a checkpoint can't be used, or the device is not here.
    """
    _silence_lightning()
    accelerator = choose_accelerator(settings.accelerator)
    preemption = preemption or Preemption(Processes())
    processes = preemption.processes
    sharded = settings.strategy == "fsdp2" and processes.world > 1  # one process has no other to share with
    if sharded:
        to_be_sharded(module)
    progress = progress or JobProgress(Console(quiet=not processes.first))
    progress.name = progress.name or label
    data.draw, data.unread = getattr(module, "draw", None), getattr(module, "unread", ())
    device = stage_device(settings.accelerator)
    prepare_layers(module, device)
    with attention_kernels(training_device()):
        precision = processes.on_first_rank(lambda: choose_precision(
            settings.precision, module, lambda: next(iter(data.train_dataloader())), folder.path))
    prepare_blocks(module, settings.gradient_checkpointing, settings.compile, device)
    pace = StepPace(settings.steps, settings.validate_every, settings.checkpoint_every,
                    data.batch_size * settings.accumulate * processes.world)
    writer = CheckpointWriter(folder.best_checkpoint, settings.checkpoint_aside and not sharded)
    trainer = L.Trainer(
        default_root_dir=folder.path, accelerator=accelerator, precision=precision,
        **_devices(processes, sharded, may_leave_out(module), writer), **_lengths(settings),
        num_sanity_val_steps=0, log_every_n_steps=10, enable_progress_bar=False, enable_model_summary=False,
        logger=[make(save_dir=str(folder.path), name="logs") for make in loggers] or False,
        profiler=TimesOfParts(progress.times),
        callbacks=_callbacks(folder, settings, monitor, callbacks, preemption, sharded, writer,
                             StepProgress(progress, pace)),
    )
    resume = folder.last_checkpoint if folder.last_checkpoint.exists() else None
    if resume:
        read_checkpoint(resume, module)  # refuses in words what Lightning would refuse with a traceback
    _run(trainer, preemption, module, data, resume)
    best = read_checkpoint(folder.best_checkpoint, module)["state_dict"]
    if sharded:
        fill_whole(module, best)
    else:
        module.load_state_dict(best)
    module.eval()


def _lengths(settings: FitSettings) -> dict[str, Any]:
    """The trainer's arguments about steps, and about batches, which it counts."""
    return {"max_steps": settings.steps, "accumulate_grad_batches": settings.accumulate,
            "val_check_interval": settings.validate_every * settings.accumulate, "check_val_every_n_epoch": None}


def _run(trainer: L.Trainer, preemption: Preemption, module: L.LightningModule, data: ShardDataModule,
         resume: Path | None) -> None:
    """Train from a checkpoint, or from the start, and close the loggers."""
    try:
        with attention_kernels(trainer.strategy.root_device.type), preemption.training():
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as end:
        if end.code == 1 and trainer.interrupted:  # Lightning's way to end the program on Ctrl-C
            raise KeyboardInterrupt from None
        raise
    finally:
        close(trainer.loggers)


class BatchCount(L.Callback):
    """Counts the batches of a resumed run anew where a step has another number of them than before.

    Lightning counts batches, and restores their number from the checkpoint. It decides by that number when a step's
    gradient is complete and when a validation is due. A run that goes on with another number of processes, and so with
    another ``accumulate``, would step and validate out of turn.

    Args:
        accumulate: batches per optimiser step.
    """

    def __init__(self, accumulate: int):
        self.accumulate = accumulate

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checkpoints are written between optimiser steps, so that the number of batches follows from that of steps.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):  # an epoch never ends: both count from the run's start
            more = checkpoint["global_step"] * self.accumulate - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})


def _callbacks(folder: StageFolder, settings: FitSettings, monitor: tuple[str, str], callbacks: Sequence[L.Callback],
               preemption: Preemption, sharded: bool, writer: CheckpointWriter, progress: StepProgress,
               ) -> list[L.Callback]:
    """The stage's own callbacks, and the callbacks of every fit. Their order counts."""
    figure, mode = monitor
    return [
        *callbacks,  # before the average, which puts the raw weights back when validation ends
        *([] if sharded else [ExponentialMovingAverage(settings.ema_decay, settings.ema_start)]),
        GradientClipping(settings.clip_norm, folder.path),
        progress,
        BatchCount(settings.accumulate),
        ModelCheckpoint(folder.best_checkpoint.parent, filename="best", monitor=figure, mode=mode,
                        enable_version_counter=False),
        LastCheckpoint(folder.last_checkpoint, settings.checkpoint_every, settings.validate_every, preemption, writer),
    ]


def _devices(processes: Processes, sharded: bool, find_unused: bool, writer: CheckpointWriter) -> dict[str, Any]:
    """The trainer's arguments about devices and processes. Lightning doesn't read SLURM's variables by itself: its
    handler would save in the middle of a step, and whichever stage comes next would load its checkpoint."""
    if processes.world == 1:
        return {"devices": 1, "plugins": [writer, LightningEnvironment()]}
    strategy = ModelParallelStrategy(data_parallel_size=processes.world, tensor_parallel_size=1,
                                     save_distributed_checkpoint=False) if sharded else \
        DDPStrategy(find_unused_parameters=find_unused, gradient_as_bucket_view=True)
    placed = processes.placed(visible_gpus())
    return {
        "devices": placed.local_world, "num_nodes": placed.machines, "use_distributed_sampler": False,
        "strategy": strategy,
        "plugins": [writer, TorchElasticEnvironment()],
    }


def read_checkpoint(path: Path, module: L.LightningModule) -> dict:
    """The content of a checkpoint of this very module. Raises InputError when it is damaged or of another model."""
    try:
        content = load_mapped(path)
    except Exception as error:  # torch raises half a dozen kinds for a file that isn't its own
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
        raise InputError(
            f"{path} can't be read as a checkpoint ({reason}); delete it to start the stage again"
        ) from error
    own, found = module.state_dict(), content.get("state_dict", {}) if isinstance(content, dict) else {}
    wrong = sorted(set(own) ^ set(found)) + [k for k in own if k in found and own[k].shape != found[k].shape]
    if wrong:
        raise InputError(
            f"{path} is a checkpoint of another model: {len(wrong)} of its parameters differ from this one's, the "
            f"first is {wrong[0]!r}; delete it, or give this run another name=…"
        )
    return content


def _silence_lightning() -> None:
    """Turn off messages that repeat the config for every Trainer, and warnings about choices made on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*is an iterable.*", ".*`IterableDataset` has `__len__`.*",
                    ".*Checkpoint directory.*", ".*mid-epoch checkpoint.*", ".*litmodels.*", ".*isn't resumable.*",
                    ".*treespec, LeafSpec.*", ".*Starting from v1.9.0.*", ".*Found keys that are not in the model.*",
                    ".*`srun` command is available.*", ".*torch.distributed.nn.functional.all_gather is deprecated.*",
                    ".*FSDP2-wrapped module .* returned a view tensor.*",  # which is never written to
                    ".*sync_dist=True.*"):  # in validation every process has the same clips
        warnings.filterwarnings("ignore", message)
