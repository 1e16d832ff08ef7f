"""A conditioner of one's own, in a folder of one's own: trained, kept and loaded without touching the project."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_stages import diffusion_parts, run_stage
from tiny_data import SPEC, a_clip, stage_context, stage_folder, stage_settings, write_dataset

from vta_sam.checkpoints import model_folder, parts
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.generation.pipeline import load
from vta_sam.runtime.errors import InputError
from vta_sam.training import diffusion_stage

SOURCE = """
import torch
from torch import nn
from vta_sam.diffusion.condition import Condition, Conditioner

class MotionConditioner(Conditioner):
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
"""


def test_it_trains_five_steps_and_comes_back(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(parts, "_TRUSTED", {})
    write_dataset(tmp_path / "shards")
    run_stage("vae", tmp_path / "shards", tmp_path / "vae")
    context = stage_context(tmp_path / "shards", read_dataset(tmp_path / "shards"))
    recipe = {"_target_": "mine.MotionConditioner", "frame_dim": context.info.frame_dim, "token_dim": 16}
    made_of = diffusion_parts(tmp_path / "vae" / "model", conditioner=recipe)
    made_of = dataclasses.replace(made_of, denoiser={**made_of.denoiser, "map_channels": 0})
    folder = stage_folder(Path(tmp_path / "mine"))
    diffusion_stage.train_diffusion(context, folder, stage_settings(5, validate_every=5), made_of)
    with pytest.raises(InputError, match="mine.MotionConditioner.*none of this project's"):
        load(folder.model)
    model_folder.trust("mine.MotionConditioner")
    clip = collate([window_of(a_clip("x"), SPEC, 0)], SPEC)
    latents = load(folder.model).sample_latents(clip, [0])
    assert torch.isfinite(latents).all() and latents.shape == (1, 8, SPEC.columns, 4)
