"""An objective and its sampler of one's own, in one file in a folder of one's own: flow matching, trained and sampled
without touching the project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models import make_batch, make_model_folder
from test_new_denoiser import job_of, train_diffusion
from tiny_data import SPEC, a_clip

import vta_sam
from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import read_recipe
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.diffusion.objective import EpsilonPrediction, VPrediction
from vta_sam.diffusion.sampler import Sampler, with_settings
from vta_sam.generation.pipeline import load
from vta_sam.runtime.errors import InputError

SOURCE = '''
from dataclasses import dataclass

import torch
import vta_sam
from vta_sam.diffusion.objective import TIME_END, Objective
from vta_sam.diffusion.sampler import BaseSampler


def share(times):
    return (times / TIME_END)[:, None, None, None]


class FlowMatching(Objective):
    """The velocity noise - latent of the straight path between them (Lipman et al., 2023)."""

    name = "flow"

    def draw_times(self, draws):
        return draws.normal().sigmoid() * TIME_END  # logit-normal (Esser et al., 2024)

    def noised(self, latent, noise, times):
        return (1 - share(times)) * latent + share(times) * noise

    def target(self, latent, noise, times):
        return noise - latent

    def to_x0(self, prediction, noisy, times):
        return noisy - share(times) * prediction


@dataclass(frozen=True)
class Euler(BaseSampler):
    samples = ("flow",)

    @torch.no_grad()
    def sample(self, predict, noise, objective, generators=None):
        times = torch.linspace(TIME_END, 0, self.steps + 1, device=noise.device)
        latent = noise
        for now, then in zip(times, times[1:]):
            latent = latent + (then - now) / TIME_END * predict(latent, now.expand(len(latent)))
        return latent


vta_sam.trust("mine.FlowMatching", name="flow_matching")
vta_sam.trust("mine.Euler", name="euler")
'''

FILES = {"objective/flow": "_target_: mine.FlowMatching\n",
         "sampler/euler": "{_target_: mine.Euler, steps: 4, guidance: 3.0}\n"}
CHOSEN = ("+exp=vta_sam", "objective=flow", "sampler=euler")
TINY = ("networks.unet.config.block_out_channels=[8,8,8]", "networks.unet.config.norm_num_groups=4")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(parts, "_TRUSTED", {})
    return tmp_path


def test_it_trains_two_steps_and_samples(folder):
    job = job_of(folder, *CHOSEN, *TINY)
    assert job.objective == {"_target_": "mine.FlowMatching"}
    model = train_diffusion(job, folder)
    recipe = read_recipe(model)
    assert recipe.objective == {"_target_": "flow_matching"}
    assert recipe.sampler == {"_target_": "euler", "steps": 4, "guidance": 3.0}

    pipeline = load(model)
    clip = collate([window_of(a_clip(key), SPEC, 0) for key in "xy"], SPEC)
    latents = pipeline.sample_latents(clip, [0, 1])
    assert torch.isfinite(latents).all() and latents.shape == (2, 8, SPEC.columns, 4)
    assert torch.allclose(pipeline.sample_latents(clip.select([1]), [1]), latents[1:], atol=1e-4)
    with pytest.raises(InputError, match="solver=ddpm can't be chosen: the sampler Euler has none"):
        with_settings(pipeline.sampler, solver="ddpm")
    assert with_settings(pipeline.sampler, overlap=0.5, steps=None).recorded() == {
        "guidance": 3.0, "steps": 4, "solver": "Euler", "overlap": 0.5}
    with pytest.raises(InputError, match="flow can't be guided by a classifier"):
        pipeline.objective.score_gain(torch.tensor([1.0]))
    pipeline.sampler = Sampler()  # as the figures of another config's model would have it
    with pytest.raises(InputError, match="Sampler can't sample the objective flow: it samples v_prediction"):
        pipeline.sample_latents(clip, [0, 1])


def test_its_sampler_finds_the_latent_of_a_perfect_denoiser(folder):
    objective, sampler = (parts.build({"_target_": f"mine.{name}"}) for name in ("FlowMatching", "Euler"))
    draws = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(2, 8, 4, 4, generator=draws) for _ in range(2))
    found = sampler.sample(lambda noisy, times: objective.target(latent, noise, times), noise, objective)
    assert torch.allclose(found, latent, atol=1e-5)
    times = torch.tensor([100.0, 900.0])
    noisy = objective.noised(latent, noise, times)
    assert torch.allclose(objective.to_x0(objective.target(latent, noise, times), noisy, times), latent, atol=1e-5)


@pytest.mark.parametrize("overrides, message", [
    ([*CHOSEN, "sampler._target_=diffusion_sampler"], "Sampler can't sample the objective flow: it samples v_pred"),
    (["sampler._target_=mine.Euler"], "Euler can't sample the objective v_prediction: it samples flow"),
])
def test_a_sampler_refuses_what_it_can_not_sample_before_training(folder, overrides, message):
    with pytest.raises(InputError, match=message):
        train_diffusion(job_of(folder, *overrides), folder)
    assert not (folder / "runs" / "vta_sam-0" / "diffusion" / "checkpoints").exists()


def test_a_model_folder_of_two_that_do_not_go_together_is_not_loaded(folder, tmp_path):
    model = make_model_folder(tmp_path, objective={"_target_": "mine.FlowMatching"})
    vta_sam.trust("mine.FlowMatching")
    with pytest.raises(InputError, match="the sampler Sampler can't sample the objective flow"):
        load(model)


@pytest.mark.parametrize("name", ["v_prediction", "epsilon_prediction", "x0_prediction"])
def test_objectives_of_this_project_are_chosen_by_name(folder, name):
    job = job_of(folder, f"objective={name}")
    objective = parts.build(job.objective)
    assert objective.name == name
    Sampler().require(objective)


def test_the_same_weights_sound_otherwise_under_another_objective(tmp_path):
    """What a denoiser predicts stands in its folder: read as noise, a v is another sound."""
    epsilon = make_model_folder(tmp_path, objective={"_target_": "epsilon_prediction"})
    latents = load(epsilon).sample_latents(make_batch("a"), [0])
    assert isinstance(load(epsilon).objective, EpsilonPrediction)
    (tmp_path / "v").mkdir()
    v = load(make_model_folder(tmp_path / "v"))
    assert isinstance(v.objective, VPrediction)
    assert not torch.allclose(v.sample_latents(make_batch("a"), [0]), latents, atol=1e-2)
