"""Arithmetic on dates that works for datetime64 of any unit and for cftime of any calendar.

datetime64 is handled in microseconds or whole months, both as integers; cftime dates one by one.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["add_duration", "add_months", "as_values", "fractions", "months", "same_day", "seconds_between", "spacing"]


def as_values(times: Any) -> NDArray[Any]:
    if isinstance(times, xr.DataArray | xr.Variable):
        return np.asarray(times.values)
    if isinstance(times, xr.CFTimeIndex):
        return np.asarray(times, dtype=object)
    return np.asarray(times)


def seconds_between(values: NDArray[Any]) -> NDArray[np.float64]:
    """Distances between consecutive dates in seconds."""
    if values.dtype.kind == "M":
        gaps: NDArray[np.float64] = np.diff(values.astype("M8[us]")).astype(np.float64) / 1e6
        return gaps
    pairs = pairwise(values)
    return np.array([(b - a).total_seconds() for a, b in pairs], dtype=np.float64)


def months(values: NDArray[Any]) -> NDArray[np.int64]:
    """Months since year 0 (datetime64: since a fixed January), whole."""
    if values.dtype.kind == "M":
        return values.astype("M8[M]").astype(np.int64) + 1970 * 12
    return np.array([t.year * 12 + t.month - 1 for t in values.ravel()], dtype=np.int64).reshape(values.shape)


def same_day(values: NDArray[Any]) -> bool:
    """Whether all dates have the same day of the month and time of day."""
    if values.dtype.kind == "M":
        within = values.astype("M8[us]") - values.astype("M8[M]").astype("M8[us]")
        return bool((within == within[0]).all())
    return len({(t.day, t.hour, t.minute, t.second) for t in values}) == 1


def add_duration(dates: NDArray[Any], leads: NDArray[Any]) -> NDArray[Any]:
    if dates.dtype.kind == "M":
        # numpy would keep the coarser unit's range and the finer one's step: exactly what is wanted here.
        return np.asarray(dates + leads)
    deltas = leads.astype("m8[us]").astype(object)
    return np.asarray(dates + deltas, dtype=object)


def add_months(dates: NDArray[Any], months: NDArray[np.int64]) -> NDArray[Any]:
    if dates.dtype.kind == "M":
        first = dates.astype("M8[M]")
        within = dates - first.astype(dates.dtype)
        target = first + months
        longest = ((target + 1).astype("M8[D]") - 1 - target.astype("M8[D]")).astype("m8[D]")
        days = within.astype("m8[D]")
        return np.asarray(target.astype(dates.dtype) + np.minimum(days, longest) + (within - days))
    flat = np.broadcast_arrays(dates, months)
    moved = np.empty(flat[0].shape, dtype=object)
    for index, (date, count) in enumerate(zip(flat[0].ravel(), flat[1].ravel(), strict=True)):
        page = date.year * 12 + date.month - 1 + int(count)
        first_day = date.replace(year=page // 12, month=page % 12 + 1, day=1)
        moved.ravel()[index] = first_day.replace(day=min(date.day, first_day.daysinmonth))
    return moved


def fractions(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The fraction of its year and the fraction of its day that has passed at each date."""
    if values.dtype.kind == "M":
        if np.isnat(values).any():
            raise ValueError("found NaT among the times; wanted a date for every frame")
        years, days = values.astype("M8[Y]"), values.astype("M8[D]")
        start = years.astype("M8[us]")
        length = ((years + 1).astype("M8[us]") - start).astype(np.float64)
        year = (values.astype("M8[us]") - start).astype(np.float64) / length
        day = (values.astype("M8[us]") - days.astype("M8[us]")).astype(np.float64) / 86400e6
        return year, day
    both = np.array([_cftime_fractions(t) for t in values.ravel()]).reshape(*values.shape, 2)
    return both[..., 0], both[..., 1]


def _cftime_fractions(date: Any) -> tuple[float, float]:
    start = date.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
    year = (date - start) / (start.replace(year=start.year + 1) - start)
    midnight = date.replace(hour=0, minute=0, second=0, microsecond=0)
    return float(year), float((date - midnight).total_seconds() / 86400.0)


def spacing(values: NDArray[Any]) -> float:
    """Rounding error of numeric times: the spacing of floats at the largest of them, zero for integers."""
    if values.dtype.kind != "f" or not values.size:
        return 0.0
    return float(np.spacing(np.abs(values).max()))
