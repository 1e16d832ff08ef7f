"""The backbones of an evaluation: what each hears in every sound, in batches, remembered on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..embedded.tagger import TinyBackbone
from ..generation.build import identify
from ..generation.pipeline import Pipeline, load
from ..media.audio import fit_length, resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics import signal as spectral
from ..metrics.backbones import Backbone
from ..runtime.errors import InputError
from .backbones import NOT_SHIPPED, TITLES, load_backbone
from .columns import backbone_columns
from .measure import Measured, backbone_key
from .sounds import Arrays, FeatureCache, cache_key, sound_features

# MERGED-DOC """What bounds a model's figures from above: the true sound through its VAE and vocoder."""


@dataclass
class Ears:
    """backbones: {name: network}, of which every sound gets rows; missing: {name: why it could not be loaded}."""

    backbones: dict[str, Backbone]
    missing: dict[str, str]
    batch_size: int
    cache: FeatureCache
    _waiting: dict[str, list[tuple[Measured, np.ndarray]]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], weights: Path | None, device: str, batch_size: int,
           cache: FeatureCache) -> "Ears":
        """Load those whose weights are there; of the others it is kept why not. InputError: no such backbone."""
        backbones, missing = {}, {}
        for name in dict.fromkeys(names):
            if name not in TITLES:
                raise InputError(f"backbones: {name!r} is none; there are {', '.join(TITLES)}")
            try:
                backbones[name] = load_backbone(name, weights, device)
            except InputError as error:
                missing[name] = str(error)
        return cls(backbones, missing, batch_size, cache)

    @property
    def fingerprints(self) -> tuple[tuple[str, str], ...]:
        """(name, what changes with its weights) of those that were loaded."""
        return tuple((name, backbone.fingerprint) for name, backbone in self.backbones.items())

    @property
    def titles(self) -> dict[str, tuple[str, bool]]:
        """{name: (as readers know it, has classes)}, missing ones too."""
        return {name: TITLES[name] for name in (*self.backbones, *self.missing)}

    @property
    def tiny_classes(self) -> tuple[str, ...]:
        """Names of the embedded tagger's classes; () where it does not listen."""
        tiny = self.backbones.get("tiny")
        return tiny.classes if isinstance(tiny, TinyBackbone) else ()

    def missing_columns(self) -> dict[str, str]:
        """{column key: why} of the backbones that could not be loaded."""
        return {column.key: why for name, why in self.missing.items()
                for column in backbone_columns(name, *TITLES[name])}

    def not_shipped(self) -> dict[str, str]:
        """Backbones that papers report and this project has no adapter for ⇒ why."""
        return dict(NOT_SHIPPED)

    def hear(self, sounds: Iterable[Measured]) -> None:
        """Have each backbone hear each sound that it doesn't know, now or in a later batch. Waveforms are let go."""
        for sound in sounds:
            for name in self.backbones:
                if name not in sound.rows:
                    assert sound.waveform is not None
                    queue = self._waiting.setdefault(name, [])
                    queue.append((sound, sound.waveform))
                    if len(queue) >= self.batch_size:
                        self._flush(name)
            sound.waveform = None

    def finish(self) -> None:
        """Hear what is still waiting."""
        for name in self._waiting:
            self._flush(name)

    def _flush(self, name: str) -> None:
        backbone, waiting = self.backbones[name], self._waiting[name]
        self._waiting[name] = []
        heard = backbone.hear([resample(wave, SAMPLE_RATE_HZ, backbone.sample_rate_hz) for _, wave in waiting])
        for (sound, _), rows in zip(waiting, heard):
            arrays: Arrays = {"embeddings": rows.embeddings}
            if rows.logits is not None:
                arrays["logits"] = rows.logits
            sound.rows[name] = arrays
            self.cache.put(backbone_key(backbone.fingerprint, sound.digest), arrays)


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
