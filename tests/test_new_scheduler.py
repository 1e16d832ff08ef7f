"""A scheduler beside SLURM: one class and one yaml, out of tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vta_sam.runtime.cluster.launch import Program, launch, launch_agents, with_launcher
from vta_sam.runtime.cluster.preemption import queue_name, requeue
from vta_sam.runtime.cluster.scheduler import scheduler_of
from vta_sam.runtime.errors import InputError

PROGRAM = Program(Path(__file__).resolve().parents[1] / "experiments" / "train.py", "train",
                  ("runs", "exp", "seed", "name"))


SOURCE = '''
import subprocess
from dataclasses import dataclass

from vta_sam.runtime.cluster.scheduler import Scheduler, choice


@dataclass(frozen=True)
class LSF(Scheduler):
    queue: str
    setup: tuple = ()

    def submit(self, job):
        size = f"[1-{len(job.commands)}]" if job.is_array else ""
        print(f"#BSUB -q {self.queue} -J {job.safe_name}{size}", f"cd {job.folder}", *self.environment(job),
              *choice(job, "LSB_JOBINDEX", first_index=1), 'exec "${command[@]}"', sep="\\n")

    @classmethod
    def running_job(cls, environ):
        return environ.get("LSB_JOBID")

    @classmethod
    def requeue_job(cls, job):
        return subprocess.run(["brequeue", job], capture_output=True, text=True).stderr or None
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_lsf.py").write_text(SOURCE)
    (tmp_path / "conf" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "launcher" / "lsf.yaml").write_text("_target_: mine_lsf.LSF\nqueue: gpu\nsetup: []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    sys.modules.pop("mine_lsf", None)


def test_it_gets_the_jobs_of_a_command(mine, tmp_path, capsys):
    """The script is run by bash, with a program in place of Python that prints what it gets."""
    launch(PROGRAM, [mine, "launcher=lsf", "launcher.queue=long", "+exp=vta_sam", "seed=0,1", "name='a b'"])
    script = capsys.readouterr().out.replace('exec "${command[@]}"', 'printf "%s|" "${command[@]}"')
    assert script.startswith("#BSUB -q long -J train-vta_sam-a_b[1-2]\n")
    assert "export VTA_SAM_SCHEDULER=mine_lsf.LSF\n" in script
    second, third = (subprocess.run(["bash", "-c", script], capture_output=True, text=True,
                                    env={"LSB_JOBINDEX": task, "PATH": "/bin"}) for task in "23")
    assert second.stdout.endswith("|+exp=vta_sam|seed=1|name='a b'|"), second
    assert third.returncode == 2 and "the array has 1 to 2" in third.stderr


def test_a_sweep_and_its_agents_go_there_too(mine, capsys):
    assert with_launcher([mine]) == ["launcher=slurm", mine]
    launch_agents(PROGRAM, "me/project/1", 2, 1, with_launcher([mine, "launcher=lsf"]))
    assert "-J wandb-agent[1-2]" in capsys.readouterr().out


def test_a_job_that_is_preempted_goes_back_into_its_queue(mine, tmp_path, monkeypatch):
    (tmp_path / "brequeue").write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/asked\n")
    (tmp_path / "brequeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("VTA_SAM_SCHEDULER", "mine_lsf.LSF")
    monkeypatch.setenv("LSB_JOBID", "17")
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert queue_name() == "17" and requeue("17") is None
    assert (tmp_path / "asked").read_text() == "17\n"


@pytest.mark.parametrize("name, words", [("mine_lsf.Other", "can't be imported"), ("none", "can't be imported"),
                                         ("builtins.dict", "expected a subclass")])
def test_a_wrong_name_is_refused(mine, name, words):
    with pytest.raises(InputError, match=words):
        scheduler_of({"VTA_SAM_SCHEDULER": name})


def test_a_class_that_is_no_scheduler_is_refused(mine, tmp_path):
    (tmp_path / "conf" / "launcher" / "lsf.yaml").write_text("_target_: builtins.dict\n")
    with pytest.raises(InputError, match="builtins.dict is no Scheduler"):
        launch(PROGRAM, [mine, "launcher=lsf"])
