"""The figures at the end of a run: perfect sound scores perfectly, shuffled sound at the control, swaps swap."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from models import make_batch, make_features, make_model_folder
from tiny_data import SPEC, a_clip

from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.metric import SoundMeasurements
from vta_sam.evaluation.sounds import WaveformFeatures
from vta_sam.training.figures_stage import attention_maps
from vta_sam.generation.pipeline import load
from vta_sam.runtime.cluster.preemption import Preemption
from vta_sam.runtime.distributed import Processes
from vta_sam.training.figures import HeldOut, Scoring, SoundMaker, left_out, levels, swap_objects


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


def held_out(waves, onsets, label: str = "") -> HeldOut:
    records = [a_clip(f"clip {i}") for i in range(len(waves))]
    for record in records:
        record.label, record.objects = label, record.objects[:1]
        record.probs, record.boxes, record.areas = record.probs[:, :1], record.boxes[:, :1], record.areas[:, :1]
        record.object_embedding = record.object_embedding[:1]
    batch = collate([window_of(record, SPEC, 0) for record in records], SPEC)
    batch = dataclasses.replace(batch, waveform=torch.from_numpy(waves))
    return HeldOut(records, batch, onsets, np.zeros(64, np.float32))


def test_the_truth_itself_scores_one_and_beats_its_control(truth):
    waves, onsets = truth
    scoring = Scoring(held_out(waves, onsets), seed=0)
    figures = scoring.timing(scoring.measure(waves))
    assert figures["envelope_correlation"]["score"]["mean"] == pytest.approx(1.0)
    assert figures["onset_f1"]["score"]["mean"] == pytest.approx(1.0)
    for name in ("envelope_correlation", "onset_f1"):
        assert figures[name]["score_minus_control"]["low"] > 0
        assert figures[name]["control"]["mean"] < 0.7


def test_sound_of_other_clips_scores_no_better_than_its_control(truth):
    waves, onsets = truth
    scoring = Scoring(held_out(waves, onsets), seed=0)
    figures = scoring.timing(scoring.measure(np.roll(waves, 1, axis=0)))
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
    assert levels([SoundMeasurements(WaveformFeatures(wave)) for wave in (loud, silent)])["silent_clips"] == 0.5


def test_the_figures_are_those_of_evaluate(truth, tmp_path):
    """The same sounds, once as arrays and once as files: one value."""
    waves, _ = truth
    late = np.roll(waves, 1000, axis=1)
    scoring = Scoring(held_out(waves, [WaveformFeatures(wave).onsets_s for wave in waves]), seed=0)
    figures = scoring.timing(scoring.measure(late))
    for system, sounds in (("true", waves), ("late", late)):
        (tmp_path / system).mkdir()
        for i, wave in enumerate(sounds):
            soundfile.write(tmp_path / system / f"c{i}.wav", wave, SPEC.sample_rate_hz, subtype="FLOAT")
    asked = Request({"late": tmp_path / "late"}, tmp_path / "true", backbones=(), set_resamples=20)
    found = evaluate(asked)[0].systems["late"].figures
    for key, figure in figures.items():
        for part, interval in figure.items():
            other = dataclasses.asdict(getattr(found[key], part))
            assert other.pop("seeds") == 1
            assert interval == {name: pytest.approx(value, abs=5.1e-5) for name, value in other.items()}, (key, part)
    assert set(figures) == {"envelope_correlation", "onset_f1"}
    assert 0.1 < figures["envelope_correlation"]["score"]["mean"] < 0.99


def test_the_class_is_scored_only_where_the_tagger_knows_it(truth):
    waves, onsets = truth
    known, unknown = held_out(waves, onsets, "dog"), held_out(waves, onsets, "dog barking")
    assert known.single == list(range(6)) and unknown.single == []
    for clips, scored in ((known, True), (unknown, False)):
        scoring = Scoring(clips, seed=0)
        sounds = scoring.measure(waves)
        figures = scoring.others(sounds, sounds)
        assert ("sound_class" in figures) is scored is ("sound_class" not in left_out(clips))
        if scored:
            assert (bound := figures["sound_class"]["score"])["high"] - bound["low"] > 0.35, "a share of 6"
    assert "of 6 clips 0 have one object alone, of a class that the embedded tagger knows" in left_out(unknown)["swap"]
    assert all(truth.label == "" for truth in scoring.truths)


def test_a_model_in_bf16_as_a_gpu_has_it_is_measured_too(tmp_path):
    """Its weights are bf16: every network is called where sounds are cast to them."""
    folder, batch = make_model_folder(tmp_path), make_batch("a", "b")
    batch.waveform = 0.1 * torch.randn(batch.waveform.shape, generator=torch.Generator().manual_seed(0))
    clips = HeldOut([make_features(key) for key in "ab"], batch, [np.array([])] * 2, np.zeros(64, np.float32))
    made = {}
    for precision in ("fp32", "bf16"):
        pipeline, ticks = load(folder, precision=precision), []
        made[precision] = SoundMaker(pipeline, 1, Preemption(Processes()), ticks.append).make(clips, 0)
        maps = attention_maps(pipeline, batch.select([0]), seed=0)
        assert ticks == [1, 1, 1, 1] and maps and all(np.isfinite(level).all() for level in maps.values())
    exact, half = made["fp32"], made["bf16"]
    assert half.generated.shape == half.reconstructed.shape == tuple(batch.waveform.shape)
    assert half.error_share == pytest.approx(exact.error_share, rel=0.02) and not np.array_equal(
        half.reconstructed, exact.reconstructed)
