"""Stages between the VAE and the diffusion, each of which trains one part of a conditioner; and stage ``sync``, whose
network measures and makes no sound."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from ..checkpoints.model_folder import ModelRecipe, load_weights
from ..checkpoints.parts import build, class_of
from ..clip import ClipFeatures, ClipSpec
from ..conditioners.diff_foley import ClassifierTraining, ContrastivePretraining
from ..conditioners.foleycrafter import OnsetTraining
from ..conditioners.vta_sam_pretraining import ConditionPretraining
from ..dataset.shards.batch import Augmentation
from ..dataset.shards.datamodule import consecutive
from ..dataset.shards.reader import ShardReader
from ..diffusion.condition import Conditioner, Pretrained
from ..diffusion.objective import Objective, VPrediction
from ..metrics.sync_network import (
    IN_STEP_STEPS, LAGS, MAX_LAG_STEPS, STEP_S, SyncDraws, SyncNetwork, degraded, figures_mels, lag_logits,
    pair_figures, shifted, sync_losses,
)
from ..runtime.distributed import Processes
from ..runtime.errors import InputError
from ..runtime.randomness import seed_of
from ..runtime.stage_module import StageModule
from .codec_stages import encode_latents, latent_scale, load_codec, planned_codec, require_conditioner_latent
from .run_folder import StageFolder, with_dimensions
from .stage import JobSettings, Stage, StageContext, StageSettings


@dataclass(frozen=True)
class PartInputs:
    """Inputs for building the module of a part.

    Attributes:
        spec: shape and rate of a clip.
        conditioner: the whole one, with the parts of earlier stages filled.
        settings: the stage's numbers: weights of loss terms, optimiser.
        augment: hides parts of the condition in training.
        latent_scale: factor on latents, where the stage reads them; else 1.
        objective: of the diffusion that follows, for a stage that reads noisy latents.
    """

    spec: ClipSpec
    conditioner: Any
    settings: StageSettings
    augment: Augmentation
    latent_scale: float
    objective: Objective

    def part(self, stage: str) -> Any:
        """The part of the conditioner that a stage trains, wherever the conditioner keeps it."""
        return getattr(self.conditioner, self.conditioner.pretrained[stage].attribute)


class PartStage(Stage):
    """Trains the part of a conditioner that ``Conditioner.pretrained[name]`` describes. A subclass names itself and
    builds its module.

    Attributes:
        monitor: the figure that chooses the checkpoint, and "min" or "max".
        on_latents: whether it reads latent shards, so that a VAE comes first.
    """

    replaceable = True
    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")
    on_latents: ClassVar[bool] = False

    @abstractmethod
    def module(self, inputs: PartInputs) -> L.LightningModule:
        """The module that is fitted."""

    def describe(self, model: ModelRecipe, part: Pretrained, conditioner: dict[str, Any]) -> None:
        """Fill in the part's entries of the model folder. conditioner: the whole one's recipe."""
        model.pretrained = {part.part: conditioner}

    def settings(self, job: JobSettings) -> dict[str, Any]:
        latents: dict[str, Any] = {"vae": job.given.get("vae")} if self.on_latents else {}
        if self.on_latents and job.objective["_target_"] != "v_prediction":  # older folders have no other
            latents["objective"] = job.objective
        return job.conditioner_settings() | {"fit": job.fit[self.name]} | latents

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        return {"conditioner": job.conditioner}

    def needs(self, job: JobSettings) -> dict[str, str]:
        vae = {"vae": "a VAE, whose latents it reads"} if self.on_latents else {}
        return vae | {stage: f"what stage {stage} trains" for stage in self._earlier(job)
                      if job.conditioner_parts[stage].required}

    def reads(self, job: JobSettings) -> Sequence[str]:
        return [*(["vae"] if self.on_latents else []), *self._earlier(job)]

    def check(self, job: JobSettings) -> None:
        if self.name not in job.conditioner_parts:
            kind = class_of(job.conditioner["_target_"])
            raise InputError(f"{kind.__name__} has nothing that stage {self.name} could train; leave it out of "
                             f"stages= and {self.name}=")
        if self.on_latents:
            require_conditioner_latent(job.conditioner, planned_codec(job))

    def _earlier(self, job: JobSettings) -> list[str]:
        """Stages of the same conditioner that come before this one."""
        stages = list(job.conditioner_parts)
        return stages[:stages.index(self.name)] if self.name in stages else []

    def train(self, job: JobSettings, context: StageContext) -> None:
        conditioner, _ = job.network_recipes(context.info)
        earlier = {stage: folder for stage, folder in job.pretrained.items() if stage in self._earlier(job)}
        self.train_part(context, self.folder(job), job.numbers(self.name), conditioner, job.augment,
                        vae=job.model_of("vae") if self.on_latents else None, pretrained=earlier,
                        objective=job.objective)

    def train_part(self, context: StageContext, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any],
                   augment: dict[str, float], vae: Path | None = None,
                   pretrained: dict[str, Path] | None = None, objective: dict[str, Any] | None = None) -> None:
        """Train the part and write ``folder.model`` with it.

        Args:
            context: shared by all stages.
            folder: the stage's.
            settings: the stage's numbers.
            recipe: of the whole conditioner.
            augment: arguments of Augmentation.
            vae: the VAE's model folder, for a stage on latents.
            pretrained: {stage: model folder} of parts that are trained already.
            objective: recipe of the diffusion's; None: v prediction.
        """
        latents, scale = None, 1.0
        if self.on_latents:
            assert vae is not None, "a stage on latents names the VAE in needs()"
            codec, vae_recipe = load_codec(vae, context.spec)
            latents = encode_latents(context, codec, settings.fit.accelerator)
            scale = latent_scale(vae_recipe, latents, split=context.source.train_split)
        data = context.datamodule(self.name, settings, latents)
        with context.seeded(self.name):
            conditioner = build_conditioner(context, recipe)
            load_pretrained(conditioner, pretrained or {})
            module = self.module(PartInputs(context.spec, conditioner, settings, Augmentation(**augment), scale,
                                            build(objective) or VPrediction()))
        context.fit(module, data, folder, settings, self.name, self.monitor)
        part = conditioner.pretrained[self.name]
        model = ModelRecipe(clip=context.spec.settings(), about=context.about(self.name, settings))
        self.describe(model, part, recipe)
        context.save(folder, model, {part.part: getattr(conditioner, part.attribute)})


def build_conditioner(context: StageContext, recipe: dict[str, Any]) -> Conditioner:
    """A conditioner of a recipe. The clip is handed over afterwards: Hydra would turn it into a dict."""
    return build(recipe, _partial_=True)(spec=context.spec)


def load_pretrained(conditioner: Conditioner, folders: dict[str, Path]) -> None:
    """Fill the parts of a conditioner that stages of their own have trained, {stage: model folder}."""
    for stage, folder in folders.items():
        part = conditioner.pretrained[stage]
        load_weights(getattr(conditioner, part.attribute), folder, part.part)


class ConditionStage(PartStage):
    """VTA-SAM's and VTA-LDM's encoder, from the sound's energy and onsets."""

    name = "condition"

    def module(self, inputs: PartInputs) -> L.LightningModule:
        return ConditionPretraining(inputs.part(self.name), inputs.settings.weights, inputs.augment,
                                    inputs.settings.optimise(), inputs.spec.mel)

    def describe(self, model: ModelRecipe, part: Pretrained, conditioner: dict[str, Any]) -> None:
        model.condition_encoder = conditioner[part.attribute]


class ContrastiveStage(PartStage):
    """Diff-Foley's audio-visual encoder."""

    name = "contrastive"

    def module(self, inputs: PartInputs) -> L.LightningModule:
        return ContrastivePretraining(inputs.part(self.name), inputs.settings.weights, inputs.settings.optimise(),
                                      inputs.spec.mel)


class ClassifierStage(PartStage):
    """Diff-Foley's alignment classifier, of noisy latents."""

    name = "classifier"
    on_latents = True

    def check(self, job: JobSettings) -> None:
        super().check(job)
        if self.name in job.stages and job.numbers(self.name).batch_size * Processes.of_environment().world < 2:
            raise InputError("fit.classifier.batch_size=1: the classifier learns to tell a clip's own pictures from "
                             "those of another clip in the batch; give 2 or more")

    def module(self, inputs: PartInputs) -> L.LightningModule:
        return ClassifierTraining(inputs.part(self.name), inputs.part(ContrastiveStage.name), inputs.latent_scale,
                                  inputs.settings.optimise(), inputs.objective)


class OnsetStage(PartStage):
    """FoleyCrafter's onset predictor."""

    name = "onsets"

    def module(self, inputs: PartInputs) -> L.LightningModule:
        return OnsetTraining(inputs.part(self.name), inputs.settings.weights["onset"], inputs.settings.optimise(),
                             inputs.spec.mel)


HELD_OUT_CLIPS = 1024  # of the test split, the first ones, on which a sync network is measured


class SyncTraining(StageModule):
    """Find the lag of a clip's sound, which is shifted at random, and reject other clips' sounds.

    Args:
        network: to train.
        weights: of the loss terms, under the names they are logged by: lag, other.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
    """

    def __init__(self, network: SyncNetwork, weights: dict[str, float], optimise: Callable):
        super().__init__(optimise)
        self.network, self.weights, self.draw = network, weights, SyncDraws()

    def measure(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """⇒ (the loss, its terms and the share of lags found within 40 ms)."""
        batch = batch.with_draws(self.draw)
        assert batch.waveform is not None, "stage sync reads the waveform itself"
        draws, spec = batch.draws, batch.spec
        with torch.no_grad():
            mels = shifted(figures_mels(batch.waveform, spec.sample_rate_hz), draws["shift"], draws["filling"])
            if self.training:
                mels = degraded(mels, draws)
        real = (batch.column_mask.sum(dim=1) * (spec.column_s / STEP_S)).round().clamp(max=mels.shape[1]).long()
        pictures = self.network.pictures(batch.frame_embedding, batch.probs, batch.object_embedding, mels.shape[1])
        logits = lag_logits(pictures, self.network.sound(mels), real)
        keys = torch.tensor([seed_of(key) for key in batch.keys], device=mels.device)
        own, other = sync_losses(logits, draws["shift"], keys[:, None] != keys)
        found = logits.diagonal().T[:, :LAGS].argmax(dim=1) - MAX_LAG_STEPS
        share = ((found - draws["shift"]).abs() <= IN_STEP_STEPS).float().mean()
        return self.weights["lag"] * own + self.weights["other"] * other, {"lag": own, "other": other, "found": share}


class SyncStage(Stage):
    """A network that tells whether a sound is in step with pictures, for ``sync=`` of evaluations. No other stage reads
    it: a checkpoint that was chosen by it could not be judged by it."""

    name = "sync"

    def settings(self, job: JobSettings) -> dict[str, Any]:
        return job.common_settings() | {"grounder": job.grounder, "encoder": job.encoder,
                                        "sync": job.networks.get("sync"), "fit": job.fit["sync"]}

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        return {"networks.sync": job.networks.get("sync")}

    def check(self, job: JobSettings) -> None:
        recipe = job.networks.get("sync")
        kind = class_of(recipe["_target_"]) if recipe else None
        if not (isinstance(kind, type) and issubclass(kind, SyncNetwork)):
            raise InputError("stage sync trains networks.sync, and there is none; give +exp=sync, which names it")

    def train(self, job: JobSettings, context: StageContext) -> None:
        about = {"world_seed": job.data["seed"]} if "seed" in job.data else {}
        train_sync(context, self.folder(job), job.numbers(self.name), job.networks["sync"], job.grounder, job.encoder,
                   about)


def train_sync(context: StageContext, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any],
               grounder: dict[str, Any] | None = None, encoder: dict[str, Any] | None = None,
               about: dict[str, Any] | None = None) -> None:
    """Train a sync network and write ``folder.model`` with it, and with its accuracies on the test split.

    Args:
        context: shared by all stages.
        folder: the stage's.
        settings: the stage's numbers.
        recipe: of the network; ``from_data`` stands for the dataset's dimensions.
        grounder, encoder: recipes of the extractors.
        about: further facts for the model card.

    Raises:
        InputError: the dataset has no test split.
    """
    data, split = context.datamodule("sync", settings), context.source.test_split
    clips = min(context.info.records(split), HELD_OUT_CLIPS)  # a dataset without that split is refused before training
    recipe = with_dimensions(recipe, context.info.dimensions)
    with context.seeded("sync"):
        module = SyncTraining(build(recipe), settings.weights, settings.optimise())
    context.fit(module, data, folder, settings, "sync", ("val/loss", "min"))

    network = module.network.cpu().eval()

    def measured() -> dict[str, Any]:
        with context.progress.phase("held-out pairs", clips) as phase:
            return pair_figures(network, _counted(data.reader(split), clips, phase.advance))

    held_out = {"split": split, "clips": clips, **context.processes.on_first_rank(measured)}
    facts = context.about("sync", settings) | (about or {}) | {"held_out": held_out}
    context.save(folder, ModelRecipe(clip=context.spec.settings(), sync=recipe, grounder=grounder, encoder=encoder,
                                     about=facts, features=context.info.trained_on), {"sync": network})


def _counted(reader: ShardReader, clips: int, advance: Callable[[int], None]) -> Iterator[ClipFeatures]:
    for shard, index in islice(consecutive(reader.counts), clips):
        yield reader.record(shard, index)[0]
        advance(1)
