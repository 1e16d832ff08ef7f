"""Tango: the caption's token states alone; it never sees the video (Ghosal et al. 2023, arXiv 2304.13731)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..clip import ClipSpec
from ..shards.batch import ClipBatch
from .base import Condition, Conditioner


class CaptionTokens(nn.Module):
    """The text encoder's token states ⇒ the UNet's width, and a null that is one learned token.

    caption_dim: Dc, of the frozen text encoder's states. token_dim: D.
    """

    def __init__(self, caption_dim: int, token_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(caption_dim)
        self.project = nn.Linear(caption_dim, token_dim)
        self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """⇒ tokens (B, L, D), mask (B, L)."""
        return self.project(self.norm(batch.caption_tokens)), batch.caption_mask

    def null(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        return self.null_token.expand(*batch.caption_mask.shape, -1), batch.caption_mask


class TangoConditioner(Conditioner):
    """Text to audio. Published: FLAN-T5 states of width 1024 straight into cross-attention of that width; here a linear
    layer brings any encoder's states to the shared UNet's width.

    A word of a caption has no time, so cross-attention loses the times that it gives frames (:meth:`adapt`).
    """

    def __init__(self, caption_dim: int, spec: ClipSpec, token_dim: int):
        super().__init__()
        self.token_dim, self.spec = token_dim, spec
        self.caption = CaptionTokens(caption_dim, token_dim)

    def forward(self, batch: ClipBatch) -> Condition:
        return Condition(*self.caption(batch))

    def null(self, batch: ClipBatch) -> Condition:
        return Condition(*self.caption.null(batch))

    def adapt(self, unet) -> None:
        unet.forget_token_times()
