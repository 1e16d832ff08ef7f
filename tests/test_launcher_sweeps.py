"""Programs as SLURM jobs: sweeps, and every command that the documentation gives."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from played_slurm import PROGRAMS, REPOSITORY, array_of, directives, start

from vta_sam.study.sweep import Sweep, read_sweep


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


@pytest.mark.slow
@pytest.mark.parametrize("command", documented())
def test_a_documented_command_composes(command, manifest, dry_run, dataset, monkeypatch):
    monkeypatch.setattr("vta_sam.study.sweep.read_sweep", lambda name: shortened(name, 1))
    words = shlex.split(command.partition(" > ")[0])[1:]
    script = dry_run(words[0], *(word for word in words[1:] if word != "launcher=slurm"))
    assert "of Ray" in script.splitlines()[1] if "launcher=ray" in words else directives(script)
