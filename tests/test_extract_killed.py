"""Extraction that is killed again and again ends in the bytes of one that wasn't, and leaves nobody and nothing behind.

Kills are SIGKILL to the process that extracts; its decoding children have to notice by themselves.
"""

import itertools
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from conftest import REPOSITORY, write_video
from damaged_videos import SIZE, noise, textured
from forks import Fork
from processes import session_of, survivors

from vta_sam.dataset.extraction.extract import extract_dataset
from vta_sam.dataset.manifests.manifest import Row, write_manifest
from vta_sam.dataset.shards.schema import read_dataset

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by /proc")]
GOOD, BROKEN, SHARD_SIZE, WORLD, FPS = 24, 5, 4, 2, 4.0
SHARDS = -(-(GOOD + BROKEN) // SHARD_SIZE)
PATIENCE_S = 10.0  # for a child that is still starting up when its parent dies, on a busy machine


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest, and its videos of a second or so, a few of them broken."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(GOOD + BROKEN):
        path, seconds = folder / f"{i:02d}.mp4", 0.6 + 0.02 * i
        write_video(path, size=SIZE, duration_s=seconds, picture=textured(rng), sound=noise(seconds, rng))
        if i >= GOOD:
            path.write_bytes(path.read_bytes()[:2000])
        rows.append(Row(f"clip-{i:02d}", "a dog barks", path.name, split="val" if i % 9 == 0 else "train"))
    return write_manifest(folder / "manifest.csv", rows), folder


class Scripts:
    """The processes of a run, started as a user does."""

    def __init__(self, corpus, out):
        self.corpus, self.out = corpus, out

    def start(self, rank):
        manifest, videos = self.corpus
        command = [sys.executable, REPOSITORY / "data_prep" / "extract.py", f"manifest={manifest}", f"videos={videos}",
                   f"out={self.out}", "grounder=tiny", "encoder=tiny", f"fps={FPS}", f"shard_size={SHARD_SIZE}",
                   "workers=2", f"rank={rank}", f"world={WORLD}"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(list(map(str, command)), env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, start_new_session=True)


class Forks:
    """The same processes with what they import already there, so that they are at work at once."""

    def __init__(self, corpus, out, **settings):
        self.corpus, self.out, self.settings = corpus, out, settings

    def start(self, rank):
        return Fork(extract_here, *self.corpus, self.out, rank, self.settings)


def extract_here(manifest, videos, out, rank, settings):
    from vta_sam.embedded.extractors import TinyEncoder, TinyGrounder

    write = tarfile.TarFile.addfile

    def write_slowly(tar, *member):
        """As to a slow disk, so that kills fall into the midst of a tar."""
        write(tar, *member)
        tar.fileobj.flush()
        time.sleep(5e-3)

    tarfile.TarFile.addfile = write_slowly
    extract_dataset(manifest, videos, out, TinyGrounder(), TinyEncoder(), FPS, shard_size=SHARD_SIZE, workers=2,
                    rank=rank, world=WORLD, **settings)


def names(out):
    try:
        return {entry.name for entry in os.scandir(out)}
    except FileNotFoundError:
        return set()


def partials(out):
    return {name for name in names(out) if ".partial" in name}


def contents(out):
    return {name: (out / name).read_bytes() for name in names(out) - partials(out)}


def run_undisturbed(program):
    began = time.monotonic()
    processes = [program.start(rank) for rank in range(WORLD)]
    assert [process.wait() for process in processes] == [0] * WORLD
    return time.monotonic() - began


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """What two undisturbed processes make."""
    out = tmp_path_factory.mktemp("reference") / "out"
    run_undisturbed(Forks(corpus, out))
    made = contents(out)
    assert sum(name.endswith(".tar") for name in made) == SHARDS and not partials(out)
    assert sum(content.count(b"\n") for name, content in made.items() if name.endswith(".jsonl")) == BROKEN
    assert {"dataset.json", "extraction.json"} <= made.keys()
    return made


class Killer:
    """Starts the processes of a run, kills them, and starts them again until they are done."""

    def __init__(self, program, reference):
        self.program, self.out, self.reference = program, program.out, reference
        self.processes = {}
        self.kills = 0

    def live_until(self, instant, victims, limit_s=60.0):
        """Start who isn't running, wait for ``instant()``, and kill ``victims``. ⇒ False when all ended before."""
        for rank in range(WORLD):
            if rank not in self.processes:
                self.processes[rank] = self.program.start(rank)
        end = time.monotonic() + limit_s
        while not instant() and any(process.poll() is None for process in self.processes.values()):
            assert time.monotonic() < end, "it hangs"
            time.sleep(5e-4)
        statuses = {rank: process.poll() for rank, process in self.processes.items()}
        assert set(statuses.values()) <= {None, 0}, statuses  # a run that follows a kill doesn't stumble
        if all(status == 0 for status in statuses.values()):
            self.processes.clear()
            return False
        for rank in victims:
            process = self.processes.pop(rank)
            process.kill()
            self.kills += process.wait() == -signal.SIGKILL
            left = survivors(lambda: session_of(process.pid), PATIENCE_S)
            assert not left, f"outlived its parent: {left}"
        self.check_what_is_there()
        return True

    def check_what_is_there(self):
        """Whoever else may be at work: a tar that is there is whole, and so is its list of failures."""
        there = names(self.out)
        for name in there:
            if name.endswith(".tar") and ".partial" not in name:
                listed = name.replace(".tar", ".failed.jsonl")
                assert (self.out / name).read_bytes() == self.reference[name]
                assert (self.out / listed).read_bytes() == self.reference[listed]

    def finish(self):
        """Let them run to their end, and compare."""
        while self.live_until(lambda: False, ()):
            pass
        assert contents(self.out) == self.reference

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def killer_of():
    killers = []

    def make(program, reference):
        killers.append(Killer(program, reference))
        return killers[-1]

    yield make
    for killer in killers:
        killer.end()


def after(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def sweep(out, reference, program):
    """Temporary files of the killed are gone after a later run, once they are old; and so nothing else has changed."""
    (out / ".train-000001.0badf00d.partial.tar").write_bytes(b"half a shard")
    for name in partials(out):
        os.utime(out / name, (time.time() - 3600,) * 2)
    run_undisturbed(program)
    assert not partials(out) and contents(out) == reference


def test_scripts_killed_anywhere_go_on_to_the_same_bytes(corpus, reference, killer_of, tmp_path):
    out = tmp_path / "out"
    killer = killer_of(Scripts(corpus, out), reference)
    rng = np.random.default_rng(1)

    def decoders_are_there():
        return any("decoding" in command for process in killer.processes.values()
                   for command in session_of(process.pid).values())

    # during imports, and at work; the next test is about the instants of work
    for instant in (after(rng.uniform(0.1, 1.5)), decoders_are_there):
        killer.live_until(instant, range(WORLD))
    assert killer.kills == WORLD * 2
    killer.finish()  # scripts do what the forks of the reference do
    sweep(out, reference, Forks(corpus, out))


def test_many_kills_lose_and_double_nothing(corpus, reference, killer_of, tmp_path):
    lasts_s = run_undisturbed(Forks(corpus, tmp_path / "first"))  # now that all is imported
    rng = np.random.default_rng(2)
    kills, lives = 0, 0
    for folder in itertools.count():
        out = tmp_path / f"out-{folder}"
        killer = killer_of(Forks(corpus, out), reference)
        going_on = True
        while going_on:
            old = partials(out)
            # two of three in the midst of writing a list, or a tar
            kind = (".jsonl", ".tar", None)[lives % 3]
            instant = after(rng.uniform(0, lasts_s)) if kind is None else (
                lambda: any(name.endswith(kind) for name in partials(out) - old))
            victims = (range(WORLD), (0,), (1,))[rng.integers(3)]
            going_on = killer.live_until(instant, victims)
            lives += 1
        killer.finish()
        sweep(out, reference, Forks(corpus, out))
        kills += killer.kills
        if kills >= 16:
            break


def test_trying_again_what_failed_survives_kills_too(corpus, reference, killer_of, tmp_path):
    """The broken videos were mended: with retry_failed=true it ends where a run over mended ones would have come."""
    manifest, broken = corpus
    mended = tmp_path / "mended"
    mended.mkdir()
    for path in broken.glob("*.mp4"):
        good = int(path.stem) < GOOD
        (mended / path.name).write_bytes((path if good else broken / "07.mp4").read_bytes())
    run_undisturbed(Forks((manifest, mended), tmp_path / "wanted"))
    wanted = contents(tmp_path / "wanted")
    changed = {name for name in wanted if wanted[name] != reference[name]}
    assert sum(name.endswith(".tar") for name in changed) >= 3 and "extraction.json" not in changed
    out = tmp_path / "out"
    run_undisturbed(Forks(corpus, out))
    killer = killer_of(Forks((manifest, mended), out, retry_failed=True), wanted)
    killer.check_what_is_there = lambda: None  # tars of both kinds are there meanwhile
    rng = np.random.default_rng(3)
    for life in range(8):
        old = partials(out)
        instant = after(rng.uniform(0, 1.5)) if life % 2 else lambda: partials(out) - old
        if not killer.live_until(instant, range(WORLD)):
            break
    assert killer.kills >= WORLD * 2
    killer.finish()  # no list of failures, no shard set aside is left
    assert not read_dataset(out).splits["train"][0].failed
