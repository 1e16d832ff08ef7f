"""Stage 3: train the latent diffusion model."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from ..dataset.shards.batch import Augmentation, ClipBatch
from ..runtime.randomness import SampleDraws
from ..vae.codec import sample_posterior
from .condition import Conditioner
from .objective import TRAIN_TIMESTEPS, VPrediction
from .unet import LatentUNet

TIMESTEP_BINS = 4


class LatentDiffusion(L.LightningModule):
    """Denoise latents under a condition.

    Args: unet; conditioner; objective; latent_scale, 1 / std of the latents; dropout, probability that the whole
    condition is replaced by its null; augment, what training hides from the condition; optimise, (module) ⇒
    Lightning's optimiser and schedule.
    """

    def __init__(self, unet: LatentUNet, conditioner: Conditioner, objective: VPrediction, latent_scale: float,
                 dropout: float, augment: Augmentation, optimise: Callable):
        super().__init__()
        self.unet, self.conditioner, self.objective = unet, conditioner, objective
        self.dropout, self.augment, self.optimise = dropout, augment, optimise
        self.latent_scale = latent_scale

    def errors(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """⇒ (loss, unweighted error per row (B,), timestep (B,)). Every draw belongs to its row's seed."""
        assert batch.moments is not None, "stage 3 trains on latent shards"
        draws, device = SampleDraws(batch.seeds, "diffusion"), batch.moments.device
        shape = (batch.moments.shape[1] // 2, *batch.moments.shape[2:])
        timestep = draws.integer(TRAIN_TIMESTEPS).to(device)
        posterior, noise = draws.normal(*shape).to(device), draws.normal(*shape).to(device)
        drop = draws.uniform().to(device) < self.dropout
        latent = sample_posterior(batch.moments, posterior) * self.latent_scale
        noisy, target = self.objective.noised(latent, noise, timestep)
        condition = self.conditioner.with_dropout(self.augment(batch, "diffusion") if self.training else batch, drop)
        prediction = self.unet(noisy, timestep, condition)
        loss, errors = self.objective.loss(prediction, target, timestep, batch.column_mask)
        return loss, errors, timestep

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        loss, errors, timestep = self.errors(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self._log_bins("train", errors.detach(), timestep)
        return loss

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        loss, errors, timestep = self.errors(batch)
        self.log("val/loss", loss, batch_size=len(batch))
        self._log_bins("val", errors, timestep)

    def _log_bins(self, prefix: str, errors: Tensor, timestep: Tensor) -> None:
        width = TRAIN_TIMESTEPS // TIMESTEP_BINS
        for i in range(TIMESTEP_BINS):
            inside = errors[timestep // width == i]
            if len(inside):
                self.log(f"{prefix}/mse_t{i * width}", inside.mean(), batch_size=len(inside))

    def configure_optimizers(self):
        return self.optimise(self)


def initial_noise(seeds: list[int], shape: tuple[int, int, int]) -> Tensor:
    """One seed per sample ⇒ (B, C, columns, freq), N(0, 1)."""
    return SampleDraws(torch.tensor(seeds), "sample").normal(*shape)
