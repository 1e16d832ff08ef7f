"""Stage 3: train the latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from torch import Tensor

from ..dataset.shards.batch import Augmentation, ClipBatch
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import logged_mean
from ..vae.codec import sample_posterior
from .condition import Conditioner, Denoiser
from .objective import TIME_END, Objective

TIME_BINS = 4  # of the logged errors


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
    """

    def __init__(self, denoiser: Denoiser, conditioner: Conditioner, objective: Objective, latent_scale: float,
                 dropout: float, augment: Augmentation, optimise: Callable):
        super().__init__()
        self.unet = denoiser  # its name in the checkpoints of runs that are under way; read it as ``denoiser``
        self.conditioner, self.objective = conditioner, objective
        self.dropout, self.augment, self.optimise = dropout, augment, optimise
        self.latent_scale = latent_scale

    @property
    def denoiser(self) -> Denoiser:
        return self.unet

    def errors(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Every draw belongs to its row's seed ⇒ (loss, unweighted error of each row (B,), times (B,))."""
        assert batch.moments is not None, "stage 3 trains on latent shards"
        draws, device = SampleDraws(batch.seeds, "diffusion"), batch.moments.device
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        times = self.objective.draw_times(draws).to(device)
        posterior, noise = draws.normal(*shape).to(device), draws.normal(*shape).to(device)
        drop = draws.uniform().to(device) < self.dropout
        latent = sample_posterior(batch.moments, posterior) * self.latent_scale
        noisy = self.objective.noised(latent, noise, times)
        target = self.objective.target(latent, noise, times)
        condition = self.conditioner.with_dropout(self.augment(batch, "diffusion") if self.training else batch, drop)
        prediction = self.denoiser(noisy, times, condition)
        loss, errors = self.objective.loss(prediction, target, times, batch.column_mask)
        return loss, errors, times

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        loss, errors, times = self.errors(batch)
        self.log("train/loss", logged_mean(self, loss), prog_bar=True, batch_size=len(batch))
        self._log_bins("train", errors.detach(), times)
        return loss

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        loss, errors, times = self.errors(batch)
        self.log("val/loss", loss, batch_size=len(batch))
        self._log_bins("val", errors, times)

    def _log_bins(self, prefix: str, errors: Tensor, times: Tensor) -> None:
        width = TIME_END // TIME_BINS
        for i in range(TIME_BINS):
            inside = errors[times // width == i]
            if len(inside):
                self.log(f"{prefix}/mse_t{i * width}", inside.mean(), batch_size=len(inside))

    def configure_optimizers(self):
        return self.optimise(self)
