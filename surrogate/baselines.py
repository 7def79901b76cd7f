"""Forecasts that need no model, in the layout of those that do, so that one function scores them all.

`persistence` repeats the last state. `climatology` is what the training data did at the same phase of the year and of
the day: its mean, or an ensemble of it. A deterministic forecast is judged as a probabilistic one by dressing it with a
normal error of the size it had in training (`error_std`, `dressed_crps`): the opponent that an ensemble has to beat.
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from ..datasets.time import calendar_of, phase
from .align import on_points, positions, valid_times
from .metrics import gaussian_crps
from .pairs import pair

__all__ = ["climatology", "dressed_crps", "error_std", "persistence"]

_YEAR = 365.25  # days
_HALF_HOUR = 1 / 48  # days: what float32 phases resolve of a day near a match


def persistence(
    ds: xr.Dataset, init_times: Any, leads: xr.DataArray, *, valid_time: xr.DataArray | None = None
) -> xr.Dataset:
    """The state at each start, for every lead; one member, dims (init_time, member, lead_time, *space).

    Args:
        ds: states over ``time``, or already over ``init_time``.
        init_times: starts; each must be in `ds`.
        leads: the forecast's ``lead_time``.
        valid_time: the forecast's ``valid_time``; by default init + lead, which leads in months do not allow.

    The leads share the memory of one state.
    """
    starts = _coordinate(init_times)
    along = "time" if "time" in ds.dims else "init_time"
    if along not in ds.dims:
        raise SpecError([Problem("persistence", f"dimensions {tuple(ds.dims)}", "time or init_time", "ds.rename(…)")])
    at = positions(starts, ds[along])
    if (at < 0).any():
        found = "no state at " + ", ".join(str(t) for t in starts.values[at < 0][:5])
        fix = "choose starts among the times of the data"
        raise SpecError([Problem("persistence", found, "a state at every start", fix)])
    states = ds.isel({along: at}).drop_vars([along, "valid_time"], errors="ignore").swap_dims({along: "init_time"})
    fc = states.expand_dims({"member": [0], "lead_time": leads.values})
    return _laid_out(fc, starts, leads, valid_time, "persistence")


def climatology(
    train: xr.Dataset,
    init_times: Any,
    leads: xr.DataArray,
    *,
    members: int | None = None,
    window: float = 15.0,
    valid_time: xr.DataArray | None = None,
) -> xr.Dataset:
    """Training states at the phase of each valid time: their mean (one member), or `members` of them, evenly picked.

    A training state counts if its day of the year is within `window` days of the valid time's, and its time of day is
    the nearest that the training data have. Numeric times have no phase, so that all states count. In memory.

    Args:
        train: states over ``time``, of the training period only.
        init_times, leads, valid_time: as for `persistence`.
    """
    starts = _coordinate(init_times)
    frame = xr.Dataset(coords={"init_time": starts, "lead_time": leads})
    valid = valid_times(frame if valid_time is None else frame.assign_coords(valid_time=valid_time))
    distinct, back = np.unique(valid.values, return_inverse=True)
    chosen = [_same_phase(t, train["time"].values, window) for t in distinct]
    least = min(len(c) for c in chosen)
    if members is not None and least < members:
        raise ValueError(
            f"climatology: found {least} training states at the phase of some valid time, wanted members={members}; "
            "usual fix: widen window="
        )
    keys = {c.tobytes(): c for c in chosen}
    parts = []
    for c in keys.values():
        if members is None:
            states = train.isel(time=c).mean("time", keep_attrs=True, skipna=False).expand_dims(member=[0])
        else:
            pick = c[np.linspace(0, len(c) - 1, members).round().astype(int)]
            states = train.isel(time=pick).drop_vars("time").rename_dims(time="member")
        parts.append(states.compute())
    stacked = xr.concat(parts, dim="phase", join="override", coords="minimal", compat="override")
    place = {key: i for i, key in enumerate(keys)}
    index = np.array([place[c.tobytes()] for c in chosen])[back.reshape(valid.shape)]
    fc = stacked.isel(phase=xr.DataArray(index, dims=("init_time", "lead_time")))
    return _laid_out(fc.assign_coords(member=np.arange(members or 1)), starts, leads, valid_time, "climatology")


def error_std(fc: xr.Dataset, truth: xr.Dataset, *, cells: bool = True, spec: FieldSpec | None = None) -> xr.Dataset:
    """Root mean square error of a forecast's mean by lead and, with `cells`, by cell: what to dress it with.

    Fit it on training starts, never on those that are scored.
    """
    pairs = pair(fc, truth, spec=spec, missing="drop")
    total = {v: np.zeros((pairs.kept.shape[1], *pairs.grid.shape)) for v in pairs.variables}
    for block in pairs.blocks():
        for v in pairs.variables:
            total[v][block.leads] += (block.members[v].mean(axis=0, dtype=np.float64) - block.truth[v]) ** 2
    count = pairs.kept.sum(axis=0).reshape(-1, *[1] * len(pairs.space))
    data: dict[str, xr.DataArray] = {}
    for v in pairs.variables:
        square = xr.DataArray(np.where(pairs.masks[v], total[v] / count, np.nan), dims=("lead_time", *pairs.space))
        if not cells:
            square = square.weighted(xr.DataArray(pairs.weights, dims=pairs.space)).mean(pairs.space)
        data[v] = square**0.5
        data[v].attrs = {"units": pairs.units[v], "long_name": f"root mean square error of {v}"}
    kept = ("lead_time", *pairs.space) if cells else ("lead_time",)
    return xr.Dataset(data, coords={d: pairs.fc[d] for d in kept if d in pairs.fc.coords})


def dressed_crps(
    fc: xr.Dataset, truth: xr.Dataset, std: xr.Dataset, *, spec: FieldSpec | None = None
) -> xr.DataArray:
    """CRPS of a forecast's mean with a normal error around it (`metrics.gaussian_crps`), dims (variable, lead_time).

    Args:
        fc, truth, spec: as for `lapse.score`.
        std: standard deviation of each variable over lead_time and, if it likes, space: what `error_std` returns.
    """
    pairs = pair(fc, truth, spec=spec)
    table = np.full((len(pairs.variables), *pairs.kept.shape), np.nan)
    sigma = {v: on_points(f"std {v!r}", std[v], pairs.fc, pairs.space) for v in pairs.variables}
    for block in pairs.blocks():
        for j, v in enumerate(pairs.variables):
            mask = pairs.masks[v]
            w = pairs.weights[mask] / pairs.weights[mask].sum()
            mean = block.members[v].mean(axis=0, dtype=np.float64)
            for i, lead in enumerate(block.leads):
                crps = gaussian_crps(mean[i][mask], sigma[v][lead][mask], block.truth[v][i][mask])
                table[j, block.init, lead] = w @ crps
    coords = {"variable": list(pairs.variables), "lead_time": pairs.fc["lead_time"]}
    attrs = {
        "long_name": "CRPS of the forecast dressed with a normal error",
        "comment": "Gneiting and Raftery (2007), https://doi.org/10.1198/016214506000001437",
    }
    return xr.DataArray(table.mean(axis=1), dims=("variable", "lead_time"), coords=coords, name="crps", attrs=attrs)


def _coordinate(values: Any) -> xr.DataArray:
    attrs = values.attrs if isinstance(values, xr.DataArray) else {}
    times = np.atleast_1d(values.values if isinstance(values, xr.DataArray) else np.asarray(values))
    return xr.DataArray(times, dims="init_time", name="init_time", attrs=attrs)


def _same_phase(time: Any, train: NDArray[Any], window: float) -> NDArray[np.int64]:
    """Positions of the training times at the phase of `time`."""
    if calendar_of(train) is None:
        return np.arange(len(train))
    here, there = phase(np.array([time])).astype(np.float64), phase(train).astype(np.float64)
    cosine = np.clip(here * there, -1, 1).reshape(-1, 2, 2).sum(axis=-1)
    year, day = (np.arccos(np.clip(cosine, -1, 1)) / (2 * np.pi)).T
    near = np.flatnonzero((year * _YEAR <= window) & (day <= day.min() + _HALF_HOUR))
    if not len(near):
        raise ValueError(f"climatology: found no training state within {window:g} days of the season of {time}")
    return near


def _laid_out(
    fc: xr.Dataset, starts: xr.DataArray, leads: xr.DataArray, valid_time: xr.DataArray | None, title: str
) -> xr.Dataset:
    fc = fc.transpose("init_time", "member", "lead_time", ...).assign_coords(init_time=starts, lead_time=leads)
    fc = fc.assign_coords(valid_time=valid_times(fc) if valid_time is None else valid_time)
    names = {"init_time": "forecast_reference_time", "member": "realization", "lead_time": "forecast_period"}
    for coordinate, standard in (names | {"valid_time": "time"}).items():
        fc[coordinate].attrs["standard_name"] = standard
    return fc.assign_attrs(title=title)
