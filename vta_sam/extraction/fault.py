"""What is wrong with a finished dataset: where, and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What is wrong with a shard (key "") or with one of its records."""

    shard: str
    key: str
    what: str
