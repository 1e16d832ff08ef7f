"""Noise ⇒ latent: DPM-Solver++ with classifier-free guidance, one seed per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from ..runtime.errors import InputError
from .condition import Condition, LogLikelihood
from .objective import SCHEDULE

SOLVERS = ("dpm", "ddpm")
Denoiser = Callable[[Tensor, Tensor], Tensor]  # noisy latent, timestep (B,) ⇒ v


def guided(model: Callable, condition: Condition, null: Condition, scale: float) -> Denoiser:
    """v = v(null) + scale · (v(condition) − v(null)); at scale 1 the null is not computed at all.

    model: (latent, timestep, Condition) ⇒ v. null may be a negative condition instead.
    """

    def denoise(latent: Tensor, timestep: Tensor) -> Tensor:
        if scale == 1.0:
            return model(latent, timestep, condition)
        both = null.followed_by(condition)
        without, told = model(torch.cat([latent, latent]), torch.cat([timestep, timestep]), both).chunk(2)
        return without + scale * (told - without)

    return denoise


def climbing(denoise: Denoiser, log_likelihood: LogLikelihood, scale: float) -> Denoiser:
    """v' = v − s·(σ/α)·∇_z log p: guidance by a classifier beside that of ``denoise`` (Diff-Foley's double guidance).

    From ε' = ε − s·σ·∇ log p (Dhariwal & Nichol, 2021) with v = ε/α − σz/α. α = √ᾱ and σ = √(1 − ᾱ) at the timestep.
    """
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod

    def denoise_and_climb(latent: Tensor, timestep: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = latent.detach().float().requires_grad_()
            gradient = torch.autograd.grad(log_likelihood(leaf, timestep).sum(), leaf)[0]
        alpha = alphas.to(latent.device)[timestep][:, None, None, None]
        return denoise(latent, timestep) - scale * ((1 - alpha) / alpha).sqrt().to(latent.dtype) * gradient

    return denoise_and_climb


def with_solver(sampler: "Sampler", solver: str | None) -> "Sampler":
    """The same with another solver, or as it is where None. Raises InputError where the solver is not known."""
    return sampler if solver is None else replace(sampler, solver=solver)


@dataclass(frozen=True)
class Sampler:
    """steps: evaluations of the denoiser. guidance: classifier-free guidance scale. solver: "dpm" is DPM-Solver++ 2M
    (Lu et al., 2022); "ddpm" is ancestral sampling, what the published systems use with 100 to 300 steps. steps_offset:
    added to each timestep of "ddpm"; 1 in the scheduler that Tango and VTA-LDM name."""

    steps: int = 25
    guidance: float = 3.0
    solver: str = "dpm"
    steps_offset: int = 0

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise InputError(f"solver={self.solver!r} is not known; it is one of {', '.join(SOLVERS)}")

    @torch.no_grad()
    def sample(self, denoise: Denoiser, noise: Tensor,
               generators: list[torch.Generator] | torch.Generator | None = None) -> Tensor:
        """noise (B, C, columns, freq), N(0, 1) ⇒ latent of the same shape.

        generators: one per row, or one for all of them together, for a solver that draws noise on the way ("ddpm");
        "dpm" is deterministic.
        """
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.steps, device=noise.device)
        latent = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            prediction = denoise(latent, timestep.expand(len(latent)))
            extra = {"generator": generators} if self.solver == "ddpm" else {}
            latent = scheduler.step(prediction.float(), timestep, latent, **extra).prev_sample
        return latent

    def _scheduler(self):
        if self.solver == "dpm":
            return DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
        return DDPMScheduler(**SCHEDULE, clip_sample=False, steps_offset=self.steps_offset)
