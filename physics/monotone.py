"""Correction of fields towards a law, without its Jacobian, that never makes the residual larger.

Fields u are changed by the least amount that the linearised law asks for, damped,

    δ = −M Jᵀ (J M Jᵀ + μ)⁻¹ R(u),      J = ∂R/∂u,

with M the (co)variance of what a change may be: the least change in units of that variance. J is never formed: Jᵀ is a
vector–Jacobian product, J a Jacobian–vector product, and the system is solved by a few preconditioned conjugate
gradients, sample by sample. The step is then shortened, by halves and for each sample on its own, until

    ‖R(u + τδ)‖² ≤ ‖R(u)‖² + 2 c τ R·Jδ       (Armijo 1966)

and is not taken where no τ does: the residual falls or the field stays as it is, whatever the law and the start. For a
residual that is linear in the fields one step with μ = 0 and converged inner iterations is the projection onto the law;
where the linear part is cheap to invert (`Darcy.factors`), its inverse as the preconditioner makes few iterations do.

What is corrected is a decoded field, so no gradient passes a network and nothing depends on how it was generated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp

__all__ = ["Corrected", "monotone"]

Residual = Callable[[Tensor], Tensor]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Corrected:
    """Attributes:
    u: corrected fields, like those given.
    residual: root mean square of the residual of each sample before and after every step, ``(steps + 1, B)`` float64;
        never rising.
    """

    u: Tensor
    residual: Tensor


def monotone(
    u: Tensor,
    residual: Residual,
    *,
    steps: int = 3,
    inner: int = 10,
    metric: Tensor | Map | None = None,
    precondition: Map | None = None,
    damping: float = 0.0,
    armijo: float = 1e-4,
    halvings: int = 10,
) -> Corrected:
    """Lower the residual of fields, step by step.

    Args:
        u: Fields (B, …); samples are independent.
        residual: R, (B, …) -> (B, …), sample by sample and differentiable; evaluated in float64.
        steps: Most outer steps.
        inner: Conjugate gradients of each.
        metric: M: variances that broadcast to u, or a symmetric positive map of fields; None: all alike. Nought where
            nothing may change.
        precondition: Approximates (J M Jᵀ)⁻¹, a symmetric positive map of residuals.
        damping: μ, in units of R² / λ².
        armijo: c.
        halvings: Most halvings of a step, after which the sample is left alone.

    Raises:
        ValueError: If the residual of the fields is not finite.
    """
    if steps < 1 or inner < 1:
        raise ValueError(f"monotone: found steps={steps} and inner={inner}, wanted at least 1 of each")
    x = u.detach().to(torch.float64)

    def spread(g: Tensor) -> Tensor:
        if metric is None:
            return g
        return metric(g) if callable(metric) else g * metric.to(g)

    found = [_rms(residual(x))]
    if not bool(torch.isfinite(found[0]).all()):
        raise ValueError("monotone: found fields whose residual is not finite, wanted finite ones")
    for _ in range(steps):
        r, pull = vjp(residual, x)[:2]

        def normal(v: Tensor, x: Tensor = x, pull: Callable[[Tensor], tuple[Tensor]] = pull) -> Tensor:
            out: Tensor = jvp(residual, (x,), (spread(pull(v)[0]),))[1]
            return out + damping * v

        step = spread(pull(_conjugate_gradients(normal, -r, inner, precondition))[0])
        slope = _dot(r, jvp(residual, (x,), (step,))[1])
        value = _dot(r, r)
        tau = torch.ones_like(value)
        accepted = torch.zeros_like(value, dtype=torch.bool)
        for _ in range(halvings + 1):
            trial = residual(x + _wide(tau, x) * step)
            new = _dot(trial, trial)
            accepted = accepted | ((new <= value + 2 * armijo * tau * slope) & (slope < 0) & torch.isfinite(new))
            if bool(accepted.all()):
                break
            tau = torch.where(accepted, tau, tau / 2)
        x = torch.where(_wide(accepted, x), x + _wide(tau, x) * step, x)
        found.append(_rms(residual(x)))
        if not bool(accepted.any()):
            break
    return Corrected(x.to(u.dtype), torch.stack(found))


def _conjugate_gradients(A: Map, b: Tensor, steps: int, precondition: Map | None) -> Tensor:
    """Approximate solution of A x = b, sample by sample, A symmetric and positive semidefinite."""
    x, r = torch.zeros_like(b), b
    z = r if precondition is None else precondition(r)
    p, rz = z, _dot(r, z)
    start = rz
    for _ in range(steps):
        Ap = A(p)
        pAp = _dot(p, Ap)
        going = (pAp > 0) & (rz > 1e-28 * start)  # what has converged must not be divided by round-off
        alpha = torch.where(going, rz / torch.where(going, pAp, 1.0), 0.0)
        x, r = x + _wide(alpha, x) * p, r - _wide(alpha, r) * Ap
        z = r if precondition is None else precondition(r)
        before, rz = rz, _dot(r, z)
        beta = torch.where(going, rz / torch.where(going, before, 1.0), 0.0)
        p = z + _wide(beta, p) * p
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def _rms(r: Tensor) -> Tensor:
    return r.flatten(1).square().mean(dim=1).sqrt()


def _wide(a: Tensor, like: Tensor) -> Tensor:
    return a.reshape(-1, *(1,) * (like.ndim - 1))
