"""Stage vocoder: its segments, its two sides, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import SPEC, make_batch

from vta_sam.training.optimisation import AdamWithWarmup
from vta_sam.vocoder import HiFiGAN
from vta_sam.vocoder.hifigan_training import (
    Discriminators, VocoderTraining, discriminator_loss, feature_matching_loss, generator_loss
)

WEIGHTS = {"mel": 45.0, "features": 2.0, "adversarial": 1.0}


def training(frames: int = 32, steps: int = 40) -> VocoderTraining:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vocoder = HiFiGAN(channels=32)
        vocoder.initialise()
        return VocoderTraining(vocoder, Discriminators(1, 4, periods=(2, 3), scales=2), WEIGHTS,
                               AdamWithWarmup(2e-3, steps, 2), frames)


@pytest.fixture
def batch():
    """Two clips of tones that rise, each its own."""
    batch, time_s = make_batch("a", "b"), np.arange(SPEC.samples) / 16_000
    tones = [np.sin(2 * np.pi * (pitch + 200 * time_s) * time_s) for pitch in (300, 700)]
    batch.waveform = torch.from_numpy(np.stack(tones).astype(np.float32))
    return batch


def test_a_segment_is_cut_where_the_clip_s_mel_is(batch):
    module = training()
    waveform, mel = module.segments(batch)
    assert waveform.shape == (2, 32 * 160) and mel.shape == (2, 32, 64)
    again, _ = module.segments(batch)
    assert torch.equal(waveform, again)  # where, is a matter of the row's seed
    # away from a segment's own edges, its mel is that of the clip at that place
    torch.testing.assert_close(module.log_mel(waveform)[:, 4:-5], mel[:, 4:-4], atol=1e-3, rtol=0)


def test_both_sides_get_the_gradients_of_two_separate_passes(batch):
    module = training().train()
    loss, _ = module.measure(batch)
    loss.backward()
    joint = {name: p.grad.clone() for name, p in module.named_parameters()}
    assert all(gradient.abs().max() > 0 for name, gradient in joint.items() if name.endswith("weight"))
    module.zero_grad()
    true, mel = module.segments(batch)
    made = module.vocoder(mel)[:, : true.shape[1]]
    discriminator_loss(module.adversary(true), module.adversary(made.detach())).backward()
    for name, p in module.adversary.named_parameters():
        torch.testing.assert_close(p.grad, joint[f"adversary.{name}"], atol=1e-5, rtol=1e-4)
    module.zero_grad()
    judged, fooled = module.adversary(true), module.adversary(made)
    (45 * (module.log_mel(made) - module.log_mel(true)).abs().mean() + 2 * feature_matching_loss(judged, fooled)
     + generator_loss(fooled)).backward()
    for name, p in module.vocoder.named_parameters():
        torch.testing.assert_close(p.grad, joint[f"vocoder.{name}"], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_it_learns_two_sounds(batch):
    module = training()
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3)
    module.eval()
    with torch.no_grad():
        before = module.measure(batch)[1]["mel"]
    module.train()
    for _ in range(30):
        loss, _ = module.measure(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()
    with torch.no_grad():
        assert module.measure(batch)[1]["mel"] < 0.75 * before


def test_a_new_vocoder_sounds():
    """Above the floor of log-mels, below which there is nothing to learn from."""
    for channels in (32, 128):
        vocoder = HiFiGAN(channels)
        vocoder.initialise()
        with torch.inference_mode():
            level = vocoder(torch.randn(2, 40, 64) - 6).std()
        assert 1e-3 < level < 1.1, level


def test_published_widths():
    """HiFi-GAN's discriminators have 70.7 M parameters together (its public code, and weight norm's gains)."""
    with torch.device("meta"):
        adversary = Discriminators()
    assert round(sum(p.numel() for p in adversary.parameters()) / 1e6, 1) == 70.7
