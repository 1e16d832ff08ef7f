"""Stage 2: pretrain the temporal-semantic condition encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mel import LogMel
from ..processes import gathered
from ..shards.batch import ClipBatch
from ..stage_module import StageModule
from ..vae.codec import normalise
from .augment import Augmentation
from .encoder import TemporalSemanticEncoder
from .objective import (
    HearingHeads, SoundTower, contrastive_loss, energy_targets, onset_targets, retrieval_accuracy,
)


class ConditionPretraining(StageModule):
    """Predict the sound's energy and onsets per frame, and tell the clip's own sound from the batch's others.

    Args: encoder; weights of the loss terms, under the names they are logged by: energy, onset, contrastive;
    augment, what training hides, as in stage 3; optimise, (module) ⇒ Lightning's optimiser and schedule.
    """

    def __init__(self, encoder: TemporalSemanticEncoder, weights: dict[str, float], augment: Augmentation,
                 optimise: Callable):
        super().__init__(optimise)
        self.encoder, self.weights = encoder, weights
        self.augment = augment
        self.heads, self.tower, self.log_mel = HearingHeads(encoder.width), SoundTower(dim=128), LogMel()

    def _forward(self, batch: ClipBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """⇒ (losses, figures)."""
        assert batch.waveform is not None, "stage 2 hears the sound itself"
        mel = self.log_mel(normalise(batch.waveform))[:, :-1]
        tokens = self.encoder(batch)
        energy, onset, clip = self.heads(tokens, batch.frame_mask)
        sound = self.tower(mel)
        energy_true = energy_targets(mel, tokens.shape[1])
        onset_true = onset_targets(mel, tokens.shape[1])
        real = batch.frame_mask.float() / batch.frame_mask.float().mean()
        losses = {
            "energy": (F.mse_loss(energy, energy_true, reduction="none") * real).mean(),
            "onset": (F.binary_cross_entropy_with_logits(onset, onset_true, reduction="none") * real).mean(),
            "contrastive": contrastive_loss(gathered(clip), gathered(sound), self.heads.log_scale),
        }
        figures = {
            "energy_correlation": _correlation(energy, energy_true, batch.frame_mask),
            "retrieval": retrieval_accuracy(clip, sound),
        }
        return losses, figures

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, figures = self._forward(batch)
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum(), {**losses, **figures}

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        return self.step(self.augment(batch, "condition"), "train")


def _correlation(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Pearson correlation over real frames, mean over clips."""
    real = mask.float()
    count = real.sum(dim=1, keepdim=True).clamp(min=1)
    a, b = ((x.float() - (x.float() * real).sum(dim=1, keepdim=True) / count) * real for x in (a, b))
    return ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-6)).mean()
