"""Extraction for benchmarks/gpu.py: batches of frames of several clips, and the packages' own examples, on random
weights and random frames. Decoding is left out, which other processes do meanwhile."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from extract import VGGSOUND_CLIPS, OneByOne

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

CLIP_FRAMES = 80  # of 10 s at 8 frames a second
WORDS = (["dog", "car"], ["race car", "bird"], ["guitar", "drum"])  # of one clip and the next


class Extraction:
    """A grounder and an encoder, and frames of several clips for them.

    Args:
        detector: of :data:`vta_sam.perception.grounding_dino.CONFIGS`.
        sam: "vit_h", or None.
        batch_frames: of both networks.
        device: "cuda", or "cpu".
        narrow: small pictures, fewer layers, and a small SAM, to try the program.
        weights: folder for random weights; those that lie there are taken.
    """

    def __init__(self, detector: str, sam: str | None, batch_frames: int, device: str, narrow: bool, weights: Path,
                 ) -> None:
        import released
        import torch

        from vta_sam.importers.random_weights import write_random
        from vta_sam.perception.clip_encoder import CLIPEncoder
        from vta_sam.perception.grounded_sam import GroundedSAM, Segmenter

        small = narrow and sam is not None
        names = [f"groundingdino_{detector}", "clip-vit-large-patch14", f"sam_{sam}"]
        for name in names[:3 if sam and not small else 2]:
            write_random(name, weights, narrow=narrow)
        self.grounder = GroundedSAM(detector, None if small else sam, weights, 224 if narrow else 800,
                                    batch_frames=batch_frames, device=device)
        self.encoder = CLIPEncoder(weights=weights, batch_frames=batch_frames, device=device)
        alone: Any = sam
        if small:
            alone = released.narrow_sam()
            self.grounder.segmenter = Segmenter(released.narrow_sam(), 2, torch.device(device),
                                                self.grounder.detector.autocast)
        self.one = OneByOne(detector, alone, weights, self.grounder, self.encoder)
        if narrow:
            for network in (self.grounder.detector.model, self.one.detector):
                released.make_shallow(network)
        height, width = (224, 224) if narrow else (360, 640) if sam is None else (576, 1024)
        random = np.random.default_rng(0)
        self.frames = random.integers(0, 256, (batch_frames, height, width, 3), np.uint8)
        side = self.encoder.model.config.vision_config.image_size
        self.squares = random.integers(0, 256, (batch_frames, side, side, 3), np.uint8)
        self.batches = 2 if narrow else 4  # timed together, so that copies hide behind the next batch
        self.precision = self.grounder.settings["precision"]

    def __call__(self) -> None:
        """All batches, each queued while the one before it is computed."""
        parts = np.array_split(self.frames, len(WORDS))
        before: list[Any] = []
        for _ in range(self.batches):
            after = [self.grounder.launch(list(zip(parts, WORDS))), self.encoder.launch(self.squares)]
            for wait in before:
                wait()
            before = after
        for wait in before:
            wait()

    def one_by_one(self) -> None:
        """Two frames by the packages' own code, one after the other."""
        for i in range(2):
            self.one(self.frames[i], self.squares[i], WORDS[0])

    def stored_bytes(self) -> int:
        """Of a clip's record, without its sound."""
        from vta_sam.clip import ClipFeatures
        from vta_sam.dataset.shards.records import write_shard

        frames = np.resize(self.frames, (CLIP_FRAMES, *self.frames.shape[1:]))[:2]
        found = self.grounder.ground(frames, WORDS[0])
        repeated = {name: np.resize(value, (CLIP_FRAMES, *value.shape[1:])) for name, value in (
            ("probs", found.probs), ("boxes", found.boxes), ("areas", found.areas),
            ("mask_embedding", found.mask_embedding)) if value is not None}
        random = np.random.default_rng(0)
        record = ClipFeatures(
            key="clip", caption="a dog", objects=WORDS[0], fps=8.0, waveform=np.zeros(16_000, np.float32),
            duration_s=10.0, object_embedding=random.normal(size=(2, self.encoder.object_dim)).astype(np.float32),
            frame_embedding=random.normal(size=(CLIP_FRAMES, self.encoder.frame_dim)).astype(np.float32),
            caption_tokens=random.normal(size=(16, self.encoder.caption_dim)).astype(np.float32), **repeated)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one.tar"
            write_shard(path, [record])
            return path.stat().st_size


def hours(frames_per_s: float) -> float:
    """Of VGGSound at this rate on one device: computed."""
    return VGGSOUND_CLIPS * CLIP_FRAMES / frames_per_s / 3600
