"""Other tools' names: values untouched, everything still found by cf-xarray."""

import cf_xarray  # noqa: F401
import numpy as np
import pytest
import xarray as xr

from lapse import SpecError
from lapse.surrogate.align import canonical
from lapse.surrogate.layouts import to_layout


def forecast(calendar: str | None = None) -> xr.Dataset:
    """Two starts, three members, four leads of six hours, on a grid with western longitudes."""
    use = {"calendar": calendar, "use_cftime": True} if calendar else {}
    init = xr.date_range("2001-02-27", periods=2, freq="24h", **use).values
    lead = np.arange(1, 5) * np.timedelta64(6, "h").astype("m8[s]")
    step = lead if calendar is None else lead.astype("m8[us]").astype(object)
    values = np.arange(2 * 3 * 4 * 2 * 4, dtype="f4").reshape(2, 3, 4, 2, 4)
    return xr.Dataset(
        {
            "t": (("init_time", "member", "lead_time", "lat", "lon"), values, {"units": "K"}),
            "valid": (("init_time", "member"), np.ones((2, 3), "i1")),
        },
        {
            "init_time": ("init_time", init, {"standard_name": "forecast_reference_time"}),
            "member": ("member", np.arange(3), {"standard_name": "realization"}),
            "lead_time": ("lead_time", lead, {"standard_name": "forecast_period"}),
            "valid_time": (("init_time", "lead_time"), init[:, None] + step, {"standard_name": "time"}),
            "lat": ("lat", [10.0, 20.0], {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", [-90.0, 0.0, 90.0, 180.0], {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )


NAMES = {
    "weatherbench": ("number", "time", "prediction_timedelta", "latitude", "longitude"),
    "ecmwf": ("number", "time", "step", "latitude", "longitude"),
    "climpred": ("init", "lead", "member", "lat", "lon"),
}


@pytest.mark.parametrize("layout", NAMES)
def test_names_order_and_values(layout: str) -> None:
    fc = forecast()
    out = to_layout(fc, layout)
    assert out["t"].dims == NAMES[layout] and out["t"].attrs == {"units": "K"}
    for standard_name in ("forecast_reference_time", "realization", "forecast_period", "latitude", "longitude"):
        assert out.cf[standard_name].size > 1
    init, lead, member = (out.cf[n].name for n in ("forecast_reference_time", "forecast_period", "realization"))
    lon = out.cf["longitude"].name
    one = out["t"].isel({init: 1, lead: 2, member: 0}).sel({lon: 270.0 if layout == "weatherbench" else -90.0})
    assert np.array_equal(one, fc["t"].isel(init_time=1, lead_time=2, member=0).sel(lon=-90.0))
    assert ("valid_time" in out.coords) == (layout == "ecmwf")


def test_weatherbench_longitudes_run_from_0_to_360() -> None:
    assert to_layout(forecast(), "weatherbench")["longitude"].values.tolist() == [0, 90, 180, 270]


@pytest.mark.parametrize("calendar", [None, "noleap"])
def test_climpred_leads_are_numbers_with_units(calendar: str | None, tmp_path: object) -> None:
    out = to_layout(forecast(calendar), "climpred")
    assert out["lead"].values.tolist() == [6, 12, 18, 24] and out["lead"].attrs["units"] == "hours"
    days = forecast().isel(lead_time=[3])
    assert to_layout(days, "climpred")["lead"].values.tolist() == [1]
    assert to_layout(days, "climpred")["lead"].attrs["units"] == "days"


@pytest.mark.parametrize("layout", ["weatherbench", "ecmwf"])
def test_there_and_back(layout: str) -> None:
    """What another layout calls it, `score` finds again by itself."""
    fc = forecast()
    back = canonical(to_layout(fc, layout)).transpose("init_time", "member", "lead_time", ...)
    assert set(back["t"].dims) == {"init_time", "member", "lead_time", "latitude", "longitude"}
    assert np.array_equal(back["lead_time"], fc["lead_time"]) and np.array_equal(back["init_time"], fc["init_time"])


def test_what_does_not_fit() -> None:
    numeric = forecast().drop_vars("valid_time").assign_coords(init_time=[0.0, 1.0], lead_time=[0.1, 0.2, 0.3, 0.4])
    with pytest.raises(SpecError, match="numbers without a calendar"):
        to_layout(numeric, "climpred")
    box = forecast().rename(lat="y", lon="x")
    box["y"].attrs, box["x"].attrs = {"units": "m"}, {"units": "m"}
    with pytest.raises(SpecError, match="wanted one dimension that is the latitude"):
        to_layout(box, "ecmwf")
    months = forecast().assign_coords(lead_time=("lead_time", [1, 2, 3, 4], {"units": "months"}))
    with pytest.raises(SpecError, match="leads in months"):
        to_layout(months, "weatherbench")
    assert to_layout(months, "climpred")["lead"].attrs["units"] == "months"
    with pytest.raises(ValueError, match="wanted one of weatherbench"):
        to_layout(forecast(), "era5")  # type: ignore[arg-type]
