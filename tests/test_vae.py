"""The codec between waveforms, mels and latents, and what stage 1 trains."""

import math

import numpy as np
import pytest
import torch
from tiny_data import CODEC, SPEC, a_clip, build

from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.mel import FIGURES, LOG_FLOOR, log_mel, normalise
from vta_sam.training.codec_stages import MelVAE
from vta_sam.training.optimisation import AdamWithWarmup
from vta_sam.vae.codec import kl_to_standard_normal, sample_posterior


def codec_of(patch=8, blocks=(8, 16)):
    network = {**CODEC["network"], "in_channels": patch**2, "out_channels": patch**2,
               "block_out_channels": list(blocks),
               "down_block_types": ["DownEncoderBlock2D"] * len(blocks),
               "up_block_types": ["UpDecoderBlock2D"] * len(blocks)}
    return build({**CODEC, "patch": patch, "network": network, "mel_mean": -5.0, "mel_std": 2.0})


@pytest.fixture(scope="module")
def codec():
    return codec_of()


@torch.no_grad()
@pytest.mark.parametrize("patch, blocks, stride", [
    (8, (8, 16), 16), (4, (8, 8, 16), 16), (1, (4, 8, 8), 4), (2, (8,), 2)])
def test_shapes_follow_from_the_stride(patch, blocks, stride):
    codec = codec_of(patch, blocks)
    assert codec.stride == stride and codec.latent_channels == 8
    mel = codec.mel_of(torch.randn(2, 20_480))
    assert mel.shape == (2, 1, 128, 64)
    moments = codec.moments(mel)
    assert moments.shape == (2, 16, 128 // stride, 64 // stride)
    decoded = codec.decode(moments[:, :8])
    assert decoded.shape == mel.shape and decoded.min() >= LOG_FLOOR - 1e-5


@torch.no_grad()
def test_mel_is_the_projects_mel_of_the_normalised_clip(codec):
    waveform = torch.from_numpy(a_clip("x").waveform)
    mel = codec.mel_of(waveform[None])[0, 0]
    centred = waveform - waveform.mean()
    expected = log_mel((0.5 * centred / centred.abs().max()).numpy(), FIGURES)
    assert mel.shape == (512, 64) and np.allclose(mel, expected[:512], atol=1e-4)
    louder = codec.mel_of(3.7 * waveform[None] + 0.1)  # neither level nor offset counts
    assert torch.allclose(louder, codec.mel_of(waveform[None]), atol=1e-2)


def test_normalise():
    waveforms = torch.stack([torch.zeros(100), torch.full((100,), 0.4), torch.sin(torch.arange(100) / 3) / 50 + 0.2])
    out = normalise(waveforms)
    assert not out[:2].any()  # silence, with or without an offset, stays silence
    assert out[2].abs().max() == pytest.approx(0.5) and abs(out[2].mean()) < 1e-6
    assert torch.allclose(normalise(waveforms[2:])[0], out[2])
    hum = normalise(1e-6 * torch.randn(1, 100, generator=torch.Generator().manual_seed(0)))
    assert hum.abs().max() == 0  # what no one hears is not blown up


def test_posterior_draws_by_hand():
    moments = torch.tensor([[[1.0]], [[math.log(4.0)]]])[None]  # mean 1, std 2
    assert sample_posterior(moments, torch.tensor([[[[1.5]]]])).item() == pytest.approx(4.0)
    assert sample_posterior(moments, torch.zeros(1, 1, 1, 1)).item() == 1.0
    assert kl_to_standard_normal(moments).item() == pytest.approx(0.5 * (1 + 4 - 1 - math.log(4)))
    assert kl_to_standard_normal(torch.zeros(1, 2, 1, 1)) == 0
    mixed = torch.tensor([1.0, 0.0, math.log(4.0), 0.0]).reshape(1, 4, 1, 1)  # two channels: the mean of both
    assert kl_to_standard_normal(mixed).item() == pytest.approx(0.25 * (1 + 4 - 1 - math.log(4)))


def test_padding_has_no_share_in_the_kl():
    moments = torch.randn(2, 16, 8, 4, generator=torch.Generator().manual_seed(0))
    real = torch.arange(8) < torch.tensor([[8], [3]])
    parts = [kl_to_standard_normal(moments[:1]), kl_to_standard_normal(moments[1:, :, :3])]
    assert kl_to_standard_normal(moments, real).item() == pytest.approx(((8 * parts[0] + 3 * parts[1]) / 11).item())
    assert torch.equal(kl_to_standard_normal(moments, torch.ones(2, 8, dtype=bool)), kl_to_standard_normal(moments))


def test_stage_1_counts_the_kl_of_real_columns():
    module = MelVAE(build({**CODEC, "mel_mean": -5.0, "mel_std": 2.0}), {}, lambda m: None).eval()
    short = collate([window_of(a_clip("a", duration_s=2.56), SPEC, 0)], SPEC)
    kl = module.losses(short)["kl"]
    real = short.column_mask[0]
    assert 0 < real.sum() < len(real)
    moments = module.codec.moments(module.codec.mel_of(short.waveform))
    assert torch.equal(kl, kl_to_standard_normal(moments, short.column_mask)) and kl != kl_to_standard_normal(moments)
    assert sample_posterior(torch.full((1, 2, 1, 1), 1e4), torch.ones(1, 1, 1, 1)).isfinite().all()


@torch.no_grad()
def test_moments_of_records_of_any_length(codec):
    waveform = a_clip("x", duration_s=7.0).waveform  # 43.75 columns
    moments = codec.encode_moments(waveform)
    assert moments.shape == (16, 44, 4) and moments.dtype == np.float32
    assert codec.encode_moments(waveform[:1000]).shape == (16, 1, 4)
    padded = np.concatenate([waveform, np.zeros(44 * 2560 - len(waveform), np.float32)])
    assert np.array_equal(codec.encode_moments(padded), moments)


# ------------------------------------------------------------------ the module


def module_of(**weights):
    module = MelVAE(codec_of(), {"l1": 1.0, "mse": 1.0, "kl": 1e-3, **weights}, AdamWithWarmup(3e-3, 40))
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def batch_of(*keys, duration_s=SPEC.duration_s):
    return collate([window_of(a_clip(key, duration_s), SPEC, i) for i, key in enumerate(keys)], SPEC)


def test_losses_fall():
    module, batch = module_of(), batch_of(*"abcd")
    optimiser = module.configure_optimizers()["optimizer"]
    with torch.no_grad():
        first = module.losses(batch)
    for step in range(15):
        optimiser.zero_grad()
        module.training_step(batch, step).backward()
        optimiser.step()
    with torch.no_grad():
        last = module.losses(batch)
    assert last["mse"] < 0.5 * first["mse"] and last["l1"] < 0.8 * first["l1"]


@torch.no_grad()
def test_errors_are_means_over_what_is_real():
    """Whatever the share of padding, and whatever is decoded there."""
    module = module_of()
    whole, short = batch_of("a"), batch_of("a", duration_s=1.28)
    mel = module.codec.mel_of
    for batch in (whole, short):
        module.codec.decode = lambda latent: mel(batch.waveform) + 3.0  # an error of 3 nats, or 1.5 σ, everywhere
        assert module.losses(batch)["l1"].item() == pytest.approx(1.5, rel=1e-4)
        assert module.losses(batch)["mse"].item() == pytest.approx(2.25, rel=1e-4)
    real = short.column_mask.repeat_interleave(16, dim=1)[:, None, :, None]
    module.codec.decode = lambda latent: mel(short.waveform) + torch.where(real, 0.0, 50.0)
    assert module.losses(short)["l1"] == module.losses(short)["mse"] == 0


@torch.no_grad()
def test_weights_weigh():
    batch = batch_of("a", "b")
    losses = module_of().losses(batch)
    total = module_of(l1=0.0, mse=2.0, kl=0.5).training_step(batch, 0)
    assert total.item() == pytest.approx(2 * losses["mse"].item() + 0.5 * losses["kl"].item(), rel=1e-5)


@torch.no_grad()
def test_posterior_noise_belongs_to_the_sample():
    module, batch = module_of(), batch_of("a", "b")
    heard = []
    module.codec.decode = lambda latent: heard.append(latent) or module.codec.mel_of(batch.waveform[:1])
    for rows in ([0, 1], [1, 0], [1]):
        module.losses(batch.select(rows))
    together, turned, alone = heard
    assert torch.allclose(turned, together.flip(0), atol=1e-5) and torch.allclose(alone[0], together[1], atol=1e-5)
