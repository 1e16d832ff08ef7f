"""A run's folder: which process writes to it, what each stage was made of, which are done, and what is to be done."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.parts import canonical, essence
from ..runtime.errors import InputError
from ..runtime.files import write_text
from ..runtime.work_plan import Deed

# Numbers of processes, memory, times measured elsewhere, places of copies, ways to compute the same
NOT_RESULT_AFFECTING = ("workers", "cached_gb", "expected_s", "latents", "cache", "cache_gb", "gradient_checkpointing",
                        "compile", "checkpoint_aside")
DATASET = "dataset"  # the name under which a stage's inputs hold the identity of the clips
_LENGTH, _SCHEDULE = "fit.fit.steps", "fit.schedule_steps"  # in a stage's settings
_SHORTER = "shorter.json"  # a list of the identities that a stage had before it was trained further
_PLACES = ("root", "videos")  # in the settings of a data source whose identity is known
_NUMBERS = ("fit", "figures", "clip")  # in a stage's settings: what its time depends on most
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
    """The folder of one stage in a run: ``config.yaml``, ``inputs.json``, ``checkpoints/``, ``logs/``, ``model/``, and
    ``done`` once finished.

    Attributes:
        path: of the folder.
        config: the settings that decide the stage's result.
        inputs: {name: identity} of what it is built on: the dataset, earlier stages, given model folders. Where an
            identity is known now and from before, the path of the thing doesn't count.
        shorter: {name: identities} that an input had before it was trained further. The stage is made again without
            being asked where it was built on one of them. Empty for a stage that trains.
    """

    path: Path
    config: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    shorter: dict[str, list[str]] = field(default_factory=dict)

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

    @property
    def aside(self) -> Path:
        """Where a finished stage waits until the one that replaces it is finished. No glob for runs finds it."""
        return self.path.with_name(f".replaced-{self.path.name}")

    @property
    def identity(self) -> str:
        """12 hex digits that change with the settings and the inputs."""
        text = _compared(self.config, self.inputs, set(self.inputs))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def former(self) -> list[str]:
        """The identities of the stage when it was shorter, also of one that :meth:`claim` will train further."""
        try:
            known = list(map(str, json.loads((self.path / _SHORTER).read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            known = []
        length = _Length.of(self)
        if length and length.exact:
            stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
            known.append(StageFolder(self.path, stored, _stored_inputs(self.path)).identity)
        return list(dict.fromkeys(known))

    def deed(self, overwrite: bool) -> tuple[Deed, str]:
        """What :meth:`claim` will do, and why.

        Args:
            overwrite: whether what was made of other settings may be replaced.

        Raises:
            InputError: the folder was made with another config, and may not be replaced; the message shows the
                difference.
        """
        kept = not self.done and _same_as(self, self.aside)  # beside a finished stage it is only left to be removed
        if not (self.path / "config.yaml").exists():
            return (Deed.TAKE_BACK, "it was put aside") if kept else (Deed.MAKE, "")
        if further := self._trained_further():
            return Deed.MAKE_AGAIN, f"longer {further}; the former one waits in {self.aside.name} until then"
        if _same_as(self, self.path):
            return (Deed.KEEP, "done before") if self.done else (Deed.GO_ON, "begun before")
        length = _Length.of(self)
        if length and length.exact and not kept and (self.last_checkpoint.exists() or not self.done):
            return Deed.TRAIN_ON, f"steps {length.before} → {length.now}"
        changed = ", ".join(_changes(self, self.path))
        if not overwrite:
            raise InputError(self._refusal(kept))
        if kept:
            return Deed.TAKE_BACK, f"it was put aside; the one begun with other settings is thrown away ({changed})"
        if self.done:
            return Deed.MAKE_AGAIN, f"{changed}; the former one waits in {self.aside.name} until then"
        return Deed.MAKE, f"the one begun with other settings is thrown away ({changed})"

    def claim(self, overwrite: bool) -> Deed:
        """Start, or go on with the same config, however its parts are named, and wherever its inputs lie ⇒ the deed.

        Args, errors: as of :meth:`deed`.
        """
        deed, _ = self.deed(overwrite)
        if deed is Deed.MAKE_AGAIN:
            shutil.rmtree(self.aside, ignore_errors=True)  # an unfinished removal of a replaced one
            os.replace(self.path, self.aside)
        elif deed in (Deed.MAKE, Deed.TAKE_BACK) and self.path.exists():
            shutil.rmtree(self.path)
        if deed is Deed.TAKE_BACK:
            os.replace(self.aside, self.path)
        if deed is Deed.TRAIN_ON:  # in this order: a kill in between leaves a stage that is begun
            write_text(self.path / _SHORTER, json.dumps(self.former) + "\n")
            (self.path / "done").unlink(missing_ok=True)
        if deed is Deed.KEEP:
            shutil.rmtree(self.aside, ignore_errors=True)  # a kill kept finish() from it
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.last_checkpoint.parent.glob(".*.partial*"):  # by a kill while a checkpoint was written
            left.unlink(missing_ok=True)
        if self.inputs:  # before the config: a folder that has one is compared by both
            write_text(self.path / "inputs.json", json.dumps(_stored_inputs(self.path) | self.inputs, indent=1) + "\n")
        write_text(self.path / "config.yaml", _text(self.config))
        return deed

    def finish(self) -> None:
        """Mark the stage as done, and remove what it replaces."""
        write_text(self.path / "done", "")
        shutil.rmtree(self.aside, ignore_errors=True)

    def _refusal(self, kept: bool) -> str:
        stored = self.path / "config.yaml"
        before, now = _texts(self, self.path)
        lines = difflib.unified_diff(before.splitlines(), now.splitlines(), str(stored), "now", lineterm="", n=0)
        over = "overwrite=true to take back the finished one that was put aside, and throw the begun one away" if kept \
            else "overwrite=true to make it again; the old one goes once the new one is finished" if self.done \
            else "overwrite=true to throw away what was begun"
        length = _Length.of(self) if self.done else None
        return f"{self.path} was made with another config:\n  " + "\n  ".join(lines) + \
            f"\ngive this run another name=…, or {over}" + ("" if length is None else length.advice(self))

    def _trained_further(self) -> str:
        """The inputs that were shorter when the stage was made, where nothing else differs; "" otherwise."""
        before = _stored_inputs(self.path)  # an early run has none: it was made before anything was trained further
        names = [name for name, known in self.shorter.items() if known and before.get(name, known[0]) in known]
        now = {name: self.inputs[name] for name in names}
        return ", ".join(names) if now and len(set(_texts(self, self.path, now))) == 1 else ""


@dataclass(frozen=True)
class _Length:
    """The steps of a stage that is to be longer, and differs in nothing else.

    Attributes:
        before, now: optimiser steps.
        schedule: of the stored stage: the steps over which its learning rate falls.
        exact: whether a stage of that length from the start would have had the same rates.
    """

    before: int
    now: int
    schedule: int
    exact: bool

    @classmethod
    def of(cls, folder: StageFolder) -> "_Length | None":
        """Of a claimed folder; None: it is of other settings, or not to be longer."""
        if not (folder.path / "config.yaml").exists():
            return None
        try:
            before, now = (leaves(yaml.safe_load(text)) for text in _texts(folder, folder.path))
        except yaml.YAMLError:
            return None
        others = ({key: value for key, value in found.items() if key not in (_LENGTH, _SCHEDULE)}
                  for found in (before, now))
        was, steps = before.get(_LENGTH), now.get(_LENGTH)
        if not (isinstance(was, int) and isinstance(steps, int) and was < steps and next(others) == next(others)):
            return None
        schedule = before.get(_SCHEDULE, was)
        return cls(was, steps, schedule, schedule == now.get(_SCHEDULE, steps))

    def advice(self, folder: StageFolder) -> str:
        """How a finished stage can be trained further, as the end of a refusal."""
        init = f"a run of another name can start from its weights (stage diffusion: init={folder.model}), with a new " \
            "optimiser and average"
        if self.exact:
            return f"\nto train it further takes its last state, and {folder.last_checkpoint} is gone; {init}"
        return (f"\nits learning rate falls over its {self.schedule} steps, and would have fallen otherwise in a "
                "longer stage; to train it further at the rate that it ended with, add "
                f"+fit.{folder.path.name}.schedule_steps={self.schedule}; or {init}")


class TimeAccount:
    """A run's account of time, which survives a restart: ``seconds.json``, {stage: seconds}, and of the same seconds
    ``seconds_parts.json``, {stage: {parts: {part: seconds}, machine, expected_s, whole_s}}, which older runs lack.

    Args:
        run: its folder.
    """

    def __init__(self, run: Path):
        self._seconds, self._parts = run / "seconds.json", run / "seconds_parts.json"

    def add(self, stage: str, parts: dict[str, float], facts: dict[str, Any]) -> None:
        """Add what a stage has taken now, {part: seconds}. facts: ``machine``; ``expected_s`` where it was measured;
        ``whole_s`` of this machine for all of it, also where a kill has lost some of the account, or None."""
        spent, told = self._read()
        spent[stage] = round(spent.get(stage, 0.0) + sum(parts.values()), 1)
        before = told.get(stage, {}).get("parts", {})
        parts = {part: round(before.get(part, 0.0) + parts.get(part, 0.0), 2) for part in [*before, *parts]}
        self._write(spent, told | {stage: {"parts": parts, **facts}})

    def begin_anew(self, stage: str) -> None:
        """A stage is made again: what it took before doesn't count."""
        spent, told = self._read()
        self._write(spent | {stage: 0.0}, {name: found for name, found in told.items() if name != stage})

    def on(self, machine: str, folders: Sequence[StageFolder]) -> dict[str, float]:
        """{stage: seconds} that finished stages, with the numbers of these, take on this machine."""
        _, told = self._read()
        found: dict[str, float] = {}
        for folder in folders:
            name = folder.path.name
            stored, of_stage = self._parts.parent / name / "config.yaml", told.get(name, {})
            if of_stage.get("machine") == machine and of_stage.get("whole_s") and stored.with_name("done").exists():
                config = yaml.safe_load(stored.read_text(encoding="utf-8"))
                if all(config.get(key) == folder.config.get(key) for key in _NUMBERS):
                    found[name] = float(of_stage["whole_s"])
        return found

    def _read(self) -> tuple[dict[str, float], dict[str, Any]]:
        spent, told = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                       for path in (self._seconds, self._parts))
        return spent, told

    def _write(self, spent: dict[str, float], told: dict[str, Any]) -> None:
        write_text(self._seconds, json.dumps(spent) + "\n")
        write_text(self._parts, json.dumps(told, indent=1) + "\n")


def seen_on(machine: str, run: Path, folders: Sequence[StageFolder]) -> dict[str, float]:
    """{stage: seconds} that stages of a run took on a machine: in this run, else in the last one beside it."""
    written: dict[Path, float] = {}
    for path in run.parent.glob("*/seconds_parts.json"):
        with suppress(OSError):  # another run may be removed meanwhile
            written[path] = path.stat().st_mtime
    own, seen = run / "seconds_parts.json", dict[str, float]()
    for path in [*sorted(written.keys() - {own}, key=written.__getitem__), own]:
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError):  # it may be damaged
            seen |= TimeAccount(path.parent).on(machine, folders)
    return seen


def _text(config: dict[str, Any]) -> str:
    return yaml.safe_dump(canonical(config), sort_keys=True, allow_unicode=True)


def _compared(config: dict[str, Any], inputs: dict[str, str], known: Set[str]) -> str:
    """A config whose extractors' recipes have only arguments that change features, with the inputs that are known.

    A run's command may state more or fewer of the others than the dataset does.
    """
    recipes = {role: essence(config[role]) for role in ("grounder", "encoder") if config.get(role)}
    compared = config | recipes
    if DATASET in known and isinstance(config.get("data"), dict):
        compared["data"] = {key: value for key, value in config["data"].items() if key not in _PLACES}
    fit = config.get("fit")
    if isinstance(fit, dict) and isinstance(fit.get("fit"), dict) and \
            fit.get("schedule_steps") in (None, fit["fit"].get("steps")):  # which is what it is without the key
        compared["fit"] = {key: value for key, value in fit.items() if key != "schedule_steps"}
    for name in known:
        for key in (name, f"start_{name}"):
            if isinstance(compared.get(key), str):
                compared[key] = "a folder"  # its content counts
    if known:
        compared["inputs"] = {name: inputs[name] for name in known}
    return _text(compared)


def _texts(folder: StageFolder, stored: Path, instead: dict[str, str] | None = None) -> tuple[str, str]:
    """What stands in a folder, and what would stand there now, by what is known of both. instead: identities in place
    of stored ones."""
    before = _stored_inputs(stored) | (instead or {})
    known = set(before) & set(folder.inputs)
    text = (stored / "config.yaml").read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    was = _compared(config, before, known) if isinstance(config, dict) else text
    return was, _compared(folder.config, folder.inputs, known)


def _same_as(folder: StageFolder, stored: Path) -> bool:
    """Whether a folder holds a stage of these settings and inputs."""
    if not (stored / "config.yaml").exists():
        return False
    before, now = _texts(folder, stored)
    return before == now


def _changes(folder: StageFolder, stored: Path) -> list[str]:
    """Settings and inputs that differ, as "fit.steps 10 → 20" and "another vae"."""
    try:
        before, now = (leaves(yaml.safe_load(text)) for text in _texts(folder, stored))
    except yaml.YAMLError:
        return [f"{stored / 'config.yaml'} can't be read"]
    return [f"another {key.removeprefix('inputs.')}" if key.startswith("inputs.") else
            f"{key} {before.get(key, 'none')} → {now.get(key, 'none')}"
            for key in {**now, **before} if before.get(key) != now.get(key)]


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """{dotted key: value} of what a nested dictionary holds. name: its own key."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, nested in value.items()
            for key, leaf in leaves(nested, f"{name}.{part}" if name else str(part)).items()}


def _stored_inputs(stored: Path) -> dict[str, str]:
    """Of a folder; {} of one from before they were kept."""
    try:
        found = json.loads((stored / "inputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(identity) for name, identity in found.items()} if isinstance(found, dict) else {}
