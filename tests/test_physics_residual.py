"""Residuals: what they are of, how they are scaled, and what they refuse."""

import pytest
import torch

from lapse.physics.grid import Axis, Grid
from lapse.physics.heat import Heat
from lapse.physics.kolmogorov import Kolmogorov
from lapse.physics.navier_stokes import NavierStokes
from lapse.physics.operators import div
from lapse.physics.residual import FORMS, relative, residual, rms, scale

BOX = Grid.periodic_box(16)


def series(e, frames, interval, steps=8):
    u = [e.spin_up(torch.Generator().manual_seed(0), 2, 1.0, torch.float64)]
    for _ in range(frames - 1):
        u.append(e.advance(u[-1], interval, steps))
    return torch.stack(u, dim=1)


def test_defect_is_that_of_the_equation_for_each_pair():
    e = Kolmogorov(BOX)
    u = torch.randn(2, 4, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = residual(e, u, 0.1)
    for i in range(3):
        torch.testing.assert_close(r[:, i], e.residual(u[:, i], u[:, i + 1], 0.1))
        torch.testing.assert_close(scale(e, u, 0.1)[:, i], u[:, i + 1] - u[:, i])


def test_strong_form_of_a_polynomial_in_time_is_exact():
    """u = t⁴ has the rate 4t³ by differences of order 4; what is left of the residual is −F(u)."""
    e = Heat(Grid.periodic_box(8, names=("x",)), diffusivity=0.5)
    wave = torch.cos(e.grid.meshgrid()[0])[None]
    t = torch.arange(7, dtype=torch.float64) * 0.1
    u = t[:, None, None] ** 4 * wave
    for accuracy, lost in ((4, 2), (6, 3)):
        inner = t[lost : 7 - lost, None, None]
        wanted = (4 * inner**3 + 0.5 * inner**4) * wave
        torch.testing.assert_close(residual(e, u, 0.1, "strong", accuracy), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(scale(e, u, 0.1, "strong", accuracy), 4 * inner**3 * wave, rtol=0, atol=1e-12)
    assert residual(e, u[:4], 0.1, "strong").shape == (2, 1, 8)  # of order 2 where there are fewer than five


@pytest.mark.parametrize("form", ["strong", "defect", "hermite"])
def test_truth_scores_far_better_than_a_lagging_series(form):
    e = Kolmogorov(BOX, viscosity=0.05)
    u = series(e, 9, 0.05)
    late = torch.cat((u[:, :4], u[:, 3:8]), dim=1)

    def score(v):
        return relative(residual(e, v, 0.05, form), scale(e, v, 0.05, form), e.grid, over_time=True)

    assert score(u).shape == (2, 1)
    assert (score(u) < 1e-2).all() and (score(late) > 10 * score(u)).all()


def test_single_precision_follows_double():
    e = Kolmogorov(BOX, viscosity=0.05)
    u = series(e, 5, 0.1)
    for form in FORMS:
        single = residual(e, u.float(), 0.1, form)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), residual(e, u, 0.1, form), rtol=0, atol=1e-3)


def test_norms_weigh_by_area_and_scales_make_them_relative():
    lat = Grid((Axis("lat", (-60.0, 0.0, 60.0), "degrees_north"), Axis("x", (0.0, 1.0), "m")))
    r = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]).expand(5, 4, 3, 2)
    torch.testing.assert_close(rms(r, lat), torch.full((5, 4), 0.5**0.5, dtype=torch.float64))
    torch.testing.assert_close(rms(r[..., 0:1], lat), torch.full((5, 4), (2 / 3) ** 0.5, dtype=torch.float64))
    torch.testing.assert_close(relative(r, 4 * r, lat), torch.full((5, 4), 0.25, dtype=torch.float64))
    steps = torch.tensor([1.0, 3.0])[:, None, None, None] * torch.ones(2, 1, 3, 2)
    pooled = relative(steps, torch.ones(2, 1, 3, 2), lat, over_time=True)
    torch.testing.assert_close(pooled, torch.full((1,), 5**0.5, dtype=torch.float64))


def test_constraints_have_no_rate():
    """The row of pressure is the divergence, in any series; forms that would advance it are refused."""
    e = NavierStokes(BOX, viscosity=0.1)
    u = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = residual(e, u, 0.1, "strong")
    torch.testing.assert_close(r[:, 2], div(u[2:3, :2], BOX))
    torch.testing.assert_close(r[:, :2], (scale(e, u, 0.1, "strong") - e.rhs(u[2:3]))[:, :2])
    assert scale(e, u, 0.1, "strong")[:, 2].abs().max() == 0
    with pytest.raises(
        ValueError, match=r"found \('p',\) of navier_stokes without a rate of change, wanted the strong"
    ):
        residual(e, u, 0.1, "hermite")


def test_bad_input_is_refused_with_both_sides():
    e = Kolmogorov(BOX)
    u = torch.zeros(3, 1, 16, 16)
    with pytest.raises(ValueError, match="found form='weird', wanted one of"):
        residual(e, u, 0.1, "weird")
    with pytest.raises(ValueError, match=r"found 1 frames .* wanted .* at least 2 for the defect form"):
        residual(e, u[:1], 0.1)
    with pytest.raises(ValueError, match=r"found 0 frames .* at least 3 for the strong form"):
        residual(e, u[0], 0.1, "strong")
    with pytest.raises(ValueError, match="found interval=0, wanted a positive time"):
        residual(e, u, 0)
    with pytest.raises(ValueError, match="found a state of shape"):
        residual(e, u[..., :8], 0.1)
