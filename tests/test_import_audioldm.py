"""AudioLDM's VAE and vocoder, imported and read back, compute what the published code computes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from omegaconf import OmegaConf
from programs import call
from safetensors.torch import load_file

from vta_sam.checkpoints.model_folder import load_weights, read_recipe
from vta_sam.clip import ClipSpec
from vta_sam.generation.build import build_part, load_vocoder
from vta_sam.importers.components import vae_name, vocoder_name
from vta_sam.importers.named_models import import_checkpoint
from vta_sam.importers.systems import import_audioldm
from vta_sam.runtime.errors import InputError
from vta_sam.training.codec_stages import load_codec
from vta_sam.vocoder import HiFiGAN

BASE = Path(__file__).parents[1] / "conf" / "size" / "base.yaml"


@pytest.fixture
def state(released, tmp_path):
    """The tiny checkpoint's tensors; its shape lies beside the files that tests make of them."""
    for name in ("harmed", "whole"):
        shutil.copy(released / "audioldm_tiny.json", tmp_path / f"{name}.json")
    return torch.load(released / "audioldm_tiny.ckpt", weights_only=True)["state_dict"]


@torch.no_grad()
def test_the_imported_folder_computes_what_was_published(released, tmp_path):
    (account,) = import_audioldm(released / "audioldm_tiny.ckpt", tmp_path / "model")
    assert len(account.taken) == 394 and not account.left_out
    recipe, golden = read_recipe(tmp_path / "model"), np.load(released / "audioldm_tiny.npz")
    assert recipe.latent_scale == pytest.approx(0.9227, abs=1e-4) and "BY-NC" in recipe.about["licence"]
    codec = load_weights(build_part(recipe, "codec", tmp_path), tmp_path / "model", "codec").eval()
    mean, log_variance = codec.moments(torch.from_numpy(golden["mel"]).float()).chunk(2, dim=1)
    np.testing.assert_allclose(mean, golden["posterior_mean"], atol=1e-4)
    np.testing.assert_allclose(log_variance, golden["posterior_logvar"], atol=1e-4)
    mel = codec.network.decode(torch.from_numpy(golden["posterior_mean"]).float()).sample
    np.testing.assert_allclose(mel, golden["mel_from_scaled_mean"], atol=1e-4)
    waveform = load_vocoder(recipe, tmp_path / "model")(torch.from_numpy(golden["mel_from_scaled_mean"]).float()[:, 0])
    np.testing.assert_allclose(waveform, golden["waveform"], atol=1e-6)


def without(state):
    del state["first_stage_model.decoder.conv_in.weight"]


def with_more(state):
    state["first_stage_model.encoder.more"] = torch.zeros(1)


def with_unknown(state):
    state["something.else"] = torch.zeros(1)


def with_unknown_beside(state):
    state["something"] = torch.zeros(1)


def twice(state):
    state["first_stage_model.decoder.up.0.block.0.conv_shortcut.bias"] = torch.zeros(32)


def numbered(state):
    state[0] = torch.zeros(1)


def misshapen(state):
    state["first_stage_model.quant_conv.weight"] = torch.zeros(3, 3)


def unscaled(state):
    state["scale_factor"] = torch.tensor(float("nan"))


@pytest.mark.parametrize(("harm", "says"), [
    (without, "lacks 1 tensors of the VAE"), (with_more, "encoder.more"), (with_unknown, "something.else"),
    (with_unknown_beside, "'something'"), (twice, "no place for"), (numbered, "no names"),
    (misshapen, r"has the shape \(3, 3\)"), (unscaled, "no positive number")])
def test_another_checkpoint_is_refused_and_nothing_is_written(state, tmp_path, harm, says):
    harm(state)
    torch.save({"state_dict": state}, tmp_path / "harmed.ckpt")
    with pytest.raises(InputError, match=says):
        import_audioldm(tmp_path / "harmed.ckpt", tmp_path / "model")
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".ckpt", ".json")]


def test_what_is_beside_the_vae_and_vocoder_is_left_out_and_told(state, tmp_path):
    beside = {"model.diffusion_model.out.2.bias": "AudioLDM's own UNet", "cond_stage_model.logit_scale": "CLAP",
              "betas": "noise schedule", "logvar": "noise schedule", "first_stage_model.loss.logvar": "training"}
    torch.save({"state_dict": state | dict.fromkeys(beside, torch.zeros(1))}, tmp_path / "whole.ckpt")
    (account,) = import_audioldm(tmp_path / "whole.ckpt", tmp_path / "model")
    assert account.left_out.keys() == beside.keys()
    assert all(words in account.left_out[key] for key, words in beside.items())
    assert account.lines()[0] == "394 tensors taken"
    assert "2 entries left out: numbers of the noise schedule" in account.lines()


def test_its_names_are_those_of_the_released_size(state):
    """Levels of 128, 256 and 512 differ where the tiny ones don't, so CompVis' code has two more shortcuts there."""
    network = OmegaConf.to_object(OmegaConf.load(BASE).networks.codec.network)
    with torch.device("meta"):
        vae, vocoder = AutoencoderKL(**{k: v for k, v in network.items() if k != "_target_"}), HiFiGAN()
    names = [key.removeprefix("first_stage_model.") for key in state if key != "scale_factor"]
    names += [f"{block}.nin_shortcut.{kind}" for block in ("encoder.down.2.block.0", "decoder.up.1.block.0")
              for kind in ("weight", "bias")]
    sounding = {vocoder_name(name.removeprefix("vocoder.")) for name in names if name.startswith("vocoder.")}
    assert sounding == vocoder.state_dict().keys()
    assert {vae_name(name, 3) for name in names if not name.startswith("vocoder.")} == vae.state_dict().keys()
    assert round(sum(p.numel() for p in vae.parameters()) / 1e6, 1) == 55.4
    assert round(sum(p.numel() for p in vocoder.parameters()) / 1e6, 1) == 55.3


class Code:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": {"scale_factor": Code(str(tmp_path / "ran"))}}, tmp_path / "harmed.ckpt")
    with pytest.raises(InputError, match="can't be read"):
        import_audioldm(tmp_path / "harmed.ckpt", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["harmed.ckpt"]


def test_a_truncated_checkpoint_is_refused(released, tmp_path):
    whole = (released / "audioldm_tiny.ckpt").read_bytes()
    (tmp_path / "broken.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="can't be read"):
        import_audioldm(tmp_path / "broken.ckpt", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.ckpt"]


def test_training_takes_the_imported_vae(released, tmp_path):
    import_audioldm(released / "audioldm_tiny.ckpt", tmp_path / "model")
    codec, recipe = load_codec(tmp_path / "model", ClipSpec(10.24, 8, 4))
    assert codec.latent_channels == 8 and recipe.vocoder is not None
    with pytest.raises(InputError, match="exists"):
        import_audioldm(released / "audioldm_tiny.ckpt", tmp_path / "model")


@pytest.mark.slow
def test_the_command_says_what_does_not_fit(released, tmp_path):
    """Without the .json beside it, a checkpoint is taken to be of the released size."""
    shutil.copy(released / "audioldm_tiny.ckpt", tmp_path)
    done = call("data_prep/weights.py", "import", tmp_path / "audioldm_tiny.ckpt", tmp_path / "model", cwd=tmp_path)
    assert done.returncode == 2 and "nothing was imported" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["audioldm_tiny.ckpt"]


@pytest.fixture
def in_diffusers_layout(released, tmp_path):
    """The same weights as diffusers keeps them, and with the attention's older names."""
    import_audioldm(released / "audioldm_tiny.ckpt", tmp_path / "model")
    recipe, folder = read_recipe(tmp_path / "model"), tmp_path / "released"
    codec = load_weights(build_part(recipe, "codec", tmp_path), tmp_path / "model", "codec")
    codec.network.register_to_config(scaling_factor=recipe.latent_scale)
    codec.network.save_pretrained(folder / "vae")
    vocoder = load_vocoder(recipe, tmp_path / "model").network
    vocoder.register_buffer("mean", torch.zeros(64))
    vocoder.register_buffer("scale", torch.ones(64))
    vocoder.save_pretrained(folder / "vocoder")
    state = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in state.items()}
    assert any("proj_attn" in key for key in state)
    torch.save(state, folder / "vae" / "diffusion_pytorch_model.bin")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    return folder


def test_diffusers_layout_gives_the_same_folder(in_diffusers_layout, tmp_path):
    seen, heard = import_checkpoint(in_diffusers_layout, tmp_path / "again")
    assert set(heard.left_out) == {"mean", "scale"} and not seen.left_out
    first, again = read_recipe(tmp_path / "model"), read_recipe(tmp_path / "again")
    assert again.latent_scale == first.latent_scale and again.clip == first.clip
    for part in ("codec", "vocoder"):
        before = load_file(tmp_path / "model" / f"{part}.safetensors")
        after = load_file(tmp_path / "again" / f"{part}.safetensors")
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        build_part(again, part, tmp_path)


@pytest.mark.parametrize(("file", "key", "value", "says"), [
    ("vocoder", "normalize_before", True, "normalize_before"), ("vae", "in_channels", 3, "in_channels"),
    ("vae", "scaling_factor", None, "no positive number"), ("vae", "block_out_channels", [32], "can't be built"),
    ("vae", "block_out_channels", [32, 64, 96], "has the shape"), ("vocoder", "sampling_rate", 48000, "48000")])
def test_another_diffusers_folder_is_refused(in_diffusers_layout, tmp_path, file, key, value, says):
    path = in_diffusers_layout / file / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=says):
        import_checkpoint(in_diffusers_layout, tmp_path / "again")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "released"}


def test_a_folder_of_another_kind_is_told_what_is_known(tmp_path):
    with pytest.raises(InputError, match="summary.jsonl"):
        import_checkpoint(tmp_path, tmp_path / "model")
