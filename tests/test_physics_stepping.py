"""Integrators: observed orders, stiff decay, fixed points."""

import math

import pytest
import torch

from lapse.physics.stepping import ETDRK4, rk4, ssp_rk3


def observed_order(error, n):
    return math.log2(error(n) / error(2 * n))


@pytest.mark.parametrize(("step", "order"), [(rk4, 4), (ssp_rk3, 3)])
def test_order_of_explicit_steps(step, order):
    """u' = −u² cos t … as an autonomous pair (u, t); u = 1 / (1 + sin t)."""

    def F(y):
        return torch.stack((-(y[0] ** 2) * torch.cos(y[1]), torch.ones_like(y[1])))

    def error(n):
        y = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for _ in range(n):
            y = step(y, F, 1.5 / n)
        return abs(y[0].item() - 1 / (1 + math.sin(1.5)))

    assert observed_order(error, 40) == pytest.approx(order, abs=0.2)


def test_ssp_rk3_is_a_convex_combination_of_euler_steps():
    """Total variation of upwind advection does not grow at the largest Courant number; that is what SSP promises."""
    u = (torch.arange(50) < 25).double()
    for _ in range(40):
        u = ssp_rk3(u, lambda u: -(u - u.roll(1)), 1.0)
        assert (u - u.roll(1)).abs().sum() <= 2 + 1e-12


@pytest.mark.parametrize("rate", [-1.0, -0.01])
def test_order_of_etdrk4(rate):
    """v' = L v + v²: Bernoulli's equation, whose solution is known."""
    L = torch.tensor([rate], dtype=torch.float64)
    v0, t = 0.4, 2.0
    exact = 1 / ((1 / v0 + 1 / rate) * math.exp(-rate * t) - 1 / rate)

    def error(n):
        v = torch.tensor([v0 + 0j], dtype=torch.complex128)
        step = ETDRK4(L, t / n)
        for _ in range(n):
            v = step(v, lambda v: v**2)
        return abs(v.item() - exact)

    assert observed_order(error, 16) == pytest.approx(4, abs=0.2)


def test_etdrk4_integrates_stiff_decay_exactly():
    L = torch.tensor([0.0, -1e-9, -1.0, -1e6], dtype=torch.float64)
    v = torch.ones(4, dtype=torch.complex128)
    out = ETDRK4(L, 0.7)(v, torch.zeros_like)
    torch.testing.assert_close(out.real, (0.7 * L).exp(), rtol=1e-14, atol=0)


def test_etdrk4_keeps_fixed_points_at_any_step():
    L = torch.tensor([-0.5, -30.0, -4000.0], dtype=torch.float64)
    v = torch.tensor([1 + 2j, -3j, 0.1], dtype=torch.complex128)
    out = ETDRK4(L, 0.3)(v, lambda _: -L * v)
    torch.testing.assert_close(out, v, rtol=1e-12, atol=0)


def test_etdrk4_in_single_precision():
    L = torch.tensor([-1.0, -20.0], dtype=torch.float64)
    v = torch.tensor([1 + 1j, 0.5], dtype=torch.complex64)
    single = ETDRK4(L, 0.1, torch.float32)(v, lambda v: v**2)
    double = ETDRK4(L, 0.1)(v.to(torch.complex128), lambda v: v**2)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(single.to(torch.complex128), double, rtol=1e-6, atol=1e-7)
