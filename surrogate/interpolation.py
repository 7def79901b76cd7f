"""Interpolation of misfits by a Gaussian field that is known as a function of standard normal noise.

Given a draw n, the fields f(n) and observations y of them, the noise given the observations is

    n + Jᵀ Hᵀ (H J Jᵀ Hᵀ + R)⁻¹ (y − H f(n)),      J = ∂f/∂n,

by Matheron's rule a draw of the posterior if n is one of the prior and y was given an error of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["interpolated", "through"]

_ITERATIONS = 40
_FIT, _ROUNDS = 1e-4, 3  # how close exact observations are met, in standard deviations, and how many more rounds for it


def through(
    fields: Callable[[Tensor], Tensor], n: Tensor, goal: Tensor, where: Tensor, exact: Tensor, variance: Tensor
) -> Tensor:
    """`interpolated`, repeated where ``fields`` are not linear until they go through the ``exact`` observations."""
    n = interpolated(fields, n, goal, where, variance)
    for _ in range(_ROUNDS):
        if float(torch.where(exact, goal - fields(n), 0.0).abs().max()) <= _FIT:
            break
        n = interpolated(fields, n, goal, exact, torch.zeros_like(variance))
    return n


def interpolated(
    fields: Callable[[Tensor], Tensor], n: Tensor, goal: Tensor, where: Tensor, variance: Tensor
) -> Tensor:
    """The noise ``(B, …)`` given what is observed of ``fields(n) (B, C, *space)``.

    Arguments:
        n: noise of the draws.
        goal: what is observed, with its drawn errors.
        where: at which places, bool.
        variance: R; nought where observations are exact.

    Conjugate gradients on ``(B, C, *space)``, nought where nothing is observed. Fields are linear in the noise up to
    the heads, which mostly are, too: a difference is as good as a derivative.
    """

    def back(v: Tensor) -> Tensor:
        with torch.enable_grad():
            at = n.detach().requires_grad_(True)
            (g,) = torch.autograd.grad((fields(at) * v).sum(), at)
        return g

    here = fields(n)
    off = torch.where(where, goal - here, 0.0)
    axes = tuple(range(1, off.ndim))
    x, r, p = torch.zeros_like(off), off.clone(), off.clone()
    rr = first = r.square().sum(dim=axes, keepdim=True)
    for _ in range(_ITERATIONS):
        if bool((rr <= 1e-9 * first).all()):
            break
        # A difference is taken with noise of the usual size: a smaller one would drown in rounding.
        step = back(p)
        size = step.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
        forward = (fields(n + step / size) - here) * size.reshape(-1, *[1] * (off.ndim - 1))
        q = torch.where(where, forward, 0.0) + variance * p
        alpha = rr / (p * q).sum(dim=axes, keepdim=True).clamp(min=1e-30)
        x, r = x + alpha * p, r - alpha * q
        after = r.square().sum(dim=axes, keepdim=True)
        p, rr = r + after / rr.clamp(min=1e-30) * p, after
    return n + back(x)
