"""Operators against analytic derivatives, with their observed orders of accuracy."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.differences import ACCURACIES, ddt, difference_matrix
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


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["periodic", "bounded", "stretched"])
def test_observed_order_of_finite_differences(accuracy, order, kind):
    errors = []
    for n in (32, 64):
        if kind == "periodic":
            g = Grid.periodic_box(n, names=("x",))
        else:
            s = torch.linspace(0, 1, n + 1, dtype=torch.float64)
            x = s if kind == "bounded" else s + 0.2 * s**2
            g = Grid((Axis("x", tuple((4 * x).tolist()), "m"),))
        x = g.meshgrid()[0]
        exact = (torch.cos(x), -torch.sin(x), -torch.cos(x))[order - 1]
        error = (derivative(torch.sin(x), g, "x", order, accuracy) - exact).abs()
        errors.append((error[n // 4 : 3 * n // 4 + 1].square().mean().sqrt(), error.max()))
    inner, everywhere = (math.log2(a / b) for a, b in zip(*errors, strict=True))
    assert abs(inner - accuracy) < 0.15, errors
    assert everywhere > accuracy - 0.5, errors


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_observed_order_in_three_dimensions(accuracy):
    """Curl and divergence of the ABC flow, which is its own curl, between walls and on a torus."""
    for periodic in (True, False):
        errors = []
        for n in (12, 24):
            axis = Grid.periodic_box(n).axes[0].coordinates if periodic else torch.linspace(0, 2, n).tolist()
            g = Grid(tuple(Axis(k, tuple(axis), "m", periodic) for k in "zyx"))
            z, y, x = g.meshgrid()
            abc = torch.stack((torch.sin(z) + torch.cos(y), torch.sin(x) + torch.cos(z), torch.sin(y) + torch.cos(x)))
            errors.append(float((curl(abc, g, accuracy) - abc).square().mean().sqrt()))
            assert div(abc, g, accuracy).abs().max() < 1e-12  # each component is constant along its own axis
        assert math.log2(errors[0] / errors[1]) > accuracy - (0.15 if periodic else 0.3), errors


def test_three_dimensional_identities():
    g = Grid((*Grid.periodic_box((6, 7), names=("z", "y")).axes, Axis("x", (0.0, 0.3, 0.4, 0.8, 1.0), "m")))
    A, f = torch.randn(3, *g.shape, dtype=torch.float64), torch.randn(g.shape, dtype=torch.float64)
    for accuracy in (None, 2, 4):
        assert div(curl(A, g, accuracy), g, accuracy).abs().max() < 1e-10
        assert curl(grad(f, g, accuracy), g, accuracy).abs().max() < 1e-10
    box = Grid.periodic_box((8, 9, 10), length=(1.0, 2.0, 3.0), names=("z", "y", "x"))
    fine = Grid.periodic_box((12, 14, 18), length=(1.0, 2.0, 3.0), names=("z", "y", "x"))
    low = dealias(torch.randn(2, *box.shape, dtype=torch.float64), box)
    torch.testing.assert_close(dealias(low, box), low, atol=1e-12, rtol=0)
    torch.testing.assert_close(truncate(refine(low, box, fine), fine, box), low, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        laplacian(inverse_laplacian(low, box), box), low - low.mean((-3, -2, -1), True), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("accuracy", [None, *ACCURACIES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_periodic_derivatives_are_skew_and_laplacians_symmetric(accuracy, dtype):
    a, b = torch.randn(2, *BOX.shape, dtype=dtype)
    size = grad(a, BOX, accuracy).abs().max() * b.abs().max() * a.numel()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for name in BOX.names:
        da, db = derivative(a, BOX, name, 1, accuracy), derivative(b, BOX, name, 1, accuracy)
        assert ((b * da).sum() + (a * db).sum()).abs() < tolerance * size
    la, lb = laplacian(a, BOX, accuracy), laplacian(b, BOX, accuracy)
    assert ((b * la).sum() - (a * lb).sum()).abs() < tolerance * la.abs().max() * b.abs().max() * a.numel()
    v = torch.stack((a, b))
    assert ((b * div(v, BOX, accuracy)).sum() + (grad(b, BOX, accuracy) * v).sum()).abs() < tolerance * size


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_finite_differences_are_exact_for_polynomials_of_their_order(accuracy):
    coordinates = (0.0, 0.3, 0.9, 1.0, 1.7, 2.0, 2.1, 2.4)
    g = Grid((Axis("y", coordinates, "m"), Axis("x", tuple(i / 2 for i in range(8)), "m")))
    y, x = g.meshgrid()
    u = x**accuracy + 3 * y**accuracy
    dx = accuracy * x ** (accuracy - 1)
    dy = 3 * accuracy * y ** (accuracy - 1)
    torch.testing.assert_close(grad(u, g, accuracy), torch.stack((dx, dy)), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        laplacian(u, g, accuracy),
        accuracy * (accuracy - 1) * (x ** (accuracy - 2) + 3 * y ** (accuracy - 2)),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("accuracy", [None, *ACCURACIES])
def test_observed_order_of_the_time_derivative(accuracy):
    errors = []
    for n in (24, 48):
        t = torch.linspace(0, 3, n + 1, dtype=torch.float64)[:, None, None]
        half = (accuracy or 4) // 2
        out = ddt(torch.sin(t).expand(-1, 2, 3), 3 / n, dim=-3, accuracy=accuracy)
        assert out.shape == (n + 1 - 2 * half, 2, 3)
        errors.append(float((out - torch.cos(t)[half:-half]).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - (accuracy or 4)) < 0.15
    few = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(ddt(few, 0.5, 0), torch.tensor([4.0, 8.0], dtype=torch.float64))
    assert torch.equal(ddt(torch.full((7,), 0.1), 1e-9, 0), torch.zeros(3))  # a steady series is exactly steady


def test_difference_matrices_agree_with_sympy():
    """An independent statement: the same rows from sympy's rational arithmetic."""
    sympy = pytest.importorskip("sympy")
    x = [sympy.Rational(k, 10) for k in (0, 3, 4, 8, 11, 13, 17, 20, 22)]
    axis = Axis("x", tuple(float(k) for k in x), "m")
    for accuracy, order in ((2, 1), (4, 1), (6, 1), (4, 2), (6, 2)):
        D = difference_matrix(axis, order, accuracy)
        for i in (0, 4, 8):
            stencil = D[i].nonzero()[:, 0].tolist()
            exact = sympy.finite_diff_weights(order, [x[j] for j in stencil], x[i])[order][-1]
            torch.testing.assert_close(D[i, stencil], torch.tensor([float(w) for w in exact], dtype=torch.float64))


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
    with pytest.raises(ValueError, match="found 4 frames along dimension 0, wanted at least 5 for accuracy 4"):
        ddt(torch.zeros(4), 1.0, 0, accuracy=4)
    with pytest.raises(ValueError, match=r"found accuracy=4, interval=0.0, wanted 2, 4 or 6 and a positive interval"):
        ddt(torch.zeros(5), 0.0, 0)
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
