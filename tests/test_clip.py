"""The time base: every length, and where a frame's moment lies among the latent's columns."""

import numpy as np
import pytest
from tiny_data import a_clip

from vta_sam.clip import MAX_OBJECTS, ClipSpec
from vta_sam.runtime.errors import InputError

RATES = [2, 8, 12.5, 29.97]
STRIDES = [4, 8, 16]


@pytest.mark.parametrize("duration_s, fps, stride, frames, columns, samples", [
    (10.24, 8, 4, 82, 256, 163_840),
    (10.24, 2, 4, 20, 256, 163_840),
    (5.12, 12.5, 16, 64, 32, 81_920),
    (5.12, 12.5, 8, 64, 64, 81_920),
    (1.28, 29.97, 16, 38, 8, 20_480),
])
def test_lengths(duration_s, fps, stride, frames, columns, samples):
    spec = ClipSpec(duration_s, fps, stride)
    assert (spec.frames, spec.columns, spec.samples) == (frames, columns, samples)
    assert spec.samples_of(duration_s) == samples and spec.frames_of(duration_s) == frames
    assert spec.mel_frames == columns * stride and spec.columns * spec.column_s == pytest.approx(duration_s)
    assert spec.mel_rate_hz == 100


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("duration_s", [1.28, 5.12, 10.24])
def test_frames_are_those_on_screen_inside_the_clip(fps, duration_s):
    spec = ClipSpec(duration_s, fps, 4)
    times_s = spec.frame_times_s()
    assert 0 < times_s[0] and times_s[-1] <= duration_s < times_s[-1] + 1 / fps + 1e-9
    assert np.allclose(np.diff(times_s), 1 / fps)
    assert np.allclose(spec.frame_times_s(3), [0.5 / fps, 1.5 / fps, 2.5 / fps])


def test_columns_of_moments():
    spec = ClipSpec(5.12, 12.5, 16)
    assert [spec.column_of(j * spec.column_s) for j in range(spec.columns)] == list(range(spec.columns))
    assert [spec.column_of(t) for t in spec.column_times_s()] == list(range(spec.columns))
    assert spec.column_of(0.16 - 1e-6) == 0


@pytest.mark.parametrize("arguments, words", [
    (dict(duration_s=5.0, fps=12.5, latent_stride_frames=16), "not a multiple of the VAE's stride of 16"),
    (dict(duration_s=0.0, fps=12.5, latent_stride_frames=16), "duration_s > 0"),
    (dict(duration_s=5.12, fps=0.0, latent_stride_frames=16), "fps > 0"),
])
def test_impossible_clips_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        ClipSpec(**arguments)


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("stride", STRIDES)
def test_interpolation_is_an_average(fps, stride):
    weights = ClipSpec(5.12, fps, stride).interpolation()
    assert np.all(weights >= 0) and np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert weights.sum(axis=0).min() > 0.1 * len(weights) / weights.shape[1], "a frame that no column hears"


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("stride", STRIDES)
def test_an_impulse_lands_in_its_column(fps, stride):
    spec = ClipSpec(5.12, fps, stride)
    weights, columns_s = spec.interpolation(), spec.column_times_s()
    coarse_s = max(1 / fps, spec.column_s)
    nearest_s = np.clip(columns_s, *spec.frame_times_s()[[0, -1]])  # beyond the last frame's centre that frame holds
    for i, time_s in enumerate(spec.frame_times_s()):
        heard = weights[:, i]
        loudest = columns_s[heard > heard.max() - 1e-6]
        # the loudest column holds the frame's centre, or is as near to it as half a frame
        assert np.abs(loudest - time_s).min() <= spec.column_s / 2 + 0.5 / fps
        assert heard[min(spec.column_of(time_s), spec.columns - 1)] >= 0.3 * heard.max()
        assert abs((heard * columns_s).sum() / heard.sum() - time_s) <= coarse_s / 2
        assert np.all(heard[np.abs(nearest_s - time_s) >= coarse_s] < 1e-6)


@pytest.mark.parametrize("fps", RATES)
def test_interpolation_draws_a_straight_line(fps):
    """Frames that tell the time give columns that tell the time, away from the ends."""
    spec = ClipSpec(5.12, fps, 16)
    told = spec.interpolation() @ spec.frame_times_s()
    inner = slice(3, -3)
    assert np.allclose(told[inner], spec.column_times_s()[inner], atol=0.5 / fps if fps * spec.column_s > 1 else 1e-3)


def test_equal_rates_need_no_interpolation():
    spec = ClipSpec(5.12, 6.25, 16)
    assert np.allclose(spec.interpolation(), np.eye(32), atol=1e-6)


@pytest.mark.parametrize("change, words", [
    (dict(probs=np.zeros((64, 9), np.float32)), "probs has shape"),
    (dict(boxes=np.zeros((63, 1, 4), np.float32)), "boxes has shape"),
    (dict(object_embedding=np.zeros((4, 5), np.float32)), "object_embedding has shape"),
    (dict(waveform=np.zeros((2, 100), np.float32)), "waveform has shape"),
    (dict(waveform=np.zeros(0, np.float32)), "waveform has shape"),
    (dict(frame_embedding=np.full((64, 6), np.nan, np.float32)), "frame_embedding holds NaN"),
    (dict(objects=["x"] * (MAX_OBJECTS + 1)), "9 objects, at most 8"),
])
def test_a_record_whose_shapes_disagree_is_refused_by_key(change, words):
    clip = a_clip("the-key", words=("dog",))
    for name, value in change.items():
        setattr(clip, name, value)
    with pytest.raises(InputError, match=f"'the-key': .*{words}"):
        clip.validate()
