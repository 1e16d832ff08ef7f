"""Which process, which share of the work, which GPU: one answer for all programs, however they were started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vta_sam.runtime.distributed import Processes, choose_device, share_of_work, visible_gpus
from vta_sam.runtime.errors import InputError

CONF = Path(__file__).resolve().parents[1] / "conf"
STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
# how it was started, GPUs that the process sees ⇒ its share of work, what trains together, number of its GPU
STARTS = {
    "by hand": ({}, 2, (0, 1), Processes(), 0),
    "salloc -n 8": ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 2, (0, 1), Processes(), 0),
    "sbatch -n 8": ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}, 2, (0, 1), Processes(), 0),
    "a task of an array": ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1",
                            "SLURM_STEP_NUM_TASKS": "1"}, 1, (0, 1), Processes(), 0),
    "srun, all GPUs in sight": (STEP, 4, (6, 8), Processes(6, 8, 2, 4), 2),
    "srun --gpus-per-task=1": (STEP, 1, (6, 8), Processes(6, 8, 2, 4), 0),
    "srun, no GPU": (STEP, 0, (6, 8), Processes(6, 8, 2, 4), None),
    "torchrun": ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4, (5, 8),
                 Processes(5, 8, 1, 4), 1),
    "torchrun within srun": ({**STEP, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 4,
                             (5, 8), Processes(5, 8, 1, 4), 1),
    "WORLD_SIZE left over": ({"WORLD_SIZE": "8"}, 1, (0, 1), Processes(), 0),
}


@pytest.fixture(params=list(STARTS), ids=list(STARTS))
def start(request, monkeypatch):
    """The environment of a start in place of this process's, with as many GPUs in sight."""
    environ, gpus, share, processes, gpu = STARTS[request.param]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *STEP, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    return share, processes, gpu


def test_every_program_takes_the_same_share(start):
    share, processes, _ = start
    for name in ("extract", "encode_latents", "generate"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name)
        assert share_of_work(config.rank, config.world) == share, name
    assert (processes.rank, processes.world) == share
    assert Processes.of_environment() == processes


def test_training_and_inference_agree_on_whose_gpu_it_is(start):
    _, processes, gpu = start
    placed = processes.placed(visible_gpus())
    assert choose_device("auto") == (torch.device("cpu") if gpu is None else torch.device("cuda", gpu))
    if gpu is not None:
        assert placed.local_rank == gpu
        assert placed.machines * placed.local_world == placed.world and placed.local_world <= visible_gpus()


def test_torch_is_told_the_same(start, monkeypatch):
    _, processes, gpu = start
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    told = processes._torch_variables()
    assert (told["RANK"], told["WORLD_SIZE"]) == (str(processes.rank), str(processes.world))
    assert gpu is None or int(told["LOCAL_RANK"]) == gpu
    assert int(told["GROUP_RANK"]) * int(told["LOCAL_WORLD_SIZE"]) + int(told["LOCAL_RANK"]) == processes.rank


def test_too_few_gpus_are_refused():
    with pytest.raises(InputError, match="4 processes on this machine see 2 GPUs.*nproc-per-node 2"):
        Processes(1, 4, 1, 4).placed(2)


def test_a_share_given_by_hand_counts():
    assert share_of_work(3, 64, STEP) == (3, 64)
    for rank, world in ((3, None), (None, 3), (3, 3), (-1, 3), ("a", 3)):
        with pytest.raises(InputError, match="rank="):
            share_of_work(rank, world, {})


def test_unequal_machines_part_work_but_do_not_train():
    environ = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "5,3"}
    assert share_of_work(None, None, environ) == (6, 8)
    with pytest.raises(InputError, match="unequal numbers of tasks"):
        Processes.of_environment(environ)


def test_nobody_else_reads_who_is_who():
    """The variables of ranks stand in one module, and in no config."""
    root = CONF.parent
    files = [*(root / "vta_sam").rglob("*.py"), *CONF.rglob("*.yaml"), *(root / "experiments").glob("*.py"),
             *(root / "data_prep").glob("*.py")]
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", '"LOCAL_RANK"', '"WORLD_SIZE"')
    found = {path.name for path in files if any(name in path.read_text(encoding="utf-8") for name in names)}
    assert found == {"distributed.py"}
