"""What a job does to its config before it builds anything."""

from __future__ import annotations

import difflib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.parts import canonical
from ..runtime.errors import InputError
from ..runtime.files import write_text

# MERGED-DOC """A run's folder: who may write to it, what each stage was told, and which stages are done."""


INDECISIVE = ("workers", "expected_s", "latents", "cache", "cache_gb")


def decisive(told: Any) -> Any:
    """A config without what changes no result: how many processes, how long it took elsewhere, where copies lie."""
    if isinstance(told, dict):
        return {key: decisive(value) for key, value in told.items() if key not in INDECISIVE}
    return told


FROM_DATA = "from_data"  # in a conditioner's config: a dimension that the dataset knows


def with_dimensions(recipe: Any, known: dict[str, Any]) -> Any:
    """A conditioner's recipe with the dataset's dimensions where it says ``from_data``."""
    if not isinstance(recipe, dict):
        return recipe
    unknown = [key for key, value in recipe.items() if value == FROM_DATA and key not in known]
    if unknown:
        raise InputError(f"{unknown[0]}: {FROM_DATA} can't be filled in; a dataset knows {', '.join(known)}")
    return {key: known[key] if value == FROM_DATA else with_dimensions(value, known) for key, value in recipe.items()}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Refuse a second process on the same run. The lock goes with the process, so a kill leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(
                f"{folder} is being written by process {lock.read().strip() or 'unknown'}; wait for it, or give this "
                "run another name=…"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@dataclass(frozen=True)
class StageFolder:
    """One stage's corner of a run: ``config.yaml`` (what it was told), ``checkpoints/``, ``logs/``, ``model/``, and
    ``done`` once finished."""

    path: Path
    config: dict[str, Any]

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def done(self) -> bool:
        return (self.path / "done").exists()

    def claim(self, overwrite: bool) -> None:
        """Start, or go on with the same config, however its parts are named. Raises InputError with the difference
        when the config changed."""
        stored = self.path / "config.yaml"
        told = _text(self.config)
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        before = _stored(stored) if stored.exists() else told
        if before != told:
            lines = difflib.unified_diff(
                before.splitlines(), told.splitlines(), str(stored), "now", lineterm="", n=0
            )
            raise InputError(
                f"{self.path} was made with another config:\n  " + "\n  ".join(lines) +
                "\ngive this run another name=…, or overwrite=true to throw the old one away"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(stored, told)

    def finish(self) -> None:
        write_text(self.path / "done", "")


def _text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(canonical(config), sort_keys=True, allow_unicode=True)


def _stored(path: Path) -> str:
    """A stored config as it would be written now: one from before parts had short names gets them."""
    text = path.read_text()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return _text(config) if isinstance(config, dict) else text
