"""CLIP's vectors equal transformers' own, and stand for the right picture, word and token."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from vta_sam.media.picture_reader import CentreCrop
from vta_sam.perception.clip_encoder import CLIPEncoder
from vta_sam.runtime.errors import InputError

NAME = "clip-vit-large-patch14"


@pytest.fixture(scope="module")
def weights(random_weights) -> Path:
    return random_weights(NAME)


@pytest.fixture(scope="module")
def encoder(weights) -> CLIPEncoder:
    return CLIPEncoder(weights=weights, device="cpu", batch_frames=3)


@pytest.fixture(scope="module")
def reference(weights) -> CLIPModel:
    return CLIPModel.from_pretrained(weights / NAME).eval()


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_frames_equal_transformers_whatever_the_batch(encoder, reference, weights):
    frames = pictures(7)  # more than two batches
    images = [Image.fromarray(frame) for frame in frames]
    pixels = CLIPImageProcessor.from_pretrained(weights / NAME)(images, return_tensors="pt")
    with torch.no_grad():
        expected = reference.get_image_features(**pixels).numpy()
    found = encoder.encode_frames(frames)
    assert found.shape == (7, encoder.frame_dim) and found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.encode_frames(frames[:2]), encoder.encode_frames(frames[2:])]),
                               found, atol=1e-5)


def test_pictures_are_normalised_with_the_numbers_of_the_folder(encoder, weights, tmp_path):
    """Leaving CLIP's normalisation out is a known mistake of a compared system: here it would show."""
    folder = tmp_path / NAME
    shutil.copytree(weights / NAME, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"], settings["image_std"] = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    other = CLIPEncoder(weights=tmp_path, device="cpu")
    assert np.abs(other.encode_frames(pictures(2)) - encoder.encode_frames(pictures(2))).max() > 0.05


def test_words_and_captions_equal_transformers(encoder, reference, weights):
    tokenizer = CLIPTokenizerFast.from_pretrained(weights / NAME)
    words = ["car", "racing car", "ferret"]
    with torch.no_grad():
        expected = [reference.get_text_features(**tokenizer(f"a photo of a {word}", return_tensors="pt"))[0].numpy()
                    for word in words]
        states = reference.text_model(**tokenizer("a dog barks", return_tensors="pt")).last_hidden_state[0].numpy()
    np.testing.assert_allclose(encoder.encode_objects(words), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_caption("a dog barks"), states, atol=1e-5)
    assert encoder.encode_objects(words[::-1])[2].tolist() == encoder.encode_objects(words)[0].tolist()


def test_texts_of_a_shard_together_equal_each_alone(encoder):
    words, captions = ["car", "racing car", "ferret"], ["a dog barks", "", "a man plays a long and winding road"]
    alone = encoder.encode_objects(words), [encoder.encode_caption(caption) for caption in captions]
    with mock.patch.object(encoder.model.text_model, "forward", wraps=encoder.model.text_model.forward) as model:
        encoder.prepare_texts([*words, "x " * 200], [*captions, "a dog barks"])
        assert model.call_count == 2 * -(-3 // encoder.batch_frames)
        together = encoder.encode_objects(words), [encoder.encode_caption(caption) for caption in captions]
        assert model.call_count == 2 * -(-3 // encoder.batch_frames), "all were ready"
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    for ours, theirs in zip(together[1], alone[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    encoder.prepare_texts([], [])
    assert encoder.encode_objects(words).tolist() == alone[0].tolist(), "those of the shard before are forgotten"


def test_launched_frames_equal_those_that_are_waited_for(encoder):
    waiting = encoder.launch(pictures(3))
    assert np.array_equal(waiting(), encoder.encode_frames(pictures(3)))


def assert_held_as_cast(make, monkeypatch):
    """An encoder whose weights are held in half precision computes what autocast computes, to the bit."""
    held = make(precision="bf16")
    monkeypatch.setattr("vta_sam.perception.clip_encoder.hold_weights", lambda network, dtype: None)
    cast = make(precision="bf16")
    halves = [name for name, value in held.model.named_parameters() if value.dtype == torch.bfloat16]
    assert any("q_proj" in name for name in halves)
    assert all(value.dtype == torch.float32 for value in cast.model.parameters())
    assert np.array_equal(held.encode_frames(pictures(2)), cast.encode_frames(pictures(2)))
    assert np.array_equal(held.encode_objects(["car", "dog"]), cast.encode_objects(["car", "dog"]))
    assert np.array_equal(held.encode_caption("a dog barks"), cast.encode_caption("a dog barks"))


def test_weights_held_in_half_precision_compute_what_autocast_computes(weights, monkeypatch):
    assert_held_as_cast(partial(CLIPEncoder, weights=weights, device="cpu"), monkeypatch)


def test_odd_texts(encoder):
    assert encoder.encode_objects([]).shape == (0, encoder.object_dim)
    assert len(encoder.encode_caption("")) == 2, "a start and an end"
    assert len(encoder.encode_caption("word " * 500)) == encoder.max_tokens == 77
    assert np.isfinite(encoder.encode_caption("ünï 🐕 \x00 犬")).all()


def test_what_it_says_of_itself(encoder):
    assert encoder.fit == CentreCrop(32) and encoder.frame_dim == encoder.object_dim == 24
    assert encoder.caption_dim == 32 and encoder.fingerprint.startswith(f"{NAME}-")


def test_frames_of_another_size_are_refused(encoder):
    with pytest.raises(InputError, match=r"\(T, 32, 32, 3\) uint8, got \(1, 16, 16, 3\)"):
        encoder.encode_frames(pictures(1, 16))


def test_the_shared_tiny_checkpoint_of_real_layout_is_read(shared_dir, weights, tmp_path):
    source = shared_dir / "golden" / "checkpoints" / "clip-vit-large-tiny"
    shutil.copytree(source, tmp_path / NAME)
    shutil.copy(weights / NAME / "preprocessor_config.json", tmp_path / NAME)
    encoder = CLIPEncoder(weights=tmp_path, device="cpu")
    reference = CLIPModel.from_pretrained(source).eval()
    frames = pictures(2, encoder.fit.side)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.48145466, 0.4578275, 0.40821073],
                                                         [0.26862954, 0.26130258, 0.27577711]))
    with torch.no_grad():
        pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = reference.get_image_features(pixel_values=pixels)
    np.testing.assert_allclose(encoder.encode_frames(frames), expected.numpy(), atol=1e-5)


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "other config":
        config = json.loads((folder / "config.json").read_text())
        config["projection_dim"] = 40
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "lacking":
        state = load_file(weights)
        del state["visual_projection.weight"]
        save_file(state, weights, metadata={"format": "pt"})
    else:
        (folder / how).unlink()


@pytest.mark.parametrize("how, sentence", [
    ("model.safetensors", "model.safetensors is missing.*weights.py fetch clip-vit-large-patch14"),
    ("cut", "can't be read as a CLIP model"),
    ("other config", "can't be read as a CLIP model|doesn't fit config.json"),
    ("lacking", "doesn't fit config.json .missing .'visual_projection.weight'"),
])
def test_damaged_folders_are_refused(weights, tmp_path, how, sentence):
    shutil.copytree(weights / NAME, tmp_path / NAME)
    damage(tmp_path / NAME, how)
    with pytest.raises(InputError, match=sentence):
        CLIPEncoder(weights=tmp_path)


@pytest.mark.parametrize("settings", [{"template": "a photo"}, {"batch_frames": 0}, {"name": "clip-of-nobody"}])
def test_settings_that_make_no_sense(weights, settings):
    with pytest.raises(InputError, match="template|no released weights"):
        CLIPEncoder(weights=weights, **settings)
