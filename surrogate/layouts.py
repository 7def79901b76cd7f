"""A forecast under the names that other tools read: WeatherBench, ECMWF (cfgrib) and climpred.

| lapse         | weatherbench           | ecmwf        | climpred                 |
|---------------|------------------------|--------------|--------------------------|
| `init_time`   | `time`                 | `time`       | `init`                   |
| `lead_time`   | `prediction_timedelta` | `step`       | `lead`, a number + units |
| `member`      | `number`               | `number`     | `member`                 |
| `valid_time`  | dropped (time + lead)  | `valid_time` | dropped (made by it)     |
| latitude      | `latitude`             | `latitude`   | as it is                 |
| longitude     | `longitude`, 0 to 360  | `longitude`  | as it is                 |

Names and order only: values are not touched, but for longitudes that are shifted by 360° and sorted, and leads that
become numbers. Times without a calendar and grids that are not latitude and longitude do not fit the first two, whose
tools assume both; climpred needs a calendar. CF attributes stay, so that cf-xarray finds everything in each layout.

Sources: WeatherBench 2 data guide (weatherbench2.readthedocs.io), cfgrib's dimensions, climpred "Setting up your data".
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..datasets.names import role_of
from ..datasets.problem import Problem, SpecError
from ..datasets.time import calendar_of
from .align import canonical

__all__ = ["LAYOUTS", "Layout", "to_layout"]

Layout = Literal["weatherbench", "ecmwf", "climpred"]

LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "weatherbench": {"init_time": "time", "lead_time": "prediction_timedelta", "member": "number"},
    "ecmwf": {"init_time": "time", "lead_time": "step", "member": "number"},
    "climpred": {"init_time": "init", "lead_time": "lead", "member": "member"},
}
_ORDER = {
    "weatherbench": ("number", "time", "prediction_timedelta"),
    "ecmwf": ("number", "time", "step"),
    "climpred": ("init", "lead", "member"),
}
_UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1))


def to_layout(fc: xr.Dataset, layout: Layout, *, dims: Mapping[str, str] | None = None) -> xr.Dataset:
    """A forecast, lazy or not, under another convention's names.

    Arguments:
        layout: "weatherbench", "ecmwf" or "climpred".
        dims: our name -> name in ``fc``, where metadata do not tell.

    Raises ValueError for an unknown layout, SpecError for a forecast that does not fit it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: found {layout!r}, wanted one of {', '.join(LAYOUTS)}")
    ours = fc if {"init_time", "member", "lead_time"} <= set(fc.dims) else canonical(fc, dims)
    problems: list[Problem] = []
    if calendar_of(ours["init_time"].values) is None:
        fix = "fc.assign_coords(init_time=…, lead_time=…) with datetime64 and timedelta64"
        problems.append(Problem("init_time", "numbers without a calendar", f"dates, as {layout} has", fix))
    if layout != "climpred" and ours["lead_time"].dtype.kind != "m" and not problems:
        numbers = f"leads in {ours['lead_time'].attrs.get('units', 'numbers')}"
        problems.append(Problem("lead_time", numbers, f"durations, as {layout} has", "layout='climpred'"))
    space: dict[str, str] = {}
    if layout != "climpred":
        for role in ("latitude", "longitude"):
            found = [str(d) for d in ours.dims if role_of(ours, str(d)) == role]
            if len(found) == 1:
                space[found[0]] = role
            else:
                wanted = f"one dimension that is the {role}"
                problems.append(Problem("forecast", f"dimensions {tuple(ours.dims)}", wanted, "layout='climpred'"))
    if problems:
        raise SpecError(problems)
    out = ours.drop_vars("valid_time") if layout != "ecmwf" and "valid_time" in ours.coords else ours
    if layout == "climpred":
        out = _numbered(out)
    out = out.rename({**LAYOUTS[layout], **{d: role for d, role in space.items() if d != role}})
    if layout == "weatherbench":
        out = _eastward(out)
    return out.transpose(*_ORDER[layout], ..., missing_dims="ignore")


def _numbered(ds: xr.Dataset) -> xr.Dataset:
    """Leads as numbers in the largest unit that divides them all, which climpred reads from the attribute."""
    leads = ds["lead_time"]
    attrs: dict[str, Any] = {k: v for k, v in leads.attrs.items() if k not in ("units", "dtype")}
    if leads.dtype.kind != "m":  # months and years come as numbers with units
        return ds
    seconds = leads.values.astype("m8[s]").astype(np.int64)
    unit, size = next((u, n) for u, n in _UNITS if not (seconds % n).any())
    out = ds.assign_coords(lead_time=("lead_time", seconds // size, {**attrs, "units": unit}))
    out["lead_time"].encoding = {}
    return out


def _eastward(ds: xr.Dataset) -> xr.Dataset:
    """Longitudes from 0 to 360, ascending."""
    longitude = ds["longitude"]
    if not (longitude.values < 0).any():
        return ds
    moved = ds.assign_coords(longitude=("longitude", longitude.values % 360, longitude.attrs))
    return moved.isel(longitude=np.argsort(moved["longitude"].values, kind="stable"))
