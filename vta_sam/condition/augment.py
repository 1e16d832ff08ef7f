"""What training hides from the condition, so that each half of [v ; s] learns its part."""

from __future__ import annotations

from dataclasses import dataclass

from ..randomness import SampleDraws
from ..shards.batch import ClipBatch


@dataclass(frozen=True)
class Augmentation:
    """objects: probability that all objects of a clip are forgotten, so that the video alone is in distribution.
    frames: probability that its frame embeddings are blank, so that the grounding alone is. appearance: strength of a
    random vector added to all frame embeddings of a clip.

    Where one embedding shows what a thing is and when it acts, nothing makes a model read the words: it hears a dog in
    the pictures and keeps hearing it when the word says canary. The offset leaves the pictures' changes, which carry
    the timing, and blurs the appearance, which the words carry better. All 0: nothing is hidden, as published.
    """

    objects: float = 0.1
    frames: float = 0.0
    appearance: float = 0.0

    def __call__(self, batch: ClipBatch, purpose: str) -> ClipBatch:
        """Each row's draws belong to its own seed, under ``purpose`` (the stage)."""
        draws, device = SampleDraws(batch.seeds, f"augment {purpose}"), batch.probs.device
        uniform = draws.uniform(2).to(device)
        offset = draws.normal(batch.frame_embedding.shape[-1]).to(device)
        blank = uniform[:, 0] < self.frames
        batch = batch.with_appearance_offset(self.appearance * offset).without_frames(blank)
        return batch.without_objects((uniform[:, 1] < self.objects) & ~blank)
