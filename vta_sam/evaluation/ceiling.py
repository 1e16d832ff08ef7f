"""What bounds a model's figures from above: the true sound through its VAE and vocoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..generation.model import identify
from ..media.audio import fit_length
from ..metrics import spectral
from ..pipeline import Pipeline, load
from .cache import FeatureCache, cache_key
from .features import sound_features
from .measure import Measured


@dataclass
class Ceiling:
    """A model folder's VAE and vocoder. device: of torch."""

    folder: Path
    device: str = "cpu"
    cache: FeatureCache = FeatureCache(None)
    pipeline: Pipeline = field(init=False)
    hash: str = field(init=False)

    def __post_init__(self):
        self.pipeline = load(self.folder, self.device)
        self.hash = identify(self.folder)["hash"]

    def measure(self, true: Measured) -> Measured:
        """A true sound (with its waveform) ⇒ the same sound encoded, decoded and vocoded, measured like any other."""
        assert true.waveform is not None
        digest = cache_key("ceiling", self.hash, true.digest)
        key = cache_key("waveform", digest)
        kept = self.cache.get(key)
        waveform = kept["waveform"] if kept is not None else self.through(true.waveform)
        if kept is None:
            self.cache.put(key, {"waveform": waveform})
        features = sound_features(waveform)
        distance = spectral.log_spectral_distance_db(true.waveform, waveform)
        return Measured(digest, features, [], {}, waveform, distance)

    def through(self, waveform: np.ndarray) -> np.ndarray:
        """(samples,) of any length ⇒ as many samples."""
        moments = torch.from_numpy(self.pipeline.codec.encode_moments(waveform))[None]
        mean = moments.chunk(2, dim=1)[0].to(self.pipeline.device)
        return fit_length(self.pipeline.decode(mean)[0].numpy(), len(waveform))
