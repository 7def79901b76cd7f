"""L-BFGS on many functions at once: known minima, rows that do not see each other, and a head start."""

import torch
from torch import Tensor

from lapse.surrogate.minimise import minimise


def quadratics(rows: int, n: int = 12, condition: float = 1e3) -> tuple[Tensor, Tensor]:
    """Symmetric positive matrices ``(rows, n, n)`` and minima ``(rows, n)``."""
    g = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(rows, n, n, generator=g, dtype=torch.float64))
    values = torch.logspace(0, float(torch.tensor(condition).log10()), n, dtype=torch.float64)
    return q @ torch.diag(values) @ q.mT, torch.randn(rows, n, generator=g, dtype=torch.float64)


def cost(A: Tensor, best: Tensor):
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        away = x - best[: len(x)]
        gradient = torch.einsum("bij,bj->bi", A[: len(x)], away)
        return 0.5 * (away * gradient).sum(dim=1), gradient

    return function


def test_quadratics_reach_their_minima() -> None:
    A, best = quadratics(5)
    found = minimise(cost(A, best), torch.zeros_like(best), 200, tolerance=1e-12)
    assert (found.x - best).abs().max() < 1e-4
    assert found.evaluations < 150


def test_a_row_does_not_see_the_others() -> None:
    A, best = quadratics(6)
    together = minimise(cost(A, best), torch.zeros_like(best), 25)
    few = minimise(cost(A, best), torch.zeros_like(best[:2]), 25)
    assert torch.allclose(together.x[:2], few.x, rtol=0, atol=1e-12)


def test_values_never_rise_even_in_a_curved_valley() -> None:
    def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            value = (1 - at[:, 0]) ** 2 + 100 * (at[:, 1] - at[:, 0] ** 2) ** 2
            (g,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), g

    start = torch.tensor([[-1.2, 1.0], [0.0, 3.0], [2.0, -2.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, 200, tolerance=1e-14)
    course = torch.stack(found.history)
    assert (course.diff(dim=0) <= 0).all()
    assert torch.allclose(found.x, torch.ones_like(found.x), atol=1e-4)


def test_a_known_curvature_saves_evaluations() -> None:
    A, best = quadratics(1)
    rough = torch.linalg.inv(A[0] + 0.3 * torch.eye(12, dtype=torch.float64))
    fresh = minimise(cost(A, best), torch.zeros_like(best), 100, tolerance=1e-10)
    helped = minimise(cost(A, best), torch.zeros_like(best), 100, tolerance=1e-10, inverse=lambda q: q @ rough)
    assert helped.evaluations < fresh.evaluations / 2
    assert torch.allclose(helped.x, best, atol=1e-4)


def test_a_value_that_is_not_finite_is_stepped_back_from() -> None:
    def well(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs().amax(dim=1) < 1.5
        value = torch.where(inside, (x - 1).square().sum(dim=1), torch.inf)
        return value, 2 * (x - 1)

    found = minimise(well, torch.full((1, 3), -1.4, dtype=torch.float64), 60)
    assert torch.allclose(found.x, torch.ones_like(found.x), atol=1e-3)
