"""Reading a spec off a Dataset.

Each question (which variables, which dimension is what, how the axes lie, how far apart the frames are,
where the mask is) is answered by the file's metadata or by a keyword. Where neither does, the question is
kept, and all of them are raised together as one SpecError.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..physics.grid import Grid
from .axes import build_grid
from .frames import clock_of
from .integers import unpacked
from .levels import split_dimension
from .names import LEADING, assign, merged, role_of, standard_role
from .problem import Problem, SpecError
from .scan import Scan, scan
from .spec import FieldSpec, Variable
from .units import stated_units
from .vectors import with_kinds

__all__ = ["as_dataset", "infer", "usable_variables"]

SAMPLE = 32
"""Frames that are looked at for masks where nobody asked for ranges and the data are large."""
LARGE = 2**26
"""Values above which "large"."""


def infer(
    ds: xr.Dataset | xr.DataArray,
    *,
    dims: Mapping[str, str | Sequence[str]] | None = None,
    periodic: Mapping[str, bool] | None = None,
    kinds: Mapping[str, str | Sequence[str]] | None = None,
    variables: Sequence[str] | None = None,
    equation: str | None = None,
    parameters: Mapping[str, float] | None = None,
    interval: float | None = None,
    time_units: str | None = None,
    calendar: str | None = None,
    units: Mapping[str, str] | None = None,
    split: str | None = None,
    ranges: bool = False,
) -> FieldSpec:
    """See `FieldSpec.infer`."""
    ds = as_dataset(ds)
    if split is not None:
        ds = split_dimension(ds, split)
    names, notes, problems = usable_variables(ds, variables)
    if not names:
        raise SpecError(problems)

    numbers = {name: unpacked(ds[name]) for name in names}
    ds = ds.assign({name: array for name, (array, _) in numbers.items()})
    notes = notes + [note for _, note in numbers.values() if note]
    ds, space, said, found = _dimensions(ds, names, dims)
    notes, problems = notes + said, problems + found
    grid: Grid | None = None
    if space:
        ds, grid, said, found = build_grid(ds, space, periodic)
        notes, problems = notes + said, problems + found
    clock, found = clock_of(ds, interval=interval, time_units=time_units, calendar=calendar)
    problems += found
    described = [_describe(ds[name], (units or {}).get(name), notes) for name in names]
    if grid is None or clock is None:
        raise SpecError(problems)

    described, found = with_kinds(described, grid, kinds)  # type: ignore[assignment]
    problems += found
    weights = grid.area_weights().numpy()
    masks = {}
    measured = []
    for variable in described:
        survey = _survey(ds[variable.name], grid, weights, ranges, notes)
        problems += _gaps(variable.name, survey)
        if survey.any_nan.any() and not survey.all_nan.all():
            masks[variable.name] = ~survey.any_nan
        measured.append(_with_range(variable, survey) if ranges else variable)
    if problems:
        raise SpecError(problems)
    law, constants = _law(ds, equation, parameters)
    return FieldSpec(
        variables=tuple(measured),
        grid=grid,
        interval=clock.interval,
        time_units=clock.time_units,
        calendar=clock.calendar,
        masks=masks,
        parameters=constants,
        equation=law,
        attrs=_attrs(ds, notes),
        dims={k: (v,) if isinstance(v, str) else tuple(v) for k, v in (dims or {}).items()},
        split=split,
    )


def as_dataset(ds: Any) -> xr.Dataset:
    """A Dataset, also from a named DataArray. Raises SpecError for anything else."""
    if isinstance(ds, xr.Dataset):
        return ds
    if isinstance(ds, xr.DataArray) and ds.name is not None:
        return ds.to_dataset()
    found = "a DataArray without a name" if isinstance(ds, xr.DataArray) else f"a {type(ds).__name__}"
    fix = "xr.open_dataset or lapse.open_dataset for a path, array.to_dataset(name=...) for an array"
    raise SpecError([Problem("input", found, "an xarray Dataset", fix)])


def usable_variables(ds: xr.Dataset, wanted: Sequence[str] | None) -> tuple[list[str], list[str], list[Problem]]:
    """Names of the variables that make up the field, notes on those left out, problems.

    Without `wanted` these are the numeric variables with the largest number of dimensions; cell bounds are
    none.
    """
    if wanted is not None:
        missing = [name for name in wanted if name not in ds.data_vars]
        has = ", ".join(map(str, ds.data_vars)) or "no variables"
        problems = [
            Problem(f"variable {n!r}", "not in the Dataset", f"one of {has}", "correct variables=") for n in missing
        ]
        return [name for name in wanted if name not in missing], [], problems
    bounds = {str(v.attrs["bounds"]) for v in ds.variables.values() if "bounds" in v.attrs}
    numeric = [str(n) for n, v in ds.data_vars.items() if v.dtype.kind in "iuf" and v.ndim and n not in bounds]
    if not numeric:
        found = ", ".join(f"{n} ({v.dtype})" for n, v in ds.data_vars.items()) or "no variables"
        return (
            [],
            [],
            [Problem("Dataset", found, "at least one numeric variable on a grid", "open another file")],
        )
    most = max(ds[n].ndim for n in numeric)
    names = [n for n in numeric if ds[n].ndim == most]
    left = [str(n) for n in ds.data_vars if n not in names]
    return names, [f"left out: {', '.join(left)}"] if left else [], []


def _dimensions(
    ds: xr.Dataset, names: Sequence[str], dims: Mapping[str, str | Sequence[str]] | None
) -> tuple[xr.Dataset, dict[str, str], list[str], list[Problem]]:
    """Dataset under canonical dimension names, {axis: role} of the grid's axes in order, notes, problems."""
    used = list(dict.fromkeys(str(d) for name in names for d in ds[name].dims))
    empty = [d for d in used if ds.sizes[d] == 0]
    if empty:
        fix = "select frames and cells that exist"
        return ds, {}, [], [Problem(f"dimension {d!r}", "size 0", "at least one value", fix) for d in empty]
    explicit = {s for v in (dims or {}).values() for s in ((v,) if isinstance(v, str) else v)}
    notes = []
    for dim in used:
        if ds.sizes[dim] == 1 and dim not in explicit and role_of(ds, dim) in ("vertical", "member", None):
            ds = ds.isel({dim: 0}, drop=True)
            notes.append(f"{dim} has one value and was dropped")
    used = [d for d in used if d in ds.dims]
    roles, problems = assign(ds, used, dims)
    horizontal = [d for d, r in roles.items() if standard_role(r) in ("latitude", "longitude", "x", "y")]
    rename: dict[str, str] = {}
    space: dict[str, str] = {}
    for dim, role in roles.items():
        if role in ("member", "init_time", "lead_time"):
            wanted = "a series of frames with the dimensions time, an optional trajectory, and space"
            fix = f"dims={{'trajectory': {dim!r}}} to train on each as a run of its own, or ds.isel({dim}=0)"
            problems.append(Problem(f"dimension {dim!r}", f"a {role} of size {ds.sizes[dim]}", wanted, fix))
        elif role == "vertical" and dim not in explicit and len(horizontal) > 1:
            wanted = "a decision: variables of their own for each level, or a third axis of the grid"
            fix = f"split={dim!r} for the first, dims={{{dim!r}: {dim!r}}} for the second"
            problems.append(Problem(f"dimension {dim!r}", f"{ds.sizes[dim]} levels", wanted, fix))
        elif role in LEADING:
            rename[dim] = role
        else:
            name = role if dim in explicit else dim
            rename[dim] = name
            standard = standard_role(role)
            space[name] = standard if dim not in explicit or standard != role else role_of(ds, dim) or role
    if not space and not problems:
        found = f"only the dimensions {', '.join(used)}"
        problems.append(Problem("Dataset", found, "at least one axis of space", "name it with dims={'x': ...}"))
    times = [d for d, r in rename.items() if r == "time"]
    if problems:
        # The time is renamed all the same, so that the clock is not reported as missing on top.
        return ds.rename({d: "time" for d in times if d != "time"}), {}, notes, problems
    ds, problems = merged(ds, names, rename)
    if "time" in ds.coords and ds["time"].ndim == 0:
        ds = ds.expand_dims("time")
    if not problems:
        for name in names:
            lacking = [d for d in (*space, *(["time"] if times else [])) if d not in ds[name].dims]
            if lacking:
                fix = f"leave it out of variables=, or broadcast it: ds[{name!r}].expand_dims(...)"
                found = f"no dimension {', '.join(lacking)}"
                problems.append(Problem(f"variable {name!r}", found, "every dimension of the others", fix))
    return ds, space if not problems else {}, notes, problems


def _describe(array: xr.DataArray, units: str | None, notes: list[str]) -> Variable:
    stated, note = stated_units(array)
    if note and units is None:
        notes.append(note)
    return Variable(
        name=str(array.name),
        units=units if units is not None else stated,
        standard_name=array.attrs.get("standard_name"),
        long_name=array.attrs.get("long_name"),
    )


def _survey(array: xr.DataArray, grid: Grid, weights: NDArray[np.float64], ranges: bool, notes: list[str]) -> Scan:
    leading = [str(d) for d in array.dims if d not in grid.names]
    if not ranges and array.size > LARGE and "time" in leading and array.sizes["time"] > SAMPLE:
        frames = np.linspace(0, array.sizes["time"] - 1, SAMPLE).round().astype(int)
        notes.append(f"mask of {array.name} read from {SAMPLE} of {array.sizes['time']} frames")
        array = array.isel(time=frames)
    return scan(array, grid.names, weights=weights)


def _gaps(name: str, found: Scan) -> list[Problem]:
    where = f"variable {name!r}"
    if found.all_nan.all():
        return [Problem(where, "NaN in every cell of every frame", "numbers", "check the file and its _FillValue")]
    problems = []
    coming = found.any_nan & ~found.all_nan
    if coming.any():
        count = f"NaN that come and go in {int(coming.sum())} of {coming.size} cells ({found.nan_outside} values)"
        wanted = "cells that are NaN in every frame (a static mask) or in none"
        fix = "fill them (ds.interpolate_na, ds.fillna), or leave these frames or this variable out"
        problems.append(Problem(where, count, wanted, fix))
    if found.inf:
        fix = "ds.where(np.isfinite(ds)) and fill"
        problems.append(Problem(where, f"{found.inf} infinite values, first at {found.first_inf}", "none", fix))
    return problems


def _with_range(variable: Variable, found: Scan) -> Variable:
    # Seven digits are what float32 data can carry, and they read well in spec.json.
    low, high, mean, std = (float(f"{v:.7g}") for v in (found.minimum, found.maximum, found.mean, found.std))
    return replace(variable, minimum=low, maximum=high, mean=mean, std=std)


def _law(
    ds: xr.Dataset, equation: str | None, parameters: Mapping[str, float] | None
) -> tuple[str | None, dict[str, float]]:
    """Equation and parameters as told, else as the attributes `equation` (a name) and `parameters` (JSON)
    say.
    """
    name = ds.attrs.get("equation")
    if equation is None and isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name):
        equation = name
    if parameters is None:
        try:
            read = json.loads(ds.attrs.get("parameters", "{}"))
            parameters = {str(k): float(v) for k, v in read.items()}
        except (TypeError, ValueError, AttributeError):
            parameters = {}
    return equation, dict(parameters)


def _attrs(ds: xr.Dataset, notes: Sequence[str]) -> dict[str, str]:
    attrs = {key: str(ds.attrs[key]) for key in ("title", "source", "references") if ds.attrs.get(key)}
    return attrs | ({"notes": "; ".join(notes)} if notes else {})
