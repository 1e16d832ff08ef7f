"""Stage 3: train the latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..dataset.shards.batch import Augmentation, ClipBatch
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import logged_mean, logged_now, logging_interval, over_processes
from ..vae.codec import sample_posterior
from .condition import Conditioner, Denoiser
from .objective import TIME_END, Objective

TIME_BINS = 4  # of the logged errors
BIN_WIDTH = TIME_END // TIME_BINS


@dataclass(frozen=True)
class DiffusionDraws:
    """The random draws of a step: ``times`` (B,), ``posterior`` and ``noise`` (B, C, columns, freq), ``drop`` (B,) in
    [0, 1), those of the augmentation, and ``bin``, the time's bin of the logged errors, which the host reads.

    Args:
        objective: draws the times.
        augment: of the stage.
    """

    objective: Objective
    augment: Augmentation

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        assert batch.moments is not None, "stage 3 trains on latent shards"
        draws, shape = SampleDraws(batch.seeds, "diffusion"), (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        times = self.objective.draw_times(draws)
        made = {"times": times, "bin": (times // BIN_WIDTH).long().tolist(), "posterior": draws.normal(*shape),
                "noise": draws.normal(*shape), "drop": draws.uniform()}
        return {**made, **self.augment.draw(batch, "diffusion")}


class LatentDiffusion(L.LightningModule):
    """Denoise latents under a condition.

    Args:
        denoiser: the network, adapted to the conditioner.
        conditioner: clips ⇒ Condition.
        objective: gives the denoiser's target.
        latent_scale: 1 / std of the latents.
        dropout: probability that the whole condition is replaced by its null.
        augment: hides parts of the condition in training.
        optimise: (module) ⇒ Lightning's optimiser and schedule.

    Attributes:
        unread: fields of a batch that its steps don't read, which loaders leave out.
    """

    unread = frozenset({"waveform"})  # latents stand for it

    def __init__(self, denoiser: Denoiser, conditioner: Conditioner, objective: Objective, latent_scale: float,
                 dropout: float, augment: Augmentation, optimise: Callable):
        super().__init__()
        self.unet = denoiser  # its name in the checkpoints of runs that are under way; read it as ``denoiser``
        self.conditioner, self.objective = conditioner, objective
        self.dropout, self.augment, self.optimise = dropout, augment, optimise
        self.latent_scale = latent_scale
        self.draw = DiffusionDraws(objective, augment)
        # by step since the last entry of the logs: (TIME_BINS, 2), each bin's sum of errors, and its rows
        self._bin_sums: dict[int, Tensor] = {}
        self._bin_interval = -1

    @property
    def denoiser(self) -> Denoiser:
        return self.unet

    def errors(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Every draw belongs to its row's seed ⇒ (loss, unweighted error of each row (B,), times (B,))."""
        batch = batch.with_draws(self.draw)
        assert batch.moments is not None and batch.draws is not None, "stage 3 trains on latent shards"
        drawn = batch.draws
        times, noise = drawn["times"], drawn["noise"]
        latent = sample_posterior(batch.moments, drawn["posterior"]) * self.latent_scale
        noisy = self.objective.noised(latent, noise, times)
        target = self.objective.target(latent, noise, times)
        told = self.augment(batch, "diffusion") if self.training else batch
        condition = self.conditioner.with_dropout(told, drawn["drop"] < self.dropout)
        prediction = self.denoiser(noisy, times, condition)
        loss, errors = self.objective.loss(prediction, target, times, batch.column_mask)
        return loss, errors, times

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        batch = batch.with_draws(self.draw)
        loss, errors, times = self.errors(batch)
        self.log("train/loss", logged_mean(self, loss), prog_bar=True, batch_size=len(batch))
        self._count_bins(errors.detach(), times, len(batch))
        return loss

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        batch = batch.with_draws(self.draw)
        loss, errors, times = self.errors(batch)
        self.log("val/loss", loss, batch_size=len(batch))
        self._log_bins(errors, times, batch)

    def _count_bins(self, errors: Tensor, times: Tensor, clips: int) -> None:
        """In training: the mean error of each bin of times over the rows, of all processes, of the last step that had
        some in the bin since the last entry of the logs; NaN where none had. The sums stay on the device until then."""
        inside = [times // BIN_WIDTH == i for i in range(TIME_BINS)]
        sums = torch.stack([torch.stack([(errors * rows).sum(), rows.sum()]) for rows in inside])
        steps = self._bin_sums if logging_interval(self) == self._bin_interval else {}
        steps[self.global_step] = steps.get(self.global_step, 0) + sums  # of each batch whose gradient is accumulated
        self._bin_sums, self._bin_interval = steps, logging_interval(self)
        if logged_now(self):
            total = over_processes(self, torch.stack(list(steps.values())))  # (steps, bins, 2)
            order = torch.arange(1, len(total) + 1, device=total.device)[:, None]
            last = ((total[..., 1] > 0) * order).argmax(dim=0)
            error, rows = total.gather(0, last[None, :, None].expand(-1, -1, 2))[0].unbind(dim=1)
            for i, mean in enumerate(error / rows):
                self.log(f"train/mse_t{i * BIN_WIDTH}", mean, batch_size=clips)

    def _log_bins(self, errors: Tensor, times: Tensor, batch: ClipBatch) -> None:
        """In validation, where all processes have the same clips: the mean error of each bin of times with a row in the
        batch. Rows are counted on the host, and the others' errors set to 0 on the device: a boolean index would wait
        for it."""
        assert batch.draws is not None
        for i in range(TIME_BINS):
            inside = batch.draws["bin"].count(i)
            if inside:
                mean = (errors * (times // BIN_WIDTH == i)).sum() / inside
                self.log(f"val/mse_t{i * BIN_WIDTH}", mean, batch_size=inside)

    def configure_optimizers(self):
        return self.optimise(self)
