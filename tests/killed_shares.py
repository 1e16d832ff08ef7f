"""Extraction whose workers are killed at random instants, whoever runs them: its videos, its processes, its bytes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import write_video
from damaged_videos import SIZE, noise, textured

from vta_sam.dataset.manifests.manifest import Row, write_manifest

# 2 in each test run; more by hand: VTA_SAM_KILLS=50 pytest -s tests/test_ray.py -k left_alone
KILLS = int(os.environ.get("VTA_SAM_KILLS", 2))
_BROKEN = (4, 13, 22)


def write_corpus(folder: Path, clips: int = 40) -> None:
    """A manifest and its videos of a second or so, a few of them broken."""
    rng, rows = np.random.default_rng(0), []
    for i in range(clips):
        path, seconds = folder / f"{i:02d}.mp4", 0.6 + 0.02 * i
        write_video(path, size=SIZE, duration_s=seconds, picture=textured(rng), sound=noise(seconds, rng))
        if i in _BROKEN:
            path.write_bytes(path.read_bytes()[:2000])
        rows.append(Row(f"clip-{i:02d}", "a dog barks", path.name, split="val" if i % 9 == 0 else "train"))
    write_manifest(folder / "manifest.csv", rows)


def arguments(corpus: Path, out: Path) -> list[str]:
    """Of data_prep/extract.py: eleven shards of four clips at most."""
    return [f"videos={corpus}", f"out={out}", "grounder=tiny", "encoder=tiny", "fps=4", "shard_size=4", "workers=1"]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def workers(out: Path) -> dict[int, str]:
    """{pid: its task's rank} of the processes that extract to a folder now."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if Path(words[0]).name.startswith("python") and f"out={out}" in words and not any(
                    word.startswith("launcher") for word in words):
                found[int(folder.name)] = next((word for word in words if word.startswith("rank=")), "")
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> bool:
    """⇒ whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def at_a_random_instant(rng: np.random.Generator, out: Path, goes_on: Callable[[], bool], longest_s: float = 12.0,
                        ) -> int | None:
    """Wait for a while, and then for a worker ⇒ a random one; None where the run has ended before.

    Args:
        rng: of the instant and of the choice.
        out: that the workers write to.
        goes_on: whether the run does.
        longest_s: of the wait; half of the instants fall into a start.
    """
    end = time.monotonic() + rng.uniform(0, longest_s)
    while goes_on():
        there = sorted(workers(out))
        if there and time.monotonic() > end:
            return int(rng.choice(there))
        time.sleep(0.05)
    return None


def check_what_is_there(out: Path, wanted: dict[str, bytes]) -> None:
    """Whoever else may be at work: a tar that is there is whole, and so is its list of failures."""
    for name in [path.name for path in out.glob("*.tar") if not path.name.startswith(".")] if out.exists() else []:
        for made in (name, name.replace(".tar", ".failed.jsonl")):
            assert (out / made).read_bytes() == wanted[made], made
