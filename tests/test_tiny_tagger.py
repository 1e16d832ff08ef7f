"""The tiny tagger and the event detector: what they know, and what must not matter to them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vta_sam.embedded.event_detector import SHIPPED_DETECTOR, EventBackbone, load_detector, picked_events
from vta_sam.embedded.scene_sounds import render_sound
from vta_sam.embedded.sound_training import (
    EventBatches, SoundBatches, coarse, mels_of, onset_frames, scene_sounds, solo_sounds, tagger_figures, vocoded
)
from vta_sam.embedded.timeline import WORDS, make_scene
from vta_sam.embedded.tiny_networks import TinyBackbone, load_tagger, read_weights
from vta_sam.metrics.alignment import event_f1
from vta_sam.metrics.onsets import detect_onsets, onset_errors, onset_f1


@pytest.fixture(scope="module")
def tagger():
    return load_tagger()


@pytest.fixture(scope="module")
def sounds():
    """Two fresh sounds a class, of a world that the tagger has not met."""
    return solo_sounds(seed=23, split="fresh", per_class=2)


def test_interface(tagger, sounds):
    waveforms, _ = sounds
    assert tagger.classes == WORDS and tagger.fingerprint.startswith("tiny-tagger-")
    assert tagger.logits(waveforms[:3]).shape == (3, 10) and tagger.embed(waveforms[:3]).shape == (3, 64)
    assert not any(p.requires_grad for p in tagger.parameters())


def test_fresh_sounds_are_recognised(tagger, sounds):
    waveforms, classes = sounds
    assert (tagger.logits(waveforms).argmax(1) == classes).float().mean() >= 0.95


def test_vocoded_sounds_are_recognised(tagger, sounds):
    waveforms, classes = sounds
    chosen = slice(0, 8)
    vectors = tagger.embed_mel(vocoded(mels_of(waveforms[chosen]), smear=True))
    answers = tagger.classify(vectors.relu()).argmax(1)
    assert (answers == classes[chosen]).float().mean() >= 0.85


def test_level_offset_and_silence_do_not_matter(tagger, sounds):
    waveforms, classes = sounds
    logits = tagger.logits(waveforms)
    torch.testing.assert_close(tagger.logits(waveforms * 0.05 + 0.1), logits, atol=0.05, rtol=0.01)
    padded = torch.nn.functional.pad(waveforms, (32_000, 32_000))
    assert torch.equal(tagger.logits(padded).argmax(1), classes)


def test_a_sound_is_judged_alone_and_silence_gives_numbers(tagger, sounds):
    waveforms, _ = sounds
    torch.testing.assert_close(tagger.embed(waveforms[5:6])[0], tagger.embed(waveforms)[5], atol=1e-3, rtol=1e-3)
    assert tagger.logits(torch.zeros(1, 16_000)).isfinite().all()


def test_solo_sounds_are_balanced_and_of_their_seed(sounds):
    waveforms, classes = sounds
    assert classes.bincount().tolist() == [2] * 10
    again, _ = solo_sounds(seed=23, split="fresh", per_class=2)
    other, _ = solo_sounds(seed=24, split="fresh", per_class=2)
    assert torch.equal(again, waveforms) and not torch.equal(other, waveforms)
    torch.testing.assert_close(waveforms.abs().amax(1), torch.full((20,), 0.5))


def test_batches_hold_sound_and_follow_the_seed(sounds):
    waveforms, classes = sounds
    mels = mels_of(waveforms)
    first, again = (list(SoundBatches(mels, classes, 6, 3, seed=4)) for _ in range(2))
    for (mel, label), (mel_again, label_again) in zip(first, again):
        assert torch.equal(mel, mel_again) and torch.equal(label, label_again)
        assert 96 <= mel.shape[1] <= 512 and mel.isfinite().all()
        assert (mel.amax((1, 2)) > -5).all()  # each crop lies around a moment at which something is heard


def test_coarse_keeps_the_mean_and_loses_detail():
    mel = torch.randn(2, 64, 64)
    assert coarse(mel).var() < 0.5 * mel.var()
    torch.testing.assert_close(coarse(mel).mean(), mel.mean(), atol=0.02, rtol=0)


def test_shipped_figures_meet_the_bar(tagger):
    from vta_sam.embedded.tiny_networks import SHIPPED_TAGGER

    figures = read_weights(SHIPPED_TAGGER, "tagger").about["figures"]
    assert figures["top1"] >= 0.95 and figures["top1_vocoded"] >= 0.95 and figures["top1_smeared"] >= 0.9


@pytest.mark.slow
def test_tagger_on_many_fresh_sounds(tagger):
    waveforms, classes = solo_sounds(seed=31, split="fresh", per_class=10)
    figures = tagger_figures(tagger, waveforms, classes, vocode=30)
    assert figures["top1"] >= 0.95 and figures["top1_vocoded"] >= 0.9, figures


# ---------------------------------------------------------------------- the event detector

@pytest.fixture(scope="module")
def detector():
    return load_detector()


@pytest.fixture(scope="module")
def scenes():
    """Eight sounds of whole scenes, and their events, of a world that the detector has not met."""
    return scene_sounds(seed=23, split="fresh", count=8)


def mean_f1(events, found, window_s: float = 0.1) -> float:
    return float(np.mean([event_f1(true, made, window_s) for true, made in zip(events, found)]))


def test_events_of_fresh_scenes_are_detected(detector, scenes):
    waveforms, events, _ = scenes
    found = detector.events(waveforms)
    assert max(len(np.unique(true[:, 1])) for true in events) == 3, "several things sound"
    assert mean_f1(events, found) >= 0.9 and mean_f1(events, found, 0.05) >= 0.9
    errors_ms = [onset_errors(true[:, 0], made[:, 0]).median_ms for true, made in zip(events, found)]
    assert abs(np.median(errors_ms)) < 10


def test_events_of_smeared_sound_are_detected(detector, scenes):
    waveforms, events, _ = scenes
    onsets, _ = detector(vocoded(mels_of(waveforms[:4]), smear=True))
    assert mean_f1(events[:4], [picked_events(p) for p in onsets.sigmoid().numpy()]) >= 0.85


def test_another_thing_at_the_right_times_is_told_from_the_right_thing(detector):
    right_f1, wrong_f1, right_onsets, wrong_onsets = [], [], [], []
    for index in range(6):
        scene = make_scene(23, "exchanged", index)
        things = [dataclasses.replace(thing, seed=thing.seed // 2) for thing in scene.things if thing.named]
        dog = next(word for word in ("dog", "badminton", "chicken", "popcorn") if word not in scene.words)
        exchanged = [dataclasses.replace(things[0], word=dog), *things[1:]]
        events = np.array([(event.onset_s, WORDS.index(thing.word)) for thing in things for event in thing.events])
        for of, f1, onsets in ((things, right_f1, right_onsets), (exchanged, wrong_f1, wrong_onsets)):
            sound = render_sound(dataclasses.replace(scene, things=of))
            f1.append(event_f1(events, detector.events(torch.from_numpy(sound)[None])[0]))
            onsets.append(onset_f1(np.sort(events[:, 0]), detect_onsets(sound)))
    assert all(right > wrong for right, wrong in zip(right_f1, wrong_f1)), (right_f1, wrong_f1)
    assert np.mean(right_f1) > np.mean(wrong_f1) + 0.4
    assert abs(np.mean(right_onsets) - np.mean(wrong_onsets)) < 0.1, "onsets alone can't tell"


def test_level_offset_padding_and_company_do_not_move_events(detector, scenes):
    waveforms = scenes[0][:3]
    found = detector.events(waveforms)
    for other in (detector.events(0.05 * waveforms + 0.1), [detector.events(wave[None])[0] for wave in waveforms]):
        for made, again in zip(found, other):
            np.testing.assert_allclose(again, made, atol=0.011)
    padded = detector.events(torch.nn.functional.pad(waveforms, (16_000, 16_000)))
    for made, again in zip(found, padded):
        assert event_f1(made + (1, 0), again, 0.02) >= 0.9


def test_silence_and_hiss_hold_no_events(detector):
    hiss = 0.01 * torch.randn(6, 48_000, generator=torch.Generator().manual_seed(0))
    assert [len(found) for found in detector.events(torch.cat([torch.zeros(1, 48_000), hiss]))] == [0] * 7


def test_of_near_frames_the_most_probable_is_the_onset():
    probabilities = np.zeros((100, 3))
    probabilities[20:23, 1] = 0.7, 0.9, 0.7
    probabilities[[26, 40], 1] = 0.8, 0.59  # too near; not probable enough
    probabilities[[10, 18], 0] = 0.9, 0.9
    np.testing.assert_allclose(picked_events(probabilities), [[0.10, 0], [0.18, 0], [0.21, 1]], atol=1e-6)
    assert picked_events(np.zeros((10, 3))).shape == (0, 2)


def test_the_backbone_of_evaluations_gives_events_beside_the_taggers_embeddings(scenes):
    backbone, tagger = EventBackbone(), TinyBackbone()
    sounds = [scenes[0][0].numpy(), scenes[0][1, :20_000].numpy(), np.full(900, 0.1, np.float32)]
    for output, plain in zip(backbone.embed(sounds), tagger.embed(sounds)):
        np.testing.assert_array_equal(output.embeddings, plain.embeddings)
        assert output.sound_events.shape[1] == 2 and output.sound_events.dtype == np.float32
    assert len(backbone.embed(sounds)[0].sound_events) > 2 and backbone.fingerprint != tagger.fingerprint


def test_scenes_and_batches_for_the_detector_hold_the_truth_and_follow_the_seed(scenes):
    waveforms, events, sounding = scenes
    assert torch.equal(scene_sounds(23, "fresh", 8)[0], waveforms)
    exchanged, of_others, _ = scene_sounds(23, "fresh", 8, exchanged=1.0)
    assert not torch.equal(exchanged, waveforms) and any((a[:, 1] != b[:, 1]).any() for a, b in zip(events, of_others))
    np.testing.assert_array_equal(of_others[0][:, 0], events[0][:, 0])
    onsets = onset_frames(events, sounding.shape[1])
    for true, of_sound in zip(events, onsets):
        for onset_s, number in true:
            assert of_sound[round(onset_s * 100), int(number)]
    assert 0 < onsets.sum() <= 3 * sum(map(len, events)) and (onsets & ~sounding).sum() < 0.4 * onsets.sum()
    mels = mels_of(waveforms)
    first, again = (list(EventBatches(mels, onsets, sounding, 6, 2, seed=4)) for _ in range(2))
    for batch, other in zip(first, again):
        assert [tuple(part.shape) for part in batch] == [(6, 192, 64), (6, 192, 10), (6, 192, 10)]
        assert all(torch.equal(part, same) for part, same in zip(batch, other))


def test_the_detectors_shipped_figures_meet_the_bar():
    about = read_weights(SHIPPED_DETECTOR, "detector").about
    figures, recipe = about["figures"], about["recipe"]
    assert figures["event_f1_clean"][1] >= 0.9 and figures["event_f1_smeared"][1] >= 0.85
    assert figures["event_f1_50ms_clean"][1] >= 0.9
    assert 0 not in (recipe["train_seed"], recipe["test_seed"]), "the generator's world"
    assert SHIPPED_DETECTOR.stat().st_size <= 1 << 20
