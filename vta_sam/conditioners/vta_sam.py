"""VTA-SAM: one token per frame made of [v[t] ; s[t]]; optionally also laid beside the latent's columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..clip import ClipSpec
from ..condition.encoder import TemporalSemanticEncoder, sinusoids
from ..shards.batch import ClipBatch
from .base import Condition, Conditioner, Pretrained
from .vta_ldm import FrameProjection


class VTASAMConditioner(Conditioner):
    """The paper's condition, and with ``map_channels`` > 0 ours.

    Args: encoder, the temporal-semantic encoder (stage 2 pretrains it); spec, the time base; token_dim, the UNet's
    cross-attention width; positions, add the frame's time to its token; map_channels, channels of the tokens
    interpolated to the latent's columns, centre to centre (0: cross-attention only); carried, a projection of frames
    that another model was trained with, whose tokens are added to this one's: what a start from VTA-LDM sets, together
    with weights that make it compute what VTA-LDM does at step 0.
    """

    pretrained = {"condition": Pretrained("encoder", "condition_encoder", rate=0.1, required=False)}

    def __init__(
        self,
        encoder: TemporalSemanticEncoder,
        spec: ClipSpec,
        token_dim: int,
        positions: bool = True,
        map_channels: int = 0,
        carried: FrameProjection | None = None,
    ):
        super().__init__()
        self.encoder, self.spec = encoder, spec
        self.token_dim, self.map_channels, self.positions = token_dim, map_channels, positions
        self.to_token = nn.Linear(encoder.width, token_dim)
        self.carried = carried
        if carried is not None:
            if carried.width != token_dim:
                raise ValueError(f"the carried projection's width is {carried.width}, tokens are {token_dim} wide")
            self.position_gain = nn.Parameter(torch.ones(()))
        self.null_token = nn.Parameter(torch.randn(token_dim) * 0.02)
        if map_channels:
            self.to_map = nn.Linear(encoder.width, map_channels)
            self.null_column = nn.Parameter(torch.zeros(map_channels))
        interpolation = torch.from_numpy(spec.interpolation())
        self.register_buffer("interpolation", interpolation, persistent=False)

    def _positions(self, frames: int, like: Tensor) -> Tensor:
        if not self.positions:
            return like.new_zeros(frames, self.token_dim)
        times_s = (torch.arange(frames, device=like.device) + 0.5) / self.spec.fps
        positions = sinusoids(times_s, self.token_dim).to(like.dtype)
        return positions if self.carried is None else positions * self.position_gain

    def forward(self, batch: ClipBatch) -> Condition:
        hidden = self.encoder(batch)
        tokens = self.to_token(hidden)
        if self.carried is not None:
            tokens = tokens + self.carried(batch)
        tokens = tokens + self._positions(hidden.shape[1], tokens)
        return Condition(tokens, batch.frame_mask, self._map(hidden, batch.frame_mask) if self.map_channels else None)

    def _map(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width) ⇒ (B, C, columns). Columns beyond the last real frame hold that frame's neighbourhood only."""
        channels = self.to_map(hidden) * mask[..., None]
        real = torch.einsum("ct,bt->bc", self.interpolation, mask.to(channels.dtype))
        columns = torch.einsum("ct,btd->bdc", self.interpolation.to(channels.dtype), channels)
        return columns / real.clamp(min=1e-3)[:, None, :].to(channels.dtype)

    def null(self, batch: ClipBatch) -> Condition:
        size, frames = batch.frame_mask.shape
        tokens = self.null_token + self._positions(frames, self.null_token)
        column_map = None
        if self.map_channels:
            column_map = self.null_column[None, :, None].expand(size, -1, self.spec.columns)
        return Condition(tokens.expand(size, -1, -1), batch.frame_mask, column_map)
