"""A Dataset laid out as the spec's grid: dimension names, order of axes, coordinates, all without changing
a number.

Lossless and therefore done: renaming, transposing, dropping a dimension of size one, turning an axis
round, sorting it, moving longitudes by multiples of 360 degrees, metres for kilometres in a coordinate.
Anything else is a Problem.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..physics.grid import Axis
from .axes import coordinate_values
from .names import LEADING, assign, coordinate_of, merged, role_of, standard_role, suggestion
from .problem import Findings
from .spec import FieldSpec
from .units import conversion

__all__ = ["align"]

TOLERANCE = 1e-3
"""By how much of the grid spacing coordinates may differ: float32 and float64 files of one grid agree to
1e-5.
"""


def align(
    ds: xr.Dataset,
    spec: FieldSpec,
    names: Sequence[str],
    dims: Mapping[str, str | Sequence[str]] | None,
    members: bool,
    findings: Findings,
) -> xr.Dataset | None:
    """The variables `names` with dims (trajectory, member, time, *space) on the spec's grid; None if it
    cannot be.
    """
    before = len(findings.problems)
    rename = _dimension_names(ds, spec, names, dims, members, findings)
    for axis in spec.grid.axes:
        if axis.name not in rename.values():
            found = f"dimensions {', '.join(sorted({str(d) for n in names for d in ds[n].dims})) or 'none'}"
            fix = f"dims={{{axis.name!r}: ...}} if it goes by another name"
            findings.problem(f"axis {axis.name!r}", found, f"{axis.name} ({axis.size} values)", fix)
    dropped = [d for d in {d for n in names for d in ds[n].dims} if d not in rename and ds.sizes[d] == 1]
    if len(findings.problems) > before:
        return None
    ds, problems = merged(ds.isel(dict.fromkeys(dropped, 0)), names, rename)
    findings.problems += problems
    if problems:
        return None
    for old, new in rename.items():
        if old != new:
            findings.note(f"{old} renamed to {new}")
    for axis in spec.grid.axes:
        ds = _match(ds, axis, findings)
    if len(findings.problems) > before:
        return None
    return _ordered(ds, spec, findings)


def _dimension_names(
    ds: xr.Dataset,
    spec: FieldSpec,
    names: Sequence[str],
    dims: Mapping[str, str | Sequence[str]] | None,
    members: bool,
    findings: Findings,
) -> dict[str, str]:
    """{dimension of the Dataset: canonical name}."""
    used = list(dict.fromkeys(str(d) for name in names for d in ds[name].dims))
    told = {k: v for k, v in spec.dims.items() if any(a in ds.dims for a in v)} | dict(dims or {})
    aliases = {s for v in told.values() for s in ((v,) if isinstance(v, str) else v)}
    exact = [d for d in used if d in spec.grid.names and d not in aliases]
    single = [d for d in used if ds.sizes[d] == 1 and d not in exact and d not in aliases]
    single = [d for d in single if role_of(ds, d) in (None, "vertical", "member", "trajectory")]
    for dim in single:
        findings.note(f"{dim}, of size one, dropped")
    roles, problems = assign(ds, [d for d in used if d not in exact and d not in single], told)
    findings.problems += problems
    rename = {d: d for d in exact}
    for dim, role in roles.items():
        if role in ("init_time", "lead_time"):
            wanted = "a series of frames along time"
            fix = "select one forecast and one lead, or rename: dims={'time': ...}"
            findings.problem(f"dimension {dim!r}", f"{ds.sizes[dim]} values of {role}", wanted, fix)
        elif role == "member" and not members:
            fix = f"ds.isel({dim}=0), ds.mean({dim!r}), or members=True where each member is to start a forecast"
            findings.problem(f"dimension {dim!r}", f"{ds.sizes[dim]} members already present", "none", fix)
        elif role in LEADING or role in spec.grid.names:
            rename[dim] = role
        else:
            axis = next((a for a in spec.grid.axes if standard_role(role) in (a.kind, standard_role(a.name))), None)
            if axis is None or axis.name in rename.values():
                wanted = f"time and {', '.join(spec.grid.names)}"
                findings.problem(
                    f"dimension {dim!r}", f"an axis ({role}) of size {ds.sizes[dim]}", wanted, suggestion(dim)
                )
            else:
                rename[dim] = axis.name
    return rename


def _match(ds: xr.Dataset, axis: Axis, findings: Findings) -> xr.Dataset:
    """The Dataset with this axis in the spec's order and with the spec's coordinates, or a problem."""
    where, name = f"axis {axis.name!r}", axis.name
    wanted = np.array(axis.coordinates)
    coordinate = coordinate_of(ds, name)
    if coordinate is None:
        if ds.sizes[name] != axis.size:
            fix = "open the data on the model's grid, or interpolate to it"
            findings.problem(where, f"{ds.sizes[name]} cells without a coordinate", _spell(wanted, axis.units), fix)
            return ds
        fix = f"ds.assign_coords({name}=...), ascending"
        findings.warn(where, "no coordinate", f"{_spell(wanted, axis.units)}, which is assumed", fix)
        return ds.assign_coords({name: wanted})
    values = coordinate_values(coordinate)
    units = str(coordinate.attrs.get("units", axis.units))
    if axis.kind == "cartesian" and axis.units != "1" and units != axis.units:
        change = conversion(units, axis.units)
        if change is None:
            findings.problem(where, f"units {units!r}", f"units {axis.units!r}", f"ds.assign_coords({name}=...)")
            return ds
        if not change.identity:
            values = values * change.scale + change.offset
            findings.note(f"{name} converted from {units} to {axis.units}")
    slack = TOLERANCE * (float(np.diff(wanted).min()) if wanted.size > 1 else max(abs(wanted[0]), 1.0))
    original = values
    if axis.kind == "longitude":
        values = wanted[0] - slack + np.mod(values - wanted[0] + slack, 360.0)
    order = np.argsort(values, kind="stable")
    if values.size != wanted.size or not np.allclose(values[order], wanted, rtol=0, atol=slack):
        fix = _fix(name, values[order], wanted, slack)
        findings.problem(where, _spell(original, axis.units), _spell(wanted, axis.units), fix)
        return ds
    if not np.array_equal(order, np.arange(order.size)):
        ds = ds.isel({name: order})
    if axis.size > 1 and np.array_equal(order, np.arange(order.size)[::-1]):
        findings.note(f"{name} reversed to ascend")
    elif axis.kind == "longitude" and not np.allclose(original, wanted, rtol=0, atol=slack):
        findings.note(f"{name} shifted by multiples of 360 degrees to start at {wanted[0]:g}")
    elif not np.array_equal(order, np.arange(order.size)):
        findings.note(f"{name} sorted")
    return ds.assign_coords({name: (name, wanted, coordinate.attrs | {"units": axis.units})})


def _fix(name: str, values: NDArray[np.float64], wanted: NDArray[np.float64], slack: float) -> str:
    near = np.abs(values[None, :] - wanted[:, None]).min(axis=1) if values.size else np.full(wanted.size, np.inf)
    if (near <= slack).all():
        twice = (np.diff(values) <= slack).sum()
        if twice and values.size - twice == wanted.size:
            return f"a value occurs twice (a repeated end point?): ds.isel({name}=slice(0, -1))"
        return f"the data contain the grid, select it: ds.sel({name}=spec coordinates, method='nearest')"
    return f"regrid to the model's resolution, conservatively with xESMF or with ds.interp({name}=...)"


def _spell(values: NDArray[np.float64], units: str) -> str:
    if values.size == 0:
        return "no values"
    step = f", spacing {abs(values[-1] - values[0]) / (values.size - 1):.6g}" if values.size > 1 else ""
    return f"{values.size} values from {values[0]:.6g} to {values[-1]:.6g} {units}{step}"


def _ordered(ds: xr.Dataset, spec: FieldSpec, findings: Findings) -> xr.Dataset:
    leading = [d for d in LEADING if d in ds.dims]
    order = (*leading, *spec.grid.names)
    arrays = {}
    for name, array in ds.data_vars.items():
        own = [d for d in order if d in array.dims]
        if list(array.dims) != own:
            findings.note(f"{name} transposed to ({', '.join(own)})")
        lacking = [d for d in order if d not in array.dims]
        if lacking:
            fix = f"ds[{name!r}].expand_dims(...) if it is constant along it"
            findings.problem(f"variable {name!r}", f"no dimension {', '.join(lacking)}", f"({', '.join(order)})", fix)
        arrays[name] = array.transpose(*own)
    return ds.assign(arrays)
