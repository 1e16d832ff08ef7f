"""What the loader delivers and what it keeps: clips a second by number of loader processes, from a slow disk that is
played, and their memory by size of the shards.

    python benchmarks/loading.py
    python benchmarks/loading.py --reads all --workers 1 8 --mb-s 4

Records have base's sizes and random content. A read of the played disk takes its latency, and then its bytes at a
bandwidth that the reads of one process share, as a file server gives it to one client; both are slept, so that few
cores show what many processes do. Of what a process has read once the operating system keeps a copy, and a read brings
1 MiB at least. Each row reads the same clips from their beginning. Memory is the loader processes' own (/proc: private
pages that were written to, and shared memory), at the end of the second shard of every stream, two streams a process.
``--reads`` says what a step reads: ``latents`` (stage 3) or ``all``.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from _report import Report, parser
from scaling import DIMENSIONS
from step import job_of

from vta_sam.dataset.shards.storage import LocalStorage
from vta_sam.runtime.cli import run

READ_AT_LEAST = 1 << 20  # bytes, by the operating system
VARIANTS = 8  # different records of a dataset


class SlowFile(io.FileIO):
    """A file of the played disk."""

    disk: "SlowDisk"

    def readinto(self, buffer: Any) -> int:
        self.disk.wait(str(self.name), self.tell(), memoryview(buffer).nbytes)
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        self.disk.wait(str(self.name), self.tell(), size)
        return super().read(size)

    def readall(self) -> bytes:
        self.disk.wait(str(self.name), self.tell(), Path(str(self.name)).stat().st_size - self.tell())
        return super().readall()


@dataclass(frozen=True)
class SlowDisk(LocalStorage):
    """A folder on the played disk; a loader process that is forked has a cache, and a line, of its own.

    Args:
        path: of the folder.
        latency_s: of a read.
        bytes_per_s: of all reads of a process; None: the disk that is there.
        cached: blocks that were read, by the file.
        line: to the disk.
        began_s: when the first process read first.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    cached: dict[str, set[int]] = field(default_factory=dict)
    line: Any = field(default_factory=threading.Lock)
    began_s: Any = field(default_factory=partial(multiprocessing.Value, "d"))

    def open(self, name: str) -> Any:
        if self.bytes_per_s is None:
            return super().open(name)
        file = SlowFile(self.path / name)
        file.disk = self
        return io.BufferedReader(file)

    def wait(self, name: str, start: int, size: int) -> None:
        """Sleep for what a read takes."""
        with self.began_s.get_lock():
            self.began_s.value = self.began_s.value or time.perf_counter()
        assert self.bytes_per_s is not None
        known = self.cached.setdefault(name, set())
        end = min(start + size, Path(name).stat().st_size)
        blocks = set(range(start // READ_AT_LEAST, -(-end // READ_AT_LEAST))) - known
        if not blocks:
            return
        known |= blocks
        time.sleep(self.latency_s)
        with self.line:
            time.sleep(len(blocks) * READ_AT_LEAST / self.bytes_per_s)


def write(folder: Path, job: Any, clips: int, shard_clips: int) -> int:
    """A dataset and its latents, of ``clips`` clips ⇒ the bytes of a clip in a shard."""
    import numpy as np
    import safetensors.numpy

    from vta_sam.clip import ClipFeatures
    from vta_sam.dataset.shards.records import write_records
    from vta_sam.dataset.shards.schema import DatasetInfo, ShardInfo, encode_record

    spec, random, unet = job.spec, np.random.default_rng(0), job.networks["unet"]["config"]

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    records = [encode_record(ClipFeatures(
        key="clip", caption="a dog and a canary", objects=["dog", "canary"], fps=spec.fps,
        waveform=0.1 * draw(spec.samples).clip(-5, 5), frame_embedding=draw(spec.frames, DIMENSIONS["frame_dim"]),
        probs=random.uniform(size=(spec.frames, 2)).astype(np.float32), boxes=draw(spec.frames, 2, 4),
        areas=draw(spec.frames, 2), object_embedding=draw(2, DIMENSIONS["object_dim"]),
        caption_tokens=draw(16, DIMENSIONS["caption_dim"]), duration_s=spec.duration_s)) for _ in range(VARIANTS)]
    moments = [draw(2 * unet["out_channels"], *unet["sample_size"]).astype(np.float16) for _ in range(VARIANTS)]
    shards = []
    for first in range(0, clips, shard_clips):
        held, stem = range(first, min(clips, first + shard_clips)), f"train-{first // shard_clips:06d}"
        write_records(folder / f"{stem}.tar", ((f"clip{n}", records[n % VARIANTS]) for n in held))
        safetensors.numpy.save_file({f"clip{n}": moments[n % VARIANTS] for n in held}, folder / f"{stem}.safetensors")
        shards.append(ShardInfo(f"{stem}.tar", len(held), 0))
    DatasetInfo(
        grounder="random", encoder="random", fps=spec.fps, sample_rate_hz=spec.sample_rate_hz, **DIMENSIONS,
        config_hash="", manifest_hash="", code_version="", splits={"train": shards}).write(folder)
    return (folder / shards[0].name).stat().st_size // shards[0].records


def load(disk: SlowDisk, job: Any, clips: int, workers: int, streams: int, options: Any) -> tuple[float, float, int]:
    """Load as many clips ⇒ (clips a second, MB of the loader processes, their number)."""
    from vta_sam.dataset.shards.datamodule import ShardDataModule

    others = {process.pid for process in multiprocessing.active_children()}
    latents = disk.path if options.reads == "latents" else None
    # of 200,000 clips no process has room for all decoded, and keeps none of them
    data = ShardDataModule(disk, job.spec, options.batch, 0, "diffusion", streams, workers, 1, latents,
                           cached_gb=0.0)
    data.unread = {"waveform"} if latents else ()
    batches = iter(data.train_dataloader())
    for _ in islice(batches, clips // options.batch):
        pass
    rate = clips / (time.perf_counter() - disk.began_s.value)  # the system's clock; processes have started by then
    pids = [process.pid for process in multiprocessing.active_children() if process.pid and process.pid not in others]
    return rate, sum(map(held_mb, pids)), len(pids)


def held_mb(pid: int) -> float:
    """Memory of a process' own, and its part of shared memory."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    found = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return (found["Private_Dirty"] + found.get("Pss_Shmem", 0)) / 1024


@run
def main() -> None:
    arguments = parser("What the loader delivers and keeps.")
    arguments.add_argument("--reads", choices=("latents", "all"), default="latents", help="what a step reads")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="loader processes")
    arguments.add_argument("--clips", type=int, default=320, help="clips that each row loads from the played disk")
    arguments.add_argument("--disk-shard-clips", type=int, default=7,
                           help="of a shard on the played disk: streams come to a shard's end at different times")
    arguments.add_argument("--batch", type=int, default=2, help="clips of a batch: few, as its shards have few")
    arguments.add_argument("--streams", type=int, default=8, help="see conf/size")
    arguments.add_argument("--latency-ms", type=float, default=10.0, help="of a read of the played disk")
    arguments.add_argument("--mb-s", type=float, default=3.0, help="MB/s that the played disk gives one process")
    arguments.add_argument("--shard-clips", type=int, nargs="+", default=[64, 256], help="of the table of memory")
    arguments.add_argument("--memory-workers", type=int, default=2, help="loader processes of the table of memory")
    options = arguments.parse_args()
    job, rows, memory = job_of("vta_sam", "base"), [], []
    with tempfile.TemporaryDirectory() as folder:
        clip_bytes = write(Path(folder), job, options.clips, options.disk_shard_clips)
        for workers in options.workers:
            disk = SlowDisk(Path(folder), latency_s=options.latency_ms / 1e3, bytes_per_s=options.mb_s * 1e6)
            rate, _, _ = load(disk, job, options.clips, workers, options.streams, options)
            rows.append({"loaders": workers, "clips_per_s": round(rate, 1), "of_one": 1.0})
            print(rows[-1], file=sys.stderr, flush=True)
        for row in rows:
            row["of_one"] = round(row["clips_per_s"] / rows[0]["clips_per_s"], 2)
    for size in options.shard_clips:
        with tempfile.TemporaryDirectory() as folder:
            streams = 2 * options.memory_workers
            clips = 2 * size * streams
            write(Path(folder), job, clips, size)
            rate, held, loaders = load(SlowDisk(Path(folder)), job, clips, options.memory_workers, streams, options)
            memory.append({"shard_clips": size, "loaders": loaders, "own_mb": round(held)})
            print(memory[-1], file=sys.stderr, flush=True)
    facts = {"clip_kb": round(clip_bytes / 1e3, 1), "disk_shard_clips": options.disk_shard_clips,
             "disk": f"{options.latency_ms:g} ms, {options.mb_s:g} MB/s a process", "streams": options.streams}
    Report(f"loading of clips of base's sizes, a step reads {options.reads}", rows, facts, memory).show(options.json)


if __name__ == "__main__":
    main()
