"""What a training step or a batch of extraction costs on a GPU, counted without one: floating point operations, bytes
that its operations read and write, memory at its peak, and how often the host waits for the device.

    python benchmarks/memory.py --size base --batch 16
    python benchmarks/memory.py --size large --exp foleycrafter --stages onsets diffusion --batch 4
    python benchmarks/memory.py --detector swint_ogc --batch 32 --precision fp16
    python benchmarks/memory.py --detector swinb_cogcoor --sam vit_h --batch 16 --sam-batch 4 --precision fp16

The GPU is played (tests/played_gpu.py): networks have the size's shapes and no values. Counted is the second step, when
AdamW has its moments and the average of weights is there. Memory is what tensors hold; a GPU adds workspaces of its
libraries and what its allocator leaves between tensors. ``--precision fp32`` computes without autocast. ``--detector``
counts a batch of extraction instead: pictures of 640 × 360, with ``--sam`` of 1024 × 576, which Grounding DINO scales
to 1333 × 750. The one wait is for what was found; casts are weights that autocast casts for each batch.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from _report import Report, parser
from segment_anything import sam_model_registry
from step import batch_of, job_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from played_gpu import Counts, PlayedGPU  # noqa: E402

from vta_sam.checkpoints.model_folder import uninitialised  # noqa: E402
from vta_sam.checkpoints.parts import build  # noqa: E402
from vta_sam.dataset.shards.batch import Augmentation, ClipBatch  # noqa: E402
from vta_sam.diffusion.condition import connect  # noqa: E402
from vta_sam.diffusion.latent_diffusion import LatentDiffusion  # noqa: E402
from vta_sam.generation.build import prepare_layers  # noqa: E402
from vta_sam.importers.random_weights import write_random  # noqa: E402
from vta_sam.perception.grounded_sam import Segmenter  # noqa: E402
from vta_sam.perception.grounding_dino import CONFIGS, Detector, empty_detector_network  # noqa: E402
from vta_sam.perception.inference import hold_weights  # noqa: E402
from vta_sam.runtime.cli import run  # noqa: E402
from vta_sam.runtime.distributed import FORMATS  # noqa: E402
from vta_sam.training.optimisation import (  # noqa: E402
    ExponentialMovingAverage, GradientClipping, prepare_blocks
)
from vta_sam.training.part_stages import PartInputs, PartStage  # noqa: E402
from vta_sam.training.stage import JobSettings, StageSettings  # noqa: E402
from vta_sam.training.job import STAGES  # noqa: E402
from vta_sam.training.codec_stages import MelVAE  # noqa: E402
from vta_sam.vocoder.hifigan_training import Discriminators, VocoderTraining  # noqa: E402

DIMENSIONS = {"frame_dim": 768, "object_dim": 768, "caption_dim": 768}  # CLIP ViT-L/14's


def module_of(job: JobSettings, stage: str) -> L.LightningModule:
    """The LightningModule that a stage fits, with weights of no meaning."""
    settings, row = StageSettings.of(job.fit[stage]), STAGES[stage]
    with uninitialised():
        if stage == "vae":
            return MelVAE(build({k: v for k, v in job.networks["codec"].items() if v is not None}), settings.weights,
                          settings.optimise())
        if stage == "vocoder":
            return VocoderTraining(build(job.vocoder), Discriminators(**job.networks["adversary"]), settings.weights,
                                   settings.optimise())
        recipe, denoiser_recipe = job.network_recipes(SimpleNamespace(  # type: ignore[arg-type]
            dimensions={"fps": job.spec.fps, **DIMENSIONS}))
        conditioner, objective = build(recipe, _partial_=True)(spec=job.spec), build(job.objective)
        augment = Augmentation(**job.augment)
        if isinstance(row, PartStage):
            return row.module(PartInputs(job.spec, conditioner, settings, augment, 1.0, objective))
        denoiser = build(denoiser_recipe, _partial_=True)(spec=job.spec)
        connect(denoiser, conditioner)
        rates = {f"conditioner.{part.attribute}.": part.rate for part in conditioner.pretrained.values()}
        return LatentDiffusion(denoiser, conditioner, objective, 1.0, job.dropout, augment, settings.optimise(rates))


@dataclass
class PlayedStep:
    """Counts of a micro-batch (sending the batch, forward, backward), and of the optimiser's step after it with the
    gradient's norm and the average of weights. The latter's peak is that of both."""

    micro: Counts
    step: Counts
    parameters: int


def played_step(gpu: PlayedGPU, module: L.LightningModule, batch: ClipBatch, bf16: bool = True,
                steps: int = 1, prepared: bool = True) -> PlayedStep:
    """Train on a played GPU, inside which this is called ⇒ counts of the last step.

    Args:
        gpu: that is played.
        module: of a stage, which is moved to it.
        batch: on the host.
        bf16: under autocast.
        steps: to take.
        prepared: with :func:`~vta_sam.generation.build.prepare_layers`; without, as the H100 was measured.
    """
    batch = ready(module, batch, prepared)
    optimised: Any = module.configure_optimizers()
    optimiser = optimised["optimizer"]
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)), global_step=0,
                                   global_rank=0)
    average, clipping = ExponentialMovingAverage(0.999, 0), GradientClipping(1.0, Path())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy of a played tensor asks where its values lie
        average.setup(trainer, module, "fit")
    for _ in range(steps):
        micro = gpu.fresh()
        loss = micro_batch(gpu, module, batch, bf16)
        clipping.on_before_backward(trainer, module, loss)
        loss.backward()
        step = gpu.fresh()
        step.peak_bytes = micro.peak_bytes
        clipping.on_before_optimizer_step(trainer, module, optimiser)
        optimiser.step()
        optimiser.zero_grad()
        average._average_model.update_parameters(module)  # type: ignore[union-attr]
        del loss
    return PlayedStep(micro, step, sum(parameter.numel() for parameter in module.parameters()))


def ready(module: L.LightningModule, batch: ClipBatch, prepared: bool = True) -> ClipBatch:
    """The module is moved to the played GPU ⇒ the batch as a loader hands it over, drawn for and pinned."""
    module.to("cuda").train()
    if prepared:
        prepare_layers(module, torch.device("cuda"))
    return batch.with_draws(getattr(module, "draw", None)).pin_memory()


def played_micro_batch(gpu: PlayedGPU, module: L.LightningModule, batch: ClipBatch, bf16: bool = True) -> Counts:
    """Counts of a micro-batch that is not the first, in which constants are sent; arguments as of
    :func:`played_step`."""
    batch = ready(module, batch)
    with torch.no_grad():
        micro_batch(gpu, module, batch, bf16)
    counts = gpu.fresh()
    micro_batch(gpu, module, batch, bf16).backward()
    return counts


def micro_batch(gpu: PlayedGPU, module: L.LightningModule, batch: ClipBatch, bf16: bool) -> torch.Tensor:
    """Send a batch of the loader as Lightning sends it ⇒ its loss."""
    sent = batch.to(torch.device("cuda", 0))
    with warnings.catch_warnings(), gpu.autocast() if bf16 else nullcontext():
        warnings.simplefilter("ignore")  # self.log() says that there is no trainer
        loss = module.training_step(sent, 0)
    assert isinstance(loss, torch.Tensor)
    return loss


def played_detection(gpu: PlayedGPU, network: torch.nn.Module, pictures: torch.Tensor,
                     dtype: torch.dtype | None = torch.float16, sam: torch.nn.Module | None = None,
                     sam_batch: int = 4) -> Counts:
    """Counts of a batch of extraction, of several clips with different words, that is not the first: pictures are sent,
    go through Grounding DINO and SAM, and what is found is fetched.

    Args:
        gpu: that is played, inside which this is called.
        network: groundingdino's, which is moved to it.
        pictures: (B, 3, H, W) uint8.
        dtype: of autocast, and of weights; None: without.
        sam: segment-anything's network; None: without.
        sam_batch: pictures in one batch of it.
    """
    device = torch.device("cuda", 0)
    detector = Detector(network, 800, 1333, device, nullcontext())
    detector.hold_weights(dtype)
    segmenter = None if sam is None else Segmenter(sam, sam_batch, device, nullcontext())
    if sam is not None:
        hold_weights(sam, dtype)
    words = [detector.prompt(words) for words in (["dog", "car"], ["race car"], ["steel drum", "guitar"])]
    prompts = [words[i % len(words)] for i in range(len(pictures))]
    for _ in range(2):
        counts = gpu.fresh()
        with gpu.autocast(dtype) if dtype else nullcontext():
            sent = detector.transfer.send(pictures)
            found = detector.detect(sent, prompts)
            parts = [found.probs[..., None], found.boxes]
            if segmenter is not None:
                areas, pooled = segmenter.measure(sent, found.boxes)
                parts += [areas[..., None], pooled]
            fetch = detector.transfer.fetch(torch.cat(parts, -1))
        fetch()
    return counts


def detection_row(name: str, pictures: int, dtype: torch.dtype | None, sam: str | None, sam_batch: int,
                  ) -> dict[str, Any]:
    """What a batch of a released version of Grounding DINO costs, and of SAM. With SAM pictures are 1024 × 576, which
    both networks read."""
    with tempfile.TemporaryDirectory() as folder, uninitialised():
        network = empty_detector_network(name, write_random("bert-base-uncased", Path(folder)))
        second = None if sam is None else sam_model_registry[sam]().eval()
    size = (360, 640) if sam is None else (576, 1024)
    with PlayedGPU.played() as gpu:
        counts = played_detection(gpu, network, torch.zeros((pictures, 3, *size), dtype=torch.uint8), dtype, second,
                                  sam_batch)
    return {"detector": name, "sam": sam or "", "pictures": pictures,
            "tflop_a_picture": round(counts.flops / 1e12 / pictures, 2),
            "moved_gb_a_picture": round(counts.moved_bytes / 1e9 / pictures, 1),
            "peak_gb": round(counts.peak_bytes / 1e9, 1), "waits": len(counts.waits), "casts": len(counts.casts)}


@run
def main() -> None:
    arguments = parser("The cost of a training step or a batch of extraction, counted on a GPU that is played.")
    arguments.add_argument("--size", default="base", help="a file of conf/size")
    arguments.add_argument("--exp", default="vta_sam", help="a file of conf/exp")
    arguments.add_argument("--stages", nargs="+", default=None, help="default: those of the experiment")
    arguments.add_argument("--batch", type=int, default=None, help="clips; default: the size's own; or pictures")
    arguments.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16",
                           help="fp16: of extraction alone")
    arguments.add_argument("--detector", choices=tuple(CONFIGS), default=None, help="of a batch of 8 pictures instead")
    arguments.add_argument("--sam", choices=("vit_b", "vit_l", "vit_h"), default=None, help="beside the detector")
    arguments.add_argument("--sam-batch", type=int, default=4, help="pictures in one batch of SAM")
    arguments.add_argument("--unprepared", action="store_true", help="norms as autocast has them, in fp32")
    arguments.add_argument("--checkpointed", action="store_true", help="stage diffusion with gradient_checkpointing")
    options = arguments.parse_args()
    if options.checkpointed and options.precision == "bf16":
        arguments.error("--checkpointed goes with --precision fp32: torch's checkpoints don't know played autocast")
    if options.detector:
        row = detection_row(options.detector, options.batch or 8, None if options.precision == "fp32" else
                            FORMATS[options.precision], options.sam, options.sam_batch)
        Report(f"A batch of extraction, {options.precision}, on a played GPU", [row]).show(options.json)
        return
    if options.precision == "fp16" or options.sam:
        arguments.error("--precision fp16 and --sam go with --detector")
    job, rows = job_of(options.exp, options.size), []
    for stage in options.stages or [stage for stage in job.stages if stage != "figures"]:
        clips = options.batch or job.fit[stage]["batch_size"]
        batch, module = batch_of(job, clips, DIMENSIONS), module_of(job, stage)
        prepare_blocks(module, options.checkpointed and stage == "diffusion", False, torch.device("cpu"))
        with PlayedGPU.played() as gpu:
            played = played_step(gpu, module, batch, options.precision == "bf16", 2, not options.unprepared)
        both = (played.micro, played.step)
        rows.append({"stage": stage, "parameters": played.parameters, "clips": clips,
                     "tflop": round(sum(counts.flops for counts in both) / 1e12, 1),
                     "moved_gb": round(sum(counts.moved_bytes for counts in both) / 1e9, 1),
                     "peak_gb": round(played.step.peak_bytes / 1e9, 1),
                     "waits_of_a_micro_batch": len(played.micro.waits), "waits_of_a_step": len(played.step.waits)})
        del module, batch
    Report(f"A step of {options.exp} at size={options.size}, {options.precision}, on a played GPU", rows).show(
        options.json)


if __name__ == "__main__":
    main()
