"""The stages in order: each reads what the one before it wrote, and writes a model folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from ..checkpoints.model_folder import ModelRecipe, load_weights, read_recipe
from ..checkpoints.parts import build, class_of, short_name
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.batch import Augmentation
from ..dataset.shards.datamodule import ShardDataModule, ShardReader
from ..dataset.shards.latents import encode_dataset, is_complete, latents_folder, read_std
from ..diffusion.condition import Conditioner
from ..diffusion.latent_diffusion import LatentDiffusion
from ..diffusion.objective import VPrediction
from ..generation.build import build_part, load_vocoder
from ..generation.pipeline import Pipeline
from ..mel import log_mel, normalise
from ..runtime.errors import InputError
from ..runtime.randomness import seed_of
from ..vae.codec import MelCodec
from ..vae.mel_vae import MelVAE
from .callbacks import Reference, ValidationSamples
from .data_sources import DataSource
from .pretraining import PRETRAINING
from .run_folder import StageFolder
from .stage_context import StageSettings, Workshop
from .warm_start import Start

MEL_STATISTICS_CLIPS = 256


def clip_dict(spec: ClipSpec) -> dict[str, Any]:
    return spec.settings()


def load_codec(folder: Path, spec: ClipSpec) -> tuple[MelCodec, ModelRecipe]:
    """A model folder with a VAE ⇒ the frozen codec and the folder's recipe. Raises InputError when it holds no VAE, or
    one of another stride than the clip's columns."""
    recipe = read_recipe(folder)
    if recipe.codec is None:
        raise InputError(f"{folder} holds no VAE; vae= takes the model folder of stage 1 or 3")
    codec: MelCodec = build_part(recipe, "codec", folder)
    if codec.stride != spec.latent_stride_frames:
        raise InputError(f"the VAE in {folder} has a stride of {codec.stride} mel frames, clip.latent_stride_frames is "
                         f"{spec.latent_stride_frames}; take another VAE, or change the clip")
    load_weights(codec, folder, "codec")
    return codec.eval().requires_grad_(False), recipe


def train_vae(shop: Workshop, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any]) -> None:
    """Stage 1 ⇒ ``folder.model`` with the codec."""
    data = shop.datamodule("vae", settings)
    if recipe.get("mel_mean") is None:
        recipe = {**recipe, **_mel_statistics(data.reader(data.train_split))}
    with shop.seeded("vae"):
        codec = build(recipe)
    if codec.stride != shop.spec.latent_stride_frames:
        raise InputError(f"the VAE's stride is {codec.stride} mel frames, clip.latent_stride_frames says "
                         f"{shop.spec.latent_stride_frames}; make them agree")
    module = MelVAE(codec, settings.weights, settings.optimise())
    shop.fit(module, data, folder, settings, "1 mel VAE", ("val/mse", "min"))
    model = ModelRecipe(clip=clip_dict(shop.spec), codec=recipe, about=shop.about("vae", settings))
    shop.save(folder, model, {"codec": module.codec})


def _mel_statistics(reader: ShardReader) -> dict[str, float]:
    """Mean and standard deviation of normalised log-mels over the first records of the training split."""
    from ..dataset.shards.datamodule import consecutive

    mels = []
    for shard, index in islice(consecutive(reader.counts), MEL_STATISTICS_CLIPS):
        waveform = torch.from_numpy(reader.record(shard, index)[0].waveform)[None]
        mels.append(torch.from_numpy(log_mel(normalise(waveform)[0].numpy())))
    values = torch.cat(mels)
    return {"mel_mean": round(float(values.mean()), 3), "mel_std": round(float(values.std()), 3)}


def encode_latents(shop: Workshop, codec: MelCodec) -> Path:
    """Latent shards of all splits, made once per VAE and per extraction ⇒ their folder."""
    out, splits = latents_folder(shop.root, shop.info, codec), list(shop.info.splits)

    def encode() -> None:
        if not is_complete(out, shop.info, splits):
            with Progress(console=shop.console) as progress:
                task = progress.add_task("latent shards", total=sum(shop.info.records(split) for split in splits))
                encode_dataset(shop.root, shop.info, codec, out, progress=lambda n: progress.advance(task, n))

    shop.processes.alone(encode)
    return out


@dataclass(frozen=True)
class Starts:
    """What is trained already. vae: model folder; pretrained: {stage: model folder}; init: model folder of a UNet and
    conditioner to start stage 3 from, or None; vocoder: model folder of a vocoder with weights, or None: the VAE's."""

    vae: Path
    pretrained: dict[str, Path] = field(default_factory=dict)
    init: Path | None = None
    vocoder: Path | None = None

    def licences(self) -> dict[str, str]:
        """Of those that have one stated: {setting: licence}."""
        folders = {"vae": self.vae, "init": self.init, "vocoder": self.vocoder, **self.pretrained}
        found = {name: read_recipe(folder).about.get("licence") for name, folder in folders.items() if folder}
        return {name: licence for name, licence in found.items() if licence}


def latent_scale(vae: ModelRecipe, latents: Path, start: Start | None = None) -> float:
    """What latents are multiplied by: the number that comes with a UNet to start from, or with a released VAE; else
    1 / std of the latents, measured when they were encoded."""
    if start is not None:
        return start.recipe.latent_scale
    return vae.latent_scale if vae.latent_scale != 1.0 else 1.0 / read_std(latents)


def load_stage_vocoder(recipe: dict[str, Any], starts: Starts) -> tuple[Any, dict[str, Any]]:
    """⇒ the vocoder that samples are heard with, and its recipe. One with weights takes them, and its shape, from where
    :func:`vocoder_folder` says."""
    folder = vocoder_folder(recipe, starts.vae, starts.vocoder)
    if folder is None:
        return build(recipe), recipe
    found = read_recipe(folder)
    return load_vocoder(found, folder), found.vocoder or {}


def vocoder_folder(recipe: dict[str, Any], vae: Path | None, vocoder: Path | None) -> Path | None:
    """The model folder with the weights of a vocoder that needs some; None for one that needs none.

    vae: of a VAE that exists already, or None; vocoder: of the vocoder itself, which goes first. Raises InputError
    where neither holds such weights: a vocoder of random weights makes noise.
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


def build_conditioner(shop: Workshop, recipe: dict[str, Any]) -> Conditioner:
    """The time base is handed over afterwards: Hydra would turn it into a dict."""
    return build(recipe, _partial_=True)(spec=shop.spec)


def load_pretrained(conditioner: Conditioner, folders: dict[str, Path]) -> None:
    """Fill the parts of a conditioner that stages of their own have trained."""
    for stage, folder in folders.items():
        wanted = conditioner.pretrained[stage]
        load_weights(getattr(conditioner, wanted.attribute), folder, wanted.part)


def train_part(shop: Workshop, folder: StageFolder, settings: StageSettings, stage: str, recipe: dict[str, Any],
               augment: dict[str, float], starts: Starts) -> None:
    """A stage between the VAE and the diffusion ⇒ ``folder.model`` with the conditioner's part that it trains.

    recipe: of the whole conditioner.
    """
    kind = PRETRAINING[stage]
    latents, scale = None, 1.0
    if kind.on_latents:
        codec, vae_recipe = load_codec(starts.vae, shop.spec)
        latents = encode_latents(shop, codec)
        scale = latent_scale(vae_recipe, latents)
    data = shop.datamodule(stage, settings, latents)
    with shop.seeded(stage):
        conditioner = build_conditioner(shop, recipe)
        load_pretrained(conditioner, {s: f for s, f in starts.pretrained.items() if s != stage})
        module = kind.module(conditioner, settings.weights, Augmentation(**augment), settings.optimise(), scale)
    shop.fit(module, data, folder, settings, kind.label, kind.monitor)
    part = conditioner.pretrained[stage]
    model = ModelRecipe(clip=clip_dict(shop.spec), about=shop.about(stage, settings))
    if stage == "condition":
        model.condition_encoder = recipe[part.attribute]
    else:
        model.pretrained = {part.part: recipe}
    shop.save(folder, model, {part.part: getattr(conditioner, part.attribute)})


@dataclass(frozen=True)
class DiffusionParts:
    """What stage 3 is built from.

    unet, conditioner, objective: recipes. dropout, augment: see LatentDiffusion. freeze: keep all that was pretrained
    as it is. starts: what is trained already. sampler, vocoder: recipes of what the finished model uses. validation:
    {clips, steps} of sampling while training. grounder, encoder: recipes that the model folder names for generation.
    """

    unet: dict[str, Any]
    conditioner: dict[str, Any]
    objective: dict[str, Any]
    dropout: float
    augment: dict[str, float]
    freeze: bool
    starts: Starts
    sampler: dict[str, Any]
    vocoder: dict[str, Any]
    validation: dict[str, int]
    grounder: dict[str, Any]
    encoder: dict[str, Any]


def train_diffusion(shop: Workshop, folder: StageFolder, settings: StageSettings, parts: DiffusionParts) -> None:
    """Stage 3 ⇒ ``folder.model``: everything that generation needs."""
    codec, vae_recipe = load_codec(parts.starts.vae, shop.spec)
    start = Start(parts.starts.init) if parts.starts.init else None
    conditioner_recipe = start.conditioner_recipe(parts.conditioner) if start else parts.conditioner
    vocoder, vocoder_recipe = load_stage_vocoder(parts.vocoder, parts.starts)
    latents = encode_latents(shop, codec)
    scale = latent_scale(vae_recipe, latents, start)
    data = shop.datamodule("diffusion", settings, latents)
    with shop.seeded("diffusion"):
        unet = build(parts.unet, _partial_=True)(spec=shop.spec)
        conditioner = build_conditioner(shop, conditioner_recipe)
        conditioner.adapt(unet)
    load_pretrained(conditioner, parts.starts.pretrained)
    slower = {f"conditioner.{conditioner.pretrained[stage].attribute}.":
              0.0 if parts.freeze else conditioner.pretrained[stage].rate for stage in parts.starts.pretrained}
    if start is not None:
        start.fill(unet, conditioner)
        shop.console.print(*start.lines(), sep="\n", highlight=False, markup=False, soft_wrap=True)
    objective: VPrediction = build(parts.objective)
    module = LatentDiffusion(unet, conditioner, objective, scale, parts.dropout, Augmentation(**parts.augment),
                             settings.optimise(slower))
    sampler = build(parts.sampler)
    networks = {"vocoder": vocoder} if vocoder_recipe is not parts.vocoder else {}

    def make(trained: LatentDiffusion) -> Pipeline:
        for network in networks.values():
            network.to(trained.device)
        return Pipeline(spec=shop.spec, codec=codec.to(trained.device), unet=trained.unet,
                        conditioner=trained.conditioner, latent_scale=scale, sampler=sampler, vocoder=vocoder)

    samples = ValidationSamples(make, reference_of(shop, data, parts.validation["clips"]), parts.validation["steps"],
                                shop.seed)
    shop.fit(module, data, folder, settings, "3 latent diffusion", ("val/envelope_correlation", "max"), [samples])
    info = shop.info
    model = ModelRecipe(
        clip=clip_dict(shop.spec), codec=vae_recipe.codec, latent_scale=scale, unet=parts.unet,
        conditioner=conditioner_recipe, sampler=parts.sampler, vocoder=vocoder_recipe, grounder=parts.grounder,
        encoder=parts.encoder, about=shop.about("diffusion", settings) | _inherited(parts.starts),
        features={"grounder": info.grounder, "encoder": info.encoder, "fps": info.fps, "frame_dim": info.frame_dim,
                  "object_dim": info.object_dim, "caption_dim": info.caption_dim},
    )
    shop.save(folder, model, {"codec": codec, "unet": module.unet, "conditioner": module.conditioner, **networks})


def _inherited(starts: Starts) -> dict[str, Any]:
    """For the model card: licences of what training began with."""
    licences = starts.licences()
    return {"starts": licences} if licences else {}


def reference_of(shop: Workshop, data: ShardDataModule, clips: int) -> Reference:
    """The first clips of the validation split, with their true sound and onsets."""
    from ..dataset.shards.batch import collate, window_of
    from ..dataset.shards.datamodule import consecutive

    reader = data.reader(data.val_split)
    records = [reader.record(*place)[0] for place in islice(consecutive(reader.counts), clips)]
    batch = collate([window_of(r, shop.spec, seed_of(shop.seed, r.key)) for r in records], shop.spec)
    assert batch.waveform is not None
    waveforms = batch.waveform.numpy()
    return Reference(batch, waveforms, [true_onsets(shop.source, r, w) for r, w in zip(records, waveforms)])


def true_onsets(source: DataSource, record: ClipFeatures, waveform: np.ndarray) -> np.ndarray:
    """Onsets of the truth where a data source knows it, else those detected in the true sound."""
    from ..metrics.onsets import detect_onsets

    known = source.onsets_s(record)
    return known if known is not None else detect_onsets(waveform)
