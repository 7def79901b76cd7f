"""Scores of an ensemble that is not there any more, from the tallies of its members.

Defined as `lapse.score` defines them and averaged in the same order, over the same cells: errors of the mean, spread,
coverage, ranks and budgets come out the same; the CRPS is read off the tally's sketch, with a bound on its error. What
needs whole members again (spectra, quantities of an equation) is not here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .metrics import central_coverage, rank_bin, spread_factor
from .moments import Moments, octaves
from .pairs import Pairs
from .tally import Sketch, Tally

__all__ = ["OnlineScores", "states"]

LEVELS = (0.5, 0.8, 0.9)  # of the central intervals
_RANKS = 101


class OnlineScores:
    """Scores of tallies that are added one by one."""

    def __init__(self, pairs: Pairs, members: int) -> None:
        self.pairs = pairs
        V, I, L = len(pairs.variables), pairs.fc.sizes["init_time"], pairs.fc.sizes["lead_time"]
        names = ("crps", "bound", "error", "square", "variance", "inflated", "signal", "mean_square", "mean_error")
        self.m: Moments = {name: np.full((V, I, L), np.nan) for name in names}
        self.m["coverage"] = np.full((V, I, L, len(LEVELS)), np.nan)
        self.m["histogram"] = np.full((V, I, L, min(members + 1, _RANKS)), np.nan)
        self.m["bands"] = np.array(octaves(pairs.grid))
        self.m["used"] = np.zeros((I, L), dtype=np.int64)

    def add(self, j: int, i: int, tally: Tally, sketch: Sketch) -> None:
        """One variable and start."""
        m, v = self.m, self.pairs.variables[j]
        m["used"][i] = tally.n
        if not tally.n:
            return
        mask = self.pairs.masks[v]
        w = self.pairs.weights[mask]
        w = w / w.sum()
        truth = states(self.pairs, v, i).astype(np.float64)[:, mask]
        error = tally.mean[:, mask] - truth
        crps, bound = tally.crps(sketch)
        m["crps"][j, i], m["bound"][j, i] = crps[:, mask] @ w, bound[:, mask] @ w
        m["error"][j, i], m["square"][j, i] = error @ w, error**2 @ w
        m["variance"][j, i] = tally.variance[:, mask] @ w
        m["inflated"][j, i] = spread_factor(tally.n) * m["variance"][j, i]
        anomaly = truth - (truth @ w)[:, None]
        m["signal"][j, i] = (anomaly - (anomaly @ w)[:, None]) ** 2 @ w
        m["mean_error"][j, i], m["mean_square"][j, i] = tally.drift, tally.drift_square
        bins = m["histogram"].shape[-1]
        for k in range(len(truth)):
            generator = np.random.default_rng([0, j, i, k])
            below, ties = tally.below[k][mask].astype(np.int64), tally.ties[k][mask].astype(np.int64)
            r = below + generator.integers(0, ties + 1)
            m["coverage"][j, i, k] = central_coverage(r, tally.n, LEVELS) @ w
            ranked = rank_bin(r, tally.n, bins, generator)
            m["histogram"][j, i, k] = np.bincount(ranked, weights=w, minlength=bins)

    def write(self, path: Path) -> None:
        """All scores, over starts, as a netCDF file."""
        from .scores import summarised
        from .verbs import write_netcdf

        scores = summarised(self.m, self.pairs, LEVELS)
        bound = self.m["bound"].mean(axis=1)
        about = {"long_name": "largest error of the CRPS, which is read off a sketch", **_units(scores)}
        write_netcdf(scores.assign(crps_error=(("variable", "lead_time"), bound, about)), path)


def _units(scores: xr.Dataset) -> dict[str, str]:
    return {"units": scores["crps"].attrs["units"]}


def states(pairs: Pairs, v: str, index: int) -> NDArray[Any]:
    """The truth of one variable at all leads of a start, ``(L, *space)``."""
    return pairs.truth_at(v, index, np.arange(pairs.fc.sizes["lead_time"]))
