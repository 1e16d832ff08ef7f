"""What stage 2 asks of the condition encoder: hear, in the pictures, what the microphone heard."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..mel import LOG_FLOOR, N_MELS

ENERGY_RANGE_NATS = 60 / 20 * math.log(10)  # the envelope is clipped 60 dB below the clip's maximum
ONSET_RISE_NATS = 1.5  # a rise of 13 dB within 30 ms counts as an onset for sure
FLUX_FRAMES = 3


def energy_targets(mel: Tensor, frames: int) -> Tensor:
    """Loudness of each video frame. mel (B, mel frames, 64) ⇒ (B, frames) in [0, 1]: 0 is 60 dB below the maximum."""
    envelope = mel.mean(dim=2)
    top = envelope.amax(dim=1, keepdim=True)
    level = ((envelope - top) / ENERGY_RANGE_NATS + 1).clamp(0, 1)
    level = torch.where(top > LOG_FLOOR + 0.1, level, torch.zeros_like(level))  # silence has no loudest moment
    return F.adaptive_avg_pool1d(level[:, None], frames)[:, 0]


def onset_targets(mel: Tensor, frames: int) -> Tensor:
    """How surely a sound begins within each video frame. mel (B, mel frames, 64) ⇒ (B, frames) in [0, 1]."""
    envelope = mel.mean(dim=2)
    rise = F.pad(envelope, (FLUX_FRAMES, 0), mode="replicate")
    rise = (envelope - rise[:, : envelope.shape[1]]).clamp(min=0) / ONSET_RISE_NATS
    return F.adaptive_max_pool1d(rise.clamp(max=1)[:, None], frames)[:, 0]


class SoundTower(nn.Module):
    """Log-mel (B, mel frames, 64) ⇒ one vector per clip (B, dim), for telling sounds apart in stage 2 only."""

    def __init__(self, dim: int, channels: int = 96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(N_MELS, channels, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2), nn.GELU(),
        )
        self.project = nn.Linear(2 * channels, dim)

    def forward(self, mel: Tensor) -> Tensor:
        h = self.layers((mel.transpose(1, 2) - LOG_FLOOR) / ENERGY_RANGE_NATS)
        return self.project(torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1))


def contrastive_loss(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over a batch: row i of a belongs to row i of b. (B, D), (B, D) ⇒ scalar."""
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T * log_scale.clamp(max=math.log(100)).exp()
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def retrieval_accuracy(a: Tensor, b: Tensor) -> Tensor:
    """Share of rows of a whose nearest row of b is their own. (B, D), (B, D) ⇒ scalar."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)).float().mean()


class HearingHeads(nn.Module):
    """Tokens (B, T, width) ⇒ energy and onset logits per frame (B, T), and a clip vector (B, dim)."""

    def __init__(self, width: int, dim: int = 128):
        super().__init__()
        self.energy = nn.Linear(width, 1)
        self.onset = nn.Linear(width, 1)
        self.clip = nn.Linear(2 * width, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        real = mask[..., None]
        mean = (tokens * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        most = tokens.masked_fill(~real, -1e4).amax(dim=1)
        return self.energy(tokens)[..., 0], self.onset(tokens)[..., 0], self.clip(torch.cat([mean, most], dim=1))
