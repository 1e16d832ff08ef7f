"""VTA-LDM: one token per frame from its embedding alone (Xu et al. 2024, arXiv 2407.07464)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..clip import ClipSpec
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Pretrained
from ..diffusion.positions import sinusoids


class FrameProjection(nn.Module):
    """Frame embeddings, each by itself, to another width. What stage 2 pretrains for this system.

    normalise: LayerNorm before the projection. frozen: the projection stays as it was drawn; in VTA-LDM's published
    training the optimiser is given the UNet's parameters alone.
    """

    def __init__(self, frame_dim: int, width: int, normalise: bool = True, frozen: bool = False):
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(frame_dim) if normalise else nn.Identity()
        self.project = nn.Linear(frame_dim, width)
        if frozen:
            self.requires_grad_(False)

    def forward(self, batch: ClipBatch) -> Tensor:
        """⇒ (B, T, width)."""
        return self.project(self.norm(batch.frame_embedding))


class VTALDMConditioner(Conditioner):
    """v[t] through a linear layer into cross-attention.

    Args: encoder, whose width is token_dim; fps, frames a second that are read, the nearest of those there are (None:
    all; published: 2); positions, add the frame's time to its token (published: left out in the released run); null,
    "learned" as everywhere here, or "zeros", as published, which is then to go without dropout: a null that the
    published training never showed to its UNet and guidance uses all the same.
    """

    pretrained = {"condition": Pretrained("encoder", "condition_encoder", rate=0.1, required=False)}

    def __init__(self, encoder: FrameProjection, spec: ClipSpec, token_dim: int, fps: float | None = None,
                 positions: bool = True, null: Literal["learned", "zeros"] = "learned"):
        super().__init__()
        self.picked: Tensor
        if encoder.width != token_dim:
            raise ValueError(f"the projection's width is {encoder.width}, the UNet's tokens are {token_dim} wide")
        if null not in ("learned", "zeros"):
            raise ValueError(f'null is "learned" or "zeros", got {null!r}')
        self.encoder, self.spec, self.token_dim, self.positions = encoder, spec, token_dim, positions
        self.fps = spec.fps if fps is None else min(fps, spec.fps)
        self.null_is_zeros = null == "zeros"
        if not self.null_is_zeros:
            self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)
        else:
            self.register_buffer("null_token", torch.zeros(token_dim), persistent=False)
        count = max(1, int(spec.duration_s * self.fps + 0.5))
        # spread evenly, as cross-attention takes its keys to be
        times_s = (torch.arange(count, dtype=torch.float64) + 0.5) * (spec.duration_s / count)
        picked = (times_s * spec.fps).floor().long().clamp(max=spec.frames - 1)
        self.register_buffer("picked", picked, persistent=False)

    def _positions(self, like: Tensor) -> Tensor:
        if not self.positions:
            return like.new_zeros(len(self.picked), self.token_dim)
        return sinusoids((self.picked + 0.5) / self.spec.fps, self.token_dim).to(like.dtype)

    def forward(self, batch: ClipBatch) -> Condition:
        tokens = self.encoder(batch)[:, self.picked]
        return Condition(tokens + self._positions(tokens), batch.frame_mask[:, self.picked])

    def null(self, batch: ClipBatch) -> Condition:
        tokens = self.null_token + self._positions(self.null_token)
        mask = batch.frame_mask[:, self.picked]
        if self.null_is_zeros:  # all of them count, as published
            mask = torch.ones_like(mask)
        return Condition(tokens.expand(len(batch), -1, -1), mask)
