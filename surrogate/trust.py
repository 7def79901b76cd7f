"""How far designs fell short when the solver ran them, and how much wider an interval must therefore be.

An optimum over a model's errors is too good (the optimiser's curse), so members and modes that agree with each other
may all be wrong together, more than in a forecast of a usual state. What it comes to is measured: each verified design
has a score s = |achieved − middle| / half width of the interval that was predicted, and the next design's interval is
widened by the ⌈(n + 1) · 90 %⌉-th smallest of n scores (split conformal prediction: Vovk et al. 2005; Lei et al. 2018,
doi:10.1080/01621459.2017.1307116). It then holds what the solver will say with 90 %, if the new design is like those:
the same model, leads and kind of objective, from another start.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.problem import Problem, SpecError

__all__ = ["hull", "widened", "widening"]

LEVEL = 0.9
FEWEST = 9
"""Verified designs below which no order statistic holds 90 %."""


def widening(designs: Sequence[xr.Dataset]) -> float:
    """The factor for intervals of designs like these, at least 1.

    Arguments:
        designs: what `design` returned with ``verify="solver"``.

    Raises SpecError for too few of them, for designs that were not verified, and for intervals without a width.
    """
    problems, scores = [], []
    if len(designs) < FEWEST:
        fix = "verify more, from other starts"
        problems.append(Problem("verified", f"{len(designs)} designs", f"at least {FEWEST}, for 90 %", fix))
    for k, ds in enumerate(designs):
        if "achieved" not in ds or "interval_by_mode" not in ds:
            problems.append(Problem(f"verified[{k}]", "no achieved value", "a design", 'verify="solver"'))
            continue
        low, high = hull(ds["interval_by_mode"].values)
        if not high > low:
            fix = 'compare=["fast"], or another mode that has members'
            problems.append(Problem(f"verified[{k}]", f"an interval from {low} to {high}", "one with a width", fix))
            continue
        scores.append(abs(float(ds["achieved"]) - (low + high) / 2) / ((high - low) / 2))
    if problems:
        raise SpecError(problems)
    return max(1.0, sorted(scores)[math.ceil((len(scores) + 1) * LEVEL) - 1])


def hull(intervals: NDArray[np.float64]) -> tuple[float, float]:
    """From the least to the greatest end of ``(modes, 2)``, those without an interval left out; NaN if all are."""
    known = intervals[np.isfinite(intervals).all(axis=1)]
    return (float(known.min()), float(known.max())) if len(known) else (float("nan"), float("nan"))


def widened(interval: tuple[float, float], factor: float) -> tuple[float, float]:
    """About the same middle."""
    low, high = interval
    middle, half = (low + high) / 2, factor * (high - low) / 2
    return middle - half, middle + half
