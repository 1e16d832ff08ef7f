"""FoleyCrafter: text, the clip's mean picture, and predicted onsets (Zhang et al. 2024, arXiv 2407.01494).

In order: decoupled cross-attention, a second stream of tokens with keys and values of its own (IP-Adapter, Ye et al.
2023); the control branch, a copy of the UNet's encoder half that reads a track in time (ControlNet, Zhang et al. 2023);
the onset predictor and stage ``onsets`` that trains it (section 3.3); the conditioner.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipSpec, MelSpec, step_times_s
from ..dataset.shards.batch import ClipBatch
from ..diffusion.condition import Condition, Conditioner, Denoiser, Pretrained
from ..diffusion.unet import LatentUNet
from ..mel import LogMel, normalise
from ..runtime.stage_module import StageModule
from .tango import CaptionTokens
from .vta_sam_pretraining import onset_targets


class DecoupledCrossAttention(nn.Module):
    """Attention over text, plus ``scale`` times attention over image tokens with the same queries.

    The last ``image_tokens`` of the keys are the second stream. Its values start at zero, so that a new layer computes
    what text alone would.

    Args:
        inner_dim: width of queries and keys.
        cross_dim: width of tokens.
        image_tokens: number of tokens of the second stream.
        scale: of the second stream; 0: text alone.
    """

    def __init__(self, inner_dim: int, cross_dim: int, image_tokens: int, scale: float):
        super().__init__()
        self.image_tokens, self.scale = image_tokens, scale
        self.to_k_ip = nn.Linear(cross_dim, inner_dim, bias=False)
        self.to_v_ip = nn.Linear(cross_dim, inner_dim, bias=False)
        nn.init.zeros_(self.to_v_ip.weight)

    def forward(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                attention_mask: Tensor | None = None, **ignored) -> Tensor:
        """As diffusers calls an attention processor: (B, N, dim), (B, L, cross dim), bias (B, 1, L) ⇒ (B, N, dim)."""
        assert encoder_hidden_states is not None, "set on cross-attention layers only"
        length = encoder_hidden_states.shape[1] - self.image_tokens
        text, image = encoder_hidden_states.split([length, self.image_tokens], dim=1)
        query = _heads(attn, attn.to_q(hidden_states))
        bias = None if attention_mask is None else attention_mask[..., :length][:, None].to(query.dtype)
        hidden = F.scaled_dot_product_attention(query, _heads(attn, attn.to_k(text)), _heads(attn, attn.to_v(text)),
                                                attn_mask=bias)
        if self.scale:
            hidden = hidden + self.scale * F.scaled_dot_product_attention(
                query, _heads(attn, self.to_k_ip(image)), _heads(attn, self.to_v_ip(image)))
        hidden = hidden.transpose(1, 2).flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](hidden))


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return rearrange(x, "b n (h d) -> b h n d", h=attn.heads)


def decouple(unet: UNet2DConditionModel, image_tokens: int, scale: float) -> None:
    """Give every cross-attention layer of a UNet its second stream."""
    cross_dim = unet.config["cross_attention_dim"]
    for name, module in unet.named_modules():
        if name.endswith("attn2") and isinstance(module, Attention):
            module.set_processor(DecoupledCrossAttention(module.inner_dim, cross_dim, image_tokens, scale))


STEPS_PER_COLUMN = 4  # of the track; a column of 160 ms then resolves onsets 40 ms apart


class ControlBranch(nn.Module):
    """Additions to the UNet's skip connections and to its middle, computed from a track.

    diffusers' ControlNetModel takes no mask of the tokens, so that padding of captions would have an effect. This is
    the same copy of the same blocks, with the mask. All outputs go through convolutions that start at zero.

    Args:
        unet: its encoder half is copied.
        spec: time base of the latent and of the track.
        scale: factor on the additions, the same in training and inference. Published: 0.2, at inference alone.
    """

    def __init__(self, unet: UNet2DConditionModel, spec: ClipSpec, scale: float):
        super().__init__()
        self.spec, self.scale = spec, scale
        self.conv_in, self.time_embedding = copy.deepcopy(unet.conv_in), copy.deepcopy(unet.time_embedding)
        self.time_proj = unet.time_proj  # has no weights
        self.down_blocks, self.mid_block = copy.deepcopy(unet.down_blocks), copy.deepcopy(unet.mid_block)
        first = unet.config["block_out_channels"][0]
        self.read_track = nn.Sequential(
            nn.Conv1d(1, 32, 5, padding=2), nn.SiLU(),
            nn.Conv1d(32, first, STEPS_PER_COLUMN, stride=STEPS_PER_COLUMN), nn.SiLU(),
            nn.Conv1d(first, first, 3, padding=1),
        )
        self.leave = nn.ModuleList([_zero_convolution(channels) for channels in _skip_channels(unet)])
        self.leave_middle = _zero_convolution(unet.config["block_out_channels"][-1])

    def forward(self, sample: Tensor, timestep: Tensor, tokens: Tensor, mask: Tensor,
                track: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The additions to each skip connection, and to the middle.

        Args:
            sample: (B, C, columns, freq), as the UNet's.
            timestep: (B,).
            tokens: (B, L, D).
            mask: (B, L), True = real.
            track: (B, 1, T) in [-1, 1], a value for each frame.
        """
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        x = self.conv_in(sample) + self.read_track(self.steps_of(track).to(sample.dtype))[..., None]
        bias = (1 - mask.to(sample.dtype))[:, None] * -10_000.0
        skips = [x]
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                x, passed = block(hidden_states=x, temb=emb, encoder_hidden_states=tokens, encoder_attention_mask=bias)
            else:
                x, passed = block(hidden_states=x, temb=emb)
            skips += passed
        if getattr(self.mid_block, "has_cross_attention", False):
            x = self.mid_block(x, emb, encoder_hidden_states=tokens, encoder_attention_mask=bias)
        elif self.mid_block is not None:
            x = self.mid_block(x, emb)
        return (tuple(leave(skip) * self.scale for leave, skip in zip(self.leave, skips, strict=True)),
                self.leave_middle(x) * self.scale)

    def steps_of(self, track: Tensor) -> Tensor:
        """Values of frames (B, 1, T) ⇒ values of steps (B, 1, steps), each of the frame on screen then."""
        steps = torch.arange(self.spec.columns * STEPS_PER_COLUMN, device=track.device)
        frames = self.spec.clock.frame_at(step_times_s(steps, self.spec.column_s / STEPS_PER_COLUMN)).long()
        return track[:, :, frames.clamp(max=track.shape[2] - 1)]


def _zero_convolution(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _skip_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of each skip connection, in order: one for the first convolution, one per layer, one per downsampler."""
    channels = [unet.config["block_out_channels"][0]]
    for block, width in zip(unet.down_blocks, unet.config["block_out_channels"]):
        channels += [width] * (len(block.resnets) + (block.downsamplers is not None))
    return channels


ONSET_LEVEL = 0.5  # targets of at least that count as onsets in the figures


class OnsetPredictor(nn.Module):
    """Frame embeddings ⇒ onset logits per frame. Published: R(2+1)D-18 without temporal stride on small pictures; here
    convolutions over the frame embeddings that all systems share.

    Args:
        frame_dim: Dv.
        width: of the convolutions.
        layers: number of convolutions.
        kernel_frames: of the convolutions.
    """

    def __init__(self, frame_dim: int, width: int = 128, layers: int = 3, kernel_frames: int = 5):
        super().__init__()
        self.norm, self.enter = nn.LayerNorm(frame_dim), nn.Linear(frame_dim, width)
        self.layers = nn.ModuleList([
            nn.Conv1d(width, width, kernel_frames, padding=kernel_frames // 2) for _ in range(layers)
        ])
        self.leave = nn.Linear(width, 1)

    def forward(self, batch: ClipBatch) -> Tensor:
        """Logits (B, T)."""
        mask = batch.frame_mask[:, None]
        x = self.enter(self.norm(batch.frame_embedding)).transpose(1, 2)
        for layer in self.layers:
            x = x + F.gelu(layer(x * mask))
        return self.leave(x.transpose(1, 2))[..., 0]


class OnsetTraining(StageModule):
    """Learn at which frames a sound begins. The sound itself gives the targets; no labels of events are used.

    Args:
        predictor: that is trained.
        onset_weight: how much more a frame with an onset counts than one without.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
        mel: front end of the sound, the clip's.
    """

    def __init__(self, predictor: OnsetPredictor, onset_weight: float, optimise: Callable, mel: MelSpec):
        super().__init__(optimise)
        self.onset_weight: Tensor
        self.predictor, self.log_mel = predictor, LogMel(mel)
        self.register_buffer("onset_weight", torch.tensor(float(onset_weight)), persistent=False)

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.waveform is not None, "this stage reads waveforms"
        logits = self.predictor(batch)
        true = onset_targets(self.log_mel(normalise(batch.waveform))[:, :-1], batch.spec)
        real = batch.frame_mask
        loss = F.binary_cross_entropy_with_logits(logits, true, pos_weight=self.onset_weight, reduction="none")
        loss = (loss * real).sum() / real.sum()  # a boolean index would wait for the device
        predicted, is_onset = (logits > 0) & real, (true >= ONSET_LEVEL) & real
        hits = (predicted & is_onset).sum()
        f1 = 2 * hits / (predicted.sum() + is_onset.sum()).clamp(min=1)
        return loss, {"frame_f1": f1}


ONSET_THRESHOLD = 0.5  # of the probability, as published


class FoleyCrafterConditioner(Conditioner):
    """Three paths: caption tokens by cross-attention; the mean of all frame embeddings as a few image tokens, read by
    attention of their own; onsets as a track of -1 and 1 through a control branch. As published, pictures have no time
    but for the track.

    Published: the branch is trained after the rest, on a finished text-to-audio UNet. Here everything trains together
    from one start, as every system does.

    Args:
        onsets: trained by stage ``onsets``, and frozen.
        caption_dim: Dc.
        frame_dim: Dv.
        spec: the clip's time base.
        token_dim: width of the denoiser's tokens.
        image_tokens: made of the mean frame.
        image_scale: of the second path.
        control_scale: of the third path.
    """

    pretrained = {"onsets": Pretrained("onsets", "onset_predictor")}
    denoiser_kind = LatentUNet

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
        """The track (B, 1, T): 1 where an onset is predicted, else -1, also beyond the clip's end."""
        found = (self.onsets(batch).sigmoid() > ONSET_THRESHOLD) & batch.frame_mask
        return found[:, None].to(batch.frame_embedding.dtype) * 2 - 1

    def null(self, batch: ClipBatch) -> Condition:
        tokens, mask = self.caption.null(batch)
        size, frames = batch.frame_mask.shape
        return Condition(tokens, mask, image_tokens=self.null_image.expand(size, self.image_tokens, -1),
                         control=self.null_control.expand(size, 1, frames))

    def adapt(self, denoiser: Denoiser) -> None:
        assert isinstance(denoiser, LatentUNet)
        denoiser.use_plain_cross_attention()
        denoiser.control = ControlBranch(denoiser.unet, self.spec, self.control_scale)
        decouple(denoiser.unet, self.image_tokens, self.image_scale)
