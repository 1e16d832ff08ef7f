"""The embedded tagger as a backbone: ten classes, 64 numbers. It knows the embedded world and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...mel import FFT_SAMPLES, SAMPLE_RATE_HZ
from ...tiny.tagger import load_tagger
from .base import Heard, by_length


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
