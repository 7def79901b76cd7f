"""Moments of a forecast and its truth: what `scores` averages and divides.

One entry for each variable, start and lead, NaN where there is nothing to average, computed block by block (`pairs`)
and in slabs of cells, so that neither the number of starts nor that of members decides how much memory it takes.
The random ranks of ties are drawn from a generator of (seed, variable, start, lead): the blocks do not show.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ..physics.grid import Grid
from ..physics.spectrum import band_power, fundamental, resolved
from .metrics import central_coverage, fair_crps, rank, rank_bin, spread_factor
from .pairs import Block, Pairs

__all__ = ["Moments", "Physics", "flattened", "moments", "octaves"]

Array = NDArray[np.float64]
Moments = dict[str, NDArray[Any]]
Physics = Callable[[xr.Dataset], xr.Dataset]
"""From fields (member, lead_time, *space) or (lead_time, *space) to quantities without the spatial dimensions."""

_SLAB = 2**21  # values sorted at once
_MOST_RANKS = 101


def moments(
    pairs: Pairs, levels: tuple[float, ...], physics: Physics | None, seed: int, *, spectra: bool = True
) -> Moments:
    """Moments by name, each (variable, init, lead, …), but ``used`` (init, lead) and ``physics`` (quantity, …).

        crps, error, square      of the ensemble mean and the ensemble, area means
        variance, inflated       unbiased member variance, and times (M + 1)/M
        signal                   variance of the truth in space
        mean_error, mean_square  of the members' area means
        coverage, histogram      by level, by rank
        power, power_truth       by band, if `spectra`; `bands` holds the edges
        physics                  member mean, truth, mean square and mean difference; `quantities` holds the names
    """
    V, I, L = len(pairs.variables), pairs.fc.sizes["init_time"], pairs.fc.sizes["lead_time"]
    bins, edges = min(pairs.members + 1, _MOST_RANKS), octaves(pairs.grid)
    cells = ("crps", "error", "square", "variance", "inflated", "signal", "mean_square", "mean_error")
    m: Moments = {name: np.full((V, I, L), np.nan) for name in cells}
    m["coverage"] = np.full((V, I, L, len(levels)), np.nan)
    m["histogram"] = np.full((V, I, L, bins), np.nan)
    m["bands"] = np.array(edges)
    m |= {name: np.full((V, I, L, len(edges) - 1), np.nan) for name in ("power", "power_truth")}
    m["used"] = np.zeros((I, L), dtype=np.int64)
    quantities: dict[str, Array] = {}
    for block in pairs.blocks():
        m["used"][block.init, block.leads] = block.used.sum(axis=0)
        for j, v in enumerate(pairs.variables):
            w = pairs.weights[pairs.masks[v]]
            for i, lead in enumerate(block.leads):
                used, at = block.used[:, i], (j, block.init, int(lead))
                if used.any():
                    x = block.members[v][:, i] if used.all() else block.members[v][used, i]
                    y, mask = block.truth[v][i], pairs.masks[v]
                    generator = np.random.default_rng([seed, *at])
                    _cells(m, at, x[:, mask], y[mask], w / w.sum(), levels, generator)
            if spectra:
                _bands(m, j, block, pairs, v)
        if physics is not None:
            _quantities(quantities, block, pairs, physics)
    if quantities:
        m["quantities"] = np.array(list(quantities))
        m["physics"] = np.stack(list(quantities.values()))
    return m


def octaves(grid: Grid) -> tuple[float, ...]:
    """Edges of bands a factor of two wide: bin 1, bins 2–3, 4–7, …; the last takes in the corners of the spectral box.

    The mean (bin 0) is in none. One band at least.
    """
    dk = fundamental(grid)
    count = max(1, math.floor(math.log2(max(resolved(grid) / dk, 1) * (1 + 1e-9))))
    return (*(dk * (2**j - 0.5) for j in range(count)), math.inf)


def flattened(u: NDArray[Any], mask: NDArray[np.bool_], level: float | Array) -> NDArray[Any]:
    """Fields with one constant under the mask: the same step at the coast in every spectrum that is compared."""
    return u if mask.all() else np.where(mask, u, level)


def _cells(
    m: Moments, at: tuple[int, int, int], x: NDArray[Any], y: NDArray[Any], w: Array, levels: tuple[float, ...],
    generator: np.random.Generator,
) -> None:  # fmt: skip
    M, n = x.shape
    bins = m["histogram"].shape[-1]
    sums: dict[str, Any] = dict.fromkeys(("crps", "error", "square", "variance"), 0.0)
    cover, histogram, means = np.zeros(len(levels)), np.zeros(bins), np.zeros(M)
    size = max(1, _SLAB // M)
    for start in range(0, n, size):
        slab = slice(start, start + size)
        xs, ys, ws = x[:, slab].astype(np.float64), y[slab].astype(np.float64), w[slab]
        error = xs.mean(axis=0) - ys
        sums["crps"] += ws @ fair_crps(xs, ys)
        sums["error"] += ws @ error
        sums["square"] += ws @ error**2
        sums["variance"] += ws @ xs.var(axis=0, ddof=1) if M > 1 else np.nan
        r = rank(xs, ys, generator)
        cover += central_coverage(r, M, levels) @ ws
        histogram += np.bincount(rank_bin(r, M, bins, generator), weights=ws, minlength=bins)
        means += (xs - ys) @ ws  # of the difference, so that a large mean does not swamp a small drift
    for name, value in sums.items():
        m[name][at] = value
    m["inflated"][at] = spread_factor(M) * sums["variance"]
    anomaly = y.astype(np.float64) - w @ y
    m["signal"][at] = w @ (anomaly - w @ anomaly) ** 2
    m["mean_square"][at], m["mean_error"][at] = (means**2).mean(), means.mean()
    m["coverage"][at], m["histogram"][at] = cover, histogram


def _bands(m: Moments, j: int, block: Block, pairs: Pairs, v: str) -> None:
    """Power by band of the truth and of the used members, some fields at a time."""
    mask, grid, edges = pairs.masks[v], pairs.grid, m["bands"].tolist()
    level = block.truth[v][:, mask].mean(axis=1, dtype=np.float64).reshape(-1, *[1] * mask.ndim)
    size = max(1, _SLAB // (2**grid.ndim * mask.size))  # the reflection at a wall doubles an axis

    def power(u: NDArray[Any], level: Array) -> Array:
        u = flattened(u, mask, level)
        parts = (torch.from_numpy(u[i : i + size].astype(np.float64)) for i in range(0, len(u), size))
        return np.concatenate([band_power(part, grid, edges).numpy() for part in parts])

    m["power_truth"][j, block.init, block.leads] = power(block.truth[v], level)
    for i, lead in enumerate(block.leads):
        if block.used[:, i].any():
            m["power"][j, block.init, lead] = power(block.members[v][block.used[:, i], i], level[i]).mean(axis=0)


def _quantities(quantities: dict[str, Array], block: Block, pairs: Pairs, physics: Physics) -> None:
    where = {d: pairs.fc[d] for d in pairs.space if d in pairs.fc.coords}

    def of(fields: dict[str, NDArray[Any]], *lead: str) -> xr.Dataset:
        data = {v: ((*lead, *pairs.space), fields[v], {"units": pairs.units[v]}) for v in pairs.variables}
        return physics(xr.Dataset(data, coords=where))

    members, truth = of(block.members, "member", "lead_time"), of(block.truth, "lead_time")
    for name in map(str, members.data_vars):
        q, p = members[name], truth[name]
        if set(q.dims) != {"member", "lead_time"} or p.dims != ("lead_time",):
            raise ValueError(
                f"physics {name!r}: found dimensions {q.dims} for members and {p.dims} for the truth, wanted (member, "
                "lead_time) and (lead_time); usual fix: reduce over the spatial dimensions by name"
            )
        d = q.transpose("member", "lead_time").values.astype(np.float64) - p.values
        table = quantities.setdefault(name, np.full((*pairs.kept.shape, 4), np.nan))
        for i, lead in enumerate(block.leads):
            e = d[block.used[:, i], i]
            if e.size:
                table[block.init, lead] = [p.values[i] + e.mean(), p.values[i], (e**2).mean(), e.mean()]
