"""Descent: known minima, with and without bounds, and no evaluation wasted on a refused gradient."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lapse.surrogate.descent import METHODS, Evaluation, Iterate, lbfgs


def differentiable(function, counter=None):
    def evaluate(x: Tensor) -> Evaluation:
        at = x.clone().requires_grad_(True)
        value = function(at)

        def gradient() -> Tensor:
            if counter is not None:
                counter.append(1)
            return torch.autograd.grad(value, at)[0]

        return Evaluation(float(value.detach()), gradient)

    return evaluate


def free(x: Tensor, d: Tensor) -> Tensor:
    return d


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_lbfgs_finds_the_minimum_of_a_bent_valley() -> None:
    start = torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=torch.float64)
    gradients: list[int] = []
    path = list(lbfgs(differentiable(rosenbrock, gradients), start, lambda x: x, free, 200, 0.1))
    values = [i.value for i in path]
    assert all(b < a for a, b in pairwise(values)), "every step must go down"
    torch.testing.assert_close(path[-1].x, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    assert path[-1].evaluations < 150
    assert len(gradients) <= len(path), "a refused step must cost no gradient"


def test_lbfgs_solves_a_quadratic_problem_with_bounds() -> None:
    """min ½ xᵀAx − bᵀx in a box: the gradient is nought inside and points outwards on the bounds (KKT)."""
    random = torch.Generator().manual_seed(3)
    n = 30
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64))
    A = q @ torch.diag(torch.logspace(0, 2, n, dtype=torch.float64)) @ q.T
    b = 20 * torch.randn(n, generator=random, dtype=torch.float64)

    def tangent(x: Tensor, d: Tensor) -> Tensor:
        return d.masked_fill(((x <= -1) & (d < 0)) | ((x >= 1) & (d > 0)), 0.0)

    function = differentiable(lambda x: 0.5 * x @ A @ x - b @ x)
    start = torch.zeros(n, dtype=torch.float64)
    path = list(lbfgs(function, start, lambda x: x.clamp(-1, 1), tangent, 300, 0.1))
    x = path[-1].x
    g = A @ x - b
    inside = (x > -1) & (x < 1)
    assert 3 < int(inside.sum()) < n - 3, "the case must have bounds that bind and others that do not"
    assert g[inside].abs().max() < 1e-4 * b.abs().max()
    assert bool((g[x >= 1] <= 0).all()) and bool((g[x <= -1] >= 0).all())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_descent_on_a_sphere(method: str) -> None:
    """With a retraction to the unit sphere, the least of xᵀDx is the smallest eigenvalue."""
    D = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)

    def tangent(x: Tensor) -> Tensor:
        y = x / x.norm()
        return (D * y * y).sum()

    start = torch.full((3,), 3**-0.5, dtype=torch.float64)
    path = list(METHODS[method](differentiable(tangent), start, lambda x: x / x.norm(), free, 400, 0.05))
    best: Iterate = min(path, key=lambda i: i.value)
    assert best.value == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_not_finite_is_not_entered(method: str) -> None:
    """−log(1 − x) + (x − 2)² has a wall at 1, beyond which it is not a number."""
    function = differentiable(lambda x: (-0.001 * torch.log(1 - x) + (x - 2) ** 2).sum())
    start = torch.zeros(1, dtype=torch.float64)
    path = list(METHODS[method](function, start, lambda x: x, free, 100, 0.3))
    assert all(float(i.x) < 1 for i in path)
    assert min(i.value for i in path) < 1.02


def test_where_nothing_is_feasible_the_descent_ends() -> None:
    start = torch.ones(2, dtype=torch.float64)
    for method in METHODS.values():
        path = list(method(differentiable(lambda x: x.square().sum()), start, lambda x: None, free, 10, 0.1))
        assert len(path) == 1
