"""What bad input gets: one test a row of the table in the design, each asserting that the message names both sides."""

import pickle
import warnings

import cftime
import numpy as np
import pytest
import xarray as xr

from lapse.datasets.check import check, examine
from lapse.datasets.fields import to_tensor
from lapse.datasets.problem import SpecError, SpecWarning
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Axis, Grid

LAT, LON = np.array([-60.0, -30.0, 0.0, 30.0, 60.0]), np.arange(0.0, 360.0, 45.0)
TIMES = np.datetime64("2001-01-01", "s") + np.arange(6) * np.timedelta64(6, "h")
MASK = np.ones((5, 8), dtype=bool)
MASK[2, 3:5] = False


def dataset():
    rng = np.random.default_rng(0)
    t = (280 + 15 * rng.normal(size=(6, 5, 8))).astype(np.float32)
    sst = (18 + 3 * rng.normal(size=(6, 5, 8))).astype(np.float32)
    sst[:, ~MASK] = np.nan
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {"t": (dims, t, {"units": "K", "standard_name": "air_temperature"}), "sst": (dims, sst, {"units": "degC"})},
        coords={
            "time": TIMES,
            "lat": ("lat", LAT, {"units": "degrees_north"}),
            "lon": ("lon", LON, {"units": "degrees_east"}),
        },
    )


@pytest.fixture
def ds():
    return dataset()


SPEC = FieldSpec.infer(dataset(), ranges=True)
BOX = Grid((Axis("y", (0.0, 1000.0, 2000.0), "m"), Axis("x", tuple(np.arange(4) * 500.0), "m", True)))
NUMERIC = FieldSpec((Variable("u", "m s-1"),), BOX, 0.1, "s")


def numeric(frames=5, **attrs):
    x = np.random.default_rng(0).normal(size=(frames, 3, 4)).astype(np.float32)
    return xr.Dataset(
        {"u": (("time", "y", "x"), x, {"units": "m/s"})},
        coords={
            "time": ("time", np.arange(frames) * 0.1, {"units": "s"} | attrs),
            "y": ("y", [0.0, 1000.0, 2000.0], {"units": "m"}),
            "x": ("x", np.arange(4) * 500.0, {"units": "m"}),
        },
    )


def refused(ds, *words, spec=SPEC, count=1, **options):
    """The message of the SpecError, which must have `count` problems and every one of `words`."""
    with pytest.raises(SpecError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore", SpecWarning)
        check(ds, spec, **options)
    text = str(caught.value)
    for word in words:
        assert word in text, f"{word!r} not in {text}"
    assert len(caught.value.problems) == count, text
    for problem in caught.value.problems:
        assert problem.found and problem.wanted and problem.fix
    return text


def said(ds, *words, spec=SPEC, **options):
    """The canonical Dataset, whose history has every one of `words`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = check(ds, spec, **options)
    for word in words:
        assert word in out.attrs["history"], out.attrs["history"]
    return out


def warned(ds, *words, spec=SPEC, **options):
    """The canonical Dataset after one warning with every one of `words`; with `strict` the same is an error."""
    with pytest.warns(SpecWarning) as caught:
        out = check(ds, spec, **options)
    text = "\n".join(str(w.message) for w in caught)
    for word in words:
        assert word in text, f"{word!r} not in {text}"
    with pytest.raises(SpecError):
        check(ds, spec, strict=True, **options)
    return out


def same_numbers(out, ds):
    np.testing.assert_allclose(out["t"].sel(lat=30, lon=90), ds["t"].sel(lat=30, lon=90), rtol=1e-6)
    assert out["t"].dims == ("time", "lat", "lon")
    np.testing.assert_array_equal(out["lat"], LAT)
    np.testing.assert_array_equal(out["lon"], LON)


# nothing wrong


def test_good_data_pass_unchanged(ds):
    out = said(ds)
    xr.testing.assert_equal(out, ds[["t", "sst"]])
    assert "history" not in out.attrs
    assert list(out) == list(SPEC.names)


def test_history_is_appended_to(ds):
    ds.attrs["history"] = "made by hand"
    out = said(ds.isel(lat=slice(None, None, -1)), "made by hand\n", "lapse", "lat reversed to ascend")
    assert out.attrs["history"].startswith("made by hand\n")


# variables


def test_missing_variable(ds):
    refused(ds.drop_vars("sst"), "variable 'sst'", "found only t", "wanted it among the variables")


def test_missing_variable_under_another_name(ds):
    refused(ds.rename(t="t2m"), "variable 't'", "t2m", "ds.rename({'t2m': 't'})")


def test_extra_variables_are_ignored_and_said(ds):
    assert list(said(ds.assign(extra=ds["t"]), "ignored extra")) == ["t", "sst"]


def test_variables_come_in_the_order_of_the_spec(ds):
    assert list(said(ds[["sst", "t"]])) == ["t", "sst"]


def test_empty_dataset(ds):
    refused(xr.Dataset(), "no variables", "'t'", "'sst'", count=2)
    refused(ds.isel(time=slice(0, 0)), "dimension 'time'", "size 0", "at least one")


def test_not_a_dataset(ds):
    refused(ds["t"].values, "ndarray", "an xarray Dataset")
    refused(ds["t"].rename(None), "DataArray without a name", "an xarray Dataset")
    t_only = SPEC.replace(variables=SPEC.variables[:1], masks={})
    xr.testing.assert_equal(check(ds["t"], t_only)["t"], ds["t"])


# units


@pytest.mark.parametrize(
    ("units", "change"),
    [("degC", lambda k: k - 273.15), ("mK", lambda k: k * 1e3), ("degF", lambda k: k * 1.8 - 459.67)],
)
def test_convertible_units(ds, units, change):
    other = ds.assign(t=change(ds["t"].astype(float)).assign_attrs(units=units))
    out = said(other, f"t converted from {units} to K")
    np.testing.assert_allclose(out["t"], ds["t"], rtol=1e-5)
    assert out["t"].attrs["units"] == "K"


def test_the_same_units_spelt_otherwise(ds):
    ds["t"].attrs["units"] = "kelvin"
    assert said(ds)["t"].attrs["units"] == "K"


def test_inconvertible_units(ds):
    ds["t"].attrs["units"] = "Pa"
    refused(ds, "variable 't'", "units 'Pa'", "units 'K'")


def test_absent_units_and_plausible_values(ds):
    del ds["t"].attrs["units"]
    warned(ds, "variable 't'", "no units attribute", "units 'K'")


def test_absent_units_and_implausible_values(ds):
    celsius = ds.assign(t=ds["t"] - 273.15)
    celsius["t"].attrs = {}
    refused(celsius, "variable 't'", "without units, not plausible", "K with a mean near")


def test_units_under_another_attribute_are_read_and_said(ds):
    ds["t"].attrs = {"Unit": "K"}
    assert said(ds, "units of t read from its attribute 'Unit'")["t"].attrs == {"units": "K"}


# values


def test_nan_outside_the_mask(ds):
    ds["sst"][2, 1, 5] = np.nan
    ds["sst"][4, 0, 0] = np.nan
    where = ("{'time': 2, 'lat': 1, 'lon': 5}", "{'time': 4, 'lat': 0, 'lon': 0}")
    refused(ds, "variable 'sst'", "2 NaN in valid cells", *where, "none outside the static mask")


def test_numbers_under_the_mask_are_ignored_and_said(ds):
    out = said(ds.fillna(0.0), "values of sst under its mask ignored")
    assert np.isnan(out["sst"].values[:, ~MASK]).all()
    assert np.isfinite(out["sst"].values[:, MASK]).all()


def test_all_nan(ds):
    refused(ds.assign(sst=ds["sst"] * np.nan), "variable 'sst'", "NaN in every valid cell", "wanted numbers")


def test_inf(ds):
    ds["t"][3, 2, 1] = -np.inf
    refused(ds, "variable 't'", "1 infinite values", "{'time': 3, 'lat': 2, 'lon': 1}", "finite values")


def test_values_far_outside_the_training_range(ds):
    ds["t"][0, 0, 0] = 500.0
    warned(ds, "variable 't'", "to 500", "training range")


def test_absurd_values(ds):
    ds["t"][0, 0, 0] = 9.96921e36  # netCDF's fill value, not declared
    refused(ds, "variable 't'", "9.96921e+36", "near the training range")


def test_constant_field(ds):
    warned(ds.assign(t=xr.full_like(ds["t"], 280.0)), "variable 't'", "constant field (280", "a field that varies")


def test_negative_values_of_a_positive_variable(ds):
    ds["t"][0, 0, 0] = -1.0
    spec = SPEC.replace(variables={"t": {"kind": "positive", "minimum": None}})
    warned(ds, "positive variable", "from -1", "no negative values", spec=spec)


def test_integers_packed(ds):
    packed = ((ds["t"] - 280) / 0.01).round().astype(np.int16)
    packed.attrs = {"units": "K", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": np.int16(-32768)}
    out = said(ds.assign(t=packed), "t unpacked from int16")
    np.testing.assert_allclose(out["t"], ds["t"], atol=0.006)
    packed[1, 1, 1] = -32768
    refused(ds.assign(t=packed), "1 NaN in valid cells", "{'time': 1, 'lat': 1, 'lon': 1}")


def test_integers_plain(ds):
    out = said(ds.assign(t=ds["t"].round().astype(np.int32)), "t cast from int32")
    assert out["t"].dtype == np.float32
    np.testing.assert_array_equal(out["t"], ds["t"].round())


def test_what_is_no_number(ds):
    refused(ds.assign(t=ds["t"] > 280), "variable 't'", "bool values", "floating-point numbers")


def test_float64_is_rounded_and_said(ds):
    out = said(ds.astype(np.float64), "float64 rounded to float32")
    assert out["t"].dtype == np.float32


def test_dask_backed_data_stay_lazy(ds):
    ds["t"][3, 2, 1] = np.nan
    lazy = ds.chunk(time=2)
    refused(lazy, "{'time': 3, 'lat': 2, 'lon': 1}")
    out = said(lazy.fillna({"t": 280.0}).isel(lat=slice(None, None, -1)), "lat reversed")
    assert out["t"].chunks is not None


def test_values_need_not_be_read(ds):
    ds["t"][3, 2, 1] = np.nan
    assert "history" not in check(ds, SPEC, values=False).attrs


# grid


def test_wrong_resolution(ds):
    fine = ds.interp(lon=np.arange(0, 315.1, 22.5))
    refused(fine, "axis 'lon'", "15 values from 0 to 315", "8 values from 0 to 315", "ds.sel(lon=")
    other = ds.interp(lat=np.linspace(-60, 60, 4))
    refused(other, "axis 'lat'", "4 values from -60 to 60", "5 values from -60 to 60", "xESMF", "ds.interp(lat=")


def test_shifted_grid_of_the_right_size(ds):
    refused(ds.assign_coords(lat=LAT + 10), "axis 'lat'", "from -50 to 70", "from -60 to 60")


def test_descending_latitude(ds):
    same_numbers(said(ds.isel(lat=slice(None, None, -1)), "lat reversed to ascend"), ds)


def test_shifted_longitude(ds):
    west = ds.assign_coords(lon=(ds["lon"] + 180) % 360 - 180).sortby("lon")
    assert west["lon"][0] == -180
    same_numbers(said(west, "lon shifted by multiples of 360 degrees to start at 0"), ds)


def test_repeated_end_point(ds):
    closed = xr.concat([ds, ds.isel(lon=[0]).assign_coords(lon=[360.0])], dim="lon")
    refused(closed, "axis 'lon'", "9 values from 0 to 360", "8 values from 0 to 315", "isel(lon=slice(0, -1))")


def test_float32_coordinates(ds):
    third = np.linspace(0, 1, 4) / 3
    spec = NUMERIC.replace(grid=Grid((BOX.axes[0], Axis("x", tuple(third), "m", True))))
    same = numeric().assign_coords(x=("x", third.astype(np.float32), {"units": "m"}))
    np.testing.assert_array_equal(said(same, spec=spec)["x"], third)


def test_coordinates_in_other_units():
    km = numeric().assign_coords(x=("x", np.arange(4) * 0.5, {"units": "km"}))
    np.testing.assert_allclose(said(km, "x converted from km to m", spec=NUMERIC)["x"], np.arange(4) * 500.0)
    wrong = numeric().assign_coords(x=("x", np.arange(4) * 500.0, {"units": "K"}))
    refused(wrong, "axis 'x'", "units 'K'", "units 'm'", spec=NUMERIC)


def test_no_coordinate():
    warned(numeric().drop_vars("x"), "axis 'x'", "no coordinate", "4 values from 0 to 1500 m", spec=NUMERIC)
    refused(numeric().drop_vars("x").isel(x=slice(3)), "3 cells without", "4 values", spec=NUMERIC)


def test_transposed(ds):
    same_numbers(said(ds.transpose("lon", "time", "lat"), "t transposed to (time, lat, lon)"), ds)


def test_other_names_of_dimensions(ds):
    renamed = ds.rename(lat="latitude", lon="rows", time="t0")
    out = said(renamed, "latitude renamed to lat", "rows renamed to lon", "t0 renamed to time", dims={"time": "t0"})
    same_numbers(out, ds)


def test_unknown_dimension(ds):
    nameless = ds.drop_vars("lon").rename(lon="rows")
    refused(
        nameless, "dimension 'rows'", "neither CF attributes nor a known name", "axis 'lon'", "lon (8 values)", count=2
    )
    refused(ds.expand_dims(wave=3), "dimension 'wave' (size 3)", "ds.isel(wave=0)")
    assert "wave" not in said(ds.expand_dims(wave=1), "wave, of size one, dropped").dims


def test_levels_that_the_spec_does_not_have(ds):
    refused(ds.expand_dims(level=[500, 850]), "dimension 'level'", "size 2", "time and lat, lon")


# time


def test_too_little_history(ds):
    refused(ds.isel(time=slice(2)), "found 2 frame(s)", "at least 4 frames, 6 hours apart", history=4)


def test_unsorted_times(ds):
    refused(
        ds.isel(time=[0, 2, 1, 3]), "unsorted times: 2001-01-01T12:00:00 then", "increasing times", "sortby('time')"
    )


def test_repeated_times(ds):
    refused(ds.isel(time=[0, 1, 1, 2]), "1 repeated time(s)", "index 2", "strictly increasing", "drop_duplicates")


def test_irregular_times(ds):
    refused(
        ds.isel(time=[0, 1, 3, 4]), "irregular times: 1 of 3", "2 intervals from 2001-01-01T06", "every frame 6 hours"
    )
    assert said(ds.isel(time=[0, 1, 3, 4]), gaps=True).sizes["time"] == 4
    shifted = ds.assign_coords(time=TIMES + np.array([0, 0, 2, 2, 2, 2]) * np.timedelta64(1, "h"))
    refused(shifted, "irregular", "1.33333 intervals", gaps=True)


def test_wrong_interval(ds):
    hourly = ds.assign_coords(time=TIMES[0] + np.arange(6) * np.timedelta64(1, "h"))
    refused(
        hourly, "frames 1 hours apart", "frames 6 hours apart", "every 6th frame: ds.isel(time=slice(None, None, 6))"
    )
    refused(ds.isel(time=slice(None, None, 2)), "frames 12 hours apart", "frames 6 hours apart", "train on this one")


def test_missing_time_stamp(ds):
    times = TIMES.copy()
    times[3] = "NaT"
    refused(ds.assign_coords(time=times), "a missing time at index 3", "a time for every frame")


def test_numbers_for_dates_and_dates_for_numbers(ds):
    bare = ds.assign_coords(time=np.arange(6) * 0.25 + 37255)
    refused(bare, "numbers from 37255", "dates (proleptic_gregorian)", "time_units='days since 1900-01-01'")
    told = ds.assign_coords(time=("time", np.arange(6) * 0.25, {"units": "days since 2001-01-01"}))
    np.testing.assert_array_equal(said(told)["time"], TIMES)
    dated = numeric().assign_coords(time=TIMES[:5])
    refused(dated, "dates from 2001-01-01", "numbers in 's'", spec=NUMERIC)


def test_numeric_times_in_other_units():
    ms = numeric().assign_coords(time=("time", np.arange(5) * 100.0, {"units": "ms"}))
    np.testing.assert_allclose(said(ms, "time converted from ms to s", spec=NUMERIC)["time"], np.arange(5) * 0.1)
    refused(numeric(units="m"), "times in 'm'", "times in 's'", spec=NUMERIC)


def test_other_calendar(ds):
    other = ds.assign_coords(time=[cftime.DatetimeNoLeap(2001, 1, 1 + k // 4, 6 * (k % 4)) for k in range(6)])
    warned(other, "calendar 'noleap'", "calendar 'proleptic_gregorian'")


def test_one_frame_without_a_time_dimension(ds):
    assert said(ds.isel(time=2), "time dimension of one frame added")["time"].values == TIMES[2:3]
    refused(ds.isel(time=2, drop=True), "1 frame(s) without a time coordinate", "times in hours")
    out = warned(numeric().drop_vars("time"), "5 frame(s) without a time coordinate", "times in s", spec=NUMERIC)
    np.testing.assert_allclose(out["time"], np.arange(5) * 0.1)


# more dimensions


def test_members_already_present(ds):
    many = ds.expand_dims(number=3)
    refused(many, "dimension 'number'", "3 members already present", "wanted none", "members=True")
    out = said(many, "number renamed to member", members=True)
    assert out["t"].dims == ("member", "time", "lat", "lon")
    assert to_tensor(out, SPEC).shape == (3, 6, 2, 5, 8)


def test_trajectories_are_kept(ds):
    out = said(ds.expand_dims(trajectory=2).transpose("time", ..., "trajectory"))
    assert out["t"].dims == ("trajectory", "time", "lat", "lon")


def test_forecasts_are_no_series(ds):
    forecast = ds.rename(time="step").assign_coords(step=np.arange(6))
    refused(forecast, "dimension 'step'", "6 values of lead_time", "a series of frames along time")


# all at once


def test_every_problem_at_once(ds):
    bad = ds.drop_vars("sst").isel(time=[0, 2, 1], lat=slice(3))
    bad["t"].attrs["units"] = "Pa"
    words = ("'sst'", "axis 'lat'", "unsorted", "units 'Pa'")
    refused(bad, "4 problems:", *words, "  4. ", count=4)
    bad = ds.isel(time=[0, 1, 1])
    bad["t"][0, 0, 0], bad["sst"][1, 0, 0] = np.inf, np.nan
    refused(bad, "infinite", "NaN in valid cells", "repeated", count=3, history=3)


def test_examine_returns_what_check_raises(ds):
    out, findings = examine(ds.drop_vars("sst"), SPEC)
    assert out is None and len(findings.problems) == 1
    out, findings = examine(ds, SPEC)
    assert out is not None and not findings.problems


def test_errors_travel_between_processes(ds):
    with pytest.raises(SpecError) as caught:
        check(ds.drop_vars("sst"), SPEC)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.problems == caught.value.problems


def test_canonical_data_can_be_written(ds, tmp_path):
    """Packing and chunks of the source must not be applied to converted numbers."""
    celsius = ds.assign(t=(ds["t"].astype(float) - 273.15).assign_attrs(units="degC"))
    packing = {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768, "chunksizes": (2, 5, 8)}
    celsius.to_netcdf(tmp_path / "packed.nc", encoding={"t": packing})
    out = check(xr.open_dataset(tmp_path / "packed.nc"), SPEC)
    out.to_netcdf(tmp_path / "out.nc")
    np.testing.assert_allclose(xr.open_dataset(tmp_path / "out.nc")["t"], ds["t"], atol=0.006)
