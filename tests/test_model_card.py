"""The model card beside the weights, and the pipeline's face that writes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models import make_model_folder, make_seeing_model

from vta_sam.checkpoints.model_folder import model_card, read_content
from vta_sam.generation.pipeline import Pipeline, load
from vta_sam.runtime.errors import InputError


def test_a_folder_has_a_card_with_licence_data_and_figures(tmp_path):
    folder = make_model_folder(tmp_path, about={"licence": "CC BY-NC", "data": "1024 clips", "steps": 7})
    text = (folder / "README.md").read_text()
    for words in ("CC BY-NC", "- data: 1024 clips", "- steps: 7", "None were measured", "1.28 s", "vta_sam.load"):
        assert words in text
    rows = [("onset F1", "0.50 [0.40, 0.60]", "0.20", "0.90"), ("silent", "0.0")]
    text = model_card(read_content(folder), rows, "128 held-out clips")
    assert "128 held-out clips." in text and "| onset F1 | 0.50 [0.40, 0.60] | 0.20 | 0.90 |" in text
    assert "| silent | 0.0 |  |  |" in text and "None were measured" not in text


def test_a_licence_that_is_not_stated_is_asked_for(tmp_path):
    text = model_card({"clip": {"duration_s": 1, "fps": 2}, "about": {}})
    assert "No licence was stated" in text and "vta_sam.load" not in text
    text = model_card({"clip": {"duration_s": 1, "fps": 2}, "about": {"starts": {"vae": "CC BY-NC"}}})
    assert "vae, that training began with: CC BY-NC" in text and "No licence was stated" in text


def test_saved_and_loaded_again(tmp_path):
    pipeline = load(make_model_folder(tmp_path))
    with torch.no_grad():
        pipeline.conditioner.null_token.add_(1)
    pipeline.save_pretrained(tmp_path / "new")
    again = Pipeline.from_pretrained(tmp_path / "new")
    assert torch.equal(again.conditioner.null_token, pipeline.conditioner.null_token)
    assert dataclasses.asdict(again.sampler) == dataclasses.asdict(pipeline.sampler)
    names = ("spec", "codec", "denoiser", "conditioner", "sampler", "vocoder")
    parts = {name: getattr(pipeline, name) for name in names}
    with pytest.raises(InputError, match="without a recipe"):
        Pipeline(**parts, latent_scale=1.0).save_pretrained(tmp_path / "other")


def test_a_generator_draws_the_seed(tmp_path, make_video):
    pipeline, video = load(make_seeing_model(tmp_path)), make_video(tmp_path / "in.mp4", duration_s=1.28)
    one, same = (pipeline.generate(video, generator=torch.Generator().manual_seed(4)).waveform for _ in range(2))
    generator = torch.Generator().manual_seed(4)
    first, second = (pipeline.generate(video, generator=generator).waveform for _ in range(2))
    assert np.array_equal(one, same) and np.array_equal(one, first) and not np.array_equal(first, second)
