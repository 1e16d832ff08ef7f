"""SAM 2 carries masks between detections as transformers' own session does, however a clip's frames come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import released
import torch
from test_extract import BrightnessEncoder, write_manifest
from transformers import Sam2ImageProcessorFast, Sam2VideoProcessor, Sam2VideoVideoProcessor

from vta_sam.clip import ClipSpec
from vta_sam.dataset.extraction.extract import extract_dataset
from vta_sam.dataset.shards.records import read_shard
from vta_sam.perception import sam2
from vta_sam.perception.base import Grounding
from vta_sam.perception.clip_encoder import load_network
from vta_sam.perception.features import Extractors, features_of, words_of
from vta_sam.perception.grounding_dino import Detections
from vta_sam.perception.sam2 import GroundedSAM2, _extents
from vta_sam.runtime.distributed import mixed_precision
from vta_sam.runtime.errors import InputError

NAME, SIDE, HEIGHT, WIDTH = "sam2.1-hiera-tiny", 128, 96, 160
WORDS = ["car", "man"]


@pytest.fixture(scope="module")
def weights(random_weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    detector = random_weights("groundingdino_swint_ogc")
    for place in ("groundingdino_swint_ogc.pth", "bert-base-uncased"):
        (folder / place).symlink_to(detector / place)
    (folder / NAME).symlink_to(random_weights(NAME) / NAME)
    return folder


@pytest.fixture(scope="module")
def grounder(weights) -> GroundedSAM2:
    """Every third frame is looked at. A frame's first two pixels stand in for what Grounding DINO says of it."""
    made = GroundedSAM2(sam2=NAME, weights=weights, detect_every=3, short_side=224, batch_frames=4,
                        sam_batch_frames=3, device="cpu")
    released.enliven(made.network, seed=1)
    with torch.no_grad():
        made.network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(0.5)  # else half of the masks are empty
    made.detector.detect = lambda pictures, prompt: seen_in(pictures.permute(0, 2, 3, 1).numpy(), len(prompt.spans))
    return made


def seen_in(frames: np.ndarray, objects: int) -> Detections:
    values = torch.from_numpy(frames[:, 0, :objects].astype(np.float32) / 255)  # (B, K, 3)
    boxes = torch.cat([0.3 + 0.4 * values[..., :2], 0.2 + 0.3 * values[..., 1:]], -1)
    return Detections(values[..., 0], boxes)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return cells.repeat(8, 1).repeat(8, 2)


@torch.no_grad()
def by_the_package(grounder, frames: np.ndarray, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (T, K, H, W) and object scores (T, K), of a session of transformers for each detection."""
    size = {"height": SIDE, "width": SIDE}
    processor = Sam2VideoProcessor(Sam2ImageProcessorFast(size=size), Sam2VideoVideoProcessor(size=size),
                                   target_size=SIDE)
    masks, scores = [], []
    for t, frame in enumerate(frames):
        inputs = processor(images=frame, return_tensors="pt")
        if t % every == 0:
            session, start = processor.init_video_session(), t
            boxes = seen_in(frame[None], len(WORDS)).boxes[0] * torch.tensor([WIDTH, HEIGHT] * 2)
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
            processor.add_inputs_to_inference_session(
                session, frame_idx=0, obj_ids=[1, 2], input_boxes=[corners.tolist()],
                original_size=inputs.original_sizes[0])
        output = grounder.network(inference_session=session, frame=inputs.pixel_values[0])
        [found] = processor.post_process_masks([output.pred_masks], [[HEIGHT, WIDTH]])
        masks.append(found[:, 0].numpy())
        kind = "non_cond_frame_outputs" if t > start else "cond_frame_outputs"
        scores.append([float(own[kind][t - start]["object_score_logits"])
                       for own in session.output_dict_per_obj.values()])
    return np.stack(masks), np.array(scores)


def assert_equal(found: Grounding, expected: Grounding, atol: float = 1e-5) -> None:
    for name in ("probs", "boxes", "areas", "mask_embedding"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=atol, err_msg=name)


def test_masks_equal_the_package(grounder):
    frames = pictures(8)
    expected, scores = by_the_package(grounder, frames, 3)
    masks, found = grounder.masks(frames, WORDS), grounder.ground(frames, WORDS)
    assert (masks != expected).mean() < 1e-4
    np.testing.assert_allclose(found.areas, expected.mean((2, 3)), atol=1e-4)
    detected = seen_in(frames, 2)
    for t in range(8):
        prob, box = detected.probs[t - t % 3].numpy(), detected.boxes[t].numpy()
        if t % 3 == 0:
            np.testing.assert_allclose(found.probs[t], prob, atol=1e-6)
            np.testing.assert_allclose(found.boxes[t], box, atol=1e-6)
        else:
            np.testing.assert_allclose(found.probs[t], prob / (1 + np.exp(-scores[t])), atol=1e-4)
    assert 0.02 < expected.mean() < 0.98 and (expected[1] != expected[2]).mean() > 0.01, "little is compared"
    assert found.mask_embedding.shape == (8, 2, 256) and found.mask_embedding.std() > 0.01


def test_memory_stays_bounded_and_a_long_stretch_equals_the_package(grounder, monkeypatch):
    monkeypatch.setattr(grounder, "detect_every", 100)
    frames, clip = pictures(21), grounder.for_clip("v.mp4", 0.0, 8.0)
    expected, _ = by_the_package(grounder, frames, 100)
    masks = clip.masks(frames, WORDS)
    assert (masks != expected).mean() < 1e-3
    session = clip._tracks[tuple(WORDS)].session
    assert not session.processed_frames and all(
        len(own["non_cond_frame_outputs"]) <= 16 for own in session.output_dict_per_obj.values())


@pytest.mark.parametrize("sizes", [[1, 1, 5, 1], [2, 6], [7, 1]])
def test_chunks_make_no_difference(grounder, sizes):
    frames, clip = pictures(8), grounder.for_clip("v.mp4", 0.0, 8.0)
    chunks = np.split(frames, np.cumsum(sizes)[:-1])
    assert_equal(Grounding.concatenate([clip.ground(chunk, WORDS) for chunk in chunks]), grounder.ground(frames, WORDS))
    another = grounder.for_clip("v.mp4", 0.0, 8.0)
    np.testing.assert_array_equal(np.concatenate([another.masks(chunk, WORDS) for chunk in chunks]),
                                  grounder.masks(frames, WORDS))


@pytest.mark.parametrize("part", ["get_image_features", "mask_decoder.forward", "memory_encoder.forward", "_extents"])
def test_frames_that_were_seen_before_memory_ran_out_are_not_seen_twice(grounder, monkeypatch, part):
    frames, clip, left = pictures(7), grounder.for_clip("v.mp4", 0.0, 8.0), [2 if part == "get_image_features" else 4]
    owner, _, name = part.rpartition(".")
    place = sam2 if part == "_extents" else grounder.network.get_submodule(owner)
    compute = getattr(place, name)

    def scarce(*inputs, **more):
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("out of memory")
        return compute(*inputs, **more)

    expected = grounder.ground(frames, WORDS)
    monkeypatch.setattr(place, name, scarce)
    with pytest.raises(torch.OutOfMemoryError):
        clip.ground(frames, WORDS)
    parts = [clip.ground(frames[:3], WORDS), clip.ground(frames[3:6], WORDS), clip.ground(frames[6:], WORDS)]
    assert_equal(Grounding.concatenate(parts), expected)


def test_a_negative_prompt_shares_the_pictures(grounder):
    """In generation each chunk is grounded for two lists of words; they may be equal."""
    frames, clip = pictures(4), grounder.for_clip("v.mp4", 0.0, 8.0)
    for chunk in (frames[:2], frames[2:]):
        found = [clip.ground(part, words) for words in (WORDS, WORDS[:1], WORDS) for part in [chunk[:]]]
        assert_equal(found[2], found[0])
    assert clip._tracks[tuple(WORDS)].frames == 4


def test_words_without_tokens_and_no_words(grounder):
    frames = pictures(2)
    assert grounder.ground(frames, []).probs.shape == (2, 0)
    assert grounder.masks(frames, []).shape == (2, 0, HEIGHT, WIDTH)
    found = grounder.ground(frames, ["car", "."])
    assert found.areas[:, 0].all() and not found.areas[:, 1].any() and not found.mask_embedding[:, 1].any()
    assert not grounder.ground(frames, ["."]).mask_embedding.any()


@pytest.mark.slow
def test_a_record_holds_what_the_networks_say(grounder, weights, make_video, tmp_path):
    """The shard and generation's own look at the same video agree, but for fp16. Grounding DINO looks, too."""
    looking = GroundedSAM2(sam2=NAME, weights=weights, detect_every=2, short_side=224, device="cpu")
    released.make_shallow(looking.detector.model)
    looking.network.load_state_dict(grounder.network.state_dict())
    seen = pictures(5)
    make_video(tmp_path / "v.mp4", size=(WIDTH, HEIGHT), fps=4, duration_s=1.25, picture=lambda i: seen[i],
               sound=np.random.default_rng(0).uniform(-0.3, 0.3, 20_000))
    write_manifest(tmp_path / "m.csv", [{"id": "v", "caption": "a dog barks while a car drives past"}])
    extract_dataset(tmp_path / "m.csv", tmp_path, tmp_path / "out", looking, BrightnessEncoder(), fps=4.0, workers=1,
                    chunk_frames=2)
    [clip] = read_shard(tmp_path / "out" / "train-000000.tar")
    assert clip.objects == ["dog", "car"] and clip.probs.shape == (5, 2) and clip.areas.std() > 0.01
    [looked], _ = features_of(tmp_path / "v.mp4", [words_of(clip.caption, None)],
                              Extractors(looking, BrightnessEncoder()),
                              ClipSpec(duration_s=1.25, fps=4.0, latent_stride_frames=1))
    for name in ("probs", "boxes", "areas", "mask_embedding"):
        np.testing.assert_allclose(getattr(clip, name), getattr(looked, name), atol=4e-3, rtol=2e-3, err_msg=name)


def test_boxes_are_the_extents_of_masks():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 4] = masks[0, 3, 4:14] = True
    np.testing.assert_allclose(_extents(masks)[0], [0.45, 0.35, 0.5, 0.3], atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_goes_the_same_way(grounder, monkeypatch, precision):
    frames = pictures(5)
    expected = grounder.masks(frames, WORDS)
    monkeypatch.setattr(grounder, "autocast", mixed_precision(precision, grounder.device))
    assert (grounder.masks(frames, WORDS) != expected).mean() < 0.1


def test_what_it_says_of_itself(grounder):
    assert grounder.recipe == {"_target_": "grounded_sam2", "detector": "swint_ogc", "sam2": NAME, "detect_every": 3,
                               "short_side": 224, "long_side": 1333}
    assert grounder.fingerprint.startswith("grounded_sam2-swint_ogc-") and NAME in grounder.fingerprint
    clip = grounder.for_clip("v.mp4", 0.0, 8.0)
    assert (clip.fit, clip.fingerprint, clip.settings) == (grounder.fit, grounder.fingerprint, grounder.settings)


def test_a_release_of_transformers_without_the_network_is_named(weights):
    with pytest.raises(InputError, match=r"transformers 4\.\S+ is installed, which has no Sam2FilmModel; install"):
        load_network("Sam2FilmModel", "SAM 2", weights / NAME, torch.device("cpu"))


@pytest.mark.parametrize("settings", [{"detect_every": 0}, {"sam2": "sam-of-nobody"}, {"detector": "swint"}])
def test_settings_that_make_no_sense(weights, settings):
    with pytest.raises(InputError, match="detect_every=0|no released weights|detector=swint"):
        GroundedSAM2(**{"sam2": NAME, "weights": weights, **settings})
