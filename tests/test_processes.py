"""Several processes train as one does with the whole batch; one that is asked to stop saves, one that dies takes the
others along."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_data
import torch
from models import make_model_folder
from programs import REPOSITORY, call
from safetensors.torch import load_file
from tiny_data import FRAME_DIM, OBJECT_DIM, SPEC, a_clip, stage_settings, write_dataset
from together import CLIPS_A_STEP, STEPS, before, choose, finish, job, sampled, start, train, validate

from vta_sam.dataset.shards.batch import Augmentation
from vta_sam.diffusion.latent_diffusion import LatentDiffusion
from vta_sam.diffusion.objective import TIME_END, VPrediction
from vta_sam.runtime.cluster.preemption import EXIT_STATUS, Preempted
from vta_sam.runtime.distributed import Processes, gathered
from vta_sam.runtime.errors import InputError
from vta_sam.runtime.stage_module import logged_mean, logged_means
from vta_sam.training.callbacks import AtomicCheckpointIO

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


def chosen(folder):
    """Of the checkpoint that a stage keeps: its step, and the figure by which it was chosen."""
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    [score] = [state["best_model_score"] for key, state in best["callbacks"].items() if "ModelCheckpoint" in key]
    return best["global_step"], score.item()


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
    with pytest.raises(InputError, match=r"unequal numbers of tasks on srun's machines \(2,1\)"):
        Processes.of_environment({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                                  "SLURM_STEP_TASKS_PER_NODE": "2,1"})


def test_one_process_needs_nobody():
    alone = Processes()
    with alone.connected():
        assert alone.on_first_rank(lambda: 7) == 7 and alone.highest(3) == 3 and alone.first
        x = torch.ones(2, requires_grad=True)
        assert gathered(x) is x


def test_processes_wait_for_each_others_loss_only_where_it_is_logged(monkeypatch):
    module, asked = torch.nn.Identity(), []
    monkeypatch.setattr(torch.distributed, "all_reduce",
                        lambda value: asked.append(module.trainer.global_step) or value.add_(3))
    for step in range(30):
        module.trainer = SimpleNamespace(world_size=2, global_step=step, log_every_n_steps=10)
        assert logged_mean(module, torch.ones(())) == (2.0 if step in (9, 19, 29) else 1.0)
        one, four = logged_means(module, {"one": torch.ones(()), "four": torch.tensor(4.0)}).values()
        assert (one, four) == ((2.0, 3.5) if step in (9, 19, 29) else (1.0, 4.0))
    assert asked == [9, 9, 19, 19, 29, 29]


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
        (step, score), (expected_step, expected_score) = chosen(tmp_path / stage), chosen(folder / stage)
        assert step == expected_step and score == pytest.approx(expected_score, abs=1e-3)


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


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A dataset of clips of one thing each, a model of random weights, and its figures by one process ⇒ (arguments of
    the train program but for runs=, folder of that run)."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_data, "a_clip", a_clip_of_one_thing)
        info = write_dataset(folder / "shards", {"train": 2, "val": 1, "test": 5})
    recipes = {"grounder": {"_target_": "tiny_grounder"}, "encoder": {"_target_": "tiny_encoder"}}
    replace(info, recipes=recipes).write(folder / "shards")
    model = make_model_folder(folder, spec=SPEC, dims={"frame_dim": FRAME_DIM, "object_dim": OBJECT_DIM})
    arguments = ["+exp=vta_sam", "size=smoke", "data=shards", f"data.root={folder}/shards", "stages=[figures]",
                 f"model={model}", "figures.batch_size=2", "figures.clips=5", "sampler.steps=2", "threads=1"]
    done = call("experiments/train.py", *arguments, f"runs={folder}/runs", cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return arguments, folder / "runs" / "vta_sam-0"


def a_clip_of_one_thing(key, **more):
    clip = a_clip(key, **more)
    return clip.replace(objects=clip.objects[:1], label=clip.objects[0], object_embedding=clip.object_embedding[:1],
                        probs=clip.probs[:, :1], boxes=clip.boxes[:, :1], areas=clip.areas[:, :1])


def figures_of(run):
    found = json.loads((run / "figures.json").read_text())
    sounds = {path.name: path.read_bytes() for path in (run / "figures" / "generated").glob("*.wav")}
    return {name: value for name, value in found.items() if name not in ("seconds", "peak_memory_gb")}, sounds


def test_several_processes_part_a_run_s_figures_and_find_those_of_one(measured, tmp_path):
    arguments, alone = measured
    ended = finish(start(2, "", *arguments, f"runs={tmp_path}", work=job))
    assert [status for status, _ in ended] == [0, 0], ended
    expected, sounds = figures_of(alone)
    assert "swap" in expected and expected["clips"] == 5 and expected["vae"]["mel_error_share"] > 0
    assert figures_of(tmp_path / "vta_sam-0") == (expected, sounds)


def test_a_process_that_is_asked_to_stop_ends_the_figures_of_all(measured, tmp_path):
    arguments, _ = measured
    ended = finish(start(2, "1:stop", *arguments, f"runs={tmp_path}", work=job))
    assert [status for status, _ in ended] == [EXIT_STATUS, EXIT_STATUS], ended
    assert not (tmp_path / "vta_sam-0" / "figures.json").exists()


def test_what_one_process_can_t_generate_ends_all_with_its_sentence(measured, tmp_path):
    arguments, _ = measured
    ended = finish(start(2, "1:refuse", *arguments, f"runs={tmp_path}", work=job))
    assert [status for status, _ in ended] == [2, 2], ended
    assert "error: process 1 of 2: the second batch can't be generated" in ended[1][1]
    assert "can't be generated" not in ended[0][1] and "Traceback" not in ended[0][1] + ended[1][1]


def test_processes_part_the_samples_of_a_validation_and_log_those_of_one(tmp_path):
    model = make_model_folder(tmp_path)
    expected, batches = sampled(model, Processes())
    assert batches == [["a", "b"], ["c", "d"], ["e"]] and len(expected) == 6
    assert [status for status, _ in finish(start(2, model, tmp_path, work=validate))] == [0, 0]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [logged for logged, _ in found] == [expected, expected]
    # the last round's batch twice: all call the networks equally often
    assert [mine for _, mine in found] == [[["a", "b"], ["e"]], [["c", "d"], ["e"]]]


def test_every_clip_has_another_before_it_as_in_one_process(tmp_path):
    assert [status for status, _ in finish(start(2, tmp_path, work=before))] == [0, 0]
    for rank, expected in enumerate(([5, 1, 3], [0, 2, 4])):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [expected, [[row, row] for row in expected]]


def test_errors_by_time_are_those_of_all_processes_rows(monkeypatch):
    """Of the last step that had a row in the bin; step 6 is bin 2's last. A step has two batches, as with accumulated
    gradients."""
    draws = torch.Generator().manual_seed(0)
    errors, times = torch.rand(25, 8, generator=draws), torch.randint(TIME_END, (25, 8), generator=draws)
    logged: dict[str, dict[int, dict[str, float]]] = {"one": {}, "first": {}, "second": {}}

    def module(name, world):
        made = LatentDiffusion(torch.nn.Identity(), torch.nn.Identity(), VPrediction(), 1.0, 0.0, Augmentation(), None)
        made._trainer = SimpleNamespace(world_size=world, global_step=0, log_every_n_steps=10)
        made.log = lambda key, value, **_: logged[name].setdefault(
            made.trainer.global_step, {}).update({key: value.item()})
        return made

    one, first, second = module("one", 1), module("first", 2), module("second", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce",
                        lambda value: value.add_(torch.stack(list(second._bin_sums.values()))))
    width = TIME_END // 4
    times[7:] %= 2 * width
    times[6, 0] = 2 * width
    times[3, 5] = 3 * width + 1
    for step in range(25):
        for each, rows in ((second, slice(1, None, 2)), (first, slice(0, None, 2)), (one, slice(None))):
            each.trainer.global_step = step
            for half in torch.arange(8)[rows].chunk(2):
                each._count_bins(errors[step, half], times[step, half], 8)
    for name in ("one", "first"):
        for step in (9, 19):
            for i in range(4):
                value, wanted = logged[name][step][f"train/mse_t{i * width}"], float("nan")
                for earlier in range(step - 9, step + 1):
                    if (inside := times[earlier] // width == i).any():
                        wanted = errors[earlier][inside].mean().item()
                assert value == pytest.approx(wanted, rel=1e-5, nan_ok=True), (name, step, i)
        assert list(logged[name]) == [9, 19] and np.isnan(logged[name][19][f"train/mse_t{2 * width}"])


def test_what_another_process_refuses_is_no_interruption_by_the_user(root, tmp_path):
    """It ends this process with status 2, in silence; Ctrl-C would end it with 130, and a word."""
    def refused(step):
        raise SystemExit(2)

    with pytest.raises(SystemExit, match="^2$"):
        train("vae", root, tmp_path / "vae", act=refused)
