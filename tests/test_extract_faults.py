"""Faults that no clip should cause: they are listed with a traceback, answered with smaller batches or waited for, or
end the run."""

import errno
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
import torch
from test_extract import BrightnessEncoder, BrightnessGrounder, contents, extract, write_manifest

from vta_sam.clip import FEATURES, Feature
from vta_sam.dataset.extraction.check import check_dataset
from vta_sam.dataset.extraction.shard_folder import failures, summary
from vta_sam.dataset.manifests.manifest import read_manifest, slices
from vta_sam.dataset.shards.records import read_shard
from vta_sam.media.guarded import GuardedReader
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import FrameExtractor
from vta_sam.perception.features import Extractors, extract_features
from vta_sam.runtime.errors import EndOfRun, InputError
from vta_sam.runtime.files import RetryPolicy

HASTE = RetryPolicy(attempts=3, wait_s=0.0)
CLIPS, SHARD_SIZE = 12, 4
# a decoder's process in which so many looks at a file fail, or that has a bug
BAD_CHILD = """
import errno, os, pathlib, socket, sys
import vta_sam.media.container as container
import vta_sam.media.decoding as decoding

code, times, good = os.environ["CODE"], int(os.environ["TIMES"]), decoding.stream_clip

class Flaky(type(pathlib.Path())):
    def stat(self, **rest):
        with open(os.environ["LOOKS"], "ab") as looks:
            looks.write(b".")
            failed = looks.tell() <= times
        if failed:
            raise OSError(getattr(errno, code), "no luck", str(self))
        return super().stat(**rest)

def stream_clip(path, **rest):
    if code == "BUG" and path.endswith("bad.mp4"):
        raise ValueError("a bug of the decoder")
    return good(path, **rest)

container.Path, decoding.stream_clip = Flaky, stream_clip
decoding.serve(decoding.Connection(int(sys.argv[1]), writable=False), socket.socket(fileno=int(sys.argv[2])),
               int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "videos"
    folder.mkdir()
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 6_400)
    for name in ("good.mp4", "bad.mp4"):
        make_video(folder / name, duration_s=0.4, sound=sound)
    return folder


def manifest_of(folder, captions, paths=()):
    """A manifest whose clips stand in the shards in the order of their captions ⇒ its path."""
    rows = [{"id": f"c{i:02d}", "caption": "", "path": "good.mp4"} for i in range(len(captions))]
    order = [row.id for part in slices(read_manifest(write_manifest(folder / "order.csv", rows)), 64)
             for row in part.rows]
    for place, (caption, name) in enumerate(zip(captions, order)):
        row = next(row for row in rows if row["id"] == name)
        row["caption"], row["path"] = caption, paths[place] if paths else "good.mp4"
    return write_manifest(folder / "manifest.csv", rows), order


class Faulty(BrightnessEncoder):
    """Fails on captions that name an animal; a broken machine fails on all from a clip on."""

    def __init__(self, fault=lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")):
        self.fault = fault

    def encode_caption(self, caption):
        if caption == "fish":
            raise self.fault()
        return super().encode_caption(caption)


def listed(out):
    return {entry["id"]: entry for path in sorted(out.glob("*.failed.jsonl")) for entry in failures(path)}


def shards(out):
    return sorted(path.name for path in out.glob("*.tar"))


@pytest.fixture(scope="module")
def sound_run(videos, tmp_path_factory):
    """What a run without faults makes of clips that are all alike."""
    folder = tmp_path_factory.mktemp("sound")
    manifest, order = manifest_of(folder, ["a dog"] * CLIPS)
    extract(manifest, videos, folder / "out", shard_size=SHARD_SIZE)
    return manifest, order, contents(folder / "out")


def test_an_unexpected_fault_is_listed_with_its_traceback_and_the_run_goes_on(videos, tmp_path, capsys):
    manifest, order = manifest_of(tmp_path, ["a dog", "fish", "a dog", "a dog", "a dog", "fish"])
    out = tmp_path / "out"
    info = extract(manifest, videos, out, shard_size=3, encoder=Faulty())
    assert info.records("train") == 4 and set(listed(out)) == {order[1], order[5]}
    entry = listed(out)[order[1]]
    assert entry["kind"] == "fault" and entry["path"] == "good.mp4"
    assert entry["reason"] == ("good.mp4: unexpected RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    assert "in encode_caption" in entry["traceback"]
    assert check_dataset(out)[1] == []
    rich.console.Console(width=200).print(summary(info, out))
    said = capsys.readouterr().out
    assert "2 clips: …: unexpected RuntimeError" in said and "2 of them had an unexpected fault" in said
    extract(manifest, videos, out, shard_size=3, retry_failed=True)
    extract(manifest, videos, tmp_path / "sound", shard_size=3)
    assert contents(out) == contents(tmp_path / "sound"), "tried again where the fault is gone"


def test_whatever_an_error_says_its_list_is_read_back(videos, tmp_path):
    manifest, _ = manifest_of(tmp_path, ["fish", "a dog"])
    extract(manifest, videos, tmp_path / "out", encoder=Faulty(lambda: KeyError("a\u2028b\x85c\udce9", "d" * 900)))
    extract(manifest, videos, tmp_path / "out", encoder=Faulty(lambda: RuntimeError("a\u2028b\x85c\udce9\nd\ne")),
            retry_failed=True)
    [entry] = listed(tmp_path / "out").values()
    assert entry["reason"] == "good.mp4: unexpected RuntimeError: a\u2028b\x85c\\udce9 … e"


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    """⇒ a function: the first looks at files fail with the error of a code, or a decoder has a bug. It returns the
    file that has a byte for each look."""
    def plant(code, times=0):
        looks = tmp_path / "looks"
        looks.write_bytes(b"")
        for name, value in {"LOOKS": looks, "CODE": code, "TIMES": times}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(GuardedReader, "command", (sys.executable, "-c", BAD_CHILD))
        return looks
    return plant


def test_a_bug_of_the_decoder_costs_its_clip(videos, tmp_path, flaky):
    flaky("BUG")
    manifest, order = manifest_of(tmp_path, ["a dog"] * 3, ["good.mp4", "bad.mp4", "good.mp4"])
    extract(manifest, videos, tmp_path / "out")
    [entry] = listed(tmp_path / "out").values()
    assert entry["id"] == order[1] and entry["kind"] == "fault" and "in stream_clip" in entry["traceback"]
    assert entry["reason"].endswith("ValueError: a bug of the decoder")


def test_lists_of_earlier_releases_are_read(videos, tmp_path, capsys):
    manifest, order = manifest_of(tmp_path, ["a dog", "fish", "a dog"])
    out = tmp_path / "out"
    info = extract(manifest, videos, out, encoder=Faulty())
    old = '{"id": "%s", "path": "good.mp4", "reason": "good.mp4 has no sound"}\n' % order[1]
    (out / "train-000000.failed.jsonl").write_text(old)
    assert check_dataset(out)[1] == []
    rich.console.Console(width=200).print(summary(info, out))
    said = capsys.readouterr().out
    assert "1 clips: … has no sound" in said and "unexpected" not in said


def test_too_many_faults_in_a_row_end_the_run(videos, tmp_path):
    """Clips that can't be read say nothing of the machine; one that is extracted does."""
    manifest, order = manifest_of(
        tmp_path, ["fish"] * 2 + ["a dog"] * 2 + ["fish"] + ["a dog"] * 3 + ["fish", "a cat", "fish", "fish"],
        ["good.mp4"] * 9 + ["missing.mp4"] + ["good.mp4"] * 2)
    with pytest.warns(UserWarning, match="traceback of the last fault(.|\n)*in encode_caption"):
        with pytest.raises(EndOfRun, match=f"clip '{order[11]}': good.mp4: unexpected RuntimeError: .*; 3 clips in a "
                                           "row had such faults.*most_faults="):
            extract(manifest, videos, tmp_path / "out", shard_size=4, encoder=Faulty(), most_faults=3)
    assert shards(tmp_path / "out") == ["train-000000.tar", "train-000001.tar"]
    assert set(listed(tmp_path / "out")) == {order[0], order[1], order[4]}
    before = contents(tmp_path / "out")
    extract(manifest, videos, tmp_path / "out", shard_size=4, most_faults=3)
    after = contents(tmp_path / "out")
    assert all(after[name] == data for name, data in before.items()) and len(shards(tmp_path / "out")) == 3
    assert order[9] in listed(tmp_path / "out") and order[8] not in listed(tmp_path / "out")
    with pytest.raises(InputError, match="most_faults=0"):
        extract(manifest, videos, tmp_path / "none", most_faults=0)


def test_a_gpu_that_is_lost_ends_the_run_at_once(videos, tmp_path, monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered")

    manifest, order = manifest_of(tmp_path, ["a dog", "a dog", "a dog", "fish", "a dog"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    extract(manifest, videos, tmp_path / "sticks not", encoder=Faulty())
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.warns(UserWarning), pytest.raises(EndOfRun, match=f"clip '{order[3]}'.*the GPU is lost to this"):
        extract(manifest, videos, tmp_path / "out", encoder=Faulty())
    assert shards(tmp_path / "out") == ["train-000000.tar"] and listed(tmp_path / "out") == {}


# --- memory -----------------------------------------------------------------------------------------------------------

class Small(BrightnessGrounder):
    """Has memory for so many frames at once."""

    def __init__(self, most, fault=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        self.most, self.fault, self.seen = most, fault, []

    def ground(self, frames, objects):
        self.seen.append(len(frames))
        if len(frames) > self.most:
            raise self.fault
        return super().ground(frames, objects)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
                                   RuntimeError("CUDA error: out of memory"),
                                   RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
                                   MemoryError()])
def test_memory_that_is_short_halves_the_batch(sound_run, videos, tmp_path, fault):
    manifest, _, wanted = sound_run
    grounder = Small(2, fault)
    with pytest.warns(UserWarning, match="Small is out of memory") as told:
        extract(manifest, videos, tmp_path / "out", shard_size=SHARD_SIZE, grounder=grounder)
    found = contents(tmp_path / "out")
    assert {**found, "dataset.json": b""} == {**wanted, "dataset.json": b""}, "but for the recipe, which names a class"
    assert grounder.seen == [5, 2, 2, 1] * CLIPS, "the next clip is tried whole again"
    assert len({str(each.message) for each in told}) == 1, "one sentence is printed once"


def test_a_frame_that_alone_is_too_much_is_its_clip_s_fault(videos, tmp_path):
    manifest, order = manifest_of(tmp_path, ["a dog", "fish", "a dog"])

    class Hungry(Small):
        def ground(self, frames, objects):
            self.most = 0 if objects == ["fish"] else 5
            return super().ground(frames, objects)

    grounder = Hungry(0)
    with pytest.warns(UserWarning, match="Hungry is out of memory"):
        info = extract(manifest, videos, tmp_path / "out", grounder=grounder)
    [entry] = listed(tmp_path / "out").values()
    assert info.records("train") == 2 and grounder.seen == [5, 5, 2, 1, 5]
    assert (entry["id"], entry["kind"]) == (order[1], "memory") and "more memory than there is" in entry["reason"]
    grounder.whole_clips = True
    grounder.seen.clear()
    extract(manifest, videos, tmp_path / "whole", grounder=grounder)
    assert grounder.seen == [5, 5, 5], "it needs all frames of a clip at once"


def test_halves_look_back_at_the_frames_before(monkeypatch):
    monkeypatch.setitem(FEATURES, "change", Feature(("T",), optional=True))

    class Change(FrameExtractor):
        name, kind, fingerprint, fit, context_frames, most = "change", "change", "change-1", Squeeze(2, 2), 1, 9

        def extract(self, frames):
            if len(frames) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return np.diff(frames[:, 0, 0, 0].astype(np.float32), prepend=0)

    frames = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 3), np.uint8)
    chunks = [[frames[i:i + 4]] * 3 for i in range(0, 9, 4)]
    found = []
    for Change.most in (9, 3):
        extractors = Extractors(BrightnessGrounder(), BrightnessEncoder(), 4, [Change()])
        with pytest.warns(UserWarning, match="Change is out of memory") if Change.most == 3 else nullcontext():
            found.append(extract_features(chunks, extractors, [["dog"]]))
    assert np.array_equal(found[0].features["change"], np.diff(frames[:, 0, 0, 0].astype(np.float32), prepend=0))
    assert np.array_equal(found[0].features["change"], found[1].features["change"])


# --- files that can't be read for a moment ----------------------------------------------------------------------------

@pytest.mark.parametrize("code, times", [("ESTALE", 2), ("EMFILE", 2), ("ETIMEDOUT", 2), ("ENOENT", 2), ("EIO", 1)])
def test_a_hiccup_of_a_file_server_costs_no_clip(sound_run, videos, tmp_path, flaky, code, times):
    manifest, _, wanted = sound_run
    looks = flaky(code, times)
    extract(manifest, videos, tmp_path / "out", shard_size=SHARD_SIZE, retry=HASTE)
    assert contents(tmp_path / "out") == wanted and looks.stat().st_size == CLIPS + times


@pytest.mark.parametrize("code", ["ENOTCONN", "EIO"])
def test_one_that_lasts_ends_the_run_and_lists_nothing(sound_run, videos, tmp_path, monkeypatch, flaky, code):
    manifest, order, wanted = sound_run
    flaky(code, 10_000)
    monkeypatch.setattr("vta_sam.dataset.extraction.worker.is_readable", lambda path: False)
    with pytest.raises(EndOfRun, match=r"good.mp4 can't be read, in 3 attempts: " + os.strerror(getattr(errno, code))):
        extract(manifest, videos, tmp_path / "out", shard_size=SHARD_SIZE, retry=HASTE)
    assert not shards(tmp_path / "out") and not listed(tmp_path / "out")
    flaky(code)
    extract(manifest, videos, tmp_path / "out", shard_size=SHARD_SIZE, retry=HASTE)
    assert contents(tmp_path / "out") == wanted


def test_an_error_of_the_disk_beside_a_video_is_no_clip_s_either(sound_run, videos, tmp_path):
    class Reads(BrightnessGrounder):
        """As the oracle does, which reads a file beside the video."""

        def for_clip(self, video, **_):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(video.with_suffix(".json")))

    with pytest.raises(EndOfRun, match="Input/output error"):
        extract(sound_run[0], videos, tmp_path / "out", grounder=Reads(), retry=HASTE)


def test_a_file_that_was_cut_off_is_no_file_server_s_fault(make_video, videos, tmp_path):
    """FFmpeg says EIO of this one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "cut.mkv", sound=np.random.default_rng(0).uniform(-0.3, 0.3, 16_000))
    os.truncate(folder / "cut.mkv", 300)
    (folder / "good.mp4").symlink_to(videos / "good.mp4")
    manifest, order = manifest_of(tmp_path, ["a dog"] * 2, ["good.mp4", "cut.mkv"])
    info = extract(manifest, folder, tmp_path / "out", retry=RetryPolicy(wait_s=1e6))
    assert info.records("train") == 1 and "Input/output error" in listed(tmp_path / "out")[order[1]]["reason"]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_share_that_is_unmounted_is_waited_for(sound_run, videos, tmp_path, monkeypatch, empty, comes_back):
    manifest, _, wanted = sound_run
    mounted, away = tmp_path / "videos", tmp_path / "away"
    away.mkdir()
    (away / "good.mp4").write_bytes((videos / "good.mp4").read_bytes())
    away.rename(mounted)
    pauses = []

    def unmount(done, *_):
        if done == SHARD_SIZE and not away.exists():
            mounted.rename(away)
            if empty:
                mounted.mkdir()

    def mount(pause_s):
        pauses.append(pause_s)
        if comes_back:
            away.replace(mounted)

    monkeypatch.setattr("vta_sam.dataset.extraction.worker.time", SimpleNamespace(sleep=mount))
    retry = RetryPolicy(attempts=4, wait_s=1.0)
    out = tmp_path / "out"
    if comes_back:
        extract(manifest, mounted, out, shard_size=SHARD_SIZE, retry=retry, progress=unmount)
        assert pauses == [1.0]
    else:
        words = "its folder is empty now" if empty else "its folder can't be listed"
        with pytest.raises(EndOfRun, match=f"good.mp4 can't be read, in 4 attempts: {words}"):
            extract(manifest, mounted, out, shard_size=SHARD_SIZE, retry=retry, progress=unmount)
        assert pauses == [1.0, 2.0, 4.0] and shards(out) == ["train-000000.tar"] and not listed(out)
        away.replace(mounted)
        extract(manifest, mounted, out, shard_size=SHARD_SIZE, retry=retry)
    assert contents(out) == wanted


# --- shards of which most failed --------------------------------------------------------------------------------------

def test_a_shard_of_which_most_clips_failed_is_not_written(videos, tmp_path):
    good, bad = ["good.mp4"] * 4, ["missing.mp4"] * 4
    manifest, order = manifest_of(tmp_path, ["a dog"] * 24, [*good, *bad, *good, *good, *bad, *bad[:1], *good[:3]])
    out = tmp_path / "out"
    with pytest.raises(EndOfRun, match="train-000002.tar was not written, since 5 of its 8 clips failed: 5 × … doesn't "
                                       "exist.*commit_mostly_failed=true"):
        extract(manifest, videos, out, shard_size=8)
    assert shards(out) == ["train-000000.tar", "train-000001.tar"] and set(listed(out)) == set(order[4:8])
    before = contents(out)
    with pytest.raises(EndOfRun, match="5 of its 8"):
        extract(manifest, videos, out, shard_size=8)
    assert contents(out) == before, "it comes again, and nothing is lost"
    extract(manifest, videos, out, shard_size=8, commit_mostly_failed=True, rank=0, world=2)
    info = extract(manifest, videos, out, shard_size=8, commit_mostly_failed=True, rank=1, world=2)
    assert info.records("train") == 15 and len(listed(out)) == 9
    whole = contents(out)
    assert {name: whole[name] for name in before} == before


def test_trying_again_needs_no_leave_where_no_more_fail_than_before(videos, tmp_path):
    own = tmp_path / "videos"
    own.mkdir()
    (own / "good.mp4").symlink_to(videos / "good.mp4")
    manifest, order = manifest_of(tmp_path, ["a dog"] * 8, ["good.mp4"] * 2 + ["one.mp4"] + ["missing.mp4"] * 5)
    out = tmp_path / "out"
    extract(manifest, own, out, shard_size=8, commit_mostly_failed=True)
    before = contents(out)
    extract(manifest, own, out, shard_size=8, retry_failed=True)
    assert contents(out) == before
    (own / "one.mp4").symlink_to(videos / "good.mp4")
    info = extract(manifest, own, out, shard_size=8, retry_failed=True)
    assert info.records("train") == 3 and set(listed(out)) == set(order[3:])
    assert [clip.key for clip in read_shard(out / "train-000000.tar")] == order[:3]
