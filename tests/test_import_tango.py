"""Tango, imported and read back, computes what the published code computes, from token ids on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import writable_copy
from models import make_features

from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.diffusion.condition import Condition
from vta_sam.generation.pipeline import load
from vta_sam.importers.systems import import_tango
from vta_sam.runtime.errors import InputError


@pytest.fixture
def checkpoint(released, tmp_path):
    """A copy to do harm to; what it names lies beside it."""
    return writable_copy(released / "tango_tiny", tmp_path / "tango")


@torch.no_grad()
def test_the_imported_folder_computes_what_was_published(released, tmp_path):
    sound, account = import_tango(released / "tango_tiny", tmp_path / "model", [released])
    assert (len(sound.taken), len(account.taken)) == (394, 706) and not sound.left_out and not account.left_out
    golden, pipeline = np.load(released / "tango_tiny.npz"), load(tmp_path / "model")
    encoder = pipeline.extractors.encoder
    states = {name: encoder.states(torch.from_numpy(golden[ids]), torch.from_numpy(golden[mask])) for name, ids, mask in
              (("text", "input_ids", "attention_mask"), ("null", "null_ids", "null_mask"))}
    mask = torch.from_numpy(golden["attention_mask"]).bool()
    np.testing.assert_allclose(states["text"][mask], golden["text_states"][mask], atol=1e-4)
    records = [make_features() for _ in range(2)]
    for record, row, real in zip(records, states["text"].numpy(), mask):
        record.caption_tokens = row[real.numpy()]
    batch = collate([window_of(record, pipeline.spec, 0) for record in records], pipeline.spec)
    told, untold = pipeline.conditioner(batch), pipeline.conditioner.null(batch)
    np.testing.assert_array_equal(told.mask, mask)
    np.testing.assert_array_equal(untold.mask, golden["null_mask"].astype(bool))
    np.testing.assert_allclose(untold.tokens[:, 0], golden["null_states"][:, 0], atol=1e-4)
    latents = torch.from_numpy(golden["latents"])
    pipeline.denoiser.eval()
    for name, condition in (("cond", told), ("null", untold)):
        for timestep in (981, 501, 1):
            found = pipeline.denoiser(latents, torch.full((2,), timestep), condition)
            np.testing.assert_allclose(found, golden[f"v_{name}_{timestep}"], atol=1e-4)
    other = pipeline.denoiser(latents, torch.full((2,), 501), Condition(told.tokens.flip(0), told.mask.flip(0)))
    assert not np.allclose(other, golden["v_cond_501"], atol=1e-3)  # the words do matter
    sampler = pipeline.sampler
    assert (sampler.solver, sampler.steps, sampler.guidance, sampler.steps_offset) == ("ddpm", 200, 3.0, 1)
    with pytest.raises(InputError, match="tokenizer"):
        encoder.encode_caption("a dog barks")


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


@pytest.mark.parametrize(("file", "changes", "says"), [
    ("main_config.json", {"scheduler_name": "absent"}, "names no scheduler_name"),
    ("main_config.json", {"scheduler_name": "elsewhere"}, "lies in none of"),
    ("main_config.json", {"scheduler_name": "text_encoder"}, "no scheduler_config.json"),
    ("main_config.json", {"text_encoder_name": "/etc"}, "leaves the checkpoint's folder"),
    ("main_config.json", {"unet_model_config_path": "../unet_tiny.json"}, "leaves the checkpoint's folder"),
    ("main_config.json", {"unet_model_config_path": 7}, "names no unet_model_config_path"),
    ("main_config.json", {"unet_model_config_path": "vae_config.json"}, "no configuration of the UNet"),
    ("vae_config.json", {"scale_factor": "absent"}, "no positive number"),
    ("vae_config.json", {"scale_factor": -1}, "no positive number"),
    ("vae_config.json", {"embed_dim": 4}, "embed_dim"), ("vae_config.json", {"ddconfig": 3}, "no configuration"),
    ("text_encoder/config.json", {"model_type": "bert"}, "bert"),
    ("text_encoder/config.json", {"d_model": 32}, "has the shape"),
    ("text_encoder/config.json", {"d_model": "wide"}, "can be built")])
def test_a_configuration_that_does_not_fit_is_refused(released, checkpoint, tmp_path, file, changes, says):
    edit(checkpoint / file, **changes)
    with pytest.raises(InputError, match=says):
        import_tango(checkpoint, tmp_path / "model", [released])
    assert [path.name for path in tmp_path.iterdir()] == ["tango"]


@pytest.mark.parametrize(("harm", "says"), [
    (lambda state: state.pop("unet.conv_in.bias"), "lacks 1 tensors of the UNet"),
    (lambda state: state.update({"unet.more": torch.zeros(1)}), "unet.more"),
    (lambda state: state.update(group_in=torch.zeros(1)), "group_in"),
    (lambda state: state.update({"unet.conv_out.bias": torch.zeros(9)}), r"has the shape \(9,\)")])
def test_weights_that_do_not_fit_are_refused(released, checkpoint, tmp_path, harm, says):
    state = torch.load(checkpoint / "pytorch_model_main.bin", weights_only=True)
    harm(state)
    torch.save(state, checkpoint / "pytorch_model_main.bin")
    with pytest.raises(InputError, match=says):
        import_tango(checkpoint, tmp_path / "model", [released])
    assert [path.name for path in tmp_path.iterdir()] == ["tango"]


def test_a_scheduler_of_another_kind_is_refused(released, checkpoint, tmp_path):
    parts = writable_copy(released / "stable-diffusion-2-1", tmp_path / "parts" / "stable-diffusion-2-1")
    for changes, says in (({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
                          ({"prediction_type": "absent"}, "prediction_type is None"),
                          ({"beta_start": 0.0015}, "beta_start"), ({"trained_betas": [0.1]}, "betas of its own")):
        shutil.copyfile(released / "stable-diffusion-2-1/scheduler/scheduler_config.json",
                        parts / "scheduler/scheduler_config.json")
        edit(parts / "scheduler/scheduler_config.json", **changes)
        with pytest.raises(InputError, match=says):
            import_tango(checkpoint, tmp_path / "model", [tmp_path / "parts", released])
    assert not (tmp_path / "model").exists()
