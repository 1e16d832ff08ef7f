"""Several processes train as one does with the whole batch; one that is asked to stop saves, one that dies takes the
others along."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import stage_settings, write_dataset
from together import CLIPS_A_STEP, STEPS, choose, finish, start, train

from vta_sam.runtime.distributed import Processes, gathered
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.stage_module import logged_mean
from vta_sam.training.callbacks import AtomicCheckpointIO
from vta_sam.training.preemption import EXIT_STATUS, Preempted

STAGES = ("vae", "condition", "diffusion")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """Every stage by one process ⇒ (folder, {stage: losses})."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {stage: train(stage, root, folder / stage, folder / "vae" / "model") for stage in STAGES}
    torch.set_num_threads(threads)
    return folder, found


def weights(folder):
    return {f"{path.stem}.{name}": value for path in (folder / "model").glob("*.safetensors")
            for name, value in load_file(path).items()}


def assert_near(left, right, limit):
    left, right = weights(left), weights(right)
    assert set(left) == set(right) and left
    far = {name: (left[name] - right[name]).abs().max().item() for name in left}
    assert max(far.values()) <= limit, max(far.items(), key=lambda item: item[1])


@pytest.mark.parametrize("environ, expected", [
    ({}, Processes(0, 1, 0, 1)),
    ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Processes(3, 4, 1, 2)),
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Processes(0, 1, 0, 1)),  # a batch script's own process
    ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
     Processes(5, 6, 1, 2)),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Processes(0, 1, 0, 1)),
])
def test_processes_know_each_other(environ, expected):
    assert Processes.of_environment(environ) == expected
    assert expected.machines * expected.local_world == expected.world


def test_unequal_machines_are_refused():
    with pytest.raises(InputError, match=r"unequal numbers of tasks on its machines \(2,1\)"):
        Processes.of_environment({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                                  "SLURM_STEP_TASKS_PER_NODE": "2,1"})


def test_one_process_needs_nobody():
    alone = Processes()
    with alone.connected():
        assert alone.on_first_rank(lambda: 7) == 7 and alone.highest(3) == 3 and alone.first
        x = torch.ones(2, requires_grad=True)
        assert gathered(x) is x


def test_processes_wait_for_each_others_loss_only_where_it_is_logged():
    module, asked = torch.nn.Identity(), []
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: asked.append(module.trainer.global_step) or value / 2)
    for step in range(30):
        module.trainer = SimpleNamespace(world_size=2, global_step=step, log_every_n_steps=10, strategy=strategy)
        assert logged_mean(module, torch.ones(())) == (0.5 if step in (9, 19, 29) else 1.0)
    assert asked == [9, 19, 29]


@pytest.mark.parametrize("batch_size, accumulate, world, parted", [
    (16, 1, 1, (16, 1)), (16, 1, 2, (8, 1)), (16, 4, 2, (16, 2)), (16, 4, 4, (16, 1)), (16, 4, 16, (4, 1)),
])
def test_a_step_has_as_many_clips_whatever_the_processes(batch_size, accumulate, world, parted):
    settings = stage_settings(8, batch_size, accumulate=accumulate).split_over(world)
    assert (settings.batch_size, settings.fit.accumulate) == parted
    assert settings.batch_size * settings.fit.accumulate * world == batch_size * accumulate


@pytest.mark.parametrize("batch_size, accumulate, world", [(16, 1, 3), (4, 1, 8), (6, 2, 4 * 2), (10, 3, 2)])
def test_clips_that_do_not_part_evenly_are_refused(batch_size, accumulate, world):
    with pytest.raises(InputError, match="can't be split evenly over"):
        stage_settings(8, batch_size, accumulate=accumulate).split_over(world)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(root, alone, tmp_path):
    folder, expected = alone
    ended = finish(start(2, root, tmp_path, folder / "vae" / "model", ",".join(STAGES)))
    assert [status for status, _ in ended] == [0, 0], ended
    found = json.loads((tmp_path / "losses.json").read_text())
    for stage in STAGES:
        for step in range(1, STEPS + 1):
            loss, keys = found[stage][str(step)]
            assert keys == expected[stage][step][1] and len(keys) == CLIPS_A_STEP
            assert loss == pytest.approx(expected[stage][step][0], abs=1e-4), f"{stage}, step {step}"
        assert_near(tmp_path / stage, folder / stage, 1e-3)  # Adam makes much of rounding where a gradient is nothing


@pytest.mark.slow
@pytest.mark.parametrize("number, requeue", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_one_that_is_asked_to_stop_stops_all_and_another_number_of_processes_goes_on(
        root, alone, tmp_path, number, requeue):
    """Asked at step 2, where a checkpoint is due, or at 3, where a validation is; then one process goes on."""
    folder, expected = alone
    step = 2 if requeue else STEPS // 2
    ended = finish(start(2, root, tmp_path, folder / "vae" / "model", "condition", f"1:{step}:{int(number)}"))
    assert [status for status, _ in ended] == [EXIT_STATUS] * 2, ended
    assert all(f"stopped, requeue {requeue}" in said for _, said in ended)
    last = torch.load(tmp_path / "condition" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step and not (tmp_path / "condition" / "model").exists()
    resumed = train("condition", root, tmp_path / "condition")
    assert sorted(resumed) == list(range(step + 1, STEPS + 1))
    for now, (loss, keys) in resumed.items():
        assert keys == expected["condition"][now][1] and loss == pytest.approx(expected["condition"][now][0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate, before, after", [(1, 1, 2), (4, 1, 2), (4, 2, 1)])
def test_average_and_best_score_are_the_same_after_a_change_of_processes(root, tmp_path, accumulate, before, after):
    """Four clips a step: of one process in so many batches, of two in half as many or half as large ones."""
    def told(world: int, folder: Path, *stop: str) -> list[int]:
        more = [*stop, *[""] * (1 - len(stop)), "ddp", accumulate]
        return [status for status, _ in finish(start(world, root, folder, tmp_path, "vae", *more))]

    assert told(1, tmp_path / "whole") == [0]
    assert told(before, tmp_path / "changed", f"0:4:{int(signal.SIGTERM)}") == [EXIT_STATUS] * before
    assert told(after, tmp_path / "changed") == [0] * after
    for name in ("best", "last"):
        left, right = (torch.load(tmp_path / run / "vae" / "checkpoints" / f"{name}.ckpt", weights_only=True)
                       for run in ("changed", "whole"))
        assert left["global_step"] == right["global_step"]
        for part in {"state_dict", "current_model_state"} & right.keys():  # averaged weights, and what is averaged
            assert all((left[part][key] - value).abs().max() < 1e-3 for key, value in right[part].items())
        scores, expected = (next(state["best_model_score"] for key, state in content["callbacks"].items()
                                 if key.startswith("ModelCheckpoint")) for content in (left, right))
        assert float(scores) == pytest.approx(float(expected), abs=1e-4)


def on_a_slow_disk(root, out, stop_at):
    """Stage 2; says of which step the last checkpoint is when training is over."""
    save, processes = AtomicCheckpointIO.save_checkpoint, Processes.of_environment()
    AtomicCheckpointIO.save_checkpoint = lambda *arguments, **named: (time.sleep(1), save(*arguments, **named))[1]

    def at(step):
        if step == int(stop_at):
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(Preempted), processes.connected():
        train("condition", Path(root), Path(out) / "condition", act=at, processes=processes)
    content = torch.load(Path(out) / "condition" / "checkpoints" / "last.ckpt", weights_only=True)
    print(f"last step {content['global_step']}", flush=True)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at, last", [(4, 4), (0, STEPS)])
def test_no_process_is_through_before_the_first_has_written(root, tmp_path, stop_at, last):
    """The first writes while steps go on; the others have nothing to write."""
    for status, said in finish(start(2, root, tmp_path, stop_at, work=on_a_slow_disk)):
        assert status == 0 and f"last step {last}" in said, said


@pytest.mark.slow
def test_one_that_dies_takes_the_other_along(root, alone, tmp_path):
    folder, _ = alone
    began = time.monotonic()
    ended = finish(start(2, root, tmp_path, folder / "vae" / "model", "condition", f"1:3:{int(signal.SIGKILL)}"))
    assert ended[1][0] == -signal.SIGKILL and ended[0][0] not in (0, EXIT_STATUS)
    assert "Connection closed by peer" in ended[0][1] or "Connection reset" in ended[0][1], ended[0][1][-2000:]
    assert time.monotonic() - began < 120


@pytest.mark.slow
def test_activations_that_are_computed_again_change_nothing(root, alone, tmp_path):
    folder, found = alone
    calls: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        again = torch.utils.checkpoint.checkpoint
        patch.setattr("torch.utils.checkpoint.checkpoint", lambda *a, **k: calls.append(a) or again(*a, **k))
        losses = train("diffusion", root, tmp_path / "diffusion", folder / "vae" / "model",
                       gradient_checkpointing=True)
    assert losses == found["diffusion"] and len(calls) >= STEPS
    assert_near(tmp_path / "diffusion", folder / "diffusion", 0.0)


def test_the_first_process_times_steps_that_the_others_do_not_take(tmp_path):
    assert [status for status, _ in finish(start(2, tmp_path, work=choose), 60)] == [0, 0]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


@pytest.mark.slow
def test_what_the_first_refuses_ends_all(root, tmp_path):
    """A folder of another dataset: one sentence, no hang."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.yaml").write_text("of: something else\n")
    ended = finish(start(2, root, tmp_path, tmp_path, "vae"))
    assert ended[1][0] == 2 and ended[0][0] == 1
    assert "was made with another config" in ended[0][1] and "was made with another config" not in ended[1][1]
