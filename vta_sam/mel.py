"""The mel front end: one log-mel spectrogram for training, for the vocoder and for every figure about sound."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .clip import MelSpec
from .runtime.errors import InputError

# The front end of every figure, whatever rate a model has: figures of models of different rates can be compared then.
FIGURES = MelSpec()
SAMPLE_RATE_HZ = FIGURES.sample_rate_hz
FFT_SAMPLES = FIGURES.fft_samples  # also the length of the window
HOP_SAMPLES = FIGURES.hop_samples  # 100 mel frames a second
N_MELS = FIGURES.n_mels
MIN_HZ = FIGURES.min_hz
MAX_HZ = FIGURES.max_hz
FRAME_RATE_HZ = FIGURES.frame_rate_hz
MIN_MAGNITUDE = 1e-5  # smaller mel magnitudes count as silence
LOG_FLOOR = float(np.log(MIN_MAGNITUDE))  # the log-mel of digital silence, -11.5 nats
PEAK = 0.5  # of a normalised waveform, as AudioLDM has it
ROWS_IN_CACHE = 4  # 5 s of 16 kHz have a spectrum of 2 MB; measured on a Xeon: 32 rows in 48 ms, at once in 122


@lru_cache(maxsize=8)
def mel_filters(spec: MelSpec) -> np.ndarray:
    """Slaney mel filterbank, area-normalised ⇒ (n_mels, fft_samples // 2 + 1) float32; not to be written to.

    Equal to ``librosa.filters.mel(norm="slaney", htk=False)``, bit for bit: triangles are rounded to float32 before
    they are scaled, as there.
    """
    # here, since transformers takes seconds to import, and most processes need no filterbank
    from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

    triangles = mel_filter_bank(
        num_frequency_bins=spec.fft_samples // 2 + 1, num_mel_filters=spec.n_mels, min_frequency=spec.min_hz,
        max_frequency=spec.max_hz, sampling_rate=spec.sample_rate_hz, norm=None, mel_scale="slaney",
    ).T.astype(np.float32)
    edges_mel = np.linspace(hertz_to_mel(spec.min_hz, "slaney"), hertz_to_mel(spec.max_hz, "slaney"), spec.n_mels + 2)
    edges_hz = np.asarray(mel_to_hertz(edges_mel, "slaney"))
    triangles *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return triangles


class LogMel(nn.Module):
    """Waveform (B, samples) float ⇒ natural-log mel (B, samples // hop + 1, n_mels), frame i centred on sample i · hop.

    AudioLDM's front end (Liu et al., 2023): periodic Hann window, centred frames with reflected edges, mel on
    magnitude (not power), ``ln(max(x, 1e-5))``. Samples are taken as they are. Normalisation is the
    caller's. Always computed in float32, also under autocast, because quiet bins span ten nats.
    Differentiable. The filterbank and the window follow the module's device and stay out of its state dict. A processor
    takes a few rows at a time, whose spectra its cache holds; the values are the same.

    Args:
        spec: rates and sizes: the clip's, or :data:`FIGURES`.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window", torch.hann_window(spec.fft_samples, periodic=True), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(spec).copy()), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        size = self.spec.fft_samples
        if waveform.ndim != 2 or waveform.shape[1] <= size // 2:
            raise InputError(
                f"a log-mel needs waveforms of shape (B, samples) with more than {size // 2} samples, "
                f"got {tuple(waveform.shape)}; pad the clip"
            )
        at_once = ROWS_IN_CACHE if waveform.device.type == "cpu" else max(1, len(waveform))
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._of_rows(rows.float()) for rows in waveform.split(at_once)])

    def _of_rows(self, waveform: torch.Tensor) -> torch.Tensor:
        # a model cast as a whole (model.bfloat16()) still measures in float32, if with a rounded filterbank
        window, filters = self.window.float(), self.filters.float()
        spectrum = torch.stft(
            waveform, self.spec.fft_samples, self.spec.hop_samples, window=window, center=True, pad_mode="reflect",
            return_complex=True,
        )
        mel = spectrum.abs().transpose(1, 2) @ filters.T
        return mel.clamp_min(MIN_MAGNITUDE).log()


@lru_cache(maxsize=8)
def _cached_log_mel(spec: MelSpec) -> LogMel:
    return LogMel(spec)


def log_mel(waveform: np.ndarray, spec: MelSpec) -> np.ndarray:
    """:class:`LogMel` for one numpy waveform (samples,) ⇒ (samples // hop + 1, n_mels) float32."""
    if waveform.ndim != 1:
        raise InputError(f"log_mel takes one mono waveform of shape (samples,), got {waveform.shape}")
    with torch.inference_mode():
        return _cached_log_mel(spec)(torch.from_numpy(np.array(waveform, np.float32))[None])[0].numpy()


def normalise(waveform: Tensor) -> Tensor:
    """Minus mean, peak to 0.5, row by row; silence stays silence. (B, samples) ⇒ (B, samples)."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    peak = centred.abs().amax(dim=1, keepdim=True)
    return torch.where(peak > 1e-4, centred * (PEAK / peak.clamp(min=1e-4)), torch.zeros_like(centred))
