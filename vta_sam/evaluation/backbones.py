"""The backbones that can be asked for by name. docs/backbones.md says how to add one."""

from __future__ import annotations

from pathlib import Path

from ..metrics.backbones import Backbone
from ..runtime.errors import InputError

# name ⇒ (as a reader knows it, whether it has classes)
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
    """A name of TITLES ⇒ the network, its weights read from local files. InputError: no such name, or a file is missing
    (the message says which, and how to get it)."""
    if name == "tiny":
        from ..embedded.tagger import TinyBackbone

        return TinyBackbone(weights, device)
    if name == "vggish":
        from ..metrics.vggish import VGGishBackbone

        return VGGishBackbone(weights, device)
    if name in ("panns_16k", "panns_32k"):
        from ..metrics.panns import PannsBackbone

        return PannsBackbone(name, weights, device)
    if name == "clap":
        from ..metrics.clap import ClapBackbone

        return ClapBackbone(weights, device)
    raise InputError(f"no backbone is called {name!r}; there are {', '.join(TITLES)}")
