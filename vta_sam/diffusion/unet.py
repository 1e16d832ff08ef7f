"""The default denoiser: diffusers' UNet2DConditionModel, with channels beside the latent for features that are
aligned to its columns."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..clip import ClipSpec, step_times_s
from .condition import Condition, Denoiser
from .positions import TimedCrossAttention, add_time_to_cross_attention, sinusoids

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
        timed_attention: strength of times inside cross-attention (see positions.py).
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
