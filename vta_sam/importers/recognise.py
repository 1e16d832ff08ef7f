"""A released checkpoint ⇒ a model folder, whichever of the known kinds it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .account import Account

KINDS = """a file such as audioldm-s-full.ckpt (AudioLDM), or a folder with vae/ and vocoder/ (AudioLDM in diffusers' \
layout), with main_config.json (Tango), or with summary.jsonl (VTA-LDM)"""


def import_checkpoint(checkpoint: Path, out: Path, folders: Sequence[Path] = (),
                      instead: dict[str, str] | None = None) -> list[Account]:
    """Import ``checkpoint`` into the model folder ``out`` ⇒ the accounts of its files of weights.

    folders: where parts that it names may lie, beside its own. instead: {key: name} in place of what it names. Raises
    InputError where it is of no known kind, or can't be imported; then ``out`` is not written.
    """
    from . import audioldm, audioldm_diffusers, tango, vta_ldm

    if (checkpoint / vta_ldm.SUMMARY).is_file():
        return vta_ldm.import_vta_ldm(checkpoint, out, folders, instead)
    if (checkpoint / tango.MAIN_CONFIG).is_file():
        return tango.import_tango(checkpoint, out, folders, instead)
    if (checkpoint / "vae" / "config.json").is_file():
        return audioldm_diffusers.import_audioldm_diffusers(checkpoint, out)
    if checkpoint.is_dir():
        raise InputError(f"{checkpoint} is no checkpoint that is known here: {KINDS}")
    return audioldm.import_audioldm(checkpoint, out)
