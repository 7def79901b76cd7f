"""The linear start: against plain normal equations, maps that are known, symmetry, stability, and through a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from lapse.surrogate.package import load
from lapse.surrogate.propagator import Equations, Propagator
from lapse.surrogate.regression import fit_propagator, growth
from lapse.surrogate.state import State
from lapse.surrogate.train import compose, field_data, new_emulator, train


def fitted(propagator: Propagator, z: torch.Tensor, ridge: float, pool: int = 0) -> Propagator:
    """On one stretch ``z (T, c, *latent)``, in pieces."""
    h = len(propagator_history(propagator, z))
    equations = Equations(propagator)
    windows = z.unfold(0, h + 1, 1).movedim(-1, 1)
    for part in windows.split(37):
        equations.add(part[:, :h], part[:, h])
    propagator.weight.copy_(equations.pooled(pool).solve(ridge))
    return propagator


def propagator_history(propagator: Propagator, z: torch.Tensor) -> range:
    """As many entries as context frames."""
    c, per_frame = z.shape[1], z.shape[1] * (2 * propagator.reach + 1) ** (z.ndim - 2) + len(propagator.modes)
    assert propagator.weight.shape[2] == c
    return range(propagator.weight.shape[1] // per_frame)


def test_it_is_persistence_before_it_is_fitted() -> None:
    z = torch.randn(3, 2, 4, 5, 6)
    assert torch.equal(Propagator(4, (5, 6), (True, False), 2, components=3)(z), z[:, -1])


@pytest.mark.parametrize("latent", [(11,), (5, 7)])
def test_it_finds_a_map_that_differs_from_cell_to_cell(latent: tuple[int, ...]) -> None:
    """z₁ = a(x) z₀ + b(x) (z₀ of the next cell along the last axis), two channels that also mix, noise-free targets."""
    a, b, mix = (0.4 * torch.randn(latent) for _ in range(3))
    z = torch.randn(300, 2, *latent)
    right = z.roll(-1, -1)
    following = a * z + b * right + mix * z.flip(1)
    propagator = Propagator(2, latent, (True,) * len(latent), 1)
    equations = Equations(propagator)
    equations.add(z[:, None], following)
    propagator.weight.copy_(equations.solve(1e-9))
    assert torch.allclose(propagator(z[:, None]), following, atol=1e-3)


def test_it_is_the_ridge_regression_of_a_text_book() -> None:
    """One cell of a grid with walls, its neighbours' equations added, against numpy's solution of the same sums."""
    z = torch.randn(60, 1, 4, 6)
    propagator = fitted(Propagator(1, (4, 6), (False, True), 2), z, ridge=0.2, pool=1)
    u = np.pad(z[:, 0].double().numpy(), ((0, 0), (1, 1), (0, 0)), mode="edge")
    u = np.pad(u, ((0, 0), (0, 0), (1, 1)), mode="wrap")

    def parts(i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        j %= 6
        order = [u[t : t + 58, i + p, j + q] for p in range(3) for q in range(3) for t in range(2)]
        return np.stack(order, 1), (z[2:, 0, i, j] - z[1:-1, 0, i, j]).double().numpy()

    # the upper left corner: rows 0 and 1 (there is a wall above), columns 5, 0 and 1 (it is periodic across)
    both = [parts(i, j) for i in (0, 1) for j in (-1, 0, 1)]
    gram, moment = (sum(f.T @ g for f, g in pairs) for pairs in ([(f, f) for f, _ in both], both))
    strength = 0.2 * np.trace(gram) / 18
    wanted = np.linalg.solve(gram + strength * np.eye(18), moment)
    assert np.allclose(propagator.weight[0, :, 0].numpy(), wanted, atol=2e-5)


def test_dynamics_that_are_the_same_everywhere_commute_with_shifts() -> None:
    z = torch.randn(50, 2, 8, 6)
    propagator = fitted(Propagator(2, (8, 6), (True, True), 1, shared=True), z, ridge=0.01)
    assert propagator.weight.shape[0] == 1 and propagator.weight.abs().max() > 0.1
    moved = propagator(z[:, None].roll((3, 2), (-2, -1)))
    assert torch.allclose(moved, propagator(z[:, None]).roll((3, 2), (-2, -1)), atol=1e-5)
    with pytest.raises(ValueError, match="same everywhere"):
        Propagator(2, (8, 6), (True, True), 1, components=1, shared=True)


@pytest.mark.parametrize("frames", [12, 200])
def test_components_are_those_of_the_singular_value_decomposition(frames: int) -> None:
    z = torch.randn(frames, 2, 3, 7) * torch.linspace(0.2, 3, 7)
    propagator = Propagator(2, (3, 7), (False, False), 1, components=4)
    propagator.start_from(z)
    _, s, v = np.linalg.svd(z.flatten(1).double().numpy(), full_matrices=False)
    scale = float(z.square().mean().sqrt()) * np.sqrt(frames) / s[:4]
    along = np.abs(propagator.modes.numpy() @ v[:4].T)
    assert np.allclose(along, np.diag(scale), atol=2e-3 * scale.max())
    seen = propagator.features(z[:, None])[:, -4:, 0]
    assert torch.allclose(seen.square().mean(0).sqrt(), z.square().mean().sqrt().expand(4), rtol=1e-3)


def test_what_acts_from_afar_needs_components() -> None:
    """Every cell follows one pattern of the whole field; neighbours alone cannot know its amplitude."""
    pattern = torch.randn(1, 9, 9)
    amplitude = torch.randn(400, 1, 1, 1)
    z = amplitude * pattern + 0.5 * torch.randn(400, 1, 9, 9)
    following = 0.8 * amplitude * pattern
    errors = []
    for components in (0, 1):
        propagator = Propagator(1, (9, 9), (False, False), 1, components=components)
        propagator.start_from(z)
        equations = Equations(propagator)
        equations.add(z[:300, None], following[:300])
        propagator.weight.copy_(equations.solve(0.01))
        errors.append(float((propagator(z[300:, None]) - following[300:]).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]


def test_innovations_have_the_variances_of_what_was_left() -> None:
    """Two patterns and noise of its own in every cell: the leading ones whole, the rest cell by cell."""
    patterns = torch.linalg.qr(torch.randn(24, 2))[0].T * torch.tensor([[6.0], [3.0]])
    noise = 0.1 * (1 + torch.arange(24.0) % 3)
    left = (torch.randn(4000, 2) @ patterns + noise * torch.randn(4000, 24)).reshape(-1, 2, 3, 4)
    propagator = Propagator(2, (3, 4), (True, True), 1, innovations=2)
    propagator.measure_innovation(left, 2.0)
    draws = propagator.innovation(torch.randn(8000, propagator.noise_size)).flatten(1)
    wanted = 4 * (patterns.T @ patterns + torch.diag(noise**2))
    assert torch.allclose(draws.T @ draws / 8000, wanted, atol=0.05 * float(wanted.max()))
    assert torch.allclose(draws.square().mean(0), wanted.diagonal(), rtol=0.1)


@pytest.mark.parametrize("factor", [0.9, 1.05])
def test_growth_of_a_known_map(factor: float) -> None:
    propagator = Propagator(1, (5,), (True,), 2, reach=0)
    propagator.weight[:, 1] = factor - 1
    assert growth(propagator, torch.randn(2, 2, 1, 5)) == pytest.approx(factor, rel=1e-3)


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that a steady current of another speed in every row carries along and damps, with an island."""
    rng = np.random.default_rng(0)
    speed, u = np.linspace(0.6, 1.0, 6)[:, None], np.zeros((260, 6, 10))
    for t in range(1, 260):
        u[t] = 0.9 * ((1 - speed) * u[t - 1] + speed * np.roll(u[t - 1], 1, 1)) + 0.3 * rng.standard_normal((6, 10))
    u[:, 2:4, 3:5] = np.nan
    path = tmp_path_factory.mktemp("data") / "waves.nc"
    xr.Dataset(
        {"q": (("time", "y", "x"), u.astype("f4"), {"units": "1"})},
        {"time": ("time", np.arange(260.0), {"units": "s"}), "y": ("y", np.arange(6.0), {"units": "m"}),
         "x": ("x", np.arange(10.0), {"units": "m"})},
    ).to_netcdf(path)  # fmt: skip
    return path


def tiny(path: Path, out: Path, *more: str) -> dict[str, Any]:
    return compose([
        f"data.path={path}", f"out={out}", "data.periodic={x: true, y: false}", "autoencoder=identity",
        "autoencoder.patch=2", "emulator.width=8", "emulator.depth=1", "emulator.position=2",
        "emulator.linear={reach: 1, components: 2}", "emulator.parts=[mean,fast]", "training.stages=[mean,fast]",
        "training.mean.steps=2", "training.mean.unroll=[[0.0,1],[0.5,4]]", "training.fast.steps=2", *more,
    ])  # fmt: skip


def test_a_fit_forecasts_and_does_not_grow(waves: Path, tmp_path: Path) -> None:
    options = tiny(waves, tmp_path)
    data = field_data(options)
    emulator = new_emulator(options, data).eval()
    pool, ridge = fit_propagator(emulator, data, torch.ones(data.spec.shape), 4)
    assert pool in (0, 1, 3) and ridge > 0
    assert growth(emulator.propagator, torch.randn(2, 1, *emulator.latent_shape)) < 1
    u = next(data.frames("test"))[0]
    x = emulator.autoencoder.normalise(u)
    state = emulator.encode(u[:-1, None])
    found = emulator.autoencoder.normalise(emulator.decode(emulator.advance(state, mode="mean")))
    error = (found - x[1:]).square().mean().sqrt()
    # the current explains all but the noise, of 0.3, to what 156 frames can tell of it
    innovation = 0.3 / float(data.normaliser.std[0]) * float(data.spec.mask_tensor().float().mean()) ** 0.5
    assert 0.95 * innovation < error < 1.2 * innovation < 0.8 * (x[:-1] - x[1:]).square().mean().sqrt()
    assert not found[:, :, 2:4, 3:5].any()
    # and the innovations are that noise
    drawn = emulator.propagator.innovation(torch.randn(500, emulator.propagator.noise_size))
    spread = emulator.autoencoder.network.decode(drawn).square().mean().sqrt()
    assert 0.9 * innovation < spread < 1.25 * innovation


def test_training_starts_there_and_a_package_holds_it(waves: Path, tmp_path: Path) -> None:
    model = train(tiny(waves, tmp_path), progress=False)
    again = load(tmp_path)
    z = torch.randn(2, 1, *model.emulator.latent_shape)
    state = State(z, torch.zeros(2, 1))
    start, other = (e.start(state, e.context(state)) for e in (model.emulator, again.emulator))
    assert not torch.equal(start, z[:, -1]) and torch.equal(start, other)
    # two steps move a net of which the last layer started at zero but little away from its start
    away = (model.emulator.advance(state, mode="mean").z[:, -1] - start).abs().mean()
    assert 0 < away < 0.1 * (start - z[:, -1]).abs().mean()
    resumed = train(tiny(waves, tmp_path), progress=False)
    assert torch.equal(resumed.emulator.propagator.weight, model.emulator.propagator.weight)


def test_too_little_data_and_too_large_a_map(waves: Path, tmp_path: Path) -> None:
    options = tiny(waves, tmp_path, "data.fractions=[0.03,0.4,0.57]", "emulator.history=6")
    data = field_data(options)
    with pytest.raises(ValueError, match="too short"):
        fit_propagator(new_emulator(options, data), data, torch.ones(data.spec.shape), 4)
    with pytest.raises(ValueError, match="unknowns"):
        Equations(Propagator(64, (64, 64), (True, True), 2))
