"""Maps of cross-attention: which frame each column reads, level by level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from ..dataset.shards.batch import ClipBatch
from ..diffusion.objective import TIME_END
from ..diffusion.unet import LatentUNet, TimedCrossAttention

if TYPE_CHECKING:
    from .pipeline import Pipeline


class _RecordingProcessor(nn.Module):
    """An attention processor that computes what ``inner`` does, and records its attention weights."""

    def __init__(self, inner: nn.Module, name: str, recorded: dict[str, Tensor]):
        super().__init__()
        self.inner, self.name, self.recorded = inner, name, recorded

    def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, **ignored) -> Tensor:
        assert encoder_hidden_states is not None
        if isinstance(self.inner, TimedCrossAttention):
            query, key = self.inner.project(attn, hidden_states, encoder_hidden_states)
        else:
            query, key = (rearrange(x, "b n (h d) -> b h n d", h=attn.heads)
                          for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        self.recorded[self.name] = scores.softmax(dim=-1).mean(dim=1)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


@contextmanager
def recorded_attention(unet: UNet2DConditionModel) -> Iterator[dict[str, Tensor]]:
    """A context in which every call of the UNet fills {layer name: weights (B, queries, frames), mean over heads}."""
    layers = {n: m for n, m in unet.named_modules() if n.endswith("attn2") and isinstance(m, Attention)}
    before = {name: layer.processor for name, layer in layers.items()}
    recorded: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.processor = _RecordingProcessor(before[name], name, recorded)
    try:
        yield recorded
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])  # a plain assignment would refuse one that isn't a Module


@torch.no_grad()
def attention_maps(pipeline: Pipeline, clip: ClipBatch, seed: int, time: int = TIME_END // 2,
                   ) -> dict[str, np.ndarray]:
    """Attention of a UNet on one clip, its true sound noised to ``time`` ⇒ {level: (columns, frames)}, mean over heads,
    frequency rows and the level's layers; {} for another kind of denoiser."""
    denoiser = pipeline.denoiser
    if not isinstance(denoiser, LatentUNet):
        return {}
    clip = clip.to(pipeline.device)
    assert clip.waveform is not None
    mean = pipeline.encode(clip.waveform)
    at = torch.full((1,), time, device=mean.device)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    noisy = pipeline.objective.noised(mean * pipeline.latent_scale, noise, at)
    with recorded_attention(denoiser.unet) as recorded, pipeline.computing(denoiser, pipeline.conditioner):
        denoiser(noisy, at, pipeline.conditioner(clip))
    levels: dict[str, list[np.ndarray]] = {}
    columns = mean.shape[2]
    depth = len(denoiser.unet.config["block_out_channels"])
    for name, weights in recorded.items():
        block, index, *_ = name.split(".")
        level = depth - 1 if block == "mid_block" else int(index)
        level = depth - 1 - level if block == "up_blocks" else level
        here = columns
        for _ in range(level):
            here = (here + 1) // 2
        levels.setdefault(f"level {level}, {here} columns", []).append(
            weights[0].unflatten(0, (here, -1)).mean(dim=1).float().cpu().numpy())
    return {name: np.mean(maps, axis=0) for name, maps in sorted(levels.items())}
