"""Positions inside cross-attention: a query knows its column's time, a key its frame's."""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

POSITION_DIM = 64


class TimedCrossAttention(nn.Module):
    """Cross-attention in which the time of the query's column and of the key's frame are added to query and key.

    Both go through the same projection, so that equal times agree from the start and the layer doesn't have to find
    the diagonal by itself; what it then attends to is learned. It remains cross-attention: nothing is interpolated, and
    any frame may be read from any column.

    Args: inner_dim, width of queries and keys; duration_s of the clip; rows, frequency rows of the latent at this
    level (queries are ordered time-major); strength, standard deviation of the projection's output at the start.
    """

    def __init__(self, inner_dim: int, duration_s: float, rows: int, strength: float):
        super().__init__()
        self.duration_s, self.rows = duration_s, rows
        self.position = nn.Linear(POSITION_DIM, inner_dim, bias=False)
        nn.init.normal_(self.position.weight, std=strength / (POSITION_DIM / 2) ** 0.5)

    def positions(self, count: int, like: Tensor) -> Tensor:
        """count moments spread evenly over the clip ⇒ (count, inner_dim)."""
        times_s = (torch.arange(count, device=like.device) + 0.5) * (self.duration_s / count)
        return self.position(sinusoids(times_s, POSITION_DIM).to(like.dtype))

    def project(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """⇒ queries (B, heads, N, dim) and keys (B, heads, L, dim), positions added."""
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        columns = query.shape[1] // self.rows
        query = query + self.positions(columns, query).repeat_interleave(self.rows, dim=0)
        key = key + self.positions(key.shape[1], key)
        return _heads(attn, query), _heads(attn, key)

    def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, **ignored) -> Tensor:
        """As diffusers calls an attention processor: (B, N, dim), (B, L, cross dim), bias (B, 1, L) ⇒ (B, N, dim)."""
        assert encoder_hidden_states is not None, "set on cross-attention layers only"
        query, key = self.project(attn, hidden_states, encoder_hidden_states)
        value = _heads(attn, attn.to_v(encoder_hidden_states))
        if attention_mask is not None:
            batch, length = key.shape[0], key.shape[2]
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, length).to(query.dtype)
        hidden = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        hidden = hidden.transpose(1, 2).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](hidden))


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def add_time_to_cross_attention(unet: UNet2DConditionModel, duration_s: float, rows: int, strength: float) -> None:
    """Give every cross-attention layer of a UNet its TimedCrossAttention.

    rows: frequency rows of the latent at the top level; they halve, rounding up, at every level below.
    """
    levels = len(unet.config["block_out_channels"])
    for name, module in unet.named_modules():
        if not name.endswith("attn2") or not isinstance(module, Attention):
            continue
        place = name.split(".")
        depth = levels - 1  # mid_block
        if place[0] == "down_blocks":
            depth = int(place[1])
        elif place[0] == "up_blocks":
            depth = levels - 1 - int(place[1])
        at_level = rows
        for _ in range(depth):
            at_level = (at_level + 1) // 2
        module.set_processor(TimedCrossAttention(module.inner_dim, duration_s, at_level, strength))


def sinusoids(times_s: Tensor, dim: int, shortest_s: float = 0.1, longest_s: float = 20.0) -> Tensor:
    """Sines and cosines of time, periods spaced geometrically. times_s (L,) seconds ⇒ (L, dim); dim is even.

    Time in seconds rather than indices: frames and columns then have the same position at the same moment.
    """
    half = dim // 2
    periods = torch.logspace(math.log10(shortest_s), math.log10(longest_s), half, device=times_s.device)
    angles = 2 * math.pi * times_s[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
