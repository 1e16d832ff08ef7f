"""data_prep/check.py: every fault of a dataset is named with its shard and clip, its statistics are true, and the films
show each frame with what the shard says of it."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import safetensors.numpy
from conftest import decode_grey
from matplotlib.image import imread
from programs import call
from tiny_data import CAPTION_DIM, FRAME_DIM, OBJECT_DIM, a_clip, write_dataset

from vta_sam.dataset.extraction.check import check_dataset, made_by, write_check, write_overlays
from vta_sam.dataset.extraction.dataset_statistics import DatasetStatistics, statistics_picture, statistics_tables
from vta_sam.dataset.shards.records import read_shard, write_records, write_shard
from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo, encode_record, read_dataset
from vta_sam.embedded.extractors import TinyGrounder
from vta_sam.embedded.truth import OracleGrounder
from vta_sam.media.audio import read_audio
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import Grounder
from vta_sam.plots.overlay import COLOURS, Overlay, _free_place, picture_size, write_film
from vta_sam.runtime.errors import InputError

SHARD = "train-000000.tar"


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "shards", {"train": 5, "val": 3}, shard_records=3)
    return tmp_path / "shards"


def told(faults):
    return [(fault.shard, fault.key, fault.what) for fault in faults]


def rewrite(dataset, change, key="train-1", shard=SHARD):
    """Write a shard again with one clip changed."""
    clips = [change(clip) if clip.key == key else clip for clip in read_shard(dataset / shard)]
    write_shard(dataset / shard, clips)


def test_statistics_of_a_whole_dataset(dataset):
    statistics, faults = check_dataset(dataset)
    assert faults == []
    info = read_dataset(dataset)
    clips = [clip for shards in info.splits.values() for shard in shards for clip in read_shard(dataset / shard.name)]
    found = json.loads(json.dumps(statistics.to_dict()))
    assert found["clips"] == 8 and found["splits"] == {"train": 5, "val": 3}
    assert found["hours"] == pytest.approx(8 * 5.12 / 3600, abs=1e-4)
    assert found["duration_s"]["median"] == 5.12 and sum(found["duration_s"]["histogram"]["clips"]) == 8
    assert found["objects_per_clip"] == {str(n): [len(c.objects) for c in clips].count(n) for n in range(9)}
    for word in {word for clip in clips for word in clip.objects}:
        probs = np.concatenate([clip.probs[:, clip.objects.index(word)] for clip in clips if word in clip.objects])
        assert found["words"][word]["mean_prob"] == pytest.approx(probs.mean(), abs=1e-4)
        assert found["words"][word]["share_above_half"] == pytest.approx((probs > 0.5).mean(), abs=1e-4)
        assert found["words"][word]["histogram"] == np.histogram(probs, np.linspace(0, 1, 11))[0].tolist()
        missing = sum(word in c.objects and c.probs[:, c.objects.index(word)].max() <= 0.3 for c in clips)
        assert found["words"][word]["missing_clips"] == missing
    levels = [20 * np.log10(np.sqrt(np.mean(clip.waveform.astype(float) ** 2))) for clip in clips]
    assert found["sound"]["mean_level_dbfs"] == pytest.approx(np.mean(levels), abs=0.01)
    assert found["sound"]["silent_clips"] == 0 and sum(found["sound"]["level_histogram"].values()) == 8


def test_statistics_know_silence_missing_objects_and_durations():
    statistics = DatasetStatistics()
    for number, duration_s in enumerate((1.0, 2.0, 2.0, 8.0)):
        clip = a_clip("k", duration_s, words=("dog", "cat"))
        clip.waveform[:] = 5e-5 if number == 0 else 1.0
        probs = np.tile(np.array([0.25 if number < 3 else 1.0, 0.3], np.float32), (len(clip.probs), 1))
        statistics.add("train", replace(clip, label="x" if number else "", objects=["dog", "cat"], probs=probs))
    found = statistics.to_dict()
    assert found["sound"]["silent_clips"] == 1 and found["sound"]["mean_level_dbfs"] == 0
    assert found["missing_objects"] == {"of": 8, "missing": 7, "seen_above": 0.3, "never_seen_words": ["cat"]}
    dog = found["words"]["dog"]
    assert dog["missing_clips"] == 3 and dog["seen_clips"] == 1 and dog["frames"] == 13 + 25 + 25 + 100
    assert dog["histogram"] == [0, 0, 63, 0, 0, 0, 0, 0, 0, 100]
    assert (found["duration_s"]["min"], found["duration_s"]["median"], found["duration_s"]["max"]) == (1, 2, 8)
    assert found["duration_s"]["histogram"]["edges_s"][-1] == 8 and len(statistics.durations) == 3
    assert found["labels"] == {"x": 3, "": 1}
    probs = np.concatenate([np.full(13 + 25 + 25, 0.25), np.full(100, 1.0), np.full(163, 0.3)])
    expected = {"clips": 4, "min": 0.25, "mean": pytest.approx(probs.mean(), abs=1e-5), "max": 1}
    assert found["features"]["probs"] == {"axes": ["T", "K"], **expected}
    assert found["features"]["mask_embedding"] == {"axes": ["T", "K", 256], "clips": 0, "min": None, "mean": None,
                                                   "max": None}


CHANGES = {
    "frame_embedding has shape (64, 5), expected (…, 6)": lambda c: replace(
        c, frame_embedding=c.frame_embedding[:, 1:]),
    "caption_tokens has shape (3, 3), expected (…, 4)": lambda c: replace(c, caption_tokens=c.caption_tokens[:, 1:]),
    "object_embedding has shape": lambda c: replace(c, object_embedding=c.object_embedding[:, 1:]),
    "fps is 12.0, dataset.json says 12.5": lambda c: replace(c, fps=12.0),
    "sample_rate_hz is 8000": lambda c: replace(c, sample_rate_hz=8000, waveform=c.waveform[::2]),
    "64 frames, expected 63 in 5.0 s": lambda c: replace(c, duration_s=5.0, waveform=c.waveform[:80_000]),
    "80000 samples of sound, expected 81920": lambda c: replace(c, waveform=c.waveform[:80_000]),
    "duration_s is 0": lambda c: replace(c, duration_s=0.0),
    "duration_s is inf": lambda c: replace(c, duration_s=float("inf")),
    "start_s is -1.0": lambda c: replace(c, start_s=-1.0),
    "probs go from": lambda c: replace(c, probs=c.probs + 0.5),
    "boxes go from -0.5": lambda c: replace(c, boxes=c.boxes - 1),
    "areas go from": lambda c: replace(c, areas=c.areas + 1),
    "expected words that differ": lambda c: replace(c, objects=["dog"] * len(c.objects)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_record_that_disagrees_is_named(dataset, what):
    info = read_dataset(dataset)
    key = next(clip.key for clip in read_shard(dataset / SHARD) if len(clip.objects) > 1)
    rewrite(dataset, CHANGES[what], key)
    statistics, faults = check_dataset(dataset)
    assert {(fault.shard, fault.key) for fault in faults} == {(SHARD, key)}
    assert any(what in fault.what for fault in faults), faults
    assert len(faults) <= 2 and statistics.clips == sum(info.records(split) for split in info.splits)


def test_every_damaged_record_of_a_shard_is_found(dataset):
    records = [(clip.key, encode_record(clip)) for clip in read_shard(dataset / SHARD)]
    records[0][1]["flac"] = b"fLaC" + b"\0" * 40
    arrays = safetensors.numpy.load(records[1][1]["safetensors"])
    arrays["mask_embedding"] = np.zeros((*arrays["probs"].shape, 255), np.float16)
    records[1][1]["safetensors"] = safetensors.numpy.save(arrays)
    words = json.loads(records[2][1]["json"])
    records[2][1]["json"] = json.dumps({**words, "objects": [1]}).encode()
    write_records(dataset / SHARD, records)
    statistics, faults = check_dataset(dataset)
    assert [(fault.shard, fault.key) for fault in faults] == [(SHARD, key) for key, _ in records]
    assert "flac" in faults[0].what and "objects" in faults[2].what and statistics.clips == 5
    assert "mask_embedding has shape" in faults[1].what and ", 256)" in faults[1].what


@pytest.mark.parametrize("size", ["cut", "without end", "no tar"])
def test_a_damaged_tar_is_found(dataset, size):
    path = dataset / "val-000000.tar"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:len(content) // 2], "without end": content.rstrip(b"\0"),
                      "no tar": b"x" * 4096}[size])
    statistics, faults = check_dataset(dataset)
    assert {fault.shard for fault in faults} == {path.name} and any("cut short" in fault.what for fault in faults)
    assert statistics.splits["train"] == 5 and statistics.splits["val"] < 4


def test_ids_and_counts_must_agree(dataset):
    info = read_dataset(dataset)
    splits = {"train": [ShardInfo(SHARD, 3, 2), ShardInfo("train-000001.tar", 4, 0)], "val": info.splits["val"]}
    replace(info, splits=splits).write(dataset)
    (dataset / "train-000001.failed.jsonl").write_text('{"id": "x", "path": "x", "reason": "y"}\n')
    (dataset / "stray-000000.tar").write_bytes((dataset / SHARD).read_bytes())
    rewrite(dataset, lambda clip: replace(clip, key="train-0"), "val-2", "val-000000.tar")
    found = told(check_dataset(dataset)[1])
    assert found[0] == ("stray-000000.tar", "", "it is not in dataset.json")
    assert found[1][0] == SHARD and "failed.jsonl can't be read" in found[1][2]
    assert found[2:] == [
        ("train-000001.tar", "", "it holds 2 records, dataset.json says 4"),
        ("train-000001.tar", "", "train-000001.failed.jsonl lists 1 clips that failed, dataset.json says 0"),
        ("val-000000.tar", "train-0", "the id stands in the dataset before; ids must differ")]


@pytest.fixture
def check(tmp_path):
    """Run the script ⇒ (exit status, what it printed)."""
    def run(*arguments):
        done = call("data_prep/check.py", *arguments, cwd=tmp_path)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.slow
def test_the_script_reports_and_ends_with_its_verdict(dataset, check):
    status, printed = check(f"shards={dataset}")
    assert status == 0 and "8 clips (5 train, 3 val)" in printed and "5.12 to 5.12 s" in printed, printed
    written = json.loads((dataset / "check" / "statistics.json").read_text())
    facts = {"faults": 0, "made_by": made_by(read_dataset(dataset))}
    assert written == {**check_dataset(dataset)[0].to_dict(), **facts} and "fingerprint grounder of" in printed
    assert (dataset / "check" / "faults.jsonl").read_text() == ""
    rewrite(dataset, lambda clip: replace(clip, start_s=-2.0))
    status, printed = check(f"shards={dataset}")
    assert status == 2 and "has 1 faults" in printed and "start_s is -2.0" in printed
    [line] = (dataset / "check" / "faults.jsonl").read_text().splitlines()
    assert json.loads(line) == {"shard": SHARD, "key": "train-1", "what": "start_s is -2.0, expected seconds >= 0"}
    for arguments, what in (((), "shards= is missing"), ((f"shards={dataset}", "overlay=1"), "videos= is missing"),
                            ((f"shards={dataset}", "masks=true"), "masks=true needs a grounder"),
                            ((f"shards={dataset}", "overlay=some", "videos=x"), "overlay=some"),
                            ((f"shards={dataset.parent}",), "dataset.json doesn't exist")):
        status, printed = check(*arguments)
        assert status == 2 and what in printed and "Traceback" not in printed


def test_the_picture_of_statistics_shows_them(tmp_path):
    one = DatasetStatistics()
    statistics_picture(tmp_path / "none.png", one)
    assert "no clip" in str(statistics_tables(one, "x").renderables[0])
    one.add("train", replace(a_clip("a"), label="$x^$ [b]"))
    statistics_picture(tmp_path / "one.png", one)
    for number in range(30):
        clip = a_clip(f"b{number}", 1 + number / 10)
        one.add("train", replace(clip, objects=[f"${word}$ {number}" for word in clip.objects]))
    statistics_picture(tmp_path / "more.png", one)
    none, first, more = (imread(tmp_path / f"{name}.png") for name in ("none", "one", "more"))
    assert not np.array_equal(first, none)
    assert more.shape[0] > first.shape[0]  # a row per word


RECT = (0.25, 0.25, 0.2, 0.3)  # cx cy w h


def film_dataset(folder, make_video, words=("dog", "cat"), seconds=2.0, source="clip.mp4"):
    """One clip of a video whose picture number is coded in its brightness; the first object appears halfway."""
    sound = np.zeros(32_000, np.float32)
    sound[16_000:] = 0.3 * np.sin(np.arange(16_000) * 0.3)
    make_video(folder / "clip.mp4", size=(160, 120), duration_s=seconds, sound=sound[:round(seconds * 16_000)])
    frames, count = 25, len(words)
    probs = np.zeros((frames, count), np.float32)
    probs[12:, 0] = 0.9
    boxes = np.tile(np.array(RECT, np.float32), (frames, count, 1))
    clip = replace(
        a_clip("a.b"), caption="a dog", objects=list(words), probs=probs, boxes=boxes, areas=probs * 0.06,
        waveform=sound, object_embedding=np.zeros((count, OBJECT_DIM), np.float32),
        frame_embedding=np.zeros((frames, FRAME_DIM), np.float32), duration_s=2.0, source=source)
    write_shard(folder / SHARD, [clip])
    info = DatasetInfo("halves-1", "e", 12.5, 16_000, FRAME_DIM, OBJECT_DIM, CAPTION_DIM, "0", "0", "0",
                       {"train": [ShardInfo(SHARD, 1, 0)]})
    info.write(folder)
    return clip


def near(picture, colour, tolerance=70):
    """Where a picture has about this colour (h264 blurs thin lines) ⇒ (H, W) bool."""
    rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])
    return np.abs(picture.astype(int) - rgb).max(axis=2) <= tolerance


def test_a_film_shows_each_frame_with_its_grounding(tmp_path, make_video):
    clip = film_dataset(tmp_path, make_video)
    [path] = write_overlays(tmp_path, tmp_path, tmp_path / "films")
    assert path.name == "a%2Eb.mp4"
    with av.open(str(path)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert audio.codec_context.name == "aac" and float(video.average_rate) == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    height, width = picture_size(120, 160)
    assert len(frames) == 25 and frames[0].shape[1] == 640 and (height, width) == (360, 480)
    left = (640 - width) // 2
    box = (round(left + width * (RECT[0] - RECT[2] / 2)), round(height * (RECT[1] - RECT[3] / 2)))
    for t, frame in enumerate(frames):
        inside = frame[height // 2:height - 20, left + width // 2:left + width - 20]
        assert decode_grey(inside) == (2 * t + 1) % 24
        edge = near(frame[box[1] + 40:box[1] + 80, box[0] - 2:box[0] + 4], COLOURS[0]).any(axis=1).mean()
        assert (edge > 0.9) if t >= 12 else (edge < 0.1), t
        lanes = frame[height + 30:]
        cursor = np.flatnonzero((lanes.min(axis=2) > 225).mean(axis=0) > 0.6)  # white from top to bottom
        assert abs(cursor.mean() - (176 + (t + 0.5) / 25 * 454)) < 1.5, t
    assert near(frames[0][height + 26:height + 52, 176:], COLOURS[0]).any(axis=0)[:200].mean() > 0.9
    sound = read_audio(path)
    assert len(sound) == pytest.approx(32_000, abs=1_100)
    assert np.corrcoef(sound[:32_000], clip.waveform[:len(sound)])[0, 1] > 0.99


def test_masks_tint_what_they_cover(tmp_path):
    clip = replace(a_clip("k"), objects=["dog"], probs=np.full((64, 1), 0.8, np.float32),
                   boxes=np.zeros((64, 1, 4), np.float32), areas=np.zeros((64, 1), np.float32))
    mask = np.zeros((1, 12, 16), bool)
    mask[0, 6:, 8:] = True
    grey = np.full((240, 320, 3), 128, np.uint8)
    plain, tinted = (Overlay(clip, (240, 320)).frame(grey, 3, masks) for masks in (None, mask))
    changed = (plain != tinted).any(axis=2)[:240, 160:480]
    assert changed[130:, 180:].all() and not changed[:110].any() and not changed[:, :140].any()
    unlikely = Overlay(replace(clip, probs=clip.probs * 0.1), (240, 320))
    assert np.array_equal(unlikely.frame(grey, 3, mask), unlikely.frame(grey, 3))


def test_tags_keep_out_of_each_others_way():
    random = np.random.default_rng(0)
    for _ in range(50):
        taken = []
        for _ in range(8):
            left, top = int(random.integers(0, 400)), int(random.integers(0, 300))
            box = (left, top, left + int(random.integers(5, 200)), top + int(random.integers(5, 55)))
            place = _free_place(box, (180, 25), (360, 640), taken)
            assert 0 <= place[0] and place[2] <= 640 and 0 <= place[1] and place[3] <= 360
            drawn = np.zeros((361, 641), int)
            for x0, y0, x1, y1 in [*taken, place]:
                drawn[y0:y1 + 1, x0:x1 + 1] += 1
            assert drawn.max() == 1
            taken.append(place)


@pytest.mark.parametrize("height, width", [(1080, 1920), (1920, 1080), (96, 128), (2, 1000), (1000, 3), (72, 97)])
def test_pictures_keep_their_shape(height, width):
    shown = picture_size(height, width)
    assert all(side % 2 == 0 and side >= 2 for side in shown) and shown[0] <= 360 and shown[1] <= 640
    if min(shown) > 20:
        assert shown[1] / shown[0] == pytest.approx(width / height, rel=0.05)


class Halves(Grounder):
    """Its mask of every object is the left half of whatever it is shown."""

    kind, fit, fingerprint, draws_masks = "halves", Squeeze(8, 10), "halves-1", True
    clips = ()

    def for_clip(self, video, start_s, fps):
        self.clips += (video,)
        return self

    def ground(self, frames, objects):
        raise AssertionError("masks alone are asked for")

    def masks(self, frames, objects):
        assert frames.shape[1:] == (8, 10, 3) and self.clips, "one may remember a clip's earlier frames"
        masks = np.zeros((len(frames), len(objects), 8, 10), bool)
        masks[..., :5] = True
        return masks


def test_masks_are_asked_of_the_grounder(tmp_path, make_video):
    film_dataset(tmp_path, make_video)
    pictures = []
    for grounder in (None, Halves()):
        [path] = write_overlays(tmp_path, tmp_path, tmp_path / "films", grounder=grounder)
        with av.open(str(path)) as film:
            pictures.append([frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)])
    plain, masked = (frames[20][250:350, 80:560] for frames in pictures)
    assert np.abs(masked - plain)[:, :220].max(axis=2).min() > 5 and np.abs(masked - plain)[:, 260:].mean() < 3


def test_films_that_cannot_be_made_say_why(tmp_path, make_video):
    film_dataset(tmp_path, make_video)
    with pytest.raises(InputError, match="has no clip 'nobody'"):
        list(write_overlays(tmp_path, tmp_path, tmp_path / "films", keys=["nobody"]))
    with pytest.raises(InputError, match="draws no masks"):
        list(write_overlays(tmp_path, tmp_path, tmp_path / "films", grounder=OracleGrounder()))
    with pytest.raises(InputError, match="grounder is 'halves-1', expected 'tiny"):
        list(write_overlays(tmp_path, tmp_path, tmp_path / "films", grounder=TinyGrounder()))
    grounder = Halves()
    grounder.settings = {"every": 2}
    with pytest.raises(InputError, match="grounder.every is 2, the shards were made with None; name the grounder that"):
        list(write_overlays(tmp_path, tmp_path, tmp_path / "films", grounder=grounder))
    with pytest.raises(InputError, match="is not a folder"):
        list(write_overlays(tmp_path, tmp_path / "none", tmp_path / "films"))
    with pytest.raises(InputError, match="no picture"):
        write_film(tmp_path / "x.mp4", [], 12.5, np.zeros(100), 16_000)
    (tmp_path / "short").mkdir()
    film_dataset(tmp_path / "short", make_video, seconds=1.0)
    with pytest.raises(InputError, match="its shard has 25"):
        list(write_overlays(tmp_path / "short", tmp_path / "short", tmp_path / "films"))
    film_dataset(tmp_path, make_video, source="../clip.mp4")
    with pytest.raises(InputError, match="leaves the folder"):
        list(write_overlays(tmp_path, tmp_path, tmp_path / "films"))
    assert not list(tmp_path.glob("films/*"))


def test_a_film_that_cannot_be_made_does_not_end_the_rest(tmp_path, make_video, monkeypatch):
    clip = film_dataset(tmp_path, make_video)
    write_shard(tmp_path / SHARD, [clip, replace(clip, key="gone", source="gone.mp4"), replace(clip, key="z")])
    info = read_dataset(tmp_path)
    replace(info, splits={"train": [ShardInfo(SHARD, 3, 0)]}).write(tmp_path)
    failures: dict[str, str] = {}
    films = list(write_overlays(tmp_path, tmp_path, tmp_path / "films", failures=failures))
    assert [path.name for path in films] == ["a%2Eb.mp4", "z.mp4"] and "gone.mp4" in failures["gone"]
    monkeypatch.setattr("vta_sam.dataset.extraction.check.statistics_picture", lambda *_: 1 / 0)
    assert "could not be drawn (division by zero)" in write_check(tmp_path / "out", *check_dataset(tmp_path), "x")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["faults.jsonl", "statistics.json"]


def test_an_overlay_without_objects(tmp_path, make_video):
    film_dataset(tmp_path, make_video, words=("dog",))
    clip = next(iter(read_shard(tmp_path / SHARD)))
    none = replace(clip, objects=[], probs=clip.probs[:, :0], boxes=clip.boxes[:, :0], areas=clip.areas[:, :0])
    grey = np.full((120, 160, 3), 90, np.uint8)
    frame = Overlay(none, (120, 160)).frame(grey, 4)
    assert np.array_equal(frame[:120, 240:400], grey)
    silent = Overlay(replace(none, waveform=np.zeros(50, np.float32)), (120, 160)).frame(grey, 4)
    at_44_khz = replace(none, waveform=np.zeros(88_200, np.float32), sample_rate_hz=44_100)
    at_44_khz.waveform[44_100:] = np.random.default_rng(0).normal(0, 0.1, 44_100)
    loudness = Overlay(at_44_khz, (120, 160))._loudness
    assert len(loudness) == 201 and loudness[:95].max() < 0.5 < loudness[105:].min()  # at 100 Hz, whatever the rate
    assert silent.shape == frame.shape and not np.array_equal(silent, frame)


def test_the_tiny_grounders_masks_are_what_its_areas_count():
    grounder = TinyGrounder()
    frames = np.random.default_rng(0).integers(0, 255, (3, 72, 96, 3), np.uint8)
    words = list(grounder.known_words[:4])
    masks = grounder.masks(frames, words)
    assert masks.shape == (3, 4, 24, 32) and np.allclose(masks.mean((2, 3)), grounder.ground(frames, words).areas)
    with pytest.warns(UserWarning, match="unicorn"):
        assert not grounder.masks(frames, ["unicorn"]).any()
    assert grounder.masks(frames, []).shape == (3, 0, 24, 32)
