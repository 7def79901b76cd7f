r"""What is known of the members of an ensemble without the members: a tally, which grows by batches and merges.

Of n members xᵢ in every cell a tally holds

    n, x̄, S = Σ (xᵢ − x̄)²,  min, max               merged as Chan, Golub and LeVeque (1979) do, without cancellation
    N_b = #{i : e_b ≤ xᵢ < e_{b+1}}                  a histogram on edges e fixed before the first member is counted
    #{i : xᵢ > t}                                     for each threshold t
    mean |xᵢ − y|,  #{i : xᵢ < y},  #{i : xᵢ = y}     for a truth y, and the errors of the members' area means

Counts and extremes merge exactly, moments to round-off: how the members were divided leaves no trace.

The histogram is the sketch of the distribution. Its inner edges are centre + scale · g, g even in [−4, 4], with centre
and scale of each cell from a pilot (some members, the same for all who count); the two outer bins end at min and max.
An order statistic lies in a known bin, so a quantile read off is wrong by no more than that bin's width, which is
reported. Within a bin the members are taken to be spread evenly. So is the double sum of the fair CRPS (`metrics`):

    Σ_{i<j} |xᵢ − xⱼ| = ∫ N(t) (n − N(t)) dt ≈ Σ_b w_b [n (a + c)/2 − (a² + ac + c²)/3 − (c − a)/6],

N rising from a to c in a bin of width w_b, the last term for the variance of a count in a part of the bin. Moving every
member within its bin changes the CRPS by no more than Σ_b (c − a) w_b / n.

References:
    Chan, Golub and LeVeque (1979), Updating formulae for computing sample variances, Stanford STAN-CS-79-773
    Ferro (2014), Fair scores for ensemble forecasts, doi:10.1002/qj.2270
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sketch", "Tally"]

Array = NDArray[Any]
_REACH = 4.0  # pilot standard deviations that the inner bins cover on either side


@dataclass(frozen=True)
class Sketch:
    """Edges of every cell's bins: centre and scale ``(L, *space)`` of the pilot, and the number of bins, 3 or more."""

    centre: Array
    scale: Array
    bins: int

    def count(self, x: Array) -> Array:
        """Members ``(n, L, *space)`` in each bin, ``(L, bins, *space)``; those that are not finite in the first."""
        inner = self.bins - 2
        counts = np.empty((x.shape[1], self.bins, *x.shape[2:]), dtype=np.uint32)
        cells = int(np.prod(x.shape[2:]))
        place = np.arange(cells)
        for k in range(x.shape[1]):  # a lead at a time: the counts of one stay in the cache
            g = (x[:, k] - self.centre[k]) / self.scale[k]
            b = np.floor((g + _REACH) * (inner / (2 * _REACH))) + 1
            b = np.where(np.isfinite(b), np.clip(b, 0, self.bins - 1), 0).astype(np.int64).reshape(len(x), cells)
            flat = np.bincount((b * cells + place).ravel(), minlength=self.bins * cells)
            counts[k] = flat.reshape(self.bins, *x.shape[2:])
        return counts

    def edges(self, least: Array, most: Array) -> Array:
        """Edges ``(L, bins + 1, *space)``, none beyond the smallest and the largest member."""
        g = np.linspace(-_REACH, _REACH, self.bins - 1).reshape(1, -1, *[1] * (least.ndim - 1))
        inner = self.centre[:, None].astype(np.float64) + self.scale[:, None].astype(np.float64) * g
        low, high = least[:, None].astype(np.float64), most[:, None].astype(np.float64)
        return np.concatenate([low, np.clip(inner, low, high), high], axis=1)


@dataclass
class Tally:
    """The tally of one variable: arrays ``(L, *space)`` but where it says otherwise.

    Attributes:
        n: members.
        mean, squares: their mean, and the sum of squared deviations from it.
        least, most: extremes.
        counts: ``(L, bins, *space)``, of a sketch.
        above: ``(thresholds, L, *space)``.
        error, below, ties: mean |x − y|, members below and at the truth y; zeros without one.
        drift, drift_square: ``(L,)``, mean and mean square of the error of the members' area means.
    """

    n: int
    mean: Array
    squares: Array
    least: Array
    most: Array
    counts: Array
    above: Array
    error: Array
    below: Array
    ties: Array
    drift: Array
    drift_square: Array

    @classmethod
    def of(
        cls,
        x: Array,
        sketch: Sketch,
        thresholds: Sequence[float] = (),
        truth: Array | None = None,
        weights: Array | None = None,
    ) -> "Tally":
        """The tally of members ``x (n, L, *space)``.

        Arguments:
            truth: ``(L, *space)``.
            weights: ``(*space)``, of the area mean, 0 where there is no data; even by default.
        """
        n, *shape = x.shape
        if not n:
            return cls.empty(tuple(shape), sketch.bins, len(thresholds))
        mean = x.mean(axis=0, dtype=np.float64)
        none = np.zeros(shape)
        error, below, ties, drift = none, none.astype(np.uint32), none.astype(np.uint32), np.zeros((n, shape[0]))
        if truth is not None:
            space = tuple(shape[1:])
            w = np.ones(space) if weights is None else weights
            difference = x.astype(np.float64) - truth
            error = np.abs(difference).mean(axis=0)
            below, ties = (c.sum(axis=0, dtype=np.uint32) for c in (difference < 0, difference == 0))
            axes = tuple(range(-len(space), 0))
            drift = np.where(w > 0, difference * w, 0.0).sum(axis=axes) / w.sum()
        return cls(
            n=n, mean=mean, squares=np.square(x - mean).sum(axis=0), least=x.min(axis=0), most=x.max(axis=0),
            counts=sketch.count(x),
            above=np.array([(x > t).sum(axis=0) for t in thresholds], np.uint32).reshape(len(thresholds), *shape),
            error=error, below=below, ties=ties,
            drift=drift.mean(axis=0), drift_square=np.square(drift).mean(axis=0),
        )  # fmt: skip

    @classmethod
    def empty(cls, shape: tuple[int, ...], bins: int, thresholds: int) -> "Tally":
        """Of no member."""
        whole, none = np.zeros(shape, np.uint32), np.zeros(shape)
        lead = np.zeros(shape[0])
        far = np.full(shape, np.inf, np.float32)
        counts = np.zeros((shape[0], bins, *shape[1:]), np.uint32)
        above = np.zeros((thresholds, *shape), np.uint32)
        return cls(0, none, none, far, -far, counts, above, none, whole, whole, lead, lead)

    def merge(self, other: "Tally") -> "Tally":
        """The tally of the members of both."""
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        share = other.n / n
        step = other.mean - self.mean

        def mixed(a: Array, b: Array) -> Array:
            return np.asarray(a + share * (b - a))

        return Tally(
            n=n, mean=self.mean + share * step,
            squares=self.squares + other.squares + np.square(step) * (self.n * share),
            least=np.minimum(self.least, other.least), most=np.maximum(self.most, other.most),
            counts=self.counts + other.counts, above=self.above + other.above, error=mixed(self.error, other.error),
            below=self.below + other.below, ties=self.ties + other.ties,
            drift=mixed(self.drift, other.drift), drift_square=mixed(self.drift_square, other.drift_square),
        )  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """All but n, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n"}

    @property
    def variance(self) -> Array:
        """Unbiased; NaN of fewer than two members."""
        return self.squares / (self.n - 1) if self.n > 1 else np.full(self.squares.shape, np.nan)

    def quantile(self, p: float, sketch: Sketch) -> tuple[Array, Array]:
        """The quantile ``(L, *space)`` that interpolates order statistics linearly, and a bound on its error."""
        if not self.n:
            nothing = np.full(self.mean.shape, np.nan)
            return nothing, nothing
        edges = sketch.edges(self.least, self.most)
        h = p * (self.n - 1)
        k = min(int(h), max(self.n - 2, 0))
        cumulative = np.cumsum(self.counts, axis=1, dtype=np.int64)
        first, width = self._order(k, cumulative, edges)
        second, other = self._order(min(k + 1, self.n - 1), cumulative, edges)
        return first + (h - k) * (second - first), np.maximum(width, other)

    def _order(self, k: int, cumulative: Array, edges: Array) -> tuple[Array, Array]:
        """The k-th smallest member, k from 0, and the width of its bin."""
        if k in (0, self.n - 1):
            return (self.least if k == 0 else self.most).astype(np.float64), np.zeros(self.mean.shape)
        b = (cumulative <= k).sum(axis=1)[:, None]
        low, high = np.take_along_axis(edges, b, 1)[:, 0], np.take_along_axis(edges, b + 1, 1)[:, 0]
        there = np.take_along_axis(self.counts, b, 1)[:, 0]
        before = np.take_along_axis(cumulative, b, 1)[:, 0] - there
        return low + (high - low) * (k - before + 0.5) / there, high - low

    def crps(self, sketch: Sketch) -> tuple[Array, Array]:
        """The fair CRPS ``(L, *space)`` and a bound on its error; of one member its absolute error, exactly."""
        if self.n < 2:
            return self.error, np.zeros(self.error.shape)
        n, w = float(self.n), np.diff(sketch.edges(self.least, self.most), axis=1)
        inside = self.counts.astype(np.float64)
        c = np.cumsum(inside, axis=1)
        a = c - inside
        pairs = (w * (n * (a + c) / 2 - (a**2 + a * c + c**2) / 3 - inside / 6)).sum(axis=1)
        return self.error - pairs / (n * (n - 1)), (w * inside).sum(axis=1) / n
