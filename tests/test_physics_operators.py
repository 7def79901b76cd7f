"""Operators against analytic derivatives, with their observed orders of accuracy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.grid import Axis, Grid
from lapse.physics.modes import Modes, fast_size
from lapse.physics.operators import (
    curl,
    dealias,
    derivative,
    div,
    grad,
    inverse_laplacian,
    laplacian,
    refine,
    truncate,
)

BOX = Grid.periodic_box((24, 32), length=(3.0, 2 * math.pi))


def wave(grid, m=2, n=3):
    y, x = grid.meshgrid()
    a, b = 2 * math.pi * m / grid.length[0], 2 * math.pi * n / grid.length[1]
    return y, x, a, b


def test_spectral_operators_are_exact_for_resolved_waves():
    y, x, a, b = wave(BOX)
    u = torch.sin(a * y) * torch.cos(b * x)
    ux, uy = -b * torch.sin(a * y) * torch.sin(b * x), a * torch.cos(a * y) * torch.cos(b * x)
    torch.testing.assert_close(grad(u, BOX), torch.stack((ux, uy)), atol=1e-12, rtol=0)
    torch.testing.assert_close(laplacian(u, BOX), -(a**2 + b**2) * u, atol=1e-11, rtol=0)
    torch.testing.assert_close(inverse_laplacian(laplacian(u, BOX) + 5, BOX), u, atol=1e-12, rtol=0)
    torch.testing.assert_close(div(grad(u, BOX), BOX), laplacian(u, BOX), atol=1e-11, rtol=0)
    torch.testing.assert_close(curl(grad(u, BOX), BOX), torch.zeros_like(u), atol=1e-12, rtol=0)
    v = torch.stack((torch.cos(a * y), torch.sin(b * x)))  # (u, v): u along x, the last axis
    torch.testing.assert_close(curl(v, BOX), b * torch.cos(b * x) + a * torch.sin(a * y), atol=1e-12, rtol=0)


def test_the_nyquist_mode_has_no_first_derivative():
    g = Grid.periodic_box(8, names=("x",))
    u = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    assert derivative(u, g, "x").abs().max() < 1e-14
    torch.testing.assert_close(derivative(u, g, "x", 2), -16 * u)


@pytest.mark.parametrize("accuracy", [2, 4])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["periodic", "bounded", "stretched"])
def test_observed_order_of_finite_differences(accuracy, order, kind):
    errors = []
    for n in (32, 64):
        if kind == "periodic":
            g = Grid.periodic_box(n, names=("x",))
        else:
            s = torch.linspace(0, 1, n, dtype=torch.float64)
            x = s if kind == "bounded" else s + 0.2 * s**2
            g = Grid((Axis("x", tuple((2 * x).tolist()), "m"),))
        x = g.meshgrid()[0]
        exact = (torch.cos(x), -torch.sin(x))[order - 1]
        errors.append((derivative(torch.sin(x), g, "x", order, accuracy) - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > accuracy - 0.25


@pytest.mark.parametrize("accuracy", [2, 4])
def test_finite_differences_are_exact_for_polynomials_of_their_order(accuracy):
    g = Grid((Axis("y", (0.0, 0.3, 0.9, 1.0, 1.7, 2.0, 2.1), "m"), Axis("x", tuple(map(float, range(6))), "m")))
    y, x = g.meshgrid()
    u = x**accuracy + 3 * y**accuracy
    dx = accuracy * x ** (accuracy - 1)
    dy = 3 * accuracy * y ** (accuracy - 1)
    torch.testing.assert_close(grad(u, g, accuracy), torch.stack((dx, dy)), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        laplacian(u, g, accuracy),
        accuracy * (accuracy - 1) * (x ** (accuracy - 2) + 3 * y ** (accuracy - 2)),
        atol=1e-8,
        rtol=0,
    )


def test_operators_take_leading_dimensions_and_single_precision():
    y, x, a, b = wave(BOX)
    u = torch.sin(a * y) * torch.cos(b * x)
    batch = torch.stack((u, 2 * u)).float()[:, None]
    out = grad(batch, BOX)
    assert out.shape == (2, 1, 2, 24, 32) and out.dtype == torch.float32
    torch.testing.assert_close(out[1, 0].double(), 2 * grad(u, BOX), atol=2e-5, rtol=0)


def test_operators_are_differentiable():
    g = Grid.periodic_box((6, 5))
    u = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    for f in (laplacian, inverse_laplacian, grad):
        assert torch.autograd.gradcheck(lambda u, f=f: f(u, g), u)


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 17), st.integers(4, 17), st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**31))
def test_truncation_is_exact_for_band_limited_fields(my, mx, extra_y, extra_x, seed):
    coarse = Grid.periodic_box((my, mx), length=(1.0, 2.0))
    fine = Grid.periodic_box((my + extra_y, mx + extra_x), length=(1.0, 2.0))
    modes = Modes(coarse)
    gen = torch.Generator().manual_seed(seed)
    u = modes.synthesise(modes.analyse(torch.randn(2, my, mx, generator=gen, dtype=torch.float64)))
    on_fine = refine(u, coarse, fine)
    torch.testing.assert_close(truncate(on_fine, fine, coarse), u, atol=1e-12, rtol=0)
    torch.testing.assert_close(on_fine[:, 0, 0], u[:, 0, 0], atol=1e-12, rtol=0)  # the nodes they share


def test_truncation_samples_the_same_function_and_drops_the_rest():
    fine, coarse = Grid.periodic_box(48), Grid.periodic_box(16)
    low = torch.sin(3 * fine.meshgrid()[0]) * torch.cos(7 * fine.meshgrid()[1])
    high = torch.cos(8 * fine.meshgrid()[1]) + torch.cos(20 * fine.meshgrid()[0])
    expected = torch.sin(3 * coarse.meshgrid()[0]) * torch.cos(7 * coarse.meshgrid()[1])
    torch.testing.assert_close(truncate(low + high, fine, coarse), expected, atol=1e-13, rtol=0)


def test_product_grid_is_free_of_aliasing():
    g = Grid.periodic_box(16)
    modes = Modes(g)
    assert modes.keep == (7, 7) and modes.product_shape == (24, 24)
    x = g.meshgrid()[1]
    w = modes.analyse(torch.cos(7 * x))
    square = modes.analyse(modes.synthesise(w, modes.product_shape) ** 2)
    expected = torch.zeros_like(square)
    expected[0, 0] = 0.5  # cos² = 1/2 + cos(14x)/2, and mode 14 must not fold back on mode 2
    torch.testing.assert_close(square, expected, atol=1e-14, rtol=0)
    naive = modes.analyse(modes.synthesise(w) ** 2)
    assert naive[0, 2].abs() > 0.2


def test_dealias_keeps_two_thirds():
    g = Grid.periodic_box(12, names=("x",))
    x = g.meshgrid()[0]
    torch.testing.assert_close(dealias(torch.cos(3 * x) + torch.cos(4 * x), g), torch.cos(3 * x), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("n", "size"), [(1, 2), (64, 64), (94, 96), (97, 100), (382, 384)])
def test_fast_size(n, size):
    assert fast_size(n) == size


def test_bad_input_is_refused_with_both_sides():
    g = Grid.periodic_box((4, 6))
    lat = Grid((Axis("lat", (0.0, 1.0, 2.0), "degrees_north"),))
    with pytest.raises(ValueError, match=r"found a field of shape \(6, 4\), wanted .*4, 6"):
        laplacian(torch.zeros(6, 4), g)
    with pytest.raises(ValueError, match=r"found a vector of shape \(3, 4, 6\), wanted .*2, 4, 6"):
        div(torch.zeros(3, 4, 6), g)
    with pytest.raises(ValueError, match="found units 'degrees_north', wanted a Cartesian axis"):
        derivative(torch.zeros(3), lat, "lat")
    with pytest.raises(ValueError, match="found accuracy=3, wanted 2, 4, 6 or None"):
        derivative(torch.zeros(4, 6), g, "x", accuracy=3)
    with pytest.raises(ValueError, match="found 3 nodes, wanted at least 5"):
        derivative(torch.zeros(3), Grid((Axis("x", (0.0, 1.0, 2.0), "m"),)), "x", accuracy=4)
    with pytest.raises(ValueError, match="wanted periodic Cartesian axes only"):
        inverse_laplacian(torch.zeros(3), lat)
    with pytest.raises(ValueError, match="wanted two or three axes"):
        curl(torch.zeros(1, 3), lat)
    with pytest.raises(KeyError, match="found no axis 'z', wanted one of"):
        derivative(torch.zeros(4, 6), g, "z")
    with pytest.raises(ValueError, match="wanted the same box"):
        truncate(torch.zeros(4, 6), g, Grid.periodic_box(4, length=1.0))
    with pytest.raises(ValueError, match="wanted fine >= coarse"):
        truncate(torch.zeros(4, 6), g, Grid.periodic_box((8, 6)))
    with pytest.raises(ValueError, match=r"found keep=3, wanted at most \(1, 2\)"):
        Modes(g, 3)
    with pytest.raises(ValueError, match="wanted periodic axes only"):
        Modes(lat)
