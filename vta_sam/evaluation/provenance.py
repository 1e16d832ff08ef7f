"""What a result rests on: files, policy, versions, seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import cv2

from .. import __version__
from .measure import Measured
from .sounds import LoadingPolicy

_PACKAGES = ("torch", "numpy", "scipy", "librosa", "mir_eval", "av")


def provenance(policy: LoadingPolicy, settings: dict[str, Any],
               sounds: dict[str, Iterable[Measured]]) -> dict[str, Any]:
    """⇒ JSON's types. sounds: {name: what was measured}; each set has one hash, which changes with any file in it."""
    return {
        "code_version": __version__,
        "versions": {**{name: version(name) for name in _PACKAGES}, "OpenCV": cv2.__version__},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "loading": {"policy": f"{policy.name} (version {policy.version})", "clip_s": policy.clip_s,
                    "lowest_rate_hz": policy.lowest_rate_hz, "shortest_s": policy.shortest_s,
                    "longest_s": policy.longest_s},
        **settings,
        "sets": {name: hashlib.sha256("".join(sorted(sound.digest for sound in found)).encode()).hexdigest()[:16]
                 for name, found in sounds.items()},
    }
