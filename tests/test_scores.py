"""lapse.score on ensembles whose scores are known: drawn from the truth's distribution, narrowed, shifted, broken."""

import cftime
import dask.array
import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr

import lapse
from lapse.datasets.spec import FieldSpec, SpecError, Variable
from lapse.physics.grid import Grid
from lapse.surrogate.baselines import climatology, dressed_crps, error_std, persistence
from lapse.surrogate.pairs import pair
from lapse.surrogate.tables import lead_label, skill_table


def make(M=8, inits=3, leads=4, space=(6, 5), seed=0, scale=1.0, times="datetime", variables=("t",)):
    """A truth over time and a forecast drawn from the same standard normal distribution."""
    g = np.random.default_rng(seed)
    n = inits + leads
    time = {
        "datetime": np.datetime64("2001-01-01T00", "ns") + np.arange(n) * np.timedelta64(6, "h"),
        "cftime": xr.date_range("2001-02-26", periods=n, freq="D", calendar="noleap", use_cftime=True).values,
        "numeric": np.arange(n) * 0.1,
    }[times]
    lead = {
        "datetime": np.arange(1, leads + 1) * np.timedelta64(6, "h"),
        "cftime": np.arange(1, leads + 1) * np.timedelta64(1, "D"),
        "numeric": np.arange(1, leads + 1) * 0.1,
    }[times]
    dims = ("lat", "lon")[: len(space)]
    coords = {
        "lat": ("lat", np.linspace(-60, 60, space[0]), {"units": "degrees_north"}),
        "lon": ("lon", np.arange(space[-1]) * 10.0, {"units": "degrees_east"}),
    }
    coords = {d: coords[d] for d in dims}
    attrs = {"units": "K"}
    truth = xr.Dataset(
        {v: (("time", *dims), g.normal(size=(n, *space)), attrs) for v in variables}, coords={"time": time, **coords}
    )
    shape = (inits, M, leads, *space)
    fc = xr.Dataset(
        {v: (("init_time", "member", "lead_time", *dims), scale * g.normal(size=shape), attrs) for v in variables},
        coords={"init_time": time[:inits], "member": np.arange(M), "lead_time": lead, **coords},
    )
    return fc, truth


def aligned(fc, truth, v="t"):
    """Members (I, M, L, *space) and truth (I, L, *space) as arrays, matched by position."""
    I, L = fc.sizes["init_time"], fc.sizes["lead_time"]
    y = np.stack([truth[v].values[i + 1 : i + 1 + L] for i in range(I)])
    return fc[v].values, y


@pytest.mark.parametrize("times", ["datetime", "cftime", "numeric"])
def test_scores_by_hand(times):
    fc, truth = make(times=times)
    s = lapse.score(fc, truth)
    x, y = aligned(fc, truth)
    w = np.cos(np.deg2rad(truth["lat"].values))[:, None] * np.ones(5)
    w = w / w.sum()

    def mean(a):
        return (a * w).sum(axis=(-2, -1)).mean(axis=0)

    crps = scoringrules.crps_ensemble(y, x, m_axis=1, estimator="fair")
    np.testing.assert_allclose(s["crps"].sel(variable="t"), mean(crps), rtol=1e-12)
    error, M = x.mean(axis=1) - y, 8
    np.testing.assert_allclose(s["rmse"].sel(variable="t"), np.sqrt(mean(error**2)), rtol=1e-12)
    np.testing.assert_allclose(s["bias"].sel(variable="t"), mean(error), rtol=1e-12)
    anomaly = y - (y * w).sum(axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(s["vrmse"].sel(variable="t"), np.sqrt(mean(error**2) / mean(anomaly**2)), rtol=1e-12)
    variance = mean(x.var(axis=1, ddof=1))
    np.testing.assert_allclose(s["spread"].sel(variable="t"), np.sqrt(variance), rtol=1e-12)
    np.testing.assert_allclose(
        s["spread_skill"].sel(variable="t"), np.sqrt((M + 1) / M * variance / mean(error**2)), rtol=1e-12
    )
    area = (x * w).sum(axis=(-2, -1)) - (y * w).sum(axis=(-2, -1))[:, None]
    np.testing.assert_allclose(s["crmse"].sel(variable="t"), np.sqrt((area**2).mean(axis=(0, 1))), rtol=1e-12)
    np.testing.assert_allclose(s["drift"].sel(variable="t"), area.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(s["rank_histogram"].sum("rank"), 1.0)
    assert (s["members_used"] == 8).all()
    assert (s["starts_used"] == 3).all()


def test_a_reliable_ensemble_is_called_reliable():
    fc, truth = make(M=16, inits=10, leads=1, space=(40, 50), seed=1)
    s = lapse.score(fc, truth, weights=xr.ones_like(truth["lat"])).isel(variable=0, lead_time=0)
    n = 20_000
    assert float(s["spread_skill"]) == pytest.approx(1, abs=5 / np.sqrt(2 * n) * 1.1)
    for level, c in zip(s["level"].values, s["coverage"].values, strict=True):
        assert c == pytest.approx(level, abs=5 * np.sqrt(level * (1 - level) / n))
    chi2 = n * 17 * float(((s["rank_histogram"] - 1 / 17) ** 2).sum())
    assert chi2 < 39.3  # 99.9 % of chi² with 16 degrees of freedom
    assert float(s["crps"]) == pytest.approx(1 / np.sqrt(np.pi), abs=5 * 0.43 / np.sqrt(n))


def test_an_overconfident_ensemble_is_called_so():
    fc, truth = make(M=16, leads=1, space=(20, 20), scale=0.5, seed=2)
    s = lapse.score(fc, truth).isel(variable=0, lead_time=0)
    assert float(s["spread_skill"]) == pytest.approx(0.5, abs=0.05)
    assert float(s["coverage"].sel(level=0.9)) < 0.7
    assert float(s["rank_histogram"][[0, -1]].sum()) > 4 / 17


def test_one_member_is_scored_by_its_absolute_error():
    fc, truth = make(M=1)
    s = lapse.score(fc, truth, weights=xr.ones_like(truth["lat"]))
    x, y = aligned(fc, truth)
    np.testing.assert_allclose(s["crps"][0], np.abs(x[:, 0] - y).mean(axis=(0, 2, 3)))
    assert s["spread"].isnull().all()
    assert s["spread_skill"].isnull().all()
    alone = lapse.score(fc.isel(member=0, drop=True), truth, weights=xr.ones_like(truth["lat"]))
    xr.testing.assert_equal(alone["crps"], s["crps"])


def test_by_init_keeps_the_starts():
    fc, truth = make()
    s, each = lapse.score(fc, truth), lapse.score(fc, truth, by_init=True)
    assert each["crps"].dims == ("variable", "init_time", "lead_time")
    np.testing.assert_allclose(each["crps"].mean("init_time"), s["crps"])
    np.testing.assert_allclose(np.sqrt((each["rmse"] ** 2).mean("init_time")), s["rmse"])
    one = lapse.score(fc.isel(init_time=[1]), truth)
    np.testing.assert_allclose(each["vrmse"].isel(init_time=1), one["vrmse"])


def test_invalid_members_are_left_out_and_counted():
    fc, truth = make(M=8)
    flag = xr.DataArray(np.ones((3, 8), dtype=bool), dims=("init_time", "member"))
    flag[:, [2, 5]] = False
    broken = fc.where(flag, np.inf).assign(valid=flag)
    s = lapse.score(broken, truth)
    expected = lapse.score(fc.isel(member=[0, 1, 3, 4, 6, 7]), truth)
    for name in ("crps", "rmse", "spread", "spread_skill", "coverage", "crmse", "spectrum_ratio"):
        np.testing.assert_allclose(s[name], expected[name], rtol=1e-12, err_msg=name)
    assert (s["members_used"] == 6).all()
    assert s.sizes["rank"] == 9
    np.testing.assert_allclose(s["rank_histogram"].sum("rank"), 1)


def test_members_that_blow_up_are_refused_or_counted():
    fc, truth = make(M=8)
    fc["t"][1, 3, 2:, 0, 0] = np.nan
    with pytest.raises(SpecError, match=r"forecast 't'.*first member 3 at lead 2.*nan='valid'"):
        lapse.score(fc, truth)
    s = lapse.score(fc, truth, nan="valid")
    np.testing.assert_array_equal(s["members_used"], [[8] * 4, [8, 8, 7, 7], [8] * 4])
    each = lapse.score(fc, truth, nan="valid", by_init=True)
    others = lapse.score(fc.isel(init_time=[1], lead_time=[2, 3], member=[0, 1, 2, 4, 5, 6, 7]), truth)
    np.testing.assert_allclose(each["crps"][:, 1, 2:], others["crps"])
    np.testing.assert_allclose(each["spread_skill"][:, 1, 2:], others["spread_skill"])
    fc["t"][0] = np.nan  # a start without any member left
    s = lapse.score(fc, truth, nan="valid")
    np.testing.assert_allclose(s["crps"], lapse.score(fc.isel(init_time=[1, 2]), truth, nan="valid")["crps"])


def test_land_is_left_out():
    fc, truth = make()
    land = xr.DataArray(np.zeros((6, 5), dtype=bool), dims=("lat", "lon"))
    land[:3, 2:] = True
    masked = lapse.score(fc.where(~land), truth.where(~land))
    w = (~land) * np.cos(np.deg2rad(truth["lat"]))
    expected = lapse.score(fc, truth, weights=w)
    for name in ("crps", "rmse", "vrmse", "spread_skill", "crmse", "coverage"):
        np.testing.assert_allclose(masked[name], expected[name], rtol=1e-12, err_msg=name)
    assert masked["spectrum_ratio"].notnull().all()
    unmasked = lapse.score(fc, truth.where(~land))  # only the truth has land: excluded in both
    np.testing.assert_allclose(unmasked["crps"], masked["crps"])
    gap = truth.where(~land)
    gap["t"][2, 5, 0] = np.nan
    with pytest.raises(SpecError, match=r"truth 't'.*static mask"):
        lapse.score(fc, gap)


def test_the_mask_of_the_spec_decides():
    fc, truth = make()
    mask = np.ones((6, 5), dtype=bool)
    mask[0] = False
    spec = FieldSpec.infer(truth, periodic={"lon": False}).replace(masks={"t": mask})
    s = lapse.score(fc, truth.where(xr.DataArray(mask, dims=("lat", "lon"))), spec=spec)
    weights = xr.DataArray(mask, dims=("lat", "lon")) * np.cos(np.deg2rad(truth["lat"]))
    np.testing.assert_allclose(s["crps"], lapse.score(fc, truth, weights=weights)["crps"])


def test_axes_may_run_the_other_way_or_be_shifted():
    fc, truth = make()
    expected = lapse.score(fc, truth)
    turned = truth.isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
    shifted = turned.assign_coords(lon=("lon", truth["lon"].values - 360, truth["lon"].attrs)).rename(lat="latitude")
    for other, forecast in (
        (turned, fc),
        (shifted, fc),
        (truth, fc.isel(lat=slice(None, None, -1))),
        (truth, fc.transpose()),
    ):
        xr.testing.assert_allclose(lapse.score(forecast, other)["crps"], expected["crps"])


def test_names_are_recognised_or_told():
    fc, truth = make()
    expected = lapse.score(fc, truth)["crps"]
    renamed = fc.rename(member="number", lead_time="step", init_time="start")
    renamed["start"].attrs["standard_name"] = "forecast_reference_time"
    xr.testing.assert_equal(lapse.score(renamed, truth)["crps"], expected)
    odd = fc.rename(member="copy", lead_time="ahead")
    told = lapse.score(odd, truth.rename(time="when"), dims={"member": "copy", "lead_time": "ahead", "time": "when"})
    xr.testing.assert_equal(told["crps"], expected)
    with pytest.raises(SpecError, match="lead_time"):
        lapse.score(odd, truth)


def test_a_truth_may_have_starts_and_leads():
    fc, truth = make()
    _, y = aligned(fc, truth)
    direct = xr.Dataset(
        {"t": (("init_time", "lead_time", "lat", "lon"), y, {"units": "K"})},
        coords={d: fc[d] for d in ("init_time", "lead_time", "lat", "lon")},
    )
    xr.testing.assert_equal(lapse.score(fc, direct)["crps"], lapse.score(fc, truth)["crps"])
    with pytest.raises(SpecError, match="same starts and leads"):
        lapse.score(fc, direct.isel(lead_time=[1, 0, 2, 3]))


def test_missing_times_are_named_or_dropped():
    fc, truth = make()
    short = truth.isel(time=slice(0, -1))
    with pytest.raises(SpecError, match=r"no state at 2001-01-02T12:00:00.*missing='drop'"):
        lapse.score(fc, short)
    s = lapse.score(fc, short, missing="drop")
    np.testing.assert_array_equal(s["starts_used"], [3, 3, 3, 2])
    np.testing.assert_allclose(s["crps"][:, :3], lapse.score(fc.isel(lead_time=slice(3)), truth)["crps"])
    np.testing.assert_allclose(s["crps"][:, 3:], lapse.score(fc.isel(lead_time=[3], init_time=[0, 1]), truth)["crps"])
    with pytest.raises(SpecError, match="no state at"):
        lapse.score(fc, truth.assign_coords(time=truth["time"] + np.timedelta64(1, "h")), missing="drop")
    with pytest.raises(SpecError, match=r"numeric times.*datetime64 times"):
        lapse.score(fc, make(times="numeric")[1])
    with pytest.raises(SpecError, match="drop_duplicates"):
        lapse.score(fc, xr.concat([truth, truth], "time"))


def test_every_mismatch_is_named_at_once():
    fc, truth = make(variables=("t", "q"))
    truth["q"].attrs["units"] = "degC"
    bad = truth.isel(lon=slice(0, 4), time=slice(1, None, 2))
    with pytest.raises(SpecError) as info:
        lapse.score(fc, bad)
    text = str(info.value)
    assert len(info.value.problems) == 3
    assert "units 'degC'" in text
    assert "'lon'" in text
    assert "no state at" in text
    with pytest.raises(SpecError, match=r"truth 'q'"):
        lapse.score(fc, truth.drop_vars("q"))
    with pytest.raises(SpecError, match=r"forecast 'p'"):
        lapse.score(fc, truth, variables=["p"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        lapse.score(fc, truth, coverage=[90])
    with pytest.raises(ValueError, match="nan"):
        lapse.score(fc, truth, nan="ignore")
    with pytest.raises(SpecError, match="weights"):
        lapse.score(fc, truth.assign(q=truth["q"].assign_attrs(units="K")), weights=-xr.ones_like(truth["lat"]))


def test_units_may_be_spelled_differently():
    fc, truth = make()
    fc["t"].attrs["units"], truth["t"].attrs["units"] = "m s-1", "m/s"
    assert lapse.score(fc, truth)["rmse"].attrs["units"] == "m s-1"


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_spectra_compare_power_by_band(factor):
    n = 32
    grid = Grid.periodic_box(n)
    y, x = (t.numpy() for t in grid.meshgrid())
    g = np.random.default_rng(0)
    low, high = np.cos(x) + np.sin(2 * y), np.cos(10 * x + 3 * y)
    truth = xr.Dataset({"w": (("time", "y", "x"), np.stack([low + high] * 3))}, coords={"time": [0.0, 1.0, 2.0]})
    members = np.stack([low + factor * np.roll(high, k, axis=-1) for k in g.integers(0, n, 4)])
    fc = xr.Dataset(
        {"w": (("init_time", "member", "lead_time", "y", "x"), np.stack([members] * 2, axis=1)[None])},
        coords={"init_time": [0.0], "lead_time": [1.0, 2.0]},
    )
    spec = FieldSpec((Variable("w"),), grid, 1.0, "s")
    s = lapse.score(fc, truth, spec=spec).isel(variable=0, lead_time=0)
    np.testing.assert_allclose(s["band_low"], [0.5, 1.5, 3.5, 7.5])
    np.testing.assert_allclose(s["spectrum_truth"], [0.5, 0.5, 0, 0.5], atol=1e-12)
    np.testing.assert_allclose(s["spectrum_ratio"][[0, 1, 3]], [1, 1, factor**2], rtol=1e-10)


def test_the_invariants_of_the_equation_are_compared():
    grid = Grid.periodic_box(16)
    law = "kolmogorov"
    spec = FieldSpec((Variable("vorticity", "s-1"),), grid, 1.0, "s", equation=law, parameters={"viscosity": 0.02})
    g = torch.Generator().manual_seed(0)
    from lapse.physics.equation import equation

    u = equation(law, grid, viscosity=0.02).initial(g, 1, torch.float64)[0, 0].numpy()
    truth = xr.Dataset(
        {"vorticity": (("time", "y", "x"), np.stack([u] * 3), {"units": "s-1"})}, coords={"time": [0.0, 1.0, 2.0]}
    )
    members = np.stack([[2 * u, 2 * u], [0 * u, 0 * u]])
    fc = xr.Dataset(
        {"vorticity": (("init_time", "member", "lead_time", "y", "x"), members[None], {"units": "s-1"})},
        coords={"init_time": [0.0], "lead_time": [1.0, 2.0]},
    )
    s = lapse.score(fc, truth, spec=spec).sel(quantity="enstrophy")
    Z = (u**2).mean() / 2
    np.testing.assert_allclose(s["physics_truth"], Z)
    np.testing.assert_allclose(s["physics_members"], 2 * Z)
    np.testing.assert_allclose(s["physics_drift"], Z)
    np.testing.assert_allclose(s["physics_crmse"], Z * np.sqrt((9 + 1) / 2))

    def strongest(ds):
        return abs(ds[["vorticity"]]).max(["y", "x"]).rename(vorticity="strongest")

    own = lapse.score(fc, truth, physics=strongest)
    np.testing.assert_allclose(own["physics_drift"].sel(quantity="strongest"), 0, atol=1e-12)
    with pytest.raises(ValueError, match="reduce over the spatial dimensions"):
        lapse.score(fc, truth, physics=lambda ds: ds)


def test_a_dask_forecast_is_never_held_whole():
    fc, truth = make(M=6, inits=3, leads=8, space=(16, 16))
    held = []
    source = fc["t"].values

    def chunk(block_info=None):
        where = tuple(slice(a, b) for a, b in block_info[None]["array-location"])
        held.append(where)
        return source[where]

    chunks = ((1,) * 3, (6,), (2,) * 4, (16,), (16,))
    array = dask.array.map_blocks(chunk, chunks=chunks, dtype=source.dtype, meta=np.empty((0,) * 5))
    lazy = fc.assign(t=(fc["t"].dims, array, {"units": "K"}))
    pairs = pair(lazy, truth)
    one_lead = 6 * 16 * 16 * 8
    held.clear()
    for block in pairs.blocks(budget=3 * one_lead):
        assert block.members["t"].nbytes <= 2 * one_lead  # whole chunks of two leads, not three leads
    assert len(held) == len(set(map(str, held))) == 12  # each chunk once
    xr.testing.assert_allclose(lapse.score(lazy, truth), lapse.score(fc, truth), rtol=1e-12)


def test_blocks_do_not_show_in_the_scores(monkeypatch):
    fc, truth = make(M=6, variables=("t", "q"))
    fc, truth = fc.round(1), truth.round(1)  # with ties
    truth["t"][:, :2, :2] = np.nan
    expected = lapse.score(fc, truth)
    monkeypatch.setattr("lapse.surrogate.pairs.Pairs.blocks.__defaults__", (None, 1))
    xr.testing.assert_allclose(lapse.score(fc, truth), expected, rtol=1e-12)


def test_slabs_of_cells_do_not_show_in_the_scores(monkeypatch):
    fc, truth = make()
    expected = lapse.score(fc, truth)
    monkeypatch.setattr("lapse.surrogate.moments._SLAB", 40)
    xr.testing.assert_allclose(lapse.score(fc, truth), expected)


@pytest.mark.parametrize("times", ["datetime", "cftime", "numeric"])
def test_persistence_repeats_the_start(times):
    fc, truth = make(times=times)
    truth["time"].attrs["standard_name"] = "time"
    base = persistence(truth, truth["time"][:3], fc["lead_time"])
    assert base["t"].dims == fc["t"].dims
    for lead in range(4):
        np.testing.assert_array_equal(base["t"][:, 0, lead], truth["t"][:3])
    s = lapse.score(fc, truth, baselines={"persistence": base})
    alone = lapse.score(base, truth)
    np.testing.assert_allclose(s["baseline_crps"][0], alone["crps"])
    np.testing.assert_allclose(s["crps_skill"][0], 1 - s["crps"] / alone["crps"])
    with pytest.raises(SpecError, match="no state at"):
        persistence(truth.isel(time=slice(1, None)), fc["init_time"], fc["lead_time"])
    with pytest.raises(SpecError, match="baseline 'persistence'"):
        lapse.score(fc, truth, baselines={"persistence": base.isel(lead_time=slice(2))})


def test_climatology_knows_the_season_and_the_hour():
    time = xr.date_range("2001-01-01", "2004-12-31T18:00", freq="6h").values
    day = (time - np.datetime64("2001-01-01")) / np.timedelta64(1, "D")
    signal = 10 * np.cos(2 * np.pi * day / 365.25) + 3 * np.cos(2 * np.pi * day)
    ds = xr.Dataset({"t": (("time", "x"), signal[:, None] * np.ones(4))}, coords={"time": time})
    train, test = ds.sel(time=slice("2001", "2003")), ds.sel(time="2004")
    starts, leads = test["time"][::97][:12], xr.DataArray(np.arange(1, 5) * np.timedelta64(6, "h"), dims="lead_time")
    base = climatology(train, starts, leads, window=10)
    assert float(lapse.score(base, test, weights=xr.ones_like(ds["x"], dtype=float))["rmse"].max()) < 0.2
    ensemble = climatology(train, starts, leads, members=20, window=10)
    assert ensemble.sizes["member"] == 20
    assert float(lapse.score(ensemble, test)["rmse"].max()) < 0.2
    with pytest.raises(ValueError, match="wanted members=2000"):
        climatology(train, starts, leads, members=2000)


def test_climatology_of_months_and_of_numbers():
    time = np.array([cftime.Datetime360Day(1 + m // 12, 1 + m % 12, 16) for m in range(48)])
    ds = xr.Dataset({"t": (("time", "x"), (np.arange(48) % 12)[:, None] * np.ones(3))}, coords={"time": time})
    leads = xr.DataArray([1, 2], dims="lead_time", attrs={"units": "months"})
    valid = xr.DataArray([[time[37], time[38]]], dims=("init_time", "lead_time"))
    base = climatology(ds.isel(time=slice(36)), time[36:37], leads, valid_time=valid)
    np.testing.assert_array_equal(base["t"][0, 0, :, 0], [1, 2])
    with pytest.raises(SpecError, match="valid_time"):
        climatology(ds, time[36:37], leads)
    fc, truth = make(times="numeric")
    mean = climatology(truth, fc["init_time"], fc["lead_time"])
    np.testing.assert_allclose(mean["t"][2, 0, 3], truth["t"].mean("time"))


def test_dressing_gives_the_gaussian_crps():
    fc, truth = make(M=1, inits=40, leads=2, space=(8, 8), seed=3)
    fc["t"] = xr.zeros_like(fc["t"]).assign_attrs(units="K")  # the mean of the truth's distribution
    std = error_std(fc, truth, cells=False)
    np.testing.assert_allclose(std["t"], 1.0, atol=0.1)
    cells = error_std(fc.isel(lat=slice(None, None, -1)), truth)
    _, y = aligned(fc, truth)
    np.testing.assert_allclose(cells["t"], np.sqrt((y**2).mean(axis=0)))
    crps = dressed_crps(fc, truth, std)
    np.testing.assert_allclose(crps.sel(variable="t"), 1 / np.sqrt(np.pi), atol=5 * 0.43 / np.sqrt(40 * 64))
    assert (crps < lapse.score(fc, truth)["crps"]).all()  # dressing pays
    assert (dressed_crps(fc, truth, cells) < lapse.score(fc, truth)["crps"]).all()


def test_scores_print_plot_and_travel(tmp_path):
    fc, truth = make()
    fc.attrs.update(lapse_seed=3, source="model x", comment="private")
    s = lapse.score(fc, truth, baselines={"persistence": persistence(truth, fc["init_time"], fc["lead_time"])})
    for name in s.data_vars:
        assert s[name].attrs["long_name"], name
        assert s[name].attrs["comment"], name
    assert s["crps"].attrs["units"] == "K"
    assert "10.1002/qj.2270" in s["crps"].attrs["comment"]
    assert s.attrs["lapse_seed"] == 3
    assert "comment" not in s.attrs
    s.to_netcdf(tmp_path / "s.nc")
    with xr.open_dataset(tmp_path / "s.nc", decode_timedelta=True) as back:
        xr.testing.assert_allclose(back["crps"], s["crps"])
    text = skill_table(s, rows=3)
    lines, columns = text.splitlines(), ["CRPS/persistence"]
    assert lines[0].split() == ["variable", "lead", "CRPS", "RMSE", "VRMSE", "spread/skill", "in", "90%", *columns]
    assert [line.split()[1:3] for line in lines[1:]] == [["6", "h"], ["18", "h"], ["24", "h"]]
    assert lines[1].split()[3] == f"{float(s['crps'][0, 0]):.3g}"
    with pytest.raises(ValueError, match="by_init"):
        skill_table(lapse.score(fc, truth, by_init=True))


def test_leads_are_labelled_as_people_write_them():
    hours = xr.DataArray(np.array([6, 12, 24]) * np.timedelta64(1, "h"), dims="lead_time")
    assert [lead_label(hours, i) for i in range(3)] == ["6 h", "12 h", "24 h"]
    assert lead_label(hours[2:], 0) == "1 d"
    assert lead_label(xr.DataArray([0.1 + 0.2], dims="lead_time", attrs={"units": "s"}), 0) == "0.3 s"


@pytest.mark.parametrize("times", ["datetime", "cftime", "numeric"])
def test_analyses_are_scored_at_their_own_times(times):
    fc, truth = make(times=times)
    now = truth.isel(time=slice(0, 3))
    analyses = (now + 0.5 * fc.isel(lead_time=0, drop=True).rename(init_time="time").assign_coords(time=now["time"]))
    analyses["t"].attrs["units"] = "K"
    s = lapse.score(analyses.transpose("member", "time", ...), truth, by_init=True)
    assert s["crps"].dims == ("variable", "init_time", "lead_time") and s.sizes["lead_time"] == 1
    away = 0.5 * fc["t"].isel(lead_time=0).mean("member")
    w = np.cos(np.deg2rad(away["lat"]))
    want = ((away**2).weighted(w).mean(("lat", "lon"))) ** 0.5
    np.testing.assert_allclose(s["rmse"].isel(variable=0, lead_time=0), want, rtol=1e-6)
