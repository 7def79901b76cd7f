"""Nonlinear invariants: reached quadratically, nearest to first order, without a dense Jacobian, with gradients."""

import math
from itertools import pairwise

import pytest
import torch

from lapse.physics.constraints import solenoidal, weighted_mean, with_mean_square
from lapse.physics.grid import Axis, Grid
from lapse.physics.kolmogorov import Kolmogorov
from lapse.physics.newton import violation, with_invariants
from lapse.physics.operators import div
from lapse.physics.shallow_water import ShallowWater

GRID = Grid.periodic_box(16)
GLOBE = Grid(
    (
        Axis("lat", tuple(-80.0 + 20 * i for i in range(9)), "degrees_north"),
        Axis("lon", tuple(map(float, range(0, 360, 30))), "degrees_east", True),
    )
)


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flow():
    """Kolmogorov flow and two of its invariants, energy and enstrophy, which conflict in scale."""
    law = Kolmogorov(GRID)

    def invariants(u):
        i = law.invariants(u)
        return torch.stack((i["energy"], i["enstrophy"]), dim=-1)

    return law, invariants


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_and_enstrophy_in_five_steps(dtype):
    law, invariants = flow()
    u = law.initial(torch.Generator().manual_seed(0), 4, dtype)
    truth = law.initial(torch.Generator().manual_seed(1), 4, dtype)
    wanted = invariants(truth.double()) * torch.tensor([[1.0], [0.7], [1.3], [1.0]])
    out = with_invariants(u, invariants, wanted, steps=5)
    assert out.dtype == dtype
    assert violation(out, invariants, wanted).max() < (1e-6 if dtype == torch.float32 else 1e-12)
    assert violation(u, invariants, wanted).max() > 0.1
    assert out.mean(dim=(-2, -1)).abs().max() < 1e-6  # vorticity has no mean, and the gradients of both have none


def test_convergence_is_quadratic():
    law, invariants = flow()
    u = law.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    wanted = 1.5 * invariants(u)
    errors = [
        float(violation(with_invariants(u, invariants, wanted, steps=n, strict=None), invariants, wanted).max())
        for n in (1, 2, 3, 4)
    ]
    for before, after in pairwise(errors):
        assert after < 1.1 * before**2 + 1e-14
    assert errors[-1] < 1e-12


def test_a_quadratic_invariant_agrees_with_its_closed_form():
    w = GLOBE.area_weights()
    u = noise(3, *GLOBE.shape)
    value = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    closed = with_mean_square(u, value, w)
    torch.testing.assert_close(weighted_mean(closed**2, w), value, rtol=1e-13, atol=0)
    torch.testing.assert_close(weighted_mean(closed, w), weighted_mean(u, w), rtol=0, atol=1e-13)
    newton = with_invariants(
        u,
        lambda x: weighted_mean(x**2, w)[..., None],
        value[:, None],
        weights=w,
        tangent=lambda x: x - weighted_mean(x, w)[:, None, None],
    )
    torch.testing.assert_close(newton, closed, rtol=1e-9, atol=1e-9)
    assert with_mean_square(u.float(), value, w).dtype == torch.float32


def test_step_is_the_least_change():
    """The first step solves min Σwδ² subject to the linearised law: compared with a dense solution."""
    law = ShallowWater(Grid.periodic_box(6))
    u = law.initial(torch.Generator().manual_seed(0), 1, torch.float64)

    def invariants(x):
        i = law.invariants(x)
        return torch.stack((i["mass"], i["energy"], i["potential_enstrophy"]), dim=-1)

    wanted = invariants(u) * torch.tensor([1.001, 0.999, 1.002], dtype=torch.float64)
    once = with_invariants(u, invariants, wanted, steps=1, strict=None)
    J = torch.autograd.functional.jacobian(lambda x: invariants(x)[0], u)[:, 0].flatten(1)
    dense = torch.linalg.pinv(J) @ (wanted - invariants(u))[0]
    torch.testing.assert_close((once - u).flatten(), dense, rtol=1e-6, atol=1e-9)
    out = with_invariants(u, invariants, wanted)
    assert violation(out, invariants, wanted).max() < 1e-11


def test_linear_constraints_stay_true_on_the_way():
    v = solenoidal(noise(2, 2, *GRID.shape), GRID)

    def energy(x):
        return ((x**2).sum(-3) ** 1.5).mean((-2, -1))[..., None]  # a cubic one, so that Newton has work to do

    out = with_invariants(v, energy, 2 * energy(v), tangent=lambda x: solenoidal(x, GRID))
    assert violation(out, energy, 2 * energy(v)).max() < 1e-12
    assert div(out, GRID).abs().max() < 1e-12 * 16
    free = with_invariants(v, energy, 2 * energy(v))
    assert div(free, GRID).abs().max() > 1e-3


def test_samples_do_not_see_each_other():
    law, invariants = flow()
    u = law.initial(torch.Generator().manual_seed(0), 3, torch.float64)
    wanted = invariants(u) * torch.tensor([[1.0], [1.4], [0.6]])
    together = with_invariants(u, invariants, wanted)
    for i in range(3):
        torch.testing.assert_close(
            together[i : i + 1], with_invariants(u[i : i + 1], invariants, wanted[i : i + 1]), rtol=1e-9, atol=1e-11
        )
    torch.testing.assert_close(together[0], u[0], rtol=1e-12, atol=1e-12)  # it had its values already


def test_gradients_pass():
    law = Kolmogorov(Grid.periodic_box(5), wavenumber=1)

    def invariants(u):
        i = law.invariants(u)
        return torch.stack((i["energy"], i["enstrophy"]), dim=-1)

    u = law.initial(torch.Generator().manual_seed(0), 2, torch.float64)
    c = (1.2 * invariants(u)).requires_grad_()
    u.requires_grad_()
    weight, du, dc = noise(*u.shape, seed=1), noise(*u.shape, seed=2), noise(*c.shape, seed=3)

    def value(u, c):
        return (with_invariants(u, invariants, c, steps=3, strict=None) * weight).sum()

    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(value(u, c), (u, c)), (du, dc), strict=True))
    h = 1e-5
    with torch.no_grad():
        difference = (value(u + h * du, c + h * dc) - value(u - h * du, c - h * dc)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=0)


def test_what_cannot_be_reached_is_said():
    u = noise(2, *GRID.shape)

    def square(x):
        return (x**2).mean((-2, -1))[..., None]

    with pytest.raises(ValueError, match=r"found a violation of .* after 5 steps, wanted 1e-06"):
        with_invariants(u, square, torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="found steps=0, wanted at least 1"):
        with_invariants(u, square, torch.tensor([1.0]), steps=0)
    assert math.isfinite(float(with_invariants(u, square, torch.tensor([1e-3]), steps=1, strict=None).sum()))
    with pytest.raises(ValueError, match=r"found a wanted variance .* of -1\.\d+ and one of"):
        with_mean_square(u, -1.0, GRID.area_weights())
