"""A weights file of a tiny model: fp16 tensors, and one YAML text that says what they are and how good they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..atomic import write_bytes, write_text
from ..errors import InputError

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
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
