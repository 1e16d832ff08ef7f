"""Sweeps: every combination is a valid job, by wandb's own rules and by Hydra's, and what came out is one table."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from test_configs import composed
from test_study import job_of

from vta_sam.runtime.errors import InputError
from vta_sam.study.sweep import FIGURES, SWEEPS, finished_runs, read_sweep, runs_picture, write_table
from vta_sam.training import fit as loggers

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_makes_a_valid_job(name, monkeypatch):
    """Each value of each parameter in one combination at least: a job's checks look at one of them at a time."""
    sweep = read_sweep(name)
    asked, waiting = 0, {(key, str(value)) for key, values in sweep.parameters.items() for value in values}
    combinations = [(set(zip(sweep.parameters, map(str, values))), overrides) for values, overrides in
                    zip(itertools.product(*sweep.parameters.values()), sweep.combinations(), strict=True)]
    while waiting:
        values, overrides = max(combinations, key=lambda one: len(one[0] & waiting))
        job_of(overrides, monkeypatch)
        waiting -= values
        asked += 1
    assert 1 < asked <= len(combinations)


@pytest.mark.parametrize("name", NAMES)
def test_wandb_makes_the_same_commands(name, monkeypatch):
    """By the functions of its agent, without an account."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    content = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    assert content["metric"]["name"] in FIGURES and content["method"] in ("grid", "random")
    sweep = read_sweep(name)
    values = {key: {"value": found[0]} for key, found in sweep.parameters.items()}
    command = create_sweep_command(list(content["command"]))
    arguments = create_sweep_command_args({"args": values})["args_no_hyphens"]
    assert command[:3] == ["${env}", "${interpreter}", "${program}"] and command[-1] == "${args_no_hyphens}"
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    settings = composed(*command[3:-1], *arguments)
    assert settings["name"] == "abc123", "each of the agent's runs has a folder of its own"
    assert any("wandb" in logger["_target_"] for logger in settings["logger"])


@pytest.mark.parametrize("name", NAMES)
def test_a_multirun_has_the_same_grid(name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweep = read_sweep(name)
    arguments = sweep.multirun("runs/here")
    assert arguments[0] == "--multirun" and "runs=runs/here" in arguments
    grid = 1
    for override in OverridesParser.create().parse_overrides(arguments[1:]):
        grid *= len(list(override.sweep_string_iterator())) if override.is_sweep_override() else 1
    assert grid == len(sweep.combinations())


def test_a_run_that_is_named_by_its_overrides_is_one_folder(monkeypatch):
    """The / of a config group makes no folder of its own, and where the data lies is no part of a name."""
    told = ["+exp=vta_sam", "+ablation/probabilities=uniform", "data.root=/a/b", "name=ablation/probabilities-uniform"]
    assert job_of(told, monkeypatch).folder.as_posix() == "runs/vta_sam-0-ablation-probabilities-uniform"


def test_an_unknown_sweep_is_told_which_there_are(tmp_path):
    with pytest.raises(InputError, match="no sweep 'nothing'; there are rates, sampling"):
        read_sweep("nothing")
    (tmp_path / "bad.yaml").write_text("parameters: {dropout: {min: 0, max: 1}}\ncommand: []\n")
    with pytest.raises(InputError, match="dropout has no values"):
        read_sweep("bad", tmp_path)


def a_run(folder, name: str, mean: float, **settings) -> None:
    """A finished run as train.py leaves it."""
    (folder / name / "diffusion").mkdir(parents=True)
    (folder / name / "diffusion" / "config.yaml").write_text(yaml.safe_dump({"dropout": 0.1, **settings}))
    interval = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9, "undefined": 0}
    nothing = {"mean": None, "low": None, "high": None, "n": 0, "undefined": 9}
    figures = {"exp": "vta_sam", "seed": 0, "timing": {"envelope_correlation": {"score": interval},
                                                       "onset_f1": {"score": nothing}}}
    (folder / name / "figures.json").write_text(json.dumps(figures))


def test_finished_runs_are_one_table_and_one_picture(tmp_path):
    a_run(tmp_path, "low", 0.2, sampler={"guidance": 1.0})
    a_run(tmp_path, "high", 0.8, sampler={"guidance": 3.0})
    (tmp_path / "unfinished").mkdir()
    runs = finished_runs(tmp_path)
    assert [run.name for run in runs] == ["high", "low"]
    assert [run.varied for run in runs] == [{"sampler.guidance": 3.0}, {"sampler.guidance": 1.0}]
    write_table(tmp_path / "runs.csv", runs)
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert rows[0]["run"] == "high" and rows[0]["envelope_correlation"] == "0.8000" and rows[0]["onset_f1"] == ""
    runs_picture(tmp_path / "runs.png", runs)
    picture = np.asarray(Image.open(tmp_path / "runs.png").convert("RGB")).astype(int)
    blue = (picture[..., 2] - picture[..., 0]) > 60
    assert blue.any(axis=1).sum() >= 2 and 0.001 < blue.mean() < 0.2
    with pytest.raises(InputError, match="holds no finished run"):
        finished_runs(tmp_path / "unfinished")


def test_in_a_sweep_all_stages_go_into_the_agents_run(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(loggers, "WandbLogger", lambda **settings: told.append(settings))
    stage = tmp_path / "vta_sam-0" / "diffusion"
    stage.mkdir(parents=True)
    (stage / "config.yaml").write_text("dropout: 0.1\n")
    loggers.wandb_logger(str(stage), "logs", "vta-sam", ["vta_sam"])
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    loggers.wandb_logger(str(stage), "logs", "vta-sam", ["vta_sam"])
    alone, swept = told
    assert (alone["group"], alone["job_type"], alone["tags"]) == ("vta_sam-0", "diffusion", ["vta_sam"])
    assert alone["config"] == swept["config"] == {"diffusion": {"dropout": 0.1}}
    assert (swept["id"], swept["name"], swept["resume"]) == ("r", "vta_sam-0", "allow") and "group" not in swept
