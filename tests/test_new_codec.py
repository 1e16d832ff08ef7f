"""Another rate by values alone, and a codec of waveforms of one's own, in a folder of one's own: trained, kept, loaded
and sampled without touching the project."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import (
    CODEC, CONDITIONER, UNET, UNET_CONFIG, a_clip, build, stage_context, stage_folder, stage_settings, write_dataset
)

from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import ModelRecipe, read_recipe, save_model
from vta_sam.clip import ClipSpec, MelSpec
from vta_sam.generation.pipeline import load
from vta_sam.runtime.errors import InputError
from vta_sam.training.codec_stages import load_codec, train_vae

FULL_BAND = MelSpec(sample_rate_hz=44_100, fft_samples=2048, hop_samples=441, n_mels=128, max_hz=22_050)
SPEC = ClipSpec(duration_s=1.28, fps=12.5, latent_stride_frames=16, mel=FULL_BAND)  # 16 frames, 8 columns

SOURCE = '''
import numpy as np
import torch
import vta_sam
from torch import nn
from vta_sam.clip import MelSpec
from vta_sam.vae.codec import Codec


class Blocks(Codec):
    """A column is a block of samples, seen through a random basis."""

    decodes_to = "waveform"

    def __init__(self, channels=8, block=2560):
        super().__init__()
        self.mel, self.block = MelSpec(hop_samples=block), block
        self.basis = nn.Parameter(torch.randn(channels, block) / block**0.5)

    @property
    def stride(self):
        return self.block

    @property
    def latent_channels(self):
        return len(self.basis)

    @property
    def latent_freq(self):
        return 1

    def encode_moments(self, waveform):
        padded = np.pad(waveform, (0, -len(waveform) % self.block)).reshape(-1, self.block)
        mean = self.basis.detach() @ torch.from_numpy(padded).T
        return torch.cat([mean, torch.full_like(mean, -8.0)])[:, :, None].numpy()

    def decode(self, latent):
        return (latent[..., 0].transpose(1, 2) @ self.basis).flatten(1)[:, None]


vta_sam.trust("mine_codec.Blocks", name="blocks")
'''


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    (tmp_path / "mine_codec.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_codec", raising=False)
    monkeypatch.setattr(parts, "_TRUSTED", {})
    import mine_codec

    yield mine_codec.Blocks
    sys.modules.pop("mine_codec", None)


def model_folder(path: Path, spec: ClipSpec, codec: dict, freq: int, vocoder: dict | None = None, filled=None) -> Path:
    """A random model around a codec."""
    unet = {**UNET, "config": {**UNET_CONFIG, "sample_size": [spec.columns, freq]}}
    recipe = ModelRecipe(clip=spec.settings(), codec=codec, denoiser=unet, conditioner=CONDITIONER, vocoder=vocoder,
                         sampler={"_target_": "diffusion_sampler", "steps": 2, "guidance": 1.0})
    conditioner, denoiser = build(CONDITIONER, spec=spec), build(unet, spec=spec)
    save_model(path, recipe, {"codec": filled or build(codec), "denoiser": denoiser,
                              "conditioner": conditioner})
    return path


def test_44_khz_and_128_bins_are_values(tmp_path):
    """From shards of that rate to a VAE, its latents and a sound of two windows."""
    info = write_dataset(tmp_path / "shards", {"train": 4, "val": 2}, duration_s=1.28, sample_rate_hz=44_100)
    context = stage_context(tmp_path / "shards", info, spec=SPEC)
    front = SPEC.settings()["mel"]
    folder = stage_folder(tmp_path / "vae")
    train_vae(context, folder, stage_settings(2), {**CODEC, "mel": front})
    recipe = read_recipe(folder.model)
    assert recipe.spec == SPEC and recipe.codec["mel"] == front
    codec, _ = load_codec(folder.model, SPEC)
    assert codec.latent_freq == 8
    clip = a_clip("a", duration_s=1.28, sample_rate_hz=44_100)
    assert codec.encode_moments(clip.waveform).shape == (16, SPEC.columns, 8)

    path = model_folder(tmp_path / "model", SPEC, recipe.codec, 8,
                        {"_target_": "griffin_lim", "iterations": 2, "mel": front}, codec)
    long = a_clip("b", duration_s=2.4, sample_rate_hz=44_100)
    sound = load(path).generate_features(long, seed=0)
    assert sound.shape == long.waveform.shape == (105_840,) and np.isfinite(sound).all() and sound.any()


def test_a_vae_of_another_rate_is_refused(tmp_path):
    path = model_folder(tmp_path / "model", ClipSpec(1.28, 12.5, 16), {**CODEC, "mel_mean": 0.0, "mel_std": 1.0}, 4)
    with pytest.raises(InputError, match="16000 Hz, clip.mel.sample_rate_hz is 44100"):
        load_codec(path, SPEC)


def test_a_codec_of_waveforms_needs_no_vocoder(tmp_path, blocks):
    spec = ClipSpec(duration_s=1.28, fps=12.5, latent_stride_frames=1, mel=MelSpec(hop_samples=2560))
    codec = build({"_target_": "blocks"})
    assert codec.column_samples == 2560
    path = model_folder(tmp_path / "model", spec, {"_target_": "blocks"}, 1, filled=codec)
    assert read_recipe(path).codec == {"_target_": "blocks"}
    pipeline = load(path)
    for seconds in (1.28, 2.4):
        clip = a_clip("c", duration_s=seconds)
        sound = pipeline.generate_features(clip, seed=0)
        assert sound.shape == clip.waveform.shape and np.isfinite(sound).all() and sound.any()
    latents = torch.randn(2, 8, spec.columns, 1) * 0.1
    assert torch.allclose(pipeline.decode(latents), codec.decode(latents)[:, 0].detach(), atol=1e-6)
