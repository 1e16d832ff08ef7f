"""Sentences about what a user may not have expected of a sound."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.model_folder import ModelRecipe, load_weights, read_recipe, write_model
from ..clip import ClipFeatures, ClipSpec
from ..dataset.shards.batch import ClipBatch, collate, window_of
from ..diffusion.condition import Conditioner
from ..diffusion.sampler import Denoiser, Sampler, climbing, guided
from ..diffusion.unet import LatentUNet
from ..diffusion.windows import Windows, decode_windowed, noise_of, vocode, windowed
from ..importers.named_models import named_folder
from ..perception.features import Extractors, Words, caption_features, features_of, words_of
from ..runtime.errors import InputError
from ..vae.codec import MelCodec
from ..vocoder import Vocoder
from .build import build_denoiser, build_part, copy_inside, load_extractors, load_vocoder
from .inputs import check_sampling

# MERGED-DOC """Video + words ⇒ features ⇒ latent ⇒ log-mel ⇒ waveform: a trained model, ready to use. Imports no
# Lightning."""


def notes_on(words: Words, features: ClipFeatures, spec: ClipSpec, looks: bool) -> list[str]:
    """What a user may not have expected of the words or the video ⇒ sentences. looks: does the model look
    for objects?"""
    notes = []
    if looks and words.caption and not words.objects:
        notes.append("the caption names no object that could be looked for; the sound follows the pictures alone")
    if words.dropped:
        notes.append(f"the caption has {len(words.objects) + words.dropped} nouns; the first {len(words.objects)} are "
                     f"used and {words.dropped} left out")
    unknown = [word for word, row in zip(features.objects, features.object_embedding) if not row.any()]
    if unknown:
        notes.append(f"the model's encoder doesn't know {', '.join(unknown)}; nothing is heard of it")
    if features.duration_s < spec.duration_s / 4:
        notes.append(f"the video lasts {features.duration_s:.2f} s, the model was trained on {spec.duration_s:g} s")
    return notes


PEAK_LIMIT = 0.99
_AT_ONCE = 8  # clips, or windows of a long one, in one call of a network


@dataclass
class Generated:
    """The sound made for one video.

    waveform (samples,) float32 at the model's rate, exactly as long as the pictures; features, what it was conditioned
    on; strip (n, h, w, 3) uint8, up to 12 pictures of the video; dropped, nouns of the caption beyond the first 8;
    notes, sentences about what the user may not have expected.
    """

    waveform: np.ndarray
    features: ClipFeatures
    strip: np.ndarray
    dropped: int = 0
    notes: list[str] = field(default_factory=list)


class Pipeline:
    """The parts of a trained model, and the ways through them.

    Args: spec, the model's time base; codec, unet, conditioner, the modules (used in evaluation mode and given back in
    the mode they came in, so training may hand over its own); latent_scale, 1 / std of latents; sampler, the defaults
    of guidance and steps; vocoder, log-mel ⇒ waveform; extractors, called once when the first video is looked at;
    trained_on, fingerprints and dimensions of the features that the model was trained on, where known; origin, the
    recipe and folder that it was loaded from, so that it can be saved again.
    """

    def __init__(self, *, spec: ClipSpec, codec: MelCodec, unet: LatentUNet, conditioner: Conditioner,
                 latent_scale: float, sampler: Sampler, vocoder: Vocoder,
                 extractors: Callable[[], Extractors] | None = None, trained_on: dict[str, Any] | None = None,
                 origin: tuple[ModelRecipe, Path] | None = None):
        if codec.stride != spec.latent_stride_frames:
            raise InputError(f"the VAE makes one column of {codec.stride} mel frames, but the clip's time base says "
                             f"{spec.latent_stride_frames}; give clip.latent_stride_frames={codec.stride}")
        self.spec, self.codec, self.unet, self.conditioner = spec, codec, unet, conditioner
        self.latent_scale, self.sampler, self.vocoder = latent_scale, sampler, vocoder
        self.trained_on, self.origin = trained_on or {}, origin
        self._make_extractors = extractors
        self._extractors: Extractors | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike, device: str | torch.device = "cpu") -> "Pipeline":
        """See :func:`load`."""
        return load(name_or_folder, device)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a model folder: weights as they are now, model.yaml and a model card; :func:`load` reads it.

        Raises InputError where the folder exists, or this pipeline was not loaded from a model folder.
        """
        if self.origin is None:
            raise InputError("this pipeline was made from parts, without a recipe to save them by; training writes "
                             "model folders by itself")
        recipe, source = self.origin
        parts = {"codec": self.codec, "unet": self.unet, "conditioner": self.conditioner, "vocoder": self.vocoder}
        modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and part.state_dict()}
        own = (recipe.encoder or {}).get("folder")
        write_model(Path(folder), recipe, modules,
                    lambda new: None if own is None else copy_inside(source, own, new))

    def to(self, device: str | torch.device) -> "Pipeline":
        """Move every network to a device ⇒ this pipeline. The grounder and encoder choose theirs by themselves."""
        for part in (self.codec, self.unet, self.conditioner, self.vocoder):
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

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
        return self.codec.latent_channels, self.spec.columns, self.spec.n_mels // self.codec.stride

    @torch.no_grad()
    def sample_latents(self, batch: ClipBatch, seeds: Sequence[int], guidance: float | None = None,
                       steps: int | None = None, negative: ClipBatch | None = None) -> Tensor:
        """Clips ⇒ latents (B, C, columns, freq) in the VAE's own scale, on the pipeline's device.

        seeds: one per row; a row's result depends on its own features and seed alone (up to rounding: a matrix product
        of another batch size may round otherwise). guidance, steps: instead of the sampler's. negative: clips of the
        same size that take the null's place in guidance.
        """
        if len(seeds) != len(batch):
            raise InputError(f"{len(batch)} clips need as many seeds, got {len(seeds)}")
        sampler = self.sampler_for(guidance, steps)
        noise = torch.stack([noise_of(seed, self.latent_shape, self.spec.columns) for seed in seeds])
        with evaluating(self.unet, self.conditioner):
            denoise = self._denoiser(batch, negative, sampler.guidance)
            generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
            return sampler.sample(denoise, noise.to(self.device), generators) / self.latent_scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, columns, freq) in the VAE's own scale ⇒ waveform (B, samples) on the CPU, within ±0.99.

        A clip louder than that is scaled down as a whole, never clipped.
        """
        samples = latents.shape[2] * self.codec.stride * self.spec.hop_samples
        waveforms = []
        with evaluating(self.codec):
            for chunk in latents.to(self.device).split(_AT_ONCE):
                mel = self._for_vocoder(self.codec.decode(chunk))
                waveforms.append(self.vocoder(mel)[:, :samples].float().cpu())
        return limited(torch.cat(waveforms))

    def generate_batch(self, batch: ClipBatch, seeds: Sequence[int], guidance: float | None = None,
                       steps: int | None = None, negative: ClipBatch | None = None) -> Tensor:
        """Clips of the model's length ⇒ waveform (B, samples); arguments as of :meth:`sample_latents`."""
        return self.decode(self.sample_latents(batch, seeds, guidance, steps, negative))

    def generate(self, video: str | os.PathLike, caption: str | None = None, objects: Sequence[str] | None = None,
                 negative_caption: str | None = None, negative_objects: Sequence[str] | None = None, seed: int = 0,
                 guidance: float | None = None, steps: int | None = None,
                 generator: torch.Generator | None = None) -> Generated:
        """A sound for any video, as long as its pictures.

        caption: its nouns are the objects, unless ``objects`` names them (at most 8; an empty list: none). Negative
        words take the null's place in guidance: same pictures, other grounding. Raises InputError where a file or a
        word list can't be used. generator: draws the seed, in place of ``seed``. Memory: see
        :meth:`generate_features`; frames are looked at in chunks and not kept.
        """
        self.sampler_for(guidance, steps)  # refuse bad numbers before looking at the video
        if generator is not None:
            seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        vocabulary, looks = self.extractors.known_words, self.extractors.looks_for_objects
        words = [words_of(caption, objects if looks else (), vocabulary)]
        if negative_caption or negative_objects:
            words.append(words_of(negative_caption, negative_objects if looks else (), vocabulary))
        (features, *negative), strip = features_of(video, words, self.extractors, self.spec)
        waveform = self.generate_features(features, seed, guidance, steps, negative[0] if negative else None)
        unheard = not looks and bool(objects or negative_objects)
        notes = notes_on(words[0], features, self.spec, looks) + ["this model looks for no objects"] * unheard
        return Generated(waveform, features, strip, words[0].dropped, notes)

    def generate_from_caption(self, caption: str, negative_caption: str | None = None, seed: int = 0,
                              guidance: float | None = None, steps: int | None = None) -> np.ndarray:
        """A sound of the model's clip length for a caption alone ⇒ waveform (samples,) within ±0.99.

        Raises InputError for a model that looks at pictures.
        """
        self.sampler_for(guidance, steps)
        if self.extractors.encoder.frame_dim or self.extractors.looks_for_objects:
            raise InputError("this model looks at pictures; name a video with video=")
        told, *untold = (caption_features(words, self.extractors, self.spec)
                         for words in (caption, negative_caption) if words)
        return self.generate_features(told, seed, guidance, steps, untold[0] if untold else None)

    @torch.no_grad()
    def generate_features(self, features: ClipFeatures, seed: int, guidance: float | None = None,
                          steps: int | None = None, negative: ClipFeatures | None = None) -> np.ndarray:
        """One record of any length ⇒ waveform as long as the record's, within ±0.99.

        Shorter than the model's clip: padded, and cut afterwards. Longer: windows of the model's clip with 25 % overlap
        on one long latent, blended at each step (:func:`~vta_sam.diffusion.windows.windowed`), 8 in one call of the
        UNet. A record of the model's own length gives what :meth:`generate_batch` gives.

        What grows with length, per minute: features (a few MB at most), 1.5 MB of log-mel, 3.8 MB for each copy of the
        waveform, and the windows' condition tokens (for the largest model 6 MB). Activations don't. The embedded model
        took 9 MB more for each minute, up to 20 minutes.
        """
        sampler, spec = self.sampler_for(guidance, steps), self.spec
        samples = len(features.waveform)
        columns = max(spec.columns, math.ceil(samples / (spec.column_s * spec.sample_rate_hz) - 1e-6))
        windows = Windows(columns, spec.columns, spec.columns // 4)
        channels, _, freq = self.latent_shape
        noise = noise_of(seed, (channels, columns, freq), spec.columns)[None].to(self.device)
        with evaluating(self.unet, self.conditioner, self.codec):
            denoisers = [
                self._denoiser(self._cut(features, windows, group),
                               None if negative is None else self._cut(negative, windows, group), sampler.guidance)
                for group in windows.groups(_AT_ONCE)
            ]
            denoise = windowed(denoisers, windows, _AT_ONCE)
            latent = sampler.sample(denoise, noise, [torch.Generator().manual_seed(seed)]) / self.latent_scale
            mel = decode_windowed(self.codec.decode, latent, windows, _AT_ONCE, self.codec.stride)
        waveform = vocode(self.vocoder, self._for_vocoder(mel), spec.mel_frames)
        return limited(waveform[:samples]).numpy()

    def _cut(self, features: ClipFeatures, windows: Windows, group: range) -> ClipBatch:
        return collate([window_of(features, self.spec, 0, windows.starts[i]) for i in group], self.spec)

    def _for_vocoder(self, mel: Tensor) -> Tensor:
        """(B, 1, frames, 64) ⇒ (B, frames, 64) float32 where the vocoder is: training leaves it on the CPU."""
        device = mel.device
        if isinstance(self.vocoder, nn.Module):
            device = next(chain(self.vocoder.parameters(), self.vocoder.buffers()), mel).device
        return mel[:, 0].float().to(device)

    def sampler_for(self, guidance: float | None, steps: int | None) -> Sampler:
        """The model's sampler with what is not None changed. Raises InputError where a number makes no sense."""
        check_sampling(guidance, steps)
        return replace(self.sampler, guidance=self.sampler.guidance if guidance is None else float(guidance),
                       steps=self.sampler.steps if steps is None else steps)

    def _denoiser(self, batch: ClipBatch, negative: ClipBatch | None, guidance: float) -> Denoiser:
        batch = batch.to(self.device)
        told = self.conditioner(batch)
        untold = self.conditioner.null(batch) if negative is None else self.conditioner(negative.to(self.device))
        denoise = guided(self.unet, told, untold, guidance)
        guide = self.conditioner.guide(batch)
        return denoise if guide is None else climbing(denoise, *guide)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> Pipeline:
    """A model folder, or the name of a released model ⇒ Pipeline on a device.

    Names are those of :data:`.named_models.MODELS`, which are fetched and imported when first asked for.
    Raises InputError where the folder is not whole or not this project's. The model's grounder and encoder are
    built when a video is first looked at; they must be those it was trained with.
    """
    folder = named_folder(path)
    recipe = read_recipe(folder)

    def filled(part: str) -> Any:
        return load_weights(build_part(recipe, part, folder), folder, part).requires_grad_(False)

    unet, conditioner = build_denoiser(recipe, folder)
    for part, module in (("unet", unet), ("conditioner", conditioner)):
        load_weights(module, folder, part).requires_grad_(False)
    return Pipeline(
        spec=recipe.spec, codec=filled("codec"), unet=unet, conditioner=conditioner,
        latent_scale=recipe.latent_scale, trained_on=recipe.features,
        sampler=build_part(recipe, "sampler", folder) if recipe.sampler else Sampler(),
        vocoder=load_vocoder(recipe, folder), extractors=lambda: load_extractors(recipe, folder),
        origin=(recipe, folder),
    ).to(device)


def limited(waveform: Tensor) -> Tensor:
    """(…, samples) ⇒ the same, rows that peak above 0.99 scaled down to it."""
    peak = waveform.abs().amax(dim=-1, keepdim=True)
    return waveform * (PEAK_LIMIT / peak.clamp(min=PEAK_LIMIT))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
