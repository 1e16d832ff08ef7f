"""Checkpoints on the disk: written while steps go on, whole after a kill or on a full disk, and refused in words where
they are damaged."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
from forks import Fork
from test_full_disks import Disk
from tiny_data import CODEC, ENCODER, build, stage_folder, stage_settings, write_dataset
from tiny_stages import STEPS, assert_same, pretraining, run_stage, weights

from vta_sam.runtime.cluster.preemption import Preempted, Preemption
from vta_sam.runtime.distributed import Processes
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.files import atomic_path, write_fault
from vta_sam.training import callbacks
from vta_sam.training.callbacks import AtomicCheckpointIO, CheckpointWriter
from vta_sam.training.codec_stages import MelVAE
from vta_sam.training.fit import read_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Stage 2, undisturbed ⇒ (folder, record)."""
    folder = tmp_path_factory.mktemp("whole") / "condition"
    return folder, run_stage("condition", root, folder)


class At(L.Callback):
    """Does something at the end of a step, before its checkpoint is saved."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.act(pl_module)


def train(root, path, *acts, preemption=None, **numbers):
    """Stage 2 ⇒ its folder. Checkpoints are of steps 2, 4, 6 and 8; validations of 4 and 8."""
    run_stage("condition", root, path, settings=stage_settings(STEPS, **numbers), acts=acts, preemption=preemption)
    return stage_folder(path)


def last_of(folder):
    return torch.load(folder.last_checkpoint, weights_only=True)


class Held:
    """Holds back whatever writes checkpoints until ``free`` is set, ten seconds at most; notes what it then writes."""

    def __init__(self, patch):
        self.free, self.in_time, self.written = threading.Event(), [], []
        save = AtomicCheckpointIO.save_checkpoint

        def held(io, checkpoint, path, storage_options=None):
            self.in_time.append(self.free.wait(10))
            save(io, checkpoint, path)
            self.written.append((Path(path).stem, checkpoint["global_step"]))
            shutil.copy(path, f"{path}-{checkpoint['global_step']}")

        patch.setattr(AtomicCheckpointIO, "save_checkpoint", held)


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_its_own_step(root, tmp_path, monkeypatch):
    held, kept = Held(monkeypatch), {}

    def third(module):
        assert not held.written
        held.free.set()

    folder = train(root, tmp_path, At(2, lambda module: kept.update(pickle.loads(pickle.dumps(module.state_dict())))),
                   At(3, third))
    assert all(held.in_time), "step 3 came after the checkpoint of step 2"
    assert [each for each in held.written if each[0] == "last"] == [("last", step) for step in (2, 4, 6, 8)]
    content = torch.load(f"{folder.last_checkpoint}-2", weights_only=True)
    assert_same(dict(content["current_model_state"]), kept)
    assert not torch.equal(kept["encoder.project.weight"], last_of(folder)["current_model_state"][
        "encoder.project.weight"])


def test_checkpoints_are_the_same_to_the_last_byte_whether_steps_wait_or_not(root, tmp_path):
    found = []
    for aside in (True, False):
        folder = train(root, tmp_path / "run", checkpoint_aside=aside)
        found.append({path.name: path.read_bytes() for path in folder.best_checkpoint.parent.iterdir()})
        shutil.rmtree(folder.path)
    assert set(found[0]) == {"best.ckpt", "last.ckpt"} == set(found[1])
    assert [name for name in found[0] if not found[0][name] == found[1][name]] == []
    assert len(found[0]["best.ckpt"]) < len(found[0]["last.ckpt"]) / 2


def test_one_checkpoint_is_on_its_way_at_a_time(tmp_path, monkeypatch):
    held, writer, path, state = Held(monkeypatch), CheckpointWriter(tmp_path / "best.ckpt"), tmp_path / "last.ckpt", \
        torch.zeros(3)
    writer.save_checkpoint({"global_step": 1, "state": state.detach()}, path)
    state += 1
    second = threading.Thread(target=writer.save_checkpoint, args=({"global_step": 2, "state": state.detach()}, path))
    second.start()
    second.join(0.3)
    assert second.is_alive() and held.written == []
    held.free.set()
    second.join()
    writer.teardown()
    assert held.written == [("last", 1), ("last", 2)]
    for step in (1, 2):
        assert torch.load(f"{path}-{step}", weights_only=True)["state"].tolist() == [step - 1] * 3


def test_the_best_and_the_last_of_a_step_share_one_copy_whose_memory_is_used_again(tmp_path, monkeypatch):
    places, writer, state = [], CheckpointWriter(tmp_path / "best.ckpt"), torch.zeros(1000)
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", lambda io, checkpoint, path, *_: places.append(
        (Path(path).stem, checkpoint["state_dict"]["weight"].data_ptr())))
    copies, stage = [], callbacks.DefaultStager.stage
    monkeypatch.setattr(callbacks.DefaultStager, "stage", lambda *given: copies.append(stage(*given)) or copies[-1])
    for step in range(3):
        content = {"global_step": step, "state_dict": {"weight": state.detach()}, "optimizer_states": [state.detach()]}
        if step:
            writer.save_checkpoint(content, tmp_path / "best.ckpt")
        writer.save_checkpoint(content, tmp_path / "last.ckpt")
    writer.teardown()
    assert [name for name, _ in places] == ["last", "best", "last", "best", "last"] and len(copies) == 3
    assert len({place for _, place in places}) == 1 and places[0][1] != state.data_ptr()


def test_where_there_is_no_memory_for_a_copy_steps_wait(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Registering memory failed with cudaError: 2.\nMore of it")

    monkeypatch.setattr(callbacks.DefaultStager, "stage", refuse)
    writer = CheckpointWriter(tmp_path / "best.ckpt")
    writer.save_checkpoint({"global_step": 1}, tmp_path / "best.ckpt")
    with pytest.warns(UserWarning, match=r"no memory for a copy of the state \(Registering .*: 2\.\), so steps wait"):
        writer.save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    writer.save_checkpoint({"global_step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("room, asked, step", [
    (lambda last, best: last / 2, False, 0), (lambda last, best: last + best / 2, False, 2),
    (lambda last, best: 3.5 * last + best, False, 6), (lambda last, best: 1.5 * last, True, 2),
], ids=["the first", "the best", "the last of all", "when asked to stop"])
def test_a_disk_that_fills_while_steps_go_on(root, whole, tmp_path, room, asked, step):
    """What was whole stays whole, the user learns of it at the next checkpoint, and the same command goes on."""
    sizes = ((whole[0] / "checkpoints" / f"{name}.ckpt").stat().st_size for name in ("last", "best"))
    reached, preemption = [], Preemption(Processes())
    acts = [At(now, lambda module, now=now: reached.append(now)) for now in range(1, STEPS + 1)]
    if asked:
        acts.append(At(3, lambda module: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.MonkeyPatch.context() as patch, preemption.watching():
        Disk(tmp_path / "checkpoints", patch, limit=room(*sizes))
        with pytest.raises(OSError) as told:
            train(root, tmp_path, *acts, preemption=preemption)
    assert write_fault(told.value).startswith(f"no space left for {tmp_path}/checkpoints/")
    assert len(reached) <= (3 if asked else step + 4)
    folder = stage_folder(tmp_path)
    assert (last_of(folder)["global_step"] if step else 0) == step and folder.last_checkpoint.exists() == bool(step)
    assert not list(folder.last_checkpoint.parent.glob(".*"))
    resumed = run_stage("condition", root, tmp_path)
    assert sorted(resumed.losses) == list(range(step + 1, STEPS + 1))


def test_an_error_of_the_writer_ends_training_at_the_step_at_which_it_is_known(root, tmp_path, monkeypatch):
    failed, reached = threading.Event(), []

    def fail(*_):
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path))

    def third(module):
        assert failed.wait(10)
        time.sleep(0.2)  # for the thread to end

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fail)
    acts = [At(step, lambda module, step=step: reached.append(step)) for step in range(1, STEPS + 1)]
    with pytest.raises(OSError, match="Input/output error"):
        train(root, tmp_path, At(3, third), *acts)
    assert reached == [1, 2, 3]


def test_a_job_that_is_asked_to_stop_stops_when_its_state_is_written(root, tmp_path, monkeypatch):
    held, preemption = Held(monkeypatch), Preemption(Processes())

    def ask(module):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(0.3, held.free.set).start()

    written = []
    original = callbacks.LastCheckpoint._save

    def save(*arguments, **named):
        try:
            original(*arguments, **named)
        except Preempted:
            written.extend(held.written)  # before the trainer tidies up
            raise

    monkeypatch.setattr(callbacks.LastCheckpoint, "_save", save)
    with preemption.watching(), pytest.raises(Preempted):
        train(root, tmp_path, At(3, ask), preemption=preemption, checkpoint_every=8)
    assert written == [("last", 3)]


def train_and_die(root, path, name, point):
    """Stage 2, killed while the checkpoint ``name`` of step 4 is written, after step 5 was taken."""
    taken, calls = threading.Event(), []

    def die():
        assert taken.wait(30)
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def dying(target, sync=False):
        calls.append(Path(target).stem)
        here = calls == (["last", "best"] if name == "best" else ["last", "best", "last"])
        with atomic_path(target, sync=sync) as temporary:
            if here and point == "begun":
                temporary.write_bytes(b"PK half of it")
                die()
            yield temporary
            if here and point == "written":
                die()
        if here and point == "renamed":
            die()

    callbacks.atomic_path = dying
    train(root, path, At(5, lambda module: taken.set()))


@pytest.mark.slow
@pytest.mark.parametrize("name, point, step", [
    ("best", "begun", 2), ("best", "renamed", 2), ("last", "written", 2), ("last", "renamed", 4),
])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(root, whole, tmp_path, name, point, step):
    killed = Fork(train_and_die, root, tmp_path, name, point)
    assert killed.wait() == -signal.SIGKILL, killed.read()
    killed.close()
    place, (expected_folder, expected) = tmp_path / "checkpoints", whole
    assert torch.load(place / "last.ckpt", weights_only=True)["global_step"] == step
    assert len(list(place.glob(".*.partial*"))) == (point != "renamed")
    assert (place / "best.ckpt").exists() == ((name, point) != ("best", "begun"))
    resumed = run_stage("condition", root, tmp_path)
    assert not list(place.glob(".*.partial*"))
    assert sorted(resumed.losses) == list(range(step + 1, STEPS + 1))
    for now, (loss, keys) in resumed.losses.items():
        assert keys == expected.losses[now][1] and loss == pytest.approx(expected.losses[now][0], abs=1e-6)
    assert resumed.validations == {now: pytest.approx(figures, abs=1e-6)
                                   for now, figures in expected.validations.items() if now > step}
    left, right = weights(tmp_path), weights(expected_folder)
    for part in right:
        assert all(torch.allclose(left[part][key], right[part][key], atol=1e-6) for key in right[part])


def test_a_damaged_or_foreign_checkpoint_is_refused_in_words(root, whole, tmp_path):
    settings = stage_settings(STEPS)
    module = pretraining(settings)
    good = whole[0] / "checkpoints" / "last.ckpt"
    assert read_checkpoint(good, module)["global_step"] == STEPS
    other = build({**ENCODER, "width": 32})
    wider = pretraining(settings, other)
    for model in (wider, MelVAE(build(CODEC | {"mel_mean": 0.0, "mel_std": 1.0}), {}, settings.optimise())):
        with pytest.raises(InputError, match=r"last\.ckpt is a checkpoint of another model: \d+ of its parameters"):
            read_checkpoint(good, model)
    content = good.read_bytes()
    for damaged in (content[:-1000], content[:5000], b"", b"no checkpoint"):
        path = tmp_path / "last.ckpt"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt can't be read as a checkpoint .*delete it"):
            read_checkpoint(path, module)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "last.ckpt"
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save({"state_dict": Bomb()}, tmp_path / "new.ckpt")
    module = torch.nn.Linear(1, 1)
    for name in ("last.ckpt", "new.ckpt"):
        with pytest.raises(InputError, match=f"{name} can't be read as a checkpoint"):
            read_checkpoint(tmp_path / name, module)
    assert not (tmp_path / "ran").exists()


def test_going_on_from_another_models_checkpoint_is_refused(root, whole, tmp_path):
    folder = stage_folder(tmp_path / "vae")
    folder.last_checkpoint.parent.mkdir()
    folder.last_checkpoint.write_bytes((whole[0] / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(InputError, match="checkpoint of another model"):
        run_stage("vae", root, tmp_path / "vae")
