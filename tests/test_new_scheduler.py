"""A scheduler beside SLURM: one class and one yaml, out of tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vta_sam.runtime.cluster.launch import Program, launch
from vta_sam.runtime.errors import InputError

TRAIN = Path(__file__).resolve().parents[1] / "experiments" / "train.py"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_lsf.py").write_text(
        "from dataclasses import dataclass\n"
        "from vta_sam.runtime.cluster.scheduler import Scheduler\n"
        "@dataclass(frozen=True)\n"
        "class LSF(Scheduler):\n"
        "    queue: str\n"
        "    def submit(self, job):\n"
        "        print(f'bsub -q {self.queue} -J {job.safe_name}[1-{len(job.commands)}]', *job.commands[-1][-2:])\n")
    (tmp_path / "conf" / "launcher").mkdir(parents=True)
    (tmp_path / "conf" / "launcher" / "lsf.yaml").write_text("_target_: mine_lsf.LSF\nqueue: gpu\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    sys.modules.pop("mine_lsf", None)


def test_it_gets_the_jobs_of_a_command(mine, capsys):
    program = Program(TRAIN, "train", ("runs", "exp", "seed", "name"))
    launch(program, [mine, "launcher=lsf", "launcher.queue=long", "+exp=vta_sam", "seed=0,1"])
    assert capsys.readouterr().out == "bsub -q long -J train-vta_sam[1-2] +exp=vta_sam seed=1\n"


def test_a_class_that_is_no_scheduler_is_refused(mine, tmp_path):
    (tmp_path / "conf" / "launcher" / "lsf.yaml").write_text("_target_: builtins.dict\n")
    with pytest.raises(InputError, match="builtins.dict is no Scheduler"):
        launch(Program(TRAIN, "train"), [mine, "launcher=lsf"])
