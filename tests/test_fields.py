"""Dataset <-> tensor: numbers, masks, attributes and extra dimensions."""

import numpy as np
import pytest
import torch
import xarray as xr

from lapse.datasets.fields import to_dataset, to_tensor
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Axis, Grid

MASK = np.array([[True, False, True], [True, True, True]])
SPEC = FieldSpec(
    (
        Variable("sst", "degC", standard_name="sea_surface_temperature", long_name="SST", mean=18.5),
        Variable("ssh", "m"),
    ),
    Grid((Axis("lat", (0.0, 10.0), "degrees_north"), Axis("lon", (0.0, 120.0, 240.0), "degrees_east", True))),
    1.0,
    "days",
    "standard",
    masks={"sst": MASK},
)
TIMES = np.datetime64("2001-01-01", "s") + np.arange(4) * np.timedelta64(1, "D")


def test_round_trip_keeps_numbers_masks_and_attributes(tmp_path):
    x = torch.randn(4, 2, 2, 3)
    ds = to_dataset(x, SPEC, coords={"time": TIMES}, attrs={"title": "t"})
    np.testing.assert_array_equal(ds["ssh"], x[:, 1])
    assert np.isnan(ds["sst"].values[:, 0, 1]).all() and np.isfinite(ds["sst"].values[:, MASK]).all()
    assert ds["sst"].attrs == {"units": "degC", "standard_name": "sea_surface_temperature", "long_name": "SST"}
    assert ds["ssh"].attrs == {"units": "m"}
    assert ds["lat"].attrs["standard_name"] == "latitude" and ds["lon"].attrs["axis"] == "X"
    assert ds["time"].attrs["standard_name"] == "time" and ds.attrs == {"title": "t"}

    ds.to_netcdf(tmp_path / "f.nc")
    back = to_tensor(xr.open_dataset(tmp_path / "f.nc"), SPEC)
    expected = x.clone()
    expected[:, 0, 0, 1] = 18.5
    assert torch.equal(back, expected)
    assert FieldSpec.infer(ds).grid == SPEC.grid
    assert (FieldSpec.infer(ds).masks["sst"] == MASK).all()


def test_forecast_layout_and_its_names():
    x = torch.randn(2, 5, 3, 2, 2, 3)
    coords = {
        "init_time": TIMES[:2],
        "member": np.arange(5),
        "lead_time": np.arange(1, 4) * np.timedelta64(86400, "s"),
        "valid_time": (("init_time", "lead_time"), TIMES[:2, None] + np.arange(1, 4) * np.timedelta64(86400, "s")),
    }
    ds = to_dataset(x, SPEC, dims=("init_time", "member", "lead_time"), coords=coords)
    assert ds["sst"].dims == ("init_time", "member", "lead_time", "lat", "lon")
    assert ds["sst"].dtype == np.float32
    names = {c: ds[c].attrs["standard_name"] for c in coords}
    assert names == {
        "init_time": "forecast_reference_time",
        "member": "realization",
        "lead_time": "forecast_period",
        "valid_time": "time",
    }
    assert torch.equal(to_tensor(ds, SPEC)[..., 1, :, :], x[..., 1, :, :])


def test_order_of_dims_and_float64_input_do_not_matter():
    x = torch.randn(4, 2, 2, 3)
    ds = to_dataset(x, SPEC).transpose("lon", "time", "lat").astype(np.float64)
    assert torch.equal(to_tensor(ds, SPEC)[:, 1], x[:, 1])


def test_the_input_is_not_written_to():
    ds = to_dataset(torch.randn(4, 2, 2, 3), SPEC)
    before = ds.copy(deep=True)
    to_tensor(ds, SPEC).fill_(0)
    xr.testing.assert_identical(ds, before)
    x = torch.randn(4, 2, 2, 3)
    kept = x.clone()
    to_dataset(x, SPEC)["ssh"].values[:] = 9
    assert torch.equal(x, kept)


def test_a_tensor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(4, 2, 3, 2\).*\(2, 2, 3\)"):
        to_dataset(torch.zeros(4, 2, 3, 2), SPEC)
    with pytest.raises(ValueError, match="name every leading axis"):
        to_dataset(torch.zeros(1, 4, 2, 2, 3), SPEC)
