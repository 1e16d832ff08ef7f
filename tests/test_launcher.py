"""Programs as SLURM jobs: the script that is submitted, and how."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from played_slurm import REPOSITORY, array_of, directives, start

from vta_sam.checkpoints.parts import class_of
from vta_sam.runtime.cluster.launch import SCHEDULERS
from vta_sam.runtime.cluster.scheduler import Job
from vta_sam.runtime.cluster.slurm import Slurm, batch_script
from vta_sam.runtime.errors import InputError

NASTY = ["", " ", "a b", "it's", '"', "$HOME", "`id`", "$(id)", "a,b", "line\nend", "\n#PBS -q x\n'$HOME'\\n",
         "tab\t", "back\\slash", "\\", "!", "*", "#no", "~", "-n", ";exit 3", "é⇒", "&& false", "'\"'\"'", ")",
         "|", "{a,b}", "%j"]


SHOWN = {
    "partition": ("gpu,long", "--partition=gpu,long"), "account": ("a_b", "--account=a_b"),
    "time": ("1-02:00:00", "--time=1-02:00:00"), "nodes": (3, "--nodes=3"),
    "gpus": ("a100:2", "--gpus-per-node=a100:2"),
    "tasks_per_node": (2, "--ntasks-per-node=2"), "cpus_per_task": (7, "--cpus-per-task=7"),
    "memory": ("32G", "--mem=32G"), "requeue": (False, "--no-requeue"), "signal_s": (90, "--signal=USR1@90"),
    "max_at_once": (5, "--array=0-1%5"), "extra": (["--qos=high", "--exclusive"], "--qos=high"),
    "logs": ("my logs", None), "container": ("a b.sif", None), "setup": (["true"], None),
    "dry_run": (True, None), "shards_per_job": (2, None),  # shown elsewhere, or not part of a script
}


def test_every_setting_of_the_config_is_one_of_the_launcher_and_is_shown():
    config = yaml.safe_load((REPOSITORY / "conf" / "launcher" / "slurm.yaml").read_text())
    assert class_of(SCHEDULERS[config.pop("_target_")]) is Slurm
    assert list(config) == [field.name for field in fields(Slurm)] and set(config) == set(SHOWN)
    lines = (REPOSITORY / "conf" / "launcher" / "slurm.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if line and not line.startswith(("#", "_target_")))


@pytest.mark.parametrize("key", [key for key, (_, line) in SHOWN.items() if line])
def test_a_setting_becomes_its_line_and_none_becomes_no_line(key, tmp_path):
    value, line = SHOWN[key]
    job = Job("x", tmp_path, [["a"], ["b"]])
    with_it, without = (directives(batch_script(settings, job)) for settings in (Slurm(**{key: value}), Slurm()))
    assert line in with_it
    option = line.partition("=")[0]
    if key == "max_at_once":
        assert "--array=0-1" in without
    else:
        assert not [other for other in without if other.partition("=")[0] == option]
    always = {"--job-name=x", "--open-mode=append", f"--output={tmp_path}/runs/slurm/%x-%A_%a.log"}
    assert set(without) == always | {"--array=0-1"}


def test_the_script_runs_where_it_was_made_and_srun_takes_its_place(cluster):
    script = batch_script(Slurm(tasks_per_node=4, cpus_per_task=3), Job("x", cluster.folder, [["program"]]))
    assert script.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in script
    told = cluster.ran(script)
    assert told["cwd"] == str(cluster.folder) and told["parent"] == os.getpid(), "exec: no shell is left between"
    assert told["argv"] == ["--kill-on-bad-exit=1", "--cpus-per-task=3", "program"]
    assert array_of(script) == 0 and "--output='" in script, "a folder with a space in its name is quoted"


@pytest.mark.slow
def test_the_script_starts_the_program(cluster, dry_run):
    script = dry_run("data_prep/check.py", "shards=nowhere")
    cluster.program("srun", "while [[ $1 == --* ]]; do shift; done\nexec \"$@\"")
    ended = subprocess.run(["bash"], input=script, cwd="/", capture_output=True, text=True, timeout=60,
                           env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    said = ended.stderr.partition(";")[0]
    assert (ended.returncode, said) == (2, "error: nowhere/dataset.json doesn't exist"), ended.stderr


def test_words_arrive_as_they_are_and_nothing_is_interpreted(cluster):
    script = batch_script(Slurm(), Job("x", cluster.folder, [["program", *NASTY]]))
    assert cluster.words(script) == ["program", *NASTY]
    assert not re.findall(r"^#(?:PBS|BSUB)", script, flags=re.MULTILINE), "sbatch would take it for its own"
    array = batch_script(Slurm(), Job("x", cluster.folder, [["program", word] for word in NASTY]))
    for task, word in enumerate(NASTY):
        assert cluster.words(array, task) == ["program", word]


def test_a_task_that_the_array_does_not_have_fails(cluster):
    script = batch_script(Slurm(), Job("x", cluster.folder, [["a"], ["b"]]))
    for task in (None, 2):
        with pytest.raises(subprocess.CalledProcessError):
            cluster.ran(script, task)


def test_setup_is_shell_and_may_read_what_is_not_set(cluster):
    script = batch_script(Slurm(setup=["test -z \"$NOBODY_SET_THIS\"", "cd /"]), Job("x", cluster.folder, [["a"]]))
    assert cluster.ran(script)["cwd"] == "/"
    failing = batch_script(Slurm(setup=["false"]), Job("x", cluster.folder, [["a"]]))
    with pytest.raises(subprocess.CalledProcessError):
        cluster.ran(failing)
    assert not cluster.kept.exists(), "the program isn't started after a line of setup that failed"


def test_the_python_that_submits_is_the_one_that_runs(cluster):
    python = cluster.folder / "env" / "bin" / "python"
    for setup, expected in (([], "env"), ([f"PATH={shlex.quote(str(cluster.folder))}/other:$PATH"], "other")):
        script = batch_script(Slurm(setup=setup), Job("x", cluster.folder, [["python"]], python))
        assert Path(cluster.ran(script)["path"].split(":")[0]).relative_to(cluster.folder).parts[0] == expected


def test_a_container_has_the_folder_and_its_code(cluster):
    script = batch_script(Slurm(container="my $image.sif"), Job("x", cluster.folder, [["python", "a b"]]))
    folder = str(cluster.folder)
    assert cluster.words(script) == ["apptainer", "exec", "--nv", "--bind", folder, "--env", f"PYTHONPATH={folder}",
                                     "my $image.sif", "python", "a b"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"time": 86400}, "in quotes"), ({"nodes": 0}, "launcher.nodes=0"), ({"max_at_once": "two"}, "max_at_once=two"),
    ({"setup": "module load x"}, "list of lines"), ({"extra": ["qos=high"]}, "options of sbatch"),
    ({"extra": ["--qos=a\nrm"]}, "options of sbatch"), ({"partition": "a\n#SBATCH --wrap=b"}, "--partition="),
])
def test_a_setting_that_cannot_be_is_a_sentence(settings, words, tmp_path):
    with pytest.raises(InputError, match=re.escape(words)):
        batch_script(Slurm(**settings), Job("x", tmp_path, [["a"]]))


def test_what_is_submitted_is_what_a_dry_run_prints(cluster, dry_run, monkeypatch, capsys):
    arguments = ("+exp=tango,vta_sam", "name=a $b", "launcher=slurm")
    script = dry_run("experiments/train.py", *arguments)
    start("experiments/train.py", *arguments, monkeypatch=monkeypatch)
    assert cluster.submitted.read_text() == script
    first, second = capsys.readouterr().out.splitlines()
    logs = cluster.folder / "runs" / "slurm"
    assert first == "job 4711 (train-a_b, an array of 2 tasks)"
    assert second == f"log: {logs / 'train-a_b-4711_0.log'} … train-a_b-4711_1.log"
    assert [path.name for path in logs.iterdir()] == ["train-a_b-4711.sh"], "the folder of the log is there"
    assert (logs / "train-a_b-4711.sh").read_text() == script


def test_the_log_of_a_single_job_is_named(cluster, monkeypatch, capsys):
    start("experiments/train.py", "+exp=tango", "launcher=slurm", "launcher.logs=50%", monkeypatch=monkeypatch)
    log = cluster.folder / "50%" / "train-tango-4711.log"
    assert capsys.readouterr().out == f"job 4711 (train-tango)\nlog: {log}\n"
    assert "--output='" + str(cluster.folder / "50%%" / "%x-%j.log") + "'" in directives(cluster.submitted.read_text())


def test_a_refusal_of_sbatch_is_a_sentence(cluster, refused):
    cluster.program("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2\n"
                              "echo 'sbatch: error: Batch job submission failed' >&2\nexit 1")
    said = refused("experiments/train.py", "launcher=slurm", "launcher.partition=gpuu")
    assert "invalid partition specified: gpuu; sbatch: error: Batch job submission failed" in said
    cluster.program("sbatch", "echo welcome")
    assert "answered 'welcome'" in refused("experiments/train.py", "launcher=slurm")


def test_without_sbatch_there_is_a_sentence(refused, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "needs sbatch" in refused("experiments/train.py", "launcher=slurm")
