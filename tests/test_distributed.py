"""Which process, which share of the work, which GPU: one answer for all programs, however they were started."""

from __future__ import annotations

import os
import socket
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vta_sam.runtime import distributed, usable_cores
from vta_sam.runtime.distributed import (
    Processes, choose_accelerator, choose_device, own_cores, share_of_plan, share_of_work, visible_gpus
)
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


@pytest.mark.parametrize("environ, words", [
    ({}, None), ({"WORLD_SIZE": "8"}, None), ({"RANK": "1"}, None), ({"RANK": "", "WORLD_SIZE": "8"}, None),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, None), ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"RANK": "0", "WORLD_SIZE": "1"}, None),
    ({"RANK": "0", "WORLD_SIZE": "8"}, "worker 0 of 8, as torchrun says (RANK, WORLD_SIZE); rank= and world= override"),
    (STEP, "worker 6 of 8, as SLURM says (SLURM_PROCID, SLURM_STEP_NUM_TASKS); rank= and world= override"),
])
def test_a_share_that_nobody_asked_for_is_said_aloud(environ, words):
    assert share_of_plan(None, None, environ) == (words or "")
    assert words or share_of_work(None, None, environ) == (0, 1)
    assert share_of_plan(3, 64, environ) == "worker 3 of 64, as rank= and world= say"


def a_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(f"{text}\n")


@pytest.mark.parametrize("own, groups, cores", [
    ("0::/job\n", {"job": {"cpu_max": "200000 100000"}}, 2), ("0::/job\n", {"job": {"cpu_max": "max 100000"}}, 16),
    ("0::/a/b\n", {"a": {"cpu_max": "350000 100000"}, "a/b": {"cpu_max": "800000 100000"}}, 4),
    ("0::/\n", {"": {"cpu_max": "50000 100000"}}, 1), ("0::/gone\n", {}, 16), ("nonsense\n", {}, 16), (None, {}, 16),
    ("5:memory:/x\n4:cpu,cpuacct:/d/1\n", {"cpu": {"cpu_cfs_quota_us": "300000", "cpu_cfs_period_us": "100000"}}, 3),
    ("4:cpuset:/x\n", {"cpu": {"cpu_cfs_quota_us": "300000", "cpu_cfs_period_us": "100000"}}, 16),
    ("4:cpu:/j\n", {"cpu/j": {"cpu_cfs_quota_us": "-1", "cpu_cfs_period_us": "100000"}}, 16),
])
def test_cores_are_those_of_the_affinity_and_of_the_cgroups(tmp_path, monkeypatch, own, groups, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    if own is not None:
        (tmp_path / "own").write_text(own)
    for place, files in groups.items():
        a_group(tmp_path / "groups" / place, **files)
    assert usable_cores(tmp_path / "own", tmp_path / "groups") == cores


@pytest.mark.parametrize("environ, cores", [
    ({}, 16), ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 4), ({"RANK": "1", "WORLD_SIZE": "3"}, 5),
    ({"RANK": "1", "WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "64"}, 1), (STEP, 4),
    ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, 3), ({**STEP, "SLURM_CPUS_PER_TASK": "7"}, 7),
    ({"SLURM_CPUS_PER_TASK": "12", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 3),
    ({"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6"}, 6),
])
def test_cores_are_parted_among_the_processes_of_a_machine(monkeypatch, environ, cores):
    monkeypatch.setattr("vta_sam.runtime.distributed.usable_cores", lambda: 16)
    assert own_cores(environ) == cores


@pytest.mark.parametrize("environ, said", [
    ({"RANK": "5", "WORLD_SIZE": "4"}, "RANK=5 of WORLD_SIZE=4: ranks go from 0 to 3; unset both where torchrun"),
    ({"RANK": "first", "WORLD_SIZE": "4"}, "RANK=first: expected a whole number"),
    ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected a whole number, at least 1"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: expected a whole number"),
    ({**STEP, "SLURM_PROCID": "8"}, "SLURM_PROCID=8 of SLURM_STEP_NUM_TASKS=8"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID is not set"),
])
def test_a_wrong_rank_is_refused_by_the_name_of_its_variable(environ, said):
    for reads in (lambda: share_of_work(None, None, environ), lambda: Processes.of_environment(environ)):
        with pytest.raises(InputError) as refused:
            reads()
        assert str(refused.value).startswith(said)


def alone_at(monkeypatch) -> str:
    """A free address in the environment, at which nobody else will come; ⇒ that address."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    monkeypatch.setattr(os, "environ", {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    monkeypatch.setattr(distributed, "_STEP_LIMIT", timedelta(seconds=1))
    monkeypatch.setattr(distributed, "_SILENT_S", 0.1)
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize("rank, said", [(0, "waiting for 7 other processes at {}\n"),
                                        (3, "process 3 of 8: waiting for the others at {}\n")])
def test_one_that_waits_for_others_says_so_and_ends_with_a_sentence(rank, said, monkeypatch, capfd):
    place = alone_at(monkeypatch)
    with pytest.raises(InputError, match=f"process {rank} of 8 did not meet the 7 other processes at {place} .*"
                                         "unset RANK and WORLD_SIZE"), Processes(rank, 8, rank, 8).connected():
        pass
    assert said.format(place) in capfd.readouterr().err
    assert not torch.distributed.is_initialized()


def test_the_first_machine_must_be_known(monkeypatch):
    for name in ("MASTER_ADDR", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="MASTER_ADDR doesn't say"), Processes(0, 8, 0, 4).connected():
        pass


@pytest.mark.parametrize("name, gpus, said", [
    ("mps", 0, "device=mps is not here; there is cpu"), ("xpu", 0, "device=xpu is not here; there is cpu"),
    ("meta", 0, "device=meta is not here; there is cpu"), ("hip", 0, r"device=hip is not here \(AMD's GPUs are called"),
    ("cuda", 0, "device=cuda is not here; there is cpu"), ("cpu:1", 1, "device=cpu:1 is not here"),
    ("cuda:7", 2, "device=cuda:7 is not here; there is cpu, cuda:0, cuda:1"),
    ("abacus", 0, "device=abacus is not a device; expected auto or one of those here: cpu"),
    (None, 0, "device=None is not a device"), ("CUDA", 1, "device=CUDA is not a device.*cpu, cuda:0"),
])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name, gpus, said, monkeypatch):
    monkeypatch.setattr(distributed, "visible_gpus", lambda: gpus)
    with pytest.raises(InputError, match=said):
        choose_device(name)


def test_on_a_mac_auto_is_the_processor_and_says_so(monkeypatch):
    monkeypatch.setattr(distributed, "visible_gpus", lambda: 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="device=auto is the processor here; device=mps is this Mac's GPU"):
        assert choose_device("auto") == torch.device("cpu")
        assert choose_accelerator("auto") == "cpu"
    assert choose_device("mps") == torch.device("mps") and choose_accelerator("gpu") == "gpu"


@pytest.mark.parametrize("name, gpus, chosen", [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("gpu", 2, "gpu"),
                                                ("cuda", 1, "cuda"), ("cpu", 1, "cpu"), ("gpu", 0, None),
                                                ("mps", 1, None), ("tpu", 1, None)])
def test_training_takes_the_devices_that_are_here(name, gpus, chosen, monkeypatch):
    monkeypatch.setattr(distributed, "visible_gpus", lambda: gpus)
    if chosen:
        assert choose_accelerator(name) == chosen
    else:
        with pytest.raises(InputError, match=f"accelerator={name} is not here; there is cpu"):
            choose_accelerator(name)


def test_nobody_else_reads_who_is_who():
    """The variables of ranks stand in one module, and in no config."""
    root = CONF.parent
    files = [*(root / "vta_sam").rglob("*.py"), *CONF.rglob("*.yaml"), *(root / "experiments").glob("*.py"),
             *(root / "data_prep").glob("*.py")]
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", '"LOCAL_RANK"', '"WORLD_SIZE"')
    found = {path.name for path in files if any(name in path.read_text(encoding="utf-8") for name in names)}
    assert found == {"distributed.py"}
