"""Which dimension plays which role, by CF attributes or by conventional names; nothing ambiguous is
settled here.

Roles: time, trajectory, member, init_time, lead_time, vertical, and the spatial ones latitude, longitude,
x, y, z.

1. An explicit mapping {role or axis name: dimension(s)} comes first.
2. Then the coordinate's CF attributes: standard_name, axis, and the units of latitude and longitude
(through cf-xarray). 3. Then its type: datetimes are a time.
4. Then the name, if it is one of the fixed list below, letter for letter.

Two dimensions in one role, or a dimension in none, is a question for the user and becomes a Problem.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cf_xarray  # noqa: F401  (registers Dataset.cf)
import xarray as xr

from .problem import Problem

__all__ = ["LEADING", "assign", "coordinate_of", "merged", "role_of", "standard_role", "suggestion"]

LEADING = ("trajectory", "init_time", "member", "lead_time", "time")
"""Roles that are not axes of the grid, in the order in which a canonical Dataset has them."""

_NAMES = {
    "time": ("time", "valid_time"),
    "trajectory": ("trajectory", "simulation", "sample"),
    "member": ("member", "number", "ensemble", "realization"),
    "init_time": ("init_time", "forecast_reference_time"),
    "lead_time": ("lead_time", "step", "prediction_timedelta", "forecast_period"),
    "latitude": ("lat", "latitude"),
    "longitude": ("lon", "longitude"),
    "x": ("x",),
    "y": ("y",),
    "z": ("z",),
    "vertical": ("level", "lev", "plev", "pressure_level", "isobaricInhPa", "height", "depth", "altitude"),
}
_ROLE = {name: role for role, names in _NAMES.items() for name in names}
_STANDARD_NAMES = {
    "time": "time",
    "forecast_reference_time": "init_time",
    "forecast_period": "lead_time",
    "realization": "member",
    "latitude": "latitude",
    "longitude": "longitude",
    "projection_x_coordinate": "x",
    "projection_y_coordinate": "y",
    "air_pressure": "vertical",
    "height": "vertical",
    "depth": "vertical",
    "altitude": "vertical",
}
_AXES = {"T": "time", "X": "x", "Y": "y", "Z": "vertical"}


def coordinate_of(ds: xr.Dataset, dim: str) -> xr.DataArray | None:
    """The coordinate of a dimension, None where it has none (`ds.coords.get` would make one up)."""
    if dim not in ds.coords:
        return None
    return ds.coords[dim]


def role_of(ds: xr.Dataset, dim: str) -> str | None:
    """The role of a dimension, or None where neither its attributes nor its name say."""
    coordinate = coordinate_of(ds, dim)
    if coordinate is not None:
        standard_name = _STANDARD_NAMES.get(coordinate.attrs.get("standard_name", ""))
        if standard_name:
            return standard_name
        for role in ("latitude", "longitude"):
            if dim in ds.cf.coordinates.get(role, []):
                return role
        if dim in _ROLE:
            return _ROLE[dim]
        for axis, role in _AXES.items():
            if dim in ds.cf.axes.get(axis, []):
                return role
        if coordinate.dtype.kind == "M" or _is_cftime(coordinate):
            return "time"
    return _ROLE.get(dim)


def standard_role(name: str) -> str:
    """The role that a conventional name stands for ("lat" is a latitude); any other name stands for
    itself.
    """
    return _ROLE.get(name, name)


def assign(
    ds: xr.Dataset, used: Iterable[str], dims: Mapping[str, str | Sequence[str]] | None
) -> tuple[dict[str, str], list[Problem]]:
    """Roles of the `used` dimensions: {dimension: role or explicit axis name}, and the open questions.

    Several dimensions may share an explicit name (x_u and x_v are both x); they may not share a recognised
    role.
    """
    explicit: dict[str, str] = {}
    problems: list[Problem] = []
    for target, sources in (dims or {}).items():
        for source in (sources,) if isinstance(sources, str) else tuple(sources):
            if source in ds.dims:
                explicit[source] = target
    for target, sources in (dims or {}).items():
        asked = (sources,) if isinstance(sources, str) else tuple(sources)
        if not any(s in ds.dims for s in asked):
            problems.append(
                Problem(
                    f"dims[{target!r}]",
                    f"no dimension {' or '.join(map(repr, asked))}",
                    f"one of {', '.join(map(str, ds.dims))}",
                    f"dims={{{target!r}: …}}",
                )
            )
    roles: dict[str, str] = {}
    for dim in used:
        role = explicit.get(dim) or role_of(ds, dim)
        if role is None:
            problems.append(
                Problem(
                    f"dimension {dim!r} (size {ds.sizes[dim]})",
                    "neither CF attributes nor a known name",
                    "a time, a member, a trajectory, or an axis of the grid",
                    suggestion(dim),
                )
            )
        else:
            roles[dim] = role
    for role in dict.fromkeys(roles.values()):
        sharing = [d for d, r in roles.items() if r == role]
        if len(sharing) > 1 and not all(d in explicit for d in sharing):
            listed = ", ".join(repr(d) for d in sharing)
            problems.append(
                Problem(
                    f"role {role!r}",
                    f"several candidates: {listed}",
                    "one dimension",
                    f"say which with dims={{{role!r}: {sharing[0]!r}}}, and name the others too",
                )
            )
    return roles, problems


def merged(ds: xr.Dataset, variables: Sequence[str], rename: Mapping[str, str]) -> tuple[xr.Dataset, list[Problem]]:
    """The `variables` of a Dataset under new dimension names; several old names may become one new.

    Dimensions that become one must agree in size and coordinates: a staggered grid is a Problem.
    """
    problems: list[Problem] = []
    kept: dict[str, str] = {}
    for old, new in rename.items():
        first = kept.setdefault(new, old)
        if first != old and not _same_coordinate(ds, first, old):
            problems.append(
                Problem(
                    f"dimensions {first!r} and {old!r}, both {new!r}",
                    f"{_spell(ds, first)} and {_spell(ds, old)}",
                    "the same coordinates (no staggered grid)",
                    f"interpolate one to the other: ds.interp({old}=ds.{first})",
                )
            )
    if problems:
        return ds, problems
    arrays = {}
    for name in variables:
        array = ds[name].reset_coords(drop=True)
        other = {str(d): rename[str(d)] for d in array.dims if rename.get(str(d), d) != d}
        arrays[name] = array.drop_vars([d for d in other if d in array.coords]).rename(other)
    bare = xr.Dataset(arrays, attrs=ds.attrs)
    coords = {new: (new, ds[old].variable.data, ds[old].attrs) for new, old in kept.items() if old in ds.coords}
    if "time" in ds.coords and ds["time"].ndim == 0 and "time" not in coords:
        return bare.assign_coords(coords).assign_coords(time=ds["time"].reset_coords(drop=True)), []
    return bare.assign_coords(coords), []


def suggestion(dim: str) -> str:
    """How to tell what a dimension is."""
    return (
        f"name it: dims={{'time': {dim!r}}} if it is the time, dims={{'x': {dim!r}}} (any name) if it is an "
        f"axis of the grid, or reduce it: ds.isel({dim}=0)"
    )


def _is_cftime(coordinate: Any) -> bool:
    return coordinate.dtype == object and coordinate.size > 0 and hasattr(coordinate.values.ravel()[0], "calendar")


def _same_coordinate(ds: xr.Dataset, a: str, b: str) -> bool:
    if ds.sizes[a] != ds.sizes[b]:
        return False
    if a in ds.coords and b in ds.coords:
        return bool((ds[a].values == ds[b].values).all())
    return a not in ds.coords and b not in ds.coords


def _spell(ds: xr.Dataset, dim: str) -> str:
    if dim not in ds.coords or not ds.sizes[dim]:
        return f"{ds.sizes[dim]} cells without a coordinate"
    values = ds[dim].values
    return f"{ds.sizes[dim]} values from {values[0]} to {values[-1]}"
