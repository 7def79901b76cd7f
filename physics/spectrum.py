"""Isotropic power spectra that obey Parseval's identity to round-off.

    E(k_i) = Σ |û(k)|²  over the modes with  k_i − dk/2 ≤ |k| < k_i + dk/2,      Σ_i E(k_i) = ⟨u²⟩

with k_i = i·dk and dk the largest of the axes' fundamental wavenumbers. E is power per bin, in squared units
of u; E[0] holds the squared mean. Bins beyond the smallest of the axes' largest wavenumbers
(:func:`resolved`) hold corners of the spectral box only; they are kept, since Parseval's identity needs them.

Along an axis that is not periodic a Fourier series would show the jump between the ends. There the cosine
series is used instead (the DCT-II; Denis, Côté & Laprise 2002,
doi:10.1175/1520-0493(2002)130<1812:SDOTDA>2.0.CO;2): it is the Fourier series of the field reflected at its
ends, which has no jump, needs neither window nor detrending, and keeps the mean square exactly. Its
wavenumbers come in steps of π/L.

Wavenumbers are angular, in radians per unit of the axes, which should be alike. On an irregular axis the
mean spacing stands for all gaps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .grid import Grid


def fundamental(grid: Grid) -> float:
    """dk, the width of a bin: the largest of the axes' fundamental wavenumbers."""
    return max(_lowest(grid))


def resolved(grid: Grid) -> float:
    """Largest wavenumber that every axis holds: bins above it are corners."""
    return min(k * m for k, m in zip(_lowest(grid), _highest(grid), strict=True))


def power_spectrum(u: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Isotropic power spectrum.

    Args:
        u: Field (…, *space) without missing values.
        grid: Its grid; one or more axes, periodic or not.

    Returns:
        k of shape (bins,) in radians per unit of the axes, and E of shape (…, bins) in squared units of u,
        float64.

    >>> k, E = power_spectrum(torch.cos(3 * Grid.periodic_box(16, names=("x",)).meshgrid()[0]),
    ...                       Grid.periodic_box(16, names=("x",)))
    >>> round(float(E[3]), 12), round(float(E.sum()), 12)
    (0.5, 0.5)
    """
    d = grid.ndim
    if tuple(u.shape[-d:]) != grid.shape:
        raise ValueError(f"found a field of shape {tuple(u.shape)}, wanted (…, *{grid.shape}) for the grid ({grid})")
    u = u.to(torch.float64)
    for j, periodic in enumerate(grid.periodic):
        if not periodic:  # half-sample reflection: the DCT-II as a Fourier series of twice the length
            u = torch.cat((u, u.flip(j - d)), dim=j - d)
    power = torch.fft.rfftn(u, dim=tuple(range(-d, 0)), norm="forward").abs() ** 2
    n = u.shape[-1]
    twice = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64, device=u.device)  # modes stored without their partner
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    power = (power * twice).flatten(-d)
    k2 = torch.zeros((), dtype=torch.float64)
    for j, k1 in enumerate(_lowest(grid)):
        m = u.shape[j - d]
        f = torch.fft.rfftfreq(m, d=1 / m) if j == d - 1 else torch.fft.fftfreq(m, d=1 / m)
        k2 = k2[..., None] + (k1 * f.to(torch.float64)) ** 2
    dk = fundamental(grid)
    top = math.hypot(*(k * m for k, m in zip(_lowest(grid), _highest(grid), strict=True)))
    bins = round(top / dk) + 1
    # Reflection adds one mode beyond the last cosine; its amplitude is nought by symmetry, so it may go anywhere.
    i = (k2.sqrt().flatten() / dk).round().long().clamp(max=bins - 1)
    E = power.new_zeros(*power.shape[:-1], bins).index_add(-1, i.to(u.device), power)
    return dk * torch.arange(bins, dtype=torch.float64, device=u.device), E


def bands(grid: Grid, count: int = 3) -> tuple[float, ...]:
    """Edges of `count` bands that are equally wide in log k, from half a bin to the largest resolved wavenumber.

    The default three are the low, middle and high wavenumbers; the last edge is infinite, so that the
    corners count as high and the bands together hold the whole variance.
    """
    low, high = fundamental(grid) / 2, max(resolved(grid), fundamental(grid))
    inner = [low * (high / low) ** (i / count) for i in range(1, count)]
    return (low, *inner, math.inf)


def band_power(u: Tensor, grid: Grid, edges: Sequence[float] | None = None) -> Tensor:
    """Power in bands of wavenumber: (…, *space) -> (…, bands), in squared units of u, float64.

    Args:
        u: Field (…, *space).
        grid: Its grid.
        edges: Ascending edges, in radians per unit of the axes; a band takes lower <= k < upper. None:
        `bands(grid)`.
    """
    k, E = power_spectrum(u, grid)
    edges = bands(grid) if edges is None else tuple(edges)
    if len(edges) < 2 or any(b <= a for a, b in pairwise(edges)):
        raise ValueError(f"band_power: found the edges {edges}, wanted two or more that ascend")
    return torch.stack([(E * ((a <= k) & (k < b))).sum(-1) for a, b in pairwise(edges)], dim=-1)


def _lowest(grid: Grid) -> tuple[float, ...]:
    """Fundamental wavenumber of each axis."""
    return tuple((2 * math.pi if a.periodic else math.pi) / a.length for a in grid.axes)


def _highest(grid: Grid) -> tuple[int, ...]:
    """Number of the last mode of each axis."""
    return tuple(a.size // 2 if a.periodic else a.size - 1 for a in grid.axes)
