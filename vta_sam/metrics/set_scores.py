"""Figures about sets of sounds, over a backbone's output.

Of embeddings, in float64: the Fréchet distance (Heusel et al., 2017; of sounds: Kilgour et al., 2019) with its
bootstrap over clips and its extrapolation to endless sets, the kernel distance (Bińkowski et al., 2018), and cosines.
Of class logits: KL divergence and Inception score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import entr, expit, log_softmax
from torch import Tensor

from ..runtime.errors import InputError
from .intervals import Resampling, SetValue

FEWEST_CLIPS = 50  # of FAD-∞: a line through fewer is not worth its name
PUBLISHED_FEWEST = 500  # of the published FAD-∞: its smallest subset of frames
KERNEL_SUBSET = 100  # rows
_SIZES, _REPEATS, _SMALLEST = 12, 4, 0.25  # of FAD-∞: subsets from a quarter of the clips to all


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Rows x (n, d) and y (m, d) ⇒ |μx − μy|² + tr(Sx) + tr(Sy) − 2 tr((Sx Sy)^½), covariances unbiased (ddof 1).

    With A'A = Sx and B'B = Sy the last trace is the nuclear norm of A B', where A and B come from a QR decomposition of
    the centred rows: exact for sets smaller than d too, where ``scipy.linalg.sqrtm`` errs in the eighth digit and takes
    minutes. The distance grows as sets shrink: compare only equal n. InputError: fewer than two rows, unequal d, NaN or
    infinity.
    """
    return _between(_parts(x, "x"), _parts(y, "y"))


def _between(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance of two sets by their :func:`_parts`."""
    (mean_x, root_x), (mean_y, root_y) = first, second
    if len(mean_x) != len(mean_y):
        raise InputError(f"a Fréchet distance needs vectors of one length, got {len(mean_x)} and {len(mean_y)}")
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    spread = np.square(root_x).sum() + np.square(root_y).sum()
    return float(np.square(mean_x - mean_y).sum() + spread - 2 * cross)


def frechet_from_moments(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """The same from means (d,) and covariances (d, d), by symmetric eigenvalues."""
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_y @ root)
    cross = np.sqrt(np.maximum(product, 0)).sum()
    return float(np.square(mean_x - mean_y).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross)


def resampled_distances(x: Sequence[np.ndarray], y: Sequence[np.ndarray], draws: np.ndarray,
                        device: str = "cpu") -> np.ndarray:
    """Rows per clip of both sets (a list of (rows, d), the same clips in the same order) ⇒ the distance of each draw of
    clips (resamples,).

    Their *spread* is the distance's. Their level is not: a draw repeats clips, which raises the distance, so that
    percentiles of them lie above the distance itself. Use :func:`~.intervals.standard_error`.

    Args:
        x, y: rows.
        draws: (resamples, clips) places of clips.
        device: of torch; a GPU takes several draws at once.
    """
    place = torch.device(device if device.startswith("cuda") else "cpu")  # others have no float64
    rows = [torch.from_numpy(np.concatenate(side).astype(np.float64)).to(place) for side in (x, y)]
    # with fewer rows than dimensions, all that a draw needs stands in one table of products
    table = rows[0] @ rows[1].T if all(len(side) <= side.shape[1] for side in rows) else None
    at_once = 1 if place.type == "cpu" or table is not None else max(1, _AT_ONCE // sum(side.numel() for side in rows))
    found = []
    for start in range(0, len(draws), at_once):
        # a clip that is drawn twice weighs twice: fewer rows than repeated ones, and the same distance
        clips = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws[start:start + at_once]])
        weights = [torch.from_numpy(np.repeat(clips, [len(part) for part in side], axis=1).astype(np.float64)).to(place)
                   for side in (x, y)]
        found.append(_weighted_distances(rows, weights) if table is None else
                     _distance_by_products(table, rows, [weight[0] for weight in weights])[None])
    return torch.cat(found).cpu().numpy()


_AT_ONCE = 2**28  # float64 numbers of rows on a GPU: 2 GB, and as much again for their decomposition


@dataclass(frozen=True)
class Extrapolated:
    """FAD-∞: the intercept of the distance over 1 / clips; slope and r_squared of the line."""

    value: float
    slope: float
    r_squared: float


def fad_infinity(x: Sequence[np.ndarray], y: Sequence[np.ndarray], seed: int = 0) -> Extrapolated | None:
    """Rows per clip of the reference x and of the generated y ⇒ FAD-∞ (Gui et al., 2024), over *clips*.

    Subsets of y's clips from a quarter to all, drawn without replacement by a seeded generator, four of each size; a
    line over 1 / size, its value at 0. Frames of one clip are not independent, so clips are counted, not frames. The
    bias of the reference's own size stays. None with fewer than 50 clips.
    """
    if len(y) < FEWEST_CLIPS:
        return None
    rng, parts_x = np.random.default_rng(seed), _parts(np.concatenate(x), "x")
    sizes = np.unique(np.linspace(_SMALLEST * len(y), len(y), _SIZES).astype(int))
    points = [(1 / size, _between(parts_x, _parts(np.concatenate([y[i] for i in rng.permutation(len(y))[:size]]), "y")))
              for size in sizes for _ in range(_REPEATS)]
    return _line(np.array(points))


def fad_infinity_published(mean: np.ndarray, cov: np.ndarray, frames: np.ndarray, seed: int, steps: int = 25,
                           fewest: int = PUBLISHED_FEWEST) -> Extrapolated:
    """fadtk's FAD-∞ (``fad.py:304-351``): baseline moments, frames (n, d) drawn *with* replacement, legacy generator.

    Its draws repeat frames, so that its intercept is the distance of this very set, not of an endless one. With fewer
    than 500 frames its grid runs backwards. Kept for comparison with figures computed so.
    """
    rng = np.random.RandomState(seed)
    points = []
    for size in np.linspace(fewest, len(frames), steps).astype(int):
        drawn = frames[rng.choice(len(frames), size=size, replace=True)].astype(np.float64)
        points.append((1 / size, frechet_from_moments(mean, cov, drawn.mean(0), np.cov(drawn, rowvar=False))))
    return _line(np.array(points))


def kernel_distance(x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = KERNEL_SUBSET,
                    seed: int = 2020) -> tuple[float, float]:
    """Rows x (n, d), y (m, d) ⇒ (mean, standard deviation over subsets) of the squared maximum mean discrepancy.

    Kernel (x·y / d + 1)³, unbiased within a set, subsets without replacement by the legacy generator, as
    ``audioldm_eval`` and av-benchmark have it (``metrics/kid.py``). InputError: a set smaller than a subset.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < subset_size or subset_size < 2:
        raise InputError(f"a kernel distance over subsets of {subset_size} needs as many rows, got {len(x)}, {len(y)}")
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        first = x[rng.choice(len(x), subset_size, replace=False)]
        second = y[rng.choice(len(y), subset_size, replace=False)]
        found.append(_discrepancy(first, second))
    return float(np.mean(found)), float(np.std(found))


# ---------------------------------------------------------------- as metrics of a set: rows of embeddings per clip

Rows = Sequence[np.ndarray]  # of each clip (rows, d)
_TOO_FEW = "needs at least two clips long enough for the backbone, there are {}"


def frechet_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ the Fréchet distance with its bootstrap distribution over clips, or why there is none."""
    if len(true) < 2:
        return _TOO_FEW.format(len(true))
    reference, rows = np.concatenate(true), np.concatenate(generated)
    fewest, dimensions = min(len(rows), len(reference)), rows.shape[1]
    detail = {"rows": len(rows), "reference_rows": len(reference), "dimensions": dimensions}
    note = "" if fewest > dimensions else (
        f"{fewest} rows of {dimensions} dimensions: with no more rows than dimensions a Fréchet distance follows the "
        "number of rows; compare it with equal numbers alone")
    return SetValue(max(0.0, frechet_distance(reference, rows)),  # rounding of equal sets ends below 0
                    resampled_distances(true, generated, resampling.draws(len(true)), resampling.device), detail, note)


def fad_infinity_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`fad_infinity` without an interval, or why there is none."""
    found = fad_infinity(true, generated, resampling.seed)
    if found is None:
        return f"needs at least {FEWEST_CLIPS} clips, there are {len(generated)}"
    return _of_line(found, {"clips": len(generated)})


def fad_infinity_published_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`fad_infinity_published` of all rows, or why there is none."""
    rows = np.concatenate(generated) if generated else np.zeros((0, 1))
    if len(rows) < PUBLISHED_FEWEST:
        return f"needs at least {PUBLISHED_FEWEST} rows of embeddings, there are {len(rows)}"
    reference = np.concatenate(true).astype(np.float64)
    found = fad_infinity_published(reference.mean(0), np.cov(reference, rowvar=False), rows, resampling.seed)
    return _of_line(found, {"rows": len(rows)})


def kernel_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`kernel_distance` of all rows, with the published seed, or why there is none."""
    counts = [sum(map(len, rows)) for rows in (true, generated)]
    if min(counts) < KERNEL_SUBSET:
        return f"needs at least {KERNEL_SUBSET} rows of embeddings a side, there are {min(counts)}"
    mean, std = kernel_distance(np.concatenate(true), np.concatenate(generated))
    note = "" if mean >= 0 else "an unbiased estimate of a distance of about 0 may lie below 0: no difference is found"
    return SetValue(mean, None, {"std_of_subsets": std, "subset_rows": KERNEL_SUBSET}, note)


def _of_line(found: Extrapolated, detail: dict[str, float]) -> SetValue:
    """⇒ the figure of a line's end. There is no distance below 0: of a set against itself the line ends there."""
    detail = {"slope": found.slope, "r_squared": found.r_squared, **detail}
    if found.value >= 0:
        return SetValue(found.value, None, detail)
    return SetValue(0.0, None, {**detail, "extrapolated": found.value},
                    "the line over 1 / clips ends below 0, as that of a set against itself does; 0 is shown")


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    within = sum(float(table.sum() - np.trace(table)) for table in (kernel(x, x), kernel(y, y))) / (n * (n - 1))
    return within - 2 * float(kernel(x, y).mean())


def _parts(rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) ⇒ their mean and a root R (min(n, d), d) of their covariance: R'R = S."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise InputError(f"a Fréchet distance needs at least two rows a side, got {name} of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise InputError(f"a Fréchet distance needs finite vectors; {name} holds NaN or infinity")
    mean = rows.mean(axis=0)
    return mean, np.linalg.qr(rows - mean, mode="r") / np.sqrt(len(rows) - 1)


def _weighted_distances(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Rows (n, d) of both sets, and how often each is drawn (draws, n) ⇒ their distances (draws,)."""
    means, roots = [], []
    for side, weight in zip(rows, weights):
        drawn = weight.any(dim=0)
        part, weight = side[drawn], weight[:, drawn]
        count = weight.sum(dim=1, keepdim=True)
        means.append(weight @ part / count)
        centred = (part - means[-1][:, None]) * weight.sqrt()[..., None]
        roots.append(torch.linalg.qr(centred, mode="r").R / (count[..., None] - 1).sqrt())
    cross = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum(dim=1)
    spread = sum(root.square().sum(dim=(1, 2)) for root in roots)
    return (means[0] - means[1]).square().sum(dim=1) + spread - 2 * cross


def _distance_by_products(table: Tensor, rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Products (n, m) of all rows of both sets, and how often each row is drawn (n,), (m,) ⇒ their distance."""
    drawn = [weight > 0 for weight in weights]
    (x, y), (u, v) = ([side[kept] for side, kept in zip(sides, drawn)] for sides in (rows, weights))
    n, m = u.sum(), v.sum()
    table = table[drawn[0]][:, drawn[1]]
    along, across = u @ table / n, table @ v / m
    centred = (table - along - across[:, None] + u @ across / n) * u.sqrt()[:, None] * v.sqrt()
    mean_x, mean_y = u @ x / n, v @ y / m
    spread_x = (u @ x.square().sum(dim=1) - n * mean_x @ mean_x) / (n - 1)
    spread_y = (v @ y.square().sum(dim=1) - m * mean_y @ mean_y) / (m - 1)
    norm = torch.linalg.svdvals(centred).sum() / ((n - 1) * (m - 1)).sqrt()
    return (mean_x - mean_y).square().sum() + spread_x + spread_y - 2 * norm


def _line(points: np.ndarray) -> Extrapolated:
    inverse, distances = points.T
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.square(distances - (slope * inverse + intercept)).sum()
    total = np.square(distances - distances.mean()).sum()
    return Extrapolated(float(intercept), float(slope), float(1 - residual / total) if total > 0 else 1.0)


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


def resampled_inception_scores(logits: Sequence[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Logits (samples, C) of each clip, and places of clips (resamples, clips) ⇒ the score of one split of each draw.

    The mean divergence from the marginal is the marginal's entropy less the mean entropy, so that a draw needs no more
    than weighted sums of what is computed once.
    """
    log_p = log_softmax(_finite(np.concatenate(logits), "logits"), axis=1)
    p = np.exp(log_p)
    entropies = -np.where(p > 0, p * log_p, 0.0).sum(axis=1)
    clips = np.stack([np.bincount(draw, minlength=len(logits)) for draw in draws])
    weights = np.repeat(clips, [len(part) for part in logits], axis=1).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.exp(entr(weights @ p).sum(axis=1) - weights @ entropies)


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
    resampled = resampled_inception_scores(logits, resampling.draws(len(logits)))
    detail = {"splits": 1.0}
    if len(rows) >= 2 * _SPLITS:
        mean, std = inception_score(rows, _SPLITS, seed=_SEED)
        detail |= {"ten_splits_mean": mean, "ten_splits_std": std}
    note = "" if len(rows) >= rows.shape[1] else (
        f"{len(rows)} sounds for {rows.shape[1]} classes: an Inception score can't exceed the number of sounds; "
        "compare it with equal numbers alone")
    return SetValue(inception_score(rows)[0], resampled, detail, note)


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
