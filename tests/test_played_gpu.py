"""Training, validation and sampling on a GPU that is played (played_gpu.py): no tensor on a wrong device, no wait of
the host within a micro-batch, and what a step costs, beside what was measured on an H100."""

from __future__ import annotations

import pickle
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from played_gpu import PlayedGPU
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorDeviceMismatchError

from vta_sam.conditioners import vta_sam_pretraining
from vta_sam.diffusion.sampler import Sampler
from vta_sam.generation.pipeline import Pipeline
from vta_sam.training.job import TrainingJob
from vta_sam.vocoder import HiFiGAN

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from memory import DIMENSIONS, micro_batch, module_of, played_micro_batch, played_step, ready  # noqa: E402
from step import batch_of  # noqa: E402

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf" / "exp").glob("*.yaml") if path.stem != "overfit")
# base's clip and every kind of its layers, of which there are fewer and narrower ones
NARROW = ("networks.unet.config.block_out_channels=[32,64]", "networks.unet.config.layers_per_block=1",
          "networks.unet.config.down_block_types=[CrossAttnDownBlock2D,DownBlock2D]",
          "networks.unet.config.up_block_types=[UpBlock2D,CrossAttnUpBlock2D]",
          "networks.unet.config.cross_attention_dim=32", "networks.unet.config.attention_head_dim=2",
          "networks.condition={width: 32, layers: 1, heads: 2}", "networks.codec.network.block_out_channels=[32,32,32]",
          "networks.codec.network.layers_per_block=1", "networks.vocoder.channels=32",
          "networks.adversary={period_width: 1, scale_width: 4}")


@cache
def job_of(exp: str, size: str = "base", *overrides: str) -> TrainingJob:
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"+exp={exp}", f"size={size}", *overrides])
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return TrainingJob.of(settings)


@pytest.fixture
def gpu():
    vta_sam_pretraining._shares_on.cache_clear()  # of what another test's device holds
    with warnings.catch_warnings(), PlayedGPU.played() as played:
        warnings.simplefilter("ignore")  # self.log() says that there is no trainer; copies of played tensors
        yield played


def narrow(exp: str, *overrides: str) -> TrainingJob:
    return job_of(exp, "base", *NARROW, *overrides)


@pytest.mark.parametrize("exp", [pytest.param(exp, marks=[] if exp == "tango" else pytest.mark.slow)
                                 for exp in EXPERIMENTS])
def test_a_micro_batch_waits_for_nothing(gpu, exp):
    job = narrow(exp)
    for stage in job.stages:
        if stage == "figures" or (stage == "vae" and exp != "vta_sam"):
            continue  # everybody's VAE is the same
        module, batch = module_of(job, stage), batch_of(job, 3, DIMENSIONS)
        if module.draw is not None:  # loaders that are spawned, not forked, unpickle it
            assert pickle.loads(pickle.dumps(module.draw))(batch).keys() == module.draw(batch).keys()
        counts = played_micro_batch(gpu, module, batch)
        assert counts.waits == [] and counts.flops > 0, stage


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stage", "clips", "tflop", "gb"), [
    ("base", "vae", 16, 49.3, 34.8), ("base", "condition", 128, 1.7, 2.1), ("base", "diffusion", 16, 32.0, 28.3),
    ("large", "diffusion", 8, None, None)])
def test_a_whole_step_costs_what_was_measured(gpu, size, stage, clips, tflop, gb):
    """On an H100, without the average of weights (docs/performance.md), and with norms in fp32; of size=large nothing
    was measured."""
    job = job_of("vta_sam", size)
    played = played_step(gpu, module_of(job, stage), batch_of(job, clips, DIMENSIONS), steps=2, prepared=False)
    assert played.micro.waits == []
    # GradientClipping asks once whether the step is finite
    assert [wait.split(":")[0] for wait in played.step.waits] == ["vta_sam/training/optimisation.py"]
    if tflop is not None:
        assert (played.micro.flops + played.step.flops) / 1e12 == pytest.approx(tflop, rel=0.06)
        assert (played.step.peak_bytes - 4 * played.parameters) / 1e9 == pytest.approx(gb, rel=0.05)
    assert played.step.alive_bytes < 5.2 * 4 * played.parameters, "weights, their average, two moments; no activation"


def test_norms_of_the_denoiser_and_the_codec_write_bf16(gpu, monkeypatch):
    job, written, moved = narrow("vta_sam"), [], []
    count = PlayedGPU._count

    def noting(self, func, args, kwargs, tensors, result):
        if func.overloadpacket in (torch.ops.aten.native_group_norm, torch.ops.aten.native_layer_norm):
            written.append(result[0].dtype)
        return count(self, func, args, kwargs, tensors, result)

    monkeypatch.setattr(PlayedGPU, "_count", noting)
    for stage in ("vae", "diffusion"):
        for prepared in (False, True):
            written.clear()
            module, batch = module_of(job, stage), batch_of(job, 2, DIMENSIONS)
            moved.append(played_step(gpu, module, batch, prepared=prepared).micro.moved_bytes)
            assert torch.bfloat16 in written if prepared else set(written) == {torch.float32}
    assert moved[1] < 0.9 * moved[0] and moved[3] < 0.9 * moved[2]


def pipeline_of(job: TrainingJob, solver: str) -> Pipeline:
    diffusion, codec = module_of(job, "diffusion").to("cuda").eval(), module_of(job, "vae").codec.to("cuda")
    return Pipeline(spec=job.spec, codec=codec, denoiser=diffusion.denoiser, conditioner=diffusion.conditioner,
                    objective=diffusion.objective, latent_scale=1.0, sampler=Sampler(solver=solver),
                    vocoder=HiFiGAN(channels=32).to("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("exp", ["vta_sam_aligned", "diff_foley", "foleycrafter"])
def test_sampling_does_not_wait_between_its_steps(gpu, exp):
    job = narrow(exp)
    pipeline, batch = pipeline_of(job, "dpm"), batch_of(job, 2, DIMENSIONS).to("cuda")
    pipeline.sample_latents(batch, [0, 1], steps=1)  # sends constants
    waits = []
    for steps in (1, 3):
        counts = gpu.fresh()
        latents = pipeline.sample_latents(batch, [0, 1], steps=steps)
        waits.append(len(counts.waits))
    assert waits == [2, 2], counts.waits  # the noise and the times are sent
    counts = gpu.fresh()
    assert pipeline.decode(latents).shape == (2, job.spec.samples)
    assert len(counts.waits) == 1  # the sound is fetched


@pytest.mark.slow
@torch.no_grad()
def test_validation_encoding_and_a_checkpoint_stay_on_their_devices(gpu):
    job = narrow("vta_sam")
    for stage in ("vae", "condition", "diffusion"):
        module = module_of(job, stage)
        batch = ready(module, batch_of(job, 2, DIMENSIONS)).to("cuda")
        with gpu.autocast():
            module.eval().validation_step(batch, 0)
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"cuda"}
        if stage == "vae":
            waveform = batch.waveform[0].cpu().numpy()
            assert module.codec.encode_moments(waveform).shape == (16, job.spec.columns, 16)


def test_waits_and_wrong_devices_are_seen(gpu):
    """Each fault, planted in a step."""
    job = narrow("tango")
    module, kept = module_of(job, "vae"), []
    batch = ready(module, batch_of(job, 2, DIMENSIONS))
    measure = type(module).measure

    def waits_with(fault) -> list[str]:
        def faulty(batch):
            loss, figures = measure(module, batch)
            kept.append(fault(loss, batch))
            return loss, figures

        module.measure = faulty
        counts = gpu.fresh()
        micro_batch(gpu, module, batch, bf16=True)
        return counts.waits

    assert waits_with(lambda loss, batch: loss + 1) == []
    for fault in (lambda loss, batch: loss.item(), lambda loss, batch: float(loss), lambda loss, batch: bool(loss > 0),
                  lambda loss, batch: loss.cpu(), lambda loss, batch: loss.detach().tolist(),
                  lambda loss, batch: batch.column_mask.to("cpu").numpy(),
                  lambda loss, batch: torch.ones(3).to(loss.device),
                  lambda loss, batch: torch.ones(3).to(loss.device, non_blocking=True),  # is not pinned
                  lambda loss, batch: torch.tensor([1.0, 2.0], device=loss.device),
                  lambda loss, batch: batch.waveform[torch.tensor([0, 1])]):
        assert len(waits_with(fault)) == 1
    assert waits_with(lambda loss, batch: torch.ones(3).pin_memory().to(loss.device, non_blocking=True)) == []
    with pytest.raises(FakeTensorDeviceMismatchError):
        waits_with(lambda loss, batch: batch.waveform * torch.ones(batch.waveform.shape))
    with pytest.raises(DynamicOutputShapeException):
        waits_with(lambda loss, batch: batch.waveform[batch.waveform > 0])


@torch.inference_mode()
def test_waits_are_seen_in_inference_mode(gpu):
    weight = torch.ones(3, 3).to("cuda")
    counts = gpu.fresh()
    assert torch.nn.functional.linear(torch.ones(2, 3).to("cuda"), weight).cpu().shape == (2, 3)
    assert [wait.split()[-1] for wait in counts.waits] == ["aten._to_copy.default"] * 2 and counts.flops == 36


def test_draws_in_the_step_would_be_seen(gpu):
    """As a stage made them before: an own stage may, and a GPU waits for it."""
    job = narrow("vta_sam")
    module = module_of(job, "diffusion")
    batch = ready(module, batch_of(job, 2, DIMENSIONS)).replace(draws=None)
    module.draw, drawn = None, module.draw
    with pytest.raises(AssertionError, match="latent shards"):
        micro_batch(gpu, module, batch, bf16=True)
    module.draw = drawn
    counts = gpu.fresh()
    micro_batch(gpu, module, batch, bf16=True)
    assert any("dataset/shards/batch.py" in wait for wait in counts.waits)


def test_what_is_counted(gpu):
    weight = torch.nn.Parameter(torch.zeros(1024, 512, device="cuda"))
    counts = gpu.fresh()
    assert counts.alive_bytes == 4 * 1024 * 512
    x = torch.zeros(256, 1024, device="cuda")
    with gpu.autocast():
        y = x @ weight
    assert y.dtype == torch.bfloat16 and counts.flops == 2 * 256 * 1024 * 512
    y.float().sum().backward()
    assert counts.flops == 2 * 2 * 256 * 1024 * 512 and weight.grad.dtype == torch.float32
    assert counts.peak_bytes > counts.alive_bytes > 4 * (2 * 1024 * 512 + 256 * 1024)
    weight.grad = None
    del x, y
    assert counts.alive_bytes == 4 * 1024 * 512


def test_the_host_computes_as_ever(gpu):
    x = torch.arange(3.0, requires_grad=True)
    (x ** 2).sum().backward()
    assert x.grad.tolist() == [0, 2, 4] and x[x > 0].tolist() == [1, 2]
