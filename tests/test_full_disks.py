"""A disk that fills up at once, halfway or at the end, and a folder that can't be written to: one sentence, nothing
half-written, and the same command goes on. Kills while a result is replaced leave the old one or the new one."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from comparison_pages import request_in
from test_extract import BrightnessEncoder, BrightnessGrounder, write_manifest
from test_generate_failures import MODEL, Played
from test_listening_make import write_systems
from test_plans import Split
from tiny_data import CODEC, build, write_dataset
from tiny_data import SPEC as CODEC_SPEC

from vta_sam.dataset.extraction.check import check_dataset, write_check
from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.shards.latents import encode_dataset
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.embedded.world import write_world
from vta_sam.evaluation.comparison import write_page
from vta_sam.evaluation.evaluate import Request, evaluate
from vta_sam.evaluation.listening.study_files import TestRequest, make_test
from vta_sam.evaluation.results import write_evaluation
from vta_sam.generation.inputs import read_record, videos_in
from vta_sam.generation.planning import Outputs, Prompt, SplitRequest
from vta_sam.generation.split import generate_split
from vta_sam.generation.videos import generate_caption, generate_videos
from vta_sam.media.guarded import Media
from vta_sam.runtime.errors import EndOfRun, InputError
from vta_sam.runtime.files import alone_in, write_bytes


class Disk:
    """Files under a folder may get so many bytes in all; ``used`` counts them. closed: it is read-only."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, limit: float = float("inf"), closed: bool = False):
        self.folder, self.limit, self.closed, self.used = folder, limit, closed, 0
        usual = {"open": builtins.open, "os.open": os.open, "mkdir": os.mkdir, "access": os.access}
        disk = self

        class File(io.FileIO):
            def write(self, data) -> int:
                size = len(memoryview(data).cast("B"))
                if disk.used + size > disk.limit:
                    super().write(memoryview(data).cast("B")[:max(0, int(disk.limit - disk.used))])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
                disk.used += size
                return super().write(data)

        def opened(file, mode="r", *given, **named):
            if not self._here(file) or not set("wax+") & set(mode):
                return usual["open"](file, mode, *given, **named)
            self._refuse(file)
            raw = File(file, mode.replace("t", "").replace("b", ""))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, named.get("encoding"),
                                                                 newline=named.get("newline"))

        def os_open(path, flags, *given, **named):
            if flags & (os.O_WRONLY | os.O_RDWR):
                self._refuse(path)
            return usual["os.open"](path, flags, *given, **named)

        def mkdir(path, *given, **named):
            if not os.path.exists(path):
                self._refuse(path)
            return usual["mkdir"](path, *given, **named)

        def access(path, mode, **named):
            return usual["access"](path, mode, **named) and not (self.closed and self._here(path) and mode & os.W_OK)

        for place, name, function in ((builtins, "open", opened), (io, "open", opened), (tarfile, "bltn_open", opened),
                                      (os, "open", os_open), (os, "mkdir", mkdir), (os, "access", access)):
            patch.setattr(place, name, function)

    def _here(self, path) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and Path(os.fsdecode(path)).is_relative_to(self.folder)

    def _refuse(self, path) -> None:
        if self.closed and self._here(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))


class PlayedMedia(Media):
    """FFmpeg writes without Python's files."""

    def mux(self, video: Path, waveform: np.ndarray, sample_rate_hz: int, out: Path, *_) -> Path:
        write_bytes(out, waveform.tobytes())
        return out


@pytest.fixture(scope="module")
def given(tmp_path_factory, make_video):
    """What the programs read."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "videos").mkdir()
    for i in range(2):
        sound = np.random.default_rng(i).uniform(-0.3, 0.3, 3_200)
        make_video(folder / "videos" / f"v{i}.mp4", duration_s=0.2, size=(16, 16), sound=sound)
    write_manifest(folder / "m.csv", [{"id": f"v{i}", "caption": "a dog"} for i in range(2)])
    write_dataset(folder / "shards", {"train": 3}, shard_records=1, duration_s=CODEC_SPEC.column_s)
    write_systems(folder / "systems", ("gt", "alpha"), clips=1)
    return folder


class Programs:
    """name ⇒ a run into a folder, without the reading of a command line."""

    def __init__(self, given: Path) -> None:
        self.given = given
        self.codec = build({**CODEC, "mel_mean": -5.0, "mel_std": 2.0})
        (given / "page").mkdir(exist_ok=True)
        self.page = request_in(given / "page", ("a",))
        self.checked = check_dataset(given / "shards")
        (given / "split").mkdir(exist_ok=True)
        self.split_shards = Split(given / "split").shards

    def videos(self, out: Path) -> None:
        videos = videos_in(self.given / "videos", out)
        outputs = Outputs(out, wav=True, picture=False)
        made = generate_videos(Played(), videos, Prompt(), outputs, MODEL, media=PlayedMedia())
        assert not any(outcome.failure for outcome in made)

    def caption(self, out: Path) -> None:
        generate_caption(Played(), Prompt("a dog"), out, MODEL, overwrite=False)

    def split(self, out: Path) -> None:
        assert not generate_split(Played(), SplitRequest(self.split_shards, "test", out), MODEL).failures

    def extraction(self, out: Path) -> None:
        Extraction(self.given / "m.csv", self.given / "videos", out, BrightnessGrounder(), BrightnessEncoder(), 12.5,
                   shard_size=1, workers=1).run()

    def latents(self, out: Path) -> None:
        encode_dataset(self.given / "shards", read_dataset(self.given / "shards"), self.codec, out)

    def check(self, out: Path) -> None:
        with alone_in(out):
            assert write_check(out, *self.checked, "title") == ""

    def world(self, out: Path) -> None:
        write_world(out, {"train": 1}, 0)

    def report(self, out: Path) -> None:
        with alone_in(out):
            write_evaluation(out, self.page.evaluation, [])

    def comparison(self, out: Path) -> None:
        self.page.out = out
        write_page(self.page)

    def listening(self, out: Path) -> None:
        systems = self.given / "systems"
        make_test(TestRequest({"alpha": systems / "alpha"}, systems / "gt", out, raters=1), faults={})


NAMES = ("videos", "caption", "split", "extraction", "latents", "check", "world", "report", "comparison", "listening")


@pytest.fixture(scope="module")
def programs(given):
    return Programs(given)


def contents(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.rglob("*") if path.is_file()}


def half_written(out: Path) -> list[str]:
    """Files that only an interrupted program leaves."""
    return [path.name for path in out.parent.rglob(".*") if path.name != ".extraction.lock"]


@contextmanager
def disk(folder: Path, **settings):
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(folder, patch, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills(name, programs, tmp_path):
    run: Callable[[Path], None] = getattr(programs, name)
    (tmp_path / "whole").mkdir()
    with disk(tmp_path / "whole") as undisturbed:
        run(tmp_path / "whole" / "out")
    expected = contents(tmp_path / "whole" / "out")
    assert undisturbed.used > 500 and len(expected) >= 2
    for percent in (0, 50, 99):
        place = tmp_path / f"{percent}"
        place.mkdir()
        with disk(place, limit=undisturbed.used * percent // 100), pytest.raises(InputError, match="no space left for"):
            run(place / "out")
        assert not half_written(place / "out"), percent
        made = contents(place / "out")
        assert all(made[file] == expected[file] for file in made if file in expected and "dataset" not in file), percent
        run(place / "out")
        assert contents(place / "out") == expected, percent


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_can_not_be_written_to(name, programs, tmp_path):
    for out in (tmp_path / "there", tmp_path / "closed" / "new"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with disk(tmp_path, closed=True), pytest.raises(InputError, match="can't be written") as refused:
            getattr(programs, name)(out)
        assert "\n" not in str(refused.value)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["there"]


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_kill_while_a_result_is_replaced_leaves_the_old_or_the_new(programs, tmp_path, overwrite):
    """At each rename in turn, as if the process were gone before it; clean-up is not reached either."""
    kills = 0
    for call in range(1, 20):
        out = tmp_path / f"{overwrite}{call}"
        programs.videos(out)
        before = contents(out)
        videos = {"v0": programs.given / "videos" / "v0.mp4"}
        if not overwrite:
            shutil.copytree(programs.given / "videos", tmp_path / f"cut{call}")
            videos = {"v0": tmp_path / f"cut{call}" / "v0.mp4"}
            with open(videos["v0"], "ab") as file:
                file.write(b"\0" * 8)  # it is another one now
        quiet, calls, replace = Played(), [], os.replace
        quiet.level = 0.25

        def killed(source, target):
            calls.append(target)
            if len(calls) >= call:
                raise Killed
            replace(source, target)

        def again() -> list:
            return generate_videos(quiet, videos, Prompt(), Outputs(out, wav=True, picture=False, overwrite=overwrite),
                                   MODEL, media=PlayedMedia())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            try:
                again()
            except Killed:
                kills += 1
            else:
                break
        record = read_record(out / "v0.json")
        assert record["written"] == "v0.mp4", "one of the two is there"
        new = record["level"]["peak"] < 0.3
        if not new:
            now = contents(out)
            assert all(now[file] == before[file] for file in before), "the old one is whole, with its record"
        [outcome] = again()
        assert not outcome.failure and all(".partial" in name for name in half_written(out))
        assert outcome.skipped is (new and not overwrite)
        after = {file: content for file, content in contents(out).items() if ".partial" not in file}
        assert set(after) == set(before) and all(after[file] != before[file] for file in before if "v0" in file)
        assert all(after[file] == before[file] for file in before if "v1" in file)
    assert kills >= 4


def test_a_full_disk_is_no_sound_files_fault(tmp_path, given):
    """The cache of an evaluation: with skip_bad every file would count as bad."""
    systems = given / "systems"
    asked = Request({"alpha": systems / "alpha"}, systems / "gt", cache=tmp_path / "cache", skip_bad=True,
                    set_resamples=20, resamples=100)
    with disk(tmp_path, limit=10), pytest.raises(EndOfRun, match="cache=.*No space left.*cache=null"):
        evaluate(asked)
    assert list(evaluate(asked)[0].systems) == ["alpha"]
