"""Kolmogorov flow against exact solutions, an independent statement in sympy, its budgets and its symmetries."""

import math

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.grid import Grid
from lapse.physics.kolmogorov import Kolmogorov
from lapse.physics.operators import inverse_laplacian, truncate
from lapse.physics.spectrum import power_spectrum

BOX = Grid.periodic_box(32)


def state(e, batch=2, seed=0, time=1.0):
    u = e.initial(torch.Generator().manual_seed(seed), batch, torch.float64)
    return e.advance(u, time)


def test_taylor_green_vortices_decay_exactly():
    """cos mx cos my is a steady Euler flow; it decays at the rate 2νm² + μ."""
    nu, mu, m, t = 0.03, 0.1, 2, 1.7
    e = Kolmogorov(BOX, viscosity=nu, drag=mu, forcing=0, speed=4)
    y, x = BOX.meshgrid()
    w = (2 * torch.cos(m * x) * torch.cos(m * y))[None]
    torch.testing.assert_close(e.advance(w, t), w * math.exp(-(2 * nu * m**2 + mu) * t), rtol=0, atol=1e-12)


def test_laminar_flow_is_steady():
    A, kf, nu, mu = 1.5, 4, 0.1, 0.2
    e = Kolmogorov(BOX, viscosity=nu, drag=mu, forcing=A, wavenumber=kf)
    y, _ = BOX.meshgrid()
    w = (-A * kf * torch.cos(kf * y) / (mu + nu * kf**2))[None]
    torch.testing.assert_close(e.advance(w, 1.0), w, rtol=0, atol=1e-10)
    u, v = e.velocity(w)
    torch.testing.assert_close(u, A * torch.sin(kf * y) / (mu + nu * kf**2), rtol=0, atol=1e-13)  # along the force
    assert v.abs().max() < 1e-13


def test_rhs_agrees_with_an_independent_statement():
    """The equation again, as a textbook writes it, in sympy; on a box of unequal sides."""
    Ly, Lx = 3.0, 5.0
    grid = Grid.periodic_box((40, 48), length=(Ly, Lx))
    p = {"viscosity": 0.013, "drag": 0.07, "forcing": 1.3, "wavenumber": 3}
    x, y = sympy.symbols("x y")
    a, b = 2 * sympy.pi * x / Lx, 2 * sympy.pi * y / Ly
    psi = sympy.sin(2 * a + b) + 0.4 * sympy.cos(a - 3 * b + 1) - 0.2 * sympy.cos(4 * a) + 0.3 * sympy.sin(2 * b)
    omega = psi.diff(x, 2) + psi.diff(y, 2)
    u, v = -psi.diff(y), psi.diff(x)
    kf = 2 * sympy.pi * p["wavenumber"] / Ly
    force_x = p["forcing"] * sympy.sin(kf * y)
    rate = (
        -u * omega.diff(x)
        - v * omega.diff(y)
        + p["viscosity"] * (omega.diff(x, 2) + omega.diff(y, 2))
        - p["drag"] * omega
        - force_x.diff(y)
    )

    def sample(f):
        ys, xs = grid.meshgrid()
        return torch.as_tensor(sympy.lambdify((y, x), f, "numpy")(ys.numpy(), xs.numpy()))[None]

    e = Kolmogorov(grid, **p)
    torch.testing.assert_close(e.rhs(sample(omega)), sample(rate), rtol=0, atol=1e-10)
    velocity = torch.cat((sample(u), sample(v)))
    torch.testing.assert_close(e.velocity(sample(omega)), velocity, rtol=0, atol=1e-12)
    torch.testing.assert_close(e.vorticity(velocity), sample(omega), rtol=0, atol=1e-11)


def test_observed_order_in_time():
    e = Kolmogorov(BOX)
    u = state(e)
    reference = e.advance(u, 0.8, steps=320)
    error = [(e.advance(u, 0.8, steps=n) - reference).abs().max().item() for n in (20, 40)]
    assert math.log2(error[0] / error[1]) == pytest.approx(4, abs=0.2)


def test_own_step_is_accurate_and_single_precision_follows_double():
    e = Kolmogorov(BOX)
    u = state(e)
    reference = e.advance(u, 0.2, steps=100)
    size = reference.square().mean().sqrt()
    assert (e.advance(u, 0.2) - reference).square().mean().sqrt() < 1e-5 * size
    single = e.advance(u.float(), 0.2)
    assert single.dtype == torch.float32
    assert (single - reference).square().mean().sqrt() < 1e-5 * size


def test_convergence_in_space_is_spectral():
    """Coarse solutions approach a fine one faster than any power: the observed order itself grows."""
    fine = Grid.periodic_box(64)
    e = Kolmogorov(fine, viscosity=0.03)
    u = e.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    truth = e.advance(u, 1.0, steps=100)
    errors = []
    sizes = (24, 32, 48)
    for n in sizes:
        g = Grid.periodic_box(n)
        out = Kolmogorov(g, viscosity=0.03).advance(truncate(u, fine, g), 1.0, steps=100)
        errors.append((out - truncate(truth, fine, g)).abs().max().item())
    first, second = (math.log(errors[i] / errors[i + 1]) / math.log(sizes[i + 1] / sizes[i]) for i in (0, 1))
    assert 4 < first < second - 1


def test_a_padded_grid_and_the_two_thirds_rule_are_the_same_method():
    fine, coarse = Grid.periodic_box(48), Grid.periodic_box(32)
    padded, truncated = Kolmogorov(coarse), Kolmogorov(fine, modes=15)
    u = truncated.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    out = truncate(truncated.advance(u, 0.5, steps=20), fine, coarse)
    torch.testing.assert_close(padded.advance(truncate(u, fine, coarse), 0.5, steps=20), out, rtol=0, atol=1e-11)


def test_instantaneous_budgets_of_energy_and_enstrophy_close():
    e = Kolmogorov(BOX, viscosity=0.02, drag=0.3)
    w = state(e)
    rate = e.rhs(w)[:, 0]
    psi = inverse_laplacian(w[:, 0], BOX)
    b = e.budget(w)
    for quantity, dt in (("energy", -(psi * rate).mean((1, 2))), ("enstrophy", (w[:, 0] * rate).mean((1, 2)))):
        total = b[f"{quantity}_input"] + b[f"{quantity}_dissipation"] + b[f"{quantity}_drag"]
        scale = b[f"{quantity}_input"].abs().max().item()
        torch.testing.assert_close(total, dt, rtol=0, atol=1e-12 * scale)
    assert (b["energy_dissipation"] < 0).all() and (b["enstrophy_drag"] < 0).all()


def test_budgets_close_over_a_long_run():
    e = Kolmogorov(BOX)
    w, h, n = state(e), 0.02, 50  # Simpson's rule over 50 double intervals
    start, change = e.invariants(w), {"energy": 0.0, "enstrophy": 0.0}
    for i in range(2 * n + 1):
        b = e.budget(w)
        weight = h / 3 * (1 if i in (0, 2 * n) else 4 if i % 2 else 2)
        for q in change:
            change[q] = change[q] + weight * sum(b[f"{q}_{term}"] for term in ("input", "dissipation", "drag"))
        if i < 2 * n:
            w = e.advance(w, h)
    for q in change:
        found = e.invariants(w)[q] - start[q]
        torch.testing.assert_close(found, change[q], rtol=0, atol=2e-6 * start[q].max().item())


def test_inviscid_flow_conserves_energy_and_enstrophy():
    e = Kolmogorov(BOX, viscosity=0, drag=0, forcing=0, speed=5)
    w = 0.3 * e.initial(torch.Generator().manual_seed(0), 2, torch.float64)
    a, b = e.invariants(w), e.invariants(e.advance(w, 4.0, steps=400))
    for q in ("energy", "enstrophy"):
        torch.testing.assert_close(b[q], a[q], rtol=1e-8, atol=0)
    assert (b["palinstrophy"] > 1.05 * a["palinstrophy"]).all()  # it did cascade


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_mean_vorticity_stays_nought(dtype, tolerance):
    e = Kolmogorov(BOX)
    w = e.initial(torch.Generator().manual_seed(0), 2, dtype)
    for _ in range(5):
        w = e.advance(w, 0.5)
        i = e.invariants(w)
        assert (i["mean_vorticity"].abs() <= tolerance * (2 * i["enstrophy"]).sqrt()).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 31), st.integers(0, 3), st.integers(0, 100))
def test_translation_equivariance(dx, periods, seed):
    """Any shift along x, and shifts along y by whole periods of the force, commute with the flow."""
    e = Kolmogorov(BOX, wavenumber=4)
    w = e.initial(torch.Generator().manual_seed(seed), 1, torch.float64)
    shift = {"shifts": (8 * periods, dx), "dims": (-2, -1)}
    torch.testing.assert_close(e.advance(w.roll(**shift), 0.2), e.advance(w, 0.2).roll(**shift), rtol=0, atol=1e-11)


def test_shift_and_reflect_symmetry():
    """x → −x with half a period of the force along y turns ω into −ω; half a period alone is no symmetry."""
    e = Kolmogorov(BOX, wavenumber=4)
    w = state(e)

    def S(w):
        return -w.flip(-1).roll((4, 1), dims=(-2, -1))

    torch.testing.assert_close(e.advance(S(w), 0.2), S(e.advance(w, 0.2)), rtol=0, atol=1e-11)
    assert (e.advance(w.roll(4, -2), 0.2) - e.advance(w, 0.2).roll(4, -2)).abs().max() > 0.1


def test_quadratic_invariants_agree_with_the_spectrum():
    e = Kolmogorov(BOX)
    w = state(e)
    _, E = power_spectrum(w[:, 0], BOX)
    i = e.invariants(w)
    torch.testing.assert_close(i["enstrophy"], E.sum(-1) / 2)
    _, x = BOX.meshgrid()
    single = e.invariants((2 * torch.cos(3 * x))[None, None])
    assert single["energy"].item() == pytest.approx(1 / 9)
    assert single["palinstrophy"].item() == pytest.approx(9)


def test_default_flow_is_resolved_and_chaotic():
    """From spun-up states, the spectrum falls by four decades, and a nudge of 1e-5 grows in ten time units."""
    e = Kolmogorov(Grid.periodic_box(64))
    w = e.spin_up(torch.Generator().manual_seed(0), 1, duration=20.0)
    for dim in (-1, -2):
        line = (torch.fft.rfft(w.double(), dim=dim).abs() ** 2).movedim(dim, -1).reshape(-1, 33).mean(0)
        assert line[31] < 1e-4 * line.max()
    nudged = w + 1e-5 * e.initial(torch.Generator().manual_seed(1), 1)
    assert (e.advance(nudged, 10.0) - e.advance(w, 10.0)).std() > 20 * (nudged - w).std()


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match="found viscosity=-1, wanted 0 or more"):
        Kolmogorov(BOX, viscosity=-1)
    with pytest.raises(ValueError, match=r"found wavenumber=2.5, wanted a whole number from 1 to 15"):
        Kolmogorov(BOX, wavenumber=2.5)
    with pytest.raises(ValueError, match="found wavenumber=16, wanted a whole number from 1 to 15"):
        Kolmogorov(BOX, wavenumber=16)
    with pytest.raises(ValueError, match="found speed=None, forcing=0, wanted a positive speed"):
        Kolmogorov(BOX, forcing=0)
    with pytest.raises(ValueError, match=r"found a velocity of shape \(1, 32, 32\), wanted"):
        Kolmogorov(BOX).vorticity(torch.zeros(1, 32, 32))
