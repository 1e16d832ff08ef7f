"""A conditioner of one's own, with a part that a stage of its own trains: one file of Python and one of yaml."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_configs import composed
from tiny_data import CODEC, SPEC, UNET, build, write_dataset

import vta_sam
from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import ModelRecipe, read_recipe, save_model
from vta_sam.runtime.errors import InputError
from vta_sam.training import job as job_module
from vta_sam.training.job import TrainingJob
from vta_sam.training.stage import Stage

SOURCE = '''
import torch
from torch import nn

import vta_sam
from vta_sam.diffusion.condition import Condition, Conditioner, Pretrained
from vta_sam.runtime.stage_module import StageModule
from vta_sam.training.job import register_stage
from vta_sam.training.part_stages import PartStage


class MotionConditioner(Conditioner):
    """Tokens are the change of frame embeddings, through a layer that stage ``motion`` trains."""

    pretrained = {"motion": Pretrained("project", "motion_projection", rate=0.0)}

    def __init__(self, spec, frame_dim, token_dim):
        super().__init__()
        self.token_dim = token_dim
        self.project = nn.Linear(frame_dim, token_dim)
        self.nothing = nn.Parameter(torch.zeros(token_dim))

    def forward(self, batch):
        change = batch.frame_embedding.diff(dim=1, prepend=batch.frame_embedding[:, :1])
        return Condition(self.project(change), batch.frame_mask)

    def null(self, batch):
        return Condition(self.nothing.expand(*batch.frame_mask.shape, -1), batch.frame_mask)


class MotionTraining(StageModule):
    """The first number of a token is to say whether anything moves."""

    def __init__(self, conditioner, optimise):
        super().__init__(optimise)
        self.conditioner = conditioner

    def measure(self, batch):
        moves = self.conditioner(batch).tokens[..., 0]
        loss = (moves - batch.probs.amax(dim=2)).square().mean()
        return loss, {}


class MotionStage(PartStage):
    name = "motion"

    def module(self, inputs):
        return MotionTraining(inputs.conditioner, inputs.settings.optimise())


register_stage(MotionStage())
vta_sam.trust("motion.MotionConditioner")
'''

EXPERIMENT = """
exp: motion
conditioner: {_target_: motion.MotionConditioner, frame_dim: from_data, token_dim: 16}
stages: [motion, diffusion]
fit:
  motion:
    batch_size: 2
    learning_rate: 1.0e-3
    warmup_steps: 1
    fit: {steps: 2, validate_every: 2, checkpoint_every: 2, ema_decay: 0.5, precision: fp32, accelerator: cpu}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The two files in a folder on Python's path; what is registered or trusted is forgotten afterwards."""
    (tmp_path / "motion.py").write_text(SOURCE)
    (tmp_path / "motion.yaml").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(parts, "_TRUSTED", {})
    before = dict(job_module.STAGES)
    yield tmp_path
    job_module.STAGES.clear()
    job_module.STAGES.update(before)
    sys.modules.pop("motion", None)


@cache
def plain_config() -> dict[str, Any]:
    return composed("+exp=vta_sam", "size=smoke")


def job_of(folder: Path, **changed) -> TrainingJob:
    """The job of motion.yaml on a tiny dataset, as ``+exp=motion`` would make it."""
    config = plain_config()
    own = yaml.safe_load((folder / "motion.yaml").read_text())
    numbers = own["fit"]["motion"]
    return TrainingJob.of({
        **config, **own, "data": {"_target_": "shard_data", "root": str(folder / "shards")},
        "clip": SPEC.settings(), "runs": str(folder / "runs"), "condition": None, "logger": [],
        "vae": str(folder / "vae"), "fit": {"motion": numbers, "diffusion": numbers},
        "networks": {**config["networks"], "unet": UNET}, "validation": {"clips": 1, "steps": 1},
        "vocoder": {"_target_": "griffin_lim", "iterations": 1, "inversion_steps": 1}, **changed})


def make_data(folder: Path) -> None:
    make_vae(folder)
    info = write_dataset(folder / "shards", {"train": 4, "val": 2})
    dataclasses.replace(info, grounder="tiny-1", encoder="tiny-1").write(folder / "shards")


def make_vae(folder: Path) -> None:
    codec = {**CODEC, "mel_mean": -5.0, "mel_std": 2.0}
    save_model(folder / "vae", ModelRecipe(clip=SPEC.settings(), codec=codec), {"codec": build(codec)})


def test_it_trains_its_part_and_then_the_diffusion(mine):
    make_data(mine)
    job = job_of(mine)
    run = job.run()
    trained = load_file(run / "motion" / "model" / "motion_projection.safetensors")
    assert read_recipe(run / "motion" / "model").pretrained["motion_projection"]["frame_dim"] == 6
    model = vta_sam.load(run / "diffusion" / "model")
    assert type(model.conditioner).__name__ == "MotionConditioner"
    for name, value in model.conditioner.project.state_dict().items():  # its rate there is 0
        assert torch.equal(value, trained[name]), name
    config = yaml.safe_load((run / "motion" / "config.yaml").read_text())
    assert config["fit"]["fit"]["steps"] == 2 and "workers" not in config["fit"]
    again = job_of(mine, motion=str(run / "motion" / "model"), stages=["diffusion"], name="again")
    assert again.given == {"vae": str(mine / "vae"), "motion": str(run / "motion" / "model")}
    assert again.pretrained == {"motion": run / "motion" / "model"}
    again._check_settings()


def test_what_the_stage_needs_is_checked_before_any_work(mine):
    make_vae(mine)
    with pytest.raises(InputError, match="stage diffusion needs what stage motion trains of MotionConditioner: add "
                                         "motion to stages= before diffusion, or give motion=FOLDER"):
        job_of(mine, stages=["diffusion"])._check_settings()
    with pytest.raises(InputError, match="add motion to stages= before diffusion"):
        job_of(mine, stages=["diffusion", "motion"])._check_settings()
    with pytest.raises(InputError, match="MotionConditioner has nothing that stage onsets could train"):
        job = job_of(mine, stages=["motion", "onsets"])
        job.fit["onsets"] = job.fit["motion"]
        job._check_settings()
    with pytest.raises(InputError, match="fit.motion is missing"):
        job_of(mine, stages=["motion"], fit={"vae": {}})._check_settings()
    with pytest.raises(InputError, match="stages names 'moton'; the stages are vae, .*motion"):
        job_of(mine, stages=["moton"])


class Other(Stage):
    name = "vae"

    def settings(self, job):
        return {}

    def train(self, job, context):
        raise NotImplementedError


@pytest.mark.parametrize(("name", "words"), [
    ("vae", "the name of vta_sam.training.codec_stages.VAEStage"), ("seed", "a setting"), ("my stage", "no plain word"),
])
def test_a_name_that_is_taken_or_no_word_is_refused(monkeypatch, name, words):
    monkeypatch.setattr(Other, "name", name)
    before = dict(job_module.STAGES)
    with pytest.raises(InputError, match=f"its name '{name}' is {words}; choose another name"):
        job_module.register_stage(Other())
    assert job_module.STAGES == before
