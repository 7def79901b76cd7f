"""Constraints hold exactly, in both precisions, and let gradients through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.constraints import (
    divergence,
    from_stream_function,
    from_vorticity,
    masked,
    sides,
    solenoidal,
    weighted_mean,
    with_budget,
    with_functionals,
    with_initial,
    with_mass,
    with_mean,
    with_mean_square,
    with_values,
)
from lapse.physics.grid import Axis, Grid
from lapse.physics.operators import curl, grad

GLOBE = Grid(
    (
        Axis("lat", tuple(-87.5 + 5 * i for i in range(36)), "degrees_north"),
        Axis("lon", tuple(map(float, range(0, 360, 5))), "degrees_east", True),
    )
)
WALLS = Grid((Axis("y", (0.0, 0.2, 0.5, 0.7, 1.1, 1.2, 1.6), "m"), *Grid.periodic_box(8, names=("x",)).axes))


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None, max_examples=20)
@given(st.floats(-1e4, 1e4), st.floats(0.01, 100), st.sampled_from([torch.float32, torch.float64]))
def test_mean_is_exact(mean, amplitude, dtype):
    u = amplitude * noise(3, *GLOBE.shape, dtype=dtype)
    w = GLOBE.area_weights()
    out = with_mean(u, mean, w)
    assert out.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    size = out.double().square().mean().sqrt()
    assert (weighted_mean(out, w) - mean).abs().max() <= tolerance * size
    shift = (out.double() - u.double()).flatten(1)
    assert (shift - shift.mean(1, keepdim=True)).abs().max() <= tolerance * size * 10  # only the mean has moved


def test_mean_per_sample_and_under_a_mask():
    w = GLOBE.area_weights() * (noise(*GLOBE.shape) > 0)
    wanted = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    out = with_mean(noise(2, 2, *GLOBE.shape), wanted, w)
    torch.testing.assert_close(weighted_mean(out, w), wanted.double(), rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(0.01, 300), st.sampled_from([torch.float32, torch.float64]))
def test_mass_is_exact_and_the_field_positive(mass, amplitude, dtype):
    w = GLOBE.area_weights()
    out = with_mass(amplitude * noise(4, *GLOBE.shape, dtype=dtype), mass, w)
    assert (out > 0).all()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert (weighted_mean(out, w) / mass - 1).abs().max() <= tolerance


def test_mass_leaves_a_field_alone_that_has_it_already():
    w = GLOBE.area_weights()
    u = 10 + noise(*GLOBE.shape)
    torch.testing.assert_close(with_mass(u, weighted_mean(u, w), w, scale=0.1), u, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("grid", "accuracy"), [(Grid.periodic_box(16), None), (WALLS, None), (WALLS, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stream_functions_give_no_divergence(grid, accuracy, dtype):
    v = from_stream_function(noise(2, *grid.shape, dtype=dtype), grid, accuracy)
    assert v.shape == (2, 2, *grid.shape) and v.dtype == dtype
    size = grad(v[:, 0], grid, accuracy).abs().max()
    assert size > 0.1
    assert divergence(v, grid, accuracy).abs().max() <= (2e-6 if dtype == torch.float32 else 1e-14) * size


def test_velocity_of_a_vorticity_has_that_vorticity():
    g = Grid.periodic_box(15)
    omega = noise(15, 15)
    v = from_vorticity(omega, g)
    torch.testing.assert_close(curl(v, g), omega - omega.mean(), atol=1e-12, rtol=0)
    assert divergence(v, g).abs().max() < 1e-13
    assert v.mean(dim=(-2, -1)).abs().max() < 1e-14
    y, x = g.meshgrid()
    torch.testing.assert_close(  # signs: ω = ∂v/∂x − ∂u/∂y
        from_vorticity(torch.cos(y) + torch.cos(2 * x), g),
        torch.stack((-torch.sin(y), torch.sin(2 * x) / 2)),
        atol=1e-13,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frames_follow_their_budget(dtype):
    """⟨u⟩ = m₀ + ∫S dt, frame by frame and sample by sample."""
    w = GLOBE.area_weights()
    rate = noise(2, 5, seed=1)
    out = with_budget(noise(2, 5, *GLOBE.shape, dtype=dtype), torch.tensor([1.0, 3.0]), rate, 0.5, w)
    expected = torch.tensor([[1.0], [3.0]]) + 0.5 * rate.cumsum(1)
    torch.testing.assert_close(weighted_mean(out, w), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_functionals_hold_at_once_with_the_least_change(dtype):
    """Means over three boxes and a first moment; the change solves a weighted least-squares problem."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    A = torch.stack([((x < 4) & (y < 3)).double(), ((x >= 4) & (y < 4)).double(), (y >= 3).double(), x.double()])
    w = noise(6, 8, seed=2).exp()
    u, b = noise(3, 6, 8, dtype=dtype), 10 * noise(3, 4, seed=3)
    out = with_functionals(u, A, b, w)
    reached = torch.einsum("kij,bij->bk", A, out.double())
    torch.testing.assert_close(reached, b, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)
    root = w.sqrt().flatten()
    least = torch.linalg.pinv(A.flatten(1) / root) @ (b - torch.einsum("kij,bij->bk", A, u.double())).T
    torch.testing.assert_close((out.double() - u.double()).flatten(1), least.T / root, rtol=0, atol=2e-5)
    mean = torch.full((1, 6, 8), 1 / 48)
    alone = with_functionals(u, mean, torch.tensor([0.7]))
    torch.testing.assert_close(alone, with_mean(u, 0.7, torch.ones(6, 8)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="found 2 functionals that depend on each other"):
        with_functionals(u, torch.cat((mean, 2 * mean)), torch.zeros(2))


def test_the_divergence_free_part_is_orthogonal_to_what_is_removed():
    g = Grid.periodic_box((8, 9), length=(1.0, 2.0))
    v = noise(2, 2, 8, 9)
    out = solenoidal(v, g)
    assert divergence(out, g).abs().max() < 1e-12 * 9
    torch.testing.assert_close(solenoidal(out, g), out, rtol=0, atol=1e-13)
    assert ((v - out) * out).sum().abs() < 1e-11
    torch.testing.assert_close(out.mean((-2, -1)), v.mean((-2, -1)), rtol=0, atol=1e-14)


def test_given_values_and_first_frames_are_there_exactly():
    u = noise(2, 5, *WALLS.shape)
    at = sides(WALLS)
    assert at.sum() == 16 and at[0].all() and at[-1].all() and not sides(WALLS, ["x"]).any()
    wall = torch.linspace(0, 1, 8, dtype=torch.float64)
    out = with_values(u, at, wall)
    assert torch.equal(out[..., 0, :], wall.expand(2, 5, 8)) and torch.equal(out[..., 1:-1, :], u[..., 1:-1, :])
    first = noise(2, 2, *WALLS.shape, seed=1)
    series = with_initial(u, first, dim=1)
    assert torch.equal(series[:, :2], first) and torch.equal(series[:, 2:], u[:, 2:])
    x = u[0, :3].clone().requires_grad_()
    (g,) = torch.autograd.grad((with_initial(with_values(x, at, 0.0), first[0], 0)).sum(), x)
    assert not g[:2].any() and not g[2][at].any() and (g[2][~at] == 1).all()


def test_mask_keeps_nan_and_gradients_out():
    u = noise(2, 4).requires_grad_()
    mask = torch.tensor([True, False, True, True])
    out = masked(torch.where(mask, u, torch.nan), mask, -1.0)
    assert (out[:, 1] == -1).all()
    torch.testing.assert_close(out[:, mask], u[:, mask])
    (g,) = torch.autograd.grad(out.sum(), u)
    assert torch.equal(g, mask.double().expand(2, 4))


def test_constraints_are_differentiable():
    g = Grid.periodic_box((5, 4))
    w = g.area_weights()
    u = noise(5, 4).requires_grad_()
    m = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, m: with_mean(u, m, w), (u, m))
    assert torch.autograd.gradcheck(lambda u, m: with_mass(u, m, w), (u, m))
    assert torch.autograd.gradcheck(lambda u: from_stream_function(u, g), u)
    assert torch.autograd.gradcheck(lambda u: from_vorticity(u, g), u)
    assert torch.autograd.gradcheck(lambda u: with_mean_square(u, m, w), u)
    assert torch.autograd.gradcheck(lambda u: with_functionals(u, torch.stack((w, g.meshgrid()[0])), m * w[0, :2]), u)


def test_bad_input_is_refused_with_both_sides():
    w = GLOBE.area_weights()
    with pytest.raises(ValueError, match=r"found a field of shape \(72, 36\), wanted .*36, 72"):
        with_mean(torch.zeros(72, 36), 0.0, w)
    with pytest.raises(ValueError, match="least mass of -1, wanted both positive"):
        with_mass(torch.zeros(36, 72), -1.0, w)
    with pytest.raises(TypeError, match=r"found a mask of type torch.float32, wanted torch.bool"):
        masked(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"found a field of shape \(4,\), wanted \(…, \*\(3,\)\)"):
        with_functionals(torch.zeros(4), torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="found 3 known frames for a series of 2"):
        with_initial(torch.zeros(2), torch.zeros(3), 0)
    with pytest.raises(TypeError, match=r"found a mask of type torch.float32, wanted torch.bool"):
        with_values(torch.zeros(3), torch.ones(3), 0.0)
    with pytest.raises(ValueError, match="wanted two periodic axes"):
        solenoidal(torch.zeros(2, *WALLS.shape), WALLS)
    with pytest.raises(ValueError, match="wanted two axes"):
        from_stream_function(torch.zeros(4), Grid.periodic_box(4, names=("x",)))
