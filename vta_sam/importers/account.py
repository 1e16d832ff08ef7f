"""Every tensor of a checkpoint is accounted for: taken under another name, or left out with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


@dataclass
class Account:
    """What of the checkpoint at ``path`` was taken and what was left out.

    state: all that it holds. taken: its keys that are now weights of ours. left_out: {key: reason}.
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
        """What became of the checkpoint's entries, for a person."""
        counts = Counter(self.left_out.values())
        return [f"{len(self.taken)} tensors taken",
                *(f"{count} entries left out: {reason}" for reason, count in sorted(counts.items()))]

    def _open(self) -> list[str]:
        """Keys of which nothing was said yet."""
        said = self.left_out.keys() | set(self.taken)
        return [key for key in self.state if key not in said]
