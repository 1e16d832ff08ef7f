"""What diffusion learns: v prediction on a scaled-linear schedule, weighted by Min-SNR."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

TRAIN_TIMESTEPS = 1000
# Stable Diffusion 2.1's schedule, which Tango and VTA-LDM train on
SCHEDULE = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=TRAIN_TIMESTEPS,
    prediction_type="v_prediction",
)


class VPrediction:
    """Noise a latent, name the target, weigh the error.

    min_snr_gamma: γ of Min-SNR weighting (Hang et al., 2023), None for no weighting. weighting: "v" is min(snr, γ) /
    (snr + 1), the form that belongs to v prediction; "epsilon" is min(snr, γ) / snr, which Tango and VTA-LDM apply
    although they predict v.
    """

    def __init__(self, min_snr_gamma: float | None = 5.0, weighting: Literal["v", "epsilon"] = "v"):
        if weighting not in ("v", "epsilon"):
            raise ValueError(f'weighting is "v" or "epsilon", got {weighting!r}')
        self.min_snr_gamma, self.weighting = min_snr_gamma, weighting
        self.scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False)

    def noised(self, latent: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """⇒ (noisy latent, v target); v = √ᾱ·ε − √(1−ᾱ)·z."""
        noisy = self.scheduler.add_noise(latent, noise, timestep)
        return noisy, self.scheduler.get_velocity(latent, noise, timestep)

    def snr(self, timestep: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1 − ᾱ) at each timestep (B,)."""
        alpha = self.scheduler.alphas_cumprod.to(timestep.device)[timestep]
        return alpha / (1 - alpha)

    def weight(self, timestep: Tensor) -> Tensor:
        """⇒ (B,)."""
        if self.min_snr_gamma is None:
            return torch.ones_like(timestep, dtype=torch.float32)
        snr = self.snr(timestep)
        return snr.clamp(max=self.min_snr_gamma) / (snr + 1 if self.weighting == "v" else snr)

    def loss(self, prediction: Tensor, target: Tensor, timestep: Tensor, column_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over real columns ⇒ (weighted mean over the batch, unweighted per row (B,)).

        prediction, target (B, C, columns, freq); column_mask (B, columns).
        """
        mask = column_mask[:, None, :, None].float()
        errors = ((prediction.float() - target.float()) ** 2 * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3))
        return (errors * self.weight(timestep)).mean(), errors
