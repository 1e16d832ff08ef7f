"""The optimiser of both recipes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def one_cycle(parameters: Iterable[nn.Parameter], rate: float, steps: int) -> dict:
    """AdamW whose rate rises to ``rate`` in a tenth of ``steps`` and falls along a cosine, as Lightning wants it.

    Weights decay by 0.01; biases, scales and other single numbers don't.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
