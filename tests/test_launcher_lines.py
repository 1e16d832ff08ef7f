"""Programs as SLURM jobs: what becomes of a command line."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from played_slurm import PROGRAMS, REPOSITORY, array_of, directives
from test_front_door import PROGRAMS as SETTINGS

from vta_sam.runtime.cluster.launch import asks_for_launcher, combinations


def test_there_are_programs():
    assert {path.stem for path in PROGRAMS} >= {"train", "generate", "evaluate", "compare", "study", "overfit",
                                                "train_tiny", "extract", "synthesize", "check"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_becomes_a_job(program, dry_run, cluster):
    assert len(re.findall(r'@program\("(\w+)", \w+Settings[,)]', program.read_text())) == 1, "one hook"
    _, _, needed = SETTINGS.get(f"{program.parent.name}/{program.name}",
                                (None, None, ("+exp=overfit", "overfit.videos=a", "overfit.captions=b")))
    more = {"train": "name=it's", "overfit": "name=it's", "study": "records=it's", "train_tiny": "trunk.seed=3"}.get(
        program.stem, "out=it's")
    given = [*(word for word in needed if word.partition("=")[0] != more.partition("=")[0]), more]
    script = dry_run(program, *given)
    assert cluster.words(script)[1:] == [str(program), *given]
    [name] = [line for line in directives(script) if line.startswith("--job-name=")]
    assert name.startswith(f"--job-name={program.stem}")


def test_the_launchers_own_overrides_stay_behind(dry_run, cluster):
    script = dry_run("experiments/train.py", "+exp=tango", "launcher.partition='a,b'", "name=x y", "launcher.gpus=null",
                     "launcher.setup=[module load cuda/12.4,'. \"$HOME\"/activate']")
    assert cluster_words(script) == ["+exp=tango", "name=x y"]
    found = directives(script)
    assert "--partition=a,b" in found and "--job-name=train-tango-x_y" in found
    assert not [line for line in found if "gpu" in line]
    assert "\nmodule load cuda/12.4\n. \"$HOME\"/activate\n" in script


def cluster_words(script: str) -> list[str]:
    """The overrides of a script whose setup can't be run here."""
    [line] = re.findall(r"^command=\((.*)\)$", script, flags=re.MULTILINE)
    return shlex.split(line)[2:]


SWEPT = [
    ("+exp=tango,vta_sam", "seed=0,1"),
    ("seed=3,1", "+exp=vta_sam", "dropout=0.1,0.2", "name=${hydra:job.override_dirname}"),
    ("seed=range(0,2)", "name='a, b','c d'", "+exp=vta_sam"),
    ("+exp=glob(vta_sam*)", "augment={objects: 0.1, frames: 0.3, appearance: 0.0}"),
    ("seed=0,1", "stages=[vae],[figures]", "name=a,b", "seed=2,5", "~vae"),
    ("+exp=vta_sam", "seed=choice(4,2)", "seed=9", "dropout=sort(3,1,2)"),
]


@pytest.mark.parametrize("arguments", SWEPT, ids=" ".join)
def test_combinations_have_the_order_of_hydras_multirun(arguments):
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(arguments))
        [expected] = BasicSweeper.split_arguments(parsed, None)
        found = combinations(parsed)
    assert len(found) > 1 and [meant(task) for task in found] == [meant(task) for task in expected]


def meant(words: Sequence[str]) -> list[tuple[str, object]]:
    """Overrides by what they say: Hydra may quote a word otherwise than it was typed."""
    return [(word.get_key_element(), word.value()) for word in OverridesParser.create().parse_overrides(list(words))]


@pytest.mark.parametrize("flag", [[], ["--multirun"]])
def test_task_k_of_an_array_runs_combination_k(flag, dry_run, cluster):
    script = dry_run("experiments/train.py", *flag, "+exp=tango,vta_sam", "name=x", "seed=1,0")
    assert array_of(script) == 4
    assert [cluster.words(script, task)[2:] for task in range(4)] == [
        [f"+exp={exp}", "name=x", f"seed={seed}"] for exp in ("tango", "vta_sam") for seed in (1, 0)]


def test_an_array_is_named_by_what_its_tasks_share(dry_run):
    script = dry_run("experiments/train.py", "+exp=vta_sam", "seed=0,1", "launcher.max_at_once=1")
    assert {"--job-name=train-vta_sam", "--array=0-1%1"} <= set(directives(script))
    assert "--job-name=train" in directives(dry_run("experiments/train.py", "+exp=vta_sam,tango"))


@pytest.mark.parametrize(("arguments", "words"), [
    (["sizee=base"], "sizee"), (["+exp=tango,vta_samm"], "vta_samm"), (["seed=0,1", "fit.vae.batch=4"], "batch"),
    (["data=shards"], "data.root"), (["launcher.partion=x"], "partion"), (["name=${seeed}"], "seeed"),
    (["launcher.time=10"], "launcher.time=10"), (["launcher.partition=a,b"], "takes one value"),
    (["dropout=interval(0,1)"], "can be counted"), (["seed=1,"], "seed=1,"),
    (["launcher.shards_per_job=2"], "which train.py doesn't"), (["--config-dir", "x"], "--config-dir"),
    (["dropout=0.1,0.2"], "write to one place"), (["+exp=tango", "seed=1,1"], "write to one place"),
    (["+exp=vta_sam", "plan=yes"], "plan=true is answered here"),
])
def test_a_mistake_is_said_before_anything_is_submitted(arguments, words, refused):
    assert words in refused("experiments/train.py", *arguments, "launcher=slurm")


def test_a_mistake_is_said_without_torch(cluster):
    (cluster.folder / "torch.py").write_text('raise SystemExit("torch was imported")\n')
    paths = os.pathsep.join([str(cluster.folder), str(REPOSITORY)])
    for arguments, status, words in ((["sizee=base"], 2, "sizee"), ([], 0, "job 4711")):
        ended = subprocess.run([sys.executable, REPOSITORY / "experiments/train.py", "launcher=slurm", *arguments],
                               capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=60)
        assert ended.returncode == status and words in ended.stderr + ended.stdout, ended.stderr


def test_what_only_the_jobs_environment_knows_is_left_to_it(dry_run, cluster, monkeypatch):
    monkeypatch.delenv("OF_THE_JOB", raising=False)
    name = "name=${oc.env:OF_THE_JOB}"
    assert cluster.words(dry_run("experiments/train.py", name))[-1] == name


def test_a_launcher_of_ones_own(dry_run, cluster, tmp_path):
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "mine.yaml").write_text("defaults: [slurm]\npartition: ours\n")
    place = f"hydra.searchpath=['file://{tmp_path}']"
    script = dry_run("experiments/train.py", place, "launcher=mine")
    assert "--partition=ours" in directives(script) and cluster.words(script)[2:] == [place]


def test_a_config_file_that_chooses_the_launcher_is_refused(refused, tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /launcher: slurm\n")
    for more in ([], ["launcher=slurm"]):
        said = refused("experiments/train.py", "+exp=mine", f"hydra.searchpath=['file://{tmp_path}']", *more)
        assert "choose it on the command line alone" in said


@pytest.mark.parametrize(("arguments", "asks"), [
    ([], False), (["launcher=null"], False), (["launcher=slurm"], True), (["launcher=slurm", "launcher=null"], False),
    (["launcher.gpus=1"], False), (["launcher=slurm", "--help"], False), (["launcher=slurm", "--cfg", "job"], False),
    (["launcher=slurm", "-m"], True), (["name=launcher=slurm"], False),
])
def test_who_asks_for_a_launcher(arguments, asks):
    assert asks_for_launcher(arguments) is asks
