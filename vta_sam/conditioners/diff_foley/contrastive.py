"""Diff-Foley's first stage: an audio-visual encoder trained to tell which sound belongs to which moment of which clip
(CAVP; Luo et al. 2023, arXiv 2306.17203, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...mel import LOG_FLOOR, N_MELS, LogMel
from ...processes import gathered
from ...randomness import SampleDraws
from ...shards.batch import ClipBatch
from ...stage_module import StageModule
from ...vae.codec import normalise

FURTHEST_SCALE = math.log(100)


class _Tower(nn.Module):
    """Convolutions over time, residual, then a linear layer; row by row of unit length."""

    def __init__(self, in_dim: int, width: int, dim: int, layers: int, kernel: int):
        super().__init__()
        self.enter = nn.Linear(in_dim, width)
        self.layers = nn.ModuleList([
            nn.Sequential(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
                          nn.Conv1d(width, 2 * width, 1), nn.GELU(), nn.Conv1d(2 * width, width, 1))
            for _ in range(layers)
        ])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(layers)])
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, in_dim), mask (B, T) True = real ⇒ (B, T, dim), unit vectors."""
        x = self.enter(x)
        for norm, layer in zip(self.norms, self.layers):
            h = norm(x) * mask[..., None]  # padding must look like the zeros beyond the clip's ends
            x = x + layer(h.transpose(1, 2)).transpose(1, 2)
        return F.normalize(self.leave(x), dim=-1)


class AlignedFrameEncoder(nn.Module):
    """Frame embeddings ⇒ what is heard at each frame, as unit vectors. Published: SlowOnly-R50 on 4 frames a second;
    here convolutions over the frame embeddings that all systems share.

    Args: frame_dim Dv; width, layers, kernel_frames of the convolutions; dim of the vectors (published: 512).
    """

    def __init__(self, frame_dim: int, width: int = 192, dim: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(frame_dim)
        self.tower = _Tower(frame_dim, width, dim, layers, kernel_frames)

    def forward(self, batch: ClipBatch) -> Tensor:
        """⇒ (B, T, dim)."""
        return self.tower(self.norm(batch.frame_embedding), batch.frame_mask)


class HeardFrameEncoder(nn.Module):
    """Log-mel (B, mel frames, 64) ⇒ unit vectors at the moments of the video's frames (B, T, dim). Used in this stage
    alone."""

    def __init__(self, width: int = 128, dim: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.listen = nn.Sequential(nn.Conv1d(N_MELS, width, 5, padding=2), nn.GELU(),
                                    nn.Conv1d(width, width, 5, padding=2), nn.GELU())
        self.tower = _Tower(width, width, dim, layers, kernel_frames)

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """mask (B, T): which of the video's frames are real."""
        h = self.listen(((mel - LOG_FLOOR) / 8 - 0.5).transpose(1, 2))
        return self.tower(F.adaptive_avg_pool1d(h, mask.shape[1]).transpose(1, 2), mask)


def windows_of(x: Tensor, frames: int) -> Tensor:
    """(B, T, D) ⇒ unit vectors (B, T // frames, D): the largest value of each dimension within each window, as the
    published encoder pools."""
    count = x.shape[1] // frames
    pooled = x[:, : count * frames].unflatten(1, (count, frames)).amax(dim=2)
    return F.normalize(pooled, dim=-1)


def between_clips(seen: Tensor, heard: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Window w of a clip's pictures against window w of every clip's sound, and the reverse. (B, W, D) twice ⇒ (loss,
    share of windows whose own sound is the nearest)."""
    logits = torch.einsum("bwd,cwd->wbc", seen, heard)
    labels = torch.arange(len(seen), device=seen.device).expand(logits.shape[0], -1)
    return _both_ways(logits * scale, labels), (logits.argmax(dim=2) == labels).float().mean()


def within_clip(seen: Tensor, heard: Tensor, displaced: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Each window of a clip's pictures against all windows of its own sound and of the same sound shifted in time.

    seen, heard, displaced (B, W, D) ⇒ (loss, share of windows whose own moment is the nearest).
    """
    logits = seen @ torch.cat([heard, displaced], dim=1).transpose(1, 2)
    labels = torch.arange(seen.shape[1], device=seen.device).expand(len(seen), -1)
    back = heard @ seen.transpose(1, 2)
    loss = (F.cross_entropy((logits * scale).flatten(0, 1), labels.flatten())
            + F.cross_entropy((back * scale).flatten(0, 1), labels.flatten())) / 2
    return loss, (logits.argmax(dim=2) == labels).float().mean()


def _both_ways(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the last axis, and over the one before it. logits (W, B, B), labels (W, B)."""
    return (F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            + F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten())) / 2


class ContrastivePretraining(StageModule):
    """Tell sounds apart between clips, within a clip, and from themselves displaced in time.

    Args: encoder, the one that is kept; weights of the loss terms, under the names they are logged by: between, within;
    window_frames, what is pooled into one moment; shortest_shift_frames of the displaced sound; optimise, (module) ⇒
    Lightning's optimiser and schedule.
    """

    def __init__(self, encoder: AlignedFrameEncoder, weights: dict[str, float], optimise: Callable,
                 window_frames: int = 8, shortest_shift_frames: int = 4):
        super().__init__(optimise)
        self.encoder, self.weights = encoder, weights
        self.window_frames, self.shortest_shift_frames = window_frames, shortest_shift_frames
        self.hearing, self.log_mel = HeardFrameEncoder(dim=encoder.dim), LogMel()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def _forward(self, batch: ClipBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """⇒ (losses, figures)."""
        assert batch.waveform is not None, "this stage hears the sound itself"
        mel = self.log_mel(normalise(batch.waveform))[:, :-1]
        seen, heard = self.encoder(batch), self.hearing(mel, batch.frame_mask)
        scale = self.log_scale.clamp(max=FURTHEST_SCALE).exp()
        displaced = windows_of(self._displaced(heard, batch.seeds), self.window_frames)
        seen, heard = windows_of(seen, self.window_frames), windows_of(heard, self.window_frames)
        between, told_clips = between_clips(gathered(seen), gathered(heard), scale)
        within, told_moments = within_clip(seen, heard, displaced, scale)
        return ({"between": between, "within": within}, {"between_accuracy": told_clips,
                                                         "within_accuracy": told_moments})

    def _displaced(self, heard: Tensor, seeds: Tensor) -> Tensor:
        """Each row shifted round by frames of its own, at least the shortest either way. (B, T, D) ⇒ (B, T, D)."""
        frames = heard.shape[1]
        free = max(1, frames - 2 * self.shortest_shift_frames)
        shift = SampleDraws(seeds, "displace").integer(free) + self.shortest_shift_frames
        places = (torch.arange(frames) + shift[:, None]) % frames
        return heard.gather(1, places.to(heard.device)[..., None].expand_as(heard))

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, figures = self._forward(batch)
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum(), {**losses, **figures}
