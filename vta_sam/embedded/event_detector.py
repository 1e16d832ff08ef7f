"""The sound event detector of the embedded world: which of the ten things begins to sound at which time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..mel import FFT_SAMPLES, FIGURES, FRAME_RATE_HZ, LOG_FLOOR, N_MELS, LogMel, normalise
from ..metrics.backbones import Embedding
from .tiny_networks import RANGE_NATS, SHIPPED, Conv, TinyBackbone, fill, read_weights

SHIPPED_DETECTOR = SHIPPED / "tiny_detector.safetensors"
LEAST_PROBABILITY = 0.6  # of an onset's frame; training counts onsets more than other frames, which raises all of them
LEAST_GAP_FRAMES = 8  # between two onsets of one class; those of a thing are 0.2 s apart and more
_PICKING_VERSION = 1  # to be raised when other events are picked, so that no cached ones are used
_REACH_FRAMES = 2  # on either side of a peak; its time is the centre of these frames' probabilities
_DILATIONS = (1, 2, 4, 8)  # with a width of 5 a frame depends on 300 ms on either side


class EventDetector(nn.Module):
    """Log-mels ⇒ logits per frame and class that the class begins to sound there, and that it sounds. Any number of
    classes may sound at once. Level doesn't matter.

    Convolutions over the log-mel, clipped at 60 dB below its loudest bin, keep all frames; dilated convolutions over
    time follow.

    Args:
        classes: names of the classes, in the order of the logits.
        widths: channels of the three convolutions over the log-mel.
        features: channels of the convolutions over time.
        folded: build without batch normalisation, as :func:`~vta_sam.embedded.tiny_networks.fold` returns it.
    """

    def __init__(self, classes: Sequence[str], widths: tuple[int, int, int] = (16, 32, 48), features: int = 64,
                 folded: bool = False) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.fingerprint = "untrained"
        self.log_mel = LogMel(FIGURES)
        self.convs = nn.ModuleList(
            Conv(before, after, (1, 2), folded) for before, after in zip((1, *widths), widths))  # halves mel bins
        self.frame = nn.Linear(widths[-1] * N_MELS // 8, features)
        self.over_time = nn.ModuleList(
            nn.Conv1d(features, features, 5, padding=2 * dilation, dilation=dilation) for dilation in _DILATIONS)
        self.out = nn.Linear(features, 2 * len(self.classes))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels (B, frames, 64) of waveforms with a peak of 0.5 ⇒ logits of onsets and of sounding, each
        (B, frames, classes)."""
        loudest = mel.amax((1, 2), keepdim=True).clamp_min(LOG_FLOOR + RANGE_NATS)
        x = ((mel - loudest) / RANGE_NATS + 1).clamp_min(0)[:, None]  # 0 in silence, 1 at the loudest bin
        for conv in self.convs:
            x = F.relu(conv(x))
        x = F.relu(self.frame(rearrange(x, "b c t f -> b t (c f)"))).transpose(1, 2)
        for conv in self.over_time:
            x = x + F.relu(conv(x))
        onset, sounding = self.out(x.transpose(1, 2)).chunk(2, dim=2)
        return onset, sounding

    @torch.inference_mode()
    def events(self, waveforms: Tensor) -> list[np.ndarray]:
        """Waveforms (B, samples) at 16 kHz, each longer than 32 ms ⇒ of each (E, 2) float32: the onset in seconds and
        the number of the class, in the order of time."""
        mel = self.log_mel(normalise(waveforms.float()))[:, :-1]  # the last frame is half a reflection, a false onset
        onset, _ = self(mel)
        return [picked_events(probabilities) for probabilities in onset.sigmoid().cpu().numpy()]


def picked_events(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (frames, classes) of an onset at 100 Hz ⇒ (E, 2) float32: onsets in seconds, classes.

    Of frames of one class closer than 80 ms the most probable one counts.
    """
    events: list[tuple[float, int]] = []
    for number, of_class in enumerate(probabilities.T.astype(np.float64)):
        free = of_class >= LEAST_PROBABILITY
        for frame in np.argsort(-of_class, kind="stable"):
            if not free.any():
                break
            if free[frame]:
                free[max(frame - LEAST_GAP_FRAMES + 1, 0):frame + LEAST_GAP_FRAMES] = False
                near = np.arange(max(frame - _REACH_FRAMES, 0), min(frame + _REACH_FRAMES + 1, len(of_class)))
                events.append((float(of_class[near] @ near / of_class[near].sum()) / FRAME_RATE_HZ, number))
    return np.array(sorted(events), np.float32).reshape(-1, 2)


def load_detector(path: Path | str | None = None) -> EventDetector:
    """The detector of a weights file, frozen and in eval mode; its ``fingerprint`` names the weights.

    Args:
        path: None: the shipped file.

    Raises:
        InputError: the file can't be used, see :func:`~.tiny_networks.read_weights`.
    """
    path = Path(path) if path is not None else SHIPPED_DETECTOR
    weights = read_weights(path, "detector")
    detector = EventDetector(weights.classes, **{**weights.about["sizes"], "folded": True})
    fill(detector, weights, str(path))
    detector.fingerprint = weights.fingerprint
    return detector.eval().requires_grad_(False)


class EventBackbone(TinyBackbone):
    """The tagger as a backbone, and the detector's events beside its embeddings. Their truth is a scene's, so that they
    need no row of events detected in both sounds.

    Args:
        weights: not used, since the project ships both networks.
        device: "cpu", "cuda", …
    """

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        super().__init__(weights, device)
        self.detector = load_detector().to(self.device)
        self.fingerprint = f"{self.fingerprint}-{self.detector.fingerprint}-{_PICKING_VERSION}"

    def _embed_batch(self, batch: np.ndarray) -> list[Embedding]:
        found = super()._embed_batch(batch)
        if batch.shape[1] <= FFT_SAMPLES:
            return [replace(output, sound_events=np.zeros((0, 2), np.float32)) for output in found]
        events = self.detector.events(torch.from_numpy(batch).to(self.device))
        return [replace(output, sound_events=of_sound) for output, of_sound in zip(found, events)]
