"""The vocoder with weights: HiFi-GAN's generator (Kong et al. 2020, arXiv 2010.05646)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from ..clip import MelSpec
from ..runtime.errors import InputError


class HiFiGAN(nn.Module):
    """transformers' SpeechT5HifiGan under the contract of :class:`~vta_sam.vocoder.Vocoder`.

    The defaults are AudioLDM's at 16 kHz (55.3 M parameters), which takes log-mels as they are: its weights are
    imported beside AudioLDM's VAE, and stage ``vocoder`` trains others. From F frames it makes 160 · F + 32 samples.
    Freshly built it holds random weights, and makes noise.

    Args:
        channels: of the first layer, halved at each upsampling.
        upsample_rates: of the upsamplings; their product is the hop.
        upsample_kernels: of the upsamplings.
        resblock_kernels: of the residual blocks after each upsampling.
        resblock_dilations: likewise, one list a kernel.
        mel: front end that the log-mels are made by; None: AudioLDM's.

    Raises:
        InputError: the upsampling isn't the front end's hop.
    """

    needs_weights = True

    def __init__(self, channels: int = 1024, upsample_rates: Sequence[int] = (5, 4, 2, 2, 2),
                 upsample_kernels: Sequence[int] = (16, 16, 8, 4, 4), resblock_kernels: Sequence[int] = (3, 7, 11),
                 resblock_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
                 mel: MelSpec | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.mel = mel if isinstance(mel, MelSpec) else MelSpec(**(mel or {}))
        self.sample_rate_hz = self.mel.sample_rate_hz
        if prod(upsample_rates) != self.mel.hop_samples:
            raise InputError(f"vocoder.upsample_rates={list(upsample_rates)} make {prod(upsample_rates)} samples of a "
                             f"mel frame, the hop is {self.mel.hop_samples}; their product has to be the hop")
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

        self.network = SpeechT5HifiGan(SpeechT5HifiGanConfig(
            model_in_dim=self.mel.n_mels, sampling_rate=self.sample_rate_hz, upsample_initial_channel=channels,
            upsample_rates=list(upsample_rates), upsample_kernel_sizes=list(upsample_kernels),
            resblock_kernel_sizes=list(resblock_kernels),
            resblock_dilation_sizes=[list(dilations) for dilations in resblock_dilations], normalize_before=False,
        ))
        # the mean and scale of an unused normalisation
        del self.network.mean, self.network.scale

    def initialise(self) -> None:
        """Draw new weights that keep a sound's level from layer to layer (He et al. 2015), for training from scratch.

        transformers' own draw fades to silence on the way: all of it lies under the floor of log-mels, where they
        have no gradient.
        """
        for layer in self.network.modules():
            if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
                # a transposed convolution adds kernel / stride of its inputs for each output
                fan_in = layer.in_channels * layer.kernel_size[0] // (
                    layer.stride[0] if isinstance(layer, nn.ConvTranspose1d) else 1)
                nn.init.normal_(layer.weight, std=(2 / (1 + 0.1 ** 2) / fan_in) ** 0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.network.conv_pre.weight /= 8  # log-mels are of that size
            self.network.conv_post.weight /= 20  # a quiet start, far from where tanh is flat
        for name, layer in self.network.resblocks.named_modules():
            if ".convs2." in name and isinstance(layer, nn.Conv1d):  # a block begins as the identity, nearly
                nn.init.normal_(layer.weight, std=0.01)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        if mel.ndim != 3 or mel.shape[2] != self.mel.n_mels:
            raise InputError(f"a vocoder needs log-mels of shape (B, frames, {self.mel.n_mels}), got "
                             f"{tuple(mel.shape)}")
        return self.network(mel)
