"""OWLv2's probabilities and boxes equal transformers' own, whatever the batch, and boxes are the picture's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from played_gpu import PlayedGPU
from transformers import CLIPTokenizerFast, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

from vta_sam.media.picture_reader import Within
from vta_sam.perception.inference import Transfer
from vta_sam.perception.owlv2 import OWLv2, _within_picture
from vta_sam.runtime.errors import InputError

NAME = "owlv2-base-patch16-ensemble"
WORDS = ["dog", "racing car", "ferret"]
SHAPES = [(36, 48), (48, 36), (48, 48), (20, 31), (70, 121), (122, 70), (7, 50)]  # the network's side is 48


@pytest.fixture(scope="module")
def weights(random_weights) -> Path:
    return random_weights(NAME)


@pytest.fixture(scope="module")
def grounder(weights) -> OWLv2:
    return OWLv2(weights=weights, device="cpu", batch_frames=3)


@pytest.fixture(scope="module")
def reference(weights) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    folder = weights / NAME
    processor = Owlv2Processor(Owlv2ImageProcessor.from_pretrained(folder), CLIPTokenizerFast.from_pretrained(folder))
    return Owlv2ForObjectDetection.from_pretrained(folder).eval(), processor


def pictures(count: int, height: int = 36, width: int = 48, seed: int = 0) -> np.ndarray:
    """Squares of 4 pixels, so that blurred pictures differ as well, and noise."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 200, (count, -(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    noise = rng.integers(0, 56, (count, height, width, 3), dtype=np.uint8)
    return cells.repeat(4, 1).repeat(4, 2)[:, :height, :width] + noise


@torch.no_grad()
def by_the_package(reference, frames: np.ndarray, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (T, K), and corners (T, K, 4) as fractions of the picture, not cut off."""
    model, processor = reference
    probs, corners = [], []
    for frame in frames:
        inputs = processor(text=[[f"a photo of a {word}" for word in words]], images=Image.fromarray(frame),
                           return_tensors="pt")
        outputs = model(**inputs)
        best, patches = outputs.logits[0].max(0)
        size = torch.tensor([frame.shape[:2]])
        [found] = processor.post_process_grounded_object_detection(outputs, threshold=-1.0, target_sizes=size)
        probs.append(best.sigmoid().numpy())
        corners.append((found["boxes"][patches] / torch.tensor([*frame.shape[1::-1]] * 2)).numpy())
    return np.stack(probs), np.stack(corners)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


@pytest.mark.parametrize("height, width", SHAPES)
def test_pictures_are_prepared_as_by_the_package(grounder, weights, height, width):
    frames = pictures(2, height, width)
    processor = Owlv2ImageProcessor.from_pretrained(weights / NAME)
    expected = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    found = grounder.prepare(torch.from_numpy(frames).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=0)
    assert float(found.std()) > 0.3, "little is compared"


@pytest.mark.parametrize("height, width", SHAPES)
def test_a_grounding_equals_the_package(grounder, reference, height, width):
    frames = pictures(4, height, width, seed=1)  # more than a batch
    probs, corners = by_the_package(reference, frames, WORDS)
    found = grounder.ground(frames, WORDS)
    np.testing.assert_allclose(found.probs, probs, atol=1e-4)
    np.testing.assert_allclose(corners_of(found.boxes), corners.clip(0, 1), atol=1e-4)
    np.testing.assert_allclose(found.areas, found.boxes[..., 2] * found.boxes[..., 3], atol=1e-6)
    assert probs.std() > 1e-3 and found.mask_embedding is None
    assert found.boxes.min() >= 0 and found.boxes.max() <= 1, "a record holds fractions of the picture"


def test_clips_with_different_words_share_a_batch(grounder):
    frames = pictures(5)
    requests = [(frames[:2], ["dog"]), (frames[2:3], []), (frames[:0], ["dog"]), (frames[3:], WORDS)]
    found = grounder.launch(requests)()
    assert [each.probs.shape for each in found] == [(2, 1), (1, 0), (0, 1), (2, 3)]
    for each, (clip, words) in zip(found, requests):
        alone = grounder.ground(clip, words)
        for name in ("probs", "boxes", "areas"):
            np.testing.assert_allclose(getattr(each, name), getattr(alone, name), atol=1e-5, err_msg=name)
    assert [each.probs.shape for each in grounder.launch([(frames[:1], []), (frames[:0], [])])()] == [(1, 0), (0, 0)]


def test_a_word_depends_on_no_other(grounder):
    frames = pictures(2)
    together, alone = grounder.ground(frames, WORDS), grounder.ground(frames, WORDS[1:2])
    np.testing.assert_allclose(together.probs[:, 1:2], alone.probs, atol=1e-5)


@pytest.mark.parametrize("height, width, seen", [
    (50, 100, [0.25, 0.5, 0.5, 1.0]),  # landscape: grey below
    (100, 50, [0.5, 0.25, 1.0, 0.5]),  # portrait: grey to the right
])
def test_boxes_are_fractions_of_the_picture_and_end_at_its_edges(height, width, seen):
    within, beyond, outside = [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.9, 0.9, 0.1, 0.1]
    found = _within_picture(torch.tensor([within, beyond, outside]), height, width)
    np.testing.assert_allclose(found[0], seen)
    np.testing.assert_allclose(found[1], [0.5, 0.5, 1.0, 1.0])
    assert float(found[2, 2:].prod()) == 0, "what lies in the grey has no area"


def test_what_it_says_of_itself(grounder):
    assert grounder.fit == Within(48, 48) and grounder.fingerprint.startswith(f"{NAME}-")
    assert grounder.recipe == {"_target_": "owlv2", "name": NAME, "template": "a photo of a {}"}


def test_words_beyond_the_limit_are_refused(grounder):
    longest = "q" * 10  # with "a photo of a" and two ends 16 tokens
    grounder.check_words([longest])
    assert np.isfinite(grounder.ground(pictures(1), [longest]).probs).all()
    for ask in (grounder.check_words, lambda words: grounder.ground(pictures(1), words)):
        with pytest.raises(InputError, match=r"the object q+ makes 17 tokens in 'a photo of a \{\}', and OWLv2 reads "
                                             "at most 16"):
            ask(["dog", f"q{longest}"])


@pytest.mark.parametrize("settings", [{"template": "a photo"}, {"batch_frames": 0}, {"name": "owl-of-nobody"}])
def test_settings_that_make_no_sense(weights, settings):
    with pytest.raises(InputError, match="template|no released weights"):
        OWLv2(weights=weights, **settings)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(grounder, weights, precision):
    half, frames = OWLv2(weights=weights, device="cpu", precision=precision), pictures(3)
    assert half.settings["precision"] == precision
    np.testing.assert_allclose(half.ground(frames, WORDS).probs, grounder.ground(frames, WORDS).probs, atol=0.03)


def test_a_batch_waits_for_nothing(weights):
    grounder = OWLv2(weights=weights, device="cpu")
    with PlayedGPU.played() as gpu:
        grounder.device = torch.device("cuda", 0)
        grounder.transfer = Transfer(grounder.device)
        for name in ("mean", "std"):
            setattr(grounder, name, getattr(grounder, name).to(grounder.device))
        grounder.model = grounder.model.to(grounder.device)
        requests = [(pictures(2, 30, 40), ["dog"]), (pictures(1, 30, 40), WORDS)]
        grounder.launch(requests)  # its words and its matrix are sent
        counts = gpu.fresh()
        fetch = grounder.launch(requests)
        assert not counts.waits
        fetch()
        assert len(counts.waits) == 1, "probabilities and boxes of the whole batch"
