"""Pictures: what is drawn where, read back from the pixels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from vta_sam.metrics.intervals import Interval
from vta_sam.plots.clip_pictures import (
    COLOURS, attention_picture, clip_picture, curve_picture, spectrogram_image, timeline_image
)
from vta_sam.runtime.errors import InputError

DURATION_S = 2.0
RATE_HZ = 16_000
AT = {"sample_rate_hz": RATE_HZ, "duration_s": DURATION_S}
NOISE = 0.1 * np.random.default_rng(0).normal(size=32_000).astype(np.float32)


def greys(count: int = 24, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness rises with time ⇒ (T, H, W, 3)."""
    levels = np.linspace(40, 200, count).astype(np.uint8)
    return np.tile(levels[:, None, None, None], (1, height, width, 3))


def pixels(path) -> np.ndarray:
    return (imread(path)[..., :3] * 255).round().astype(int)


def colour_columns(picture: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    """Columns of a picture (H, W, 3) in which a colour occurs, ascending."""
    rgb = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])
    return np.flatnonzero((np.abs(picture.astype(int) - rgb).max(axis=2) <= tolerance).any(axis=0))


def test_clip_picture_shows_the_frames_in_order(tmp_path):
    path = tmp_path / "clip.png"
    clip_picture(path, greys(), ["dog"], np.full((24, 1), 0.5), NOISE, **AT)
    row = pixels(path)[40]  # through the strip
    grey = row[(np.ptp(row, axis=1) < 3) & (row[:, 0] < 230)][:, 0]
    tiles = grey[np.concatenate([[True], np.diff(grey) > 5])]
    assert len(tiles) == 12 and np.all(np.diff(tiles) > 0)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.png"]  # no temporary file is left


def test_truth_adds_a_panel_and_titles_are_not_parsed(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, truth, title in (("alone", None, ""), ("both", NOISE, "pays $5 for $1_0 of popcorn, " * 9)):
            clip_picture(tmp_path / f"{name}.png", greys(), ["cat$_", "a dog with quite a long name"],
                         np.zeros((10, 2)), NOISE, truth, np.array([0.5]), **AT, title=title)
    assert pixels(tmp_path / "both.png").shape[0] > 1.3 * pixels(tmp_path / "alone.png").shape[0]


def test_events_are_marked_at_their_time(tmp_path):
    for name, onsets in (("without", None), ("with", np.array([0.5, 1.5]))):
        clip_picture(tmp_path / f"{name}.png", greys(), [], np.zeros((24, 0)), NOISE, onsets=onsets,
                     **AT)
    assert not colour_columns(pixels(tmp_path / "without.png"), COLOURS[5], 3).size
    marked = colour_columns(pixels(tmp_path / "with.png"), COLOURS[5], 3)
    groups = np.split(marked, np.flatnonzero(np.diff(marked) > 5) + 1)
    first, second, explained = (group.mean() for group in groups)
    strip = np.flatnonzero(pixels(tmp_path / "with.png")[40, :, 0] < 230)
    left, width = strip[0], np.ptp(strip) + 1
    np.testing.assert_allclose([(first - left) / width, (second - left) / width], [0.25, 0.75], atol=0.01)
    assert explained > strip[-1]


def test_timeline_draws_each_object_where_it_is_seen():
    probs = np.zeros((40, 2))
    probs[:20, 0], probs[20:, 1] = 0.9, 0.9
    picture = timeline_image(["dog", "canary"], probs, DURATION_S)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    upper = picture[: picture.shape[0] // 3, : round(0.8 * picture.shape[1])]  # above 0.7, left of the legend
    dog, canary = colour_columns(upper, COLOURS[0]), colour_columns(upper, COLOURS[1])
    assert dog.size and canary.size and dog.max() <= canary.min() + 15
    assert timeline_image([], np.zeros((40, 0)), DURATION_S).shape == picture.shape


def test_spectrogram_brightens_where_the_sound_is():
    sound = NOISE.copy()
    sound[:16_000] = 0
    picture = spectrogram_image(sound, RATE_HZ).astype(int)
    inner = picture[20:-60, 100:-200].sum(axis=(0, 2))
    assert inner[len(inner) // 2 + 60:].min() > 3 * inner[: len(inner) // 2 - 60].max()
    silent = spectrogram_image(np.zeros(32_000), RATE_HZ)[20:-60, 100:-200]
    assert silent.max() < 60  # dark, and not the brightest colour because it is its own maximum
    assert spectrogram_image(NOISE[:300], RATE_HZ).shape[2] == 3  # shorter than a window


def test_sounds_of_different_rates_are_drawn_alike(tmp_path):
    """A click after half a second, and a tone at 1 kHz, at 16 and at 44.1 kHz."""
    drawn = {}
    for rate_hz in (RATE_HZ, 44_100):
        time_s = np.arange(round(DURATION_S * rate_hz)) / rate_hz
        sound = (0.3 * np.sin(2 * np.pi * 1000 * time_s) * (time_s > 0.5)).astype(np.float32)
        clip_picture(tmp_path / f"{rate_hz}.png", greys(), [], np.zeros((24, 0)), sound, sample_rate_hz=rate_hz,
                     duration_s=DURATION_S)
        drawn[rate_hz] = [pixels(tmp_path / f"{rate_hz}.png"), spectrogram_image(sound, rate_hz).astype(int)]
    for ours, other in zip(*drawn.values()):
        assert ours.shape == other.shape and np.abs(ours - other).mean() < 1


def test_attention_is_bright_along_its_diagonal(tmp_path):
    attention_picture(tmp_path / "one.png", {"middle": np.eye(16)})
    attention_picture(tmp_path / "five.png", {f"level {i}": np.ones((8, 12)) for i in range(5)}, title="$")
    picture = pixels(tmp_path / "one.png")
    yellow = (picture[..., 0] > 230) & (picture[..., 1] > 210) & (picture[..., 2] < 80)
    rows, columns = np.nonzero(yellow[:, : round(0.82 * picture.shape[1])])  # left of the colour bar
    assert np.corrcoef(rows, columns)[0, 1] < -0.95  # rows count downwards: later is higher
    assert pixels(tmp_path / "five.png").shape[0] > 1.5 * picture.shape[0]


def test_curves_have_bands_and_gaps(tmp_path):
    curve = [Interval(v, v - 0.1, v + 0.1, 8) for v in (0.1, 0.3, 0.5)]
    curve_picture(tmp_path / "band.png", [1, 2, 3], {"ours": curve, "gap": [0.1, float("nan"), 0.2]}, "figure")
    curve_picture(tmp_path / "line.png", [1, 2, 3], {"ours": [i.mean for i in curve]}, "figure")
    tinted = [(np.abs(pixels(tmp_path / name) - [209, 227, 240]).max(axis=2) < 12).sum() for name in
              ("band.png", "line.png")]
    assert tinted[0] > 20 * max(tinted[1], 50)


def test_the_same_picture_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        attention_picture(tmp_path / f"{name}.png", {"middle": np.eye(4)})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="frames has shape"):
        clip_picture(tmp_path / "x.png", greys()[..., 0], [], np.zeros((24, 0)), NOISE, **AT)
    with pytest.raises(InputError, match="probs has shape"):
        timeline_image(["dog"], np.zeros((4, 2)), DURATION_S)
    with pytest.raises(InputError, match="no attention map"):
        attention_picture(tmp_path / "x.png", {})
    with pytest.raises(InputError, match="3 steps"):
        curve_picture(tmp_path / "x.png", [1, 2, 3], {"ours": [0.1]}, "figure")
    assert not list(tmp_path.iterdir())
