"""The clock of a Dataset: calendar, frame interval and its unit, from the times or from what the user
says.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .problem import Findings, Problem, SpecError
from .time import DURATIONS, calendar_of, decode, interval_of, steps_between
from .units import conversion

if TYPE_CHECKING:
    from .spec import FieldSpec

__all__ = ["Clock", "check_times", "clock_of", "with_dates"]

_GREGORIAN = ("standard", "gregorian", "proleptic_gregorian")


@dataclass
class Clock:
    """Interval in `time_units`; `calendar` is None for numeric time."""

    interval: float
    time_units: str
    calendar: str | None


def with_dates(ds: xr.Dataset, time_units: str | None = None, calendar: str | None = None) -> xr.Dataset:
    """The Dataset with `time` as dates where CF's "… since …" is told by `time_units` or by the
    attributes.
    """
    if "time" not in ds.coords or ds["time"].dtype.kind not in "iuf":
        return ds
    told = time_units if time_units and " since " in time_units else ds["time"].attrs.get("units", "")
    if " since " not in told:
        return ds
    return ds.assign_coords(time=decode(ds["time"], told, calendar or ds["time"].attrs.get("calendar")))


def clock_of(
    ds: xr.Dataset,
    *,
    interval: float | None = None,
    time_units: str | None = None,
    calendar: str | None = None,
) -> tuple[Clock | None, list[Problem]]:
    """The clock of a Dataset with canonical names, or the problems that keep it from being known."""
    if "time" not in ds.dims and interval is None:
        fix = "dims={'time': ...} if it has another name, or interval= and time_units= for a single frame"
        return None, [Problem("time", "no time dimension", "frames along time", fix)]
    try:
        ds = with_dates(ds, time_units, calendar)
    except ValueError as error:
        fix = "time_units='days since 1900-01-01', calendar='standard' (or 'noleap', '360_day', ...)"
        return None, [Problem("time", f"times that cannot be read as dates ({error})", "CF units and calendar", fix)]
    told = None if time_units and " since " in time_units else time_units
    if "time" not in ds.coords:
        if interval is None:
            fix = "interval=0.1, time_units='s', or ds.assign_coords(time=...)"
            return None, [Problem("time", "no time coordinate", "one, or a stated interval", fix)]
        return Clock(float(interval), told or "1", calendar), []
    times = ds["time"]
    system = calendar_of(times)
    if system is None:
        hint = next((str(v) for v in times.attrs.values() if " since " in str(v)), None)
        if hint and not told and "units" not in times.attrs:
            found = f"bare numbers from {times.values[0]:g}, with {hint!r} in an attribute other than 'units'"
            return None, [Problem("time", found, "CF units", f"time_units={hint!r}")]
        return _numeric(times, interval, told)
    return _calendar(times, system, interval, told)


def _numeric(times: xr.DataArray, interval: float | None, told: str | None) -> tuple[Clock | None, list[Problem]]:
    units = told or str(times.attrs.get("units", "1"))
    if interval is None and times.size == 1 and str(times.attrs.get("static")) == "true":
        return Clock(1.0, units, None), []  # fields that do not move: no interval is there to be measured, or needed
    if interval is not None:
        return Clock(float(interval), units, None), _disagreement(times, interval, units, None)
    try:
        return Clock(interval_of(times)[0], units, None), []
    except SpecError as error:
        return None, error.problems


def _calendar(
    times: xr.DataArray, system: str, interval: float | None, told: str | None
) -> tuple[Clock | None, list[Problem]]:
    allowed = (*DURATIONS, "months", "years")
    if told is not None and told not in allowed:
        fix = f"one of time_units={', '.join(map(repr, allowed))}"
        return None, [Problem("time_units", repr(told), f"a unit for dates ({', '.join(allowed)})", fix)]
    if interval is not None:
        if told is None:
            wanted = "both, since the times are dates"
            return None, [
                Problem("interval", f"interval={interval:g} without time_units", wanted, "time_units='hours'")
            ]
        return Clock(float(interval), told, system), _disagreement(times, interval, told, system)
    try:
        value, unit = interval_of(times)
    except SpecError as error:
        return None, error.problems
    if told in (None, unit):
        return Clock(value, unit, system), []
    if told in DURATIONS and unit in DURATIONS:
        return Clock(value * DURATIONS[unit] / DURATIONS[told], told, system), []
    if (told, unit) == ("months", "years"):
        return Clock(value * 12, told, system), []
    found = f"frames {value:g} {unit} apart, time_units={told!r}"
    return None, [Problem("time", found, f"{unit}, or an interval in {told}", f"interval=1, time_units={told!r}")]


def _disagreement(times: xr.DataArray, interval: float, units: str, calendar: str | None) -> list[Problem]:
    """A stated interval that no two consecutive frames have is a mistake, not a declaration."""
    if times.size < 2:
        return []
    steps = steps_between(times, Clock(interval, units, calendar))
    if (steps == 1).any():
        return []
    found = f"frames {np.median(steps):g} times {interval:g} {units} apart"
    return [Problem("interval", found, f"some frames {interval:g} {units} apart", "correct interval= and time_units=")]


def check_times(ds: xr.Dataset, spec: "FieldSpec", history: int, gaps: bool, findings: Findings) -> xr.Dataset:
    """The Dataset with times of the spec's kind; problems go to `findings`.

    Wanted: `history` frames or more, sorted, each one interval after the last; with `gaps` whole multiples
    of it.
    """
    ds = _with_time(ds, spec, findings)
    if "time" not in ds.coords:
        return ds
    ds = with_dates(ds)
    times = ds["time"]
    every = f"{spec.interval:g} {spec.time_units}"
    if times.size < history:
        wanted = f"at least {history} frames, {every} apart"
        findings.problem("time", f"{times.size} frame(s)", wanted, "select a longer stretch: ds.isel(time=slice(...))")
    system = calendar_of(times)
    if (system is None) != (spec.calendar is None):
        if system is None:
            fix = "open_dataset(..., time_units='days since 1900-01-01') or xr.decode_cf(ds)"
            found = f"numbers from {times.values.ravel()[0]:g}"
        else:
            fix = "ds.assign_coords(time=(ds.time - ds.time[0]) / np.timedelta64(1, 's'))"
            found = f"dates from {times.values.ravel()[0]}"
        wanted = f"dates ({spec.calendar})" if spec.calendar else f"numbers in {spec.time_units!r}"
        findings.problem("time", found, wanted, fix)
        return ds
    if system is None:
        converted = _in_units(times, spec, findings)
        if converted is None:
            return ds
        times = converted
        ds = ds.assign_coords(time=times)
        missing = np.isnan(times.values.astype(np.float64))
    else:
        missing = np.isnat(times.values) if times.dtype.kind == "M" else np.zeros(times.shape, dtype=bool)
        if system != spec.calendar and not (system in _GREGORIAN and spec.calendar in _GREGORIAN):
            fix = "ds.convert_calendar(...), if dates of the two are to mean the same"
            findings.warn("time", f"calendar {system!r}", f"calendar {spec.calendar!r}", fix)
    if missing.any():
        at = int(np.argmax(missing))
        findings.problem("time", f"a missing time at index {at}", "a time for every frame", "ds.dropna('time')")
        return ds
    _steps(times.values, spec, gaps, findings)
    return ds


def _steps(values: NDArray[Any], spec: "FieldSpec", gaps: bool, findings: Findings) -> None:
    every = f"{spec.interval:g} {spec.time_units}"
    steps = steps_between(values, spec)
    if (steps == 0).any():
        at = int(np.argmax(steps == 0))
        found = f"{int((steps == 0).sum())} repeated time(s), first {values[at + 1]} at index {at + 1}"
        findings.problem("time", found, f"strictly increasing times, {every} apart", "ds.drop_duplicates('time')")
    if (steps < 0).any():
        at = int(np.argmax(steps < 0))
        found = f"unsorted times: {values[at]} then {values[at + 1]} at index {at + 1}"
        findings.problem("time", found, "increasing times", "ds.sortby('time')")
    wrong = (steps > 0) & (steps != 1)
    if gaps:
        wrong &= steps != np.round(steps)
    if not wrong.any() or (steps < 0).any():
        return
    step = float(steps[0])
    if np.allclose(steps, step, rtol=1e-3):
        found = f"frames {step * spec.interval:.6g} {spec.time_units} apart"
        ratio = 1 / step
        if abs(ratio - round(ratio)) < 1e-3:
            fix = f"take every {round(ratio)}th frame: ds.isel(time=slice(None, None, {round(ratio)}))"
        else:
            fix = "open the data at the model's interval, or train on this one"
        findings.problem("time", found, f"frames {every} apart", fix)
        return
    at = int(np.argmax(wrong))
    found = (
        f"irregular times: {int(wrong.sum())} of {steps.size} steps differ, first {steps[at]:.6g} intervals from "
        f"{values[at]} to {values[at + 1]} at index {at + 1}"
    )
    fix = "select a stretch without gaps, or reindex and interpolate: ds.resample(time=...)"
    findings.problem("time", found, f"every frame {every} after the last", fix)


def _with_time(ds: xr.Dataset, spec: "FieldSpec", findings: Findings) -> xr.Dataset:
    """A time dimension with a coordinate, where that can be had without inventing dates."""
    if "time" in ds.dims and "time" in ds.coords:
        return ds
    if "time" in ds.coords:
        findings.note("a time dimension of one frame added")
        return ds.expand_dims("time")
    count = ds.sizes.get("time", 1)
    wanted = f"times in {spec.time_units}" + (f" ({spec.calendar} dates)" if spec.calendar else "")
    found = f"{count} frame(s) without a time coordinate"
    if spec.calendar is not None:
        findings.problem("time", found, wanted, "ds.assign_coords(time=...)")
        return ds
    findings.warn("time", found, f"{wanted}; counted from 0 in frame intervals", "ds.assign_coords(time=...)")
    ds = ds if "time" in ds.dims else ds.expand_dims("time")
    return ds.assign_coords(time=("time", np.arange(count) * spec.interval, {"units": spec.time_units}))


def _in_units(times: xr.DataArray, spec: "FieldSpec", findings: Findings) -> xr.DataArray | None:
    """Numeric times in the spec's unit; None where they cannot be converted."""
    units = str(times.attrs.get("units", spec.time_units))
    if units in (spec.time_units, "1") or spec.time_units == "1":
        return times
    change = conversion(units, spec.time_units)
    if change is None:
        findings.problem("time", f"times in {units!r}", f"times in {spec.time_units!r}", "convert the coordinate")
        return None
    if change.identity:
        return times
    findings.note(f"time converted from {units} to {spec.time_units}")
    converted = times.astype(np.float64) * change.scale
    return converted.assign_attrs(times.attrs | {"units": spec.time_units})
