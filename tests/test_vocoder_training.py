"""Stage vocoder: its segments, its two sides, and that it learns."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from models import SPEC, make_batch
from omegaconf import OmegaConf
from programs import REPOSITORY

from vta_sam.runtime.randomness import SampleDraws
from vta_sam.training.optimisation import AdamWithWarmup, GradientClipping
from vta_sam.training.stage import StageSettings
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
    module.adversary.eval()  # spectral norm goes on with its power iteration in each pass otherwise
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


def test_the_first_scale_discriminator_has_spectral_norm_as_published():
    kinds = [{type(parametrization).__name__ for layer in [*judge.layers, judge.score]
              for parametrization in layer.parametrizations["weight"]} for judge in Discriminators(1, 4).judges]
    assert kinds == 5 * [{"_WeightNorm"}] + [{"_SpectralNorm"}] + 2 * [{"_WeightNorm"}]


@pytest.mark.parametrize("size", ["base", "embedded", "smoke"])
def test_the_sizes_optimise_it_as_published(size):
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base=None):
        config = OmegaConf.to_container(compose("train", ["+exp=vocoder", f"size={size}"]), resolve=False)
    settings = StageSettings.of(config["fit"]["vocoder"])
    assert settings.fit.clip_norm == 0
    made = settings.optimise()(torch.nn.Linear(2, 2))["optimizer"]
    assert isinstance(made, torch.optim.AdamW) and made.defaults["betas"] == (0.8, 0.99)


def test_neither_side_s_gradient_scales_the_other_s_step(tmp_path):
    module = training()
    vocoder, adversary = (list(side.parameters()) for side in module.sides)
    optimiser = torch.optim.AdamW(module.parameters())
    for parameters, size in ((vocoder, 1e-6), (adversary, 1e3)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, size)
    clipping, trainer = GradientClipping(1.0, tmp_path), SimpleNamespace(global_rank=0, global_step=0)
    clipping.on_before_backward(trainer, module, torch.ones(()))
    clipping.on_before_optimizer_step(trainer, module, optimiser)
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-6)) for p in vocoder)
    assert torch.nn.utils.get_total_norm([p.grad for p in adversary]).item() == pytest.approx(1, abs=1e-3)


def short(batch, *columns):
    """The batch, with so many columns of sound in each clip, and what must not be seen behind them."""
    batch.column_mask = torch.arange(SPEC.columns) < torch.tensor(columns)[:, None]
    return batch


def test_segments_lie_within_the_sound(batch):
    """Columns of 16 frames: 48 and 128 frames of sound for segments of 32."""
    drawn: dict[str, set[int]] = {"a": set(), "b": set()}
    module = training()
    for seed in range(300):
        batch.seeds, batch.draws = torch.tensor([seed, seed]), None
        draws = module.draw(short(batch, 3, 8))
        assert draws["sounding"] == [32, 32]
        for key, start in zip("ab", draws["start"].tolist()):
            drawn[key].add(start)
    assert drawn["a"] == set(range(48 - 32 + 1)) and max(drawn["b"]) > 80
    batch.seeds = torch.tensor([5, 7])
    whole = module.draw(short(batch, 8, 8))["start"]
    assert torch.equal(whole, SampleDraws(batch.seeds, "vocoder").integer(128 - 32 + 1)), "another start than before"


def test_a_clip_shorter_than_a_segment_counts_by_its_sound_alone(batch):
    """Other padding, the same losses and gradients; and one that is whole counts as ever."""
    module = training().train()
    module.adversary.eval()
    with torch.no_grad():
        expected = module.measure(batch)[1]
    found, gradients = [], []
    for level in (0.0, 0.3):
        batch.draws = None
        waveform = batch.waveform.clone()
        made = short(batch, 8, 1).replace(waveform=waveform)
        made.draws = made.with_draws(module.draw).draws
        assert made.draws["sounding"] == [32, 16] and made.draws["start"][1] == 0
        true, mel = module.segments(made)
        true = torch.cat([true[:, :16 * 160], true[:, 16 * 160:] + level * torch.tensor([[0.0], [1.0]])], dim=1)
        module.zero_grad()
        with mock.patch.object(module, "segments", lambda _, cut=(true, mel): cut):
            loss, terms = module.measure(made)
        loss.backward()
        found.append({name: value.item() for name, value in terms.items()})
        gradients.append([p.grad.clone() for p in module.adversary.parameters()])
    for name in ("features", "adversarial", "adversary"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5), name
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients))
    assert found[0]["mel"] != pytest.approx(expected["mel"].item(), rel=1e-3)
    ones = torch.ones(2, 32 * 160)
    with torch.no_grad():
        scores = module.adversary(batch.waveform[:, :32 * 160])
        assert generator_loss(scores, ones).item() == pytest.approx(generator_loss(scores).item(), rel=1e-5)
        half = torch.cat([ones[:, ::2], 0 * ones[:, ::2]], dim=1)
        assert generator_loss(scores, half).item() != pytest.approx(generator_loss(scores).item(), rel=1e-3)


def test_it_trains_in_bf16_too(batch):
    module = training().train()
    exact = module.measure(batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = module.measure(batch)
    loss.backward()
    assert all(terms[name].item() == pytest.approx(exact[name].item(), rel=0.1) for name in terms)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
