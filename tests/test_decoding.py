"""Clips read by children: chunk by chunk, in order, in bounded memory; whatever a child does costs one clip."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from conftest import REPOSITORY, decode_grey

from vta_sam.media.decoding import AnswerReader, ClipRequest, ExpectedAnswers, ProtocolError, send_answer
from vta_sam.media.guarded import GuardedReader
from vta_sam.media.picture_reader import CentreCrop, Squeeze, Within
from vta_sam.media.video import read_clip, stream_clip
from vta_sam.runtime.errors import InputError

SIZE = (Squeeze(24, 32),)

# a child that misbehaves on the first or on the third chunk of files so named
BAD_CHILD = """
import os, signal, socket, sys, time
import vta_sam.media.decoding as decoding
good, answers = decoding.stream_clip, socket.socket(fileno=int(sys.argv[2]))

def misbehave(path):
    if "hang" in path: time.sleep(600)
    if "slow" in path: time.sleep(0.3)
    if "crash" in path: os.kill(os.getpid(), signal.SIGSEGV)
    if "big" in path: bytearray(8 << 30)
    if "fault" in path: raise KeyError("a fault of the program")
    if "nonsense" in path: answers.sendall(os.urandom(4096))
    if "half" in path:
        decoding.send_answer(answers, "chunk", shapes=[[5, 24, 32]])
        answers.sendall(bytes(100))
        os._exit(3)
    if "stuck" in path:
        decoding.send_answer(answers, "chunk", shapes=[[5, 24, 32]])
        time.sleep(600)
    if "huge" in path: decoding.send_answer(answers, "chunk", shapes=[[5, 1 << 40, 1 << 40]])
    if "unasked" in path: decoding.send_answer(answers, "please")

def stream_clip(path, **rest):
    name, late = os.path.basename(path), "late" in path
    if not late and "slow" not in name: misbehave(name)
    def chunks(stream):
        for i, chunk in enumerate(stream):
            if late and i == 2 or "slow" in name: misbehave(name)
            yield chunk
        return stream.waveform, stream.duration_s
    return decoding.ClipStream(chunks(good(path, **rest)))

decoding.stream_clip = stream_clip
decoding.serve(decoding.Connection(int(sys.argv[1]), writable=False), answers, int(sys.argv[3]))
"""


class BadReader(GuardedReader):
    command = (GuardedReader.command[0], "-c", BAD_CHILD)


@pytest.fixture(scope="module")
def video(make_video, tmp_path_factory):
    """Two seconds at 25 fps with sound."""
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", duration_s=2.0, sound=sound)


def request(path, **settings):
    return ClipRequest(**{"path": str(path), "fps": 12.5, "fits": SIZE, "chunk_frames": 5, **settings})


def frames_of(stream):
    return np.concatenate([chunk[0] for chunk in stream])


@pytest.mark.parametrize("settings", [
    {}, {"chunk_frames": None, "start_s": 0.7, "duration_s": 0.5}, {"want_audio": False, "duration_s": 1},
    {"fits": (Within(20, 100), CentreCrop(16), Squeeze(9, 7), CentreCrop(16)), "fps": 29.97}], ids=str)
def test_a_child_reads_what_this_process_reads(video, settings):
    wanted = {name: value for name, value in vars(request(video, **settings)).items() if name != "chunk_frames"}
    here = read_clip(**wanted)
    with GuardedReader() as reader:
        for _ in range(2):
            stream = reader.stream(request(video, **settings))
            chunks = list(stream)
            for frames, column in zip(here.frames, zip(*chunks), strict=True):
                assert np.array_equal(np.concatenate(column), frames) and frames.flags.writeable
            assert stream.duration_s == here.duration_s
            assert np.array_equal(stream.waveform, here.waveform) if here.waveform is not None else (
                stream.waveform is None)
        with pytest.raises(InputError, match="none.mp4 doesn't exist"):
            list(reader.stream(request("none.mp4")))


@pytest.mark.slow
@pytest.mark.parametrize("name, words", [
    ("crash", "crashed on it .exit status -11"), ("big", "needs more than 3000 MB"), ("nonsense", "broke on it"),
    ("half", "crashed on it .exit status 3"), ("huge", "broke on it .it answers pictures of ..1099511627776"),
    ("unasked", "broke on it .it answers 'please'"), ("hang", "decoding took longer than 0.8 s"),
    ("stuck", "decoding took longer than 0.8 s")])
def test_what_a_child_does_costs_one_clip(video, tmp_path, name, words):
    late = tmp_path / f"late_{name}.mp4"
    late.symlink_to(video)
    with BadReader(memory_mb=3000) as reader:
        for path, chunks_before in ((f"{name}.mp4", 0), (late, 2)):
            assert len(frames_of(reader.stream(request(video)))) == 25
            process, got = reader.process, []
            reader.limit_s = 0.8 if name in ("hang", "stuck") else 60.0
            with pytest.raises(InputError, match=f"{name}.mp4: .*{words}"):
                for chunk in reader.stream(request(path)):
                    got.append(chunk)
            assert len(got) == chunks_before and process.poll() is not None
            reader.limit_s = 60.0
        assert len(frames_of(reader.stream(request(video)))) == 25
        last = reader.process
    assert last.poll() is not None


def test_a_child_killed_from_outside_costs_one_clip(video):
    with GuardedReader() as reader:
        chunks = iter(reader.stream(request(video)))
        next(chunks)
        os.kill(reader.process.pid, signal.SIGKILL)
        with pytest.raises(InputError, match="crashed on it .exit status -9"):
            next(chunks)
        assert len(frames_of(reader.stream(request(video)))) == 25


def test_a_fault_of_the_program_is_no_fault_of_the_file(video):
    with BadReader() as reader:
        with pytest.raises(RuntimeError, match="a fault of the program"):
            list(reader.stream(request("fault.mp4")))
        assert len(frames_of(reader.stream(request(video)))) == 25


def test_the_time_limit_counts_decoding_and_not_waiting(video, tmp_path):
    slow = tmp_path / "slow.mp4"  # 5 chunks of 0.3 s each
    slow.symlink_to(video)
    with BadReader() as reader:
        list(reader.stream(request(video)))  # the child is up
        reader.limit_s = 0.8
        frames = 0
        for chunk in reader.stream(request(video)):
            frames += len(chunk[0])
            time.sleep(0.25)
        assert frames == 25
        got = []
        with pytest.raises(InputError, match="slow.mp4: decoding took longer than 0.8 s"):
            for chunk in reader.stream(request(slow)):
                got.append(chunk)
        assert 1 <= len(got) <= 2


def test_a_stream_ends_where_its_child_is_given_another_clip(video):
    with GuardedReader() as reader:
        first = iter(reader.stream(request(video)))
        next(first)
        second = frames_of(reader.stream(request(video, start_s=1.0)))
        assert decode_grey(second[0]) == 2 and len(second) == 13  # 25 pictures later, of 24 numbers
        with pytest.raises(RuntimeError, match="given another clip"):
            next(first)


# --- a child is not believed ----------------------------------------------------------------------------------------

def expected_answers(**settings):
    return ExpectedAnswers(**{"fits": (CentreCrop(224), Within(80, 100)), "fps": 10, "duration_s": 2.0,
                              "samples_per_s": 16_000, "chunk_frames": 16, "memory_mb": 64, **settings})


@pytest.mark.parametrize("shapes", [
    None, {}, [], [[1, 224, 224]], [[1, 224, 224], [1, 60]], [[1, 224, 224], [1, 60, 80, 3]],
    [[1, 224, 224], [2, 60, 80]], [[0, 224, 224], [0, 60, 80]], [[-1, 224, 224], [-1, 60, 80]],
    [[17, 224, 224], [17, 60, 80]],
    [[1, 224, 225], [1, 60, 80]], [[1, 224, 224], [1, 90, 90]], [[1, 224, 224], [1, 60, 101]],
    [[1, 224, 224], [1, 60, 1 << 62]], [[1, 224, 224], [1, 0, 80]], [[1, 224, 224], [1, -60, -80]],
    [[1.0, 224, 224], [1.0, 60, 80]], [[True, 224, 224], [True, 60, 80]], [["1", 224, 224], ["1", 60, 80]],
    [[1, 224, 224], None]], ids=str)
def test_shapes_that_were_not_asked_for_are_refused(shapes):
    with pytest.raises(ProtocolError):
        expected_answers().shapes({"shapes": shapes})


def test_chunks_stay_within_the_clip_the_memory_and_the_first_ones_size():
    due = expected_answers(chunk_frames=None)
    assert due.shapes({"shapes": [[19, 224, 224], [19, 60, 80]]}) == [(19, 224, 224, 3), (19, 60, 80, 3)]
    for shapes, words in (([[2, 224, 224], [2, 60, 80]], "21 frames for 2 s"),
                          ([[1, 224, 224], [1, 60, 79]], "pictures of"),
                          ([[10 ** 9, 224, 224], [10 ** 9, 60, 80]], "frames")):
        with pytest.raises(ProtocolError, match=words):
            due.shapes({"shapes": shapes})
    whole = expected_answers(chunk_frames=None, duration_s=None)
    with pytest.raises(ProtocolError, match="out of 64 MB"):
        whole.shapes({"shapes": [[500, 224, 224], [500, 60, 80]]})


@pytest.mark.parametrize("end", [
    {}, {"duration_s": "2"}, {"duration_s": None}, {"duration_s": 0.0}, {"duration_s": -1.0}, {"duration_s": 1e9},
    {"duration_s": 1.5, "samples": 24_000}, {"duration_s": float("nan"), "samples": 0},
    {"duration_s": 2.0}, {"duration_s": 2.0, "samples": None}, {"duration_s": 2.0, "samples": 32_001},
    {"duration_s": 2.0, "samples": 32_000.0}, {"duration_s": 2.0, "samples": "32000"}], ids=str)
def test_an_end_that_does_not_fit_what_came_is_refused(end):
    due = expected_answers()
    for count in (16, 4):
        due.shapes({"shapes": [[count, 224, 224], [count, 60, 80]]})
    assert due.end({"duration_s": 2.0, "samples": 32_000}) == (2.0, 32_000)
    with pytest.raises(ProtocolError):
        due.end(json.loads(json.dumps(end)))
    silent = expected_answers(samples_per_s=None, chunk_frames=None)
    silent.shapes({"shapes": [[20, 224, 224], [20, 60, 80]]})
    with pytest.raises(ProtocolError):
        silent.end({"duration_s": 2.0, "samples": 32_000})


@pytest.mark.parametrize("data, words", [
    (b"\xff\xff\xff\xff", "a header of 4294967295 bytes"), (b"\x00\x00\x00\x02{]", "can't be read"),
    (b"\x00\x00\x00\x02[]", "no object"), (b"\x00\x00\x00\x02\xff\xfe", "can't be read"),
    (b"\x00\x00\xff\xff" + b"[" * 0xffff, "can't be read")], ids=["long", "no json", "list", "no text", "deep"])
def test_headers_of_nonsense_are_refused(data, words):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=theirs.sendall, args=(data,))
        sender.start()
        with pytest.raises(ProtocolError, match=words):
            AnswerReader(ours, time.monotonic() + 10).header()
        sender.join()


@pytest.mark.parametrize("letter", ["a", "\x01", "\U0001f600", "\udc80"], ids=ascii)
def test_any_message_gets_through_whatever_its_letters(letter):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_answer(theirs, "fault", message=letter * 100_000 + "the end")
        header = AnswerReader(ours, time.monotonic() + 10).header()
        assert header["message"].endswith("the end")


def test_whatever_a_fit_makes_is_believed():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(int(side) for side in rng.integers(1, 3000, 2))
        fits = (CentreCrop(int(rng.integers(1, 500))), Within(*sorted(map(int, rng.integers(1, 2000, 2)))),
                Squeeze(*map(int, rng.integers(1, 500, 2))))
        shapes = [[2, *fit.kept(*fit.scaled(*size))] for fit in fits]
        expected_answers(fits=fits, memory_mb=4096).shapes({"shapes": shapes})


# --- bounds ---------------------------------------------------------------------------------------------------------

def test_a_long_clip_takes_the_memory_of_a_chunk(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", duration_s=30.0)
    fit, size = Squeeze(96, 128), 8

    def peak(work):
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def stream():
        for _ in stream_clip(path, fps=25, fits=[fit], want_audio=False, chunk_frames=size):
            pass

    chunk_bytes = size * 3 * fit.height * fit.width
    assert peak(stream) < 4 * chunk_bytes
    whole = peak(lambda: read_clip(path, fps=25, fits=[fit], want_audio=False))
    assert whole > 750 / size * chunk_bytes  # so the measure sees arrays
    with GuardedReader() as reader:
        guarded = peak(lambda: [None for _ in reader.stream(request(path, fits=(fit,), want_audio=False, fps=25))])
    assert guarded < 4 * chunk_bytes


@pytest.mark.slow
def test_huge_pictures_take_a_bounded_share_of_the_childs_memory(make_video, tmp_path):
    """Decoded pictures of 100 MB: a chunk of them brought to size fits, a chunk as they are does not."""
    picture = np.tile(np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8), (8, 8, 1))
    path = make_video(tmp_path / "a.mp4", size=(8192, 8192), picture=lambda i: picture, duration_s=0.16)
    settings = {"want_audio": False, "fps": 25, "chunk_frames": 32}
    with GuardedReader() as reader:
        [chunk] = reader.stream(request(path, fits=(Within(800, 1333), CentreCrop(224)), **settings))
        assert [frames.shape for frames in chunk] == [(4, 800, 800, 3), (4, 224, 224, 3)]
        with pytest.raises(InputError, match="a.mp4: decoding needs more than 4096 MB"):
            list(reader.stream(request(path, fits=(Squeeze(8192, 8192),), **settings)))
    with GuardedReader(memory_mb=600) as reader:
        with pytest.raises(InputError, match="a.mp4: decoding needs more than 600 MB"):
            list(reader.stream(request(path, fits=(Within(800, 1333),), **settings)))


@pytest.mark.slow
def test_three_ways_of_reading_are_timed(make_video, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (30, 40, 1), np.uint8).repeat(16, 0).repeat(16, 1).repeat(3, 2)
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000)
    make_video(tmp_path / "a.mp4", size=(640, 480), picture=lambda i: np.roll(picture, 4 * i, 1), duration_s=2.0,
               sound=sound)
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "decode.py"), "--videos", str(tmp_path), "--repeat", "1",
               "--json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    result = json.loads(told.stdout)
    assert [(row["way"], row["frames"]) for row in result["rows"]] == [("seek", 16), ("grab", 16), ("ours", 16)]
    assert all(row["memory_mb"] > 1 and row["s_per_clip"] > 0 for row in result["rows"])
    assert 40 < result["lowest_psnr_db"] == result["more_rows"][0]["psnr_db"]
    command[3] = str(tmp_path / "none")
    nowhere = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert nowhere.returncode == 2 and "holds no mp4" in nowhere.stderr and "Traceback" not in nowhere.stderr
