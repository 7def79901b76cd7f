"""Tallies: what is read off them is what the members themselves say, however they were divided."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.surrogate.metrics import fair_crps
from lapse.surrogate.tally import Sketch, Tally

rng = np.random.default_rng(0)
N, L, SPACE = 257, 2, (3, 4)
X = (rng.standard_normal((N, L, *SPACE)) * (1 + np.arange(L))[:, None, None] + 300.0).astype(np.float32)
Y = rng.standard_normal((L, *SPACE)) + 300.0
W = rng.random(SPACE)


def sketch(bins: int = 64) -> Sketch:
    return Sketch(X[:32].mean(0), X[:32].std(0), bins)


def tally(x: np.ndarray, **options: int) -> Tally:
    return Tally.of(x, sketch(**options), (300.0, 302.5), Y, W)


def test_a_tally_says_what_its_members_say() -> None:
    t, x = tally(X), X.astype(np.float64)
    assert np.allclose(t.mean, x.mean(0), rtol=1e-12) and np.allclose(t.variance, x.var(0, ddof=1), rtol=1e-9)
    assert np.array_equal(t.least, X.min(0)) and np.array_equal(t.most, X.max(0))
    assert np.array_equal(t.above[1], (X > 302.5).sum(0)) and np.array_equal(t.below, (X < Y).sum(0))
    assert np.allclose(t.error, np.abs(x - Y).mean(0))
    means = ((x - Y) * W).sum((-2, -1)) / W.sum()
    assert np.allclose(t.drift, means.mean(0)) and np.allclose(t.drift_square, (means**2).mean(0))
    assert (t.counts.sum(axis=1) == N).all()


@given(cuts=st.lists(st.integers(0, N), max_size=6), turn=st.booleans())
def test_division_leaves_no_trace(cuts: list[int], turn: bool) -> None:
    """Counts and extremes exactly, moments to round-off, in any grouping and order, empty pieces included."""
    whole = tally(X)
    edges = [0, *sorted(cuts), N]
    parts = [tally(X[a:b]) for a, b in itertools.pairwise(edges)]
    if turn:
        left = parts[0]
        for p in parts[1:]:
            left = left.merge(p)
    else:
        left = parts[-1]
        for p in parts[-2::-1]:
            left = p.merge(left)
    for name, wanted in whole.arrays().items():
        found = left.arrays()[name]
        if wanted.dtype.kind == "u" or name in ("least", "most"):
            assert np.array_equal(found, wanted), name
        else:
            assert np.allclose(found, wanted, rtol=1e-11, atol=1e-13), name
    assert left.n == N


@pytest.mark.parametrize("p", [0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("x", [X, np.concatenate([X, X[:40] + 50])], ids=["normal", "far tail"])
def test_quantiles_keep_their_bound(x: np.ndarray, p: float) -> None:
    found, bound = tally(x).quantile(p, sketch())
    error = np.abs(found - np.quantile(x.astype(np.float64), p, axis=0))
    assert (error <= bound + 1e-4).all()  # edges and members are float32, of size 300
    if x is X and 0.2 < p < 0.8:
        assert bound.max() < 8.5 / 62 * 2.5 and error.mean() < 0.1 * bound.mean()


def test_more_bins_make_better_quantiles() -> None:
    """Of many members: of few, the even spread within a bin is the larger error."""
    x = rng.standard_normal((5000, 1, 12)).astype(np.float32)
    wanted, errors = np.quantile(x.astype(np.float64), 0.3, axis=0), []
    for bins in (8, 32, 128):
        s = Sketch(x[:32].mean(0), x[:32].std(0), bins)
        errors.append(np.abs(Tally.of(x, s).quantile(0.3, s)[0] - wanted).mean())
    assert errors[0] > 5 * errors[1] > 6 * errors[2]


def test_crps_off_the_sketch() -> None:
    found, bound = tally(X).crps(sketch())
    wanted = fair_crps(X, Y)
    error = np.abs(found - wanted)
    assert (error <= bound).all()
    assert error.max() < 0.02 * wanted.mean() and abs((found - wanted).mean()) < 5e-3 * wanted.mean()
    one = tally(X[:1])
    assert np.allclose(one.crps(sketch())[0], np.abs(X[0] - Y))


def test_ties_and_one_value_everywhere() -> None:
    """A variable that does not vary (no rain): extremes, quantiles and CRPS are exact."""
    x = np.zeros((20, 1, 2), np.float32)
    flat = Sketch(np.zeros((1, 2)), np.full((1, 2), 1e-6), 16)
    t = Tally.of(x, flat, (0.0,), np.array([[0.0, 1.0]]))
    assert t.ties.tolist() == [[20, 0]] and t.below.tolist() == [[0, 20]] and not t.above.any()
    assert np.array_equal(t.quantile(0.37, flat)[0], [[0, 0]]) and np.allclose(t.crps(flat)[0], [[0, 1]])


def test_no_member() -> None:
    none = tally(X[:0])
    assert none.n == 0 and np.isnan(none.variance).all() and np.isnan(none.quantile(0.5, sketch())[0]).all()
    assert none.merge(none).n == 0
