"""Columns of published metrics are what the published code gives for the same files, of any rate, channels and length.

The functions below are written anew from the description of the published scripts, with librosa.load before them.
"""

from __future__ import annotations

import io
import json

import librosa
import numpy as np
import pytest
import soundfile
from rich.console import Console
from sklearn.metrics import average_precision_score
from test_evaluation_parts import QUICK, blinking

from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.results import figures_table, write_evaluation
from vta_sam.media.audio import read_plain
from vta_sam.metrics.alignment import flow_peaks_s, measure_flow
from vta_sam.runtime.errors import InputError

RATE = 22_050


def struck(times_s: np.ndarray, rate_hz: int, seconds: float, seed: int, hz: float = 9000.0) -> np.ndarray:
    """Strokes, some of them above 8 kHz, over noise."""
    rng, n = np.random.default_rng(seed), np.arange(round(0.15 * rate_hz))
    sound = 0.002 * rng.standard_normal(round(seconds * rate_hz))
    for k, time_s in enumerate(times_s):
        tone = np.sin(2 * np.pi * (hz if k % 3 == 0 else 700 + 90 * k) * n / rate_hz)
        start = round(time_s * rate_hz)
        part = sound[start:start + len(n)]
        part += (rng.uniform(0.05, 0.6) * np.exp(-n / (0.03 * rate_hz)) * tone)[:len(part)]
    return sound


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_video):
    """True videos of 3 s, and generated files of other rates, stereo, and longer or shorter than them."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "true").mkdir()
    (folder / "ours").mkdir()
    for i, (rate_hz, channels, seconds) in enumerate([(44_100, 2, 4.5), (48_000, 1, 3.0), (22_050, 2, 3.7),
                                                      (16_000, 1, 5.0), (32_000, 2, 2.6), (16_000, 1, 3.0)]):
        rng = np.random.default_rng(i)
        times_s = np.sort(rng.choice(np.arange(3, 27), 5, replace=False)) / 10
        make_video(folder / "true" / f"f{i}.mp4", size=(96, 48), fps=10, duration_s=3.0,
                   sound=struck(times_s, 16_000, 3.0, i, 3000).astype(np.float32), picture=blinking(times_s))
        late_s = np.append(times_s + rng.uniform(-0.07, 0.12, 5), [3.2, 3.9])
        sides = [struck(late_s[late_s < seconds - 0.05], rate_hz, seconds, 10 * i + side) for side in range(channels)]
        soundfile.write(folder / "ours" / f"f{i}.wav", np.stack(sides, 1), rate_hz)
    return folder


def loaded(path) -> np.ndarray:
    if path.suffix == ".wav":
        return librosa.load(path, sr=RATE)[0]
    plain, rate_hz = read_plain(path)  # the published scripts have a wav beside each video
    return librosa.resample(plain, orig_sr=rate_hz, target_sr=RATE)


def peaks_s(path) -> np.ndarray:
    wave = loaded(path)
    frames = librosa.onset.onset_detect(onset_envelope=librosa.onset.onset_strength(y=wave, sr=RATE), sr=RATE)
    return librosa.frames_to_time(frames, sr=RATE)


def aa_align(true, generated) -> float:
    hits = sum(any(t - 0.1 < g < t + 0.1 for t in true) for g in generated)
    return hits / (len(true) + len(generated) - hits)


def av_align(sound, video, fps: float) -> float:
    left, hits = list(video), 0
    for peak in sound:
        near = next((other for other in left if other - 1 / fps < peak < other + 1 / fps), None)
        if near is not None:
            left.remove(near)
            hits += 1
    return hits / (len(sound) + len(video) - hits)


def onset_scores(true_path, path) -> tuple[float, float, bool]:
    def onsets(wave):
        return list(librosa.onset.onset_detect(y=wave, sr=RATE, units="samples", delta=0.3))

    true, wave = onsets(loaded(true_path)), loaded(path)
    found, size = onsets(wave), np.abs(wave)
    size = (size - size.min()) / (size.max() - size.min())
    agrees = len(true) == len(found)
    sure = {o: size[o - 1102:o + 1102].max() for o in found}
    kept, left = [], list(found)
    for current in sorted(found, key=lambda o: -sure[o]):
        if current in left:
            kept.append(current)
            left.remove(current)
            for other in left:  # as published: the list changes under the loop
                if abs(current - other) < 0.05 * RATE:
                    left.remove(other)
    rows, left = [], sorted(kept)
    for onset in true:
        near = [o for o in left if abs(o - onset) < 0.1 * RATE]
        if not near:
            rows.append((1, 0.0))
            continue
        best = max(near, key=lambda o: size[o])
        rows.append((1, sure[best]))
        left.remove(best)
        if not left:
            break
    hits = sum(score > 0 for _, score in rows)
    rows += [(0, sure[o]) for o in left]
    return hits / len(true), average_precision_score(*zip(*rows)), agrees


def test_published_columns_are_what_the_published_code_gives(files):
    found, _ = evaluate(Request({"ours": files / "ours"}, files / "true", flows=("full",), metrics="all",
                                backbones=(), **QUICK))
    clips = found.systems["ours"].clips
    for clip, scores in clips.items():
        true_path, path = files / "true" / f"{clip}.mp4", files / "ours" / f"{clip}.wav"
        values, flow = scores.values, measure_flow(true_path)
        assert values["aa_align_published"] == pytest.approx(aa_align(peaks_s(true_path), peaks_s(path)), abs=1e-9)
        assert values["av_align_published"] == pytest.approx(
            av_align(peaks_s(path), flow_peaks_s(flow), flow.fps), abs=1e-9)
        accuracy, precision, agrees = onset_scores(true_path, path)
        assert values["onset_accuracy_published"] == pytest.approx(accuracy, abs=1e-9)
        assert values["onset_ap_published"] == pytest.approx(precision, abs=1e-9)
        assert values["onset_count_published"] == agrees
    assert len(clips) == 6


def test_the_own_columns_keep_the_one_policy(files, tmp_path):
    """What comes after the true sound's end, and the other channel's half, is the published columns' alone."""
    (tmp_path / "cut").mkdir()
    for i in range(6):
        samples, rate_hz = soundfile.read(files / "ours" / f"f{i}.wav", always_2d=True)
        soundfile.write(tmp_path / "cut" / f"f{i}.wav", samples[:3 * rate_hz].mean(1), rate_hz)
    found, _ = evaluate(Request({"ours": files / "ours", "cut": tmp_path / "cut"}, files / "true", flows=("full",),
                                backbones=(), **QUICK))
    whole, cut = ([scores.values for scores in found.systems[name].clips.values()] for name in ("ours", "cut"))
    for key in ("aa_align_matched", "onset_f1_matched", "av_align_matched"):
        assert [row[key] for row in whole] == pytest.approx([row[key] for row in cut], abs=1e-9), key
    assert [row["aa_align_published"] for row in whole] != [row["aa_align_published"] for row in cut]


def test_published_onsets_are_remembered(files, tmp_path):
    asked = Request({"ours": files / "ours"}, files / "true", backbones=(), cache=tmp_path, **QUICK)
    first, again = (evaluate(asked)[0].systems["ours"].clips for _ in range(2))
    assert {clip: scores.values for clip, scores in first.items()} == {
        clip: scores.values for clip, scores in again.items()}


def test_plain_sound(files, tmp_path, make_video):
    for path in sorted((files / "ours").iterdir()):
        plain, rate_hz = read_plain(path)
        expected, expected_hz = librosa.load(path, sr=None)
        assert rate_hz == expected_hz
        np.testing.assert_allclose(plain, expected, atol=1e-7)
    with pytest.raises(InputError, match="longer than 2 s"):
        read_plain(files / "ours" / "f3.wav", longest_s=2)
    (tmp_path / "words.wav").write_text("no sound")
    with pytest.raises(InputError):
        read_plain(tmp_path / "words.wav")


# ---------------------------------------------------------------- figures of av-benchmark, read in

RESULT = {"FD-VGG": 1.5, "FD-PASST": 60.25, "KL-PANNS-softmax": 1.4, "ISC-PANNS-mean": 9.5, "ISC-PANNS-std": 0.3,
          "IB-Score": 0.31, "DeSync": 0.44}


@pytest.fixture
def two(files, tmp_path):
    for system in ("true", "ours", "theirs"):
        (tmp_path / system).mkdir()
        for i in (0, 1):
            source = files / "ours" / f"f{i}.wav"
            (tmp_path / system / source.name).write_bytes(source.read_bytes())
    return tmp_path


def measured(two):
    return evaluate(Request({name: two / name for name in ("ours", "theirs")}, two / "true", backbones=(), **QUICK))[0]


def test_a_run_of_av_benchmark_stands_in_our_tables(two):
    plain = measured(two)
    (two / "ours" / "output_metrics.json").write_text(json.dumps(RESULT))
    (two / "theirs" / "cache").mkdir()
    (two / "theirs" / "cache" / "output_metrics.json").write_text(json.dumps({"DeSync": 0.9, "FD-VGG": 2}))
    found = measured(two)
    rows = {metric.key: metric for metric in found.metrics if metric.key.startswith("av_benchmark_")}
    assert {key: row.better for key, row in rows.items()} == {
        "av_benchmark_fd_vgg": "low", "av_benchmark_fd_passt": "low", "av_benchmark_kl_panns_softmax": "low",
        "av_benchmark_isc_panns_mean": "high", "av_benchmark_isc_panns_std": "none", "av_benchmark_ib_score": "high",
        "av_benchmark_desync": "low"}
    assert rows["av_benchmark_desync"].unit == "s" and "read in" in rows["av_benchmark_fd_vgg"].title
    ours, theirs = (found.systems[name].figures for name in ("ours", "theirs"))
    assert ours["av_benchmark_fd_passt"].score.mean == 60.25 and np.isnan(ours["av_benchmark_fd_passt"].score.low)
    assert theirs["av_benchmark_desync"].score.mean == 0.9 and theirs["av_benchmark_ib_score"].score is None
    assert not set(rows) & set(found.best), "nothing is best without an interval"
    assert {"ImageBind score", "DeSync by Synchformer"} <= set(plain.missing) - set(found.missing)
    assert set(found.provenance["av_benchmark"]) == {"ours", "theirs"}
    paths = write_evaluation(two / "out", found)
    content = json.loads(paths[0].read_text())
    assert content["systems"]["ours"]["figures"]["av_benchmark_desync"]["score"]["mean"] == 0.44
    console = Console(width=200, file=io.StringIO())
    console.print(figures_table(found))
    assert "DeSync (av-benchmark, read in)" in console.file.getvalue()


@pytest.mark.parametrize("content", ["[1, 2]", '{"FD-VGG": "low"}', '{"FD-VGG": NaN}', '{"FD-VGG": true}', "{",
                                     "[" * 99_999, '{"a": 1, "b": 2' + " " * 1_100_000 + "}"])
def test_what_is_no_result_of_av_benchmark(two, content):
    (two / "ours" / "output_metrics.json").write_text(content)
    with pytest.raises(InputError, match="output_metrics.json is no result of av-benchmark.*move it away"):
        measured(two)
