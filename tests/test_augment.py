"""Samples given observations: a posterior known in closed form, exact agreement, and members that stand alone."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

from lapse import FieldSpec, SpecError
from lapse.datasets.datamodule import FieldData
from lapse.datasets.fields import space_coordinates
from lapse.datasets.spec import Variable
from lapse.datasets.time import phase as phase_of
from lapse.physics.grid import Grid
from lapse.surrogate import cli
from lapse.surrogate.augment import AugmentWarning, _phases
from lapse.surrogate.bloch import Bloch
from lapse.surrogate.climate import Climate, fit_climate
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.model import Model
from lapse.surrogate.observations import observations
from lapse.surrogate.package import build
from lapse.surrogate.window import Observed, Window

N, FRAMES, NOISE, ERROR = 8, 3, 0.3, 0.2


class Drift(Emulator):
    """Linear, with a known posterior: the field moves by four cells a frame, and one random number is added to it."""

    def predict_fast(self, state, context, condition, noise):
        return torch.roll(state.z[:, -1], 1, dims=-1) + NOISE * noise[:, -1].reshape(-1, 1, 1, 1)


def covariance() -> NDArray[np.float64]:
    """Of the first frame: smooth on the periodic plane, about a mean of one."""
    i = np.arange(N)
    d = np.minimum(abs(i[:, None] - i), N - abs(i[:, None] - i))
    smooth = np.exp(-((d / 1.2) ** 2))
    ring = smooth @ smooth.T
    ring /= ring[0, 0]
    return np.kron(ring, ring) + 0.01 * np.eye(N * N)


@pytest.fixture(scope="module")
def drift() -> Model:
    spec = FieldSpec((Variable("vorticity", "s-1"),), Grid.periodic_box(N), 1.0, "s")
    config = {
        "name": "drift", "normaliser": {},
        "autoencoder": {"network": "identity", "heads": []},
        "emulator": {"width": 4, "depth": 1, "parts": ["fast"], "noise_maps": 1, "noise_vector": 1},
    }  # fmt: skip
    emulator = build(spec, config)
    emulator.__class__ = Drift
    model = Model(emulator.double().eval(), "drift", config)
    # Patches only reorder the cells: Q u = z.
    Q = emulator.autoencoder.encode(torch.eye(N * N, dtype=torch.float64).reshape(-1, 1, N, N)).z.flatten(1).T
    value, vector = np.linalg.eigh(covariance())
    root = Q @ torch.from_numpy(vector * np.sqrt(value.clip(0)) @ vector.T) @ Q.T
    nought = torch.zeros(1, dtype=torch.float64)
    model.climate = Climate(
        torch.ones(16, 2, 2, dtype=torch.float64), Bloch(root[None].to(torch.complex128), (16, 2, 2), (2, 2)), nought,
        nought, torch.full((1,), 1e-4, dtype=torch.float64),
    )  # fmt: skip
    return model


def dataset(spec: FieldSpec, u: NDArray[np.float64]) -> xr.Dataset:
    time = ("time", spec.interval * np.arange(len(u)), {"units": "s"})
    return xr.Dataset(
        {"vorticity": (("time", "y", "x"), u, {"units": "s-1"})}, {"time": time, **space_coordinates(spec)}
    )


def posterior(u: NDArray[np.float64], error: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of all frames ``(FRAMES, N, N)`` given the entries of u that are not NaN, by linear algebra."""
    cells = N * N
    shift = np.kron(np.eye(N), np.roll(np.eye(N), 4, axis=0))
    blocks = [np.concatenate([np.eye(cells), np.zeros((cells, FRAMES - 1))], axis=1)]
    for k in range(1, FRAMES):
        G = shift @ blocks[-1]
        G[:, cells + k - 1] += NOISE
        blocks.append(G)
    G = np.concatenate(blocks[: len(u)])
    P = np.eye(cells + FRAMES - 1)
    P[:cells, :cells] = covariance()
    mean = G @ np.concatenate([np.ones(cells), np.zeros(FRAMES - 1)])
    seen = np.isfinite(u.ravel())
    H = G[seen]
    gain = G @ P @ H.T @ np.linalg.inv(H @ P @ H.T + error**2 * np.eye(seen.sum()))
    variance = np.diag(G @ P @ G.T - gain @ H @ P @ G.T)
    return (mean + gain @ (u.ravel()[seen] - mean[seen])).reshape(u.shape), variance.reshape(u.shape)


def truth(rng: np.random.Generator) -> NDArray[np.float64]:
    """A draw of the prior, all frames."""
    frames = [(1 + np.linalg.cholesky(covariance()) @ rng.standard_normal(N * N)).reshape(N, N)]
    for _ in range(FRAMES - 1):
        frames.append(np.roll(frames[-1], 4, axis=1) + NOISE * rng.standard_normal())
    return np.stack(frames)


@pytest.fixture(scope="module")
def seen() -> NDArray[np.float64]:
    """Truth drawn from the prior, with an error, at a fifth of the cells of the first and the last frame."""
    rng = np.random.default_rng(3)
    u = truth(rng)
    u += ERROR * rng.standard_normal(u.shape)
    kept = rng.random(u.shape) < 0.2
    kept[1] = False
    return np.where(kept, u, np.nan)


def test_the_samples_have_the_moments_of_the_posterior(drift: Model, seen: NDArray[np.float64]) -> None:
    """Up to the sampling error of the covariances, which an ensemble of 2000 supplies."""
    found = drift.augment(dataset(drift.spec, seen), 400, error=ERROR, ensemble=2000, progress=False)
    x = found["vorticity"].values.astype(np.float64)
    mean, variance = posterior(seen, ERROR)
    away = (x.mean(0) - mean) / np.sqrt(variance)
    assert np.sqrt(np.mean(away**2)) < 0.15
    ratio = x.var(0, ddof=1) / variance
    assert ratio.min() > 0.6 and ratio.max() < 1.6 and abs(ratio.mean() - 1) < 0.1


@pytest.mark.filterwarnings("ignore::lapse.surrogate.augment.AugmentWarning")
def test_few_covariances_cost_accuracy_and_not_calibration(drift: Model) -> None:
    """Of 24 ensembles of 24, each with a truth of its own: spread over error, and coverage of 80 % intervals."""
    square, spread, inside = 0.0, 0.0, 0.0
    for case in range(24):
        rng = np.random.default_rng(case)
        u = truth(rng)
        y = np.where(rng.random(u.shape) < 0.2, u + ERROR * rng.standard_normal(u.shape), np.nan)
        x = drift.augment(dataset(drift.spec, y), 40, error=ERROR, ensemble=24, seed=case, progress=False)[
            "vorticity"
        ].values
        square += np.mean((x.mean(0) - u) ** 2) / 24
        spread += np.mean(x.var(0, ddof=1)) * (1 + 1 / 40) / 24
        low, high = np.quantile(x, (0.1, 0.9), axis=0, method="weibull")
        inside += np.mean((low <= u) & (u <= high)) / 24
    assert np.sqrt(spread / square) == pytest.approx(1.0, abs=0.15)
    assert inside == pytest.approx(0.8, abs=0.06)


def test_exact_observations_are_met_exactly(drift: Model, seen: NDArray[np.float64]) -> None:
    """And the rest follows them as if their error were next to nothing."""
    u = seen[:1].astype(np.float32)
    found = drift.augment(dataset(drift.spec, u), 200, error=0.0, ensemble=2000, progress=False)
    x, kept = found["vorticity"].values, np.isfinite(u)
    assert (x[:, kept] == u[kept]).all()
    mean, variance = posterior(u.astype(np.float64), 1e-3)
    away = (x.mean(0) - mean)[~kept] / np.sqrt(variance[~kept])
    assert np.sqrt(np.mean(away**2)) < 0.2
    assert (x.var(0, ddof=1) / variance)[~kept].mean() == pytest.approx(1.0, abs=0.2)


def test_a_member_depends_on_seed_and_number_only(drift: Model, seen: NDArray[np.float64]) -> None:
    ds = dataset(drift.spec, seen)

    def run(samples: int, seed: int = 0) -> NDArray[np.float32]:
        found = drift.augment(ds, samples, error=ERROR, seed=seed, progress=False)["vorticity"].values
        return np.asarray(found)

    many = run(10)
    assert np.allclose(run(2), many[:2], rtol=0, atol=1e-6)
    assert np.allclose(run(9), many[:9], rtol=0, atol=1e-6)
    assert np.abs(run(2, seed=1) - many[:2]).max() > 0.1


def test_frames_before_the_window_are_one_more_source_of_knowledge(drift: Model, seen: NDArray[np.float64]) -> None:
    """One frame, begun a frame earlier: the prior is moved by the dynamics, and one number more is free."""
    u = seen[:1]
    direct = drift.augment(dataset(drift.spec, u), 80, error=ERROR, progress=False)
    before = drift.augment(dataset(drift.spec, u), 80, error=ERROR, before=1, progress=False)
    assert before.sizes["time"] == 1
    spread = before["vorticity"].var("member").mean() / direct["vorticity"].var("member").mean()
    assert 0.9 < float(spread) < 2.0


# with a model of two frames' history, a nonlinear decoder, heads and a decoder error


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Model], make_analyses: Callable[..., xr.Dataset]) -> Model:
    return with_climate(make_model(), make_analyses)


def with_climate(model: Model, make_analyses: Callable[..., xr.Dataset]) -> Model:
    times = 0.2 * np.arange(41)
    if model.spec.calendar:
        times = np.datetime64("2001-01-01", "ns") + np.arange(41) * np.timedelta64(6, "h")
    u = torch.from_numpy(make_analyses(model.spec, times)["vorticity"].values)[:, None]
    windows = torch.stack([u[:-1], u[1:]], dim=1)
    phase = torch.from_numpy(phase_of(times)) if model.spec.calendar else None
    phases = None if phase is None else torch.stack([phase[:-1], phase[1:]], dim=1)
    model.climate = fit_climate(model.emulator, windows, phases)
    return model


@pytest.fixture(scope="module")
def sparse(analyses: xr.Dataset) -> xr.Dataset:
    """A fifth of the cells of the first, third and fourth frame."""
    kept = np.random.default_rng(1).random(analyses["vorticity"].shape) < 0.2
    return analyses.where(xr.DataArray(kept, dims=analyses["vorticity"].dims)).isel(time=[0, 2, 3])


@pytest.fixture(scope="module")
def found(model: Model, sparse: xr.Dataset) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AugmentWarning)  # random weights fit nothing
        return model.augment(sparse, 3, error=0.0, progress=False)


def test_the_result_is_whole_and_says_where_it_comes_from(model: Model, found: xr.Dataset, sparse: xr.Dataset) -> None:
    assert found["vorticity"].dims == ("member", "time", "y", "x")
    assert found.sizes == {"member": 3, "time": 4, "y": 16, "x": 16}
    assert np.allclose(found["time"], 0.2 * np.arange(4)) and found["time"].attrs["units"] == "s"
    x, wanted = found["vorticity"].sel(time=sparse["time"], method="nearest").values, sparse["vorticity"].values
    kept = np.isfinite(wanted)
    assert (x[:, kept] == wanted[kept]).all()
    assert np.isfinite(found["vorticity"]).all() and (found["valid"] == 1).all()
    assert (found["generated"] == 1).all()
    assert found["vorticity"].attrs["units"] == "s-1"
    for key in ("lapse_seed", "lapse_model", "lapse_mode", "lapse_config_hash", "lapse_input_fingerprint"):
        assert key in found.attrs
    assert "augment, model tiny" in found.attrs["history"] and "made for a test" in found.attrs["history"]
    # The exact heads hold: a member's area mean is the same in every frame.
    assert float(found["vorticity"].mean(("y", "x")).std("time").max()) < 1e-4


def test_the_analysis_starts_a_forecast(model: Model, found: xr.Dataset) -> None:
    fc = model.forecast(found, 2, 6, progress=False)
    assert fc.sizes["member"] == 6 and np.isfinite(fc["vorticity"]).all()
    assert np.allclose(fc["init_time"], 0.6)


def test_the_accessor_and_a_climate_that_is_given(
    model: Model, sparse: xr.Dataset, found: xr.Dataset, make_analyses: Callable[..., xr.Dataset]
) -> None:
    bare = Model(model.emulator, model.name, model.config)
    with pytest.raises(SpecError, match="climate: found none"):
        bare.augment(sparse, 2, error=0.0)
    climate = make_analyses(model.spec, 0.2 * np.arange(41))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AugmentWarning)
        other = sparse.lapse.augment(bare, 2, error=0.0, climate=climate, progress=False)
    assert np.allclose(other["vorticity"], found["vorticity"][:2], atol=1e-4)


def test_one_frame_and_a_history_of_two(model: Model, sparse: xr.Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AugmentWarning)
        one = model.augment(sparse.isel(time=[1]), 1, error=0.1, mode="mean", progress=False)
    assert one.sizes["time"] == 1 and float(one["time"][0]) == pytest.approx(0.4)


def test_an_observation_moves_the_later_frames_that_a_start_has_drawn(
    model: Model, make_analyses: Callable[..., xr.Dataset]
) -> None:
    """A climate of two frames that are the same: what is seen of the first is known of the second."""
    u = torch.from_numpy(make_analyses(model.spec, 0.2 * np.arange(60))["vorticity"].values)[:, None]
    window = Window(model.emulator, fit_climate(model.emulator, torch.stack([u, u], dim=1)), 2, "mean", None)
    own, supply, more = (
        window.draw([torch.Generator().manual_seed(k) for k in range(first, first + n)])
        for first, n in ((0, 4), (10, 64), (100, 64))
    )
    where = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    where[0] = torch.rand(16, 16, generator=torch.Generator().manual_seed(5)) < 0.3
    value = u[7].expand(2, 1, 16, 16)
    before = window._start(own).z.clone()
    after, _ = window.smooth(Observed(value, torch.full_like(value, 0.1), where), own, supply, more)
    first, second = (after.z - before).unbind(dim=1)
    assert float(first.norm()) > 1 and float((second - first).norm()) < 0.3 * float(first.norm())


def test_masks_missing_variables_and_months(
    make_model: Callable[..., Model], make_analyses: Callable[..., xr.Dataset]
) -> None:
    """A variable that is never observed is filled from what the model knows of it; land stays NaN."""
    land = np.ones((16, 16), dtype=bool)
    land[:5, :6] = False
    variables = (Variable("vorticity", "s-1"), Variable("speed", "m s-1"))
    calendar = {"calendar": "proleptic_gregorian", "interval": 1.0, "time_units": "months"}
    model = make_model(variables=variables, masks={"vorticity": land, "speed": land}, **calendar)
    times = np.arange("2001-01", "2003-09", dtype="M8[M]").astype("M8[ns]")
    climate = make_analyses(model.spec, times)
    climate["speed"] = (2 * climate["vorticity"]).assign_attrs(units="m s-1")
    climate = climate.where(xr.DataArray(land, dims=("y", "x"))).assign_attrs(climate.attrs)
    for name, units in (("vorticity", "s-1"), ("speed", "m s-1")):
        climate[name].attrs["units"] = units
    observed = climate[["vorticity"]].isel(time=[5])
    observed = observed.where((observed.x > 1) & (observed.y > 2)).assign_attrs(climate.attrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AugmentWarning)
        out = model.augment(observed, 2, error=0.0, climate=climate, ensemble=16, before=2, progress=False)
    kept = np.isfinite(observed["vorticity"].values)
    assert (out["vorticity"].values[:, kept] == observed["vorticity"].values[kept]).all()
    for name in ("vorticity", "speed"):
        assert np.isfinite(out[name].values[..., land]).all() and np.isnan(out[name].values[..., ~land]).all()
    assert out["time"].values.tolist() == observed["time"].values.tolist()


def test_observations_that_cannot_be_are_told_of(model: Model, sparse: xr.Dataset) -> None:
    far = sparse.isel(time=[0]) + 100
    far["vorticity"].attrs = sparse["vorticity"].attrs
    with pytest.warns(AugmentWarning, match="disagree"):
        model.augment(far, 1, error=0.1, progress=False)


def test_hidden_frames_have_the_phases_of_their_times(
    make_model: Callable[..., Model], make_analyses: Callable[..., xr.Dataset]
) -> None:
    spec = {"calendar": "proleptic_gregorian", "interval": 6.0, "time_units": "hours"}
    model = with_climate(make_model(**spec), make_analyses)
    times = np.datetime64("2001-02-28T18", "ns") + np.arange(5) * np.timedelta64(6, "h")
    ds = make_analyses(model.spec, times)
    late = observations(ds.isel(time=slice(3, None)), model.spec, 0.1)
    assert np.allclose(_phases(model, late, 3), phase_of(times), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AugmentWarning)
        out = model.augment(ds.isel(time=[3]), 1, error=0.1, progress=False)
    assert out["time"].values[0] == times[3]


def test_options_that_cannot_be(model: Model, sparse: xr.Dataset) -> None:
    with pytest.raises(SpecError) as caught:
        model.augment(sparse, 0, error=0.1, mode="slow", before=-1)
    assert len(caught.value.problems) == 3
    with pytest.raises(SpecError, match="steps"):
        model.augment(sparse, 2, error=0.1, steps=3)


# with nothing hidden


def test_generated_trajectories_can_be_trained_on(model: Model, analyses: xr.Dataset) -> None:
    made = model.augment(analyses, 6, steps=5, progress=False)
    assert made["vorticity"].dims == ("trajectory", "time", "y", "x") and made.sizes["trajectory"] == 6
    assert (made["generated"] == 1).all() and set(np.round(made["start_time"].values, 6)) <= {0.2, 0.4, 0.6, 0.8}
    real = analyses.expand_dims(trajectory=2).assign_coords(generated=("trajectory", np.zeros(2, np.int8)))
    both = xr.concat([real.assign_coords(time=made["time"]), made.drop_vars("start_time")], "trajectory")
    assert both["generated"].values.tolist() == [0, 0] + [1] * 6
    spec = FieldSpec.infer(both)
    assert spec.names == ("vorticity",) and spec.interval == pytest.approx(0.2)
    data = FieldData(both, 3, 2, fractions=(0.5, 0.25, 0.25))
    data.setup()
    assert next(iter(data.windows("train"))).fields.shape == (2, 3, 1, 16, 16)


def test_generated_trajectories_join_those_that_they_started_from(model: Model, analyses: xr.Dataset) -> None:
    """As `simulate` writes them, with numbers; nothing is filled up with NaN."""
    numbers = xr.DataArray(np.arange(2), dims="trajectory")
    real = analyses.expand_dims(trajectory=numbers).assign_coords(generated=("trajectory", np.zeros(2, np.int8)))
    made = model.augment(real.isel(trajectory=0), 3, steps=real.sizes["time"], progress=False)
    both = xr.concat([real, made.drop_vars("start_time")], "trajectory")
    assert both.sizes == {**real.sizes, "trajectory": 5} and not bool(both["vorticity"].isnull().any())
    assert both["generated"].values.tolist() == [0, 0, 1, 1, 1]


def test_trajectories_are_forecasts_and_grow(model: Model, analyses: xr.Dataset) -> None:
    few, many = (model.augment(analyses, n, steps=2, progress=False) for n in (3, 9))
    assert np.array_equal(few["vorticity"], many["vorticity"][:3])
    start = float(few["start_time"][1])
    fc = model.forecast(analyses, 2, 4, init_times=start, progress=False)
    assert np.array_equal(few["vorticity"][1], fc["vorticity"][0, 0])


def test_the_command_line(
    model: Model, sparse: xr.Dataset, analyses: xr.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "model")
    sparse.to_netcdf(tmp_path / "sparse.nc")
    analyses.to_netcdf(tmp_path / "all.nc")
    where = [str(tmp_path / "model"), str(tmp_path / "sparse.nc")]
    options = ["--error", "vorticity=0.2", "--samples", "2", "--ensemble", "16", "--quiet"]
    assert cli.main(["augment", *where, *options, "--out", str(tmp_path / "a.nc")]) == 0
    assert "member 2" in capsys.readouterr().out
    assert xr.open_dataset(tmp_path / "a.nc").sizes["time"] == 4
    assert cli.main(["augment", *where, *options, "--out", str(tmp_path / "a.nc")]) == 1
    assert "exists" in capsys.readouterr().err
    assert cli.main(["augment", *where, "--out", str(tmp_path / "b.nc")]) == 1
    assert "error={'vorticity': 0.1}" in capsys.readouterr().err
    made = ["augment", where[0], str(tmp_path / "all.nc"), "--samples", "2", "--steps", "3", "--quiet"]
    assert cli.main([*made, "--out", str(tmp_path / "c.zarr")]) == 0
    assert xr.open_zarr(tmp_path / "c.zarr").sizes["trajectory"] == 2
