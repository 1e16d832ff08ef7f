"""AV-Align by optical flow of smaller pictures: how much faster, and how far from the published score?

    python benchmarks/av_align.py clips/gt/*.mp4 --sounds clips/gt clips/ours

Each video's flow is computed at full size and at each height; every folder's sound of that name is scored with each.
"""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from _report import Report, parser

from vta_sam.evaluation.pairing import find_sounds
from vta_sam.media.audio import read_audio
from vta_sam.metrics.alignment import av_align_published, flow_peaks_s, FULL, measure_flow, VARIANTS
from vta_sam.metrics.onsets import at_published_rate, librosa_onsets_s


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("videos", nargs="+", type=Path)
    arguments.add_argument("--sounds", nargs="*", type=Path, default=[], help="folders; default: the videos' own sound")
    arguments.add_argument("--heights", nargs="*", type=int, default=[], help="heights in pixels beside the variants")
    arguments.add_argument("--threads", type=int, default=1, help="of OpenCV")
    given = arguments.parse_args()
    cv2.setNumThreads(given.threads)
    VARIANTS.update({str(height): height for height in given.heights})
    folders = [find_sounds(folder) for folder in given.sounds]
    seconds = dict.fromkeys(VARIANTS, 0.0)
    scores: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for video in given.videos:
        files = [found[video.stem][0].path for found in folders if video.stem in found] or [video]
        onsets = [librosa_onsets_s(at_published_rate(read_audio(file))) for file in files]
        for name in VARIANTS:
            began = time.perf_counter()
            flow = measure_flow(video, name)
            seconds[name] += time.perf_counter() - began
            found = [av_align_published(onsets_s, flow_peaks_s(flow), flow.fps) for onsets_s in onsets]
            scores[name] += [np.nan if score is None else score for score in found]
    rows = []
    for name in VARIANTS:
        off = np.abs(np.array(scores[name]) - np.array(scores[FULL]))
        rows.append({"flow": name, "s": round(seconds[name], 2), "speed_up": round(seconds[FULL] / seconds[name], 2),
                     "mean_score": round(float(np.nanmean(scores[name])), 4),
                     "mean_deviation": round(float(np.nanmean(off)), 4),
                     "worst_deviation": round(float(np.nanmax(off)), 4)})
    Report("AV-Align by flow at full size (the published score) and of smaller pictures", rows,
           {"videos": len(given.videos), "scores": len(scores[FULL]), "threads": given.threads}).show(given.json)


if __name__ == "__main__":
    main()
