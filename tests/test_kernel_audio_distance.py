"""KAD: the published formula, its jackknife, and what it says of equal distributions."""

from __future__ import annotations

import numpy as np
import pytest

from vta_sam.metrics import kernel_audio_distance
from vta_sam.metrics.intervals import Resampling, standard_error
from vta_sam.metrics.kernel_audio_distance import kad_of_clips


def published_kad(x: np.ndarray, y: np.ndarray) -> float:
    """kadtk's formula, written anew: pair by pair."""
    distances = sorted(np.linalg.norm(a - b) for i, a in enumerate(x) for b in x[i + 1:])
    gamma = 1 / (2 * distances[(len(distances) - 1) // 2] ** 2 + 1e-8)

    def kernel(a, b):
        return np.exp(-gamma * np.sum((a - b) ** 2))

    within = [np.mean([kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])
              for rows in (x, y)]
    return 100 * (sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def clips_of(rng: np.random.Generator, clips: int, rows: int = 1, dim: int = 6, shift: float = 0.0) -> list[np.ndarray]:
    return [shift + rng.standard_normal(dim) + 0.5 * rng.standard_normal((rows, dim)) for _ in range(clips)]


@pytest.mark.parametrize("rows", [1, 3])
def test_kad_is_kadtks_and_its_spread_the_jackknifes(rows):
    rng = np.random.default_rng(0)
    true, generated = clips_of(rng, 9, rows), clips_of(rng, 9, rows, shift=0.7)
    found = kad_of_clips(true, generated, Resampling())
    assert found.value == pytest.approx(published_kad(np.concatenate(true), np.concatenate(generated)), rel=1e-9)
    assert found.detail["clips"] == 9 and found.detail["rows"] == 9 * rows
    gamma = 1 / (2 * found.detail["sigma"] ** 2 + 1e-8)

    def discrepancy(left_out):
        x, y = (np.concatenate([part for i, part in enumerate(side) if i != left_out]) for side in (true, generated))
        tables = [np.exp(-gamma * ((a[:, None] - b[None]) ** 2).sum(2)) for a, b in ((x, x), (y, y), (x, y))]
        n, m = len(x), len(y)
        return 100 * ((tables[0].sum() - n) / n / (n - 1) + (tables[1].sum() - m) / m / (m - 1) - 2 * tables[2].mean())

    without = np.array([discrepancy(clip) for clip in range(9)])
    error = np.sqrt(8 / 9 * np.square(without - without.mean()).sum())
    assert standard_error(found.resampled) == pytest.approx(error, rel=1e-9)


def test_kad_is_unbiased_and_its_error_is_that_of_new_sets():
    found = [kad_of_clips(clips_of(np.random.default_rng(i), 40), clips_of(np.random.default_rng(900 + i), 40),
                          Resampling()) for i in range(120)]
    values = np.array([value.value for value in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values)) and 20 < (values < 0).sum() < 100
    apart = [kad_of_clips(clips_of(np.random.default_rng(i), 40),
                          clips_of(np.random.default_rng(900 + i), 40, shift=0.5), Resampling()) for i in range(120)]
    spread = np.std([value.value for value in apart])
    assert np.mean([standard_error(value.resampled) for value in apart]) == pytest.approx(spread, rel=0.25)


def test_kad_of_few_and_of_many(monkeypatch):
    rng = np.random.default_rng(1)
    assert "at least two clips" in kad_of_clips(clips_of(rng, 1), clips_of(rng, 1), Resampling())
    assert kad_of_clips(clips_of(rng, 2), clips_of(rng, 2), Resampling()).resampled is None
    silent = [np.ones((1, 4))] * 5
    assert kad_of_clips(silent, silent, Resampling()).value == 0
    copies = clips_of(rng, 6)
    itself = kad_of_clips(copies, copies, Resampling())
    assert itself.value < 0 and itself.signed and itself.note.startswith("below 0: nearer")
    monkeypatch.setattr(kernel_audio_distance, "KAD_ROWS", 30)
    thinned = kad_of_clips(clips_of(rng, 50, 2), clips_of(rng, 50, 2), Resampling())
    assert thinned.detail["clips"] == 15 and len(thinned.resampled) == 15
