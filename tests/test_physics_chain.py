"""Chains: what order and rounds reach, and contradictions that are named."""

import pytest
import torch

from lapse.physics.chain import Chain
from lapse.physics.cones import bounded
from lapse.physics.constraints import sides, solenoidal, weighted_mean, with_mean, with_values
from lapse.physics.grid import Axis, Grid
from lapse.physics.operators import div

GRID = Grid.periodic_box(12)
W = GRID.area_weights()


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constraints_that_keep_each_other_hold_after_one_sweep(dtype):
    chain = Chain(
        divergence=lambda v: solenoidal(v, GRID),
        mean=lambda v: with_mean(v, torch.tensor([0.5, -1.0]), W),
    )
    v = noise(3, 2, 12, 12, dtype=dtype)
    out = chain(v)
    assert max(chain.check(out).values()) <= (1e-6 if dtype == torch.float32 else 1e-12)
    assert div(out.double(), GRID).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(weighted_mean(out, W)[0], torch.tensor([0.5, -1.0]).double(), rtol=1e-6, atol=0)


def test_order_matters_and_the_check_says_so():
    """Walls after the mean undo it; the mean after the walls undoes them; in rounds they agree."""
    grid = Grid((Axis("y", tuple(i / 8 for i in range(9)), "m"), *Grid.periodic_box(6, names=("x",)).axes))
    w, at = grid.area_weights(), sides(grid)
    assert int(at.sum()) == 12
    wall = lambda u: with_values(u, at, 0.0)  # noqa: E731
    mean = lambda u: with_mean(u, 1.0, w)  # noqa: E731
    u = noise(2, *grid.shape) + 2
    with pytest.raises(ValueError, match=r"found mean by .* violated after mean -> wall \(1 rounds\)"):
        (chain := Chain(mean=mean, wall=wall)).check(chain(u))
    with pytest.raises(ValueError, match=r"found wall by .* violated after wall -> mean"):
        (chain := Chain(wall=wall, mean=mean)).check(chain(u))
    chain = Chain(mean=mean, wall=wall, rounds=40)
    out = chain(u)
    chain.check(out)
    assert (out[:, at] == 0).all()
    torch.testing.assert_close(weighted_mean(out, w), torch.ones(2, dtype=torch.float64), rtol=1e-11, atol=0)
    # to the nearest such field: alternating projections onto subspaces are the projection onto their meet
    inner = with_mean(torch.where(at, 0.0, u), 1.0, w * ~at)
    inner = torch.where(at, 0.0, inner)
    inner = inner + (1 - weighted_mean(inner, w))[:, None, None] * ~at / weighted_mean((~at).double(), w)
    torch.testing.assert_close(out, inner, rtol=0, atol=1e-10)


def test_contradictions_are_named():
    chain = Chain(one=lambda u: with_mean(u, 1.0, W), two=lambda u: with_mean(u, 2.0, W), rounds=5)
    with pytest.raises(
        ValueError, match=r"found one by .* violated after one -> two \(5 rounds\), wanted at most 1e-12"
    ):
        chain.check(chain(noise(12, 12)))


def test_a_box_and_a_mean_in_a_chain_leave_no_defect():
    chain = Chain(box=lambda u: u.clamp(0, 1), mass=lambda u: bounded(u, 0.3, W, 0.0, 1.0))
    out = chain(noise(4, 12, 12))
    chain.check(out)
    x = noise(1, 12, 12).requires_grad_()
    weight = noise(12, 12, seed=1)
    (slope,) = torch.autograd.grad((chain(x) * weight).sum(), x)
    h, dx = 1e-7, noise(1, 12, 12, seed=2)
    with torch.no_grad():
        difference = ((chain(x + h * dx) - chain(x - h * dx)) * weight).sum() / (2 * h)
    torch.testing.assert_close((slope * dx).sum(), difference, rtol=1e-6, atol=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="found rounds=0 and 1 constraints"):
        Chain(rounds=0, a=lambda u: u)
    with pytest.raises(ValueError, match="found rounds=1 and 0 constraints"):
        Chain()
