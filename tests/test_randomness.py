"""Draws belong to samples."""

import subprocess
import sys

import pytest
import torch

from vta_sam.runtime.randomness import SampleDraws, generator, seed_of

GOLDEN = {("order", 0, 0): 8162653594506637687, ("a", 1): 4665976284724862560, ("a1",): 5742849598844073613}


@pytest.mark.parametrize("parts", GOLDEN)
def test_seeds_are_the_same_everywhere(parts):
    """Another number here would break the resuming of every run that exists."""
    assert seed_of(*parts) == GOLDEN[parts]


def test_seeds_do_not_depend_on_the_process():
    """Python's hash() of a text differs from process to process."""
    code = "from vta_sam.runtime.randomness import seed_of; print(seed_of('order', 0, 0))"
    out = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True)
    assert out.stdout.strip() == str(GOLDEN["order", 0, 0]), out.stderr


def test_parts_do_not_run_together():
    assert len({seed_of("ab", "c"), seed_of("a", "bc"), seed_of("abc"), seed_of("c", "ab")}) == 4
    assert seed_of(12, "x") == seed_of("12", "x")
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))


def test_a_generator_is_its_seed():
    assert torch.equal(torch.randn(3, generator=generator("x", 1)), torch.randn(3, generator=generator("x", 1)))
    assert not torch.equal(torch.randn(3, generator=generator("x", 1)), torch.randn(3, generator=generator("x", 2)))


def draws(seeds, purpose="p"):
    made = SampleDraws(seeds, purpose)
    return [made.integer(1000), made.normal(4, 2), made.uniform(3), made.uniform()]


def test_a_row_draws_the_same_in_any_batch():
    together, alone = draws([7, 8, 9]), draws([9])
    turned = draws(torch.tensor([9, 7, 8]))
    for a, b, c in zip(together, alone, turned):
        assert torch.equal(a[2:], b) and torch.equal(a[[2, 0, 1]], c)


def test_purposes_and_seeds_give_other_draws():
    first = torch.cat([part.flatten() for part in draws([7])[1:]])
    for other in (draws([8]), draws([7], "q")):
        assert not torch.isclose(torch.cat([part.flatten() for part in other[1:]]), first).any()


def test_draws_are_of_their_distribution():
    made = SampleDraws(range(500), "p")
    integers, normal, uniform = made.integer(10), made.normal(8), made.uniform(8)
    assert integers.dtype == torch.int64 and integers.bincount(minlength=10).min() > 25 and integers.max() == 9
    assert abs(normal.mean()) < 0.06 and abs(normal.std() - 1) < 0.06
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.03
