"""The base class of the LightningModules of stages before the diffusion: measure a batch, log, return the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import gathered


def _trainer(module: L.LightningModule) -> Any:
    try:
        return module.trainer
    except RuntimeError:
        return None


def logging_interval(module: L.LightningModule) -> int:
    """The number of the interval that a training step belongs to: loggers get what is measured in its last step. 0
    without a trainer."""
    trainer = _trainer(module)
    return trainer.global_step // trainer.log_every_n_steps if trainer else 0


def logged_now(module: L.LightningModule) -> bool:
    """Whether what is measured in this training step goes to the loggers; False without a trainer."""
    trainer = _trainer(module)
    return trainer is not None and (trainer.global_step + 1) % trainer.log_every_n_steps == 0


def over_processes(module: L.LightningModule, value: Tensor) -> Tensor:
    """The sum of a value over all processes, each of which has to call it. No host waits for a GPU, as it would in
    Lightning's ``strategy.reduce``, which begins with a barrier.

    Args:
        module: in training.
        value: of this process.
    """
    value = value.detach()
    if module.trainer.world_size > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def logged_mean(module: L.LightningModule, value: Tensor) -> Tensor:
    """The mean of a training step's value over all processes where it is logged now; this process's value at all other
    steps, which so don't wait for the other processes.

    Args:
        module: that logs it; it may have no trainer.
        value: of this process.
    """
    if not logged_now(module):
        return value.detach()
    return over_processes(module, value) / module.trainer.world_size


def logged_means(module: L.LightningModule, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """As :func:`logged_mean` of several scalars, in one exchange of the processes."""
    if not logged_now(module) or module.trainer.world_size == 1:
        return {name: value.detach() for name, value in values.items()}
    first = next(iter(values.values()))
    together = torch.stack([value.detach().to(first.device, torch.float32) for value in values.values()])
    return dict(zip(values, logged_mean(module, together)))


def rows_before(x: Tensor) -> Tensor:
    """(B, …) of each process ⇒ (B, …), for each row the one before it among the rows of all processes, in the order in
    which one process has them; for the first row the last one.

    Sample n of a step is row n // world of process n % world. Every process calls it in training, with as many rows.
    """
    whole = gathered(x)
    world = len(whole) // len(x)
    ordered = whole.unflatten(0, (world, len(x))).transpose(0, 1).flatten(0, 1)
    return ordered.roll(1, 0)[dist.get_rank() if world > 1 else 0::world]


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

    def repeated_blocks(self) -> list[nn.Module]:
        """The blocks that ``compile=true`` compiles; []: there are none."""
        return []

    def step(self, batch: Any, prefix: str) -> Tensor:
        loss, figures = self.measure(batch)
        train = prefix == "train"
        logged = logged_means(self, {"loss": loss, **figures}) if train else {"loss": loss, **figures}
        self.log_dict({f"{prefix}/{name}": logged[name].detach() for name in figures}, batch_size=len(batch))
        self.log(f"{prefix}/loss", logged["loss"], prog_bar=True, batch_size=len(batch), sync_dist=not train)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self):
        return self.optimise(self)
