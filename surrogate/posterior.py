"""The denoiser of data that were observed: moment matching.

With x̂ and V = (σₜ²/αₜ) ∂x̂/∂xₜ the mean and (Tweedie's formula) the covariance of the data given xₜ, and observations
y = h(x) + e, e ~ N(0, R), linearised about x̂ (J = ∂h/∂x),

    E[x | xₜ, y] = x̂ + V Jᵀ (J V Jᵀ + R)⁻¹ (y − h(x̂))

(Rozet et al. 2024, arXiv:2405.13712), exact for Gaussian data and linear h. A sampler that is given this denoiser draws
from the posterior.

A network's Jacobian is neither symmetric nor positive, and conjugate gradients that take it to be either run away after
a few iterations. The system is therefore solved by generalised conjugate residuals (Eisenstat, Elman & Schultz 1983,
doi:10.1137/0720023), which never make the residual larger, preconditioned with what the system would be if the data
were Gaussian.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp

from .denoiser import Denoiser, expand

__all__ = ["Posterior", "conjugate_residuals"]

Map = Callable[[Tensor], Tensor]
_LEAST = 0.02  # α, by which V is divided; at more noise than that a network's Jacobian is mostly its error


class Posterior(Denoiser):
    """E[x | xₜ, y].

    Arguments:
        denoiser: of the prior, differentiable.
        seen: h, from x ``(B, *)`` to ``(B, count)``.
        goal: y, ``(count,)`` or ``(B, count)``.
        variance: R's diagonal ``(count,)``.
        precondition: for α and σ an approximation of (J V Jᵀ + R)⁻¹, from ``(B, count)`` to the same.
        iterations, tolerance: most of the solver, and the share of the residual at which it stops; an iteration is a
            product with the Jacobian of the network and two with that of h.
    """

    def __init__(
        self, denoiser: Denoiser, seen: Map, goal: Tensor, variance: Tensor,
        precondition: Callable[[float, float], Map] | None = None, iterations: int = 10, tolerance: float = 0.2,
    ) -> None:  # fmt: skip
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.seen, self.goal, self.variance = seen, goal, variance
        self.precondition, self.iterations, self.tolerance = precondition, iterations, tolerance

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Times must be the same for the whole batch."""
        alpha, sigma = self.schedule(t)
        factor = expand(sigma**2 / alpha.clamp(min=_LEAST), x_t)
        with torch.enable_grad():
            noisy = x_t.detach().requires_grad_(True)
            estimate = self.denoiser(noisy, t)
        x = estimate.detach()
        here, pull = vjp(self.seen, x)[:2]

        def spread(v: Tensor) -> Tensor:  # V Jᵀ v
            (g,) = torch.autograd.grad(estimate, noisy, pull(v)[0], retain_graph=True)
            return factor * g

        def system(v: Tensor) -> Tensor:
            moved: Tensor = jvp(self.seen, (x,), (spread(v),))[1]
            return moved + self.variance * v

        inverse = self.precondition(float(alpha[0]), float(sigma[0])) if self.precondition is not None else None
        weights = conjugate_residuals(system, self.goal - here, self.iterations, self.tolerance, inverse)
        return x + spread(weights)


def conjugate_residuals(
    A: Map, b: Tensor, steps: int, tolerance: float = 0.0, precondition: Map | None = None
) -> Tensor:
    """Approximate solution of A x = b, ``(B, count)`` row by row, for any A; |A x − b| falls with every step.

    A row ends after ``steps``, or where that has fallen to ``tolerance`` of |b|, whatever the other rows do.
    """
    x, r = torch.zeros_like(b), b
    before: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        going = r.norm(dim=1, keepdim=True) > tolerance * b.norm(dim=1, keepdim=True)
        if not bool(going.any()):
            break
        z = r if precondition is None else precondition(r)
        q = A(z)
        for p, Ap in before:
            along = (q * Ap).sum(dim=1, keepdim=True)
            z, q = z - along * p, q - along * Ap
        size = q.norm(dim=1, keepdim=True).clamp(min=1e-20)
        z, q = z / size, q / size
        along = torch.where(going, (r * q).sum(dim=1, keepdim=True), 0.0)
        x, r = x + along * z, r - along * q
        before.append((z, q))
    return x
