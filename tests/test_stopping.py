"""The certificate ends a design before the surrogate's forecasts break their equation."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from lapse import SpecError, objectives
from lapse.autoencoder.model import Autoencoder
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Grid
from lapse.surrogate.certificate import calibrate
from lapse.surrogate.emulator import Emulator, Mode
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.state import State

PARAMETERS = {"viscosity": 0.05, "drag": 0.1, "forcing": 1.0, "wavenumber": 2.0}
SPEC = FieldSpec(
    (Variable("vorticity", "s-1"),), Grid.periodic_box(16), 0.2, "s", parameters=PARAMETERS, equation="kolmogorov"
)
LARGEST = 8.0  # s-1; the largest of 48 states is 7.0
BOX = {"x": slice(1.0, 2.0), "y": slice(3.0, 4.0)}


class Flatterer(Emulator):
    """The solver, which makes more of values beyond what occurs, and a little noise."""

    def free(self, state: State, noise: Tensor | None, phase: Tensor | None, mode: Mode) -> State:
        u = law(SPEC).advance(self.decode(state), SPEC.interval)
        u = u + 2.0 * (torch.relu(u - LARGEST) - torch.relu(-u - LARGEST))
        z = self.autoencoder.encode(u).z
        assert noise is not None
        return self.push(state, z + 0.02 * noise[:, : z[0].numel()].reshape(z.shape))


@cache
def climate() -> Tensor:
    """Series of two frames, (48, 2, C, *space)."""
    u = law(SPEC).spin_up(torch.Generator().manual_seed(0), 48, duration=8.0)
    return torch.stack([u, law(SPEC).advance(u, SPEC.interval)], dim=1)


@cache
def model() -> Model:
    ae = Autoencoder(SPEC, Normaliser(SPEC), "identity", patch=4)
    ae.network.bound = None
    found = Model(Flatterer(ae, width=4, depth=1, parts=("fast",), noise_maps=16).eval(), "toy", {"name": "toy"})
    found.certificates["fast"] = calibrate(found, climate()[:40], leads=4)
    return found


def analysis() -> xr.Dataset:
    return to_dataset(climate()[40, :1], SPEC, ["time"], {"time": ("time", np.zeros(1), {"units": "s"})})


def found(**options: Any) -> xr.Dataset:
    goal = objectives.region_mean("vorticity", lead=3, **BOX)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model().design(
            analysis(), goal, 3, sense="maximise", bounds={}, constraints=(), iterations=12, members=2, prior=0.0,
            predicted=19, verify="solver", progress=False, **options,
        )  # fmt: skip


def test_a_search_ends_where_the_certificate_does_not_hold() -> None:
    assert float(climate().abs().max()) < LARGEST
    far, near = found(), found(certify=True)
    assert "certified" not in far

    def lie(out: xr.Dataset) -> float:
        return float(out["predicted_objective"] - out["achieved"])

    assert lie(far) > 2.0  # there is something to be ended
    assert abs(lie(near)) < 0.1 * float(near["achieved"] - near["achieved_given"])
    share, limit = near["certified"].values, near["certified"].attrs["limit"]
    assert len(share) < len(far["iteration"])
    assert (share[:-1] >= limit).all() and share[-1] < limit
    # The state that is returned is the best of those that hold, and its forecast is certified as `forecast` does it.
    best = near["objective"].values[:-1].max()
    assert best > near["objective"].values[0]
    fc = model().forecast(near, 3, 2, certify=True, progress=False)
    assert float(fc["certified"].mean()) >= limit


def test_within_the_climate_it_changes_nothing() -> None:
    options = {"radius": 0.05}
    free, held = found(**options), found(certify=True, **options)
    np.testing.assert_array_equal(free["vorticity"], held["vorticity"])
    assert (held["certified"] >= held["certified"].attrs["limit"]).all()


def test_a_start_that_is_not_certified_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = objectives.region_mean("vorticity", lead=2, **BOX)
    other = {"equation": "kolmogorov", "parameters": json.dumps({**PARAMETERS, "forcing": 1.5})}
    with pytest.raises(ValueError, match="found no certified frame in the forecast from the start"):
        model().design(analysis().assign_attrs(other), goal, 2, sense="maximise", certify=True, progress=False)
    strict = replace(model().certificates["fast"], share=0.95)
    monkeypatch.setitem(model().certificates, "fast", strict)
    assert "the rule is lax" in found(certify=True).attrs["lapse_design_doubts"]


def test_what_cannot_be_is_refused() -> None:
    goal = objectives.region_mean("vorticity", lead=2, **BOX)
    with pytest.raises(SpecError, match="certify beside repairs"):
        found(certify=True, repairs=1)
    with pytest.raises(ValueError, match="at most the 4 that the certificate covers"):
        model().design(analysis(), goal, 5, sense="maximise", certify=True, progress=False)
    bare = Model(model().emulator, "bare", {"name": "bare"})
    with pytest.raises(ValueError, match="no certificate of mode 'fast'"):
        bare.design(analysis(), goal, 2, sense="maximise", certify=True, progress=False)
