"""The folder of shards while it is made: failed clips tried again, a full disk, and what kills leave behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import rich.console
from forks import Fork
from programs import call
from test_extract import BrightnessEncoder, BrightnessGrounder, contents, extract, write_manifest

import vta_sam.dataset.extraction.extract as extraction
import vta_sam.dataset.extraction.shard_folder as output
import vta_sam.runtime.progress as report
from vta_sam.dataset.extraction.check import check_dataset
from vta_sam.dataset.extraction.shard_folder import ShardFolder, failures, summary
from vta_sam.dataset.manifests.manifest import read_manifest, slices
from vta_sam.dataset.shards.records import read_shard
from vta_sam.dataset.shards.schema import DatasetInfo, read_dataset
from vta_sam.perception.captions import noun_rules
from vta_sam.runtime import files
from vta_sam.runtime.errors import EndOfRun, InputError
from vta_sam.runtime.work_plan import Deed


def counting_grounder():
    """A grounder whose ``frames`` are the number of frames that it got."""
    grounder = BrightnessGrounder()
    grounder.frames, ground = 0, grounder.ground

    def counted(frames, objects):
        grounder.frames += len(frames)
        return ground(frames, objects)

    grounder.ground = counted
    return grounder


@pytest.fixture
def world(make_video, tmp_path):
    """⇒ (videos, manifest): six clips in two shards; the file of one in each is no video."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(6):
        sound = np.random.default_rng(i).uniform(-0.3, 0.3, 8_000)
        make_video(videos / f"v{i}.mp4", duration_s=0.5, sound=sound)
    manifest = write_manifest(tmp_path / "manifest.csv", [{"id": f"v{i}", "caption": "a dog"} for i in range(6)])
    for part in slices(read_manifest(manifest), 3):
        video = videos / part.rows[1].path
        video.rename(video.with_suffix(".later"))
        video.write_bytes(b"not yet fetched")
    return videos, manifest


def mend(videos: Path) -> None:
    for later in videos.glob("*.later"):
        os.replace(later, later.with_suffix(".mp4"))


@pytest.fixture
def mended(world, tmp_path):
    """What a run over the whole videos makes."""
    def make() -> dict[str, bytes]:
        videos, manifest = world
        mend(videos)
        extract(manifest, videos, tmp_path / "mended")
        return contents(tmp_path / "mended")
    return make


def test_failed_clips_are_tried_again_and_the_others_are_not(world, mended, tmp_path):
    videos, manifest = world
    out, grounder = tmp_path / "out", counting_grounder()
    info = extract(manifest, videos, out, grounder=grounder)
    assert info.records("train") == 4 and sum(s.failed for s in info.splits["train"]) == 2
    before, a_clip = contents(out), grounder.frames // 4
    mend(videos)
    extract(manifest, videos, out, grounder=grounder)
    assert contents(out) == before and grounder.frames == 4 * a_clip, "without retry_failed nothing is touched"
    steps = []
    info = extract(manifest, videos, out, grounder=grounder, retry_failed=True, progress=lambda *s: steps.append(s))
    assert info.records("train") == 6 and grounder.frames == 6 * a_clip, "only the failed clips are looked at"
    assert contents(out) == mended(), "as if the files had been whole from the first"
    assert steps[-1] == (6, 6, 0)


def test_clips_that_fail_again_stay_listed(world, tmp_path):
    videos, manifest = world
    extract(manifest, videos, tmp_path / "out")
    before = contents(tmp_path / "out")
    extract(manifest, videos, tmp_path / "out", retry_failed=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_a_retry_that_is_cut_short_loses_nothing(world, mended, tmp_path, monkeypatch, damaged):
    """Stopped between setting a shard aside and committing it, and the next run doesn't even ask for a retry."""
    videos, manifest = world
    out = tmp_path / "out"
    extract(manifest, videos, out)
    mend(videos)
    with monkeypatch.context() as patch:
        patch.setattr(output, "write_records", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extract(manifest, videos, out, retry_failed=True)
    aside = sorted(out.glob("*.tar.before"))
    assert len(aside) == 2 and not (out / "dataset.json").exists() and not list(out.glob("*.tar"))
    if damaged:
        aside[0].write_bytes(aside[0].read_bytes()[:700])
    grounder = counting_grounder()
    extract(manifest, videos, out, grounder=grounder)
    assert contents(out) == mended()
    seen = 4 if damaged else 2  # a shard that can't be read again is made anew
    assert not list(out.glob("*.before"))
    clips = sum(len(clip.probs) for shard in out.glob("*.tar") for clip in read_shard(shard))
    assert grounder.frames * 6 == clips * seen


def test_what_a_finished_retry_left_is_removed(world, tmp_path):
    """Killed after the new tar was in place, before the old one was gone."""
    videos, manifest = world
    out = tmp_path / "out"
    extract(manifest, videos, out)
    expected = contents(out)
    shutil.copy(out / "train-000000.tar", out / "train-000000.tar.before")
    extract(manifest, videos, out)
    assert contents(out) == expected


def test_a_full_disk_stops_with_a_sentence_and_keeps_what_is_done(world, tmp_path, monkeypatch):
    videos, manifest = world
    whole = tmp_path / "whole"
    extract(manifest, videos, whole)
    out, write = tmp_path / "out", output.write_records

    def write_until_full(path, records):
        if list(out.glob("*.tar")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(output, "write_records", write_until_full)
        with pytest.raises(InputError, match="no space left for .*out .*the same command goes on"):
            extract(manifest, videos, out)
    [done] = out.glob("*.tar")
    assert done.read_bytes() == (whole / done.name).read_bytes() and not list(out.glob(".*partial*"))
    extract(manifest, videos, out)
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_disk_that_is_really_full(world, tmp_path):
    """On a small file system, with room for one shard: the command ends with status 2, and goes on once it grew."""
    videos, manifest = world
    mend(videos)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=88k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs to be root, outside of most containers")
    command = ["data_prep/extract.py", f"videos={videos}", f"manifest={manifest}", f"out={disk / 'shards'}",
               "grounder=tiny", "encoder=tiny", "fps=4", "shard_size=3"]
    try:
        stopped = call(*command, cwd=tmp_path)
        assert stopped.returncode == 2 and "no space left" in stopped.stderr and "Traceback" not in stopped.stderr
        for shard in (disk / "shards").glob("*.tar"):
            assert len(list(read_shard(shard))) == 3
        assert not list((disk / "shards").glob(".*partial*"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert call(*command, cwd=tmp_path).returncode == 0
        assert read_dataset(disk / "shards").records("train") == 6
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def leave_partial(out: Path, age_s: float) -> Path:
    path = out / ".train-000000.0123abcd.partial.tar"
    path.write_bytes(b"half a shard")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_a_kill_left_is_swept_away_unless_someone_is_at_it(world, tmp_path):
    videos, manifest = world
    out = tmp_path / "out"
    extract(manifest, videos, out)
    fresh = leave_partial(out, 1)
    extract(manifest, videos, out)
    assert fresh.exists(), "another worker may be writing it"
    old = leave_partial(out, 3600)
    with open(out / ".extraction.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as another worker holds it
        extract(manifest, videos, out)
        assert old.exists()
    extract(manifest, videos, out)
    assert not old.exists()


def test_errors_of_one_clip_are_listed_and_the_summary_names_them(world, tmp_path, capsys):
    """Of whatever kind: the others go on, and the first are said with the place of the list."""
    class Picky(BrightnessGrounder):
        def for_clip(self, video, **_):
            if video.stem in ("v0", "v2"):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(video))
            return self

    videos, manifest = world
    out = tmp_path / "out"
    info = extract(manifest, videos, out, grounder=Picky())
    listed = {entry["id"]: entry["reason"] for path in out.glob("*.jsonl") for entry in failures(path)}
    failed = sum(shard.failed for shard in info.splits["train"])
    assert {"v0", "v2"} <= set(listed) and failed == len(listed) and "Too many levels" in listed["v0"]
    rich.console.Console(width=200).print(summary(info, out))
    said = capsys.readouterr().out
    assert "v0" in said and "Too many levels" in said and f"{out}/*.failed.jsonl" in said
    full = BrightnessGrounder()
    full.for_clip = lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(EndOfRun, match="no space left"):
        extract(manifest, videos, tmp_path / "full", grounder=full)


def folder_of(out: Path, fps: float) -> ShardFolder:
    info = DatasetInfo("g-1", "e-1", fps, 16_000, 1, 1, 1, f"{fps}", "m", "0")
    return ShardFolder(out, info, {"fps": fps}, [])


@pytest.mark.parametrize("links", [True, False])
def test_of_two_configs_that_begin_a_folder_at_once_one_is_refused(tmp_path, monkeypatch, links):
    """The second looks before the first has written, and writes after it."""
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    first, second = folder_of(tmp_path / "out", 8.0), folder_of(tmp_path / "out", 12.5)
    write = output.write_new

    def overtaken(path, text):
        monkeypatch.setattr(output, "write_new", write)
        with first.begun():
            return write(path, text)

    monkeypatch.setattr(output, "write_new", overtaken)
    with pytest.raises(InputError, match="begun with another config .fps 8.0 then, 12.5 now"), second.begun():
        pass
    with folder_of(tmp_path / "out", 8.0).begun():
        assert not list((tmp_path / "out").glob(".*partial*"))
    assert '"fps": 8.0' in (tmp_path / "out" / output.STATE_FILE).read_text()


def claim(out: Path, fps: float, go: Path) -> None:
    while not go.exists():
        time.sleep(0.001)
    with folder_of(out, fps).begun():
        print("begun")


def test_of_two_processes_with_two_configs_one_gets_the_folder(tmp_path):
    for attempt in range(5):
        out, go = tmp_path / f"out{attempt}", tmp_path / f"go{attempt}"
        processes = [Fork(claim, out, fps, go) for fps in (8.0, 12.5)]
        go.touch()
        try:
            ends = [process.wait(120) for process in processes]
            said = [process.read() for process in processes]
        finally:
            for process in processes:
                process.close()
        assert sorted(end != 0 for end in ends) == [False, True], said
        assert sum("begun with another config" in text for text in said) == 1


def test_a_dataset_of_an_earlier_release_gets_what_made_it_and_reads_no_video(world, tmp_path):
    videos, manifest = world
    out = tmp_path / "out"
    extract(manifest, videos, out)
    whole = contents(out)
    content = json.loads(whole["dataset.json"])
    assert content["format_version"] == 2 and content["nouns"] == noun_rules()
    assert content["recipes"] and content["settings"] == {}
    early = {name: value for name, value in content.items() if name not in ("nouns", "recipes", "settings")}
    (out / "dataset.json").write_text(json.dumps({**early, "format_version": 1}))
    assert "the recipes of its extractors" in read_dataset(out).lacks
    shutil.rmtree(videos)
    videos.mkdir()
    grounder = counting_grounder()
    asked = extraction.Extraction(manifest, videos, out, grounder, BrightnessEncoder(), 12.5, 3, 1)
    assert [(item.name, item.deed) for item in asked.planned().plan.items if item.deed is not Deed.KEEP] == [
        ("dataset.json", Deed.MAKE_AGAIN)]
    assert extract(manifest, videos, out, grounder=grounder).lacks == "" and grounder.frames == 0
    assert contents(out) == whole and {item.deed for item in asked.planned().plan.items} == {Deed.KEEP}


def test_other_rules_for_nouns_are_another_config(world, tmp_path, monkeypatch):
    """A folder that was begun before they had a version goes on by version 1."""
    videos, manifest = world
    extract(manifest, videos, tmp_path / "out")
    assert "noun_rules" not in json.loads((tmp_path / "out" / output.STATE_FILE).read_text())["config"]
    monkeypatch.setattr(extraction, "NOUN_RULES_VERSION", 2)
    with pytest.raises(InputError, match="begun with another config .noun_rules None then, 2 now"):
        extract(manifest, videos, tmp_path / "out")


def test_nouns_beyond_eight_are_counted(world, tmp_path):
    videos, _ = world
    caption = "a boy, a girl, a dog, a cat, a bird, a cow, a pig, a horse, a sheep and a goat"
    rows = [{"id": "many", "caption": caption, "path": "v0.mp4"}, {"id": "few", "caption": "a dog", "path": "v0.mp4"},
            {"id": "named", "caption": caption, "path": "v0.mp4", "objects": "dog"}]
    mend(videos)
    extract(write_manifest(tmp_path / "many.csv", rows), videos, tmp_path / "out")
    found = {clip.key: clip.dropped for clip in read_shard(tmp_path / "out" / "train-000000.tar")}
    assert found == {"many": 2, "few": 0, "named": 0}
    statistics, _ = check_dataset(tmp_path / "out")
    assert statistics.to_dict()["left_out_nouns"] == {"clips": 1, "nouns": 2}


def test_failures_that_cannot_be_read_are_said_so(tmp_path):
    (tmp_path / "x.failed.jsonl").write_text("{")
    with pytest.raises(InputError, match="delete it and its tar"):
        failures(tmp_path / "x.failed.jsonl")


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    """Where there is no terminal. What earlier runs did doesn't count as speed."""
    seconds = iter([0.0, 10.0, 30.0, 61.0, 100.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(seconds))
    with report.terminal_progress("clips into out") as progress:
        for done in (100, 110, 130, 161, 200):
            progress(done, 200, 3)
    assert capsys.readouterr().out.splitlines() == [
        "clips into out: 100/200, 3 failed",
        "clips into out: 161/200, 1.0 clips/s, 0:00:39 left, 3 failed",
        "clips into out: 200/200, 1.0 clips/s, 0:00:00 left, 3 failed"]


@pytest.mark.parametrize("pace, said", [(12.34, "12.3 clips/s"), (0.5, "0.5 clips/s"), (0.0139, "71.9 s a clip")])
def test_a_slow_pace_is_told_in_seconds(pace, said):
    assert report.pace(pace) == said
