"""How long an evaluation of many clips takes, what it keeps in memory, and what the cache spares.

    python benchmarks/evaluate.py --clips 250 1000

Clips are made here: decaying tones over noise, true and half a second late. Each count runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _report import Report, parser, peak_memory_gb


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--clips", nargs="+", type=int, default=[250, 1000])
    arguments.add_argument("--seconds", type=float, default=5.0, help="length of a clip")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--folder", type=Path, help="of one run; set by the benchmark itself")
    given = arguments.parse_args()
    if given.folder:
        print(json.dumps(measure(given.folder, given.clips[0], given.workers)))
        return
    rows = []
    for clips in given.clips:
        with tempfile.TemporaryDirectory() as scratch:
            write_clips(Path(scratch), clips, given.seconds)
            for run in ("first", "cached"):
                command = [sys.executable, __file__, "--folder", scratch, "--clips", str(clips), "--workers",
                           str(given.workers)]
                finished = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"clips": clips, "run": run, **json.loads(finished.stdout.splitlines()[-1])})
    Report("evaluation of one system: timing figures, spectral distance, embedded tagger; no optical flow", rows,
           {"seconds_a_clip": given.seconds, "workers": given.workers}).show(given.json)


def write_clips(folder: Path, clips: int, seconds: float) -> None:
    """``true/`` and ``late/``, a wav per clip."""
    from vta_sam.media.audio import write_wav

    n = np.arange(4000)
    for clip in range(clips):
        rng = np.random.default_rng(clip)
        sound = 0.0005 * rng.normal(size=round(16_000 * seconds))
        for at in rng.integers(1000, len(sound) - 5000, 5):
            sound[at + n] += rng.uniform(0.2, 0.6) * np.exp(-n / 600) * np.sin(n * rng.uniform(0.05, 1))
        write_wav(folder / "true" / f"{clip}.wav", sound, 16_000)
        write_wav(folder / "late" / f"{clip}.wav", np.roll(sound, 8000), 16_000)


def measure(folder: Path, clips: int, workers: int) -> dict[str, float]:
    """One evaluation, with its cache in the folder."""
    import resource

    from vta_sam.evaluation.evaluate import Request, evaluate

    request = Request({"late": folder / "late"}, folder / "true", workers=workers, cache=folder / "cache")
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    evaluate(request)
    took_s = time.perf_counter() - began
    own_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"s": round(took_s, 1), "clips_per_s": round(clips / took_s, 2), "imports_mb": round(before_mb),
            "own_peak_mb": round(own_mb), "with_largest_worker_gb": peak_memory_gb()}


if __name__ == "__main__":
    main()
