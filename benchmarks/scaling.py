"""What would limit training on many GPUs: computed from what one process can measure, and from what is assumed.

    python benchmarks/scaling.py --size base --step-clips 8
    python benchmarks/scaling.py --size large --step-clips 8 --step-s 0.9

Measured here: floating point operations of a step (counted on torch's meta device), bytes of its gradient, bytes of a
clip in a shard, clips a second that one process reads. Assumed, and changed by the options: what a GPU sustains, what
travels between GPUs and machines, what the storage delivers. ``--step-s`` replaces the first by a measurement
(benchmarks/step.py on a GPU). Each GPU has the same number of clips, so a step grows with their number. The exchange of
gradients is taken as a ring, and half of it as hidden behind the backward pass. The denoiser is the size's UNet: an
experiment with another one is refused.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from _report import Report, parser
from step import batch_of, job_of, module_of

from vta_sam.runtime.cli import run

DIMENSIONS = {"frame_dim": 768, "object_dim": 768, "caption_dim": 768}  # CLIP ViT-L/14's
HIDDEN = 0.5


def count(job: Any) -> tuple[float, float]:
    """One clip of stage 3 ⇒ (floating point operations, forward and backward; bytes of the gradient)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch = batch_of(job, 1, DIMENSIONS).to("meta")
    with torch.device("meta"):
        module = module_of(job, "diffusion", DIMENSIONS)
    tokens, frames = job.networks["unet"]["config"]["cross_attention_dim"], job.spec.frames
    latent = torch.empty(1, *batch.moments.shape[1:], device="meta")[:, : batch.moments.shape[1] // 2]
    sample = torch.empty(1, module.denoiser.unet.config["in_channels"], *latent.shape[2:], device="meta")
    with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        condition = torch.empty(1, frames, tokens, device="meta")
        module.denoiser.unet(sample, torch.empty(1, device="meta"), condition).sample.sum().backward()
    gradient = sum(4 * p.numel() for p in module.parameters() if p.requires_grad)
    return float(counter.get_total_flops()), float(gradient)


def read(job: Any, clips: int) -> tuple[float, float]:
    """A shard of random clips ⇒ (bytes a clip, clips a second that one process reads, decodes and crops)."""
    import numpy as np

    from vta_sam.clip import ClipFeatures
    from vta_sam.dataset.shards.batch import window_of
    from vta_sam.dataset.shards.records import read_shard, write_shard

    spec, random = job.spec, np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    made = (ClipFeatures(
        key=f"clip{number}", caption="a dog and a canary", objects=["dog", "canary"], fps=spec.fps,
        # half of the loudest noise: music and speech pack better
        waveform=0.1 * draw(spec.samples).clip(-5, 5), frame_embedding=draw(spec.frames, DIMENSIONS["frame_dim"]),
        probs=random.uniform(size=(spec.frames, 2)).astype(np.float32), boxes=draw(spec.frames, 2, 4),
        areas=draw(spec.frames, 2), object_embedding=draw(2, DIMENSIONS["object_dim"]),
        caption_tokens=draw(16, DIMENSIONS["caption_dim"]), duration_s=spec.duration_s) for number in range(clips))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-000000.tar"
        write_shard(path, made)
        began = time.perf_counter()
        for clip in read_shard(path):
            window_of(clip, spec, 0)
        return path.stat().st_size / clips, clips / (time.perf_counter() - began)


def row(gpus: int, step_s: float, gradient: float, clip_bytes: float, read_per_s: float, options: Any,
        ) -> dict[str, Any]:
    """A step on so many GPUs ⇒ what each part of it takes, and which part is the longest."""
    slowest = options.between_gpus_gb_s if gpus <= options.gpus_a_machine else options.between_machines_gb_s
    exchange_s = 2 * (gpus - 1) / gpus * gradient / (slowest * 1e9)
    waits_s = max(0.0, exchange_s - HIDDEN * step_s)
    loaders_s = options.step_clips / (read_per_s * options.loaders)
    storage_s = gpus * options.step_clips * clip_bytes / (options.storage_gb_s * 1e9)
    whole_s = max(step_s + waits_s, loaders_s, storage_s)
    parts = {"computing": step_s if not waits_s else 0.0, "exchange": step_s + waits_s if waits_s else 0.0,
             "loader processes": loaders_s, "storage": storage_s}
    return {"gpus": gpus, "clips_a_step": gpus * options.step_clips, "compute_s": round(step_s, 3),
            "exchange_s": round(exchange_s, 3), "loaders_s": round(loaders_s, 3), "storage_s": round(storage_s, 3),
            "step_s": round(whole_s, 3), "clips_per_s": round(gpus * options.step_clips / whole_s, 1),
            "efficiency": f"{step_s / whole_s:.0%}", "limit": max(parts, key=lambda name: parts[name])}


@run
def main() -> None:
    arguments = parser("Training on many GPUs, on paper.")
    arguments.add_argument("--size", default="base", help="a file of conf/size")
    arguments.add_argument("--exp", default="vta_sam", help="a file of conf/exp")
    arguments.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    arguments.add_argument("--step-clips", type=int, default=8, help="clips a step of one GPU")
    arguments.add_argument("--step-s", type=float, default=None, help="measured seconds of a step on one GPU")
    arguments.add_argument("--tflops", type=float, default=300.0,
                           help="assumed: sustained by a GPU (H100 bf16: 989 peak)")
    arguments.add_argument("--between-gpus-gb-s", type=float, default=300.0,
                           help="assumed: GB/s between GPUs of a machine")
    arguments.add_argument("--between-machines-gb-s", type=float, default=40.0,
                           help="assumed: GB/s between machines, a GPU")
    arguments.add_argument("--gpus-a-machine", type=int, default=8)
    arguments.add_argument("--loaders", type=int, default=8, help="loader processes a GPU")
    arguments.add_argument("--storage-gb-s", type=float, default=10.0, help="assumed: GB/s of the storage, for all")
    arguments.add_argument("--shard-clips", type=int, default=64, help="clips of the shard that is read")
    options = arguments.parse_args()
    job = job_of(options.exp, options.size)
    flops, gradient = count(job)
    clip_bytes, read_per_s = read(job, options.shard_clips)
    step_s = options.step_s or options.step_clips * flops / (options.tflops * 1e12)
    rows = [row(gpus, step_s, gradient, clip_bytes, read_per_s, options) for gpus in options.gpus]
    facts = {"tflop_a_clip": float(f"{flops / 1e12:.3g}"), "gradient_gb": round(gradient / 1e9, 3),
             "state_gb": round(4 * gradient / 1e9, 2), "clip_kb": round(clip_bytes / 1e3, 1),
             "read_clips_per_s_a_process": round(read_per_s, 1),
             "step_s_of_one_gpu": "measured" if options.step_s else f"assumed at {options.tflops:g} TFLOP/s"}
    Report(f"{options.exp}, size {options.size}, stage diffusion, {options.step_clips} clips a step and GPU", rows,
           facts).show(options.json)


if __name__ == "__main__":
    main()
