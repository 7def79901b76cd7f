"""lapse.score_event on ensembles whose probabilities are known to be right, or wrong in a known way."""

import numpy as np
import pytest
import scoringrules
import xarray as xr

import lapse
from lapse.datasets.spec import SpecError


def ensemble(M=10, scale=1.0, starts=6, leads=3, seed=0):
    """Truth and members share a signal and draw their own noise; ``scale`` 1 makes them exchangeable."""
    g = np.random.default_rng(seed)
    signal = g.normal(size=(starts, 1, leads, 20, 30))
    x = signal + scale * g.normal(size=(starts, M, leads, 20, 30))
    y = signal[:, 0] + g.normal(size=(starts, leads, 20, 30))
    coords = {
        "init_time": np.datetime64("2001-01-01", "ns") + np.arange(starts) * np.timedelta64(10, "D"),
        "lead_time": np.arange(1, leads + 1) * np.timedelta64(6, "h"),
        "lat": ("lat", np.linspace(-57, 57, 20), {"units": "degrees_north"}),
        "lon": ("lon", np.arange(30) * 12.0, {"units": "degrees_east"}),
    }
    K = {"units": "K"}
    fc = xr.Dataset({"t": (("init_time", "member", "lead_time", "lat", "lon"), x, K)}, coords)
    truth = xr.Dataset({"t": (("init_time", "lead_time", "lat", "lon"), y, K)}, coords)
    return fc, truth


def weighted(a):
    return a.weighted(np.cos(np.deg2rad(a["lat"]))).mean(("init_time", "lat", "lon"))


def test_brier_score_and_its_parts():
    fc, truth = ensemble()
    s = lapse.score_event(fc, truth, "t", above=0.5)
    p, y = (fc["t"] > 0.5).mean("member"), (truth["t"] > 0.5).astype(float)
    plain = weighted((p - y) ** 2)
    np.testing.assert_allclose(s["reliability"] - s["resolution"] + s["uncertainty"], plain, rtol=1e-12)
    members = np.moveaxis(fc["t"].values, 1, -1)
    fair = scoringrules.brier_score(y.values, p.values) - p.values * (1 - p.values) / (members.shape[-1] - 1)
    np.testing.assert_allclose(s["brier"], weighted(y.copy(data=fair)), rtol=1e-12)
    np.testing.assert_allclose(s["frequency"], weighted(y), rtol=1e-12)
    np.testing.assert_allclose(s["mean_probability"], weighted(p), rtol=1e-12)
    np.testing.assert_allclose(s["brier_skill"], 1 - s["brier"] / s["uncertainty"], rtol=1e-12)
    np.testing.assert_allclose(s["share"].sum("bin"), 1.0)
    assert s.sizes["bin"] == 11 and s.attrs["event"] == "t above 0.5 K"
    coarse = lapse.score_event(fc, truth, "t", above=0.5, bins=4)
    np.testing.assert_allclose(coarse["share"].sum("bin"), 1.0)
    np.testing.assert_allclose((coarse["share"] * coarse["observed"]).sum("bin"), coarse["frequency"], rtol=1e-12)
    np.testing.assert_allclose((coarse["share"] * coarse["forecast"]).sum("bin"), coarse["mean_probability"])
    assert (np.diff(coarse["forecast"]) > 0).all() and float(abs(coarse["resolution"] - s["resolution"]).max()) == 0


def test_exchangeable_members_lie_near_the_diagonal_and_narrow_ones_do_not():
    """Members that share the truth's distribution forecast k/M of an event that happens in nearly k/M of the cases."""
    fc, truth = ensemble(M=40, starts=20)
    sharp, _ = ensemble(M=40, starts=20, scale=0.3)
    honest, vain = (lapse.score_event(f, truth, "t", above=0.0) for f in (fc, sharp))
    assert float(honest["reliability"].max()) < 2e-3 < 0.02 < float(vain["reliability"].min())
    assert float(abs(honest["observed"] - honest["forecast"]).max()) < 0.06
    assert float(vain["observed"].isel(bin=0).min()) > 0.1, "what narrow members rule out happens all the same"
    assert honest.sizes["bin"] == 21
    assert float(honest["brier_skill"].min()) > float(vain["brier_skill"].max())


def test_the_fair_score_does_not_depend_on_the_number_of_members():
    fc, truth = ensemble(M=40, starts=20)
    few, many = (lapse.score_event(fc.isel(member=slice(m)), truth, "t", above=0.0)["brier"].mean() for m in (3, 40))
    assert float(few) == pytest.approx(float(many), rel=0.02)


def test_below_is_the_complement_and_places_may_have_their_own_threshold():
    fc, truth = ensemble()
    above, below = lapse.score_event(fc, truth, "t", above=0.3), fc.lapse.score_event(truth, "t", below=0.3)
    np.testing.assert_allclose(above["brier"], below["brier"], rtol=1e-12)
    np.testing.assert_allclose(above["frequency"] + below["frequency"], 1.0)
    local = truth["t"].quantile(0.9, ("init_time", "lead_time")).drop_vars("quantile")
    s = lapse.score_event(fc, truth, "t", above=local.isel(lat=slice(None, None, -1)))
    want = weighted((truth["t"] > local).astype(float))
    np.testing.assert_allclose(s["frequency"], want, rtol=1e-12)
    assert s.attrs["event"] == "t above a threshold of each place"


def test_members_that_blew_up_are_left_out():
    fc, truth = ensemble()
    broken = fc.copy(deep=True)
    broken["t"][:, 3] = np.nan
    s = lapse.score_event(broken, truth, "t", above=0.3, nan="valid")
    others = lapse.score_event(fc.isel(member=[0, 1, 2, *range(4, 10)]), truth, "t", above=0.3)
    np.testing.assert_allclose(s["brier"], others["brier"], rtol=1e-12)


def test_bad_input():
    fc, truth = ensemble(leads=1, starts=1)
    for wrong in ({}, {"above": 1.0, "below": 1.0}):
        with pytest.raises(ValueError, match="wanted one threshold"):
            lapse.score_event(fc, truth, "t", **wrong)
    with pytest.raises(ValueError, match="bins=1"):
        lapse.score_event(fc, truth, "t", above=0.0, bins=1)
    with pytest.raises(ValueError, match="two or more"):
        lapse.score_event(fc.isel(member=[0]), truth, "t", above=0.0)
    with pytest.raises(SpecError, match=r"dimensions .*height"):
        lapse.score_event(fc, truth, "t", above=xr.DataArray([0.0], dims="height"))
    with pytest.raises(SpecError, match="units 'degC'"):
        lapse.score_event(fc, truth.assign(t=truth["t"].assign_attrs(units="degC")), "t", above=0.0)
