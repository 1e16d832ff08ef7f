"""Train a vocoder: mels into waveforms that an adversary takes for true."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..mel import HOP_SAMPLES, LogMel
from ..randomness import SampleDraws
from ..shards.batch import ClipBatch
from ..stage_module import StageModule
from ..vae.codec import normalise
from .adversary import Adversary, adversary_loss, deceiving_loss, feature_loss
from .hifigan import HiFiGAN


class VocoderTraining(StageModule):
    """HiFi-GAN's training (2010.05646) on short segments of clips.

    Both sides take one step together: the vocoder's losses see an adversary that holds still, the adversary's a
    waveform that does, so their gradients are those of two separate passes.

    Args: vocoder; adversary; weights of the loss terms: mel (mean absolute error of the log-mel, in nats), features,
    adversarial; segment_frames, mel frames of a segment; optimise, (module) ⇒ Lightning's optimiser and schedule.
    """

    def __init__(self, vocoder: HiFiGAN, adversary: Adversary, weights: dict[str, float], optimise: Callable,
                 segment_frames: int = 64):
        super().__init__(optimise)
        self.vocoder, self.adversary, self.weights = vocoder, adversary, weights
        self.segment_frames, self.log_mel = segment_frames, LogMel()

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """⇒ (the loss, its terms); in validation the mel's error alone."""
        true, mel = self.segments(batch)
        made = self.vocoder(mel)[:, : true.shape[1]]
        error = (self.log_mel(made) - self.log_mel(true)).abs().mean()
        if not self.training:
            return self.weights["mel"] * error, {"mel": error}
        self.adversary.requires_grad_(False)
        fooled = self.adversary(made)
        self.adversary.requires_grad_(True)
        judged = self.adversary(true)
        terms = {"mel": error, "features": feature_loss(judged, fooled), "adversarial": deceiving_loss(fooled)}
        loss = sum((self.weights[name] * value for name, value in terms.items()), start=error * 0)
        terms["adversary"] = adversary_loss(judged, self.adversary(made.detach()))
        return loss + terms["adversary"], terms

    def segments(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """One segment of each clip, where its seed says ⇒ waveform (B, samples), log-mel (B, frames, 64).

        Mels are cut out of the whole clip's, so that their edges are those that generation has inside a clip.
        """
        assert batch.waveform is not None, "a vocoder hears the sound itself"
        waveform = normalise(batch.waveform)
        with torch.no_grad():
            mel = self.log_mel(waveform)
        frames = min(self.segment_frames, waveform.shape[1] // HOP_SAMPLES)
        starts = SampleDraws(batch.seeds, "vocoder").integer(waveform.shape[1] // HOP_SAMPLES - frames + 1)
        cuts = [(waveform[i, s * HOP_SAMPLES:(s + frames) * HOP_SAMPLES], mel[i, s:s + frames])
                for i, s in enumerate(starts.tolist())]
        return torch.stack([wave for wave, _ in cuts]), torch.stack([cut for _, cut in cuts])
