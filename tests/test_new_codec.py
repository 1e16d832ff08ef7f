"""Another rate by values alone, and a codec of waveforms of one's own, in a folder of one's own: trained, kept, loaded
and sampled without touching the project."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_configs import composed
from test_docs_commands import REPOSITORY, commands, words_of
from tiny_data import (
    CODEC, CONDITIONER, ENCODER, FRAME_DIM, UNET, UNET_CONFIG, a_clip, build, stage_context, stage_folder,
    stage_settings, write_dataset
)

from vta_sam.checkpoints import parts
from vta_sam.checkpoints.model_folder import ModelRecipe, read_recipe, save_model
from vta_sam.clip import ClipSpec, MelSpec
from vta_sam.conditioners.diff_foley import AlignedFrameEncoder, AlignmentClassifier
from vta_sam.conditioners.foleycrafter import OnsetPredictor, OnsetTraining
from vta_sam.conditioners.vta_sam_pretraining import onset_targets
from vta_sam.dataset.shards.batch import Augmentation, collate, window_of
from vta_sam.diffusion.condition import Pretrained
from vta_sam.diffusion.objective import VPrediction
from vta_sam.generation.pipeline import Generated, load
from vta_sam.generation.videos import describe
from vta_sam.media.audio import read_audio
from vta_sam.metrics.signal import envelope_correlation, measure_level
from vta_sam.runtime.errors import InputError
from vta_sam.training.codec_stages import load_codec, train_vae
from vta_sam.training.diffusion_stage import require_sizes
from vta_sam.training.job import STAGES, TrainingJob
from vta_sam.training.part_stages import PartInputs

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
    pipeline = load(path)
    sound = pipeline.generate_features(long, seed=0)
    assert sound.shape == long.waveform.shape == (105_840,) and np.isfinite(sound).all() and sound.any()
    made = describe(Generated(sound, long, np.zeros((1, 8, 8, 3), np.uint8)), pipeline)
    assert made["level"] == asdict(measure_level(sound, 44_100)) and made["sample_rate_hz"] == 44_100
    card = (path / "README.md").read_text()
    assert "sound of 44.1 kHz" in card and ".waveform, 44.1 kHz" in card


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


# ------------------------------------------------------------------ what the documentation says

DOCUMENTED = [words_of(command) for command in commands(REPOSITORY / "docs" / "extending.md") if "clip.mel" in command]


def job_of(*overrides: str) -> TrainingJob:
    return TrainingJob.of(composed(*overrides))


@pytest.mark.parametrize("words", DOCUMENTED, ids=lambda words: " ".join(words[2:4]))
def test_the_lines_of_the_documentation_fit(words):
    """They compose, the ClipSpec is accepted, and all parts of the model agree with it."""
    job = job_of(*words[2:])
    assert job.spec.mel == FULL_BAND and job.networks["codec"]["mel"] == job.vocoder["mel"] == SPEC.settings()["mel"]
    if "vocoder" in job.stages:
        STAGES["vocoder"].check(job)
    else:
        require_sizes(job, job.vocoder)
        assert job.denoiser_recipe["config"]["sample_size"][0] == job.spec.columns


def test_every_size_is_documented():
    assert {word for words in DOCUMENTED for word in words if word.startswith("size=")} == {
        "size=embedded", "size=base"}


FULL = "clip.mel={sample_rate_hz: 44100, fft_samples: 2048, hop_samples: 441, n_mels: 128, max_hz: 22050}"


@pytest.mark.parametrize("overrides, stage, message", [
    ([], "diffusion", r"built for latents of 4 frequency rows, the VAE makes 8; .*sample_size=\[columns,8\]"),
    (["conditioner=diff_foley"], "classifier", "conditioner.latent_freq=4, and the VAE's latents have 8; give"),
    (["networks.unet.config.sample_size=[32,8]", "+vocoder.mel={hop_samples: 320}"], "diffusion",
     "the vocoder GriffinLim reads log-mels of .*16000.*, the VAE decodes to .*44100"),
    (["+networks.codec.mel={}"], "vae", "networks.codec is for sound at 16000 Hz, clip.mel.sample_rate_hz is 44100"),
    (["networks.codec.patch=8"], "vae", "networks.codec has a stride of 32 mel frames, clip.*stride_frames is 16"),
    (["networks.codec.network.norm_num_groups=7"], "vae", "networks.codec describes a MelCodec that can't be built: "),
    (["vocoder=hifigan"], "vocoder", r"\[5, 4, 2, 2, 2\] make 160 samples of a mel frame, the hop is 441"),
    (["vocoder=hifigan", "+vocoder.mel={}"], "vocoder", "vocoder.mel is .*16000.*, clip.mel says .*44100"),
])
def test_parts_that_do_not_fit_are_refused_before_training(overrides, stage, message):
    with pytest.raises(InputError, match=message):
        STAGES[stage].check(job_of("+exp=vta_sam", "size=smoke", FULL, *overrides))


def test_a_run_of_before_goes_on():
    """Its folder knows no clip.mel, and the parts of 16 kHz name no front end."""
    job = job_of("+exp=vta_sam", "size=smoke")
    kept = STAGES["vae"].folder(job).config
    assert kept["clip"] == {"duration_s": 5.12, "fps": 12.5, "latent_stride_frames": 16}
    assert "mel" not in kept["codec"] and "mel" not in job.vocoder


def test_an_unknown_value_is_named():
    with pytest.raises(InputError, match="clip=.* can't be used: .*'rate'"):
        job_of("+exp=vta_sam", "size=smoke", "clip.mel={rate: 44100}")


# ------------------------------------------------------------------ the stages between

PARTS = {
    "condition": lambda: build(ENCODER),
    "contrastive": lambda: AlignedFrameEncoder(FRAME_DIM, 16, 8, 1),
    "onsets": lambda: OnsetPredictor(FRAME_DIM, 16, 1),
}


@pytest.mark.parametrize("stage", PARTS)
def test_a_stage_reads_sound_at_its_rate_and_the_part_where_the_conditioner_keeps_it(stage):
    conditioner = SimpleNamespace(pretrained={stage: Pretrained("elsewhere", "it")}, elsewhere=PARTS[stage]())
    weights = dict.fromkeys(("onset", "energy", "contrastive", "between", "within"), 1.0)
    module: Any = STAGES[stage].module(PartInputs(
        SPEC, conditioner, SimpleNamespace(weights=weights, optimise=lambda: None), Augmentation(), 1.0, VPrediction()))
    assert module.log_mel.spec == FULL_BAND
    batch = collate([window_of(a_clip(key, duration_s=1.28, sample_rate_hz=44_100), SPEC, 0) for key in "ab"], SPEC)
    assert module.log_mel(batch.waveform).shape == (2, SPEC.mel_frames + 1, 128)
    loss, _ = module.measure(batch)
    assert torch.isfinite(loss)


def test_an_onset_at_44_khz_is_in_its_frame():
    clip = a_clip("a", duration_s=1.28, sample_rate_hz=44_100)
    clip.waveform[:] = 0
    clip.waveform[44_100:44_300] = 0.5  # after one second
    batch = collate([window_of(clip, SPEC, 0)], SPEC)
    module = OnsetTraining(PARTS["onsets"](), 1.0, lambda m: None, SPEC.mel)
    true = onset_targets(module.log_mel(batch.waveform)[:, :-1], SPEC)
    assert true[0].argmax() == SPEC.clock.frame_at(1.0)


def test_the_classifier_takes_both_parts_where_they_are():
    conditioner = SimpleNamespace(
        pretrained={"contrastive": Pretrained("first", "frame_encoder"), "classifier": Pretrained("other", "it")},
        first=AlignedFrameEncoder(FRAME_DIM, 16, 8, 1), other=AlignmentClassifier(8, 8, SPEC, 16, 1))
    module: Any = STAGES["classifier"].module(PartInputs(
        SPEC, conditioner, SimpleNamespace(optimise=lambda: None), Augmentation(), 1.0, VPrediction()))
    assert (module.encoder, module.classifier) == (conditioner.first, conditioner.other)


# ------------------------------------------------------------------ a finished model

def test_a_vocoder_of_another_front_end_is_refused(tmp_path):
    codec = {**CODEC, "mel_mean": 0.0, "mel_std": 1.0, "mel": SPEC.settings()["mel"]}
    path = model_folder(tmp_path / "model", SPEC, codec, 8, {"_target_": "griffin_lim"})
    with pytest.raises(InputError, match="the vocoder GriffinLim reads log-mels of .*16000"):
        load(path)


def test_a_denoiser_of_other_rows_is_refused(tmp_path):
    path = model_folder(tmp_path / "model", ClipSpec(1.28, 12.5, 16), {**CODEC, "mel_mean": 0.0, "mel_std": 1.0}, 2)
    with pytest.raises(InputError, match="built for latents of 2 frequency rows, the VAE makes 4"):
        load(path)


# ------------------------------------------------------------------ overfitting and its figures

def test_pairs_are_measured_at_the_figures_rate(tmp_path, monkeypatch):
    from vta_sam.study import overfit

    counts = {"train": 2, "test": 2}
    write_dataset(tmp_path / "shards", counts, duration_s=1.28, sample_rate_hz=44_100)
    monkeypatch.setattr(overfit, "read_clip", lambda *_, **__: SimpleNamespace(frames=[None]))
    rates = []
    monkeypatch.setattr(overfit, "clip_picture", lambda *_, sample_rate_hz, **__: rates.append(sample_rate_hz))
    pipeline: Any = SimpleNamespace(generate_features=lambda record, seed: record.waveform)
    found = overfit.measure_pairs(pipeline, tmp_path / "shards", tmp_path, tmp_path / "out", 0, Console(quiet=True))
    for split in counts:
        sounds = [read_audio(tmp_path / "out" / split / f"{split}-{i}.wav") for i in range(2)]  # at 16 kHz
        expected = [[envelope_correlation(a, b) for b in sounds] for a in sounds]
        np.testing.assert_allclose(found[split]["correlation"], expected, atol=0.02)
    assert rates == [44_100] * 4


def test_overfitting_extracts_at_the_clips_rate(tmp_path, monkeypatch):
    from vta_sam.study import overfit

    (tmp_path / "words.csv").write_text("id,path,caption\na,a.mp4,a dog\n")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(overfit, "extract_dataset", lambda *_, **settings: asked.update(settings))
    overfit.extract_clips(tmp_path, tmp_path / "words.csv", tmp_path, {"_target_": "no_grounder"},
                          {"_target_": "tiny_encoder"}, SPEC, 1.0, 1.0)
    assert asked["sample_rate_hz"] == 44_100
