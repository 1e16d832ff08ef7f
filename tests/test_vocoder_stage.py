"""Stage vocoder as a job does it, and stage 3 that hears its samples with the result and starts from another model."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_data import (
    CONDITIONER, FRAME_DIM, UNET, WORDS, a_clip, stage_context, stage_folder, stage_settings, write_dataset
)

from vta_sam.checkpoints.model_folder import read_recipe
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.generation.pipeline import load
from vta_sam.importers.named_models import named_folder
from vta_sam.runtime.errors import InputError
from vta_sam.training import codec_stages, diffusion_stage
from vta_sam.training.codec_stages import train_vocoder
from vta_sam.vocoder import HiFiGAN, hifigan_training

HIFIGAN = {"_target_": "hifigan", "channels": 32}
VTA_LDM = {"_target_": "vta_ldm", "token_dim": 16, "positions": False,
           "null": "zeros", "encoder": {"_target_": "frame_projection", "width": 16,
                                        "frame_dim": FRAME_DIM, "normalise": False}}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_dataset(root)
    return stage_context(root, read_dataset(root))


@pytest.fixture(scope="module")
def vocoder(context, tmp_path_factory):
    """⇒ the model folder of a trained vocoder."""
    folder = stage_folder(tmp_path_factory.mktemp("vocoder"))
    settings = stage_settings(2)
    settings.weights.update(mel=45.0, features=2.0, adversarial=1.0)
    adversary = {"period_width": 1, "scale_width": 4, "periods": [2], "scales": 1}
    train_vocoder(context, folder, settings, HIFIGAN, adversary)
    return folder.model


@pytest.fixture(scope="module")
def vae(context, tmp_path_factory):
    from tiny_data import CODEC

    folder = stage_folder(tmp_path_factory.mktemp("vae"))
    codec_stages.train_vae(context, folder, stage_settings(2), CODEC)
    return folder.model


def train(context, out, vae, unet=UNET, conditioner=CONDITIONER, **more):
    starts = diffusion_stage.TrainedFolders(vae, init=more.pop("init", None), vocoder=more.pop("vocoder_from", None))
    folder = stage_folder(out)
    diffusion_stage.train_diffusion(context, folder, stage_settings(2), diffusion_stage.DiffusionParts(**{
        "denoiser": unet, "conditioner": conditioner, "dropout": 0.1, "augment": {}, "freeze": False, "starts": starts,
        "objective": {"_target_": "v_prediction"},
        "sampler": {"_target_": "diffusion_sampler", "steps": 1},
        "vocoder": {"_target_": "griffin_lim", "iterations": 1, "inversion_steps": 1},
        "validation": {"clips": 2, "steps": 1}, "grounder": {}, "encoder": {}, **more}))
    return folder.model


def test_a_trained_vocoder_is_heard_by_another_run(context, vocoder, vae, tmp_path):
    trained = load_file(vocoder / "vocoder.safetensors")
    assert read_recipe(vocoder).vocoder == HIFIGAN and not any("adversary" in key for key in trained)
    with pytest.raises(InputError, match="holds none"):
        train(context, tmp_path / "refused", vae, vocoder=HIFIGAN)
    model = train(context, tmp_path / "stage", vae, vocoder={"_target_": HIFIGAN["_target_"]}, vocoder_from=vocoder)
    pipeline = load(model)
    assert isinstance(pipeline.vocoder, HiFiGAN)
    assert all(torch.equal(value, trained[name]) for name, value in pipeline.vocoder.state_dict().items())
    clip = a_clip("one", words=WORDS)
    assert pipeline.generate_features(clip, seed=0, steps=1).shape == clip.waveform.shape


def test_stage_3_starts_from_another_model_and_says_what_it_took(context, vae, tmp_path, monkeypatch):
    plain = {**UNET, "map_channels": 0}
    source = train(context, tmp_path / "source", vae, unet=plain, conditioner=VTA_LDM)
    told = io.StringIO()
    object.__setattr__(context, "console", Console(file=told, width=200))
    model = train(context, tmp_path / "stage", vae, init=named_folder(str(source)))
    taken, resized, new = told.getvalue().splitlines()[:3]
    assert "tensors taken" in taken and "carried" not in new
    assert resized == "  resized, with zeros for what is new in them: unet.conv_in.weight (12 to 16 channels)"
    recipe = read_recipe(model)
    assert recipe.conditioner["carried"]["normalise"] is False
    assert recipe.latent_scale == read_recipe(source).latent_scale
    carried = load_file(model / "conditioner.safetensors")["carried.project.weight"]
    before = load_file(source / "conditioner.safetensors")["encoder.project.weight"]
    assert carried.shape == before.shape and not torch.equal(carried, before)  # it went on learning
    assert (carried - before).abs().max() < 0.1
    load(model)  # its recipe builds what its weights fill


def test_a_vocoder_that_has_nothing_to_learn_is_refused(context, tmp_path):
    with pytest.raises(InputError, match="GriffinLim"):
        train_vocoder(context, stage_folder(tmp_path), stage_settings(2), {"_target_": "griffin_lim"}, {})


def test_a_stage_that_was_begun_with_other_discriminators_is_refused_in_words(context, tmp_path, monkeypatch):
    """As those from before spectral norm: their checkpoint has other parameters."""
    settings, adversary = stage_settings(2), {"period_width": 1, "scale_width": 4, "periods": [2], "scales": 1}
    settings.weights.update(mel=45.0, features=2.0, adversarial=1.0)
    with monkeypatch.context() as former:
        former.setattr(hifigan_training, "spectral_norm", hifigan_training.weight_norm)
        train_vocoder(context, stage_folder(tmp_path), settings, HIFIGAN, adversary)
    with pytest.raises(InputError, match=r"last\.ckpt is a checkpoint of another model: \d+ of its parameters differ"):
        train_vocoder(context, stage_folder(tmp_path), settings, HIFIGAN, adversary)
