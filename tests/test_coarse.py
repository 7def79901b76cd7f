"""Networks that start from a coarse run of the solver: what the run is, and what becomes of it in a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.equation import equation, lookup
from lapse.physics.grid import Axis, Grid
from lapse.physics.operators import refine, truncate
from lapse.surrogate.coarse import CoarseSolver
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.package import build, load
from lapse.surrogate.state import State

PARAMETERS = {"viscosity": 0.05, "drag": 0.1, "forcing": 1.0, "wavenumber": 2.0}
SPEC = FieldSpec(
    (Variable("vorticity", "s-1"),), Grid.periodic_box(16), 0.2, "s", parameters=PARAMETERS, equation="kolmogorov"
)
COARSE = Grid.periodic_box(8)


def states(count: int) -> Tensor:
    u: Tensor = law(SPEC).spin_up(torch.Generator().manual_seed(1), count, duration=5.0)
    return u


def lossless(**options: object) -> Emulator:
    """Networks that change nothing, on latents that are the cells."""
    ae = Autoencoder(SPEC, Normaliser(SPEC), "identity", patch=4)
    ae.network.bound = None
    return Emulator(ae, width=4, depth=1, parts=("mean", "fast"), **options).eval()  # type: ignore[arg-type]


def test_on_the_grid_of_the_data_it_is_the_solver() -> None:
    u = states(3)
    torch.testing.assert_close(CoarseSolver(SPEC)(u), law(SPEC).advance(u, 0.2))
    torch.testing.assert_close(CoarseSolver(SPEC, steps=2)(u), law(SPEC).advance(u, 0.2, 2))


def test_what_the_coarse_grid_does_not_hold_persists() -> None:
    u = states(3)
    low = refine(truncate(u, SPEC.grid, COARSE), COARSE, SPEC.grid)
    there = equation("kolmogorov", COARSE, **PARAMETERS)
    after = refine(there.advance(truncate(u, SPEC.grid, COARSE), 0.2, 1), COARSE, SPEC.grid)
    torch.testing.assert_close(CoarseSolver(SPEC, 8, 1)(u), after + u - low, rtol=0, atol=1e-5)


def test_half_precision_is_solved_in_single() -> None:
    u = states(2).to(torch.bfloat16)
    found = CoarseSolver(SPEC, 8, 1)(u)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, CoarseSolver(SPEC, 8, 1)(u.float()).to(torch.bfloat16))


def test_variables_are_matched_by_name() -> None:
    """Shallow water knows u, v, h; the data may hold them in another order."""
    names = ("h", "u", "v")
    usual = lookup("shallow_water").usual
    water = equation("shallow_water", usual.grid(16))
    spec = FieldSpec(
        tuple(Variable(n, water.units[n]) for n in names), water.grid, usual.interval or 1.0, "s",
        parameters=water.parameters, equation="shallow_water",
    )  # fmt: skip
    u = water.initial(torch.Generator().manual_seed(0), 2)
    order = [water.variables.index(n) for n in names]
    wanted = water.advance(u, spec.interval)[:, order]
    torch.testing.assert_close(CoarseSolver(spec)(u[:, order]), wanted)


def test_networks_start_from_it() -> None:
    model, u = lossless(coarse={"resolution": 8, "steps": 1}), states(3)
    state = model.encode(u[:, None])
    wanted = CoarseSolver(SPEC, 8, 1)(u)
    torch.testing.assert_close(model.decode(model.advance(state, mode="mean")), wanted, rtol=0, atol=1e-5)
    assert model.part("mean").stem.conv.in_channels == 2 * 16  # the frame, and what the solver makes of it
    fast = model.advance(state, torch.zeros(3, model.noise_size("fast")), mode="fast")
    torch.testing.assert_close(model.decode(fast), wanted, rtol=0, atol=1e-5)


def test_the_start_is_differentiable() -> None:
    model = lossless(coarse={"resolution": 8, "steps": 1}).double()
    u = states(1).double()
    weight, direction = torch.randn(2, *u.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(v: Tensor) -> Tensor:
        return (weight * model.decode(model.advance(model.encode(v[:, None]), mode="mean"))).sum()

    at = u.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(value(at), at)
    h = 1e-5
    with torch.no_grad():
        slope = (value(u + h * direction) - value(u - h * direction)) / (2 * h)
    torch.testing.assert_close((g * direction).sum(), slope, rtol=1e-6, atol=0)


def test_a_decoded_frame_is_kept_but_not_without_its_gradient() -> None:
    model = lossless(coarse={"resolution": 8, "steps": 1})
    state = model.encode(states(2)[:, None])
    with torch.no_grad():
        u = model.decode(state)
    assert torch.equal(model.autoencoder.decode(state.latent), u)
    kept = state.cells
    model.decode(state)
    assert state.cells is kept
    state.z.requires_grad_(True)
    (g,) = torch.autograd.grad(model.decode(model.advance(state, mode="mean")).sum(), state.z)
    other = State(state.z.detach().clone().requires_grad_(True), state.carried)
    (wanted,) = torch.autograd.grad(model.decode(model.advance(other, mode="mean")).sum(), other.z)
    torch.testing.assert_close(g, wanted)


def test_without_a_coarse_start_nothing_is_kept() -> None:
    model = lossless()
    state = model.encode(states(2)[:, None])
    state.z.requires_grad_(True)
    first, second = (torch.autograd.grad(model.decode(state).sum(), state.z)[0] for _ in range(2))
    assert torch.equal(first, second) and state.cells is None


def test_a_model_goes_along_when_parameters_change() -> None:
    first = Model(lossless(coarse={"resolution": None, "steps": None}), "toy", {"name": "toy"})
    u = states(1)
    ds = to_dataset(u, SPEC, ["time"], {"time": ("time", np.zeros(1), {"units": "s"})})
    other = first.at(forcing=1.5, viscosity=0.03)
    wanted = law(SPEC, {"forcing": 1.5, "viscosity": 0.03})
    found = other.forecast(ds, 2, 1, mode="mean", progress=False)["vorticity"].values[0, 0]
    after = wanted.advance(u, 0.2)
    np.testing.assert_allclose(found[0], after[0, 0], atol=1e-5)
    np.testing.assert_allclose(found[1], wanted.advance(after, 0.2)[0, 0], atol=1e-5)
    own = first.forecast(ds, 2, 1, mode="mean", progress=False)["vorticity"].values[0, 0]
    np.testing.assert_allclose(own[0], law(SPEC).advance(u, 0.2)[0, 0], atol=1e-5)
    assert first.spec.parameters == PARAMETERS


def test_it_is_part_of_a_package(tmp_path: Path) -> None:
    config = {
        "name": "toy", "normaliser": {}, "autoencoder": {"network": "identity", "heads": []},
        "emulator": {"width": 4, "depth": 1, "parts": ["mean"], "coarse": {"resolution": 8, "steps": 2}},
    }  # fmt: skip
    first = Model(build(SPEC, config).eval(), "toy", config)
    again = load(first.save(tmp_path / "toy"))
    assert again.emulator.coarse is not None and again.emulator.coarse.grid.shape == (8, 8)
    state = first.emulator.encode(states(2)[:, None])
    a, b = (m.emulator.advance(state, mode="mean").z for m in (first, again))
    assert torch.equal(a, b)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="names no equation"):
        CoarseSolver(SPEC.replace(equation=None))
    with pytest.raises(ValueError, match="found 0, wanted 1 or more"):
        CoarseSolver(SPEC, 8, 0)
    for resolution in (2, 32):
        with pytest.raises(ValueError, match=f"found {resolution} and the grid"):
            CoarseSolver(SPEC, resolution)
    other = SPEC.replace(variables=(Variable("velocity", "m s-1"),))
    with pytest.raises(ValueError, match="wanted those of kolmogorov, vorticity"):
        CoarseSolver(other)
    walls = tuple(Axis(a.name, a.coordinates, a.units) for a in SPEC.grid.axes)
    with pytest.raises(ValueError, match="periodic"):
        CoarseSolver(SPEC.replace(grid=Grid(walls)), 8)
    masked = SPEC.replace(masks={"vorticity": np.ones((16, 16), bool)})
    with pytest.raises(ValueError, match="found masked cells"):
        CoarseSolver(masked)
    box = Grid.periodic_box((64, 8))
    with pytest.raises(ValueError, match=r"\[8, 1\] nodes, wanted 4 or more"):
        CoarseSolver(SPEC.replace(grid=box), 8)
    darcy = lookup("darcy")
    still = FieldSpec(
        tuple(Variable(n, darcy.units[n]) for n in darcy.variables), darcy.usual.grid(16), 1.0, "s", equation="darcy"
    )
    with pytest.raises(ValueError, match="without a rate of change"):
        CoarseSolver(still)
    with pytest.raises(ValueError, match="beside"):
        lossless(coarse={"resolution": 8, "steps": 1}, linear={"reach": 1, "components": 0})
