r"""Scores of one ensemble against one truth, as formulas on plain arrays.

The member axis comes first: an ensemble ``x`` has shape ``(M, …)`` and a truth ``y`` has shape ``(…)``.
Functions return one value a cell; averaging over cells, times and weights is the caller's business, since
the mean of a ratio is not the ratio of means. Everything is computed in float64.

Exchangeability is the one idea behind all of it. If truth and members are M + 1 independent draws of one
distribution, then

- the rank r of the truth among the members is uniform on {0, …, M}: `rank`;
- E[(y − x̄)²] = (M + 1)/M · E[s²] with s² the unbiased member variance: `spread_factor`;
- E|x − y| = E|x − x'|, and the mean of |xᵢ − xⱼ| over the M(M − 1) pairs i ≠ j estimates the latter without
  bias: `fair_crps`.

Coverage needs more care, since a quantile that is interpolated between two order statistics covers its
nominal share only for the uniform distribution (80 % of 16 Gaussian members: 81.4 %). Interpolating the
*indicator* instead is exact for every continuous distribution: P(y ≤ x₍ₖ₎) = k/(M + 1), so with h = p(M + 1),
k = ⌊h⌋ and γ = h − k

    (1 − γ)·1[y ≤ x₍ₖ₎] + γ·1[y ≤ x₍ₖ₊₁₎]      has expectation      (k + γ)/(M + 1) = p.

For a central interval that is the share of the rank's cell [r, r + 1]/(M + 1) which lies inside [(1 − α)/2,
(1 + α)/2], hence a linear function of the rank alone (`central_coverage`): the non-randomised probability
integral transform of Czado, Gneiting and Held (2009).

References:
    Ferro (2014), Fair scores for ensemble forecasts, doi:10.1002/qj.2270
    Fortin et al. (2014), Why should ensemble spread match the RMSE of the ensemble mean?, doi:10.1175/JHM-D-14-0008.1
    Hamill (2001), Interpretation of rank histograms, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2
    Czado, Gneiting and Held (2009), Predictive model assessment for count data, doi:10.1111/j.1541-0420.2009.01191.x
    Gneiting and Raftery (2007), Strictly proper scoring rules, doi:10.1198/016214506000001437
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["central_coverage", "fair_crps", "gaussian_crps", "rank", "rank_bin", "spread_factor"]

Array = NDArray[np.float64]


def fair_crps(x: ArrayLike, y: ArrayLike) -> Array:
    """Fair continuous ranked probability score of each cell, in the units of `x`; smaller is better.

        CRPS = 1/M Σᵢ |xᵢ − y| − 1/(2M(M − 1)) Σᵢⱼ |xᵢ − xⱼ|

    Unbiased for the score of the distribution that the members were drawn from, so ensembles of different
    sizes compare. The double sum costs O(M log M): Σᵢⱼ |xᵢ − xⱼ| = 2 Σᵢ (2i − M − 1) x₍ᵢ₎ over the sorted
    members. One member has no
    pairs: its score is the absolute error, and comparing that with an ensemble's CRPS is the usual
        convention.

    Args:
        x: members, shape (M, …).
        y: truth, shape (…).
    """
    d = np.sort(
        np.asarray(x, dtype=np.float64) - np.asarray(y, dtype=np.float64), axis=0
    )  # shift: no cancellation
    M = d.shape[0]
    error = np.abs(d).mean(axis=0)
    if M == 1:
        return np.asarray(error)
    i = np.arange(1, M + 1, dtype=np.float64)
    return np.asarray(error - np.tensordot(2 * i - M - 1, d, axes=1) / (M * (M - 1)))


def gaussian_crps(mean: ArrayLike, std: ArrayLike, y: ArrayLike) -> Array:
    """CRPS of the normal distribution N(mean, std²) at `y`, for deterministic forecasts dressed with their error.

        CRPS = σ [ z (2Φ(z) − 1) + 2φ(z) − 1/√π ],   z = (y − μ)/σ

    A vanishing `std` gives the limit |y − μ|; a negative one raises ValueError.
    """
    mu, sigma, truth = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (mean, std, y)))
    if (sigma < 0).any():
        raise ValueError(f"a standard deviation must not be negative, found {sigma.min()}")
    error = truth - mu
    z = error / np.where(sigma > 0, sigma, 1.0)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    crps = sigma * (z * _erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    return np.asarray(np.where(sigma > 0, crps, np.abs(error)))


def _erf(x: Array) -> Array:
    import torch  # numpy has no error function, and scipy is not among the requirements

    return np.asarray(torch.special.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy())


def spread_factor(M: int) -> float:
    """Factor on the unbiased member variance that makes it the expected square error of the mean of M members."""
    return (M + 1) / M


def rank(x: ArrayLike, y: ArrayLike, generator: np.random.Generator) -> NDArray[np.int64]:
    """Rank of the truth among the members: the number of members below it, 0 … M, ties broken at random.

    Without the random ties a variable with many equal values (no rain) would fill one bin whatever the
    forecast's worth.
    """
    x, y = np.asarray(x), np.asarray(y)
    below = (x < y).sum(axis=0)
    ties = (x == y).sum(axis=0)
    return np.asarray(below + generator.integers(0, ties + 1), dtype=np.int64)


def rank_bin(r: NDArray[np.int64], M: int, bins: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Histogram bin 0 … bins − 1 of ranks 0 … M.

    The rank's cell [r, r + 1]/(M + 1) is hit at random, so that a uniform rank gives a uniform bin for any
    number of bins: ensembles that lost a member share one histogram with those that did not. With bins = M +
    1 the bin is the rank.
    """
    if bins == M + 1:
        return r
    return np.asarray((r + generator.random(r.shape)) / (M + 1) * bins, dtype=np.int64)


def central_coverage(r: NDArray[np.int64], M: int, levels: Sequence[float]) -> Array:
    """Share of the rank's cell inside the central interval of each level, shape (levels, …); its mean is the coverage.

    Nominal in expectation for a reliable ensemble of any size and distribution. M members cannot tell a
    level above (M − 1)/(M + 1) from the outermost cells: there a truth outside the ensemble still counts in
    part.
    """
    low = (1 - np.asarray(levels, dtype=np.float64).reshape(-1, *[1] * r.ndim)) / 2 * (M + 1)
    high = (M + 1) - low
    return np.asarray(np.clip(np.minimum(r + 1, high) - np.maximum(r, low), 0.0, 1.0))
