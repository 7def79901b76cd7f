"""Projections on cones: the nearest field, compared with independent optimisers; inactive where nothing is violated."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.cones import at_most, bounded, monotone
from lapse.physics.constraints import weighted_mean
from lapse.physics.grid import Axis, Grid

GLOBE = Grid(
    (
        Axis("lat", tuple(-87.5 + 5 * i for i in range(36)), "degrees_north"),
        Axis("lon", tuple(map(float, range(0, 360, 5))), "degrees_east", True),
    )
)
W = GLOBE.area_weights()


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(deadline=None, max_examples=20)
@given(
    st.floats(0.01, 0.99),
    st.floats(0.01, 100),
    st.sampled_from([(0.0, math.inf), (-math.inf, 2.0), (0.0, 1.0), (-3.0, 5.0)]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_bounds_and_mean_hold_exactly(share, amplitude, bounds, dtype):
    low, high = bounds
    a, b = (low if low > -math.inf else high - 4), (high if high < math.inf else low + 4)
    mean = a + share * (b - a)
    u = amplitude * noise(3, *GLOBE.shape, dtype=dtype)
    out = bounded(u, mean, W, low, high)
    assert out.dtype == dtype and (out >= low).all() and (out <= high).all()
    size = max(1.0, abs(mean), float(out.abs().max()))
    assert (weighted_mean(out, W) - mean).abs().max() <= (1e-6 if dtype == torch.float32 else 1e-12) * size
    again = bounded(out, weighted_mean(out, W), W, low, high)
    torch.testing.assert_close(again, out, rtol=0, atol=(1e-6 if dtype == torch.float32 else 1e-12) * size)


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (-0.3, 0.8)])
def test_projection_is_the_nearest(low, high):
    """Against scipy's constrained least squares, in the weighted norm."""
    optimise = pytest.importorskip("scipy.optimize")
    u = noise(9, seed=3)
    w = noise(9, seed=4).exp()
    mean = 0.4
    found = optimise.minimize(
        lambda x: float((w.numpy() * (x - u.numpy()) ** 2).sum()),
        np.full(9, mean),
        bounds=[(low, None if high == math.inf else high)] * 9,
        constraints={"type": "eq", "fun": lambda x: float((w.numpy() * (x - mean)).sum())},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    torch.testing.assert_close(bounded(u, mean, w, low, high), torch.tensor(found.x), rtol=0, atol=1e-5)


def test_a_field_that_obeys_is_left_alone():
    u = noise(2, *GLOBE.shape).abs() + 0.1
    torch.testing.assert_close(bounded(u, weighted_mean(u, W), W), u, rtol=1e-13, atol=1e-13)
    ordered = u.sort(dim=-1).values
    torch.testing.assert_close(monotone(ordered, -1), ordered, rtol=1e-12, atol=1e-12)


def test_gradients_of_bounds_are_those_of_the_active_set():
    u = noise(2, 3, 4).requires_grad_()
    w = noise(3, 4, seed=1).exp()
    m = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, m: bounded(u, m, w), (u, m))
    assert torch.autograd.gradcheck(lambda u, m: bounded(u, m, w, -0.5, 0.9), (u, m))
    assert torch.autograd.gradcheck(lambda u: monotone(u, 1, w[:, 0]), u)


def pool_adjacent_violators(x, w):
    """Isotonic regression the textbook's way (Ayer et al. 1955), an independent statement of the minimax formula."""
    blocks = []
    for value, weight in zip(x, w, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [[(a * wa + b * wb) / (wa + wb), wa + wb, na + nb]]
    return np.concatenate([np.full(n, value) for value, _, n in blocks])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(0, 2**31), st.booleans())
def test_monotone_is_isotonic_regression(n, seed, increasing):
    u = noise(2, n, 3, seed=seed)
    w = noise(n, seed=seed + 1).exp()
    out = monotone(u, 1, w, increasing)
    steps = out.diff(dim=1) if increasing else -out.diff(dim=1)
    assert (steps >= -1e-12).all()
    torch.testing.assert_close((w[:, None] * out).sum(1), (w[:, None] * u).sum(1), rtol=0, atol=1e-11)
    for b in range(2):
        for c in range(3):
            sign = 1 if increasing else -1
            expected = sign * pool_adjacent_violators(sign * u[b, :, c].numpy(), w.numpy())
            np.testing.assert_allclose(out[b, :, c].numpy(), expected, atol=1e-12)


def test_a_bound_acts_only_where_it_is_violated():
    u = noise(3, 8, 8) * torch.tensor([0.5, 1.0, 2.0])[:, None, None]

    def energy(x):
        return (x**2).mean((-2, -1)) / 2

    out = at_most(u, energy, 0.6)
    assert torch.equal(out[:2], u[:2])
    assert abs(float(energy(out[2])) - 0.6) < 1e-12
    torch.testing.assert_close(out[2], u[2] * (0.6 / energy(u[2])).sqrt(), rtol=1e-10, atol=1e-12)  # radially
    x = noise(1, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: at_most(x, energy, 0.2, steps=4), x)


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=r"found means from -1 to -1, wanted them between low=0 and high=inf"):
        bounded(noise(*GLOBE.shape), -1.0, W)
    with pytest.raises(ValueError, match=r"found weights of shape \(3,\), wanted \(4,\)"):
        monotone(torch.zeros(4), 0, torch.ones(3))
