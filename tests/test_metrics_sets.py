"""Figures over sets: published values of given arrays, and what must hold of any set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vta_sam.metrics.set_scores import (
    cosine, fad_infinity, fad_infinity_published, frechet_distance, frechet_from_moments, inception_score,
    kernel_distance, kl_divergence, kl_eps1e_6, kl_sigmoid, kl_sigmoid_eps1e_6, resampled_distances
)
from vta_sam.metrics.intervals import clip_draws, standard_error
from vta_sam.runtime.errors import InputError


def R(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


V1 = R(0).randn(400, 32), R(1).randn(300, 32) * 1.1 + 0.1
K1 = R(3).randn(16, 527).astype(np.float32) * 3, R(2).randn(16, 527).astype(np.float32) * 3  # reference, generated
I1 = (R(4).randn(100, 527) * 3).astype(np.float32)


# ---------------------------------------------------------------- values of published functions

def test_frechet_distances():
    assert frechet_distance(*V1) == pytest.approx(2.758183302, rel=1e-9)
    v3 = R(0).randn(20, 64), R(1).randn(30, 64) + 0.5
    assert frechet_distance(*v3) == pytest.approx(89.84945166, rel=1e-9)
    assert frechet_distance(*v3) != pytest.approx(89.84944999, rel=1e-8), "sqrtm's rounding"
    v4 = [[1, 1], [1, -1], [-1, 1], [-1, -1]], [[3, 3], [3, -3], [-1, 3], [-1, -3]]
    assert frechet_distance(*map(np.array, v4)) == pytest.approx(23 / 3, rel=1e-12)


def test_kl_divergences():
    assert kl_divergence(*K1).mean() == pytest.approx(8.058813, rel=1e-6)
    assert kl_eps1e_6(*K1).mean() == pytest.approx(7.629426, rel=1e-6)
    assert kl_sigmoid_eps1e_6(*K1).mean() == pytest.approx(272.2338, rel=1e-6)
    assert kl_sigmoid(*K1).mean() == pytest.approx(272.2551, rel=1e-6)
    k2 = np.array([[np.log(3), 0]]), np.zeros((1, 2))
    assert kl_divergence(*k2)[0] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-12)
    assert kl_eps1e_6(*k2)[0] == pytest.approx(0.130810082, rel=1e-6)


def test_inception_scores():
    assert inception_score(I1, 10, seed=2020) == pytest.approx((6.477396203, 0.425282412), rel=1e-7)
    assert inception_score(I1, 10) == pytest.approx((6.501764763, 0.256364438), rel=1e-7)
    assert inception_score(I1)[0] == pytest.approx(17.77856842, rel=1e-7)


def test_kernel_distance():
    assert kernel_distance(*V1) == pytest.approx((0.0645355236, 0.0283483786), rel=1e-7)


def test_extrapolation_as_published():
    frames = R(5).randn(2000, 16)
    found = fad_infinity_published(np.zeros(16), np.eye(16), frames, seed=0)
    assert found.value == pytest.approx(0.0448856982, abs=1e-8)
    assert (found.slope, found.r_squared) == pytest.approx((79.07070141, 0.856457671), rel=1e-7)
    other = fad_infinity_published(np.zeros(16), np.eye(16), frames, seed=1)
    assert other.value == pytest.approx(0.0475755556, abs=1e-8)
    backwards = fad_infinity_published(np.zeros(16), np.eye(16), R(5).randn(200, 16), seed=0)
    assert backwards.value == pytest.approx(0.4649534038, abs=1e-8)


def test_values_are_those_of_the_reference_material(shared_dir):
    golden = json.loads((shared_dir / "golden" / "statistics.json").read_text())
    assert frechet_distance(*V1) == pytest.approx(golden["frechet"]["V1"]["fd"], rel=1e-4)
    for name, kl in (("softmax_exact", kl_divergence), ("softmax_eps1e-6", kl_eps1e_6),
                     ("sigmoid_eps", kl_sigmoid_eps1e_6), ("sigmoid_exact", kl_sigmoid)):
        assert kl(*K1).mean() == pytest.approx(golden["kl"]["K1"][name], rel=1e-4), name
    assert inception_score(I1)[0] == pytest.approx(golden["inception"]["I1"]["one_split"], rel=1e-4)
    assert kernel_distance(*V1) == pytest.approx(tuple(golden["kid"]["D1"]["kid"]), rel=1e-4)


# ---------------------------------------------------------------- what must hold of any set

def test_equal_sets_have_no_distance():
    x = V1[0]
    assert abs(frechet_distance(x, x)) < 1e-11 and abs(frechet_distance(x, x[::-1])) < 1e-11
    few = R(0).randn(20, 64)
    assert abs(frechet_distance(few, few)) < 1e-11
    np.testing.assert_array_equal(kl_divergence(K1[0], K1[0]), 0)
    assert kl_eps1e_6(K1[0], K1[0]).mean() < 0, "the published form is not 0 for equal inputs"


def test_moments_give_the_same_distance():
    x, y = V1
    moments = [m for rows in (x, y) for m in (rows.mean(0), np.cov(rows, rowvar=False))]
    assert frechet_from_moments(*moments) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_more_noise_is_worse():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(300, 24)), rng.normal(size=(300, 24))
    distances = [frechet_distance(x, x + k * noise) for k in (0, 0.1, 0.3, 1.0, 3.0)]
    assert distances == sorted(distances) and distances[1] > 1e-5
    logits = rng.normal(0, 3, (50, 20))
    kls = [kl_divergence(logits, logits + k * rng.normal(0, 1, logits.shape)).mean() for k in (0, 0.5, 1.5, 5)]
    assert kls == sorted(kls) and kls[1] > 0


def test_a_set_of_silence_has_a_finite_distance():
    assert np.isfinite(frechet_distance(V1[0], np.ones((50, 32))))


@pytest.mark.parametrize("bad", [np.zeros((1, 32)), np.zeros((0, 32)), np.zeros(32), np.full((3, 32), np.nan)])
def test_what_has_no_distance(bad):
    with pytest.raises(InputError):
        frechet_distance(V1[0], bad)
    with pytest.raises(InputError, match="one length"):
        frechet_distance(V1[0], np.zeros((3, 31)))


def by_clip(rows: np.ndarray, each: int) -> list[np.ndarray]:
    return list(rows.reshape(-1, each, rows.shape[1]))


@pytest.mark.parametrize(("clips", "each", "dim"), [(40, 1, 8), (30, 1, 64), (20, 3, 64), (24, 5, 16)])
def test_resampled_distances_are_those_of_the_drawn_rows(clips, each, dim):
    """Few rows take another way (inner products) than many."""
    x, y = by_clip(R(0).randn(clips * each, dim), each), by_clip(R(1).randn(clips * each, dim) + 0.3, each)
    draws = clip_draws(clips, 4, seed=1)
    expected = [frechet_distance(np.concatenate([x[i] for i in d]), np.concatenate([y[i] for i in d])) for d in draws]
    np.testing.assert_allclose(resampled_distances(x, y, draws), expected, rtol=1e-9)


def test_percentiles_of_resampled_distances_lie_above_the_distance():
    """Why intervals are made of their standard error."""
    x, y = by_clip(R(0).randn(100, 32), 1), by_clip(R(1).randn(100, 32), 1)
    drawn = resampled_distances(x, y, clip_draws(100, 100))
    assert np.percentile(drawn, 2.5) > frechet_distance(np.concatenate(x), np.concatenate(y))


def test_the_standard_error_is_that_of_new_sets():
    sets = [frechet_distance(R(s).randn(200, 8), R(s + 1000).randn(200, 8) + 0.5) for s in range(100)]
    x, y = by_clip(R(0).randn(200, 8), 1), by_clip(R(1000).randn(200, 8) + 0.5, 1)
    error = standard_error(resampled_distances(x, y, clip_draws(200, 200)))
    assert error == pytest.approx(np.std(sets), rel=0.35)


def test_extrapolation_takes_off_the_bias_of_a_small_set():
    x = by_clip(R(0).randn(4000, 16), 1)
    y = by_clip(R(1).randn(200, 16), 1)  # the same distribution: the true distance is 0
    plain = frechet_distance(np.concatenate(x), np.concatenate(y))
    found = fad_infinity(x, y)
    assert found is not None and plain > 0.5 and abs(found.value) < 0.25 * plain
    assert found == fad_infinity(x, y), "not a function of its seed"
    assert found != fad_infinity(x, y, seed=1)
    assert fad_infinity(x, y[:49]) is None


def test_inception_score_with_one_split_does_not_know_order():
    assert inception_score(I1)[0] == pytest.approx(inception_score(I1[::-1])[0], rel=1e-12)
    assert inception_score(I1, 10, 2020)[0] != pytest.approx(inception_score(I1[::-1], 10, 2020)[0], rel=1e-3)


def test_inception_score_of_certainty():
    certain = np.full((40, 10), -1e4)
    certain[np.arange(40), np.arange(40) % 10] = 1e4  # probabilities of 0 are no NaN
    assert inception_score(certain)[0] == pytest.approx(10)
    assert inception_score(np.zeros((40, 10)))[0] == pytest.approx(1)
    with pytest.raises(InputError, match="at least 20"):
        inception_score(np.zeros((19, 10)), 10)


def test_kl_needs_pairs():
    with pytest.raises(InputError, match="one shape"):
        kl_divergence(np.zeros((3, 4)), np.zeros((2, 4)))
    with pytest.raises(InputError, match="finite"):
        kl_divergence(np.full((3, 4), np.inf), np.zeros((3, 4)))


def test_cosines():
    first = np.array([[1.0, 0], [1, 1], [1, 0], [0, 0]])
    second = np.array([[2.0, 0], [-1, -1], [0, 5], [1, 1]])
    np.testing.assert_allclose(cosine(first, second), [1, -1, 0, np.nan])
    with pytest.raises(InputError):
        cosine(first, second[:2])
