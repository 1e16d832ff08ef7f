"""launcher=ray: a job's tasks as those of a real Ray on this machine; what fails, is killed, is interrupted."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from killed_shares import (
    KILLS, arguments, at_a_random_instant, check_what_is_there, contents, kill, parent_of, workers, write_corpus,
)
from processes import still_alive
from programs import call

from vta_sam.runtime.cluster.launch import Program, launch
from vta_sam.runtime.cluster.ray_tasks import Ray, task_script
from vta_sam.runtime.cluster.scheduler import Job
from vta_sam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
TRAIN = Program(ROOT / "experiments" / "train.py", "train", ("runs", "exp", "seed", "name"))
HERE = {"gpus": None, "cpus_per_task": 1}


# ---------------------------------------------------------------------- without Ray

def test_a_dry_run_prints_what_each_task_runs(tmp_path, monkeypatch, capsys):
    """The script is run by bash, with a program in place of Python that prints what it gets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    launch(TRAIN, ["launcher=ray", "launcher.dry_run=true", "launcher.gpus=0.5", "launcher.setup=['export MINE=yes']",
                   "+exp=vta_sam", "seed=0,1", "name='a b'"])
    script = capsys.readouterr().out
    assert "# 2 tasks of Ray, $VTA_SAM_TASK from 0 to 1; each takes CPU 4, GPU 0.5, and is tried 4 times" in script
    printed = script.replace('exec "${command[@]}"', 'printf "%s|" "${command[@]}" "$MINE" "${SLURM_PROCID-none}"')
    second, third = (subprocess.run(["bash", "-c", printed], capture_output=True, text=True, env={
        "VTA_SAM_TASK": task, "PATH": "/bin", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}) for task in "12")
    assert second.stdout.endswith("|+exp=vta_sam|seed=1|name='a b'|yes|none|"), second
    assert third.returncode == 2 and "the array has 0 to 1" in third.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_runs_in_a_container(tmp_path):
    script = task_script(Ray(container="my image.sif"), Job("name", tmp_path, [["python", "a.py"]]))
    step = "apptainer exec --nv --bind \"$PWD\" --env PYTHONPATH=\"$PWD\" 'my image.sif'"
    assert f"exec {step} \"${{command[@]}}\"\n" in script
    assert "export PATH" not in script


def test_without_ray_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "vta-sam\[ray\]"'):
        launch(TRAIN, ["launcher=ray", "+exp=vta_sam"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings, words", [
    ({"gpus": 0}, "launcher.gpus=0: expected a number above 0"), ({"gpus": "a100:1"}, "launcher.gpus=a100:1"),
    ({"cpus_per_task": 0}, "launcher.cpus_per_task=0"), ({"retries": -1}, "a whole number from 0 on"),
    ({"max_at_once": 1.5}, "launcher.max_at_once=1.5"), ({"memory_gb": True}, "launcher.memory_gb=True"),
    ({"setup": "module load cuda"}, "expected a list of lines"), ({"address": None}, "launcher.address=None"),
])
def test_a_setting_that_cannot_be_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Ray(**settings)


# ---------------------------------------------------------------------- on a real Ray

@pytest.fixture(scope="module")
def cluster():
    """A machine of Ray with two cores, on this one."""
    pytest.importorskip("ray", reason='pip install "vta-sam[ray]"')
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield started
    started.shutdown()


def tasks(folder: Path, *lines: str) -> Job:
    """A job of one task a line of bash, run in a folder."""
    return Job("a job", folder, [["bash", "-c", line] for line in lines])


@pytest.mark.slow
def test_tasks_run_where_the_command_was_given_and_a_crash_is_tried_again(cluster, tmp_path, capsys):
    crash = "echo $VTA_SAM_TASK; test -e seen && exit; touch seen; kill -SEGV $$"
    Ray(address=cluster.address, retries=1, **HERE).submit(tasks(tmp_path, "pwd > where", crash, "exit 0"))
    said = capsys.readouterr().out
    assert said.startswith("3 tasks (a_job)\n") and {f"task {i}: done" for i in range(3)} <= set(said.splitlines())
    assert (tmp_path / "where").read_text() == f"{tmp_path}\n"
    log, = (tmp_path / "runs" / "ray").glob("a_job-*_1.log")
    assert log.read_text() == "1\n1\n", "both tries are in it"


@pytest.mark.slow
def test_a_task_that_fails_for_good_is_named_and_the_others_are_done(cluster, tmp_path):
    job = tasks(tmp_path, "echo x >> tries; exit 3", "touch done", "kill -KILL $$")
    with pytest.raises(InputError, match=r"2 of 3 tasks failed: task 0: ended with status 3 \(.*_0\.log\); "
                                         r"task 2: killed by signal 9 .* the same command makes the rest"):
        Ray(address=cluster.address, retries=2, max_at_once=1, **HERE).submit(job)
    assert (tmp_path / "tries").read_text() == "x\n" * 3 and (tmp_path / "done").exists()


@pytest.mark.slow
def test_a_task_that_no_machine_has_room_for_is_refused(cluster, tmp_path, monkeypatch):
    from vta_sam.runtime.cluster import ray_tasks

    monkeypatch.setattr(ray_tasks, "_connect", lambda ray, launcher: ray.init(cluster.address, log_to_driver=False))
    with pytest.raises(InputError, match="takes CPU 1, GPU 2, and no machine of this Ray has that .CPU 2, GPU 0"):
        Ray(gpus=2, cpus_per_task=1).submit(tasks(tmp_path, "touch done"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_a_ray_that_is_not_there_is_a_sentence(tmp_path, address):
    pytest.importorskip("ray", reason='pip install "vta-sam[ray]"')
    with pytest.raises(InputError, match=f"launcher.address={address}: Ray can't be reached"):
        Ray(address=address, **HERE).submit(tasks(tmp_path, "touch done"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_ends_the_tasks_and_what_they_started(cluster, tmp_path):
    job = tasks(tmp_path, "trap 'touch told; exit 75' TERM; sleep 600 & echo $$ $! > new; mv new pids; wait",
                "touch second; sleep 600")

    def interrupt():
        end = time.monotonic() + 60
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        Ray(address=cluster.address, max_at_once=1, retries=3, **HERE).submit(job)
    assert (tmp_path / "told").exists() and not (tmp_path / "second").exists()
    assert not still_alive(map(int, (tmp_path / "pids").read_text().split()))


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_process_along_and_the_task_is_tried_again(cluster, tmp_path):
    job = tasks(tmp_path, "echo $$ $PPID >> pids; test $(wc -l < pids) -gt 1 || exec sleep 600")

    def kill():
        end = time.monotonic() + 60
        while not (tmp_path / "pids").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(int((tmp_path / "pids").read_text().split()[1]), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    Ray(address=cluster.address, retries=1, **HERE).submit(job)
    first, second = (int(line.split()[0]) for line in (tmp_path / "pids").read_text().splitlines())
    assert first != second and not still_alive([first])


@pytest.mark.slow
def test_an_extraction_whose_workers_are_killed_equals_one_that_was_left_alone(cluster, tmp_path):
    """The program, Ray's worker above it, or a whole machine of Ray, at random instants."""
    corpus, alone = tmp_path / "videos", tmp_path / "alone"
    corpus.mkdir()
    write_corpus(corpus)
    done = call("data_prep/extract.py", *arguments(corpus, alone), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted, rng, kills = contents(alone), np.random.default_rng(5), Counter[str]()
    told = ["launcher=ray", f"launcher.address={cluster.address}", "launcher.gpus=null", "launcher.cpus_per_task=1",
            "launcher.shards_per_job=4", "launcher.max_at_once=2", "launcher.retries=1000"]
    machine = cluster.add_node(num_cpus=2)
    for folder in itertools.count():
        out = tmp_path / f"out-{folder}"
        with open(tmp_path / f"said-{folder}", "w") as said:
            command = [sys.executable, ROOT / "data_prep" / "extract.py", *arguments(corpus, out), *told]
            driver = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
        try:
            while victim := at_a_random_instant(
                    rng, out, lambda: driver.poll() is None and sum(kills.values()) < KILLS):
                way = str(rng.choice(["program", "worker", "machine"], p=[0.4, 0.4, 0.2]))
                there = workers(out).keys()
                if way == "machine":
                    cluster.remove_node(machine, allow_graceful=False)
                    machine = cluster.add_node(num_cpus=2)
                    kills[way] += len(there - workers(out).keys())
                else:
                    kills[way] += kill(victim if way == "program" else parent_of(victim))
                check_what_is_there(out, wanted)
            assert driver.wait(200) == 0, (tmp_path / f"said-{folder}").read_text()
        finally:
            driver.kill()
            driver.wait()
        assert contents(out) == wanted
        if sum(kills.values()) >= KILLS:
            break
    print(dict(kills))
