"""Nonlinear invariants held exactly, by a matrix-free Newton method.

A field u is moved to the manifold I(u) = c of a few invariants (energy, enstrophy, potential enstrophy, …) by

    δ = W⁻¹ T Jᵀ λ,     (J T W⁻¹ Jᵀ) λ = c − I(u),     u ← u + δ,

the least change, in the norm Σ w δ², that the linearised constraint asks for (Gauss–Newton for an underdetermined
system). J = ∂I/∂u is never formed: Jᵀλ is a vector–Jacobian product, Jδ a Jacobian–vector product, and the small system
is solved by conjugate gradients in as many steps as there are invariants. T, if given, is an orthogonal projection onto
directions that keep linear constraints (a mean, no divergence), so these stay true on the way.

Convergence is quadratic: near the manifold a step squares the error. For a quadratic invariant the method is Heron's
square root, and five steps reach 1e-12 from an error of a factor of two. Several invariants that pull apart (energy and
potential enstrophy of shallow water) converge as fast from anomalies that are a quarter too small, and take more than
five steps from a half (`make bench-exactness`). The steps are unrolled, so gradients are those of what was computed.

A quadratic invariant alone has a closed form: :func:`lapse.physics.constraints.with_mean_square`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp

Invariants = Callable[[Tensor], Tensor]


def with_invariants(
    u: Tensor,
    invariants: Invariants,
    values: Tensor,
    weights: Tensor | None = None,
    tangent: Callable[[Tensor], Tensor] | None = None,
    steps: int = 5,
    tolerance: float = 1e-12,
    strict: float | None = 1e-6,
) -> Tensor:
    """The field nearest to u, to first order, whose invariants have given values.

    Args:
        u: Fields (…, *dims); leading dimensions are independent samples.
        invariants: I, (…, *dims) -> (…, K), sample by sample and differentiable twice, e.g. a stack of what
            :meth:`~lapse.physics.equation.Equation.invariants` returns.
        values: c, broadcastable to (…, K).
        weights: Positive, broadcastable to dims; evenly if None. Area weights change cells by what they cover.
        tangent: T, a linear orthogonal projection of fields, applied to every change.
        steps: Most Newton steps.
        tolerance: Stop when |I − c| is below this share of |c| (of 1 where c is nought) in every sample.
        strict: Raise if after the last step a violation exceeds this share; None accepts whatever was reached.

    Returns:
        Like u, in its precision; the work is done in float64.

    Raises:
        ValueError: If the values are not reached: they may not be attainable (a negative energy), too far for the
            steps, or the invariants depend on each other.
    """
    if steps < 1:
        raise ValueError(f"with_invariants: found steps={steps}, wanted at least 1")
    x = u.to(torch.float64)
    c = torch.as_tensor(values, dtype=torch.float64, device=u.device)
    scale = torch.where(c != 0, c.abs(), 1.0)

    def h(x: Tensor) -> Tensor:
        out: Tensor = (invariants(x) - c) / scale
        return out

    def lifted(gradient: Tensor) -> Tensor:
        field = gradient if weights is None else gradient / weights.to(gradient)
        return field if tangent is None else tangent(field)

    for step in range(steps):
        value, pull = vjp(h, x)[:2]
        if step and float(value.detach().abs().max()) <= tolerance:
            break

        def normal(lam: Tensor, x: Tensor = x, pull: Callable[[Tensor], tuple[Tensor]] = pull) -> Tensor:
            out: Tensor = jvp(h, (x,), (lifted(pull(lam)[0]),))[1]
            return out

        lam = _conjugate_gradients(normal, -value, value.shape[-1])
        x = x + lifted(pull(lam)[0])
    out = x.to(u.dtype)
    if strict is not None:
        # A field in float32 holds its invariants no better than float32 does.
        worst = float(h(out.detach().to(torch.float64)).abs().max())
        if not worst <= strict:
            raise ValueError(
                f"with_invariants: found a violation of {worst:.1e} after {steps} steps, wanted {strict:.0e} (values "
                "that can be attained and are nearer, more steps, or invariants that do not depend on each other)"
            )
    return out


def violation(u: Tensor, invariants: Invariants, values: Tensor) -> Tensor:
    """|I(u) − c| over |c| (over 1 where c is nought), in float64: (…, *dims) -> (…, K)."""
    c = torch.as_tensor(values, dtype=torch.float64, device=u.device)
    return (invariants(u.to(torch.float64)) - c).abs() / torch.where(c != 0, c.abs(), 1.0)


def _conjugate_gradients(A: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """Solution of A x = b over the last dimension, A symmetric and positive semidefinite; exact after its length."""
    x, r = torch.zeros_like(b), b
    p, rr = r, (r * r).sum(-1, keepdim=True)
    for k in range(steps):
        Ap = A(p)
        pAp = (p * Ap).sum(-1, keepdim=True)
        # Where a sample has converged there is no direction left, and 0/0 must not reach it nor its gradient.
        alpha = torch.where(pAp > 0, rr / torch.where(pAp > 0, pAp, 1.0), 0.0)
        x = x + alpha * p
        if k + 1 < steps:
            r = r - alpha * Ap
            before, rr = rr, (r * r).sum(-1, keepdim=True)
            p = r + torch.where(before > 0, rr / torch.where(before > 0, before, 1.0), 0.0) * p
    return x
