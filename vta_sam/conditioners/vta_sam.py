"""VTA-SAM: one token per frame, made of its embedding v[t] and its semantics s[t] (arXiv 2409.14709, figure 1a).

In order: frame semantics, the objects' embeddings weighted by how surely each is there; the temporal-semantic encoder
[v[t] ; s[t]] ⇒ tokens; the conditioner, which may also lay tokens beside the latent's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..clip import ClipSpec, FrameClock
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Pretrained
from ..diffusion.unet import sinusoids
from ..runtime.errors import InputError
from .vta_ldm import FrameProjection

Weights = Callable[[ClipBatch], Tensor]  # a batch ⇒ (B, T, K): how much each object counts in each frame


def frame_semantics(probs: Tensor, object_embedding: Tensor) -> Tensor:
    """s[t] = Σ_k p[t, k] · e[k] ⇒ (B, T, De).

    Args:
        probs: p, (B, T, K) in [0, 1]; 0 for padded objects.
        object_embedding: e, (B, K, De) or, where it changes with time, (B, T, K, De).
    """
    if object_embedding.ndim == 4:
        return (probs[..., None] * object_embedding).sum(dim=2)
    return probs @ object_embedding


def as_seen(batch: ClipBatch) -> Tensor:
    """p[t, k], as in the paper."""
    return batch.probs


def uniform(batch: ClipBatch) -> Tensor:
    """Each object's mean over the clip's real frames, which keeps its presence and loses its times."""
    real = batch.frame_mask[..., None].to(batch.probs.dtype)
    mean = (batch.probs * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.expand_as(batch.probs)


def by_area(batch: ClipBatch) -> Tensor:
    """p[t, k] times the object's area, as a share of the largest in the clip: near things count more."""
    areas = batch.areas
    return batch.probs * areas / areas.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def threshold(probs: Tensor, at: float) -> Tensor:
    """Probabilities below ``at`` become 0; the others stay as they are. (B, T, K) ⇒ (B, T, K)."""
    return probs * (probs >= at)


WEIGHTS: dict[str, Weights] = {"as_seen": as_seen, "uniform": uniform, "by_area": by_area}


class TemporalBlock(nn.Module):
    """A depthwise convolution over time (motion between neighbours), then attention over the clip, then an MLP."""

    def __init__(self, width: int, heads: int, kernel_frames: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.depthwise = nn.Conv1d(width, width, kernel_frames, padding=kernel_frames // 2, groups=width)
        self.pointwise = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, T, width), mask (B, T) True = real ⇒ (B, T, width)."""
        h = self.norms[0](x) * mask[..., None]  # padding must look like the zeros beyond the clip's ends
        h = self.depthwise(h.transpose(1, 2)).transpose(1, 2)
        x = x + self.pointwise(nn.functional.gelu(h))
        h = self.norms[1](x)
        x = x + self.attention(h, h, h, key_padding_mask=~mask, need_weights=False)[0]
        return x + self.mlp(self.norms[2](x))


class TemporalSemanticEncoder(nn.Module):
    """Frame embeddings and frame semantics ⇒ one token per frame, with its context in time.

    The frame embedding is normalised per frame, the object embeddings per object and *before* they are summed: a
    LayerNorm on the sum would divide the probabilities away whenever a clip names a single object.

    Where both halves of [v ; s] identify a thing, training learns the half of larger gain first, and the other not at
    all. So the objects' gain is the larger one.

    Args:
        frame_dim: Dv.
        object_dim: De.
        fps: frames a second; positions are seconds.
        width: of a token.
        layers: number of blocks.
        heads: of a block's attention.
        kernel_frames: of a block's convolution.
        use_frames: read v.
        use_semantics: read s.
        frame_gain: initial scale of v's norm; it is trained.
        object_gain: initial scale of the objects' norm; it is trained.
        weights: how much each object counts in a frame, a name of :data:`WEIGHTS`.
        threshold: probabilities below it count as 0.
        mask_dim: width of mask-pooled SAM embeddings, which a linear layer adds to the object's own vector frame by
            frame; 0: not used.
        further: {name of a further feature per frame: length of its last axis}; linear layers add them to its frame.
    """

    def __init__(
        self,
        frame_dim: int,
        object_dim: int,
        fps: float,
        width: int = 192,
        layers: int = 2,
        heads: int = 4,
        kernel_frames: int = 5,
        use_frames: bool = True,
        use_semantics: bool = True,
        frame_gain: float = 1.0,
        object_gain: float = 1.0,
        weights: str = "as_seen",
        threshold: float = 0.0,
        mask_dim: int = 0,
        further: Mapping[str, int] | None = None,
    ):
        super().__init__()
        if not (use_frames or use_semantics):
            raise ValueError("an encoder needs frames, semantics or both")
        if weights not in WEIGHTS:
            raise ValueError(f"weights is one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.width, self.fps, self.weights, self.threshold = width, fps, weights, threshold
        self.use_frames, self.use_semantics = use_frames, use_semantics
        self.frame_norm = nn.LayerNorm(frame_dim)
        self.object_norm = nn.LayerNorm(object_dim)
        nn.init.constant_(self.frame_norm.weight, frame_gain)
        nn.init.constant_(self.object_norm.weight, object_gain)
        if mask_dim:
            self.mask_norm, self.project_mask = nn.LayerNorm(mask_dim), nn.Linear(mask_dim, object_dim)
        self.mask_dim = mask_dim
        self.further = nn.ModuleDict({name: nn.Linear(dim, width) for name, dim in (further or {}).items()})
        self.project = nn.Linear(frame_dim + object_dim, width)
        self.blocks = nn.ModuleList([TemporalBlock(width, heads, kernel_frames) for _ in range(layers)])
        self.final_norm = nn.LayerNorm(width)

    def forward(self, batch: ClipBatch) -> Tensor:
        """Tokens (B, T, width). Those where ``batch.frame_mask`` is False have no meaning."""
        v = self.frame_norm(batch.frame_embedding) * float(self.use_frames)
        s = self._semantics(batch) * float(self.use_semantics)
        x = self.project(torch.cat([v, s], dim=-1))
        for name, project in self.further.items():
            feature = getattr(batch, name)
            if feature is None:
                raise InputError(f"this model reads the feature {name!r}, and these clips have none; extract them with "
                                 f"features.{name}")
            x = x + project(feature)
        times_s = FrameClock(self.fps).time_s(torch.arange(x.shape[1], device=x.device))
        x = x + sinusoids(times_s, self.width).to(x.dtype)
        for block in self.blocks:
            x = block(x, batch.frame_mask)
        return self.final_norm(x)

    def _semantics(self, batch: ClipBatch) -> Tensor:
        """s (B, T, De)."""
        e = self.object_norm(batch.object_embedding) * batch.object_mask[..., None]
        if self.mask_dim:
            if batch.mask_embedding is None:
                raise InputError("this model reads mask-pooled SAM embeddings, and the features have none; extract "
                                 "them with grounder=grounded_sam grounder.sam=vit_h")
            appearance = self.project_mask(self.mask_norm(batch.mask_embedding)) * batch.object_mask[:, None, :, None]
            e = e[:, None] + appearance
        return frame_semantics(threshold(WEIGHTS[self.weights](batch), self.threshold), e)


class VTASAMConditioner(Conditioner):
    """The paper's condition, and with ``map_channels`` > 0 ours.

    Args:
        encoder: stage 2 pretrains it.
        spec: the clip's time base.
        token_dim: width of the denoiser's tokens.
        positions: add the frame's time to its token.
        map_channels: channels of the tokens that are interpolated to the latent's columns, centre to centre; 0:
            cross-attention only.
        carried: a projection of frames that another model was trained with, whose tokens are added. A start from
            VTA-LDM sets it, with weights that make the model compute what VTA-LDM does at step 0.
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
        times_s = self.spec.clock.time_s(torch.arange(frames, device=like.device))
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
