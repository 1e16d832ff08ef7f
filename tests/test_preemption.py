"""What a job does when it is asked to stop, and where a step would spoil its weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import (
    CAPTION_DIM, CONDITIONER, FRAME_DIM, SPEC, stage_context, stage_folder, stage_settings, write_dataset
)
from tiny_stages import pretraining, run_stage

from vta_sam.dataset.shards import datamodule
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.runtime.cluster.preemption import REQUEUE, STOP, Preempted, Preemption, queue_name, requeue
from vta_sam.runtime.distributed import Processes
from vta_sam.runtime.errors import InputError
from vta_sam.training import stage as stage_module
from vta_sam.training.job import STAGES

STEPS = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


class Act(L.Callback):
    """Does something to the module or this process at the end of a step."""

    def __init__(self, step, act):
        self.step, self.act, self.keys = step, act, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.keys.setdefault(trainer.global_step, []).extend(batch.keys)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.step = -1  # with accumulated gradients a step ends once
            self.act(pl_module)


def train(root, path, step, act, preemption=None, loaders=0, **settings):
    """Eight steps of stage 2 ⇒ (module, folder, the callback)."""
    told, folder = replace(stage_settings(STEPS, **settings), workers=loaders), stage_folder(path)
    context = stage_context(root, read_dataset(root), preemption=preemption or Preemption(Processes()))
    with context.seeded("condition"):
        module = pretraining(told)
    callback = Act(step, lambda pl_module: act(pl_module))
    try:
        data = context.datamodule("condition", told)
        context.fit(module, data, folder, told, "a test", ("val/loss", "min"), [callback])
    finally:
        module.acted = callback
    return module, folder, callback


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Eight steps that nothing stops, of one batch and of two ⇒ {batches a step: (weights, the callback)}."""
    done = {accumulate: train(root, tmp_path_factory.mktemp("whole"), -1, None, accumulate=accumulate)
            for accumulate in (1, 2)}
    return {accumulate: (module.state_dict(), acted) for accumulate, (module, _, acted) in done.items()}


def steps_of(folder):
    return torch.load(folder.last_checkpoint, weights_only=True)["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("number, asked, step, accumulate", [
    (signal.SIGTERM, False, 3, 1), (signal.SIGUSR1, True, 4, 1), (signal.SIGUSR1, True, 3, 2),
])
def test_asked_in_a_step_it_saves_at_the_steps_end(root, whole, tmp_path, number, asked, step, accumulate):
    """Step 3 has no checkpoint of its own; at step 4 a validation comes first. Then it goes on to the same weights."""
    preemption = Preemption(Processes())
    with preemption.watching(), pytest.raises(Preempted) as stopped:
        train(root, tmp_path / "one", step, lambda module: os.kill(os.getpid(), number), preemption,
              accumulate=accumulate)
    assert stopped.value.requeue is asked
    folder = stage_folder(tmp_path / "one")
    assert steps_of(folder) == step
    assert (folder.best_checkpoint.exists()) == (step == 4), "validated before it was saved"
    resumed, _, _ = train(root, tmp_path / "one", -1, None, accumulate=accumulate)
    expected, _ = whole[accumulate]
    for name, value in expected.items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_loader_processes_outlive_what_asks_the_job_to_stop(root, tmp_path):
    """SLURM signals all of a job's processes."""
    others = {process.pid for process in multiprocessing.active_children()}  # that other tests keep

    def everyone(module):
        loaders = [process for process in multiprocessing.active_children() if process.pid not in others]
        assert len(loaders) == 2
        subprocess.run(["kill", "-TERM", *(str(process.pid) for process in loaders)], check=True)
        time.sleep(0.3)
        assert all(process.is_alive() for process in loaders)
        os.kill(os.getpid(), signal.SIGTERM)

    preemption = Preemption(Processes())
    with preemption.watching(), pytest.raises(Preempted):
        train(root, tmp_path, 3, everyone, preemption, loaders=2)
    assert steps_of(stage_folder(tmp_path)) == 3


def test_loader_processes_that_are_being_started_outlive_it_too(root, monkeypatch):
    """A process is there for a moment before it has said what it does about signals."""
    started = datamodule._outlive_signals
    monkeypatch.setattr(datamodule, "_outlive_signals", lambda worker: (time.sleep(1.0), started(worker)))
    others = {process.pid for process in multiprocessing.active_children()}
    asked = []

    def ask():
        while not (new := [p.pid for p in multiprocessing.active_children() if p.pid not in others]):
            time.sleep(0.01)
        asked.extend(new)
        subprocess.run(["kill", "-TERM", *map(str, new)], check=True)

    data = datamodule.ShardDataModule(root, SPEC, 2, 0, "test", workers=1)
    thread = threading.Thread(target=ask)
    thread.start()
    batches = iter(data.train_dataloader())
    assert len(next(batches).keys) == 2 and asked
    thread.join()


@pytest.mark.slow
def test_a_loader_that_is_still_held_does_not_keep_the_process_from_ending(root):
    """Leaving Python, a process ends its children by SIGTERM and waits for them."""
    program = f"""
import sys
from tiny_data import SPEC
from vta_sam.dataset.shards.datamodule import ShardDataModule

if __name__ == "__main__":
    data = ShardDataModule({str(root)!r}, SPEC, 2, 0, "test", workers=2)
    sys.held = iter(data.train_dataloader())  # outlives every other thing of the process
    print(len(next(sys.held).keys))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True,
                           timeout=120, start_new_session=True)
    assert (ended.returncode, ended.stdout) == (0, "2\n"), ended.stderr


def test_asked_outside_of_training_it_stops_at_once_and_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    preemption = Preemption(Processes())
    with pytest.raises(Preempted), preemption.watching():
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.pause()
    assert {number: signal.getsignal(number) for number in before} == before


def test_going_back_into_the_queue_is_the_larger_wish():
    preemption = Preemption(Processes())
    with preemption.watching(), preemption.training():
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked() == STOP
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.asked() == REQUEUE
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked() == REQUEUE


@pytest.fixture
def handlers():
    """What requeue() ignores is heard again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A scontrol that notes what it is told, and ends as it is told."""
    def put(status: int) -> None:
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\necho "Invalid job id" >&2\nexit {status}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return put


@pytest.mark.parametrize("environ, job", [
    ({"SLURM_JOB_ID": "17"}, "17"),
    ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "17_3"),
])
def test_a_job_goes_back_into_the_queue(environ, job, scontrol, tmp_path, handlers):
    assert queue_name(environ) == job
    scontrol(0)
    assert requeue(job) is None
    assert (tmp_path / "told").read_text() == f"requeue {job}\n"
    scontrol(1)
    assert requeue(job) == "Invalid job id"


def test_without_slurm_there_is_no_queue(monkeypatch, tmp_path, handlers):
    assert queue_name({}) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "scontrol" in requeue("17")


def spoil_loss(module):
    forward = module.measure
    module.measure = lambda batch: (lambda loss, figures: (loss * float("nan"), figures))(*forward(batch))


def spoil_gradient(module):
    """The loss stays what it is; one gradient becomes infinite."""
    module.encoder.project.weight.register_hook(lambda gradient: gradient + float("inf"))


@pytest.mark.parametrize("spoil, accumulate", [(spoil_loss, 1), (spoil_gradient, 2)])
def test_a_step_that_is_not_finite_is_not_taken(root, whole, tmp_path, spoil, accumulate):
    with pytest.raises(InputError, match=r"step 5: the loss is .*its clips stand in .*nonfinite-0\.json"):
        train(root, tmp_path, 5, spoil, accumulate=accumulate)
    folder = stage_folder(tmp_path)
    assert steps_of(folder) == 4
    noted = json.loads((tmp_path / "nonfinite-0.json").read_text())
    assert noted["step"] == 5 and len(noted["clips"]) == 2 * accumulate == 2 * len(noted["losses"])
    assert ("nan" in noted["losses"]) == (spoil is spoil_loss)
    _, acted = whole[accumulate]
    assert noted["clips"] == acted.keys[5], "the clips of the step that was refused"
    assert all(torch.isfinite(value).all() for value in torch.load(folder.last_checkpoint, weights_only=True)[
        "state_dict"].values())


DIFF_FOLEY = {
    "_target_": "diff_foley", "token_dim": 16, "latent_channels": 8,
    "latent_freq": 4, "classifier": {"width": 16, "layers": 1}, "encoder": {
        "_target_": "aligned_frame_encoder", "frame_dim": FRAME_DIM, "width": 16, "dim": 8,
        "layers": 1}}
FOLEYCRAFTER = {
    "_target_": "foleycrafter", "caption_dim": CAPTION_DIM,
    "frame_dim": FRAME_DIM, "token_dim": 16, "onsets": {
        "_target_": "onset_predictor", "frame_dim": FRAME_DIM, "width": 16, "layers": 1}}
PARTS = {"condition": CONDITIONER, "contrastive": DIFF_FOLEY, "classifier": DIFF_FOLEY, "onsets": FOLEYCRAFTER}


@pytest.fixture(scope="module")
def vae(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    run_stage("vae", root, folder)
    return folder / "model"


@pytest.mark.slow
@pytest.mark.parametrize("stage", PARTS)
def test_every_stage_before_the_diffusion_goes_on_exactly(stage, root, vae, tmp_path):
    """Model, average, optimiser, schedule and place in the data come back; noise belongs to its clip."""
    def run(out, preemption=None, stop_at=None):
        context = stage_context(root, read_dataset(root), preemption=preemption or Preemption(Processes()))
        original, told = stage_module.fit, stage_settings(STEPS)
        stop = Act(stop_at, lambda module: os.kill(os.getpid(), signal.SIGUSR1))
        stage_module.fit = lambda *args: original(*args[:7], callbacks=[*args[7], stop], preemption=args[8])
        told.weights.update(between=1.0, within=1.0)
        try:
            STAGES[stage].train_part(context, stage_folder(out), told, PARTS[stage], {}, vae)
        finally:
            stage_module.fit = original
        return {path.name: load_file(path) for path in (out / "model").glob("*.safetensors")}

    whole = run(tmp_path / "whole")
    preemption = Preemption(Processes())
    with preemption.watching(), pytest.raises(Preempted):
        run(tmp_path / "stopped", preemption, stop_at=5)
    content = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["ShardDataModule"] == {"samples": 2 * 5} and content["lr_schedulers"][0]["last_epoch"] == 5
    assert next(iter(content["optimizer_states"][0]["state"].values()))["step"] == 5
    assert set(content["state_dict"]) == set(content["current_model_state"]) and content["averaging_state"]
    resumed = run(tmp_path / "stopped")
    assert whole.keys() == resumed.keys() and whole
    for part, weights in whole.items():
        assert all(torch.equal(value, resumed[part][name]) for name, value in weights.items()), part
