"""Objectives of diffusion: the draw of times, the noising, the target and its weight, and the way back from a
prediction to a latent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from ..runtime.errors import InputError
from ..runtime.randomness import SampleDraws

TIME_END = 1000  # times run from 0 (clean) to this (noise), whatever the objective: denoisers embed them on this scale
# Stable Diffusion 2.1's schedule, which Tango and VTA-LDM train on
SCHEDULE: dict[str, Any] = dict(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=TIME_END,
)


class Objective(ABC):
    """The path between a clean latent and noise: the noisy latent at a time, and the denoiser's target there.

    Shapes: latent, noise, noisy, target and prediction (B, C, columns, freq); times (B,), integers or floats in
    [0, :data:`TIME_END`). A model folder keeps the recipe of the objective that its denoiser was trained with.

    Attributes:
        name: of the target, in one word. A sampler lists the names that it can sample.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw_times(self, draws: SampleDraws) -> Tensor:
        """One time for each row of the batch ⇒ times (B,), on the CPU."""

    @abstractmethod
    def noised(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noisy latent that the denoiser reads. noise is N(0, 1)."""

    @abstractmethod
    def target(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The denoiser's target. It has to be linear in latent and noise, since guidance mixes predictions."""

    @abstractmethod
    def to_x0(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        """The clean latent that a prediction stands for; of a target it is the latent itself."""

    def weight(self, times: Tensor) -> Tensor:
        """The weight of each row's error in the loss ⇒ (B,) float32, equal unless an objective overrides it."""
        return torch.ones_like(times, dtype=torch.float32)

    def loss(self, prediction: Tensor, target: Tensor, times: Tensor, column_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over real columns ⇒ (weighted mean over the batch, unweighted error of each row (B,)).

        Args:
            prediction: (B, C, columns, freq).
            target: (B, C, columns, freq).
            times: (B,).
            column_mask: (B, columns), True = real.
        """
        mask = column_mask[:, None, :, None].float()
        errors = ((prediction.float() - target.float()) ** 2 * mask).mean(dim=(1, 2, 3)) / mask.mean(dim=(1, 2, 3))
        return (errors * self.weight(times)).mean(), errors

    def score_gain(self, times: Tensor) -> Tensor:
        """By how much a prediction falls for each unit that the score, the gradient of log p of the noisy latent, rises
        ⇒ (B,). Guidance by a classifier needs it.

        Raises:
            InputError: the objective has none.
        """
        raise InputError(f"the objective {self.name} can't be guided by a classifier: it has no score_gain(times); "
                         "switch the classifier's guidance off, or train with objective=v_prediction")


class DiscreteDiffusion(Objective):
    """Noise by a schedule of :data:`TIME_END` whole steps: z_t = √ᾱ·z + √(1−ᾱ)·ε.

    Args:
        min_snr_gamma: γ of Min-SNR weighting (Hang et al., 2023); None: every time weighs the same.
    """

    schedule: ClassVar[dict[str, Any]] = SCHEDULE

    def __init__(self, min_snr_gamma: float | None = 5.0):
        self.min_snr_gamma = min_snr_gamma
        self.scheduler = DDPMScheduler(**self.schedule, clip_sample=False)

    def draw_times(self, draws: SampleDraws) -> Tensor:
        return draws.integer(TIME_END)

    def noised(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return self.scheduler.add_noise(latent, noise, times)

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1 − ᾱ) ⇒ (B,)."""
        alpha = self.alpha_bar(times)
        return alpha / (1 - alpha)

    def alpha_bar(self, times: Tensor) -> Tensor:
        """ᾱ, the share of the signal in the noisy latent's variance ⇒ (B,)."""
        if self.scheduler.alphas_cumprod.device != times.device:  # moved once, as the scheduler's own functions do
            self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(times.device)
        return self.scheduler.alphas_cumprod[times]

    def weight(self, times: Tensor) -> Tensor:
        if self.min_snr_gamma is None:
            return super().weight(times)
        snr = self.snr(times)
        return self.min_snr_weight(snr.clamp(max=self.min_snr_gamma), snr)

    @abstractmethod
    def min_snr_weight(self, clipped: Tensor, snr: Tensor) -> Tensor:
        """The weight of an error of the target ⇒ (B,); min(snr, γ) is the weight of the same error of z."""

    def _signal_and_noise(self, like: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1−ᾱ) ⇒ (B, 1, 1, 1) each."""
        alpha = self.alpha_bar(times)[:, None, None, None]
        return alpha.sqrt().to(like.dtype), (1 - alpha).sqrt().to(like.dtype)


class VPrediction(DiscreteDiffusion):
    """v = √ᾱ·ε − √(1−ᾱ)·z (Salimans & Ho, 2022).

    Args:
        min_snr_gamma: see :class:`DiscreteDiffusion`.
        weighting: "v" is min(snr, γ) / (snr + 1), the form that belongs to v prediction; "epsilon" is min(snr, γ) /
            snr, which Tango and VTA-LDM apply although they predict v.
    """

    name = "v_prediction"

    def __init__(self, min_snr_gamma: float | None = 5.0, weighting: Literal["v", "epsilon"] = "v"):
        if weighting not in ("v", "epsilon"):
            raise ValueError(f'weighting is "v" or "epsilon", got {weighting!r}')
        super().__init__(min_snr_gamma)
        self.weighting = weighting

    def target(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return self.scheduler.get_velocity(latent, noise, times)

    def to_x0(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        signal, sigma = self._signal_and_noise(noisy, times)
        return signal * noisy - sigma * prediction

    def min_snr_weight(self, clipped: Tensor, snr: Tensor) -> Tensor:
        return clipped / (snr + 1 if self.weighting == "v" else snr)

    def score_gain(self, times: Tensor) -> Tensor:
        """√((1−ᾱ)/ᾱ), from v = ε/√ᾱ − √((1−ᾱ)/ᾱ)·z_t and ε = −√(1−ᾱ)·score."""
        alpha = self.alpha_bar(times)
        return ((1 - alpha) / alpha).sqrt()


class EpsilonPrediction(DiscreteDiffusion):
    """The noise ε itself (Ho et al., 2020)."""

    name = "epsilon_prediction"

    def target(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise

    def to_x0(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        signal, sigma = self._signal_and_noise(noisy, times)
        return (noisy - sigma * prediction) / signal

    def min_snr_weight(self, clipped: Tensor, snr: Tensor) -> Tensor:
        return clipped / snr

    def score_gain(self, times: Tensor) -> Tensor:
        """√(1−ᾱ), from ε = −√(1−ᾱ)·score."""
        return (1 - self.alpha_bar(times)).sqrt()


class X0Prediction(DiscreteDiffusion):
    """The clean latent z itself."""

    name = "x0_prediction"

    def target(self, latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return latent

    def to_x0(self, prediction: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
        return prediction

    def min_snr_weight(self, clipped: Tensor, snr: Tensor) -> Tensor:
        return clipped

    def score_gain(self, times: Tensor) -> Tensor:
        """−(1−ᾱ)/√ᾱ, from z = (z_t + (1−ᾱ)·score)/√ᾱ."""
        alpha = self.alpha_bar(times)
        return (alpha - 1) / alpha.sqrt()
