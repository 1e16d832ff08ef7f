"""How fast Grounding SAM extraction is: clips a second, where the time goes, and batches against frame by frame.

    python benchmarks/extract.py --videos clips --weights weights                      # the released weights
    python data_prep/weights.py random extraction sam_vit_b --folder out/random       # or random ones: as fast, blind
    python benchmarks/extract.py --videos clips --weights out/random --fps 0.5 --short-side 256

"Frame by frame" is how the packages' own examples work, in the same number format: groundingdino's model with the
prompt for every picture, SAM's predictor for every picture, CLIP for every picture, each clip decoded by the same
reader. Hours and bytes for 200,000 clips are computed from the clips measured, and say so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report, parser, peak_memory_gb

from vta_sam.runtime.cli import run

VGGSOUND_CLIPS = 200_000


def parse() -> argparse.Namespace:
    arguments = parser("Clips a second of extraction with Grounding DINO, SAM and CLIP, and where the time goes.")
    arguments.add_argument("--videos", type=Path, required=True, help="folder of videos")
    arguments.add_argument("--weights", type=Path, default=None, help="folder of released, or of random weights")
    arguments.add_argument("--objects", nargs="+", default=["dog", "car"], help="words looked for in every clip")
    arguments.add_argument("--clips", type=int, default=4, help="videos of the folder that are taken")
    arguments.add_argument("--duration", type=float, default=10.0, help="seconds of each")
    arguments.add_argument("--fps", type=float, default=8.0, help="frames a second that are looked at")
    arguments.add_argument("--detector", default="swint_ogc")
    arguments.add_argument("--sam", default="vit_b", help="vit_b, vit_l, vit_h or none")
    arguments.add_argument("--short-side", type=int, default=800, help="pixels that Grounding DINO sees")
    arguments.add_argument("--batch-frames", type=int, default=8)
    arguments.add_argument("--sam-batch-frames", type=int, default=4)
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--workers", type=int, default=2, help="decoding processes")
    arguments.add_argument("--one-by-one", type=int, default=4, help="frames also done frame by frame; 0: none")
    return arguments.parse_args()


class Clock:
    """Adds up the time that named parts take on a device."""

    def __init__(self, device: Any) -> None:
        self.device, self.seconds = device, dict[str, float]()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self.wait()
            start = time.perf_counter()
            result = work(*args, **kwargs)
            self.wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result
        return measured

    def wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


@run
def main() -> None:
    options = parse()
    from vta_sam.dataset.manifests.manifest import Row, write_manifest
    from vta_sam.perception.clip_encoder import CLIPEncoder
    from vta_sam.perception.grounded_sam import GroundedSAM

    sam = None if options.sam == "none" else options.sam
    shared = {"weights": options.weights, "device": options.device, "precision": options.precision}
    grounder = GroundedSAM(options.detector, sam, short_side=options.short_side, batch_frames=options.batch_frames,
                           sam_batch_frames=options.sam_batch_frames, **shared)
    encoder = CLIPEncoder(**shared)
    videos = sorted(path for path in options.videos.iterdir() if path.is_file())[:options.clips]
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        write_manifest(manifest, [Row(path.stem, "", path.name, duration_s=options.duration,
                                      objects=tuple(options.objects)) for path in videos])
        rows, facts = measure(options, manifest, Path(folder), grounder, encoder)
    Report(f"extraction of {len(videos)} clips of up to {options.duration:g} s at {options.fps:g} fps", rows, facts,
           projections(facts)).show(options.json)


def measure(options: argparse.Namespace, manifest: Path, folder: Path, grounder: Any, encoder: Any,
            ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """⇒ (seconds a clip and share of each part, facts): one extraction whole, one with its parts timed apart."""
    from vta_sam.dataset.extraction.extract import extract_dataset

    def extract(out: str) -> float:
        start = time.perf_counter()
        info = extract_dataset(manifest, options.videos, folder / out, grounder, encoder, options.fps,
                               workers=options.workers)
        elapsed_s = time.perf_counter() - start
        assert not info.splits["train"][0].failed, "a clip of the benchmark could not be read"
        return elapsed_s / info.records("train")

    warm_up(grounder, encoder, options)
    whole_s = extract("whole")
    size_bytes = sum(path.stat().st_size for path in (folder / "whole").glob("*.tar"))
    clips = len(manifest.read_text().splitlines()) - 1
    clock = Clock(grounder.device)
    frames = decode(options, manifest, grounder, encoder, clock)
    grounder.detector.detect = clock.timed("Grounding DINO", grounder.detector.detect)
    if grounder.segmenter is not None:
        grounder.segmenter.measure = clock.timed("SAM", grounder.segmenter.measure)
    encoder.embed = clock.timed("CLIP", encoder.embed)
    extract("parts")
    total_s = sum(clock.seconds.values())
    rows = [{"part": part, "s_per_clip": round(seconds / clips, 3), "share": round(seconds / total_s, 3)}
            for part, seconds in clock.seconds.items()]
    facts = {"s_per_clip": round(whole_s, 3), "clips_per_s": round(1 / whole_s, 4),
             "bytes_per_clip": size_bytes // clips, "device": device_name(grounder.device),
             "precision": grounder.settings["precision"], "detector": options.detector, "sam": options.sam,
             "peak_memory_gb": peak_memory_gb()}
    if options.one_by_one:
        facts.update(against_one_by_one(options, grounder, encoder, frames, clips, clock))
    return rows, facts


def warm_up(grounder: Any, encoder: Any, options: argparse.Namespace) -> None:
    """The first pass on a device loads kernels and is not what a long run sees."""
    picture = np.zeros((1, options.short_side, options.short_side, 3), np.uint8)
    grounder.ground(picture, options.objects)
    encoder.encode_frames(np.zeros((1, encoder.fit.side, encoder.fit.side, 3), np.uint8))


def decode(options: argparse.Namespace, manifest: Path, grounder: Any, encoder: Any, clock: Clock,
           ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Decode every clip and throw it away, as extraction's children do ⇒ the first frames of the first clip."""
    from vta_sam.dataset.extraction.worker import ClipExtractor
    from vta_sam.dataset.manifests.manifest import read_manifest
    from vta_sam.media.decode_pool import DecodePool
    from vta_sam.perception.features import Extractors

    extractor = ClipExtractor(options.videos, Extractors(grounder, encoder), options.fps)
    first: list[tuple[np.ndarray, np.ndarray]] = []

    def read_all() -> None:
        with DecodePool(options.workers) as pool:
            for clip in pool.map(extractor.request(row) for row in read_manifest(manifest)):
                for to_ground, to_encode, *_ in clip:
                    first.extend(zip(to_ground[:options.one_by_one - len(first)].copy(), to_encode.copy()))

    clock.timed("decoding", read_all)()
    return first[:options.one_by_one]


class OneByOne:
    """How the packages' own examples work: a picture after the other through groundingdino's model with its prompt,
    segment-anything's predictor box by box, and transformers' CLIP.

    Args:
        detector: the version of Grounding DINO.
        sam: the version of SAM, or a network; None: without.
        weights: folder of released, or of random weights.
        grounder, encoder: whose device and number format are taken.
    """

    def __init__(self, detector: str, sam: Any, weights: Path | None, grounder: Any, encoder: Any) -> None:
        from segment_anything import SamPredictor

        from vta_sam.checkpoints.registry import require
        from vta_sam.perception.clip_encoder import CLIPEncoder
        from vta_sam.perception.grounded_sam import build_segmenter_network
        from vta_sam.perception.grounding_dino import build_detector_network

        self.grounder, self.encoder = grounder, encoder
        bert = require("bert-base-uncased", weights)
        self.detector: Any = build_detector_network(detector, require(f"groundingdino_{detector}", weights), bert).to(
            grounder.device)
        if isinstance(sam, str):
            sam = build_segmenter_network(sam, require(f"sam_{sam}", weights))
        self.predictor = None if sam is None else SamPredictor(sam.to(grounder.device))
        self.clip = CLIPEncoder(weights=weights, device=str(encoder.device), precision="fp32").model

    def __call__(self, picture: np.ndarray, square: np.ndarray, objects: list[str]) -> None:
        """A frame as each extractor gets it, and words to look for."""
        import torch

        encoder, device = self.encoder, self.grounder.device
        with torch.inference_mode(), self.grounder.detector.autocast:
            pixels = self.grounder.detector.prepare(torch.from_numpy(picture).to(device).permute(2, 0, 1)[None])
            answer = self.detector(pixels, captions=[self.grounder.detector.prompt(objects).text])
            scores = answer["pred_logits"][0].sigmoid().amax(-1)
            box = answer["pred_boxes"][0][scores.argmax()].float().cpu()
            if self.predictor is not None:
                height, width = picture.shape[:2]
                self.predictor.set_image(picture)
                corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * torch.tensor([width, height] * 2)
                corners = self.predictor.transform.apply_boxes_torch(corners[None].to(device), (height, width))
                for _ in objects:
                    self.predictor.predict_torch(None, None, corners, multimask_output=False)[0].cpu()
            self.clip.get_image_features(
                pixel_values=(torch.from_numpy(square).to(encoder.device).permute(2, 0, 1)[None] / 255 - encoder.mean)
                / encoder.std).cpu()


def against_one_by_one(options: argparse.Namespace, grounder: Any, encoder: Any,
                       frames: list[tuple[np.ndarray, np.ndarray]], clips: int, clock: Clock) -> dict[str, Any]:
    """⇒ seconds a frame both ways, on the same device, in the same number format."""
    one = OneByOne(options.detector, None if options.sam == "none" else options.sam, options.weights, grounder, encoder)
    times = []
    for picture, square in frames:
        clock.wait()
        start = time.perf_counter()
        one(picture, square, options.objects)
        clock.wait()
        times.append(time.perf_counter() - start)
    looked = ("Grounding DINO", "SAM", "CLIP")
    per_frame_s = sum(clock.seconds.get(part, 0.0) for part in looked) / clips / (options.fps * options.duration)
    alone_s = statistics.median(times)
    return {"s_per_frame_batched": round(per_frame_s, 4), "s_per_frame_one_by_one": round(alone_s, 4),
            "batched_is_faster": round(alone_s / per_frame_s, 2)}


def projections(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Hours and bytes of VGGSound at the measured rate: computed."""
    hours = VGGSOUND_CLIPS * facts["s_per_clip"] / 3600
    return [{"computed_for": f"{VGGSOUND_CLIPS} clips on {devices} such device{'s' * (devices > 1)}",
             "hours": round(hours / devices, 1), "gb": round(VGGSOUND_CLIPS * facts["bytes_per_clip"] / 1e9, 1)}
            for devices in (1, 64)]


def device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"


if __name__ == "__main__":
    main()
