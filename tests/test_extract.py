"""Extraction: what is refused, what is listed, and that stopping it anywhere loses and doubles nothing."""

import csv
import json

import numpy as np
import pytest
from conftest import REPOSITORY, decode_grey
from programs import call

from vta_sam.dataset.extraction.extract import extract_dataset
from vta_sam.dataset.extraction.shard_folder import failures
from vta_sam.dataset.manifests.manifest import manifest_hash, read_manifest, slices
from vta_sam.dataset.shards.records import read_shard
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.media.picture_reader import Squeeze, Within
from vta_sam.perception.base import Encoder, Grounder, Grounding
from vta_sam.runtime.errors import InputError


class BrightnessGrounder(Grounder):
    """Probability of the k-th object: the frame's brightness, halved for each object before it."""

    kind = "brightness"
    fit = Squeeze(12, 16)
    fingerprint = "brightness-1"
    known_words = ("racing car",)

    def ground(self, frames, objects):
        probs = (frames.mean((1, 2, 3)) / 255)[:, None] / 2.0 ** np.arange(len(objects))
        boxes = np.full((*probs.shape, 4), 0.5)
        return Grounding(probs.astype(np.float32), boxes.astype(np.float32), probs.astype(np.float32))


class BrightnessEncoder(Encoder):
    """A frame is its mean colour; a word its length; a caption a token per word."""

    kind = "brightness"
    fit = Squeeze(24, 32)
    frame_dim, object_dim, caption_dim = 3, 2, 2
    fingerprint = "brightness-2"

    def encode_frames(self, frames):
        return frames.mean((1, 2)).astype(np.float32)

    def encode_objects(self, objects):
        return np.array([[len(word), 1] for word in objects], np.float32).reshape(-1, 2)

    def encode_caption(self, caption):
        return self.encode_objects(caption.split() or [""])


def write_manifest(path, rows, columns=("id", "caption", "path", "start", "duration", "objects", "label", "split")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    """One second with sound, one without sound, one broken."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    make_video(folder / "good.mp4", sound=rng.uniform(-0.3, 0.3, 16_000))
    make_video(folder / "silent.mp4", duration_s=0.4)
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 50)
    return folder


@pytest.fixture(scope="module")
def manifest(videos, tmp_path_factory):
    """Fifteen rows of three splits, of which two can't be read."""
    rows = [{"id": f"v.{i}", "caption": "a dog barks while a racing car drives past", "path": "good.mp4",
             "start": 0.04 * i, "duration": 0.4, "split": ("train", "train", "val")[i % 3]} for i in range(12)]
    rows += [{"id": "quiet", "caption": "a cat meows", "path": "silent.mp4"}, {"id": "broken", "caption": ""},
             {"id": "given", "caption": "", "path": "good.mp4", "objects": "Dog; racing car ;dog", "label": "dog",
              "split": "test"}]
    return write_manifest(tmp_path_factory.mktemp("manifest") / "manifest.csv", rows)


def extract(manifest, videos, out, **settings):
    settings = {"fps": 12.5, "shard_size": 3, "workers": 1, **settings}
    return extract_dataset(manifest, videos, out, settings.pop("grounder", BrightnessGrounder()),
                           settings.pop("encoder", BrightnessEncoder()), settings.pop("fps"), **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(manifest, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    info = extract(manifest, videos, out)
    return out, info


def test_every_row_becomes_a_record_or_a_listed_failure(undisturbed, manifest):
    out, info = undisturbed
    assert read_dataset(out) == info and (info.frame_dim, info.object_dim, info.caption_dim) == (3, 2, 2)
    keys = {split: [clip.key for shard in shards for clip in read_shard(out / shard.name)]
            for split, shards in info.splits.items()}
    assert {split: info.records(split) for split in info.splits} == {s: len(k) for s, k in keys.items()}
    rows = read_manifest(manifest)
    bad = {entry["id"]: entry["reason"] for path in out.glob("*.jsonl") for entry in failures(path)}
    assert "silent.mp4 has no sound" in bad["quiet"] and "broken.mp4 can't be read" in bad["broken"]
    assert sorted([*bad, *sum(keys.values(), [])]) == sorted(row.id for row in rows)
    for row in rows:
        assert row.id in bad or row.id in keys[row.split]


def test_a_record_holds_that_stretch_of_its_video(undisturbed):
    out, info = undisturbed
    clips = {clip.key: clip for shards in info.splits.values() for s in shards for clip in read_shard(out / s.name)}
    for i in range(12):
        clip = clips[f"v.{i}"]
        assert clip.objects == ["dog", "racing car"] and clip.waveform.shape == (6_400,) and clip.duration_s == 0.4
        assert clip.probs.shape == (5, 2) and np.allclose(clip.probs[:, 1], clip.probs[:, 0] / 2, atol=1e-3)
        shown = [decode_grey(colour) for colour in clip.frame_embedding]
        assert shown == [(i + 2 * t + 1) % 24 for t in range(5)]
        assert np.allclose(clip.probs[:, 0] * 255, clip.frame_embedding.mean(1), atol=1)
    given = clips["given"]
    assert given.objects == ["dog", "racing car"] and given.label == "dog" and given.source == "good.mp4"
    assert given.duration_s == pytest.approx(1.0) and given.caption == "" and given.probs.shape == (13, 2)


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("after", [4, 14])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(undisturbed, manifest, videos, tmp_path, after):
    def stop(done, clips, failed):
        if done >= after:
            raise Stop

    with pytest.raises(Stop):
        extract(manifest, videos, tmp_path, progress=stop)
    before = contents(tmp_path)
    assert "dataset.json" not in before and not any("partial" in name for name in before)
    with pytest.raises(InputError, match="dataset.json doesn't exist"):
        read_dataset(tmp_path)
    told = []
    extract(manifest, videos, tmp_path, progress=lambda *counts: told.append(counts))
    assert contents(tmp_path) == contents(undisturbed[0])
    kept = sum(len(part.rows) for part in slices(read_manifest(manifest), 3) if part.name in before)
    assert told[0] == (kept, 15, 0) and told[-1][:2] == (15, 15) and len(told) == 1 + 15 - kept


def test_shares_of_two_processes_and_of_two_workers_make_the_same_bytes(undisturbed, manifest, videos, tmp_path):
    first = extract(manifest, videos, tmp_path, rank=1, world=2)
    assert not (tmp_path / "dataset.json").exists() and sum(map(len, first.splits.values())) == 3
    assert extract(manifest, videos, tmp_path, rank=0, world=2, workers=2) == undisturbed[1]
    assert contents(tmp_path) == contents(undisturbed[0])


@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_the_size_of_chunks_changes_no_byte(undisturbed, manifest, videos, tmp_path, chunk_frames):
    seen, grounder = [], BrightnessGrounder()
    ground = grounder.ground
    grounder.ground = lambda frames, objects: seen.append(len(frames)) or ground(frames, objects)
    extract(manifest, videos, tmp_path, chunk_frames=chunk_frames, grounder=grounder)
    assert contents(tmp_path) == contents(undisturbed[0]) and max(seen) == chunk_frames


def test_a_clip_that_breaks_midway_leaves_no_half_record(make_video, videos, tmp_path):
    """Two streams of MPEG packets one after the other are one stream, whose pictures here become absurd."""
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    good = make_video(tmp_path / "good.ts", sound=sound)
    absurd = make_video(tmp_path / "absurd.ts", size=(8200, 16), times_s=1 + np.arange(10) / 25)
    (tmp_path / "broken.ts").write_bytes(good.read_bytes() + absurd.read_bytes())
    manifest = write_manifest(tmp_path / "m.csv", [
        {"id": name, "caption": "a dog", "path": f"{name}.ts"} for name in ("good", "broken")])
    info = extract(manifest, tmp_path, tmp_path / "out", chunk_frames=4)
    assert [clip.key for clip in read_shard(tmp_path / "out" / "train-000000.tar")] == ["good"]
    assert info.splits["train"][0].failed == 1
    [failure] = failures(tmp_path / "out" / "train-000000.failed.jsonl")
    assert failure["id"] == "broken" and "pictures of 8200x16 pixels" in failure["reason"]


def test_a_finished_folder_is_left_as_it_is(undisturbed, manifest, videos):
    before = contents(undisturbed[0])
    assert extract(manifest, videos, undisturbed[0]) == undisturbed[1]
    assert contents(undisturbed[0]) == before


def test_another_manifest_or_config_stops(undisturbed, manifest, videos, tmp_path):
    out = undisturbed[0]
    before = contents(out)
    other = write_manifest(tmp_path / "other.csv", [{"id": "good", "caption": "a cat"}])
    with pytest.raises(InputError, match="begun with another manifest"):
        extract(other, videos, out)
    with pytest.raises(InputError, match="fps 12.5 then, 8.0 now"):
        extract(manifest, videos, out, fps=8)
    with pytest.raises(InputError, match="shard_size"):
        extract(manifest, videos, out, shard_size=4)
    grounder = BrightnessGrounder()
    grounder.fit = Within(12, 16)
    with pytest.raises(InputError, match="fits .*Squeeze.* then, .*Within.* now"):
        extract(manifest, videos, out, grounder=grounder)
    encoder = BrightnessEncoder()
    encoder.fingerprint = "brightness-3"
    with pytest.raises(InputError, match="encoder brightness-2 then, brightness-3 now"):
        extract(manifest, videos, out, encoder=encoder)
    assert contents(out) == before


def test_another_way_of_decoding_is_another_config(undisturbed, manifest, videos, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="hwaccel=steam is not known here"):
        extract(manifest, videos, tmp_path / "out", hwaccel="steam")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("vta_sam.dataset.extraction.extract.check_hwaccel", lambda name: None)
    with pytest.raises(InputError, match="begun with another config .*hwaccel"):
        extract(manifest, videos, undisturbed[0], hwaccel="cuda")


def test_when_no_clip_can_be_read_it_says_why_and_may_be_tried_again(videos, tmp_path):
    rows = [{"id": "moved", "caption": "a dog"}, {"id": "broken", "caption": ""}]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 2 clips could be read. The first reason: .*mp4"):
            extract(manifest, videos, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.tar")) and not (tmp_path / "out" / "dataset.json").exists()


def test_what_an_extractor_refuses_or_gets_wrong_is_listed(videos, tmp_path):
    class Picky(BrightnessEncoder):
        def encode_caption(self, caption):
            if "cat" in caption:
                raise InputError("no cats")
            tokens = super().encode_caption(caption)
            return tokens * np.nan if "fish" in caption else tokens

    manifest = write_manifest(tmp_path / "m.csv", [
        {"id": name, "caption": f"a {name}", "path": "good.mp4"} for name in ("cat", "dog", "fish")])
    info = extract(manifest, videos, tmp_path / "out", encoder=Picky())
    assert info.records("train") == 1 and info.splits["train"][0].failed == 2
    reasons = {e["id"]: e["reason"] for e in failures(tmp_path / "out" / "train-000000.failed.jsonl")}
    assert reasons["cat"] == "no cats" and "caption_tokens holds NaN" in reasons["fish"]


@pytest.mark.parametrize("text, words", [
    ("caption\na\n", "column id is missing"),
    ("id,colour\na,b\n", "column caption is missing; unknown columns 'colour'"),
    ("id,caption\n", "no rows"),
    ("id,caption\na,x\na,y\n", "'a' stands in line 2 and in line 3"),
    ("id,caption\n,x\n", "line 2: the id is empty"),
    ("id,caption\na,x,y\n", "line 2: not as many cells"),
    ("id,caption,start\na,x,soon\n", "start is 'soon'"),
    ("id,caption,duration\na,x,-1\n", "duration is '-1'"),
    ("id,caption,duration\na,x,0\n", "duration is 0"),
    ("id,caption,path\na,x,../b.mp4\n", "leaves the folder"),
    ("id,caption,path\na,x,/etc/b.mp4\n", "leaves the folder"),
    ("id,caption\n../a,x\n", "leaves the folder"),
    ("id,caption,split\na,x,../train\n", "the split '../train'"),
    ("id,caption,objects\na,x,a;b;c;d;e;f;g;h;i\n", "line 2: 9 objects, at most 8"),
    ('id,caption\na,"x\n', "can't be read as a CSV"),
    ("id,caption\na,\xff\n", "can't be read as a CSV in UTF-8"),
])
def test_a_manifest_that_can_not_be_right_is_refused(tmp_path, text, words):
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=words) as caught:
        read_manifest(path)
    assert "m.csv" in str(caught.value)


def test_a_manifest_is_what_it_says_not_how_it_is_written(tmp_path):
    (tmp_path / "a.csv").write_text("id,caption\nx,a dog\ny/1,\n")
    (tmp_path / "b.csv").write_bytes('\ufeff"caption",split,id\r\n,,y/1\r\n"a dog",train,x\r\n'.encode())
    a, b = read_manifest(tmp_path / "a.csv"), read_manifest(tmp_path / "b.csv")
    assert manifest_hash(a) == manifest_hash(b) and slices(a, 1) == slices(b, 1)
    assert {row.path for row in a} == {"x.mp4", "y/1.mp4"}
    with pytest.raises(InputError, match="none.csv doesn't exist"):
        read_manifest(tmp_path / "none.csv")


def test_a_manifest_sorted_by_class_gives_mixed_shards(tmp_path):
    rows = [{"id": f"{label}-{i}", "caption": "", "label": label} for label in "abcd" for i in range(64)]
    parts = slices(read_manifest(write_manifest(tmp_path / "m.csv", rows)), 64)
    assert [part.name for part in parts] == [f"train-{i:06d}.tar" for i in range(4)]
    for part in parts:
        counts = [sum(row.label == label for row in part.rows) for label in "abcd"]
        assert min(counts) >= 2, counts
    assert sorted(row.id for part in parts for row in part.rows) == sorted(row["id"] for row in rows)


# --- the embedded world through the same door -------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from vta_sam.embedded.world import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder, {"train": 3}, seed=5)
    return folder


def run_script(*arguments):
    return call("data_prep/extract.py", *arguments, cwd=REPOSITORY)


@pytest.mark.slow
def test_the_script_extracts_the_embedded_world_with_oracles(world, tmp_path):
    from vta_sam.embedded.timeline import WORDS
    from vta_sam.embedded.truth import read_truth

    out = tmp_path / "out"
    run = run_script(f"videos={world}", f"out={out}", "grounder=oracle", "encoder=oracle", "workers=1")
    assert run.returncode == 0, run.stderr
    clips = list(read_shard(out / "train-000000.tar"))
    assert len(clips) == 3 and read_dataset(out).frame_dim == 20
    for clip in clips:
        truth = read_truth(world / clip.source)
        assert sorted(clip.objects) == sorted(truth.words) and clip.frame_embedding.shape == (64, 20)
        for k, word in enumerate(clip.objects):
            thing = [t.word for t in truth.objects].index(word)
            visible = truth.visible[1::2, thing]  # 12.5 fps: frame i is on screen at (2 i + 1) / 25 s
            assert np.array_equal(clip.probs[:, k], visible)
            assert np.array_equal(clip.frame_embedding[:, 10 + WORDS.index(word)], visible)
            pose = (visible * truth.pose[1::2, thing]).astype(np.float32)
            assert np.array_equal(clip.frame_embedding[:, WORDS.index(word)], pose)
            assert clip.areas[:, k].max() > 0 and not clip.areas[visible == 0, k].any()
            assert np.array_equal(clip.object_embedding[k], np.eye(10)[WORDS.index(word)])
        assert len(clip.caption_tokens) == len(clip.objects)


def test_the_oracles_follow_a_stretch_and_refuse_other_videos(world, videos):
    from vta_sam.embedded.truth import OracleEncoder, OracleGrounder
    from vta_sam.embedded.truth import read_truth

    video = sorted(world.rglob("*.mp4"))[0]
    truth = read_truth(video)
    word = truth.words[0]
    frames = np.zeros((10, 8, 8, 3), np.uint8)
    grounding = OracleGrounder().for_clip(video, start_s=2.0, fps=5.0).ground(frames, [word, "unicorn"])
    assert np.array_equal(grounding.probs[:, 0], truth.visible[52:100:5, 0]) and not grounding.probs[:, 1].any()
    encoder = OracleEncoder()
    assert encoder.encode_caption("it rains").tolist() == [[0] * 10]
    assert encoder.encode_caption("Dogs, a racing car!").sum() == 1 and encoder.encode_objects([]).shape == (0, 10)
    for oracle in (OracleGrounder(), encoder):
        with pytest.raises(InputError, match="good.truth.json is missing"):
            oracle.for_clip(videos / "good.mp4")
    with pytest.raises(InputError, match="needs the video's file"):
        encoder.encode_frames(frames)
    with pytest.raises(InputError, match="needs the video's file"):
        OracleGrounder().ground(frames, [word])


@pytest.mark.slow
def test_the_script_answers_mistakes_with_a_sentence(tmp_path):
    missing = run_script()
    assert missing.returncode == 2 and missing.stderr.startswith("error: videos= is missing")
    unknown = run_script("vidoes=x")
    assert unknown.returncode != 0 and "vidoes" in unknown.stderr and "Traceback" not in unknown.stderr
    nowhere = run_script(f"videos={tmp_path / 'none'}", f"out={tmp_path / 'out'}", "grounder=oracle", "encoder=oracle")
    assert nowhere.returncode == 2 and "is not a folder" in nowhere.stderr and "Traceback" not in nowhere.stderr
    assert not list(tmp_path.iterdir())


def test_the_state_file_says_what_the_folder_is_made_of(undisturbed):
    state = json.loads((undisturbed[0] / "extraction.json").read_text())
    assert state["config"]["fps"] == 12.5 and state["manifest_hash"] == undisturbed[1].manifest_hash
