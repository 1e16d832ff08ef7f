"""The network that a released model sees or reads with: built from the folder that the checkpoint names, and kept in
the model folder in transformers' layout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .named_parts import read_json


def empty_encoder(folder: Path, model_type: str, config_class: Any, model_class: Any) -> Any:
    """⇒ a model of the folder's config.json, without its weights. Raises InputError where that describes another kind
    of model, or none that can be built."""
    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != model_type:
        raise InputError(f"{path} describes a {content.get('model_type')!r}, expected a {model_type!r}; nothing was "
                         "imported")
    try:
        return model_class(config_class(**content))
    except Exception as error:  # transformers raises what it likes on arguments that make no model
        raise InputError(f"{path} describes no {model_type} that can be built ({str(error).splitlines()[0]}); nothing "
                         "was imported") from error


def keep_encoder(model: Any, named: Path, tokenizer_files: Sequence[str], folder: Path) -> None:
    """Write a filled model, and the tokenizer's files that the named folder has, into ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    for name in tokenizer_files:
        if (named / name).is_file():
            shutil.copyfile(named / name, folder / name)
