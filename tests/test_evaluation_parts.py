"""Parts of an evaluation that need more than a folder of sounds: pictures, scenes, a model's ceiling, files that end
their process, and the page of several systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import call
from test_evaluation import write_folder

from vta_sam.embedded.truth import read_truth
from vta_sam.evaluation.evaluate import Request, evaluate, request_of, systems_and_reference
from vta_sam.evaluation.measure import ClipJob, failed_clip, join_files, measure_clip, split_by_file
from vta_sam.evaluation.metric_table import METRICS
from vta_sam.evaluation.pairing import SoundFile, timelines
from vta_sam.evaluation.sounds import LoadingPolicy
from vta_sam.generation.build import identify
from vta_sam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
DISTANCE = next(metric for metric in METRICS if metric.key == "log_spectral_distance_db")
QUICK = {"set_resamples": 20, "resamples": 100}


def blinking(times_s: np.ndarray, fps: int = 10):
    """A square that jumps whenever there is a sound."""
    texture = np.random.RandomState(0).randint(0, 255, (24, 24, 3)).astype(np.uint8)

    def picture(i: int) -> np.ndarray:
        frame = np.full((48, 96, 3), 90, np.uint8)
        x = 4 + 6 * int((times_s <= i / fps).sum())
        frame[12:36, x:x + 24] = texture
        return frame

    return picture


@pytest.fixture(scope="module")
def films(tmp_path_factory, make_video) -> Path:
    """Three videos in which something jumps when it sounds; a system with the same sound and one half a second late."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "true").mkdir()
    sounds = {}
    for i in range(3):
        rng = np.random.default_rng(i)
        times_s = np.sort(rng.choice(np.arange(3, 26), 4, replace=False)) / 10
        sound, n = 0.0003 * rng.normal(size=48_000), np.arange(2500)
        for time_s in times_s:
            sound[int(time_s * 16_000) + n] += 0.5 * np.exp(-n / 400) * np.sin(n * 0.4)
        sounds[f"f{i}"] = sound.astype(np.float32)
        make_video(folder / "true" / f"f{i}.mp4", size=(96, 48), fps=10, duration_s=3.0, sound=sound,
                   picture=blinking(times_s))
    write_folder(folder / "ours", sounds)
    write_folder(folder / "late", {name: np.roll(sound, 8000) for name, sound in sounds.items()})
    return folder


def test_motion_meets_sound(films):
    asked = Request({"ours": films / "ours", "late": films / "late"}, films / "true", flows=("full", "fast"), **QUICK)
    found = evaluate(asked)[0]
    keys = [metric.key for metric in found.metrics]
    assert {"av_align_published", "av_align_matched", "av_align_fast", "av_align_fast_matched"} <= set(keys)
    score = {name: found.systems[name].figures["av_align_published"].score.mean for name in ("ours", "late")}
    assert score["ours"] > score["late"] and score["ours"] > 0.3
    with_folder = Request({"ours": films / "ours"}, films / "ours", videos=films / "true", flows=("full",), **QUICK)
    again = evaluate(with_folder)[0].systems["ours"].figures["av_align_published"].score
    assert again.mean == pytest.approx(score["ours"])


def test_every_published_score_is_computed_where_all_are_asked_for(films):
    told = settings(metrics="all", flow="full", backbones="tiny", resamples=100, set_resamples=20, workers=0)
    figures = evaluate(request_of(told, {"late": films / "late"}, films / "true"))[0].systems["late"].figures
    for key in ("av_align_sta_published", "kl_eps1e_6_tiny", "kl_sigmoid_tiny", "kl_sigmoid_eps1e_6_tiny"):
        assert figures[key].score is not None and figures[key].score.n > 0, key
    assert "rows" in figures["kernel_distance_tiny"].reason and "500" in figures["fad_infinity_published_tiny"].reason


def test_broken_pictures_leave_the_sound(films, tmp_path):
    for name in ("f0", "f1", "f2"):
        (tmp_path / f"{name}.mp4").write_bytes((films / "true" / f"{name}.mp4").read_bytes())
    (tmp_path / "f1.mp4").write_bytes(b"no video at all")
    asked = Request({"ours": films / "ours"}, films / "true", videos=tmp_path, flows=("full",), **QUICK)
    with pytest.raises(InputError, match="f1.mp4.*skip_bad"):
        evaluate(asked)
    asked.skip_bad = True
    found = evaluate(asked)[0]
    assert found.systems["ours"].figures["av_align_published"].score.n == 2
    assert found.systems["ours"].figures["envelope_correlation"].score.n == 3
    assert list(found.provenance["bad_true_sounds_and_pictures"]) == ["f1.mp4"]


# ---------------------------------------------------------------- the embedded world

@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    from vta_sam.embedded.world import write_world

    folder = tmp_path_factory.mktemp("scenes")
    write_world(folder, {"test": 6}, seed=0, workers=1)
    return folder


def test_scenes_are_judged_by_their_events(scenes):
    true = scenes / "test"
    found = evaluate(Request({"true": true}, true, **QUICK))[0]
    assert found.provenance["true_onsets"] == "events of the scene"
    f1 = found.systems["true"].figures["onset_f1"].score
    assert f1.mean > 0.9 and f1.n == 6


def test_scenes_are_judged_by_what_sounds_when(scenes, tmp_path):
    true, silent = scenes / "test", tmp_path / "silent"
    write_folder(silent, {video.stem: np.zeros(81_920, np.float32) for video in true.glob("*.mp4")})
    found = evaluate(Request({"true": true, "silent": silent}, true, **QUICK))[0]
    figures, nothing = (found.systems[name].figures for name in ("true", "silent"))
    assert figures["event_f1"].score.mean > 0.9 > 0.4 > figures["event_f1"].control.mean
    assert figures["events_asked"].score.mean > 0.9 > figures["events_unasked"].score.mean + 0.8
    assert nothing["event_f1"].score.mean == nothing["events_asked"].score.mean == 0
    assert nothing["events_unasked"].score is None, "silence holds nothing that was not asked"
    truths = [read_truth(video) for video in sorted(true.glob("*.mp4"))]
    look_alikes = sum(any(not thing.named for thing in truth.objects) for truth in truths)
    assert 0 < figures["unnamed_sounds"].score.n <= look_alikes
    assert abs(figures["onset_error_ms"].score.mean) < 20 and figures["onset_in_itu_window"].score.mean > 0.9
    assert nothing["onset_error_ms"].score is None and nothing["onset_in_itu_window"].score.mean == 0
    assert figures["envelope_lag_signed_s"].score.mean == 0


@pytest.mark.slow
def test_the_ceiling_is_the_true_sound_through_the_model(scenes, tmp_path):
    from models import make_seeing_model

    model = make_seeing_model(tmp_path)
    true = scenes / "test"
    found = evaluate(Request({"true": true}, true, ceiling=model, **QUICK))[0]
    figure = found.systems["true"].figures["envelope_correlation"]
    assert figure.score.mean == pytest.approx(1)
    assert figure.ceiling.n == 6 and figure.ceiling.mean < 1
    assert found.systems["true"].figures["frechet_tiny"].ceiling.mean > 0
    for name in ("denoiser", "conditioner"):
        (model / f"{name}.safetensors").write_bytes(b"neither read nor looked at")
    again = evaluate(Request({"true": true}, true, ceiling=model, **QUICK))[0]
    assert again.provenance["ceiling"] == found.provenance["ceiling"] and len(again.provenance["ceiling"]["hash"]) == 12
    assert again.systems["true"].figures["envelope_correlation"].ceiling == figure.ceiling
    (model / "codec.safetensors").write_bytes((model / "codec.safetensors").read_bytes() + b" ")
    assert identify(model, ("codec", "vocoder"))["hash"] != found.provenance["ceiling"]["hash"]


# ---------------------------------------------------------------- files that end their process

def job(films: Path) -> ClipJob:
    def file(system: str) -> SoundFile:
        path = films / system / "f0.wav"
        return SoundFile("f0", 0, path if path.exists() else path.with_suffix(".mp4"), None)

    return ClipJob("f0", file("true"), (("ours", file("ours")), ("late", file("late"))), films / "true" / "f0.mp4",
                   ("full",), LoadingPolicy(), (), None, (DISTANCE,))


def test_a_clip_measured_file_by_file_is_the_same(films):
    whole, parts = measure_clip(job(films)), [measure_clip(part) for part in split_by_file(job(films))]
    again = join_files(job(films), parts)
    assert all(sound.pair_values[DISTANCE.key] >= 0 for sound in whole.sounds.values())
    assert len(parts) == 4 and set(again.sounds) == {("ours", 0), ("late", 0)}
    for key, sound in whole.sounds.items():
        assert again.sounds[key].digest == sound.digest
        assert again.sounds[key].pair_values == sound.pair_values
    np.testing.assert_array_equal(again.flows["full"].magnitudes, whole.flows["full"].magnitudes)


@pytest.mark.parametrize("broken", range(4))
def test_the_file_that_ended_its_process_is_named(films, broken):
    jobs = split_by_file(job(films))
    parts = [failed_clip(part, "crashed") if i == broken else measure_clip(part) for i, part in enumerate(jobs)]
    found = join_files(job(films), parts)
    if broken == 0:
        assert found.reference == f"{films / 'true' / 'f0.mp4'}: the clip crashed"
    elif broken < 3:
        name = ("ours", "late")[broken - 1]
        assert found.sounds[name, 0] == f"{films / name / 'f0.wav'}: the clip crashed"
        assert sum(isinstance(sound, str) for sound in found.sounds.values()) == 1
    else:
        assert "crashed" in found.flows["full"] and not isinstance(found.sounds["ours", 0], str)


# ---------------------------------------------------------------- settings

def settings(**changed) -> dict:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        config = compose("evaluate")
    from omegaconf import OmegaConf

    return {**OmegaConf.to_container(config, resolve=True), **changed}


def test_the_configs_make_requests(films):
    found = request_of(settings(), {"ours": films / "ours"}, films / "true")
    assert found.flows == ("full",) and found.backbones == ["tiny", "vggish", "panns_16k", "clap"]
    assert request_of(settings(flow="both"), {}, films / "true").flows == ("full", "fast")
    for changed, said in (({"flow": "slow"}, "flow=slow"), ({"clip_s": -1}, "clip_s=-1"), ({"workers": -1}, "workers"),
                          ({"captions": "none.csv"}, "captions=none.csv"), ({"limit_s": "x"}, "limit_s")):
        with pytest.raises(InputError, match=said):
            request_of(settings(**changed), {}, films / "true")


def test_the_reference_may_be_one_of_the_systems(films):
    systems, reference = systems_and_reference(str(films), "true")
    assert list(systems) == ["true", "late", "ours"] and reference == films / "true"
    named, elsewhere = systems_and_reference({"a": str(films / "ours")}, str(films / "true"))
    assert list(named) == ["true sound", "a"] and elsewhere == films / "true" == named["true sound"]
    with pytest.raises(InputError, match="none of the systems"):
        systems_and_reference(str(films), "gt")


def test_probabilities_come_from_a_dataset(tmp_path):
    from tiny_data import write_dataset

    from vta_sam.dataset.shards.records import read_shard

    info, shards = write_dataset(tmp_path), tmp_path
    record = next(iter(read_shard(shards / info.shards(next(iter(info.splits)))[0].name)))
    found = timelines(shards, [record.key])
    assert list(found) == [record.key] and found[record.key].objects == list(record.objects)
    np.testing.assert_array_equal(found[record.key].probs, record.probs)
    with pytest.raises(InputError, match="none of the 1 clips"):
        timelines(shards, ["nobody"])


# ---------------------------------------------------------------- the page, as users call it

@pytest.mark.slow
def test_a_folder_of_systems_becomes_a_page(films, tmp_path):
    told_what = (f"systems={films}", "reference=true", f"out={tmp_path / 'out'}", "backbones=[tiny]",
                 f"cache={tmp_path / 'cache'}", "title=Three systems", "workers=0")
    told = call("experiments/compare.py", *told_what, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "out" / "page" / "index.html").read_text(encoding="utf-8")
    assert "Three systems" in page and "ours" in page and "late" in page
    assert str(films) not in page, "tells where files lie"
    assert (tmp_path / "out" / "evaluation.json").is_file() and (tmp_path / "out" / "figures.png").is_file()
    again = call("experiments/compare.py", *told_what, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
