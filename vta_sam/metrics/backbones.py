"""What a backbone is: a network that hears a sound and answers with vectors, and perhaps with classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..runtime.errors import InputError


@dataclass(frozen=True)
class Heard:
    """What a backbone hears in one sound. embeddings (R, D) float32: one row for the whole sound, or one per window of
    it; R is 0 where the sound is shorter than a window ("not defined"). logits (C,) float32 before any softmax or
    sigmoid, or None."""

    embeddings: np.ndarray
    logits: np.ndarray | None = None


class Backbone(Protocol):
    """name: as users ask for it. fingerprint: changes with the weights and with whatever else decides the answer; it is
    part of the key under which answers are kept. sample_rate_hz: of the sounds it takes. dim: length of its vectors."""

    name: str
    fingerprint: str
    sample_rate_hz: int
    dim: int

    def hear(self, waveforms: Sequence[np.ndarray]) -> list[Heard]:
        """Mono sounds (samples,) float32 at ``sample_rate_hz``, of any lengths ⇒ one answer each, in order.

        An answer depends on its own sound alone, up to rounding: not on the batch, not on padding. InputError: a sound
        that is empty, or holds NaN or infinity.
        """
        ...


def by_length(waveforms: Sequence[np.ndarray], hear: Callable[[np.ndarray], list[Heard]]) -> list[Heard]:
    """Have sounds of one length heard together, since padding would change what is heard ⇒ answers in order.

    hear: (B, samples) float32 ⇒ B answers.
    """
    groups: dict[int, list[int]] = {}
    for i, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or not waveform.size or not np.isfinite(waveform).all():
            raise InputError(f"a backbone hears finite mono sounds, got shape {waveform.shape}")
        groups.setdefault(len(waveform), []).append(i)
    answers: dict[int, Heard] = {}
    for members in groups.values():
        answers |= zip(members, hear(np.stack([waveforms[i] for i in members]).astype(np.float32)))
    return [answers[i] for i in range(len(waveforms))]
