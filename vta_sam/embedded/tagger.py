"""The audio tagger: which of the ten things is to be heard, and a vector of the sound. It stands where PANNs stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mel import FFT_SAMPLES, LOG_FLOOR, N_MELS, SAMPLE_RATE_HZ, LogMel
from ..metrics.backbones import Heard, by_length
from .tiny_networks import SHIPPED, Conv, fill, read_weights

# MERGED-DOC """The embedded tagger as a backbone: ten classes, 64 numbers. It knows the embedded world and nothing
# else."""


RANGE_NATS = 6.9  # 60 dB: what is further below the loudest bin of a clip is silence
PEAK = 0.5
SHIPPED_TAGGER = SHIPPED / "tiny_tagger.safetensors"


class Tagger(nn.Module):
    """Waveforms at 16 kHz ⇒ logits of the classes, or a vector per sound. Level does not matter, nor does silence.

    Convolutions over the log-mel, 60 dB below its loudest bin cut off; frames are averaged by their energy, so that
    pauses count for nothing.

    Args:
        classes: names of the classes, in the order of the logits.
        widths: channels of the four convolutions.
        embedding_dim: length of a sound's vector.
        folded: without batch normalisation, as :func:`~vta_sam.embedded.tiny_networks.fold` leaves it.
    """

    def __init__(
        self,
        classes: Sequence[str],
        widths: tuple[int, int, int, int] = (16, 32, 48, 64),
        embedding_dim: int = 64,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.embedding_dim = embedding_dim
        self.fingerprint = "untrained"
        self.log_mel = LogMel()
        strides = ((2, 2), (2, 2), (1, 2), (2, 2))  # frames, mel bins
        self.convs = nn.ModuleList(
            Conv(before, after, stride, folded) for before, after, stride in zip((1, *widths), widths, strides)
        )
        self.frame = nn.Linear(widths[-1] * N_MELS // 16, 2 * embedding_dim)
        self.vector = nn.Linear(2 * embedding_dim, embedding_dim)
        self.classify = nn.Linear(embedding_dim, len(self.classes))

    def logits(self, waveform: Tensor) -> Tensor:
        """(B, samples) float ⇒ (B, classes); softmax of it is the tagger's belief, argmax the class."""
        return self.classify(F.relu(self.embed(waveform)))

    def embed(self, waveform: Tensor) -> Tensor:
        """(B, samples) float ⇒ (B, embedding_dim)."""
        centred = waveform.float() - waveform.float().mean(1, keepdim=True)
        peak = centred.abs().amax(1, keepdim=True)
        return self.embed_mel(self.log_mel(centred * (PEAK / peak.clamp_min(1e-5))))

    def embed_mel(self, mel: Tensor) -> Tensor:
        """Log-mels (B, frames, 64) of waveforms with a peak of 0.5 ⇒ (B, embedding_dim)."""
        loudest = mel.amax((1, 2), keepdim=True).clamp_min(LOG_FLOOR + RANGE_NATS)
        level = ((mel - loudest) / RANGE_NATS + 1).clamp_min(0)  # 0 in silence, 1 at the loudest bin
        x = level[:, None]
        for conv in self.convs:
            x = F.relu(conv(x))
        frames = F.relu(self.frame(x.permute(0, 2, 1, 3).flatten(2)))
        energy = F.adaptive_avg_pool1d(level.square().mean(2)[:, None], frames.shape[1]) + 1e-5
        return self.vector((energy @ frames)[:, 0] / energy.sum(2))


def load_tagger(path: Path | str | None = None) -> Tagger:
    """The tagger of a weights file (default: the shipped one), frozen; ``fingerprint`` names its weights."""
    path = Path(path) if path is not None else SHIPPED_TAGGER
    weights = read_weights(path, "tagger")
    tagger = Tagger(weights.classes, **{**weights.about["sizes"], "folded": True})
    fill(tagger, weights, str(path))
    tagger.fingerprint = weights.fingerprint
    return tagger.eval().requires_grad_(False)


class TinyBackbone:
    """A :class:`~.base.Backbone`. weights: ignored, since the tagger is shipped with the project."""

    name = "tiny"
    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.tagger = load_tagger().to(self.device)
        self.classes = self.tagger.classes
        self.dim = self.tagger.embedding_dim
        self.fingerprint = f"tiny-{self.tagger.fingerprint}"

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[Heard]:
        return by_length(waveforms, self._hear)

    @torch.inference_mode()
    def _hear(self, batch: np.ndarray) -> list[Heard]:
        if batch.shape[1] <= FFT_SAMPLES:
            return [Heard(np.zeros((0, self.dim), np.float32)) for _ in batch]
        embeddings = self.tagger.embed(torch.from_numpy(batch).to(self.device))
        logits = self.tagger.classify(F.relu(embeddings))
        return [Heard(e[None], x) for e, x in zip(embeddings.cpu().numpy(), logits.cpu().numpy())]
