"""Noise ⇒ latent: samplers, and guidance with a condition or by a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from pydantic import Field
from torch import Tensor

from ..runtime.errors import InputError
from .condition import Condition, LogLikelihood
from .objective import DiscreteDiffusion, Objective

SOLVERS = ("dpm", "ddpm")
# Name of an objective ⇒ what diffusers' schedulers call its prediction
PREDICTION_TYPES = {"v_prediction": "v_prediction", "epsilon_prediction": "epsilon", "x0_prediction": "sample"}
Predictor = Callable[[Tensor, Tensor], Tensor]  # noisy latent, times (B,) ⇒ prediction of the objective's target


def guided(model: Callable, condition: Condition, null: Condition, scale: float) -> Predictor:
    """Classifier-free guidance: p(null) + scale · (p(condition) − p(null)) for predictions p ⇒ a Predictor.

    At scale 1 the null is not computed at all.

    Args:
        model: (latent, times, Condition) ⇒ prediction.
        condition: to guide towards.
        null: to guide away from, or a negative condition in its place.
        scale: guidance scale.
    """

    def predict(latent: Tensor, times: Tensor) -> Tensor:
        if scale == 1.0:
            return model(latent, times, condition)
        both = null.concat(condition)
        uncond, cond = model(torch.cat([latent, latent]), torch.cat([times, times]), both).chunk(2)
        return uncond + scale * (cond - uncond)

    return predict


def classifier_guided(predict: Predictor, log_likelihood: LogLikelihood, scale: float, objective: Objective,
                      ) -> Predictor:
    """Guidance by a classifier on top of ``predict`` (Diff-Foley's double guidance) ⇒ a Predictor.

    The score rises by scale · ∇ log p (Dhariwal & Nichol, 2021: ε' = ε − s·σ·∇ log p), and the prediction with it as
    the objective says: for v prediction v' = v − s·(σ/α)·∇ log p, where α = √ᾱ and σ = √(1 − ᾱ).

    Args:
        predict: predictions without the classifier.
        log_likelihood: of a noisy latent, by the classifier.
        scale: s.
        objective: of the predictions.
    """

    def predict_guided(latent: Tensor, times: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = latent.detach().float().requires_grad_()
            gradient = torch.autograd.grad(log_likelihood(leaf, times).sum(), leaf)[0]
        gain = objective.score_gain(times)[:, None, None, None]
        return predict(latent, times) - scale * gain.to(latent.dtype) * gradient

    return predict_guided


@dataclass(frozen=True)
class BaseSampler(ABC):
    """Base of the samplers. A subclass is a frozen dataclass with settings of its own.

    Attributes:
        samples: names of the objectives whose predictions it can sample with.
        steps: evaluations of the denoiser.
        guidance: classifier-free guidance scale.
        overlap: of neighbouring windows of a latent longer than the model's clip, as a share of a window.
    """

    samples: ClassVar[tuple[str, ...]] = ()
    # ranges: a config is checked against them before anything is imported (vta_sam/settings/signatures.py)
    steps: Annotated[int, Field(ge=1)] = 25
    guidance: Annotated[float, Field(ge=0)] = 3.0
    overlap: Annotated[float, Field(ge=0, lt=1)] = field(default=0.25, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"sampler.overlap is a share of a window, 0 or more and less than 1, got {self.overlap}")

    @abstractmethod
    def sample(self, predict: Predictor, noise: Tensor, objective: Objective,
               generators: list[torch.Generator] | torch.Generator | None = None) -> Tensor:
        """Noise ⇒ latent of the same shape (B, C, columns, freq).

        Args:
            predict: noisy latent, times (B,) ⇒ prediction.
            noise: (B, C, columns, freq), N(0, 1).
            objective: of the predictions; one of :attr:`samples`.
            generators: one per row, or one for all of them together, for a sampler that draws noise on the way.
        """

    @property
    def solver_name(self) -> str:
        """The sampler's name in records of generated sounds."""
        return type(self).__name__

    def recorded(self) -> dict[str, Any]:
        """For records of sounds: guidance, steps, solver, and every other setting that is not its default."""
        told_apart = {"guidance": self.guidance, "steps": self.steps, "solver": self.solver_name}
        others = {each.name: getattr(self, each.name) for each in fields(self)
                  if each.name not in told_apart and getattr(self, each.name) != each.default}
        return {**told_apart, **others}

    def require(self, objective: Objective) -> None:
        """Raise InputError where the objective's predictions are none that this sampler can sample with."""
        if objective.name not in self.samples:
            can = f"it samples {', '.join(self.samples)}" if self.samples else "it declares none (samples = …)"
            raise InputError(f"the sampler {type(self).__name__} can't sample the objective {objective.name}: {can}; "
                             "set sampler= and objective= to two that go together")


@dataclass(frozen=True)
class Sampler(BaseSampler):
    """The samplers of discrete diffusion.

    Attributes:
        solver: "dpm" is DPM-Solver++ 2M (Lu et al., 2022), which is deterministic; "ddpm" is ancestral sampling, what
            the published systems use with 100 to 300 steps.
        steps_offset: added to each time of "ddpm"; 1 in the scheduler that Tango and VTA-LDM name.
    """

    samples = tuple(PREDICTION_TYPES)
    solver: str = "dpm"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise InputError(f"solver={self.solver!r} is not known; it is one of {', '.join(SOLVERS)}")

    @property
    def solver_name(self) -> str:
        return self.solver

    @torch.no_grad()
    def sample(self, predict: Predictor, noise: Tensor, objective: Objective,
               generators: list[torch.Generator] | torch.Generator | None = None) -> Tensor:
        self.require(objective)
        scheduler = self._scheduler(objective)
        scheduler.set_timesteps(self.steps)  # the scheduler's stay on the host, which looks its tables up by them
        latent = noise * scheduler.init_noise_sigma
        for time, sent in zip(scheduler.timesteps, scheduler.timesteps.to(noise.device)):
            prediction = predict(latent, sent.expand(len(latent)))
            extra = {"generator": generators} if self.solver == "ddpm" else {}
            latent = scheduler.step(prediction.float(), time, latent, **extra).prev_sample
        return latent

    def _scheduler(self, objective: Objective) -> Any:
        assert isinstance(objective, DiscreteDiffusion), "an objective of these names is one"
        schedule = {**objective.schedule, "prediction_type": PREDICTION_TYPES[objective.name]}
        if self.solver == "dpm":
            return DPMSolverMultistepScheduler(**schedule, algorithm_type="dpmsolver++", solver_order=2)
        return DDPMScheduler(**schedule, clip_sample=False, steps_offset=self.steps_offset)


def with_settings(sampler: BaseSampler, **settings: Any) -> BaseSampler:
    """The same sampler with other settings, by name. None leaves a setting as it is.

    Raises:
        InputError: a value is not known, or the sampler has no such setting.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given.keys() - {setting.name for setting in fields(sampler)}:
        raise InputError(f"{name}={given[name]} can't be chosen: the sampler {type(sampler).__name__} has none; leave "
                         f"{name}= out")
    return replace(sampler, **given)
