"""What raters get: stimuli alike in all but the sound, blind and balanced orders, nothing that names a system."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest

from vta_sam.evaluation.listening.answers import read_key
from vta_sam.evaluation.listening.study_files import (
    HIDDEN, LOW_PASSED, QUESTIONS, REFERENCE, SHIFTED, Item, TestRequest, equally_loud, headphone_trials, make_test,
    order, plans, shares, tokens
)
from vta_sam.media.audio import read_audio, write_wav
from vta_sam.runtime.errors import InputError

RATE = 16_000


def sound(seed: int, seconds: float = 1.5) -> np.ndarray:
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * f * t) for f in rng.uniform(200, 3000, 4)) / 8
    return (hum * np.exp(-3 * ((t - rng.uniform(0.3, 1)) ** 2)) + 0.05 * rng.normal(size=len(t))).astype(np.float32)


def write_systems(folder: Path, names: tuple[str, ...] = ("gt", "alpha", "beta"), clips: int = 3, seconds: float = 1.5,
                  make_video=None) -> Path:
    for s, name in enumerate(names):
        for clip in range(clips):
            made = sound(10 * s + clip, seconds) * (1 if s == 0 else 0.2 * s)
            if make_video and s == 0:
                (folder / name).mkdir(parents=True, exist_ok=True)
                make_video(folder / name / f"clip{clip}.mp4", duration_s=seconds, sound=made, fps=10)
            else:
                write_wav(folder / name / f"clip{clip}.wav", made, RATE)
    return folder


def items(clips: int = 6, conditions: tuple[str, ...] = ("a", "b", "c", *HIDDEN)) -> list[Item]:
    names = iter(tokens(clips * len(conditions), 0))
    return [Item(next(names), f"clip{clip}", condition) for clip in range(clips) for condition in conditions]


# ---------------------------------------------------------------- orders

def test_every_rater_hears_everything_once_a_question():
    found = plans(items(), 5, None, seed=0)
    everything = {item.token for item in items()}
    for plan in found.values():
        for question in QUESTIONS:
            assert sorted(token for token, asked in plan if asked == question) == sorted(everything)
        assert len({asked for _, asked in plan[:len(everything)]}) == 1, "one question after the other"
    assert {found[rater][0][1] for rater in found} == set(QUESTIONS), "raters begin with different ones"
    assert len({tuple(plan) for plan in found.values()}) == 5, "raters share an order"


def test_orders_are_a_function_of_seed_and_rater():
    assert plans(items(), 5, None, seed=3) == plans(items(), 5, None, seed=3)
    assert plans(items(), 5, None, seed=3) != plans(items(), 5, None, seed=4)
    assert plans(items(), 5, None, seed=3)["2"] == plans(items(), 9, None, seed=3)["2"]


@pytest.mark.parametrize("clips", [2, 3, 6, 12])
def test_no_clip_comes_twice_in_a_row(clips):
    for rater in range(30):
        row = [item.clip for item in order(items(clips), 0, rater, "quality")]
        assert all(a != b for a, b in zip(row, row[1:])), row


def test_one_clip_can_only_follow_itself():
    assert len(order(items(1), 0, 1, "quality")) == 6


def test_positions_say_nothing_of_the_condition():
    """Over many raters every condition comes early and late equally often."""
    places: dict[str, list[int]] = {}
    for rater in range(200):
        for place, item in enumerate(order(items(), 7, rater, "quality")):
            places.setdefault(item.condition, []).append(place)
    for condition, found in places.items():
        assert np.mean(found) == pytest.approx(17.5, abs=1.2), condition


@pytest.mark.parametrize(("raters", "per_rater"), [(10, 4), (7, 5), (20, 18), (3, 100)])
def test_shares_are_balanced(raters, per_rater):
    found = shares(items(), raters, per_rater, seed=0)
    counts = Counter(item.token for share in found for item in share)
    for conditions in (("a", "b", "c"), (REFERENCE,), (SHIFTED,), (LOW_PASSED,)):
        judged = [counts[item.token] for item in items() if item.condition in conditions]
        assert max(judged) - min(judged) <= 1, conditions
    for share in found:
        assert len({item.token for item in share}) == len(share)
        for hidden in HIDDEN:
            assert sum(item.condition == hidden for item in share) == 3
        assert sum(item.condition not in HIDDEN for item in share) == min(per_rater, 18)


# ---------------------------------------------------------------- stimuli

def test_sounds_are_made_equally_loud():
    sounds = {"loud": 3 * sound(0), "faint": 0.01 * sound(1), "silent": np.zeros(24_000, np.float32)}
    meter = pyloudnorm.Meter(RATE)
    found = equally_loud(sounds)
    assert not found["silent"].any()
    loudness = [meter.integrated_loudness(found[name].astype(float)) for name in ("loud", "faint")]
    assert loudness[0] == pytest.approx(loudness[1], abs=0.1)
    assert max(np.abs(wave).max() for wave in found.values()) <= 0.951


def test_the_headphones_check_is_as_published():
    trials = list(headphone_trials(0))
    assert len(trials) == 6 and len({answer for _, answer in trials}) == 3
    for stereo, answer in trials:
        parts = [stereo[i * 24_000:i * 24_000 + 16_000].astype(float) for i in range(3)]
        level = [20 * np.log10(np.sqrt(np.mean(part ** 2))) for part in parts]
        others = [level[i] for i in range(3) if i != answer]
        assert level[answer] - others[0] == pytest.approx(-6, abs=0.01) and others[0] == pytest.approx(others[1])
        in_the_air = [np.abs(part.sum(axis=1)).max() for part in parts]
        assert int(np.argmin(in_the_air)) != answer, "over loudspeakers another one is quietest"


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_video) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_systems(folder / "systems", make_video=make_video)
    systems = {name: folder / "systems" / name for name in ("alpha", "beta")}
    make_test(TestRequest(systems, folder / "systems" / "gt", folder / "test", raters=4, title="A & B <test>"))
    return folder / "test"


def stimulus(made: Path, clip: str, condition: str) -> np.ndarray:
    key = read_key(made)
    [token] = [item.token for item in key.items.values() if (item.clip, item.condition) == (clip, condition)]
    return read_audio(made / "raters" / "media" / f"{token}.mp4")


def test_anchors_are_what_they_say(made):
    true, late = stimulus(made, "clip0", REFERENCE), stimulus(made, "clip0", SHIFTED)
    lag = np.argmax(np.fft.irfft(np.fft.rfft(late) * np.conj(np.fft.rfft(true))))
    assert lag == pytest.approx(RATE, abs=20), "not one second late"
    dull = stimulus(made, "clip0", LOW_PASSED)
    power = [np.abs(np.fft.rfft(wave)) ** 2 for wave in (true, dull)]
    hz = np.fft.rfftfreq(len(true), 1 / RATE)
    high = (hz > 4500) & (hz < 7000)
    assert 10 * np.log10(power[1][high].sum() / power[0][high].sum()) < -25  # less AAC's own noise than this
    low = (hz > 200) & (hz < 3000)
    assert abs(10 * np.log10(power[1][low].sum() / power[0][low].sum())) < 1.5


def test_stimuli_differ_in_nothing_but_the_sound(made):
    import av

    facts = set()
    for path in (made / "raters" / "media").glob("*.mp4"):
        with av.open(str(path)) as container:
            audio, video = container.streams.audio[0], container.streams.video[0]
            facts.add((audio.codec_context.name, audio.codec_context.sample_rate, audio.codec_context.layout.name,
                       video.codec_context.name, video.frames, tuple(sorted(container.metadata.items())),
                       round(container.duration / 1e6, 1), path.stat().st_mtime))
    assert len(facts) == 1, facts


def test_nothing_in_the_raters_folder_names_a_system(made):
    systems, tokens_of = re.compile(rb"alpha|beta|clip\d|anchor|hidden reference|systems/gt"), read_key(made).items
    for path in (made / "raters").rglob("*"):
        if path.is_file():
            assert not systems.search(path.read_bytes()), path.name
    assert not (made / "raters" / "key.json").exists() and len(tokens_of) == 15
    data = json.loads((made / "raters" / "data.js").read_text().removeprefix("window.TEST = ").rstrip(";\n"))
    assert set(data["media"]) == {*tokens_of, "practice"}
    assert all((made / "raters" / name).is_file() for name in data["media"].values())
    assert list(data["media"]) == sorted(data["media"]), "their order must not be that of conditions"


def test_the_page_needs_no_network_and_escapes_its_title(made):
    page = (made / "raters" / "index.html").read_text()
    assert "A &amp; B &lt;test&gt;" in page and "<test>" not in page
    for path in (made / "raters").glob("*.*"):
        assert not re.search(r"https?://|//cdn", path.read_text()), path.name


def test_a_test_is_never_written_over(made, tmp_path):
    systems = write_systems(tmp_path / "systems", clips=1)
    with pytest.raises(InputError, match="not empty"):
        make_test(TestRequest({"alpha": systems / "alpha"}, systems / "gt", made))


def test_bad_requests_are_refused(tmp_path):
    systems = write_systems(tmp_path / "systems", clips=1)
    with pytest.raises(InputError, match="--raters"):
        TestRequest({"alpha": systems / "alpha"}, systems / "gt", tmp_path / "out", raters=0)
    with pytest.raises(InputError, match="no system"):
        TestRequest({}, systems / "gt", tmp_path / "out")
    write_wav(tmp_path / "other" / "z.wav", sound(0), RATE)
    with pytest.raises(InputError, match="no clip of the reference"):
        make_test(TestRequest({"other": tmp_path / "other"}, systems / "gt", tmp_path / "out"))
    write_wav(tmp_path / "short" / "clip0.wav", sound(0, 0.9), RATE)
    with pytest.raises(InputError, match="too short for the anchor"):
        make_test(TestRequest({"alpha": systems / "alpha"}, tmp_path / "short", tmp_path / "out2"))
    write_wav(tmp_path / "quiet" / "clip0.wav", np.zeros(24_000, np.float32), RATE)
    with pytest.raises(InputError, match="is silent"):
        make_test(TestRequest({"alpha": systems / "alpha"}, tmp_path / "quiet", tmp_path / "out3"))
