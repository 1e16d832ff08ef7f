"""Frames of several clips in one batch: each clip has what it has alone, and an error stays with the clip that it
belongs to."""

import numpy as np
import pytest
import torch
from test_extract import BrightnessEncoder, BrightnessGrounder

from vta_sam.perception.base import Grounding
from vta_sam.perception.features import Extractors, extract_features

WIDE, TALL = (2, 4), (4, 2)


class Later(BrightnessGrounder):
    """Grounds up to four frames of several clips at once, and has the values when they are asked for."""

    batch_frames = 4

    def __init__(self, every=1, fault=lambda requests, asked: None):
        self.every, self.fault, self.batches, self.open, self.most_open = every, fault, [], 0, 0

    def launch(self, requests):
        assert len({frames.shape[1:] for frames, _ in requests}) == 1, "pictures of one size"
        self.batches.append([(len(frames), *words) for frames, words in requests])
        self.fault(requests, False)
        self.open += 1
        self.most_open = max(self.open, self.most_open)

        def values():
            self.open -= 1
            self.fault(requests, True)
            return [self.ground(frames, words) for frames, words in requests]
        return values

    def ground(self, frames, objects):
        bright = frames.reshape(len(frames), -1).mean(1).astype(np.float32) / 255
        probs = bright[:, None] * np.linspace(1, 0.5, len(objects), dtype=np.float32)
        return Grounding(probs, np.repeat(probs[..., None], 4, -1), probs / 2)


class Together(BrightnessEncoder):
    batch_frames = 5


def make_clips(*lengths, sizes=(WIDE,)):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (length, *sizes[i % len(sizes)], 3), np.uint8) for i, length in enumerate(lengths)]


def chunks_of(pictures, size=6):
    return [[pictures[i:i + size], pictures[i:i + size]] for i in range(0, len(pictures), size)]


def run(extractors, clips, words):
    """All clips through the same batches ⇒ them, in order."""
    batches, found = extractors.batches(), []
    for pictures, objects in zip(clips, words, strict=True):
        clip = extractors.under_work([objects])
        for chunk in chunks_of(pictures):
            batches.add(clip, chunk)
        batches.end(clip)
        found.append(clip)
    batches.flush()
    assert all(clip.is_done for clip in found)
    return found


def assert_same(extracted, alone):
    np.testing.assert_array_equal(extracted.frame_embedding, alone.frame_embedding)
    for one, other in zip(extracted.groundings, alone.groundings, strict=True):
        for name in ("probs", "boxes", "areas"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


WORDS = [["dog"], ["cat", "car"], [], ["ferret"], ["dog"]]


def test_clips_share_batches_of_one_size_and_have_what_they_have_alone():
    clips = make_clips(7, 3, 5, 1, 9, sizes=(WIDE, TALL))
    grounder = Later()
    found = run(Extractors(grounder, Together()), clips, WORDS)
    for clip, pictures, words in zip(found, clips, WORDS):
        assert_same(clip.extracted(), extract_features(chunks_of(pictures), Extractors(Later(), Together()), [words]))
    sizes = [sum(count for count, *_ in batch) for batch in grounder.batches]
    assert sum(sizes) == 7 + 3 + 1 + 9 and sum(size < 4 for size in sizes) <= 2, "but for the last of each size"
    assert [(3, "cat", "car"), (1, "ferret")] in grounder.batches, "two clips in one"
    assert 1 < grounder.most_open <= 3, "the next batch is launched before one is fetched"
    again = Later()
    run(Extractors(again, Together()), clips, WORDS)
    assert again.batches == grounder.batches


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("cuDNN error"), ValueError("a bug")])
def test_an_error_stays_with_its_clip(late, error):
    def fault(requests, asked):
        if asked == late and any(words == ["fish"] for _, words in requests):
            raise error

    clips, words = make_clips(3, 3, 3, 9), [["dog"], ["fish"], ["cat"], ["dog"]]
    found = run(Extractors(Later(fault=fault), Together()), clips, words)
    assert [clip.error for clip in found] == [None, error, None, None]
    with pytest.raises(type(error)):
        found[1].extracted()
    for i in (0, 2, 3):
        assert_same(found[i].extracted(), extract_features(chunks_of(clips[i]), Extractors(Later(), Together()),
                                                           [words[i]]))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_memory_that_is_short_halves_a_batch_of_several_clips(late, most):
    def fault(requests, asked):
        if asked == late and sum(len(frames) for frames, _ in requests) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    clips = make_clips(3, 2, 5)
    with pytest.warns(UserWarning, match="Later is out of memory"):
        found = run(Extractors(Later(fault=fault), Together()), clips, [["dog"], ["cat"], ["car"]])
    for clip, pictures in zip(found, clips):
        assert_same(clip.extracted(), extract_features(chunks_of(pictures), Extractors(Later(), Together()),
                                                       clip.objects))


def test_a_frame_that_alone_is_too_much_is_its_clip_s_error():
    def fault(requests, asked):
        if any(words == ["fish"] for _, words in requests):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="Later is out of memory"):
        found = run(Extractors(Later(fault=fault), Together()), make_clips(2, 2, 2), [["dog"], ["fish"], ["cat"]])
    assert [isinstance(clip.error, torch.OutOfMemoryError) for clip in found] == [False, True, False]


@pytest.mark.parametrize("length", [1, 2, 6, 7, 8, 13])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_every_kth_frame_is_looked_at_and_the_last(length, every):
    [pictures] = make_clips(length)
    grounder = Later(every)
    found = extract_features(chunks_of(pictures), Extractors(grounder, Together()), [["dog", "cat"]])
    whole = Later().ground(pictures, ["dog", "cat"])
    looked_at = sorted({*range(0, length, every), length - 1})
    assert sum(count for batch in grounder.batches for count, *_ in batch) == len(looked_at)
    assert len(found.frame_embedding) == length, "the encoder sees all"
    [grounding] = found.groundings
    for name in ("probs", "boxes", "areas"):
        values, truth = getattr(grounding, name), getattr(whole, name)
        assert values.dtype == np.float32 and values.shape == truth.shape
        np.testing.assert_array_equal(values[looked_at], truth[looked_at])
        for column in range(2):
            line = np.interp(range(length), looked_at, truth[looked_at, column].reshape(len(looked_at), -1)[:, 0])
            np.testing.assert_allclose(values[:, column].reshape(length, -1)[:, 0], line, atol=1e-6)


def test_a_clip_of_other_words_twice_is_grounded_for_each():
    """A prompt and a negative prompt share the pictures."""
    [pictures] = make_clips(6)
    found = extract_features(chunks_of(pictures), Extractors(Later(), Together()), [["dog"], ["cat", "car"]])
    assert [grounding.probs.shape for grounding in found.groundings] == [(6, 1), (6, 2)]
