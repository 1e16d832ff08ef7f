"""How busy extraction keeps a GPU: clips a second, and the share of the time in which the GPU computes, now and as it
was: clip by clip, waiting for each batch.

    python benchmarks/busy.py
    python benchmarks/busy.py --videos clips --clips 64 --detector-ms 8 --encoder-ms 0.7

The GPU is a stand-in: a thread that sleeps as long as one would compute, batch after batch in the order in which they
are launched. The rest is real: files, decoding, the transport of pictures, batches, nouns, records and shards.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report, parser, peak_memory_gb

from vta_sam.dataset.extraction.extract import Extraction
from vta_sam.dataset.manifests.manifest import Row, read_manifest, write_manifest
from vta_sam.media.decode_pool import DecodePool
from vta_sam.media.picture_reader import CentreCrop, Within
from vta_sam.perception.base import Encoder, Grounder, Grounding
from vta_sam.plots.overlay import write_film
from vta_sam.runtime.cli import run

WORDS = ("a dog barks at a passing car", "a man plays the piano", "a pigeon coos beside a window", "a car races by")


def parse() -> argparse.Namespace:
    arguments = parser("How busy extraction keeps a GPU, whose part a sleeping thread plays.")
    arguments.add_argument("--videos", type=Path, default=None, help="folder of videos; default: some are made")
    arguments.add_argument("--clips", type=int, default=64)
    arguments.add_argument("--duration", type=float, default=10.0, help="seconds of each clip")
    arguments.add_argument("--fps", type=float, default=8.0, help="frames a second that are looked at")
    arguments.add_argument("--detector-ms", type=float, default=8.0, help="of the GPU's time, a frame")
    arguments.add_argument("--encoder-ms", type=float, default=0.7, help="of the GPU's time, a frame")
    arguments.add_argument("--workers", type=int, default=2, help="decoding processes")
    return arguments.parse_args()


class StandIn:
    """A GPU that computes nothing, for as long as one would: one piece of work after the other."""

    def __init__(self) -> None:
        self.thread, self.computed_s = ThreadPoolExecutor(1), 0.0

    def launch(self, seconds: float) -> Future[None]:
        """Begin a piece of work after those before it, and return at once."""
        self.computed_s += seconds
        return self.thread.submit(time.sleep, seconds)


class Detector(Grounder):
    """Plays Grounding DINO: pictures at its size, eight at once. waits: as extraction had it before, launch() isn't
    overridden, and ground() waits for each batch."""

    kind, fingerprint, fit = "stand_in", "stand_in-0", Within(800, 1333)

    def __init__(self, gpu: StandIn, frame_s: float) -> None:
        self.gpu, self.frame_s = gpu, frame_s

    def ground(self, frames: np.ndarray, objects: list[str]) -> Grounding:
        for start in range(0, len(frames), 8):
            self.gpu.launch(len(frames[start:start + 8]) * self.frame_s).result()
        return Grounding.zeros(len(frames), len(objects))


class Launched(Detector):
    """The same as it is now."""

    batch_frames = 8

    def launch(self, requests: Sequence[tuple[np.ndarray, list[str]]]) -> Callable[[], list[Grounding]]:
        computed = self.gpu.launch(sum(len(frames) for frames, _ in requests) * self.frame_s)
        found = [Grounding.zeros(len(frames), len(words)) for frames, words in requests]
        return lambda: found if computed.result() is None else []


class Vectors(Encoder):
    """Plays CLIP ViT-L/14."""

    kind, fingerprint, fit = "stand_in", "stand_in-1", CentreCrop(224)
    frame_dim = object_dim = caption_dim = 768

    def __init__(self, gpu: StandIn, frame_s: float) -> None:
        self.gpu, self.frame_s = gpu, frame_s

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        self.gpu.launch(len(frames) * self.frame_s).result()
        return np.zeros((len(frames), self.frame_dim), np.float32)

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        return np.zeros((len(objects), self.object_dim), np.float32)

    def encode_caption(self, caption: str) -> np.ndarray:
        return np.zeros((len(caption.split()) + 2, self.caption_dim), np.float32)


class LaunchedVectors(Vectors):
    batch_frames = 64

    def launch(self, frames: np.ndarray) -> Callable[[], np.ndarray]:
        computed, found = self.gpu.launch(len(frames) * self.frame_s), np.zeros((len(frames), 768), np.float32)
        return lambda: found if computed.result() is None else found[:0]


def make_videos(folder: Path, duration_s: float) -> None:
    """Four videos of 640 × 360 pixels at 25 pictures a second whose picture moves, with noise for sound."""
    random = np.random.default_rng(0)
    for number in range(4):
        texture = random.integers(0, 256, (45, 100, 3), np.uint8).repeat(8, 0).repeat(8, 1)

        def pictures() -> Iterator[np.ndarray]:
            for step in range(round(duration_s * 25)):
                yield texture[:, step % 160:step % 160 + 640]

        write_film(folder / f"{number}.mp4", pictures(), 25.0,
                   random.uniform(-0.1, 0.1, round(duration_s * 16_000)).astype(np.float32), 16_000)


def clip_by_clip(asked: Extraction) -> None:
    """The former loop: a clip is read, looked at, encoded and put into its shard before the next one's turn."""
    from vta_sam.dataset.extraction.worker import ClipExtractor

    extractor, planned = ClipExtractor(asked.videos, asked.extractors, asked.fps), asked.planned()
    with planned.folder.begun(), DecodePool(asked.workers) as pool:
        rows = [(task.part, row) for task in planned.tasks for row in task.part.rows]
        decoded = pool.map(extractor.request(row) for _, row in rows)
        for part, group in itertools.groupby(rows, key=lambda each: each[0]):
            records = [(row.id, extractor.record(row, extractor.words(row), next(decoded))) for _, row in group]
            planned.folder.commit(part, records, [])  # type: ignore[arg-type]  # a failure would show here


def measured(name: str, work: Callable[[], Any], gpu: StandIn, clips: int) -> dict[str, Any]:
    """A row of the report."""
    start = time.perf_counter()
    work()
    elapsed_s = time.perf_counter() - start
    return {"extraction": name, "s": round(elapsed_s, 2), "clips_per_s": round(clips / elapsed_s, 3),
            "gpu_busy": round(gpu.computed_s / elapsed_s, 3)}


@run
def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or Path(folder) / "videos"
        if options.videos is None:
            videos.mkdir()
            make_videos(videos, options.duration)
        names = sorted(path.name for path in videos.iterdir() if path.is_file())
        manifest = Path(folder) / "manifest.csv"
        write_manifest(manifest, [
            Row(f"clip-{i:04}", WORDS[i % len(WORDS)], names[i % len(names)], duration_s=options.duration)
            for i in range(options.clips)])
        rows = []
        for name, detector, encoder in (("clip by clip, waiting", Detector, Vectors),
                                        ("batches launched ahead", Launched, LaunchedVectors)):
            gpu = StandIn()
            asked = Extraction(manifest, videos, Path(folder) / detector.__name__,
                               detector(gpu, options.detector_ms / 1000), encoder(gpu, options.encoder_ms / 1000),
                               options.fps, workers=options.workers)
            work = asked.run if detector is Launched else lambda: clip_by_clip(asked)
            rows.append(measured(name, work, gpu, len(read_manifest(manifest))))
    facts = {"faster": round(rows[1]["clips_per_s"] / rows[0]["clips_per_s"], 2), "peak_memory_gb": peak_memory_gb()}
    Report(f"extraction of {options.clips} clips of {options.duration:g} s at {options.fps:g} fps, with "
           f"{options.detector_ms:g} + {options.encoder_ms:g} ms of a GPU a frame", rows, facts).show(options.json)


if __name__ == "__main__":
    main()
