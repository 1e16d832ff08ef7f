"""Optimiser and schedule, the same for every stage."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class AdamWithWarmup:
    """AdamW; the rate rises linearly over warmup_steps, then falls on a half cosine to ``final`` of its peak.

    slower: {name prefix of parameters: factor on the rate}; a factor of 0 freezes them.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    final: float = 0.1
    slower: dict[str, float] = field(default_factory=dict)

    def __call__(self, module: nn.Module) -> dict:
        """⇒ what LightningModule.configure_optimizers returns."""
        optimiser = torch.optim.AdamW(self._groups(module), betas=(self.betas[0], self.betas[1]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int) -> float:
        """The rate at a step, as a share of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))

    def _groups(self, module: nn.Module) -> list[dict]:
        """Parameters by (rate, decay): biases, norms and single vectors are not decayed."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            factor = next((f for prefix, f in self.slower.items() if name.startswith(prefix)), 1.0)
            if factor == 0:
                parameter.requires_grad_(False)
            if not parameter.requires_grad:
                continue
            decay = self.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((self.learning_rate * factor, decay), []).append(parameter)
        return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
