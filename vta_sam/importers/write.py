"""An imported model appears whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..model_folder import ModelRecipe, save_model


def refuse_existing(out: Path) -> None:
    """Raise InputError where ``out`` is there already."""
    if out.exists():
        raise InputError(f"{out} exists; remove it or name another folder to import into")


def write_model(out: Path, recipe: ModelRecipe, parts: dict[str, nn.Module],
                beside: Callable[[Path], None] = lambda folder: None) -> None:
    """Write a model folder under a temporary name, and rename it. beside: writes what else belongs into the folder."""
    refuse_existing(out)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.mkdir(parents=True)
        beside(temporary)
        save_model(temporary, recipe, parts)
        os.rename(temporary, out)
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error}); nothing was imported") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
