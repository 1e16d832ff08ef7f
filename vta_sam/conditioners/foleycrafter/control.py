"""A control branch: a copy of the UNet's encoder half that reads a track in time (ControlNet, Zhang et al. 2023)."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

STEPS_PER_COLUMN = 4  # of the track; a column of 160 ms then tells onsets 40 ms apart


class ControlBranch(nn.Module):
    """What is added to the UNet's skip connections and to its middle.

    diffusers' ControlNetModel takes no mask of the tokens, so padding of captions would speak; this is the same copy of
    the same blocks with the mask. All that leaves it goes through convolutions that start at zero.

    Args: unet, copied; columns of the latent; scale of what is added (published: 0.2 at inference; trained here with
    the scale it is used with).
    """

    def __init__(self, unet: UNet2DConditionModel, columns: int, scale: float):
        super().__init__()
        self.columns, self.scale = columns, scale
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
        """sample (B, C, columns, freq) as the UNet's, tokens (B, L, D), mask (B, L), track (B, 1, steps) in [-1, 1] ⇒
        what is added to each skip connection, and to the middle."""
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        steps = self.columns * STEPS_PER_COLUMN
        places = ((torch.arange(steps, device=track.device) + 0.5) * (track.shape[2] / steps)).long()
        read = self.read_track(track[:, :, places].to(sample.dtype))
        x = self.conv_in(sample) + read[..., None]
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
