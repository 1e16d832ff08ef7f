"""Diff-Foley's own stages: what its losses ask, and guidance against a closed form; FoleyCrafter's onset predictor."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from models import FRAME_DIM, SPEC, make_batch
from torch.nn import functional as F

from vta_sam.conditioners.diff_foley import (
    AlignedFrameEncoder, AlignmentClassifier, ClassifierTraining, ContrastivePretraining, between_clips, displaced,
    pooled_windows, within_clip
)
from vta_sam.conditioners.foleycrafter import OnsetPredictor, OnsetTraining
from vta_sam.conditioners.vta_sam_pretraining import contrastive_loss, onset_targets
from vta_sam.diffusion.objective import SCHEDULE, VPrediction
from vta_sam.diffusion.sampler import Sampler, classifier_guided
from vta_sam.mel import LogMel, normalise
from vta_sam.runtime.errors import InputError
from vta_sam.training.job import STAGES
from vta_sam.training.part_stages import PartStage


def alphas_cumprod(timestep: torch.Tensor) -> torch.Tensor:
    return DDPMScheduler(**SCHEDULE).alphas_cumprod[timestep][:, None, None, None]


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guidance_by_a_quadratic_is_its_closed_form(scale):
    """log p = −‖z − m‖² / 2τ² has the gradient (m − z) / τ²; v' = v − s·(σ/α)·∇log p."""
    draws = torch.Generator().manual_seed(0)
    latent, middle, v = (torch.randn(3, 2, 4, 5, generator=draws) for _ in range(3))
    timestep, spread = torch.tensor([10, 400, 900]), 1.7

    def log_likelihood(z, t):
        return -((z - middle) ** 2).sum(dim=(1, 2, 3)) / (2 * spread ** 2)

    with torch.no_grad():
        found = classifier_guided(lambda z, t: v, log_likelihood, scale, VPrediction())(latent, timestep)
    kept = alphas_cumprod(timestep)
    expected = v - scale * ((1 - kept) / kept).sqrt() * (middle - latent) / spread ** 2
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_guidance_samples_the_product_of_two_gaussians():
    """Data N(0, 1), a likelihood whose gradient at every noise level is that of N(m, τ²) seen through the noise: the
    posterior has mean m / (1 + τ²), which sampling without guidance (mean 0) misses."""
    middle, spread2 = 2.0, 1.0

    def denoise(z, t):  # data N(0, 1): E[z0 | z] = α z, so v = αε − σz0 with ε = σz: v = 0
        return torch.zeros_like(z)

    def log_likelihood(z, t):  # p(y | z) = N(y; αz, σ² + τ²), y = m
        kept = alphas_cumprod(t)
        return -((kept.sqrt() * z - middle) ** 2 / (2 * (1 - kept + spread2))).sum(dim=(1, 2, 3))

    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(steps=100)
    free = sampler.sample(denoise, noise, VPrediction())
    start = noise + alphas_cumprod(torch.tensor([999])).sqrt() * middle / (1 + spread2)  # the last step isn't all noise
    led = sampler.sample(classifier_guided(denoise, log_likelihood, 1.0, VPrediction()), start, VPrediction())
    assert abs(free.mean().item()) < 0.05
    assert abs(led.mean().item() - middle / (1 + spread2)) < 0.05
    assert abs(led.std().item() - (spread2 / (1 + spread2)) ** 0.5) < 0.06


def test_contrastive_losses_know_right_from_wrong():
    draws = torch.Generator().manual_seed(0)
    seen = F.normalize(torch.randn(6, 4, 32, generator=draws), dim=-1)
    other = F.normalize(torch.randn(6, 4, 32, generator=draws), dim=-1)
    scale = torch.tensor(30.0)
    right, accuracy = between_clips(seen, seen, scale)
    wrong, missed = between_clips(seen, seen.roll(1, 0), scale)
    assert accuracy == 1 and missed == 0 and right < 0.01 < 5 < wrong
    right, accuracy = within_clip(seen, seen, other, scale)
    wrong, missed = within_clip(seen, seen.roll(1, 1), other, scale)
    assert accuracy == 1 and missed == 0 and right < 0.1 < 5 < wrong
    taken, lost = within_clip(seen, other, seen, scale)  # the displaced sound fits better than the true one
    assert lost == 0 and taken > 5


def test_windows_pool_their_own_frames():
    x = torch.zeros(1, 10, 3)
    x[0, 5, 1] = 1.0
    pooled = pooled_windows(x, 4)
    assert pooled.shape == (1, 2, 3) and pooled[0, 1, 1] == 1 and not pooled[0, 0].any()


def sounding(*keys: str):
    """Clips whose sound and first feature burst at the same frames, which differ between clips."""
    batch = make_batch(*keys)
    batch.seeds = torch.arange(len(keys))
    assert batch.waveform is not None
    per_frame = batch.waveform.shape[1] // SPEC.frames
    for row in range(len(keys)):
        random = np.random.default_rng(row)
        loud = random.permutation(SPEC.frames)[:4]
        batch.frame_embedding[row] *= 0.05
        for frame in loud:
            batch.frame_embedding[row, frame, 0] = 3.0
            burst = torch.from_numpy(random.normal(size=per_frame).astype(np.float32)) * 0.3
            batch.waveform[row, frame * per_frame:(frame + 1) * per_frame] = burst
    return batch


def adam(module, rate=1e-2):
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], rate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_leaves_contrastive_logits_as_they_are(dtype):
    """Of vectors that are given as fp32, or as the bf16 that a layer under autocast returns."""
    draws = torch.Generator().manual_seed(0)
    video, sound, displaced = (torch.nn.functional.normalize(torch.randn(4, 3, 64, generator=draws), dim=-1).to(dtype)
                               for _ in range(3))
    scale = torch.tensor(100.0)

    def losses(video, sound, displaced):
        return torch.stack([between_clips(video, sound, scale)[0], within_clip(video, sound, displaced, scale)[0],
                            contrastive_loss(video[:, 0], sound[:, 0], scale.log())])

    with torch.autocast("cpu", torch.bfloat16):
        found = losses(video, sound, displaced)
    assert found.dtype == torch.float32
    assert torch.equal(found, losses(video.float(), sound.float(), displaced.float()))


def test_contrastive_stage_learns_whose_sound_it_is():
    batch = sounding(*"abcdef")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ContrastivePretraining(AlignedFrameEncoder(FRAME_DIM, 16, 8, 1), {"between": 1.0, "within": 1.0},
                                        lambda m: None, SPEC.mel, window_frames=4, shortest_shift_frames=2)
    optimiser = adam(module)
    first = None
    for _ in range(60):
        losses, figures = module._forward(batch)
        total = losses["between"] + losses["within"]
        first = first or total.item()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    # one of eight by chance; a window in which nothing sounds is like any other such window
    assert total.item() < 0.4 * first and figures["within_accuracy"] > 0.4
    heard = torch.arange(SPEC.frames, dtype=torch.float32)[None, :, None].expand(6, -1, 2)
    shift = displaced(heard, module.draw(batch)["shift"])[:, 0, 0].long()
    assert ((shift >= 2) & (shift <= SPEC.frames - 2)).all() and len(shift.unique()) > 1


def test_classifier_learns_whose_latent_it_is():
    """Latents that copy a feature of the frames: told from another clip's and from displaced ones, below much noise."""
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = AlignedFrameEncoder(FRAME_DIM, 16, 8, 1)
        classifier = AlignmentClassifier(8, 8 * 4, SPEC, width=32, layers=1)
    module = ClassifierTraining(classifier, encoder, 1.0, lambda m: None, VPrediction())
    assert not any(p.requires_grad for p in module.encoder.parameters())
    batch = make_batch(*[f"clip {i}" for i in range(24)])
    columns = torch.einsum("ct,btd->bdc", torch.from_numpy(SPEC.interpolation()), encoder(batch).detach())
    latent = 3 * columns[..., None].expand(-1, -1, -1, 4)
    batch.moments = torch.cat([latent, torch.full_like(latent, -20.0)], dim=1)
    optimiser = adam(module)
    accuracies = []
    for step in range(150):
        batch.seeds = torch.randint(1 << 40, (24,), generator=draws)
        loss, figures = module.measure(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        accuracies.append(figures["accuracy"].item())
    assert np.mean(accuracies[:10]) < 0.62 and np.mean(accuracies[-20:]) > 0.7


def test_onset_stage_learns_onsets_and_ignores_padding():
    batch = sounding(*"abcdef")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = OnsetTraining(OnsetPredictor(FRAME_DIM, 16, 1), 2.0, lambda m: None, SPEC.mel)
    optimiser = adam(module)
    for _ in range(80):
        optimiser.zero_grad()
        loss, figures = module.measure(batch)
        loss.backward()
        optimiser.step()
    assert figures["frame_f1"] > 0.8
    true = onset_targets(LogMel(SPEC.mel)(normalise(batch.waveform))[:, :-1], SPEC)
    assert 0 < (true > 0.5).float().mean() < 0.5
    batch.frame_mask[:, 12:] = False
    whole = module.measure(batch)[0]
    batch.frame_embedding[:, 12:] = 9.0
    assert torch.allclose(module.measure(batch)[0], whole)


def classifier_training() -> ClassifierTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, classifier = AlignedFrameEncoder(FRAME_DIM, 16, 8, 1), AlignmentClassifier(8, 8 * 4, SPEC, 32, 1)
    return ClassifierTraining(classifier, encoder, 1.0, lambda m: None, VPrediction())


def noisy_batch(*keys):
    batch = make_batch(*keys)
    batch.moments = torch.randn(len(keys), 16, SPEC.columns, 4, generator=torch.Generator().manual_seed(1))
    batch.seeds = torch.arange(len(keys)) + 3
    return batch


@pytest.mark.parametrize("keys, others", [("a", []), ("aa", []), ("aab", [0, 2]), ("abc", [0, 1, 2])])
def test_a_clip_s_own_pictures_are_never_another_s(keys, others):
    """In a batch of one, and where a clip follows itself. By hand: the terms that are left."""
    module, batch = classifier_training(), noisy_batch(*keys)
    told = []
    logit = module.classifier.logit
    module.classifier.logit = lambda *arguments: told.append(logit(*arguments)) or told[-1]
    loss, figures = module.measure(batch)
    own, other, displaced_ = told
    wrong = torch.cat([other[others], displaced_])
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(loss, (softplus(-own).mean() + softplus(wrong).mean()) / 2)
    expected = ((own > 0).float().mean() + (wrong <= 0).float().mean()) / 2
    torch.testing.assert_close(figures["accuracy"], expected)


def test_a_batch_without_another_clip_is_refused_before_training():
    kind = STAGES["classifier"]
    job = SimpleNamespace(stages=["classifier"], numbers=lambda stage: SimpleNamespace(batch_size=1))
    with mock.patch.object(PartStage, "check"), pytest.raises(InputError, match=r"fit\.classifier\.batch_size=1: .*2"):
        kind.check(job)
    with mock.patch.object(PartStage, "check"), mock.patch.dict("os.environ", RANK="1", WORLD_SIZE="2"):
        kind.check(job)  # the other process has another clip
