"""Paired statistics against independent formulas, and on cases whose answer is known."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from videornn.evaluation import paired
from videornn.evaluation.paired import bootstrap_means, mcnemar, paired_difference


def _discordant(only_a: int, only_b: int, both: int = 3, neither: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * neither
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * neither
    return np.array(a, bool), np.array(b, bool)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (4, 9), (12, 1), (0, 10), (30, 51)])
def test_mcnemar_sums_the_binomial_distribution(only_a: int, only_b: int) -> None:
    num = only_a + only_b
    tail = sum(Fraction(math.comb(num, k), 2**num) for k in range(min(only_a, only_b) + 1))
    p = mcnemar(*_discordant(only_a, only_b))
    assert p == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-15)
    assert mcnemar(*_discordant(only_b, only_a)) == p  # neither network is the first


def test_mcnemar_of_a_table_of_a_textbook() -> None:
    assert mcnemar(*_discordant(10, 2)) == pytest.approx(2 * (1 + 12 + 66) / 4096)  # 0.0386
    assert mcnemar(*_discordant(6000, 4000)) < 1e-80  # without running out of floats
    assert mcnemar(*_discordant(20000, 0)) == 0.0


def test_the_bootstrap_draws_seeds_and_videos_as_enumerating_all_draws_does() -> None:
    values = np.array([[1, 0, -1], [1, 1, 0], [0, 0, 1]], np.int8)
    every = [
        np.mean([values[s, v] for s in seeds for v in videos])
        for seeds in itertools.product(range(3), repeat=2)  # one fewer than there are
        for videos in itertools.product(range(3), repeat=3)
    ]
    drawn = bootstrap_means(values, num_draws=200_000)
    assert drawn.mean() == pytest.approx(np.mean(every), abs=0.005)
    assert drawn.std() == pytest.approx(np.std(every), abs=0.005)
    points = sorted({round(mean, 9) for mean in every})
    for low, high in itertools.pairwise(points):
        middle = (low + high) / 2
        assert np.mean(drawn < middle) == pytest.approx(np.mean(np.array(every) < middle), abs=0.005)


def test_of_one_seed_the_interval_is_that_of_the_normal_distribution_over_videos() -> None:
    a, b = _discordant(300, 200, both=900, neither=600)
    found = paired_difference(a[None], b[None])
    difference = a.astype(float) - b
    half = 100 * 1.96 * difference.std() / math.sqrt(len(a))
    assert found.mean == pytest.approx(5.0)
    assert found.low == pytest.approx(5.0 - half, abs=0.15) and found.high == pytest.approx(5.0 + half, abs=0.15)


def test_seeds_that_disagree_widen_the_interval_and_those_that_agree_do_not() -> None:
    a, b = _discordant(300, 200, both=900, neither=600)
    one = paired_difference(a[None], b[None])
    same = paired_difference(np.stack([a] * 4), np.stack([b] * 4))
    assert (same.low, same.high) == pytest.approx((one.low, one.high), abs=0.15)
    assert same.mcnemar == 4 * one.mcnemar == 4 * (mcnemar(a, b),)
    opposed = paired_difference(np.stack([a, a, b, b]), np.stack([b, b, a, a]))
    assert opposed.mean == 0 and opposed.of_seeds == (5.0, 5.0, -5.0, -5.0)
    assert opposed.high - opposed.low > 1.5 * (one.high - one.low)


def test_the_variance_of_seeds_alone_is_that_of_the_mean_of_so_many() -> None:
    values = np.repeat(np.array([[1], [0], [1], [-1], [0]], np.int8), 30, axis=1)  # all videos alike
    expected = np.var(values[:, 0], ddof=1) / 5
    assert bootstrap_means(values, num_draws=100_000).var() == pytest.approx(expected, rel=0.02)
    assert set(bootstrap_means(values[:1], num_draws=100).tolist()) == {1.0}


def test_parts_of_the_draws_and_their_order_change_nothing_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 400)) < 0.6, rng.random((3, 400)) < 0.5
    whole = paired_difference(a, b)
    assert whole == paired_difference(a, b)
    order = rng.permutation(400)
    assert paired_difference(a[:, order], b[:, order]) == whole
    turned = paired_difference(b, a)
    assert turned.mean == pytest.approx(-whole.mean) and turned.mcnemar == whole.mcnemar
    assert (turned.low, turned.high) == pytest.approx((-whole.high, -whole.low), abs=0.6)
    monkeypatch.setattr(paired, "ENTRIES_AT_ONCE", 1000)
    parts = paired_difference(a, b)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.6) and parts.mean == whole.mean
