"""Waveform ⇄ latent: the contract of a codec, and the mel VAE with its front end as one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import ClipSpec, MelSpec
from ..mel import LOG_FLOOR, LogMel, normalise
from ..runtime.errors import InputError


def mel_spec(mel: MelSpec | Mapping[str, Any] | None) -> MelSpec:
    """A front end as a recipe says it; None: the default one, AudioLDM's."""
    return mel if isinstance(mel, MelSpec) else MelSpec(**(mel or {}))


class Codec(nn.Module, ABC):
    """Waveform ⇒ moments of a latent, latent ⇒ log-mel or waveform.

    Latents are (channel, time, frequency). Time has *columns*; a column spans ``stride`` steps of what :meth:`decode`
    returns: mel frames, or samples for a codec of waveforms, whose ``freq`` is usually 1.

    A subclass sets, and describes itself by:

    * ``mel``: the front end that mels are made by; of a codec of waveforms, its sample rate, and as hop the samples of
      a column (``latent_stride_frames`` is 1 then).
    * ``decodes_to``: ``"mel"``, which a vocoder turns into sound, or ``"waveform"``.
    """

    mel: MelSpec
    decodes_to: str = "mel"

    @property
    @abstractmethod
    def stride(self) -> int:
        """Steps of the decoded signal per column."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C of a latent (C, columns, freq)."""

    @property
    @abstractmethod
    def latent_freq(self) -> int:
        """Rows of a latent (C, columns, freq)."""

    @property
    def column_samples(self) -> int:
        """Samples of the waveform per column."""
        return self.stride * (1 if self.decodes_to == "waveform" else self.mel.hop_samples)

    @abstractmethod
    def encode_moments(self, waveform: np.ndarray) -> np.ndarray:
        """One record of any length (samples,) ⇒ (2C, columns, freq): mean, then log-variance; the last column padded
        with silence."""

    def encode_batch(self, waveforms: np.ndarray) -> np.ndarray:
        """Records of one length (B, samples) ⇒ (B, 2C, columns, freq), as :meth:`encode_moments` one by one."""
        return np.stack([self.encode_moments(waveform) for waveform in waveforms])

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, columns, freq) ⇒ log-mel (B, 1, frames, n_mels), or waveform (B, 1, samples)."""

    @torch.no_grad()
    def posterior_mean(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, samples) ⇒ latents (B, C, columns, freq), the mean of each posterior."""
        moments = [torch.from_numpy(self.encode_moments(waveform.cpu().numpy())) for waveform in waveforms]
        return torch.stack(moments).to(waveforms.device).chunk(2, dim=1)[0]

    def require(self, spec: ClipSpec, where: str = "the VAE") -> None:
        """Refuse a time base that isn't the codec's.

        Raises:
            InputError: sample rate, front end or column differ.
        """
        column = spec.latent_stride_frames * spec.hop_samples
        if self.mel.sample_rate_hz != spec.sample_rate_hz:
            raise InputError(f"{where} is for sound at {self.mel.sample_rate_hz} Hz, clip.mel.sample_rate_hz is "
                             f"{spec.sample_rate_hz}; take another VAE, or change the clip")
        if self.decodes_to == "mel" and self.mel != spec.mel:
            raise InputError(f"{where} has the front end {self.mel}, clip.mel says {spec.mel}; make them agree")
        if self.column_samples != column:
            raise InputError(f"{where} has a stride of {self.column_samples / spec.hop_samples:g} mel frames, "
                             f"clip.latent_stride_frames is {spec.latent_stride_frames}; take another VAE, or change "
                             "the clip")

    def require_vocoder(self, vocoder: Any, where: str = "the VAE") -> None:
        """Refuse a vocoder that reads other log-mels than the codec decodes to.

        Args:
            vocoder: with the front end ``mel``.
            where: the codec is, for the message.

        Raises:
            InputError: the front ends differ.
        """
        if self.decodes_to == "mel" and vocoder.mel != self.mel:
            raise InputError(f"the vocoder {type(vocoder).__name__} reads log-mels of {vocoder.mel}, {where} decodes "
                             f"to {self.mel}; take a vocoder of the VAE's front end: vocoder=griffin_lim has any, one "
                             "with weights the one that it was trained with")


class MelCodec(Codec):
    """Waveform ⇒ log-mel (B, 1, mel frames, n_mels) ⇒ moments (B, 2C, columns, freq) ⇒ log-mel.

    Args:
        network: diffusers' AutoencoderKL.
        patch: mel bins and frames folded into channels before the network. 1: none, as AudioLDM; 2 saves the layers at
            full resolution, which cost most on a CPU.
        mel_mean: mean that log-mels are normalised by; 0: not at all.
        mel_std: standard deviation, likewise; 1: not at all.
        mel: the front end; None: AudioLDM's.
    """

    def __init__(self, network: AutoencoderKL, patch: int = 1, mel_mean: float = 0.0, mel_std: float = 1.0,
                 mel: MelSpec | Mapping[str, Any] | None = None):
        super().__init__()
        self.network, self.patch, self.mel_mean, self.mel_std = network, patch, mel_mean, mel_std
        self.mel = mel_spec(mel)
        self.log_mel = LogMel(self.mel)

    @property
    def stride(self) -> int:
        """Mel frames per column, and mel bins per frequency row."""
        return self.patch * 2 ** (len(self.network.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.network.config["latent_channels"]

    @property
    def latent_freq(self) -> int:
        return self.mel.n_mels // self.stride

    def mel_of(self, waveform: Tensor) -> Tensor:
        """(B, samples) ⇒ (B, 1, frames, n_mels) of the normalised waveform, frames = samples // hop cut to columns.

        Sound shorter than a column gives the frames that it has.
        """
        mel = self.log_mel(normalise(waveform))[:, None]
        frames = mel.shape[2] - 1  # a centred front end makes one more than samples // hop
        return mel[:, :, : max(frames // self.stride, 1) * self.stride]

    def moments(self, mel: Tensor) -> Tensor:
        """(B, 1, frames, n_mels) ⇒ (B, 2C, columns, freq): mean, then log-variance."""
        folded = F.pixel_unshuffle((mel - self.mel_mean) / self.mel_std, self.patch)
        return self.network.quant_conv(self.network.encoder(folded))

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, columns, freq) ⇒ log-mel (B, 1, frames, n_mels), not below digital silence."""
        decoded = F.pixel_shuffle(self.network.decode(latent).sample, self.patch)
        return (decoded * self.mel_std + self.mel_mean).clamp(min=LOG_FLOOR)

    @torch.no_grad()
    def posterior_mean(self, waveforms: Tensor) -> Tensor:
        return self.moments(self.mel_of(waveforms)).chunk(2, dim=1)[0]

    def encode_moments(self, waveform: np.ndarray) -> np.ndarray:
        return self.encode_batch(waveform[None])[0]

    @torch.no_grad()
    def encode_batch(self, waveforms: np.ndarray) -> np.ndarray:
        device = next(self.network.parameters()).device
        padded = np.pad(waveforms, ((0, 0), (0, -waveforms.shape[1] % self.column_samples)))
        return self.moments(self.mel_of(torch.from_numpy(padded).to(device))).float().cpu().numpy()


def sample_posterior(moments: Tensor, noise: Tensor) -> Tensor:
    """Reparametrised draw: mean + std · noise. moments (B, 2C, …), noise (B, C, …) ⇒ (B, C, …)."""
    mean, log_variance = moments.chunk(2, dim=1)
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise


def kl_to_standard_normal(moments: Tensor, real: Tensor | None = None) -> Tensor:
    """KL(q ‖ N(0, 1)), mean over latent values, in nats.

    Args:
        moments: (B, 2C, columns, freq): mean, then log-variance.
        real: (B, columns), True where a column counts; None: all count.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    terms = mean ** 2 + log_variance.exp() - 1 - log_variance
    if real is None:
        return 0.5 * terms.mean()
    return 0.5 * (terms * real[:, None, :, None]).mean() / real.float().mean().clamp(min=1e-6)
