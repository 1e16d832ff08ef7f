"""FoleyCrafter: text, the clip's mean picture by decoupled attention, and predicted onsets through a control branch
(Zhang et al. 2024, arXiv 2407.01494)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...clip import ClipSpec
from ...shards.batch import ClipBatch
from ..base import Condition, Conditioner, Pretrained
from ..tango import CaptionTokens
from .attention import decouple
from .control import ControlBranch
from .onsets import OnsetPredictor

ONSET_THRESHOLD = 0.5  # of the probability, as published


class FoleyCrafterConditioner(Conditioner):
    """Three paths: caption tokens by cross-attention; the mean of all frame embeddings as a few image tokens, read by
    attention of their own; onsets as a track of -1 and 1 through a control branch. What is seen has no time but for the
    track, as published.

    Published: the branch is trained after the rest, on a finished text-to-audio UNet; here everything trains together
    from one start, as every system here does.

    Args: onsets, trained by stage ``onsets`` and frozen; caption_dim, frame_dim, token_dim; image_tokens, how many the
    mean frame becomes; image_scale and control_scale of the second and third path.
    """

    pretrained = {"onsets": Pretrained("onsets", "onset_predictor")}

    def __init__(self, onsets: OnsetPredictor, caption_dim: int, frame_dim: int, spec: ClipSpec, token_dim: int,
                 image_tokens: int = 4, image_scale: float = 1.0, control_scale: float = 1.0):
        super().__init__()
        self.onsets, self.spec, self.token_dim = onsets, spec, token_dim
        self.image_tokens, self.image_scale, self.control_scale = image_tokens, image_scale, control_scale
        self.caption = CaptionTokens(caption_dim, token_dim)
        self.project_image = nn.Sequential(nn.Linear(frame_dim, image_tokens * token_dim),
                                           nn.Unflatten(1, (image_tokens, token_dim)), nn.LayerNorm(token_dim))
        self.null_image = nn.Parameter(torch.randn(token_dim) * 0.02)
        self.null_control = nn.Parameter(torch.zeros(1))

    def forward(self, batch: ClipBatch) -> Condition:
        tokens, mask = self.caption(batch)
        real = batch.frame_mask[..., None]
        mean = (batch.frame_embedding * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return Condition(tokens, mask, image_tokens=self.project_image(mean), control=self.track(batch))

    @torch.no_grad()
    def track(self, batch: ClipBatch) -> Tensor:
        """⇒ (B, 1, T): 1 where an onset is predicted, else -1; also beyond the clip's end."""
        found = (self.onsets(batch).sigmoid() > ONSET_THRESHOLD) & batch.frame_mask
        return found[:, None].to(batch.frame_embedding.dtype) * 2 - 1

    def null(self, batch: ClipBatch) -> Condition:
        tokens, mask = self.caption.null(batch)
        size, frames = batch.frame_mask.shape
        return Condition(tokens, mask, image_tokens=self.null_image.expand(size, self.image_tokens, -1),
                         control=self.null_control.expand(size, 1, frames))

    def adapt(self, unet) -> None:
        unet.forget_token_times()
        unet.control = ControlBranch(unet.unet, self.spec.columns, self.control_scale)
        decouple(unet.unet, self.image_tokens, self.image_scale)
