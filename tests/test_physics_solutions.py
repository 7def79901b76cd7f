"""Exact solutions: decaying heat, Cole and Hopf's, solitons, fronts; their residuals, and the orders of those."""

import math

import pytest
import torch

from lapse.physics.advection_diffusion import AdvectionDiffusion
from lapse.physics.allen_cahn import AllenCahn
from lapse.physics.burgers import Burgers
from lapse.physics.gray_scott import GrayScott
from lapse.physics.grid import Grid
from lapse.physics.heat import Heat
from lapse.physics.kdv import KdV
from lapse.physics.kuramoto_sivashinsky import KuramotoSivashinsky
from lapse.physics.operators import derivative
from lapse.physics.residual import relative, residual, scale

AXES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}


def line(n, length=2 * math.pi):
    return Grid.periodic_box(n, length, ("x",))


def test_heat_decays_exactly_in_one_to_three_dimensions():
    kappa, t = 0.3, 1.7
    for d in (1, 2, 3):
        grid = Grid.periodic_box(8, 2 * math.pi, AXES[d])
        mesh = grid.meshgrid()
        wave = math.prod(torch.cos((j + 1) * a) for j, a in enumerate(reversed(mesh)))
        k2 = sum((j + 1) ** 2 for j in range(d))
        wanted = wave * math.exp(-kappa * k2 * t) + 2
        found = Heat(grid, diffusivity=kappa).advance((wave + 2)[None], t)
        torch.testing.assert_close(found, wanted[None], rtol=0, atol=1e-14)


def test_a_tracer_travels_with_the_wind_and_spreads():
    grid = Grid.periodic_box(8, 2 * math.pi, AXES[3])
    z, y, x = grid.meshgrid()
    e = AdvectionDiffusion(grid, diffusivity=0.1, velocity_x=0.7, velocity_y=-0.4, velocity_z=0.2)

    def at(t):
        return math.exp(-0.1 * 6 * t) * torch.sin((x - 0.7 * t) + 2 * (y + 0.4 * t) - (z - 0.2 * t))[None]

    torch.testing.assert_close(e.advance(at(0.0), 2.3), at(2.3), rtol=0, atol=1e-13)


def cole_hopf(grid, nu, t):
    """u = −2ν φ_x/φ with φ = 1 + Σ a_k exp(−ν k² t) cos(k x + p_k), a solution of the heat equation."""
    (x,) = grid.meshgrid()
    phi, slope = torch.ones_like(x), torch.zeros_like(x)
    for k, a, p in ((1, 0.5, 0.0), (2, 0.3, 1.0), (3, -0.1, 2.0)):
        decay = a * math.exp(-nu * k**2 * t)
        phi, slope = phi + decay * torch.cos(k * x + p), slope - decay * k * torch.sin(k * x + p)
    return (-2 * nu * slope / phi)[None]


def test_burgers_agrees_with_cole_and_hopf():
    grid, nu = line(128), 0.3
    e = Burgers(grid, viscosity=nu)
    found = e.advance(cole_hopf(grid, nu, 0.0), 1.0)
    torch.testing.assert_close(found, cole_hopf(grid, nu, 1.0), rtol=0, atol=1e-9)


def test_energy_of_a_shock_falls_at_the_rate_of_its_jump_whatever_the_viscosity():
    """J³/12 per shock and box length: a fan of jump J between shocks that the viscosity smooths."""
    rates = []
    for nu, n in ((0.1, 128), (0.05, 256)):
        e = Burgers(line(n), viscosity=nu)
        (x,) = e.grid.meshgrid()
        u = e.advance(torch.sin(x)[None] * 2, 1.5)
        slope = derivative(u, e.grid, "x")
        rates.append(nu * slope.square().mean().item())
        jump = (u.max() - u.min()).item()
        assert rates[-1] == pytest.approx(jump**3 / 12 / (2 * math.pi), rel=4 * nu)
    assert rates[0] == pytest.approx(rates[1], rel=0.2)


def soliton(e, kappa, x0, t):
    a, b = e.parameters["steepening"], e.parameters["dispersion"]
    (x,) = e.grid.meshgrid()
    L = e.grid.length[0]
    s = torch.remainder(x - x0 - 4 * b * kappa**2 * t + L / 2, L) - L / 2
    return (12 * b * kappa**2 / a / torch.cosh(kappa * s) ** 2)[None]


@pytest.mark.parametrize("steepening", [6.0, -1.0])
def test_a_soliton_keeps_its_shape_and_its_speed(steepening):
    e = KdV(line(256, 40.0), steepening=steepening, dispersion=1.0, speed=15 / abs(steepening))
    u = soliton(e, 1.0, 10.0, 0.0)
    later = e.advance(u, 2.0)
    torch.testing.assert_close(later, soliton(e, 1.0, 10.0, 2.0), rtol=0, atol=2e-6 * float(u.abs().max()))
    for name, value in e.invariants(later).items():
        torch.testing.assert_close(value, e.invariants(u)[name], rtol=1e-6, atol=0)


def test_solitons_pass_through_one_another():
    """The faster one comes out ahead with its height, displaced by ln((κ₁ + κ₂)/(κ₁ − κ₂))/κ₁."""
    e = KdV(line(256, 50.0), steepening=6.0, dispersion=1.0, speed=3.0)
    u = soliton(e, 1.0, 10.0, 0.0) + soliton(e, 0.5, 22.0, 0.0)
    t = 8.0
    u = e.advance(u, t)
    top = u.argmax().item() * 50.0 / 256
    assert u.max().item() == pytest.approx(2.0, rel=5e-3)
    assert top == pytest.approx(10 + 4 * t + math.log(3), abs=0.2)


def test_fronts_of_allen_and_cahn_stand_still_and_circles_shrink():
    eps, r = 4e-3, 5.0
    e = AllenCahn(line(256, 2.0), diffusivity=eps, rate=r)
    (x,) = e.grid.meshgrid()
    c = math.sqrt(r / (2 * eps))
    u = (torch.tanh(c * (x - 0.5)) - torch.tanh(c * (x - 1.5)) - 1)[None]
    assert e.rhs(u).abs().max() < 1e-8
    box = AllenCahn(Grid.periodic_box(64, 2.0), diffusivity=eps, rate=r)
    Y, X = box.grid.meshgrid()
    R = ((X - 1) ** 2 + (Y - 1) ** 2).sqrt()
    u = box.advance(torch.tanh(c * (0.6 - R))[None], 2.0)

    def area(u):
        return 4.0 * (u.mean().item() + 1) / 2

    before = area(u)
    rate = (area(box.advance(u, 5.0)) - before) / 5.0
    assert rate == pytest.approx(-2 * math.pi * eps, rel=0.03)  # every circle loses area at the same rate


def test_free_energy_falls_at_the_rate_of_the_motion():
    e = AllenCahn(line(128, 2.0), diffusivity=0.01)
    u = e.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    h = 1e-5
    up, down = (e.invariants(u + s * h * e.rhs(u))["free_energy"] for s in (1, -1))
    assert ((up - down) / (2 * h)).item() == pytest.approx(-e.rhs(u).square().mean().item(), rel=1e-6)


def test_energy_of_kuramoto_and_sivashinsky_is_budgeted():
    e = KuramotoSivashinsky(line(64, 16 * math.pi), instability=1.1, damping=0.9)
    u = e.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    ux, uxx = derivative(u, e.grid, "x"), derivative(u, e.grid, "x", 2)
    wanted = 1.1 * ux.square().mean() - 0.9 * uxx.square().mean()
    torch.testing.assert_close((u * e.rhs(u)).mean(), wanted, rtol=1e-10, atol=1e-12)


def test_total_of_gray_and_scott_is_budgeted_by_feed_and_washout():
    e = GrayScott(Grid.periodic_box(24, 0.5))
    u = e.initial(torch.Generator().manual_seed(0), 2, torch.float64)
    b = e.budget(u)
    torch.testing.assert_close(e.mean(e.rhs(u)).sum(-1), b["feed"] + b["washout"], rtol=1e-10, atol=1e-14)
    full = torch.stack((torch.ones(24, 24), torch.zeros(24, 24))).double()
    assert e.rhs(full).abs().max() < 1e-14


EXACT = {
    "heat": (
        Heat(line(16), diffusivity=0.2),
        lambda t: torch.sin(2 * line(16).meshgrid()[0])[None] * math.exp(-0.8 * t),
    ),
    "cole_hopf": (Burgers(line(128), viscosity=0.3), lambda t: cole_hopf(line(128), 0.3, t)),
    "soliton": (
        KdV(line(256, 40.0), steepening=6, dispersion=1, speed=2.5),
        lambda t: soliton(KdV(line(256, 40.0), steepening=6, dispersion=1), 1.0, 20.0, t),
    ),
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_orders_of_residuals_of_exact_solutions(name):
    """No solver has a part in the solution here. The quadrature of Hermite leaves Δ⁵ u⁽⁵⁾/720, sign included."""
    e, at = EXACT[name]

    def size(form, h, accuracy=None, frames=(-2, -1, 0, 1, 2)):
        u = torch.stack([at(0.5 + i * h) for i in frames])
        r = residual(e, u, h, form, accuracy)
        return r.square().mean().sqrt().item() / (h if form == "hermite" else 1)

    h = 0.025 if name == "soliton" else 0.1
    for accuracy in (2, 4):
        p = math.log2(size("strong", h, accuracy) / size("strong", h / 2, accuracy))
        assert p == pytest.approx(accuracy, abs=0.15)
    ends = {"frames": (-0.5, 0.5)}
    assert math.log2(size("hermite", h, **ends) / size("hermite", h / 2, **ends)) == pytest.approx(4, abs=0.15)
    if name == "heat":
        u = torch.stack([at(-h / 2), at(h / 2)])
        fifth = (-0.8) ** 5 * at(0.0)
        torch.testing.assert_close(residual(e, u, h, "hermite")[0], h**5 * fifth / 720, rtol=1e-2, atol=1e-14)
        assert relative(residual(e, u, h), scale(e, u, h), e.grid).max() < 1e-12  # an exact solver leaves nothing
