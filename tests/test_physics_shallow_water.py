"""Shallow water against balance, wave dispersion, an independent statement in sympy, and conservation."""

import math

import pytest
import sympy
import torch

from lapse.physics.grid import Grid
from lapse.physics.operators import div
from lapse.physics.shallow_water import ShallowWater

BOX = Grid.periodic_box(32)


def state(e, batch=2, dtype=torch.float64):
    return e.initial(torch.Generator().manual_seed(0), batch, dtype)


def test_rhs_agrees_with_an_independent_statement():
    """Momentum in advective form, as a textbook writes it, in sympy; on a box of unequal sides."""
    Ly, Lx = 3.0, 5.0
    grid = Grid.periodic_box((40, 48), length=(Ly, Lx))
    p = {"gravity": 9.5, "coriolis": 1.7, "mean_depth": 0.2, "viscosity": 0.01}
    x, y = sympy.symbols("x y")
    a, b = 2 * sympy.pi * x / Lx, 2 * sympy.pi * y / Ly
    u = sympy.sin(2 * a + b) + 0.4 * sympy.cos(a - 3 * b + 1) + 0.1
    v = sympy.cos(3 * a) - 0.2 * sympy.sin(2 * a - 2 * b)
    h = 0.2 + 0.05 * sympy.sin(a + b) + 0.02 * sympy.cos(4 * b)

    def lap(q):
        return q.diff(x, 2) + q.diff(y, 2)

    rates = (
        -u * u.diff(x) - v * u.diff(y) + p["coriolis"] * v - p["gravity"] * h.diff(x) + p["viscosity"] * lap(u),
        -u * v.diff(x) - v * v.diff(y) - p["coriolis"] * u - p["gravity"] * h.diff(y) + p["viscosity"] * lap(v),
        -(h * u).diff(x) - (h * v).diff(y),
    )

    def sample(*fs):
        ys, xs = grid.meshgrid()
        return torch.stack([torch.as_tensor(sympy.lambdify((y, x), f, "numpy")(ys.numpy(), xs.numpy())) for f in fs])

    e = ShallowWater(grid, **p)
    torch.testing.assert_close(e.rhs(sample(u, v, h)), sample(*rates), rtol=0, atol=1e-10)
    zeta = sample(v.diff(x) - u.diff(y))
    torch.testing.assert_close(e.vorticity(sample(u, v, h)), zeta, rtol=0, atol=1e-11)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_geostrophic_balance_is_steady(axis):
    e = ShallowWater(BOX, viscosity=0)
    g, f, H = (e.parameters[k] for k in ("gravity", "coriolis", "mean_depth"))
    y, x = BOX.meshgrid()
    s = x if axis == "x" else y
    slope = -0.02 * 3 * torch.sin(3 * s)
    h = H + 0.02 * torch.cos(3 * s)
    nought = torch.zeros_like(h)
    u = torch.stack((nought, g / f * slope, h) if axis == "x" else (-g / f * slope, nought, h))
    assert e.rhs(u).abs().max() < 1e-12
    torch.testing.assert_close(e.advance(u, 5.0), u, rtol=0, atol=1e-11)


@pytest.mark.parametrize("f", [0.0, 3.0])
@pytest.mark.parametrize(("m", "n"), [(0, 1), (2, -3)])
def test_waves_run_at_the_frequency_of_the_dispersion_relation(f, m, n):
    e = ShallowWater(BOX, coriolis=f, viscosity=0)
    g, H = e.parameters["gravity"], e.parameters["mean_depth"]
    k2 = m**2 + n**2
    Omega = math.sqrt(f**2 + g * H * k2)
    y, x = BOX.meshgrid()

    def wave(t):
        phase = n * x + m * y - Omega * t
        a = 1e-8
        u = a * (Omega * n * torch.cos(phase) - f * m * torch.sin(phase)) / (H * k2)
        v = a * (Omega * m * torch.cos(phase) + f * n * torch.sin(phase)) / (H * k2)
        return torch.stack((u, v, a * torch.cos(phase)))

    rest = torch.tensor([0.0, 0.0, H], dtype=torch.float64)[:, None, None]
    t = 2.0
    found = (e.advance(rest + wave(0), t, steps=200) - rest) / 1e-8
    torch.testing.assert_close(found, wave(t) / 1e-8, rtol=0, atol=1e-5)
    phase = [torch.fft.fft2(q)[m, n].angle().item() for q in (wave(0)[2], found[2])]
    turned = (phase[0] - phase[1]) % (2 * math.pi)
    assert turned == pytest.approx(Omega * t % (2 * math.pi), abs=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-7), (torch.float64, 1e-15)])
def test_mass_is_conserved_to_round_off(dtype, tolerance):
    e = ShallowWater(BOX)
    u = state(e, dtype=dtype)
    mass = e.invariants(u)["mass"]
    torch.testing.assert_close(mass, torch.full_like(mass, 0.1), rtol=1e-6, atol=0)
    for _ in range(5):
        u = e.advance(u, 1.0)
        torch.testing.assert_close(e.invariants(u)["mass"], mass, rtol=tolerance * 2, atol=0)
    assert (u[:, 2] > 0).all()


def test_inviscid_flow_conserves_energy_and_potential_enstrophy():
    e = ShallowWater(Grid.periodic_box(48), viscosity=0, speed=0.03)
    u = state(e)
    a, b = e.invariants(u), e.invariants(e.advance(u, 4.0, steps=200))
    torch.testing.assert_close(b["energy"], a["energy"], rtol=1e-6, atol=0)
    torch.testing.assert_close(b["potential_enstrophy"], a["potential_enstrophy"], rtol=1e-8, atol=0)


def test_viscosity_takes_energy_away():
    e = ShallowWater(BOX)
    u = state(e)
    before, after = (e.invariants(s)["energy"] for s in (u, e.advance(u, 4.0)))
    assert (after < before).all() and (after > 0.3 * before).all()


def test_observed_order_in_time():
    e = ShallowWater(BOX)
    u = e.advance(state(e), 1.0)
    reference = e.advance(u, 1.0, steps=400)
    error = [(e.advance(u, 1.0, steps=n) - reference).abs().max().item() for n in (40, 80)]
    assert math.log2(error[0] / error[1]) == pytest.approx(4, abs=0.2)
    own = (e.advance(u, 1.0) - reference).square().mean((0, 2, 3)).sqrt()
    assert (own < 2e-3 * (reference - reference.mean((2, 3), keepdim=True)).square().mean((0, 2, 3)).sqrt()).all()


def test_initial_states_are_balanced_eddies_with_some_waves():
    e = ShallowWater(BOX)
    u = state(e, batch=8)
    f, g = e.parameters["coriolis"], e.parameters["gravity"]
    speed = u[:, :2].square().sum(1).mean((1, 2)).sqrt()
    assert ((speed > 0.11) & (speed < 0.16)).all()
    divergence = div(u[:, :2], BOX).square().mean().sqrt()
    zeta = e.vorticity(u).square().mean().sqrt()
    assert 0 < divergence < 0.5 * zeta
    geostrophic = torch.stack((-torch.ones(()), torch.ones(()))).double()[:, None, None] * torch.stack(
        (
            torch.gradient(u[0, 2], spacing=BOX.spacing[0], dim=0)[0],
            torch.gradient(u[0, 2], spacing=BOX.spacing[1], dim=1)[0],
        )
    )
    inner = (slice(None), slice(2, -2), slice(2, -2))
    correlation = torch.corrcoef(torch.stack((u[0, :2][inner].flatten(), (g / f * geostrophic)[inner].flatten())))
    assert correlation[0, 1] > 0.9


def test_without_rotation_there_are_still_waves():
    e = ShallowWater(BOX, coriolis=0)
    u = state(e)
    assert torch.isfinite(e.advance(u, 1.0)).all()
    assert (u[:, 2] - 0.1).square().mean((1, 2)).sqrt().mean().item() == pytest.approx(1e-3, rel=0.3)


def test_default_flow_is_resolved_at_64():
    e = ShallowWater(Grid.periodic_box(64))
    u = e.spin_up(torch.Generator().manual_seed(0), 1)
    for dim in (-1, -2):
        for q in u[0].double():
            line = (torch.fft.rfft(q - q.mean(), dim=dim).abs() ** 2).movedim(dim, -1).mean(0)
            assert line[31] < 1e-4 * line.max()


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match="found gravity=0, wanted a positive number"):
        ShallowWater(BOX, gravity=0)
    with pytest.raises(ValueError, match="found viscosity=-1, wanted 0 or more"):
        ShallowWater(BOX, viscosity=-1)
