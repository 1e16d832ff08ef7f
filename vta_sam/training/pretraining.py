"""Stages between the VAE and the diffusion: each trains one part of a conditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L

from ..conditioners.diff_foley import ClassifierTraining, ContrastivePretraining
from ..conditioners.foleycrafter import OnsetTraining
from ..conditioners.vta_sam_pretraining import ConditionPretraining
from ..dataset.shards.batch import Augmentation
from .optimisation import AdamWithWarmup

Make = Callable[[Any, dict[str, float], Augmentation, AdamWithWarmup, float], L.LightningModule]


@dataclass(frozen=True)
class PartTraining:
    """label: what the progress bar says. monitor: the figure that chooses the checkpoint, and "min" or "max".
    module: (conditioner, loss weights, augmentation, optimiser, latent scale) ⇒ what is fitted. on_latents: reads
    latent shards, so a VAE comes first.
    """

    label: str
    monitor: tuple[str, str]
    module: Make
    on_latents: bool = False


def _condition(conditioner: Any, weights, augment, optimise, scale) -> L.LightningModule:
    return ConditionPretraining(conditioner.encoder, weights, augment, optimise)


def _contrastive(conditioner: Any, weights, augment, optimise, scale) -> L.LightningModule:
    return ContrastivePretraining(conditioner.encoder, weights, optimise)


def _classifier(conditioner: Any, weights, augment, optimise, scale) -> L.LightningModule:
    return ClassifierTraining(conditioner.classifier, conditioner.encoder, scale, optimise)


def _onsets(conditioner: Any, weights, augment, optimise, scale) -> L.LightningModule:
    return OnsetTraining(conditioner.onsets, weights["onset"], optimise)


PRETRAINING = {
    "condition": PartTraining("2 condition encoder", ("val/loss", "min"), _condition),
    "contrastive": PartTraining("2 contrastive encoder", ("val/loss", "min"), _contrastive),
    "classifier": PartTraining("2 alignment classifier", ("val/loss", "min"), _classifier, on_latents=True),
    "onsets": PartTraining("2 onset predictor", ("val/loss", "min"), _onsets),
}
