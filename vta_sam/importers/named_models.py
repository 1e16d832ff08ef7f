"""A released checkpoint ⇒ a model folder, whichever of the known kinds it is. Released models by name: fetched and
imported when first asked for, and kept beside the released weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..checkpoints.model_folder import YAML_NAME, refuse_existing
from ..checkpoints.registry import ReleasedFile, find_entry, require, weights_folder
from ..runtime.errors import InputError
from ..runtime.files import exclusive
from ..runtime.work_plan import Deed, Item, Plan
from .components import Account

KINDS = """a file such as audioldm-s-full.ckpt (AudioLDM), or a folder with vae/ and vocoder/ (AudioLDM in diffusers' \
layout), with main_config.json (Tango), or with summary.jsonl (VTA-LDM)"""


def import_checkpoint(checkpoint: Path, out: Path, folders: Sequence[Path] = (),
                      instead: dict[str, str] | None = None) -> list[Account]:
    """Import ``checkpoint`` into the model folder ``out`` ⇒ the accounts of its files of weights.

    folders: where parts that it names may lie, beside its own. instead: {key: name} in place of its own. Raises
    InputError where it is of no known kind, or can't be imported; then ``out`` is not written.
    """
    from . import systems

    if (checkpoint / systems.SUMMARY).is_file():
        return systems.import_vta_ldm(checkpoint, out, folders, instead)
    if (checkpoint / systems.MAIN_CONFIG).is_file():
        return systems.import_tango(checkpoint, out, folders, instead)
    if (checkpoint / "vae" / "config.json").is_file():
        return systems.import_audioldm_diffusers(checkpoint, out)
    if checkpoint.is_dir():
        raise InputError(f"{checkpoint} is no checkpoint that is known here: {KINDS}")
    return systems.import_audioldm(checkpoint, out)


def import_plan(checkpoint: Path, out: Path) -> Plan:
    """What :func:`import_checkpoint` writes. Raises InputError where ``out`` or no checkpoint is there."""
    refuse_existing(out)
    if not checkpoint.exists():
        raise InputError(f"{checkpoint} doesn't exist; name {KINDS}")
    return Plan("model folder", [Item(out.name, Deed.MAKE, f"of {checkpoint}")], out.parent)


@dataclass(frozen=True)
class ReleasedModel:
    """entries: of the table of released weights, first the model's own. without: files of theirs that it doesn't
    read."""

    entries: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def files(self) -> list[ReleasedFile]:
        return [file for name in self.entries for file in find_entry(name).files if file.path not in self.without]


_LONGEST_WAIT_S = 3600.0  # for another process that imports the same model
_CLIP = "clip-vit-large-patch14"
MODELS = {
    # its checkpoint has CLIP's weights, and it doesn't normalise pictures
    "vta_ldm": ReleasedModel(("vta-ldm", "audioldm-s-full", _CLIP, "stable-diffusion-2-1"),
                             (f"{_CLIP}/model.safetensors", f"{_CLIP}/preprocessor_config.json")),
    "tango": ReleasedModel(("tango", "flan-t5-large", "stable-diffusion-2-1")),
    "audioldm": ReleasedModel(("audioldm-s-full",)),
}


def to_be_imported(name: str | os.PathLike | None, weights: str | os.PathLike | None = None) -> str:
    """What :func:`named_folder` would fetch and import first, in words; "" where it is a folder already."""
    model, root = MODELS.get(str(name)), weights_folder(weights)
    if model is None or (root / "imported" / str(name) / YAML_NAME).is_file():
        return ""
    missing = sum(not (root / file.path).is_file() for file in model.files)
    fetched = f"{missing} files are fetched, and " if missing else ""
    return f"{fetched}it is imported into {root / 'imported' / str(name)} first, once"


def named_folder(name: str | os.PathLike, weights: str | os.PathLike | None = None) -> Path:
    """A name of :data:`MODELS` ⇒ its model folder, ``imported/<name>`` below the folder of released weights; anything
    else ⇒ the path that it is.

    Missing files are fetched, and the model is imported once. Processes that ask at the same time wait for each
    other. A folder of
    one's own that is called like a model is named ``./name``. Raises InputError with every file that is missing and
    where to put it, where it can't be fetched, and as the importer does.
    """
    model = MODELS.get(str(name))
    if model is None:
        return Path(name)
    root = weights_folder(weights)
    target = root / "imported" / str(name)
    if (target / YAML_NAME).is_file():
        return target
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{name}: fetched if need be, and imported into {target}, once", markup=False)
    _fetch_missing(model, root, console)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent} can't be written to ({error.strerror}); say in $VTA_SAM_WEIGHTS which "
                         "folder keeps released weights, and what is made of them") from error
    with exclusive(target, lambda: print(f"{target}: another process is importing it; waiting", file=sys.stderr),
                   _LONGEST_WAIT_S):
        if not (target / YAML_NAME).is_file():
            checkpoint = require(model.entries[0], weights)
            for account in import_checkpoint(checkpoint, target, [root]):
                console.print(account.path, *account.lines(), sep="\n  ", markup=False)
    return target


def _fetch_missing(model: ReleasedModel, root: Path, console: Console) -> None:
    from ..checkpoints.weights_report import fetch_all

    missing = [file for file in model.files if not (root / file.path).is_file()]
    try:
        fetch_all(missing, root, console=console)
    except InputError as error:
        still = [file for file in missing if not (root / file.path).is_file()]
        places = "".join(f"\n  {file.url}\n    to {(root / file.path).resolve()}" for file in still)
        raise InputError(f"{error}\nWhat is missing:{places}") from error
