"""What matches what: names, units, times and coordinates of a forecast and of the truth that judges it.

Nothing is matched by guessing. A dimension is recognised by the rules of `datasets.names` or by the caller's
``dims``; valid times must be found exactly (numeric times to 1e-4 of the truth's interval, since 0.1 + 0.2 ≠ 0.3);
coordinates must agree to 1e-4 of their spacing, in any order and, for longitudes, modulo 360°.

Functions that take `problems` append what they find to it, so that one error can name everything.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.names import role_of
from ..datasets.problem import Problem, SpecError
from ..datasets.time import calendar_of

__all__ = [
    "LAYOUT",
    "canonical",
    "match_leads",
    "match_points",
    "match_space",
    "match_times",
    "on_points",
    "positions",
    "renamed",
    "valid_times",
]

LAYOUT = ("init_time", "member", "lead_time")


def canonical(fc: xr.Dataset | xr.DataArray, dims: Mapping[str, str] | None = None) -> xr.Dataset:
    """The forecast with the dimensions (init_time, member, lead_time, …) under these names, space ascending.

    A missing member or init_time dimension is added with size one. Analyses over ``time``, such as those of `augment`,
    are forecasts of lead nought, each from its own time; anything else without a lead_time raises SpecError.
    """
    ds = renamed(fc, dims)
    if "time" in ds.dims and "time" in ds.coords and not {"init_time", "lead_time"} & {*ds.dims, *ds.coords}:
        numeric = ds["time"].dtype.kind in "iuf"
        nought = 0.0 if numeric else np.timedelta64(0, "ns")
        units = {k: v for k, v in ds["time"].attrs.items() if numeric and k == "units"}
        ds = ds.rename(time="init_time").expand_dims(lead_time=xr.DataArray([nought], dims="lead_time", attrs=units))
    if "lead_time" not in ds.dims and "lead_time" not in ds.coords:
        fix = "dims={'lead_time': …} names it"
        raise SpecError([Problem("forecast", f"dimensions {tuple(ds.dims)}", "a dimension lead_time", fix)])
    for name in ("lead_time", "member", "init_time"):
        if name not in ds.dims:
            ds = ds.expand_dims(name) if name in ds.coords else ds.expand_dims({name: [0]})
    for d in ds.dims:
        if d in LAYOUT or d not in ds.coords or ds.sizes[d] < 2:
            continue
        c = ds[d].values
        if np.issubdtype(c.dtype, np.number) and (np.diff(c) < 0).all():
            ds = ds.isel({d: slice(None, None, -1)})
    return ds


def renamed(data: xr.Dataset | xr.DataArray, dims: Mapping[str, str] | None) -> xr.Dataset:
    """Our names for the dimensions that are not space: from `dims` (ours -> theirs), else by `datasets.names`."""
    ds = data.to_dataset(name=data.name or "field") if isinstance(data, xr.DataArray) else data
    given = {theirs: ours for ours, theirs in (dims or {}).items() if theirs in ds.dims or theirs in ds.coords}
    ds = ds.rename(given)
    roles: dict[str, list[str]] = {}
    for d in ds.dims:
        role = None if d in LAYOUT else role_of(ds, str(d))
        if role is not None and role in (*LAYOUT, "time"):
            roles.setdefault(role, []).append(str(d))
    names = {found[0]: role for role, found in roles.items() if len(found) == 1 and role not in ds.dims}
    return ds.drop_vars([role for role in names.values() if role in ds.coords]).rename(names)


def valid_times(fc: xr.Dataset) -> xr.DataArray:
    """The time each frame is valid for, dims (init_time, lead_time): the coordinate, else init + lead."""
    if "valid_time" in fc.coords:
        shape = (fc.sizes["init_time"], fc.sizes["lead_time"])
        frame = xr.DataArray(np.zeros(shape), dims=("init_time", "lead_time"))
        bare = fc["valid_time"].drop_vars(list(fc["valid_time"].coords))
        return bare.broadcast_like(frame).transpose("init_time", "lead_time")
    init, lead = fc["init_time"].values[:, None], fc["lead_time"].values[None, :]
    if (calendar_of(init) is not None) != (lead.dtype.kind == "m"):
        found = f"starts of type {init.dtype}, leads of type {lead.dtype} and no valid_time"
        wanted = "the coordinate valid_time (init_time, lead_time)"
        raise SpecError([Problem("forecast", found, wanted, "fc.assign_coords(valid_time=…)")])
    step = lead.astype("m8[us]").astype(object) if init.dtype == object else lead
    return xr.DataArray(init + step, dims=("init_time", "lead_time"))


def positions(wanted: xr.DataArray, have: xr.DataArray) -> NDArray[np.int64]:
    """Position of each wanted time or lead among those there are, or -1."""
    (kind, a), (other, b) = _keys(wanted), _keys(have)
    return _find(a, b) if kind == other else np.full(wanted.shape, -1, dtype=np.int64)


def match_times(
    fc: xr.Dataset, truth: xr.Dataset, problems: list[Problem], *, drop: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of each valid time along the truth's ``time``, and where there is one; both (init, lead)."""
    valid = valid_times(fc)
    (kind, wanted), (other, have) = _keys(valid), _keys(truth["time"])
    nowhere = np.full(wanted.shape, -1, dtype=np.int64)
    where = "truth 'time'"
    if kind != other:
        fix = "open both with the same decoding, or convert the calendar"
        problems.append(Problem(where, f"{other} times", f"{kind} times, as the forecast has", fix))
        return nowhere, nowhere >= 0
    if len(set(have.tolist())) < len(have):
        problems.append(Problem(where, "repeated times", "one state a time", "truth.drop_duplicates('time')"))
        return nowhere, nowhere >= 0
    position = _find(wanted, have)
    absent = np.unique(valid.values[position < 0])
    if len(absent) and (not drop or (position < 0).all()):
        listed = ", ".join(str(t) for t in absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        span = f"{truth['time'].values[0]} to {truth['time'].values[-1]}"
        found = f"no state at {listed} (it has {len(have)} times, {span})"
        fix = "missing='drop' scores the times that both have"
        problems.append(Problem(where, found, "a truth at every valid_time", fix))
    return position, position >= 0


def match_leads(fc: xr.Dataset, truth: xr.Dataset, problems: list[Problem]) -> None:
    """For a truth over (init_time, lead_time): the same starts and leads, in the same order."""
    for d in ("init_time", "lead_time"):
        if d not in truth.dims:
            wanted = "time, or init_time and lead_time"
            problems.append(Problem("truth", f"dimensions {tuple(truth.dims)}", wanted, "dims={'time': …} names it"))
            return
        at = positions(fc[d], truth[d])
        if len(at) != truth.sizes[d] or (at != np.arange(len(at))).any():
            found, wanted = f"{truth[d].values}", f"{fc[d].values}"
            problems.append(Problem(f"truth {d!r}", found, wanted, "select the same starts and leads"))


def match_space(
    fc: xr.Dataset, truth: xr.Dataset, space: tuple[str, ...], problems: list[Problem]
) -> tuple[xr.Dataset, tuple[NDArray[np.int64], ...]]:
    """The truth under the forecast's names of the axes, and its positions along each in the forecast's order."""
    names: dict[str, str] = {}
    for d in space:
        if d not in truth.dims and (role := role_of(fc, d)) is not None:
            same = [str(e) for e in truth.dims if e not in space and role_of(truth, str(e)) == role]
            if len(same) == 1:
                names[same[0]] = d
    truth = truth.rename(names)
    order = []
    for d in space:
        at = np.arange(fc.sizes[d])
        if d not in truth.dims:
            fix = f"dims={{{d!r}: …}} names it"
            problems.append(Problem("truth", f"dimensions {tuple(truth.dims)}", f"dimension {d!r}", fix))
        elif d in fc.coords and d in truth.coords:
            at = match_points(f"truth {d!r}", fc[d], truth[d].values, problems)
        elif fc.sizes[d] != truth.sizes[d]:
            found, wanted = f"{truth.sizes[d]} points", f"{fc.sizes[d]} points"
            problems.append(Problem(f"truth {d!r}", found, wanted, "put both on one grid"))
        order.append(at)
    return truth, tuple(order)


def match_points(where: str, mine: xr.DataArray, theirs: Any, problems: list[Problem]) -> NDArray[np.int64]:
    """Positions of my coordinate's points among theirs."""
    a, b = mine.values.astype(np.float64), np.asarray(theirs, dtype=np.float64)
    tolerance = 1e-4 * (float(np.abs(np.diff(a)).min()) if len(a) > 1 else 1.0)
    order = _find(a, b, tolerance)
    role = role_of(mine.to_dataset(name="field"), str(mine.name))
    if (order < 0).any() and role == "longitude":
        order = np.maximum(_find(a % 360, b % 360, tolerance), order)
    if (order < 0).any():
        found = f"{len(b)} points from {b[0]:g} to {b[-1]:g}"
        wanted = f"the forecast's {len(a)} points from {a[0]:g} to {a[-1]:g}"
        problems.append(Problem(where, found, wanted, "interpolate to the forecast's grid first"))
        return np.zeros(len(a), dtype=np.int64)
    return order


def on_points(where: str, values: xr.DataArray, fc: xr.Dataset, space: tuple[str, ...]) -> NDArray[np.float64]:
    """Values over some of lead_time and space, on the leads and points of the forecast: (lead, *space)."""
    problems: list[Problem] = []
    order: dict[str, NDArray[np.int64]] = {}
    if strange := [str(d) for d in values.dims if d not in ("lead_time", *space)]:
        found = f"dimensions {tuple(values.dims)}"
        problems.append(Problem(where, found, f"some of {('lead_time', *space)}", f"select along {', '.join(strange)}"))
    if "lead_time" in values.dims:
        order["lead_time"] = at = positions(fc["lead_time"], values["lead_time"])
        if (at < 0).any():
            found, wanted = f"leads {values['lead_time'].values}", f"all leads {fc['lead_time'].values}"
            problems.append(Problem(where, found, wanted, "compute it on the same leads"))
    for d in space:
        if d in values.dims and d in values.coords and d in fc.coords:
            order[d] = match_points(f"{where}, {d!r}", fc[d], values[d].values, problems)
    if problems:
        raise SpecError(problems)
    shape = [fc.sizes[d] for d in ("lead_time", *space)]
    bare = values.isel(order).drop_vars(list(values.coords))
    return (xr.DataArray(np.ones(shape), dims=("lead_time", *space)) * bare).values


def _keys(times: xr.DataArray) -> tuple[str, NDArray[Any]]:
    """Comparable values and what they are: microseconds, cftime dates of a calendar, or numbers."""
    values = times.values
    if values.dtype.kind in "Mm":
        kind = "datetime64" if values.dtype.kind == "M" else "timedelta64"
        return kind, values.astype(f"{values.dtype.kind}8[us]").astype(np.int64)
    if values.dtype == object:
        return f"cftime ({calendar_of(values)})", values
    return "numeric", values.astype(np.float64)


def _find(wanted: NDArray[Any], have: NDArray[Any], tolerance: float | None = None) -> NDArray[np.int64]:
    """Position of each wanted value among `have` (exactly for dates, within `tolerance` for numbers), or -1."""
    if have.dtype == object:
        place = {t: i for i, t in enumerate(have.tolist())}
        found = [place.get(t, -1) for t in wanted.ravel().tolist()]
        return np.array(found, dtype=np.int64).reshape(wanted.shape)
    by_size = np.argsort(have, kind="stable")
    ordered = have[by_size]
    after = np.clip(np.searchsorted(ordered, wanted), 0, len(have) - 1)
    before = np.clip(after - 1, 0, len(have) - 1)
    near = np.where(np.abs(ordered[after] - wanted) <= np.abs(ordered[before] - wanted), after, before)
    if have.dtype.kind in "iu":
        hit = ordered[near] == wanted
    else:
        if tolerance is None:
            gaps = np.diff(ordered)
            tolerance = 1e-4 * float(gaps.min()) if len(gaps) else 1e-9 * float(np.abs(ordered).max())
        hit = np.abs(ordered[near] - wanted) <= tolerance
    return np.where(hit, by_size[near], -1)
