"""Tango: a condition of the caption's token states alone, without the video (Ghosal et al. 2023, arXiv 2304.13731)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..clip import ClipSpec
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Denoiser


class CaptionTokens(nn.Module):
    """The text encoder's token states, brought to the denoiser's width, and a null that is one learned token.

    Args:
        caption_dim: Dc, of the frozen text encoder's states.
        token_dim: D.
        straight: states are tokens as they are. The null is one token, the text encoder's state of an empty caption,
            which an importer fills in.
    """

    def __init__(self, caption_dim: int, token_dim: int, straight: bool = False):
        super().__init__()
        if straight and caption_dim != token_dim:
            raise ValueError(f"states of width {caption_dim} can't go straight into tokens of width {token_dim}")
        self.straight = straight
        self.norm = nn.Identity() if straight else nn.LayerNorm(caption_dim)
        self.project = nn.Identity() if straight else nn.Linear(caption_dim, token_dim)
        self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)

    def forward(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D), and their mask (B, L)."""
        return self.project(self.norm(batch.caption_tokens)), batch.caption_mask

    def null(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        mask = batch.caption_mask
        if self.straight:  # an empty caption is its end token alone
            mask = torch.arange(mask.shape[1], device=mask.device).expand_as(mask) == 0
        return self.null_token.expand(*mask.shape, -1), mask


class TangoConditioner(Conditioner):
    """Text to audio. Published: FLAN-T5 states of width 1024 straight into cross-attention of that width, and an empty
    caption's as the null (``straight``). Else a linear layer brings any encoder's states to the denoiser's width.

    A word of a caption has no time, so that cross-attention is the plain one (:meth:`adapt`).

    Args:
        caption_dim: Dc.
        spec: the clip's time base.
        token_dim: width of the denoiser's tokens.
        straight: as of :class:`CaptionTokens`.
    """

    def __init__(self, caption_dim: int, spec: ClipSpec, token_dim: int, straight: bool = False):
        super().__init__()
        self.token_dim, self.spec = token_dim, spec
        self.caption = CaptionTokens(caption_dim, token_dim, straight)

    def forward(self, batch: ClipBatch) -> Condition:
        return Condition(*self.caption(batch))

    def null(self, batch: ClipBatch) -> Condition:
        return Condition(*self.caption.null(batch))

    def adapt(self, denoiser: Denoiser) -> None:
        denoiser.use_plain_cross_attention()
