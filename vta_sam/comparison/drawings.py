"""Small drawings on one axis of time: spectrograms and posters as files, timelines and marks as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from ..atomic import atomic_path
from ..compiled import librosa
from ..errors import InputError
from ..media.fit import Within
from ..media.video import read_clip
from ..mel import FRAME_RATE_HZ, MAX_HZ, MIN_HZ, N_MELS
from ..report.panels import SHOWN_DB

COLUMNS = 512  # the most pixels that a spectrogram is wide; it is shown no wider than that
_LEVELS = 48  # steps of 1.25 dB, which keep the file small
_POSTER = Within(180, 320)
_POSTER_QUALITY = 60
_MOST_TICKS = 6
_MARKED_HZ = (500, 2000)


@dataclass(frozen=True)
class Lane:
    """When one object is visible: the outline of an SVG area, 1000 wide, 100 high. mean, most: of its probability."""

    name: str
    path: str
    mean: float
    most: float


def write_spectrogram(path: Path, mel_db: np.ndarray, top_db: float, duration_s: float) -> None:
    """Log-mel in dB (frames, 64) ⇒ a PNG of [0, duration_s], its colours the 60 dB below top_db, black after its end.

    A column shows the loudest of the frames that are centred in it, so that no impulse is lost.
    """
    width = max(1, min(COLUMNS, math.ceil(duration_s * FRAME_RATE_HZ)))
    column = (np.arange(len(mel_db)) / FRAME_RATE_HZ / duration_s * width).astype(int)
    drawn = np.full((width, N_MELS), -np.inf)
    inside = column < width
    np.maximum.at(drawn, column[inside], mel_db[inside])
    level = np.clip(np.rint((drawn - top_db + SHOWN_DB) / SHOWN_DB * (_LEVELS - 1)), 0, _LEVELS - 1)
    picture = Image.fromarray(np.ascontiguousarray(level.T[::-1].astype(np.uint8)), mode="P")
    colours = matplotlib.colormaps["magma"](np.linspace(0, 1, _LEVELS), bytes=True)[:, :3]
    picture.putpalette(colours.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def write_poster(path: Path, video: Path, time_s: float) -> None:
    """The picture of a video at a time ⇒ a small JPEG. InputError: it has none there."""
    frames = read_clip(video, start_s=time_s, duration_s=0.1, fps=10, fits=[_POSTER], want_audio=False).frames[0]
    if not len(frames):
        raise InputError(f"{video} has no picture at {time_s:.2f} s")
    with atomic_path(path) as temporary:
        Image.fromarray(frames[0]).save(temporary, format="JPEG", quality=_POSTER_QUALITY, optimize=True)


def lanes(timeline: tuple[list[str], np.ndarray, float] | None, duration_s: float) -> list[Lane]:
    """Object probabilities on an axis of [0, duration_s] ⇒ a lane per object; frame i holds for [i, i + 1) / fps."""
    if timeline is None or not len(timeline[1]):
        return []
    objects, probs, length_s = timeline
    edges = np.arange(len(probs) + 1) / len(probs) * length_s / duration_s * 1000
    found = []
    for k, name in enumerate(objects):
        values = np.clip(probs[:, k], 0.0, 1.0)
        steps = "".join(f"V{100 - 100 * value:.0f}H{edge:.1f}" for value, edge in zip(values, edges[1:]))
        found.append(Lane(name, f"M0 100{steps}V100Z", float(values.mean()), float(values.max())))
    return found


def percents(times_s: np.ndarray | list[float], duration_s: float) -> list[str]:
    """Times ⇒ places on an axis of [0, duration_s] in per cent; what lies outside is left out."""
    return [f"{100 * time / duration_s:.2f}" for time in times_s if 0 <= time <= duration_s]


def ticks(duration_s: float) -> list[tuple[str, str]]:
    """[(per cent, label in seconds)]: round steps, few enough for a small cell."""
    step = next(step for power in range(-2, 7) for step in (10.0 ** power, 2 * 10.0 ** power, 5 * 10.0 ** power)
                if duration_s / step < _MOST_TICKS)
    return [(f"{100 * i * step / duration_s:.2f}", f"{i * step:g}") for i in range(int(duration_s / step + 1e-6) + 1)]


def frequency_marks() -> list[tuple[str, str]]:
    """[(per cent from the top, label)] of a few frequencies on the axis of mel bins."""
    low, high = librosa.hz_to_mel(MIN_HZ), librosa.hz_to_mel(MAX_HZ)
    places = [(librosa.hz_to_mel(hz) - low) / (high - low) * (N_MELS + 1) - 0.5 for hz in _MARKED_HZ]
    return [(f"{100 - 100 * place / N_MELS:.1f}", f"{hz / 1000:g} kHz") for place, hz in zip(places, _MARKED_HZ)]
