"""Frame semantics: what VTA-SAM adds to a video's own features (arXiv 2409.14709, figure 1a)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..shards.batch import ClipBatch

Weights = Callable[[ClipBatch], Tensor]  # ⇒ (B, T, K): how much each object counts in each frame


def frame_semantics(probs: Tensor, object_embedding: Tensor) -> Tensor:
    """s[t] = Σ_k p[t, k] · e[k].

    probs (B, T, K) in [0, 1], object_embedding (B, K, De) or, where it changes with time, (B, T, K, De) ⇒ (B, T, De).
    Padded objects have probability 0.
    """
    if object_embedding.ndim == 4:
        return (probs[..., None] * object_embedding).sum(dim=2)
    return probs @ object_embedding


def as_seen(batch: ClipBatch) -> Tensor:
    """p[t, k], the paper."""
    return batch.probs


def uniform(batch: ClipBatch) -> Tensor:
    """Each object's mean over the clip's real frames: which objects are there is known, when is not."""
    real = batch.frame_mask[..., None].to(batch.probs.dtype)
    mean = (batch.probs * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.expand_as(batch.probs)


def by_area(batch: ClipBatch) -> Tensor:
    """p[t, k] times the object's area, as a share of the largest in the clip: near things count more."""
    areas = batch.areas
    return batch.probs * areas / areas.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def threshold(probs: Tensor, at: float) -> Tensor:
    """Probabilities below ``at`` become 0; the others stay as they are. (B, T, K) ⇒ (B, T, K)."""
    return probs * (probs >= at)


WEIGHTS: dict[str, Weights] = {"as_seen": as_seen, "uniform": uniform, "by_area": by_area}
