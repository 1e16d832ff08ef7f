"""Stage 2: pretrain VTA-SAM's condition encoder to predict a sound's energy and onsets from pictures and grounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipSpec, MelSpec
from ..dataset.shards.batch import Augmentation, ClipBatch
from ..mel import LOG_FLOOR, LogMel, normalise
from ..runtime.distributed import gathered
from ..runtime.stage_module import StageModule
from .vta_sam import TemporalSemanticEncoder

ENERGY_RANGE_NATS = 60 / 20 * math.log(10)  # the envelope is clipped 60 dB below the clip's maximum
ONSET_RISE_NATS = 1.5  # a rise of 13 dB within 30 ms counts as an onset for sure
FLUX_FRAMES = 3


def mean_per_frame(x: Tensor, spec: ClipSpec) -> Tensor:
    """The mean over the time that each frame stands for, (B, C, mel frames) ⇒ (B, C, frames)."""
    if _whole_mel_frames(x, spec):
        return F.adaptive_avg_pool1d(x, spec.frames)
    return x @ _shares(x, spec).T.to(x.dtype)


def max_per_frame(x: Tensor, spec: ClipSpec) -> Tensor:
    """The maximum over the time that each frame stands for, (B, C, mel frames) ⇒ (B, C, frames)."""
    if _whole_mel_frames(x, spec):
        return F.adaptive_max_pool1d(x, spec.frames)
    outside = _shares(x, spec) == 0
    return x[:, :, None].masked_fill(outside, float("-inf")).amax(dim=3)


def _whole_mel_frames(x: Tensor, spec: ClipSpec) -> bool:
    """Is each frame a whole number of mel frames long, all of them inside x? Then pooling needs no shares of them."""
    return spec.mel_frames_per_frame.denominator == 1 and x.shape[2] == spec.frames * spec.mel_frames_per_frame


def _shares(x: Tensor, spec: ClipSpec) -> Tensor:
    return _shares_on(spec, x.shape[2], x.device)


@lru_cache(maxsize=8)
def _shares_on(spec: ClipSpec, mel_frames: int, device: torch.device) -> Tensor:
    """Sent to the device once, since a step would wait for it. Outside of inference_mode, in which a validation may be
    the first to ask: its tensors can't be used in training."""
    with torch.inference_mode(False):
        return torch.from_numpy(spec.clock.shares(spec.frames, mel_frames, 1 / spec.mel_rate_hz)).to(device)


def energy_targets(mel: Tensor, spec: ClipSpec) -> Tensor:
    """Loudness of each video frame, (B, mel frames, n_mels) ⇒ (B, frames) in [0, 1]; 0 is 60 dB below the maximum."""
    envelope = mel.mean(dim=2)
    top = envelope.amax(dim=1, keepdim=True)
    level = ((envelope - top) / ENERGY_RANGE_NATS + 1).clamp(0, 1)
    level = torch.where(top > LOG_FLOOR + 0.1, level, torch.zeros_like(level))  # silence has no loudest moment
    return mean_per_frame(level[:, None], spec)[:, 0]


def onset_targets(mel: Tensor, spec: ClipSpec) -> Tensor:
    """How surely a sound begins within each video frame, (B, mel frames, n_mels) ⇒ (B, frames) in
    [0, 1]."""
    envelope = mel.mean(dim=2)
    rise = F.pad(envelope, (FLUX_FRAMES, 0), mode="replicate")
    rise = (envelope - rise[:, : envelope.shape[1]]).clamp(min=0) / ONSET_RISE_NATS
    return max_per_frame(rise.clamp(max=1)[:, None], spec)[:, 0]


class SoundEncoder(nn.Module):
    """Log-mel (B, mel frames, n_mels) ⇒ one vector per clip (B, dim), for the contrastive loss of stage 2."""

    def __init__(self, dim: int, n_mels: int, channels: int = 96):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(n_mels, channels, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2), nn.GELU(),
        )
        self.project = nn.Linear(2 * channels, dim)

    def forward(self, mel: Tensor) -> Tensor:
        h = self.layers((mel.transpose(1, 2) - LOG_FLOOR) / ENERGY_RANGE_NATS)
        return self.project(torch.cat([h.mean(dim=2), h.amax(dim=2)], dim=1))


def contrastive_loss(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over a batch: row i of a belongs to row i of b. (B, D), (B, D) ⇒ scalar."""
    with torch.autocast(a.device.type, enabled=False):  # bf16 would round a logit of 100 by up to 0.25
        a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        logits = a @ b.T * log_scale.clamp(max=math.log(100)).exp()
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def retrieval_accuracy(a: Tensor, b: Tensor) -> Tensor:
    """Share of rows of a whose nearest row of b is their own. (B, D), (B, D) ⇒ scalar."""
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)).float().mean()


class PretrainingHeads(nn.Module):
    """Tokens (B, T, width) ⇒ energy and onset logits per frame (B, T), and one vector per clip (B, dim)."""

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


class ConditionPretraining(StageModule):
    """Train to predict the sound's energy and onsets per frame, and to match each clip with its own sound in the batch.

    Args:
        encoder: the network to pretrain.
        weights: of the loss terms, under the names they are logged by: energy, onset, contrastive.
        augment: hides parts of the input, as in stage 3.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
        mel: front end of the sound, the clip's.
    """

    def __init__(self, encoder: TemporalSemanticEncoder, weights: dict[str, float], augment: Augmentation,
                 optimise: Callable, mel: MelSpec):
        super().__init__(optimise)
        self.encoder, self.weights = encoder, weights
        self.augment = augment
        self.heads, self.tower = PretrainingHeads(encoder.width), SoundEncoder(dim=128, n_mels=mel.n_mels)
        self.log_mel = LogMel(mel)
        self.draw = partial(augment.draw, purpose="condition")

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.encoder.blocks)

    def _forward(self, batch: ClipBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(Losses, figures), by name."""
        assert batch.waveform is not None, "stage 2 reads waveforms"
        mel = self.log_mel(normalise(batch.waveform))[:, :-1]
        tokens = self.encoder(batch)
        energy, onset, clip = self.heads(tokens, batch.frame_mask)
        sound = self.tower(mel)
        energy_true = energy_targets(mel, batch.spec)
        onset_true = onset_targets(mel, batch.spec)
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
