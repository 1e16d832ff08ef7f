"""What the UNet is told: the null of dropout and of sampling is one, padding is silent, an impulse keeps its time."""

import numpy as np
import pytest
import torch
from models import FRAME_DIM, make_features
from tiny_data import CONDITIONER, SPEC, a_clip, build
from torch import nn

from vta_sam.clip import ClipSpec
from vta_sam.conditioners.vta_sam import VTASAMConditioner
from vta_sam.dataset.shards.batch import collate, window_of


@pytest.fixture(scope="module", params=[0, 4], ids=["cross-attention", "aligned"])
def conditioner(request):
    return build({**CONDITIONER, "map_channels": request.param}, randomise=True, spec=SPEC)


def batch_of(*keys, duration_s=SPEC.duration_s):
    return collate([window_of(a_clip(key, duration_s), SPEC, i) for i, key in enumerate(keys)], SPEC)


def parts(condition):
    return [x for x in (condition.tokens, condition.mask, condition.column_map) if x is not None]


@torch.no_grad()
def test_the_null_of_dropout_is_the_null_of_sampling(conditioner):
    batch = batch_of("a", "b", "c")
    null, told = conditioner.null(batch), conditioner(batch)
    dropped = conditioner.with_dropout(batch, torch.ones(3, dtype=torch.bool))
    kept = conditioner.with_dropout(batch, torch.zeros(3, dtype=torch.bool))
    mixed = conditioner.with_dropout(batch, torch.tensor([False, True, False]))
    for no, yes, every, none, some in zip(*map(parts, (null, told, dropped, kept, mixed))):
        assert no.shape == yes.shape and no.dtype == yes.dtype
        assert torch.equal(every, no) and torch.equal(none, yes)
        assert torch.equal(some, torch.stack([yes[0], no[1], yes[2]]))
    assert not torch.allclose(null.tokens, told.tokens, atol=1e-2)


@torch.no_grad()
def test_the_null_says_nothing_of_the_clip(conditioner):
    one, other = (conditioner.null(batch_of(key)) for key in "ab")
    assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other)))
    null = one.tokens[0] - conditioner._positions(SPEC.frames, one.tokens)
    assert torch.allclose(null, conditioner.null_token.expand_as(null), atol=1e-6)  # one token, everywhere
    if one.column_map is not None:
        assert torch.equal(one.column_map[0], conditioner.null_column[:, None].expand(-1, SPEC.columns))


def test_dropout_trains_the_null_and_spares_the_encoder(conditioner):
    batch = batch_of("a", "b")
    condition = conditioner.with_dropout(batch, torch.tensor([True, True]))
    sum(part.float().square().sum() for part in parts(condition)).backward()
    assert conditioner.null_token.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in conditioner.encoder.parameters())
    if conditioner.map_channels:
        assert conditioner.null_column.grad.abs().sum() > 0
    conditioner.zero_grad()


@torch.no_grad()
def test_padding_is_marked_and_changes_nothing(conditioner):
    batch = batch_of("a", duration_s=2.0)
    told = conditioner(batch)
    real = batch.frame_mask
    assert torch.equal(told.mask, real) and torch.equal(conditioner.null(batch).mask, real)
    batch.frame_embedding[~real], batch.probs[~real] = 30.0, 1.0
    again = conditioner(batch)
    assert torch.allclose(again.tokens[real], told.tokens[real], atol=1e-5)
    if told.column_map is not None:
        assert torch.allclose(again.column_map, told.column_map, atol=1e-5)


@torch.no_grad()
def test_positions_can_be_left_out():
    plain = build({**CONDITIONER, "positions": False}, spec=SPEC)
    null = plain.null(batch_of("a")).tokens[0]
    assert torch.equal(null, plain.null_token.expand_as(null))


class Echo(nn.Module):
    """Stands where the encoder stands, and says each frame's embedding."""

    width = FRAME_DIM

    def forward(self, batch):
        return batch.frame_embedding


@torch.no_grad()
@pytest.mark.parametrize("fps, stride", [(2, 4), (8, 4), (12.5, 16), (29.97, 16), (29.97, 4)])
def test_an_impulse_lands_in_its_column(fps, stride):
    spec = ClipSpec(2.56, fps, stride)
    conditioner = VTASAMConditioner(Echo(), spec, token_dim=16, map_channels=FRAME_DIM)
    conditioner.to_map.weight.copy_(torch.eye(FRAME_DIM))
    conditioner.to_map.bias.zero_()
    columns_s = spec.column_times_s()
    for frame, time_s in enumerate(spec.frame_times_s()):
        clip = make_features("x", duration_s=2.56, spec=spec)
        clip.frame_embedding[:] = 0
        clip.frame_embedding[frame, 1] = 1
        heard = conditioner(collate([window_of(clip, spec, 0)], spec)).column_map[0].numpy()
        assert heard.shape == (FRAME_DIM, spec.columns) and not np.delete(heard, 1, axis=0).any()
        coarse_s = max(1 / fps, spec.column_s)
        loudest = columns_s[heard[1] > heard[1].max() - 1e-6]
        assert np.abs(loudest - time_s).min() <= spec.column_s / 2 + 0.5 / fps
        assert abs((heard[1] * columns_s).sum() / heard[1].sum() - time_s) <= coarse_s / 2
        assert not heard[1][np.abs(columns_s - time_s) > 1.5 * coarse_s].any()


@torch.no_grad()
def test_the_map_of_a_short_clip_is_not_thinned_out_at_its_end():
    """Columns near the last real frame hold the mean of what is real, not half of it; columns beyond hold nothing."""
    conditioner = VTASAMConditioner(Echo(), SPEC, token_dim=16, map_channels=FRAME_DIM)
    conditioner.to_map.weight.copy_(torch.eye(FRAME_DIM))
    conditioner.to_map.bias.zero_()
    clip = make_features("x", duration_s=2.0, spec=SPEC)  # 25 frames, 12.5 columns
    clip.frame_embedding[:] = 1
    heard = conditioner(collate([window_of(clip, SPEC, 0)], SPEC)).column_map[0]
    assert torch.allclose(heard[:, :13], torch.ones(FRAME_DIM, 13)) and not heard[:, 14:].any()
