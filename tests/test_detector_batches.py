"""Grounding DINO in batches: what replaces the package's parts equals them over every query, the host waits for
nothing, and a picture's result depends on no other picture, no other size and no order of words."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import test_grounded_sam
import torch
from played_gpu import PlayedGPU
from test_grounded_sam import CPU, FP32, SIDE, SMALL, WORDS, cells, detector_of, pictures, to_tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from vta_sam.checkpoints.parts import differences
from vta_sam.embedded.extractors import TinyGrounder
from vta_sam.perception import grounded_sam
from vta_sam.perception.base import Grounding
from vta_sam.perception.grounded_sam import GroundedSAM, Segmenter
from vta_sam.perception.grounding_dino import Detector, _HostAnswers, _Pictures
from vta_sam.perception.inference import BiAttention, DeformableAttention, Texts, hold_weights
from vta_sam.runtime.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from memory import played_detection  # noqa: E402

weights, network, lively, of_all_cells, narrow_sam, grounder, with_sam = (
    getattr(test_grounded_sam, name) for name in (
        "weights", "network", "lively", "of_all_cells", "narrow_sam", "grounder", "with_sam"))


@pytest.fixture
def in_order(monkeypatch) -> None:
    """Queries of :func:`of_all_cells` stand in the order of cells, not of rank, so that each can be compared."""
    monkeypatch.setattr(torch, "topk", lambda scores, k, dim: (scores, torch.arange(k).expand(len(scores), -1)))


def fewer_queries(network: torch.nn.Module, count: int) -> torch.nn.Module:
    """A copy for smaller pictures."""
    network = copy.deepcopy(network)
    network.num_queries = network.transformer.num_queries = count
    network.transformer.tgt_embed.weight.data = network.transformer.tgt_embed.weight[:count].detach()
    return network


# ---------------------------------------------------------------------- equality with the package

def attention(heads: int = 4, levels: int = 3, width: int = 64) -> torch.nn.Module:
    """The package's attention with lively weights."""
    from groundingdino.models.GroundingDINO.ms_deform_attn import MultiScaleDeformableAttention

    theirs = MultiScaleDeformableAttention(width, heads, levels, 4, batch_first=True).eval()
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(i))
    return theirs


def inputs(coordinates: int, sizes: list[tuple[int, int]], queries: int, batch: int = 2, width: int = 64) -> dict:
    """Random arguments of attention: places within the picture and beyond its edges, a fifth of the cells masked."""
    torch.manual_seed(coordinates)
    values = sum(height * width for height, width in sizes)
    return {"query": torch.randn(batch, queries, width), "value": torch.randn(batch, values, width),
            "reference_points": torch.rand(batch, queries, len(sizes), coordinates) * 1.4 - 0.2,
            "spatial_shapes": torch.tensor(sizes), "level_start_index": None,
            "key_padding_mask": torch.rand(batch, values) < 0.2}


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("sizes", [[(9, 14), (5, 7), (3, 4)], [(1, 6), (4, 1), (1, 1)]])
@torch.no_grad()
def test_attention_equals_the_package(coordinates, sizes):
    theirs, arguments = attention(), inputs(coordinates, sizes, queries=31)
    expected = theirs(**arguments)
    torch.testing.assert_close(DeformableAttention(theirs)(**arguments), expected, atol=1e-5, rtol=0)
    unmasked = theirs(**{**arguments, "key_padding_mask": torch.zeros_like(arguments["key_padding_mask"])})
    assert float(expected.std()) > 0.1 and float((unmasked - expected).abs().max()) > 0.1, "little is compared"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_attention_in_half_precision_errs_no_more_than_the_package(dtype):
    theirs, arguments = attention(), inputs(4, [(9, 14), (5, 7), (3, 4)], queries=200)
    exact, ours = theirs(**arguments), DeformableAttention(theirs)
    with torch.autocast("cpu", dtype=dtype):
        errors = [(each(**arguments).float() - exact).square().mean().sqrt() for each in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1] and errors[1] > 1e-4, errors


@torch.no_grad()
def test_places_that_are_no_numbers_read_no_foreign_memory():
    theirs, arguments = attention(), inputs(2, [(9, 14), (5, 7), (3, 4)], queries=5)
    expected = DeformableAttention(theirs)(**arguments)
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30)):
        arguments["reference_points"][:, i] = value
    seen = DeformableAttention(theirs)(**arguments)
    torch.testing.assert_close(seen[:, 4], expected[:, 4], atol=0, rtol=0)


@pytest.mark.slow
def test_every_query_equals_the_package_beside_a_padded_picture(of_all_cells, in_order):
    """A landscape and a portrait as one batch, padded as the package pads them: its own numbers, padding included."""
    from groundingdino.util.misc import nested_tensor_from_tensor_list

    torch.manual_seed(0)
    nested = nested_tensor_from_tensor_list([torch.randn(3, SMALL - 24, SMALL + 64), torch.randn(3, SMALL, SMALL - 32)])
    detector = detector_of(of_all_cells, SMALL)
    text = detector.prompt(WORDS).text
    with torch.no_grad():
        theirs = of_all_cells(nested, captions=[text] * 2)
        with _HostAnswers():
            detector.model.bert.choose([text] * 2, detector.transfer)
            ours = detector.model(_Pictures(nested.tensors, nested.mask), captions=[Texts.ANY])
    torch.testing.assert_close(ours["pred_logits"].sigmoid(), theirs["pred_logits"].sigmoid(), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours["pred_boxes"], theirs["pred_boxes"], atol=1e-4, rtol=0)
    assert float(theirs["pred_boxes"].std(1).min()) > 0.01, "all queries are alike"


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_attention_between_pictures_and_texts_equals_the_package(masked):
    from groundingdino.models.GroundingDINO.fuse_modules import BiMultiHeadAttention

    theirs = BiMultiHeadAttention(64, 48, 96, 4).eval()
    for i, parameter in enumerate(theirs.parameters()):
        parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
    torch.manual_seed(0)
    cells, tokens = torch.randn(3, 50, 64), torch.randn(3, 9, 48)
    padding = [torch.arange(count) >= torch.tensor([[count], [count - 2], [count // 2]]) if masked else
               torch.zeros(3, count, dtype=torch.bool) for count in (50, 9)]
    expected = theirs(cells, tokens, *padding)
    for ours, each in zip(BiAttention(theirs)(cells, tokens, *padding), expected, strict=True):
        torch.testing.assert_close(ours, each, atol=1e-4, rtol=0)
        assert float(each.std()) > 1
    if masked:
        unmasked = theirs(cells, tokens, *(torch.zeros_like(mask) for mask in padding))
        assert all(float((each - other).abs().max()) > 0.1 for each, other in zip(expected, unmasked))


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(SMALL, SMALL + 32), (SMALL + 32, SMALL)])
def test_static_shapes_equal_the_packages_own_padding(of_all_cells, in_order, height, width):
    from groundingdino.util.misc import nested_tensor_from_tensor_list

    theirs = fewer_queries(of_all_cells, 400)  # of the cells of the picture and of the padding
    detector = Detector(copy.deepcopy(theirs), SMALL, SMALL + 64, CPU, FP32, static_shapes=True)
    frames, prompt = to_tensor(pictures(2, height, width)), detector.prompt(WORDS)
    tokens, boxes = detector.queries(frames, prompt)
    canvas = (SMALL, SMALL + 64) if width > height else (SMALL + 64, SMALL)
    nested = nested_tensor_from_tensor_list([*detector.prepare(frames), torch.zeros(3, *canvas)])
    assert nested.tensors.shape[-2:] == canvas
    with torch.no_grad():
        expected = theirs(nested, captions=[prompt.text] * 3)
    torch.testing.assert_close(boxes, expected["pred_boxes"][:2], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens, expected["pred_logits"][:2, :, :prompt.tokens].sigmoid(), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_compiled_blocks_are_whole_and_see_as_many_shapes_as_there_are(network, narrow_sam, monkeypatch):
    """Traced, not compiled: no block falls back to Python, and other words, fewer pictures and a shape seen before
    trace nothing anew."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: vars(part).__setitem__(
        "_compiled_call_impl", torch.compile(part._call_impl, backend="eager", fullgraph=True)))
    torch.compiler.reset()
    detector = Detector(copy.deepcopy(network), SIDE, SIDE + 64, CPU, FP32, static_shapes=True)
    frames, prompt = to_tensor(pictures(2, SIDE, SIDE + 32)), detector.prompt(["car"])
    expected = detector.queries(frames, prompt)
    detector.compile_blocks()
    for own, each in zip(detector.queries(frames, prompt), expected, strict=True):
        torch.testing.assert_close(own, each)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 10
    detector.queries(to_tensor(pictures(2, SIDE, SIDE)), detector.prompt(["race car"]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    segmenter, box = Segmenter(copy.deepcopy(narrow_sam), 2, CPU, FP32), torch.tensor([[[.5, .5, .4, .4]]] * 2)
    expected = segmenter.measure(frames, box)
    segmenter.compile_blocks()
    for own, each in zip(segmenter.measure(frames, box), expected, strict=True):
        torch.testing.assert_close(own, each)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


# ---------------------------------------------------------------------- one picture and the others

NOUNS = [("car", "race car", "fish"), ("dog",), ("fish", "steel drum", "ukulele", "piano", "wood plane")]


def found_by(detector: Detector, frames: torch.Tensor, words: list[tuple[str, ...]]) -> list[list[torch.Tensor]]:
    """⇒ of each picture the boxes of all queries, and their probabilities at the tokens of each word, by its name."""
    prompts = [detector.prompt(list(own)) for own in words]
    tokens, boxes = detector.queries(frames, prompts)
    return [[boxes[i], *(tokens[i][:, list(span)] for _, span in sorted(zip(words[i], prompt.spans)))]
            for i, prompt in enumerate(prompts)]


def assert_same(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for own, each in zip(seen, expected, strict=True):
        torch.testing.assert_close(own, each, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_picture_depends_on_no_other_no_other_words_and_no_order(of_all_cells, in_order):
    """Each picture alone, with its own words, is what it is beside others with other words."""
    landscapes, portrait = to_tensor(pictures(3, SMALL, SMALL + 64)), to_tensor(pictures(1, SMALL + 64, SMALL))
    assert cells(SMALL, SMALL + 64) == cells(SMALL + 64, SMALL)
    detector = detector_of(of_all_cells, SMALL)
    alone = [found_by(detector, landscapes[i:i + 1], NOUNS[i:i + 1])[0] for i in range(3)]
    other, = found_by(detector, landscapes[:1], [NOUNS[2]])
    assert float((alone[0][0] - alone[1][0]).abs().max()) > 1e-2, "all pictures are alike"
    assert float((alone[0][0] - other[0]).abs().max()) > 2e-3, "words change nothing"
    found_by(detector, portrait, NOUNS[:1])
    for order in permutations(range(3)):
        for i, seen in zip(order, found_by(detector, landscapes[list(order)], [NOUNS[i] for i in order])):
            assert_same(seen, alone[i])
    for order in permutations(NOUNS[0]):
        assert_same(found_by(detector, landscapes[:1], [order])[0], alone[0])


@pytest.mark.slow
def test_a_picture_of_32_is_what_it_is_alone(of_all_cells, in_order):
    frames = to_tensor(pictures(32, SMALL, SMALL + 64))
    detector = detector_of(of_all_cells, SMALL)
    words = [NOUNS[i % 3] for i in range(32)]
    together = found_by(detector, frames, words)
    for i in (0, 13, 31):
        assert_same(found_by(detector, frames[i:i + 1], words[i:i + 1])[0], together[i])


# ---------------------------------------------------------------------- the grounder

def same(seen: Grounding, expected: Grounding) -> None:
    for name in ("probs", "boxes", "areas", "mask_embedding"):
        np.testing.assert_allclose(getattr(seen, name), getattr(expected, name), atol=1e-3)


@pytest.mark.slow
def test_frames_of_several_clips_in_one_batch_are_grounded_as_alone(with_sam, monkeypatch):
    """More frames than a batch, in four requests with other words, one without, and one of nothing to read."""
    frames, words = pictures(6, SIDE, 256), [["car", "..."], [], ["fish"], ["??"], ["dog", "steel drum", "car"]]
    parts = [frames[:1], frames[1:2], frames[2:4], frames[4:5], frames[3:]]
    detected = []
    monkeypatch.setattr(with_sam.detector, "queries", lambda frames, prompts, queries=with_sam.detector.queries: (
        detected.append(len(frames)), queries(frames, prompts))[1])
    fetch = with_sam.launch(list(zip(parts, words)))
    assert detected == [2, 2, 2], "batches of batch_frames, of frames that have words"
    found = fetch()
    for part, own, seen in zip(parts, words, found, strict=True):
        same(seen, with_sam.ground(part, own))
    assert [each.probs.shape for each in found] == [(1, 2), (1, 0), (2, 1), (1, 1), (3, 3)]
    assert found[0].probs[0, 0] > 0 and found[4].areas[:, 0].max() > 0 and not found[3].mask_embedding.any()
    np.testing.assert_allclose(found[2].boxes[1], with_sam.ground(frames[3:4], ["fish"]).boxes[0], atol=1e-3)


@pytest.mark.slow  # a processor emulates it
def test_weights_held_in_half_precision_compute_what_autocast_computes(lively, narrow_sam):
    """To the bit, since autocast would cast the same weights before each product."""
    half = torch.autocast("cpu", dtype=torch.bfloat16)
    frames, boxes = to_tensor(pictures(1, SMALL + 32, SMALL + 64)), torch.tensor([[[.5, .5, .4, .4], [.3, .6, .2, .5]]])
    seen = []
    for held in (None, torch.bfloat16):
        detector = Detector(fewer_queries(lively, 100), SMALL, 1333, CPU, half)
        detector.hold_weights(held)
        segmenter = Segmenter(copy.deepcopy(narrow_sam), 1, CPU, half)
        hold_weights(segmenter.model, held)
        seen.append([*detector.queries(frames, detector.prompt(WORDS)), *next(segmenter.segment(frames, boxes))])
    for held, cast in zip(seen[1], seen[0], strict=True):
        assert torch.equal(held, cast) and float(cast.std()) > 1e-3
    kinds = {parameter.dtype for parameter in segmenter.model.image_encoder.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}, "products' weights, and norms"


def test_what_changes_records_is_a_setting_and_part_of_the_recipe(weights, network, monkeypatch):
    monkeypatch.setattr(grounded_sam, "build_detector_network", lambda *_: copy.deepcopy(network))
    plain, sparse = GroundedSAM(weights=weights, device="cpu"), GroundedSAM(weights=weights, every=4, device="cpu")
    assert (plain.every, plain.settings) == (1, {"precision": "fp32"})
    assert (sparse.every, sparse.settings) == (4, {"precision": "fp32", "every": 4})
    assert sparse.recipe["every"] == 4 and differences(plain.recipe, {"_target_": "grounded_sam"}) == []
    assert differences(sparse.recipe, plain.recipe) == ["every is 4, not 1"]
    padded = GroundedSAM(weights=weights, static_shapes=True, device="cpu")
    assert padded.settings["static_shapes"] and padded.detector.static_shapes and padded.recipe["static_shapes"]
    blocks: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: blocks.append(block))
    monkeypatch.setattr(grounded_sam, "can_compile", lambda device: True)
    compiled = GroundedSAM(weights=weights, compile=True, device="cpu")
    assert len(blocks) == 16 and compiled.recipe == plain.recipe, "eight of Swin, and two of each other stack"
    assert (TinyGrounder(every=3).every, TinyGrounder().settings) == (3, {})
    for kind in (TinyGrounder, GroundedSAM):
        with pytest.raises(InputError, match="every is 0, expected a whole number from 1"):
            kind(every=0)


# ---------------------------------------------------------------------- on a GPU that is played

@pytest.fixture
def gpu():
    with PlayedGPU.played() as played:
        yield played


@pytest.mark.slow
def test_a_batch_waits_for_nothing(network, gpu):
    detector = Detector(copy.deepcopy(network), SIDE, 1333, torch.device("cuda", 0), nullcontext())
    frames, prompt = to_tensor(pictures(3, SIDE, SIDE + 32)).to("cuda"), detector.prompt(WORDS)
    counts = gpu.fresh()
    tokens, boxes = detector.queries(frames, prompt)
    assert counts.waits == [] and counts.flops > 0
    assert tokens.shape == (3, 900, prompt.tokens) and boxes.device.type == "cuda"
    counts = gpu.fresh()
    detector.detect(frames, [prompt, detector.prompt(["fish"]), prompt])
    assert counts.waits == []
    with gpu.autocast(torch.float16):
        detector.queries(frames, prompt)
        counts = gpu.fresh()
        detector.queries(frames, prompt)
    assert counts.waits == []


@pytest.mark.slow
def test_a_batch_of_several_clips_is_fetched_once_and_casts_no_weight(network, narrow_sam, with_sam, gpu):
    """New words too are sent without a wait; with SAM."""
    device, grounder = torch.device("cuda", 0), copy.copy(with_sam)
    grounder.batch_frames = 8
    grounder.detector = Detector(copy.deepcopy(network), SIDE, 1333, device, nullcontext())
    grounder.segmenter = Segmenter(copy.deepcopy(narrow_sam), 2, device, nullcontext())
    frames = pictures(4, SIDE, SIDE + 32)
    requests = [(frames[:2], ["dog", "car"]), (frames[2:3], ["fish"]), (frames[3:], ["steel drum", "dog"])]
    counts = gpu.fresh()
    with gpu.autocast(torch.float16):
        grounder.launch(requests)()
    assert len(counts.casts) > 100, "what is avoided"
    grounder.detector.hold_weights(torch.float16)
    hold_weights(grounder.segmenter.model, torch.float16)
    for words in (["dog", "car"], ["piano", "car"]):
        requests[0] = requests[0][0], words
        counts = gpu.fresh()
        with gpu.autocast(torch.float16):
            fetch = grounder.launch(requests)
        assert counts.waits == [] and counts.casts == [] and counts.flops > 0
        found = fetch()
        assert len(counts.waits) == 1 and counts.waits[0].endswith("event")
        assert [each.boxes.shape for each in found] == [(2, 2, 4), (1, 1, 4), (1, 2, 4)]


@pytest.mark.slow
def test_a_planted_wait_is_seen(network, gpu):
    model = copy.deepcopy(network)
    detector = Detector(model, SIDE, 1333, torch.device("cuda", 0), nullcontext())
    frames, prompt = to_tensor(pictures(2)).to("cuda"), detector.prompt(WORDS)
    detector.queries(frames, prompt)
    model.transformer.decoder.norm.register_forward_hook(lambda *given: bool(given[-1].sum() > 0) and None)
    counts = gpu.fresh()
    detector.queries(frames, prompt)
    assert len(counts.waits) == len(model.transformer.decoder.layers)


def test_the_package_itself_reads_values_within_a_batch(network, gpu):
    """What is avoided: already its masks of the text can't be built without values."""
    model = copy.deepcopy(network).to("cuda")
    with pytest.raises(DynamicOutputShapeException), torch.inference_mode():
        model(torch.zeros((2, 3, SIDE, SIDE), device="cuda"), captions=["car ."] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("name, sam, count, size, tflop, peak_gb", [
    ("swint_ogc", None, 32, (360, 640), 0.78, 12), ("swinb_cogcoor", "vit_h", 16, (576, 1024), 7.2, 12)])
def test_a_batch_fits_and_waits_for_nothing_but_its_fetch(weights, gpu, name, sam, count, size, tflop, peak_gb):
    """Pictures scaled to 1333 × 750. The package needed 39.9 GB for 32 by Swin-T on an H100 (docs/performance.md)."""
    from segment_anything import sam_model_registry

    from vta_sam.checkpoints.model_folder import uninitialised
    from vta_sam.perception.grounding_dino import empty_detector_network

    with uninitialised():
        full = empty_detector_network(name, weights / "bert-base-uncased")
        segments = sam and sam_model_registry[sam]().eval()
    counts = played_detection(gpu, full, torch.zeros((count, 3, *size), dtype=torch.uint8), sam=segments)
    assert len(counts.waits) == 1 and counts.casts == []
    assert counts.flops / count / 1e12 == pytest.approx(tflop, rel=0.06)  # as counted there
    assert counts.peak_bytes / 1e9 < peak_gb
