"""The mel front end against AudioLDM's own output, and the properties that others lean on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vta_sam.mel import FIGURES, FRAME_RATE_HZ, HOP_SAMPLES, LOG_FLOOR, N_MELS, SAMPLE_RATE_HZ, LogMel, log_mel
from vta_sam.runtime.errors import InputError


def test_agrees_with_audioldm(shared_dir):
    golden = np.load(shared_dir / "golden" / "mel_audioldm.npz", allow_pickle=False)
    names = [key.removeprefix("wave_") for key in golden if key.startswith("wave_")]
    assert names
    for name in names:
        np.testing.assert_allclose(log_mel(golden[f"wave_{name}"], FIGURES), golden[f"mel_{name}"], atol=1e-3)


@pytest.mark.parametrize("samples", [513, 1599, 1600, 81_920])
def test_length(samples):
    mel = LogMel(FIGURES)(torch.randn(2, samples))
    assert mel.shape == (2, samples // 160 + 1, N_MELS)


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros(4000), FIGURES), LOG_FLOOR, atol=1e-5)


def test_click_lands_in_its_frame():
    waveform = np.zeros(SAMPLE_RATE_HZ)
    waveform[57 * HOP_SAMPLES] = 0.5
    assert log_mel(waveform, FIGURES).mean(axis=1).argmax() == 57
    assert FRAME_RATE_HZ == 100


def test_gain_shifts_by_its_log():
    waveform = np.random.default_rng(0).normal(0, 0.1, 8000)
    np.testing.assert_allclose(log_mel(2 * waveform, FIGURES) - log_mel(waveform, FIGURES), np.log(2), atol=1e-4)


def test_autocast_and_cast_leave_it_alone():
    waveform = torch.randn(1, 8000)
    expected = LogMel(FIGURES)(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(LogMel(FIGURES)(waveform), expected)
    assert LogMel(FIGURES).bfloat16()(waveform).dtype == torch.float32


def test_gradient_reaches_the_waveform():
    waveform = (0.1 * torch.randn(1, 4000)).requires_grad_()
    LogMel(FIGURES)(waveform).sum().backward()
    assert waveform.grad is not None and torch.isfinite(waveform.grad).all() and waveform.grad.abs().sum() > 0


def test_no_state():
    assert not LogMel(FIGURES).state_dict()


def test_refuses_what_it_cannot_reflect():
    with pytest.raises(InputError, match="512"):
        LogMel(FIGURES)(torch.zeros(1, 512))
    with pytest.raises(InputError, match="mono"):
        log_mel(np.zeros((2, 4000)), FIGURES)
