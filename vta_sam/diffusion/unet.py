"""The denoiser: diffusers' UNet2DConditionModel, with room beside the latent for what is aligned to its columns."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..clip import ClipSpec
from ..condition.encoder import sinusoids
from ..conditioners.base import Condition
from .positions import add_time_to_cross_attention


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
        if timed_attention:
            _, freq = self.unet.config["sample_size"]
            add_time_to_cross_attention(self.unet, spec.duration_s, freq, timed_attention)

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
        return self.unet(
            sample, timestep, encoder_hidden_states=condition.tokens, encoder_attention_mask=condition.mask
        ).sample
