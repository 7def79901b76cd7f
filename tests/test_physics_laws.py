"""What every built-in equation owes: agreement with sympy, with its own balance, its laws, symmetries and orders."""

import pytest
import torch

from lapse.physics.equation import SHIPPED, lookup
from lapse.physics.operators import div, laplacian
from lapse.physics.order import observed_orders
from lapse.physics.residual import FORMS

SOLVED = [name for name in SHIPPED if not lookup(name).algebraic]


@pytest.fixture
def small(benchmark_module):
    """Builds an equation on a small box that resolves its usual parameters."""
    return benchmark_module("physics").small


def state(e, batch=1, seed=0, time=0.0):
    u = e.initial(torch.Generator().manual_seed(seed), batch, torch.float64)
    return e.advance(u, time) if time else u


def test_right_hand_sides_agree_with_sympy(benchmark_module):
    found = benchmark_module("physics").against_sympy()
    assert set(found) == set(SOLVED)
    assert all(error <= 1e-10 for error in found.values()), found


@pytest.mark.parametrize("name", SOLVED)
def test_the_balance_is_the_law(small, name):
    """−∇·flux + ∇²diffused + source, each with the public operators, is the right-hand side once more."""
    e = small(name)
    u = e.modes.synthesise(e.modes.analyse(state(e)) * (e.k2 <= (e.kmax / 4) ** 2))  # products stay on the grid
    q, d = e.conserved(u), e.grid.ndim
    flux = e.flux(u).movedim(-d - 2, -d - 1)  # (…, C, d, *space)
    rate = -div(flux, e.grid)
    if (diffused := e.diffused(u)) is not None:
        rate = rate + laplacian(diffused, e.grid)
    if (source := e.source(u)) is not None:
        rate = rate + source
    _, dq = torch.func.jvp(e.conserved, (u,), (e.rhs(u),))
    assert q.shape == dq.shape
    torch.testing.assert_close(rate, dq, rtol=0, atol=1e-10 * float(dq.abs().max()))


@pytest.mark.parametrize("name", SOLVED)
def test_conserved_is_kept_and_what_falls_falls(small, name):
    e = small(name)
    u, t = state(e), e.usual.interval
    frames = [e.invariants(u)]
    size = e.invariants(u.abs())
    for _ in range(4):
        u = e.advance(u, t / 4, 4 * e.steps(t / 4))
        frames.append(e.invariants(u))
    assert set(e.laws) <= set(frames[0])
    for law, fate in e.laws.items():
        I = torch.stack([f[law] for f in frames])
        if fate == "conserved":
            tolerance = 1e-13 if law in ("mass", "mean", "mean_vorticity") or name == "burgers" else 1e-5
            assert (I - I[0]).abs().max() <= tolerance * size[law].abs().max(), law
        elif fate == "falling":
            assert (I.diff(dim=0) < 0).all(), law


@pytest.mark.parametrize("name", SOLVED)
def test_symmetries_commute_with_the_flow(small, name):
    e = small(name)
    u = state(e)
    assert e.symmetries()
    for S in e.symmetries().values():
        after = e.advance(S(u), e.usual.interval)
        torch.testing.assert_close(after, S(e.advance(u, e.usual.interval)), rtol=0, atol=1e-10)
        assert (S(u) - u).abs().max() > 1e-3


@pytest.mark.parametrize("name", SOLVED)
def test_observed_orders(small, name):
    """Of the solver's step and of each residual on a fine solution: within 0.15 of 4, or without error at all."""
    e = small(name)
    orders = observed_orders(e, state(e, time=e.usual.interval), min(e.usual.interval, 2 * e.dt))
    assert set(orders) == {"step", "strong", "defect", "hermite"}
    for p in orders.values():
        assert p is None or abs(p - 4) < 0.15, orders
    exact = {form for form, p in orders.items() if p is None}
    assert exact == ({"step", "defect"} if name in ("heat", "advection_diffusion") else set())


@pytest.mark.parametrize("name", SOLVED)
def test_gradients_of_residuals(benchmark_module, small, name):
    """Slopes along a random direction by autograd and by differences agree to 1e-6, for every form."""
    for form in FORMS:
        assert benchmark_module("physics").gradient_error(small(name), form) <= 1e-6, form


@pytest.mark.parametrize("name", [n for n in SOLVED if lookup(n).usual.dimension == 1])
def test_usual_box_is_resolved_and_usual_step_is_accurate(name):
    """Over ten frames spectra fall by four decades, and the own time step errs by less than 1e-4 a frame."""
    usual = lookup(name).usual
    e = lookup(name)(usual.grid())
    u = e.spin_up(torch.Generator().manual_seed(1), 2, dtype=torch.float64)
    for _ in range(10):
        before, u = u, e.advance(u, usual.interval)
        power = torch.fft.rfft(u).abs().square().mean(dim=(0, 1))
        assert power[-2] < 1e-4 * power.max()
    fine = e.advance(before, usual.interval, 4 * e.steps(usual.interval))
    assert (u - fine).norm() < 1e-4 * fine.norm()


def test_bad_parameters_are_refused_with_both_sides(small):
    with pytest.raises(ValueError, match="burgers: found viscosity=-1, wanted 0 or more"):
        small("burgers", viscosity=-1)
    with pytest.raises(ValueError, match="kuramoto_sivashinsky: found damping=0, wanted a positive number"):
        small("kuramoto_sivashinsky", damping=0)
    with pytest.raises(TypeError, match=r"heat: found the parameters \['difusivity'\], wanted some of"):
        small("heat", difusivity=1)
    with pytest.raises(ValueError, match="burgers: found speed=0, wanted a positive speed"):
        small("burgers", speed=0)
    with pytest.raises(ValueError, match=r"burgers: found the grid .* wanted one periodic axis"):
        small("burgers", 2)
    with pytest.raises(ValueError, match=r"found the velocity \(1.0, 2.0, 0.0\) on 1 axes, wanted 0 along"):
        small("advection_diffusion", velocity_y=2)
    with pytest.raises(ValueError, match="found dimension=4, wanted 1, 2 or 3"):
        small("heat", 4)
