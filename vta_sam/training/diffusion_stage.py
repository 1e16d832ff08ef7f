"""Stage ``diffusion``: the latent diffusion model, and the model folder with everything that generation needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.model_folder import ModelRecipe, read_recipe
from ..checkpoints.parts import build, class_of, short_name, sketch
from ..dataset.shards.batch import Augmentation, collate, window_of
from ..dataset.shards.datamodule import ShardDataModule, consecutive
from ..diffusion.condition import Conditioner, Denoiser, connect, require_kind, require_latent, require_tokens
from ..diffusion.latent_diffusion import LatentDiffusion
from ..diffusion.objective import Objective
from ..diffusion.sampler import BaseSampler
from ..generation.build import load_vocoder
from ..generation.pipeline import Pipeline
from ..importers.named_models import named_folder
from ..media.audio import resample
from ..mel import SAMPLE_RATE_HZ
from ..runtime.errors import InputError
from ..runtime.randomness import seed_of
from ..vae.codec import MelCodec
from .callbacks import Reference, ValidationSamples
from .codec_stages import encode_latents, latent_scale, load_codec, planned_codec, require_conditioner_latent
from .data_sources import true_onsets
from .part_stages import build_conditioner, load_pretrained
from .run_folder import StageFolder
from .stage import JobSettings, Stage, StageContext, StageSettings, written_bytes
from .warm_start import WarmStart

MONITOR = ("val/envelope_correlation", "max")


@dataclass(frozen=True)
class TrainedFolders:
    """Model folders of trained parts.

    Attributes:
        vae: of the VAE.
        pretrained: {stage: folder} of the conditioner's parts.
        init: of a denoiser and conditioner to start from, or None.
        vocoder: of a vocoder with weights, or None: the VAE's.
    """

    vae: Path
    pretrained: dict[str, Path] = field(default_factory=dict)
    init: Path | None = None
    vocoder: Path | None = None

    def licences(self) -> dict[str, str]:
        """{setting: licence} of the folders that state one."""
        folders = {"vae": self.vae, "init": self.init, "vocoder": self.vocoder, **self.pretrained}
        licences = {name: read_recipe(folder).about.get("licence") for name, folder in folders.items() if folder}
        return {name: licence for name, licence in licences.items() if licence}


@dataclass(frozen=True)
class DiffusionParts:
    """The recipes of the diffusion model.

    Attributes:
        denoiser, conditioner, objective: recipes.
        dropout, augment: see LatentDiffusion.
        freeze: whether pretrained parts keep their weights.
        starts: trained parts.
        sampler, vocoder: recipes for the finished model.
        validation: {clips, steps} of sampling while training.
        grounder, encoder: recipes that the model folder names for generation.
    """

    denoiser: dict[str, Any]
    conditioner: dict[str, Any]
    objective: dict[str, Any]
    dropout: float
    augment: dict[str, float]
    freeze: bool
    starts: TrainedFolders
    sampler: dict[str, Any]
    vocoder: dict[str, Any]
    validation: dict[str, int]
    grounder: dict[str, Any] | None
    encoder: dict[str, Any] | None


class DiffusionStage(Stage):
    name = "diffusion"

    def settings(self, job: JobSettings) -> dict[str, Any]:
        settings = job.conditioner_settings() | {
            "fit": job.fit[self.name], "unet": job.denoiser_recipe, "objective": job.objective,
            "validation": job.validation, "freeze": job.freeze, "pretrained": bool(job.pretrained),
            "sampler": job.sampler, "vocoder": job.vocoder, "vae": job.given.get("vae"),
            "condition": job.given.get("condition"), "init": job.init}
        return settings | ({"vocoder_from": job.vocoder_from} if job.vocoder_from else {})

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        return {"vocoder": job.vocoder, "denoiser" if job.denoiser else "networks.unet": job.denoiser_recipe,
                "objective": job.objective, "sampler": job.sampler, "grounder": job.grounder, "encoder": job.encoder,
                "conditioner": job.conditioner}

    def needs(self, job: JobSettings) -> dict[str, str]:
        return {"vae": "a VAE"} | ({} if job.init else self._required_parts(job))

    def reads(self, job: JobSettings) -> Sequence[str]:
        return ["vae", *job.conditioner_parts, "init", "vocoder_from"]

    def check(self, job: JobSettings) -> None:
        _, objective = build_sampling(job.sampler, job.objective)
        kind = class_of(job.conditioner["_target_"])
        require_kind(class_of(job.denoiser_recipe["_target_"]), kind)
        if kind.is_guided(job.conditioner) and type(objective).score_gain is Objective.score_gain:
            objective.score_gain(torch.zeros(1))  # which says that there is none, and what to do
        vae = job.model_of("vae") if "vae" in job.given else None
        weights = vocoder_folder(job.vocoder, vae, named_folder(job.vocoder_from) if job.vocoder_from else None)
        if job.init:
            start = WarmStart(named_folder(job.init))
            start.require_denoiser(job.denoiser_recipe)
            if not start.is_of(job.conditioner):
                self.require(job, self._required_parts(job))  # a start of another kind holds no such part
        require_sizes(job, read_recipe(weights).vocoder if weights else job.vocoder)

    def size(self, job: JobSettings) -> int | None:
        return written_bytes(_planned_denoiser(job))  # the conditioner's dimensions are the dataset's

    @staticmethod
    def _required_parts(job: JobSettings) -> dict[str, str]:
        kind = class_of(job.conditioner["_target_"])
        return {stage: f"what stage {stage} trains of {kind.__name__}" for stage, part in job.conditioner_parts.items()
                if part.required}

    def train(self, job: JobSettings, context: StageContext) -> None:
        conditioner, denoiser = job.network_recipes(context.info)
        starts = TrainedFolders(job.model_of("vae"), job.pretrained, named_folder(job.init) if job.init else None,
                                named_folder(job.vocoder_from) if job.vocoder_from else None)
        train_diffusion(context, self.folder(job), job.numbers(self.name), DiffusionParts(
            denoiser=denoiser, conditioner=conditioner, objective=job.objective, dropout=job.dropout,
            augment=job.augment, freeze=job.freeze, starts=starts, sampler=job.sampler, vocoder=job.vocoder,
            validation=job.validation, grounder=job.grounder, encoder=job.encoder))


def train_diffusion(context: StageContext, folder: StageFolder, settings: StageSettings,
                    parts: DiffusionParts) -> None:
    """Train the diffusion model and write ``folder.model``, which holds everything that generation needs.

    Args:
        context: shared by all stages.
        folder: the stage's.
        settings: the stage's numbers.
        parts: recipes of the model.

    Raises:
        InputError: a model folder of ``parts.starts`` can't be used, or the sampler can't sample the objective.
    """
    sampler, objective = build_sampling(parts.sampler, parts.objective)
    codec, vae_recipe = load_codec(parts.starts.vae, context.spec)
    start = WarmStart(parts.starts.init) if parts.starts.init else None
    conditioner_recipe = start.conditioner_recipe(parts.conditioner) if start else parts.conditioner
    vocoder, vocoder_recipe = load_stage_vocoder(parts.vocoder, parts.starts)
    latents = encode_latents(context, codec, settings.fit.accelerator)
    scale = latent_scale(vae_recipe, latents, start, context.source.train_split)
    data = context.datamodule("diffusion", settings, latents)
    denoiser, conditioner = _networks(context, parts, conditioner_recipe, codec, start)
    slower = _slower(conditioner, parts)
    for attribute in (name for name, factor in slower.items() if factor == 0):
        getattr(conditioner, attribute).requires_grad_(False)  # before DDP asks who gets a gradient
    module = LatentDiffusion(denoiser, conditioner, objective, scale, parts.dropout, Augmentation(**parts.augment),
                             settings.optimise({f"conditioner.{name}.": factor for name, factor in slower.items()}))
    networks = {"vocoder": vocoder} if vocoder_recipe is not parts.vocoder else {}
    make = _pipeline_of(context, codec, scale, sampler, vocoder, networks)
    samples = ValidationSamples(make, reference_of(context, data, parts.validation["clips"]),
                                parts.validation["steps"], context.seed, preemption=context.preemption)
    context.fit(module, data, folder, settings, "diffusion", MONITOR, [samples])
    licences = parts.starts.licences()
    model = ModelRecipe(
        clip=context.spec.settings(), codec=vae_recipe.codec, latent_scale=scale, denoiser=parts.denoiser,
        conditioner=conditioner_recipe, objective=parts.objective, sampler=parts.sampler, vocoder=vocoder_recipe,
        grounder=parts.grounder, encoder=parts.encoder,
        about=context.about("diffusion", settings) | ({"starts": licences} if licences else {}),
        features=context.info.trained_on,
    )
    trained = {"codec": codec, "denoiser": module.denoiser, "conditioner": module.conditioner}
    context.save(folder, model, trained | networks)


def require_sizes(job: JobSettings, vocoder: dict[str, Any] | None) -> None:
    """Compare the VAE, the conditioner, the denoiser and the vocoder of a job, as far as their configs tell.

    Args:
        job: to be trained.
        vocoder: recipe of the one that the model will have.

    Raises:
        InputError: two of them don't fit, or one can't be built.
    """
    codec, conditioner = planned_codec(job), job.conditioner
    require_conditioner_latent(conditioner, codec)
    denoiser = _planned_denoiser(job)
    require_latent(denoiser, codec)
    # what data decide, or the conditioner's class by itself, is compared when both are there
    token_dim, map_channels = (value if isinstance(value, int) else getattr(denoiser, key) for key, value in
                               ((key, conditioner.get(key)) for key in ("token_dim", "map_channels")))
    require_tokens(denoiser, class_of(conditioner["_target_"]).__name__, token_dim, map_channels)
    if codec.decodes_to == "mel" and vocoder:
        codec.require_vocoder(sketch(vocoder, "vocoder"))


def _planned_denoiser(job: JobSettings) -> Denoiser:
    """The denoiser that a job will train, to be asked for its sizes. Raises InputError where it can't be built."""
    return sketch(job.denoiser_beside(job.conditioner), "denoiser" if job.denoiser else "networks.unet", spec=job.spec)


def build_sampling(sampler: dict[str, Any], objective: dict[str, Any]) -> tuple[BaseSampler, Objective]:
    """Both of their recipes. Raises InputError where the one can't sample the other, which validation does."""
    built: tuple[BaseSampler, Objective] = build(sampler), build(objective)
    built[0].require(built[1])
    return built


def _networks(context: StageContext, parts: DiffusionParts, conditioner_recipe: dict[str, Any], codec: MelCodec,
              start: WarmStart | None) -> tuple[Denoiser, Conditioner]:
    """The denoiser and the conditioner, filled with trained weights."""
    with context.seeded("diffusion"):
        denoiser = build(parts.denoiser, _partial_=True)(spec=context.spec)
        conditioner = build_conditioner(context, conditioner_recipe)
        require_latent(denoiser, codec)
        connect(denoiser, conditioner)
    load_pretrained(conditioner, parts.starts.pretrained)
    if start is not None:
        start.fill(denoiser, conditioner)
        context.console.print(*start.lines(), sep="\n", highlight=False, markup=False, soft_wrap=True)
    return denoiser, conditioner


def _slower(conditioner: Conditioner, parts: DiffusionParts) -> dict[str, float]:
    """{attribute of the conditioner: factor on its rate} of what stages of their own have trained."""
    trained = [conditioner.pretrained[stage] for stage in parts.starts.pretrained]
    return {part.attribute: 0.0 if parts.freeze else part.rate for part in trained}


def _pipeline_of(context: StageContext, codec: MelCodec, scale: float, sampler: BaseSampler, vocoder: Any,
                 networks: dict[str, Any]) -> Callable[[LatentDiffusion], Pipeline]:
    """A function (module in training) that returns its Pipeline, all of it on the module's device."""
    def make(module: LatentDiffusion) -> Pipeline:
        for network in networks.values():
            network.to(module.device)
        # on a GPU as it trains; a processor's samples stay what they were
        half = module.device.type == "cuda" and module.trainer.precision == "bf16-mixed"
        return Pipeline(spec=context.spec, codec=codec.to(module.device), denoiser=module.denoiser,
                        conditioner=module.conditioner, objective=module.objective, latent_scale=scale,
                        sampler=sampler, vocoder=vocoder, precision="bf16" if half else "fp32")

    return make


def load_stage_vocoder(recipe: dict[str, Any], starts: TrainedFolders) -> tuple[Any, dict[str, Any]]:
    """The vocoder that validation samples are made with, and its recipe. One with weights takes them, and its shape,
    from the folder that :func:`vocoder_folder` returns."""
    folder = vocoder_folder(recipe, starts.vae, starts.vocoder)
    if folder is None:
        return build(recipe), recipe
    found = read_recipe(folder)
    return load_vocoder(found, folder), found.vocoder or {}


def vocoder_folder(recipe: dict[str, Any], vae: Path | None, vocoder: Path | None) -> Path | None:
    """The model folder with the weights of a vocoder that needs some; None for one that needs none.

    Args:
        recipe: of the vocoder.
        vae: the model folder of a VAE that exists already, or None.
        vocoder: the model folder of the vocoder itself, which goes first, or None.

    Raises:
        InputError: neither folder holds such weights: a vocoder of random weights makes noise.
    """
    kind = class_of(recipe["_target_"])
    if not getattr(kind, "needs_weights", False):
        return None
    folder = vocoder or vae
    found = read_recipe(folder).vocoder if folder else None
    if found is None or found["_target_"] != short_name(recipe["_target_"]):
        without = f", and {folder} holds none" if folder else ""
        raise InputError(f"the vocoder {kind.__name__} needs weights{without}; "
                         "give vae=audioldm, whose checkpoint has them, or vocoder_from=FOLDER of a model with them, "
                         "or hear samples with vocoder=griffin_lim, which needs none")
    return folder


def reference_of(context: StageContext, data: ShardDataModule, clips: int) -> Reference:
    """The first clips of the validation split, with their true sound and onsets."""
    reader = data.reader(data.val_split)
    records = [reader.record(*place)[0] for place in islice(consecutive(reader.counts), clips)]
    batch = collate([window_of(r, context.spec, seed_of(context.seed, r.key)) for r in records], context.spec)
    assert batch.waveform is not None
    rate_hz = context.spec.sample_rate_hz  # figures have a rate of their own
    waveforms = np.stack([resample(waveform, rate_hz, SAMPLE_RATE_HZ) for waveform in batch.waveform.numpy()])
    return Reference(batch, waveforms, [true_onsets(context.source, r, w) for r, w in zip(records, waveforms)])
