"""Modules under the names that they had before they moved: imports of users' own code go on working, with a warning.

The table holds what documentation and own parts (conditioners, extractors, backbones, launchers) import. A class that a
file on disk names is found by checkpoints/parts.py.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]

# former name ⇒ today's, both within the package; a former package leads to the room that most of it went to
FORMER = {
    "atomic": "runtime.files", "cli": "runtime.cli", "device": "runtime.distributed", "errors": "runtime.errors",
    "processes": "runtime.distributed", "randomness": "runtime.randomness", "stage_module": "runtime.stage_module",
    "cluster": "runtime.cluster", "cluster.batch_script": "runtime.cluster.slurm",
    "model_folder": "checkpoints.model_folder", "released": "checkpoints", "released.registry": "checkpoints.registry",
    "checkpoint_file": "checkpoints.registry",
    "captions": "perception.captions", "features": "perception.features",
    "grounding": "perception", "grounding.base": "perception.base",
    "grounding.grounded_sam": "perception.grounded_sam",
    "encoders": "perception", "encoders.base": "perception.base", "encoders.clip": "perception.clip_encoder",
    "perception.t5_encoder": "perception.clip_encoder", "perception.siglip_encoder": "perception.clip_encoder",
    "manifests": "dataset.manifests", "manifests.manifest": "dataset.manifests.manifest",
    "manifests.vggsound": "dataset.manifests.folder", "dataset.manifests.vggsound": "dataset.manifests.folder",
    "extraction": "dataset.extraction", "extraction.extract": "dataset.extraction.extract",
    "shards": "dataset.shards", "shards.schema": "dataset.shards.schema", "shards.writer": "dataset.shards.records",
    "shards.batch": "dataset.shards.batch",
    "shards.datamodule": "dataset.shards.datamodule",
    "condition": "conditioners", "condition.encoder": "conditioners.vta_sam",
    "conditioners.base": "diffusion.condition",
    "diffusion.lit": "diffusion.latent_diffusion", "vae.lit": "training.codec_stages",
    "vae.mel_vae": "training.codec_stages",
    "diffusion.positions": "diffusion.unet", "generation.attention_maps": "training.figures_stage",
    "vocoder.griffin_lim": "vocoder.vocoders", "vocoder.hifigan": "vocoder.vocoders",
    "pipeline": "generation.pipeline", "importers.tango": "importers.systems", "importers.vta_ldm": "importers.systems",
    "importers.audioldm": "importers.systems", "importers.tensor_mapping": "importers.components",
    "evaluation.request": "evaluation.evaluate", "study.plan": "study.record", "study.run": "study.sweep",
    "evaluation.metric_docs": "evaluation.metric_table", "evaluation.measurements": "evaluation.metric",
    "evaluation.listening.report": "evaluation.listening.analysis",
    "evaluation.listening.stimuli": "evaluation.listening.study_files",
    "metrics.backbones.base": "metrics.backbones", "metrics.released_backbones": "metrics.backbones",
    "metrics.class_scores": "metrics.set_scores", "metrics.frechet": "metrics.set_scores",
    "metrics.envelope": "metrics.signal", "perception.sam": "perception.grounded_sam",
    "metrics.flow": "metrics.alignment", "metrics.statistics": "metrics.intervals",
    "training.data": "training.data_sources", "training.stages": "training.job",
    "embedded.tagger_training": "embedded.sound_training", "embedded.oracle": "embedded.truth",
    "training.preemption": "runtime.cluster.preemption", "dataset.extraction.progress": "runtime.progress",
}


class _Alias(Loader):
    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_spec  # the import system has put the alias's in its place


def today(former: str) -> str | None:
    """A former module's name today, both within the package; None: it is no former one."""
    if former in FORMER:
        return FORMER[former]
    package, _, leaf = former.rpartition(".")
    return f"{FORMER[package]}.{leaf}" if package in FORMER else None


class _FormerModules(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None,
                  ) -> ModuleSpec | None:
        package, _, former = fullname.partition(".")
        name = today(former) if package == PACKAGE else None
        if name is None:
            return None
        is_package = any(other.startswith(f"{former}.") for other in FORMER)
        if not is_package:  # a package's name is only on the way to a module's
            warnings.warn(f"{fullname} has moved to {PACKAGE}.{name}; import it there", FutureWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(f"{PACKAGE}.{name}"), is_package=is_package)


def install() -> None:
    """Let the import system know the former names. Ahead of the search for files: a former package's alias has a folder
    in which that search would find its modules a second time, under the former name."""
    if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FormerModules())
