"""Stages ``vae`` and ``vocoder``, which learn from sound alone; and the latents that a trained VAE encodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..checkpoints.model_folder import ModelRecipe, load_weights, read_recipe
from ..checkpoints.parts import build, class_of, sketch
from ..clip import ClipSpec, MelSpec
from ..dataset.shards.batch import ClipBatch
from ..dataset.shards.datamodule import consecutive
from ..dataset.shards.latents import (
    batch_samples_on, encode_dataset, is_complete, latents_folder, plan_latents, read_std
)
from ..dataset.shards.reader import ShardReader
from ..generation.build import build_part
from ..mel import log_mel, normalise
from ..runtime.errors import InputError
from ..runtime.randomness import SampleDraws
from ..runtime.stage_module import StageModule
from ..vae.codec import Codec, MelCodec, kl_to_standard_normal, sample_posterior
from ..vocoder import HiFiGAN
from ..vocoder.hifigan_training import Discriminators, VocoderTraining
from .optimisation import stage_device
from .run_folder import StageFolder
from .stage import JobSettings, Stage, StageContext, StageSettings, written_bytes
from .warm_start import WarmStart

MEL_STATISTICS_CLIPS = 256


@dataclass(frozen=True)
class PosteriorDraws:
    """The random draws of a step: ``posterior``, N(0, 1) in the latent's shape (B, C, columns, freq).

    Args:
        channels: C of the latent.
        freq: its frequency rows.
        column_samples: samples of the waveform per column.
    """

    channels: int
    freq: int
    column_samples: int

    def __call__(self, batch: ClipBatch) -> dict[str, Any]:
        assert batch.waveform is not None, "stage 1 reads the waveform itself"
        columns = max(batch.waveform.shape[1] // self.column_samples, 1)
        return {"posterior": SampleDraws(batch.seeds, "posterior").normal(self.channels, columns, self.freq)}


class MelVAE(StageModule):
    """Reconstruct log-mels through a narrow latent.

    Args:
        codec: to train.
        weights: of the loss terms, under the names they are logged by: l1 and mse of the normalised log-mel, kl to
            N(0, 1) per latent value.
        optimise: (module) ⇒ Lightning's optimiser and schedule.
    """

    def __init__(self, codec: MelCodec, weights: dict[str, float], optimise: Callable):
        super().__init__(optimise)
        self.codec, self.weights = codec, weights
        self.draw = PosteriorDraws(codec.latent_channels, codec.latent_freq, codec.column_samples)

    def repeated_blocks(self) -> list[nn.Module]:
        return [part for part in self.codec.modules() if isinstance(part, ResnetBlock2D)]

    def losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """⇒ each term, unweighted."""
        batch = batch.with_draws(self.draw)
        assert batch.waveform is not None and batch.draws is not None, "stage 1 reads the waveform itself"
        mel = self.codec.mel_of(batch.waveform)
        moments = self.codec.moments(mel)
        noise = batch.draws["posterior"].to(moments.dtype)
        error = (self.codec.decode(sample_posterior(moments, noise)) - mel) / self.codec.mel_std
        real = batch.column_mask.repeat_interleave(self.codec.stride, dim=1)[:, None, : mel.shape[2], None]
        share = real.float().mean().clamp(min=1e-6)
        return {"l1": (error.abs() * real).mean() / share, "mse": (error ** 2 * real).mean() / share,
                "kl": kl_to_standard_normal(moments, batch.column_mask[:, :moments.shape[2]])}

    def measure(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(batch)
        return sum((self.weights[name] * value for name, value in losses.items()), start=losses["l1"] * 0), losses


class VAEStage(Stage):
    name = "vae"
    replaceable = True

    def settings(self, job: JobSettings) -> dict[str, Any]:
        return job.common_settings() | {"codec": job.networks["codec"], "fit": job.fit["vae"]}

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        return {"networks.codec": job.networks["codec"]}

    def check(self, job: JobSettings) -> None:
        planned_codec(job)

    def size(self, job: JobSettings) -> int | None:
        return written_bytes(planned_codec(job))

    def train(self, job: JobSettings, context: StageContext) -> None:
        train_vae(context, self.folder(job), job.numbers(self.name), job.networks["codec"])


def train_vae(context: StageContext, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any]) -> None:
    """Train a VAE and write ``folder.model`` with it.

    Args:
        context: shared by all stages.
        folder: the stage's.
        settings: the stage's numbers.
        recipe: of the codec; the mel's mean and deviation are measured where it has none.

    Raises:
        InputError: the codec's stride differs from the clip's.
    """
    data = context.datamodule("vae", settings)
    if recipe.get("mel_mean") is None:
        recipe = {**recipe, **_mel_statistics(data.reader(data.train_split), context.spec.mel)}
    with context.seeded("vae"):
        codec = build(recipe)
    codec.require(context.spec)
    module = MelVAE(codec, settings.weights, settings.optimise())
    context.fit(module, data, folder, settings, "vae", ("val/mse", "min"))
    model = ModelRecipe(clip=context.spec.settings(), codec=recipe, about=context.about("vae", settings))
    context.save(folder, model, {"codec": module.codec})


def _mel_statistics(reader: ShardReader, mel: MelSpec) -> dict[str, float]:
    """Mean and standard deviation of normalised log-mels over the first records of the training split."""
    mels = []
    for shard, index in islice(consecutive(reader.counts), MEL_STATISTICS_CLIPS):
        waveform = torch.from_numpy(reader.record(shard, index)[0].waveform)[None]
        mels.append(torch.from_numpy(log_mel(normalise(waveform)[0].numpy(), mel)))
    values = torch.cat(mels)
    return {"mel_mean": round(float(values.mean()), 3), "mel_std": round(float(values.std()), 3)}


def planned_codec(job: JobSettings) -> Codec:
    """The VAE that a job's stages on latents read, the given one or the one to be trained, to be asked for its sizes.

    Raises:
        InputError: the folder holds none, its recipe can't be built, or its time base is not the clip's.
    """
    recipe, where = job.networks["codec"], "networks.codec"
    if "vae" in job.given:
        folder = job.model_of("vae")
        recipe, where = _require_codec(read_recipe(folder), folder), f"the VAE in {folder}"
    codec: Codec = sketch(recipe, where)
    codec.require(job.spec, where)
    return codec


def require_conditioner_latent(conditioner: dict[str, Any], codec: Codec) -> None:
    """Refuse a conditioner's recipe whose ``latent_channels`` or ``latent_freq`` are not the codec's.

    Raises:
        InputError: one of them differs.
    """
    for key in ("latent_channels", "latent_freq"):
        if conditioner.get(key) not in (None, getattr(codec, key)):
            raise InputError(f"conditioner.{key}={conditioner[key]}, and the VAE's latents have {getattr(codec, key)}; "
                             f"give conditioner.{key}={getattr(codec, key)}, or a denoiser of such latents, which the "
                             "conditioner's config follows")


def _require_codec(recipe: ModelRecipe, folder: Path) -> dict[str, Any]:
    if recipe.codec is None:
        raise InputError(f"{folder} holds no VAE; vae= takes the model folder of stage vae or diffusion")
    return recipe.codec


def load_codec(folder: Path, spec: ClipSpec) -> tuple[MelCodec, ModelRecipe]:
    """The frozen codec of a model folder, and the folder's recipe.

    Raises:
        InputError: the folder holds no VAE, or one of another stride than the clip's columns.
    """
    recipe = read_recipe(folder)
    _require_codec(recipe, folder)
    codec: MelCodec = build_part(recipe, "codec", folder)
    codec.require(spec, f"the VAE in {folder}")
    load_weights(codec, folder, "codec")
    return codec.eval().requires_grad_(False), recipe


def encode_latents(context: StageContext, codec: MelCodec, accelerator: str = "auto") -> Path:
    """The folder of latent shards of all splits, made once per VAE and per extraction. Every process makes its share,
    on its own device.

    Args:
        context: shared by all stages.
        codec: the VAE; it stays on the device.
        accelerator: see FitSettings.

    Raises:
        InputError: a shard can't be read or written; the message names the process.
    """
    root, info, processes = context.root, context.info, context.processes
    out = latents_folder(root, info, codec)
    if processes.on_first_rank(lambda: is_complete(out, info, list(info.splits))):
        return out
    device = stage_device(accelerator)
    codec.to(device)
    planned = plan_latents(root, info, codec, out, processes.rank, processes.world)
    with context.progress.phase("latents", sum(shard.records for shard in planned.mine), last=False) as phase:
        processes.on_all_ranks(lambda: encode_dataset(
            root, info, codec, out, progress=phase.advance, planned=planned,
            batch_samples=batch_samples_on(device), measure=False))
        processes.on_first_rank(lambda: encode_dataset(root, info, codec, out))  # all are there: they are measured
    return out


def latent_scale(vae: ModelRecipe, latents: Path, start: WarmStart | None = None, split: str | None = None) -> float:
    """The factor on latents: the number that comes with a UNet to start from, or with a released VAE; else
    1 / std of the latents, measured when they were encoded.

    Args:
        vae: recipe of the VAE's model folder.
        latents: folder of the latents.
        start: the UNet to start from.
        split: for training, over which they are measured; None: all.
    """
    if start is not None:
        return start.recipe.latent_scale
    return vae.latent_scale if vae.latent_scale != 1.0 else 1.0 / read_std(latents, split)


class VocoderStage(Stage):
    """A vocoder of one's own, for ``vocoder_from=``."""

    name = "vocoder"

    def settings(self, job: JobSettings) -> dict[str, Any]:
        return job.common_settings() | {"vocoder": job.vocoder, "adversary": job.networks["adversary"],
                                        "fit": job.fit["vocoder"]}

    def model_recipes(self, job: JobSettings) -> dict[str, dict[str, Any] | None]:
        return {"vocoder": job.vocoder}

    def check(self, job: JobSettings) -> None:
        _require_trainable(job.vocoder)
        vocoder: HiFiGAN = sketch(job.vocoder, "vocoder")
        if vocoder.mel != job.spec.mel:
            raise InputError(f"vocoder.mel is {vocoder.mel}, clip.mel says {job.spec.mel}; leave vocoder.mel out, and "
                             "the vocoder takes the clip's")

    def size(self, job: JobSettings) -> int | None:
        return written_bytes(sketch(job.vocoder, "vocoder"))

    def train(self, job: JobSettings, context: StageContext) -> None:
        train_vocoder(context, self.folder(job), job.numbers(self.name), job.vocoder, job.networks["adversary"])


def train_vocoder(context: StageContext, folder: StageFolder, settings: StageSettings, recipe: dict[str, Any],
                  adversary: dict[str, Any]) -> None:
    """Train a vocoder and write ``folder.model`` with it.

    Args:
        context: shared by all stages.
        folder: the stage's.
        settings: the stage's numbers.
        recipe: of the vocoder.
        adversary: arguments of :class:`~vta_sam.vocoder.hifigan_training.Discriminators`.

    Raises:
        InputError: the vocoder has nothing to train.
    """
    _require_trainable(recipe)
    data = context.datamodule("vocoder", settings)
    with context.seeded("vocoder"):
        vocoder = build(recipe)
        vocoder.initialise()
        module = VocoderTraining(vocoder, Discriminators(**adversary), settings.weights, settings.optimise())
    context.fit(module, data, folder, settings, "vocoder", ("val/mel", "min"))
    model = ModelRecipe(clip=context.spec.settings(), vocoder=recipe, about=context.about("vocoder", settings))
    context.save(folder, model, {"vocoder": module.vocoder})


def _require_trainable(recipe: dict[str, Any]) -> None:
    kind = class_of(recipe["_target_"])
    if not (isinstance(kind, type) and issubclass(kind, HiFiGAN)):
        raise InputError(f"stage vocoder trains a HiFiGAN, and vocoder is a {kind.__name__}; give +exp=vocoder, or "
                         "vocoder=hifigan")
