"""The figures at the end of a run: perfect sound scores perfectly, shuffled sound at the control, swaps swap."""

import numpy as np
import pytest
import torch
from tiny_data import SPEC, a_clip

from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.training.figures import HeldOut, levels, swap_objects, timing


def clicks(times_s) -> np.ndarray:
    wave = np.zeros(SPEC.samples, np.float32)
    decay = 0.5 * np.exp(-np.arange(1600) / 300) * np.sin(np.arange(1600) * 0.7)
    for time_s in times_s:
        start = round(time_s * SPEC.sample_rate_hz)
        wave[start:start + 1600] += decay[: len(wave) - start].astype(np.float32)
    return wave


@pytest.fixture(scope="module")
def truth():
    random = np.random.default_rng(0)
    onsets = [np.sort(random.choice(np.arange(0.3, 4.8, 0.3), 4, replace=False)) for _ in range(6)]
    return np.stack([clicks(times) for times in onsets]), onsets


def test_the_truth_itself_scores_one_and_beats_its_control(truth):
    waves, onsets = truth
    figures = timing(waves, waves, onsets, seed=0)
    assert figures["envelope_correlation"]["score"]["mean"] == pytest.approx(1.0)
    assert figures["onset_f1"]["score"]["mean"] == pytest.approx(1.0)
    for name in ("envelope_correlation", "onset_f1"):
        assert figures[name]["score_minus_control"]["low"] > 0
        assert figures[name]["control"]["mean"] < 0.7


def test_sound_of_other_clips_scores_no_better_than_its_control(truth):
    waves, onsets = truth
    figures = timing(np.roll(waves, 1, axis=0), waves, onsets, seed=0)
    assert figures["envelope_correlation"]["score"]["mean"] < 0.6


def test_swapping_changes_the_word_and_nothing_else():
    records = [a_clip(f"clip {i}") for i in range(4)]
    labels = ["dog", "canary", "dog", ""]
    for record, label in zip(records, labels):
        record.label = label
        if label:
            record.objects = [label]
            record.probs, record.boxes, record.areas = record.probs[:, :1], record.boxes[:, :1], record.areas[:, :1]
            record.object_embedding = np.full((1, record.object_embedding.shape[1]), float(len(label)), np.float32)
    batch = collate([window_of(r, SPEC, 0) for r in records], SPEC)
    clips = HeldOut(records, batch, [np.array([])] * 4, np.zeros(64, np.float32))
    swapped, rows, named = swap_objects(clips, seed=0)
    assert rows == [0, 1, 2] and named == ["canary", "dog", "canary"]
    assert torch.equal(swapped.probs, batch.probs[rows])
    assert torch.equal(swapped.frame_embedding, batch.frame_embedding[rows])
    assert swapped.object_embedding[:, 0, 0].tolist() == [6.0, 3.0, 6.0]
    assert batch.object_embedding[0, 0, 0] == 3.0


def test_levels_count_silence():
    loud, silent = np.full(SPEC.samples, 0.5, np.float32), np.zeros(SPEC.samples, np.float32)
    assert levels(np.stack([loud, silent]))["silent_clips"] == 0.5
