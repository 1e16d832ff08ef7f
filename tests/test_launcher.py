"""Programs as SLURM jobs: what a command line becomes, by scripts that are really run, with sbatch and srun played by
small programs on PATH."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from vta_sam.cluster.batch_script import Job, Slurm, batch_script
from vta_sam.cluster.launch import asks_for_launcher
from vta_sam.cluster.tasks import combinations
from vta_sam.errors import InputError
from vta_sam.manifests.manifest import Row, read_manifest, slices, write_manifest
from vta_sam.shards import schema
from vta_sam.study.sweep import Sweep, read_sweep

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path for folder in ("experiments", "data_prep") for path in (REPOSITORY / folder).glob("*.py")
                  if "@program(" in path.read_text() or "hydra.main" in path.read_text())
NASTY = ["", " ", "a b", "it's", '"', "$HOME", "`id`", "$(id)", "a,b", "line\nend", "\n#PBS -q x\n'$HOME'\\n",
         "tab\t", "back\\slash", "\\", "!", "*", "#no", "~", "-n", ";exit 3", "é⇒", "&& false", "'\"'\"'", ")",
         "|", "{a,b}", "%j"]


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


# ---------------------------------------------------------------------- the script

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
    assert config.pop("_target_") == f"{Slurm.__module__}.{Slurm.__name__}"
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


def test_the_script_starts_the_program(cluster, dry_run):
    script = dry_run("data_prep/check.py")
    cluster.program("srun", "while [[ $1 == --* ]]; do shift; done\nexec \"$@\"")
    ended = subprocess.run(["bash"], input=script, cwd="/", capture_output=True, text=True, timeout=60,
                           env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert (ended.returncode, ended.stderr.partition(";")[0]) == (2, "error: shards= is missing"), ended.stderr


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


# ---------------------------------------------------------------------- command lines

def test_there_are_programs():
    assert {path.stem for path in PROGRAMS} >= {"train", "generate", "evaluate", "compare", "study", "overfit",
                                                "train_tiny", "extract", "synthesize", "check"}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_becomes_a_job(program, dry_run, cluster):
    config = re.findall(r'@program\("(\w+)"\)', program.read_text())
    assert len(config) == 1, "one hook, in place of hydra.main"
    key = next(line for line in (REPOSITORY / f"conf/{config[0]}.yaml").read_text().splitlines()
               if re.match(r"(out|seed|model|records): \w", line) or line.startswith("out: ")).partition(":")[0]
    script = dry_run(program, f"{key}=it's" if program.stem in ("evaluate", "compare", "generate") else f"{key}=3")
    value = "'it\\'s'" if program.stem in ("evaluate", "compare", "generate") else "3"
    assert cluster.words(script)[1:] == [str(program), f"{key}={value}"]
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
    (["launcher.shards_per_job=2"], "extract.py, generate.py"), (["--config-dir", "x"], "--config-dir"),
    (["dropout=0.1,0.2"], "write to one place"), (["+exp=tango", "seed=1,1"], "write to one place"),
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


# ---------------------------------------------------------------------- sbatch

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


# ---------------------------------------------------------------------- programs that part their work

@pytest.fixture
def manifest(cluster) -> Path:
    path = cluster.folder / "clips.csv"
    rows = [Row(f"{split}{i}", "a dog", f"{i}.mp4", split=split) for split, n in (("train", 37), ("val", 5))
            for i in range(n)]
    return write_manifest(path, rows)


@pytest.mark.parametrize("shards_per_job", [1, 3, 100])
def test_each_shard_is_extracted_by_one_task(shards_per_job, manifest, dry_run, cluster):
    told = ("videos=videos", "manifest=clips.csv", "out=out", "shard_size=4")
    script = dry_run("data_prep/extract.py", *told, f"launcher.shards_per_job={shards_per_job}")
    parts = slices(read_manifest(manifest), 4)
    done = []
    for task in cluster.overrides(script):
        assert tuple(task[:-2]) == told
        share = dict(word.split("=") for word in task[-2:])
        mine = parts[int(share["rank"])::int(share["world"])]  # as extract_dataset takes them
        assert 0 < len(mine) <= shards_per_job
        done += [part.name for part in mine]
    assert sorted(done) == sorted(part.name for part in parts) and len(parts) == 12


def test_extraction_in_one_job_parts_itself(manifest, dry_run, cluster):
    script = dry_run("data_prep/extract.py", "videos=v", "manifest=clips.csv", "out=out", "launcher.tasks_per_node=8")
    assert array_of(script) == 0 and cluster.words(script)[2:] == ["videos=v", "manifest=clips.csv", "out=out"]


@pytest.fixture
def dataset(monkeypatch) -> None:
    """Any folder is a dataset whose split "test" has five shards."""
    shards = [schema.ShardInfo(f"test-{i:06d}.tar", records=64, failed=0) for i in range(5)]
    info = schema.DatasetInfo("g", "e", 12.5, 16000, 1, 1, 1, "", "", "", splits={"test": shards})
    monkeypatch.setattr(schema, "read_dataset", lambda folder: info)


def test_encoding_of_latents_is_parted(dry_run, cluster, dataset):
    script = dry_run("data_prep/encode_latents.py", "vae=model", "shards=data", "launcher.shards_per_job=2")
    assert [task[-2:] for task in cluster.overrides(script)] == [[f"rank={i}", "world=3"] for i in range(3)]


def test_generation_of_a_dataset_is_parted(dry_run, cluster, dataset):
    script = dry_run("experiments/generate.py", "shards=data", "out=out", "launcher.shards_per_job=2")
    assert [task[-2:] for task in cluster.overrides(script)] == [[f"rank={i}", "world=3"] for i in range(3)]


@pytest.mark.parametrize(("arguments", "words"), [
    (["out=out"], "videos= is missing"), (["videos=v", "out=o", "manifest=none.csv"], "none.csv doesn't exist"),
    (["videos=v", "out=o", "rank=1"], "rank=1"), (["videos=v", "out=o", "launcher.nodes=2"], "one process a job"),
])
def test_a_share_that_cannot_be_told_is_a_sentence(arguments, words, manifest, refused):
    launcher = ("launcher=slurm", "launcher.shards_per_job=4")
    assert words in refused("data_prep/extract.py", "manifest=clips.csv", *arguments, *launcher)


# ---------------------------------------------------------------------- sweeps, and what the documentation says

def shortened(name: str, values: int) -> Sweep:
    """A sweep with the first values of each parameter alone; all are composed in test_sweeps.py."""
    sweep = read_sweep(name)
    return replace(sweep, parameters={key: found[:values] for key, found in sweep.parameters.items()})


def test_the_array_of_a_sweep_is_its_grid(dry_run, cluster, monkeypatch):
    monkeypatch.setattr("vta_sam.study.sweep.read_sweep", lambda name: shortened(name, 2))
    script = dry_run("experiments/sweep.py", "array", "systems", "launcher.partition=gpu", "--runs", "r", "size=smoke")
    grid = shortened("systems", 2).combinations()
    assert len(grid) == 4
    own = {"runs": "r", "name": "${hydra:job.override_dirname}"}

    def read(words: list[str]) -> dict:
        found = {o.get_key_element().lstrip("+"): o.value() for o in OverridesParser.create().parse_overrides(words)}
        return {**found, "size": "smoke"}

    assert [read(task) for task in cluster.overrides(script)] == [{**read(words), **own} for words in grid]
    assert "--partition=gpu" in directives(script)


def test_agents_of_a_sweep(dry_run, cluster, monkeypatch, capsys):
    script = dry_run("experiments/sweep.py", "agents", "team/vta-sam/abc", "launcher.gpus=2", "--count", "3",
                     "--runs-each", "2")
    assert array_of(script) == 3 and "--gpus-per-node=2" in directives(script)
    for task in range(3):
        assert cluster.words(script, task)[1:] == ["-m", "wandb", "agent", "--forward-signals", "--count", "2",
                                                   "team/vta-sam/abc"]
    for wrong, words in ((["--count", "0"], "--count 0"), (["--count", "1", "seed=1"], "from the sweep")):
        with pytest.raises(SystemExit) as end:
            start("experiments/sweep.py", "agents", "id", *wrong, monkeypatch=monkeypatch)
        assert end.value.code == 2 and words in capsys.readouterr().err


def test_wandb_has_the_options_that_agents_are_given():
    from wandb.cli.cli import agent

    assert {"--forward-signals", "--count"} <= {name for option in agent.params for name in option.opts}


def documented() -> list[str]:
    """Every command of docs/cluster.md that can become a job."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("    python ")]
    can = {str(path.relative_to(REPOSITORY)) for path in PROGRAMS} | {"experiments/sweep.py"}
    return [line for line in lines if line.split()[1] in can]


def test_the_documentation_has_commands():
    assert len(documented()) > 8
    [recipe] = re.findall(r"apptainer build \S+ (\S+)", (REPOSITORY / "docs" / "cluster.md").read_text())
    assert (REPOSITORY / recipe).is_file()


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_composes(command, manifest, dry_run, dataset, monkeypatch):
    monkeypatch.setattr("vta_sam.study.sweep.read_sweep", lambda name: shortened(name, 1))
    words = shlex.split(command.partition(" > ")[0])[1:]
    assert directives(dry_run(words[0], *(word for word in words[1:] if word != "launcher=slurm")))
