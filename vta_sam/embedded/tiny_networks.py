"""The tiny networks of the embedded world: blocks, weight files, the image trunk and the audio tagger."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..mel import FFT_SAMPLES, FIGURES, LOG_FLOOR, N_MELS, SAMPLE_RATE_HZ, LogMel
from ..metrics.backbones import Embedding, by_length
from ..runtime.errors import InputError
from ..runtime.files import write_bytes, write_text

SHIPPED = Path(__file__).resolve().parent / "weights"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TinyWeights:
    """The content of a weights file.

    Attributes:
        tensors: float32 by name.
        about: kind, version, classes, sizes (arguments of the network), scenes_version, recipe, figures.
        fingerprint: kind, version and the first 12 digits of the file's SHA-256.
    """

    tensors: dict[str, Tensor]
    about: dict
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about["classes"])


def write_weights(path: Path | str, network: nn.Module, about: dict) -> None:
    """Write a network's state as fp16 with ``about`` in the header, and ``about`` as ``<name>.yaml`` beside it.

    Args:
        path: of the safetensors file.
        network: whose state is written.
        about: content of the header, see :class:`TinyWeights`.

    Raises:
        InputError: a value doesn't fit fp16.
    """
    path = Path(path)
    tensors = {name: t.detach().cpu().to(torch.float16).contiguous() for name, t in network.state_dict().items()}
    broken = [name for name, t in tensors.items() if not t.isfinite().all()]
    if broken:
        raise InputError(f"{path}: {', '.join(broken)} hold values that don't fit fp16; train anew at a lower rate")
    text = yaml.safe_dump({"format": FORMAT_VERSION, **about}, sort_keys=False, width=120)
    write_bytes(path, save(tensors, metadata={"about": text}))
    write_text(path.with_suffix(".yaml"), text)


def read_weights(path: Path | str, kind: str) -> TinyWeights:
    """The checked content of a weights file.

    Args:
        path: of the safetensors file.
        kind: "trunk" or "tagger".

    Raises:
        InputError: the file is missing, torn, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is missing: it should hold the tiny {kind}; run experiments/train_tiny.py model={kind}"
        )
    content = path.read_bytes()
    try:
        tensors = {name: t.float() for name, t in load(content).items()}
        about = yaml.safe_load(_header(content)["__metadata__"]["about"])
        found = (about["kind"], about["format"])
        sizes, classes = about["sizes"], about["classes"]
    except (SafetensorError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} can't be read as weights of the tiny {kind} ({error!r}); restore or retrain it"
        ) from error
    if found != (kind, FORMAT_VERSION):
        raise InputError(
            f"{path} holds a tiny {found[0]!r} of format {found[1]}, expected {kind!r} of {FORMAT_VERSION}"
        )
    if not isinstance(sizes, dict) or not isinstance(classes, list) or not classes:
        raise InputError(
            f"{path}: its header should give sizes and classes, got {sizes!r} and {classes!r}; retrain it"
        )
    digest = hashlib.sha256(content).hexdigest()[:12]
    return TinyWeights(tensors, about, f"tiny-{kind}-{about['version']}-{digest}")


def fill(network: nn.Module, weights: TinyWeights, name: str) -> None:
    """Copy the tensors of the file ``name`` into a network. Raises InputError where names or shapes differ."""
    try:
        network.load_state_dict(weights.tensors)
    except RuntimeError as error:
        raise InputError(
            f"{name}: tensors don't fit the sizes in its header ({error}); restore or retrain it"
        ) from error


def _header(content: bytes) -> dict:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


M = TypeVar("M", bound=nn.Module)


class Conv(nn.Module):
    """3×3 convolution and batch normalisation, which :func:`fold` merges into one convolution for inference.

    (B, channels_in, h, w) ⇒ (B, channels_out, ⌈h / stride⌉, ⌈w / stride⌉). stride: one number or (height, width).
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int | tuple[int, int] = 1, folded: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=folded)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """x + conv(relu(conv(x))), then relu (He et al., 2016)."""

    def __init__(self, channels: int, folded: bool) -> None:
        super().__init__()
        self.first, self.second = Conv(channels, channels, 1, folded), Conv(channels, channels, 1, folded)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.second(F.relu_(self.first(x))).add_(x))


def fold(network: M) -> M:
    """A copy of a network for inference, the batch normalisations of its :class:`Conv` merged into the convolutions."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, Conv) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return folded


IMAGE_SIZE = (72, 96)  # height, width of the trunk's input
HEAT_SIZE = (24, 32)  # height, width of its heat maps
SHIPPED_TRUNK = SHIPPED / "tiny_trunk.safetensors"


class TrunkOutput(NamedTuple):
    """The trunk's output for B pictures and W words.

    Attributes:
        heat: (B, W, 24, 32) logits that the thing covers a cell.
        presence: (B, W) logits that at least a quarter of the thing is in view.
        hidden: (B, W, hidden) features of each thing.
        embedding: (B, Dv) of the pictures.
    """

    heat: Tensor
    presence: Tensor
    hidden: Tensor
    embedding: Tensor


class Trunk(nn.Module):
    """Pictures (B, 72, 96, 3) uint8 RGB ⇒ :class:`TrunkOutput` for all words of its table.

    Convolutions go to a quarter and an eighth of the picture's size, and are added top-down to ``features`` per cell. A
    word is a row e of the table. The heat of a cell is the inner product of its features with e. Softmax over the heat
    pools the features of each thing, and an MLP maps the pooled features to the thing's hidden features and presence.
    The picture's embedding is a linear map, then LayerNorm, of all hidden features weighted by presence and of features
    pooled over the whole picture.

    Args:
        words: rows of the table.
        word_dim: length De of a word's vector; each row has norm sqrt(De).
        embedding_dim: length Dv of a picture's embedding.
        widths: channels at a half, a quarter and an eighth of the picture's size.
        features: channels of the cells' features.
        hidden: width of the MLP on the pooled features.
        part_dim: share of one word in the picture's embedding, before its linear map.
        free_dim: share of the whole picture.
        folded: build without batch normalisation, as :func:`~vta_sam.embedded.tiny_networks.fold` returns it.
    """

    def __init__(
        self,
        words: int = 10,
        word_dim: int = 32,
        embedding_dim: int = 64,
        widths: tuple[int, int, int] = (24, 48, 96),
        features: int = 64,
        hidden: int = 64,
        part_dim: int = 6,
        free_dim: int = 20,
        folded: bool = False,
    ) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.embedding_dim = embedding_dim
        self.word_dim = word_dim
        self.stem = Conv(3, half, 2, folded)
        self.quarter = Conv(half, quarter, 2, folded)
        self.quarter_more = Residual(quarter, folded)
        self.eighth = Conv(quarter, eighth, 2, folded)
        self.eighth_more = Residual(eighth, folded)
        self.down = nn.Conv2d(eighth, quarter, 1)
        self.cells = Conv(quarter, features, 1, folded)

        self.words = nn.Parameter(nn.init.orthogonal_(torch.empty(words, word_dim)))
        self.ask = nn.Conv2d(features, word_dim, 1)
        self.heat_bias = nn.Parameter(torch.tensor(-3.0))
        self.focus = nn.Parameter(torch.tensor(1.0))  # sharpness of the pooling
        self.read = nn.Sequential(nn.Linear(features + word_dim + 5, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.present = nn.Linear(hidden, 1)
        self.part = nn.Linear(hidden, part_dim)
        self.free = nn.Sequential(nn.Linear(2 * eighth, 2 * free_dim), nn.ReLU(), nn.Linear(2 * free_dim, free_dim))
        self.embed = nn.Linear(words * part_dim + free_dim, embedding_dim)
        self.embed_norm = nn.LayerNorm(embedding_dim)

    def table(self) -> Tensor:
        """The words' vectors ⇒ (words, word_dim), rows of norm sqrt(word_dim)."""
        return F.normalize(self.words, dim=1) * self.word_dim**0.5

    def forward(self, pictures: Tensor) -> TrunkOutput:
        return self.forward_normalised(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def forward_normalised(self, x: Tensor) -> TrunkOutput:
        """:class:`TrunkOutput` of pictures (B, 3, 72, 96) that are already scaled to about [-1, 1]."""
        x = self.quarter_more(F.relu_(self.quarter(F.relu_(self.stem(x)))))
        deep = self.eighth_more(F.relu_(self.eighth(x)))
        cells = F.relu_(self.cells(x + F.interpolate(self.down(deep), size=x.shape[2:], mode="nearest")))
        words = self.table()
        heat = torch.einsum("bdhw,kd->bkhw", self.ask(cells), words) / self.word_dim**0.5 + self.heat_bias
        hidden = self._read(cells, heat, words)
        presence = self.present(hidden)[..., 0]
        parts = self.part(hidden) * presence.sigmoid()[..., None]
        whole = self.free(torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], 1))
        embedding = self.embed_norm(self.embed(torch.cat([parts.flatten(1), whole], 1)))
        heat = F.interpolate(heat, size=HEAT_SIZE, mode="bilinear", align_corners=False)
        return TrunkOutput(heat, presence, hidden, embedding)

    def _read(self, cells: Tensor, heat: Tensor, words: Tensor) -> Tensor:
        """Hidden features (B, W, hidden) of each word, from cells (B, C, h, w) pooled under its heat (B, W, h, w)."""
        batch, _, height, width = cells.shape
        weight = (heat.flatten(2) * self.focus).softmax(-1)
        pooled = weight @ cells.flatten(2).transpose(1, 2)
        y = torch.linspace(-1, 1, height, device=cells.device).repeat_interleave(width)
        x = torch.linspace(-1, 1, width, device=cells.device).repeat(height)
        place = weight.float() @ torch.stack([x, y, x * x + y * y], 1)
        covered = heat.flatten(2).sigmoid().mean(-1).sqrt()
        geometry = torch.cat([place, covered[..., None], heat.flatten(2).amax(-1)[..., None] / 8], -1)
        queries = words.expand(batch, -1, -1)
        return self.read(torch.cat([pooled, queries, geometry.to(pooled.dtype)], -1)).relu()


def load_trunk(path: Path | str | None = None) -> tuple[Trunk, TinyWeights]:
    """The trunk of a weights file, frozen and in eval mode, and the content of the file.

    Args:
        path: None: the shipped file.

    Raises:
        InputError: the file can't be used, see :func:`read_weights`.
    """
    path = Path(path) if path is not None else SHIPPED_TRUNK
    weights = read_weights(path, "trunk")
    trunk = Trunk(**{**weights.about["sizes"], "folded": True})
    fill(trunk, weights, str(path))
    return trunk.eval().requires_grad_(False).to(memory_format=torch.channels_last), weights


RANGE_NATS = 6.9  # 60 dB; quieter bins count as silence, measured from a clip's loudest bin
PEAK = 0.5
SHIPPED_TAGGER = SHIPPED / "tiny_tagger.safetensors"


class Tagger(nn.Module):
    """Waveforms at 16 kHz ⇒ logits of the classes, or an embedding per sound. Level and pauses change neither.

    Convolutions run over the log-mel, clipped at 60 dB below its loudest bin. Frames are averaged with their energy as
    weight, so that pauses have none.

    Args:
        classes: names of the classes, in the order of the logits.
        widths: channels of the four convolutions.
        embedding_dim: length of a sound's embedding.
        folded: build without batch normalisation, as :func:`~vta_sam.embedded.tiny_networks.fold` returns it.
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
        self.log_mel = LogMel(FIGURES)
        strides = ((2, 2), (2, 2), (1, 2), (2, 2))  # frames, mel bins
        self.convs = nn.ModuleList(
            Conv(before, after, stride, folded) for before, after, stride in zip((1, *widths), widths, strides)
        )
        self.frame = nn.Linear(widths[-1] * N_MELS // 16, 2 * embedding_dim)
        self.vector = nn.Linear(2 * embedding_dim, embedding_dim)
        self.classify = nn.Linear(embedding_dim, len(self.classes))

    def logits(self, waveform: Tensor) -> Tensor:
        """Waveforms (B, samples) float ⇒ logits (B, classes)."""
        return self.classify(F.relu(self.embed(waveform)))

    def embed(self, waveform: Tensor) -> Tensor:
        """Waveforms (B, samples) float ⇒ (B, embedding_dim)."""
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
        frames = F.relu(self.frame(rearrange(x, "b c t f -> b t (c f)")))
        energy = F.adaptive_avg_pool1d(level.square().mean(2)[:, None], frames.shape[1]) + 1e-5
        return self.vector((energy @ frames)[:, 0] / energy.sum(2))


def load_tagger(path: Path | str | None = None) -> Tagger:
    """The tagger of a weights file, frozen and in eval mode; its ``fingerprint`` names the weights.

    Args:
        path: None: the shipped file.

    Raises:
        InputError: the file can't be used, see :func:`read_weights`.
    """
    path = Path(path) if path is not None else SHIPPED_TAGGER
    weights = read_weights(path, "tagger")
    tagger = Tagger(weights.classes, **{**weights.about["sizes"], "folded": True})
    fill(tagger, weights, str(path))
    tagger.fingerprint = weights.fingerprint
    return tagger.eval().requires_grad_(False)


class TinyBackbone:
    """A :class:`~vta_sam.metrics.backbones.Backbone` made of the tagger.

    Args:
        weights: not used, since the project ships the tagger.
        device: "cpu", "cuda", …
    """

    name = "tiny"
    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.tagger = load_tagger().to(self.device)
        self.classes = self.tagger.classes
        self.dim = self.tagger.embedding_dim
        self.fingerprint = f"tiny-{self.tagger.fingerprint}"

    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        """Waveforms, each (samples,) ⇒ an embedding of each, (0, dim) for a sound of 64 ms and less."""
        return by_length(waveforms, self._embed_batch)

    @torch.inference_mode()
    def _embed_batch(self, batch: np.ndarray) -> list[Embedding]:
        if batch.shape[1] <= FFT_SAMPLES:
            return [Embedding(np.zeros((0, self.dim), np.float32)) for _ in batch]
        embeddings = self.tagger.embed(torch.from_numpy(batch).to(self.device))
        logits = self.tagger.classify(F.relu(embeddings))
        return [Embedding(e[None], x) for e, x in zip(embeddings.cpu().numpy(), logits.cpu().numpy())]
