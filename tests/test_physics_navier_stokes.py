"""Velocity–pressure Navier–Stokes against Taylor–Green, Kovasznay and Poiseuille, sympy, and a published DNS."""

import math

import pytest
import torch

from lapse.physics.grid import Axis, Grid
from lapse.physics.kolmogorov import Kolmogorov
from lapse.physics.navier_stokes import NavierStokes, rates
from lapse.physics.operators import curl, div, laplacian
from lapse.physics.residual import residual


def box(n, m, x=(-0.5, 1.0), y=(-0.5, 0.5)):
    """Nodes in the middle of n × m cells."""

    def axis(name, count, ends):
        h = (ends[1] - ends[0]) / count
        return Axis(name, tuple(ends[0] + h * (i + 0.5) for i in range(count)), "m")

    return Grid((axis("y", n, y), axis("x", m, x)))


def kovasznay(grid, viscosity):
    """Steady flow behind a grid (Kovasznay 1948, doi:10.1017/S0305004100023999)."""
    y, x = grid.meshgrid()
    re = 1 / viscosity
    lam = re / 2 - math.sqrt(re**2 / 4 + 4 * math.pi**2)
    e = torch.exp(lam * x)
    return torch.stack(
        (
            1 - e * torch.cos(2 * math.pi * y),
            lam / (2 * math.pi) * e * torch.sin(2 * math.pi * y),
            -torch.exp(2 * lam * x) / 2,
        )
    )


def taylor_green(grid, t, viscosity):
    y, x = grid.meshgrid()
    f = math.exp(-2 * viscosity * t)
    u, v = torch.sin(x) * torch.cos(y) * f, -torch.cos(x) * torch.sin(y) * f
    return torch.stack((u, v, (torch.cos(2 * x) + torch.cos(2 * y)) / 4 * f**2))


def test_taylor_green_is_exact():
    grid = Grid.periodic_box((24, 20))
    law = NavierStokes(grid, viscosity=0.05)
    u = taylor_green(grid, 0.3, 0.05)
    rate = law.rhs(u)
    torch.testing.assert_close(rate[:2], -0.1 * u[:2], atol=1e-13, rtol=0)
    assert rate[2].abs().max() < 1e-13
    torch.testing.assert_close(law.pressure(u[:2]), u[2], atol=1e-13, rtol=0)
    errors = []
    for interval in (0.4, 0.2):
        series = torch.stack([taylor_green(grid, 1 + interval * i, 0.5) for i in range(-2, 3)])
        errors.append(float(residual(NavierStokes(grid, viscosity=0.5), series, interval, "strong")[:, :2].abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.15  # what is left is the error of u_t
    assert residual(NavierStokes(grid, viscosity=0.5), series, 0.2, "strong")[:, 2].abs().max() < 1e-13


@pytest.mark.parametrize("accuracy", [2, 4, 6])
def test_observed_order_on_kovasznays_flow(accuracy):
    errors = []
    for n in (24, 48):
        grid = box(n, 2 * n)
        r = NavierStokes(grid, accuracy=accuracy, viscosity=0.05).steady(kovasznay(grid, 0.05))
        errors.append(r[:, n // 4 : -n // 4, n // 2 : -n // 2].square().mean(dim=(-2, -1)).sqrt())
    assert ((torch.log2(errors[0] / errors[1]) - accuracy).abs() < 0.15).all(), errors
    wrong = NavierStokes(grid, accuracy=accuracy, viscosity=0.055).steady(kovasznay(grid, 0.05))
    assert wrong[:2].square().mean().sqrt() > 10 * errors[1][:2].max() or accuracy == 2


def test_walls_and_inflow_of_a_channel():
    """Poiseuille: u = 6y(1 − y), p = −12νx, exact for every accuracy; the profile enters, both walls stand still."""
    grid = box(10, 12, x=(0.0, 3.0), y=(0.0, 1.0))
    y, x = grid.meshgrid()
    u = torch.stack((6 * y * (1 - y), 0 * y, -12 * 0.1 * x))
    profile = u[:2, :, 0]
    for accuracy in (None, 2, 4):
        law = NavierStokes(
            grid, accuracy=accuracy, sides={"x": (profile, "open"), "y": ("wall", (0.0, 0.0))}, viscosity=0.1
        )
        assert law.steady(u).abs().max() < 1e-12
        assert {k: float(r.abs().max()) < 1e-13 for k, r in law.boundary(u).items()} == {
            "x-": True,
            "y-": True,
            "y+": True,
        }
        slip = law.boundary(u + torch.tensor([0.2, 0.0, 0.0])[:, None, None])
        torch.testing.assert_close(slip["y-"][0], torch.full((12,), 0.2, dtype=torch.float64))
    nodes = Grid((Axis("y", tuple(i / 8 for i in range(9)), "m"), grid.axes[1]))
    y, x = nodes.meshgrid()
    u = torch.stack((6 * y * (1 - y), 0 * y, -1.2 * x))
    at_nodes = NavierStokes(nodes, sides={"y": ("wall", "wall")}, sides_at="nodes", viscosity=0.1)
    assert all(r.abs().max() < 1e-14 for r in at_nodes.boundary(u).values())


def test_the_same_law_in_vorticity_form_agrees():
    """Curl of the rates, for the velocity and pressure of Kolmogorov flow, against the other file's right-hand side."""
    grid = Grid.periodic_box(33)
    other = Kolmogorov(grid, viscosity=0.03, drag=0.1, forcing=1.3, wavenumber=3, modes=10)
    law = NavierStokes(grid, viscosity=0.03, drag=0.1, forcing=1.3, wavenumber=3)
    w = other.initial(torch.Generator().manual_seed(0), 2, torch.float64)
    v = other.velocity(w)
    u = torch.cat((v, law.pressure(v)[:, None]), dim=1)
    rate = law.rhs(u)
    # the other one keeps ten modes, and its quadratic products no more than these
    expected = other.rhs(w)
    torch.testing.assert_close(
        other.modes.synthesise(other.modes.analyse(curl(rate[:, :2], grid)))[:, None], expected, atol=1e-10, rtol=0
    )
    assert div(rate[:, :2], grid).abs().max() < 1e-10  # and the pressure keeps it free of divergence
    frames = torch.stack([other.advance(w, 0.01 * i) for i in range(5)], dim=1)
    v = other.velocity(frames)
    series = torch.cat((v, law.pressure(v).unsqueeze(-3)), dim=-3)
    r = residual(law, series, 0.01, "strong")
    # what is left are the modes that the other one drops
    assert r.square().mean().sqrt() < 5e-3 * law.rhs(u)[:, :2].square().mean().sqrt()
    thick = NavierStokes(grid, viscosity=0.06, drag=0.1, forcing=1.3, wavenumber=3)
    wrong = residual(thick, series, 0.01, "strong")
    assert wrong.square().mean() > 100 * r.square().mean()


def test_law_agrees_with_sympy():
    """An independent statement: the rates of a symbolic flow, differentiated by sympy, to 1e-10."""
    sympy = pytest.importorskip("sympy")
    X, Y = sympy.symbols("x y")
    psi = sympy.sin(X) * sympy.cos(2 * Y) + sympy.cos(3 * X + Y) / 3
    U, V, P = -sympy.diff(psi, Y), sympy.diff(psi, X) + sympy.cos(X), sympy.sin(2 * X - Y)
    nu, mu, A, n = sympy.Rational(7, 100), sympy.Rational(1, 10), sympy.Rational(3, 2), 2
    D = sympy.diff
    rows = [
        -U * D(U, X) - V * D(U, Y) - D(P, X) + nu * (D(U, X, 2) + D(U, Y, 2)) - mu * U + A * sympy.sin(n * Y),
        -U * D(V, X) - V * D(V, Y) - D(P, Y) + nu * (D(V, X, 2) + D(V, Y, 2)) - mu * V,
        -D(U, X) - D(V, Y),
    ]
    grid = Grid.periodic_box((32, 36))
    y, x = grid.meshgrid()

    def values(expressions):
        return torch.stack(
            [0 * x + torch.as_tensor(sympy.lambdify((X, Y), e, "numpy")(x.numpy(), y.numpy())) for e in expressions]
        )

    law = NavierStokes(grid, viscosity=0.07, drag=0.1, forcing=1.5, wavenumber=2)
    u = values([U, V, P])
    torch.testing.assert_close(law.rhs(u), values(rows), atol=1e-10, rtol=0)
    # the balance is the same law, where the flow is free of divergence
    free = values([U, V - sympy.cos(X), P])
    flux = law.flux(free)
    balance = torch.stack([div(flux[:, i], grid) for i in range(3)]) - laplacian(law.diffused(free), grid)
    torch.testing.assert_close(balance - law.source(free), -law.rhs(free), atol=1e-10, rtol=0)


def test_interior_leaves_out_what_sees_a_body():
    grid = box(20, 30)
    y, x = grid.meshgrid()
    fluid = x**2 + y**2 > 0.04
    law = NavierStokes(grid, accuracy=4, viscosity=0.05)
    u = kovasznay(grid, 0.05)
    poisoned = torch.where(fluid, u, torch.tensor(1e6, dtype=torch.float64))
    inside = law.interior(fluid)
    assert 0 < int((fluid & ~inside).sum()) < 200
    torch.testing.assert_close(law.steady(poisoned)[:, inside], law.steady(u)[:, inside], atol=1e-9, rtol=0)
    touched = (law.steady(poisoned) - law.steady(u)).abs().amax(0) > 1.0
    assert not (touched & inside).any() and touched[fluid & ~inside].any()


def test_residual_is_differentiable_and_takes_batches():
    grid = box(4, 5)
    law = NavierStokes(grid, viscosity=0.05)
    u = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(law.steady, u)
    torch.testing.assert_close(law.steady(u)[1], law.steady(u[1]))


def test_invariants_of_taylor_green():
    grid = Grid.periodic_box(16)
    i = NavierStokes(grid).invariants(taylor_green(grid, 0.0, 0.0))
    assert abs(float(i["energy"]) - 0.25) < 1e-14 and abs(float(i["enstrophy"]) - 0.5) < 1e-13
    assert abs(float(i["momentum_x"])) < 1e-14 and float(i["divergence"]) < 1e-26


def test_random_states_obey_the_constraint():
    grid = Grid.periodic_box(33)  # odd: no Nyquist mode, whose gradient is nought and whose Laplacian is not
    law = NavierStokes(grid, forcing=1.0)
    u = law.initial(torch.Generator().manual_seed(0), 2, torch.float64)
    rate = law.rhs(u)
    assert rate[:, 2].abs().max() < 1e-12 and div(rate[:, :2], grid).abs().max() < 1e-9
    torch.testing.assert_close(law.mean(u[:, :2].square().sum(1)), torch.ones(2, dtype=torch.float64))


def test_published_steady_cylinder_flow(lapse_data, benchmark_module):
    """f00001 of the Nek5000 cylinder at Re = 100, on its own spectral elements, with these operators and this law."""
    operators = benchmark_module("operators")
    elements, velocity, pressure = operators.read_nek(lapse_data / "nek5000_cylinder_re100/pod_modes/cyl0.f00001")
    relative = {}
    for nu in (0.01, 0.011):
        r = rates(velocity, pressure, elements.grad, elements.laplacian, nu)
        scale = elements.rms(rates(velocity, 0 * pressure, elements.grad, elements.laplacian, 0.0)[:, :2])
        relative[nu] = float(elements.rms(r[:, :2]) / scale)
    assert relative[0.01] < 1e-3 < relative[0.011] / 10
    assert elements.rms(r[:, 2]) < 1e-4 * elements.rms(elements.grad(velocity[:, 0])[:, 1])


def test_bad_input_is_refused_with_both_sides():
    grid = box(6, 8)
    with pytest.raises(ValueError, match="wanted two Cartesian axes"):
        NavierStokes(Grid.periodic_box(8, names=("x",)))
    with pytest.raises(ValueError, match="found accuracy=3, wanted 2, 4, 6 or None"):
        NavierStokes(grid, accuracy=3)
    with pytest.raises(ValueError, match="found sides of the axis 'z', wanted bounded axes"):
        NavierStokes(grid, sides={"z": ("wall", "wall")})
    with pytest.raises(NotImplementedError, match="wanted the strong or steady residual"):
        NavierStokes(grid).advance(torch.zeros(3, 6, 8), 0.1, steps=1)
    with pytest.raises(ValueError, match="found accuracy=2, wanted spectral derivatives"):
        NavierStokes(grid, accuracy=2).pressure(torch.zeros(2, 6, 8))
    with pytest.raises(ValueError, match="wanted periodic Cartesian axes only"):
        NavierStokes(grid).pressure(torch.zeros(2, 6, 8))
    with pytest.raises(ValueError, match="found spectral derivatives along 'y', wanted an accuracy"):
        NavierStokes(Grid.periodic_box(8)).interior(torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"found the parameters \['reynolds'\]"):
        NavierStokes(grid, reynolds=100)
