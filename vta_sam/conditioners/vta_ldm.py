"""VTA-LDM: one token per frame from its embedding alone (Xu et al. 2024, arXiv 2407.07464)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..clip import ClipSpec, FrameClock
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Denoiser, Pretrained
from ..diffusion.unet import sinusoids


class FrameProjection(nn.Module):
    """Frame embeddings, each by itself, to another width. Stage 2 pretrains it for this system.

    Args:
        frame_dim: Dv.
        width: of the tokens.
        normalise: LayerNorm before the projection.
        frozen: the projection stays as it was drawn; in VTA-LDM's published training the optimiser is given the UNet's
            parameters alone.
    """

    def __init__(self, frame_dim: int, width: int, normalise: bool = True, frozen: bool = False):
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(frame_dim) if normalise else nn.Identity()
        self.project = nn.Linear(frame_dim, width)
        if frozen:
            self.requires_grad_(False)

    def forward(self, batch: ClipBatch) -> Tensor:
        """Tokens (B, T, width)."""
        return self.project(self.norm(batch.frame_embedding))


class VTALDMConditioner(Conditioner):
    """v[t] through a linear layer into cross-attention.

    Args:
        encoder: its width is token_dim.
        spec: the clip's time base.
        token_dim: width of the denoiser's tokens.
        fps: frames a second that are read (None: all; published: 2). Read is the frame on screen at
            ``(k + 0.5) / fps``, which keeps its own time.
        positions: add the frame's time to its token. Published: left out in the released run.
        null: "learned", as everywhere here, or "zeros", as published. Zeros go without dropout: the published training
            never showed them to its UNet, and guidance uses them all the same.
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
        self.null_is_zeros = null == "zeros"
        if not self.null_is_zeros:
            self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)
        else:
            self.register_buffer("null_token", torch.zeros(token_dim), persistent=False)
        slower = FrameClock(spec.fps if fps is None else min(fps, spec.fps))
        picked = torch.from_numpy(spec.clock.frame_at(slower.times_s(slower.frames_of(spec.duration_s)))).long()
        self.register_buffer("picked", picked.clamp(max=spec.frames - 1), persistent=False)

    def _positions(self, like: Tensor) -> Tensor:
        if not self.positions:
            return like.new_zeros(len(self.picked), self.token_dim)
        return sinusoids(self.spec.clock.time_s(self.picked), self.token_dim).to(like.dtype)

    def forward(self, batch: ClipBatch) -> Condition:
        tokens = self.encoder(batch)[:, self.picked]
        return Condition(tokens + self._positions(tokens), batch.frame_mask[:, self.picked])

    def null(self, batch: ClipBatch) -> Condition:
        tokens = self.null_token + self._positions(self.null_token)
        mask = batch.frame_mask[:, self.picked]
        if self.null_is_zeros:  # all of them count, as published
            mask = torch.ones_like(mask)
        return Condition(tokens.expand(len(batch), -1, -1), mask)

    def adapt(self, denoiser: Denoiser) -> None:
        if len(self.picked) < self.spec.frames:
            denoiser.set_token_times(self.spec.clock.time_s(self.picked))
