"""FoleyCrafter's onset predictor: at which frames does a sound begin, judged by the pictures alone (Zhang et al. 2024,
arXiv 2407.01494, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...condition.objective import onset_targets
from ...mel import LogMel
from ...shards.batch import ClipBatch
from ...stage_module import StageModule
from ...vae.codec import normalise

ONSET_LEVEL = 0.5  # targets from here on count as onsets in the figures


class OnsetPredictor(nn.Module):
    """Frame embeddings ⇒ onset logits per frame. Published: R(2+1)D-18 without temporal stride on small pictures; here
    convolutions over the frame embeddings that all systems share.

    Args: frame_dim Dv; width, layers, kernel_frames of the convolutions.
    """

    def __init__(self, frame_dim: int, width: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(frame_dim), nn.Linear(frame_dim, width)
        self.layers = nn.ModuleList([
            nn.Conv1d(width, width, kernel_frames, padding=kernel_frames // 2) for _ in range(layers)
        ])
        self.leave = nn.Linear(width, 1)

    def forward(self, batch: ClipBatch) -> Tensor:
        """⇒ (B, T) logits."""
        mask = batch.frame_mask[:, None]
        x = self.enter(self.norm(batch.frame_embedding)).transpose(1, 2)
        for layer in self.layers:
            x = x + F.gelu(layer(x * mask))
        return self.leave(x.transpose(1, 2))[..., 0]


class OnsetTraining(StageModule):
    """Learn where the sound's onsets are, from sound alone: no labels of events are used.

    Args: predictor; onset_weight, how much more a frame with an onset counts than one without; optimise, (module) ⇒
    Lightning's optimiser and schedule.
    """

    def __init__(self, predictor: OnsetPredictor, onset_weight: float, optimise: Callable):
        super().__init__(optimise)
        self.onset_weight: Tensor
        self.predictor, self.log_mel = predictor, LogMel()
        self.register_buffer("onset_weight", torch.tensor(float(onset_weight)), persistent=False)

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.waveform is not None, "this stage hears the sound itself"
        logits = self.predictor(batch)
        true = onset_targets(self.log_mel(normalise(batch.waveform))[:, :-1], logits.shape[1])
        real = batch.frame_mask
        loss = F.binary_cross_entropy_with_logits(logits, true, pos_weight=self.onset_weight, reduction="none")
        loss = loss[real].mean()
        said, is_onset = (logits > 0) & real, (true >= ONSET_LEVEL) & real
        hits = (said & is_onset).sum()
        f1 = 2 * hits / (said.sum() + is_onset.sum()).clamp(min=1)
        return loss, {"frame_f1": f1}
