"""The vocoder without weights: what comes back is heard as what went in, at the time when it went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vta_sam.mel import FIGURES, HOP_SAMPLES, LOG_FLOOR, SAMPLE_RATE_HZ, LogMel
from vta_sam.runtime.errors import InputError
from vta_sam.vocoder import GriffinLim

SAMPLES = 2 * SAMPLE_RATE_HZ
CLICKS_S = (0.4, 1.0, 1.5)


def sounds() -> torch.Tensor:
    """A gated chord, clicks after silence, a chirp ⇒ (3, samples)."""
    rng, time_s = np.random.default_rng(0), np.arange(SAMPLES) / SAMPLE_RATE_HZ
    chord = sum(np.sin(2 * np.pi * 220 * k * time_s + k) / k for k in range(1, 9))
    chord = 0.15 * chord * ((time_s > 0.3) & (time_s < 1.6))
    clicks = np.zeros(SAMPLES)
    for start_s in CLICKS_S:
        start = int(start_s * SAMPLE_RATE_HZ)
        clicks[start:start + 1600] += 0.3 * rng.normal(size=1600) * np.exp(-np.arange(1600) / 128)
    chirp = 0.3 * np.sin(2 * np.pi * np.cumsum(400 + 1200 * time_s) / SAMPLE_RATE_HZ)
    return torch.from_numpy(np.stack([chord, clicks, chirp]).astype(np.float32))


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    return LogMel(FIGURES)(sounds())[:, : SAMPLES // HOP_SAMPLES]


@pytest.fixture(scope="module")
def resynthesised(mel) -> torch.Tensor:
    return GriffinLim(iterations=16)(mel)


def mel_error_nats(mel: torch.Tensor, waveform: torch.Tensor) -> torch.Tensor:
    again = LogMel(FIGURES)(waveform)[:, : mel.shape[1]]
    loud = mel > mel.amax((1, 2), keepdim=True) - np.log(100)
    return ((mel - again).abs() * loud).sum((1, 2)) / loud.sum((1, 2))


def test_length_and_mel(mel, resynthesised):
    assert resynthesised.shape == (3, SAMPLES)
    error_nats = mel_error_nats(mel, resynthesised)
    # the chirp is cut off by both edges, where the window has only a mirror image to go by
    assert error_nats.max() < 0.16 and error_nats.mean() < 0.12


def test_each_step_of_the_method_helps(mel):
    plain = mel_error_nats(mel, GriffinLim(16, momentum=0, inversion_steps=0, refit_every=0)(mel))
    inverted = mel_error_nats(mel, GriffinLim(16, momentum=0, refit_every=0)(mel))
    fast = mel_error_nats(mel, GriffinLim(16, refit_every=0)(mel))
    refitted = mel_error_nats(mel, GriffinLim(16)(mel))
    assert plain.mean() > inverted.mean() > fast.mean() > refitted.mean()


def test_clicks_stay_sharp_and_in_place(resynthesised):
    clicks = resynthesised[1].numpy()
    before, after = 960, 960  # samples: 60 ms
    for start_s in CLICKS_S:
        start = int(start_s * SAMPLE_RATE_HZ)
        echo = np.square(clicks[start - before: start - 64]).sum() / np.square(clicks[start:start + 640]).sum()
        assert 10 * np.log10(echo) < -18
        energy = np.cumsum(np.square(clicks[start - before: start + after]))
        arrival = np.searchsorted(energy, 0.1 * energy[-1]) - before
        assert abs(arrival) <= 48  # samples: 3 ms


def test_a_waveform_does_not_depend_on_its_batch(mel, resynthesised):
    vocoder = GriffinLim(iterations=16)
    torch.testing.assert_close(vocoder(mel[1:2])[0], resynthesised[1], rtol=0, atol=0)
    torch.testing.assert_close(vocoder(mel.flip(0)).flip(0), resynthesised, rtol=0, atol=0)


def test_silence_stays_silent():
    assert not GriffinLim(iterations=2)(torch.full((1, 50, 64), LOG_FLOOR)).any()


def test_no_gradient_and_no_state(mel):
    vocoder = GriffinLim(iterations=1)
    assert not vocoder(mel[:1].clone().requires_grad_()).requires_grad
    assert not vocoder.state_dict()


def test_refusals(mel):
    with pytest.raises(InputError, match="log-mels of shape"):
        GriffinLim()(mel[..., :32])
    with pytest.raises(InputError, match="at least 4 frames"):
        GriffinLim()(mel[:, :3])
    with pytest.raises(InputError, match="momentum"):
        GriffinLim(momentum=1.0)
