"""Figures about sets of sounds, over a backbone's output.

Of embeddings, in float64: the Fréchet distance (Heusel et al., 2017; of sounds: Kilgour et al., 2019) with its
bootstrap over clips and its extrapolation to endless sets, the kernel distance (Bińkowski et al., 2018), and cosines.
Of class logits: KL divergence and Inception score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_softmax

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
    (mean_x, root_x), (mean_y, root_y) = _parts(x, "x"), _parts(y, "y")
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


def resampled_distances(x: Sequence[np.ndarray], y: Sequence[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Rows per clip of both sets (a list of (rows, d), the same clips in the same order) ⇒ the distance of each draw of
    clips (resamples,).

    Their *spread* is the distance's. Their level is not: a draw repeats clips, which raises the distance, so that
    percentiles of them lie above the distance itself. Use :func:`~.intervals.standard_error`.
    """
    rows_x, rows_y = np.concatenate(x).astype(np.float64), np.concatenate(y).astype(np.float64)
    places_x, places_y = _places(x), _places(y)
    # with fewer rows than dimensions, all that a draw needs stands in one table of products
    small = len(rows_x) <= rows_x.shape[1] and len(rows_y) <= rows_y.shape[1]
    products = (rows_x @ rows_y.T, np.square(rows_x).sum(1), np.square(rows_y).sum(1)) if small else None
    found = []
    for draw in draws:
        i, j = (np.concatenate([places[clip] for clip in draw]) for places in (places_x, places_y))
        found.append(_from_products(products, rows_x, rows_y, i, j) if products else
                     frechet_distance(rows_x[i], rows_y[j]))
    return np.array(found)


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
    rng, rows_x = np.random.default_rng(seed), np.concatenate(x)
    sizes = np.unique(np.linspace(_SMALLEST * len(y), len(y), _SIZES).astype(int))
    points = [(1 / size, frechet_distance(rows_x, np.concatenate([y[i] for i in rng.permutation(len(y))[:size]])))
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
    detail = {"rows": len(rows), "reference_rows": len(reference), "dimensions": rows.shape[1]}
    return SetValue(frechet_distance(reference, rows),
                    resampled_distances(true, generated, resampling.draws(len(true))), detail)


def fad_infinity_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`fad_infinity` without an interval, or why there is none."""
    found = fad_infinity(true, generated, resampling.seed)
    if found is None:
        return f"needs at least {FEWEST_CLIPS} clips, there are {len(generated)}"
    return SetValue(found.value, None,
                    {"slope": found.slope, "r_squared": found.r_squared, "clips": len(generated)})


def fad_infinity_published_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`fad_infinity_published` of all rows, or why there is none."""
    rows = np.concatenate(generated) if generated else np.zeros((0, 1))
    if len(rows) < PUBLISHED_FEWEST:
        return f"needs at least {PUBLISHED_FEWEST} rows of embeddings, there are {len(rows)}"
    reference = np.concatenate(true).astype(np.float64)
    found = fad_infinity_published(reference.mean(0), np.cov(reference, rowvar=False), rows, resampling.seed)
    return SetValue(found.value, None, {"slope": found.slope, "r_squared": found.r_squared, "rows": len(rows)})


def kernel_of_clips(true: Rows, generated: Rows, resampling: Resampling) -> SetValue | str:
    """⇒ :func:`kernel_distance` of all rows, with the published seed, or why there is none."""
    counts = [sum(map(len, rows)) for rows in (true, generated)]
    if min(counts) < KERNEL_SUBSET:
        return f"needs at least {KERNEL_SUBSET} rows of embeddings a side, there are {min(counts)}"
    mean, std = kernel_distance(np.concatenate(true), np.concatenate(generated))
    return SetValue(mean, None, {"std_of_subsets": std, "subset_rows": KERNEL_SUBSET})


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


def _places(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([len(part) for part in rows])
    return [np.arange(end - len(part), end) for part, end in zip(rows, ends)]


def _from_products(products: tuple[np.ndarray, np.ndarray, np.ndarray], rows_x: np.ndarray, rows_y: np.ndarray,
                   i: np.ndarray, j: np.ndarray) -> float:
    """The distance of rows_x[i] and rows_y[j], by their inner products."""
    crossed, squares_x, squares_y = products
    table = crossed[np.ix_(i, j)]
    centred = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    mean_x, mean_y = rows_x[i].mean(0), rows_y[j].mean(0)
    spread_x = (squares_x[i].sum() - len(i) * mean_x @ mean_x) / (len(i) - 1)
    spread_y = (squares_y[j].sum() - len(j) * mean_y @ mean_y) / (len(j) - 1)
    norm = np.linalg.svd(centred, compute_uv=False).sum() / np.sqrt((len(i) - 1) * (len(j) - 1))
    return float(np.square(mean_x - mean_y).sum() + spread_x + spread_y - 2 * norm)


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
