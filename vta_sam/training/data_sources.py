"""Where a run's clips come from: shards that exist, or the embedded world, made on first use."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from ..checkpoints.parts import build, differences, kind_of
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.schema import DatasetInfo, read_dataset, source_video
from ..dataset.shards.storage import Root, Storage, storage_of, with_cache
from ..mel import FIGURES
from ..metrics.onsets import detect_onsets
from ..perception.base import require_known
from ..perception.features import build_features
from ..runtime.errors import InputError
from ..runtime.progress import JobProgress

Recipe = dict[str, Any]


class DataSource(Protocol):
    """The contract of a training job's data. train_split, val_split, test_split name splits of the dataset."""

    train_split: str
    val_split: str
    test_split: str

    def describe(self) -> str:
        """One line for the plan: what, how much, where."""
        ...

    # A source may say by ``identity() -> str`` what its clips are, wherever they lie. Without it a run knows them by
    # the source's settings.

    def recipes(self, grounder: Recipe | None, encoder: Recipe | None) -> tuple[Recipe, Recipe]:
        """The recipes of the grounder and the encoder that make, or made, the features.

        Args:
            grounder: as the user names it; None: not named.
            encoder: likewise.
        """
        ...

    def prepare(self, spec: ClipSpec, grounder: Recipe, encoder: Recipe, console: Console) -> Root:
        """⇒ where the shards lie, made if they aren't there.

        A source that makes them may take ``progress`` too, the job's :class:`~vta_sam.runtime.progress.JobProgress`,
        and say by an attribute ``expected_s`` how many seconds that took where it was measured.
        """
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

    def identity(self) -> str:
        """The dataset's fingerprint."""
        return read_dataset(self.root).fingerprint

    def describe(self) -> str:
        info = read_dataset(self.root)
        counts = ", ".join(f"{info.records(split)} {split}" for split in info.splits)
        return f"{self.root}: {counts} clips at {info.fps:g} fps"

    def recipes(self, grounder: Recipe | None, encoder: Recipe | None) -> tuple[Recipe, Recipe]:
        """Recipes as dataset.json has them, and as the user names them where they agree with it.

        Raises:
            InputError: other extractors are named than made the shards, so that the model could not be used on a video
                after days of training; or dataset.json names a class that this program doesn't trust.
        """
        info, named = read_dataset(storage_of(self.root)), {"grounder": grounder, "encoder": encoder}
        wrong = [f"{role}: {difference}" for role, recipe in named.items() if recipe and role in info.recipes
                 for difference in differences(recipe, info.recipes[role])]
        if wrong:
            raise InputError(f"{self.root} was made by other extractors than are named ({'; '.join(wrong)}); leave out "
                             "grounder= and encoder=: the dataset knows what made it")
        found = {role: recipe or info.recipes.get(role) for role, recipe in named.items()}
        for role, recipe in found.items():
            if recipe is not None and named[role] is None:
                require_known(recipe, f"{storage_of(self.root).where('dataset.json')}: recipes.{role}")
        return self._of_old_dataset(info, found["grounder"], found["encoder"])

    def _of_old_dataset(self, info: DatasetInfo, grounder: Recipe | None, encoder: Recipe | None,
                        ) -> tuple[Recipe, Recipe]:
        """Recipes where dataset.json may have none: those named, or the tiny ones, if their kind made the shards."""
        recipes = grounder or {"_target_": "tiny_grounder"}, encoder or {"_target_": "tiny_encoder"}
        made_by = {"grounder": (info.grounder, recipes[0]), "encoder": (info.encoder, recipes[1])}
        wrong = [f"{role} {found}, while {role}={kind_of(recipe)}" for role, (found, recipe) in made_by.items()
                 if role not in info.recipes and not found.startswith(f"{kind_of(recipe)}-")]
        if wrong:
            raise InputError(f"{self.root} was made by the {' and the '.join(wrong)} is configured; name those that "
                             "made it, with their settings (grounder=grounded_sam encoder=clip, for example)")
        return recipes

    def prepare(self, spec: ClipSpec, grounder: Recipe, encoder: Recipe, console: Console) -> Storage:
        """Raises InputError as :meth:`recipes` does."""
        self.recipes(grounder, encoder)
        storage = storage_of(self.root, Path(self.latents) if self.latents else None)
        info = read_dataset(storage)
        if info.lacks:
            warnings.warn(f"{storage}: {info.lacks}")
        if self.cache is None:
            return storage
        return with_cache(storage, Path(self.cache), self.cache_gb, info.fingerprint)

    def video(self, record: ClipFeatures) -> Path | None:
        path = source_video(Path(self.videos), record) if self.videos else None
        return path if path and path.is_file() else None

    def onsets_s(self, record: ClipFeatures) -> np.ndarray | None:
        return None


@dataclass
class EmbeddedData:
    """The embedded world: scenes are rendered to mp4 files, and those go through extraction like anybody's.

    root: folder for both. counts: clips per split. seed: of the scenes (not of training). workers: processes.
    expected_s: how long making it took where that was measured: its share of the job. features: {name: recipe} of
    further features per frame.
    """

    root: str
    counts: dict[str, int]
    seed: int = 0
    workers: int = 2
    expected_s: float = 0.0
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    features: dict[str, Recipe] = field(default_factory=dict)

    @property
    def videos(self) -> Path:
        return Path(self.root) / "videos"

    def identity(self) -> str:
        """12 hex digits that change with the scenes and the features."""
        scenes = {"counts": self.counts, "seed": self.seed, "features": self.features}
        return hashlib.sha256(json.dumps(scenes, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        there = "made before" if self.made else "rendered now"
        return f"the embedded world in {self.root}: {counts} clips ({there})"

    @property
    def made(self) -> bool:
        """Whether the videos are all there."""
        return (self.videos / "manifest.csv").exists()

    def recipes(self, grounder: Recipe | None, encoder: Recipe | None) -> tuple[Recipe, Recipe]:
        """Recipes as named. Raises InputError where one is not."""
        if grounder is None or encoder is None:
            raise InputError("the embedded world is extracted by this program: name grounder= and encoder= (tiny, for "
                             "example)")
        return grounder, encoder

    def prepare(self, spec: ClipSpec, grounder: Recipe, encoder: Recipe, console: Console,
                progress: JobProgress | None = None) -> Path:
        from ..dataset.extraction.extract import extract_dataset
        from ..embedded.world import write_world

        progress, clips = progress or JobProgress(console), sum(self.counts.values())
        with progress.phase("render scenes", clips, last=False) as phase:
            manifest = write_world(self.videos, self.counts, self.seed, self.workers,
                                   lambda done, total: phase.update(done))
        with progress.phase("extract features", clips) as phase:
            extractors = build(grounder), build(encoder)
            out = embedded_shards(Path(self.root), grounder, encoder, spec, list(self.features))
            extract_dataset(manifest, self.videos, out, *extractors, spec.fps, workers=self.workers,
                            features=build_features(self.features), sample_rate_hz=spec.sample_rate_hz,
                            progress=lambda done, total, *_: phase.update(done))
        return out

    def video(self, record: ClipFeatures) -> Path | None:
        return source_video(self.videos, record)

    def onsets_s(self, record: ClipFeatures) -> np.ndarray | None:
        from ..embedded.truth import read_truth

        return read_truth(source_video(self.videos, record)).onsets_s()


def embedded_shards(root: Path, grounder: Recipe, encoder: Recipe, spec: ClipSpec, features: Sequence[str] = ()
                    ) -> Path:
    """Where the embedded world in ``root`` keeps the shards of the extractors of these recipes.

    Args:
        root: of the world.
        grounder, encoder: recipes.
        spec: its frame rate and, where it is not 16 kHz, its sample rate are in the name.
        features: names of further features per frame.
    """
    rate = [] if spec.sample_rate_hz == FIGURES.sample_rate_hz else [f"{spec.sample_rate_hz}hz"]
    return root / "-".join(["shards", kind_of(grounder), kind_of(encoder), f"{spec.fps:g}fps", *rate,
                            *sorted(features)])


def true_onsets(source: DataSource, record: ClipFeatures, waveform: np.ndarray) -> np.ndarray:
    """Onsets of a clip's sound, in seconds: the truth where the data source has it, else detected ones.

    Args:
        source: of the clip.
        record: the clip.
        waveform: its true sound, (samples,).
    """
    onsets_s = source.onsets_s(record)
    return onsets_s if onsets_s is not None else detect_onsets(waveform)
