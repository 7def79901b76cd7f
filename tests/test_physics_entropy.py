"""The arrow of time at shocks: expansion shocks, reversed films, oscillations."""

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lapse.physics.balance import Balance
from lapse.physics.burgers import Burgers
from lapse.physics.entropy import growth, production, relative_production, total_variation
from lapse.physics.equation import Equation
from lapse.physics.grid import Axis, Grid
from lapse.physics.kdv import KdV
from lapse.physics.weak import weak

GRID = Grid((Axis("x", tuple(0.01 * i - 1 for i in range(200)), "m"),))


class Inviscid(Equation):
    """Burgers' equation without viscosity on a bounded axis."""

    name = "inviscid"
    variables = ("u",)
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1"}

    def rhs(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def flux(self, u: Tensor) -> Tensor:
        return (u * u / 2).unsqueeze(-3)

    def entropy(self, u: Tensor) -> Balance:
        return Balance(u**2 / 2, (u**3 / 3).unsqueeze(-3))


def step(left: float, right: float, frames: int = 80) -> Tensor:
    """A jump that moves at the speed (left + right)/2, as cell means, (T, 1, x)."""
    x = GRID.meshgrid()[0][:, None] + 0.01 * ((torch.arange(20) + 0.5) / 20 - 0.5)
    t = 0.01 * torch.arange(frames, dtype=torch.float64)[:, None, None]
    behind = (x[None] < -0.2 + (left + right) / 2 * t).to(torch.float64).mean(-1)[:, None]
    return right + (left - right) * behind


def fan(frames: int = 80) -> Tensor:
    """The rarefaction from 0 to 1 that a gas makes of the jump, u = x/t, from 0.1 s on."""
    x = GRID.meshgrid()[0]
    t = 0.1 + 0.01 * torch.arange(frames, dtype=torch.float64)[:, None]
    return ((x + 0.5) / t).clamp(0, 1)[:, None]


def test_a_shock_loses_what_theory_says() -> None:
    """Energy falls by (jump)³/12 per unit of time; the sum over windows, times their area, gives it back."""
    law = Inviscid(GRID)
    for left, right in ((1.0, 0.0), (0.6, -0.2)):
        e = production(law, step(left, right), 0.01)[:, 0]
        assert float(e.max()) < 0.01 * float(-e.min())
        # The windows' φ overlap; a shock that stays well inside sees their sum, centres being evenly spaced.
        spacing = 2.0 / 199 * 179 / (e.shape[1] - 1)
        assert float(-e[1:-1].sum(1).mean() * spacing) == pytest.approx((left - right) ** 3 / 12, rel=0.06)


def test_the_sign_tells_an_expansion_shock_which_the_balance_admits() -> None:
    law = Inviscid(GRID)
    shock, expansion = step(1.0, 0.0), step(0.0, 1.0)
    size = float(weak(law, step(1.0, 0.0) + 0.1 * torch.linspace(0, 1, 80).double()[:, None, None], 0.01).abs().mean())
    assert float(weak(law, expansion, 0.01).abs().mean()) < 0.1 * size  # a weak solution as good as the shock
    assert float(relative_production(law, shock, 0.01)) < 0.01
    assert float(relative_production(law, expansion, 0.01)) > 0.3
    assert float(relative_production(law, fan(), 0.01)) < 0.01


def test_viscosity_spreads_energy_and_takes_it() -> None:
    """A decaying viscous wave: production is −ν u_x², which the window's mean shows in its own size."""
    grid = Grid((Axis("x", tuple(i / 64 for i in range(64)), "m", periodic=True),))
    law = Burgers(grid, viscosity=0.05)
    x = grid.meshgrid()[0]
    decay = law.parameters["viscosity"] * (2 * torch.pi) ** 2
    t = 0.005 * torch.arange(40, dtype=torch.float64)[:, None]
    u = 1e-3 * (torch.exp(-decay * t) * torch.sin(2 * torch.pi * x))[:, None]  # so weak that it is linear
    e = production(law, u, 0.005)[:, 0]
    slope = law.parameters["viscosity"] * ((1e-3 * 2 * torch.pi * torch.exp(-decay * t)) ** 2 / 2)
    assert float(e.max()) < 0
    assert float(-e.mean()) == pytest.approx(float(slope.mean()), rel=0.1)


def test_total_variation_of_known_fields() -> None:
    x = torch.arange(100, dtype=torch.float64) / 100
    periodic = Grid((Axis("x", tuple(x.tolist()), "m", periodic=True),))
    bounded = Grid((Axis("x", tuple(x.tolist()), "m"),))
    assert float(total_variation(torch.sin(2 * torch.pi * x), periodic)) == pytest.approx(4, rel=1e-12)
    assert float(total_variation(x, bounded)) == pytest.approx(0.99)
    assert float(total_variation(x, periodic)) == pytest.approx(1.98)  # and back again
    box = Grid((Axis("y", (0.0, 1.0, 2.0)), Axis("x", tuple(x.tolist()))))
    assert float(total_variation(x.expand(3, 100), box)) == pytest.approx(3 * 0.99)
    with pytest.raises(ValueError, match="found a field of shape"):
        total_variation(x[:50], bounded)


def test_growth_counts_rises_only() -> None:
    assert float(growth(torch.tensor([4.0, 3.0, 3.5, 1.0]))) == pytest.approx(0.125)
    assert float(growth(total_variation(step(1.0, 0.0)[:, 0], GRID))) == pytest.approx(0, abs=1e-12)
    ringing = step(1.0, 0.0)
    ringing[40:, 0, 100:110:2] += 0.05
    assert float(growth(total_variation(ringing[:, 0], GRID))) > 0.3


def test_an_equation_without_an_entropy_says_so() -> None:
    grid = Grid((Axis("x", tuple(i / 16 for i in range(16)), "m", periodic=True),))
    with pytest.raises(NotImplementedError, match="kdv: found no entropy"):
        production(KdV(grid), torch.zeros(4, 1, 16), 0.1)
