"""What a finished run shows: sample videos, pictures of them, attention, the curve over steps, a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..checkpoints.model_folder import FIGURE_COLUMNS
from ..generation.attention_maps import attention_maps
from ..generation.pipeline import Pipeline
from ..media.audio import write_wav
from ..media.muxing import mux
from ..media.picture_reader import Squeeze
from ..media.video import read_clip
from ..plots.clip_pictures import attention_picture, clip_picture, curve_picture
from .data_sources import DataSource
from .figures import HeldOut

PICTURE_SIZE = (96, 128)


def show(folder: Path, pipeline: Pipeline, clips: HeldOut, sounds: np.ndarray, source: DataSource, diffusion: Path,
         samples: int) -> None:
    """Write ``folder``/samples (mp4, png), generated/ (wav), attention.png and curve.png.

    sounds (n, samples): generated for ``clips``. diffusion: stage 3's folder, whose log has the curve.
    """
    for name in ("samples", "generated"):
        (folder / name).mkdir(exist_ok=True)
    rate_hz = pipeline.spec.sample_rate_hz
    for i, record in enumerate(clips.records):
        write_wav(folder / "generated" / f"{record.key}.wav", sounds[i], rate_hz)
    for i, record in enumerate(clips.records[:samples]):
        video = source.video(record)
        if video is None:
            continue
        frames = read_clip(video, start_s=record.start_s, duration_s=pipeline.spec.duration_s, fps=pipeline.spec.fps,
                           fits=[Squeeze(*PICTURE_SIZE)], want_audio=False).frames[0]
        mux(video, sounds[i], rate_hz, folder / "samples" / f"{record.key}.mp4")
        clip_picture(folder / "samples" / f"{record.key}.png", frames, record.objects, record.probs, sounds[i],
                     record.waveform[: len(sounds[i])], clips.onsets_s[i], duration_s=pipeline.spec.duration_s,
                     title=record.caption)
    maps = attention_maps(pipeline, clips.batch.select([0]), seed=0)
    if maps:
        attention_picture(folder / "attention.png", maps, title=f"cross-attention, {clips.records[0].caption}")
    steps, curves = validation_curve(diffusion)
    if steps:
        curve_picture(folder / "curve.png", steps, curves, ylabel="on validation clips")


def validation_curve(diffusion: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Timing figures over steps, read from stage 3's csv logs ⇒ (steps, {figure: values}); empty where none are."""
    names = ("val/envelope_correlation", "val/onset_f1")
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(diffusion.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1])):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found = {name: float(row[name]) for name in names if row.get(name)}
                if found:
                    rows[int(row["step"])] = found  # a resumed run's later log wins
    steps = sorted(rows)
    return [step + 1 for step in steps], {
        name.removeprefix("val/"): [rows[s].get(name, float("nan")) for s in steps] for name in names
        if any(name in row for row in rows.values())
    }


def figures_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """figures.json ⇒ rows of (figure, score, control, ceiling), the last ones left out where there are none."""
    timing, ceiling = figures["timing"], figures["ceiling"]
    rows: list[tuple[str, ...]] = []
    for name, shown in (("envelope_correlation", "envelope correlation"), ("onset_f1", "onset F1")):
        rows.append((shown, *map(_text, (timing[name]["score"], timing[name]["control"], ceiling[name]["score"]))))
        rows.append(("  score − control", _text(timing[name]["score_minus_control"])))
    if "sound_class" in figures:
        found = figures["sound_class"]
        rows.append((f"sound class, n={found['score']['n']}", _text(found["score"]), f"chance {found['chance']:.2f}",
                     _text(found["ceiling"])))
    if "swap" in figures:
        swap, kept = figures["swap"], figures["swap"]["timing"]["envelope_correlation"]
        rows.append(("word swapped: heard", _text(swap["follows_the_new_word"])))
        rows.append(("  its envelope corr.", _text(kept["score"]), _text(kept["control"])))
    rows.append(("VAE mel error share", f"{figures['vae']['mel_error_share']:.3f}"))
    generated = figures["level"]["generated"]
    rows.append(("silent, clipped", f"{generated['silent_clips']:.3f}, {generated['clipping_rate']:.1e}"))
    minutes = sum(figures["seconds"].values()) / 60
    rows.append(("time, peak memory", f"{minutes:.1f} min, {figures['peak_memory_gb']} GB"))
    return rows


def figures_title(figures: dict[str, Any]) -> str:
    return f"{figures['exp']}: {figures['clips']} held-out clips, seed {figures['seed']}, mean [95 % interval]"


def figures_table(figures: dict[str, Any]) -> Table:
    """figures.json ⇒ what is printed at the end of a run: means with 95 % intervals, within 80 columns."""
    table = Table(title=figures_title(figures), title_justify="left", box=None, pad_edge=False)
    for column in FIGURE_COLUMNS:
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for row in figures_rows(figures):
        table.add_row(*row)
    return table


def _text(interval: dict[str, Any]) -> str:
    if interval["mean"] is None:
        return "not defined"
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
