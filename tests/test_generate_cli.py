"""experiments/generate.py: any video in, the same pictures with a sound exactly as long out; refusals in a sentence."""

import contextlib
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from models import SPEC, make_features, make_model_folder, make_seeing_model

import vta_sam.generation.pipeline
from vta_sam.dataset.shards.records import write_shard
from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo
from vta_sam.generation.inputs import videos_in
from vta_sam.media.audio import read_wav
from vta_sam.media.muxing import picture_duration_s

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "generate.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_seeing_model(tmp_path_factory.mktemp("model"))


loaded = functools.cache(vta_sam.generation.pipeline.load)  # loading is tried elsewhere; here it costs most


@pytest.fixture
def generate(model, tmp_path, monkeypatch):
    """Call the script in this process with the model of these tests ⇒ (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vta_sam.generation.pipeline.load", loaded)

    def call(*arguments: str, model_argument: str | None = f"model={model}") -> tuple[int, str, str]:
        given = [*([model_argument] if model_argument else []), "device=cpu", *arguments]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
        out, err, status = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(SCRIPT), run_name="__main__")
            except SystemExit as end:
                status = int(end.code or 0)
        return status, out.getvalue(), err.getvalue()

    return call


def packets(path: Path) -> list[bytes]:
    """The bytes of every picture packet."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def sound_samples(path: Path) -> int:
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1
        return sum(frame.samples for frame in container.decode(audio=0))


def check_result(source: Path, result: Path) -> dict:
    """Pictures copied, sound as long as the pictures, level within range ⇒ the record beside it."""
    assert packets(result) == packets(source)
    duration_s = picture_duration_s(source)
    record = json.loads(result.with_suffix(".json").read_text())
    assert record["samples"] == round(duration_s * 16_000)
    # an AAC encoder works in blocks of 1024 samples and the player cuts the last by its timestamp
    assert 0 <= sound_samples(result) - record["samples"] < 1024
    assert record["level"]["peak"] <= 0.99 + 1e-6 and record["level"]["clipping_rate"] == 0
    return record


def test_a_video_gets_a_sound(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4", duration_s=1.6)
    status, out, err = generate(f"video={source}", "caption=a dog barks, loud (very)", "out=out", "wav=true", "steps=3")
    assert (status, err) == (0, "") and "out/in.mp4" in out
    record = check_result(source, tmp_path / "out/in.mp4")
    assert record["objects"] == ["dog"] and record["asked"]["steps"] == 3 and record["asked"]["guidance"] == 2.0
    assert record["asked"]["caption"] == "a dog barks, loud (very)"
    waveform, rate_hz = read_wav(tmp_path / "out/in.wav")
    assert (len(waveform), rate_hz) == (25_600, 16_000) and np.abs(waveform).max() > 1e-3
    assert (tmp_path / "out/in.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["in.json", "in.mp4", "in.png", "in.wav"]


@pytest.mark.slow
def test_same_seed_same_sound_and_finished_work_is_kept(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    command = [f"video={source}", "objects=[dog,racing car]", "wav=true", "picture=false"]
    assert generate(*command, "out=a")[0] == generate(*command, "out=b")[0] == 0
    assert generate(*command, "out=c", "seed=1")[0] == 0
    one, two, other = ((tmp_path / name / "in.wav").read_bytes() for name in "abc")
    assert one == two != other
    before = (tmp_path / "a/in.mp4").stat().st_mtime_ns
    status, out, _ = generate(*command, "out=a")
    assert status == 0 and "was there" in out and (tmp_path / "a/in.mp4").stat().st_mtime_ns == before
    status, _, err = generate(*command, "out=a", "seed=1")
    assert status == 2 and "made with seed=0" in err and "overwrite=true" in err
    status, _, err = generate(*command, "out=a", "overlap=0.5")
    assert status == 2 and "made with overlap=None" in err, "of windows, so the sound of a long video is another"
    assert generate(*command, "out=a", "seed=1", "overwrite=true")[0] == 0
    assert (tmp_path / "a/in.wav").read_bytes() == other
    (tmp_path / "a/in.json").unlink()  # as after an interruption: made again
    assert "was there" not in generate(*command, "out=a")[1] and (tmp_path / "a/in.json").exists()


@pytest.mark.slow
def test_negative_words_and_guidance_change_the_sound(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    command = [f"video={source}", "objects=dog", "wav=true", "picture=false"]
    for name, more in {"plain": [], "negative": ["negative_objects=canary, pigeon"], "strong": ["guidance=5"],
                       "caption": ["negative_caption=a canary sings"]}.items():
        assert generate(*command, *more, f"out={name}")[0] == 0
    sounds = {(tmp_path / name / "in.wav").read_bytes() for name in ("plain", "negative", "strong", "caption")}
    assert len(sounds) == 4
    said = ["caption=a dog, no canary", f"video={source}", "wav=true", "picture=false"]
    for name, more in {"said": [], "named": ["objects=dog", "negative_objects=canary"]}.items():
        assert ("no canary" in generate(*said, *more, f"out={name}")[1]) is (name == "said")
    assert (tmp_path / "said/in.wav").read_bytes() == (tmp_path / "named/in.wav").read_bytes()


def test_the_videos_own_sound_can_be_mixed_in(generate, make_video, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    source = make_video(tmp_path / "in.mp4", sound=tone)
    assert generate(f"video={source}", "mix=1", "picture=false", "out=mixed")[0] == 0
    assert generate(f"video={source}", "picture=false", "out=alone")[0] == 0

    def share_at_440_hz(path):
        with av.open(str(path)) as container:
            wave = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        spectrum = np.abs(np.fft.rfft(wave[2_000:14_000])) ** 2
        at = round(440 / 16_000 * 12_000)
        return spectrum[at - 3:at + 4].sum() / spectrum.sum()

    assert share_at_440_hz(tmp_path / "mixed/in.mp4") > 5 * share_at_440_hz(tmp_path / "alone/in.mp4")


ODD = {
    "variable frame rate": dict(times_s=[0, 0.02, 0.5, 0.55, 1.4]),
    "turned phone": dict(rotation=90),
    "gray": dict(gray=True),
    "odd size": dict(size=(63, 47)),
    "tiny": dict(size=(16, 16)),
    "short": dict(duration_s=0.12),
    "silent sound": dict(sound=np.zeros(16_000)),
    "15 fps": dict(fps=15, duration_s=1.4),
    "low rate": dict(fps=2, duration_s=3),
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_odd_videos_work(generate, make_video, tmp_path, options):
    source = make_video(tmp_path / "in.mp4", **options)
    status, out, err = generate(f"video={source}", "caption=a dog barks", "picture=false", "out=out")
    assert (status, err) == (0, "")
    record = check_result(source, tmp_path / "out/in.mp4")
    assert any("lasts" in note for note in record["notes"]) == (options.get("duration_s") == 0.12)


def test_a_soundless_video_with_mix_is_told_about(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    status, out, _ = generate(f"video={source}", "mix=0.5", "picture=false")
    assert status == 0 and "note:" in out and "no sound of its own" in out
    check_result(source, tmp_path / "generated/in.mp4")


def test_words_that_can_not_be_used_are_told_about(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    for out, caption, told, dropped in (
        ("a", "loudly and quickly", "names no object", 0),
        ("b", "a dog, a cat, a cow, a pig, a fox, a wolf, a sheep, a horse, a goat and a duck", "2 left out", 2),
        ("c", "an unheardof beast", "doesn't know", 0),
        ("d", "ein Hund bellt auf der Straße", "seems to be in German", 0),
    ):
        with pytest.warns() if out in "bc" else contextlib.nullcontext():
            status, stdout, _ = generate(f"video={source}", f"caption={caption}", f"out={out}", "picture=false")
        record = json.loads((tmp_path / out / "in.json").read_text())
        assert status == 0 and told in stdout and any(told in note for note in record["notes"])
        assert record["dropped_words"] == dropped


@pytest.mark.slow
def test_many_windows(generate, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4", fps=5, duration_s=60, size=(32, 32))
    status, _, err = generate(f"video={source}", "objects=dog", "guidance=1", "steps=1", "out=out")
    assert (status, err) == (0, "")
    assert check_result(source, tmp_path / "out/in.mp4")["samples"] == 60 * 16_000


def test_a_folder_lists_what_failed_and_does_the_rest(generate, make_video, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "b.mkv"):
        make_video(folder / name, duration_s=0.5)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("not a video either")
    status, out, err = generate(f"video={folder}", "picture=false", "out=out")
    assert status == 1 and "1 of 4 videos failed" in err and "broken.mp4" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.json", "a.mp4", "b-mkv.json", "b-mkv.mp4", "b-mp4.json", "b-mp4.mp4"]
    for video in folder.glob("[ab].*"):
        video.unlink()
    (folder / "empty.mp4").touch()
    assert generate(f"video={folder}", "picture=false", "out=none")[0] == 2
    assert not list((tmp_path / "none").glob("*"))


def write_song(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("bad, expected", [
    ("video=missing.mp4", "missing.mp4 doesn't exist"),
    ("video=empty.mp4", "empty.mp4 is empty"),
    ("video=text.mp4", "text.mp4 can't be read"),
    ("video=song.mp4", "song.mp4 has no pictures"),
    ("video=folder", "folder holds no video"),
    ("video=null", "name what to generate for"),
    ("video=", "name what to generate for"),
    ("shards=folder", "name what to generate for"),
    ("objects=[a,b,c,d,e,f,g,h,i]", "9 are named, at most 8"),
    ("steps=0", "steps=0: expected a whole number"),
    ("overlap=1", "overlap=1: expected a number from 0 to 0.95"),
    ("solver=magic", "solver='magic' is not known"),
    ("guidance=lots", "guidance=lots: expected a number"),
    ("seed=-1", "seed=-1: expected a whole number"),
    ("mix=2", "mix=2: expected a number from 0 to 1"),
    ("device=abacus", "device=abacus is not a device"),
    ("out=text.mp4", "is a file"),
    ("out=.", "would be overwritten by its own result"),
    ("model=folder", "is no model folder"),
])
def test_refusals(generate, make_video, tmp_path, bad, expected):
    make_video(tmp_path / "in.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("words")
    (tmp_path / "folder").mkdir()
    write_song(tmp_path / "song.mp4")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, _, err = generate("video=in.mp4", bad)
    assert status == 2 and err.startswith("error: ") and expected in err and len(err.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before  # nothing written


def test_a_foreign_class_is_not_built(generate, model, make_video, tmp_path):
    make_video(tmp_path / "in.mp4")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    text = (model / "model.yaml").read_text().replace("griffin_lim", "subprocess.run")
    (foreign / "model.yaml").write_text(text)
    status, _, err = generate("video=in.mp4", model_argument=f"model={foreign}")
    assert status == 2 and "'subprocess.run', which is none of this project's" in err


def test_the_newest_model_is_taken(generate, model, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4", duration_s=0.5)
    status, _, err = generate(f"video={source}", model_argument=None)
    assert status == 2 and "experiments/train.py" in err
    for i, place in enumerate(("runs/old/diffusion/model", "runs/mine/diffusion/model", "runs/mine/vae/model")):
        shutil.copytree(model, tmp_path / place)
        os.utime(tmp_path / place / "model.yaml", (i, i))
    (tmp_path / "runs/mine/vae/model/denoiser.safetensors").unlink()  # the newest is a VAE alone
    status, out, _ = generate(f"video={source}", "picture=false", model_argument=None)
    assert status == 0 and "model: runs/mine/diffusion/model" in out


@pytest.fixture(scope="module")
def shards(tmp_path_factory, model) -> Path:
    """A test split of five clips in two shards, two of them shorter and one longer than the model's."""
    trained_on = vta_sam.load(model).trained_on
    folder = tmp_path_factory.mktemp("shards")
    lengths = {"a": 1.28, "b.x/y": 0.7, "c": 1.28, "d": 3.0, "e": 0.2}
    clips = [make_features(key, duration_s) for key, duration_s in lengths.items()]
    for i, part in enumerate((clips[:2], clips[2:])):
        write_shard(folder / f"test-{i:06d}.tar", part)
    infos = [ShardInfo("test-000000.tar", 2, 0), ShardInfo("test-000001.tar", 3, 0)]
    DatasetInfo(trained_on["grounder"], trained_on["encoder"], SPEC.fps, 16_000, 12, 10, 6, "config", "manifest", "0",
                {"test": infos}).write(folder)
    return folder


def sounds_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_wav(path)[0] for path in sorted(folder.glob("*.wav"))}


@pytest.mark.slow
def test_a_split_does_not_depend_on_workers_batches_or_interruptions(generate, shards, tmp_path, monkeypatch):
    command = [f"shards={shards}", "samples=2", "rank=0", "world=1"]
    assert generate(*command, "out=whole", "batch_size=16")[0] == 0
    whole = sounds_in(tmp_path / "whole")
    assert len(whole) == 10 and {"b%2Ex%2Fy-0.wav", "d-1.wav"} < set(whole)
    assert len(whole["d-0.wav"]) == 48_000 and len(whole["e-1.wav"]) == 3_200
    assert not np.array_equal(whole["a-0.wav"], whole["a-1.wav"])
    record = json.loads((tmp_path / "whole/a-1.json").read_text())
    assert record["key"] == "a" and record["sample"] == 1 and record["level"]["peak"] > 0

    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))  # as torchrun does
        monkeypatch.setenv("WORLD_SIZE", "2")
        status, out, _ = generate(f"shards={shards}", "samples=2", "out=parts", "batch_size=1")
        assert status == 0 and f"{(6, 4)[rank]} sounds made, 0 were there" in out
    parts = sounds_in(tmp_path / "parts")
    assert parts.keys() == whole.keys()
    for name, waveform in whole.items():
        assert np.abs(parts[name] - waveform).max() < 5e-3, name

    for lost in ("a-0.json", "d-1.json"):  # as if interrupted between the wav and its record
        (tmp_path / "whole" / lost).unlink()
    status, out, _ = generate(*command, "out=whole")
    assert status == 0 and "2 sounds made, 8 were there" in out
    assert all(np.abs(sound - whole[name]).max() < 5e-3 for name, sound in sounds_in(tmp_path / "whole").items())


@pytest.mark.parametrize("bad, expected", [
    ("split=dev", "no split 'dev'"), ("rank=2", "rank=2 of world=1"), ("samples=0", "samples=0: expected"),
    ("caption=a dog", "go with video="), ("shards=nowhere", "dataset.json doesn't exist"),
    ("seed=1", "holds sounds made with seed=0"),
])
def test_refusals_for_a_split(generate, shards, tmp_path, bad, expected):
    if bad == "seed=1":
        assert generate(f"shards={shards}", "out=out", "rank=0", "world=1")[0] == 0
    status, _, err = generate(f"shards={shards}", "rank=0", "world=1", "out=out", bad)
    assert status == 2 and expected in err


def test_a_dataset_of_other_features_is_refused(generate, shards, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in shards.iterdir():
        text = path.read_bytes()
        (other / path.name).write_bytes(text.replace(b"tiny-trunk", b"clip-vit-l") if path.suffix == ".json" else text)
    status, _, err = generate(f"shards={other}")
    assert status == 2 and "clip-vit-l" in err and "expected 'tiny-trunk" in err


def test_videos_of_a_folder_have_names_of_their_own(tmp_path):
    for name in ("a.mp4", "b.MOV", "b.webm", "c.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert list(videos_in(tmp_path)) == ["a", "b-MOV", "b-webm"]
    assert videos_in(tmp_path / "c.txt") == {"c": tmp_path / "c.txt"}


@pytest.mark.slow
def test_as_a_program(model, make_video, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    told = [sys.executable, str(SCRIPT), f"video={source}", f"model={model}", "caption=a dog barks", "out=out"]
    result = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    check_result(source, tmp_path / "out/in.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out"]  # Hydra leaves nothing behind


@pytest.mark.slow
def test_real_clips(generate, shared_dir, tmp_path):
    """Mono, and of 15 pictures a second doubled; test_video.py reads and muxes them all."""
    source = tmp_path / "clips"
    source.mkdir()
    for name in ("9.mp4", "11.mp4"):
        shutil.copy(shared_dir / "clips" / "gt" / name, source)
    status, _, err = generate(f"video={source}", "objects=[dog,racing car]", "steps=1", "guidance=1", "out=out")
    assert (status, err) == (0, "")
    for clip in source.glob("*.mp4"):
        check_result(clip, tmp_path / "out" / clip.name)


@pytest.mark.slow
def test_an_embedded_scene_with_oracles(generate, tmp_path):
    """Extractors that must be told which video they are asked about, and given all of its frames at once."""
    from vta_sam.embedded.truth import read_truth
    from vta_sam.embedded.world import write_world

    write_world(tmp_path / "world", {"test": 1}, seed=0, workers=1)
    video, = (tmp_path / "world").rglob("*.mp4")
    recipes = {"grounder": {"_target_": "oracle_grounder"},
               "encoder": {"_target_": "oracle_encoder"}}
    folder = make_model_folder(tmp_path, dims={"frame_dim": 20, "object_dim": 10}, **recipes)
    truth = read_truth(video)
    words = sorted({thing.word for thing in truth.objects})
    status, _, err = generate(f"video={video}", f"objects={','.join(words)}", "out=out", "steps=1", "guidance=1",
                              model_argument=f"model={folder}")
    assert (status, err) == (0, "")
    seen = check_result(video, tmp_path / "out" / video.name)["mean_probability"]
    for word in words:
        visible = truth.visible[:, [thing.word == word for thing in truth.objects]].any(axis=1)
        assert seen[word] == pytest.approx(visible.mean(), abs=0.05)
