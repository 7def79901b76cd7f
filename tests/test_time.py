"""Leads, valid times and phases: against the calendar itself, and through both file formats and back."""

import cftime
import numpy as np
import pytest
import xarray as xr

from lapse.datasets.frames import Clock
from lapse.datasets.problem import SpecError
from lapse.datasets.time import calendar_of, decode, interval_of, lead_coordinate, phase, steps_between, valid_time


def dates(*texts, unit="s"):
    return np.array(texts, dtype=f"M8[{unit}]")


def test_phase_is_the_fraction_of_year_and_day():
    # 2001 has 365 days: a quarter of the year is 91.25 days, 2 April 06:00.
    angles = phase(dates("2001-01-01", "2001-04-02T06:00", "2001-07-02T12:00"))
    assert angles.dtype == np.float32
    np.testing.assert_allclose(angles[0], [0, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(angles[1], [1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(angles[2], [0, -1, 0, -1], atol=1e-6)


def test_phase_knows_leap_years_and_other_calendars():
    leap = phase(dates("2004-07-02"))  # day 183 of 366
    np.testing.assert_allclose(leap[0, :2], [0, -1], atol=1e-6)
    short = phase(np.array([cftime.Datetime360Day(2004, 7, 1), cftime.DatetimeNoLeap(2004, 7, 2, 12)]))
    np.testing.assert_allclose(short[:, :2], [[0, -1], [0, -1]], atol=1e-6)
    np.testing.assert_allclose(short[:, 2:], [[0, 1], [0, -1]], atol=1e-6)


def test_phase_has_the_same_value_in_every_resolution_and_beyond_nanoseconds():
    far = [phase(dates("2600-03-01T18:00", unit=u)) for u in ("s", "ms", "us")]
    near = phase(dates("2200-03-01T18:00", unit="ns"))
    np.testing.assert_array_equal(far[0], far[1])
    np.testing.assert_array_equal(far[0], far[2])
    np.testing.assert_allclose(near[0, 2:], [-1, 0], atol=1e-6)
    assert not phase(np.arange(6.0).reshape(2, 3)).any()
    assert phase(np.arange(6.0).reshape(2, 3)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="NaT"):
        phase(np.array(["NaT"], dtype="M8[s]"))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.datetime64("2013-01-01", "ns") + np.arange(9) * np.timedelta64(6, "h"), (6.0, "hours")),
        (np.datetime64("2013-01-01", "s") + np.arange(9) * np.timedelta64(1, "D"), (1.0, "days")),
        (np.datetime64("2013-01-01", "s") + np.arange(9) * np.timedelta64(5, "m"), (5.0, "minutes")),
        (np.datetime64("2013-01-01", "ms") + np.arange(9) * np.timedelta64(250, "ms"), (0.25, "seconds")),
        (np.arange("2010-01", "2012-01", dtype="M8[M]").astype("M8[s]"), (1.0, "months")),
        (dates("2001-07-01", "2001-08-01"), (1.0, "months")),  # 31 days, but a month
        (dates("2001-01-16T12", "2001-02-15", "2001-03-16T12", "2001-04-16"), (1.0, "months")),  # mid-month stamps
        (dates("2001-01-01", "2002-01-01", "2003-01-01"), (1.0, "years")),
        (dates("2001-01-01", "2001-12-31"), (364.0, "days")),
        (np.array([cftime.DatetimeNoLeap(y, 7, 1) for y in range(1900, 1905)]), (1.0, "years")),
        (np.array([cftime.Datetime360Day(2000, 2, d, 6) for d in range(26, 31)]), (1.0, "days")),
        (np.arange(500) * 0.1, (0.1, "")),
        ((np.arange(500) * 0.1).astype(np.float32), (0.1, "")),
    ],
)
def test_interval(times, expected):
    value, unit = interval_of(times)
    assert unit == expected[1]
    assert value == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (dates("2001-01-01"), ["1 frame", "two or more", "interval="]),
        (dates("2001-01-01", "2001-01-03", "2001-01-02"), ["unsorted", "increasing", "sortby"]),
        (dates("2001-01-01", "2001-01-01", "2001-01-02"), ["repeated", "increasing", "drop_duplicates"]),
        (dates("2001-01-01", "2001-01-02", "2001-01-04", "2001-01-05"), ["1 of 3", "1 days", "2001-01-02"]),
    ],
)
def test_interval_refuses_and_says_why(times, words):
    with pytest.raises(SpecError) as error:
        interval_of(times)
    for word in words:
        assert word in str(error.value)


def test_steps_count_intervals():
    hours = dates("2001-01-01T00", "2001-01-01T06", "2001-01-01T18", "2001-01-01T18", "2001-01-01T12")
    assert steps_between(hours, Clock(6.0, "hours", "standard")).tolist() == [1, 2, 0, -1]
    months = dates("2001-01-16", "2001-02-15", "2001-05-16")
    assert steps_between(months, Clock(1.0, "months", "standard")).tolist() == [1, 3]
    drifting = dates("1890-07-11", "1891-07-11", "1892-07-10")
    assert steps_between(drifting, Clock(1.0, "years", "standard")).tolist() == [1, 1]
    # float32 times late in a run: 49.9 - 49.8 is not 0.1 to more than five digits.
    assert (steps_between((np.arange(500) * 0.1).astype(np.float32), Clock(0.1, "s", None)) == 1).all()
    assert steps_between(np.array([0.0, 0.25]), Clock(0.1, "s", None))[0] == pytest.approx(2.5)


def test_valid_time_of_fixed_durations():
    spec = Clock(6.0, "hours", "standard")
    init = dates("2000-02-28T18:00", "2000-12-31T18:00")
    valid = valid_time(init, lead_coordinate(spec, 2), spec)
    assert valid.dims == ("init_time", "lead_time")
    np.testing.assert_array_equal(valid, [dates("2000-02-29", "2000-02-29T06"), dates("2001-01-01", "2001-01-01T06")])
    assert valid_time(init[0], lead_coordinate(spec, 2), spec).dims == ("lead_time",)
    fine = Clock(0.25, "seconds", "standard")
    assert valid_time(dates("2000-01-01"), lead_coordinate(fine, 2), fine).values[0, 0] == np.datetime64(
        "2000-01-01T00:00:00.25"
    )
    late = valid_time(np.array([cftime.DatetimeNoLeap(2000, 2, 28, 18)]), lead_coordinate(spec, 1), spec)
    assert late.values[0, 0] == cftime.DatetimeNoLeap(2000, 3, 1)


def test_valid_time_of_months_and_years_follows_the_calendar():
    spec = Clock(1.0, "months", "standard")
    leads = lead_coordinate(spec, 13)
    assert leads.attrs["units"] == "months"
    valid = valid_time(dates("2000-01-31T06"), leads, spec)[0]
    assert valid.values[0] == np.datetime64("2000-02-29T06")  # clipped to the month's end
    assert valid.values[1] == np.datetime64("2000-03-31T06")
    assert valid.values[12] == np.datetime64("2001-02-28T06")
    years = Clock(1.0, "years", "noleap")
    old = np.array([cftime.DatetimeNoLeap(1999, 12, 31)])
    assert valid_time(old, lead_coordinate(years, 2), years).values[0, 1] == cftime.DatetimeNoLeap(2001, 12, 31)
    months = Clock(1.0, "months", "noleap")
    assert valid_time(old, lead_coordinate(months, 2), months).values[0, 1] == cftime.DatetimeNoLeap(2000, 2, 28)
    with pytest.raises(ValueError, match=r"0\.5 months.*whole months"):
        half = Clock(0.5, "months", "standard")
        valid_time(dates("2000-01-01"), lead_coordinate(half, 1), half)


def test_numeric_leads_and_times():
    spec = Clock(0.5, "s", None)
    leads = lead_coordinate(spec, 3)
    np.testing.assert_allclose(leads, [0.5, 1.0, 1.5])
    assert leads.attrs == {"standard_name": "forecast_period", "long_name": leads.attrs["long_name"], "units": "s"}
    valid = valid_time(np.array([10.0]), leads, spec)
    np.testing.assert_allclose(valid, [[10.5, 11.0, 11.5]])
    assert valid.attrs["units"] == "s"
    with pytest.raises(ValueError, match="steps=0"):
        lead_coordinate(spec, 0)


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
@pytest.mark.parametrize(
    "spec",
    [
        Clock(6.0, "hours", "standard"),
        Clock(5.0, "minutes", "standard"),
        Clock(0.25, "seconds", "standard"),
        Clock(1.0, "months", "standard"),
        Clock(0.1, "s", None),
    ],
    ids=str,
)
def test_leads_survive_two_round_trips(tmp_path, kind, spec):
    lead = lead_coordinate(spec, 3)
    ds = xr.Dataset({"u": ("lead_time", np.zeros(3))}, coords={"lead_time": lead})
    for name in ("first", "second"):
        path = tmp_path / f"{name}.{kind}"
        if kind == "zarr":
            ds.to_zarr(path, zarr_format=3, consolidated=False)
            ds = xr.open_dataset(path, engine="zarr", consolidated=False)
        else:
            ds.to_netcdf(path)
            ds = xr.open_dataset(path)
        assert ds["lead_time"].dtype.kind == lead.dtype.kind
        np.testing.assert_array_equal(ds["lead_time"], lead)
        assert ds["lead_time"].attrs["standard_name"] == "forecast_period"
        if lead.dtype.kind != "m":
            assert ds["lead_time"].attrs["units"] == spec.time_units


def test_decode_reads_bare_numbers_as_dates():
    bare = xr.DataArray([37255.0, 37256.5], dims="time", name="time", coords={"time": [37255.0, 37256.5]})
    read = decode(bare, "days since 1900-01-01")
    np.testing.assert_array_equal(read, dates("2002-01-01", "2002-01-02T12"))
    other = decode(bare, "days since 1900-01-01", "noleap")
    assert calendar_of(other) == "noleap"
    assert calendar_of(read) == "proleptic_gregorian"
    assert calendar_of(bare) is None
