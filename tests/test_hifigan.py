"""The vocoder with weights keeps the contract of a vocoder, at AudioLDM's size and at any other."""

from __future__ import annotations

import pytest
import torch

from vta_sam.runtime.errors import InputError
from vta_sam.vocoder import HiFiGAN

SMALL = {"channels": 32, "resblock_kernels": (3,), "resblock_dilations": ((1, 3),)}


def test_its_defaults_are_audioldms():
    with torch.device("meta"):
        vocoder = HiFiGAN()
    assert sum(p.numel() for p in vocoder.parameters()) == 55_264_897
    assert vocoder.network.config.normalize_before is False


def test_1024_frames_are_163872_samples_and_rows_do_not_meet():
    torch.manual_seed(0)
    vocoder, mel = HiFiGAN(**SMALL).eval(), torch.randn(3, 1024, 64)
    with torch.no_grad():
        together, alone = vocoder(mel), vocoder(mel[1:2])
    assert together.shape == (3, 163_872)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)
    assert together.std() > 0


def test_its_state_is_weights_alone():
    assert all(name.endswith((".weight", ".bias")) for name in HiFiGAN(**SMALL).state_dict())


@pytest.mark.parametrize("shape", [(10, 64), (1, 10, 80)])
def test_what_is_no_log_mel_is_refused(shape):
    with pytest.raises(InputError, match=r"log-mels of shape \(B, frames, 64\)"):
        HiFiGAN(**SMALL)(torch.zeros(shape))
