"""LAION's CLAP (Wu et al., 2023) through transformers: one vector per sound, and one per sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.checkpoint_file import digest
from ..checkpoints.registry import require
from ..runtime.errors import InputError
from .backbones import Heard, by_length

ENTRY = "clap-htsat-unfused"
LONGEST_S = 10.0  # of longer sound the released processor takes a random piece


class ClapBackbone:
    """A :class:`~.base.Backbone`: one row a sound, of its first 10 s. weights: folder with ``clap-htsat-unfused/``.

    Shorter sound is repeated and padded by the released processor, as in training. No classes; :meth:`read` gives
    sentences' vectors, so that a cosine of both says how well a sound fits its caption.
    """

    name = "clap"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        from transformers import ClapModel, ClapProcessor

        folder = require(ENTRY, weights)
        self.device = torch.device(device)
        try:
            model: Any = ClapModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            processor: Any = ClapProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{folder} can't be read as a CLAP model ({str(error).strip().splitlines()[0]}); fetch it "
                             "again") from error
        self.model, self.processor = model.to(self.device).eval().requires_grad_(False), processor
        self.sample_rate_hz = int(self.processor.feature_extractor.sampling_rate)
        self.dim = int(self.model.config.projection_dim)
        self.fingerprint = f"clap-{digest(folder / 'model.safetensors')}"

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[Heard]:
        longest = round(LONGEST_S * self.sample_rate_hz)
        return by_length([waveform[:longest] for waveform in waveforms], self._hear)

    @torch.inference_mode()
    def _hear(self, batch: np.ndarray) -> list[Heard]:
        inputs = self.processor(audio=list(batch), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        rows = self.model.get_audio_features(**inputs.to(self.device))
        return [Heard(row[None]) for row in rows.float().cpu().numpy()]

    @torch.inference_mode()
    def read(self, sentences: Sequence[str]) -> np.ndarray:
        """Captions ⇒ (n, dim) float32, in the space of the sounds."""
        inputs = self.processor(text=list(sentences), padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.device)).float().cpu().numpy()
