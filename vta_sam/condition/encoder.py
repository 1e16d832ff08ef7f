"""The temporal-semantic condition encoder: [v[t] ; s[t]] per frame ⇒ one token per frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..shards.batch import ClipBatch
from .semantics import WEIGHTS, frame_semantics, threshold


def sinusoids(times_s: Tensor, dim: int, shortest_s: float = 0.1, longest_s: float = 20.0) -> Tensor:
    """Sines and cosines of time, periods spaced geometrically. times_s (L,) seconds ⇒ (L, dim); dim is even.

    Time in seconds rather than indices: frames and columns then have the same position at the same moment.
    """
    half = dim // 2
    periods = torch.logspace(math.log10(shortest_s), math.log10(longest_s), half, device=times_s.device)
    angles = 2 * math.pi * times_s[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TemporalBlock(nn.Module):
    """A depthwise convolution over time (motion between neighbours), then attention over the clip, then an MLP."""

    def __init__(self, width: int, heads: int, kernel_frames: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.depthwise = nn.Conv1d(width, width, kernel_frames, padding=kernel_frames // 2, groups=width)
        self.pointwise = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, width), mask (B, T) True = real ⇒ (B, T, width)."""
        h = self.norms[0](x) * mask[..., None]  # padding must look like the zeros beyond the clip's ends
        h = self.depthwise(h.transpose(1, 2)).transpose(1, 2)
        x = x + self.pointwise(nn.functional.gelu(h))
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~mask, need_weights=False)[0]
        return x + self.mlp(self.norms[2](x))


class TemporalSemanticEncoder(nn.Module):
    """Frame embeddings and frame semantics ⇒ tokens that know what happens around them.

    The frame embedding is normalised per frame, the object embeddings per object and *before* they are summed: a
    LayerNorm on the sum would divide the probabilities away whenever a clip names a single object.

    Args: frame_dim Dv, object_dim De; width of a token; layers, heads, kernel_frames of the blocks; fps of the
    frames (positions are seconds); use_frames, use_semantics: which of the two halves of [v ; s] to listen to;
    frame_gain, object_gain: what the two norms scale by before training (they learn from there). Where both halves
    tell what a thing is, the louder one is learned first and the other not at all: the objects' is to be that one.
    weights: how much each object counts in a frame, a name of :data:`~vta_sam.condition.semantics.WEIGHTS`; threshold:
    probabilities below it count as 0; mask_dim: width of mask-pooled SAM embeddings, which a linear layer adds to the
    object's own vector frame by frame (0: not used).
    """

    def __init__(
        self,
        frame_dim: int,
        object_dim: int,
        fps: float,
        width: int = 192,
        layers: int = 2,
        heads: int = 4,
        kernel_frames: int = 5,
        use_frames: bool = True,
        use_semantics: bool = True,
        frame_gain: float = 1.0,
        object_gain: float = 1.0,
        weights: str = "as_seen",
        threshold: float = 0.0,
        mask_dim: int = 0,
    ):
        super().__init__()
        if not (use_frames or use_semantics):
            raise ValueError("an encoder needs frames, semantics or both")
        if weights not in WEIGHTS:
            raise ValueError(f"weights is one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.width, self.fps, self.weights, self.threshold = width, fps, weights, threshold
        self.use_frames, self.use_semantics = use_frames, use_semantics
        self.frame_norm = nn.LayerNorm(frame_dim)
        self.object_norm = nn.LayerNorm(object_dim)
        nn.init.constant_(self.frame_norm.weight, frame_gain)
        nn.init.constant_(self.object_norm.weight, object_gain)
        if mask_dim:
            self.mask_norm, self.project_mask = nn.LayerNorm(mask_dim), nn.Linear(mask_dim, object_dim)
        self.mask_dim = mask_dim
        self.project = nn.Linear(frame_dim + object_dim, width)
        self.blocks = nn.ModuleList([TemporalBlock(width, heads, kernel_frames) for _ in range(layers)])
        self.final_norm = nn.LayerNorm(width)

    def forward(self, batch: ClipBatch) -> Tensor:
        """⇒ (B, T, width); rows of ``batch.frame_mask`` that are False hold no meaning."""
        v = self.frame_norm(batch.frame_embedding) * float(self.use_frames)
        s = self._semantics(batch) * float(self.use_semantics)
        x = self.project(torch.cat([v, s], dim=-1))
        times_s = (torch.arange(x.shape[1], device=x.device) + 0.5) / self.fps
        x = x + sinusoids(times_s, self.width).to(x.dtype)
        for block in self.blocks:
            x = block(x, batch.frame_mask)
        return self.final_norm(x)

    def _semantics(self, batch: ClipBatch) -> Tensor:
        """⇒ s (B, T, De)."""
        e = self.object_norm(batch.object_embedding) * batch.object_mask[..., None]
        if self.mask_dim:
            if batch.mask_embedding is None:
                raise InputError("this model reads mask-pooled SAM embeddings, and the features have none; extract "
                                 "them with grounder=grounded_sam grounder.sam=vit_h")
            looks = self.project_mask(self.mask_norm(batch.mask_embedding)) * batch.object_mask[:, None, :, None]
            e = e[:, None] + looks
        return frame_semantics(threshold(WEIGHTS[self.weights](batch), self.threshold), e)
