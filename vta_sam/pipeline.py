"""Clip features ⇒ latent ⇒ log-mel ⇒ waveform: a trained model, ready to be listened to. Imports no Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .clip import ClipSpec
from .conditioners.base import Condition, Conditioner
from .diffusion.sampler import Denoiser, Sampler, guided
from .diffusion.unet import LatentUNet
from .diffusion.windows import noise_of
from .errors import InputError
from .shards.batch import ClipBatch
from .vae.codec import MelCodec
from .vocoder import Vocoder

PEAK_LIMIT = 0.99
_DECODE_AT_ONCE = 8  # clips in one call of the VAE's decoder


class Pipeline:
    """The parts of a trained model, and the ways through them.

    Args: spec, the model's time base; codec, unet, conditioner, the modules (used in evaluation mode and given back in
    the mode they came in, so training may hand over its own); latent_scale, 1 / std of latents; sampler, the defaults
    of guidance and steps; vocoder, log-mel ⇒ waveform.
    """

    def __init__(self, *, spec: ClipSpec, codec: MelCodec, unet: LatentUNet, conditioner: Conditioner,
                 latent_scale: float, sampler: Sampler, vocoder: Vocoder):
        if codec.stride != spec.latent_stride_frames:
            raise InputError(f"the VAE makes one column of {codec.stride} mel frames, but the clip's time base says "
                             f"{spec.latent_stride_frames}; give clip.latent_stride_frames={codec.stride}")
        self.spec, self.codec, self.unet, self.conditioner = spec, codec, unet, conditioner
        self.latent_scale, self.sampler, self.vocoder = latent_scale, sampler, vocoder

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

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
        sampler = self._sampler(guidance, steps)
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
            for chunk in latents.to(self.device).split(_DECODE_AT_ONCE):
                mel = self.codec.decode(chunk)[:, 0].float()
                waveforms.append(self.vocoder(mel)[:, :samples].float().cpu())
        return limited(torch.cat(waveforms))

    def generate_batch(self, batch: ClipBatch, seeds: Sequence[int], guidance: float | None = None,
                       steps: int | None = None, negative: ClipBatch | None = None) -> Tensor:
        """Clips of the model's length ⇒ waveform (B, samples); arguments as of :meth:`sample_latents`."""
        return self.decode(self.sample_latents(batch, seeds, guidance, steps, negative))

    def _sampler(self, guidance: float | None, steps: int | None) -> Sampler:
        changes: dict = {} if guidance is None else {"guidance": float(guidance)}
        changes |= {} if steps is None else {"steps": int(steps)}
        sampler = replace(self.sampler, **changes)
        if not 1 <= sampler.steps <= 1000:
            raise InputError(f"steps={sampler.steps}: expected 1 to 1000 steps of the sampler")
        if not 0 <= sampler.guidance <= 100:
            raise InputError(f"guidance={sampler.guidance}: expected 0 to 100; 1 is no guidance")
        return sampler

    def _denoiser(self, batch: ClipBatch, negative: ClipBatch | None, guidance: float) -> Denoiser:
        batch = batch.to(self.device)
        told = self.conditioner(batch)
        if negative is None:
            return guided(self.unet, told, self.conditioner.null(batch), guidance)
        told, untold = _same_length(told, self.conditioner(negative.to(self.device)))
        return guided(self.unet, told, untold, guidance)


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


def _same_length(one: Condition, other: Condition) -> tuple[Condition, Condition]:
    """Two captions have as many tokens as they please; pad the shorter one's with masked zeros."""
    length = max(one.tokens.shape[1], other.tokens.shape[1])

    def padded(condition: Condition) -> Condition:
        missing = length - condition.tokens.shape[1]
        return replace(condition, tokens=nn.functional.pad(condition.tokens, (0, 0, 0, missing)),
                       mask=nn.functional.pad(condition.mask, (0, missing)))

    return padded(one), padded(other)
