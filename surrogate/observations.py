"""Observations of fields: a Dataset with holes, its errors, and the whole frames that it is part of.

What was not observed is NaN, or is not there at all: a variable, a frame between two others, the grid points between
those of a coarser grid that lies on the model's. An error is the standard deviation of an observation's own error, in
the units of the model's spec: a number or a field for each variable, or else the variable's attribute
``observation_error``. Nought is exact.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ..datasets.check import examine
from ..datasets.fields import to_tensor
from ..datasets.infer import as_dataset
from ..datasets.problem import Problem, SpecError, SpecWarning
from ..datasets.spec import FieldSpec
from ..datasets.time import lead_coordinate, steps_between, valid_time
from .window import Observed

__all__ = ["Errors", "Observations", "is_complete", "observations"]

Errors = float | xr.DataArray | Mapping[str, "float | xr.DataArray"] | None
ATTRIBUTE = "observation_error"
_SAME = 1e-3  # of the grid's spacing


@dataclass
class Observations:
    """What was observed, on consecutive frames.

    Attributes:
        observed: values, errors and places, ``(T, C, *space)``.
        times: of the frames, ``(T,)``, of the type that the Dataset has.
        history: what was said of the Dataset, and what was put right in it.
        count: values observed.
    """

    observed: Observed
    times: xr.DataArray
    history: str

    @property
    def count(self) -> int:
        return int(self.observed.where.sum())


def is_complete(ds: xr.Dataset | xr.DataArray, spec: FieldSpec) -> bool:
    """Whether no variable, frame or valid cell is missing."""
    ds = as_dataset(ds)
    canonical, _ = examine(ds, spec, members=True)
    return canonical is not None


def observations(ds: xr.Dataset | xr.DataArray, spec: FieldSpec, error: Errors) -> Observations:
    """Read observations; frames that are missing between the first and the last become frames without any.

    Raises SpecError naming every problem at once.
    """
    ds = _on_grid(as_dataset(ds), spec)
    names = [n for n in spec.names if n in ds.data_vars]
    if not names:
        has = ", ".join(map(str, ds.data_vars)) or "no variables"
        raise SpecError([Problem("observations", has, f"one of {', '.join(spec.names)}", "rename what was observed")])
    whole, seen = _filled(ds, spec, names)
    canonical, findings = examine(whole, spec, gaps=True)
    flags, _ = examine(seen, _plain(spec), gaps=True, values=False)
    problems = list(findings.problems)
    found: dict[str, NDArray[np.float64]] = (
        {} if canonical is None else _errors(ds, canonical, spec, names, error, problems)
    )
    for name in names:
        if not int(seen[name].sum()):
            fix = "leave it out of the Dataset, or check file and selection"
            problems.append(Problem(f"variable {name!r}", "NaN everywhere", "some values", fix))
    if problems or canonical is None or flags is None:
        raise SpecError(problems)
    for warning in findings.warnings:
        if "constant field" not in warning.found:  # a few points, filled up with their mean
            warnings.warn(str(warning), SpecWarning, stacklevel=4)
    return _consecutive(canonical, flags, found, spec)


def _on_grid(ds: xr.Dataset, spec: FieldSpec) -> xr.Dataset:
    """The Dataset with NaN at the grid points between its own, along axes of which it has some points only."""
    for axis in spec.grid.axes:
        if axis.name not in ds.coords or ds[axis.name].ndim != 1 or ds.sizes[axis.name] >= axis.size:
            continue
        wanted, values = np.array(axis.coordinates), ds[axis.name].values
        slack = _SAME * (float(np.diff(wanted).min()) if len(wanted) > 1 else 1.0)
        nearest = np.abs(values[:, None] - wanted[None]).argmin(axis=1)
        if len(set(nearest)) == len(nearest) and np.allclose(wanted[nearest], values, rtol=0, atol=slack):
            attrs = ds[axis.name].attrs
            ds = ds.assign_coords({axis.name: (axis.name, wanted[nearest], attrs)}).reindex({axis.name: wanted})
            ds[axis.name].attrs.update(attrs)
    return ds


def _filled(ds: xr.Dataset, spec: FieldSpec, names: list[str]) -> tuple[xr.Dataset, xr.Dataset]:
    """Holes filled with something harmless, so that the numbers can be judged; and 1 where there were numbers."""
    whole, seen = {}, {}
    like = ds[names[0]]
    for variable in spec.variables:
        if variable.name in ds.data_vars:
            array = ds[variable.name]
            there = array.notnull()
            level = float(array.mean()) if bool(there.any()) else 0.0
            whole[variable.name] = array.fillna(level if np.isfinite(level) else 0.0)
        else:
            there = xr.zeros_like(like, dtype=bool)
            attrs = {"units": variable.units} if variable.units else {}
            whole[variable.name] = xr.full_like(like, variable.mean or 0.0, dtype=np.float32).assign_attrs(attrs)
        seen[variable.name] = there.astype(np.float32).assign_attrs({"units": variable.units or "1"})
    return xr.Dataset(whole, coords=ds.coords, attrs=ds.attrs), xr.Dataset(seen, coords=ds.coords)


def _plain(spec: FieldSpec) -> FieldSpec:
    """The spec for flags: no ranges that they could miss."""
    free = {"minimum": None, "maximum": None, "mean": None, "std": None}
    return spec.replace(variables=dict.fromkeys(spec.names, free))


def _errors(
    ds: xr.Dataset, canonical: xr.Dataset, spec: FieldSpec, names: list[str], error: Errors, problems: list[Problem]
) -> dict[str, NDArray[np.float64]]:
    """Errors by name, each an array that broadcasts against the canonical variable."""
    out: dict[str, NDArray[np.float64]] = {}
    if isinstance(error, Mapping):
        for name in error:
            if name not in names:
                fix = "correct the name"
                problems.append(Problem(f"error of {name!r}", "no such observation", f"one of {', '.join(names)}", fix))
    for name in names:
        units = spec[name].units or "1"
        given = error.get(name) if isinstance(error, Mapping) else error
        given = ds[name].attrs.get(ATTRIBUTE) if given is None else given
        where, wanted = f"error of {name!r}", f"a standard deviation in {units}, 0 where observations are exact"
        fix = f"error={{{name!r}: 0.1}}, or ds[{name!r}].attrs[{ATTRIBUTE!r}] = 0.1"
        if given is None:
            problems.append(Problem(where, "none", wanted, fix))
            continue
        try:
            array = given if isinstance(given, xr.DataArray) else xr.DataArray(float(given))
            array = array.astype(np.float64).broadcast_like(canonical[name]).transpose(*canonical[name].dims)
            fits = array.shape == canonical[name].shape
        except (TypeError, ValueError) as reason:
            problems.append(Problem(where, str(reason), wanted, fix))
            continue
        if not fits or bool((~np.isfinite(array.where(ds[name].notnull().values, 0.0)) | (array < 0)).any()):
            sizes = "×".join(map(str, array.shape))
            found = f"numbers that are negative or not finite, or of another shape ({sizes})"
            problems.append(Problem(where, found, wanted, fix))
            continue
        out[name] = array.fillna(0.0).values
    return out


def _consecutive(
    canonical: xr.Dataset, flags: xr.Dataset, errors: Mapping[str, NDArray[np.float64]], spec: FieldSpec
) -> Observations:
    times = canonical["time"]
    steps = np.concatenate([[0], np.cumsum(steps_between(times, spec))]).astype(int)
    count = int(steps[-1]) + 1
    first = times.values[0]
    axis = times.values[:1]
    if count > 1:
        axis = np.concatenate([axis, valid_time(first, lead_coordinate(spec, count - 1), spec).values])
        axis[steps] = times.values
    shape = (count, *spec.shape)
    value, error = torch.zeros(shape), torch.zeros(shape)
    where = torch.zeros(shape, dtype=torch.bool)
    there = to_tensor(flags, spec) > 0
    numbers = to_tensor(canonical, spec)
    valid = spec.mask_tensor()
    for k, step in enumerate(steps):
        where[step] = there[k] & valid
        value[step] = torch.where(where[step], numbers[k], 0.0)
        for c, name in enumerate(spec.names):
            if name in errors:
                error[step, c] = torch.from_numpy(errors[name][k]).float()
    attrs = {k: v for k, v in times.attrs.items() if k != "bounds"}
    return Observations(
        Observed(value, error, where), xr.DataArray(axis, dims="time", name="time", attrs=attrs),
        str(canonical.attrs.get("history", "")),
    )  # fmt: skip
