"""A denoiser of one's own, one class and one yaml in a folder of one's own: trained, kept, loaded and sampled without
touching the project."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from models import make_model_folder
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_data import CODEC, SPEC, a_clip, build, stage_context, write_dataset

from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import ModelRecipe, read_recipe, save_model
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.schema import read_dataset
from vta_sam.diffusion.condition import connect
from vta_sam.diffusion.objective import Objective, VPrediction
from vta_sam.diffusion.sampler import BaseSampler
from vta_sam.generation.attention_maps import attention_maps
from vta_sam.generation.pipeline import load
from vta_sam.runtime.errors import InputError
from vta_sam.training.job import TrainingJob
from vta_sam.training.stages import STAGES
from vta_sam.training.warm_start import WarmStart

CONF = Path(__file__).resolve().parents[1] / "conf"

SOURCE = '''
import torch
import vta_sam
from torch import nn
from vta_sam.diffusion.condition import Denoiser
from vta_sam.diffusion.unet import sinusoids


class Block(nn.Module):
    def __init__(self, width, heads, token_dim):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(3)])
        self.modulation = nn.Linear(width, 6 * width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read = nn.MultiheadAttention(width, heads, batch_first=True, kdim=token_dim, vdim=token_dim)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, time, tokens, padding):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(time)[:, None].chunk(6, dim=-1)
        h = self.norms[0](x) * (1 + scale) + shift
        x = x + gate * self.attend(h, h, h, need_weights=False)[0]
        x = x + self.read(self.norms[1](x), tokens, tokens, key_padding_mask=padding, need_weights=False)[0]
        return x + gate_mlp * self.mlp(self.norms[2](x) * (1 + scale_mlp) + shift_mlp)


class TinyDiT(Denoiser):
    """Each column of the latent is a token (Peebles & Xie, 2023), which reads the condition by cross-attention."""

    def __init__(self, spec, latent_channels, latent_freq, token_dim, width=32, depth=2, heads=2):
        super().__init__()
        self.latent_channels, self.token_dim, self.latent_freq = latent_channels, token_dim, latent_freq
        self.enter, self.leave = (nn.Linear(*sizes) for sizes in
                                  ((latent_channels * latent_freq, width), (width, latent_channels * latent_freq)))
        self.column, self.time = nn.Parameter(torch.randn(spec.columns, width) * 0.02), nn.Linear(64, width)
        self.layers = nn.ModuleList([Block(width, heads, token_dim) for _ in range(depth)])

    def blocks(self):
        return list(self.layers)

    def forward(self, latent, times, condition):
        x = self.enter(latent.transpose(1, 2).flatten(2)) + self.column
        time = self.time(sinusoids(times / 1000, 64, 0.01, 10.0).to(x.dtype))
        for layer in self.layers:
            x = layer(x, time, condition.tokens, ~condition.mask)
        return self.leave(x).unflatten(2, (self.latent_channels, self.latent_freq)).transpose(1, 2)


vta_sam.trust("mine.TinyDiT", name="tiny_dit")
'''

YAML = """
_target_: mine.TinyDiT
token_dim: 24
latent_channels: 8
latent_freq: 4
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with ``mine.py`` on Python's path, and ``conf/denoiser/tiny_dit.yaml``."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "conf" / "denoiser").mkdir(parents=True)
    (tmp_path / "conf" / "denoiser" / "tiny_dit.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(parts, "_TRUSTED", {})
    return tmp_path


def job_of(folder: Path, *overrides: str) -> TrainingJob:
    """A smoke job that trains two steps of the diffusion, with configs of one's own in ``folder``/conf."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[
            "size=smoke", f"hydra.searchpath=[file://{folder}/conf]",
            f"runs={folder}/runs", f"vae={folder}/vae", "stages=[diffusion]", "vocoder=griffin_lim",
            "+vocoder.iterations=1", "+vocoder.inversion_steps=1", "validation={clips: 2, steps: 2}",
            "fit.diffusion.batch_size=2",
            "fit.diffusion.fit={steps: 2, validate_every: 2, checkpoint_every: 2, ema_start: 0, precision: fp32}",
            *overrides])
    return TrainingJob.of(OmegaConf.to_container(config, resolve=True))


def write_vae(folder: Path) -> None:
    recipe = {**CODEC, "mel_mean": -9.0, "mel_std": 3.0}
    save_model(folder, ModelRecipe(clip=SPEC.settings(), codec=recipe), {"codec": build(recipe)})


def train_diffusion(job: TrainingJob, folder: Path) -> Path:
    """The stage on a tiny dataset ⇒ its model folder."""
    write_dataset(folder / "shards", {"train": 4, "val": 2, "test": 2})
    write_vae(folder / "vae")
    stage = STAGES["diffusion"]
    stage.folder(job).claim(overwrite=False)
    stage.check(job)
    stage.train(job, stage_context(folder / "shards", read_dataset(folder / "shards")))
    return stage.folder(job).model


def test_it_trains_two_steps_and_comes_back(folder):
    job = job_of(folder, "+exp=vta_sam", "denoiser=tiny_dit")
    assert job.conditioner["token_dim"] == 24  # said once, by the denoiser
    model = train_diffusion(job, folder)
    recipe: Any = read_recipe(model).denoiser
    assert recipe == {"_target_": "tiny_dit", "token_dim": 24, "latent_channels": 8, "latent_freq": 4}
    saved = load_file(model / "denoiser.safetensors")
    pipeline = load(model)
    assert type(pipeline.denoiser).__name__ == "TinyDiT" and set(saved) == set(pipeline.denoiser.state_dict())
    assert "Parts: codec, denoiser, conditioner, vocoder" in (model / "README.md").read_text()

    clip = collate([window_of(a_clip(key), SPEC, 0) for key in "xy"], SPEC)
    latents = pipeline.sample_latents(clip, [0, 1])
    assert torch.isfinite(latents).all() and latents.shape == (2, 8, SPEC.columns, 4)
    assert torch.allclose(pipeline.sample_latents(clip.select([1]), [1]), latents[1:], atol=1e-4)
    assert not torch.allclose(pipeline.sample_latents(clip.select([0]), [1]), latents[1:], atol=1e-4)  # another clip
    assert attention_maps(pipeline, clip.select([0]), seed=0) == {}

    start = WarmStart(model)
    conditioner, denoiser = (parts.build(recipe, _partial_=True)(spec=SPEC)
                             for recipe in job.network_recipes(read_dataset(folder / "shards")))
    start.fill(denoiser, conditioner)
    assert not start.new and torch.equal(denoiser.column, pipeline.denoiser.column)


def test_a_conditioner_that_needs_a_unet_says_so_before_training(folder):
    job = job_of(folder, "conditioner=foleycrafter", "denoiser=tiny_dit")
    with pytest.raises(InputError, match="FoleyCrafterConditioner adds layers .* to a LatentUNet, .* is a TinyDiT"):
        STAGES["diffusion"].check(job)


@pytest.mark.parametrize("change, message", [
    ("conditioner=vta_sam_aligned", "TinyDiT reads 0 channels beside the latent, .* VTASAMConditioner makes 32"),
    ("conditioner.token_dim=16", "TinyDiT reads tokens of width 24, .* VTASAMConditioner makes tokens of width 16"),
])
def test_what_does_not_fit_is_refused_in_a_sentence(folder, change, message):
    with pytest.raises(InputError, match=message):
        train_diffusion(job_of(folder, "denoiser=tiny_dit", change), folder)


@pytest.mark.parametrize("changes, message", [
    (["denoiser=tiny_dit", "denoiser.latent_channels=4"], "TinyDiT takes latents of 4 channels, the VAE makes 8; give"),
    (["denoiser=tiny_dit", "denoiser.latent_freq=8"], "TinyDiT is built for latents of 8 frequency rows, .* makes 4"),
    (["denoiser=tiny_dit", "conditioner.token_dim=16"], "TinyDiT reads tokens of width 24, .* of width 16"),
    (["denoiser=tiny_dit", "+denoiser.heads=5"], "denoiser describes a TinyDiT that can't be built: embed_dim must be"),
    (["networks.unet.config.sample_size=[32,8]"], "LatentUNet is built for latents of 8 frequency rows, .* makes 4"),
    (["networks.unet.config.out_channels=4"], "LatentUNet takes latents of 4 channels, .* makes 8; .*out_channels=8"),
    (["networks.unet.config.norm_num_groups=7"], "networks.unet describes a LatentUNet that can't be built: .*7"),
])
def test_sizes_are_compared_before_the_vae_is_trained(folder, changes, message):
    job = job_of(folder, "stages=[vae,condition,diffusion]", "vae=null", *changes)
    with pytest.raises(InputError, match=message):
        STAGES["diffusion"].check(job)


def test_a_constructor_that_reads_its_weights_is_asked_too(folder):
    """It can't be built without memory, so it is built with."""
    source = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(source.replace(
        "        self.layers = ", "        self.spread = float(self.column.detach().std())\n        self.layers = "))
    before = torch.get_rng_state()
    with pytest.raises(InputError, match="TinyDiT takes latents of 4 channels"):
        STAGES["diffusion"].check(job_of(folder, "denoiser=tiny_dit", "denoiser.latent_channels=4", "vae=null"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_start_with_another_denoiser_is_refused_before_training(folder, tmp_path):
    start = make_model_folder(tmp_path)
    with pytest.raises(InputError, match="init=.* has the denoiser LatentUNet, and the one to train is a TinyDiT"):
        STAGES["diffusion"].check(job_of(folder, "denoiser=tiny_dit", f"init={start}"))


@pytest.mark.parametrize("changes, named", [
    (["+exp=vta_sam_plain"], "networks.unet.coordinate_channels=0, networks.unet.timed_attention=0"),
    (["+exp=vta_sam", "+ablation/positions=off"], "coordinate_channels=0, networks.unet.timed_attention=0"),
    (["+exp=vta_ldm_published"], "give networks.unet.coordinate_channels=16 networks.unet.timed_attention=2.0 back"),
    (["+exp=vta_sam", "networks.unet.config.layers_per_block=2"], "networks.unet.config.layers_per_block=2: another"),
    (["+exp=vta_sam_plain", "size=base"], "networks.unet.coordinate_channels=0, networks.unet.timed_attention=0"),
    (["+exp=vta_sam", "size=smoke"], None),
])
def test_changes_of_a_unet_that_is_not_there_are_refused(folder, monkeypatch, changes, named):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", return_hydra_config=True, overrides=[
            f"hydra.searchpath=[file://{folder}/conf]", "denoiser=tiny_dit", *changes])
        HydraConfig.instance().set_config(config)
        settings: Any = OmegaConf.to_container(config, resolve=False)
        settings.pop("hydra")
        settings = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
        if named is None:
            TrainingJob.of(settings)
        else:
            with pytest.raises(InputError, match=named):
                TrainingJob.of(settings)


class Unguided(VPrediction):
    score_gain = Objective.score_gain


@pytest.mark.parametrize("changes, refused", [
    ([], True), (["conditioner.classifier_scale=0"], False), (["conditioner.classifier=null"], False)])
def test_an_objective_that_a_classifier_can_not_guide_is_refused_before_training(folder, changes, refused):
    job = job_of(folder, "+exp=diff_foley", "objective._target_=test_new_denoiser.Unguided", "contrastive=somewhere",
                 "stages=[vae,diffusion]", "vae=null", *changes)
    if refused:
        with pytest.raises(InputError, match="can't be guided by a classifier"):
            STAGES["diffusion"].check(job)
    else:
        STAGES["diffusion"].check(job)


@dataclasses.dataclass(frozen=True)
class SamplerOfNothing(BaseSampler):
    def sample(self, predict, noise, objective, generators=None):
        raise AssertionError("it samples nothing")


def test_figures_refuse_a_sampler_of_another_objective_before_data_are_read(folder, tmp_path, monkeypatch):
    model = make_model_folder(tmp_path)
    job = job_of(folder, "stages=[figures]", "vae=null", f"model={model}",
                 "sampler._target_=test_new_denoiser.SamplerOfNothing")
    monkeypatch.setattr(type(job.source), "prepare", lambda *_: pytest.fail("data were read"))
    with pytest.raises(InputError, match="SamplerOfNothing can't sample the objective v_prediction"):
        job.run()


def test_a_conditioner_whose_tokens_have_no_time_takes_it(folder):
    job = job_of(folder, "conditioner=tango", "denoiser=tiny_dit")
    write_dataset(folder / "shards", {"train": 4, "val": 2, "test": 2})
    conditioner, denoiser = (parts.build(recipe, _partial_=True)(spec=SPEC)
                             for recipe in job.network_recipes(read_dataset(folder / "shards")))
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    connect(denoiser, conditioner)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())


def test_a_folder_from_before_calls_the_denoiser_unet(tmp_path):
    """model.yaml of version 1 says ``unet``, and no objective; the weights are in unet.safetensors."""
    folder = make_model_folder(tmp_path)
    state = load_file(folder / "denoiser.safetensors")
    (folder / "denoiser.safetensors").rename(folder / "unet.safetensors")
    content = yaml.safe_load((folder / "model.yaml").read_text())
    content["unet"], content["format_version"] = content.pop("denoiser"), 1
    content.pop("objective")
    (folder / "model.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    pipeline = load(folder)
    assert all(torch.equal(value, state[name]) for name, value in pipeline.denoiser.state_dict().items())
    assert pipeline.objective.name == "v_prediction"
    pipeline.save_pretrained(tmp_path / "now")
    assert (tmp_path / "now" / "denoiser.safetensors").exists()
    assert read_recipe(tmp_path / "now") == read_recipe(folder)
