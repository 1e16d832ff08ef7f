"""Where a run's clips come from: shards that exist, or the embedded world, made on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..checkpoints.parts import build, class_of
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.schema import read_dataset
from ..dataset.shards.storage import Place, Root, place_of, with_cache
from ..runtime.errors import InputError


class DataSource(Protocol):
    """What a training job asks of its data. train_split, val_split, test_split name splits of the dataset."""

    train_split: str
    val_split: str
    test_split: str

    def describe(self) -> str:
        """One line for the plan: what, how much, where."""
        ...

    def prepare(self, spec: ClipSpec, grounder: dict, encoder: dict, console: Console) -> Root:
        """⇒ where the shards lie, made if they aren't there."""
        ...

    def video(self, record: ClipFeatures) -> Path | None:
        """The video that a clip was extracted from, where it is known and there."""
        ...

    def onsets_s(self, record: ClipFeatures) -> np.ndarray | None:
        """True onsets of a clip's sound, where they are known."""
        ...


@dataclass
class ShardData:
    """Shards made by data_prep/extract.py.

    root: their folder or URL. videos: the folder that they were extracted from, or None (then sample videos are not
    made). latents: the local folder for latent shards, or None: beside the shards. cache: of a URL's shards, a local
    folder to keep at most ``cache_gb`` (10^9 bytes) of them in, or None: nothing is kept.
    """

    root: str
    videos: str | None = None
    latents: str | None = None
    cache: str | None = None
    cache_gb: float = 100.0
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"

    def describe(self) -> str:
        info = read_dataset(self.root)
        counts = ", ".join(f"{info.records(split)} {split}" for split in info.splits)
        return f"{self.root}: {counts} clips at {info.fps:g} fps"

    def prepare(self, spec: ClipSpec, grounder: dict, encoder: dict, console: Console) -> Place:
        """Raises InputError where the model folder would name extractors of another kind than made the shards, so that
        it could not be used on a video after days of training."""
        place = place_of(self.root, Path(self.latents) if self.latents else None)
        info = read_dataset(place)
        made_by = {"grounder": (info.grounder, extractor_kind(grounder)),
                   "encoder": (info.encoder, extractor_kind(encoder))}
        wrong = [f"{role} {found}, while {role}={named}" for role, (found, named) in made_by.items()
                 if not found.startswith(f"{named}-")]
        if wrong:
            raise InputError(f"{self.root} was made by the {' and the '.join(wrong)} is configured; name those that "
                             "made it, with their settings (grounder=grounded_sam encoder=clip, for example)")
        return place if self.cache is None else with_cache(place, Path(self.cache), self.cache_gb, info.fingerprint)

    def video(self, record: ClipFeatures) -> Path | None:
        path = Path(self.videos) / record.source if self.videos else None
        return path if path and path.is_file() else None

    def onsets_s(self, record: ClipFeatures) -> np.ndarray | None:
        return None


@dataclass
class EmbeddedData:
    """The embedded world: scenes are rendered to mp4 files, and those go through extraction like anybody's.

    root: folder for both. counts: clips per split. seed: of the scenes (not of training). workers: processes.
    expected_s: how long making it took where that was measured.
    """

    root: str
    counts: dict[str, int]
    seed: int = 0
    workers: int = 2
    expected_s: float = 0.0
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"

    @property
    def videos(self) -> Path:
        return Path(self.root) / "videos"

    def describe(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        there = "made before" if (self.videos / "manifest.csv").exists() else "rendered now"
        return f"the embedded world in {self.root}: {counts} clips ({there})"

    def prepare(self, spec: ClipSpec, grounder: dict[str, Any], encoder: dict[str, Any], console: Console) -> Path:
        from ..dataset.extraction.extract import extract_dataset
        from ..embedded.world import write_world

        with Progress(console=console) as progress:
            task = progress.add_task("render scenes", total=sum(self.counts.values()))
            manifest = write_world(self.videos, self.counts, self.seed, self.workers,
                                   lambda done, total: progress.update(task, completed=done, total=total))
            task = progress.add_task("extract features", total=sum(self.counts.values()))
            ears_and_eyes = build(grounder), build(encoder)
            out = embedded_shards(Path(self.root), grounder, encoder, spec.fps)
            extract_dataset(manifest, self.videos, out, *ears_and_eyes, spec.fps, workers=self.workers,
                            progress=lambda done, total, *_: progress.update(task, completed=done, total=total))
        return out

    def video(self, record: ClipFeatures) -> Path | None:
        return self.videos / record.source

    def onsets_s(self, record: ClipFeatures) -> np.ndarray | None:
        from ..embedded.truth import read_truth

        return read_truth(self.videos / record.source).onsets_s()


def embedded_shards(root: Path, grounder: dict[str, Any], encoder: dict[str, Any], fps: float) -> Path:
    """Where the embedded world in ``root`` keeps the shards of these extractors, both given by their recipes."""
    return root / f"shards-{extractor_kind(grounder)}-{extractor_kind(encoder)}-{fps:g}fps"


def extractor_kind(recipe: dict[str, Any]) -> str:
    """The first word of an extractor's fingerprint: its class's ``kind``, or the module of a class that states none."""
    extractor = class_of(recipe["_target_"])
    return str(getattr(extractor, "kind", extractor.__module__.rpartition(".")[2]))
