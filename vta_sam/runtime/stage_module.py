"""The base class of the LightningModules of stages before the diffusion: measure a batch, log, return the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor


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
        self.log(f"{prefix}/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self):
        return self.optimise(self)
