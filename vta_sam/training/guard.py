"""Stop before a step that would spoil the weights, and say which clips it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ..atomic import write_text
from ..errors import InputError
from .sharding import total_norm


class FiniteGuard(L.Callback):
    """Ends the fit where a loss or a gradient is NaN or infinite, before the optimiser takes the step: the weights and
    the last checkpoint stay good. Every process writes the keys of its own batches to ``folder``/nonfinite-<rank>.json.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._keys: list[str] = []
        self._losses: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int,
                             ) -> None:
        self._keys += batch.keys

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """DDP has put the processes' gradients together by now, so that all of them see what one of them spoiled."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = total_norm(gradients) if gradients else torch.tensor(0.0)
        keys, losses = self._keys, torch.stack(self._losses)
        self._keys, self._losses = [], []  # of accumulated batches, all of the step's
        if torch.isfinite(torch.cat([losses, norm.reshape(1).to(losses)])).all():  # one wait for the device
            return
        path = self.folder / f"nonfinite-{trainer.global_rank}.json"
        noted = {"step": trainer.global_step, "losses": [str(loss) for loss in losses.tolist()],
                 "gradient_norm": str(float(norm)), "clips": keys}
        write_text(path, json.dumps(noted, indent=1) + "\n")
        raise InputError(
            f"step {trainer.global_step}: the loss is {float(losses.mean()):g}, the gradient's norm {float(norm):g}; "
            f"the step was not taken, its clips stand in {path}. Look at those clips, or lower learning_rate; the same "
            "command goes on from the last checkpoint")
