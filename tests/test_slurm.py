"""SLURM's own daemons run extraction, training and ablations; tasks are killed, preempted, cancelled."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from killed_shares import (
    KILLS, arguments, at_a_random_instant, check_what_is_there, contents, kill, workers, write_corpus,
)
from programs import call
from safetensors.torch import load_file
from slurm_cluster import Cluster, why_not

ROOT = Path(__file__).resolve().parents[1]
HERE = ["launcher=slurm", "launcher.gpus=null", "launcher.cpus_per_task=1"]
SMALL = ["size=smoke", "embedded_clips.train=16", "embedded_clips.val=4", "embedded_clips.test=6", "validation.clips=2",
         "figures.clips=4", "figures.samples=1", "++vocoder.iterations=4"]
LONGER = [f"fit.{stage}.fit.{key}" for stage in ("condition", "diffusion") for key in ("steps=60", "validate_every=60")]

WAYS = {"out of time": ["scancel", "--signal=USR1"], "requeued": ["scontrol", "requeue"]}

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The smallest embedded world: videos, and shards made by one process."""
    folder = tmp_path_factory.mktemp("world")
    done = call("experiments/train.py", "+exp=vta_sam", *SMALL, "stages=[vae]", f"data.root={folder}",
                f"runs={folder}/runs", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def submit(cluster: Cluster, program: str, *overrides: str) -> tuple[str, list[str], str]:
    """⇒ (the job's number, those of its tasks, its log)."""
    said = cluster.run(sys.executable, program, *overrides, *HERE, cwd=ROOT)
    told = re.fullmatch(r"job (\d+) \(\S+?(?:, an array of (\d+) tasks)?\)\nlog: (.*)\n", said)
    assert told, said
    number, tasks, log = told.groups()
    return number, [f"{number}_{task}" for task in range(int(tasks))] if tasks else [number], log


def test_an_extraction_with_a_task_killed_equals_one_process(cluster, world, tmp_path):
    told = ["data_prep/extract.py", f"videos={world}/videos", "shard_size=2", "workers=1", "launcher.shards_per_job=7",
            f"launcher.logs={tmp_path}/logs"]
    alone = call(*told[:4], f"out={tmp_path}/alone", cwd=ROOT)
    assert alone.returncode == 0, alone.stderr
    _, tasks, _ = submit(cluster, *told, f"out={tmp_path}/array")
    assert len(tasks) == 2, "13 shards, 7 a task"
    cluster.wait_for(lambda: len(list((tmp_path / "array").glob("*.tar"))) >= 1, 300, "the first shard")
    killed = next(task for task in tasks if cluster.state(task) == "RUNNING")
    cluster.run("scontrol", "requeue", killed)
    cluster.start_soon(killed)
    cluster.finished(*tasks)
    for name in sorted(path.name for path in (tmp_path / "alone").iterdir() if not path.name.startswith(".")):
        assert (tmp_path / "array" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert not list((tmp_path / "array").glob(".*.partial*"))


def test_an_extraction_whose_workers_are_killed_again_and_again_equals_one_that_was_left_alone(cluster, tmp_path):
    """More tasks than workers. A process is killed, a task is out of time or requeued, a node goes away, at random."""
    corpus, alone = tmp_path / "videos", tmp_path / "alone"
    corpus.mkdir()
    write_corpus(corpus)
    done = call("data_prep/extract.py", *arguments(corpus, alone), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted, rng, kills = contents(alone), np.random.default_rng(4), Counter[str]()
    for folder in itertools.count():
        out, states = tmp_path / f"out-{folder}", {"FAILED"}
        while states != {"COMPLETED"}:  # the same command, as long as it takes
            job, tasks, log = submit(cluster, "data_prep/extract.py", *arguments(corpus, out), "launcher.max_at_once=2",
                                     "launcher.shards_per_job=4", f"launcher.logs={tmp_path}/logs")
            assert len(tasks) == 3 > 2

            def goes_on() -> bool:
                return sum(kills.values()) < KILLS and any(
                    cluster.state(task) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING") for task in tasks)

            while victim := at_a_random_instant(rng, out, goes_on, longest_s=8):
                rank = workers(out).get(victim, "").removeprefix("rank=")
                way = str(rng.choice(["killed", "out of time", "requeued", "node lost"], p=[0.3, 0.3, 0.2, 0.2]))
                running = {task: cluster.restarts(task) for task in tasks if cluster.state(task) == "RUNNING"}
                task = f"{job}_{rank}"
                if task not in running:
                    continue
                if way == "killed":
                    kills[way] += kill(victim)
                    cluster.wait_for(lambda: victim not in workers(out), 60, "the end of a killed process")
                elif way == "node lost":
                    kills[way] += len(running)
                    cluster.lose_node()
                elif cluster.takes(*WAYS[way], task):
                    kills[way] += 1
                else:  # it has just ended
                    continue
                for ended in running if way == "node lost" else [task] if way != "killed" else []:
                    cluster.ended(ended, running[ended])
                check_what_is_there(out, wanted)
            cluster.wait_for(lambda: all(cluster.state(task) in ("COMPLETED", "FAILED", "NODE_FAIL", "GONE")
                                         for task in tasks), 600, f"the end of job {job}")
            states = {cluster.state(task) for task in tasks}
            left_out = not out.exists() or contents(out).keys() != wanted.keys()
            assert not (left_out and states == {"COMPLETED"}), "something is missing, and no task says so"
        assert contents(out) == wanted
        if sum(kills.values()) >= KILLS:
            break
    print(dict(kills))


def train(world: Path, runs: Path, *more: str) -> list[str]:
    return ["experiments/train.py", "+exp=vta_sam", *SMALL, f"data.root={world}", f"runs={runs}",
            f"launcher.logs={runs}/logs", "launcher.tasks_per_node=2", *LONGER, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {f"{path.stem}.{name}": value for path in sorted((run / "diffusion" / "model").glob("*.safetensors"))
            for name, value in load_file(path).items()}


def test_a_training_that_is_preempted_ends_as_one_that_is_not(cluster, world, tmp_path):
    """Two tasks; SIGUSR1 in stage 2 and again in stage 3; back in the queue each time, by the job itself."""
    job, _, _ = submit(cluster, *train(world, tmp_path / "whole"))
    cluster.finished(job)
    job, _, log = submit(cluster, *train(world, tmp_path / "preempted"))
    run = tmp_path / "preempted" / "vta_sam-0"
    for stage in ("condition", "diffusion"):
        cluster.wait_for(lambda: (run / stage / "checkpoints" / "last.ckpt").exists(), 300, f"a checkpoint of {stage}")
        cluster.run("scancel", "--signal=USR1", job)
        cluster.start_soon(job)
    cluster.finished(job)
    said = Path(log).read_text()
    assert said.count(f"job {job} goes back into the queue") == 2 and "could not" not in said, said
    assert "2 processes on 1 machines" in said and "vae: done before" in said
    whole, preempted = weights(tmp_path / "whole" / "vta_sam-0"), weights(run)
    assert set(whole) == set(preempted) and whole
    assert max((whole[name] - preempted[name]).abs().max().item() for name in whole) <= 1e-6
    figures = [json.loads((folder / "figures.json").read_text()) for folder in (tmp_path / "whole" / "vta_sam-0", run)]
    assert figures[0]["timing"] == figures[1]["timing"]


def test_an_array_of_ablations(cluster, world, tmp_path):
    vae = next((world / "runs").glob("*/vae/model"))
    told = ["experiments/train.py", "+exp=vta_sam", *SMALL, f"data.root={world}", f"runs={tmp_path}",
            f"vae={vae}", "stages=[diffusion]", f"launcher.logs={tmp_path}/logs",
            "+ablation/probabilities=thresholded,by_area", "name=${hydra:job.override_dirname}"]
    _, tasks, _ = submit(cluster, *told)
    assert len(tasks) == 2
    cluster.finished(*tasks)
    runs = [path.parents[1] for path in tmp_path.glob("*/diffusion/done")]
    told = [yaml.safe_load((run / "diffusion" / "config.yaml").read_text())["conditioner"]["encoder"] for run in runs]
    assert sorted((encoder["weights"], encoder["threshold"]) for encoder in told) == [
        ("as_seen", 0.5), ("by_area", 0.0)]


def test_scancel_leaves_whole_checkpoints_alone(cluster, world, tmp_path):
    vae = next((world / "runs").glob("*/vae/model"))
    job, _, log = submit(cluster, *train(world, tmp_path, f"vae={vae}", "stages=[diffusion]"))
    checkpoints = tmp_path / "vta_sam-0" / "diffusion" / "checkpoints"
    cluster.wait_for(lambda: (checkpoints / "last.ckpt").exists(), 300, "a checkpoint")
    cluster.run("scancel", job)
    cluster.wait_for(lambda: cluster.state(job) == "CANCELLED", 120, "the end of the job")
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert content["global_step"] > 0 and not list(checkpoints.glob(".*"))
    said = Path(log).read_text()
    assert "asked to stop" in said and "goes back into the queue" not in said
