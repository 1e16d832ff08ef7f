"""Every tensor of a checkpoint is accounted for: taken under another name, or left out with a reason. Every part that a
checkpoint names and does not hold is found: a scheduler's numbers, a UNet's shape, an encoder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.objective import SCHEDULE
from ..runtime.errors import InputError


@dataclass
class Account:
    """The taken and the left-out tensors of one checkpoint.

    Attributes:
        path: of the checkpoint.
        state: all that it holds.
        taken: its keys that are now weights of ours.
        left_out: {key: reason}.
    """

    path: Path
    state: dict[str, Any]
    taken: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not all(isinstance(key, str) for key in self.state):
            raise InputError(f"{self.path} is no checkpoint: its entries have no names; nothing was imported")

    def leave_out(self, prefixes: tuple[str, ...], reason: str) -> None:
        """Keys that begin with one of ``prefixes`` are of no use here."""
        self.left_out |= {key: reason for key in self._open() if key.startswith(prefixes)}

    def fill(self, module: nn.Module, part: str, prefix: str, renamed: Callable[[str], str],
             given: Mapping[str, Tensor] | None = None) -> None:
        """Fill a module with the tensors below ``prefix``, each under the name that ``renamed`` gives it; those
        taken or left out already are passed over. given: weights of the module that the checkpoint doesn't hold.

        A weight of a 1x1 convolution may fill a linear layer. Raises InputError where a tensor is missing, is one that
        the module doesn't know, or has another shape.
        """
        own, found = module.state_dict(), dict[str, Tensor](given or {})
        keys = [key for key in self._open() if key.startswith(prefix)]
        for key in keys:
            name, value = renamed(key.removeprefix(prefix)), self.state[key]
            if name not in own or name in found:
                raise InputError(f"{self.path} holds {key!r}, which the {part} has no place for; nothing was imported")
            if not isinstance(value, Tensor) or value.is_sparse or not value.is_floating_point():
                raise InputError(f"{self.path}: {key!r} is no dense tensor of numbers; nothing was imported")
            if value.ndim == own[name].ndim + 2 and value.shape[-2:] == (1, 1):
                value = value[..., 0, 0]
            if value.shape != own[name].shape:
                raise InputError(f"{self.path}: {key!r} has the shape {tuple(value.shape)}, the {part} takes "
                                 f"{tuple(own[name].shape)}; nothing was imported")
            found[name] = value.to(torch.float32)
        missing = [name for name in own if name not in found]
        if missing:
            raise InputError(f"{self.path} lacks {len(missing)} tensors of the {part}, the first is {missing[0]!r}; "
                             "nothing was imported")
        module.load_state_dict(found)
        self.taken += keys

    def close(self) -> None:
        """Raise InputError unless every key was taken or left out."""
        rest = self._open()
        if rest:
            raise InputError(f"{self.path} holds {len(rest)} tensors that nothing is known of, the first is "
                             f"{rest[0]!r}; nothing was imported")

    def lines(self) -> list[str]:
        """A summary of the taken and left-out entries, in words."""
        counts = Counter(self.left_out.values())
        return [f"{len(self.taken)} tensors taken",
                *(f"{count} entries left out: {reason}" for reason, count in sorted(counts.items()))]

    def _open(self) -> list[str]:
        """Keys of which nothing was said yet."""
        said = self.left_out.keys() | set(self.taken)
        return [key for key in self.state if key not in said]


_MOST_BYTES = 1_000_000  # of a configuration


def read_json(path: Path, first_line: bool = False) -> dict[str, Any]:
    """A file with one JSON object, or whose first line is one. Raises InputError where it is none."""
    try:
        with open(path, "rb") as file:
            raw = file.readline(_MOST_BYTES + 1) if first_line else file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise InputError(f"{path} is longer than a configuration can be; nothing was imported")
        content = json.loads(raw)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; nothing was imported") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON ({str(error).splitlines()[0]}); nothing was imported"
                         ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; nothing was imported")
    return content


@dataclass(frozen=True)
class NamedParts:
    """Finds the parts that the configuration ``path`` names.

    content: the configuration. folders: where parts may lie, first the checkpoint's own. instead: {key: name} that a
    user gives in place of the configuration's. A part is looked for under its name and, since authors keep
    theirs elsewhere, under the last part of its name; never at an absolute path or through "..".
    """

    path: Path
    content: Mapping[str, Any]
    folders: Sequence[Path]
    instead: Mapping[str, str] = field(default_factory=dict)

    def find(self, key: str, default: str | None = None) -> Path:
        """⇒ where the part that ``key`` names lies. Raises InputError where it names none, or it lies nowhere."""
        name = self.instead.get(key, self.content.get(key) or default)
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{self.path} names no {key}, and it is not guessed; say it with --set {key}=NAME. "
                             "Nothing was imported")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("\\")
        if absolute or ".." in parts or "\0" in name or not parts:
            raise InputError(f"{self.path} names {key} {name!r}, a path that leaves the checkpoint's folder; it is not "
                             f"followed. Put the part into a folder, and say --set {key}=NAME --parts FOLDER. Nothing "
                             "was imported")
        for folder in self.folders:
            for place in (folder.joinpath(*parts), folder / parts[-1]):
                if os.path.exists(place):  # False too for names that no disk can hold
                    return place
        raise InputError(f"{self.path} names {key} {name!r}, which lies in none of {', '.join(map(str, self.folders))};"
                         f" put it there as {parts[-1]}, or name another folder with --parts. Nothing was imported")

    def schedule_offset(self, key: str) -> int:
        """The scheduler's ``steps_offset``. Raises InputError unless it is the schedule that this project samples with.

        The UNet's target (noise or v) is stated only there, so a model without it is not imported.
        """
        place = self.find(key)
        folders = [place / "scheduler", place] if place.is_dir() else []
        path = next((f / "scheduler_config.json" for f in folders if (f / "scheduler_config.json").is_file()), place)
        if path.is_dir():
            raise InputError(f"{place} has no scheduler_config.json, which says what the UNet predicts; it is not "
                             "guessed, and nothing was imported")
        content = read_json(path)
        for name, value in {**SCHEDULE, "prediction_type": "v_prediction", "clip_sample": False}.items():
            if content.get(name) != value:
                raise InputError(f"{path}: {name} is {content.get(name)!r}, this project samples with {value!r}; "
                                 "nothing was imported")
        offset = content.get("steps_offset", 0)
        if offset not in (0, 1) or content.get("trained_betas") is not None:
            raise InputError(f"{path}: steps_offset is {offset!r}, or it has betas of its own; nothing was imported")
        return int(offset)

    def unet_config(self, key: str) -> dict[str, Any]:
        """The arguments of the UNet. Raises InputError where they are another kind of UNet's."""
        import inspect

        from diffusers import UNet2DConditionModel

        path = self.find(key)
        config = {k: v for k, v in read_json(path).items() if not k.startswith("_")}
        known = inspect.signature(UNet2DConditionModel.__init__).parameters
        unknown = [name for name in config if name not in known]
        if unknown or config.pop("in_channels", None) != config.get("out_channels"):
            raise InputError(f"{path} is no configuration of the UNet ({unknown[0] if unknown else 'in_channels'} does "
                             "not fit); nothing was imported")
        return config
