"""VGGish (Hershey et al., 2017): the vectors behind FAD, in the layout of harritaylor/torchvggish's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint_file import digest, read_state
from ..checkpoints.registry import require
from ..runtime.errors import InputError
from .backbones import Heard

RATE_HZ = 16_000
WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
PATCH_FRAMES = 96  # 0.96 s; patches follow each other without overlap
LOG_OFFSET = 0.01
_AT_ONCE = 64  # patches


def vggish_patches(waveform: np.ndarray) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ (patches, 96, 64) float32: log of mel magnitudes.

    Frames of a periodic Hann window of 25 ms every 10 ms, none padded; bands whose weights are linear in mel (HTK's
    formula) from 125 to 7500 Hz, without the constant component; ln(x + 0.01). What is left over at the end counts for
    nothing: 8.2 s are 8 patches, less than 0.975 s none. (torchvggish ``mel_features.py``.)
    """
    count = 1 + (len(waveform) - WINDOW_SAMPLES) // HOP_SAMPLES if len(waveform) >= WINDOW_SAMPLES else 0
    patches = count // PATCH_FRAMES
    if not patches:
        return np.zeros((0, PATCH_FRAMES, BANDS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW_SAMPLES)[::HOP_SAMPLES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW_SAMPLES * np.arange(WINDOW_SAMPLES))
    spectrum = np.abs(np.fft.rfft(frames[:patches * PATCH_FRAMES] * window, FFT_SAMPLES))
    return np.log(spectrum @ _bands() + LOG_OFFSET).reshape(patches, PATCH_FRAMES, BANDS).astype(np.float32)


@lru_cache(maxsize=1)
def _bands() -> np.ndarray:
    """(257, 64) weights of spectrum bins in bands."""
    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    bins = mel(np.linspace(0, RATE_HZ / 2, FFT_SAMPLES // 2 + 1))[:, None]
    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    weights[0] = 0
    return weights


class VGGish(nn.Module):
    """Patches (B, 96, 64) ⇒ (B, 128), before the last ReLU, as every published FAD takes it; no PCA, no quantisation.

    Layers are named as in the checkpoint. 72 141 184 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):  # 0: pooling
            if width:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
                                        nn.Linear(4096, 128))

    def forward(self, patches: Tensor) -> Tensor:
        seen = self.features(patches[:, None])
        return self.embeddings(seen.permute(0, 2, 3, 1).flatten(1))  # channels last, as TensorFlow left them


class VGGishBackbone:
    """A :class:`~.base.Backbone`: a row per 0.96 s. weights: folder with ``vggish-10086976.pth``."""

    name = "vggish"
    sample_rate_hz = RATE_HZ
    dim = 128

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = require(self.name, weights)
        self.device = torch.device(device)
        self.network = VGGish()
        try:
            self.network.load_state_dict(read_state(path))
        except RuntimeError as error:
            raise InputError(f"{path} does not hold VGGish's layers ({str(error).splitlines()[-1].strip()}); fetch it "
                             "again") from error
        self.network.to(self.device).eval().requires_grad_(False)
        self.fingerprint = f"vggish-{digest(path)}"

    @torch.inference_mode()
    def hear(self, waveforms: Sequence[np.ndarray]) -> list[Heard]:
        for waveform in waveforms:
            if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
                raise InputError(f"a backbone hears finite mono sounds, got shape {waveform.shape}")
        patches = [vggish_patches(waveform) for waveform in waveforms]
        rows = [self.network(part.to(self.device)).cpu()
                for part in torch.from_numpy(np.concatenate(patches)).split(_AT_ONCE)] if any(map(len, patches)) else []
        embeddings = torch.cat(rows).numpy() if rows else np.zeros((0, self.dim), np.float32)
        ends = np.cumsum([len(part) for part in patches])
        return [Heard(embeddings[end - len(part):end]) for part, end in zip(patches, ends)]
