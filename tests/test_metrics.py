"""The formulas against brute force, against scoringrules, against closed forms, and against exchangeability itself."""

import math

import numpy as np
import pytest
import scoringrules
from hypothesis import given
from hypothesis import strategies as st

from lapse.surrogate.metrics import central_coverage, fair_crps, gaussian_crps, rank, rank_bin, spread_factor


def pairwise_crps(x, y):
    M = len(x)
    pairs = sum(abs(x[i] - x[j]) for i in range(M) for j in range(M))
    return np.abs(x - y).mean() - pairs / (2 * M * (M - 1))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.floats(-1e3, 1e3))
def test_fair_crps_is_the_pairwise_definition(members, y):
    x = np.array(members)
    assert fair_crps(x, y) == pytest.approx(pairwise_crps(x, y), abs=1e-10)


def test_fair_crps_agrees_with_scoringrules():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(17, 5, 7)), g.normal(size=(5, 7))
    expected = scoringrules.crps_ensemble(y, x, m_axis=0, estimator="fair")
    np.testing.assert_allclose(fair_crps(x, y), expected, rtol=1e-12)


def test_fair_crps_by_hand():
    assert fair_crps([0.0, 2.0], 1.0) == 0.0  # mean |x - y| = 1, |x - x'| = 2
    assert fair_crps([0.0, 1.0, 5.0], 2.0) == pytest.approx(2.0 - 10 / 6)
    assert fair_crps([3.0], 1.0) == 2.0  # one member: the absolute error


def test_fair_crps_does_not_lose_digits_to_a_large_mean():
    x, y = np.array([0.0, 1.0, 5.0]), 2.0
    assert fair_crps(x + 2.0**40, y + 2.0**40) == fair_crps(x, y)


def test_fair_crps_does_not_depend_on_the_number_of_members():
    g = np.random.default_rng(1)
    y = g.normal(size=400_000)
    exact = 1 / math.sqrt(math.pi)  # E CRPS of N(0, 1) for its own draws
    for M in (2, 3, 10):
        crps = fair_crps(g.normal(size=(M, y.size)), y)
        assert crps.mean() == pytest.approx(exact, abs=5 * crps.std() / math.sqrt(y.size))


def test_gaussian_crps_is_its_integral_and_scoringrules():
    t = np.linspace(-30, 30, 600_001)
    for mean, std, y in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0), (-1.0, 3.0, 4.0)):
        cdf = np.array([0.5 * (1 + math.erf(a / math.sqrt(2))) for a in (t[::100] - mean) / std])
        integral = np.trapezoid((np.interp(t, t[::100], cdf) - (t >= y)) ** 2, t)
        assert gaussian_crps(mean, std, y) == pytest.approx(integral, abs=2e-4)
        assert gaussian_crps(mean, std, y) == pytest.approx(scoringrules.crps_normal(y, mean, std), rel=1e-12)
    assert gaussian_crps(1.0, 0.0, 3.0) == 2.0
    with pytest.raises(ValueError, match="negative"):
        gaussian_crps(0.0, -1.0, 0.0)


@pytest.mark.parametrize("M", [1, 2, 8, 32])
def test_error_of_the_mean_is_the_inflated_variance(M):
    g = np.random.default_rng(2)
    n = 200_000
    x, y = g.normal(size=(M, n)), g.normal(size=n)
    square = (x.mean(axis=0) - y) ** 2
    expected = spread_factor(M) * 1.0
    assert square.mean() == pytest.approx(expected, abs=5 * square.std() / math.sqrt(n))


@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy", "uniform"])
@pytest.mark.parametrize("M", [8, 16, 32])
def test_coverage_of_a_reliable_ensemble_is_nominal_for_any_distribution(M, draw):
    g = np.random.default_rng(3)
    n, levels = 60_000, (0.5, 0.8, 0.9)
    x, y = getattr(g, draw)(size=(M, n)), getattr(g, draw)(size=n)
    cover = central_coverage(rank(x, y, g), M, levels)
    for level, c in zip(levels, cover, strict=True):
        assert c.mean() == pytest.approx(level, abs=5 * c.std() / math.sqrt(n))


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_coverage_summed_over_the_ranks_is_exact(M, level):
    assert central_coverage(np.arange(M + 1), M, [level]).mean() == pytest.approx(level, abs=1e-12)


def test_coverage_counts_whole_order_statistics_where_they_exist():
    # 9 members, 80 %: from the first to the ninth order statistic, no interpolation
    np.testing.assert_allclose(central_coverage(np.arange(10), 9, [0.8])[0], [0, *[1] * 8, 0], atol=1e-12)


def test_overconfidence_and_underconfidence_show():
    g = np.random.default_rng(4)
    x, y = g.normal(size=(16, 50_000)), g.normal(size=50_000)
    narrow, wide = (central_coverage(rank(s * x, y, g), 16, [0.5])[0].mean() for s in (0.5, 2.0))
    assert narrow < 0.3
    assert wide > 0.75


def test_ranks_are_uniform_even_with_ties():
    g = np.random.default_rng(5)
    n, M = 90_000, 8
    coins = g.integers(0, 2, (M + 1, n))
    normal = g.normal(size=(M + 1, n))
    for x, y in ((normal[1:], normal[0]), (coins[1:], coins[0]), (np.zeros((M, n)), np.zeros(n))):
        counts = np.bincount(rank(x, y, g), minlength=M + 1)
        chi2 = ((counts - n / (M + 1)) ** 2).sum() / (n / (M + 1))
        assert chi2 < 26.1  # 99.9 % of chi² with 8 degrees of freedom
    assert rank([[0.0], [1.0], [3.0]], [2.0], g) == 2


@pytest.mark.parametrize(("M", "bins"), [(7, 9), (9, 9), (500, 101), (3, 4)])
def test_pooled_ranks_stay_uniform(M, bins):
    g = np.random.default_rng(6)
    n = 100_000
    counts = np.bincount(rank_bin(g.integers(0, M + 1, n), M, bins, g), minlength=bins)
    chi2 = ((counts - n / bins) ** 2).sum() / (n / bins)
    assert len(counts) == bins
    assert chi2 < bins - 1 + 5 * math.sqrt(2 * bins)
    if bins == M + 1:
        np.testing.assert_array_equal(rank_bin(np.arange(M + 1), M, bins, g), np.arange(M + 1))
