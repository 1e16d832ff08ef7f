"""Waveform ⇄ log-mel ⇄ latent: the front end, the autoencoder and the numbers between them, as one module."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from ..mel import LOG_FLOOR, LogMel, normalise


class MelCodec(nn.Module):
    """Waveform ⇒ log-mel (B, 1, mel frames, 64) ⇒ moments (B, 2C, columns, freq) ⇒ log-mel.

    Latents are (channel, time, frequency), as AudioLDM's. Args: network, diffusers' AutoencoderKL; patch, mel bins
    and frames folded into channels before the network (1: none, as AudioLDM; 2 saves the layers at full resolution,
    which cost most on a CPU); mel_mean, mel_std, what log-mels are normalised by (0 and 1: not at all).
    """

    def __init__(self, network: AutoencoderKL, patch: int = 1, mel_mean: float = 0.0, mel_std: float = 1.0):
        super().__init__()
        self.network, self.patch, self.mel_mean, self.mel_std = network, patch, mel_mean, mel_std
        self.log_mel = LogMel()

    @property
    def stride(self) -> int:
        """Mel frames per column, and mel bins per frequency row."""
        return self.patch * 2 ** (len(self.network.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.network.config["latent_channels"]

    def mel(self, waveform: Tensor) -> Tensor:
        """(B, samples) ⇒ (B, 1, frames, 64) of the normalised waveform, frames = samples // hop cut to whole columns.

        Shorter sound than a column is padded with silence.
        """
        mel = self.log_mel(normalise(waveform))[:, None]
        frames = mel.shape[2] - 1  # a centred front end makes one more than samples // hop
        return mel[:, :, : max(frames // self.stride, 1) * self.stride]

    def moments(self, mel: Tensor) -> Tensor:
        """(B, 1, frames, 64) ⇒ (B, 2C, columns, freq): mean, then log-variance."""
        folded = F.pixel_unshuffle((mel - self.mel_mean) / self.mel_std, self.patch)
        return self.network.quant_conv(self.network.encoder(folded))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, columns, freq) ⇒ log-mel (B, 1, frames, 64), not below digital silence."""
        decoded = F.pixel_shuffle(self.network.decode(latent).sample, self.patch)
        return (decoded * self.mel_std + self.mel_mean).clamp(min=LOG_FLOOR)

    @torch.no_grad()
    def encode_moments(self, waveform: np.ndarray) -> np.ndarray:
        """One record of any length (samples,) ⇒ (2C, columns, freq), the last column padded with silence."""
        device = next(self.network.parameters()).device
        column = self.stride * 160
        padded = np.pad(waveform, (0, -len(waveform) % column))
        return self.moments(self.mel(torch.from_numpy(padded)[None].to(device)))[0].float().cpu().numpy()


def sample_posterior(moments: Tensor, noise: Tensor) -> Tensor:
    """Reparametrised draw: mean + std · noise. moments (B, 2C, …), noise (B, C, …) ⇒ (B, C, …)."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise


def kl_to_standard_normal(moments: Tensor) -> Tensor:
    """KL(q ‖ N(0, 1)), mean over latent values, in nats."""
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    return 0.5 * (mean ** 2 + log_variance.exp() - 1 - log_variance).mean()
