"""Backbones: networks that turn a sound into embeddings, and some into class logits too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..runtime.errors import InputError

__path__: list[str] = []  # lets an import of the former metrics.backbones.base get to runtime/former_modules.py


@dataclass(frozen=True)
class Embedding:
    """A backbone's output for one sound.

    embeddings (R, D) float32: one row for the whole sound, or one per window of it; R is 0 where the sound is shorter
    than a window ("not defined"). logits (C,) float32 before any softmax or sigmoid, or None.
    """

    embeddings: np.ndarray
    logits: np.ndarray | None = None


Heard = Embedding  # its name in version 0.1.0, which adapters of users import


class Backbone(Protocol):
    """An embedding network behind one method.

    name: in settings. fingerprint: changes with the weights and with everything else that changes an embedding;
    it is part of the cache's keys. sample_rate_hz: of the sounds it takes. dim: length of its embeddings.
    """

    name: str
    fingerprint: str
    sample_rate_hz: int
    dim: int

    def embed(self, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
        """⇒ one embedding per sound, in order.

        An embedding depends on its own sound alone, up to rounding: not on the batch, not on padding.

        Args:
            waveforms: mono sounds (samples,) float32 at ``sample_rate_hz``, of any lengths.

        Raises:
            InputError: a sound is empty, or holds NaN or infinity.
        """
        ...


def embed(backbone: Any, waveforms: Sequence[np.ndarray]) -> list[Embedding]:
    """⇒ :meth:`Backbone.embed` of a backbone, or the method ``hear`` of an adapter for version 0.1.0."""
    method = getattr(backbone, "embed", None) or backbone.hear
    return method(waveforms)


def check_sounds(waveforms: Sequence[np.ndarray]) -> None:
    """Raises InputError where a sound is empty, not mono, or holds NaN or infinity."""
    for waveform in waveforms:
        if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
            raise InputError(f"a backbone takes finite mono sounds of shape (samples,), got shape {waveform.shape}"
                             f"{'' if np.isfinite(waveform).all() else ' with NaN or infinity'}")


def by_length(waveforms: Sequence[np.ndarray],
              embed_batch: Callable[[np.ndarray], list[Embedding]]) -> list[Embedding]:
    """⇒ embeddings in order, of batches of equally long sounds: padding would change an embedding.

    Args:
        waveforms: mono sounds (samples,), of any lengths.
        embed_batch: (B, samples) float32 ⇒ B embeddings.

    Raises:
        InputError: see :func:`check_sounds`.
    """
    check_sounds(waveforms)
    groups: dict[int, list[int]] = {}
    for i, waveform in enumerate(waveforms):
        groups.setdefault(len(waveform), []).append(i)
    embeddings: dict[int, Embedding] = {}
    for members in groups.values():
        embeddings |= zip(members, embed_batch(np.stack([waveforms[i] for i in members]).astype(np.float32)))
    return [embeddings[i] for i in range(len(waveforms))]
