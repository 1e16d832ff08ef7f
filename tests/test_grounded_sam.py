"""Grounding SAM equals the packages' own inference, picture by picture, on the same random weights."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import released
import torch
from PIL import Image
from segment_anything import SamPredictor

from vta_sam.importers.random_weights import write_random
from vta_sam.media.picture_reader import Within
from vta_sam.perception import grounded_sam
from vta_sam.perception.grounded_sam import GroundedSAM
from vta_sam.perception.grounding_dino import Detector, build_detector_network, build_prompt, scaled_size
from vta_sam.perception.grounded_sam import Segmenter, build_segmenter_network
from vta_sam.runtime.errors import InputError

CPU = torch.device("cpu")
FP32 = torch.autocast("cpu", enabled=False)
SIDE = 224  # pixels: a square has little more cells than the 900 that Grounding DINO needs
SMALL = 128  # pixels, for networks that have fewer queries
WORDS = ["car", "man", "racing car", "cart", "cars"]


@pytest.fixture(scope="module")
def weights(random_weights) -> Path:
    """Swin-T with every parameter drawn from N(0, 0.02), in its official file."""
    return random_weights("groundingdino_swint_ogc")


@pytest.fixture(scope="module")
def network(weights) -> torch.nn.Module:
    return released.make_shallow(
        build_detector_network("swint_ogc", weights / "groundingdino_swint_ogc.pth", weights / "bert-base-uncased"))


@pytest.fixture(scope="module")
def lively(network) -> torch.nn.Module:
    """The same network with wider weights: its queries differ by more than rounding, as a trained one's do."""
    wide = copy.deepcopy(network)
    released.enliven(wide, seed=0)
    with torch.no_grad():
        wide.transformer.decoder.norm.weight.mul_(0.1)  # else most probabilities would be 1
    return wide


@pytest.fixture(scope="module")
def of_all_cells(lively) -> torch.nn.Module:
    """One whose queries are in the order of cells.

    Grounding DINO makes the 900 best cells of a picture its queries, by rank. A tie that rounding decides would change
    what all others see, so here every cell of the pictures below becomes one, and all start alike.
    """
    wide = copy.deepcopy(lively)
    wide.num_queries = wide.transformer.num_queries = cells(SMALL, SMALL + 64)
    wide.transformer.tgt_embed = torch.nn.Embedding.from_pretrained(
        wide.transformer.tgt_embed.weight[:1].detach().repeat(wide.num_queries, 1))
    return wide


def cells(height: int, width: int) -> int:
    return sum(-(-height // stride) * -(-width // stride) for stride in (8, 16, 32, 64))


@pytest.fixture(scope="module")
def tokenizer(network):
    return network.tokenizer


def pictures(count: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> np.ndarray:
    """Blocks of colour and noise (count, height, width, 3) uint8: all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 32, width // 32, 3))
    noise = rng.integers(-40, 40, (count, height, width, 3))
    return (coarse.repeat(32, 1).repeat(32, 2) + noise).clip(0, 255).astype(np.uint8)


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def official_pixels(frame: np.ndarray, short_side: int, tmp_path: Path) -> torch.Tensor:
    """A picture as groundingdino's own ``load_image`` prepares it, but for the short side."""
    import groundingdino.datasets.transforms as T

    transform = T.Compose([T.RandomResize([short_side], max_size=1333), T.ToTensor(),
                           T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    Image.fromarray(frame).save(tmp_path / "picture.png")
    return transform(Image.open(tmp_path / "picture.png").convert("RGB"), None)[0]


def detector_of(network: torch.nn.Module, short_side: int = SIDE) -> Detector:
    return Detector(copy.deepcopy(network), short_side, 1333, CPU, FP32)


# ---------------------------------------------------------------------- the prompt and its spans

def own_pieces(prompt, tokenizer) -> list[list[str]]:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt.text)["input_ids"])
    return [[tokens[i] for i in span] for span in prompt.spans]


def test_each_word_owns_its_tokens_and_no_others(tokenizer):
    words = ["car", "cart", "racing car", "cars", "race car", "man", "guinea pig", "a"]
    prompt = build_prompt(words, tokenizer)
    assert prompt.text == " . ".join(words) + " ."
    assert own_pieces(prompt, tokenizer) == [
        ["car"], ["cart"], ["racing", "car"], ["car", "##s"], ["race", "car"], ["man"], ["guinea", "pig"], ["a"]]
    assert len({i for span in prompt.spans for i in span}) == sum(map(len, prompt.spans)), "a token has two owners"


@pytest.mark.parametrize("order", [["car", "racing car"], ["racing car", "car"], ["cart", "car"], ["cars", "car"]])
def test_order_does_not_matter_to_spans(order, tokenizer):
    pieces = dict(zip(order, own_pieces(build_prompt(order, tokenizer), tokenizer)))
    assert pieces["car"] == ["car"]
    assert all("car" in part or "cart" in part for part in pieces.values())


def test_marks_that_part_phrases_are_taken_out_of_words(tokenizer):
    prompt = build_prompt(["Mr. Car?", "...", "dog"], tokenizer)
    assert own_pieces(prompt, tokenizer)[2] == ["dog"] and prompt.spans[1] == ()
    assert own_pieces(prompt, tokenizer)[0] == ["m", "##r", "car"]


# ---------------------------------------------------------------------- equality with groundingdino

def assert_equals_package(reference: torch.nn.Module, side: int, batches: list[int], checked: list[int], tmp_path: Path,
                          ) -> float:
    """The first ``n`` of 3 frames through ours, for each batch size; frames ``checked`` through the package: one noun
    by ``predict`` with thresholds 0, several by the model's own logits over each noun's span. ⇒ the share of boxes
    that could be compared (the two best queries differ by more than 1e-5)."""
    from groundingdino.util.inference import predict

    detector, frames = detector_of(reference, side), pictures(3, side, side + 64)
    one, many = detector.prompt(["racing car"]), detector.prompt(WORDS)
    seen = {n: (detector.queries(to_tensor(frames[:n]), one), detector.detect(to_tensor(frames[:n]), many))
            for n in batches}
    tokens, _ = detector.queries(to_tensor(frames), many)
    assert float(tokens.std()) > 0.1 and float((tokens[0] - tokens[1]).abs().max()) > 0.1, "all is nearly the same"
    compared = total = 0
    for i in checked:
        pixels = official_pixels(frames[i], side, tmp_path)
        their_boxes, their_scores, _ = predict(reference, pixels, one.text, 0.0, 0.0, device="cpu")
        scores, order = their_scores.sort(descending=True)
        with torch.no_grad():
            answer = reference(pixels[None], captions=[many.text])
        probs = answer["pred_logits"][0].sigmoid()
        for (tokens, boxes), found in (seen[n] for n in batches if i < n):
            # predict scores a query by all tokens; the order of queries is only fixed where their scores differ
            own, own_order = tokens[i].amax(-1).sort(descending=True)
            torch.testing.assert_close(own, scores, atol=1e-4, rtol=0)
            if scores[0] - scores[1] > 1e-5:
                torch.testing.assert_close(boxes[i, own_order[0]], their_boxes[order[0]], atol=1e-4, rtol=0)
            for k, span in enumerate(many.spans):
                best = probs[:, list(span)].amax(1).topk(2)
                torch.testing.assert_close(found.probs[i, k], best.values[0], atol=1e-4, rtol=0)
                total += 1
                if best.values[0] - best.values[1] > 1e-5:
                    compared += 1
                    torch.testing.assert_close(found.boxes[i, k], answer["pred_boxes"][0, best.indices[0]],
                                               atol=1e-4, rtol=0)
    return compared / total


@pytest.mark.slow
def test_batches_equal_the_package_frame_by_frame(of_all_cells, tmp_path):
    assert assert_equals_package(of_all_cells, SMALL, [1, 3], [0, 2], tmp_path) >= 0.5, "hardly any box"


def test_pictures_are_scaled_as_groundingdino_scales_them(network, tmp_path):
    frame = pictures(1, 192, 416)[0]
    ours = detector_of(network, 256).prepare(to_tensor(frame[None]))[0]
    official = official_pixels(frame, 256, tmp_path)
    assert ours.shape == official.shape == (3, 256, 554)
    # it scales whole levels of grey, ours does not round in between: half a level of 255, over a deviation of 0.224
    assert float((ours - official).abs().max()) < 1.01 / 255 / 0.224
    assert float((ours - official).abs().mean()) < 0.4 / 255 / 0.224


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (256, 256), (100, 1000), (1000, 100), (337, 601), (720, 999)])
@pytest.mark.parametrize("short_side", [256, 800])
def test_sizes_are_those_of_groundingdino(size, short_side):
    from groundingdino.datasets.transforms import resize

    image, _ = resize(Image.new("RGB", (size[1], size[0])), None, short_side, 1333)
    assert scaled_size(*size, short_side, 1333) == image.size[::-1]


@pytest.mark.slow
def test_the_language_model_reads_a_prompt_once(network):
    detector = detector_of(network)
    calls = []
    detector.model.bert.bert.register_forward_hook(lambda *_: calls.append(1))
    prompt = detector.prompt(["car", "man"])
    for _ in range(2):
        detector.detect(to_tensor(pictures(2)), prompt)
    assert len(calls) == 1
    detector.detect(to_tensor(pictures(1)), detector.prompt(["dog"]))
    assert len(calls) == 2


@pytest.mark.slow  # a processor emulates it
def test_half_precision_gives_nearly_the_same(of_all_cells):
    frames, exact = to_tensor(pictures(1, SMALL, SMALL + 64)), detector_of(of_all_cells, SMALL)
    half = Detector(copy.deepcopy(of_all_cells), SMALL, 1333, CPU, torch.autocast("cpu", dtype=torch.bfloat16))
    prompt = exact.prompt(["car", "man"])
    assert float((half.detect(frames, prompt).probs - exact.detect(frames, prompt).probs).abs().max()) < 0.2


@pytest.mark.slow
def test_equality_at_the_size_of_use(lively, tmp_path):
    """A frame with a short side of 800 pixels."""
    frames = pictures(1, 800, 832)
    detector = detector_of(lively, 800)
    prompt = detector.prompt(WORDS)
    seen = detector.detect(to_tensor(frames), prompt)
    with torch.no_grad():
        answer = lively(official_pixels(frames[0], 800, tmp_path)[None], captions=[prompt.text])
    for k, span in enumerate(prompt.spans):
        best = answer["pred_logits"][0].sigmoid()[:, list(span)].amax()
        torch.testing.assert_close(seen.probs[0, k], best, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------- equality with segment-anything

def assert_masks_equal_predictor(network: torch.nn.Module, frames: np.ndarray, batch_frames: int) -> None:
    boxes = torch.tensor([[[.5, .5, .4, .4], [.3, .6, .2, .5]], [[.2, .3, .3, .2], [.7, .4, .5, .6]],
                          [[.6, .6, .3, .7], [.1, .1, .1, .1]]])[:len(frames)]
    ours = list(Segmenter(copy.deepcopy(network), batch_frames, CPU, FP32).segment(to_tensor(frames), boxes))
    predictor = SamPredictor(network)
    height, width = frames.shape[1:3]
    for frame, own, (logits, embedding) in zip(frames, boxes, ours, strict=True):
        predictor.set_image(frame)
        corners = torch.cat([own[:, :2] - own[:, 2:] / 2, own[:, :2] + own[:, 2:] / 2], -1)
        corners = predictor.transform.apply_boxes_torch(corners * torch.tensor([width, height] * 2), (height, width))
        masks, _, _ = predictor.predict_torch(None, None, corners, multimask_output=False, return_logits=True)
        torch.testing.assert_close(logits, masks[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(embedding, predictor.features[0], atol=1e-4, rtol=0)
        assert float(logits.std()) > 1e-3, "a flat mask would hide a mistake"


@pytest.fixture(scope="module")
def narrow_sam() -> torch.nn.Module:
    return released.narrow_sam()


@pytest.mark.parametrize("batch_frames", [1, 2])
@pytest.mark.parametrize("size", [(192, 256), (256, 160)])
def test_mask_logits_equal_the_predictor(narrow_sam, batch_frames, size):
    assert_masks_equal_predictor(narrow_sam, pictures(2, *size), batch_frames)


def test_pictures_of_other_sizes_are_scaled_as_the_predictor_scales_them(narrow_sam):
    """Pillow and torch may round a level of grey differently here and there."""
    frame = pictures(1, 128, 192)[0]
    predictor, seen = SamPredictor(narrow_sam), []
    hook = narrow_sam.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    predictor.set_image(frame)
    box = torch.tensor([[[.5, .5, .4, .4]]])
    (logits, _), = Segmenter(copy.deepcopy(narrow_sam), 1, CPU, FP32).segment(to_tensor(frame[None]), box)
    hook.remove()
    assert logits.shape == (1, 128, 192)
    theirs, ours = (pixels * narrow_sam.pixel_std for pixels in seen)
    assert float((ours - theirs).abs().max()) < 1.001 and float((ours - theirs).abs().mean()) < 0.3


@pytest.mark.slow
def test_mask_logits_of_vit_b_equal_the_predictor(tmp_path):
    network = build_segmenter_network("vit_b", write_random("sam_vit_b", tmp_path))
    encoder = network.image_encoder
    encoder.blocks = encoder.blocks[:2]  # the size of use without the time of twelve
    released.enliven(network, seed=4)
    assert_masks_equal_predictor(network, pictures(1, 576, 1024), 1)


def test_embeddings_are_averaged_inside_the_masks(narrow_sam):
    segmenter = Segmenter(copy.deepcopy(narrow_sam), 1, CPU, FP32)
    embedding = torch.randn(256, 16, 16)
    masks = torch.zeros(3, 128, 256, dtype=torch.bool)  # 256 pixels = 16 cells: a cell is 16 pixels
    masks[0, 32:64, 160:176] = True  # two cells: rows 2 and 3 of column 10
    masks[1, :, :] = True  # all of the picture, which is the upper half of the padded square
    pooled = segmenter.pool(embedding, masks)
    torch.testing.assert_close(pooled[0], embedding[:, 2:4, 10].mean(1))
    torch.testing.assert_close(pooled[1], embedding[:, :8].mean((1, 2)))
    assert not pooled[2].any()


# ---------------------------------------------------------------------- the grounder

@pytest.fixture(scope="module")
def grounder(weights) -> GroundedSAM:
    grounder = GroundedSAM(weights=weights, short_side=SIDE, batch_frames=2, device="cpu")
    released.make_shallow(grounder.detector.model)
    return grounder


@pytest.fixture(scope="module")
def with_sam(grounder, narrow_sam) -> GroundedSAM:
    grounder = copy.copy(grounder)
    grounder.segmenter = Segmenter(copy.deepcopy(narrow_sam), 2, CPU, FP32)
    return grounder


def test_boxes_alone(grounder):
    found = grounder.ground(pictures(1), WORDS)
    assert found.probs.shape == (1, 5) and found.mask_embedding is None and grounder.fit == Within(SIDE, 1333)
    assert ((found.probs > 0) & (found.probs < 1)).all() and ((found.boxes >= 0) & (found.boxes <= 1)).all()
    assert (found.areas <= found.boxes[..., 2:].prod(-1) + 1e-6).all() and (found.areas > 0).all()
    with pytest.raises(InputError, match="SAM, which is left out"):
        grounder.masks(pictures(1), WORDS)


@pytest.mark.slow
def test_masks_give_areas_and_embeddings_whatever_the_chunks(with_sam):
    frames = pictures(3, SIDE, 256)
    found, masks = with_sam.ground(frames, ["car", "..."]), with_sam.masks(frames, ["car", "..."])
    assert masks.shape == (3, 2, SIDE, 256) and found.mask_embedding.shape == (3, 2, 256)
    np.testing.assert_allclose(found.areas, masks.mean((2, 3)), atol=1e-6)
    assert (np.abs(found.mask_embedding).max(-1) > 0).tolist() == (found.areas > 0).tolist()
    last = with_sam.ground(frames[2:], ["car", "..."])
    np.testing.assert_allclose(last.probs[0], found.probs[2], atol=1e-4)


def test_no_objects(with_sam):
    frames = pictures(5)
    assert with_sam.ground(frames, []).boxes.shape == (5, 0, 4)
    assert with_sam.masks(frames, []).shape == (5, 0, SIDE, SIDE)


def test_objects_of_punctuation_are_told_and_never_seen(with_sam, caplog):
    frames = pictures(1)
    with caplog.at_level(logging.WARNING):
        found = with_sam.ground(frames, ["..", "car"])
        alone = with_sam.ground(frames, ["?"])
    assert "'..'" in caplog.text and "'?'" in caplog.text and "'car'" not in caplog.text
    assert found.probs[0, 0] == found.areas[0, 0] == 0 and not found.boxes[0, 0].any() and found.probs[0, 1] > 0
    assert not found.mask_embedding[0, 0].any()
    assert not alone.probs.any() and alone.mask_embedding.shape == (1, 1, 256)


def test_narrow_pictures_are_refused(grounder):
    with pytest.raises(InputError, match="4096x16 pixels .* needs 900 cells"):
        grounder.ground(np.zeros((1, 16, 4096, 3), np.uint8), ["car"])


def test_the_fingerprint_tells_weights_and_size(weights, grounder, network, monkeypatch):
    monkeypatch.setattr(grounded_sam, "build_detector_network", lambda *_: network)  # which takes seconds to build
    assert grounder.fingerprint == GroundedSAM(weights=weights, short_side=SIDE, batch_frames=7).fingerprint
    for other in ({"short_side": 320}, {"short_side": SIDE, "long_side": 640}):
        assert grounder.fingerprint != GroundedSAM(weights=weights, **other).fingerprint
    assert grounder.fingerprint.startswith("grounded_sam-swint_ogc-")


# ---------------------------------------------------------------------- files that are not what they should be

def copied(weights: Path, folder: Path) -> Path:
    shutil.copytree(weights / "bert-base-uncased", folder / "bert-base-uncased")
    return folder


def test_missing_weights_are_named_with_the_way_to_get_them(weights, tmp_path):
    with pytest.raises(InputError, match="bert-base-uncased.*missing.*data_prep/weights.py fetch bert-base-uncased"):
        GroundedSAM(weights=tmp_path)
    with pytest.raises(InputError, match="groundingdino_swint_ogc.pth is missing.*fetch groundingdino_swint_ogc"):
        GroundedSAM(weights=copied(weights, tmp_path))
    with pytest.raises(InputError, match="sam_vit_h_4b8939.pth is missing.*fetch sam_vit_h"):
        GroundedSAM(weights=weights, sam="vit_h")


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the checkpoint was unpickled",))


@pytest.mark.parametrize("content, sentence", [
    ({"model": {"module.feat_map.weight": torch.zeros(3)}}, "keys differ, the first is"),
    ({"model": Trap()}, "can't be read as a file of weights"),
    ([1, 2], "holds a list"),
    (b"<html>not found</html>", "can't be read as a file of weights"),
])
def test_foreign_checkpoints_are_refused(weights, tmp_path, content, sentence):
    path = copied(weights, tmp_path) / "groundingdino_swint_ogc.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=sentence):
        GroundedSAM(weights=tmp_path)


def test_a_checkpoint_of_another_bert_is_refused(weights, tmp_path):
    from transformers import BertConfig

    shutil.copy(weights / "groundingdino_swint_ogc.pth", tmp_path)
    folder = copied(weights, tmp_path) / "bert-base-uncased"
    BertConfig.from_pretrained(folder).__class__(vocab_size=30522).save_pretrained(folder)
    with pytest.raises(InputError, match="doesn't fit Grounding DINO swint_ogc with the BERT of"):
        GroundedSAM(weights=tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="bert-base-uncased"):
        GroundedSAM(weights=tmp_path)


@pytest.mark.parametrize("settings, sentence", [
    ({"detector": "swin_x"}, "detector=swin_x is not known; it is swint_ogc or swinb_cogcoor"),
    ({"batch_frames": 0}, "short_side >= 1"),
    ({"precision": "int8"}, "precision=int8 is not known"),
    ({"device": "cuda:77"}, "device=cuda:77"),
])
def test_settings_that_make_no_sense(weights, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        GroundedSAM(weights=weights, **settings)
