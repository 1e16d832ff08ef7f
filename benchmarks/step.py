"""Seconds of a training step of each stage, in fp32 and in bf16, at any size of conf/size; beside the attention kernel
that training uses, torch's own choice of one.

    python benchmarks/step.py --size embedded --exp vta_sam
    python benchmarks/step.py --size base --stages diffusion --batch-size 4 --frame-dim 768 --object-dim 768

Random features: what a step costs doesn't depend on what is seen. Reading data is not part of it. The denoiser is the
size's UNet: an experiment with another one is refused.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _report import Report, median, parser, peak_memory_gb

from vta_sam.runtime.cli import run
from vta_sam.runtime.errors import InputError

STAGES = ("vae", "condition", "diffusion")
CAPTION_TOKENS = 16


def job_of(exp: str, size: str) -> Any:
    """The training job as the command line would make it. InputError: its denoiser is not the size's UNet."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from vta_sam.training.job import TrainingJob

    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"+exp={exp}", f"size={size}"])
    settings: Any = OmegaConf.to_container(config, resolve=True)
    job = TrainingJob.of(settings)
    if job.denoiser:
        raise InputError(f"--exp {exp} has the denoiser {job.denoiser['_target_']}; only the UNet of a size is "
                         "measured here, so name an experiment without one")
    return job


def module_of(job: Any, stage: str, dims: dict[str, int]) -> Any:
    """The stage's LightningModule with random weights, built as the stage builds it."""
    from vta_sam.checkpoints.parts import build
    from vta_sam.conditioners.vta_sam_pretraining import ConditionPretraining
    from vta_sam.dataset.shards.batch import Augmentation
    from vta_sam.diffusion.latent_diffusion import LatentDiffusion
    from vta_sam.training.stage import StageSettings
    from vta_sam.training.codec_stages import MelVAE

    settings = StageSettings.of(job.fit[stage])
    if stage == "vae":
        codec = {k: v for k, v in job.networks["codec"].items() if v is not None}
        return MelVAE(build(codec), settings.weights, settings.optimise())
    conditioner, unet = job.network_recipes(SimpleNamespace(dimensions={"fps": job.spec.fps, **dims}))
    if stage == "condition":
        return ConditionPretraining(build(conditioner["encoder"]), settings.weights, Augmentation(**job.augment),
                                    settings.optimise(), job.spec.mel)
    return LatentDiffusion(
        build(unet, _partial_=True)(spec=job.spec), build(conditioner, _partial_=True)(spec=job.spec),
        build(job.objective),
        latent_scale=1.0, dropout=job.dropout, augment=Augmentation(**job.augment), optimise=settings.optimise())


def batch_of(job: Any, size: int, dims: dict[str, int]) -> Any:
    """Random clips of two objects, with sound and moments of latents."""
    import numpy as np

    from vta_sam.clip import ClipFeatures
    from vta_sam.dataset.shards.batch import collate, window_of

    spec, random = job.spec, np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    unet = job.networks["unet"]["config"]
    windows = []
    for number in range(size):
        clip = ClipFeatures(
            key=f"clip{number}", caption="a dog and a canary", objects=["dog", "canary"], fps=spec.fps,
            waveform=0.1 * draw(spec.samples), frame_embedding=draw(spec.frames, dims["frame_dim"]),
            probs=random.uniform(size=(spec.frames, 2)).astype(np.float32), boxes=draw(spec.frames, 2, 4),
            areas=draw(spec.frames, 2), object_embedding=draw(2, dims["object_dim"]),
            caption_tokens=draw(CAPTION_TOKENS, dims["caption_dim"]), duration_s=spec.duration_s)
        moments = draw(2 * unet["out_channels"], *unet["sample_size"])
        windows.append(window_of(clip, spec, number, moments=moments))
    return collate(windows, spec)


def seconds_a_step(module: Any, batch: Any, device: str, bf16: bool, repeat: int) -> float:
    """Median of ``repeat`` whole steps (forward, backward, gradient's norm, optimiser) after two to warm up."""
    import torch

    optimiser = module.configure_optimizers()["optimizer"]
    finish: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(2 + repeat):
        finish()
        start = time.perf_counter()
        with warnings.catch_warnings(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            warnings.simplefilter("ignore")  # self.log() says that there is no trainer
            loss = module.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        finish()
        times.append(time.perf_counter() - start)
    return median(times[2:])


@run
def main() -> None:
    arguments = parser("Seconds of a training step of each stage.")
    arguments.add_argument("--size", default="embedded", help="a file of conf/size")
    arguments.add_argument("--exp", default="vta_sam", help="a file of conf/exp")
    arguments.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments.add_argument("--batch-size", type=int, default=None, help="clips; default: the size's own")
    arguments.add_argument("--repeat", type=int, default=5, help="steps, of which the median counts")
    arguments.add_argument("--frame-dim", type=int, default=64, help="numbers of a frame embedding")
    arguments.add_argument("--object-dim", type=int, default=32, help="numbers of an object embedding")
    arguments.add_argument("--caption-dim", type=int, default=32, help="numbers of a caption's token")
    options = arguments.parse_args()
    import torch

    from vta_sam.training.optimisation import attention_kernels

    job = job_of(options.exp, options.size)
    dims = {"frame_dim": options.frame_dim, "object_dim": options.object_dim, "caption_dim": options.caption_dim}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for stage in options.stages:
        size = options.batch_size or job.fit[stage]["batch_size"]
        module, spent = module_of(job, stage, dims).to(device), {}
        batch = batch_of(job, size, dims).with_draws(module.draw).to(device)  # drawn for, as a loader hands it over
        for name in ("fp32", "bf16"):
            with attention_kernels(device):
                spent[name] = seconds_a_step(module, batch, device, name == "bf16", options.repeat)
        torch_own = seconds_a_step(module, batch, device, True, options.repeat)
        parameters = sum(p.numel() for p in module.parameters())
        rows.append({"stage": stage, "parameters": parameters, "clips": size, "fp32_s": spent["fp32"],
                     "bf16_s": spent["bf16"], "bf16_over_fp32": round(spent["bf16"] / spent["fp32"], 2),
                     "bf16_torch_own_kernel_s": torch_own,
                     "clips_per_s": round(size / min(spent.values()), 1)})
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    facts: dict[str, Any] = {"device": name, "peak_memory_gb": peak_memory_gb(), "repeat": options.repeat}
    if device == "cuda":
        facts["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1024 ** 3, 2)
    Report(f"a training step of {options.exp}, size {options.size}", rows, facts).show(options.json)


if __name__ == "__main__":
    main()
