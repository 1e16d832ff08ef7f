"""Stage 3 started from another model computes at step 0 what that model computes, given its tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import FRAME_DIM, SPEC, make_batch, make_model_folder, make_recipe

from vta_sam.conditioners.vta_ldm import FrameProjection
from vta_sam.conditioners.vta_sam import TemporalSemanticEncoder, VTASAMConditioner
from vta_sam.diffusion.unet import LatentUNet
from vta_sam.generation.pipeline import load
from vta_sam.importers.systems import import_vta_ldm
from vta_sam.runtime.errors import InputError
from vta_sam.training.codec_stages import latent_scale
from vta_sam.training.diffusion_stage import TrainedFolders, vocoder_folder
from vta_sam.training.warm_start import WarmStart


def vta_ldm_recipe(positions=False, null="zeros"):
    return {"_target_": "vta_ldm", "token_dim": 16, "positions": positions, "null": null,
            "encoder": {"_target_": "frame_projection", "frame_dim": FRAME_DIM, "width": 16,
                        "normalise": False, "frozen": True}}


def started(folder, aligned, spec=SPEC, timed=0.0, **encoder):
    """⇒ a UNet and a VTA-SAM conditioner of their own random weights, and then started from ``folder``."""
    start = WarmStart(folder)
    wanted = make_recipe(aligned)
    recipe = {**wanted.conditioner, "token_dim": start.recipe.conditioner["token_dim"]}
    recipe["encoder"] = {**recipe["encoder"], "fps": spec.fps, **encoder}
    changed = start.conditioner_recipe(recipe)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        source = start.recipe.denoiser
        sizes = {**source["config"], "sample_size": [spec.columns, 4]}
        unet = LatentUNet(sizes, spec, recipe["map_channels"], source.get("coordinate_channels", 0), timed)
        inner = TemporalSemanticEncoder(**{k: v for k, v in recipe["encoder"].items() if k != "_target_"})
        carried = {k: v for k, v in (changed.get("carried") or {}).items() if k != "_target_"}
        conditioner = VTASAMConditioner(inner, spec, recipe["token_dim"], map_channels=recipe["map_channels"],
                                        carried=FrameProjection(**carried) if carried else None)
        for module in (unet, conditioner):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    start.fill(unet, conditioner)
    return start, unet.eval(), conditioner.eval()


@pytest.mark.parametrize("aligned, timed", [(False, 0.0), (True, 0.0), (True, 2.0)])
@pytest.mark.parametrize(("positions", "null"), [(False, "zeros"), (True, "learned")])
@torch.no_grad()
def test_vta_sam_starts_as_vta_ldm(tmp_path, aligned, timed, positions, null):
    folder = make_model_folder(tmp_path, conditioner=vta_ldm_recipe(positions, null))
    source = load(folder)
    start, unet, conditioner = started(folder, aligned, timed=timed)
    batch = make_batch("a", "b")
    latent = torch.randn(2, 8, SPEC.columns, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([900, 30])
    source.denoiser.eval()
    for ours, theirs in ((conditioner(batch), source.conditioner(batch)),
                         (conditioner.null(batch), source.conditioner.null(batch))):
        torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=0)
        found, wanted = unet(latent, timestep, ours), source.denoiser(latent, timestep, theirs)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert len(start.taken) + len(start.resized) + len(start.new) == len(unet.state_dict()) + len(
        conditioner.state_dict())
    assert bool(start.resized) == aligned and any("encoder" in name for name in start.new)
    assert any("resized" in line for line in start.lines())


def test_what_is_new_can_learn(tmp_path):
    """Zeros where it starts, and gradients that are none."""
    folder = make_model_folder(tmp_path, conditioner=vta_ldm_recipe())
    _, unet, conditioner = started(folder, aligned=True, timed=2.0)
    condition = conditioner(make_batch("a", "b"))
    unet(torch.randn(2, 8, SPEC.columns, 4), torch.tensor([500, 500]), condition).square().mean().backward()
    for weight in (conditioner.to_token.weight, conditioner.position_gain, conditioner.carried.project.weight):
        assert weight.grad.abs().max() > 0
    assert unet.unet.conv_in.weight.grad[:, 8:12].abs().max() > 0
    positions = [p for name, p in unet.named_parameters() if name.endswith("position.weight")]
    assert positions and all(not p.any() and p.grad.abs().max() > 0 for p in positions)


@torch.no_grad()
def test_the_released_layout_starts_vta_sam(released, tmp_path):
    """The tiny VTA-LDM, imported; semantics zeroed by the start itself, whatever the objects."""
    import_vta_ldm(released / "vta_ldm_tiny", tmp_path / "model", [released], {"vae": "audioldm_tiny.ckpt"})
    source = load(tmp_path / "model")
    spec = source.spec
    start, unet, conditioner = started(tmp_path / "model", aligned=True, spec=spec, frame_dim=768)
    batch = make_batch("a", "b", spec=spec)
    batch = dataclasses.replace(batch, frame_embedding=torch.randn(2, spec.frames, 768))
    latent = torch.randn(2, 8, 32, 16)
    conditions = ((conditioner(batch), source.conditioner(batch)),
                  (conditioner.null(batch), source.conditioner.null(batch)))
    source.denoiser.eval()
    for ours, theirs in conditions:
        ours.column_map = ours.column_map[:, :, :32]  # a shorter latent is quicker
        for timestep in (981, 1):
            at = torch.full((2,), timestep)
            torch.testing.assert_close(unet(latent, at, ours), source.denoiser(latent, at, theirs), atol=1e-4, rtol=0)
    assert start.recipe.latent_scale == pytest.approx(0.9227, abs=1e-4)
    whole = len(source.denoiser.state_dict())
    assert len([name for name in start.taken if name.startswith("unet.")]) == whole - 1 and len(start.resized) == 1


def test_another_conditioner_is_new_and_the_unet_is_taken(tmp_path):
    caption = {"_target_": "tango", "caption_dim": 6, "token_dim": 16}
    folder = make_model_folder(tmp_path, conditioner=caption)
    start, unet, _ = started(folder, aligned=False)
    assert all(name.startswith("conditioner.") for name in start.new) and not start.resized
    source = load(folder).denoiser.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in unet.state_dict().items())


def test_the_same_kind_is_taken_whole(tmp_path):
    folder = make_model_folder(tmp_path)
    start = WarmStart(folder)
    assert start.is_of(start.recipe.conditioner) and not start.is_of(vta_ldm_recipe())
    pipeline = load(folder)
    before = {name: value.clone() for name, value in pipeline.conditioner.state_dict().items()}
    with torch.no_grad():
        for parameter in pipeline.conditioner.parameters():
            parameter.zero_()
    start.fill(pipeline.denoiser, pipeline.conditioner)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.conditioner.state_dict().items())
    assert not start.new and not start.resized


@torch.no_grad()
def test_a_model_that_was_started_starts_another(tmp_path):
    """What it carries from VTA-LDM goes on with it."""
    first = make_model_folder(tmp_path, conditioner=vta_ldm_recipe())
    recipe = WarmStart(first).conditioner_recipe(make_recipe().conditioner)
    again = make_model_folder(tmp_path / "again", conditioner=recipe)
    start, unet, conditioner = started(again, aligned=False)
    source, batch = load(again), make_batch("a", "b")
    source.conditioner.eval()
    assert not start.new and not start.resized and conditioner.carried is not None
    torch.testing.assert_close(conditioner(batch).tokens, source.conditioner(batch).tokens)


@torch.no_grad()
def test_the_paper_s_form_starts_the_aligned_one(tmp_path):
    """What lies beside the latent is new, and says nothing yet."""
    folder = make_model_folder(tmp_path)
    source, batch = load(folder), make_batch("a", "b")
    start, unet, conditioner = started(folder, aligned=True)
    assert {name.split(".")[1] for name in start.new} == {"to_map", "null_column"} and len(start.resized) == 1
    latent, timestep = torch.randn(2, 8, SPEC.columns, 4), torch.tensor([900, 30])
    source.denoiser.eval(), source.conditioner.eval()
    found = unet(latent, timestep, conditioner(batch))
    wanted = source.denoiser(latent, timestep, source.conditioner(batch))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    aligned = make_model_folder(tmp_path / "aligned", aligned=True)
    with pytest.raises(InputError, match="another conditioner than is configured: (to_map|null_column)"):
        started(aligned, aligned=False)


def test_what_does_not_fit_is_refused(tmp_path):
    folder = make_model_folder(tmp_path, conditioner=vta_ldm_recipe())
    with pytest.raises(InputError, match="width 12, these shards hold 13"):
        started(folder, False, frame_dim=13)
    start, other = WarmStart(folder), make_recipe()
    config = {**other.denoiser["config"], "block_out_channels": [16, 16]}
    unet = LatentUNet(config, SPEC, 0, 4)
    with pytest.raises(InputError, match="another denoiser"):
        start.fill(unet, load(folder).conditioner)


def test_latents_are_scaled_as_the_source_was_trained(tmp_path):
    folder = make_model_folder(tmp_path, conditioner=vta_ldm_recipe())
    assert latent_scale(make_recipe(latent_scale=1.0), tmp_path, WarmStart(folder)) == 0.8
    assert latent_scale(make_recipe(latent_scale=0.9), tmp_path) == 0.9  # comes with the VAE


def test_a_vocoder_without_weights_is_refused(tmp_path):
    hifigan = {"_target_": "hifigan"}
    assert vocoder_folder({"_target_": "griffin_lim"}, None, None) is None
    with pytest.raises(InputError, match="needs weights; give vae=audioldm"):
        vocoder_folder(hifigan, None, None)
    folder = make_model_folder(tmp_path)
    with pytest.raises(InputError, match="holds none"):
        vocoder_folder(hifigan, folder, None)
    other = make_model_folder(tmp_path / "other", vocoder={**hifigan, "channels": 32})
    assert vocoder_folder(hifigan, folder, other) == vocoder_folder(hifigan, other, None) == other


def test_licences_are_inherited(tmp_path):
    folder = make_model_folder(tmp_path, about={"licence": "CC BY-NC"})
    plain = make_model_folder(tmp_path / "plain")
    assert TrainedFolders(plain, init=folder).licences() == {"init": "CC BY-NC"}
