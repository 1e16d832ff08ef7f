"""Shares of an array: runs of shards, claims where files can't be locked, and requests to stop that requeue the job."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from damaged_videos import SIZE, noise, textured
from forks import Fork
from processes import session_of, survivors
from programs import call
from test_extract import BrightnessEncoder, BrightnessGrounder

from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.manifests.manifest import Row, write_manifest
from vta_sam.runtime.files import claimed
from vta_sam.runtime.work_plan import share_of

CLIPS, SHARD_SIZE = 10, 2


@pytest.fixture(scope="module")
def corpus(make_video, tmp_path_factory):
    """⇒ (manifest, its videos): six shards of short clips."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(CLIPS):
        seconds = 0.4 + 0.04 * i
        make_video(folder / f"{i}.mp4", size=SIZE, duration_s=seconds, picture=textured(rng), sound=noise(seconds, rng))
        rows.append(Row(f"clip-{i}", "a dog barks", f"{i}.mp4", split="val" if i == 3 else "train"))
    return write_manifest(folder / "manifest.csv", rows), folder


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def tars_in(out: Path) -> int:
    return sum(name.endswith(".tar") and name[0] != "." for name in os.listdir(out)) if out.exists() else 0


def extraction(corpus, out, **settings) -> Extraction:
    return Extraction(*corpus, out, BrightnessGrounder(), BrightnessEncoder(), 12.5, SHARD_SIZE, 1, **settings)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("alone")
    extraction(corpus, out).run()
    assert len(list(out.glob("*.tar"))) == 6
    return contents(out)


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("count, world", [(0, 1), (7, 1), (7, 3), (13, 2), (3, 5), (3125, 196)])
def test_shares_part_everything_evenly(count, world, consecutive):
    shares = [share_of(count, rank, world, consecutive) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and max(map(len, shares)) == -(-count // world)
    if consecutive:
        assert [i for share in shares for i in share] == list(range(count)), "each is a range"


@pytest.mark.parametrize("world", [4, 9])
def test_runs_of_shards_make_what_one_process_makes(corpus, alone, tmp_path, world):
    seen = set()
    for rank in reversed(range(world)):
        extraction(corpus, tmp_path, rank=rank, world=world, consecutive=True).run()
        made = {name for name in contents(tmp_path) if name.endswith(".tar")} - seen
        names = sorted(name for name in alone if name.endswith(".tar"))
        assert made == {names[i] for i in share_of(6, rank, world, consecutive=True)}
        seen |= made
    assert contents(tmp_path) == alone


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def lockless(request, tmp_path, monkeypatch):
    """A folder whose file system can't lock files."""
    folder, lock = tmp_path / "lockless", fcntl.flock
    folder.mkdir()

    def flock(file, operation):
        number = file if isinstance(file, int) else file.fileno()
        if Path(os.readlink(f"/proc/self/fd/{number}")).is_relative_to(folder):
            code = getattr(errno, request.param)
            raise OSError(code, os.strerror(code))
        return lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at files by /proc")
def test_what_a_machine_left_behind_holds_nothing_up_where_files_cannot_be_locked(corpus, alone, lockless):
    """The lock file of a machine that went away can't be told from one that is in use."""
    for name in alone:
        mark = lockless / f".{name}.claim.soft"
        mark.write_text(f"{os.getpid()}\nanother-{socket.gethostname()}\n")
        os.utime(mark, (time.time() - 3600,) * 2)
    for rank in range(3):
        extraction(corpus, lockless, rank=rank, world=3, consecutive=True).run()
    assert contents(lockless) == alone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at files by /proc")
def test_processes_of_one_machine_are_kept_apart_where_files_cannot_be_locked(lockless):
    path = lockless / "train-000000.tar"
    with claimed(path, repeatable=True) as mine, claimed(path, repeatable=True) as theirs:
        assert mine and not theirs
        with claimed(lockless / "train-000001.tar", repeatable=True) as other:
            assert other
    with claimed(path, repeatable=True) as mine:
        assert mine
    assert list(lockless.iterdir()) == []


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The task 3 of job 17, and a scontrol that notes what it is told ⇒ the file that it notes it in."""
    program, told = tmp_path / "bin" / "scontrol", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    for name, value in {"JOB_ID": "20", "ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield told
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("program, arguments", [
    ("data_prep/extract.py", ["videos=.", "out=o", "rank=1", "world=2", "consecutive=true"]),
    ("data_prep/encode_latents.py", ["vae=v", "shards=s"]), ("experiments/generate.py", ["shards=s", "out=o"]),
])
@pytest.mark.parametrize("number, told", [(signal.SIGUSR1, "requeue 17_3\n"), (signal.SIGTERM, None)])
def test_each_program_that_parts_its_work_ends_when_asked_to(program, arguments, number, told, scontrol, tmp_path,
                                                             monkeypatch):
    def stop(*given):
        try:
            os.kill(os.getpid(), number)
        except Exception:  # one clip's error would be listed here
            return None

    for name in ("share_of_work", "choose_device"):
        monkeypatch.setattr(f"vta_sam.runtime.distributed.{name}", stop)
    done = call(program, *arguments, cwd=tmp_path)
    assert done.returncode == 75 and "asked to stop: what is finished is kept" in done.stderr, done
    assert ("job 17_3 goes back into the queue" in done.stderr) == bool(told)
    assert (scontrol.read_text() if scontrol.exists() else None) == told


def test_a_request_to_requeue_waits_until_the_program_can(scontrol, tmp_path, monkeypatch):
    early = []
    signal.signal(signal.SIGUSR1, lambda number, frame: early.append(number))
    main = threading.main_thread().ident  # a program has no other thread before; other tests may have left some here
    monkeypatch.setattr("vta_sam.runtime.cluster.launch.check", lambda *_: signal.pthread_kill(main, signal.SIGUSR1))
    done = call("data_prep/encode_latents.py", "vae=v", "shards=s", cwd=tmp_path)
    assert done.returncode == 75 and not early and scontrol.read_text() == "requeue 17_3\n", done
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "as it was before"


def test_a_share_that_was_left_to_another_process_is_not_done(corpus, tmp_path):
    arguments = ["data_prep/extract.py", f"videos={corpus[1]}", "out=out", "grounder=none", "encoder=tiny", "fps=4",
                 f"shard_size={SHARD_SIZE}", "workers=1", "consecutive=true", "world=3"]
    with claimed(tmp_path / "out" / "train-000000.tar"), pytest.warns(UserWarning, match="another process"):
        left = call(*arguments, "rank=0", cwd=tmp_path)
    assert left.returncode == 75, left
    for rank, status in ((1, 0), (2, 0), (0, 0)):
        assert call(*arguments, f"rank={rank}", cwd=tmp_path).returncode == status
        assert (tmp_path / "out" / "dataset.json").exists() == (rank == 0), "the last writes it"


def script(program: str, arguments: list[str], cwd: Path) -> None:
    """A script whose tars are written as to a slow disk, so that signals fall into its work."""
    write = tarfile.TarFile.addfile

    def write_slowly(tar, *member):
        write(tar, *member)
        time.sleep(0.05)

    tarfile.TarFile.addfile = write_slowly
    done = call(program, *arguments, cwd=cwd)
    print(done.stdout, done.stderr)
    sys.exit(done.returncode)


def until(happened, limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by /proc")
@pytest.mark.parametrize("number, told", [(signal.SIGUSR1, "requeue 17_3\n"), (signal.SIGTERM, None)])
def test_an_extraction_that_is_asked_to_stop_goes_on_to_the_same_bytes(corpus, tmp_path, scontrol, number, told):
    manifest, videos = corpus
    arguments = [f"manifest={manifest}", f"videos={videos}", "grounder=tiny", "encoder=tiny", "fps=4",
                 f"shard_size={SHARD_SIZE}", "workers=1"]
    for out in ("whole", "stopped"):
        process = Fork(script, "data_prep/extract.py", [*arguments, f"out={out}"], tmp_path, folder=tmp_path)
        if out == "stopped":
            def two_shards() -> bool:
                """SLURM signals all processes of a step, in any order: here the decoders first, from their start on."""
                for child, command in session_of(process.pid).items():
                    if "vta_sam.media.decoding" in command:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, number)
                return tars_in(tmp_path / out) > 1

            until(two_shards)
            os.kill(process.pid, number)
            assert process.wait(60) == 75, process.read()
            assert "asked to stop: what is finished is kept" in process.read()
            assert not survivors(lambda: session_of(process.pid), 10.0)
            assert 1 < tars_in(tmp_path / out) < 6 and not list((tmp_path / out).glob(".*.partial*"))
            assert (scontrol.read_text() if scontrol.exists() else None) == told
            process = Fork(script, "data_prep/extract.py", [*arguments, f"out={out}"], tmp_path, folder=tmp_path)
        assert process.wait(120) == 0, process.read()
        process.close()
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
