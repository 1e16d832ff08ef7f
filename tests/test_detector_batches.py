"""Grounding DINO in batches: what replaces the package's parts equals them over every query, the host waits for
nothing, and a picture's result depends on no other picture, no other size and no order of words."""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from itertools import permutations
from pathlib import Path

import pytest
import test_grounded_sam
import torch
from played_gpu import PlayedGPU
from test_grounded_sam import SIDE, SMALL, WORDS, cells, detector_of, pictures, to_tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from vta_sam.perception.grounding_dino import DeformableAttention, Detector, _HostAnswers, _Pictures

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from memory import played_detection  # noqa: E402

weights, network, lively, of_all_cells = (
    getattr(test_grounded_sam, name) for name in ("weights", "network", "lively", "of_all_cells"))


@pytest.fixture
def in_order(monkeypatch) -> None:
    """Queries of :func:`of_all_cells` stand in the order of cells, not of rank, so that each can be compared."""
    monkeypatch.setattr(torch, "topk", lambda scores, k, dim: (scores, torch.arange(k).expand(len(scores), -1)))


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
            ours = detector.model(_Pictures(nested.tensors, nested.mask), captions=[text])
    torch.testing.assert_close(ours["pred_logits"].sigmoid(), theirs["pred_logits"].sigmoid(), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours["pred_boxes"], theirs["pred_boxes"], atol=1e-4, rtol=0)
    assert float(theirs["pred_boxes"].std(1).min()) > 0.01, "all queries are alike"


# ---------------------------------------------------------------------- one picture and the others

@pytest.mark.slow
def test_a_picture_depends_on_no_other_and_on_no_order(of_all_cells, in_order):
    landscapes, portrait = to_tensor(pictures(3, SMALL, SMALL + 64)), to_tensor(pictures(1, SMALL + 64, SMALL))
    assert cells(SMALL, SMALL + 64) == cells(SMALL + 64, SMALL)
    detector = detector_of(of_all_cells, SMALL)

    def found(frames: torch.Tensor, words: tuple[str, ...] = ("car", "race car", "fish")) -> list[torch.Tensor]:
        prompt = detector.prompt(list(words))
        tokens, boxes = detector.queries(frames, prompt)
        return [boxes, *(tokens[..., list(span)] for _, span in sorted(zip(words, prompt.spans)))]

    together = found(landscapes)
    assert all(float((each[0] - each[1]).abs().max()) > 1e-2 for each in together), "all pictures are alike"
    found(portrait)
    others = [found(landscapes[[2, 0, 1]])]
    for i in range(3):
        others.append(found(landscapes[i:i + 1]))
    for order in permutations(("car", "race car", "fish")):
        others.append(found(landscapes[:1], order))
    for other, rows in zip(others, ([2, 0, 1], [0], [1], [2], *[[0]] * 6), strict=True):
        for own, each in zip(other, together, strict=True):
            torch.testing.assert_close(own, each[rows], atol=1e-3, rtol=0)


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
    detector.queries(frames, prompt)
    sent = len(counts.waits)
    assert sent == 4, "a new prompt's ids, types, positions and mask"
    counts = gpu.fresh()
    tokens, boxes = detector.queries(frames, prompt)
    assert counts.waits == [] and counts.flops > 0
    assert tokens.shape == (3, 900, prompt.tokens) and boxes.device.type == "cuda"
    counts = gpu.fresh()
    detector.detect(frames, prompt)
    assert len(counts.waits) == 3, "which tokens are a word's is sent before; probabilities and boxes are fetched after"
    with gpu.autocast(torch.float16):
        detector.queries(frames, prompt)
        counts = gpu.fresh()
        detector.queries(frames, prompt)
    assert counts.waits == []


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
def test_a_batch_of_32_of_swin_t_fits_and_waits_for_nothing(weights, gpu):
    """640 × 360 pixels, scaled to 1333 × 750. The package needed 39.9 GB on an H100 (docs/performance.md)."""
    from vta_sam.perception.grounding_dino import empty_detector_network

    full = empty_detector_network("swint_ogc", weights / "bert-base-uncased")
    counts = played_detection(gpu, full, torch.zeros((32, 3, 360, 640), dtype=torch.uint8))
    assert counts.waits == []
    assert counts.flops / 32 / 1e12 == pytest.approx(0.76, rel=0.06)  # as counted there
    assert counts.peak_bytes / 1e9 < 12.5
