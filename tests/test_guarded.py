"""Strangers' videos in generation: what their child process does, whenever it does it, costs that video alone."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_video
from models import SPEC
from processes import children_of, survivors
from test_generate_failures import MODEL, Played, failures, leftovers

from vta_sam.generation.inputs import read_record, videos_in
from vta_sam.generation.planning import Outputs, Prompt, plan_videos
from vta_sam.generation.videos import generate_videos
from vta_sam.media.guarded import GuardedMedia, GuardedReader, Media
from vta_sam.media.muxing import picture_duration_s
from vta_sam.perception.features import features_of, words_of
from vta_sam.runtime.errors import EndOfRun, InputError

# a child whose files misbehave in the operation that their name says: "<fault> in <operation>.mp4"
BAD_CHILD = """
import errno, os, signal, socket, sys, time
from pathlib import Path
import vta_sam.media.decoding as decoding

def misbehave(fault, arguments):
    for path in arguments:  # something is written by then
        if isinstance(path, Path) and ".partial" in path.name: path.write_bytes(bytes(1000))
    if fault == "hang": time.sleep(600)
    if fault == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "bloat": bytearray(8 << 30)
    if fault == "full": raise decoding.InputError("can't be written") from OSError(errno.ENOSPC, "No space left")
    if fault == "torn": raise OSError(errno.EIO, "Input/output error")

def played(operation):
    def play(path, *arguments):
        fault, _, where = Path(path).stem.partition(" in ")
        if where == operation.__name__: misbehave(fault, arguments)
        if fault == "lie" and where == operation.__name__: return LIES[where]
        return operation(path, *arguments)
    return play

LIES = {"picture_duration_s": "long", "probe": {"width": 1}, "write_mux": 7,
        "plan_mux": {"target": "/etc/passwd", "codec": "h264", "encoded": False, "notes": []}}
decoding.OPERATIONS = {name: played(operation) for name, operation in decoding.OPERATIONS.items()}
decoding.serve(decoding.Connection(int(sys.argv[1]), writable=False), socket.socket(fileno=int(sys.argv[2])),
               int(sys.argv[3]))
"""
OPERATIONS = ("plan_mux", "picture_duration_s", "probe", "write_mux")
FAULTS = {"hang": "took longer than", "crash": "crashed on it", "bloat": "needs more than 1500 MB",
          "lie": "broke on it", "torn": "Input/output error"}


class Reading(Played):
    """A pipeline that reads what a real one reads."""

    def generate(self, video, media, **prompt):
        media.picture_duration_s(video)
        media.probe(video)
        return super().generate(video, **prompt)


@pytest.fixture
def bad_child(monkeypatch):
    monkeypatch.setattr(GuardedReader, "command", (sys.executable, "-c", BAD_CHILD))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 3_200)
    return write_video(tmp_path_factory.mktemp("clip") / "in.mp4", duration_s=0.2, size=(16, 16), sound=sound)


@pytest.fixture
def folder(tmp_path, clip):
    def make(*names):
        (tmp_path / "clips").mkdir()
        for name in names:
            (tmp_path / "clips" / name).symlink_to(clip)
        return tmp_path / "clips"

    return make


def decoders():
    return {pid: name for pid, name in children_of(os.getpid()).items() if "media.decoding" in name}


@pytest.mark.slow
def test_whatever_a_child_does_costs_one_video(folder, tmp_path, bad_child):
    bad = [f"{fault} in {operation}" for fault in FAULTS for operation in OPERATIONS if (fault, operation) != (
        "lie", "write_mux")]
    videos = videos_in(folder(*(f"{name}.mp4" for name in ["a", *bad, "z"])))
    with GuardedMedia(limit_s=2.0, memory_mb=1500) as media:
        outputs = Outputs(tmp_path / "out", picture=False, wav=True)
        outcomes = generate_videos(Reading(), videos, Prompt(), outputs, MODEL, media=media)
    found = failures(outcomes)
    assert sorted(found) == sorted(bad)
    for name, reason in found.items():
        assert FAULTS[name.partition(" in ")[0]] in reason and name in reason and "\n" not in reason
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {name + suffix for name in "az" for suffix in (".mp4", ".json", ".wav")} and not leftovers(
        tmp_path / "out")
    assert picture_duration_s(tmp_path / "out" / "z.mp4") == pytest.approx(0.2)
    assert not survivors(decoders, 3.0)


def test_a_disk_that_is_full_for_the_child_ends_the_run(folder, tmp_path, bad_child):
    pipeline = Reading()
    with GuardedMedia() as media, pytest.raises(EndOfRun, match="no space left for out="):
        outputs = Outputs(tmp_path / "out", picture=False)
        generate_videos(pipeline, videos_in(folder("a.mp4", "full in write_mux.mp4", "z.mp4")), Prompt(), outputs,
                        MODEL, media=media)
    assert pipeline.asked == ["a", "full in write_mux"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.mp4"]


def test_a_child_reads_and_writes_what_this_process_does(tmp_path, clip):
    from vta_sam.embedded.extractors import TinyEncoder, TinyGrounder
    from vta_sam.perception.features import Extractors

    extractors = Extractors(TinyGrounder(), TinyEncoder())
    written, looked = [], []
    with GuardedMedia() as child:
        for name, media in (("here.mp4", Media()), ("child.mp4", child)):
            assert media.plan_mux(clip, tmp_path / name).target == tmp_path / name
            looked.append((media.probe(clip), features_of(clip, [words_of("a dog", None)], extractors, SPEC, media)))
            written.append(media.mux(clip, np.zeros(3_200, np.float32), 16_000, tmp_path / name, 0.5).read_bytes())
            with pytest.raises(InputError, match="none.mp4 doesn't exist"):
                media.picture_duration_s(tmp_path / "none.mp4")
        assert written[0] == written[1] and looked[0][0] == looked[1][0]
        (here, strip), (there, other) = looked[0][1], looked[1][1]
        assert np.array_equal(strip, other) and np.array_equal(here[0].frame_embedding, there[0].frame_embedding)
    assert not survivors(decoders, 3.0)


def test_what_the_child_warns_of_is_said_here(tmp_path):
    tone = np.sin(np.arange(3_200, dtype=np.float32) / 5)
    source = write_video(tmp_path / "in.mkv", duration_s=0.2, size=(16, 16), sound=np.stack([tone, -tone]),
                         sound_codec="pcm_s16le")
    with GuardedMedia() as media, pytest.warns(UserWarning, match="in.mkv: its two channels cancel") as said:
        media.mux(source, np.zeros(3_200, np.float32), 16_000, tmp_path / "out.mp4", 0.5)
        assert len(said) == 1


def test_long_videos_get_more_time_and_lying_ones_do_not(tmp_path):
    video = tmp_path / "in.mp4"
    media = GuardedMedia(limit_s=30.0)
    for size, seconds, limit_s in ((10_000_000, 0.0, 30.0), (10_000_000, 600.0, 1_830.0), (2_000, 1e9, 36.0)):
        video.write_bytes(b"")
        os.truncate(video, size)
        assert media._limit_s(video, seconds) == pytest.approx(limit_s)


@pytest.mark.parametrize("count", [1, 3])
def test_children_end_with_the_run(folder, tmp_path, count):
    videos = videos_in(folder(*(f"{i}.mp4" for i in range(count))))
    outputs = Outputs(tmp_path / "out", picture=False)
    planned = plan_videos(videos, Prompt(), outputs, MODEL, Played.sampler)
    assert not survivors(decoders, 3.0)
    outcomes = generate_videos(Reading(), videos, Prompt(), outputs, MODEL, planned=planned)
    assert not failures(outcomes) and not survivors(decoders, 3.0)
    assert read_record(tmp_path / "out" / "0.json")["written"] == "0.mp4"


def test_an_error_of_the_system_keeps_its_kind(tmp_path, clip, bad_child):
    torn = tmp_path / "torn in probe.mp4"
    torn.symlink_to(clip)
    with GuardedMedia() as media, pytest.raises(OSError) as raised:
        media.probe(Path(torn))
    assert raised.value.errno == errno.EIO
