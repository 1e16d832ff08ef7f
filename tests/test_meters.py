"""Metrics measured by known faults: the faults are what they say, the accuracies count right, and the command works."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from programs import call
from test_evaluation import clicks, write_folder

from vta_sam.embedded.scene_sounds import render_sound
from vta_sam.embedded.timeline import class_of, make_scene
from vta_sam.embedded.truth import read_truth
from vta_sam.evaluation import faults, meter_report, meters, metric_table
from vta_sam.evaluation.faults import FAULTS, IN_STEP, MARGIN_S, Original, chosen_faults, faulty, in_step
from vta_sam.evaluation.meter_report import Meters, of_clips, of_set, page_with_meters, pairs_of
from vta_sam.evaluation.metric import Metric
from vta_sam.evaluation.pairing import Timeline, timelines
from vta_sam.evaluation.results import ClipScores, Evaluation, Figure, SystemResult
from vta_sam.metrics.intervals import Interval
from vta_sam.metrics.onsets import detect_onsets
from vta_sam.runtime.errors import InputError

RATE = 16_000


def original(number: int = 0, seconds: float = 4.0, noise: float = 0.001) -> Original:
    """Tones that begin at known times, over noise that no silence can hide in."""
    rng, times_s = np.random.default_rng(number), np.array([0.3, 0.9, 1.5, 2.1, 2.7, 3.3])
    sound, n = noise * rng.standard_normal(round(seconds * RATE)), np.arange(2400)
    for time_s in times_s:
        sound[round(time_s * RATE) + n] += 0.4 * np.exp(-n / 500) * np.sin(0.3 * n)
    return Original(f"c{number}", number, sound.astype(np.float32), times_s, None, rng.standard_normal(RATE))


def made(clip: Original, name: str, strength: float, seed: int = 0) -> np.ndarray:
    sound = faulty(clip, FAULTS[name], strength, seed)
    assert sound is not None and len(sound) == len(in_step(clip))
    return sound


def beginnings(clip: Original, sound: np.ndarray) -> np.ndarray:
    """Onsets of a window, on the clip's own clock, without our detector's delay."""
    return detect_onsets(sound) + MARGIN_S - 0.01


@pytest.mark.parametrize("number, sign", [(0, 1), (1, -1)])
@pytest.mark.parametrize("ms", FAULTS["shift"].strengths)
def test_a_shift_moves_in_the_clips_own_sound(number, sign, ms):
    clip = original(number)
    start = round(MARGIN_S * RATE) - sign * round(ms / 1000 * RATE)
    np.testing.assert_array_equal(made(clip, "shift", ms), clip.sound[start:start + len(in_step(clip))])
    assert max(FAULTS["shift"].strengths) / 1000 < MARGIN_S, "nothing has to be made up at the edges"


def test_jitter_moves_each_event_by_itself():
    moves = []
    for number in range(6):
        clip = original(number)
        found = beginnings(clip, made(clip, "jitter", 100))
        inner = clip.onsets_s[(clip.onsets_s > 0.8) & (clip.onsets_s < 3.2)]
        nearest = np.array([found[np.abs(found - time_s).argmin()] for time_s in inner])
        np.testing.assert_allclose(np.abs(nearest - inner), 0.1, atol=0.015)
        moves.append(np.sign(nearest - inner))
    moves = np.array(moves)
    assert (moves > 0).any() and (moves < 0).any() and any(len(set(row)) == 2 for row in moves)
    assert faulty(replace(original(), onsets_s=np.zeros(0)), FAULTS["jitter"], 100, 0) is None


@pytest.mark.parametrize("rate", FAULTS["speed"].strengths)
def test_another_speed_is_about_the_middle_and_keeps_the_pitch(rate):
    clip = original()
    middle = len(clip.sound) / RATE / 2
    found = beginnings(clip, made(clip, "speed", rate))
    expected = middle + (clip.onsets_s - middle) / rate
    expected = expected[(expected > MARGIN_S + 0.1) & (expected < len(clip.sound) / RATE - MARGIN_S - 0.1)]
    assert all(np.abs(found - time_s).min() < 0.03 for time_s in expected)
    peaks = [np.abs(np.fft.rfft(sound)).argmax() / len(sound) for sound in (clip.sound, made(clip, "speed", rate))]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.03)


def test_events_go_and_come_one_by_one():
    clip = original()
    count = len(detect_onsets(in_step(clip)))
    assert [len(detect_onsets(made(clip, "removed", n))) for n in (1, 2)] == [count - 1, count - 2]
    assert [len(detect_onsets(made(clip, "added", n))) for n in (1, 2)] == [count + 1, count + 2]
    changed = [np.abs(made(clip, name, n) - in_step(clip)) > 1e-6 for name in ("removed", "added") for n in (1, 2)]
    assert not (changed[0] & ~changed[1]).any() and not (changed[2] & ~changed[3]).any(), "the stronger is more of it"
    few = replace(clip, onsets_s=clip.onsets_s[2:3])
    assert faulty(few, FAULTS["removed"], 1, 0) is None, "one event is left at least"


def test_a_removed_event_leaves_the_background_not_silence():
    clip = original(noise=0.003)
    levels = [np.sqrt(np.square(sound[:46_400]).reshape(-1, 800).mean(1)).min() for sound in
              (in_step(clip), made(clip, "removed", 2))]
    assert levels[1] > 0.5 * levels[0]


def test_right_time_wrong_thing():
    scene = next(s for i in range(20) if len((s := make_scene(0, "meters", i)).words) == 2)
    sound = render_sound(scene)
    clip = Original(scene.id, 0, sound, np.array([0.0]), scene)
    one, both = (made(clip, "exchanged", share) for share in (0.5, 1))
    true = in_step(clip)
    assert not np.array_equal(one, true) and not np.array_equal(both, one)
    quiet = np.convolve(np.abs(true), np.ones(1600), "same") == 0  # nothing sounds around: no word begins there
    assert np.abs(both[quiet]).max(initial=0) == 0
    alone = next(s for i in range(20) if len((s := make_scene(0, "meters", i)).words) == 1)
    assert faulty(Original("a", 0, render_sound(alone), np.array([0.0]), alone), FAULTS["exchanged"], 1, 0) is None


def test_an_exchanged_word_is_of_its_kind_and_new(monkeypatch):
    rendered = []
    monkeypatch.setattr(faults, "render_sound", lambda scene: rendered.append(scene) or np.zeros(81_920, np.float32))
    for index in range(12):
        scene = make_scene(1, "meters", index)
        clip = Original(scene.id, index, np.zeros(81_920, np.float32), np.zeros(0), scene)
        faulty(clip, FAULTS["exchanged"], 0.5, 0)
        now = [(old.word, new.word) for old, new in zip(scene.things, rendered.pop().things) if old.word != new.word]
        assert len(now) == 1, "one object"
        [(before, after)] = now
        assert class_of(after).kind == class_of(before).kind and after not in {t.word for t in scene.things}


def test_another_clips_sound_under_this_ones_envelope():
    clip = original(noise=0.0001)
    exchanged = made(clip, "exchanged", 1)
    loud = np.abs(in_step(clip)) > 0.05
    assert np.abs(exchanged[loud]).mean() > 20 * np.abs(exchanged[~loud & (np.abs(in_step(clip)) < 1e-3)]).mean()
    assert abs(np.corrcoef(exchanged, in_step(clip))[0, 1]) < 0.2
    assert faulty(replace(clip, other=None), FAULTS["exchanged"], 1, 0) is None


def test_dull_and_noisy_by_so_much():
    noise = replace(original(), sound=np.random.default_rng(0).standard_normal(64_000).astype(np.float32) * 0.1)
    for hz in (-4000, -2000, -1000):
        spectrum = np.abs(np.fft.rfft(made(noise, "low-passed", hz))) ** 2
        at_hz = np.linspace(0, 8000, len(spectrum))
        assert spectrum[at_hz > -1.3 * hz].mean() < 1e-3 * spectrum[at_hz < -0.7 * hz].mean()
    clip = original()
    for strength in (-20, -10, 0):
        added = made(clip, "noisy", strength) - in_step(clip)
        ratio = 10 * np.log10(np.mean(clip.sound**2) / np.mean(added**2))
        assert ratio == pytest.approx(-strength, abs=0.3)


def test_faults_are_a_function_of_the_seed():
    clip = original()
    for fault in FAULTS.values():
        one, again = (faulty(clip, fault, fault.strengths[-1], 3) for _ in range(2))
        np.testing.assert_array_equal(one, again)
    assert not np.array_equal(made(clip, "jitter", 100, 3), made(clip, "jitter", 100, 4))
    with pytest.raises(InputError, match="no fault lag; there are shift"):
        chosen_faults(["lag"])


# ---------------------------------------------------------------- accuracies


def test_ties_count_half_and_what_is_not_defined_counts_apart():
    better, worse = np.array([1, 2, 3, np.nan, 5]), np.array([0, 2, 4, 1, 0.0])
    pairs = pairs_of(better, worse, np.array([True] * 4 + [False]))
    assert (pairs.accuracy, pairs.n, pairs.ties, pairs.undefined) == (0.5, 3, 1, 1)
    assert not pairs.tells and pairs.low < 0.5 < pairs.high


def evaluation(better: str, scope: str, values: dict[str, list[float | None]]) -> tuple[Evaluation, Metric]:
    metric = Metric("m", "M", better, scope, group="Timing")  # type: ignore[arg-type]
    systems = {name: SystemResult(name, {"m": Figure(Interval(row[0] or 0.0, np.nan, np.nan, len(row)))},
                                  {f"c{i}": ClipScores({"m": value}, [], False) for i, value in enumerate(row)},
                                  len(row), Interval(0, 0, 0, len(row))) for name, row in values.items()}
    return Evaluation([metric], systems, [f"c{i}" for i in range(len(next(iter(values.values()))))]), metric


@pytest.mark.parametrize("better, turn", [("high", 1.0), ("low", -1.0)])
def test_a_metric_that_falls_with_the_fault_is_perfect(better, turn):
    fault = FAULTS["shift"]
    names = [IN_STEP, *map(fault.system, fault.strengths)]
    found = of_clips(*evaluation(better, "clip", {name: [turn * (10.0 - row)] * 4 for row, name in enumerate(names)}),
                     fault, 0)
    assert all(pairs.accuracy == 1 and pairs.n == 4 for pairs in found.against_in_step.values())
    assert list(found.next) == ["50 ms", "100 ms", "200 ms", "500 ms"]
    assert all(pairs.accuracy == 1 for pairs in found.next.values())
    assert found.monotony.mean == pytest.approx(1) and found.pooled.accuracy == 1 and found.pooled.n == 16
    blind = of_clips(*evaluation(better, "clip", {name: [0.3] * 4 for name in names}), fault, 0)
    assert blind.against_in_step["50 ms"].accuracy == 0.5 and blind.monotony.mean == 0
    assert blind.against_in_step["50 ms"].ties == 4


def test_a_figure_of_a_set_is_a_share_of_draws():
    fault = FAULTS["noisy"]
    names = [IN_STEP, *map(fault.system, fault.strengths)]
    found, metric = evaluation("low", "set", {name: [float(row)] for row, name in enumerate(names)})
    found.differences[f"{names[0]} − {names[1]}"] = {"m": Interval(-1.0, -1.0 - 1.96, -1.0 + 1.96, 9)}
    pairs = of_set(found, metric, fault).against_in_step
    assert pairs["20 dB"].accuracy == pytest.approx(0.841, abs=0.001) and pairs["20 dB"].n == 9
    assert pairs["10 dB"].accuracy == 1, "without an interval the order itself"


def test_the_table_says_which_meters_fail():
    fault = FAULTS["shift"]
    names = [IN_STEP, *map(fault.system, fault.strengths)]
    found, metric = evaluation("high", "clip", {name: [1.0 - 0.1 * (row > 3)] * 30 for row, name in enumerate(names)})
    published = replace(metric, key="m_published")
    found_meters = Meters("embedded", "none", [fault], replace(found, metrics=[published]),
                          {"m_published": {"shift": of_clips(found, metric, fault, 0)}})
    told = meter_report.markdown(found_meters)
    assert "a shift of 50 ms: 1 of 1 published meters of timing can't tell it from the truth: `m_published`." in told
    assert "a shift of 200 ms: each of the 1 published meters of timing tells it" in told
    assert "0.58 (as published)" in told and "38,390 clips" in told
    page = metric_table.PAGE.read_text(encoding="utf-8")
    assert told in page_with_meters(page, found_meters)
    with pytest.raises(InputError, match="has no lines <!-- meters, embedded"):
        page_with_meters("", found_meters)


# ---------------------------------------------------------------- the command

def test_the_command_measures_on_the_embedded_world(tmp_path):
    told = ["clips=3", "faults=[shift,exchanged]", "carrier=none", "flow=none", "backbones=[]", "workers=0",
            "out=here", "cache=cache"]
    planned = call("experiments/meters.py", *told, "plan=true", cwd=tmp_path)
    assert planned.returncode == 0 and "shift 50 ms" in planned.stdout and not list(tmp_path.iterdir())
    done = call("experiments/meters.py", *told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "here" / "meters.json").read_text())
    assert content["clips"] == 3 and (tmp_path / "here" / "meters.png").stat().st_size > 10_000
    late = content["figures"]["onset_f1"]["shift"]["against_in_step"]["500 ms"]
    assert late["accuracy"] == 1 and late["n"] == 3 and 0.4 < late["low"] < 0.45
    assert "| `envelope_correlation` |" in done.stdout
    [reference] = (tmp_path / "here" / "clips").glob("*/reference")
    truth = read_truth(reference / "meters-000000.wav")
    assert truth.duration_s == pytest.approx(4.08) and len(truth.visible) == 102
    whole = make_scene(0, "meters", 0)
    expected = [e.onset_s - MARGIN_S for t in whole.things for e in t.events if 0 <= e.onset_s - MARGIN_S < 4.08]
    np.testing.assert_allclose(sorted(e.onset_s for o in truth.objects for e in o.events), sorted(expected))
    features = timelines(reference.parent / "features", [f"meters-{i:06d}" for i in range(3)])
    assert [round(line.duration_s, 2) for line in features.values()] == [4.08] * 3, "for the sync network"
    sounds = {path: path.stat().st_mtime_ns for path in (tmp_path / "here" / "clips").rglob("*.wav")}
    assert call("experiments/meters.py", *told, cwd=tmp_path).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in sounds} == sounds, "sounds that are there are kept"


def test_features_of_whole_clips_are_refused(tmp_path, monkeypatch):
    """Their time zero is another moment than the windows', so that a sync network would find every sound late."""
    settings = {"reference": "embedded", "clips": 2, "carrier": "none", "seed": 0, "faults": ["shift"], "sound": None,
                "lowest_rate_hz": 16_000, "shortest_s": 0.5, "longest_s": 600, "videos": None, "ids": None,
                "split": None, "out": tmp_path}
    study = meters.study_of(settings)
    write_folder(study.folder / "reference", {study.works[0].id: np.zeros(round(4.08 * RATE), np.float32)})
    for duration_s in (4.08, 5.12):
        found = {study.works[0].id: Timeline([], np.zeros((1, 0)), duration_s)}
        monkeypatch.setattr(meters, "timelines", lambda shards, clips: found)
        if duration_s < 5:
            study.require_windows(tmp_path)
            continue
        with pytest.raises(InputError, match="lasts 5.12 s there, and its window 4.08 s; extract the windows in"):
            study.require_windows(tmp_path)
    for changed, said in (({"carrier": "mp3"}, "carrier=mp3"), ({"faults": ["lag"]}, "no fault lag")):
        with pytest.raises(InputError, match=said):
            meters.study_of({**settings, **changed})


def test_a_folder_of_sounds_and_what_can_not_be_used(tmp_path):
    write_folder(tmp_path / "true", {f"c{i}": clicks(i) for i in range(3)} | {"short": clicks(9, 1.0)})
    (tmp_path / "two.csv").write_text("id\nc0\nc2\n")
    two = call("experiments/meters.py", "reference=true", "ids=two.csv", "plan=true", cwd=tmp_path)
    assert two.returncode == 0 and "on 2 clips of true" in two.stdout
    told = ["reference=true", "faults=shift", "flow=none", "backbones=[]", "workers=0", "out=here", "cache=cache"]
    refused = call("experiments/meters.py", *told, cwd=tmp_path)
    assert refused.returncode == 2 and "short.wav lasts 1.00 s; at least 2.04 s are needed" in refused.stderr
    rest = call("experiments/meters.py", *told, "skip_bad=true", cwd=tmp_path)
    assert rest.returncode == 1 and "1 clips could not be used" in rest.stderr
    content = json.loads((tmp_path / "here" / "meters.json").read_text())
    assert content["clips"] == 3 and list(content["left_out"]) == ["short"]
    assert content["figures"]["envelope_correlation"]["shift"]["against_in_step"]["200 ms"]["accuracy"] == 1
    in_step_file, true_file = (next((tmp_path / "here").rglob(f"{name}/c0.wav")) for name in ("in step", "reference"))
    assert in_step_file.read_bytes() != true_file.read_bytes(), "the sound in step is not the true file"
