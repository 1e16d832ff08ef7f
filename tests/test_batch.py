"""Windows and batches: sound, pictures and latents are cut at one instant, and what is padding says so."""

import numpy as np
import pytest
import torch
from tiny_data import OBJECT_DIM, SPEC, a_clip

from vta_sam.clip import ClipSpec
from vta_sam.dataset.shards.batch import Augmentation, collate, interleave, window_of


def telling_the_time(duration_s, spec=SPEC, key="clock"):
    """A record in which every sample, frame and column holds its own time in seconds; and its moments."""
    clip = a_clip(key, duration_s, spec.fps)
    frames_s = spec.frame_times_s(len(clip.frame_embedding))
    clip.waveform = (np.arange(len(clip.waveform)) / spec.sample_rate_hz / 100).astype(np.float32)
    clip.frame_embedding[:] = frames_s[:, None]
    clip.probs[:] = frames_s[:, None] / 100
    columns_s = spec.column_times_s(int(np.ceil(duration_s / spec.column_s - 1e-6)))
    return clip, np.broadcast_to(columns_s[None, :, None], (16, len(columns_s), 4)).astype(np.float32)


@pytest.mark.parametrize("fps, stride", [(12.5, 16), (8, 4), (2, 4), (29.97, 16)])
@pytest.mark.parametrize("start_column", [0, 1, 7, 20])
def test_everything_is_cut_at_one_instant(fps, stride, start_column):
    spec = ClipSpec(2.56, fps, stride)
    clip, moments = telling_the_time(10.24, spec)
    window = window_of(clip, spec, 5, start_column, moments)
    start_s = start_column * spec.column_s
    cut = window.features
    assert 100 * cut.waveform[0] == pytest.approx(start_s, abs=1e-4) and cut.waveform.shape == (spec.samples,)
    assert window.moments[0, :, 0] == pytest.approx(start_s + spec.column_times_s(), abs=1e-4)
    frames_s = start_s + spec.frame_times_s()
    assert cut.frame_embedding[:, 0] == pytest.approx(frames_s, abs=1e-5)
    assert 100 * cut.probs[:, 0] == pytest.approx(cut.frame_embedding[:, 0], abs=1e-4)
    assert (window.valid_frames, window.valid_columns) == (spec.frames, spec.columns)
    assert (cut.start_s, cut.duration_s, window.seed) == (start_s, spec.duration_s, 5)


def test_at_the_embedded_rates_frames_are_cut_exactly():
    clip, _ = telling_the_time(10.24)
    cut = window_of(clip, SPEC, 0, 3).features
    assert np.allclose(cut.frame_embedding[:, 0], 0.48 + SPEC.frame_times_s(), atol=1e-5)


@pytest.mark.parametrize("duration_s, start_column, frames, columns", [
    (2.0, 0, 25, 13), (5.12, 0, 64, 32), (5.12, 30, 4, 2), (0.05, 0, 1, 1), (6.4, 10, 60, 30), (5.0, 0, 63, 32),
])
def test_padding_is_masked_and_empty(duration_s, start_column, frames, columns):
    clip, moments = telling_the_time(duration_s)
    window = window_of(clip, SPEC, 0, start_column, moments)
    assert (window.valid_frames, window.valid_columns) == (frames, columns)
    batch = collate([window], SPEC)
    assert batch.frame_mask.sum() == frames and batch.frame_mask[0, :frames].all()
    assert batch.column_mask.sum() == columns and batch.column_mask[0, :columns].all()
    assert not batch.frame_embedding[0, frames:].any() and not batch.probs[0, frames:].any()
    assert not batch.moments[0, :, columns:].any() and batch.moments[0, :, :columns].all()
    samples = len(clip.waveform) - round(start_column * SPEC.column_s * 16_000)
    assert not batch.waveform[0, samples:].any() and batch.waveform.shape == (1, SPEC.samples)


def test_a_batch_of_different_clips():
    clips = [a_clip(key) for key in "abcdef"]
    clips[1].objects, clips[1].object_embedding = [], np.zeros((0, OBJECT_DIM), np.float32)
    clips[1].probs = np.zeros((64, 0), np.float32)
    clips[2].caption_tokens = np.ones((7, 4), np.float32)
    batch = collate([window_of(clip, SPEC, i) for i, clip in enumerate(clips)], SPEC)
    assert len(batch) == 6 and batch.seeds.tolist() == list(range(6)) and batch.moments is None
    for i, clip in enumerate(clips):
        k, tokens = len(clip.objects), len(clip.caption_tokens)
        assert batch.keys[i] == clip.key and batch.objects[i] == clip.objects and batch.captions[i] == clip.caption
        assert torch.equal(batch.frame_embedding[i], torch.from_numpy(clip.frame_embedding))
        assert torch.equal(batch.object_mask[i], torch.arange(8) < k)
        assert np.array_equal(batch.probs[i, :, :k], clip.probs[:, :k]) and not batch.probs[i, :, k:].any()
        assert np.array_equal(batch.object_embedding[i, :k], clip.object_embedding)
        assert not batch.object_embedding[i, k:].any()
        assert torch.equal(batch.caption_mask[i], torch.arange(7) < tokens)
        assert np.array_equal(batch.caption_tokens[i, :tokens], clip.caption_tokens)


def test_a_window_leaves_its_record_as_it_was():
    clip, moments = telling_the_time(2.0)
    before = clip.frame_embedding.copy(), clip.waveform.copy(), moments.copy()
    collate([window_of(clip, SPEC, 0, 1, moments)], SPEC).frame_embedding.fill_(9)
    assert all(np.array_equal(a, b) for a, b in zip(before, (clip.frame_embedding, clip.waveform, moments)))


def test_forgetting_objects_leaves_the_video():
    batch = collate([window_of(a_clip(key), SPEC, 0) for key in "ab"], SPEC)
    forgotten = batch.without_objects(torch.tensor([True, False]))
    assert not forgotten.probs[0].any() and not forgotten.object_embedding[0].any()
    assert not forgotten.object_mask[0].any()
    assert torch.equal(forgotten.frame_embedding, batch.frame_embedding)
    for name in ("probs", "object_embedding", "object_mask"):
        assert torch.equal(getattr(forgotten, name)[1], getattr(batch, name)[1])
        assert getattr(batch, name)[0].any()  # the batch itself keeps them


def test_select_picks_rows():
    batch = collate([window_of(a_clip(key), SPEC, i) for i, key in enumerate("abc")], SPEC)
    picked = batch.select([2, 0])
    assert picked.keys == ["c", "a"] and picked.seeds.tolist() == [2, 0] and picked.moments is None
    assert torch.equal(picked.waveform, batch.waveform[[2, 0]])
    assert picked.objects == [batch.objects[2], batch.objects[0]]
    assert picked.to("cpu").keys == ["c", "a"]


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_parts_are_put_together_as_all_rows_would_have_been(workers):
    """By any number of loader processes, from any of them on; each has padded captions to its own longest."""
    windows = []
    for i, key in enumerate("abcdefg"):
        clip, moments = telling_the_time(3.0 + 0.4 * i, key=key)
        clip.caption_tokens = np.full((1 + i % 3, 4), 1.0 + i, np.float32)
        windows.append(window_of(clip, SPEC, i, 0, moments))

    def draw(batch):
        return {"noise": batch.seeds[:, None].float() + torch.arange(3), "bin": batch.seeds.tolist()}

    whole = collate(windows, SPEC).with_draws(draw)
    for first in range(workers):
        rows = [[w for i, w in enumerate(windows) if (first + i) % workers == part] for part in range(workers)]
        parts = [collate(some, SPEC).with_draws(draw) if some else None for some in rows]
        assert_equal(interleave(parts, first), whole)
    without = collate(windows[:1], SPEC).replace(moments=None)
    assert interleave([without, collate(windows[1:2], SPEC)]).moments is None


def assert_equal(batch, expected):
    assert batch.features.keys() == expected.features.keys()
    for name, value in vars(expected).items():
        found = getattr(batch, name)
        for mine, its in zip(found.values(), value.values()) if isinstance(value, dict) else [(found, value)]:
            assert torch.equal(mine, its) and mine.dtype == its.dtype if isinstance(its, torch.Tensor) else mine == its


def test_seeds_and_lists_stay_on_the_host():
    batch = collate([window_of(a_clip(key), SPEC, 3) for key in "ab"], SPEC)
    batch = batch.with_draws(lambda batch: {"noise": torch.ones(2, 5), "bin": [1, 2]})
    sent = batch.to("meta")
    assert sent.seeds.tolist() == [3, 3] and sent.draws["bin"] == [1, 2]
    assert {tensor.device.type for tensor in (sent.draws["noise"], sent.waveform, sent.frame_mask)} == {"meta"}
    assert sent.with_draws(lambda batch: {}) is sent and batch.select([1]).draws["bin"] == [2]
    late = batch.replace(draws=None).to("meta").with_draws(lambda batch: {"noise": torch.ones(2)})
    assert late.draws["noise"].device.type == "meta"


def test_what_is_hidden_is_the_same_whoever_draws_it():
    augment = Augmentation(objects=0.5, frames=0.4, appearance=0.7)
    batch = collate([window_of(a_clip(key), SPEC, ord(key)) for key in "abcdefgh"], SPEC)
    drawn = augment(batch.with_draws(lambda batch: augment.draw(batch, "stage")), "stage")
    own = augment(batch, "stage")
    assert torch.equal(drawn.frame_embedding, own.frame_embedding) and torch.equal(drawn.probs, own.probs)
    assert not torch.equal(own.frame_embedding, augment(batch, "another").frame_embedding)
