"""Pictures of a clip: panels (strip of frames, object timelines, spectrogram) and the PNG files made of them."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any, Literal, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ..media.audio import resample
from ..mel import (
    FFT_SAMPLES, FIGURES, FRAME_RATE_HZ, HOP_SAMPLES, LOG_FLOOR, MAX_HZ, MIN_HZ, N_MELS, SAMPLE_RATE_HZ, log_mel
)
from ..metrics.intervals import Interval
from ..metrics.signal import NATS_PER_DB
from ..runtime.errors import InputError
from ..runtime.files import atomic_path

# Okabe and Ito's palette, which the colour-blind can distinguish, without its yellow (too pale for a line on white)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINE_STYLES = ("-", "--", "-.", ":", "-", "--", "-.", ":")
SHOWN_DB = 60.0  # range of a spectrogram's colours
EVENT_MARK: dict[str, Any] = {
    "linestyle": "none", "marker": "v", "markersize": 6, "markerfacecolor": COLOURS[5], "markeredgecolor": "black",
    "markeredgewidth": 0.6, "clip_on": False, "zorder": 5,
}
TICKS_HZ = (250, 500, 1000, 2000, 4000)
_LEGEND_CHARACTERS = 18  # what fits into the right margin
_SEPARATOR = 0.03  # gap between two tiles of a strip, as a fraction of a tile


def check_probabilities(objects: Sequence[str], probs: np.ndarray) -> None:
    """InputError unless probs is (T, K) for the K objects."""
    if probs.ndim != 2 or probs.shape[1] != len(objects):
        raise InputError(f"probs has shape {probs.shape}, expected (T, {len(objects)}) for the objects {list(objects)}")


def decibels(waveform: np.ndarray, sample_rate_hz: int, duration_s: float | None = None) -> np.ndarray:
    """Mono sound (samples,) ⇒ log-mel in dB (frames, 64) by the figures' front end, so that sounds of different rates
    are drawn alike.

    Args:
        waveform: (samples,).
        sample_rate_hz: of the waveform.
        duration_s: the first seconds alone; None: all of it.
    """
    waveform = resample(waveform, sample_rate_hz, SAMPLE_RATE_HZ)
    if duration_s is not None:
        waveform = waveform[: max(round(duration_s * FRAME_RATE_HZ) * HOP_SAMPLES, FFT_SAMPLES)]
    # a sound too short to be analysed is shown with silence after it
    return log_mel(np.pad(waveform, (0, max(0, FFT_SAMPLES - len(waveform)))), FIGURES) / NATS_PER_DB


def loudest_db(*mels_db: np.ndarray) -> float:
    """The level of the brightest colour: the maximum of these mels, but high enough that silence is dark."""
    return max(LOG_FLOOR / NATS_PER_DB + SHOWN_DB, *(float(mel.max()) for mel in mels_db))


def draw_strip(axes: Axes, frames: np.ndarray, duration_s: float, tiles: int) -> None:
    """Frames (T, H, W, 3) uint8 side by side on the axis of time; each is the one on screen at its tile's middle."""
    width = duration_s / tiles
    for tile in range(tiles):
        frame = frames[min(int((tile + 0.5) / tiles * len(frames)), len(frames) - 1)]
        left, right = (tile + _SEPARATOR / 2) * width, (tile + 1 - _SEPARATOR / 2) * width
        axes.imshow(frame, extent=(left, right, 0, 1), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, duration_s), ylim=(0, 1), yticks=[])
    axes.tick_params(bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_timeline(axes: Axes, objects: Sequence[str], probs: np.ndarray, duration_s: float) -> None:
    """Probabilities (T, K) of K objects over time, with a legend beside the axes; a note if there are none."""
    check_probabilities(objects, probs)
    times_s = (np.arange(len(probs)) + 0.5) / max(len(probs), 1) * duration_s
    for k, name in enumerate(objects):
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(times_s, probs[:, k], color=colour, linestyle=LINE_STYLES[k % len(LINE_STYLES)], linewidth=1.6,
                  label=textwrap.shorten(name, _LEGEND_CHARACTERS, placeholder="…") or name[:_LEGEND_CHARACTERS])
        axes.fill_between(times_s, probs[:, k], color=colour, alpha=0.12, linewidth=0)
    if objects:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.06), fontsize=8, frameon=False,
                             handlelength=2.2, borderaxespad=0.2, labelspacing=0.3)
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no objects named", transform=axes.transAxes, ha="center", va="center", color="0.4")
    axes.set(xlim=(0, duration_s), ylim=(-0.02, 1.05), yticks=[0, 0.5, 1], ylabel="visible (prob.)")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_spectrogram(
    axes: Axes, mel_db: np.ndarray, top_db: float, duration_s: float, onsets_s: np.ndarray | None = None
) -> AxesImage:
    """Log-mel in dB (frames, 64), its colours the 60 dB below top_db; onsets as ticks on its upper edge."""
    half = 0.5 / FRAME_RATE_HZ  # frame i is centred on i · 10 ms
    image = axes.imshow(
        mel_db.T - top_db, origin="lower", aspect="auto", cmap="magma", vmin=-SHOWN_DB, vmax=0,
        extent=(-half, (len(mel_db) - 0.5) / FRAME_RATE_HZ, -0.5, N_MELS - 0.5), interpolation="nearest",
    )
    if onsets_s is not None and len(onsets_s):
        axes.plot(onsets_s, np.ones(len(onsets_s)), transform=axes.get_xaxis_transform(), **EVENT_MARK)
    axes.set_facecolor("black")  # where a shorter sound has ended
    labels = [f"{hz / 1000:g}" for hz in TICKS_HZ]
    axes.set(xlim=(0, duration_s), ylim=(-0.5, N_MELS - 0.5), yticks=_mel_bin(np.array(TICKS_HZ)), yticklabels=labels)
    return image


def draw_attention(axes: Axes, weights: np.ndarray, name: str) -> AxesImage:
    """Attention (columns, frames): the sound's columns to the right, the video's frames upwards; dashed: same time."""
    if weights.ndim != 2:
        raise InputError(f"attention of {name!r} has shape {weights.shape}, expected (columns, frames)")
    columns, frames = weights.shape
    image = axes.imshow(weights.T, origin="lower", aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.plot([-0.5, columns - 0.5], [-0.5, frames - 0.5], color="white", linestyle="--", linewidth=0.9, alpha=0.7)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, frames - 0.5), xlabel="latent column", ylabel="video frame")
    axes.set_title(name, fontsize=9, parse_math=False)
    return image


def _mel_bin(frequency_hz: np.ndarray) -> np.ndarray:
    """Frequencies in Hz ⇒ positions on the axis of mel bins, 0 being the first bin's centre."""
    from ..runtime.librosa_import import librosa

    low, high = librosa.hz_to_mel(MIN_HZ), librosa.hz_to_mel(MAX_HZ)
    return (librosa.hz_to_mel(frequency_hz) - low) / (high - low) * (N_MELS + 1) - 1


DPI = 110
TILES = 12
# of a clip's picture, in inches
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 11.0, 0.8, 1.6, 0.15, 0.5, 0.2
_TIMELINE, _SPECTROGRAM, _TITLE_LINE = 1.0, 1.5, 0.22
_TALLEST_STRIP = 1.8


def clip_picture(
    path: str | os.PathLike,
    frames: np.ndarray,
    objects: Sequence[str],
    probs: np.ndarray,
    generated_waveform: np.ndarray,
    true_waveform: np.ndarray | None = None,
    onsets: np.ndarray | None = None,
    *,
    sample_rate_hz: int,
    duration_s: float,
    title: str = "",
) -> None:
    """Write one clip as a PNG: frames, visibility of the objects, and the log-mel of its sounds, over one time axis.

    Args:
        path: the PNG to write.
        frames: (T, H, W, 3) uint8 RGB, spread evenly over the clip; twelve of them are shown.
        objects: K names.
        probs: (T', K) in [0, 1], also spread evenly; K = 0 is drawn as a note.
        generated_waveform: (samples,) mono.
        true_waveform: likewise, drawn above the generated one if given; both share one scale of colours.
        onsets: times in seconds of the audible events, marked on each spectrogram.
        sample_rate_hz: of both waveforms.
        duration_s: length of the clip in seconds.
        title: shown above the frames, at most two lines of it.

    InputError: shapes that don't fit.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(f"{path}: frames has shape {frames.shape}, expected (T, H, W, 3) with T ≥ 1")
    sounds = {"generated": decibels(generated_waveform, sample_rate_hz, duration_s)}
    if true_waveform is not None:
        sounds = {"true": decibels(true_waveform, sample_rate_hz, duration_s), **sounds}
    lines = textwrap.wrap(title, 110, max_lines=2, placeholder=" …")
    tile_width = (_WIDTH - _LEFT - _RIGHT) / TILES
    strip = min(tile_width * frames.shape[1] / frames.shape[2], _TALLEST_STRIP)
    rows = [strip, _TIMELINE] + [_SPECTROGRAM] * len(sounds)
    figure, (strip_axes, timeline, *spectrograms) = _rows(rows, _TOP + _TITLE_LINE * len(lines))
    if lines:
        figure.text(_LEFT / _WIDTH, 1 - _TOP / 2 / figure.get_figheight(), "\n".join(lines), va="top", fontsize=11,
                    parse_math=False)
    draw_strip(strip_axes, frames, duration_s, TILES)
    draw_timeline(timeline, objects, probs, duration_s)
    top_db = loudest_db(*sounds.values())
    for axes, (name, mel) in zip(spectrograms, sounds.items()):
        image = draw_spectrogram(axes, mel, top_db, duration_s, onsets)
        axes.set_ylabel(f"{name} (kHz)")
    for axes in (timeline, *spectrograms[:-1]):
        axes.tick_params(labelbottom=False)
    spectrograms[-1].set_xlabel("time (s)")
    _colour_bar(figure, spectrograms, image)
    if onsets is not None and len(onsets):
        first = spectrograms[0]
        first.plot([1.018], [1.0], transform=first.transAxes, **EVENT_MARK)
        first.text(1.03, 1.0, "event", transform=first.transAxes, fontsize=8, va="center")
    _save(figure, path)


def attention_picture(path: str | os.PathLike, maps: Mapping[str, np.ndarray], title: str = "") -> None:
    """Write attention as a PNG, one panel per UNet level: maps name ⇒ (columns, frames), each with colours of its own.

    A model that has learnt timing is bright along the dashed diagonal. InputError: no map, or one not of two axes.
    """
    if not maps:
        raise InputError(f"{path}: there is no attention map to draw")
    across = 3 if len(maps) in (5, 6) else min(len(maps), 4)
    down = -(-len(maps) // across)
    figure = _figure(3.2 * across + 0.3, 2.9 * down + (0.4 if title else 0.1), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes, (name, weights) in zip(grid, maps.items()):
        image = draw_attention(axes, np.asarray(weights, dtype=np.float64), name)
        figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
    for axes in list(figure.axes):
        if not axes.has_data():
            axes.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    _save(figure, path)


def curve_picture(
    path: str | os.PathLike,
    steps: Sequence[float],
    values: Mapping[str, Sequence[Interval | float]],
    ylabel: str,
    xlabel: str = "step",
    title: str = "",
) -> None:
    """Write curves as a PNG: values name ⇒ one figure per step; an Interval brings its band, NaN leaves a gap.

    InputError: a curve that has not as many values as there are steps.
    """
    figure = _figure(7.0, 4.2, layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(values.items()):
        if len(curve) != len(steps):
            raise InputError(f"{path}: curve {name!r} has {len(curve)} values for {len(steps)} steps")
        colour = COLOURS[number % len(COLOURS)]
        bounds = [(v.mean, v.low, v.high) if isinstance(v, Interval) else (v, v, v) for v in curve]
        mean, low, high = np.array(bounds, dtype=np.float64).reshape(-1, 3).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=colour, label=name, marker="o", markersize=3.5,
                  linestyle=LINE_STYLES[number % len(LINE_STYLES)])
    for text in axes.legend(frameon=False, fontsize=9).get_texts() if values else ():
        text.set_parse_math(False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=11, parse_math=False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def seconds_picture(path: str | os.PathLike, runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Write bars of seconds as an SVG or PNG, one a stage and run, from the first stage down.

    One run's bars are parted by what the seconds went to; of several, colours are the runs'.

    Args:
        path: of the picture; its suffix is its format.
        runs: {run: {stage: {part: seconds}}}.

    Raises:
        InputError: there is no such format, or nothing to draw.
    """
    if Path(path).suffix not in (".svg", ".png"):
        raise InputError(f"{path}: the picture is an .svg or a .png; give it one of these suffixes")
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run))
    if not stages:
        raise InputError(f"{path}: no run has a stage whose seconds could be drawn")
    parts = list(dict.fromkeys(part for run in runs.values() for stage in run.values() for part in stage))
    height = 0.8 / len(runs)
    figure = _figure(_WIDTH, 0.9 + 0.28 * len(stages) * len(runs) + 0.1 * len(stages), layout="constrained")
    axes, shown = figure.subplots(), list[str]()
    for number, (name, run) in enumerate(runs.items()):
        for row, stage in enumerate(stages):
            spent = run.get(stage, {}) if len(runs) == 1 else {name: sum(run.get(stage, {}).values())}
            y, left = row + (number - (len(runs) - 1) / 2) * height, 0.0
            for part, seconds in spent.items():
                again, colour = divmod(number if len(runs) > 1 else parts.index(part), len(COLOURS))
                axes.barh(y, seconds, height * 0.9, left, color=COLOURS[colour], edgecolor="white", linewidth=0,
                          hatch="///" if again else None, label="_" * (part in shown) + part)
                shown, left = [*shown, part], left + seconds
            axes.text(left, y, f" {left:.0f} s", va="center", fontsize=8)
    if [part for part in shown if part]:
        for text in axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0)).get_texts():
            text.set_parse_math(False)
    axes.set_yticks(range(len(stages)), stages)
    axes.set(ylim=(len(stages) - 0.5, -0.5), xlabel="seconds")
    axes.margins(x=0.08)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def spectrogram_image(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Mono sound (samples,) ⇒ a picture of its log-mel (H, W, 3) uint8, for a logger."""
    duration_s = len(waveform) / sample_rate_hz
    mel = decibels(waveform, sample_rate_hz)
    figure, (axes,) = _rows([_SPECTROGRAM * 1.3], _TOP)
    image = draw_spectrogram(axes, mel, loudest_db(mel), duration_s)
    axes.set(xlabel="time (s)", ylabel="kHz")
    _colour_bar(figure, [axes], image)
    return _pixels(figure)


def timeline_image(objects: Sequence[str], probs: np.ndarray, duration_s: float) -> np.ndarray:
    """K names and their probabilities (T, K) over a clip ⇒ a picture (H, W, 3) uint8, for a logger."""
    figure, (axes,) = _rows([_TIMELINE * 1.5], _TOP)
    draw_timeline(axes, objects, probs, duration_s)
    axes.set_xlabel("time (s)")
    return _pixels(figure)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _rows(heights: Sequence[float], top: float) -> tuple[Figure, list[Axes]]:
    """Axes below each other with one left and one right edge, heights in inches ⇒ figure, axes from the top down."""
    total = top + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM
    figure, all_axes, y = _figure(_WIDTH, total), [], total - top
    for height in heights:
        y -= height
        all_axes.append(figure.add_axes(
            (_LEFT / _WIDTH, y / total, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, height / total)
        ))
        y -= _GAP
    figure.align_ylabels(all_axes)
    return figure, all_axes


def _colour_bar(figure: Figure, axes: Sequence[Axes], image) -> None:
    """A bar in the right margin, as high as all these axes together, which share its colours."""
    bottom, top = axes[-1].get_position().y0, axes[0].get_position().y1
    right = axes[0].get_position().x1
    inset = 0.06 * (top - bottom)  # room for the mark that explains events
    bar = figure.colorbar(image, cax=figure.add_axes((right + 0.012, bottom, 0.012, top - bottom - inset)))
    bar.set_label("dB below the loudest", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _save(figure: Figure, path: str | os.PathLike) -> None:
    # without matplotlib's version or a date in it, so that the same picture is the same bytes
    svg = Path(path).suffix == ".svg"
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "vta_sam"}):
        figure.savefig(temporary, format="svg" if svg else "png", metadata={"Date" if svg else "Software": None})
