"""How many clips a second the embedded world is made with: drawing and encoding them, then looking at them.

    python benchmarks/render.py --clips 32 --workers 1 2
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _report import Report, parser, peak_memory_gb, seconds

from vta_sam.runtime.cli import run


@run
def main() -> None:
    arguments = parser("Clips a second of rendering and of extraction with the tiny models.")
    arguments.add_argument("--clips", type=int, default=32, help="clips each time")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes")
    arguments.add_argument("--fps", type=float, default=12.5, help="frames a second that are looked at")
    options = arguments.parse_args()
    from vta_sam.dataset.extraction.extract import extract_dataset
    from vta_sam.embedded.extractors import TinyEncoder, TinyGrounder
    from vta_sam.embedded.world import write_world

    rows = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            videos, shards = Path(folder) / "videos", Path(folder) / "shards"
            [rendering_s] = seconds(lambda: write_world(videos, {"train": options.clips}, 0, workers), 1)
            extractors = TinyGrounder(), TinyEncoder()
            [extraction_s] = seconds(lambda: extract_dataset(
                videos / "manifest.csv", videos, shards, *extractors, options.fps, workers=workers), 1)
        rows.append({"workers": workers, "rendering_clips_per_s": round(options.clips / rendering_s, 2),
                     "extraction_clips_per_s": round(options.clips / extraction_s, 2),
                     "both_s_per_clip": round((rendering_s + extraction_s) / options.clips, 3)})
    facts = {"clips": options.clips, "fps": options.fps, "peak_memory_gb": peak_memory_gb()}
    Report("the embedded world, clips of 5.12 s; starting the processes is included", rows, facts).show(options.json)


if __name__ == "__main__":
    main()
