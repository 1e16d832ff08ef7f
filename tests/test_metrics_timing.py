"""Envelopes and onsets: the figures that say when a sound happens."""

from __future__ import annotations

import numpy as np
import pytest

from vta_sam.mel import SAMPLE_RATE_HZ
from vta_sam.metrics.alignment import ObjectOnsets, event_f1, event_scores, matched_events
from vta_sam.metrics.onsets import detect_onsets, onset_errors, onset_f1
from vta_sam.metrics.signal import NATS_PER_DB, correlation, energy_envelope, envelope_correlation, envelope_lag
from vta_sam.runtime.errors import InputError

DURATION_S = 4.0
NOTES_S = np.array([0.30, 0.85, 1.40, 2.30, 3.10, 3.55])


def notes(starts_s: np.ndarray = NOTES_S, gain: float = 0.3) -> np.ndarray:
    """Struck notes of falling level, one after the other."""
    time_s = np.arange(round(DURATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    sound = np.zeros_like(time_s)
    for number, start_s in enumerate(starts_s):
        since = np.maximum(time_s - start_s, 0)
        tone = sum(np.sin(2 * np.pi * 220 * 2 ** (number / 6) * k * since) / k for k in range(1, 8))
        sound += (time_s >= start_s) * np.exp(-12 * since) * tone
    return (gain * sound).astype(np.float32)


def test_envelope_is_100_hz_and_clipped_at_60_db():
    envelope = energy_envelope(notes())
    assert envelope.shape == (401,)
    # before the first note is digital silence, 60 dB under the unsmoothed maximum and no more
    assert np.ptp(envelope[:20]) == 0
    assert 0.9 * 60 * NATS_PER_DB < envelope.max() - envelope[0] <= 60 * NATS_PER_DB


def test_envelope_is_smoothed_over_50_ms():
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[8000] = 0.5
    envelope = energy_envelope(click)
    # the click fills the frames whose windows hold it, 3 on either side; the boxcar adds 2 more
    assert envelope.argmax() == 50
    above = np.flatnonzero(envelope > envelope.min() + 1e-9)
    assert (above[0], above[-1]) == (45, 55)


def test_same_sound_scores_one_and_gain_hardly_matters():
    assert envelope_correlation(notes(), notes()) == pytest.approx(1)
    # the mel's own floor of 1e-5 cuts the decays of the fainter one
    assert envelope_correlation(0.25 * notes(), notes()) > 0.97


def test_a_shift_in_time_costs():
    true = notes()
    scores = [envelope_correlation(np.roll(true, round(s * SAMPLE_RATE_HZ)), true) for s in (0.0, 0.05, 0.1, 0.25)]
    assert scores == sorted(scores, reverse=True) and scores[-1] < 0.3


@pytest.mark.parametrize("constant", ["silence", "hum"])
def test_a_constant_envelope_scores_zero(constant):
    time_s = np.arange(64_000) / SAMPLE_RATE_HZ
    # 200 Hz: a whole number of periods in a hop, so that every frame sees the same
    sound = np.zeros(64_000) if constant == "silence" else 0.2 * np.cos(2 * np.pi * 200 * time_s)
    inner = slice(10, -10)  # the last window of the hum ends in the mirror
    assert correlation(energy_envelope(sound)[inner], energy_envelope(notes())[inner]) == 0
    if constant == "silence":
        assert envelope_correlation(sound, notes()) == 0 == envelope_correlation(notes(), sound)


def test_lengths_are_cut_to_the_shorter():
    true = notes()
    assert envelope_correlation(np.concatenate([true, np.zeros(32, np.float32)]), true) == pytest.approx(1, abs=1e-3)
    assert envelope_correlation(true[:48_000], true) > 0.99


def test_nan_is_refused():
    broken = notes()
    broken[5] = np.nan
    for measure in (energy_envelope, detect_onsets):
        with pytest.raises(InputError, match="NaN"):
            measure(broken)


def test_onsets_of_notes_are_found_loud_and_faint():
    for gain in (0.3, 0.003):
        found = detect_onsets(notes(gain=gain))
        assert len(found) == len(NOTES_S)
        np.testing.assert_allclose(found, NOTES_S, atol=0.03)


def test_nothing_starts_in_silence_or_steady_noise():
    noise = np.random.default_rng(0).normal(size=64_000)
    assert len(detect_onsets(np.zeros(64_000))) == 0
    assert len(detect_onsets(notes(gain=1e-4))) == 0  # below -60 dBFS
    assert len(detect_onsets(0.1 * noise)) <= 2


def test_onsets_of_the_embedded_world():
    sounds = pytest.importorskip("vta_sam.embedded.scene_sounds")
    timeline = pytest.importorskip("vta_sam.embedded.timeline")
    scores = []
    for index in range(12):
        scene = timeline.make_scene(seed=3, split="onsets", index=index)
        onsets_s = np.array([e.onset_s for thing in scene.things for e in thing.events])
        scores.append(onset_f1(onsets_s, detect_onsets(sounds.render_sound(scene))))
    assert np.mean(scores) > 0.9


def test_f1_counts_what_lies_within_100_ms():
    assert onset_f1(NOTES_S, NOTES_S) == 1
    assert onset_f1(NOTES_S, NOTES_S + 0.09) == 1
    assert onset_f1(NOTES_S, NOTES_S + 0.11) == 0
    assert onset_f1(NOTES_S, NOTES_S[::-1]) == 1


def test_f1_matches_one_to_one():
    # five onsets around one event are one hit and four false alarms: F1 = 2/6
    assert onset_f1(np.array([1.0]), np.linspace(0.96, 1.04, 5)) == pytest.approx(1 / 3)


def test_f1_of_nothing():
    nothing = np.zeros(0)
    assert onset_f1(nothing, nothing) is None
    assert onset_f1(NOTES_S, nothing) == 0 == onset_f1(nothing, NOTES_S)


def lag_by_every_shift(generated: np.ndarray, true: np.ndarray) -> tuple[float, float] | None:
    """The definition of the lag, shift by shift."""
    best = None
    for shift in sorted(range(-100, 101), key=abs):
        late, early = generated[max(shift, 0):], true[max(-shift, 0):]
        late, early = late[:len(early)], early[:len(late)]
        if len(late) < max(2, round(0.5 * min(len(generated), len(true)))) or min(np.ptp(late), np.ptp(early)) < 1e-4:
            continue
        value = float(np.corrcoef(late, early)[0, 1])
        if best is None or value > best[0] + 1e-9:
            best = value, shift
    return None if best is None else (best[1] / 100, best[0])


def pairs_of_envelopes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    envelope, other = energy_envelope(notes()), energy_envelope(notes(NOTES_S + 0.13))
    blip, late_blip, step = (np.full(400, -5.0) for _ in range(3))
    blip[30:34], late_blip[300:303], step[:20] = -4.0, 3.0, random.random(20) * 1e-3
    # both agree where neither loud end lies in the overlap, whose variation is lost in the loud ends' rounding
    faint = {f"loud ends, {number}": 1e-3 * random.random(300) for number in range(6)}
    wave = np.sin(2 * np.pi * np.arange(400) / 20)  # equally good every 200 ms
    return {
        "shifted": (np.roll(envelope, 37).astype(np.float32), envelope.astype(np.float32)), "other": (envelope, other),
        "longer": (envelope, other[:250]), "shorter": (envelope[:90], other), "tied": (wave, wave),
        "tied, longer": (wave, wave[:150]), "blips": (blip, late_blip), "nearly flat": (step, step[::-1].copy()),
        **{name: (np.append(of, np.full(100, 1e4)), np.append(np.full(100, 1e4), of)) for name, of in faint.items()},
        "flat": (np.full(400, 2.0), envelope), "rounded": tuple(np.round(random.random((2, 300)))),
        "loud": (1e6 * envelope, 1e-3 * other), "noise": tuple(random.normal(size=(2, 777))),
        "few": (envelope[28:33], other[28:34]), "none": (np.zeros(0), envelope),
    }


@pytest.mark.parametrize("name", pairs_of_envelopes())
def test_the_lag_is_that_of_every_shift_tried(name):
    generated, true = pairs_of_envelopes()[name]
    assert envelope_lag(generated, true) == lag_by_every_shift(generated, true)


def test_only_likely_shifts_are_tried(monkeypatch):
    tried = []
    monkeypatch.setattr(np, "corrcoef", lambda *pair, of=np.corrcoef: tried.append(0) or of(*pair))
    envelope = energy_envelope(notes())
    assert envelope_lag(np.roll(envelope, 21), envelope)[0] == 0.21 and len(tried) < 5


def test_onset_errors_have_a_sign_and_near_onsets_belong_together():
    true = np.array([1.0, 2.0, 3.0])
    late, early = onset_errors(true, true + 0.03), onset_errors(true, true - 0.03)
    assert (late.median_ms, early.median_ms) == (pytest.approx(30), pytest.approx(-30))
    assert (late.absolute_ms, early.absolute_ms) == (pytest.approx(30), pytest.approx(30))
    assert onset_errors(np.array([1.0, 1.2]), np.array([1.2, 1.4])).median_ms == pytest.approx(0)
    one = onset_errors(true, np.array([0.99, 1.02, 2.26, 3.3]))
    assert (one.median_ms, one.absolute_ms) == (pytest.approx(-10), pytest.approx(10)), "one each, none beyond 250 ms"
    nothing = onset_errors(true, np.zeros(0))
    assert (nothing.median_ms, nothing.absolute_ms, nothing.in_itu_window) == (None, None, 0)
    assert onset_errors(np.zeros(0), true).in_itu_window is None


@pytest.mark.parametrize(("error_s", "share"), [(-0.045, 1), (-0.05, 0), (0.0, 1), (0.125, 1), (0.13, 0)])
def test_sound_may_lag_more_than_it_may_lead(error_s, share):
    assert onset_errors(np.array([1.0, 2.0]), np.array([1.0, 2.0]) + error_s).in_itu_window == share
    assert onset_errors(np.array([1.0, 1.001]), np.array([1.0 + error_s])).in_itu_window == share / 2, "one to one"


def events(*of_classes: tuple[float, int]) -> np.ndarray:
    return np.array(of_classes, float).reshape(-1, 2)


def test_an_event_is_what_and_when():
    true = events((1, 0), (2, 0), (1.5, 1))
    assert event_f1(true, true) == 1 and event_f1(true, events()) == 0 and event_f1(events(), events()) is None
    assert event_f1(true, events((1, 1), (2, 1), (1.5, 0))) == 0, "right times, wrong things"
    assert event_f1(true, events((1.08, 0), (2, 0), (1.5, 1))) == 1
    assert event_f1(true, events((1.08, 0), (2, 0), (1.5, 1)), 0.05) == pytest.approx(2 / 3)
    assert event_f1(true, events((1, 0), (1.01, 0), (0.99, 0))) == pytest.approx(2 / 6), "one to one"
    assert matched_events(events((1, 0), (1.05, 0)), events((1.1, 0), (0.95, 0)), 0.1) == 2


def test_events_of_asked_and_of_other_objects():
    classes = ("dog", "canary", "ferret")
    objects = [ObjectOnsets("dog", True, np.array([1.0, 2.0])), ObjectOnsets("canary", True, np.array([1.5])),
               ObjectOnsets("ferret", False, np.zeros(0))]
    scores = event_scores(objects, events((1.02, 0), (2.5, 2), (3.0, 0), (1.5, 1)), classes)
    assert scores.f1 == pytest.approx(4 / 7) and scores.asked == pytest.approx(2 / 3)
    assert scores.unasked == 1 / 4 and scores.unnamed == 1
    quiet = event_scores(objects, events(), classes)
    assert (quiet.f1, quiet.asked, quiet.unasked, quiet.unnamed) == (0, 0, None, 0)
    assert event_scores(objects[:2], events(), classes).unnamed is None
    alike = [objects[0], ObjectOnsets("dog", False, np.zeros(0))]
    assert event_scores(alike, events((1.0, 0)), classes).unnamed is None, "the named dog may have made it"
    assert event_scores([ObjectOnsets("owl", True, np.array([1.0]))], events((1, 0)), classes) is None
