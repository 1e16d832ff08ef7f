"""The two vocoders: Griffin-Lim's algorithm, which needs no weights, and HiFi-GAN's generator (Kong et al. 2020, arXiv
2010.05646)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..clip import MelSpec
from ..mel import LOG_FLOOR, mel_filters
from ..runtime.errors import InputError

# A Gaussian exp(-t² / 2σ²) that comes closest to the Hann window of the mel front end has this σ (Průša, Balazs and
# Søndergaard, 2017: γ = 0.25645 N² for N samples of Hann, and γ = 2πσ²).
_SIGMA_WINDOWS = math.sqrt(0.25645 / (2 * math.pi))
_MAX_DELAY_WINDOWS = 0.47  # just inside the window, where the Gaussian stops resembling it
_TINY = 1e-12


class GriffinLim(nn.Module):
    """The vocoder without weights ⇒ exactly hop · frames samples.

    1. *Mel to linear*: non-negative Richardson-Lucy updates ``x ← x · Aᵀ(m / Ax) / Aᵀ1`` (the Kullback-Leibler form of
       Lee and Seung, 2001), which weigh quiet bins as log-mels do.
    2. *First phases*: where a band gets louder from frame to frame its energy lies late in the window, so the slope of
       the log magnitude in time gives the group delay, and its sum over frequency a phase. That sets clicks at their
       place before the first iteration; stationary sounds start at zero phase.
    3. *Fast Griffin-Lim* (Perraudin, Balazs and Søndergaard, 2013), and every ``refit_every`` steps the target
       magnitude becomes the geometric mean of the first one and of the current one corrected to the given mel: detail
       finer than a mel band is left to the iteration.

    Measured on tones, harmonics, decaying clicks, impulses, noise bursts, chirps, plucked notes and two pieces of real
    sound, 5.12 s each: mean absolute error of the resynthesised log-mel within 40 dB of the peak, and energy 4-60 ms
    before a click against the energy after it.

    ==========================================================  ==========  =========
    variant (32 iterations, momentum 0.99)                       error, nats  pre-echo
    ==========================================================  ==========  =========
    pseudo-inverse, zero phase                                   0.119
    least squares, 30 multiplicative updates, zero phase         0.096
    Richardson-Lucy, 16 updates, zero phase                      0.096       -24 dB
    the same, random phase                                       0.102       -22 dB
    the same, phase from group delay                             0.083       -28 dB
    the same, and target refitted fully in each step             0.038       -20 dB
    **the same, and target refitted by half, every 4th step**    0.066       -25 dB
    ==========================================================  ==========  =========

    Clicks keep their time within 1 ms. One core takes 0.2 s for such a clip.

    Args:
        iterations: Griffin-Lim steps; 16 are nearly as good and twice as fast.
        momentum: 0 is the classical algorithm.
        inversion_steps: Richardson-Lucy updates.
        refit_every: steps between two refits of the target magnitude; 0 never refits.
        mel: front end that the log-mels are made by; None: AudioLDM's.
    """

    window: torch.Tensor
    filters: torch.Tensor
    column_sums: torch.Tensor

    def __init__(
        self, iterations: int = 32, momentum: float = 0.99, inversion_steps: int = 16, refit_every: int = 4,
        mel: MelSpec | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if iterations < 1 or inversion_steps < 0 or refit_every < 0 or not 0 <= momentum < 1:
            raise InputError(
                f"vocoder: expected iterations ≥ 1, inversion_steps ≥ 0, refit_every ≥ 0 and 0 ≤ momentum < 1, "
                f"got {iterations}, {inversion_steps}, {refit_every}, {momentum}"
            )
        self.iterations = iterations
        self.momentum = momentum
        self.inversion_steps = inversion_steps
        self.refit_every = refit_every
        self.mel = mel if isinstance(mel, MelSpec) else MelSpec(**(mel or {}))
        self.sample_rate_hz = self.mel.sample_rate_hz
        # fewer samples can't be reflected at the edges
        self.min_frames = self.mel.fft_samples // 2 // self.mel.hop_samples + 1
        filters = torch.from_numpy(mel_filters(self.mel).copy())
        self.register_buffer("window", torch.hann_window(self.mel.fft_samples, periodic=True), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("column_sums", filters.sum(0), persistent=False)

    @torch.no_grad()
    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        if mel.ndim != 3 or mel.shape[2] != self.mel.n_mels or mel.shape[1] < self.min_frames:
            raise InputError(
                f"a vocoder needs log-mels of shape (B, at least {self.min_frames} frames, {self.mel.n_mels}), got "
                f"{tuple(mel.shape)}"
            )
        with torch.autocast(mel.device.type, enabled=False):
            # One clip at a time: matrix products of another batch size round otherwise, and iterating on phases
            # lets such a difference grow. It costs nothing on a CPU.
            return torch.stack([self._resynthesise(clip) for clip in mel.float()])

    def _resynthesise(self, mel: torch.Tensor) -> torch.Tensor:
        """One log-mel (frames, n_mels) ⇒ (hop · frames,)."""
        # bins on the floor were silence, and not a hiss of 1e-5
        target = torch.where(mel <= LOG_FLOOR + 1e-3, 0.0, mel.exp())
        first = self._linear_magnitude(target)
        magnitude, previous, frames = first, None, mel.shape[0]
        delay_phase = self._phase_from_delay(first)
        phase = torch.polar(torch.ones_like(delay_phase), delay_phase)
        pull = self.momentum / (1 + self.momentum)
        for step in range(self.iterations):
            spectrum = self._stft(self._istft(magnitude * phase, frames), frames)
            if self.refit_every and step and step % self.refit_every == 0:
                magnitude = (first * self._corrected(spectrum.abs() + _TINY, target)).sqrt()
            ahead = spectrum if previous is None else spectrum - pull * previous
            phase = ahead / (ahead.abs() + _TINY)
            previous = spectrum
        return self._istft(magnitude * phase, frames)

    def _linear_magnitude(self, mel: torch.Tensor) -> torch.Tensor:
        """Mel magnitudes (frames, n_mels) ⇒ linear magnitudes (frames, bins), zero outside the filterbank."""
        covered = self.column_sums > 0
        mean = mel / self.filters.sum(1)
        linear = torch.where(covered, mean @ (self.filters / self.column_sums.clamp_min(_TINY)), 0.0) + _TINY
        for _ in range(self.inversion_steps):
            linear = self._corrected(linear, mel)
        return torch.where(covered, linear, 0.0)

    def _corrected(self, linear: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """One Richardson-Lucy update of linear magnitudes (frames, bins) towards mel magnitudes (frames, n_mels)."""
        ratio = mel / (linear @ self.filters.T).clamp_min(_TINY)
        return linear * (ratio @ self.filters) / self.column_sums.clamp_min(_TINY)

    def _stft(self, waveform: torch.Tensor, frames: int) -> torch.Tensor:
        """(samples,) ⇒ (frames, bins) complex."""
        spectrum = torch.stft(waveform, self.mel.fft_samples, self.mel.hop_samples, window=self.window,
                              return_complex=True)
        return spectrum.T[:frames]

    def _istft(self, spectrum: torch.Tensor, frames: int) -> torch.Tensor:
        """(frames, bins) complex ⇒ (hop · frames,)."""
        return torch.istft(spectrum.T, self.mel.fft_samples, self.mel.hop_samples, window=self.window,
                           length=frames * self.mel.hop_samples)

    def _phase_from_delay(self, magnitude: torch.Tensor) -> torch.Tensor:
        """Linear magnitudes (frames, bins) ⇒ phases (frames, bins), in radians, that put energy where it arrives.

        For a Gaussian window the group delay of a transient after the frame's centre is σ² · ∂ log|S| / ∂t. Bins 80 dB
        below the clip's peak count as flat, because the log of almost nothing has any slope.
        """
        log = magnitude.clamp_min(1e-4 * magnitude.max().clamp_min(_TINY)).log()
        padded = torch.cat([log[:1], log, log[-1:]])
        slope = (padded[2:] - padded[:-2]) / (2 * self.mel.hop_samples)
        size = self.mel.fft_samples
        sigma, longest = _SIGMA_WINDOWS * size, _MAX_DELAY_WINDOWS * size
        delay = (sigma**2 * slope).clamp(-longest, longest)
        # the transform counts samples from the window's first, half a window before the centre
        return (-2 * math.pi / size * (delay + size / 2)).cumsum(dim=1)


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
        if (made := math.prod(upsample_rates)) != self.mel.hop_samples:
            raise InputError(f"vocoder.upsample_rates={list(upsample_rates)} make {made} samples of a mel frame, the "
                             f"hop is {self.mel.hop_samples}; their product has to be the hop")
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
