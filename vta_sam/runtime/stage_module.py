"""The base class of the LightningModules of stages before the diffusion: measure a batch, log, return the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
import torch.distributed as dist
from torch import Tensor


def mean_of_processes(module: L.LightningModule, figure: Tensor) -> Tensor:
    """The mean of a figure over the processes that train a module together, detached, for the log of a training step.

    Lightning's ``sync_dist`` would have every process and its device wait at a barrier first, once a micro-batch.

    Args:
        module: in training; without a trainer, as where a step is only timed, it is by itself.
        figure: of this process.
    """
    figure, trainer = figure.detach().clone(), module._trainer
    if trainer is not None and trainer.world_size > 1:
        dist.all_reduce(figure)
        figure /= trainer.world_size
    return figure


class StageModule(L.LightningModule):
    """A module that trains one part.

    Args:
        optimise: (module) ⇒ Lightning's optimiser and schedule.

    Attributes:
        draw: the random draws of a step, a picklable function of a batch on the host (dataset/shards/batch.py,
            ``Draw``). The loader's workers call it, and :meth:`measure` where they have not:
            ``batch.with_draws(self.draw)``. None: the stage draws nothing, or makes its own draws in the step.
    """

    draw: Callable[[Any], dict[str, Any]] | None = None

    def __init__(self, optimise: Callable):
        super().__init__()
        self.optimise = optimise

    @abstractmethod
    def measure(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and {name: figure} that are logged beside it."""

    def step(self, batch: Any, prefix: str) -> Tensor:
        loss, figures = self.measure(batch)
        self.log_dict({f"{prefix}/{name}": value.detach() for name, value in figures.items()}, batch_size=len(batch))
        if prefix == "train":
            self.log("train/loss", mean_of_processes(self, loss), prog_bar=True, batch_size=len(batch))
        else:
            self.log(f"{prefix}/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self):
        return self.optimise(self)
