"""Stage 1: train the mel VAE."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..dataset.shards.batch import ClipBatch
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import StageModule
from .codec import MelCodec, kl_to_standard_normal, sample_posterior


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

    def losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """⇒ each term, unweighted."""
        assert batch.waveform is not None, "stage 1 reads the waveform itself"
        mel = self.codec.mel_of(batch.waveform)
        moments = self.codec.moments(mel)
        noise = SampleDraws(batch.seeds, "posterior").normal(moments.shape[1] // 2, *moments.shape[2:])
        error = (self.codec.decode(sample_posterior(moments, noise.to(moments))) - mel) / self.codec.mel_std
        real = batch.column_mask.repeat_interleave(self.codec.stride, dim=1)[:, None, : mel.shape[2], None]
        share = real.float().mean().clamp(min=1e-6)
        return {"l1": (error.abs() * real).mean() / share, "mse": (error ** 2 * real).mean() / share,
                "kl": kl_to_standard_normal(moments, batch.column_mask[:, :moments.shape[2]])}

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(batch)
        return sum((self.weights[name] * value for name, value in losses.items()), start=losses["l1"] * 0), losses
