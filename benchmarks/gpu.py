"""What one GPU makes of the project, in eight minutes or less: training steps of each stage, sampling, one evaluation
of the denoiser, extraction, loading, and VTA-LDM's loop as it was published.

    python benchmarks/gpu.py --record          # measure, and write docs/gpu/<device>.json
    python benchmarks/gpu.py --page            # write docs/performance.md from what is in docs/gpu
    python benchmarks/gpu.py --narrow          # the same program in seconds, on a processor too: figures of no use

Weights and clips are random: what a step costs doesn't depend on what is seen. Rows are measured in order of weight
until the time is up; what was not reached is said. Two ceilings are measured in the same run: a product of bf16
matrices, and a copy in memory. FLOPs are counted by torch's counter over one step; ``mfu`` is their rate over the first
ceiling.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _report import machine, median, parser, seconds
from extract import VGGSOUND_CLIPS
from gpu_extraction import Extraction, hours
from gpu_page import FOLDER, write_page
from step import batch_of, job_of, module_of

from vta_sam.generation.build import prepare_layers
from vta_sam.runtime.cli import run

CLIP_L = {"frame_dim": 768, "object_dim": 768, "caption_dim": 768}  # CLIP ViT-L/14's
CLIPS = {"base": {"diffusion": (16, 32), "vae": (16,), "condition": (128,)},
         "large": {"diffusion": (8, 16), "vae": (8,), "condition": (64,)}}
STEPS = (25, 4)  # of the sampler
EXTRACTION = (("swint_ogc", None, 32), ("swinb_cogcoor", "vit_h", 16))  # detector, SAM, frames in a batch
PUBLISHED_FRAMES = 20  # of a clip, in VTA-LDM's loader


@dataclass
class Lease:
    """The time that is left, what was measured in it, and what was not.

    Args:
        seconds: in all.
        device: that is measured.
        narrow: everything small, to try the program.
    """

    seconds: float
    device: str
    narrow: bool
    began: float = field(default_factory=time.monotonic)
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def measure(self, table: str, name: str, needs_s: float, work: Callable[[], dict[str, Any]]) -> None:
        """Add a row to a table, where there is time for it; a row that fails says why, and the others go on."""
        import torch

        left_s = self.seconds - (time.monotonic() - self.began)
        if left_s < needs_s:
            self.left_out.append(f"{table}: {name} ({left_s:.0f} s were left)")
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # self.log() says that there is no trainer
                row = work()
        except (RuntimeError, ValueError, ImportError) as error:  # out of memory, no compiler, a missing package
            self.left_out.append(f"{table}: {name} ({str(error).splitlines()[0][:200]})")
        else:
            self.found.setdefault(table, []).append(row)
            print(f"{table}: {row}", flush=True)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def finish(self) -> None:
        """Wait for the device."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any], repeat: int) -> float:
        """Median seconds of ``repeat`` calls, after two to warm up."""
        def whole() -> None:
            work()
            self.finish()

        seconds(whole, 1 if self.narrow else 2)
        return median(seconds(whole, 1 if self.narrow else repeat), 5)


@contextmanager
def peak_gb(device: str) -> Iterator[list[float]]:
    """A context; afterwards the list holds the most memory that torch held on the GPU, in GB, or stays empty."""
    import torch

    held: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield held
    if device == "cuda":
        held.append(round(torch.cuda.max_memory_allocated() / 1e9, 1))


def ceilings(lease: Lease) -> dict[str, float]:
    """⇒ {"tflop_per_s": of a product of bf16 matrices, "tb_per_s": of a copy, read and written}."""
    import torch

    side = 256 if lease.narrow else 8192
    left, right = (torch.randn(side, side, device=lease.device, dtype=torch.bfloat16) for _ in range(2))
    product_s = lease.timed(lambda: left @ right, 20)
    source = torch.randn((1 << 20) if lease.narrow else (1 << 30) // 4, device=lease.device)
    copied_s = lease.timed(source.clone, 10)
    return {"tflop_per_s": round(2 * side ** 3 / product_s / 1e12, 2),
            "tb_per_s": round(2 * source.numel() * 4 / copied_s / 1e12, 3)}


class Step:
    """A training step of one stage: forward, backward, gradient's norm, AdamW, with the batch on the device."""

    def __init__(self, lease: Lease, job: Any, stage: str, clips: int, form: str):
        import torch

        self.lease, self.form = lease, form
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form != "fp32"
        self.batch = batch_of(job, clips, CLIP_L).to(lease.device)
        with torch.device(lease.device):
            self.module = module_of(job, stage, CLIP_L).to(lease.device)
        prepare_layers(self.module, torch.device(lease.device))
        self.optimiser = self.module.configure_optimizers()["optimizer"]
        self.compile_s = 0.0

    def __call__(self) -> None:
        import torch

        with torch.autocast(self.lease.device, torch.bfloat16, enabled=self.form.startswith("bf16")):
            loss = self.module.training_step(self.batch, 0)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()

    def flops(self) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self()
        return float(counter.get_total_flops())


def step_row(lease: Lease, job: Any, size: str, stage: str, clips: int, form: str, peak: float) -> dict[str, Any]:
    step = Step(lease, job, stage, clips, form)
    flops = step.flops()
    row = {"size": size, "stage": stage, "clips": clips, "form": form,
           "parameters_m": round(sum(p.numel() for p in step.module.parameters()) / 1e6, 1)}
    if form == "bf16, compiled":
        began = time.perf_counter()
        step.module.denoiser.compile_blocks()
        step()
        lease.finish()
        row["compiled_in_s"] = round(time.perf_counter() - began, 1)
    with peak_gb(lease.device) as held:
        spent = lease.timed(step, 6)
    return {**row, "s": spent, "clips_per_s": round(clips / spent, 1), "tflop": round(flops / 1e12, 3),
            "mfu": round(flops / spent / 1e12 / peak, 3), **({"gb": held[0]} if held else {})}


def published_row(lease: Lease, job: Any, size: str, clips: int, peak: float) -> dict[str, Any]:
    """VTA-LDM's training step as published: fp32; a clip's frames are a file of float32 pixels, read by the training
    process, and its sound a wav; CLIP sees one video at a time, the VAE encodes every step (train.py, models.py)."""
    import numpy as np
    import soundfile
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vta_sam.checkpoints.parts import build

    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                             "num_attention_heads": 2, "projection_dim": 768} if lease.narrow else {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14, "projection_dim": 768}
    step = Step(lease, job, "diffusion", clips, "fp32")
    with torch.device(lease.device):
        eyes = CLIPVisionModelWithProjection(CLIPVisionConfig(**small)).eval()
        codec = build({k: v for k, v in job.networks["codec"].items() if v is not None}).to(lease.device)
    with tempfile.TemporaryDirectory() as folder:
        frames = [Path(folder) / f"{i}.pt" for i in range(clips)]
        sounds = [path.with_suffix(".wav") for path in frames]
        for path, sound in zip(frames, sounds):
            torch.save(torch.rand(PUBLISHED_FRAMES, 3, 224, 224), path)
            soundfile.write(sound, 0.1 * np.random.default_rng(0).normal(size=job.spec.samples), 16_000)

        def whole() -> None:
            waves = torch.from_numpy(np.stack([soundfile.read(path, dtype="float32")[0] for path in sounds]))
            pictures = [torch.load(path, weights_only=True) for path in frames]
            with torch.no_grad():
                for video in pictures:
                    eyes(video.to(lease.device))
                codec.moments(codec.mel_of(waves.to(lease.device)))
            step()

        with peak_gb(lease.device) as held:
            spent = lease.timed(whole, 4)
    flops = step.flops()
    return {"size": size, "stage": "diffusion", "clips": clips, "form": "VTA-LDM's loop as published", "s": spent,
            "clips_per_s": round(clips / spent, 1), "tflop": round(flops / 1e12, 3),
            "mfu": round(flops / spent / 1e12 / peak, 3), **({"gb": held[0]} if held else {})}


def pipeline_of(lease: Lease, job: Any) -> Any:
    """The size's pipeline with random weights, HiFi-GAN where the size has it."""
    import torch

    from vta_sam.checkpoints.parts import build
    from vta_sam.diffusion.sampler import Sampler
    from vta_sam.generation.pipeline import Pipeline

    with torch.device(lease.device):
        module = module_of(job, "diffusion", CLIP_L).to(lease.device)
        codec = build({k: v for k, v in job.networks["codec"].items() if v is not None})
        vocoder = build(job.vocoder)
    return Pipeline(spec=job.spec, codec=codec, denoiser=module.denoiser, conditioner=module.conditioner,
                    objective=module.objective, latent_scale=1.0, sampler=Sampler(), vocoder=vocoder).to(lease.device)


def sampling_row(lease: Lease, pipeline: Any, job: Any, size: str, clips: int, steps: int, bf16: bool,
                 ) -> dict[str, Any]:
    import torch

    batch, seeds = batch_of(job, clips, CLIP_L), list(range(clips))

    def sample() -> Any:
        with torch.autocast(lease.device, torch.bfloat16, enabled=bf16):
            return pipeline.sample_latents(batch, seeds, steps=steps)

    latents = sample()
    return {"size": size, "clips": clips, "steps": steps, "form": "bf16" if bf16 else "fp32",
            "latents_s": lease.timed(sample, 3), "sound_s": lease.timed(lambda: pipeline.decode(latents), 3)}


def evaluation_row(lease: Lease, pipeline: Any, job: Any, size: str, form: str) -> dict[str, Any]:
    """One evaluation of the denoiser for one clip; "replayed": as a CUDA graph, whose launches cost nothing."""
    import torch

    batch = batch_of(job, 1, CLIP_L).to(lease.device)
    latent = torch.randn(1, *pipeline.latent_shape, device=lease.device)
    times = torch.zeros(1, dtype=torch.long, device=lease.device)
    with torch.no_grad(), torch.autocast(lease.device, torch.bfloat16, enabled=form != "fp32"):
        condition = pipeline.conditioner(batch)

        def evaluate() -> Any:
            return pipeline.denoiser(latent, times, condition)

        work: Callable[[], Any] = evaluate
        if form == "bf16, replayed":
            seconds(evaluate, 3)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                evaluate()
            work = graph.replay
        return {"size": size, "form": form, "evaluation_ms": round(1e3 * lease.timed(work, 20), 2)}


def extraction_row(lease: Lease, detector: str, sam: str | None, batch_frames: int, weights: Path) -> dict[str, Any]:
    """Frames a second through the extractors, in batches of several clips and one by one by the packages' own code."""
    work = Extraction(detector, sam, batch_frames, lease.device, lease.narrow, weights)
    with peak_gb(lease.device) as held:
        batched = work.batches * batch_frames / lease.timed(work, 3)
    alone = 2 / lease.timed(work.one_by_one, 3)
    name = f"{detector}, {f'SAM {sam}, ' if sam else ''}CLIP ViT-L/14, batch {batch_frames}, {work.precision}"
    return {"what": name, **({"gb": held[0]} if held else {}), "frames_per_s": round(batched, 1),
            "alone_per_s": round(alone, 1), "hours": round(hours(batched), 1),
            "hours_64": round(hours(batched) / 64, 2),
            "stored_gb": round(VGGSOUND_CLIPS * work.stored_bytes() / 1e9, 1)}


def loading_row(lease: Lease, job: Any, size: str, workers: int, clips: int) -> dict[str, Any]:
    """Clips a second of the training loader, from shards on this machine's disk."""
    from vta_sam.dataset.shards.datamodule import ShardDataModule

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards_of(job, root, shards=max(2, workers), clips=clips)
        data = ShardDataModule(root, job.spec, batch_size=16, seed=0, stage="diffusion", streams=max(8, workers),
                               workers=workers)
        data.setup("fit")
        batches = iter(data.train_dataloader())
        next(batches)
        began = time.perf_counter()
        count = 4 if lease.narrow else 40
        for _ in range(count):
            next(batches)
        return {"size": size, "workers": workers,
                "clips_per_s": round(16 * count / (time.perf_counter() - began), 1)}


def shards_of(job: Any, root: Path, shards: int, clips: int) -> None:
    """A dataset of random clips."""
    import numpy as np

    from vta_sam.clip import ClipFeatures
    from vta_sam.dataset.shards.records import write_shard
    from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo

    spec, random = job.spec, np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    infos: dict[str, list[ShardInfo]] = {}
    for split, count in (("train", shards), ("val", 1)):
        infos[split] = []
        for number in range(count):
            name = f"{split}-{number:06d}.tar"
            write_shard(root / name, [ClipFeatures(
                key=f"{split}{number}-{i}", caption="a dog", objects=["dog", "canary"], fps=spec.fps,
                waveform=0.1 * draw(spec.samples).clip(-5, 5), frame_embedding=draw(spec.frames, 768),
                probs=random.uniform(size=(spec.frames, 2)).astype(np.float32), boxes=draw(spec.frames, 2, 4),
                areas=draw(spec.frames, 2), object_embedding=draw(2, 768), caption_tokens=draw(16, 768),
                duration_s=spec.duration_s) for i in range(clips)])
            infos[split].append(ShardInfo(name, clips, 0))
    DatasetInfo("random", "random", spec.fps, spec.sample_rate_hz, 768, 768, 768, "config", "manifest", "0",
                infos).write(root)


def measure_generation(lease: Lease, job: Any, size: str) -> None:
    pipeline = pipeline_of(lease, job)
    for form in ("fp32", "bf16", *(["bf16, replayed"] if lease.device == "cuda" else [])):
        lease.measure("evaluation", f"{size} {form}", 5, lambda: evaluation_row(lease, pipeline, job, size, form))
    for clips in (1,) if lease.narrow or size != "base" else (1, 16):
        for steps in (1,) if lease.narrow else STEPS:
            lease.measure("sampling", f"{size}, {clips} clips, {steps} steps", 10,
                          lambda: sampling_row(lease, pipeline, job, size, clips, steps, True))


def measure(lease: Lease, sizes: list[str]) -> dict[str, Any]:
    """All rows, in order of weight ⇒ the record."""
    reached = ceilings(lease)
    peak = reached["tflop_per_s"]
    for size in sizes:
        job = job_of("vta_sam", "embedded" if lease.narrow else size)
        counts = {stage: (2,) for stage in CLIPS[size]} if lease.narrow else CLIPS[size]
        for stage, clips in ((stage, n) for stage, choices in counts.items() for n in choices):
            lease.measure("training", f"{size} {stage} {clips}", 15,
                          lambda: step_row(lease, job, size, stage, clips, "bf16", peak))
        first = counts["diffusion"][0]
        lease.measure("training", f"{size} fp32", 20,
                      lambda: step_row(lease, job, size, "diffusion", first, "fp32", peak))
        measure_generation(lease, job, size)
    base = job_of("vta_sam", "embedded" if lease.narrow else sizes[0])
    for workers in (0, 2) if lease.narrow else (1, 8):
        lease.measure("loading", f"{workers} workers", 20,
                      lambda: loading_row(lease, base, sizes[0], workers, 4 if lease.narrow else 64))
    with tempfile.TemporaryDirectory() as folder:
        for detector, sam, frames in EXTRACTION:
            lease.measure("extraction", f"{detector} {sam or 'without SAM'}", 60, lambda: extraction_row(
                lease, "swint_ogc" if lease.narrow else detector, sam, 2 if lease.narrow else frames, Path(folder)))
    first = 2 if lease.narrow else CLIPS[sizes[0]]["diffusion"][0]
    lease.measure("training", "as published", 30, lambda: published_row(lease, base, sizes[0], first, peak))
    if not lease.narrow:  # it costs a minute or two whatever the size
        lease.measure("training", "compiled", 120,
                      lambda: step_row(lease, base, sizes[0], "diffusion", first, "bf16, compiled", peak))
    return {"ceilings": reached, **lease.found, "left_out": lease.left_out}


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else str(machine()["cpu"])


def commit() -> str:
    """Of the checkout; where there is none, unknown."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                           text=True)
    return asked.stdout.strip() or "unknown"


@run
def main() -> None:
    arguments = parser("What one GPU makes of the project.")
    arguments.add_argument("--sizes", nargs="+", default=["base", "large"], choices=sorted(CLIPS))
    arguments.add_argument("--seconds", type=float, default=450.0, help="after which no further row is begun")
    arguments.add_argument("--record", type=Path, nargs="?", const=FOLDER, default=None,
                           help="folder for <device>.json; without a value docs/gpu")
    arguments.add_argument("--page", action="store_true", help="only write docs/performance.md from the records")
    arguments.add_argument("--narrow", action="store_true", help="everything small, to try the program")
    options = arguments.parse_args()
    if options.page:
        print(write_page())
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = device_name(device)
    lease = Lease(options.seconds, device, options.narrow)
    found = measure(lease, options.sizes)
    record = {"device": name, "commit": commit(), "narrow": options.narrow, **found, "machine": machine(),
              "took_s": round(time.monotonic() - lease.began, 1)}
    text = json.dumps(record, indent=1) + "\n"
    if options.record is not None:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        options.record.mkdir(parents=True, exist_ok=True)
        (options.record / f"{slug}.json").write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(record))
    elif options.record is None:
        print(text, end="")


if __name__ == "__main__":
    main()
