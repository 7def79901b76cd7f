"""Opening: every format on synthesised files, and real files from first look to tensor."""

import json

import numpy as np
import pytest
import xarray as xr

from lapse.datasets.check import check
from lapse.datasets.fields import to_tensor
from lapse.datasets.open import open_dataset
from lapse.datasets.spec import FieldSpec, SpecError

TIMES = np.datetime64("2001-01-01", "s") + np.arange(8) * np.timedelta64(6, "h")


def dataset(frames=slice(None)):
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"t": (("time", "lat", "lon"), 280 + rng.normal(size=(8, 3, 4)).astype(np.float32), {"units": "K"})},
        coords={
            "time": TIMES,
            "lat": ("lat", [10.0, 20.0, 30.0], {"units": "degrees_north"}),
            "lon": ("lon", [0.0, 10.0, 20.0, 30.0], {"units": "degrees_east"}),
        },
    )
    return ds.isel(time=frames)


def write(ds, path, **options):
    if path.suffix == ".zarr":
        ds.to_zarr(path, **options)
    else:
        ds.to_netcdf(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.zarr", {"zarr_format": 2, "consolidated": True}),
        ("a.zarr", {"zarr_format": 2, "consolidated": False}),
        ("a.zarr", {"zarr_format": 3, "consolidated": False}),
        (
            "a.zarr",
            {"zarr_format": 3, "consolidated": False, "encoding": {"t": {"chunks": (2, 3, 4), "shards": (4, 3, 4)}}},
        ),
        ("a.nc", {"format": "NETCDF4"}),
        ("a.nc", {"format": "NETCDF3_64BIT"}),
        ("without_a_suffix", {"format": "NETCDF4"}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_formats(tmp_path, name, options):
    path = write(dataset(), tmp_path / name, **options)
    for given in (path, str(path), [path]):
        ds = open_dataset(given)
        assert ds["t"].chunks is not None
        assert ds["time"].dtype == "datetime64[us]"
        xr.testing.assert_equal(ds.load(), dataset())
    assert open_dataset(path, chunks=None)["t"].chunks is None
    assert open_dataset(path, chunks={"time": 8, "lat": 3})["t"].chunksizes["time"] == (8,)


def test_consolidated_v3(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.warns(UserWarning, match=r"onsolidated"):
        dataset().to_zarr(path, zarr_format=3, consolidated=True)
    assert json.loads((path / "zarr.json").read_text())["consolidated_metadata"]
    xr.testing.assert_equal(open_dataset(path).load(), dataset())


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_many_files(tmp_path, suffix):
    for k, frames in enumerate([slice(0, 3), slice(3, 4), slice(4, 8)]):
        write(dataset(frames), tmp_path / f"part{k}.{suffix}")
    paths = sorted(tmp_path.iterdir())
    for given in (tmp_path, f"{tmp_path}/*.{suffix}", paths, [paths[0], f"{tmp_path}/part[12].{suffix}"]):
        xr.testing.assert_equal(open_dataset(given).load(), dataset())


def test_files_without_a_time_are_stacked_and_static_fields_are_not(tmp_path):
    for k in range(3):
        write(dataset(k).drop_vars("time"), tmp_path / f"frame{k}.nc")
    stacked = open_dataset(tmp_path)
    np.testing.assert_array_equal(stacked["t"], dataset(slice(3))["t"])
    with pytest.raises(SpecError, match=r"no time coordinate"):
        FieldSpec.infer(stacked)
    assert FieldSpec.infer(stacked, interval=6.0, time_units="h").shape == (1, 3, 4)
    runs = open_dataset(tmp_path, concat_dim="trajectory")
    assert runs["t"].dims == ("trajectory", "lat", "lon")

    for k in range(2):
        half = dataset(slice(4 * k, 4 * k + 4))
        write(half.assign(orography=half["t"].isel(time=0, drop=True)), tmp_path / f"static{k}.nc")
    assert open_dataset(f"{tmp_path}/static*.nc")["orography"].dims == ("lat", "lon")


def test_files_that_do_not_join(tmp_path):
    write(dataset(slice(0, 4)), tmp_path / "a.nc")
    write(dataset(slice(4, 8)).isel(lat=slice(2)), tmp_path / "b.nc")
    with pytest.raises(SpecError, match=r"do not join.*the same grid"):
        open_dataset(tmp_path)
    write(dataset(slice(4, 8)).rename(t="q"), tmp_path / "b.nc")
    with pytest.raises(SpecError, match=r"b\.nc: found variables q; wanted t"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_packed_integers(tmp_path, name):
    packing = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}
    holes = dataset().where(dataset()["lon"] < 30)
    path = write(holes, tmp_path / name, encoding={"t": packing})
    ds = open_dataset(path)
    np.testing.assert_allclose(ds["t"], holes["t"], atol=0.006)
    spec = FieldSpec.infer(ds, ranges=True)
    assert spec.masks["t"].sum() == 9
    raw = xr.open_dataset(path, mask_and_scale=False, **({"engine": "zarr"} if name == "a.zarr" else {}))
    np.testing.assert_allclose(check(raw, spec)["t"], holes["t"], atol=0.006)
    assert FieldSpec.infer(raw, ranges=True).variables == spec.variables


def test_times_without_units(tmp_path):
    path = write(dataset().assign_coords(time=np.arange(8) * 0.25 + 36890), tmp_path / "a.nc")
    assert open_dataset(path)["time"].dtype == np.float64
    ds = open_dataset(path, time_units="days since 1900-01-01")
    np.testing.assert_array_equal(ds["time"], TIMES)
    assert FieldSpec.infer(ds).time_units == "hours"
    noleap = open_dataset(path, time_units="days since 1900-01-01", calendar="noleap")
    assert noleap["time"].dt.calendar == "noleap"
    assert FieldSpec.infer(open_dataset(path, time_units="s")).time_units == "s"
    with pytest.raises(SpecError, match=r"found 0 time coordinates.*one, whose units"):
        open_dataset(write(dataset().drop_vars("time"), tmp_path / "b.nc"), time_units="s")


def test_time_units_override_those_of_the_file(tmp_path):
    path = write(
        dataset().assign_coords(time=("time", np.arange(8), {"units": "days since 1800-01-01"})), tmp_path / "a.nc"
    )
    assert open_dataset(path)["time"].values[0] == np.datetime64("1800-01-01")
    assert open_dataset(path, time_units="days since 2000-01-01")["time"].values[0] == np.datetime64("2000-01-01")


def test_times_beyond_nanoseconds(tmp_path):
    far = dataset().assign_coords(time=TIMES + np.timedelta64(800 * 365, "D"))
    ds = open_dataset(write(far, tmp_path / "a.nc"))
    np.testing.assert_array_equal(ds["time"], far["time"])


def test_leads_are_decoded_and_nothing_else(tmp_path):
    forecast = dataset().rename(time="step").assign_coords(step=("step", np.arange(8) * 6, {"units": "hours"}))
    forecast["t"].attrs["units"] = "seconds"  # a wave period, say
    ds = open_dataset(write(forecast, tmp_path / "a.nc"))
    assert ds["step"].dtype == "timedelta64[s]"
    assert ds["step"].values[1] == np.timedelta64(6, "h")
    assert ds["t"].dtype == np.float32
    run = dataset().assign_coords(time=("time", np.arange(8) * 0.5, {"units": "seconds"}))
    assert open_dataset(write(run, tmp_path / "b.nc"))["time"].dtype == np.float64


def test_selection_and_levels(tmp_path):
    both = dataset().assign(q=dataset()["t"]).expand_dims(level=[500, 850])
    path = write(both, tmp_path / "a.nc")
    assert list(open_dataset(path, variables=["q"])) == ["q"]
    assert list(open_dataset(path, split="level")) == ["t_500", "t_850", "q_500", "q_850"]
    with pytest.raises(SpecError, match=r"variable 'z'.*one of t, q"):
        open_dataset(path, variables=["z"])


def test_large_files_are_cut_into_whole_frames(tmp_path, monkeypatch):
    monkeypatch.setattr("lapse.datasets.open.BLOCK", 3 * 4 * 4 * 2)
    assert open_dataset(write(dataset(), tmp_path / "a.nc"))["t"].chunksizes["time"] == (2, 2, 2, 2)
    path = write(dataset(), tmp_path / "b.nc", encoding={"t": {"chunksizes": (4, 3, 4)}})
    assert open_dataset(path)["t"].chunksizes["time"] == (4, 4)


def test_what_is_neither_zarr_nor_netcdf(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "radar.h5", "w") as file:
        file["image1/data"] = np.zeros((4, 5))
    with pytest.raises(SpecError, match=r"plain HDF5.*groups image1; wanted netCDF.*group=.*h5py"):
        open_dataset(tmp_path / "radar.h5")
    with pytest.raises(SpecError, match=r"plain HDF5 with the arrays data \(4, 5\).*xr\.Dataset"):
        open_dataset(tmp_path / "radar.h5", group="image1")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(SpecError, match=r"numpy file; wanted zarr or netCDF.*np\.load"):
        open_dataset(tmp_path / "a.npy")
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(SpecError, match=r"unknown kind of file; wanted zarr or netCDF"):
        open_dataset(tmp_path / "a.txt")
    with pytest.raises(SpecError, match=r"no variables"):
        open_dataset(write(xr.Dataset(coords={"x": [0.0]}), tmp_path / "a.zarr"))


def test_paths_without_files(tmp_path):
    for given in (tmp_path / "no.nc", f"{tmp_path}/*.nc", tmp_path, []):
        with pytest.raises(FileNotFoundError, match=r"found .*; wanted"):
            open_dataset(given)


def test_a_group_of_a_store(tmp_path):
    dataset().to_netcdf(tmp_path / "a.nc", group="inside")
    dataset().to_zarr(tmp_path / "a.zarr", group="inside", zarr_format=3, consolidated=False)
    for name in ("a.nc", "a.zarr"):
        xr.testing.assert_equal(open_dataset(tmp_path / name, group="inside").load(), dataset())


# real files: (path, how to open, how to infer, shape, interval, time_units, calendar, valid cells)
REAL = [
    ("ncep_air_temperature/air_temperature.zarr", {}, {}, (1, 25, 53), 6, "hours", "proleptic_gregorian", 1325),
    ("ersstv5_global/sst.mnmean.nc", {}, {}, (1, 89, 180), 1, "months", "proleptic_gregorian", 10988),
    (
        "globcurrent_agulhas/GlobCurrent_example_data/200201*.nc",
        {"time_units": "days since 1900-01-01"},
        {},
        (2, 41, 81),
        1,
        "days",
        "proleptic_gregorian",
        2552,
    ),
    (
        "eraint_uvz/eraint_uvz.nc",
        {},
        {"dims": {"time": "month"}, "split": "level"},
        (9, 241, 480),
        6,
        "1",
        None,
        241 * 480,
    ),
    (
        "pcm_ensemble_natural/TREFHT.*.nc",
        {"concat_dim": "trajectory"},
        {"interval": 1, "time_units": "years"},
        (1, 64, 128),
        1,
        "years",
        "proleptic_gregorian",
        64 * 128,
    ),
    (
        "generated_kolmogorov_exponax_k4/kolmogorov_exponax_k4.nc",
        {},
        {
            "dims": {"x": ("x_u", "x_v"), "y": ("y_u", "y_v")},
            "periodic": {"x": True, "y": True},
            "kinds": {"u": "vector:x", "v": "vector:y"},
        },
        (2, 64, 64),
        0.1,
        "1",
        None,
        64 * 64,
    ),
    ("dts_experiment/mrcosts-real-data-example.nc", {}, {}, (1, 80), 1, "seconds", "proleptic_gregorian", 80),
]


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0].split("/")[0])
@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
def test_real_files(lapse_data, case):
    path, how, keywords, shape, interval, time_units, calendar, valid = case
    if not (lapse_data / path).parent.is_dir():
        pytest.skip(f"{path} is not among the real data")
    ds = open_dataset(lapse_data / path, **how)
    spec = FieldSpec.infer(ds, ranges=True, **keywords)
    assert spec.shape == shape
    assert (spec.interval, spec.time_units, spec.calendar) == (pytest.approx(interval), time_units, calendar)
    assert FieldSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert all(int(m.sum()) == valid for m in spec.mask_tensor())

    canonical = check(ds, spec)
    x = to_tensor(canonical, spec)
    assert x.shape[-len(shape) :] == shape and x.isfinite().all()
    cells = x.movedim(-len(shape), 0)[0][..., spec.mask_tensor()[0]]
    first = spec.variables[0]
    assert cells.min().item() == pytest.approx(first.minimum, rel=1e-5)
    assert cells.max().item() == pytest.approx(first.maximum, rel=1e-5)


def test_real_radar_is_explained(lapse_data):
    path = lapse_data / "knmi_radar_20100826/RAD_NL25_RAP_5min_201008260000.h5"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the real data")
    with pytest.raises(SpecError, match=r"plain HDF5.*groups .*image1"):
        open_dataset(path)
