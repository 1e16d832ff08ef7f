"""Times inside cross-attention: nothing but diffusers' attention when silent, and maps of where it looks."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from models import SPEC, make_batch, make_model_folder, make_recipe
from tiny_data import UNET, UNET_CONFIG, build

import vta_sam
from vta_sam.diffusion.condition import Condition
from vta_sam.diffusion.unet import TimedCrossAttention, recorded_attention
from vta_sam.training.figures_stage import attention_maps

COLUMNS, ROWS, FRAMES = SPEC.columns, 4, SPEC.frames  # 8, 16


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture()
def attention():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention(query_dim=32, cross_attention_dim=16, heads=2, dim_head=8).eval()


def bias_of(real, batch=2):
    """As the UNet makes it of a mask."""
    mask = torch.arange(FRAMES)[None, None, :].expand(batch, 1, -1) < real
    return (~mask).float() * -10_000


@torch.no_grad()
@pytest.mark.parametrize("real", [None, 16, 5])
def test_without_strength_it_is_the_attention_of_diffusers(attention, real):
    queries, tokens = normal(2, COLUMNS * ROWS, 32), normal(2, FRAMES, 16, seed=1)
    bias = None if real is None else bias_of(real)
    attention.set_processor(AttnProcessor2_0())
    expected = attention(queries, tokens, attention_mask=bias)
    attention.set_processor(TimedCrossAttention(16, SPEC, ROWS, strength=0.0))
    assert torch.allclose(attention(queries, tokens, attention_mask=bias), expected, atol=1e-6)
    attention.set_processor(TimedCrossAttention(16, SPEC, ROWS, strength=2.0))
    assert not torch.allclose(attention(queries, tokens, attention_mask=bias), expected, atol=1e-3)


@torch.no_grad()
def test_masked_frames_are_never_read(attention):
    attention.set_processor(TimedCrossAttention(16, SPEC, ROWS, strength=2.0))
    queries, tokens = normal(2, COLUMNS * ROWS, 32), normal(2, FRAMES, 16, seed=1)
    expected = attention(queries, tokens, attention_mask=bias_of(5))
    tokens[:, 5:] = 7.0
    assert torch.allclose(attention(queries, tokens, attention_mask=bias_of(5)), expected, atol=1e-5)


@torch.no_grad()
def test_equal_times_agree_from_the_start():
    """With nothing else to compare, a column reads the frames of its own moment, in every frequency row."""
    torch.manual_seed(0)
    attention = Attention(query_dim=32, cross_attention_dim=16, heads=4, dim_head=64)
    processor = TimedCrossAttention(256, SPEC, ROWS, strength=3.0)
    query, key = processor.project(attention, torch.zeros(1, COLUMNS * ROWS, 32), torch.zeros(1, FRAMES, 16))
    scores = (query @ key.transpose(-1, -2)).mean(dim=1)[0]  # (N, frames)
    scores = scores.unflatten(0, (COLUMNS, ROWS))
    assert torch.allclose(scores, scores[:, :1].expand_as(scores))  # time-major: rows of a column are neighbours
    read = scores[:, 0].argmax(dim=1)
    assert torch.all((read // 2 - torch.arange(COLUMNS)).abs() <= 1)
    distance = (torch.arange(FRAMES)[None, :] - 2 * torch.arange(COLUMNS)[:, None] - 0.5).abs()
    assert scores[:, 0][distance < 1].mean() > scores[:, 0][distance > 6].mean() + 1


def test_the_gradient_reaches_positions(attention):
    processor = TimedCrossAttention(16, SPEC, ROWS, strength=1.0)
    attention.set_processor(processor)
    attention(normal(2, COLUMNS * ROWS, 32), normal(2, FRAMES, 16, seed=1)).square().sum().backward()
    assert processor.position.weight.grad.abs().sum() > 0
    assert "processor.position.weight" in dict(attention.named_parameters())  # trained and saved with the rest


def timed_unet(freq=ROWS, columns=COLUMNS):
    config = {**UNET_CONFIG, "sample_size": [columns, freq], "block_out_channels": [8, 16, 16],
              "down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D"] * 3}
    return build({**UNET, "config": config}, randomise=True, spec=SPEC)


@torch.no_grad()
@pytest.mark.parametrize("freq, rows", [(4, [4, 2, 1]), (5, [5, 3, 2]), (8, [8, 4, 2])])
def test_every_layer_knows_its_rows(freq, rows):
    unet = timed_unet(freq)
    seen = {}
    for name, layer in unet.unet.named_modules():
        if name.endswith("attn2"):
            layer.register_forward_pre_hook(lambda module, inputs, name=name: seen.update(
                {name: (inputs[0].shape[1], module.processor.rows)}))
    mask = torch.ones(1, FRAMES, dtype=torch.bool)
    unet(normal(1, 8, COLUMNS, freq), torch.tensor([5]), Condition(normal(1, FRAMES, 16), mask, normal(1, 4, COLUMNS)))
    level = {"down_blocks.0": 0, "down_blocks.1": 1, "down_blocks.2": 2, "mid_block": 2, "up_blocks.0": 2,
             "up_blocks.1": 1, "up_blocks.2": 0}
    assert len(seen) == 3 + 1 + 2 * 3
    for name, (queries, found) in seen.items():
        depth = next(d for prefix, d in level.items() if name.startswith(prefix))
        assert found == rows[depth] and queries == rows[depth] * [8, 4, 2][depth], name


@torch.no_grad()
def test_watching_changes_nothing_and_leaves_no_trace():
    unet = timed_unet()
    before = {name: id(p) for name, p in unet.unet.attn_processors.items()}
    mask = torch.arange(FRAMES)[None, :] < 9
    condition = Condition(normal(1, FRAMES, 16), mask, normal(1, 4, COLUMNS))
    inputs = (normal(1, 8, COLUMNS, ROWS), torch.tensor([5]), condition)
    expected = unet(*inputs)
    with recorded_attention(unet.unet) as seen:
        assert torch.equal(unet(*inputs), expected)
    assert {name: id(p) for name, p in unet.unet.attn_processors.items()} == before and len(seen) == 10
    for weights in seen.values():
        assert weights.shape[::2] == (1, FRAMES)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(weights.shape[:2]), atol=1e-5)
        assert not weights[..., 9:].any()
    with pytest.raises(KeyError):
        with recorded_attention(unet.unet):
            raise KeyError
    assert {name: id(p) for name, p in unet.unet.attn_processors.items()} == before


@pytest.mark.parametrize("timed", [True, False])
def test_attention_maps(tmp_path, timed):
    recipe = make_recipe().denoiser
    unet = {**recipe, "timed_attention": 2.0 if timed else 0.0,
            "config": {**recipe["config"], "sample_size": [COLUMNS, ROWS]}}
    pipeline = vta_sam.load(make_model_folder(tmp_path, denoiser=unet))
    batch = make_batch("a")
    batch.frame_mask[0, 12:] = False
    maps = attention_maps(pipeline, batch, seed=0)
    assert {name: m.shape for name, m in maps.items()} == {
        "level 0, 8 columns": (8, FRAMES), "level 1, 4 columns": (4, FRAMES)}
    for found in maps.values():
        assert np.allclose(found.sum(axis=1), 1, atol=1e-5) and not found[:, 12:].any() and found[:, :12].all()
    again = attention_maps(pipeline, batch, seed=0)
    assert all(np.array_equal(maps[name], again[name]) for name in maps)
