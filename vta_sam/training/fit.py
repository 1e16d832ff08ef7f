"""Loggers that need a decision before they are made."""

from __future__ import annotations

import logging
import netrc
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from ..dataset.shards.datamodule import ShardDataModule
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from .callbacks import AtomicCheckpointIO, FiniteGuard, LastCheckpoint, StepProgress
from .optimisation import attention_kernels, choose_precision, training_device
from .preemption import Preemption
from .run_folder import StageFolder
from .sharding import fill_whole, to_be_sharded

# MERGED-DOC """One stage's training: a Trainer with checkpoints to resume from, averaged weights, and a choice by
# figure; on one device, or on several by DDP."""


def has_wandb_account() -> bool:
    """A key in the environment or in ~/.netrc; no connection is opened to find out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(save_dir: str, name: str, project: str, tags: Sequence[str] = ()) -> WandbLogger:
    """A run of its own per stage, grouped by the job's folder; offline unless there is an account.

    Its config is what the stage was told, so that a table of runs shows what differs. In a sweep the agent has named
    one run for the whole job: all stages go into that one. save_dir: the stage's folder, <runs>/<run>/<stage>.
    """
    stage = Path(save_dir)
    offline = not has_wandb_account() or os.environ.get("WANDB_MODE") == "offline"
    told: dict[str, Any] = {"name": f"{stage.parent.name}/{stage.name}", "group": stage.parent.name,
                            "job_type": stage.name}
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        told = {"name": stage.parent.name, "id": os.environ["WANDB_RUN_ID"], "resume": "allow"}
    config = stage / "config.yaml"
    if config.exists():
        told["config"] = {stage.name: yaml.safe_load(config.read_text())}
    return WandbLogger(project=project, save_dir=save_dir, offline=offline, tags=list(tags), **told)


def close(loggers: Iterable[Logger]) -> None:
    """End what would otherwise go on into the next stage: wandb keeps one run open per process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


LoggerFactory = Callable[..., Logger]  # (save_dir=…, name=…) ⇒ Logger


@dataclass(frozen=True)
class FitSettings:
    """steps: optimiser steps. validate_every, checkpoint_every: in steps. accumulate: batches per step, of one process;
    see StageSettings.parted for several. clip_norm: of the gradient. ema_decay: of the averaged weights, which are what
    is validated and kept. precision: auto, fp32 or bf16. accelerator: Lightning's. strategy: of several processes, ddp
    (each has the whole network) or fsdp2 (sharding.py; experimental: no averaged weights, which can't be sharded)."""

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
) -> None:
    """Train ``module`` from where its folder left off, then fill it with the chosen checkpoint's averaged weights.

    monitor: (figure, "min" or "max") that chooses the checkpoint. preemption: who asks to stop, and the processes that
    train together; None: nobody, and this one. Raises Preempted when asked, InputError where a step is not finite.
    """
    _quiet()
    preemption = preemption or Preemption(Processes())
    processes = preemption.processes
    figure, mode = monitor
    sharded = settings.strategy == "fsdp2" and processes.world > 1  # one process has nobody to share with
    if sharded:
        to_be_sharded(module)
    average = [EMAWeightAveraging(decay=settings.ema_decay, update_starting_at_step=settings.ema_start)]
    with attention_kernels(training_device()):
        precision = processes.alone(lambda: choose_precision(
            settings.precision, module, next(iter(data.train_dataloader())), folder.path))
    trainer = L.Trainer(
        default_root_dir=folder.path,
        max_steps=settings.steps,
        accelerator=settings.accelerator, precision=precision, **_together(processes, sharded),
        gradient_clip_val=settings.clip_norm, accumulate_grad_batches=settings.accumulate,
        val_check_interval=settings.validate_every * settings.accumulate, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, log_every_n_steps=10, enable_progress_bar=False, enable_model_summary=False,
        logger=[make(save_dir=str(folder.path), name="logs") for make in loggers] or False,
        callbacks=[
            *callbacks,  # before the average, which puts the raw weights back when validation ends
            *([] if sharded else average),
            FiniteGuard(folder.path),
            StepProgress(label, settings.steps),
            ModelCheckpoint(folder.best_checkpoint.parent, filename="best", monitor=figure, mode=mode,
                            enable_version_counter=False),
            LastCheckpoint(folder.last_checkpoint, settings.checkpoint_every, settings.validate_every, preemption),
        ],
    )
    resume = folder.last_checkpoint if folder.last_checkpoint.exists() else None
    if resume:
        read_checkpoint(resume, module)  # refuses in words what Lightning would refuse with a traceback
    try:
        with attention_kernels(trainer.strategy.root_device.type), preemption.training():
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning ends the program with status 1 on Ctrl-C
            raise KeyboardInterrupt from None
        raise
    finally:
        close(trainer.loggers)
    best = read_checkpoint(folder.best_checkpoint, module)["state_dict"]
    if sharded:
        fill_whole(module, best)
    else:
        module.load_state_dict(best)
    module.eval()


def _together(processes: Processes, sharded: bool) -> dict[str, Any]:
    """What the trainer is told of the processes. Lightning's own reading of SLURM's variables is kept out: its handler
    would save in the middle of a step, and its checkpoint would be loaded by whichever stage comes next."""
    if processes.world == 1:
        return {"devices": 1, "plugins": [AtomicCheckpointIO(), LightningEnvironment()]}
    # parts of a conditioner may be switched off by its settings, and get no gradient
    strategy = ModelParallelStrategy(data_parallel_size=processes.world, tensor_parallel_size=1,
                                     save_distributed_checkpoint=False) if sharded else \
        DDPStrategy(find_unused_parameters=True)
    return {
        "devices": processes.local_world, "num_nodes": processes.machines, "use_distributed_sampler": False,
        "strategy": strategy,
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment()],
    }


def read_checkpoint(path: Path, module: L.LightningModule) -> dict:
    """A checkpoint of this very module ⇒ its content. Raises InputError when it is damaged or of another model."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
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


def _quiet() -> None:
    """Lightning tells of every trainer what its config already says."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*is an iterable.*", ".*`IterableDataset` has `__len__`.*",
                    ".*Checkpoint directory.*", ".*mid-epoch checkpoint.*", ".*litmodels.*", ".*isn't resumable.*",
                    ".*treespec, LeafSpec.*", ".*Starting from v1.9.0.*", ".*Found keys that are not in the model.*",
                    ".*`srun` command is available.*", ".*torch.distributed.nn.functional.all_gather is deprecated.*",
                    ".*FSDP2-wrapped module .* returned a view tensor.*",  # which nobody writes to
                    ".*sync_dist=True.*"):  # in validation every process sees the same clips
        warnings.filterwarnings("ignore", message)
