"""Every conditioner keeps the contract: null, padding, what trains and what doesn't, and a model folder that comes back
as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import CAPTION_DIM, FRAME_DIM, OBJECT_DIM, SPEC, make_batch, make_features, make_model_folder, make_recipe
from tiny_data import stage_settings

from vta_sam.conditioners.foleycrafter import DecoupledCrossAttention
from vta_sam.dataset.shards.batch import Augmentation, collate, window_of
from vta_sam.diffusion.latent_diffusion import LatentDiffusion
from vta_sam.diffusion.objective import VPrediction
from vta_sam.generation.build import build_denoiser
from vta_sam.generation.pipeline import load
from vta_sam.training.job import STAGES
from vta_sam.training.optimisation import AdamWithWarmup, may_leave_out
from vta_sam.training.part_stages import PartInputs

ENCODER: dict[str, Any] = {"_target_": "temporal_semantic_encoder", "frame_dim": FRAME_DIM,
                           "object_dim": OBJECT_DIM, "fps": SPEC.fps, "width": 16, "layers": 1, "heads": 2}
PROJECTION: dict[str, Any] = {"_target_": "frame_projection", "frame_dim": FRAME_DIM, "width": 16}
VTA_SAM: dict[str, Any] = {"_target_": "vta_sam", "encoder": ENCODER, "token_dim": 16}
RECIPES: dict[str, dict[str, Any]] = {
    "tango": {"_target_": "tango", "caption_dim": CAPTION_DIM, "token_dim": 16},
    "vta_ldm": {"_target_": "vta_ldm", "encoder": PROJECTION, "token_dim": 16},
    "vta_ldm_published": {
        "_target_": "vta_ldm", "token_dim": 16, "fps": 4, "positions": False,
        "null": "zeros", "encoder": {**PROJECTION, "normalise": False, "frozen": True}},
    "diff_foley": {
        "_target_": "diff_foley", "token_dim": 16, "latent_channels": 8,
        "latent_freq": 4, "classifier": {"width": 16, "layers": 1}, "classifier_scale": 1.0,
        "encoder": {"_target_": "aligned_frame_encoder", "frame_dim": FRAME_DIM,
                    "width": 16, "dim": 8, "layers": 1}},
    "foleycrafter": {
        "_target_": "foleycrafter", "caption_dim": CAPTION_DIM,
        "frame_dim": FRAME_DIM, "token_dim": 16,
        "onsets": {"_target_": "onset_predictor", "frame_dim": FRAME_DIM, "width": 16,
                   "layers": 1}},
    "vta_sam": VTA_SAM,
    "vta_sam_aligned": {**VTA_SAM, "map_channels": 4},
    "vta_ldm_aligned": {**VTA_SAM, "map_channels": 4, "encoder": {**ENCODER, "use_semantics": False}},
}


@pytest.fixture(params=list(RECIPES))
def system(request):
    """(name, UNet as its conditioner wants it, conditioner), every weight random, also those that start at zero."""
    unet, conditioner = parts_of(request.param)
    randomise(unet), randomise(conditioner)
    return request.param, unet.eval(), conditioner.eval()


def recipe_of(name: str):
    aligned = name.endswith("aligned")
    recipe = make_recipe(aligned, conditioner=RECIPES[name])
    assert recipe.denoiser is not None
    recipe.denoiser["timed_attention"] = 1.0
    recipe.denoiser["config"]["sample_size"] = [SPEC.columns, 4]
    return recipe


def parts_of(name: str, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_denoiser(recipe_of(name), "a test")


def randomise(module: torch.nn.Module) -> None:
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    one = torch.randn(1, 8, SPEC.columns, 4, generator=torch.Generator().manual_seed(seed))
    return one.expand(rows, -1, -1, -1).clone()


def predicted(unet, condition, rows: int = 1) -> torch.Tensor:
    return unet(noise(rows), torch.full((rows,), 500), condition)


def fields_of(condition) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(condition).items() if value is not None}


@torch.no_grad()
def test_null_of_dropout_is_null_of_sampling(system):
    _, _, conditioner = system
    batch = make_batch("a", "b", "c")
    told, null = fields_of(conditioner(batch)), fields_of(conditioner.null(batch))
    mixed = fields_of(conditioner.with_dropout(batch, torch.tensor([False, True, False])))
    assert told.keys() == null.keys() == mixed.keys()
    for name, both in mixed.items():
        assert told[name].shape == null[name].shape and told[name].dtype == null[name].dtype
        assert torch.equal(both, torch.stack([told[name][0], null[name][1], told[name][2]])), name


@torch.no_grad()
def test_null_says_nothing_of_the_clip(system):
    _, unet, conditioner = system
    one, other = (predicted(unet, conditioner.null(make_batch(key))) for key in "ab")
    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, predicted(unet, conditioner(make_batch("a"))), atol=1e-3)


@torch.no_grad()
def test_padding_changes_nothing(system):
    """A short clip with a short caption, alone and beside a long one; and with rubbish where nothing is real."""
    _, unet, conditioner = system
    short, longer = make_features("a", 0.8, caption_tokens=2), make_features("b", caption_tokens=5)
    alone = collate([window_of(short, SPEC, 0)], SPEC)
    beside = collate([window_of(short, SPEC, 0), window_of(longer, SPEC, 0)], SPEC)
    expected = predicted(unet, conditioner(alone))
    assert torch.allclose(predicted(unet, conditioner(beside), 2)[:1], expected, atol=1e-4)
    beside.frame_embedding[0, ~beside.frame_mask[0]] = 9.0
    beside.probs[0, ~beside.frame_mask[0]] = 1.0
    beside.caption_tokens[0, ~beside.caption_mask[0]] = 9.0
    assert torch.allclose(predicted(unet, conditioner(beside), 2)[:1], expected, atol=1e-4)


@torch.no_grad()
def test_each_system_listens_to_its_own_senses_alone(system):
    """Frames for all but Tango, words for those that read them, objects for VTA-SAM."""
    name, unet, conditioner = system
    expected = predicted(unet, conditioner(make_batch("a")))

    def hears(change) -> bool:
        batch = make_batch("a")
        change(batch)
        return not torch.allclose(predicted(unet, conditioner(batch)), expected, atol=1e-4)

    assert hears(lambda b: b.frame_embedding.mul_(-1)) == (name != "tango")
    assert hears(lambda b: b.caption_tokens.mul_(-1)) == (name in ("tango", "foleycrafter"))
    assert hears(lambda b: b.object_embedding.mul_(-1)) == (name in ("vta_sam", "vta_sam_aligned"))
    assert hears(lambda b: b.probs.mul_(0.1)) == (name in ("vta_sam", "vta_sam_aligned"))


@pytest.mark.slow
def test_gradients_reach_what_trains_and_spare_what_is_frozen():
    for name in RECIPES:
        unet, conditioner = parts_of(name)
        randomise(unet)
        stages = [stage for stage, part in conditioner.pretrained.items() if part.required or stage == "classifier"]
        slower = {f"conditioner.{conditioner.pretrained[s].attribute}.": conditioner.pretrained[s].rate for s in stages}
        module = LatentDiffusion(unet, conditioner, VPrediction(), 1.0, 0.5, Augmentation(0.0),
                                 AdamWithWarmup(1e-2, 10, slower=slower))
        optimiser = module.configure_optimizers()["optimizer"]
        before = {key: value.clone() for key, value in module.named_parameters()}
        draws = torch.Generator().manual_seed(0)
        batch = make_batch("a", "b", "c", "d")
        batch.seeds = torch.arange(4)
        batch.moments = torch.randn(4, 16, SPEC.columns, 4, generator=draws)
        module.train()
        for _ in range(2):  # what starts at zero hides its input from the first step
            optimiser.zero_grad()
            module.errors(batch)[0].backward()
            optimiser.step()
        moved = {key for key, value in module.named_parameters() if not torch.equal(value, before[key])}
        kept = {key for key in before if key.startswith(tuple(slower))}
        if name == "vta_ldm_published":
            kept |= {key for key in before if key.startswith("conditioner.encoder.")}
        assert not moved & kept, f"{name}: {sorted(moved & kept)[:3]} should be frozen"
        if name == "vta_ldm_aligned":  # half of its projection and the objects' norm have nothing to learn from
            kept |= {"conditioner.encoder.object_norm.weight", "conditioner.encoder.object_norm.bias"}
        own = {key for key in before if key.startswith(("conditioner.", "unet.control.")) or "_ip." in key} - kept
        assert own <= moved, f"{name}: {sorted(own - moved)[:3]} never moved"


@pytest.mark.slow
@torch.no_grad()
def test_a_model_folder_comes_back_as_it_was(system, tmp_path):
    name, _, _ = system
    folder = make_model_folder(tmp_path, aligned=name.endswith("aligned"), conditioner=RECIPES[name])
    batch = make_batch("a", "b")
    first, again = (load(folder).sample_latents(batch, [1, 2]) for _ in range(2))
    assert torch.equal(first, again) and torch.isfinite(first).all()
    assert not torch.equal(first, load(folder).sample_latents(make_batch("c", "d"), [1, 2]))
    longer = make_features("long", 3.0)
    sound = load(folder).generate_features(longer, seed=0)
    assert sound.shape == longer.waveform.shape and np.isfinite(sound).all()


@torch.no_grad()
def test_what_is_added_to_the_unet_starts_at_nothing():
    """FoleyCrafter's UNet at the start is the plain one reading text: same seed, same prediction."""
    batch = make_batch("a", "b")
    unet, conditioner = parts_of("foleycrafter")
    condition = conditioner(batch)
    plain, _ = parts_of("tango")
    plain.load_state_dict({key: value for key, value in unet.state_dict().items() if key in plain.state_dict()})
    from vta_sam.diffusion.condition import Condition

    expected = predicted(plain, Condition(condition.tokens, condition.mask), 2)
    assert torch.allclose(predicted(unet, condition, 2), expected, atol=1e-6)


@torch.no_grad()
def test_decoupled_attention_with_scale_0_is_text_alone():
    unet, conditioner = parts_of("foleycrafter")
    randomise(unet)
    unet.control.scale = 0.0
    batch, other = make_batch("a"), make_batch("a")
    other.frame_embedding.mul_(-2)
    texts = conditioner(batch), conditioner(other)
    second_stream = [layer for layer in unet.modules() if isinstance(layer, DecoupledCrossAttention)]
    for layer in second_stream:
        layer.scale = 0.0
    silent = predicted(unet, texts[0])
    assert torch.allclose(silent, predicted(unet, texts[1]), atol=1e-6)
    for layer in second_stream:
        layer.scale = 1.0
    assert not torch.allclose(silent, predicted(unet, texts[0]), atol=1e-3)
    assert not torch.allclose(predicted(unet, texts[0]), predicted(unet, texts[1]), atol=1e-3)


@pytest.mark.slow
def test_control_branch_learns_where_an_impulse_is():
    """Only the branch trains; it comes to say the track's column to the UNet."""
    unet, conditioner = parts_of("foleycrafter")
    unet.unet.requires_grad_(False)
    optimiser = torch.optim.Adam(unet.control.parameters(), 1e-2)
    with torch.no_grad():
        condition = conditioner(make_batch(*"abcdefgh"))
    tracks = torch.full((8, 1, SPEC.frames), -1.0)
    for row in range(8):
        tracks[row, 0, 2 * row: 2 * row + 2] = 1.0  # column `row` of eight
    condition.control = tracks
    start = predicted(unet, condition, 8).detach()
    target = torch.eye(8)[:, None, :, None].expand(-1, 8, -1, 4)
    for _ in range(120):
        loss = (predicted(unet, condition, 8) - start - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    said = (predicted(unet, condition, 8) - start).mean(dim=(1, 3))
    assert (said.argmax(dim=1) == torch.arange(8)).float().mean() >= 0.75


def test_diff_foley_climbs_where_its_classifier_says():
    _, conditioner = parts_of("diff_foley")
    batch = make_batch("a")
    found = conditioner.guide(batch)
    assert found is not None
    log_likelihood, scale = found
    value = log_likelihood(noise(1), torch.tensor([300])).detach()
    assert scale == 1.0 and value.shape == (1,) and value.item() <= 0
    conditioner.classifier_scale = 0.0
    assert conditioner.guide(batch) is None
    assert all(parts_of(name)[1].guide(batch) is None for name in RECIPES if name != "diff_foley")


def without_gradient(module: torch.nn.Module, batch) -> list[str]:
    """Trainable parameters that a training step leaves out."""
    module.train()
    module.training_step(batch, 0).backward()
    return [name for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.grad is None]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("name", [*RECIPES, "blind", "no double guidance"])
def test_ddp_is_told_to_look_for_parameters_that_a_step_leaves_out(name, monkeypatch):
    """Frozen parts of earlier stages leave nothing to look for; nor does a part that settings switch off."""
    monkeypatch.setitem(RECIPES, "blind", {**VTA_SAM, "encoder": {**ENCODER, "use_frames": False}})
    monkeypatch.setitem(RECIPES, "no double guidance", {**RECIPES["diff_foley"], "classifier_scale": 0.0})
    batch = make_batch("a", "b")
    batch.moments = torch.randn(2, 16, SPEC.columns, 4, generator=torch.Generator().manual_seed(0))
    for frozen in (False, True):
        unet, conditioner = parts_of(name)
        parts = [getattr(conditioner, part.attribute) for part in conditioner.pretrained.values() if not part.rate]
        for part in parts if frozen else ():
            part.requires_grad_(False)
        module = LatentDiffusion(unet, conditioner, VPrediction(), 1.0, 0.1, Augmentation(), lambda m: None)
        looks = may_leave_out(module)
        assert looks == (bool(parts) and not frozen) and (looks or not without_gradient(module, batch))
    module.denoiser.mine = type("Mine", (torch.nn.Identity,), {"__module__": "mine"})()
    assert may_leave_out(module), "of a network of one's own nothing is known"


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("stage, system", [
    ("condition", "vta_sam"), ("condition", "vta_ldm"), ("onsets", "foleycrafter"), ("contrastive", "diff_foley"),
    ("classifier", "diff_foley"),
])
def test_a_step_of_a_conditioners_stage_leaves_no_parameter_out(stage, system):
    settings = stage_settings()
    settings.weights.update(between=1.0, within=1.0)
    module = STAGES[stage].module(PartInputs(SPEC, parts_of(system)[1], settings, Augmentation(), 1.0, VPrediction()))
    batch = make_batch("a", "b")
    batch.moments = torch.randn(2, 16, SPEC.columns, 4, generator=torch.Generator().manual_seed(0))
    assert not without_gradient(module, batch) and not may_leave_out(module)
