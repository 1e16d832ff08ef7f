"""Where cross-attention looks: which frame each column reads, level by level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..dataset.shards.batch import ClipBatch
from ..diffusion.objective import TRAIN_TIMESTEPS, VPrediction
from ..diffusion.positions import TimedCrossAttention

if TYPE_CHECKING:
    from .pipeline import Pipeline


class _Watching(nn.Module):
    """Stands in for an attention processor, and keeps the attention weights it saw."""

    def __init__(self, inner: nn.Module, name: str, seen: dict[str, Tensor]):
        super().__init__()
        self.inner, self.name, self.seen = inner, name, seen

    def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, **ignored) -> Tensor:
        assert encoder_hidden_states is not None
        if isinstance(self.inner, TimedCrossAttention):
            query, key = self.inner.project(attn, hidden_states, encoder_hidden_states)
        else:
            query, key = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                          for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        self.seen[self.name] = scores.softmax(dim=-1).mean(dim=1)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


@contextmanager
def watched(unet: UNet2DConditionModel) -> Iterator[dict[str, Tensor]]:
    """Inside, every call of the UNet fills {layer name: weights (B, queries, frames), mean over heads}."""
    layers = {n: m for n, m in unet.named_modules() if n.endswith("attn2") and isinstance(m, Attention)}
    before = {name: layer.processor for name, layer in layers.items()}
    seen: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.processor = _Watching(before[name], name, seen)
    try:
        yield seen
    finally:
        for name, layer in layers.items():
            layer.set_processor(before[name])  # a plain assignment would refuse one that isn't a Module


@torch.no_grad()
def attention_maps(pipeline: Pipeline, clip: ClipBatch, seed: int, timestep: int = TRAIN_TIMESTEPS // 2,
                   ) -> dict[str, np.ndarray]:
    """One clip, its true sound noised to ``timestep`` ⇒ {level: (columns, frames)}, mean over heads, frequency rows and
    the level's layers."""
    clip = clip.to(pipeline.device)
    assert clip.waveform is not None
    mean, _ = pipeline.codec.moments(pipeline.codec.mel(clip.waveform)).chunk(2, dim=1)
    at = torch.full((1,), timestep, device=mean.device)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    noisy, _ = VPrediction().noised(mean * pipeline.latent_scale, noise, at)
    with watched(pipeline.unet.unet) as seen:
        pipeline.unet(noisy, at, pipeline.conditioner(clip))
    levels: dict[str, list[np.ndarray]] = {}
    columns = mean.shape[2]
    depth = len(pipeline.unet.unet.config["block_out_channels"])
    for name, weights in seen.items():
        place = name.split(".")
        level = depth - 1 if place[0] == "mid_block" else int(place[1])
        level = depth - 1 - level if place[0] == "up_blocks" else level
        here = columns
        for _ in range(level):
            here = (here + 1) // 2
        levels.setdefault(f"level {level}, {here} columns", []).append(
            weights[0].unflatten(0, (here, -1)).mean(dim=1).float().cpu().numpy())
    return {name: np.mean(maps, axis=0) for name, maps in sorted(levels.items())}
