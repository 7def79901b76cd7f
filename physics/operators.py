"""The vocabulary of vector calculus on a grid: derivative, grad, div, curl, laplacian and its inverse.

Fields are (…, *space), vectors (…, d, *space). The components of a vector point along the axes from the last
to the first: (u, v) along (x, y) on a grid with axes (y, x).

Along a periodic axis derivatives are spectral by default: exact for every mode below the Nyquist one, which
has no derivative and is dropped. Along any other axis, or if `accuracy` is given, they are the finite differences
of `differences.py`. Derivatives along different axes commute to round-off, whatever their kind; hence
div(∇^⊥ψ) = 0, curl(∇φ) = 0 and div(curl A) = 0 hold for the discrete operators.

Laws are written with this vocabulary, `ddt` (the time derivative of a series) included. For shocks and balances that
must close in every cell there is `volume.py`, for latitude and longitude `sphere.py`.
"""

import math

import torch
from torch import Tensor

from .differences import ddt, difference
from .grid import Grid
from .modes import Modes

__all__ = [
    "curl",
    "ddt",
    "dealias",
    "derivative",
    "div",
    "grad",
    "inverse_laplacian",
    "laplacian",
    "refine",
    "spectral_derivative",
    "truncate",
]


def derivative(u: Tensor, grid: Grid, name: str, order: int = 1, accuracy: int | None = None) -> Tensor:
    """∂^order u / ∂name^order, in units of u over units of the axis.

    Args:
        u: Field (…, *space).
        grid: Its grid.
        name: Name of the axis.
        order: 1 or more.
        accuracy: Order of accuracy of finite differences, 2, 4 or 6; None means spectral if periodic, else 2.

    Raises:
        ValueError: If shapes disagree, or the axis is in degrees (its metric is not Cartesian).
    """
    _check(u, grid)
    i = grid.index(name)
    axis = grid.axes[i]
    if axis.kind != "cartesian":
        raise ValueError(
            f"axis {name!r}: found units {axis.units!r}, wanted a Cartesian axis in units of length (for latitude and "
            "longitude use lapse.physics.sphere)"
        )
    dim = i - grid.ndim
    if axis.periodic and accuracy is None:
        return spectral_derivative(u, dim, axis.length, order)
    return difference(u, axis, dim, order, 2 if accuracy is None else accuracy)


def spectral_derivative(u: Tensor, dim: int, length: float, order: int = 1) -> Tensor:
    """Derivative of the trigonometric interpolant along dimension `dim` (negative), whose period is `length`."""
    n = u.shape[dim]
    v = torch.fft.rfft(u, dim=dim)
    k = torch.arange(v.shape[dim], dtype=torch.float64, device=u.device) * (2 * math.pi / length)
    factor = (1j * k) ** order
    if n % 2 == 0 and order % 2:
        factor[-1] = 0
    v = v * factor.to(v.dtype).reshape(-1, *(1,) * (-dim - 1))
    du: Tensor = torch.fft.irfft(v, n=n, dim=dim)
    return du


def grad(u: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """∇u: field (…, *space) -> vector (…, d, *space)."""
    return torch.stack([derivative(u, grid, name, 1, accuracy) for name in reversed(grid.names)], dim=-grid.ndim - 1)


def div(v: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """∇·v: vector (…, d, *space) -> field (…, *space)."""
    parts = _components(v, grid)
    names = reversed(grid.names)
    return torch.stack([derivative(c, grid, n, 1, accuracy) for c, n in zip(parts, names, strict=True)]).sum(0)


def curl(v: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """∇×v.

    In two dimensions its vertical component ∂v/∂x − ∂u/∂y: vector (…, 2, *space) -> field (…, *space). In three
    dimensions (∂w/∂y − ∂v/∂z, ∂u/∂z − ∂w/∂x, ∂v/∂x − ∂u/∂y): vector (…, 3, *space) -> vector (…, 3, *space), for
    components (u, v, w) along (x, y, z) on a grid with axes (z, y, x).
    """
    if grid.ndim not in (2, 3):
        raise ValueError(f"curl: found a grid with axes {grid.names}, wanted two or three axes")
    parts = _components(v, grid)
    names = tuple(reversed(grid.names))

    def rotation(i: int, j: int) -> Tensor:
        return derivative(parts[j], grid, names[i], 1, accuracy) - derivative(parts[i], grid, names[j], 1, accuracy)

    if grid.ndim == 2:
        return rotation(0, 1)
    return torch.stack([rotation(i, j) for i, j in ((1, 2), (2, 0), (0, 1))], dim=-grid.ndim - 1)


def laplacian(u: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """∇²u: field (…, *space) -> field (…, *space)."""
    return torch.stack([derivative(u, grid, name, 2, accuracy) for name in grid.names]).sum(0)


def inverse_laplacian(f: Tensor, grid: Grid) -> Tensor:
    """Zero-mean solution of ∇²u = f − ⟨f⟩ on a periodic grid, spectral; f may be of any dimension.

    Raises:
        ValueError: If an axis is not periodic (the problem then lacks its boundary values).
    """
    _check(f, grid)
    if not all(grid.periodic) or any(a.kind != "cartesian" for a in grid.axes):
        raise ValueError(f"inverse_laplacian: found the grid ({grid}), wanted periodic Cartesian axes only")
    dims = tuple(range(-grid.ndim, 0))
    v = torch.fft.rfftn(f, dim=dims)
    k2 = torch.zeros(v.shape[-grid.ndim :], dtype=torch.float64, device=f.device)
    for j, axis in enumerate(grid.axes):
        m = torch.fft.rfftfreq if j == grid.ndim - 1 else torch.fft.fftfreq
        k = m(axis.size, d=axis.spacing, dtype=torch.float64, device=f.device) * (2 * math.pi)
        k2 = k2 + k.reshape(-1, *(1,) * (grid.ndim - 1 - j)) ** 2
    inverse = torch.where(k2 > 0, -1 / k2, 0.0).to(f.dtype)
    u: Tensor = torch.fft.irfftn(v * inverse, s=grid.shape, dim=dims)
    return u


def dealias(u: Tensor, grid: Grid) -> Tensor:
    """Drop the modes above the two-thirds rule, so that one product of two such fields is free of aliasing."""
    _check(u, grid)
    modes = Modes(grid, [(n - 1) // 3 for n in grid.shape])
    return modes.synthesise(modes.analyse(u))


def truncate(u: Tensor, fine: Grid, coarse: Grid) -> Tensor:
    """Fourier coarse-graining: keep the modes that the coarse grid holds, and sample them there.

    Exact for fields without modes at or above the coarse grid's Nyquist wavenumber.

    Raises:
        ValueError: If the grids are not periodic, do not cover the same box, or `coarse` is the finer one.
    """
    _same_box(fine, coarse)
    return Modes(coarse).synthesise(Modes(fine, Modes(coarse).keep).analyse(_check(u, fine)))


def refine(u: Tensor, coarse: Grid, fine: Grid) -> Tensor:
    """Fourier interpolation to a finer grid; ``truncate(refine(u, …), …)`` is u without its Nyquist mode.

    Raises:
        ValueError: As :func:`truncate`.
    """
    _same_box(fine, coarse)
    modes = Modes(coarse)
    return modes.synthesise(modes.analyse(_check(u, coarse)), fine.shape)


def _same_box(fine: Grid, coarse: Grid) -> None:
    for a, b in zip(fine.axes, coarse.axes, strict=False):
        same = (a.name, a.units) == (b.name, b.units) and math.isclose(a.length, b.length, rel_tol=1e-6)
        if not same or abs(a.coordinates[0] - b.coordinates[0]) > 1e-6 * a.length:
            raise ValueError(f"found the grids ({fine}) and ({coarse}), wanted the same box with the same origin")
    if fine.ndim != coarse.ndim or any(n < m for n, m in zip(fine.shape, coarse.shape, strict=True)):
        raise ValueError(f"found shapes {fine.shape} (fine) and {coarse.shape} (coarse), wanted fine >= coarse")


def _check(u: Tensor, grid: Grid) -> Tensor:
    if tuple(u.shape[-grid.ndim :]) != grid.shape:
        raise ValueError(f"found a field of shape {tuple(u.shape)}, wanted (…, *{grid.shape}) for the grid ({grid})")
    return u


def _components(v: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    wanted = (grid.ndim, *grid.shape)
    if tuple(v.shape[-grid.ndim - 1 :]) != wanted:
        raise ValueError(f"found a vector of shape {tuple(v.shape)}, wanted (…, *{wanted}) for the grid ({grid})")
    return v.unbind(dim=-grid.ndim - 1)
