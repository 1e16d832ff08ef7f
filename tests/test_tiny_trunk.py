"""The tiny grounder and the tiny encoder: contracts, memory, words; and the trunk's figures on fresh scenes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from vta_sam.embedded import extractors as tiny_words
from vta_sam.embedded.extractors import TinyEncoder, TinyGrounder, boxes_of, shared_trunk
from vta_sam.embedded.render import render
from vta_sam.embedded.timeline import WORDS, make_scene
from vta_sam.embedded.tiny_networks import load_trunk
from vta_sam.embedded.trunk_training import calibration_error, read_pictures, trunk_figures, with_truth
from vta_sam.media.picture_reader import Squeeze
from vta_sam.perception.base import Grounding
from vta_sam.runtime.errors import InputError


@pytest.fixture(scope="module")
def scene():
    """Frames (64, 72, 96, 3) of one scene at 12.5 fps, and its truth."""
    import cv2

    pictures, truth = render(make_scene(7, "test", 3))
    return np.stack([cv2.resize(p, (96, 72), interpolation=cv2.INTER_AREA) for p in pictures[1::2]]), truth


@pytest.fixture(scope="module")
def grounder():
    return TinyGrounder()


@pytest.fixture(scope="module")
def encoder():
    return TinyEncoder()


def test_grounding_keeps_the_contract(grounder, scene):
    frames, truth = scene
    objects = truth.words + ["harpsichord"]
    found = grounder.ground(frames, objects)
    assert found.probs.shape == found.areas.shape == (64, len(objects)) and found.boxes.shape == (64, len(objects), 4)
    for array in (found.probs, found.boxes, found.areas):
        assert array.dtype == np.float32 and array.min() >= 0 and array.max() <= 1
    assert grounder.fit == Squeeze(72, 96) and set(grounder.known_words) == set(WORDS)
    corners = np.concatenate([found.boxes[..., :2] - found.boxes[..., 2:] / 2,
                              found.boxes[..., :2] + found.boxes[..., 2:] / 2], -1)
    assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6


def test_boxes_lie_where_the_thing_is(grounder, scene):
    frames, truth = scene
    found = grounder.ground(frames, truth.words)
    for k in range(len(truth.words)):
        clear = truth.inside[1::2, k] > 0.95
        far = np.abs(found.boxes[clear, k, :2] - truth.boxes[1::2][clear, k, :2].astype(np.float32)).mean()
        assert clear.sum() > 5 and far < 0.06  # of the picture's sides: two cells of the heat map
        assert found.probs[clear, k].mean() > 0.8 > 0.2 > found.probs[truth.inside[1::2, k] == 0, k].mean()


def test_no_objects(grounder, encoder, scene):
    assert grounder.ground(scene[0], []).boxes.shape == (64, 0, 4)
    assert encoder.encode_objects([]).shape == (0, 32)


def test_unknown_word_is_warned_of_once_and_never_seen(grounder, encoder, scene, monkeypatch):
    monkeypatch.setattr(tiny_words, "_warned", set())
    known = scene[1].words[0]
    with pytest.warns(UserWarning, match="'zeppelin'") as caught:
        found = grounder.ground(scene[0], ["zeppelin", known])
        grounder.ground(scene[0], ["zeppelin"])
        embedded = encoder.encode_objects(["zeppelin", known])
    assert len(caught) == 1
    assert not found.probs[:, 0].any() and not found.boxes[:, 0].any() and not found.areas[:, 0].any()
    assert not embedded[0].any() and embedded[1].any()
    np.testing.assert_array_equal(found.probs[:, 1], grounder.ground(scene[0], [known]).probs[:, 0])


def test_chunks_equal_the_whole(grounder, encoder, scene):
    frames, truth = scene
    whole, vectors = grounder.ground(frames, truth.words), encoder.encode_frames(frames)
    cuts = [frames[:7], frames[7:45], frames[45:]]
    parts = Grounding.concatenate([grounder.ground(c, truth.words) for c in cuts])
    for name in ("probs", "boxes", "areas"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-4)
    np.testing.assert_allclose(np.concatenate([encoder.encode_frames(c) for c in cuts]), vectors, atol=1e-4)


def test_grounder_and_encoder_run_the_trunk_once(grounder, encoder, scene, monkeypatch):
    runs = []
    trunk = shared_trunk()
    run = trunk._run
    monkeypatch.setattr(trunk, "_run", lambda frames: runs.append(len(frames)) or run(frames))
    frames = scene[0][::-1]  # not what was seen last
    grounder.ground(frames, ["dog"])
    encoder.encode_frames(frames.copy())  # a reader may hand the same pictures in another array
    assert runs == [64]


def test_a_refilled_buffer_is_read_again(encoder, scene):
    buffer = scene[0].copy()
    before = encoder.encode_frames(buffer)
    buffer[:] = 255 - buffer
    assert np.abs(encoder.encode_frames(buffer) - before).max() > 0.1


def test_frames_are_judged_alone(encoder, scene):
    among, alone = encoder.encode_frames(scene[0])[40], encoder.encode_frames(scene[0][40:41])[0]
    np.testing.assert_allclose(among, alone, atol=1e-4)


def test_pictures_of_other_worlds_stay_bounded(encoder):
    noise = np.random.default_rng(0).integers(0, 256, (4, 72, 96, 3), dtype=np.uint8)
    extremes = np.stack([np.zeros((72, 96, 3), np.uint8), np.full((72, 96, 3), 255, np.uint8)])
    for frames in (noise, extremes):
        vectors = encoder.encode_frames(frames)
        assert np.isfinite(vectors).all() and np.abs(vectors).max() < 64**0.5 * 4


@pytest.mark.parametrize("frames", [
    np.zeros((2, 96, 72, 3), np.uint8), np.zeros((2, 72, 96, 3), np.float32), np.zeros((72, 96, 3), np.uint8)
])
def test_frames_of_another_form_are_refused(encoder, frames):
    with pytest.raises(InputError, match=r"\(T, 72, 96, 3\) uint8"):
        encoder.encode_frames(frames)


def test_words_have_vectors_of_one_norm_and_their_own_direction(encoder):
    vectors = encoder.encode_objects(list(WORDS))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 32**0.5, rtol=1e-3)
    cosines = vectors @ vectors.T / 32
    assert np.abs(cosines - np.eye(len(WORDS))).max() < 0.9


def test_caption_tokens(encoder):
    car = encoder.encode_objects(["racing car"])[0]
    tokens = encoder.encode_caption("A racing car drives past two dogs")
    assert tokens.shape == (6, 32) and tokens.dtype == np.float32
    np.testing.assert_array_equal(tokens[1], car)
    np.testing.assert_array_equal(tokens[5], encoder.encode_objects(["dog"])[0])
    np.testing.assert_array_equal(tokens[2], encoder.encode_caption("drives")[0])  # unknown words are fixed …
    assert abs(float(tokens[2] @ tokens[3])) / 32 < 0.9  # … and differ
    assert encoder.encode_caption("").shape == encoder.encode_caption("...").shape == (1, 32)


def test_near_names(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = encoder.encode_objects(["car", "Race  Car", "racing car"])
    assert (same == same[0]).all()


def test_box_of_a_mask():
    masks = np.zeros((2, 24, 32), bool)
    masks[0, 6:12, 8:20] = masks[0, 6:12, 21:24] = True  # a thing behind a post
    masks[0, 23, 31] = True  # a speck
    np.testing.assert_allclose(boxes_of(masks), [[0.5, 0.375, 0.5, 0.25], [0, 0, 0, 0]])


def test_calibration_error_is_zero_for_true_shares_and_large_for_false_ones():
    truth = np.arange(1000) % 4 == 0
    assert calibration_error(np.full(1000, 0.25), truth) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(np.full(1000, 0.95), truth) == pytest.approx(0.7)


def test_shipped_figures_meet_the_bars():
    _, weights = load_trunk()
    figures = weights.about["figures"]
    assert figures["presence_ap"] >= 0.90 and figures["mask_iou"] >= 0.6 and figures["pictures_with_look_alike"] > 0.2
    assert weights.about["recipe"]["train_seed"] != weights.about["recipe"]["test_seed"]


@pytest.mark.slow
def test_trunk_on_freshly_rendered_scenes(tmp_path):
    from vta_sam.embedded.world import write_world

    pictures = read_pictures(write_world(tmp_path / "world", {"fresh": 12}, seed=11, workers=1), fps=12.5)
    figures = trunk_figures(load_trunk()[0], pictures)
    assert figures["presence_ap"] >= 0.90 and figures["mask_iou"] >= 0.6, figures


def test_truth_of_a_frame_is_that_of_the_picture_on_screen(scene):
    frames, truth = scene
    pictures = with_truth(frames, truth, 5, fps=12.5)
    row = WORDS.index(truth.objects[0].word)
    np.testing.assert_array_equal(pictures.visible[:, row].numpy(), truth.visible[1::2, 0].astype(bool))
    seen = truth.visible[1::2, 0].astype(bool)
    np.testing.assert_allclose(pictures.pose[seen, row], truth.pose[1::2, 0][seen].astype(np.float32))
    assert (pictures.clip == 5).all() and not pictures.pose[~pictures.visible].any()
    masks = pictures.unpacked_masks()[:, row].bool().numpy()
    np.testing.assert_array_equal(masks, truth.masks[1::2, 0])
    assert torch.equal(pictures.visible.any(0).nonzero()[:, 0],
                       torch.tensor(sorted(WORDS.index(w) for w in truth.words)))
