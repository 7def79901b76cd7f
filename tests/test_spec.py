"""Specs: what is read off a Dataset, what is asked back, and that nothing is lost in JSON."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lapse.datasets.problem import Problem
from lapse.datasets.scan import scan
from lapse.datasets.spec import FieldSpec, SpecError, Variable
from lapse.datasets.units import conversion
from lapse.physics.grid import Axis, Grid

TIMES = np.datetime64("2001-01-01", "s") + np.arange(6) * np.timedelta64(6, "h")


def globe(**variables):
    """Wind and temperature on a 30 x 60 degree globe, six frames, six hours apart, latitude descending."""
    rng = np.random.default_rng(0)
    dims = ("time", "lat", "lon")

    def field(**attrs):
        return (dims, rng.normal(size=(6, 5, 6)), attrs)

    data = {
        "u": field(units="m s-1", standard_name="eastward_wind"),
        "v": field(units="m s-1", standard_name="northward_wind"),
        "t": field(units="K", standard_name="air_temperature", long_name="Temperature"),
    }
    coords = {
        "time": TIMES,
        "lat": ("lat", np.linspace(60, -60, 5), {"units": "degrees_north"}),
        "lon": ("lon", np.arange(0.0, 360.0, 60.0), {"units": "degrees_east"}),
    }
    return xr.Dataset(data | variables, coords)


def box(**options):
    shape = options.get("shape", (4, 3, 4))
    return xr.Dataset(
        {"w": (("time", "y", "x")[-len(shape) :], np.random.default_rng(0).normal(size=shape), {"units": "s-1"})},
        coords={"time": ("time", np.arange(shape[0]) * 0.5, {"units": "s"})},
    )


def asked(ds, *words, count=1, **options):
    with pytest.raises(SpecError) as caught:
        FieldSpec.infer(ds, **options)
    text = str(caught.value)
    for word in words:
        assert word in text, f"{word!r} not in {text}"
    assert len(caught.value.problems) == count, text


# reading


def test_a_globe_is_read_off_its_metadata():
    spec = FieldSpec.infer(globe())
    assert spec.names == ("u", "v", "t") and spec.shape == (3, 5, 6)
    assert spec["t"] == Variable("t", "K", standard_name="air_temperature", long_name="Temperature")
    assert (spec["u"].kind, spec["u"].component) == ("vector", "lon")
    assert (spec["v"].kind, spec["v"].component) == ("vector", "lat")
    assert spec.groups == ((0, 1), (2,))
    assert spec.grid.axes[0] == Axis("lat", tuple(np.linspace(-60, 60, 5)), "degrees_north")
    assert spec.grid.axes[1].periodic
    assert (spec.interval, spec.time_units, spec.calendar) == (6.0, "hours", "proleptic_gregorian")
    assert "lat reversed" in spec.attrs["notes"] and "taken as periodic" in spec.attrs["notes"]
    assert spec.masks == {} and spec.mask_tensor().all() and spec.mask_tensor().shape == (3, 5, 6)


def test_periodicity_is_geometry_declaration_or_nothing():
    assert not FieldSpec.infer(globe(), periodic={"lon": False}).grid.axes[1].periodic
    assert not FieldSpec.infer(globe().isel(lon=slice(4))).grid.axes[1].periodic
    plane = box().assign_coords(x=np.arange(4.0), y=np.arange(3.0))
    assert FieldSpec.infer(plane).grid.periodic == (False, False)
    assert FieldSpec.infer(plane, periodic={"x": True}).grid.periodic == (False, True)
    plane["y"].attrs["periodic"] = "true"
    assert FieldSpec.infer(plane).grid.periodic == (True, False)
    asked(plane, "periodic['z']", "no such axis", "one of y, x", periodic={"z": True})
    asked(plane.assign_coords(x=[0, 1, 2, 9.0]), "coordinate 'x'", "evenly spaced", periodic={"x": True})


def test_longitudes_that_jump_or_close():
    jumping = globe().assign_coords(lon=[0.0, 60, 120, -180, -120, -60])
    spec = FieldSpec.infer(jumping)
    assert spec.grid.axes[1].coordinates == (0, 60, 120, 180, 240, 300) and spec.grid.axes[1].periodic
    closed = globe().assign_coords(lon=np.linspace(0, 360, 6))
    asked(closed, "the end point twice (0 and 360", "each meridian once", "isel(lon=slice(0, -1))")


def test_ranges_are_area_weighted_moments():
    ds = globe()
    spec = FieldSpec.infer(ds, ranges=True)
    weights = np.cos(np.deg2rad(ds["lat"]))
    t = ds["t"].weighted(weights)
    assert spec["t"].mean == pytest.approx(float(t.mean()), rel=1e-6)
    assert spec["t"].std == pytest.approx(float(t.std()), rel=1e-6)
    assert spec["t"].minimum == pytest.approx(float(ds["t"].min()), rel=1e-6)
    assert spec["t"].maximum == pytest.approx(float(ds["t"].max()), rel=1e-6)
    assert FieldSpec.infer(ds)["t"].mean is None


def test_scan_does_not_depend_on_blocks(monkeypatch):
    array = globe()["t"].expand_dims(trajectory=3) * xr.DataArray([1.0, 2.0, -3.0], dims="trajectory") + 100
    whole = scan(array, ("lat", "lon"))
    monkeypatch.setattr("lapse.datasets.scan.blocks.__defaults__", (1,))
    pieces = scan(array, ("lat", "lon"))
    assert whole.frames == pieces.frames == 18
    assert pieces.mean == pytest.approx(array.values.mean(), rel=1e-12)
    assert pieces.std == pytest.approx(array.values.std(), rel=1e-12) == whole.std


def test_static_masks_and_holes():
    ds = globe()
    land = np.zeros((5, 6), dtype=bool)
    land[1, 2:4] = True
    masked = ds.assign(t=ds["t"].where(~xr.DataArray(land, dims=("lat", "lon"))))
    spec = FieldSpec.infer(masked)
    assert set(spec.masks) == {"t"}
    np.testing.assert_array_equal(spec.masks["t"], ~land[::-1])  # the mask is turned round with the latitude
    assert (spec.mask_tensor()[2].numpy() == spec.masks["t"]).all() and spec.mask_tensor()[0].all()
    masked["t"][3, 0, 0] = np.nan
    asked(masked, "variable 't'", "come and go in 1 of 30 cells", "static mask")
    asked(ds.assign(t=ds["t"] * np.nan), "variable 't'", "NaN in every cell", "numbers")
    ds["t"][2, 1, 0] = np.inf
    asked(ds, "variable 't'", "1 infinite values, first at {'time': 2,", "wanted none")


def test_kinds():
    spec = FieldSpec.infer(globe(), kinds={"t": "positive", "u": "scalar"})
    assert [v.kind for v in spec.variables] == ["scalar", "scalar", "positive"]  # a component alone is no vector
    plane = box().assign(v=box()["w"], q=box()["w"])
    spec = FieldSpec.infer(plane, kinds={"w": "vector:y", "v": ("vector", "x")})
    assert spec.groups == ((0, 1), (2,)) and spec["w"].component == "y"
    asked(plane, "kinds['w']", "'vector:z'", "one of y, x", kinds={"w": "vector:z"})
    asked(plane, "kinds['p']", "no such variable", "one of w, v, q", kinds={"p": "positive"})


def test_which_variables():
    static = globe(orography=(("lat", "lon"), np.zeros((5, 6))), flag=(("time", "lat", "lon"), np.full((6, 5, 6), "a")))
    assert FieldSpec.infer(static).names == ("u", "v", "t")
    assert "left out: orography, flag" in FieldSpec.infer(static).attrs["notes"]
    assert FieldSpec.infer(static, variables=["t"]).names == ("t",)
    asked(static, "variable 'q'", "not in the Dataset", "u, v, t", variables=["q"])
    asked(xr.Dataset(), "no variables", "at least one numeric variable")
    asked(static, "variable 'orography'", "no dimension time", "every dimension", variables=["t", "orography"])
    asked(globe().isel(lat=slice(0)), "dimension 'lat'", "size 0", "at least one value")


def test_units_can_be_told():
    ds = globe()
    del ds["t"].attrs["units"]
    assert FieldSpec.infer(ds)["t"].units is None
    assert FieldSpec.infer(ds, units={"t": "K"})["t"].units == "K"


# dimensions


def test_names_are_recognised_by_attributes_before_letters():
    odd = globe().rename(time="t0", lat="a", lon="b")
    spec = FieldSpec.infer(odd)  # datetimes, degrees_north, degrees_east
    assert spec.grid.names == ("a", "b")
    assert spec["u"].component == "b"


def test_unknown_and_ambiguous_dimensions_are_asked_about():
    plane = box(shape=(4, 3, 4)).rename(y="rows", x="cols")
    asked(plane, "dimension 'rows' (size 3)", "dimension 'cols' (size 4)", "dims={'x': 'rows'}", count=2)
    spec = FieldSpec.infer(plane, dims={"y": "rows", "x": "cols"})
    assert spec.grid.names == ("y", "x") and spec.dims == {"y": ("rows",), "x": ("cols",)}
    twice = globe().expand_dims(latitude=2)
    asked(twice, "role 'latitude'", "several candidates", "'latitude'", "'lat'", "one dimension")
    asked(plane, "dims['y']", "no dimension 'lines'", "rows", count=3, dims={"y": "lines"})


def test_staggered_grids_are_refused_and_doubled_ones_merged():
    x = np.arange(4.0)
    ds = xr.Dataset(
        {"u": (("time", "x_u"), np.ones((3, 4))), "v": (("time", "x_v"), np.ones((3, 4)))},
        coords={"time": np.arange(3), "x_u": x, "x_v": x},
    )
    names = {"x": ("x_u", "x_v")}
    spec = FieldSpec.infer(ds, dims=names)
    assert spec.grid.axes[0].coordinates == tuple(x) and spec.shape == (2, 4)
    asked(ds.assign_coords(x_v=x + 0.5), "'x_u' and 'x_v'", "0.5", "no staggered grid", dims=names)


def test_levels_are_a_decision():
    levels = globe().expand_dims(level=[500, 850], axis=1)
    levels["level"].attrs["units"] = "hPa"
    asked(levels, "dimension 'level'", "2 levels", "split='level'", "dims={'level': 'level'}")
    split = FieldSpec.infer(levels, split="level")
    assert split.names == ("u_500", "u_850", "v_500", "v_850", "t_500", "t_850")
    assert split.groups == ((0, 2), (1, 3), (4,), (5,))
    assert split["t_850"].long_name == "Temperature at level 850 hPa"
    assert FieldSpec.infer(levels, dims={"level": "level"}).grid.names == ("level", "lat", "lon")
    assert FieldSpec.infer(levels.isel(level=[0])).grid.names == ("lat", "lon")
    profile = globe().isel(lat=0, lon=0, drop=True).expand_dims(height=[1.0, 2.0, 4.0], axis=1)
    assert FieldSpec.infer(profile).grid.names == ("height",)
    asked(levels, "dimension 'plev'", "no such dimension", "level", split="plev")


def test_members_and_forecasts_are_asked_about():
    many = globe().expand_dims(number=3)
    asked(many, "dimension 'number'", "a member of size 3", "dims={'trajectory': 'number'}")
    assert FieldSpec.infer(many, dims={"trajectory": "number"}) == FieldSpec.infer(globe()).replace(
        dims={"trajectory": ("number",)}
    )
    asked(globe().rename(time="lead_time"), "dimension 'lead_time'", "a series of frames", count=2)


# time


def test_what_the_times_do_not_tell_is_asked():
    asked(globe().isel(time=[0]), "1 frame(s)", "two or more", "interval=6")
    single = FieldSpec.infer(globe().isel(time=[0]), interval=6, time_units="hours")
    assert (single.interval, single.calendar) == (6.0, "proleptic_gregorian")
    asked(globe().isel(time=0, drop=True), "no time dimension", "interval=")
    asked(box().drop_vars("time"), "no time coordinate", "interval=0.1")
    asked(globe().isel(time=[0, 1, 3, 4]), "irregular steps: 1 of 3", "declare interval=")
    gaps = FieldSpec.infer(globe().isel(time=[0, 1, 3, 4]), interval=6, time_units="hours")
    assert gaps.interval == 6.0
    asked(globe(), "frames 0.5 times 12 hours apart", "some frames 12 hours", interval=12, time_units="hours")
    asked(globe(), "without time_units", "both", interval=6)
    asked(globe(), "'fortnights'", "days, hours", time_units="fortnights")


def test_numeric_time():
    spec = FieldSpec.infer(box())
    assert (spec.interval, spec.time_units, spec.calendar) == (0.5, "s", None)
    assert FieldSpec.infer(box(), time_units="h").time_units == "h"
    bare = box().assign_coords(time=np.arange(4) + 37255)
    assert FieldSpec.infer(bare).calendar is None
    spec = FieldSpec.infer(bare, time_units="days since 1900-01-01")
    assert (spec.interval, spec.time_units, spec.calendar) == (1.0, "days", "proleptic_gregorian")
    noleap = FieldSpec.infer(bare, time_units="days since 1900-01-01", calendar="noleap")
    assert noleap.calendar == "noleap"
    bare["time"].attrs["Unit"] = "days since 1900-1-1"
    asked(bare, "bare numbers from 37255", "time_units='days since 1900-1-1'")


def test_units_of_the_interval_can_be_chosen():
    assert FieldSpec.infer(globe(), time_units="minutes").interval == 360.0
    asked(globe(), "6 hours apart, time_units='months'", "interval in months", time_units="months")


def test_equation_and_parameters_are_read_from_attributes_of_simulations():
    ds = box().assign_attrs(equation="kolmogorov", parameters='{"viscosity": 0.001}')
    spec = FieldSpec.infer(ds)
    assert (spec.equation, spec.parameters) == ("kolmogorov", {"viscosity": 0.001})
    assert FieldSpec.infer(ds, equation="other", parameters={}).parameters == {}
    assert FieldSpec.infer(box().assign_attrs(equation="w_t + u.grad(w) = 0")).equation is None


# the object


def test_json_round_trip_and_fingerprint():
    ds = globe()
    spec = FieldSpec.infer(ds.where(ds["lat"] < 40), ranges=True, parameters={"nu": 1e-3}, kinds={"t": "positive"})
    text = json.dumps(spec.to_dict(), allow_nan=False)
    again = FieldSpec.from_dict(json.loads(text))
    assert again == spec and again.fingerprint() == spec.fingerprint() and hash(again) == hash(spec)
    np.testing.assert_array_equal(again.masks["u"], spec.masks["u"])
    other = spec.replace(interval=12.0)
    assert other != spec and other.fingerprint() != spec.fingerprint()
    with pytest.raises(SpecError, match=r"format_version 99.*format_version 1"):
        FieldSpec.from_dict(spec.to_dict() | {"format_version": 99})


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_masks_of_any_pattern_survive(mask):
    mask[0, 0] = True
    grid = Grid(tuple(Axis(n, tuple(map(float, range(s)))) for n, s in zip("yx", mask.shape, strict=True)))
    spec = FieldSpec((Variable("a"),), grid, 1.0, "s", masks={"a": mask})
    np.testing.assert_array_equal(FieldSpec.from_dict(spec.to_dict()).masks["a"], mask)


def test_replace_edits_variables_by_name():
    spec = FieldSpec.infer(globe())
    edited = spec.replace(variables={"t": {"kind": "positive"}}, equation="none")
    assert edited["t"] == dataclasses.replace(spec["t"], kind="positive") and edited["u"] == spec["u"]
    assert spec["t"].kind == "scalar"
    with pytest.raises(KeyError, match=r"'q'.*u, v, t"):
        spec.replace(variables={"q": {}})


def test_contradictions_are_refused_together():
    spec = FieldSpec.infer(globe())
    with pytest.raises(SpecError) as caught:
        spec.replace(
            interval=-1.0,
            time_units="weeks",
            variables={"u": {"component": "z"}},
            masks={"q": np.ones((5, 6), bool), "t": np.ones((2, 2), bool), "v": np.zeros((5, 6), bool)},
        )
    assert len(caught.value.problems) == 6
    for word in ("interval -1", "'weeks'", "component 'z'", "mask 'q'", "(2, 2)", "(5, 6)", "no valid cell"):
        assert word in str(caught.value)
    with pytest.raises(SpecError, match="no variables"):
        spec.replace(variables=())


def test_the_table_has_everything():
    ds = globe()
    text = str(FieldSpec.infer(ds.where(ds["lat"] < 40), ranges=True, equation="none", parameters={"nu": 0.25}))
    for word in ("3 variable(s)", "5 x 6 cells", "6 hours apart", "vector along lon", "24 (80.0 %)", "K", "nu = 0.25"):
        assert word in text
    assert f"{float(ds['t'].where(ds['lat'] < 40).max()):.4g}" in text
    assert max(map(len, text.splitlines())) < 120
    assert str(Problem("a", "b", "c", "d")) == "a: found b; wanted c. Usual fix: d"


# units


@pytest.mark.parametrize(
    ("found", "wanted", "value", "expected"),
    [
        ("degC", "K", 20.0, 293.15),
        ("K", "degree_Celsius", 273.15, 0.0),
        ("degF", "degC", 212.0, 100.0),
        ("hPa", "Pa", 1013.25, 101325.0),
        ("millibars", "hPa", 500.0, 500.0),
        ("km h-1", "m/s", 36.0, 10.0),
        ("knots", "m s-1", 1.0, 1852 / 3600),
        ("m**2 s**-2", "m2/s2", 7.0, 7.0),
        ("mm day-1", "m s-1", 86400e3, 1.0),
        ("g/kg", "1", 5.0, 0.005),
        ("kg m^-3", "g cm-3", 1000.0, 1.0),
        ("W m-2", "kg s-3", 3.0, 3.0),
        ("%", "1", 50.0, 0.5),
        ("ms", "s", 100.0, 0.1),
        ("degrees", "radian", 180.0, np.pi),
    ],
)
def test_conversions(found, wanted, value, expected):
    change = conversion(found, wanted)
    assert change.scale * value + change.offset == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("found", "wanted"), [("m", "s"), ("K", "Pa"), ("kg m-2", "mm"), ("m s-1", "m s-2"), ("furlong ???", "m")]
)
def test_no_conversion(found, wanted):
    assert conversion(found, wanted) is None


@given(st.sampled_from(["K", "m s-1", "hPa", "kg m-3", "Pa s-1", "unheard of", "g kg-1", "%"]))
def test_the_same_units_are_left_alone(units):
    assert conversion(units, units).identity
