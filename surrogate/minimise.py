"""Minimise many functions at once by L-BFGS, each row of a batch for itself.

    x ← x − t H ∇f(x)

H is the two-loop recursion of Nocedal & Wright 2006, algorithm 7.4. Every evaluation serves all rows: a row whose trial
point is low enough (Armijo, 10⁻⁴) takes it and turns in a new direction, another shortens its step by quadratic
interpolation. A row's path depends on no other row, so a member is the same in a batch of any size. Rows whose value
no longer falls stay where they are. H starts from a known inverse Hessian, if there is one, else from a multiple of the
identity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Found", "Inverse", "minimise"]

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x (B, n)`` to the values ``(B,)`` and gradients ``(B, n)``."""
Inverse = Callable[[Tensor], Tensor]
"""``(B, n)`` to ``(B, n)``: a symmetric positive matrix, about the inverse of the Hessian, times every row."""

_ARMIJO = 1e-4
_MEMORY = 20
_FIRST = 0.1  # root mean square of the first step without any curvature known
_REFUSED = 8  # trial steps in a row: there is nothing lower in this direction
_STILL = 3  # accepted steps in a row that gained next to nothing: the row is done


@dataclass
class Found:
    """Lowest points ``x (B, n)``, their values, the evaluations spent, and the values after each."""

    x: Tensor
    value: Tensor
    evaluations: int
    history: list[Tensor]


@torch.no_grad()
def minimise(
    function: Function, x: Tensor, evaluations: int, tolerance: float = 1e-4, inverse: Inverse | None = None
) -> Found:
    """Minimise from ``x (B, n)`` with at most ``evaluations`` of the function.

    Arguments:
        tolerance: a step that lowers the value by less than this share of it gained next to nothing.
        inverse: about the inverse Hessian, the same for all rows.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    value, gradient = function(x)
    history = [value.clone()]
    direction = -_descend(gradient, pairs, inverse)
    rms = direction.square().mean(dim=1).sqrt()
    step = torch.ones_like(value) if inverse else _FIRST / rms.clamp(min=1e-30)
    still, refused = torch.zeros_like(value), torch.zeros_like(value)
    spent = 1
    while spent < evaluations:
        done = still >= _STILL
        if bool(done.all()):
            break
        slope = (direction * gradient).sum(dim=1)
        trial = torch.where(done[:, None], x, x + step[:, None] * direction)
        new_value, new_gradient = function(trial)
        spent += 1
        taken = (new_value <= value + _ARMIJO * step * slope) & ~done & torch.isfinite(new_value)
        gain = torch.where(taken, value - new_value, 0.0)
        little = gain <= tolerance * new_value.abs()
        still = torch.where(done, still, torch.where(taken & ~little, 0.0, still + (taken & little)))
        s = torch.where(taken[:, None], trial - x, 0.0)
        y = torch.where(taken[:, None], new_gradient - gradient, 0.0)
        pairs = [*pairs, (s, y)][-_MEMORY:]
        x, gradient = torch.where(taken[:, None], trial, x), torch.where(taken[:, None], new_gradient, gradient)
        # The least value of the parabola through what is known, for the rows that went too far.
        excess = new_value - value - step * slope
        shorter = (-slope * step / (2 * excess.clamp(min=1e-30))).clamp(0.1, 0.5)
        shorter = torch.where(torch.isfinite(new_value), shorter, torch.full_like(shorter, 0.1))
        value = torch.where(taken, new_value, value)
        turned = -_descend(gradient, pairs, inverse)
        uphill = (turned * gradient).sum(dim=1) >= 0
        turned = torch.where(uphill[:, None], -gradient, turned)
        direction = torch.where(taken[:, None], turned, direction)
        step = torch.where(taken, torch.ones_like(step), step * shorter)
        refused = torch.where(taken, 0.0, refused + 1)
        still = torch.where(refused >= _REFUSED, torch.full_like(still, _STILL), still)
        history.append(value.clone())
    return Found(x, value, spent, history)


def _descend(g: Tensor, pairs: list[tuple[Tensor, Tensor]], inverse: Inverse | None) -> Tensor:
    """H g row by row; pairs without positive curvature in a row are passed over there."""
    q, kept = g.clone(), []
    scale = torch.ones(len(g), 1, dtype=g.dtype, device=g.device)
    for s, y in pairs:  # the newest usable pair of each row sets the scale
        sy, yy = (s * y).sum(dim=1, keepdim=True), (y * y).sum(dim=1, keepdim=True)
        good = sy > 1e-8 * (s.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)) + 1e-30
        scale = torch.where(good, sy / yy.clamp(min=1e-30), scale)
        kept.append((s, y, torch.where(good, 1 / torch.where(good, sy, 1.0), 0.0)))
    alphas = []
    for s, y, rho in reversed(kept):
        alpha = rho * (s * q).sum(dim=1, keepdim=True)
        q = q - alpha * y
        alphas.append(alpha)
    q = q * scale if inverse is None else inverse(q)
    for (s, y, rho), alpha in zip(kept, reversed(alphas), strict=True):
        q = q + s * (alpha - rho * (y * q).sum(dim=1, keepdim=True))
    return q
