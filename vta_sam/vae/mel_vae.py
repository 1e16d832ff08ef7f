"""Stage 1: train the mel VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..dataset.shards.batch import ClipBatch
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import StageModule
from .codec import MelCodec, kl_to_standard_normal, sample_posterior


@dataclass(frozen=True)
class PosteriorDraws:
    """The random draws of a step: ``posterior``, N(0, 1) in the latent's shape (B, C, columns, freq).

    Args:
        channels: C of the latent.
        freq: its frequency rows.
        column_samples: samples of the waveform per column.
    """

    channels: int
    freq: int
    column_samples: int

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        assert batch.waveform is not None, "stage 1 reads the waveform itself"
        columns = max(batch.waveform.shape[1] // self.column_samples, 1)
        return {"posterior": SampleDraws(batch.seeds, "posterior").normal(self.channels, columns, self.freq)}


class MelVAE(StageModule):
    """Reconstruct log-mels through a narrow latent.

    Args:
        codec: to train.
        weights: of the loss terms, under the names they are logged by: l1 and mse of the normalised log-mel, kl to
            N(0, 1) per latent value.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
    """

    def __init__(self, codec: MelCodec, weights: dict[str, float], optimise: Callable):
        super().__init__(optimise)
        self.codec, self.weights = codec, weights
        self.draw = PosteriorDraws(codec.latent_channels, codec.latent_freq, codec.column_samples)

    def repeated_blocks(self) -> list[nn.Module]:
        return [part for part in self.codec.modules() if isinstance(part, ResnetBlock2D)]

    def losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """⇒ each term, unweighted."""
        batch = batch.with_draws(self.draw)
        assert batch.waveform is not None and batch.draws is not None, "stage 1 reads the waveform itself"
        mel = self.codec.mel_of(batch.waveform)
        moments = self.codec.moments(mel)
        noise = batch.draws["posterior"].to(moments.dtype)
        error = (self.codec.decode(sample_posterior(moments, noise)) - mel) / self.codec.mel_std
        real = batch.column_mask.repeat_interleave(self.codec.stride, dim=1)[:, None, : mel.shape[2], None]
        share = real.float().mean().clamp(min=1e-6)
        return {"l1": (error.abs() * real).mean() / share, "mse": (error ** 2 * real).mean() / share,
                "kl": kl_to_standard_normal(moments, batch.column_mask[:, :moments.shape[2]])}

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(batch)
        return sum((self.weights[name] * value for name, value in losses.items()), start=losses["l1"] * 0), losses
