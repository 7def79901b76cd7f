"""Coordinates of a Dataset -> axes of a grid, with the data turned the same way round.

A grid's coordinates ascend. Turning an axis round, and unrolling a longitude that jumps from 180 to -180
or from 360 to 0, moves numbers about without changing any, so both are done and noted. Everything else
that is wrong with a coordinate is a Problem. A longitude that closes on itself is periodic by geometry;
every other periodicity has to be declared, by `periodic=` or by an attribute `periodic = "true"` of the
coordinate.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..physics.grid import Axis, Grid
from .names import coordinate_of, standard_role
from .problem import Problem

__all__ = ["DEGREES", "axis_units", "build_grid", "coordinate_values", "unrolled"]

DEGREES = {"latitude": "degrees_north", "longitude": "degrees_east"}
_TRUE = (True, 1, "true", "True", "yes", "1")


def coordinate_values(coordinate: xr.DataArray) -> NDArray[np.float64]:
    """Values in float64; a float32 coordinate is read as the shortest decimal it stands for (0.1, not
    0.10000000149).
    """
    values = coordinate.values
    if values.dtype == np.float32:
        return np.array([float(str(v)) for v in values])
    return np.asarray(values, dtype=np.float64)


def unrolled(longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes without a jump of 360 degrees between neighbours."""
    return np.asarray(np.unwrap(longitudes, period=360.0))


def axis_units(coordinate: xr.DataArray | None, role: str) -> str:
    """Units of an axis: degrees_north and degrees_east by role, else what the coordinate states, else "1"."""
    if role in DEGREES:
        return DEGREES[role]
    return str(coordinate.attrs.get("units", "1")) if coordinate is not None else "1"


def build_grid(
    ds: xr.Dataset, roles: Mapping[str, str], periodic: Mapping[str, bool] | None
) -> tuple[xr.Dataset, Grid | None, list[str], list[Problem]]:
    """Grid along the dimensions in `roles` {dimension: role}, in that order, and the Dataset turned to match.

    Returns (Dataset, grid or None where there are problems, notes, problems).
    """
    notes: list[str] = []
    problems: list[Problem] = []
    axes = []
    for name in periodic or {}:
        if name not in roles:
            problems.append(
                Problem(f"periodic[{name!r}]", "no such axis", f"one of {', '.join(roles)}", "correct the name")
            )
    for dim, role in roles.items():
        ds, axis = _axis(ds, dim, role, (periodic or {}).get(dim), notes, problems)
        if axis is not None:
            axes.append(axis)
    return ds, Grid(tuple(axes)) if len(axes) == len(roles) and not problems else None, notes, problems


def _axis(
    ds: xr.Dataset, dim: str, role: str, declared: bool | None, notes: list[str], problems: list[Problem]
) -> tuple[xr.Dataset, Axis | None]:
    where = f"coordinate {dim!r}"
    role = standard_role(role)
    coordinate = coordinate_of(ds, dim)
    if coordinate is None:
        notes.append(f"{dim} has no coordinate: counted in cells")
        return ds, Axis(dim, tuple(float(i) for i in range(ds.sizes[dim])), "1", bool(declared))
    if coordinate.dtype.kind not in "iuf":
        problems.append(Problem(where, f"{coordinate.dtype} values", "numbers", f"ds.assign_coords({dim}=...)"))
        return ds, None
    values = coordinate_values(coordinate)
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        problems.append(Problem(where, f"{values[at]} at index {at}", "finite values", f"ds.dropna({dim!r})"))
        return ds, None
    if role == "longitude" and not np.array_equal(unrolled(values), values):
        values = unrolled(values)
        notes.append(f"{dim} unrolled across its jump of 360 degrees")
    if values.size > 1 and (np.diff(values) < 0).all():
        ds, values = ds.isel({dim: slice(None, None, -1)}), values[::-1]
        notes.append(f"{dim} reversed to ascend")
    ds = ds.assign_coords({dim: (dim, values, coordinate.attrs)})
    if (np.diff(values) <= 0).any():
        at = int(np.flatnonzero(np.diff(values) <= 0)[0])
        found = f"{values[at]:g} followed by {values[at + 1]:g} at index {at}"
        problems.append(Problem(where, found, "strictly ascending or descending values", f"ds.sortby({dim!r})"))
        return ds, None
    if role == "longitude" and values.size > 2:
        step = (values[-1] - values[0]) / (values.size - 1)
        if abs(values[-1] - values[0] - 360.0) < 0.01 * step:
            found = f"the end point twice ({values[0]:g} and {values[-1]:g} degrees are one meridian)"
            problems.append(Problem(where, found, "each meridian once", f"ds.isel({dim}=slice(0, -1))"))
            return ds, None
        if abs(values.size * step - 360.0) < 0.01 * step and declared is None:
            declared = True
            notes.append(f"{dim} spans 360 degrees: taken as periodic")
    if declared is None:
        declared = coordinate.attrs.get("periodic") in _TRUE
    units = axis_units(coordinate, role)
    try:
        return ds, Axis(dim, tuple(values.tolist()), units, declared)
    except ValueError as error:
        problems.append(Problem(where, str(error), "an evenly spaced axis", f"periodic={{{dim!r}: False}}"))
        return ds, None
