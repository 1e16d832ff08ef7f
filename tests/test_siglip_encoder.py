"""SigLIP 2's vectors equal transformers' own, on the whole picture, in lower case and with its padding."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from played_gpu import PlayedGPU
from test_clip_encoder import assert_held_as_cast
from transformers import GemmaTokenizerFast, SiglipImageProcessor, SiglipModel, SiglipProcessor

from vta_sam.media.picture_reader import BilinearSqueeze
from vta_sam.media.video import read_clip
from vta_sam.perception.clip_encoder import SigLIPEncoder
from vta_sam.perception.inference import Transfer
from vta_sam.runtime.errors import InputError

NAME = "siglip2-base-patch16-224"


@pytest.fixture(scope="module")
def weights(random_weights) -> Path:
    return random_weights(NAME)


@pytest.fixture(scope="module")
def encoder(weights) -> SigLIPEncoder:
    return SigLIPEncoder(weights=weights, device="cpu", batch_frames=3)


@pytest.fixture(scope="module")
def reference(weights) -> tuple[SiglipModel, SiglipProcessor]:
    folder = weights / NAME
    processor = SiglipProcessor(SiglipImageProcessor.from_pretrained(folder),
                                GemmaTokenizerFast.from_pretrained(folder))
    return SiglipModel.from_pretrained(folder).eval(), processor


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def text_inputs(reference, text: str) -> dict[str, torch.Tensor]:
    """As in transformers' documentation of SigLIP 2."""
    return reference[1](text=[text.lower()], padding="max_length", max_length=64, return_tensors="pt")


def test_frames_equal_transformers_whatever_the_batch(encoder, reference):
    frames = pictures(7)
    pixels = reference[1](images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
    with torch.no_grad():
        expected = reference[0].get_image_features(**pixels).numpy()
    found = encoder.encode_frames(frames)
    assert found.shape == (7, encoder.frame_dim) and found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(encoder.launch(frames[2:4])(), found[2:4], atol=1e-4)


def test_weights_held_in_half_precision_compute_what_autocast_computes(weights, monkeypatch):
    assert_held_as_cast(partial(SigLIPEncoder, weights=weights, device="cpu"), monkeypatch)


def test_a_video_is_squeezed_as_by_the_package(encoder, reference, make_video, tmp_path):
    """A picture that is no square is seen whole; CLIP's crop of its middle would leave the sides out."""
    grey = np.random.default_rng(1).integers(0, 256, (5, 9, 1), dtype=np.uint8)
    picture = np.kron(grey, np.ones((16, 16, 3), np.uint8))
    make_video(tmp_path / "v.mp4", size=(144, 80), fps=2, duration_s=1.0, picture=lambda i: picture)
    fits = [BilinearSqueeze(80, 144), encoder.fit]
    whole, seen = read_clip(tmp_path / "v.mp4", fps=2, fits=fits, want_audio=False).frames
    pixels = reference[1](images=Image.fromarray(whole[0]), return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(seen[0]).permute(2, 0, 1) / 255
    expected = pixels * 0.5 + 0.5
    assert float((ours - expected).abs().mean()) < 0.007 and float(expected.std()) > 0.1


@pytest.mark.parametrize("word", ["car", "Racing Car", "ferret"])
def test_words_equal_transformers(encoder, reference, word):
    with torch.no_grad():
        expected = reference[0].get_text_features(**text_inputs(reference, f"this is a photo of {word}."))
        masked = reference[0].get_text_features(
            **text_inputs(reference, "a"), attention_mask=(torch.arange(64) < 2).long()[None])
        unmasked = reference[0].get_text_features(**text_inputs(reference, "a"))
    np.testing.assert_allclose(encoder.encode_objects(["dog", word])[1], expected[0].numpy(), atol=1e-4)
    assert float((masked - unmasked).abs().max()) > 0.01, "that padding is read makes no difference here"


def test_a_caption_has_the_states_of_its_own_tokens(encoder, reference):
    with torch.no_grad():
        states = reference[0].text_model(**text_inputs(reference, "A dog barks")).last_hidden_state[0].numpy()
    found = encoder.encode_caption("A dog barks")
    assert found.shape == (12, encoder.caption_dim), "eleven characters and an end"
    np.testing.assert_allclose(found, states[:12], atol=1e-4)


def test_odd_texts(encoder):
    assert encoder.encode_objects([]).shape == (0, encoder.object_dim)
    assert len(encoder.encode_caption("")) == 1, "an end"
    with pytest.warns(UserWarning, match="of which the text encoder reads the first 64"):
        assert len(encoder.encode_caption("word " * 500)) == encoder.max_tokens == 64
    assert np.isfinite(encoder.encode_caption("ünï 🐕 \x00 犬")).all()
    with pytest.raises(InputError, match=r"the object dog dog .*… makes \d+ tokens in 'this .*', and SigLIP reads at "
                                         "most 64"):
        encoder.check_words(["cat", "dog " * 200])


def test_what_it_says_of_itself(encoder):
    assert encoder.fit == BilinearSqueeze(32, 32) and encoder.fit != BilinearSqueeze(32, 33)
    assert encoder.fingerprint.startswith(f"{NAME}-") and "BilinearSqueeze" in repr(encoder.fit)
    assert encoder.recipe == {"_target_": "siglip", "name": NAME, "template": "this is a photo of {}."}
    assert (encoder.frame_dim, encoder.object_dim, encoder.caption_dim) == (32, 32, 32)


def test_frames_of_another_size_are_refused(encoder):
    with pytest.raises(InputError, match=r"SigLIP takes frames of shape \(T, 32, 32, 3\) uint8, got \(1, 16, 16, 3\)"):
        encoder.encode_frames(pictures(1, 16))
    with pytest.raises(InputError, match=r"got \(1, 32\)"):
        encoder.encode_frames(pictures(1)[:, 0, :, 0])


def test_another_scaler_is_refused(weights, tmp_path):
    shutil.copytree(weights / NAME, tmp_path / NAME)
    path = tmp_path / NAME / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 3}))
    with pytest.raises(InputError, match="has resample 3, expected 2"):
        SigLIPEncoder(weights=tmp_path, device="cpu")


def test_a_batch_waits_for_nothing(weights):
    encoder = SigLIPEncoder(weights=weights, device="cpu")
    with PlayedGPU.played() as gpu:
        encoder.device = torch.device("cuda", 0)
        encoder.transfer = Transfer(encoder.device)
        for name in ("model", "mean", "std"):
            setattr(encoder, name, getattr(encoder, name).to(encoder.device))
        counts = gpu.fresh()
        fetch = encoder.launch(pictures(2))
        assert not counts.waits
        fetch()
        assert len(counts.waits) == 1


def test_texts_of_a_shard_are_encoded_together(weights, encoder):
    together = SigLIPEncoder(weights=weights, device="cpu", batch_frames=2)
    words, captions = ["dog", "Cat", "racing car", "dog " * 200], ["A dog barks", "", "rain", "rain"]
    together.prepare_texts(words, captions)
    np.testing.assert_allclose(together.encode_objects(words[:3]), encoder.encode_objects(words[:3]), atol=1e-5)
    for caption in captions:
        np.testing.assert_allclose(together.encode_caption(caption), encoder.encode_caption(caption), atol=1e-5)
    assert set(together._prepared[0]) == set(words[:3]) and set(together._prepared[1]) == set(captions)
