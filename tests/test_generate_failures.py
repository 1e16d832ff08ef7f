"""One video, clip or caption that fails is a line of its own; a full disk ends the run with a sentence, and the same
command goes on. The model is played: each sound is a tone."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import SPEC, make_features

from vta_sam.dataset.shards.records import write_shard
from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo
from vta_sam.generation.inputs import read_record, videos_in
from vta_sam.generation.pipeline import Generated
from vta_sam.generation.split import SplitRequest, generate_split
from vta_sam.generation.videos import Outputs, Prompt, exit_status, generate_caption, generate_videos
from vta_sam.media.audio import read_wav
from vta_sam.media.guarded import Media
from vta_sam.runtime.errors import EndOfRun, InputError
from vta_sam.runtime.files import write_text

MODEL = {"name": "played", "hash": "0"}


class Sampler:
    def recorded(self):
        return {"steps": 1}


class Played:
    """What generation asks of a pipeline. faults: {name of a video, clip or caption: error}."""

    spec, sampler, trained_on = SPEC, Sampler(), {}
    conditioner = codec = vocoder = None
    precision = "fp32"

    def __init__(self, **faults):
        self.faults, self.asked, self.level, self.denoiser = faults, [], 0.5, torch.nn.Linear(1, 1)

    def sound(self, name, samples):
        self.asked.append(name)
        if name in self.faults:
            raise self.faults[name]
        return self.level * np.sin(np.arange(samples, dtype=np.float32))

    def generate(self, video, **prompt):
        features = make_features("x", 0.2)
        features.source = str(video)
        features.caption = ""
        return Generated(self.sound(Path(video).stem, 3_200), features, np.zeros((3, 8, 8, 3), np.uint8))

    def generate_from_caption(self, caption, negative_caption, seed):
        return self.sound(caption, 3_200)

    def generate_batch(self, batch, seeds):
        return torch.from_numpy(np.stack([self.sound(key, SPEC.samples) for key in batch.keys]))

    def generate_features(self, features, seed):
        return self.sound(features.key, len(features.waveform))


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_video):
    return make_video(tmp_path_factory.mktemp("clip") / "in.mp4", duration_s=0.2, size=(16, 16))


@pytest.fixture
def folder(tmp_path, clip):
    """A function (*names) ⇒ a folder of videos."""
    def make(*names, into="clips"):
        (tmp_path / into).mkdir(exist_ok=True)
        for name in names:
            shutil.copy(clip, tmp_path / into / name)
        return tmp_path / into

    return make


@pytest.fixture
def quick_pictures(monkeypatch):
    """Drawing costs a second or two."""
    monkeypatch.setattr("vta_sam.generation.videos.clip_picture",
                        lambda path, strip, objects, probs, waveform, **_: write_text(path, str(waveform.max())))


def run(pipeline, videos, out, media=None, **options):
    outputs = Outputs(out, **{"picture": False, **options})
    return generate_videos(pipeline, videos_in(videos, out), Prompt(), outputs, MODEL, media=media or Media())


def failures(outcomes):
    return {outcome.video.stem: outcome.failure for outcome in outcomes if outcome.failure}


def leftovers(out):
    return [path.name for path in out.glob(".*")]


def test_one_video_that_fails_does_not_end_the_rest(folder, tmp_path):
    faults = {"b": OSError(errno.EIO, "Input/output error"), "c": MemoryError(), "d": torch.OutOfMemoryError("CUDA"),
              "e": RuntimeError("DefaultCPUAllocator: can't allocate memory"), "f": InputError("f is odd"),
              "g": UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"), "h": PermissionError(13, "denied")}
    pipeline = Played(**faults)
    outcomes = run(pipeline, folder(*(f"{name}.mp4" for name in "abcdefghi")), tmp_path / "out")
    assert pipeline.asked == list("abcdefghi") and list(failures(outcomes)) == list("bcdefgh")
    assert all("memory" in failures(outcomes)[name] for name in "cde") and failures(outcomes)["f"] == "f is odd"
    assert exit_status(outcomes) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.mp4", "i.json", "i.mp4"]
    with pytest.raises(KeyError):  # a fault of the program keeps its traceback
        run(Played(a=KeyError("x")), tmp_path / "clips", tmp_path / "other")


def test_long_names(folder, tmp_path, quick_pictures):
    stems = ["犬" * 79, "犬" * 83, "x" * 250, "x" * 251, "a"]  # 237, 249, 250 and 251 bytes
    pipeline = Played()
    outcomes = run(pipeline, folder(*(f"{stem}.mp4" for stem in stems)), tmp_path / "out", wav=True, picture=True)
    assert list(failures(outcomes)) == ["x" * 251] and "has 256 bytes" in failures(outcomes)["x" * 251]
    assert "x" * 251 not in pipeline.asked, "refused before its sound is made"
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {stem + suffix for stem in stems if len(stem) != 251 for suffix in (".mp4", ".json", ".wav", ".png")}


def test_names_that_are_no_utf8(folder, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    outcomes = run(Played(), folder(name), tmp_path / "out", picture=True)
    assert not failures(outcomes) and r"clips/caf\udce9.mp4: " in outcomes[0].lines[-1]
    assert outcomes[0].lines[-1].endswith("out/caf%E9.mp4")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"caf%E9.json", "caf%E9.mp4", "caf%E9.png"}
    assert all(outcome.skipped for outcome in run(Played(), tmp_path / "clips", tmp_path / "out", picture=True))
    again = run(Played(**{Path(name).stem: OSError(errno.EIO, "damaged", name)}), tmp_path / "clips", tmp_path / "x")
    assert r"caf\udce9.mp4" in next(iter(failures(again).values())).encode("utf-8").decode()


def test_a_picture_that_can_not_be_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vta_sam.generation.videos.clip_picture", lambda *_, **__: 1 / 0)
    for skipped in (False, True):
        outcomes = run(Played(), folder("a.mp4", "b.mp4"), tmp_path / "out", picture=True)
        assert "no picture could be drawn (division by zero)" in failures(outcomes)["a"] and exit_status(outcomes) == 2
        assert [outcome.skipped for outcome in outcomes] == [skipped] * 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.mp4", "b.json", "b.mp4"]
    assert not failures(run(Played(), tmp_path / "clips", tmp_path / "out")), "none is asked for"


def fail_at(monkeypatch, call, code):
    """The ``call``-th file that is to appear doesn't ⇒ the calls so far."""
    calls, replace = [], os.replace

    def replacing(source, target):
        calls.append(target)
        if len(calls) == call:
            raise OSError(code, os.strerror(code), str(source))
        replace(source, target)

    monkeypatch.setattr("vta_sam.runtime.files.os.replace", replacing)
    return calls


@pytest.mark.parametrize("code, told", [(errno.ENOSPC, "no space left for out="), (errno.EROFS, "can't be written to")])
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(folder, tmp_path, monkeypatch, code, told):
    videos = folder("a.mp4", "b.mp4")
    for call in range(1, 20):
        out = tmp_path / f"out{call}"
        with monkeypatch.context() as patch:
            calls = fail_at(patch, call, code)
            try:
                run(Played(), videos, out, wav=True)
            except EndOfRun as error:
                assert told in str(error)
            else:
                break
        assert not leftovers(out)
        done = [path.stem for path in out.glob("*.json") if read_record(path).get("written")]
        assert all((out / f"{name}.mp4").exists() and (out / f"{name}.wav").exists() for name in done)
        outcomes = run(Played(), videos, out, wav=True)
        assert not failures(outcomes) and [o.video.stem for o in outcomes if o.skipped] == done
        assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.mp4", "a.wav", "b.json", "b.mp4", "b.wav"]
    assert len(calls) == call - 1 >= 8


def test_a_changed_video_is_made_anew_and_its_result_kept_until_then(folder, tmp_path, make_video, monkeypatch,
                                                                     quick_pictures):
    videos, out = folder("in.mp4"), tmp_path / "out"
    assert not run(Played(), videos, out, wav=True, picture=True)[0].skipped
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    moved = folder("in.mp4", into="moved")
    assert run(Played(), moved, out)[0].skipped
    make_video(videos / "in.mp4", duration_s=0.4, size=(16, 16))
    pipeline = Played()
    pipeline.level = 0.25
    with monkeypatch.context() as patch:
        patch.setattr("vta_sam.media.guarded.mux", lambda *_: (_ for _ in ()).throw(InputError("can't be copied")))
        assert failures(run(pipeline, videos, out)) == {"in": "can't be copied"}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    outcome, = run(pipeline, videos, out)
    assert not outcome.skipped and "made anew" in outcome.notes[0]
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in before)
    assert np.abs(read_wav(out / "in.wav")[0]).max() == pytest.approx(0.25, abs=0.01), "no file of the former is left"
    assert run(pipeline, videos, out)[0].skipped
    record = read_record(out / "in.json")
    del record["source"]  # as of before
    (out / "in.json").write_text(json.dumps(record))
    make_video(videos / "in.mp4", duration_s=0.2, size=(16, 16))
    assert run(pipeline, videos, out)[0].skipped


def test_results_in_the_folder_of_the_videos(folder, tmp_path, make_video):
    videos = folder("own.mp4")
    make_video(videos / "in.mov", duration_s=0.2, size=(16, 16))
    own = (videos / "own.mp4").read_bytes()
    for _ in range(3):
        outcomes = run(Played(), videos, videos, wav=True)
        assert list(failures(outcomes)) == ["own"] and "its own result" in failures(outcomes)["own"]
        assert sorted(path.name for path in videos.iterdir()) == ["in.json", "in.mov", "in.mp4", "in.wav", "own.mp4"]
    assert (videos / "own.mp4").read_bytes() == own and outcomes[0].skipped


def test_a_sound_of_nan(folder, tmp_path):
    pipeline = Played()
    pipeline.level = np.nan
    assert "sound holds NaN, though" in failures(run(pipeline, folder("in.mp4"), tmp_path / "out"))["in"]
    torch.nn.init.constant_(pipeline.denoiser.weight, np.nan)
    with pytest.raises(EndOfRun, match="the model's sound holds NaN, and so do the weights of its denoiser"):
        run(pipeline, tmp_path / "clips", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_captions(tmp_path, monkeypatch):
    pipeline, out = Played(bad=OSError(errno.EIO, "Input/output error")), tmp_path / "out"

    def path_of(caption):
        return generate_caption(pipeline, Prompt(caption), out, MODEL, overwrite=False)

    captions = ["a dog", "A dog", "🐶", "🐱", "dog!", "dog?", "x" * 60 + "1", "x" * 60 + "2", "𐌰" * 60, "𐌰" * 90]
    paths = {path_of(caption) for caption in captions}
    assert len(paths) == len(captions) == len(pipeline.asked) and out / "a-dog-0.wav" in paths
    assert {path_of(caption) for caption in captions} == paths and len(pipeline.asked) == len(captions)
    with pytest.raises(InputError, match="the caption: .*Input/output error"):
        path_of("bad")
    fail_at(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(InputError, match="no space left for out="):
        path_of("late")
    assert path_of("late").exists() and not leftovers(out)


@pytest.fixture
def shards(tmp_path):
    """Four clips of which one's name is too long, and a shard that is cut short."""
    clips = [make_features(key, duration_s) for key, duration_s in (
        ("a", 1.28), ("k" * 250, 1.28), ("b", 0.7), ("long", 3.0))]
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "test-000000.tar", clips)
    (tmp_path / "shards" / "test-000001.tar").write_bytes(b"cut")
    DatasetInfo("played", "played", SPEC.fps, 16_000, 12, 10, 6, "config", "manifest", "0", {"test": [
        ShardInfo("test-000000.tar", 4, 0), ShardInfo("test-000001.tar", 2, 0)]}).write(tmp_path / "shards")
    return tmp_path / "shards"


def split(pipeline, shards, out):
    return generate_split(pipeline, SplitRequest(shards, "test", out), MODEL)


def test_one_clip_that_fails_does_not_end_a_split(shards, tmp_path, monkeypatch):
    out, pipeline = tmp_path / "out", Played(b=InputError("b is odd"), long=MemoryError())
    outcome = split(pipeline, shards, out)
    assert (outcome.made, outcome.there, outcome.exit_status) == (1, 0, 1)
    assert outcome.failures.keys() == {"k" * 250, "b", "long", "test-000001.tar"}
    assert "has 257 bytes" in outcome.failures["k" * 250] and "k" * 250 not in pipeline.asked
    assert outcome.failures["b"] == "b is odd" and outcome.failures["test-000001.tar"].startswith("2 clips: ")
    assert outcome.summary.startswith("4 clips failed:\n  ") and "b: b is odd" in outcome.summary
    assert sorted(path.name for path in out.iterdir()) == ["a-0.json", "a-0.wav", "generation.json"]
    with monkeypatch.context() as patch:
        fail_at(patch, 2, errno.ENOSPC)
        with pytest.raises(EndOfRun, match="no space left for out="):
            split(Played(), shards, out)
    assert not leftovers(out)
    outcome = split(Played(), shards, out)
    assert (outcome.made, outcome.there, len(outcome.failures)) == (2, 1, 2)
    with pytest.raises(KeyError):
        split(Played(b=KeyError("x")), shards, tmp_path / "other")
    nan = Played()
    nan.level = np.nan
    outcome = split(nan, shards, tmp_path / "nan")
    assert outcome.made == 0 and outcome.exit_status == 2 and "holds NaN" in outcome.failures["a"]
    torch.nn.init.constant_(nan.denoiser.weight, np.inf)
    with pytest.raises(EndOfRun, match="weights of its denoiser"):
        split(nan, shards, tmp_path / "inf")
