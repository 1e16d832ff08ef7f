"""Every config composes and builds what it says: experiments times sizes, exact parameter counts, and what the command
line answers to questions and mistakes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from vta_sam.checkpoints.parts import build
from vta_sam.clip import ClipFeatures, ClipSpec
from vta_sam.dataset.shards.batch import collate, window_of
from vta_sam.dataset.shards.schema import DatasetInfo
from vta_sam.training.job import STAGES, TrainingJob
from vta_sam.training.stage import StageSettings

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "exp").glob("*.yaml"))
SIZES = ("smoke", "embedded", "base", "large")
FRAME_DIM, OBJECT_DIM, CAPTION_DIM = 768, 768, 1024  # CLIP ViT-L/14 and FLAN-T5 large


def composed(*overrides: str) -> dict[str, Any]:
    """The config as the command line makes it; what a user has to name (folders, all of them) is named `somewhere`."""
    return copy.deepcopy(composed_once(*overrides))


@cache
def composed_once(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "somewhere")
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    return settings


@cache
def job_of(exp: str, size: str) -> TrainingJob:
    settings = composed(f"+exp={exp}", f"size={size}")
    return TrainingJob.of(settings)


@dataclass
class Parts:
    spec: ClipSpec
    codec: nn.Module
    unet: Any
    conditioner: Any


def built(job: TrainingJob) -> Parts:
    """The job's networks as stage 3 builds them, on the meta device: all shapes, no numbers."""
    info = DatasetInfo(
        grounder="a", encoder="b", fps=job.spec.fps, sample_rate_hz=job.spec.sample_rate_hz, frame_dim=FRAME_DIM,
        object_dim=OBJECT_DIM, caption_dim=CAPTION_DIM, config_hash="", manifest_hash="", code_version="")
    conditioner, unet = job.network_recipes(info)
    codec = {k: v for k, v in job.networks["codec"].items() if v is not None}  # null: measured on the shards
    denoiser = copy.deepcopy(shared(json.dumps(unet), job.spec))  # which the conditioner adapts
    with torch.device("meta"):
        listener = build(conditioner, _partial_=True)(spec=job.spec)
        listener.adapt(denoiser)
    return Parts(job.spec, shared(json.dumps(codec)), denoiser.eval(), listener.to("meta").eval())


@cache
def shared(recipe: str, spec: ClipSpec | None = None) -> Any:
    """A network that many experiments have, built once."""
    with torch.device("meta"):
        network = build(json.loads(recipe)) if spec is None else build(json.loads(recipe), _partial_=True)(spec=spec)
    return network.to("meta").eval() if isinstance(network, nn.Module) else network  # buffers from numpy move as well


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def meta_batch(spec: ClipSpec, size: int = 2):
    """Clips of two objects without numbers."""
    def clip(key: str) -> ClipFeatures:
        frames = spec.frames
        zeros = torch.zeros
        return ClipFeatures(
            key=key, caption="a dog and a canary", objects=["dog", "canary"], fps=spec.fps,
            waveform=zeros(spec.samples).numpy(), frame_embedding=zeros(frames, FRAME_DIM).numpy(),
            probs=zeros(frames, 2).numpy(), boxes=zeros(frames, 2, 4).numpy(), areas=zeros(frames, 2).numpy(),
            object_embedding=zeros(2, OBJECT_DIM).numpy(), caption_tokens=zeros(3, CAPTION_DIM).numpy())

    return collate([window_of(clip(f"clip{i}"), spec, i) for i in range(size)], spec).to("meta")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_experiment_builds_at_size(exp, size):
    job = job_of(exp, size)
    assert job.exp == exp, "an experiment names its run after itself"
    assert job.stages and set(job.stages) <= set(STAGES)
    parts = built(job)
    codec, network = parts.codec, parts.codec.network
    assert codec.stride == job.spec.latent_stride_frames
    # channels in the config are those that folding a patch gives
    assert network.config["in_channels"] == network.config["out_channels"] == codec.patch ** 2
    assert parts.unet.latent_channels == codec.latent_channels
    assert parts.unet.token_dim == parts.conditioner.token_dim
    assert parts.unet.map_channels == parts.conditioner.map_channels
    freq = job.spec.n_mels // codec.stride
    assert list(parts.unet.unet.config["sample_size"]) == [job.spec.columns, freq]
    assert build(job.sampler).steps == job.sampler["steps"]
    assert callable(build(job.objective).loss) and callable(shared(json.dumps(job.vocoder)))
    # embedded and large differ from these in widths, which building has compared; others of base add nothing to a UNet
    if size == "smoke" or size == "base" and exp in ("diff_foley", "foleycrafter", "vta_ldm", "vta_sam_aligned"):
        shapes_go_through(job.spec, parts)


def shapes_go_through(spec: ClipSpec, parts: Parts) -> None:
    """Clip ⇒ condition ⇒ UNet ⇒ latent ⇒ mel, and back."""
    batch = meta_batch(spec)
    latent = torch.empty(2, parts.unet.latent_channels, spec.columns, spec.n_mels // parts.codec.stride,
                         device="meta")
    told, untold = parts.conditioner(batch), parts.conditioner.null(batch)
    assert told.tokens.shape == untold.tokens.shape
    with torch.device("meta"):
        assert parts.unet(latent, torch.zeros(2, dtype=torch.long), told).shape == latent.shape
        assert parts.codec.decode(latent).shape == (2, 1, spec.mel_frames, spec.n_mels)
        mel = torch.empty(2, 1, spec.mel_frames, spec.n_mels)
        assert parts.codec.moments(mel).shape == (2, 2 * latent.shape[1], *latent.shape[2:])


@pytest.mark.parametrize(("size", "parameters"), [("base", 578_052_168), ("large", 865_933_768)])
def test_published_parameter_counts(size, parameters):
    """VTA-LDM's and Tango's UNets to the parameter, and AudioLDM's VAE, so that their weights fit."""
    plain, job = built(job_of("vta_sam_published", size)), job_of("vta_sam_aligned", size)
    assert count(plain.unet) == count(plain.unet.unet) == parameters
    assert count(plain.codec.network) == 55_376_873
    timed, aligned = built(job_of("vta_sam", size)), built(job)
    map_channels = job.conditioner["map_channels"]
    assert map_channels > 0
    first = job.networks["unet"]["config"]["block_out_channels"][0]
    assert count(aligned.unet) - count(timed.unet) == map_channels * first * 3 * 3
    shapes = [{name: p.shape for name, p in part.unet.named_parameters()} for part in (plain, timed, aligned)]
    for more in shapes[1:]:
        assert [name for name in shapes[0] if shapes[0][name] != more[name]] == ["unet.conv_in.weight"]
        assert {name.rpartition("processor.")[2] for name in set(more) - set(shapes[0])} == {"position.weight"}


def test_nothing_tuned_to_the_embedded_world_reaches_base_unasked():
    """The published system at base differs from ours in the times alone."""
    ours, published = (composed(f"+exp={exp}", "size=base") for exp in ("vta_sam", "vta_sam_published"))
    assert ours["augment"]["frames"] == 0
    encoder = ours["conditioner"]["encoder"]
    assert encoder["frame_gain"] == encoder["object_gain"] == 1
    for config, times in ((ours, (16, 2.0)), (published, (0, 0))):
        unet = config["networks"]["unet"]
        assert (unet.pop("coordinate_channels"), unet.pop("timed_attention")) == times and config.pop("exp")
    assert ours == published


def test_every_size_sets_the_same_numbers():
    """A size that lacks a key would train with a default that nobody chose."""
    def keys(value: Any, path: str = "") -> set[str]:
        if not isinstance(value, dict):
            return {path}
        return set().union(*(keys(item, f"{path}.{key}") for key, item in value.items())) if value else {path}

    groups = ("clip", "fit", "validation", "figures", "embedded_clips", "embedded_expected_s")
    optional = {"workers", "streams", "precision", "accumulate"}  # have a default in StageSettings or FitSettings
    found = {}
    for size in SIZES:
        settings = composed("+exp=vta_sam", f"size={size}")
        found[size] = {key for group in groups for key in keys(settings[group], group)
                       if key.rsplit(".", 1)[-1] not in optional}
        for stage in ("vae", "condition", "diffusion"):
            numbers = StageSettings.of(settings["fit"][stage])
            assert 0 < numbers.warmup_steps < numbers.fit.validate_every <= numbers.fit.steps
            assert numbers.fit.checkpoint_every <= numbers.fit.validate_every
    for size in SIZES[1:]:
        assert found[size] == found["smoke"], size


FILES = [*(f"size/{size}" for size in SIZES), *(f"exp/{exp}" for exp in EXPERIMENTS)]


@pytest.mark.parametrize("file", FILES)
def test_what_a_file_says_is_what_is_composed(file):
    """No other file may silently win over a size or an experiment that was asked for."""
    group, name = file.split("/")
    says = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml"))
    composes = composed(f"+exp={name}") if group == "exp" else composed("+exp=vta_sam", f"size={name}")

    def lost(said: Any, found: Any, path: str) -> list[str]:
        if isinstance(said, dict):
            return [fault for key, value in said.items() for fault in lost(value, found.get(key), f"{path}.{key}")]
        unresolved = isinstance(said, str) and ("${" in said or said == "???")
        return [] if unresolved or said == found else [f"{path} is {found!r}, the file says {said!r}"]

    assert isinstance(says, dict)
    says.pop("defaults", None)
    assert lost(says, composes, file) == []


@pytest.mark.parametrize("data", ["embedded", "shards"])
@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_groups_compose_with_each_other(data, logger):
    settings = composed("+exp=vta_sam", "size=large", f"data={data}", f"logger={logger}")
    assert build(settings["data"]).train_split == "train"
    assert settings["logger"][0]["_target_"].endswith("CSVLogger"), "figures are always kept on disk"


@pytest.fixture
def command(tmp_path):
    """Run an entry script where importing torch ends the program: (script, *arguments) ⇒ its result."""
    (tmp_path / "torch.py").write_text('raise SystemExit("torch was imported")\n')

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run([sys.executable, str(REPOSITORY / script), *arguments], cwd=tmp_path, text=True,
                              capture_output=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120)

    return run


def test_the_trap_for_torch_works(command):
    result = command("experiments/train.py", "+exp=vta_sam", "size=smoke")
    assert result.returncode != 0 and "torch was imported" in result.stderr


def test_help_is_answered_without_torch(command):
    result = command("experiments/train.py", "--help")
    assert result.returncode == 0, result.stderr
    assert "seed" in result.stdout, "the settings are part of the help"
