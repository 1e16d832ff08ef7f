"""A trained model, ready to use: video and words ⇒ features ⇒ latent ⇒ log-mel ⇒ waveform. Imports no Lightning."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.model_folder import ModelRecipe, read_recipe, write_model
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.batch import ClipBatch, collate, window_of
from ..diffusion.condition import Conditioner, Denoiser, require_latent
from ..diffusion.objective import Objective, VPrediction
from ..diffusion.sampler import BaseSampler, Predictor, classifier_guided, guided
from ..diffusion.windows import Windows, decode_windowed, noise_of, vocode, windowed
from ..importers.named_models import named_folder
from ..media.guarded import Media, guarding
from ..perception.captions import noun_rules
from ..perception.features import Extractors, caption_features, features_of, words_of
from ..runtime.distributed import choose_device
from ..runtime.errors import InputError
from ..vae.codec import Codec
from ..vocoder import Vocoder
from .build import (
    Precision, build_objective, build_sampler, copy_inside, inference_precision, load_extractors, load_networks,
    load_vocoder, notes_on_nouns
)
from .inputs import check_sampling, notes_on

PEAK_LIMIT = 0.99
_AT_ONCE = 8  # clips, or windows of a long one, in one call of a network


@dataclass
class Generated:
    """The sound made for one video.

    Args:
        waveform: (samples,) float32 at the model's rate, exactly as long as the pictures.
        features: that it was conditioned on.
        strip: (n, h, w, 3) uint8, up to 12 pictures of the video.
        dropped: how many nouns of the caption were left out, beyond the first 8.
        notes: sentences for the user, see :func:`notes_on`.
    """

    waveform: np.ndarray
    features: ClipFeatures
    strip: np.ndarray
    dropped: int = 0
    notes: list[str] = field(default_factory=list)


class Pipeline:
    """The parts of a trained model, and generation with them.

    Args:
        spec: the model's time base.
        codec, denoiser, conditioner: the modules, used in evaluation mode and given back in the mode they came in, so
            that training may hand over its own.
        latent_scale: 1 / std of latents.
        sampler: with the defaults of guidance and steps.
        vocoder: log-mel ⇒ waveform.
        objective: of the denoiser; None: v prediction on the standard schedule.
        extractors: makes the grounder and encoder, called once when the first video is read.
        trained_on: fingerprints and dimensions of the features that the model was trained on, where known.
        origin: recipe and folder that the model was loaded from, so that it can be saved again.
        precision: fp32 or bf16, in which conditioner, denoiser and codec compute.

    Raises:
        InputError: the codec's time base is not the model's, the vocoder reads other log-mels than the codec decodes
            to, the denoiser is built for other latents, or the sampler can't sample the objective.
    """

    def __init__(self, *, spec: ClipSpec, codec: Codec, denoiser: Denoiser, conditioner: Conditioner,
                 latent_scale: float, sampler: BaseSampler, vocoder: Vocoder, objective: Objective | None = None,
                 extractors: Callable[[], Extractors] | None = None, trained_on: dict[str, Any] | None = None,
                 origin: tuple[ModelRecipe, Path] | None = None, precision: Precision = "fp32"):
        codec.require(spec)
        codec.require_vocoder(vocoder)
        require_latent(denoiser, codec)
        self.spec, self.codec, self.denoiser, self.conditioner = spec, codec, denoiser, conditioner
        self.objective = objective or VPrediction()
        sampler.require(self.objective)
        self.latent_scale, self.sampler, self.vocoder = latent_scale, sampler, vocoder
        self.trained_on, self.origin, self.precision = trained_on or {}, origin, precision
        self._make_extractors = extractors
        self._extractors: Extractors | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike, device: str | torch.device = "cpu",
                        precision: str = "auto") -> "Pipeline":
        """See :func:`load`."""
        return load(name_or_folder, device, precision)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a model folder: current weights, model.yaml and a model card; :func:`load` reads it.

        Raises:
            InputError: the folder exists, or this pipeline was not loaded from a model folder, or in bf16.
        """
        if self.origin is None:
            raise InputError("this pipeline was made from parts, without a recipe to save them by; training writes "
                             "model folders by itself")
        if self.precision == "bf16":
            raise InputError('this pipeline has its weights in bf16; load it with precision="fp32" to save it')
        recipe, source = self.origin
        parts = {"codec": self.codec, "denoiser": self.denoiser, "conditioner": self.conditioner,
                 "vocoder": self.vocoder}
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and part.state_dict()}
        own = (recipe.encoder or {}).get("folder")
        write_model(Path(folder), recipe, modules,
                    lambda new: None if own is None else copy_inside(source, own, new))

    def to(self, device: str | torch.device) -> "Pipeline":
        """This pipeline, with every network moved to a device. The grounder and encoder choose theirs themselves."""
        for part in (self.codec, self.denoiser, self.conditioner, self.vocoder):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def extractors(self) -> Extractors:
        """The grounder and encoder of the model, built when first asked for."""
        if self._extractors is None:
            if self._make_extractors is None:
                raise InputError("this pipeline was made without extractors, so it can't look at videos; load a model "
                                 "folder with vta_sam.load")
            self._extractors = self._make_extractors()
        return self._extractors

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, columns, freq) of a clip."""
        return self.codec.latent_channels, self.spec.columns, self.codec.latent_freq

    @torch.no_grad()
    def sample_latents(self, batch: ClipBatch, seeds: Sequence[int], guidance: float | None = None,
                       steps: int | None = None, negative: ClipBatch | None = None) -> Tensor:
        """Clips ⇒ latents (B, C, columns, freq) in the VAE's own scale, on the pipeline's device.

        A row's result depends on its own features and seed alone, but for the rounding of another batch size.

        Args:
            batch: the clips.
            seeds: one per row.
            guidance: scale, in place of the sampler's.
            steps: in place of the sampler's.
            negative: clips of the same size that take the null's place in guidance.

        Raises:
            InputError: there are not as many seeds as clips, or a number is out of range.
        """
        if len(seeds) != len(batch):
            raise InputError(f"{len(batch)} clips need as many seeds, got {len(seeds)}")
        sampler = self.sampler_for(guidance, steps)
        noise = torch.stack([noise_of(seed, self.latent_shape, self.spec.columns) for seed in seeds])
        with self.computing(self.denoiser, self.conditioner):
            predict = self._predictor(batch, negative, sampler.guidance)
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
            return sampler.sample(predict, noise.to(self.device), self.objective, generators) / self.latent_scale

    @torch.no_grad()
    def encode(self, waveforms: Tensor) -> Tensor:
        """Sound (B, samples) ⇒ latents (B, C, columns, freq) in the VAE's own scale, the mean of each posterior."""
        with self.computing(self.codec):
            return self.codec.posterior_mean(waveforms.to(self.device)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, columns, freq) in the VAE's own scale ⇒ waveform (B, samples) on the CPU, within ±0.99.

        A clip louder than that is scaled down as a whole, never clipped.
        """
        samples = latents.shape[2] * self.codec.column_samples
        waveforms = []
        for chunk in latents.to(self.device).split(_AT_ONCE):
            with self.computing(self.codec):
                decoded = self.codec.decode(chunk)
            sound = decoded[:, 0] if self._decodes_to_sound else self.vocoder(self._for_vocoder(decoded))
            waveforms.append(sound[:, :samples].float().cpu())
        return limited(torch.cat(waveforms))

    def generate_batch(self, batch: ClipBatch, seeds: Sequence[int], guidance: float | None = None,
                       steps: int | None = None, negative: ClipBatch | None = None) -> Tensor:
        """Clips of the model's length ⇒ waveform (B, samples); arguments as of :meth:`sample_latents`."""
        return self.decode(self.sample_latents(batch, seeds, guidance, steps, negative))

    def generate(self, video: str | os.PathLike, caption: str | None = None, objects: Sequence[str] | None = None,
                 negative_caption: str | None = None, negative_objects: Sequence[str] | None = None, seed: int = 0,
                 guidance: float | None = None, steps: int | None = None,
                 generator: torch.Generator | None = None, media: Media | None = None) -> Generated:
        """A sound for any video, as long as its pictures.

        Memory: see :meth:`generate_features`; pictures are read in chunks and not kept.

        Args:
            video: a file.
            caption: its nouns are the objects, unless ``objects`` names them.
            objects: at most 8; an empty list: none.
            negative_caption: words that take the null's place in guidance: same pictures, other grounding.
            negative_objects: as ``objects``, for the negative words.
            seed: of the initial noise.
            guidance: scale, in place of the sampler's.
            steps: in place of the sampler's.
            generator: draws the seed, in place of ``seed``.
            media: reads the video; None: a child process with the usual limits, since a file may crash a decoder.

        Raises:
            InputError: the file or a list of words can't be used, or a number is out of range.
        """
        self.sampler_for(guidance, steps)  # refuses bad numbers before the video is read
        if generator is not None:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        vocabulary, finds_objects = self.extractors.known_words, self.extractors.finds_objects
        words = [words_of(caption, objects if finds_objects else (), vocabulary)]
        if negative_caption or negative_objects:
            words.append(words_of(negative_caption, negative_objects if finds_objects else (), vocabulary))
        elif words[0].negated:  # what is not there is what it should not sound like
            words.append(words_of(None, words[0].negated, vocabulary))
        with guarding(media) as reading:
            (features, *negative), strip = features_of(video, words, self.extractors, self.spec, reading)
        waveform = self.generate_features(features, seed, guidance, steps, negative[0] if negative else None)
        notes = notes_on(words, features, self.spec, finds_objects)
        if finds_objects and caption and objects is None:
            notes += notes_on_nouns(self.trained_on, noun_rules(), "objects= names them")
        if not finds_objects and (objects or negative_objects):
            notes.append("this model looks for no objects")
        return Generated(waveform, features, strip, words[0].dropped, notes)

    def generate_from_caption(self, caption: str, negative_caption: str | None = None, seed: int = 0,
                              guidance: float | None = None, steps: int | None = None) -> np.ndarray:
        """A sound of the model's clip length for a caption alone ⇒ waveform (samples,) within ±0.99.

        Args:
            caption: the prompt.
            negative_caption: takes the null's place in guidance.
            seed: of the initial noise.
            guidance: scale, in place of the sampler's.
            steps: in place of the sampler's.

        Raises:
            InputError: the model reads pictures, or a number is out of range.
        """
        self.sampler_for(guidance, steps)
        if self.extractors.reads_pictures:
            raise InputError("this model looks at pictures; name a video with video=")
        positive, *negative = (caption_features(words, self.extractors, self.spec)
                               for words in (caption, negative_caption) if words)
        return self.generate_features(positive, seed, guidance, steps, negative[0] if negative else None)

    @torch.no_grad()
    def generate_features(self, features: ClipFeatures, seed: int, guidance: float | None = None,
                          steps: int | None = None, negative: ClipFeatures | None = None) -> np.ndarray:
        """One record of any length ⇒ waveform as long as the record's, within ±0.99.

        A record shorter than the model's clip is padded, and its sound cut. A longer one is generated in windows of the
        model's clip that overlap by a quarter or more (``sampler.overlap``), lie where frames and columns are in step
        (:meth:`~vta_sam.diffusion.windows.Windows.of_clips`), and are blended on one long latent at each step, 8 in one
        call of the denoiser. A record of the model's own length gives what :meth:`generate_batch` gives.

        Memory that grows with length, per minute: features (a few MB at most), 1.5 MB of log-mel, 3.8 MB for each copy
        of the waveform, and the windows' condition tokens (for the largest model 6 MB). Activations don't grow. The
        embedded model took 9 MB more for each minute, up to 20 minutes.

        Args:
            features: of the whole video.
            seed: of the initial noise.
            guidance: scale, in place of the sampler's.
            steps: in place of the sampler's.
            negative: features that take the null's place in guidance.

        Raises:
            InputError: a number is out of range.
        """
        sampler, spec = self.sampler_for(guidance, steps), self.spec
        samples = len(features.waveform)
        columns = math.ceil(samples / (spec.column_s * spec.sample_rate_hz) - 1e-6)
        windows = Windows.of_clips(spec, columns, sampler.overlap)
        channels, _, freq = self.latent_shape
        noise = noise_of(seed, (channels, windows.total, freq), spec.columns)[None].to(self.device)
        with self.computing(self.denoiser, self.conditioner, self.codec):
            predictors = [
                self._predictor(self._cut(features, windows, group),
                                None if negative is None else self._cut(negative, windows, group), sampler.guidance)
                for group in windows.groups(_AT_ONCE)
            ]
            predict = windowed(predictors, windows, _AT_ONCE)
            generators = [torch.Generator().manual_seed(seed)]
            latent = sampler.sample(predict, noise, self.objective, generators) / self.latent_scale
            decoded = decode_windowed(self.codec.decode, latent, windows, _AT_ONCE, self.codec.stride)
        waveform = decoded[0, 0].float().cpu() if self._decodes_to_sound else \
            vocode(self.vocoder, self._for_vocoder(decoded), spec.mel_frames, spec.mel)
        return limited(waveform[:samples]).numpy()

    @contextmanager
    def computing(self, *modules: nn.Module) -> Iterator[None]:
        """A context in which the modules evaluate, in the pipeline's number format."""
        with evaluating(*modules), torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" \
                else nullcontext():
            yield

    @property
    def _decodes_to_sound(self) -> bool:
        """Whether no vocoder follows the codec."""
        return getattr(self.codec, "decodes_to", "mel") == "waveform"

    def _cut(self, features: ClipFeatures, windows: Windows, group: range) -> ClipBatch:
        return collate([window_of(features, self.spec, 0, windows.starts[i]) for i in group], self.spec)

    def _for_vocoder(self, mel: Tensor) -> Tensor:
        """(B, 1, frames, 64) ⇒ (B, frames, 64) float32 on the vocoder's device: training leaves it on the CPU."""
        device = mel.device
        if isinstance(self.vocoder, nn.Module):
            device = next(chain(self.vocoder.parameters(), self.vocoder.buffers()), mel).device
        return mel[:, 0].float().to(device)

    def sampler_for(self, guidance: float | None, steps: int | None) -> BaseSampler:
        """The model's sampler, with another guidance scale or number of steps where they are not None.

        Raises:
            InputError: a number is out of range, or the sampler can't sample the model's objective.
        """
        check_sampling(guidance, steps)
        self.sampler.require(self.objective)
        return replace(self.sampler, guidance=self.sampler.guidance if guidance is None else float(guidance),
                       steps=self.sampler.steps if steps is None else steps)

    def _predictor(self, batch: ClipBatch, negative: ClipBatch | None, guidance: float) -> Predictor:
        batch = batch.to(self.device)
        cond = self.conditioner(batch)
        uncond = self.conditioner.null(batch) if negative is None else self.conditioner(negative.to(self.device))
        predict = guided(self.denoiser, cond, uncond, guidance)
        guide = self.conditioner.guide(batch)
        return predict if guide is None else classifier_guided(predict, *guide, self.objective)


def load(path: str | os.PathLike, device: str | torch.device = "cpu", precision: str = "auto") -> Pipeline:
    """The pipeline of a model folder or a released model, on a device.

    The model's grounder and encoder are built when a video is first read; they must be those it was trained with.

    Args:
        path: a folder, or a name of :data:`.named_models.MODELS`; such a model is fetched and imported on first use.
        device: of the networks.
        precision: see :func:`.build.inference_precision`.

    Raises:
        InputError: the folder is incomplete or not this project's, or the device is not here.
    """
    device = choose_device(device)  # before anything is fetched or read
    folder = named_folder(path)
    recipe = read_recipe(folder)

    chosen = inference_precision(precision, device, recipe)
    codec, denoiser, conditioner = load_networks(recipe, folder, device, chosen)
    return Pipeline(
        spec=recipe.spec, codec=codec, denoiser=denoiser, conditioner=conditioner,
        objective=build_objective(recipe, folder), latent_scale=recipe.latent_scale, trained_on=recipe.features,
        sampler=build_sampler(recipe, folder),
        vocoder=load_vocoder(recipe, folder), extractors=lambda: load_extractors(recipe, folder),
        origin=(recipe, folder), precision=chosen,
    ).to(device)


def limited(waveform: Tensor) -> Tensor:
    """The waveform (…, samples), with rows that peak above 0.99 scaled down to it."""
    return waveform * (PEAK_LIMIT / waveform.abs().amax(dim=-1, keepdim=True).clamp(min=PEAK_LIMIT))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A context in which the modules are in evaluation mode; afterwards every submodule is in its former mode."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
