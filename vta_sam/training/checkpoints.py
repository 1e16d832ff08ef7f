"""Checkpoints to go on from: whole or absent, and never from between a step and its validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from ..atomic import atomic_path
from .preemption import REQUEUE, Preempted, Preemption


class LastCheckpoint(Checkpoint):
    """Write ``path`` every so many optimiser steps, after each validation, and when the job is asked to stop.

    Where a validation is due at the same step, only after it, and after the callbacks before this one in the trainer's
    list: what was validated best so far is part of the checkpoint, and a run that goes on from it must not choose anew.
    Raises Preempted once it has saved what it was asked to save.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int, preemption: Preemption):
        self.path, self.every_steps, self.validate_every_steps = path, every_steps, validate_every_steps
        self.preemption = preemption
        self._ended_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended_step = trainer.global_step
        if self.preemption.watched:
            self.preemption.listen()  # again: the trainer has set handlers of its own by now

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._ended_step:  # with accumulated gradients a step lasts several batches
            return
        self._ended_step = step
        if step % self.validate_every_steps:
            self._save(trainer, due=step % self.every_steps == 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save(trainer, due=True)

    def _save(self, trainer: L.Trainer, due: bool) -> None:
        asked = self.preemption.asked()
        if due or asked:
            trainer.save_checkpoint(self.path)
        if asked:
            raise Preempted(asked == REQUEUE)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place and rename them, so that a kill leaves the old one or the new one.

    Lightning's own writes to the system's temporary folder and moves, which copies where that is another disk.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path, storage_options: Any = None) -> None:
        with atomic_path(path, sync=True) as temporary:
            torch.save(checkpoint, temporary)
