"""What a report shows of one start: frames of truth, mean, spread and two members, their spectra and their budgets.

Everything is gathered in one pass over the blocks of that start.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ..datasets.spec import FieldSpec
from ..physics.grid import Grid
from ..physics.spectrum import power_spectrum
from .moments import Physics, flattened
from .pairs import Pairs
from .tables import spread_leads

__all__ = ["Budget", "Film", "gather"]

Array = NDArray[np.float64]
_SPECTRUM_MEMBERS = 50


@dataclass
class Film:
    """One variable of one start. Frames are (frames, *space) float32, NaN under the mask.

    `panels` names the frames in the order of showing: truth, mean, spread, members. `spectra` holds, for its leads
    (positions), k, the members' powers (members, k) and the truth's (k) or None.
    """

    variable: str
    units: str
    leads: list[int]
    grid: Grid
    signed: bool = False
    panels: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    spectra: dict[int, tuple[Array, Array, Array | None]] = field(default_factory=dict)

    @property
    def reference(self) -> NDArray[np.float32]:
        """The frames that set the colours of the others: the truth, or else the forecast's mean."""
        return next(self.panels[name] for name in ("truth", "ensemble mean", "forecast") if name in self.panels)


@dataclass
class Budget:
    """A scalar over the leads: of the members (M, lead), and of the truth (lead) or None.

    Changes far below `scale` are round-off: for an area mean it is the field's own amplitude.
    """

    name: str
    units: str
    members: Array
    truth: Array | None
    scale: float = 0.0


def gather(
    pairs: Pairs, start: int, spec: FieldSpec | None, physics: Physics | None, most_frames: int = 48
) -> tuple[list[Film], list[Budget]]:
    """Read one start, block by block, and keep what is shown."""
    L, M = pairs.fc.sizes["lead_time"], pairs.members
    there = np.flatnonzero(pairs.kept[start])
    shown = [int(there[i]) for i in spread_leads(len(there), most_frames)]
    spectral = [int(there[i]) for i in spread_leads(len(there), 3)]
    alive = np.ones(M, dtype=bool)
    if "valid" in pairs.fc:
        flag = pairs.fc["valid"].isel(init_time=start).transpose("member", ...)
        alive = np.asarray(flag.values.astype(bool).reshape(M, -1).all(axis=1))
    examples = np.flatnonzero(alive)[:2] if alive.any() else np.arange(min(2, M))
    films = {v: Film(v, pairs.units[v], shown, pairs.grid, _signed(spec, v)) for v in pairs.variables}
    frames: dict[str, dict[str, list[Any]]] = {v: {} for v in pairs.variables}
    truthful = pairs.truth is not None
    budgets: dict[str, Budget] = {}
    for v in pairs.variables:
        true = np.full(L, np.nan) if truthful else None
        budgets[v] = Budget(f"area mean of {v}", pairs.units[v], np.full((M, L), np.nan), true)
    for block in pairs.blocks([start]):
        for v in pairs.variables:
            mask = pairs.masks[v]
            w = pairs.weights * mask / (pairs.weights * mask).sum()
            for i, lead in enumerate(block.leads.tolist()):
                used = block.used[:, i]
                x, y = block.members[v][:, i], block.truth[v][i] if truthful else None
                budgets[v].members[used, lead] = np.tensordot(flattened(x[used], mask, 0.0), w, axes=w.ndim)
                if y is not None and (truth := budgets[v].truth) is not None:
                    truth[lead] = (w * flattened(y, mask, 0.0)).sum()
                if lead in shown:
                    for name, values in _frame(x, y, used, examples, mask).items():
                        frames[v].setdefault(name, []).append(values)
                if lead in spectral and used.any():
                    films[v].spectra[lead] = _spectra(x[used][:_SPECTRUM_MEMBERS], y, mask, pairs.grid)
        if physics is not None:
            _physical(budgets, block.members, block.truth, block.used, block.leads, pairs, physics)
    for v, film in films.items():
        film.panels = {name: np.stack(stack) for name, stack in frames[v].items()}
        budgets[v].scale = float(np.nanstd(film.reference))
        film.signed = film.signed or _crosses_zero(film.reference)
        if spec is not None and v in spec.names and spec[v].kind == "positive":
            film.signed = False
    kept = [b for name, b in budgets.items() if name in films or not _known(b, [budgets[v] for v in films])]
    return list(films.values()), [*kept, *_diagnostics(pairs, start)]


def _known(b: Budget, means: list[Budget]) -> bool:
    """Whether a physical quantity is one of the area means again, which need not be shown twice."""
    return any(np.allclose(b.members, a.members, rtol=1e-5, atol=1e-5 * a.scale, equal_nan=True) for a in means)


def _frame(
    x: NDArray[Any],
    y: NDArray[Any] | None,
    used: NDArray[np.bool_],
    examples: NDArray[np.int64],
    mask: NDArray[np.bool_],
) -> dict[str, NDArray[np.float32]]:
    out: dict[str, NDArray[Any]] = {} if y is None else {"truth": y}
    kept = x[used].astype(np.float64)
    nothing = np.full(x.shape[1:], np.nan)
    mean = kept.mean(axis=0) if len(kept) else nothing
    if len(x) == 1:
        out["forecast"] = mean
        if y is not None:
            out["error"] = mean - y
    else:
        out["ensemble mean"] = mean
        out["spread"] = kept.std(axis=0, ddof=1) if len(kept) > 1 else nothing
        out |= {f"member {m}": x[m] if used[m] else nothing for m in examples}
    return {name: np.where(mask, u, np.nan).astype(np.float32) for name, u in out.items()}


def _spectra(
    x: NDArray[Any], y: NDArray[Any] | None, mask: NDArray[np.bool_], grid: Grid
) -> tuple[Array, Array, Array | None]:
    level = float((x[0] if y is None else y)[mask].mean())

    def power(u: NDArray[Any]) -> tuple[Array, Array]:
        k, E = power_spectrum(torch.from_numpy(flattened(u.astype(np.float64), mask, level)), grid)
        return k.numpy(), E.numpy()

    k, E = power(x)
    return k, E, None if y is None else power(y)[1]


def _physical(
    budgets: dict[str, Budget],
    members: dict[str, NDArray[Any]],
    truth: dict[str, NDArray[Any]],
    used: NDArray[np.bool_],
    leads: NDArray[np.int64],
    pairs: Pairs,
    physics: Physics,
) -> None:
    where = {d: pairs.fc[d] for d in pairs.space if d in pairs.fc.coords}

    def of(fields: dict[str, NDArray[Any]], *lead: str) -> xr.Dataset:
        data = {v: ((*lead, *pairs.space), u, {"units": pairs.units[v]}) for v, u in fields.items()}
        return physics(xr.Dataset(data, coords=where))

    q = of(members, "member", "lead_time")
    p = of(truth, "lead_time") if truth else None
    L = pairs.fc.sizes["lead_time"]
    for name in map(str, q.data_vars):
        key = f"physics: {name}"
        if key not in budgets:
            units = str(q[name].attrs.get("units", ""))
            true = None if p is None else np.full(L, np.nan)
            budgets[key] = Budget(name, units, np.full((pairs.members, L), np.nan), true)
        values = q[name].transpose("member", "lead_time").values
        budgets[key].members[:, leads] = np.where(used, values, np.nan)
        if p is not None and (true := budgets[key].truth) is not None:
            true[leads] = p[name].values


def _diagnostics(pairs: Pairs, start: int) -> list[Budget]:
    """Scalars that the forecast itself carries for each member and lead, such as a residual or a certificate."""
    found = []
    for name, a in pairs.fc.data_vars.items():
        scalar = "lead_time" in a.dims and set(a.dims) <= {"init_time", "member", "lead_time"}
        if scalar and name != "valid":
            at = a.isel(init_time=start) if "init_time" in a.dims else a
            at = at if "member" in at.dims else at.expand_dims("member")
            values = at.transpose("member", "lead_time").values.astype(np.float64)
            found.append(Budget(str(name), str(a.attrs.get("units", "")), values, None))
    return found


def _signed(spec: FieldSpec | None, v: str) -> bool:
    return spec is not None and v in spec.names and spec[v].kind == "vector"


def _crosses_zero(u: NDArray[Any]) -> bool:
    low, high = percentiles(u, 1, 99)
    return low < 0 < high and min(-low, high) > 0.1 * max(-low, high)


def percentiles(u: NDArray[Any], *levels: float) -> list[float]:
    """Percentiles of what is finite; NaN where nothing is."""
    there = u[np.isfinite(u)]
    return [float(a) for a in np.percentile(there, levels)] if there.size else [float("nan")] * len(levels)
