"""Finite volumes: what leaves a cell enters its neighbour, shocks move at the right speed, walls hold water."""

import math

import pytest
import torch

from lapse.physics.grid import Axis, Grid
from lapse.physics.stepping import ssp_rk3
from lapse.physics.volume import LIMITERS, Volumes

TAU = 2 * math.pi


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(n, length=1.0, periodic=False, stretch=0.0):
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    edges = length * (edges + stretch * torch.sin(TAU * edges) / TAU)
    return Axis("x", tuple(((edges[1:] + edges[:-1]) / 2).tolist()), "m", periodic)


def burgers(u, name):
    return u**2 / 2


def shallow(u, name, g=1.0):
    """Fluxes of (hu, hv, h) along x or y."""
    h, momentum = u[..., 2:3, :, :], u[..., 0:1, :, :] if name == "x" else u[..., 1:2, :, :]
    pressure, zero = g * h**2 / 2, torch.zeros_like(h)
    return u * momentum / h + torch.cat((pressure, zero, zero) if name == "x" else (zero, pressure, zero), dim=-3)


def shallow_speed(u, name, g=1.0):
    h, normal = u[..., 2:3, :, :], u[..., 0:1, :, :] if name == "x" else u[..., 1:2, :, :]
    return (normal / h).abs() + (g * h).sqrt()


@pytest.mark.parametrize("limiter", sorted(LIMITERS))
@pytest.mark.parametrize("periodic", [True, False])
def test_balances_close_to_round_off(limiter, periodic):
    grid = Grid((Axis("y", tuple(0.3 * i for i in range(7)), "m"), line(9, periodic=periodic)))
    walls = {"y": (1,)} if periodic else {"x": (0,), "y": (1,)}
    v = Volumes(grid, limiter, odd=walls)
    u = noise(2, 3, *grid.shape)
    u[:, 2] = u[:, 2].abs() + 2
    rate = v.total(v.transport(u, shallow, shallow_speed))
    size = v.total(u.abs())
    assert (rate[:, 2].abs() <= 1e-13 * size[:, 2]).all()  # mass, periodic or between walls
    assert (rate[:, 0].abs().max() <= 1e-13 * size.max()) == periodic  # momentum along x: walls push
    scalar = noise(2, 3, *grid.shape)
    kappa = noise(*grid.shape).exp()
    assert v.total(Volumes(grid, limiter).diffusion(scalar, kappa)).abs().max() <= 1e-12 * v.total(scalar.abs()).max()


def test_diffusion_is_symmetric_and_only_ever_dissipates():
    grid = Grid((Axis("y", (0.0, 0.2, 0.5, 0.7, 1.1), "m"), line(8, periodic=True)))
    v = Volumes(grid)
    a, b, kappa = noise(1, *grid.shape), noise(1, *grid.shape, seed=1), noise(*grid.shape, seed=2).exp()
    torch.testing.assert_close(
        v.total(a * v.diffusion(b, kappa)), v.total(b * v.diffusion(a, kappa)), rtol=1e-12, atol=0
    )
    assert float(v.total(a * v.diffusion(a, kappa))) < 0


@pytest.mark.parametrize("limiter", sorted(LIMITERS))
@pytest.mark.parametrize("kind", ["periodic", "wall", "stretched", "3d"])
def test_observed_order_of_transport(limiter, kind):
    """L1 order 2 with every limiter, for −∂(u²/2) of smooth fields at their nodes."""
    errors = []
    for n in (16, 32) if kind == "3d" else (64, 128):
        axis = line(n, periodic=kind in ("periodic", "3d"), stretch=0.3 if kind == "stretched" else 0.0)
        axes = (axis,) if kind != "3d" else tuple(Axis(k, axis.coordinates, "m", True) for k in "zyx")
        grid = Grid(axes)
        # odd about walls, so that a wall with an odd channel is its exact symmetry
        k = TAU if kind in ("periodic", "3d") else math.pi
        parts = [torch.sin(k * x) for x in grid.meshgrid()]
        u = sum(parts) + (1.5 if k == TAU else 0.0)
        v = Volumes(grid, limiter, odd={} if k == TAU else {"x": (0,)})
        exact = -u * sum(k * torch.cos(k * x) for x in grid.meshgrid())
        e = v.transport(u[None], burgers, lambda s, name: s.abs())[0] - exact
        errors.append(float(v.total(e.abs()[None])))
    # Cell means and nodal values differ at second order, too: the order cannot be better than 2.
    assert abs(math.log2(errors[0] / errors[1]) - 2) < (0.25 if kind == "3d" else 0.15), errors


@pytest.mark.parametrize("kind", ["periodic", "wall"])
def test_observed_order_of_diffusion(kind):
    errors = []
    for n in (32, 64):
        grid = Grid((line(n, periodic=kind == "periodic"),))
        x = grid.meshgrid()[0]
        u, kappa = torch.cos(TAU * x), 2 + torch.cos(TAU * x)
        exact = -(TAU**2) * (2 * torch.cos(TAU * x) + torch.cos(2 * TAU * x))
        errors.append(float((Volumes(grid).diffusion(u[None], kappa)[0] - exact).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.15


def test_a_line_is_reconstructed_exactly():
    grid = Grid((line(6, stretch=0.2),))
    width = torch.tensor(grid.axes[0].widths, dtype=torch.float64)
    faces = grid.axes[0].coordinates[0] - width[0] / 2 + torch.cat((torch.zeros(1), width.cumsum(0)))
    means = 3 * (faces[1:] + faces[:-1]) / 2
    before, behind = Volumes(grid).reconstruct(means[None], "x")
    inner = slice(2, -2)  # where no mirror image is involved
    torch.testing.assert_close(before[0, inner], 3 * faces[inner], atol=1e-13, rtol=0)
    torch.testing.assert_close(behind[0, inner], 3 * faces[inner], atol=1e-13, rtol=0)


def test_a_shock_moves_at_the_speed_of_rankine_and_hugoniot_without_overshoot():
    n = 100
    grid = Grid((line(n),))
    left, right = torch.tensor([2.0]), torch.tensor([0.5])
    v = Volumes(grid, sides={"x": (left, right)})
    u = torch.where(grid.meshgrid()[0] < 0.2, 2.0, 0.5).double()[None]
    dt = 0.4 / n / 2.0
    variation = float(u.diff().abs().sum())
    for _ in range(round(0.4 / dt)):
        u = ssp_rk3(u, lambda s: v.transport(s, burgers, lambda q, name: q.abs()), dt)
        assert float(u.diff().abs().sum()) <= variation * (1 + 1e-12)
    assert float(u.min()) >= 0.5 - 1e-12 and float(u.max()) <= 2 + 1e-12
    shock = 0.2 + 0.4 * (2 + 0.5) / 2
    # ∫u locates the shock to round-off: the balance is exact, whatever the shock's width
    assert abs(float(v.total(u)[0]) - (2 * shock + 0.5 * (1 - shock))) < 1e-12
    assert abs(float(grid.meshgrid()[0][(u[0] - 1.25).abs().argmin()]) - shock) < 2 / n


def test_dam_break_against_stokers_solution():
    """h and u between the rarefaction and the bore, from Stoker (1957, section 10.8), to the accuracy of 150 cells."""
    n, g, h1, h0, t = 150, 1.0, 1.0, 0.3, 0.25
    grid = Grid((Axis("y", (0.0, 1.0), "m", True), line(n)))
    x = grid.meshgrid()[1]
    v = Volumes(grid, odd={"x": (0,)})
    h = torch.where(x < 0.5, h1, h0).double()
    u = torch.stack((torch.zeros_like(h), torch.zeros_like(h), h))
    mass = v.total(u)[2]
    dt = 0.3 / n
    for _ in range(round(t / dt)):
        u = ssp_rk3(u, lambda s: v.transport(s, shallow, shallow_speed), t / round(t / dt))
    assert abs(float(v.total(u)[2] - mass)) < 1e-13 * float(mass)
    lo, hi = h0, h1  # depth of the middle state, by bisection of the bore's jump conditions
    for _ in range(80):
        m = (lo + hi) / 2
        bore = (m - h0) * math.sqrt(g / 2 * (1 / m + 1 / h0))
        lo, hi = (m, hi) if bore < 2 * (math.sqrt(g * h1) - math.sqrt(g * m)) else (lo, m)
    speed = 2 * (math.sqrt(g * h1) - math.sqrt(g * m))
    front = 0.5 + t * m * speed / (m - h0)
    fan = (2 * math.sqrt(g * h1) - (x - 0.5) / t) ** 2 / (9 * g)
    exact = torch.where(
        x < 0.5 - t * math.sqrt(g * h1), h1, torch.where(x < 0.5 + t * (speed - math.sqrt(g * m)), fan, m)
    )
    exact = torch.where(x > front, h0, exact)
    assert float((u[2] - exact).abs().mean()) < 4e-3
    plateau = (x > 0.5 + t * (speed - math.sqrt(g * m)) + 0.03) & (x < front - 0.03)
    assert float((u[2] - m)[plateau].abs().max()) < 5e-3
    assert float((u[0] / u[2] - speed)[plateau].abs().max()) < 5e-3


def test_an_inflow_fills_the_domain_with_what_flows_in():
    n = 40
    grid = Grid((line(n),))
    v = Volumes(grid, sides={"x": (torch.tensor([3.0]), "outflow")})
    u = torch.ones(1, n, dtype=torch.float64)
    for _ in range(4 * n):
        u = ssp_rk3(
            u, lambda s: v.transport(s, lambda q, name: 0.5 * q, lambda q, name: torch.full_like(q, 0.5)), 1 / n
        )
    torch.testing.assert_close(u, torch.full_like(u, 3.0), atol=1e-6, rtol=0)


def test_transport_is_differentiable():
    grid = Grid((Axis("y", (0.0, 0.3, 0.5), "m"), line(4, periodic=True)))
    v = Volumes(grid, odd={"y": (1,)})
    u = noise(3, *grid.shape)
    u[2] = u[2].abs() + 2
    assert torch.autograd.gradcheck(lambda u: v.transport(u, shallow, shallow_speed), u.requires_grad_())
    assert torch.autograd.gradcheck(lambda u: v.diffusion(u, u**2), u)


def test_bad_input_is_refused_with_both_sides():
    grid = Grid((line(6),))
    with pytest.raises(ValueError, match=r"found limiter='superbee', wanted one of \['minmod'"):
        Volumes(grid, "superbee")
    with pytest.raises(ValueError, match="wanted Cartesian axes"):
        Volumes(Grid((Axis("lat", (0.0, 1.0), "degrees_north"),)))
    with pytest.raises(ValueError, match="for the axis 'x', wanted bounded axes"):
        Volumes(Grid.periodic_box(8, names=("x",)), sides={"x": ("wall", "wall")})
    with pytest.raises(ValueError, match=r"found a state of shape \(6,\), wanted \(…, C, \*\(6,\)\)"):
        Volumes(grid).padded(torch.zeros(6), "x")
    with pytest.raises(ValueError, match="found fluxes through 6 faces, wanted 7"):
        Volumes(grid).difference(torch.zeros(1, 6), "x")
    with pytest.raises(ValueError, match="found the side 'inflow', wanted 'wall', 'outflow' or a tensor"):
        Volumes(grid, sides={"x": ("inflow", "wall")}).padded(torch.zeros(1, 6), "x")  # type: ignore[dict-item]
