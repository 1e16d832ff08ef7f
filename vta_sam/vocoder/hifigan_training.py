"""HiFi-GAN's training: two families of discriminators (2010.05646, section 2.3), their losses, and one step of both.

Well-kept packages that have them (vocos, encodec) need torchaudio, which this project does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from ..dataset.shards.batch import ClipBatch
from ..mel import LogMel, normalise
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import StageModule
from .vocoders import HiFiGAN

_SLOPE = 0.1
Scores = tuple[Tensor, list[Tensor]]  # a score for every place, and the intermediate features


class PeriodDiscriminator(nn.Module):
    """Scores every ``period``-th sample: what repeats with the period stands in one column.

    Args:
        period: in samples.
        width: channels of the first layer, which grow fourfold twice (published: 32).
    """

    def __init__(self, period: int, width: int):
        super().__init__()
        self.period = period
        widths = (1, width, 4 * width, 16 * width, 32 * width, 32 * width)
        strides = (3, 3, 3, 3, 1)
        self.layers = nn.ModuleList([weight_norm(nn.Conv2d(i, o, (5, 1), (stride, 1), (2, 0)))
                                     for i, o, stride in zip(widths, widths[1:], strides)])
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, waveform: Tensor) -> Scores:
        """(B, samples) ⇒ scores and features."""
        padded = F.pad(waveform[:, None], (0, -waveform.shape[1] % self.period), mode="reflect")
        x, features = padded.unflatten(2, (-1, self.period)), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return self.score(x), features


class ScaleDiscriminator(nn.Module):
    """Scores neighbouring samples.

    Args:
        pool: how often the waveform is halved in rate before. The one that gets it as it is has spectral norm in place
            of weight norm, as published.
        width: channels of the first layer (published: 128).
    """

    def __init__(self, pool: int, width: int):
        super().__init__()
        self.pool, norm = pool, spectral_norm if pool == 0 else weight_norm
        # width, kernel, stride, groups of each layer
        plan = ((1, 15, 1, 1), (1, 41, 2, 4), (2, 41, 2, 16), (4, 41, 4, 16), (8, 41, 4, 16), (8, 41, 1, 16),
                (8, 5, 1, 1))
        layers, last = [], 1
        for factor, kernel, stride, groups in plan:
            wide = factor * width
            layers.append(norm(nn.Conv1d(last, wide, kernel, stride, kernel // 2,
                                         groups=min(groups, last, wide))))
            last = wide
        self.layers = nn.ModuleList(layers)
        self.score = norm(nn.Conv1d(last, 1, 3, 1, 1))

    def forward(self, waveform: Tensor) -> Scores:
        """(B, samples) ⇒ scores and features."""
        x, features = waveform[:, None], []
        for _ in range(self.pool):
            x = F.avg_pool1d(x, 4, 2, 2)
        with parametrize.cached():
            with torch.autocast(x.device.type, enabled=False):  # torch's spectral norm can't be computed in bf16
                for layer in (*self.layers, self.score):
                    layer.weight
            for layer in self.layers:
                x = F.leaky_relu(layer(x), _SLOPE)
                features.append(x)
            return self.score(x), features


class Discriminators(nn.Module):
    """All discriminators together.

    Args:
        period_width: channels of the period discriminators' first layers (published: 32; a power of two).
        scale_width: of the scale discriminators' first layers (published: 128; a power of two).
        periods: in samples.
        scales: number of rates, each half of the one before.
    """

    def __init__(self, period_width: int = 32, scale_width: int = 128, periods: Sequence[int] = (2, 3, 5, 7, 11),
                 scales: int = 3):
        super().__init__()
        self.judges = nn.ModuleList([*(PeriodDiscriminator(period, period_width) for period in periods),
                                     *(ScaleDiscriminator(pool, scale_width) for pool in range(scales))])

    def forward(self, waveform: Tensor) -> list[Scores]:
        """(B, samples) ⇒ the scores of each."""
        return [discriminator(waveform) for discriminator in self.judges]


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """The mean over places that are real.

    Args:
        x: scores or features (B, channels, …), whose last axes are places in the order of time.
        real: (B, samples), 1 where a clip has sound, else 0; None: everywhere.
    """
    if real is None:
        return x.mean()
    x = x.flatten(2)
    weight = F.interpolate(real[:, None], x.shape[2], mode="nearest-exact")
    return (x * weight).sum() / (weight.sum() * x.shape[1])


def discriminator_loss(true: list[Scores], made: list[Scores], real: Tensor | None = None) -> Tensor:
    """Least-squares loss of the discriminators: 1 for true places, 0 for generated ones. real: see :func:`_mean`."""
    return torch.stack([_mean((t - 1) ** 2, real) + _mean(m ** 2, real) for (t, _), (m, _) in zip(true, made)]).sum()


def generator_loss(made: list[Scores], real: Tensor | None = None) -> Tensor:
    """Least-squares adversarial loss of the vocoder. real: see :func:`_mean`."""
    return torch.stack([_mean((m - 1) ** 2, real) for m, _ in made]).sum()


def feature_matching_loss(true: list[Scores], made: list[Scores], real: Tensor | None = None) -> Tensor:
    """Mean absolute difference of all intermediate features, a loss of the vocoder. real: see :func:`_mean`."""
    return torch.stack([_mean((t.detach() - m).abs(), real)
                        for (_, ts), (_, ms) in zip(true, made) for t, m in zip(ts, ms)]).sum()


@dataclass(frozen=True)
class SegmentDraws:
    """The random draws of a step: ``start`` (B,), the mel frame that a clip's segment begins at, and no draw:
    ``sounding``, a list on the host of the segments' frames with sound of the clip.

    A segment lies within the clip's sound. That of a clip shorter than a segment begins with it, and goes on in the
    padding.

    Args:
        frames: of a segment.
        hop: samples of a mel frame.
    """

    frames: int
    hop: int

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        assert batch.waveform is not None, "stage vocoder reads the waveform itself"
        whole, column = batch.waveform.shape[1] // self.hop, batch.spec.latent_stride_frames
        lengths = [min(whole, columns * column) for columns in batch.column_mask.sum(dim=1).tolist()]
        frames = min(self.frames, whole)
        starts = SampleDraws(batch.seeds, "vocoder").integer([max(0, length - frames) + 1 for length in lengths])
        return {"start": starts, "sounding": [min(frames, length) for length in lengths]}


class VocoderTraining(StageModule):
    """HiFi-GAN's training (2010.05646) on short segments of clips. Losses are of their sound, not of their padding.

    Vocoder and discriminators take one step together. The vocoder's losses use frozen discriminators, and the
    discriminators' losses a detached waveform, so that the gradients equal two separate passes'.

    Args:
        vocoder: to train.
        adversary: its discriminators.
        weights: of the loss terms: mel (mean absolute error of the log-mel, in nats), features, adversarial.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
        segment_frames: mel frames of a segment.
    """

    def __init__(self, vocoder: HiFiGAN, adversary: Discriminators, weights: dict[str, float],
                 optimise: Callable, segment_frames: int = 64):
        super().__init__(optimise)
        self.vocoder, self.adversary, self.weights = vocoder, adversary, weights
        self.segment_frames, self.log_mel = segment_frames, LogMel(vocoder.mel)
        self.draw = SegmentDraws(segment_frames, vocoder.mel.hop_samples)

    @property
    def sides(self) -> tuple[nn.Module, nn.Module]:
        """Vocoder and discriminators, whose gradients are clipped apart, if at all."""
        return self.vocoder, self.adversary

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """⇒ (the loss, its terms); in validation the mel's error alone."""
        batch = batch.with_draws(self.draw)
        true, mel = self.segments(batch)
        made, real = self.vocoder(mel)[:, : true.shape[1]], self._sounding(batch, true)
        error = self._mel_error(made, true, real)
        if not self.training:
            return self.weights["mel"] * error, {"mel": error}
        if real is not None:  # nothing tells the two apart in the padding
            true, made = true * real, made * real
        self.adversary.requires_grad_(False)
        fake_scores = self.adversary(made)
        self.adversary.requires_grad_(True)
        real_scores = self.adversary(true)
        terms = {"mel": error, "features": feature_matching_loss(real_scores, fake_scores, real),
                 "adversarial": generator_loss(fake_scores, real)}
        loss = sum((self.weights[name] * value for name, value in terms.items()), start=error * 0)
        terms["adversary"] = discriminator_loss(real_scores, self.adversary(made.detach()), real)
        return loss + terms["adversary"], terms

    def _sounding(self, batch: ClipBatch, segments: Tensor) -> Tensor | None:
        """(B, samples) of the segments, 1 where a clip has sound, else 0; None: everywhere, as nearly always."""
        assert batch.draws is not None
        hop, frames = self.vocoder.mel.hop_samples, batch.draws["sounding"]
        if min(frames) * hop >= segments.shape[1]:
            return None
        ends = torch.tensor(frames, device=segments.device)[:, None] * hop
        return (torch.arange(segments.shape[1], device=segments.device) < ends).to(segments)

    def _mel_error(self, made: Tensor, true: Tensor, real: Tensor | None) -> Tensor:
        errors = (self.log_mel(made) - self.log_mel(true)).abs()
        if real is None:
            return errors.mean()
        weight = real[:, ::self.vocoder.mel.hop_samples]  # at a frame's centre; the last one's lies beyond the segment
        weight = torch.cat([weight, weight[:, -1:]], dim=1)[..., None]
        return (errors * weight).sum() / (weight.sum() * errors.shape[2])

    def segments(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """One segment of each clip, where its seed says ⇒ waveform (B, samples), log-mel (B, frames, 64).

        Mels are cut out of the whole clip's, so that their edges are as in generation inside a clip.
        """
        batch = batch.with_draws(self.draw)
        assert batch.waveform is not None and batch.draws is not None, "stage vocoder reads the waveform itself"
        waveform = normalise(batch.waveform)
        with torch.no_grad():
            mel = self.log_mel(waveform)
        hop, start = self.vocoder.mel.hop_samples, batch.draws["start"][:, None]
        frames = min(self.segment_frames, waveform.shape[1] // hop)
        samples = start * hop + torch.arange(frames * hop, device=start.device)
        rows = start + torch.arange(frames, device=start.device)
        return waveform.gather(1, samples), mel.gather(1, rows[..., None].expand(-1, -1, mel.shape[2]))
