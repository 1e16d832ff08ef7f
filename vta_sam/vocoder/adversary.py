"""What tells a vocoder's waveform from a true one: HiFi-GAN's two families of discriminators (2010.05646, section 2.3).

Well-kept packages that have them (vocos, encodec) need torchaudio, which this project does without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

_SLOPE = 0.1
Judgement = tuple[Tensor, list[Tensor]]  # a score for every place, and the features on the way to it


class PeriodDiscriminator(nn.Module):
    """Looks at every ``period``-th sample: what repeats with a period stands in a column. width: of the first layer,
    which grows fourfold twice (published: 32)."""

    def __init__(self, period: int, width: int):
        super().__init__()
        self.period = period
        widths = (1, width, 4 * width, 16 * width, 32 * width, 32 * width)
        strides = (3, 3, 3, 3, 1)
        self.layers = nn.ModuleList([weight_norm(nn.Conv2d(i, o, (5, 1), (stride, 1), (2, 0)))
                                     for i, o, stride in zip(widths, widths[1:], strides)])
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, waveform: Tensor) -> Judgement:
        """(B, samples) ⇒ judgement."""
        padded = F.pad(waveform[:, None], (0, -waveform.shape[1] % self.period), mode="reflect")
        x, features = padded.unflatten(2, (-1, self.period)), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return self.score(x), features


class ScaleDiscriminator(nn.Module):
    """Looks at neighbouring samples, after averaging ``pool`` times over pairs. width: of the first layer (published:
    128)."""

    def __init__(self, pool: int, width: int):
        super().__init__()
        self.pool = pool
        # width, kernel, stride, groups of each layer
        plan = ((1, 15, 1, 1), (1, 41, 2, 4), (2, 41, 2, 16), (4, 41, 4, 16), (8, 41, 4, 16), (8, 41, 1, 16),
                (8, 5, 1, 1))
        layers, last = [], 1
        for factor, kernel, stride, groups in plan:
            wide = factor * width
            layers.append(weight_norm(nn.Conv1d(last, wide, kernel, stride, kernel // 2,
                                                groups=min(groups, last, wide))))
            last = wide
        self.layers = nn.ModuleList(layers)
        self.score = weight_norm(nn.Conv1d(last, 1, 3, 1, 1))

    def forward(self, waveform: Tensor) -> Judgement:
        """(B, samples) ⇒ judgement."""
        x, features = waveform[:, None], []
        for _ in range(self.pool):
            x = F.avg_pool1d(x, 4, 2, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return self.score(x), features


class Adversary(nn.Module):
    """All discriminators together.

    Args: period_width, scale_width, of their first layers (published: 32 and 128; powers of two); periods, in samples;
    scales, how many times the waveform is looked at, each time at half the rate.
    """

    def __init__(self, period_width: int = 32, scale_width: int = 128, periods: Sequence[int] = (2, 3, 5, 7, 11),
                 scales: int = 3):
        super().__init__()
        self.judges = nn.ModuleList([*(PeriodDiscriminator(period, period_width) for period in periods),
                                     *(ScaleDiscriminator(pool, scale_width) for pool in range(scales))])

    def forward(self, waveform: Tensor) -> list[Judgement]:
        """(B, samples) ⇒ a judgement of each."""
        return [judge(waveform) for judge in self.judges]


def adversary_loss(true: list[Judgement], made: list[Judgement]) -> Tensor:
    """What the adversary minimises: 1 for true places, 0 for made ones (least squares)."""
    return torch.stack([((t - 1) ** 2).mean() + (m ** 2).mean() for (t, _), (m, _) in zip(true, made)]).sum()


def deceiving_loss(made: list[Judgement]) -> Tensor:
    """What the vocoder minimises of the same."""
    return torch.stack([((m - 1) ** 2).mean() for m, _ in made]).sum()


def feature_loss(true: list[Judgement], made: list[Judgement]) -> Tensor:
    """Mean absolute difference of all features on the way, which the vocoder minimises."""
    return torch.stack([(t.detach() - m).abs().mean()
                        for (_, ts), (_, ms) in zip(true, made) for t, m in zip(ts, ms)]).sum()
