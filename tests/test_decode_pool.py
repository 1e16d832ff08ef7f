"""Several children that read ahead of one consumer: clips in order, in bounded memory; nobody waits for a hung one."""

import threading
import time

import numpy as np
import pytest
import test_decoding
from conftest import decode_grey
from test_decoding import BadReader, frames_of, request

from vta_sam.media.decode_pool import DecodePool
from vta_sam.media.video import ClipStream
from vta_sam.runtime.errors import InputError

video = test_decoding.video  # a fixture


def in_time(work, limit_s=60.0):
    """Run something that would hang where a pool locks itself up."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(limit_s)
    assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]


class Counter:
    """Stands for a child in a pool, and counts what was asked of it: a clip has as many chunks as its name says."""

    def __init__(self):
        self.begun, self.fetched = 0, 0

    def stream(self, request):
        return ClipStream(self.chunks(int(request.path)))

    def chunks(self, count):
        self.begun += 1
        for i in range(count):
            self.fetched += 1
            yield [np.full((1, 1, 1, 3), i, np.uint8)]
        return None, float(count)

    def kill(self):
        pass

    close = kill


def counting_pool(**settings):
    pool = DecodePool(1, **settings)
    counter = Counter()
    pool.idle.get()
    pool.readers = [counter]
    pool.idle.put(counter)
    return pool, counter


def settled(read):
    """⇒ what it reads once that stays the same for a while."""
    value = None
    while value != (value := read()):
        time.sleep(0.1)
    return value


def test_a_pool_keeps_the_order_and_reports_failures_in_place(video):
    with DecodePool(2, ahead=3) as pool:
        for i, stream in enumerate(pool.map(
                request(video if i % 3 else "none.mp4", start_s=0.1 * i, fps=8) for i in range(7))):
            if i % 3 == 0:
                with pytest.raises(InputError, match="none.mp4"):
                    list(stream)
            else:
                assert decode_grey(frames_of(stream)[0]) == round((0.1 * i + 0.0625) // 0.04)
                assert stream.duration_s == pytest.approx(2 - 0.1 * i) and len(stream.waveform)
    assert i == 6


def test_a_failure_comes_after_the_chunks_before_it(video, tmp_path):
    late = tmp_path / "late_crash.mp4"
    late.symlink_to(video)
    with DecodePool(1) as pool:
        pool.readers[0].command = BadReader.command
        first, second = pool.map([request(late), request(video)]), []
        for stream in first:
            got = []
            try:
                for chunk in stream:
                    got.append(chunk)
            except InputError as error:
                assert "crashed" in str(error)
            second.append(len(got))
        assert second == [2, 5]


def test_a_pool_reads_no_further_ahead_than_allowed():
    pool, counter = counting_pool(ahead=4, buffer_chunks=2)
    with pool:
        asked = []
        streams = pool.map(asked.append(i) or request("10") for i in range(20))
        chunks = iter(next(streams))
        assert len(asked) == 4 and settled(lambda: counter.fetched) == 2 and counter.begun == 1
        next(chunks)
        assert settled(lambda: counter.fetched) == 3
        assert len(list(chunks)) == 9 and settled(lambda: (counter.begun, counter.fetched)) == (2, 12)
        next(streams)
        assert len(asked) == 5 and settled(lambda: (counter.begun, counter.fetched)) == (2, 12)
        streams.close()


def test_short_clips_are_read_ahead_to_their_end():
    pool, counter = counting_pool(ahead=5, buffer_chunks=2)
    with pool:
        streams = pool.map(request("1") for _ in range(20))
        next(streams)
        assert settled(lambda: counter.begun) == 5
        streams.close()


def test_abandoned_streams_hold_nobody_up(video):
    def work():
        with DecodePool(2, ahead=4) as pool:
            seen = []
            for i, stream in enumerate(pool.map(request(video, start_s=0.04 * i) for i in range(12))):
                if i % 3:  # some aren't even begun
                    seen.append(decode_grey(next(iter(stream))[0][0]))
            assert seen == [i + 1 for i in range(12) if i % 3]

    in_time(work)


def test_a_stream_left_behind_says_so():
    pool, _ = counting_pool()
    with pool:
        streams = [*pool.map([request("9"), request("9")])]
        for stream in streams:
            with pytest.raises(RuntimeError, match="before the next one is asked for"):
                list(stream)


def test_closing_a_pool_early_waits_for_nobody(video):
    def work():
        with DecodePool(2, ahead=6) as pool:
            streams = pool.map(request(video) for _ in range(20))
            chunks = iter(next(streams))
            next(chunks)
        with pytest.raises(RuntimeError, match="while its pool is open"):
            list(chunks)
        assert all(reader.process is None for reader in pool.readers)

    in_time(work)


def test_closing_a_pool_does_not_wait_for_a_hanging_child():
    pool = DecodePool(1, limit_s=300.0)
    pool.readers[0].command = BadReader.command
    raised = []

    def read():
        try:
            for stream in pool.map([request("hang.mp4")]):
                list(stream)
        except RuntimeError as error:
            raised.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while pool.readers[0].process is None:
        time.sleep(0.01)
    assert not raised
    in_time(pool.close)
    reader.join(timeout=20)
    assert len(raised) == 1 and pool.readers[0].process is None


def test_without_a_number_there_is_a_process_for_each_core_of_this_one(monkeypatch):
    monkeypatch.setattr("vta_sam.runtime.distributed.own_cores", lambda: 5)
    with DecodePool(None) as pool:
        assert len(pool.readers) == 5 + 1 and pool.ahead == 12, "one reads again what failed"
    monkeypatch.setattr("vta_sam.runtime.distributed.own_cores", lambda: 64)
    with DecodePool(None) as pool:
        assert len(pool.readers) == 8 + 1, "whose pictures fit into memory"
    with DecodePool(2) as pool:
        assert len(pool.readers) == 2 + 1
