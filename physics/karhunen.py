"""Gaussian random fields of few terms: the Karhunen–Loève expansion of an exponential covariance on a box.

    G(s) = Σₖ √λₖ ξₖ φₖ(s),   ξₖ ~ N(0, 1),      ∫ C(s, s′) φₖ(s′) ds′ = λₖ φₖ(s),      C = σ² exp(−|s − s′|/ℓ)

with the largest λₖ, as in the permeabilities of Zhu & Zabaras (2018, doi:10.1016/j.jcp.2018.04.018) and all that
followed them. The eigenfunctions are found by Galerkin's method among products of cosines cos(aπx/L) cos(bπy/M), and so
are functions of position: one draw of ξ is the same field on every grid. Products of even and odd a and b do not mix,
by symmetry; each class is solved by itself, which settles the eigenfunctions where two eigenvalues agree, and each is
given the sign of its largest coefficient. A field is therefore the same on every machine, to round-off.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .grid import Grid

__all__ = ["KarhunenLoeve"]

MODES, POINTS = 24, 48  # cosines and quadrature points along an axis: eigenvalue 64 at ℓ = L/10 is good to 0.5 %


class KarhunenLoeve:
    """Random fields on a box of two axes.

    Args:
        lengths: Sides of the box (y, x).
        correlation: ℓ, in the units of the sides.
        terms: Number of terms, at most 576.

    Attributes:
        eigenvalues: λₖ for σ = 1, falling, (terms,) float64, in units of area.
        coefficients: Of φₖ in the orthonormal products of cosines, (terms, MODES, MODES).
    """

    def __init__(self, lengths: Sequence[float], correlation: float, terms: int) -> None:
        if len(lengths) != 2 or not 0 < terms <= MODES**2 or not correlation > 0:
            raise ValueError(
                f"Karhunen–Loève: found sides {tuple(lengths)}, correlation {correlation} and {terms} terms, wanted "
                f"two sides, a positive length and 1 to {MODES**2} terms"
            )
        self.lengths = (float(lengths[0]), float(lengths[1]))
        self.eigenvalues, self.coefficients = _expansion(*self.lengths, float(correlation), int(terms))

    def modes(self, grid: Grid) -> Tensor:
        """√λₖ φₖ at the nodes of a grid that covers the box, (terms, y, x) float64."""
        y, x = (_cosines(_from_edge(grid, i), length) for i, length in enumerate(self.lengths))
        modes: Tensor = self.eigenvalues.sqrt()[:, None, None] * (y.T @ self.coefficients @ x)
        return modes

    def draw(self, grid: Grid, xi: Tensor) -> Tensor:
        """G for σ = 1 from ``xi (…, terms)``: (…, y, x) float64."""
        field: Tensor = torch.tensordot(xi.to(torch.float64), self.modes(grid).to(xi.device), dims=1)
        return field


def _from_edge(grid: Grid, i: int) -> Tensor:
    x = torch.tensor(grid.axes[i].coordinates, dtype=torch.float64)
    return x - x[0] + grid.axes[i].widths[0] / 2


def _cosines(s: Tensor, length: float) -> Tensor:
    """Orthonormal cosines on (0, length) at points s: (MODES, points)."""
    k = torch.arange(MODES, dtype=torch.float64)[:, None]
    size = torch.where(k == 0, 1 / length, 2 / length).sqrt()
    return size * torch.cos(math.pi * k * s / length)


@cache
def _expansion(height: float, width: float, correlation: float, terms: int) -> tuple[Tensor, Tensor]:
    y, x = ((torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS * L for L in (height, width))
    points = torch.cartesian_prod(y, x)
    C = torch.exp(-torch.cdist(points, points) / correlation)
    area = height * width / POINTS**2
    basis = torch.einsum("ay,bx->abyx", _cosines(y, height), _cosines(x, width)).flatten(2)
    found: list[tuple[float, Tensor]] = []
    for a in (0, 1):
        for b in (0, 1):
            B = basis[a::2, b::2].flatten(0, 1)
            value, vector = torch.linalg.eigh(area**2 * B @ C @ B.T)
            for v, c in zip(value.flip(0)[:terms].tolist(), vector.flip(1).T[:terms], strict=False):
                full = torch.zeros(MODES, MODES, dtype=torch.float64)
                full[a::2, b::2] = (c * torch.sign(c[c.abs().argmax()])).reshape(MODES // 2, MODES // 2)
                found.append((v, full))
    # Equal ones differ by round-off, which must not decide: rounded, and stable, so that the first class comes first.
    found.sort(key=lambda pair: -round(pair[0] / area, 6))
    kept = found[:terms]
    return torch.tensor([v for v, _ in kept], dtype=torch.float64), torch.stack([c for _, c in kept])
