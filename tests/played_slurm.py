"""SLURM played by small programs on PATH: what a command line becomes, by scripts that are really run."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vta_sam.dataset.manifests.manifest import Row, write_manifest
from vta_sam.dataset.shards import schema

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path for folder in ("experiments", "data_prep") for path in (REPOSITORY / folder).glob("*.py")
                  if "@program(" in path.read_text() or "hydra.main" in path.read_text())


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of work, and programs on PATH: srun keeps the words it is told, sbatch its script; the job is 4711."""
    programs, folder = tmp_path / "bin", tmp_path / "submission folder"
    for path in (programs, folder):
        path.mkdir()
    kept = tmp_path / "kept"

    def program(name: str, code: str) -> None:
        path = programs / name
        path.write_text(f"#!/usr/bin/env bash\n{code}\n")
        path.chmod(0o755)

    program("srun", f"printf '%s\\0' \"$PWD\" $PPID \"$PATH\" \"$@\" > {shlex.quote(str(kept))}")
    submitted = tmp_path / "submitted"
    program("sbatch", f"test \"$*\" = --parsable && cat > {shlex.quote(str(submitted))} && echo '4711;here'")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    monkeypatch.chdir(folder)
    return Cluster(folder, kept, submitted, program)


class Cluster:
    def __init__(self, folder: Path, kept: Path, submitted: Path, program):
        self.folder, self.kept, self.submitted, self.program = folder, kept, submitted, program

    def ran(self, script: str, task: int | None = None) -> dict:
        """Run a script, from another folder than it was made in ⇒ what srun was told, and where."""
        self.kept.unlink(missing_ok=True)
        elsewhere = {**os.environ, **({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})}
        subprocess.run(["bash"], input=script.encode(), cwd="/", env=elsewhere, check=True, timeout=20)
        cwd, parent, path, *argv = self.kept.read_bytes().decode().split("\0")[:-1]
        return {"cwd": cwd, "parent": int(parent), "path": path, "argv": argv}

    def words(self, script: str, task: int | None = None) -> list[str]:
        """What srun would start: its own options are left out."""
        told = self.ran(script, task)["argv"]
        return told[next(i for i, word in enumerate(told) if not word.startswith("--")):]

    def overrides(self, script: str) -> list[list[str]]:
        """Of each task, in order, by running each."""
        tasks = array_of(script)
        return [self.words(script, task)[2:] for task in range(tasks)] if tasks else [self.words(script)[2:]]


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def array_of(script: str) -> int:
    """How many tasks; 0: no array."""
    found = re.findall(r"^#SBATCH --array=0-(\d+)", script, flags=re.MULTILINE)
    return int(found[0]) + 1 if found else 0


def start(script: str | Path, *arguments: str, monkeypatch) -> None:
    path = REPOSITORY / script
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")


@pytest.fixture
def dry_run(cluster, monkeypatch, capsys):
    """(program, *arguments) ⇒ the script that it would submit."""
    def run(script: str | Path, *arguments: str) -> str:
        there = sorted(cluster.folder.rglob("*"))
        chosen = "sweep.py" in str(script) or any(argument.startswith("launcher=") for argument in arguments)
        launcher = [] if chosen else ["launcher=slurm"]
        try:
            start(script, *arguments, *launcher, "launcher.dry_run=true", monkeypatch=monkeypatch)
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        assert not cluster.submitted.exists() and sorted(cluster.folder.rglob("*")) == there
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(cluster, monkeypatch, capsys):
    """(program, *arguments) ⇒ the sentence that it ends with; nothing was submitted or written."""
    def run(script: str, *arguments: str) -> str:
        there = sorted(cluster.folder.rglob("*"))
        with pytest.raises(SystemExit) as end:
            start(script, *arguments, monkeypatch=monkeypatch)
        said = capsys.readouterr()
        assert end.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
        assert not cluster.submitted.exists() and sorted(cluster.folder.rglob("*")) == there and not said.out
        return said.err

    return run


@pytest.fixture
def manifest(cluster) -> Path:
    path = cluster.folder / "clips.csv"
    rows = [Row(f"{split}{i}", "a dog", f"{i}.mp4", split=split) for split, n in (("train", 37), ("val", 5))
            for i in range(n)]
    return write_manifest(path, rows)


@pytest.fixture
def dataset(monkeypatch) -> None:
    """Any folder is a dataset whose split "test" has five shards."""
    shards = [schema.ShardInfo(f"test-{i:06d}.tar", records=64, failed=0) for i in range(5)]
    info = schema.DatasetInfo("g", "e", 12.5, 16000, 1, 1, 1, "", "", "", splits={"test": shards})
    monkeypatch.setattr(schema, "read_dataset", lambda folder: info)
