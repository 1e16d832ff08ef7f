"""Overfitting a handful of real clips: does the generated sound of a clip belong to that clip's pictures?"""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..checkpoints.parts import build
from ..clip import ClipSpec
from ..dataset.extraction.extract import extract_dataset
from ..dataset.manifests.manifest import read_manifest
from ..dataset.shards.records import read_shard
from ..dataset.shards.schema import read_dataset
from ..generation.pipeline import Pipeline
from ..media.audio import resample, write_wav
from ..media.picture_reader import Squeeze
from ..media.video import read_clip
from ..mel import SAMPLE_RATE_HZ
from ..metrics.signal import envelope_correlation, measure_level
from ..plots.clip_pictures import clip_picture
from ..runtime.errors import InputError
from ..runtime.files import atomic_path, write_text
from ..runtime.randomness import seed_of
from ..runtime.work_plan import Deed, Item, Plan
from ..training.job import STAGES, TrainingJob

SPLITS = ("train", "test")  # seconds that training overfits; seconds that it never reads


def write_manifest(videos: Path, captions: Path, out: Path, learned_s: float, unheard_s: float) -> Path:
    """Write a manifest with every clip twice and return its path.

    Args:
        videos: not read here; the manifest's paths are relative to it.
        captions: a csv with id, caption and optionally objects.
        out: folder of manifest.csv.
        learned_s: seconds from the beginning, for training.
        unheard_s: seconds after those, for testing.

    Raises:
        InputError: the csv can't be read.
    """
    rows = []
    for row in read_manifest(captions):
        common = {"path": row.path, "caption": row.caption, "objects": ";".join(row.objects), "label": row.label}
        rows.append({"id": f"{row.id}-learned", **common, "split": SPLITS[0], "start": 0.0, "duration": learned_s})
        rows.append({"id": f"{row.id}-unheard", **common, "split": SPLITS[1], "start": learned_s,
                     "duration": unheard_s})
    path = out / "manifest.csv"
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def plan_clips(out: Path) -> Plan:
    """What :func:`extract_clips` and :func:`measure_pairs` write beside the run; nothing is written here."""
    shards = out / "shards"
    done, begun = (shards / "dataset.json").exists(), shards.exists()
    return Plan("clips to overfit", [
        Item("manifest.csv", Deed.REPLACE if (out / "manifest.csv").exists() else Deed.MAKE),
        Item("shards/", Deed.KEEP if done else Deed.GO_ON if begun else Deed.MAKE)],
        out, notes=["a run is trained on them, whose pairs/ get the generated sounds, their pictures and figures.json"])


def extract_clips(videos: Path, captions: Path, out: Path, grounder: dict, encoder: dict, spec: ClipSpec,
                  learned_s: float, unheard_s: float) -> Path:
    """Write manifest and shards into ``out`` and return the folder of shards.

    Args:
        videos, captions, out, learned_s, unheard_s: see :func:`write_manifest`.
        grounder, encoder: recipes.
        spec: of the features' frame rate and the sound's rate.
    """
    manifest = write_manifest(videos, captions, out, learned_s, unheard_s)
    extract_dataset(manifest, videos, out / "shards", build(grounder), build(encoder), spec.fps,
                    sample_rate_hz=spec.sample_rate_hz)
    return out / "shards"


def show_plan(job: TrainingJob, shards: Path) -> None:
    """Say what training would write, on shards that may not be there yet. Nothing is done."""
    if (shards / "dataset.json").exists():
        job.run()  # which says its plan
    else:
        items = [Item(name, Deed.MAKE, STAGES[name].plan(job)[0]) for name in job.stages]
        Plan(f"{job.exp}, seed {job.seed}", items, job.folder).show(job.console)


@dataclass
class Matrix:
    """Envelope correlations of generated with true sounds.

    Attributes:
        keys: of the n clips.
        correlation: (n, n), of the sound generated for clip i (rows) with the true sound of clip j.
    """

    keys: list[str]
    correlation: np.ndarray

    @property
    def diagonal(self) -> float:
        return float(np.mean(np.diag(self.correlation)))

    @property
    def others(self) -> float:
        n = len(self.keys)
        return float((self.correlation.sum() - np.trace(self.correlation)) / (n * n - n))

    @property
    def p(self) -> float:
        """The share of all pairings of generated with true clips whose mean correlation is at least the right one's.
        Exact for up to 8 clips (40,320 pairings); else from 40,000 random pairings and the right one."""
        n = len(self.keys)
        rows = np.arange(n)
        if n <= 8:
            pairings = np.array(list(itertools.permutations(range(n))))
        else:
            random = np.random.default_rng(0)
            pairings = np.array([rows, *(random.permutation(n) for _ in range(40_000))])
        means = self.correlation[rows, pairings].mean(axis=1)
        return float((means >= self.diagonal - 1e-12).mean())

    def as_dict(self) -> dict[str, Any]:
        return {"clips": self.keys, "correlation": self.correlation.round(4).tolist(),
                "own": round(self.diagonal, 4), "others": round(self.others, 4), "p": round(self.p, 5)}


def measure_pairs(pipeline: Pipeline, shards: Path, videos: Path, out: Path, seed: int,
                  console: Console) -> dict[str, Any]:
    """Generate for every record of both splits, write sound and pictures, and pair every sound with every clip.

    Args:
        pipeline: the trained model.
        shards: folder of the clips' features.
        videos: folder of the clips.
        out: folder to write to.
        seed: of sampling.
        console: prints one table a split.

    Returns:
        {split: figures}, as figures.json has them.

    Raises:
        InputError: a split has fewer than two clips.
    """
    info, report = read_dataset(shards), {}
    for split in SPLITS:
        records = sorted((r for s in info.shards(split) for r in read_shard(shards / s.name)), key=lambda r: r.key)
        if len(records) < 2:
            raise InputError(f"{shards}: split {split} has {len(records)} clips; pairing needs at least two")
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        sounds = []
        for record in records:
            sound = pipeline.generate_features(record, seed_of(seed, record.key))
            sounds.append(sound)
            write_wav(folder / f"{record.key}.wav", sound, record.sample_rate_hz)
            frames = read_clip(videos / record.source, start_s=record.start_s, duration_s=record.duration_s,
                               fps=record.fps, fits=[Squeeze(90, 160)], want_audio=False).frames[0]
            clip_picture(folder / f"{record.key}.png", frames, record.objects, record.probs, sound,
                         record.waveform[: len(sound)], sample_rate_hz=record.sample_rate_hz,
                         duration_s=len(sound) / record.sample_rate_hz, title=record.caption)
        levels = [measure_level(sound, info.sample_rate_hz) for sound in sounds]
        made, true = ([resample(wave, info.sample_rate_hz, SAMPLE_RATE_HZ) for wave in waves]  # the figures' rate
                      for waves in (sounds, [record.waveform for record in records]))
        matrix = Matrix([r.key for r in records], np.array(
            [[envelope_correlation(sound, other) for other in true] for sound in made]))
        report[split] = matrix.as_dict() | {
            "rms_dbfs": [round(x.rms_dbfs, 1) for x in levels], "silent": [x.silent for x in levels],
            "clipping_rate": [x.clipping_rate for x in levels],
        }
        console.print(_table(split, matrix))
    write_text(out / "figures.json", json.dumps(report, indent=1) + "\n")
    return report


def _table(split: str, matrix: Matrix) -> Table:
    table = Table(title=f"{split}: generated (rows) against true (columns); own {matrix.diagonal:.2f}, others "
                        f"{matrix.others:.2f}, p = {matrix.p:.4f}", title_justify="left")
    table.add_column("clip")
    for key in matrix.keys:
        table.add_column(key, justify="right")
    for key, row in zip(matrix.keys, matrix.correlation):
        table.add_row(key, *(f"{value:.2f}" for value in row))
    return table
