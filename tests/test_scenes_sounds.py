"""The voices of the embedded world: sharp where they should be, at sane levels, and ten that are ten."""

import numpy as np
import pytest

from vta_sam.embedded.scene_sounds import (
    HIGHEST_DBFS, LOWEST_DBFS, PEAK, SAMPLE_RATE_HZ, SAMPLES, render_sound, thing_sound
)
from vta_sam.embedded.timeline import CLASSES, IMPULSE, WORDS, Thing, make_scene
from vta_sam.embedded.truth import Event

RATE = SAMPLE_RATE_HZ


def solo(word: str, seed: int) -> Thing:
    """A thing of this class with a bout of three events."""
    what, rng = CLASSES[word], np.random.default_rng(seed)
    thing, now = Thing(word, True, seed), 0.3
    for _ in range(3):
        length, gap = rng.uniform(*what.event_s), rng.uniform(*what.gap_s)
        length = min(length, gap) if what.kind == IMPULSE else length
        thing.gestures.append(Event(now, now + length, what.kind))
        now += gap if what.kind == IMPULSE else length + gap
    thing.gestures = [e for e in thing.gestures if e.end_s < 5]
    return thing


@pytest.mark.parametrize("word", [w for w in WORDS if CLASSES[w].kind == IMPULSE])
def test_impulses_rise_within_ten_milliseconds(word):
    for seed in range(5):
        thing = solo(word, seed)
        sound = thing_sound(thing)
        for event in thing.events:
            span = np.abs(sound[round(event.onset_s * RATE):round(event.end_s * RATE)])
            assert np.argmax(span >= 0.7 * span.max()) <= 0.010 * RATE  # within 3 dB of the peak


def test_levels_peaks_and_silence_of_whole_clips():
    for scene in (make_scene(1, "test", i) for i in range(30)):
        mix = render_sound(scene)
        voices = [(t, thing_sound(t)) for t in scene.things if t.named]
        held = min(1.0, np.abs(mix).max() / np.abs(sum(v for _, v in voices)).max())
        assert mix.shape == (SAMPLES,) and mix.dtype == np.float32 and np.abs(mix).max() <= PEAK + 1e-6
        silent = np.ones(SAMPLES, bool)
        for thing, sound in voices:
            during = np.zeros(SAMPLES, bool)
            for event in thing.events:
                during[round(event.onset_s * RATE):round(event.end_s * RATE)] = True
                silent[round(event.onset_s * RATE):round((event.end_s + 0.1) * RATE)] = False
            level_dbfs = 10 * np.log10(np.mean((held * sound[during]) ** 2))
            assert LOWEST_DBFS <= level_dbfs <= HIGHEST_DBFS, (thing.word, level_dbfs)
        assert not mix[silent].any()


def test_one_class_is_a_family_and_one_thing_is_one_voice():
    def spectrum(sound):
        power = np.abs(np.fft.rfft(sound))
        return power / np.linalg.norm(power)

    first, other = (spectrum(thing_sound(solo("clarinet", s))) for s in (1, 2))
    assert first @ spectrum(thing_sound(solo("clarinet", 1))) > 0.999
    assert first @ other < 0.9


@pytest.mark.slow
def test_a_linear_probe_tells_the_ten_sounds_apart():
    """Mean and spread over time of the true log-mels, 40 sounds a class, half to fit and half to test."""
    import librosa
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = [], []
    for k, word in enumerate(WORDS):
        for seed in range(40):
            sound = thing_sound(solo(word, 1000 * k + seed)).astype(np.float32)
            mel = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=1024, hop_length=160, n_mels=64, power=1.0)
            log = np.log(np.maximum(mel, 1e-5))
            features.append(np.concatenate([log.mean(1), log.std(1)]))
            labels.append(k)
    x, y = np.array(features), np.array(labels)
    fit = np.arange(len(y)) % 2 == 0
    scale = StandardScaler().fit(x[fit])
    probe = LogisticRegression(max_iter=500, C=0.1).fit(scale.transform(x[fit]), y[fit])
    accuracy = probe.score(scale.transform(x[~fit]), y[~fit])
    assert accuracy >= 0.95, f"{accuracy:.3f}"
