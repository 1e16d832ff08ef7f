"""Figures over a backbone's output: KL divergence of class logits, Inception score of a set, cosine of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, log_softmax

from ..runtime.errors import InputError
from .intervals import Resampling, SetValue

EPSILON = 1e-6
_SPLITS, _SEED = 10, 2020  # of the Inception score as published


def kl_divergence(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Logits (n, C) of true and of generated sounds, paired ⇒ (n,) KL(reference ‖ generated) of their softmax, in nats.

    Exact, by log-softmax in float64, as av-benchmark computes it; 0 for equal logits. Papers that follow AudioLDM's
    evaluation report :func:`kl_eps1e_6`, which is another number as soon as the classifier is confident.
    """
    log_r, log_g = _log_softmax(reference, generated)
    return (np.exp(log_r) * (log_r - log_g)).sum(axis=1)


def kl_eps1e_6(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """The same as ``audioldm_eval`` has it (``metrics/kl.py``): 1e-6 is added to the generated softmax, which caps a
    term at 13.8 nats and makes equal inputs slightly negative ⇒ (n,)."""
    log_r, log_g = _log_softmax(reference, generated)
    return (np.exp(log_r) * (log_r - np.log(np.exp(log_g) + EPSILON))).sum(axis=1)


def kl_sigmoid_eps1e_6(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """``audioldm_eval``'s "KL sigmoid" ⇒ (n,): Σ s(r) ln(s(r) / (s(g) + 1e-6)). Not a divergence (the terms of 1 − s
    are missing) and it can be negative; given for comparison alone."""
    reference, generated = _checked(reference, generated)
    r, g = expit(reference), expit(generated)
    return (r * (np.log(r) - np.log(g + EPSILON))).sum(axis=1)


def kl_sigmoid(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """av-benchmark's "KL sigmoid" ⇒ (n,): the same without 1e-6, and no divergence either."""
    reference, generated = _checked(reference, generated)
    log_r, log_g = -np.logaddexp(0, -reference), -np.logaddexp(0, -generated)
    return (np.exp(log_r) * (log_r - log_g)).sum(axis=1)


def inception_score(logits: np.ndarray, splits: int = 1, seed: int | None = None) -> tuple[float, float]:
    """Logits (n, C) ⇒ (mean, population standard deviation) over splits of exp(mean KL(p(c|x) ‖ p(c))).

    Salimans et al. (2016). With one split it doesn't depend on the order of rows; published evaluations take
    ``splits=10, seed=2020`` (a fixed shuffle, so order counts; the figure falls as splits grow): name the splits with
    it. A class that a whole split denies counts as 0, not as NaN. InputError: fewer than two rows a split.
    """
    logits = _finite(logits, "logits")
    if len(logits) < 2 * splits:
        raise InputError(f"an Inception score of {splits} splits needs at least {2 * splits} sounds, got {len(logits)}")
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    log_p = log_softmax(logits, axis=1)
    scores = []
    for k in range(splits):
        part = log_p[k * len(log_p) // splits:(k + 1) * len(log_p) // splits]
        p = np.exp(part)
        marginal = p.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (part - np.log(marginal)), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Paired rows (n, d) ⇒ (n,) cosines in [-1, 1]; NaN ("not defined") where a vector is zero.

    CLAP and ImageBind scores are such cosines, of sound and text or of sound and picture. InputError: unequal shapes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"cosines need paired rows of one length, got {first.shape} and {second.shape}")
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lengths > 0, np.clip((first * second).sum(axis=1) / lengths, -1, 1), np.nan)


def inception_of_clips(logits: Sequence[np.ndarray], resampling: Resampling) -> SetValue | str:
    """Logits (samples, C) of each clip ⇒ the Inception score of one split with its bootstrap distribution over clips,
    or why there is none. ``detail`` has the score of ten splits, as published."""
    if len(logits) < 2:
        return f"needs at least two clips long enough for the backbone, there are {len(logits)}"
    rows = np.concatenate(logits)
    resampled = np.array([inception_score(np.concatenate([logits[i] for i in draw]))[0]
                          for draw in resampling.draws(len(logits))])
    detail = {"splits": 1.0}
    if len(rows) >= 2 * _SPLITS:
        mean, std = inception_score(rows, _SPLITS, seed=_SEED)
        detail |= {"ten_splits_mean": mean, "ten_splits_std": std}
    return SetValue(inception_score(rows)[0], resampled, detail)


def _log_softmax(reference: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, generated = _checked(reference, generated)
    return log_softmax(reference, axis=1), log_softmax(generated, axis=1)


def _checked(reference: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, generated = _finite(reference, "reference"), _finite(generated, "generated")
    if reference.shape != generated.shape:
        raise InputError(f"a KL divergence pairs logits of one shape, got {reference.shape} and {generated.shape}")
    return reference, generated


def _finite(logits: np.ndarray, name: str) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise InputError(f"{name}: expected finite logits (sounds, classes), got shape {logits.shape}")
    return logits
