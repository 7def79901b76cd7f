"""Inequalities held exactly, by projection onto convex cones and boxes.

Each map takes a field to the nearest one, in the (area-weighted) mean square, that obeys its inequality, and to itself
if it does already. All are differentiable almost everywhere; where a bound is active no gradient passes.

- :func:`bounded`: low ≤ u ≤ high with a given mean. The solution is u clipped after a shift, clip(u − τ), with τ from
  the mean (for low = 0 the projection onto a simplex: Held, Wolfe & Crowder 1974, doi:10.1007/BF01580223). Unlike the
  softplus of :func:`~lapse.physics.constraints.with_mass` it leaves a field alone that is positive and has its mass.
- :func:`monotone`: no inversion along an axis (a stable stratification, a cumulative distribution). Isotonic
  regression, by the minimax formula x_i = max_{j ≤ i} min_{k ≥ i} mean(u_j … u_k) (Robertson, Wright & Dykstra 1988,
  section 1.4); it keeps the mean.
- :func:`at_most`: a functional below a bound (an energy that may not rise), by Newton's method where it is violated.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .constraints import weighted_mean
from .newton import with_invariants

BISECTIONS = 60


def bounded(u: Tensor, mean: Tensor | float, weights: Tensor, low: float = 0.0, high: float = math.inf) -> Tensor:
    """The nearest field with low ≤ u ≤ high and a given mean.

    Args:
        u: Field (…, *space).
        mean: Wanted weighted mean, between the bounds, broadcastable to (…).
        weights: Non-negative weights (*space), as in :func:`~lapse.physics.constraints.weighted_mean`. Nodes of weight
            nought are clipped.
        low, high: Bounds; either may be infinite.

    Raises:
        ValueError: If the mean does not lie strictly between the bounds.
    """
    d = weights.ndim
    x = u.to(torch.float64)
    w = weights.to(x.device, torch.float64)
    m = torch.as_tensor(mean, dtype=torch.float64, device=x.device).expand(x.shape[: x.ndim - d])
    if not bool(((m > low) & (m < high)).all()):
        raise ValueError(
            f"bounded: found means from {float(m.min()):g} to {float(m.max()):g}, wanted them between low={low:g} and "
            f"high={high:g}"
        )

    def wide(t: Tensor) -> Tensor:
        return t[(..., *(None,) * d)]

    space = tuple(range(-d, 0))
    with torch.no_grad():  # ⟨clip(u − τ)⟩ falls as τ rises: τ by bisection …
        shift = weighted_mean(x, w) - m
        a = x.amin(dim=space) - high if high < math.inf else shift
        b = x.amax(dim=space) - low if low > -math.inf else shift
        for _ in range(BISECTIONS):
            tau = (a + b) / 2
            above = weighted_mean((x - wide(tau)).clamp(low, high), w) > m
            a, b = torch.where(above, tau, a), torch.where(above, b, tau)
        moved = x - wide((a + b) / 2)
        free = (moved > low) & (moved < high)
        rest = torch.where(free, 0.0, moved.clamp(low, high))
        share = (w * free).sum(dim=space)
    # … then exactly, and differentiably, from the nodes that no bound holds.
    fixed = (w * rest).sum(dim=space)
    tau = ((w * torch.where(free, x, 0.0)).sum(dim=space) + fixed - m * w.sum()) / share.clamp_min(
        torch.finfo(w.dtype).tiny
    )
    return torch.where(free, x - wide(tau), rest).to(u.dtype).clamp(low, high)


def monotone(u: Tensor, dim: int, weights: Tensor | None = None, increasing: bool = True) -> Tensor:
    """The nearest field that never falls (or never rises) along a dimension; it keeps the mean along it.

    Args:
        u: Field; memory is its size times the length of `dim`.
        dim: Dimension.
        weights: Positive weights along `dim`, e.g. an axis' widths; evenly if None.
        increasing: False for fields that must not rise.
    """
    x = torch.movedim(u, dim, -1).to(torch.float64)
    n = x.shape[-1]
    w = torch.ones(n, dtype=torch.float64, device=u.device) if weights is None else weights.to(x)
    if w.shape != (n,):
        raise ValueError(f"monotone: found weights of shape {tuple(w.shape)}, wanted ({n},), the dimension's length")
    x = x if increasing else -x
    zero = torch.zeros_like(x[..., :1])
    sums = torch.cat((zero, (w * x).cumsum(-1)), dim=-1)
    parts = torch.cat((zero.new_zeros(1), w.cumsum(0)))
    j, k = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    valid = (k >= j).to(x.device)
    length = torch.where(valid, parts[1:][None, :] - parts[:-1][:, None], 1.0)
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / length  # mean of u_j … u_k at [j, k]
    least = torch.where(valid, means, math.inf).flip(-1).cummin(dim=-1).values.flip(-1)  # over all k from i on
    out = torch.where(valid, least, -math.inf).amax(dim=-2)
    return torch.movedim(out if increasing else -out, -1, dim).to(u.dtype)


def at_most(
    u: Tensor,
    functional: Callable[[Tensor], Tensor],
    bound: Tensor | float,
    weights: Tensor | None = None,
    tangent: Callable[[Tensor], Tensor] | None = None,
    steps: int = 5,
) -> Tensor:
    """Fields whose functional does not exceed a bound: untouched where it does not, else moved onto the bound.

    Args:
        u: Fields (…, *dims).
        functional: (…, *dims) -> (…).
        bound: Broadcastable to (…), e.g. the functional of the frame before, for an energy that may only fall.
        weights, tangent, steps: As in :func:`~lapse.physics.newton.with_invariants`.
    """
    limit = torch.as_tensor(bound, dtype=torch.float64, device=u.device)
    with torch.no_grad():
        found = functional(u.to(torch.float64))
        target = torch.minimum(found, limit)
    moved = with_invariants(u, lambda x: functional(x).unsqueeze(-1), target.unsqueeze(-1), weights, tangent, steps)
    inside = (found <= limit)[(..., *(None,) * (u.ndim - found.ndim))]
    return torch.where(inside, u, moved)
