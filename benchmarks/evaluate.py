"""How long an evaluation of many clips takes, what it keeps in memory, and what the cache spares.

    python benchmarks/evaluate.py --clips 250 1000
    python benchmarks/evaluate.py --clips 250 --against ../as_it_was      # another checkout, on the same clips

Clips are made here: decaying tones over noise, true and half a second late. Each count runs in a process of its own.
Seconds of a processor count what all processes computed, and so hardly depend on what else the machine does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from _report import Report, parser, peak_memory_gb

HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--clips", nargs="+", type=int, default=[250, 1000])
    arguments.add_argument("--seconds", type=float, default=5.0, help="length of a clip")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--against", type=Path, help="a checkout that is measured too, before this one")
    arguments.add_argument("--folder", type=Path, help="of one run; set by the benchmark itself")
    given = arguments.parse_args()
    if given.folder:
        print(json.dumps(measure(given.folder, given.clips[0], given.workers)))
        return
    rows = []
    for clips in given.clips:
        with tempfile.TemporaryDirectory() as scratch:
            write_clips(Path(scratch), clips, given.seconds)
            for code, run in product([given.against] * bool(given.against) + [HERE], ("first", "cached")):
                command = [sys.executable, __file__, "--folder", scratch, "--clips", str(clips), "--workers",
                           str(given.workers)]
                finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                                          env={**os.environ, "PYTHONPATH": str(code.absolute())})
                rows.append({"code": "this" if code == HERE else str(code), "clips": clips, "run": run,
                             **json.loads(finished.stdout.splitlines()[-1])})
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
    """One evaluation, with its cache in the folder, which is that of the code alone."""
    import resource

    import vta_sam
    from vta_sam.evaluation.evaluate import Request, evaluate

    code = hashlib.sha256(vta_sam.__file__.encode()).hexdigest()[:8]
    request = Request({"late": folder / "late"}, folder / "true", workers=workers, cache=folder / f"cache-{code}")
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    evaluate(request)
    took_s = time.perf_counter() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_mb = used[0].ru_maxrss / 1024
    processor_s = [one.ru_utime + one.ru_stime for one in used]
    return {"s": round(took_s, 1), "clips_per_s": round(clips / took_s, 2), "processor_s": round(sum(processor_s), 1),
            "of_workers_s": round(processor_s[1], 1), "imports_mb": round(before_mb),
            "own_peak_mb": round(own_mb), "with_largest_worker_gb": peak_memory_gb()}


if __name__ == "__main__":
    main()
