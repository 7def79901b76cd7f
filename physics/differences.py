"""Finite differences of any order of accuracy, from Fornberg's weights.

The weights (Fornberg 1988, doi:10.1090/S0025-5718-1988-0935077-0) are those of the derivative of the polynomial that
interpolates the nodes, so a formula on m nodes is exact for polynomials of degree below m. A derivative of order d
with accuracy p takes

- d + p nodes where it is one-sided or the axis is irregular (axes may be stretched as they please);
- one node fewer where it is centred on even spacing and d is even: symmetry then gives the last order for nothing.

Near the ends of a bounded axis (a wall, an inlet) formulae are one-sided with the same order, so the order holds up to
the boundary. No boundary value is assumed: a field that breaks its boundary condition is differentiated as it is.

On periodic axes first derivatives are antisymmetric and second ones symmetric matrices, as in the continuum:
⟨v, ∂u⟩ = −⟨∂v, u⟩ holds to round-off, and ⟨∂u⟩ = 0. One-sided rows break both at the order of the scheme; where a
balance must close at walls, use `volume.py`.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .grid import Axis

ACCURACIES = (2, 4, 6)


def difference_weights(x: tuple[float, ...], x0: float, order: int) -> list[float]:
    """Fornberg's weights of u(x) in the derivative of the given order at x0; order 0 interpolates."""
    n = len(x)
    c = [[0.0] * (order + 1) for _ in range(n)]
    c[0][0] = 1.0
    c1, c4 = 1.0, x[0] - x0
    for i in range(1, n):
        c2, c5, c4 = 1.0, c4, x[i] - x0
        for j in range(i):
            c3 = x[i] - x[j]
            c2 *= c3
            for k in range(min(i, order), -1, -1):
                if j == i - 1:
                    before = k * c[j][k - 1] if k else 0.0
                    c[i][k] = c1 * (before - c5 * c[j][k]) / c2
            for k in range(min(i, order), -1, -1):
                before = k * c[j][k - 1] if k else 0.0
                c[j][k] = (c4 * c[j][k] - before) / c3
        c1 = c2
    return [row[order] for row in c]


@lru_cache(maxsize=64)
def difference_matrix(axis: Axis, order: int, accuracy: int) -> Tensor:
    """Matrix (n, n), float64, of the finite-difference derivative of `order` along an axis.

    Raises:
        ValueError: If the axis has fewer nodes than the formula.
    """
    n = axis.size
    wide = accuracy + order  # points of a one-sided or irregular formula
    inner = wide - 1 + order % 2  # a centred formula on even spacing gains an order from symmetry
    if n < wide:
        raise ValueError(
            f"axis {axis.name!r}: found {n} nodes, wanted at least {wide} for a derivative of order {order} "
            f"with accuracy {accuracy}"
        )
    x = axis.coordinates
    D = torch.zeros(n, n, dtype=torch.float64)
    if axis.periodic:
        half = inner // 2
        w = difference_weights(tuple(j * axis.spacing for j in range(-half, half + 1)), 0.0, order)
        for i in range(n):
            for j in range(-half, half + 1):
                D[i, (i + j) % n] += w[j + half]
        return D
    size = inner if axis.regular else wide
    for i in range(n):
        start = i - size // 2
        m = size
        if start < 0 or start + size > n:
            m = wide
            start = min(max(start, 0), n - m)
        row = difference_weights(x[start : start + m], x[i], order)
        D[i, start : start + m] = torch.tensor(row, dtype=torch.float64)
    return D


def difference(u: Tensor, axis: Axis, dim: int, order: int = 1, accuracy: int = 2) -> Tensor:
    """Finite-difference derivative along dimension `dim`, whose nodes are the axis', in units of u over the axis'.

    Raises:
        ValueError: If the accuracy is not 2, 4 or 6, or the axis has too few nodes.
    """
    if accuracy not in ACCURACIES:
        raise ValueError(f"derivative: found accuracy={accuracy}, wanted 2, 4, 6 or None")
    D = difference_matrix(axis, order, accuracy).to(u)
    return torch.movedim(torch.movedim(u, dim, -1) @ D.T, -1, dim)


def ddt(u: Tensor, interval: float, dim: int, accuracy: int | None = None) -> Tensor:
    """Time derivative of a series at the frames where the centred difference exists.

    Args:
        u: Frames `interval` apart along `dim`.
        interval: Δ; its unit is the derivative's unit of time.
        dim: Dimension of time, e.g. ``-2 - grid.ndim`` for (…, T, C, *space).
        accuracy: Order in Δ: 2, 4 or 6. None: 4, or 2 where there are fewer than five frames.

    Returns:
        The derivative, ``accuracy // 2`` frames shorter at each end.

    Raises:
        ValueError: If there are too few frames, the accuracy is not 2, 4 or 6, or Δ is not positive.
    """
    T = u.shape[dim]
    p = (4 if T >= 5 else 2) if accuracy is None else accuracy
    if p not in ACCURACIES or not interval > 0:
        raise ValueError(f"ddt: found accuracy={p}, interval={interval}, wanted 2, 4 or 6 and a positive interval")
    if p + 1 > T:
        raise ValueError(f"ddt: found {T} frames along dimension {dim}, wanted at least {p + 1} for accuracy {p}")
    half = p // 2
    n = T - p
    w = difference_weights(tuple(float(j) for j in range(-half, half + 1)), 0.0, 1)
    # Differences of frames that mirror each other: a steady series gives nought exactly, not up to round-off.
    pairs = (
        c * (u.narrow(dim, half + j, n) - u.narrow(dim, half - j, n)) for j, c in enumerate(w[half + 1 :], start=1)
    )
    total = next(pairs)
    for pair in pairs:
        total = total + pair
    return total / interval
