"""Frame times, leads and phases, for datetime64, cftime (any calendar) and plain numbers.

A frame interval Δ is either a fixed duration (seconds … days), or a number of calendar months or years,
which are not durations: the valid time of lead k is then init ⊕ kΔ with ⊕ the calendar's addition, the day
clipped to the end of the month. Numeric times are numbers in the spec's own unit.

Arithmetic is done in microseconds or in whole months, never in datetime64[ns], which ends in 1677 and 2262.

The phase of a time is [sin 2πa, cos 2πa, sin 2πd, cos 2πd] with a the fraction of its own calendar's year
that has passed and d the fraction of its day (UTC). Numeric time has no calendar and gets zeros.

CF names: forecast_reference_time (init_time), forecast_period (lead_time), time (valid_time); CF
conventions 4.4, 5.7.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .calendars import add_duration, add_months, as_values, fractions, months, same_day, seconds_between, spacing
from .problem import Problem, SpecError

__all__ = [
    "DURATIONS",
    "Cadence",
    "calendar_of",
    "decode",
    "interval_of",
    "lead_coordinate",
    "phase",
    "steps_between",
    "valid_time",
]

DURATIONS = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
"""Units of a fixed duration, in seconds, longest first."""

_SHORTEST_MONTH = 28 * 86400.0


class Cadence(Protocol):
    """What a clock needs to know of a FieldSpec; `calendar` is None for numeric time."""

    @property
    def interval(self) -> float: ...
    @property
    def time_units(self) -> str: ...
    @property
    def calendar(self) -> str | None: ...


def calendar_of(times: Any) -> str | None:
    """The calendar of datetime64 or cftime `times` ("proleptic_gregorian", "noleap", …); None for plain
    numbers.
    """
    values = as_values(times)
    if values.dtype.kind == "M":
        return "proleptic_gregorian"
    if values.dtype == object and values.size:
        return str(values.ravel()[0].calendar)
    return None


def decode(times: xr.DataArray, units: str, calendar: str | None = None) -> xr.DataArray:
    """Read bare numbers as dates: `units` is CF's "days since 1900-01-01", `calendar` CF's name (default
    standard).
    """
    attrs = {k: v for k, v in times.attrs.items() if k.lower() not in ("unit", "units", "calendar")}
    told = {"units": units, "calendar": calendar or "standard"}
    bare = xr.Dataset({"decoded": (times.dims, times.values, told)})
    coder = xr.coders.CFDatetimeCoder(time_unit="us")
    dates = xr.decode_cf(bare, decode_times=coder)["decoded"].values
    return xr.DataArray(dates, dims=times.dims, name=times.name, attrs=attrs)


def interval_of(times: Any) -> tuple[float, str]:
    """The frame interval and its unit: (6.0, "hours"), (1.0, "months"), (0.1, "") for plain numbers.

    A series that steps from month to month on the same day, or whose steps are unequal only as months are, is
    monthly; twelve months are a year. Raises SpecError where there is no interval: fewer than two frames,
    unsorted, repeated or irregular times.
    """
    values = as_values(times)
    if values.size < 2:
        raise SpecError(
            [
                Problem(
                    "time",
                    f"{values.size} frame(s)",
                    "two or more, to measure the frame interval",
                    "declare it: interval=6, time_units='hours'",
                )
            ]
        )
    gaps = seconds_between(values) if calendar_of(values) else np.diff(values.astype(np.float64))
    if (gaps <= 0).any():
        at = int(np.argmax(gaps <= 0))
        kind = "repeated" if gaps[at] == 0 else "unsorted"
        fix = "ds.drop_duplicates('time')" if gaps[at] == 0 else "ds.sortby('time')"
        raise SpecError(
            [
                Problem(
                    "time",
                    f"{kind} times, first at index {at + 1} ({values[at]} then {values[at + 1]})",
                    "strictly increasing times",
                    fix,
                )
            ]
        )
    typical = float(np.median(gaps))
    tolerance = 1e-3 * typical + (0.0 if calendar_of(values) else 4 * spacing(values))
    regular = bool((np.abs(gaps - typical) <= tolerance).all())
    if calendar_of(values):
        pages = np.diff(months(values))
        if gaps.min() >= _SHORTEST_MONTH and (pages == pages[0]).all() and (not regular or same_day(values)):
            count = int(pages[0])
            return (count / 12.0, "years") if count % 12 == 0 else (float(count), "months")
    if not regular:
        odd = np.flatnonzero(np.abs(gaps - typical) > tolerance)
        where = f"{values[odd[0]]} to {values[odd[0] + 1]}"
        raise SpecError(
            [
                Problem(
                    "time",
                    f"irregular steps: {odd.size} of {gaps.size} differ from the usual "
                    f"{_spell(typical, bool(calendar_of(values)))}, first at index {odd[0] + 1} ({where})",
                    "one frame interval throughout",
                    "interpolate or select regular frames, or declare interval= and time_units= to "
                    "use the regular stretches only",
                )
            ]
        )
    if not calendar_of(values):
        return float(f"{float(values[-1] - values[0]) / gaps.size:.6g}"), ""
    for unit, seconds in DURATIONS.items():
        if typical % seconds == 0:
            return typical / seconds, unit
    return typical, "seconds"


def steps_between(times: Any, spec: Cadence) -> NDArray[np.float64]:
    """The T-1 distances between consecutive frames, counted in frame intervals: 1 everywhere in a proper
    series.

    0 is a repeated time, a negative number an unsorted one, 2 a missing frame. Months and years count
    calendar pages, so that a stamp at the middle of each month is regular.
    """
    values = as_values(times)
    if spec.calendar is None:
        gaps = np.diff(values.astype(np.float64)) / spec.interval
        noise = 4 * spacing(values) / spec.interval if values.size else 0.0
    elif spec.time_units in DURATIONS:
        gaps, noise = seconds_between(values) / (spec.interval * DURATIONS[spec.time_units]), 0.0
    elif spec.time_units == "months":
        gaps, noise = np.diff(months(values)) / spec.interval, 0.0
    else:
        gaps, noise = np.diff(months(values) // 12) / spec.interval, 0.0
    whole = np.round(gaps)
    return np.where(np.abs(gaps - whole) <= 1e-3 + noise, whole, gaps)


def lead_coordinate(spec: Cadence, steps: int) -> xr.DataArray:
    """Leads Δ, 2Δ, …, steps·Δ as the coordinate `lead_time`.

    timedelta64[s] (or finer) for a fixed duration in calendar time, encoded so that zarr and netCDF give it
    back as timedelta64; whole months or years, or a numeric time, stay numbers with a `units` attribute,
    since no duration can hold them.
    """
    if steps < 1:
        raise ValueError(f"found steps={steps}; wanted at least one lead")
    attrs = {"standard_name": "forecast_period", "long_name": "time since the forecast's start"}
    count = np.arange(1, steps + 1)
    if spec.calendar is not None and spec.time_units in DURATIONS:
        micro = round(spec.interval * DURATIONS[spec.time_units] * 1e6)
        unit, size = ("s", micro // 10**6) if micro % 10**6 == 0 else ("us", micro)
        lead = xr.DataArray(
            count * np.array(size, dtype=f"m8[{unit}]"), dims="lead_time", name="lead_time", attrs=attrs
        )
        # With these xarray writes integers and a `dtype` attribute, by which it decodes them again: since
        # 2025 units alone no longer do (pydata/xarray#10099), and a timedelta64 encoding dtype is read
        # back wrongly from zarr.
        lead.encoding = {"units": spec.time_units if unit == "s" else "microseconds", "dtype": "int64"}
        return lead
    values = count * spec.interval
    whole = spec.calendar is not None and float(spec.interval).is_integer()
    data = values.astype(np.int64) if whole else values.astype(np.float64)
    return xr.DataArray(data, dims="lead_time", name="lead_time", attrs=attrs | {"units": spec.time_units})


def valid_time(init_time: Any, leads: xr.DataArray, spec: Cadence) -> xr.DataArray:
    """The time each frame is valid for: init ⊕ lead, dims (init_time, lead_time) or (lead_time,) for one
    init.

    `leads` is what `lead_coordinate` returns. The type follows `init_time`: datetime64, cftime or number.
    """
    init = as_values(init_time)
    column = init.reshape(*init.shape, 1)
    if leads.dtype.kind == "m":
        values = add_duration(column, leads.values)
    elif spec.calendar is None:
        values = column + leads.values
    else:
        pages = leads.values * (12 if spec.time_units == "years" else 1)
        if not np.allclose(pages, np.round(pages)):
            raise ValueError(
                f"found an interval of {spec.interval} {spec.time_units}; wanted whole months, "
                "since calendars have no fractions of them. Usual fix: state the interval in days"
            )
        values = add_months(column, np.round(pages).astype(np.int64))
    attrs = {"standard_name": "time", "long_name": "valid time"}
    if spec.calendar is None:
        attrs["units"] = spec.time_units
    dims = ("init_time", "lead_time") if init.ndim else ("lead_time",)
    return xr.DataArray(values, dims=dims, name="valid_time", attrs=attrs)


def phase(times: Any) -> NDArray[np.float32]:
    """[sin, cos of the year's phase, sin, cos of the day's phase], float32, shape (*times.shape, 4).

    >>> phase(np.array(["2001-01-01T06:00"], dtype="M8[s]"))[0, 2:].round(3).tolist()
    [1.0, 0.0]
    """
    values = as_values(times)
    if calendar_of(values) is None:
        return np.zeros((*values.shape, 4), dtype=np.float32)
    year, day = fractions(values)
    angles = [
        np.sin(2 * np.pi * year),
        np.cos(2 * np.pi * year),
        np.sin(2 * np.pi * day),
        np.cos(2 * np.pi * day),
    ]
    return np.stack(angles, axis=-1).astype(np.float32)


def _spell(gap: float, calendar: bool) -> str:
    if not calendar:
        return f"{gap:g}"
    units: Sequence[tuple[str, float]] = list(DURATIONS.items())
    for unit, seconds in units:
        if gap >= seconds:
            return f"{gap / seconds:g} {unit}"
    return f"{gap:g} seconds"
