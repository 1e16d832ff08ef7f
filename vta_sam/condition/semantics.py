"""Frame semantics: what VTA-SAM adds to a video's own features (arXiv 2409.14709, figure 1a)."""

from __future__ import annotations

from torch import Tensor


def frame_semantics(probs: Tensor, object_embedding: Tensor) -> Tensor:
    """s[t] = Σ_k p[t, k] · e[k].

    probs (B, T, K) in [0, 1], object_embedding (B, K, De) ⇒ (B, T, De). Padded objects have probability 0.
    """
    return probs @ object_embedding


def threshold(probs: Tensor, at: float) -> Tensor:
    """Probabilities below ``at`` become 0; the others stay as they are. (B, T, K) ⇒ (B, T, K)."""
    return probs * (probs >= at)
