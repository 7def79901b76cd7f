"""Certificates: residuals of known errors, bounds that hold as often as they say, other physics flagged."""

from __future__ import annotations

import json
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.shards import StoreError
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.equation import Equation
from lapse.physics.grid import Grid
from lapse.surrogate import cli
from lapse.surrogate.audit import Audit, nearest
from lapse.surrogate.certificate import Certificate, bins, calibrate, conformal
from lapse.surrogate.emulator import Emulator, Mode
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.package import load
from lapse.surrogate.state import State

PARAMETERS = {"viscosity": 0.05, "drag": 0.1, "forcing": 1.0, "wavenumber": 2.0}
SPEC = FieldSpec(
    (Variable("vorticity", "s-1"),), Grid.periodic_box(16), 0.2, "s", parameters=PARAMETERS, equation="kolmogorov"
)
LEADS = 5


@cache
def true_law() -> Equation:
    return law(SPEC)


class Solver(Emulator):
    """The solver on lossless latents, with white noise on some of them: what it breaks the law by is known."""

    def free(self, state: State, noise: Tensor | None, phase: Tensor | None, mode: Mode) -> State:
        z = self.autoencoder.encode(true_law().advance(self.decode(state), SPEC.interval)).z
        if noise is not None:
            z[:, : self.noise_maps] += 0.01 * noise[:, : self.noise_maps * 16].reshape(len(z), self.noise_maps, 4, 4)
        return self.push(state, z)


def solver(spec: FieldSpec = SPEC) -> Model:
    ae = Autoencoder(spec, Normaliser(spec), "identity", patch=4)
    emulator = Solver(ae, width=4, depth=1, parts=("fast",)).eval()
    return Model(emulator, "toy", {"name": "toy"})


@cache
def states(count: int, seed: int = 0, forcing: float = 1.0) -> Tensor:
    """Series of two frames within the climate, (count, 2, C, *space)."""
    flow = law(SPEC, {"forcing": forcing})
    u = flow.spin_up(torch.Generator().manual_seed(seed), count, duration=8.0)
    return torch.stack([u, flow.advance(u, SPEC.interval)], dim=1)


def analyses(u: Tensor, **parameters: float) -> xr.Dataset:
    """States (N, C, *space) as times of one Dataset, which says what it obeys."""
    about = {"equation": "kolmogorov", "parameters": json.dumps({**PARAMETERS, **parameters})}
    times = ("time", SPEC.interval * np.arange(len(u)), {"units": "s"})
    return to_dataset(u, SPEC, ["time"], {"time": times}).assign_attrs(about)


@cache
def certificate() -> Certificate:
    return calibrate(solver(), states(40), leads=LEADS)


def certified() -> Model:
    model = solver()
    model.certificates["fast"] = certificate()
    return model


def test_the_residual_is_the_error_that_was_made() -> None:
    audit = Audit(SPEC, torch.tensor([2.0]))
    u0, u1 = states(4).unbind(dim=1)
    assert float(audit.residual(u0, u1).max()) < 1e-5
    error = torch.randn(u1.shape, generator=torch.Generator().manual_seed(5))
    wanted = (0.1 * error).square().mean((1, 2, 3)).sqrt() / (u1 + 0.1 * error).std((1, 2, 3), correction=0)
    torch.testing.assert_close(audit.residual(u0, u1 + 0.1 * error), wanted, rtol=1e-4, atol=0)
    # Shrunk fields do not look better, and another law is seen.
    assert float(audit.residual(0.5 * u0, 0.5 * u1).min()) > 1e-2
    other = Audit(SPEC, torch.tensor([2.0]), {**PARAMETERS, "viscosity": 0.1})
    assert float(other.residual(u0, u1).min()) > 1e-2
    u1 = u1.clone()
    u1[2, 0, 3, 3] = torch.nan
    assert audit.residual(u0, u1).isnan().tolist() == [False, False, True, False]


def test_a_bound_has_the_rank_that_conformal_prediction_asks_for() -> None:
    assert conformal(np.arange(1, 100)[::-1], 0.9) == 90
    assert conformal(np.arange(9), 0.9) == 8
    assert conformal(np.arange(8), 0.9) == np.inf
    # P(new ≤ bound) = rank/(n + 1), for any distribution.
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(4000, 20))
    held = np.mean([row[-1] <= conformal(row[:-1], 0.9) for row in draws])
    assert abs(held - 18 / 20) < 0.015


def test_bins_double_and_end_with_the_last_lead() -> None:
    for leads in (1, 2, 3, 6, 20, 40):
        edges = bins(leads)
        assert edges[0] == 1
        assert edges[-1] == leads + 1
        assert all(a < b for a, b in pairwise(edges))


def test_the_bound_holds_nine_times_in_ten() -> None:
    model = certified()
    ds = analyses(states(20, seed=1)[:, 0])
    fc = model.forecast(ds, LEADS, 2, init_times="all", certify=True, progress=False)
    assert fc["residual"].dims == fc["certified"].dims == ("init_time", "member", "lead_time")
    edges = certificate().edges
    for a, b in pairwise(edges):
        part = fc.isel(lead_time=slice(a - 1, b - 1))
        assert 0.8 <= float((part["residual"] <= part["residual_bound"]).mean()) <= 0.98
    assert float(fc["certified"].mean()) > 0.8
    # What is measured is what the forecast itself shows: the noise, and nothing of the solver.
    u = torch.from_numpy(fc["vorticity"].isel(init_time=0, lead_time=slice(2)).values)[:, :, None]
    r = Audit(SPEC, torch.ones(1)).residual(u[:, 0], u[:, 1])
    np.testing.assert_allclose(fc["residual"].isel(init_time=0, lead_time=1), r, rtol=1e-5)
    assert certificate().data < 1e-5
    told = json.loads(fc.attrs["lapse_certificate"])
    assert told["share_audited"] == 1
    assert told["parameters"] == PARAMETERS


@pytest.mark.parametrize("other", [{"forcing": 1.5}, {"viscosity": 0.035}])
def test_other_physics_is_flagged(other: dict[str, float]) -> None:
    flow = law(SPEC, other)
    u = flow.spin_up(torch.Generator().manual_seed(2), 4, duration=8.0)
    with pytest.warns(UserWarning, match="certified are only 0%"):
        fc = certified().forecast(analyses(u, **other), LEADS, 2, init_times="all", certify=True, progress=False)
    assert float(fc["certified"].mean()) < 0.05
    assert json.loads(fc.attrs["lapse_certificate"])["parameters"] == {**PARAMETERS, **other}


def test_a_small_shift_shows_in_a_series() -> None:
    """Frames just below their bound, one after the other, are no chance."""
    model = certificate()
    steady = np.repeat(model.of(model.bounds, LEADS)[None] * 0.999, 2, axis=0)
    verdicts = model.judge(steady, np.ones(steady.shape, bool))
    assert verdicts[0, 0] == 1
    assert verdicts[0, -1] == 0


def test_leads_beyond_the_calibration_are_not_certified() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fc = certified().forecast(analyses(states(1, seed=3)[:, 0]), LEADS + 3, 2, certify=True, progress=False)
    assert fc["residual"].notnull().all()
    assert fc["residual_bound"].isnull().values.tolist() == [False] * LEADS + [True] * 3
    assert int(fc["certified"].isel(lead_time=slice(LEADS, None)).sum()) == 0


def test_a_share_is_audited_and_the_rest_takes_the_nearest_verdict() -> None:
    audited = np.array([[True, False, False, False, True], [False, False, True, False, False]])
    assert nearest(audited).tolist() == [[0, 0, 0, 4, 4], [2, 2, 2, 2, 2]]
    model, ds = certified(), analyses(states(1, seed=4)[:, 0])
    whole = model.forecast(ds, LEADS, 6, certify=True, progress=False)
    part = model.forecast(ds, LEADS, 6, certify=1 / 3, progress=False)
    seen = part["residual"].notnull().values
    assert seen.mean() == pytest.approx(1 / 3)
    np.testing.assert_array_equal(part["residual"].values[seen], whole["residual"].values[seen])
    # A member is audited alike in any batch.
    pieces = model.forecast(ds, LEADS, 6, certify=1 / 3, batch_size=4, progress=False)
    xr.testing.assert_equal(part.drop_attrs(), pieces.drop_attrs())


def test_a_store_holds_the_certificate_and_refuses_another(tmp_path: Path) -> None:
    model, ds = certified(), analyses(states(1, seed=4)[:, 0])
    whole = model.forecast(ds, 4, 6, certify=0.5, progress=False)
    path = tmp_path / "fc.zarr"
    model.forecast(ds, 4, 4, certify=0.5, store=path, batch_size=2, progress=False)
    grown = model.forecast(ds, 4, 6, certify=0.5, store=path, resume=True, progress=False)
    for name in ("vorticity", "residual", "certified", "residual_bound"):
        np.testing.assert_array_equal(grown[name], whole[name])
    with pytest.raises(StoreError, match="certif"):
        model.forecast(ds, 4, 6, certify=True, store=path, resume=True, progress=False)


def test_the_certificate_is_part_of_the_package(tmp_path: Path) -> None:
    model = certified()
    model.config |= {
        "normaliser": {}, "autoencoder": {"network": "identity", "patch": 4},
        "emulator": {"width": 4, "depth": 1, "parts": ["fast"]},
    }  # fmt: skip
    folder = model.save(tmp_path / "toy")
    assert load(folder).certificates == {"fast": certificate()}
    told = json.loads((folder / "certificate.json").read_text())
    (folder / "certificate.json").write_text(json.dumps({**told, "sha256": "other"}))
    assert not load(folder).certificates
    assert "90 % bound" in "\n".join(certificate().lines())


def test_what_cannot_be_certified_is_refused() -> None:
    ds = analyses(states(1)[:, 0])
    with pytest.raises(ValueError, match="names no equation"):
        solver(SPEC.replace(equation=None)).forecast(ds, 2, 2, certify=True, progress=False)
    with pytest.raises(ValueError, match=r"model\.calibrate"):
        solver().forecast(ds, 2, 2, certify=True, progress=False)
    with pytest.raises(ValueError, match="share 2"):
        certified().forecast(ds, 2, 2, certify=2, progress=False)
    with pytest.raises(ValueError, match="keep='fields'"):
        certified().forecast(ds, 2, 2, certify=True, keep="statistics", progress=False)
    with pytest.raises(ValueError, match="at least 20"):
        calibrate(solver(), states(40)[:10])


def test_a_model_is_calibrated_on_a_dataset_with_trajectories() -> None:
    flow, u = law(SPEC), [states(3, seed=6)[:, 0]]
    for _ in range(9):
        u.append(flow.advance(u[-1], SPEC.interval))
    series = torch.stack(u, dim=1)
    runs = [analyses(run).expand_dims(trajectory=[i]) for i, run in enumerate(series)]
    model = solver()
    found = model.calibrate(xr.concat(runs, "trajectory"), leads=4, starts=25)
    assert model.certificates == {"fast": found}
    assert found.starts == 25
    assert found.bounds[0] == pytest.approx(certificate().bounds[0], rel=0.3)
    with pytest.raises(ValueError, match="wanted at least"):
        model.calibrate(runs[0].isel(time=slice(1)), leads=4)


def test_the_command_line_certifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lapse

    model = lapse.load("kolmogorov64")
    if not model.certificates:
        pytest.skip("the shipped model has no certificate")
    flow = law(model.spec)
    u = flow.spin_up(torch.Generator().manual_seed(1), 1, duration=5.0)
    time = {"time": ("time", np.zeros(1), {"units": "s"})}
    to_dataset(u, model.spec, ["time"], time).to_zarr(tmp_path / "a.zarr", consolidated=False)
    out = tmp_path / "fc.nc"
    command = ["forecast", "kolmogorov64", str(tmp_path / "a.zarr"), "--steps", "3", "--members", "4", "--quiet"]
    assert cli.main([*command, "--certify", "0.5", "--out", str(out)]) == 0
    assert "certified:" in capsys.readouterr().out
    with xr.open_dataset(out, decode_timedelta=False) as fc:
        assert float(fc["residual"].notnull().mean()) == 0.5
