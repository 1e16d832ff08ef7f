"""The backbones of an evaluation: which there are, their embeddings of every sound, and a model's ceiling; and figures
of other backbones, read in from av-benchmark's result files.

docs/backbones.md says how to add one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.model_folder import load_weights, read_recipe
from ..clip import FrameClock
from ..dataset.shards.schema import read_dataset
from ..diffusion.windows import Windows, vocode
from ..embedded.tiny_networks import SHIPPED
from ..generation.build import (
    build_part, identify, inference_precision, load_codec, load_vocoder, require_same_features
)
from ..generation.pipeline import limited
from ..media.audio import fit_length, resample
from ..mel import HOP_SAMPLES, SAMPLE_RATE_HZ
from ..metrics.backbones import Backbone, Embedding, embed
from ..metrics.intervals import Interval
from ..metrics.sync_network import LEAST_STEPS, STEP_S, SyncNetwork, figures_mels
from ..runtime.distributed import mixed_precision
from ..runtime.errors import InputError
from ..vae.codec import MelCodec
from .measure import backbone_key
from .metric import SYNC, Better, Metric, SoundMeasurements, waveform_value
from .pairing import records_of
from .results import Evaluation, Figure
from .sounds import Arrays, FeatureCache, cache_key, content_hash, sound_features

# name ⇒ (title for readers, whether it has classes)
TITLES: dict[str, tuple[str, bool]] = {
    "tiny": ("embedded tagger", True),
    "vggish": ("VGGish", False),
    "panns_16k": ("PANNs", True),
    "panns_32k": ("PANNs 32 kHz", True),
    "panns_events": ("PANNs, frame-wise", True),
    "clap": ("CLAP", False),
}
SHIPPED_SYNC = SHIPPED / "sync"
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
        from ..embedded.event_detector import EventBackbone

        return EventBackbone(weights, device)
    if name == "vggish":
        from ..metrics.backbones import VGGishBackbone

        return VGGishBackbone(weights, device)
    if name in ("panns_16k", "panns_32k", "panns_events"):
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
        """{name: (title, has classes)}, missing ones too, without the sync network, whose tracks are no embeddings."""
        return {name: TITLES[name] for name in (*self.backbones, *self.missing) if name in TITLES}

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """{name: names of its classes} of the backbones that have some."""
        return {name: tuple(classes) for name, backbone in self.backbones.items()
                if (classes := getattr(backbone, "classes", ()))}

    @property
    def detectors(self) -> list[str]:
        """Names of the loaded backbones that detect sound events too."""
        return [name for name, backbone in self.backbones.items() if getattr(backbone, "detects_events", False)]

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
            if (events := getattr(output, "sound_events", None)) is not None:  # a backbone of one's own has none
                arrays["sound_events"] = events
            sound.embeddings[name] = arrays
            self.cache.put(backbone_key(backbone.fingerprint, sound.digest), arrays)


class SyncTracks:
    """A sync network as a :class:`~vta_sam.metrics.backbones.Backbone`, whose rows are a sound's track.

    Args:
        folder: its model folder; None: the one that the project ships, of the embedded world.
        device: of torch.

    Raises:
        InputError: the folder holds no sync network.
    """

    name, sample_rate_hz = SYNC, SAMPLE_RATE_HZ

    def __init__(self, folder: Path | None, device: str = "cpu"):
        self.folder, self.device = folder or SHIPPED_SYNC, torch.device(device)
        self.recipe = read_recipe(self.folder)
        if self.recipe.sync is None:
            raise InputError(f"sync={self.folder} holds no sync network; experiments/train.py +exp=sync trains one")
        self.network: SyncNetwork = build_part(self.recipe, "sync", self.folder)
        load_weights(self.network, self.folder, "sync")
        self.network.to(self.device).eval()
        self.dim, self.fingerprint = self.network.dim, f"sync-{identify(self.folder)['hash']}"

    @torch.inference_mode()
    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        """⇒ the tracks of sounds of any lengths, in fp16; without a row where one is too short to be judged."""
        least = LEAST_STEPS * HOP_SAMPLES
        return [Embedding(self._track(waveform) if len(waveform) >= least else np.zeros((0, self.dim), np.float16))
                for waveform in waveforms]

    def _track(self, waveform: np.ndarray) -> np.ndarray:
        mels = figures_mels(torch.from_numpy(waveform)[None].to(self.device))
        return self.network.sound(mels)[0].cpu().numpy().astype(np.float16)

    @torch.inference_mode()
    def pictures(self, shards: Path, clips: Collection[str]) -> dict[str, np.ndarray] | str:
        """⇒ {clip: track of its pictures, in fp16}; why there is none, where other extractors made the dataset than the
        network learned from.

        Args:
            shards: the dataset.
            clips: their ids.

        Raises:
            InputError: the dataset can't be read, or has none of the clips.
        """
        try:
            require_same_features(self.recipe.features, self.recipe.spec, f"shards={shards}", read_dataset(shards))
        except InputError as error:
            return f"the sync network in {self.folder} learned from other features; train one on these (+exp=sync), " \
                   f"and name it with sync=. {error}"
        tracks = {}
        for record in records_of(shards, clips):
            steps = round(len(record.frame_embedding) * FrameClock(record.fps).period_s / STEP_S)
            track = self.network.pictures_of(record.frame_embedding, record.probs, record.object_embedding, steps)
            tracks[record.key] = track[0].cpu().numpy().astype(np.float16)
        return tracks


_AT_ONCE = 8  # windows in one call of a network


class RoundTrip:
    """Sound through a model's codec and vocoder, in bounded memory. The model's other networks are not loaded.

    Args:
        folder: of the model.
        device: of torch.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        recipe, self.device = read_recipe(folder), torch.device(device)
        self.spec, self.precision = recipe.spec, inference_precision("auto", self.device, recipe)
        self.codec = load_codec(recipe, folder, self.device, self.precision).to(self.device).eval()
        self.vocoder: Any = load_vocoder(recipe, folder)
        if isinstance(self.vocoder, nn.Module):
            self.vocoder.to(self.device)

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Sounds (samples,) of any lengths, at the rate of figures ⇒ each as long, through codec and vocoder.

        A sound longer than the model's clip goes through the codec in windows of a clip that overlap by a quarter and
        are cross-faded, and through the vocoder in chunks, as in generation. A codec of one's own encodes it whole.
        """
        rate_hz = self.spec.sample_rate_hz
        sounds = [resample(waveform, SAMPLE_RATE_HZ, rate_hz) for waveform in waveforms]
        made = [limited(self._vocoded(decoded)).numpy() for decoded in self._decoded(sounds)]
        return [fit_length(resample(sound, rate_hz, SAMPLE_RATE_HZ), len(waveform))
                for sound, waveform in zip(made, waveforms)]

    def _decoded(self, sounds: Sequence[np.ndarray]) -> list[Tensor]:
        """⇒ log-mels (1, 1, frames, n_mels), or waveforms (1, 1, samples), of the padded sounds."""
        layouts, heard = [], []
        for sound in sounds:
            columns = -(-len(sound) // self.codec.column_samples)
            size = min(columns, self.spec.columns)
            layouts.append(Windows(columns, size, size // 4))
            heard.append(self._heard(fit_length(sound, columns * self.codec.column_samples)))
        cuts = sorted((layout.size, i, start) for i, layout in enumerate(layouts) for start in layout.starts)
        windows: dict[tuple[int, int], Tensor] = {}
        for size, alike in groupby(cuts, key=lambda cut: cut[0]):
            while some := list(islice(alike, _AT_ONCE)):
                decoded = self._decoded_windows([(heard[i], start, size) for _, i, start in some])
                windows |= {(i, start): row for (_, i, start), row in zip(some, decoded)}
        return [layout.blend((windows[i, start][None] for start in layout.starts), 2, self.codec.stride)
                for i, layout in enumerate(layouts)]

    def _decoded_windows(self, cuts: Sequence[tuple[Tensor, int, int]]) -> Tensor:
        """cuts: of what :meth:`_heard` returns, the first column and how many columns."""
        codec = self.codec
        steps = codec.stride if isinstance(codec, MelCodec) else 1
        cut = torch.cat([heard[:, :, start * steps:(start + size) * steps] for heard, start, size in cuts])
        with mixed_precision(self.precision, self.device):
            latents = codec.moments(cut).chunk(2, dim=1)[0] if isinstance(codec, MelCodec) else cut
            return codec.decode(latents).float().cpu()

    def _heard(self, sound: np.ndarray) -> Tensor:
        """What windows are cut out of: the sound's log-mel (1, 1, frames, n_mels), or the latents of a codec of one's
        own, which may normalise what it gets, and so encodes the sound whole."""
        waveform = torch.from_numpy(sound)[None].to(self.device)
        if isinstance(self.codec, MelCodec):
            return self.codec.mel_of(waveform)
        with mixed_precision(self.precision, self.device):
            return self.codec.posterior_mean(waveform)

    def _vocoded(self, decoded: Tensor) -> Tensor:
        if self.codec.decodes_to == "waveform":
            return decoded[0, 0]
        return vocode(self.vocoder, decoded[:, 0].to(self.device), self.spec.mel_frames, self.spec.mel)


@dataclass
class Ceiling:
    """The ceiling of a model's figures: the true sound through its VAE and vocoder, some sounds at once.

    folder: of the model. metrics: the ones that need waveforms. device: of torch. batch_size: sounds at once, of a clip
    of the model each; as many fewer as they are longer.
    """

    folder: Path
    metrics: Sequence[Metric] = ()
    device: str = "cpu"
    cache: FeatureCache = FeatureCache(None)
    batch_size: int = 1
    through: RoundTrip = field(init=False)
    hash: str = field(init=False)
    _waiting: list[tuple[str, SoundMeasurements, np.ndarray]] = field(default_factory=list)

    def __post_init__(self):
        self.through = RoundTrip(self.folder, self.device)
        self.hash = identify(self.folder, ("codec", "vocoder"))["hash"]  # models that share them share a ceiling

    def add(self, clip: str, true: SoundMeasurements) -> dict[str, SoundMeasurements]:
        """A true sound, with its waveform ⇒ {clip: that sound encoded, decoded and vocoded, measured like any other},
        of it and of those that came before it, in their order; {} until there are enough."""
        assert true.waveform is not None
        self._waiting.append((clip, true, true.waveform))
        clips = sum(max(1, len(sound) / SAMPLE_RATE_HZ / self.through.spec.duration_s) for *_, sound in self._waiting)
        return self.finish() if clips >= self.batch_size else {}

    def finish(self) -> dict[str, SoundMeasurements]:
        """⇒ those that are still waiting."""
        waiting, self._waiting = self._waiting, []
        digests = [cache_key("ceiling", _CEILING_VERSION, self.hash, true.digest) for _, true, _ in waiting]
        keys = [cache_key("waveform", digest) for digest in digests]
        found = [self.cache.get(key) for key in keys]
        made = iter(self.through([true for (_, _, true), cached in zip(waiting, found) if cached is None]))
        measured = {}
        for (clip, _, true), digest, key, cached in zip(waiting, digests, keys, found):
            waveform = next(made) if cached is None else cached["waveform"]
            if cached is None:
                self.cache.put(key, {"waveform": waveform})
            values = {metric.key: waveform_value(metric, true, waveform) for metric in self.metrics}
            measured[clip] = SoundMeasurements(sound_features(waveform), digest, waveform=waveform, pair_values=values)
        return measured


_CEILING_VERSION = 2  # in windows, since sounds may be long
AV_BENCHMARK = ("output_metrics.json", "cache/output_metrics.json")  # in a system's folder
_LARGEST_RESULT_BYTES = 1 << 20
_STANDS_FOR = {"PASST": "FD, KL and IS by PaSST", "IB-SCORE": "ImageBind score", "DESYNC": "DeSync by Synchformer"}


def read_in_av_benchmark(evaluation: Evaluation, systems: Mapping[str, Path]) -> None:
    """Add the figures that a user's run of hkchengrex/av-benchmark has left in the systems' folders, under its own
    names. They have no interval, and nothing is best by them.

    Raises:
        InputError: such a file is no flat json of numbers.
    """
    files = {name: path for name, folder in systems.items() for place in AV_BENCHMARK[::-1]
             if (path := folder / place).is_file()}
    found = {name: _numbers(path) for name, path in files.items()}
    for key in dict.fromkeys(key for numbers in found.values() for key in numbers):
        metric = _read_in_metric(key)
        evaluation.metrics.append(metric)
        for name, system in evaluation.systems.items():
            value = found.get(name, {}).get(key)
            system.figures[metric.key] = Figure(None, reason=f"{AV_BENCHMARK[0]} is not beside its sounds") \
                if value is None else Figure(Interval(value, np.nan, np.nan, len(system.clips)))
        for part, missing in _STANDS_FOR.items():
            if part in key.upper().replace("_", "-"):
                evaluation.missing.pop(missing, None)
    if files:
        evaluation.provenance["av_benchmark"] = {name: {"file": str(path), "sha256": content_hash(path)}
                                                 for name, path in files.items()}


def _numbers(path: Path) -> dict[str, float]:
    try:
        numbers = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _LARGEST_RESULT_BYTES else None
    except (OSError, ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, dict) or not all(type(n) in (int, float) and abs(n) < 1e12 for n in numbers.values()):
        raise InputError(f"{path} is no result of av-benchmark, a flat json of names and numbers; mend it, or move it "
                         "away")
    return {name: float(value) for name, value in numbers.items()}


def _read_in_metric(name: str) -> Metric:
    upper = name.upper()
    low, high = upper.startswith(("FD", "KL", "DESYNC")), upper.startswith(("IS", "IB")) or "SCORE" in upper
    better: Better = "none" if upper.endswith("STD") else "low" if low else "high" if high else "none"
    sync = upper == "DESYNC"
    return Metric(f"av_benchmark_{name.lower().replace('-', '_')}", f"{name} (av-benchmark, read in)", better, "set",
                  unit="s" if sync else "", group="Timing" if sync else "Likeness", source="hkchengrex/av-benchmark",
                  definition=f"Read in from {AV_BENCHMARK[0]}, as av-benchmark computed it, of clips not known here.")
