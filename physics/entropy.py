"""Inequalities that tell a shock from its mirror image in time.

A weak solution need not be the physical one: an expansion shock satisfies the balance as well as the rarefaction that
the gas chooses. The physical one is the limit of vanishing viscosity, in which a convex function η of the state, the
entropy, obeys

    ∂η/∂t + ∇·ψ ≤ ∇²(viscous spreading) + s        in the weak sense, for test functions φ ≥ 0

(Lax 1973, doi:10.1137/1.9781611970562; the sign is that of mathematics: η falls where the entropy of thermodynamics
rises). Energy is an entropy of Burgers' equation and of shallow water. :func:`production` is the difference of both
sides, in the windows of `weak.py`; in a solution it is nought where the solution is smooth and the viscosity nought,
and negative otherwise.

The *total variation* of a scalar that obeys a conservation law never grows (Harten 1983,
doi:10.1016/0021-9991(83)90136-5): no new extrema arise, and old ones do not sharpen. A system such as shallow water
has no such bound, but an oscillation at a bore shows in it all the same.
"""

import torch
from torch import Tensor

from .equation import Equation
from .grid import Grid
from .weak import Windows, terms


def production(equation: Equation, u: Tensor, interval: float, windows: Windows | None = None) -> Tensor:
    """Entropy that arises in each window, (…, windows in time, 1, *windows in space), in units of η over time.

    Positive values beyond the size of the error (compare :func:`relative_production`) are unphysical.

    Args:
        equation: A law that states its `entropy`, on a grid that the weak form can use.
        u: Frames (…, T, C, *space), `interval` apart.
        interval: Δ, in the equation's unit of time.
        windows: Size of the windows.

    Raises:
        NotImplementedError: If the equation states no entropy.
        ValueError: As :func:`~lapse.physics.weak.weak`.
    """
    return torch.stack(_terms(equation, u, interval, windows)).sum(0)


def relative_production(equation: Equation, u: Tensor, interval: float, windows: Windows | None = None) -> Tensor:
    """Largest production of any window over the rms of the largest term: (…), float64; at most the error of the
    quadrature for physical solutions, of order 1 for shocks that run backwards in time."""
    found = torch.stack(_terms(equation, u, interval, windows)).to(torch.float64)
    dims = tuple(range(-equation.grid.ndim - 2, 0))
    return found.sum(0).amax(dim=dims) / found.abs().amax(0).square().mean(dim=dims).sqrt()


def total_variation(u: Tensor, grid: Grid) -> Tensor:
    """Σ |uᵢ₊₁ − uᵢ| along each axis, summed over all lines of nodes: (…, *space) -> (…).

    In float64, in units of u. Periodic axes count the step from
    the last node to the first.
    """
    if tuple(u.shape[-grid.ndim :]) != grid.shape:
        raise ValueError(f"total variation: found a field of shape {tuple(u.shape)}, wanted (…, *{grid.shape})")
    u = u.to(torch.float64)
    space = tuple(range(-grid.ndim, 0))
    total = u.new_zeros(u.shape[: -grid.ndim])
    for dim, axis in zip(space, grid.axes, strict=True):
        step = u.roll(-1, dim) - u if axis.periodic else u.diff(dim=dim)
        total = total + step.abs().sum(dim=space)
    return total


def growth(total: Tensor) -> Tensor:
    """By how much a series (…, T) that must not grow does so, relative to its first value: (…), float64.

    The sum of all rises, so that a fall elsewhere hides none.
    """
    total = total.to(torch.float64)
    return total.diff(dim=-1).clamp(min=0).sum(-1) / total[..., 0].abs()


def _terms(equation: Equation, u: Tensor, interval: float, windows: Windows | None) -> list[Tensor]:
    equation.check(u)
    return terms(equation.entropy(u), equation.grid, interval, windows)
