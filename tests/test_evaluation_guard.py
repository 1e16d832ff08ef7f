"""Processes that a broken file may end, and the cache that spares measuring twice."""

from __future__ import annotations

import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from pebble.pool.process import PoolManager
from test_evaluation import clicks

from vta_sam.evaluation import sounds
from vta_sam.evaluation.measure import map_guarded
from vta_sam.evaluation.sounds import FeatureCache, cache_key
from vta_sam.metrics import onsets, signal
from vta_sam.metrics.onsets import at_published_rate, detect_onsets, foley_onsets, librosa_onsets_s
from vta_sam.metrics.signal import energy_envelope
from vta_sam.runtime.errors import InputError


def act(job: tuple[int, str]) -> str:
    number, what = job
    if what == "die":
        os._exit(7)
    if what == "hang":
        time.sleep(600)
    if what == "bloat":
        return str(len(bytearray(4 << 30)))
    if what == "raise":
        raise InputError("job says no")
    return f"{number} {os.getpid()}"


def test_without_workers_the_work_is_done_here():
    done = list(map_guarded(act, [(1, ""), (2, "")], 0, 1, 100, lambda job, why: why))
    assert done == [f"1 {os.getpid()}", f"2 {os.getpid()}"]


@pytest.mark.slow
def test_jobs_that_end_their_process_harm_no_other():
    jobs = [(i, what) for i, what in enumerate(["", "die", "", "hang", "bloat", ""])]
    done = list(map_guarded(act, jobs, 2, 12, 2048, lambda job, why: f"{job[0]} {why}"))
    assert [int(line.split()[0]) for line in done] == list(range(6)), "not in order"
    assert "crashed" in done[1] and "exit status 7" in done[1]
    assert "took longer than 12 s" in done[3] and "more than 2048 MB" in done[4]
    for i in (0, 2, 5):
        assert done[i].split()[1] != str(os.getpid())


@pytest.mark.slow
def test_a_pool_that_breaks_gives_its_jobs_to_another(monkeypatch):
    """pebble gives up where a process ends before it has heard of its job."""
    usual, breaks = PoolManager.find_expired_task, [True, True]

    def find(self, worker_id):
        if breaks:
            breaks.pop()
            raise BrokenProcessPool("All workers expired")
        return usual(self, worker_id)

    monkeypatch.setattr(PoolManager, "find_expired_task", find)
    jobs = [(i, "die" if i == 1 else "") for i in range(8)]
    done = list(map_guarded(act, jobs, 2, 60, 2048, lambda job, why: f"{job[0]} {why}"))
    assert [int(line.split()[0]) for line in done] == list(range(8)) and "crashed" in done[1] and not breaks
    breaks += [True] * 3
    with pytest.raises(BrokenProcessPool):
        list(map_guarded(act, jobs, 2, 60, 2048, lambda job, why: f"{job[0]} {why}"))


@pytest.mark.slow
def test_what_a_job_raises_is_raised():
    with pytest.raises(InputError, match="job says no"):
        list(map_guarded(act, [(0, "raise")], 1, 60, 4096, lambda job, why: why))


def test_the_cache_gives_back_what_was_put(tmp_path):
    cache, key = FeatureCache(tmp_path), cache_key("features", 1, "abc")
    assert cache.get(key) is None
    arrays = {"a": np.arange(5.0), "b": np.frombuffer(b"[]", np.uint8), "c": np.array(3.5), "d": np.zeros((0, 4))}
    cache.put(key, arrays)
    found = cache.get(key)
    assert found is not None and set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_keys_differ_with_every_part():
    keys = {cache_key("a", 1, None), cache_key("a", 1, 0), cache_key("a", 2, None), cache_key("a1", None),
            cache_key("a", "1", "None", "")}
    assert len(keys) == 5


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100, (10 ** 9).to_bytes(8, "little") + b"{}"])
def test_a_damaged_entry_counts_as_absent(tmp_path, content):
    cache, key = FeatureCache(tmp_path), cache_key("x")
    cache.put(key, {"a": np.ones(3)})
    [path] = tmp_path.rglob("*.safetensors")
    path.write_bytes(content)
    assert cache.get(key) is None
    cache.put(key, {"a": np.ones(3)})
    assert cache.get(key) is not None


def test_no_folder_keeps_nothing():
    cache = FeatureCache(None)
    cache.put("k" * 40, {"a": np.ones(3)})
    assert cache.get("k" * 40) is None


def test_a_cache_that_can_not_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache=.*cache=null"):
        FeatureCache(Path(tmp_path / "file")).put(cache_key("x"), {"a": np.ones(1)})


def test_a_sound_is_analysed_once_for_all_its_features(monkeypatch):
    """One log-mel and one onset strength, and the same values as from the waveform alone."""
    wave = clicks(3)
    alone = (energy_envelope(wave), detect_onsets(wave), librosa_onsets_s(at_published_rate(wave)),
             foley_onsets(at_published_rate(wave)))
    seen: list[str] = []
    for module, name in ((sounds, "log_mel"), (onsets, "log_mel"), (signal, "log_mel"), (sounds, "onset_strength"),
                         (onsets, "onset_strength")):
        monkeypatch.setattr(module, name, lambda *given, usual=getattr(module, name), name=name: (
            seen.append(name), usual(*given))[1])
    found = sounds.WaveformFeatures(wave)
    for value, expected in zip((found.envelope, found.onsets_s, found.librosa_onsets_s), alone):
        np.testing.assert_array_equal(value, expected)
    for part in ("samples", "heights", "confidences"):
        np.testing.assert_array_equal(getattr(found.foley, part), getattr(alone[3], part))
    assert len(alone[3].samples) and sorted(seen) == ["log_mel", "onset_strength"]
