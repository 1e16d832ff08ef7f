"""PANNs' Cnn14 (Kong et al., 2020): a vector and 527 AudioSet classes per sound, in the layout of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.checkpoint_file import digest, read_state
from ..checkpoints.registry import require
from ..runtime.errors import InputError
from ..runtime.librosa_import import librosa
from .backbones import Heard, by_length

CLASSES = 527
WIDTHS = (64, 128, 256, 512, 1024, 2048)
_SHORTEST_FRAMES = 32  # five blocks halve time


@dataclass(frozen=True)
class FrontEnd:
    """Numbers of a checkpoint's log-mel: Hann window and FFT of ``fft_samples``, 64 Slaney bands."""

    rate_hz: int
    fft_samples: int
    hop_samples: int
    low_hz: float
    high_hz: float
    bands: int = 64


FRONT_ENDS = {"panns_16k": FrontEnd(16_000, 512, 160, 50, 8000), "panns_32k": FrontEnd(32_000, 1024, 320, 50, 14_000)}


class LogMelFilterBank(nn.Module):
    """(B, samples) ⇒ (B, frames, 64) dB: centred frames with reflected edges, power, 10 lg max(x, 1e-10)."""

    melW: Tensor  # noqa: N815  the name in the checkpoint
    window: Tensor

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        self.front = front
        filters = librosa.filters.mel(sr=front.rate_hz, n_fft=front.fft_samples, n_mels=front.bands, fmin=front.low_hz,
                                      fmax=front.high_hz)
        self.register_buffer("melW", torch.from_numpy(filters.T.copy()).float())
        self.register_buffer("window", torch.hann_window(front.fft_samples), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, self.front.fft_samples, self.front.hop_samples, window=self.window,
                              center=True, pad_mode="reflect", return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * torch.log10((power.transpose(1, 2) @ self.melW).clamp_min(1e-10))


class ConvBlock(nn.Module):
    """Two convolutions with normalisation, then averaging over ``pool`` × ``pool``."""

    def __init__(self, before: int, after: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


class Cnn14(nn.Module):
    """(B, samples) ⇒ ((B, 2048) after the last hidden ReLU, (B, 527) before the sigmoid). Layers are named as in the
    checkpoint; the Fourier matrices that it holds too are computed here by FFT."""

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        self.logmel_extractor = LogMelFilterBank(front)
        self.bn0 = nn.BatchNorm2d(front.bands)
        for number, (before, after) in enumerate(zip((1, *WIDTHS), WIDTHS), 1):
            setattr(self, f"conv_block{number}", ConvBlock(before, after, pool=1 if number == len(WIDTHS) else 2))
        self.fc1 = nn.Linear(WIDTHS[-1], WIDTHS[-1])
        self.fc_audioset = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        x = self.logmel_extractor(waveform)[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, len(WIDTHS) + 1):
            x = getattr(self, f"conv_block{number}")(x)
        x = x.mean(dim=3)
        embedding = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)


class PannsBackbone:
    """A :class:`~.base.Backbone`: one row of 2048 and 527 logits a sound.

    name: "panns_16k" (``Cnn14_16k_mAP=0.438.pth``) or "panns_32k" (``Cnn14_mAP=0.431.pth``); weights: their folder.
    """

    dim = WIDTHS[-1]

    def __init__(self, name: str, weights: Path | None = None, device: str = "cpu") -> None:
        path = require(name, weights)
        front = FRONT_ENDS[name]
        self.name, self.sample_rate_hz = name, front.rate_hz
        self.shortest = _SHORTEST_FRAMES * front.hop_samples
        self.device = torch.device(device)
        self.network = Cnn14(front)
        state = read_state(path, numpy_arrays=True).get("model")
        if not isinstance(state, dict):
            raise InputError(f"{path} has no entry 'model' with the layers of Cnn14; fetch it again")
        state = {key: value for key, value in state.items() if not key.startswith("spectrogram_extractor.")}
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"{path} does not hold Cnn14's layers ({str(error).splitlines()[-1].strip()}); fetch it "
                             "again") from error
        self.network.to(self.device).eval().requires_grad_(False)
        self.fingerprint = f"{name}-{digest(path)}"

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[Heard]:
        return by_length(waveforms, self._hear)

    @torch.inference_mode()
    def _hear(self, batch: np.ndarray) -> list[Heard]:
        if batch.shape[1] < self.shortest:
            return [Heard(np.zeros((0, self.dim), np.float32)) for _ in batch]
        embeddings, logits = self.network(torch.from_numpy(batch).to(self.device))
        return [Heard(e[None], x) for e, x in zip(embeddings.cpu().numpy(), logits.cpu().numpy())]
