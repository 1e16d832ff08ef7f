"""The backbones of an evaluation: which there are, their embeddings of every sound, and a model's ceiling.

docs/backbones.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..generation.build import identify
from ..generation.pipeline import Pipeline, load
from ..media.audio import fit_length, resample
from ..mel import SAMPLE_RATE_HZ
from ..metrics.backbones import Backbone, embed
from ..runtime.errors import InputError
from .measure import backbone_key
from .measurements import SoundMeasurements
from .metric import Metric, waveform_value
from .sounds import Arrays, FeatureCache, cache_key, sound_features

# name ⇒ (title for readers, whether it has classes)
TITLES: dict[str, tuple[str, bool]] = {
    "tiny": ("embedded tagger", True),
    "vggish": ("VGGish", False),
    "panns_16k": ("PANNs", True),
    "panns_32k": ("PANNs 32 kHz", True),
    "clap": ("CLAP", False),
}
NOT_SHIPPED = {
    "FD, KL and IS by PaSST": "no adapter is shipped; docs/backbones.md has a recipe",
    "ImageBind score": "no adapter is shipped; docs/backbones.md has a recipe",
    "DeSync by Synchformer": "no adapter is shipped; docs/backbones.md has a recipe",
}


def load_backbone(name: str, weights: Path | None = None, device: str = "cpu") -> Backbone:
    """⇒ the network of a name of TITLES, its weights read from local files.

    Raises:
        InputError: there is no such name, or a file is missing (the message says which, and how to get it).
    """
    if name == "tiny":
        from ..embedded.tiny_networks import TinyBackbone

        return TinyBackbone(weights, device)
    if name == "vggish":
        from ..metrics.backbones import VGGishBackbone

        return VGGishBackbone(weights, device)
    if name in ("panns_16k", "panns_32k"):
        from ..metrics.backbones import PannsBackbone

        return PannsBackbone(name, weights, device)
    if name == "clap":
        from ..metrics.backbones import ClapBackbone

        return ClapBackbone(weights, device)
    raise InputError(f"no backbone is called {name!r}; there are {', '.join(TITLES)}")


@dataclass
class BackboneEmbeddings:
    """Computes each backbone's embeddings of every sound, in batches, and keeps them in the cache.

    backbones: {name: network} of the loaded ones. missing: {name: reason} of the others.
    """

    backbones: dict[str, Backbone]
    missing: dict[str, str]
    batch_size: int
    cache: FeatureCache
    _waiting: dict[str, list[tuple[SoundMeasurements, np.ndarray]]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], weights: Path | None, device: str, batch_size: int,
           cache: FeatureCache) -> "BackboneEmbeddings":
        """Load the backbones whose weights are there.

        Raises:
            InputError: there is no backbone of one of these names.
        """
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
        """(name, fingerprint) of the loaded backbones."""
        return tuple((name, backbone.fingerprint) for name, backbone in self.backbones.items())

    @property
    def titles(self) -> dict[str, tuple[str, bool]]:
        """{name: (title, has classes)}, missing ones too."""
        return {name: TITLES[name] for name in (*self.backbones, *self.missing)}

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """{name: names of its classes} of the backbones that have some."""
        return {name: tuple(classes) for name, backbone in self.backbones.items()
                if (classes := getattr(backbone, "classes", ()))}

    def not_shipped(self) -> dict[str, str]:
        """⇒ {figure: why it is missing} of the backbones that papers report and this project has no adapter for."""
        return dict(NOT_SHIPPED)

    def add(self, sounds: Iterable[SoundMeasurements]) -> None:
        """Embed each sound by each backbone whose embeddings it lacks, now or in a later batch. Waveforms are
        released."""
        for sound in sounds:
            for name in self.backbones:
                if name not in sound.embeddings:
                    assert sound.waveform is not None
                    queue = self._waiting.setdefault(name, [])
                    queue.append((sound, sound.waveform))
                    if len(queue) >= self.batch_size:
                        self._flush(name)
            sound.waveform = None

    def finish(self) -> None:
        """Embed the sounds that are still waiting."""
        for name in self._waiting:
            self._flush(name)

    def _flush(self, name: str) -> None:
        backbone, waiting = self.backbones[name], self._waiting[name]
        self._waiting[name] = []
        outputs = embed(backbone, [resample(wave, SAMPLE_RATE_HZ, backbone.sample_rate_hz) for _, wave in waiting])
        for (sound, _), output in zip(waiting, outputs):
            arrays: Arrays = {"embeddings": output.embeddings}
            if output.logits is not None:
                arrays["logits"] = output.logits
            sound.embeddings[name] = arrays
            self.cache.put(backbone_key(backbone.fingerprint, sound.digest), arrays)


@dataclass
class Ceiling:
    """The ceiling of a model's figures: the true sound through its VAE and vocoder.

    folder: of the model. metrics: the ones that need waveforms. device: of torch.
    """

    folder: Path
    metrics: Sequence[Metric] = ()
    device: str = "cpu"
    cache: FeatureCache = FeatureCache(None)
    pipeline: Pipeline = field(init=False)
    hash: str = field(init=False)

    def __post_init__(self):
        self.pipeline = load(self.folder, self.device)
        self.hash = identify(self.folder)["hash"]

    def measure(self, true: SoundMeasurements) -> SoundMeasurements:
        """A true sound, with its waveform ⇒ the same sound encoded, decoded and vocoded, measured like any other."""
        assert true.waveform is not None
        digest = cache_key("ceiling", self.hash, true.digest)
        key = cache_key("waveform", digest)
        cached = self.cache.get(key)
        waveform = cached["waveform"] if cached is not None else self.through(true.waveform)
        if cached is None:
            self.cache.put(key, {"waveform": waveform})
        values = {metric.key: waveform_value(metric, true.waveform, waveform) for metric in self.metrics}
        return SoundMeasurements(sound_features(waveform), digest, waveform=waveform, pair_values=values)

    def through(self, waveform: np.ndarray) -> np.ndarray:
        """(samples,) of any length ⇒ (samples,), through VAE and vocoder."""
        moments = torch.from_numpy(self.pipeline.codec.encode_moments(waveform))[None]
        mean = moments.chunk(2, dim=1)[0].to(self.pipeline.device)
        return fit_length(self.pipeline.decode(mean)[0].numpy(), len(waveform))
