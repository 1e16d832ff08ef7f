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


class LastCheckpoint(Checkpoint):
    """Write ``path`` every so many optimiser steps, and after each validation.

    Where a validation is due at the same step, only after it, and after the callbacks before this one in the trainer's
    list: what was validated best so far is part of the checkpoint, and a run that goes on from it must not choose anew.
    """

    def __init__(self, path: Path, every_steps: int, validate_every_steps: int):
        self.path, self.every_steps, self.validate_every_steps = path, every_steps, validate_every_steps
        self._saved_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        # with accumulated gradients a step lasts several batches
        if step and step % self.every_steps == 0 and step % self.validate_every_steps and step != self._saved_step:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their place and rename them, so that a kill leaves the old one or the new one.

    Lightning's own writes to the system's temporary folder and moves, which copies where that is another disk.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path, storage_options: Any = None) -> None:
        with atomic_path(path, sync=True) as temporary:
            torch.save(checkpoint, temporary)
