"""The default denoiser: diffusers' UNet2DConditionModel, with channels beside the latent for features that are
aligned to its columns, and with times inside its cross-attention, whose maps can be recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipSpec, step_times_s
from ..runtime.errors import InputError
from .condition import Condition, Denoiser

POSITION_DIM = 64
_CONV_IN = "unet.conv_in.weight"


class LatentUNet(Denoiser):
    """Noisy latent, times, condition ⇒ prediction.

    The UNet's input is [latent ; column map ; time coordinates]. Coordinates give a column its time in the clip, so
    that a query of cross-attention has a position to compare with the keys'. The weights of everything beside the
    latent start at zero: at step 0 the model's output is the plain UNet's.

    Args:
        config: of UNet2DConditionModel, without in_channels.
        spec: the clip's time base.
        map_channels: C of the conditioner's column map.
        coordinate_channels: sines and cosines of the column's time. 0 here and below: the plain form, as published.
        timed_attention: strength of times inside cross-attention.
    """

    def __init__(self, config: dict, spec: ClipSpec, map_channels: int = 0, coordinate_channels: int = 0,
                 timed_attention: float = 0.0):
        super().__init__()
        self.latent_channels = config["out_channels"]
        self.spec, self.map_channels, self.coordinate_channels = spec, map_channels, coordinate_channels
        beside = map_channels + coordinate_channels
        self.unet = UNet2DConditionModel(in_channels=self.latent_channels + beside, **config)
        self.token_dim = self.unet.config["cross_attention_dim"]
        if beside:
            with torch.no_grad():
                self.unet.conv_in.weight[:, self.latent_channels:].zero_()
        self.control: nn.Module | None = None  # a conditioner's adapt() may set it
        if timed_attention:
            _, freq = self.unet.config["sample_size"]
            self.latent_freq = int(freq)  # a query's time follows from its place among the rows
            add_time_to_cross_attention(self.unet, spec, freq, timed_attention)

    def use_plain_cross_attention(self) -> None:
        for name, module in self.unet.named_modules():
            if name.endswith("attn2") and isinstance(module, Attention):
                module.set_processor(AttnProcessor2_0())

    def set_token_times(self, times_s: Tensor) -> None:
        for module in self.unet.modules():
            if isinstance(module, TimedCrossAttention):
                module.token_times_s = times_s.float()

    def blocks(self) -> list[nn.Module]:
        return [part for part in self.modules() if isinstance(part, (BasicTransformerBlock, ResnetBlock2D))]

    def checkpoint_blocks(self) -> None:
        self.unet.enable_gradient_checkpointing()

    def compile_blocks(self) -> None:
        self.unet.compile_repeated_blocks()

    def weights_of(self, source: Denoiser) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The first layer reads [latent ; column map ; coordinates]: it takes the source's weights where the source has
        as many channels of a kind, and zeros elsewhere."""
        weights = source.state_dict()
        if not isinstance(source, LatentUNet) or source._inputs() == self._inputs() or \
                self.unet.conv_in.out_channels != source.unet.conv_in.out_channels:
            return weights, {}
        fitted, given = torch.zeros_like(self.unet.conv_in.weight), weights[_CONV_IN]
        at = its = 0
        for here, there in zip(self._inputs(), source._inputs()):
            if here == there:
                fitted[:, at:at + here] = given[:, its:its + there]
            at, its = at + here, its + there
        return {**weights, _CONV_IN: fitted}, {_CONV_IN: f"{given.shape[1]} to {fitted.shape[1]} channels"}

    def _inputs(self) -> tuple[int, int, int]:
        return self.latent_channels, self.map_channels, self.coordinate_channels

    def forward(self, latent: Tensor, times: Tensor, condition: Condition) -> Tensor:
        _, _, columns, freq = latent.shape
        parts = [latent]
        if self.map_channels:
            assert condition.column_map is not None, "this UNet was built for a conditioner with a column map"
            parts.append(condition.column_map[..., None].expand(-1, -1, -1, freq))
        if self.coordinate_channels:
            times_s = step_times_s(torch.arange(columns, device=latent.device), self.spec.column_s)
            wave = sinusoids(times_s, self.coordinate_channels).T[None, :, :, None]
            parts.append(wave.expand(len(latent), -1, -1, freq))
        sample = torch.cat([part.to(latent.dtype) for part in parts], dim=1)
        tokens, mask = condition.tokens, condition.mask
        added: dict[str, Any] = {}
        if self.control is not None:
            assert condition.control is not None, "this UNet has a control branch, and a track to feed it"
            skips, middle = self.control(sample, times, tokens, mask, condition.control)
            added = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        if condition.image_tokens is not None:
            tokens = torch.cat([tokens, condition.image_tokens], dim=1)
            mask = nn.functional.pad(mask, (0, condition.image_tokens.shape[1]), value=True)
        return self.unet(sample, times, encoder_hidden_states=tokens, encoder_attention_mask=mask, **added).sample


class TimedCrossAttention(nn.Module):
    """Cross-attention in which the time of the query's column and of the key's frame are added to query and key.

    Both go through the same projection, so that equal times agree from the start and the layer doesn't have to find
    the diagonal by itself. The attention is then learned. It remains cross-attention: nothing is interpolated, and any
    column may attend to any frame.

    Args:
        inner_dim: width of queries and keys.
        spec: time base of the clip. Keys are its frames, unless :attr:`token_times_s` is set.
        rows: frequency rows of the latent at this level; queries are ordered time-major.
        strength: standard deviation of the projection's output at the start.
        level: how often the latent was halved in time on the way to this layer.

    Attributes:
        token_times_s: (L,), time of each token in seconds.
    """

    def __init__(self, inner_dim: int, spec: ClipSpec, rows: int, strength: float, level: int = 0):
        super().__init__()
        self.rows, self.column_s = rows, spec.column_s * 2**level
        # no buffer: an average of weights, or a change of dtype, must leave times as they are
        self.token_times_s = step_times_s(torch.arange(spec.frames), spec.clock.period_s)
        self.position = nn.Linear(POSITION_DIM, inner_dim, bias=False)
        nn.init.normal_(self.position.weight, std=strength / (POSITION_DIM / 2) ** 0.5)

    def positions(self, times_s: Tensor, like: Tensor) -> Tensor:
        """The vector of each moment, times_s (L,) in seconds ⇒ (L, inner_dim)."""
        return self.position(sinusoids(times_s, POSITION_DIM).to(like.dtype))

    def project(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, heads, N, dim) and keys (B, heads, L, dim), positions added.

        Raises:
            InputError: there are not as many tokens as times of tokens.
        """
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        self.token_times_s = self.token_times_s.to(query.device)
        if key.shape[1] != len(self.token_times_s):
            raise InputError(
                f"the conditioner makes {key.shape[1]} tokens, but cross-attention has times for "
                f"{len(self.token_times_s)} of them, one for each frame; let the conditioner's adapt() call "
                "denoiser.set_token_times(times_s), or denoiser.use_plain_cross_attention() where tokens have no time")
        columns = torch.arange(query.shape[1] // self.rows, device=query.device)
        query = query + self.positions(step_times_s(columns, self.column_s), query).repeat_interleave(self.rows, dim=0)
        key = key + self.positions(self.token_times_s, key)
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
    return rearrange(x, "b n (h d) -> b h n d", h=attn.heads)


def add_time_to_cross_attention(unet: UNet2DConditionModel, spec: ClipSpec, rows: int, strength: float) -> None:
    """Give every cross-attention layer of a UNet its TimedCrossAttention.

    Args:
        unet: changed in place.
        spec: time base of the clip.
        rows: frequency rows of the latent at the top level; they halve, rounding up, at every level below.
        strength: as of :class:`TimedCrossAttention`.
    """
    levels = len(unet.config["block_out_channels"])
    for name, module in unet.named_modules():
        if not name.endswith("attn2") or not isinstance(module, Attention):
            continue
        block, index, *_ = name.split(".")
        depth = levels - 1  # mid_block
        if block == "down_blocks":
            depth = int(index)
        elif block == "up_blocks":
            depth = levels - 1 - int(index)
        at_level = rows
        for _ in range(depth):
            at_level = (at_level + 1) // 2
        module.set_processor(TimedCrossAttention(module.inner_dim, spec, at_level, strength, depth))


def sinusoids(times_s: Tensor, dim: int, shortest_s: float = 0.1, longest_s: float = 20.0) -> Tensor:
    """Sines and cosines of time, with periods spaced geometrically ⇒ (L, dim).

    Time is in seconds rather than indices: frames and columns then have the same position at the same moment.

    Args:
        times_s: (L,), seconds.
        dim: even.
        shortest_s: shortest period, in seconds.
        longest_s: longest period, in seconds.
    """
    half = dim // 2
    periods = torch.logspace(math.log10(shortest_s), math.log10(longest_s), half, device=times_s.device)
    angles = 2 * math.pi * times_s[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


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
