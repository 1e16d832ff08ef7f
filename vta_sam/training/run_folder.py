"""A run's folder: which process writes to it, the settings that each stage was run with, and which stages are done."""

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
from ..perception.base import essence
from ..runtime.errors import InputError
from ..runtime.files import write_text

# Numbers of processes, times measured elsewhere, places of copies
NOT_RESULT_AFFECTING = ("workers", "expected_s", "latents", "cache", "cache_gb")
FROM_DATA = "from_data"  # in a conditioner's config: a dimension that is read from the dataset


def result_affecting(settings: Any) -> Any:
    """Settings that affect results, without :data:`NOT_RESULT_AFFECTING`."""
    if isinstance(settings, dict):
        return {key: result_affecting(value) for key, value in settings.items() if key not in NOT_RESULT_AFFECTING}
    return settings


def with_dimensions(recipe: Any, known: dict[str, Any]) -> Any:
    """A conditioner's recipe with the dataset's dimensions where it says ``from_data``.

    A further feature may be called by its name or by that of its dimension: ``flow`` or ``flow_dim``.

    Args:
        recipe: nested.
        known: {key: value} of the dataset.

    Raises:
        InputError: a key says ``from_data`` that the dataset doesn't know.
    """
    if not isinstance(recipe, dict):
        return recipe
    known = {**{key.removesuffix("_dim"): value for key, value in known.items() if key.endswith("_dim")}, **known}
    unknown = [key for key, value in recipe.items() if value == FROM_DATA and key not in known]
    if unknown:
        raise InputError(f"{unknown[0]}: {FROM_DATA} can't be filled in; this dataset knows {', '.join(known)}")
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
    """The folder of one stage in a run: ``config.yaml``, ``checkpoints/``, ``logs/``, ``model/``, and ``done`` once
    finished.

    Attributes:
        path: of the folder.
        config: the settings that decide the stage's result.
    """

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
        """Start, or go on with the same config, however its parts are named, and wherever its extractors computed.

        Args:
            overwrite: whether to remove an earlier run's files.

        Raises:
            InputError: the folder was made with another config; the message shows the difference.
        """
        stored = self.path / "config.yaml"
        now = _compared(self.config)
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        before = _stored(stored) if stored.exists() else now
        if before != now:
            lines = difflib.unified_diff(
                before.splitlines(), now.splitlines(), str(stored), "now", lineterm="", n=0
            )
            raise InputError(
                f"{self.path} was made with another config:\n  " + "\n  ".join(lines) +
                "\ngive this run another name=…, or overwrite=true to throw the old one away"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(stored, _text(self.config))

    def finish(self) -> None:
        write_text(self.path / "done", "")


def _text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(canonical(config), sort_keys=True, allow_unicode=True)


def _compared(config: dict[str, Any]) -> str:
    """A config whose extractors' recipes have only arguments that change features.

    A run's command may state more or fewer of the others than the dataset does.
    """
    recipes = {role: essence(config[role]) for role in ("grounder", "encoder") if config.get(role)}
    return _text(config | recipes)


def _stored(path: Path) -> str:
    """A stored config to compare with one of now: one from before parts had short names gets them."""
    text = path.read_text()
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return _compared(config) if isinstance(config, dict) else text
