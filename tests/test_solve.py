"""model.solve is the solver that made the data: it continues stored trajectories, member by member."""

import numpy as np
import pytest
import torch
import xarray as xr

import lapse
from lapse.datasets.simulate import simulate
from lapse.datasets.spec import SpecError


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return lapse.load("kolmogorov64")


@pytest.fixture(scope="module")
def flow(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("flow") / "flow.zarr"
    simulate("kolmogorov", path, trajectories=2, frames=4, interval=0.2, resolution=64, spin_up=2.0,
             parameters=model.spec.parameters, progress=False)  # fmt: skip
    return lapse.open_dataset(path).load()


def test_it_continues_a_stored_trajectory(model, flow):
    run = flow.isel(trajectory=0, drop=True)
    found = model.solve(run, 2, init_times=run["time"].values[:2])
    assert found["vorticity"].dims == ("init_time", "lead_time", "y", "x")
    for i in range(2):
        want = run["vorticity"].isel(time=slice(i + 1, i + 3)).values
        np.testing.assert_allclose(found["vorticity"].isel(init_time=i), want, atol=1e-4)
        np.testing.assert_allclose(found["valid_time"].isel(init_time=i), run["time"].values[i + 1 : i + 3])


def test_members_are_solved_each_from_its_own_state(model, flow):
    analyses = flow.rename(trajectory="member").isel(time=[0])
    found = analyses.lapse.solve(model, 1)
    assert found["vorticity"].dims == ("init_time", "member", "lead_time", "y", "x")
    np.testing.assert_allclose(found["vorticity"][0, :, 0], flow["vorticity"].isel(time=1), atol=1e-4)


def test_it_is_the_truth_of_a_forecast(model, flow):
    start = flow.isel(trajectory=1, time=[0], drop=True)
    fc, truth = model.forecast(start, 2, 4, progress=False), model.solve(start, 2)
    scores = lapse.score(fc, truth, spec=model.spec)
    assert float(scores["vrmse"].max()) < 0.2
    assert truth["vorticity"].attrs["units"] == "s-1" and truth.attrs["lapse_seconds"] > 0


def test_it_obeys_the_parameters_asked_for(model, flow):
    start = flow.isel(trajectory=0, time=[0], drop=True)
    more = model.at(forcing=3.0).solve(start, 1)["vorticity"] - model.solve(start, 1)["vorticity"]
    force = -4.0 * np.cos(4.0 * start["y"])  # of the vorticity, per unit of forcing: -k cos(k y)
    assert float(xr.corr(more.squeeze(), force.broadcast_like(more.squeeze()))) > 0.9


def test_bad_input(model, flow):
    with pytest.raises(ValueError, match="names no equation"):
        lapse.load("air-temperature").solve(flow, 1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        model.solve(flow.isel(trajectory=0), 0)
    with pytest.raises(SpecError, match="trajectory"):
        model.solve(flow, 1)
