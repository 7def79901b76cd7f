"""Observations: what is missing is found, whatever way it is missing, and what is wrong is said at once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr

from lapse import SpecError
from lapse.surrogate.model import Model
from lapse.surrogate.observations import is_complete, observations


@pytest.fixture(scope="module")
def points(analyses: xr.Dataset) -> xr.Dataset:
    """A tenth of the cells, other ones in every frame."""
    kept = np.random.default_rng(1).random(analyses["vorticity"].shape) < 0.1
    return analyses.where(xr.DataArray(kept, dims=analyses["vorticity"].dims)).assign_attrs(analyses.attrs)


def test_points_are_where_they_are(tiny_model: Model, points: xr.Dataset) -> None:
    found = observations(points, tiny_model.spec, 0.1)
    wanted = points["vorticity"].values
    where = found.observed.where[:, 0].numpy()
    assert np.array_equal(where, np.isfinite(wanted)) and found.count == where.sum()
    assert np.array_equal(found.observed.value[:, 0].numpy()[where], wanted[where])
    assert torch.all(found.observed.error == 0.1)


def test_missing_frames_come_back_empty(tiny_model: Model, points: xr.Dataset) -> None:
    found = observations(points.isel(time=[0, 3, 4]), tiny_model.spec, 0.0)
    assert np.allclose(found.times, 0.2 * np.arange(5))
    assert found.observed.where.flatten(1).any(1).tolist() == [True, False, False, True, True]
    assert np.array_equal(found.observed.where[3, 0].numpy(), np.isfinite(points["vorticity"].values[3]))


def test_missing_variables_are_never_seen(make_model: Callable[..., Model], analyses: xr.Dataset) -> None:
    from lapse.datasets.spec import Variable

    spec = make_model(variables=(Variable("vorticity", "s-1"), Variable("speed", "m s-1"))).spec
    found = observations(analyses, spec, {"vorticity": 0.3})
    assert found.observed.where[:, 0].all() and not found.observed.where[:, 1].any()


def test_a_coarse_grid_lies_on_the_fine_one(tiny_model: Model, analyses: xr.Dataset) -> None:
    coarse = analyses.isel(y=slice(0, None, 4), x=slice(2, None, 4))
    found = observations(coarse, tiny_model.spec, 0.0)
    assert found.count == 5 * 16
    value = found.observed.value[:, 0, ::4, 2::4].numpy()
    assert np.array_equal(value, coarse["vorticity"].values)


def test_units_are_converted_and_errors_are_in_the_specs(tiny_model: Model, points: xr.Dataset) -> None:
    hourly = (points * 3600).assign_coords(points.coords)
    hourly["vorticity"].attrs = {"units": "h-1", "observation_error": 0.2}
    found = observations(hourly, tiny_model.spec, None)
    where = found.observed.where
    wanted = observations(points, tiny_model.spec, 0.2)
    assert torch.allclose(found.observed.value[where], wanted.observed.value[where], rtol=1e-5)
    assert torch.all(found.observed.error == wanted.observed.error)
    assert "converted" in found.history


def test_errors_may_differ_from_cell_to_cell(tiny_model: Model, points: xr.Dataset) -> None:
    error = xr.DataArray(np.linspace(0, 1, 16), dims="x", coords={"x": points["x"]})
    found = observations(points, tiny_model.spec, {"vorticity": error})
    assert torch.allclose(found.observed.error[2, 0, 5], torch.linspace(0, 1, 16))


def test_every_problem_at_once(tiny_model: Model, points: xr.Dataset) -> None:
    bad = points.copy(deep=True)
    bad["vorticity"].values[0, 0, 0] = np.inf
    bad["vorticity"].attrs["units"] = "K"
    with pytest.raises(SpecError) as caught:
        observations(bad, tiny_model.spec, None)
    said = str(caught.value)
    assert "infinite" in said and "units 'K'" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "found none; wanted a standard deviation in s-1"),
        (-0.1, "negative"),
        ({"wind": 1.0}, "'wind'.*no such observation"),
        ({"vorticity": "large"}, "could not convert"),
    ],
)
def test_errors_that_cannot_be(tiny_model: Model, points: xr.Dataset, error: object, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        observations(points, tiny_model.spec, error)


def test_nothing_observed(tiny_model: Model, points: xr.Dataset) -> None:
    with pytest.raises(SpecError, match="NaN everywhere"):
        observations(points.where(False), tiny_model.spec, 0.1)
    with pytest.raises(SpecError, match="one of vorticity"):
        observations(points.rename(vorticity="vo"), tiny_model.spec, 0.1)


def test_completeness(tiny_model: Model, analyses: xr.Dataset, points: xr.Dataset) -> None:
    assert is_complete(analyses, tiny_model.spec)
    assert not is_complete(points, tiny_model.spec)
    assert not is_complete(analyses.isel(time=[0, 2, 3]), tiny_model.spec)
