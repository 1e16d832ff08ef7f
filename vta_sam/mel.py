"""The mel front end: one log-mel spectrogram for training, for the vocoder and for every figure about sound."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from .runtime.errors import InputError
from .runtime.librosa_import import librosa

SAMPLE_RATE_HZ = 16_000
FFT_SAMPLES = 1024  # also the length of the window
HOP_SAMPLES = 160  # 100 mel frames a second
N_MELS = 64
MIN_HZ = 0.0
MAX_HZ = 8000.0
MIN_MAGNITUDE = 1e-5  # smallest mel magnitude that is told from silence
FRAME_RATE_HZ = SAMPLE_RATE_HZ / HOP_SAMPLES
LOG_FLOOR = float(np.log(MIN_MAGNITUDE))  # the log-mel of digital silence, -11.5 nats


def mel_filters() -> np.ndarray:
    """Slaney mel filterbank, area-normalised ⇒ (N_MELS, FFT_SAMPLES // 2 + 1) float32."""
    return librosa.filters.mel(
        sr=SAMPLE_RATE_HZ, n_fft=FFT_SAMPLES, n_mels=N_MELS, fmin=MIN_HZ, fmax=MAX_HZ, norm="slaney", htk=False
    ).astype(np.float32)


def mel_frames(samples: int) -> int:
    """Mel frames of a waveform of that many samples. Frame i is centred on sample i · HOP_SAMPLES."""
    return samples // HOP_SAMPLES + 1


class LogMel(nn.Module):
    """Waveform (B, samples) float at 16 kHz ⇒ natural-log mel (B, samples // 160 + 1, 64).

    AudioLDM's front end (Liu et al., 2023): periodic Hann window, centred frames with reflected edges, mel on
    magnitude (not power), ``ln(max(x, 1e-5))``. Samples are taken as they are: what is to be normalised is
    normalised by the caller. Always computed in float32, also under autocast, because quiet bins span ten nats.
    Differentiable. The filterbank and the window follow the module's device and stay out of its state dict.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT_SAMPLES, periodic=True), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters()), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        if waveform.ndim != 2 or waveform.shape[1] <= FFT_SAMPLES // 2:
            raise InputError(
                f"a log-mel needs waveforms of shape (B, samples) with more than {FFT_SAMPLES // 2} samples, "
                f"got {tuple(waveform.shape)}; pad the clip"
            )
        with torch.autocast(waveform.device.type, enabled=False):
            # a model cast as a whole (model.bfloat16()) still measures in float32, if with a rounded filterbank
            window, filters = self.window.float(), self.filters.float()
            spectrum = torch.stft(
                waveform.float(), FFT_SAMPLES, HOP_SAMPLES, window=window, center=True, pad_mode="reflect",
                return_complex=True,
            )
            mel = spectrum.abs().transpose(1, 2) @ filters.T
            return mel.clamp_min(MIN_MAGNITUDE).log()


@lru_cache(maxsize=1)
def _cached_log_mel() -> LogMel:
    return LogMel()


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """:class:`LogMel` for one numpy waveform (samples,) ⇒ (samples // 160 + 1, 64) float32."""
    if waveform.ndim != 1:
        raise InputError(f"log_mel takes one mono waveform of shape (samples,), got {waveform.shape}")
    with torch.inference_mode():
        return _cached_log_mel()(torch.from_numpy(np.array(waveform, np.float32))[None])[0].numpy()


PEAK = 0.5  # AudioLDM: minus mean, peak of the clip to 0.5


def normalise(waveform: Tensor) -> Tensor:
    """Minus mean, peak to 0.5, row by row; silence stays silence. (B, samples) ⇒ (B, samples)."""
    centred = waveform - waveform.mean(dim=1, keepdim=True)
    peak = centred.abs().amax(dim=1, keepdim=True)
    return torch.where(peak > 1e-4, centred * (PEAK / peak.clamp(min=1e-4)), torch.zeros_like(centred))
