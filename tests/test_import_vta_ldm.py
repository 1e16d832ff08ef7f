"""VTA-LDM, imported and read back, computes what the published code computes, from pictures to latents."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoints import writable_copy
from models import make_features

from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.diffusion.sampler import Sampler, guided
from vta_sam.generation.pipeline import load
from vta_sam.importers.systems import import_vta_ldm
from vta_sam.runtime.errors import InputError

VAE = {"vae": "audioldm_tiny.ckpt"}


@pytest.fixture
def checkpoint(released, tmp_path):
    return writable_copy(released / "vta_ldm_tiny", tmp_path / "vta_ldm")


@torch.no_grad()
def test_the_imported_folder_computes_what_was_published(released, tmp_path):
    sound, account = import_vta_ldm(released / "vta_ldm_tiny", tmp_path / "model", [released], VAE)
    assert (len(sound.taken), len(account.taken)) == (394, 763) and not sound.left_out and not account.left_out
    golden, pipeline = np.load(released / "vta_ldm_tiny.npz"), load(tmp_path / "model")
    records = []
    for name in ("frames_a", "frames_b"):
        embedding = pipeline.extractors.encoder.embed(torch.from_numpy(golden[name]).float()).numpy()
        record = make_features(objects=(), duration_s=len(embedding) / pipeline.spec.fps)
        record.frame_embedding = embedding
        record.probs, record.areas = np.zeros((2, len(embedding), 0), np.float32)
        record.boxes = np.zeros((len(embedding), 0, 4), np.float32)
        record.object_embedding = np.zeros((0, embedding.shape[1]), np.float32)
        records.append(record)
    batch = collate([window_of(record, pipeline.spec, 0) for record in records], pipeline.spec)
    told, untold = pipeline.conditioner(batch), pipeline.conditioner.null(batch)
    assert told.tokens.shape[1] == 20  # a clip of 10.24 s at 2 pictures a second
    mask = golden["mask"]
    np.testing.assert_array_equal(told.mask[:, :5], mask[2:])
    assert not told.mask[:, 5:].any() and untold.mask.all()
    np.testing.assert_allclose(told.tokens[:, :5][mask[2:]], golden["tokens"][2:][mask[2:]], atol=1e-4)
    np.testing.assert_array_equal(untold.tokens[:, :5], golden["tokens"][:2])
    latents = torch.from_numpy(golden["latents"])
    pipeline.denoiser.eval()
    both = guided(pipeline.denoiser, told, untold, 3.0)
    for timestep in (981, 501, 1):
        at = torch.full((2,), timestep)
        for name, found in (("cond", pipeline.denoiser(latents, at, told)),
                            ("null", pipeline.denoiser(latents, at, untold)), ("guided3", both(latents, at))):
            np.testing.assert_allclose(found, golden[f"v_{name}_{timestep}"], atol=1e-4)
    sampler = pipeline.sampler
    assert (sampler.solver, sampler.steps, sampler.guidance, sampler.steps_offset) == ("ddpm", 200, 3.0, 1)
    ten = Sampler(steps=10, guidance=sampler.guidance, solver=sampler.solver, steps_offset=sampler.steps_offset)
    found = ten.sample(both, latents, pipeline.objective, torch.Generator().manual_seed(123))
    np.testing.assert_allclose(found, golden["ddpm10_guided3_generator123"], atol=1e-3)


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    text = json.dumps({key: value for key, value in content.items() if value != "absent"})
    path.write_text(text + "\n{a second line of the training's log\n")


@pytest.mark.parametrize(("changes", "says"), [
    ({"fea_encoder_name": "/data/author/clip-vit-large-patch14"}, "leaves the checkpoint's folder"),
    ({"fea_encoder_name": "../clip-vit-large-tiny"}, "leaves the checkpoint's folder"),
    ({"unet_model_config": "configs/../../unet_tiny.json"}, "leaves the checkpoint's folder"),
    ({"unet_model_config": "C:\\configs\\unet_tiny.json"}, "leaves the checkpoint's folder"),
    ({"scheduler_name": "\\\\host\\stable-diffusion-2-1"}, "leaves the checkpoint's folder"),
    ({"fea_encoder_name": "x" * 5000}, "lies in none of"),
    ({"scheduler_name": "a\0b"}, "leaves the checkpoint's folder"),
    ({"scheduler_name": None}, "names no scheduler_name"),
    ({"pe": True}, "trained with 'pe'"), ({"task": "text2audio"}, "text2audio"),
    ({"fea_encoder_name": "stable-diffusion-2-1"}, "config.json is missing")])
def test_what_it_names_is_not_followed_out_of_its_folder(released, checkpoint, tmp_path, changes, says):
    edit(checkpoint / "summary.jsonl", **changes)
    with pytest.raises(InputError, match=says):
        import_vta_ldm(checkpoint, tmp_path / "model", [released], VAE)
    assert [path.name for path in tmp_path.iterdir()] == ["vta_ldm"]


def test_a_user_says_what_the_author_kept_elsewhere(released, checkpoint, tmp_path):
    edit(checkpoint / "summary.jsonl", fea_encoder_name="/data/author/clip", unet_model_config="configs/unet_tiny.json")
    import_vta_ldm(checkpoint, tmp_path / "model", [released], {**VAE, "fea_encoder_name": "clip-vit-large-tiny"})
    assert (tmp_path / "model" / "model.yaml").exists()


@pytest.mark.parametrize("text", ["", "[1, 2]", "not json", "[" * 100_000, '{"a": "' + "x" * 2_000_000 + '"}'])
def test_a_summary_that_is_none(checkpoint, tmp_path, text):
    (checkpoint / "summary.jsonl").write_text(text)
    with pytest.raises(InputError, match="summary.jsonl"):
        import_vta_ldm(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_truncated_download_is_refused(released, checkpoint, tmp_path):
    whole = (checkpoint / "pytorch_model_2.bin").read_bytes()
    (checkpoint / "pytorch_model_2.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="can't be read"):
        import_vta_ldm(checkpoint, tmp_path / "model", [released], VAE)
    assert [path.name for path in tmp_path.iterdir()] == ["vta_ldm"]


@pytest.mark.parametrize("name", ["../clip", "/etc", "a/b", "..", ""])
def test_a_model_folder_reads_no_encoder_of_another_folder(released, tmp_path, name):
    import_vta_ldm(released / "vta_ldm_tiny", tmp_path / "model", [released], VAE)
    path = tmp_path / "model" / "model.yaml"
    path.write_text(path.read_text().replace("folder: clip", f"folder: '{name}'"))
    with pytest.raises(InputError, match="none of its own"):
        load(tmp_path / "model").extractors
