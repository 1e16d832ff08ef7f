"""Backbones: networks that turn a sound into embeddings, and some into class logits too. The contract, and the released
networks that papers evaluate with:

- VGGish (Hershey et al., 2017): the embeddings behind FAD, in the layout of harritaylor/torchvggish's checkpoint.
- PANNs' Cnn14 (Kong et al., 2020): an embedding and 527 AudioSet classes a sound, in the layout of its checkpoints.
- LAION's CLAP (Wu et al., 2023) through transformers: one embedding a sound, and one a sentence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checkpoints.registry import digest, read_state, require
from ..media.audio import resample
from ..runtime.errors import InputError

__path__: list[str] = []  # lets an import of the former metrics.backbones.base get to runtime/former_modules.py


@dataclass(frozen=True)
class Embedding:
    """A backbone's output for one sound.

    embeddings (R, D) float32: one row for the whole sound, or one per window of it; R is 0 where the sound is shorter
    than a window ("not defined"). logits (C,) float32 before any softmax or sigmoid, or None. sound_events (E, 2)
    float32: onsets in seconds and numbers of classes, or None where the network detects none.
    """

    embeddings: np.ndarray
    logits: np.ndarray | None = None
    sound_events: np.ndarray | None = None


Heard = Embedding  # its name in version 0.1.0, which adapters of users import


class Backbone(Protocol):
    """An embedding network behind one method.

    name: in settings. fingerprint: changes with the weights and with everything else that changes an embedding;
    it is part of the cache's keys. sample_rate_hz: of the sounds it takes. dim: length of its embeddings.
    """

    name: str
    fingerprint: str
    sample_rate_hz: int
    dim: int

    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        """⇒ one embedding per sound, in order.

        An embedding depends on its own sound alone, up to rounding: not on the batch, not on padding.

        Args:
            waveforms: mono sounds (samples,) float32 at ``sample_rate_hz``, of any lengths.

        Raises:
            InputError: a sound is empty, or holds NaN or infinity.
        """
        ...


def embed(backbone: Any, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
    """⇒ :meth:`Backbone.embed` of a backbone, or the method ``hear`` of an adapter for version 0.1.0."""
    method = getattr(backbone, "embed", None) or backbone.hear
    return method(waveforms)


def check_sounds(waveforms: Sequence[np.ndarray]) -> None:
    """Raises InputError where a sound is empty, not mono, or holds NaN or infinity."""
    for waveform in waveforms:
        if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
            raise InputError(f"a backbone takes finite mono sounds of shape (samples,), got shape {waveform.shape}"
                             f"{'' if np.isfinite(waveform).all() else ' with NaN or infinity'}")


def by_length(waveforms: Sequence[np.ndarray],
              embed_batch: Callable[[np.ndarray], list[Embedding]]) -> list[Embedding]:
    """⇒ embeddings in order, of batches of equally long sounds: padding would change an embedding.

    Args:
        waveforms: mono sounds (samples,), of any lengths.
        embed_batch: (B, samples) float32 ⇒ B embeddings.

    Raises:
        InputError: see :func:`check_sounds`.
    """
    check_sounds(waveforms)
    groups: dict[int, list[int]] = {}
    for i, waveform in enumerate(waveforms):
        groups.setdefault(len(waveform), []).append(i)
    embeddings: dict[int, Embedding] = {}
    for members in groups.values():
        embeddings |= zip(members, embed_batch(np.stack([waveforms[i] for i in members]).astype(np.float32)))
    return [embeddings[i] for i in range(len(waveforms))]


RATE_HZ = 16_000
WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
BANDS, LOWEST_HZ, HIGHEST_HZ = 64, 125.0, 7500.0
PATCH_FRAMES = 96  # 0.96 s; patches follow each other without overlap
LOG_OFFSET = 0.01
_AT_ONCE = 64  # patches


def vggish_patches(waveform: np.ndarray) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ (patches, 96, 64) float32: log of mel magnitudes.

    Frames of a periodic Hann window of 25 ms every 10 ms, none padded; bands whose weights are linear in mel (HTK's
    formula) from 125 to 7500 Hz, without the constant component; ln(x + 0.01). The rest at the end is left out: 8.2 s
    are 8 patches, and less than 0.975 s are none. (torchvggish ``mel_features.py``.)
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
        features = self.features(patches[:, None])
        return self.embeddings(rearrange(features, "b c t f -> b (t f c)"))  # as TensorFlow left them


class VGGishBackbone:
    """A :class:`~.backbones.Backbone`: a row per 0.96 s. weights: folder with ``vggish-10086976.pth``."""

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
    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        check_sounds(waveforms)
        patches = [vggish_patches(waveform) for waveform in waveforms]
        rows = [self.network(part.to(self.device)).cpu()
                for part in torch.from_numpy(np.concatenate(patches)).split(_AT_ONCE)] if any(map(len, patches)) else []
        embeddings = torch.cat(rows).numpy() if rows else np.zeros((0, self.dim), np.float32)
        ends = np.cumsum([len(part) for part in patches])
        return [Embedding(embeddings[end - len(part):end]) for part, end in zip(patches, ends)]


# ---------------------------------------------------------------- PANNs

AUDIOSET_CLASSES = 527
CNN14_WIDTHS = (64, 128, 256, 512, 1024, 2048)
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


FRONT_ENDS = {"panns_16k": FrontEnd(16_000, 512, 160, 50, 8000), "panns_32k": FrontEnd(32_000, 1024, 320, 50, 14_000),
              "panns_events": FrontEnd(32_000, 1024, 320, 50, 14_000)}


class LogMelFilterBank(nn.Module):
    """(B, samples) ⇒ (B, frames, 64) dB: centred frames with reflected edges, power, 10 lg max(x, 1e-10)."""

    melW: Tensor  # noqa: N815  the name in the checkpoint
    window: Tensor

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        from ..runtime.librosa_import import librosa

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
        for number, (before, after) in enumerate(zip((1, *CNN14_WIDTHS), CNN14_WIDTHS), 1):
            setattr(self, f"conv_block{number}", ConvBlock(before, after, pool=1 if number == len(CNN14_WIDTHS) else 2))
        self.fc1 = nn.Linear(CNN14_WIDTHS[-1], CNN14_WIDTHS[-1])
        self.fc_audioset = nn.Linear(CNN14_WIDTHS[-1], AUDIOSET_CLASSES)

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        x = self.segments(waveform)
        embedding = F.relu(self.fc1(x.amax(dim=2) + x.mean(dim=2)))
        return embedding, self.fc_audioset(embedding)

    def segments(self, waveform: Tensor) -> Tensor:
        """(B, samples) ⇒ (B, 2048, segments) of 32 frames each."""
        x = self.logmel_extractor(waveform)[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, len(CNN14_WIDTHS) + 1):
            x = getattr(self, f"conv_block{number}")(x)
        return x.mean(dim=3)


class Cnn14DecisionLevelMax(Cnn14):
    """The same layers, trained to tag each segment ⇒ the mean of the segments' hidden features, the largest logits of
    any segment, and the logits of each segment (B, segments, 527)."""

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        x = self.segments(waveform)
        x = F.max_pool1d(x, 3, 1, 1) + F.avg_pool1d(x, 3, 1, 1)
        hidden = F.relu(self.fc1(x.transpose(1, 2)))
        logits = self.fc_audioset(hidden)
        return hidden.mean(dim=1), logits.amax(dim=1), logits


class PannsBackbone:
    """A :class:`~.backbones.Backbone`: one row of 2048 and 527 logits a sound, of "panns_events" its events too.

    name: "panns_16k", "panns_32k" or "panns_events", a Cnn14DecisionLevelMax; weights: the folder of their files.
    """

    dim = CNN14_WIDTHS[-1]

    def __init__(self, name: str, weights: Path | None = None, device: str = "cpu") -> None:
        path = require(name, weights)
        front = FRONT_ENDS[name]
        self.name, self.sample_rate_hz = name, front.rate_hz
        self.shortest = _SHORTEST_FRAMES * front.hop_samples
        self.device = torch.device(device)
        self.detects_events = name == "panns_events"
        self.network = Cnn14DecisionLevelMax(front) if self.detects_events else Cnn14(front)
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
        self.fingerprint = f"{name}-{digest(path)}{'-1' if self.detects_events else ''}"  # 1: version of tagged_onsets

    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        return by_length(waveforms, self._embed_batch)

    @torch.inference_mode()
    def _embed_batch(self, batch: np.ndarray) -> list[Embedding]:
        if batch.shape[1] < self.shortest:
            return [Embedding(np.zeros((0, self.dim), np.float32)) for _ in batch]
        outputs = [output.cpu().numpy() for output in self.network(torch.from_numpy(batch).to(self.device))]
        found = [Embedding(e[None], x) for e, x in zip(*outputs[:2])]
        if not self.detects_events:
            return found
        from .alignment import tagged_onsets  # with packages that take a second to import

        sounds = [resample(sound, self.sample_rate_hz, RATE_HZ) for sound in batch]
        segment_s = self.shortest / self.sample_rate_hz
        return [replace(output, sound_events=tagged_onsets(sound, tags, segment_s))
                for output, sound, tags in zip(found, sounds, outputs[2])]


# ---------------------------------------------------------------- CLAP

CLAP_ENTRY = "clap-htsat-unfused"
CLAP_LONGEST_S = 10.0  # of longer sound the released processor takes a random piece


class ClapBackbone:
    """A :class:`~.backbones.Backbone`: one row a sound, of its first 10 s. weights: folder of ``clap-htsat-unfused/``.

    The released processor repeats and pads shorter sound, as in training. There are no classes. :meth:`embed_text`
    embeds captions in the same space: the cosine of both is the CLAP score.
    """

    name = "clap"

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        from transformers import ClapModel, ClapProcessor

        folder = require(CLAP_ENTRY, weights)
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

    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        longest = round(CLAP_LONGEST_S * self.sample_rate_hz)
        return by_length([waveform[:longest] for waveform in waveforms], self._embed_batch)

    @torch.inference_mode()
    def _embed_batch(self, batch: np.ndarray) -> list[Embedding]:
        inputs = self.processor(audio=list(batch), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        rows = self.model.get_audio_features(**inputs.to(self.device))
        return [Embedding(row[None]) for row in rows.float().cpu().numpy()]

    @torch.inference_mode()
    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Captions ⇒ (n, dim) float32, in the space of the sounds. One that CLAP cuts is told by a warning."""
        tokenizer = self.processor.tokenizer
        for sentence, ids in zip(sentences, tokenizer(list(sentences), verbose=False)["input_ids"]):
            if len(ids) > tokenizer.model_max_length:
                warnings.warn(f"the caption '{sentence[:40]}…' has {len(ids)} tokens, of which CLAP reads the first "
                              f"{tokenizer.model_max_length}", stacklevel=2)
        inputs = self.processor(text=list(sentences), padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**inputs.to(self.device)).float().cpu().numpy()
