"""A run's folder: one process at a time, one config, and a mark when it is done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vta_sam.runtime.errors import InputError
from vta_sam.training.callbacks import AtomicCheckpointIO
from vta_sam.training.fit import read_checkpoint
from vta_sam.training.run_folder import StageFolder, locked, result_affecting

HOLD = """
import sys, time
from pathlib import Path
from vta_sam.training.run_folder import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "mine"
        with pytest.raises(InputError, match=f"is being written by process {holder.pid}; wait for it"):
            with locked(tmp_path):
                raise AssertionError("two processes write one run")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    for _ in range(50):  # the kernel lets go of a dead process' locks in its own time
        try:
            with locked(tmp_path):
                return
        except InputError:
            time.sleep(0.05)
    raise AssertionError("the lock outlived its process")


def test_the_lock_is_let_go(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "run"):
            with pytest.raises(InputError, match=f"process {os.getpid()}"):
                with locked(tmp_path / "run"):
                    pass
    with pytest.raises(KeyError):
        with locked(tmp_path / "run"):
            raise KeyError
    with locked(tmp_path / "run"), locked(tmp_path / "another run"):
        pass


CONFIG = {"seed": 0, "fit": {"steps": 10, "rate": 1e-3}, "data": {"root": "data/x", "words": ["dog", "ferret é"]}}


def test_the_same_config_goes_on(tmp_path):
    folder = StageFolder(tmp_path / "run" / "vae", CONFIG)
    folder.claim(overwrite=False)
    folder.last_checkpoint.parent.mkdir()
    folder.last_checkpoint.write_text("weights")
    StageFolder(folder.path, dict(reversed(CONFIG.items()))).claim(overwrite=False)  # order of keys says nothing
    assert folder.last_checkpoint.read_text() == "weights"


def test_how_data_are_loaded_says_nothing_about_a_result():
    """So that a run goes on with more memory or other loader processes, and one of an earlier release with any."""
    settings = {"fit": {"steps": 10}, "workers": 2, "cached_gb": 4.0, "streams": 8}
    assert result_affecting({"vae": settings}) == {"vae": {"fit": {"steps": 10}, "streams": 8}}


def test_a_changed_config_stops_with_the_difference(tmp_path):
    StageFolder(tmp_path, CONFIG).claim(overwrite=False)
    stored = (tmp_path / "config.yaml").read_text()
    changed = {**CONFIG, "fit": {"steps": 20, "rate": 1e-3}}
    with pytest.raises(InputError) as caught:
        StageFolder(tmp_path, changed).claim(overwrite=False)
    message = str(caught.value)
    assert "-  steps: 10" in message and "+  steps: 20" in message and str(tmp_path) in message
    assert "name=" in message and "overwrite=true" in message
    assert "rate" not in message and "ferret" not in message  # only what differs
    assert (tmp_path / "config.yaml").read_text() == stored


def test_overwrite_throws_away_what_was_made(tmp_path):
    folder = StageFolder(tmp_path / "vae", CONFIG)
    folder.claim(overwrite=False)
    folder.finish()
    folder.model.mkdir()
    (folder.model / "model.yaml").write_text("old")
    other = StageFolder(tmp_path / "vae", {**CONFIG, "seed": 1})
    other.claim(overwrite=True)
    assert not other.done and not other.model.exists()
    assert [p.name for p in other.path.iterdir()] == ["config.yaml"]
    assert "seed: 1" in (other.path / "config.yaml").read_text()


def test_done_is_a_mark_of_its_own(tmp_path):
    folder = StageFolder(tmp_path / "vae", CONFIG)
    folder.claim(overwrite=False)
    assert not folder.done
    folder.finish()
    assert folder.done and StageFolder(tmp_path / "vae", CONFIG).done
    folder.claim(overwrite=False)
    assert folder.done
    assert not StageFolder(tmp_path / "condition", CONFIG).done


def own_memory_bytes():
    """Of this process, without what is mapped from files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_what_nobody_reads_of_a_checkpoint_takes_no_memory(tmp_path):
    """The optimiser's moments, when the best weights are read back; and all of it, when only names are compared."""
    model, path = torch.nn.Linear(2, 2), tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": model.state_dict(), "moments": torch.ones(16_000_000)}, path)
    before = own_memory_bytes()
    found = [read_checkpoint(path, model), AtomicCheckpointIO().load_checkpoint(path)]
    assert own_memory_bytes() - before < 16e6 < path.stat().st_size / 3
    model.load_state_dict(found[0]["state_dict"])
    path.unlink()  # a later checkpoint takes its place
    assert all(float(content["moments"].sum()) == 16_000_000 for content in found)
