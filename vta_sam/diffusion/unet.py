"""The denoiser: diffusers' UNet2DConditionModel, with room beside the latent for what is aligned to its columns."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ..clip import ClipSpec
from .condition import Condition
from .positions import add_time_to_cross_attention, sinusoids


class LatentUNet(nn.Module):
    """Noisy latent, timestep, condition ⇒ v prediction.

    The UNet's input is [latent ; column map ; time coordinates]. Coordinates tell a column where it is in the clip, so
    that a query of cross-attention has a position to compare with the keys'. The weights of everything beside the
    latent start at zero: at step 0 the model computes what the plain UNet would.

    Args: config, of UNet2DConditionModel without in_channels; spec; map_channels, C of the conditioner's column map;
    coordinate_channels, sines and cosines of the column's time; timed_attention, strength of times inside
    cross-attention (see positions.py). Both 0: the plain form, as published.
    """

    def __init__(self, config: dict, spec: ClipSpec, map_channels: int = 0, coordinate_channels: int = 0,
                 timed_attention: float = 0.0):
        super().__init__()
        self.latent_channels: int = config["out_channels"]
        self.spec, self.map_channels, self.coordinate_channels = spec, map_channels, coordinate_channels
        beside = map_channels + coordinate_channels
        self.unet = UNet2DConditionModel(in_channels=self.latent_channels + beside, **config)
        if beside:
            with torch.no_grad():
                self.unet.conv_in.weight[:, self.latent_channels:].zero_()
        self.control: nn.Module | None = None  # a conditioner's adapt() may set it
        if timed_attention:
            _, freq = self.unet.config["sample_size"]
            add_time_to_cross_attention(self.unet, spec.duration_s, freq, timed_attention)

    def forget_token_times(self) -> None:
        """Plain cross-attention: tokens that are words have no time to be found by."""
        for name, module in self.unet.named_modules():
            if name.endswith("attn2") and isinstance(module, Attention):
                module.set_processor(AttnProcessor2_0())

    @property
    def token_dim(self) -> int:
        return self.unet.config["cross_attention_dim"]

    def forward(self, latent: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """latent (B, C, columns, freq), timestep (B,) ⇒ (B, C, columns, freq)."""
        _, _, columns, freq = latent.shape
        parts = [latent]
        if self.map_channels:
            assert condition.column_map is not None, "this UNet was built for a conditioner with a column map"
            parts.append(condition.column_map[..., None].expand(-1, -1, -1, freq))
        if self.coordinate_channels:
            times_s = (torch.arange(columns, device=latent.device) + 0.5) * self.spec.column_s
            wave = sinusoids(times_s, self.coordinate_channels).T[None, :, :, None]
            parts.append(wave.expand(len(latent), -1, -1, freq))
        sample = torch.cat([part.to(latent.dtype) for part in parts], dim=1)
        tokens, mask = condition.tokens, condition.mask
        added: dict[str, Any] = {}
        if self.control is not None:
            assert condition.control is not None, "this UNet has a control branch, and a track to feed it"
            skips, middle = self.control(sample, timestep, tokens, mask, condition.control)
            added = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        if condition.image_tokens is not None:
            tokens = torch.cat([tokens, condition.image_tokens], dim=1)
            mask = nn.functional.pad(mask, (0, condition.image_tokens.shape[1]), value=True)
        return self.unet(sample, timestep, encoder_hidden_states=tokens, encoder_attention_mask=mask, **added).sample
