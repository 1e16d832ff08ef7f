"""The panels that pictures are made of: each function draws one kind of data into one given axes."""

from __future__ import annotations

import textwrap
from typing import Any, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ..mel import FFT_SAMPLES, FRAME_RATE_HZ, HOP_SAMPLES, LOG_FLOOR, MAX_HZ, MIN_HZ, N_MELS, log_mel
from ..metrics.signal import NATS_PER_DB
from ..runtime.errors import InputError
from ..runtime.librosa_import import librosa

# Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow (too pale for a line on white)
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


def decibels(waveform: np.ndarray, duration_s: float | None = None) -> np.ndarray:
    """Mono 16 kHz sound (samples,) ⇒ log-mel in dB (frames, 64), of the first duration_s if given."""
    if duration_s is not None:
        waveform = waveform[: max(round(duration_s * FRAME_RATE_HZ) * HOP_SAMPLES, FFT_SAMPLES)]
    # a sound too short to be analysed is shown with silence after it
    return log_mel(np.pad(waveform, (0, max(0, FFT_SAMPLES - len(waveform))))) / NATS_PER_DB


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
    low, high = librosa.hz_to_mel(MIN_HZ), librosa.hz_to_mel(MAX_HZ)
    return (librosa.hz_to_mel(frequency_hz) - low) / (high - low) * (N_MELS + 1) - 1
