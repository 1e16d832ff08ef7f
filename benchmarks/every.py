"""What it costs to look at fewer frames, or at smaller pictures: how far probabilities and boxes of a grounder move.

    python benchmarks/every.py                                                 # the embedded world and its grounder
    python benchmarks/every.py --videos clips --manifest clips.csv --grounder grounded_sam --weights weights \
        --fps 8 --short-sides 600 480

Each clip is decoded once. The grounder looks at every frame, then at every k-th, between which values are interpolated
as extraction does. "moved" is the mean distance of probabilities, "flipped" the share of them on the other side of 0.5,
"overlap" the mean intersection over union of boxes where both see the object at 0.5 or more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report, parser

from vta_sam.checkpoints.parts import build
from vta_sam.dataset.manifests.manifest import read_manifest
from vta_sam.embedded.world import write_world
from vta_sam.media.video import read_clip
from vta_sam.perception.base import Encoder, Grounder, Grounding
from vta_sam.perception.features import Extractors, extract_features, words_of
from vta_sam.runtime.cli import run

SEES = 0.5


def parse() -> argparse.Namespace:
    arguments = parser("How far a grounder's values move where it looks at fewer frames or smaller pictures.")
    arguments.add_argument("--videos", type=Path, default=None, help="folder of videos; default: the embedded world")
    arguments.add_argument("--manifest", type=Path, default=None, help="default: manifest.csv in the folder of videos")
    arguments.add_argument("--grounder", default="tiny_grounder", help="tiny_grounder, grounded_sam, ...")
    arguments.add_argument("--weights", type=Path, default=None, help="folder of released weights")
    arguments.add_argument("--clips", type=int, default=64)
    arguments.add_argument("--fps", type=float, default=12.5, help="frames a second that are decoded")
    arguments.add_argument("--every", type=int, nargs="*", default=[2, 3, 4, 8])
    arguments.add_argument("--short-sides", type=int, nargs="*", default=[], help="pixels; of grounded_sam alone")
    return arguments.parse_args()


class NoVectors(Encoder):
    """The place of the encoder, which isn't asked for anything here."""

    kind, fingerprint = "none", "none-1"
    frame_dim = object_dim = caption_dim = 0

    def __init__(self, grounder: Grounder) -> None:
        self.fit = grounder.fit

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), 0), np.float32)

    def encode_objects(self, objects: list[str]) -> np.ndarray:
        return np.zeros((len(objects), 0), np.float32)

    def encode_caption(self, caption: str) -> np.ndarray:
        return np.zeros((1, 0), np.float32)


def grounded(grounder: Grounder, every: int, videos: Path, rows: list[Any], fps: float,
             ) -> tuple[list[Grounding], float]:
    """The grounding of each clip, and the seconds that it took, without decoding."""
    grounder.every = every
    extractors, found, seconds = Extractors(grounder, NoVectors(grounder)), list[Grounding](), 0.0
    for row in rows:
        words = words_of(row.caption, row.objects or None, grounder.known_words)
        frames = read_clip(videos / row.path, start_s=row.start_s, duration_s=row.duration_s, fps=fps,
                           fits=[grounder.fit], want_audio=False).frames[0]
        chunks = [[frames[i:i + 32]] * 2 for i in range(0, len(frames), 32)]
        start = time.perf_counter()
        found += extract_features(chunks, extractors, [words.objects]).groundings
        seconds += time.perf_counter() - start
    return found, seconds


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) cx cy w h."""
    corners = [(boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2) for boxes in (one, other)]
    inside = np.prod(np.clip(np.minimum(corners[0][1], corners[1][1]) - np.maximum(corners[0][0], corners[1][0]), 0,
                             None), -1)
    return inside / np.maximum(one[:, 2:].prod(-1) + other[:, 2:].prod(-1) - inside, 1e-9)


def compared(name: str, whole: list[Grounding], found: list[Grounding], seconds: float, whole_s: float,
             ) -> dict[str, Any]:
    """A row of the report."""
    probs, theirs = (np.concatenate([clip.probs.ravel() for clip in clips]) for clips in (whole, found))
    boxes, others = (np.concatenate([clip.boxes.reshape(-1, 4) for clip in clips]) for clips in (whole, found))
    both, moved = (probs >= SEES) & (theirs >= SEES), np.abs(probs - theirs)
    return {"looks at": name, "moved": round(float(moved.mean()), 4),
            "moved_p95": round(float(np.percentile(moved, 95)), 4),
            "flipped": round(float(((probs >= SEES) != (theirs >= SEES)).mean()), 4),
            "overlap": round(float(overlap(boxes[both], others[both]).mean()), 3) if both.any() else None,
            "of_the_time": round(seconds / whole_s, 3)}


@run
def main() -> None:
    options = parse()
    recipe: dict[str, Any] = {"_target_": options.grounder}
    if options.weights is not None:
        recipe["weights"] = str(options.weights)
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos
        if videos is None:
            videos = Path(folder)
            write_world(videos, {"test": options.clips}, seed=0, workers=2)
        rows = read_manifest(options.manifest or videos / "manifest.csv")[:options.clips]
        grounder = build(recipe)
        whole, whole_s = grounded(grounder, 1, videos, rows, options.fps)
        report = [compared("every frame", whole, whole, whole_s, whole_s)]
        for every in options.every:
            found, seconds = grounded(grounder, every, videos, rows, options.fps)
            report.append(compared(f"one frame of {every}", whole, found, seconds, whole_s))
        for side in options.short_sides:
            smaller = build({**recipe, "short_side": side})
            report.append(compared(f"short side {side}", whole, *grounded(smaller, 1, videos, rows, options.fps),
                                   whole_s))
    frames = sum(len(clip.probs) for clip in whole)
    Report(f"{grounder.fingerprint}: {len(rows)} clips, {frames} frames at {options.fps:g} fps", report).show(
        options.json)


if __name__ == "__main__":
    main()
