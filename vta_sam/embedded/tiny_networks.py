"""A weights file of a tiny model: fp16 tensors, and one YAML text that says what they are and how good they are."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..runtime.errors import InputError
from ..runtime.files import write_bytes, write_text

# MERGED-DOC """The convolutional blocks of both tiny networks."""


SHIPPED = Path(__file__).resolve().parent / "weights"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TinyWeights:
    """What a weights file holds. tensors: float32 by name. about: kind, version, classes, sizes (arguments of the
    network), scenes_version, recipe, figures. fingerprint: kind, version and the first 12 digits of the file's SHA-256.
    """

    tensors: dict[str, Tensor]
    about: dict
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.about["classes"])


def write_weights(path: Path | str, network: nn.Module, about: dict) -> None:
    """Write a network's state as fp16 with ``about`` inside, and the same text as ``<name>.yaml`` beside it to read.

    Raises InputError where a value doesn't fit fp16, which would ship infinities.
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
    """Read and check a weights file of this kind ("trunk", "tagger"). InputError: missing, torn, or of another kind."""
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
    """Copy tensors into a network. InputError: names or shapes are not those of the sizes in the header."""
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
    """3×3 convolution and batch normalisation; :func:`fold` melts the second into the first for inference.

    (B, channels_in, h, w) ⇒ (B, channels_out, ⌈h / stride⌉, ⌈w / stride⌉); stride one number or (height, width).
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
    """A copy of a network for inference, the batch normalisations of its :class:`Conv` melted into the convolutions."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, Conv) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return folded
