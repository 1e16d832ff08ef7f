"""Whole evaluations of small folders: what must hold of any, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from programs import call
from rich.console import Console

import vta_sam.evaluation.measure
import vta_sam.evaluation.results
from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.results import bad_files, end_of_report, figures_table, missing_lines, write_evaluation
from vta_sam.media.audio import write_wav
from vta_sam.runtime.errors import InputError

RATE = 16_000


def clicks(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Decaying tones at random times over faint noise."""
    rng = np.random.default_rng(seed)
    sound = 0.0003 * rng.normal(size=round(seconds * RATE))
    for time_s in np.sort(rng.uniform(0.2, seconds - 0.4, 4)):
        n = np.arange(3000)
        sound[int(time_s * RATE) + n] += rng.uniform(0.3, 0.6) * np.exp(-n / 500) * np.sin(n * rng.uniform(0.1, 0.8))
    return sound.astype(np.float32)


def write_folder(folder: Path, sounds: dict[str, np.ndarray]) -> Path:
    for name, sound in sounds.items():
        write_wav(folder / f"{name}.wav", sound, RATE)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Ten true sounds; the same again; half a second late; noisy, a little and a lot; silent."""
    folder = tmp_path_factory.mktemp("world")
    true = {f"c{i}": clicks(i) for i in range(10)}
    rng = np.random.default_rng(99)
    noise = {name: rng.normal(size=len(sound)).astype(np.float32) for name, sound in true.items()}
    write_folder(folder / "true", true)
    write_folder(folder / "same", true)
    write_folder(folder / "late", {name: np.roll(sound, RATE // 2) for name, sound in true.items()})
    write_folder(folder / "noisy", {name: 0.5 * sound + 0.003 * noise[name] for name, sound in true.items()})
    write_folder(folder / "noisier", {name: 0.5 * sound + 0.1 * noise[name] for name, sound in true.items()})
    write_folder(folder / "silent", {name: np.zeros_like(sound) for name, sound in true.items()})
    return folder


def request(world: Path, *systems: str, **settings) -> Request:
    folders = {name: world / name for name in systems}
    return Request(folders, world / "true", set_resamples=40, resamples=200, **settings)


@pytest.fixture(scope="module")
def evaluation(world):
    return evaluate(request(world, "same", "late", "noisy", "noisier", "silent"))[0]


@pytest.fixture
def few(world, tmp_path):
    """Two clips of the true sounds, the same again, and half a second late: to be changed."""
    folder = tmp_path / "few"
    for system in ("true", "same", "late"):
        (folder / system).mkdir(parents=True)
        for name in ("c0.wav", "c1.wav"):
            shutil.copy(world / system / name, folder / system)
    return folder


def score(evaluation, system: str, key: str) -> float:
    figure = evaluation.systems[system].figures[key]
    assert figure.score is not None, f"{system} {key}: {figure.reason}"
    return figure.score.mean


HIGH = ("envelope_correlation", "onset_f1", "onset_accuracy_published", "onset_f1_matched", "onset_ap_matched",
        "aa_align_published", "aa_align_matched")


def test_equal_sets_are_perfect(evaluation):
    for key in HIGH:
        assert score(evaluation, "same", key) == pytest.approx(1), key
    for key in ("envelope_lag_s", "log_spectral_distance_db", "kl_tiny"):
        assert score(evaluation, "same", key) == pytest.approx(0, abs=1e-9), key
    assert score(evaluation, "same", "frechet_tiny") == pytest.approx(0, abs=1e-9)


def test_a_shift_hurts_timing_and_not_the_distance_of_sets(evaluation):
    for key in HIGH:
        assert score(evaluation, "late", key) < 0.6, key
    assert score(evaluation, "late", "envelope_lag_s") == pytest.approx(0.5, abs=0.05)
    figure = evaluation.systems["late"].figures["frechet_tiny"].score
    assert figure.mean < figure.high - figure.low + 1e-9, "more than its interval is wide"


def test_more_noise_is_worse(evaluation):
    for key in ("log_spectral_distance_db", "kl_tiny", "frechet_tiny"):
        found = [score(evaluation, system, key) for system in ("same", "noisy", "noisier")]
        assert found == sorted(found) and found[2] > found[0], key


def test_silence_wins_nothing_and_is_never_best(evaluation):
    silent = evaluation.systems["silent"]
    assert silent.silent_share.mean == 1 and not silent.ranked
    assert evaluation.systems["same"].ranked and evaluation.systems["same"].silent_share.mean == 0
    for key in ("envelope_correlation", "onset_f1", "onset_f1_matched", "onset_ap_matched", "aa_align_matched"):
        assert score(evaluation, "silent", key) == 0, key
    assert score(evaluation, "silent", "envelope_lag_s") == 1
    assert "silent" not in evaluation.best.values()


def test_controls_are_other_clips(evaluation):
    figure = evaluation.systems["same"].figures["envelope_correlation"]
    assert figure.control.mean < 0.6 and figure.score_minus_control.low > 0.3
    assert evaluation.systems["same"].figures["loudness_dbfs"].control is None


@pytest.fixture(scope="module")
def again(world):
    """Some of the same systems in another order, heard in other batches."""
    return evaluate(request(world, "noisier", "late", "same", batch_size=3))[0]


def test_the_best_is_ahead_of_every_other_by_its_interval(again, few):
    found = again
    assert found.best["envelope_correlation"] == "same" == found.best["aa_align_matched"]
    assert "loudness_dbfs" not in found.best, "neither way is better"
    difference = found.differences["late − same"]["envelope_correlation"]
    assert difference.high < 0 and difference.n == 10
    twins = evaluate(request(few, "same", "true"))[0]
    assert twins.reference == "true" and twins.best == {} and twins.differences == {}


def test_nothing_depends_on_order_or_batch(evaluation, again):
    """Nor on which other systems there are."""
    for name, system in again.systems.items():
        for key, other in system.figures.items():
            figure = evaluation.systems[name].figures[key]
            if figure.score is None:
                assert other.score is None
            else:
                assert other.score.mean == pytest.approx(figure.score.mean, rel=1e-5, abs=1e-6), (name, key)


def test_what_is_missing_has_a_reason(evaluation, few):
    figure = evaluation.systems["same"].figures["fad_infinity_tiny"]
    assert figure.score is None and figure.reason == "needs at least 50 clips, there are 10"
    assert "ImageBind score" in evaluation.missing
    found = evaluate(request(few, "same", backbones=["vggish"], weights=few / "none", flows=("full",)))[0]
    assert "data_prep/weights.py fetch vggish" in found.missing["frechet_vggish"]
    assert found.missing["av_align_published"] == "needs pictures: name a folder of videos with videos="
    assert found.systems["same"].figures["av_align_published"].score is None


def test_what_was_measured_is_remembered(few, tmp_path):
    from vta_sam.evaluation import measure, sounds

    asked = request(few, "same", "late", cache=tmp_path / "cache")
    first = evaluate(asked)[0]
    read = sounds.read_sound
    measure.read_sound = lambda *_: pytest.fail("decoded again")
    try:
        second = evaluate(asked)[0]
    finally:
        measure.read_sound = read
    assert second.systems == first.systems
    write_wav(few / "late" / "c0.wav", clicks(77), RATE)
    assert evaluate(asked)[0].systems["late"] != first.systems["late"], "a changed file was not seen"


def test_results_survive_their_file(evaluation, tmp_path):
    written = write_evaluation(tmp_path, evaluation)
    assert [path.name for path in written] == ["evaluation.json", "clips.csv", "figures.png"]
    content = json.loads(written[0].read_text())
    assert [column["key"] for column in content["columns"]] == [metric.key for metric in evaluation.metrics]
    assert all({"title", "better", "scope", "unit", "source", "definition", "version"} <= set(column)
               for column in content["columns"])
    for name, system in evaluation.systems.items():
        read = content["systems"][name]
        assert {key: None if figure.score is None else figure.score.mean for key, figure in system.figures.items()} \
            == {key: figure["score"] and figure["score"]["mean"] for key, figure in read["figures"].items()}
        assert read["clips"] == {clip: dataclasses.asdict(scores) for clip, scores in system.clips.items()}
    difference = evaluation.differences["same − late"]["envelope_correlation"]
    reading = {"unit": "", "better": "high", "version": 1}
    assert content["differences"]["same − late"]["envelope_correlation"] == dataclasses.asdict(difference) | reading
    for column in content["columns"]:
        reading = {name: column[name] for name in ("unit", "better", "version")}
        figures = [system["figures"][column["key"]] for system in content["systems"].values()]
        assert all(figure | reading == figure for figure in figures), column["key"]
        assert all(figure["score"] is None or figure["score"]["n"] > 0 for figure in figures)
    assert content["notes"] == evaluation.notes and evaluation.notes
    assert len(written[1].read_text().splitlines()) == 1 + 5 * 10
    assert content["provenance"]["clips"] == 10 and "librosa" in content["provenance"]["versions"]


def test_several_samples_of_a_clip_are_one_clip(few, tmp_path):
    both = tmp_path / "both"
    for i in range(2):
        for sample, sound in enumerate((clicks(i), np.roll(clicks(i), RATE // 2))):
            write_wav(both / f"c{i}-{sample}.wav", sound, RATE)
            (both / f"c{i}-{sample}.json").write_text(json.dumps({"key": f"c{i}", "sample": sample}))
    found = evaluate(Request({"both": both}, few / "true", set_resamples=20, resamples=100))[0].systems["both"]
    score = found.figures["onset_f1"].score
    assert found.samples == 4 and (score.n, score.seeds) == (2, 2) and 0.5 <= score.mean < 0.8
    assert score.low < 0.5 and score.high == 1, "drawn over sounds too: the late ones alone, and the others alone"


def test_one_clip_has_no_interval(tmp_path):
    write_folder(tmp_path / "true", {"a": clicks(0)})
    write_folder(tmp_path / "ours", {"a": clicks(1)})
    evaluation = evaluate(Request({"ours": tmp_path / "ours"}, tmp_path / "true"))[0]
    found = evaluation.systems["ours"]
    assert evaluation.notes == ["there is one clip: its figures have no interval and no control"]
    written = json.loads(write_evaluation(tmp_path / "out", evaluation)[0].read_text())["systems"]["ours"]["figures"]
    lone = written["envelope_correlation"]["score"]
    assert lone["mean"] is not None and (lone["low"], lone["high"], lone["n"]) == (None, None, 1)
    shown = io.StringIO()
    Console(file=shown, width=200).print(figures_table(evaluation))
    assert "nan" not in shown.getvalue() and "[" not in shown.getvalue().split("\n", 1)[1]
    assert found.figures["envelope_correlation"].score.n == 1
    assert found.figures["envelope_correlation"].control is None
    assert "at least two clips" in found.figures["frechet_tiny"].reason


def test_clips_without_onsets_are_not_defined(tmp_path):
    steady = {f"s{i}": (0.1 * np.sin(np.arange(3 * RATE) * 0.05 * (i + 1))).astype(np.float32) for i in range(3)}
    write_folder(tmp_path / "true", {name: np.zeros(3 * RATE, np.float32) for name in steady})
    write_folder(tmp_path / "ours", {name: np.zeros(3 * RATE, np.float32) for name in steady})
    figures = evaluate(Request({"ours": tmp_path / "ours"}, tmp_path / "true"))[0].systems["ours"].figures
    assert figures["onset_f1"].score is None and "not defined" in figures["onset_f1"].reason
    assert figures["envelope_correlation"].score.mean == 0


def test_notes_name_what_no_figure_shows(few, tmp_path):
    """Copies of the truth, one sound under two names, silence, other lengths: whatever files they come in."""
    for name, sounds in {
        "copies": {"c0": clicks(0), "c1": clicks(5)}, "twins": {"c0": clicks(7), "c1": clicks(7)},
        "silent": {"c0": clicks(8), "c1": np.zeros(3 * RATE, np.float32)},
        "lengths": {"c0": clicks(9)[:2 * RATE], "c1": np.concatenate([clicks(9), clicks(8)[:RATE // 4]])},
    }.items():
        write_folder(few / name, sounds)
    soundfile.write(few / "copies" / "c0.flac", soundfile.read(few / "copies" / "c0.wav")[0], RATE, subtype="PCM_16")
    (few / "copies" / "c0.wav").unlink()
    asked = request(few, "late", "copies", "twins", "silent", "lengths", cache=tmp_path / "cache")
    expected = [
        "copies has the true sound itself in clip c0: copies of the truth, not generated sound",
        "twins: 2 sounds are one and the same, of clips c0, c1",
        "silent is silent (below -60 dBFS throughout) in clip c1, whose true sound is not",
        "lengths: of 2 sounds 1 were cut, by up to 0.25 s and 1 were padded with silence, by up to 1.00 s, to the "
        "length of the true sound",
    ]
    for found in (evaluate(asked)[0], evaluate(asked)[0]):  # the second from the cache
        assert [n for n in found.notes if not any(word in n for word in ("rows", "classes", "KAD"))] == expected
        assert found.systems["lengths"].clips["c1"].notes == ["0.25 s cut off"]
        assert f"note: {expected[0]}" in missing_lines(found)
    assert any("embedded tagger" in note and "follows the number of rows" in note for note in found.notes)
    itself = evaluate(request(few, "true"))[0].notes
    assert itself[0].startswith("true is the folder of the true sounds itself") and "copies" not in str(itself)
    write_folder(few / "true", {"c1": clicks(0)})
    again = evaluate(request(few, "late", "silent"))[0].notes
    assert again[0] == "the true sounds: 2 sounds are one and the same, of clips c0, c1"
    assert evaluate(request(few, "late", "true"))[0].notes[0] == again[0], "the truth beside others is a bound"


def test_where_no_sound_can_be_scored_the_first_reason_is_the_result(few):
    for name in ("c0.wav", "c1.wav"):
        spoil("corrupt", few / "same" / name)
    asked = request(few, "same", skip_bad=True)
    with pytest.raises(InputError, match="none of the sounds of same can be scored; the first: .*c0.wav.*can't be"):
        evaluate(asked)
    beside = evaluate(request(few, "same", "late", skip_bad=True))[0]
    assert "same has no sound that could be scored; the first: " in beside.notes[0] and "c0.wav" in beside.notes[0]


# ---------------------------------------------------------------- bad input

def spoil(kind: str, path: Path) -> None:
    sound = clicks(3)
    if kind == "corrupt":
        path.write_bytes(b"RIFF" + bytes(range(200)))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "8 kHz":
        write_wav(path, sound[::2], 8000)
    elif kind == "very short":
        write_wav(path, sound[:800], RATE)
    elif kind == "not a number":
        soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    elif kind == "hours":
        write_wav(path, np.zeros(5 * RATE, np.float32), RATE)


@pytest.mark.parametrize(("kind", "said"), [
    ("corrupt", "can't be read"), ("empty", "is empty"), ("8 kHz", "sampled at 8000 Hz"),
    ("very short", "lasts 0.050 s"), ("not a number", "NaN or infinity"), ("hours", "longer than 4 s"),
])
def test_a_bad_sound_is_an_error_and_may_be_skipped(few, kind, said):
    spoil(kind, few / "same" / "c1.wav")
    policy = dataclasses.replace(Request({}, few).policy, longest_s=4.0)
    asked = Request({"ours": few / "same"}, few / "true", policy=policy, set_resamples=20, resamples=100)
    with pytest.raises(InputError, match=rf"c1.wav.*{said}.*skip_bad=true"):
        evaluate(asked)
    found = evaluate(dataclasses.replace(asked, skip_bad=True))[0].systems["ours"]
    assert list(found.bad) == ["c1.wav"] and said in found.bad["c1.wav"]
    score = found.figures["envelope_correlation"].score
    assert (score.n, score.undefined) == (1, 0), "a file that was left out is counted as bad, not as undefined"


def test_stereo_and_short_sounds_are_noted(world, tmp_path):
    write_folder(tmp_path, {f"c{i}": clicks(i) for i in (1, 2)})
    stereo = np.stack([clicks(1), np.zeros_like(clicks(1))], axis=1)
    soundfile.write(tmp_path / "c1.wav", stereo, RATE)
    write_wav(tmp_path / "c2.wav", clicks(2)[:2 * RATE], RATE)
    asked = Request({"ours": tmp_path}, world / "true", ids=["c1", "c2"], set_resamples=20, resamples=100)
    found = evaluate(asked)[0].systems["ours"]
    assert found.clips["c1"].notes == ["the mean of 2 channels is taken"]
    assert found.clips["c2"].notes == ["1.00 s of silence appended"] and found.padded == 1


def test_a_bad_true_sound_leaves_its_clip_out(few):
    spoil("corrupt", few / "true" / "c1.wav")
    asked = Request({"same": few / "same"}, few / "true", set_resamples=20, resamples=100, skip_bad=True)
    found = evaluate(asked)[0]
    assert list(found.clips) == ["c0"]
    assert "c1.wav" in found.provenance["bad_true_sounds_and_pictures"]
    spoil("empty", few / "true" / "c0.wav")
    with pytest.raises(InputError, match="none of the 2 clips"):
        evaluate(asked)


def test_errors_of_the_machine_are_a_files_own(few, monkeypatch):
    """One that can't be read from the disk, and a truth that is damaged."""
    def read(path, *policy):
        if path == few / "same" / "c1.wav":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return usual(path, *policy)

    usual = vta_sam.evaluation.measure.read_sound
    monkeypatch.setattr(vta_sam.evaluation.measure, "read_sound", read)
    asked = Request({"ours": few / "same"}, few / "true", set_resamples=20, resamples=100)
    with pytest.raises(InputError, match=r"c1.wav: \[Errno 5\] Input/output error.*skip_bad=true"):
        evaluate(asked)
    found = evaluate(dataclasses.replace(asked, skip_bad=True))[0]
    assert "Input/output error" in found.systems["ours"].bad["c1.wav"]
    (few / "true" / "c0.truth.json").write_text("{")
    with pytest.raises(InputError, match="c0.*skip_bad=true"):
        evaluate(asked)
    found = evaluate(dataclasses.replace(asked, skip_bad=True, ids=["c0", "c1"], systems={"ours": few / "true"}))[0]
    assert list(found.clips) == ["c1"] and "c0.truth" in bad_files(found)["true sound: c0.wav"]


def test_a_picture_that_can_not_be_drawn_is_said_and_leaves_no_older_one(evaluation, tmp_path, monkeypatch, capsys):
    assert len(write_evaluation(tmp_path, evaluation)) == 3
    monkeypatch.setattr(vta_sam.evaluation.results, "_panel", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_evaluation(tmp_path, evaluation)
    assert len(list(tmp_path.iterdir())) == 3, "the former report stays"
    faults: list[str] = []
    assert [path.name for path in write_evaluation(tmp_path, evaluation, faults)] == ["evaluation.json", "clips.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.csv", "evaluation.json"]
    assert end_of_report(evaluation, faults) == 1 and end_of_report(evaluation, []) == 0
    assert capsys.readouterr().err == "figures.png could not be drawn (division by zero)\n"


# ---------------------------------------------------------------- as users call it

def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call("experiments/evaluate.py", *arguments, cwd=cwd)


@pytest.mark.slow
def test_the_command_line_refuses_in_a_sentence(world, tmp_path):
    for arguments, said in (((), "generated= is missing"), ((f"generated={world / 'same'}",), "reference= is missing"),
                            ((f"generated={tmp_path / 'no'}", f"reference={world / 'true'}"), "does not exist")):
        told = run(*arguments, cwd=tmp_path)
        assert told.returncode == 2 and said in told.stderr and "Traceback" not in told.stderr


@pytest.mark.slow
def test_the_command_line_measures_in_a_worker(world, tmp_path):
    told = run(f"generated=[{world / 'same'},{world / 'late'}]", f"reference={world / 'true'}", "backbones=[tiny]",
               "flow=none", "out=result", "workers=1", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "same − late" in told.stdout and "10/10" in told.stdout
    found = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert found["systems"]["same"]["figures"]["onset_f1"]["score"]["mean"] == pytest.approx(1)
    assert list((tmp_path / "out" / "evaluation_cache").rglob("*.safetensors"))
