"""Gaussian smoothing on any rectilinear grid, and random smooth fields.

A field is multiplied by exp(−|m|² s²/2) in wavenumber space, m in radians per cell (:func:`smear`) or counted in waves
per box (:func:`smooth`). Along an axis that is not periodic the Fourier series of the field reflected at its ends
stands in (a cosine series), so nothing leaks from one end to the other. Nodes count as evenly spaced.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import Grid


def smear(u: Tensor, grid: Grid, cells: float) -> Tensor:
    """Gaussian filter of standard deviation `cells`, in cells: (…, *space) -> the same. It keeps the mean."""
    return _filtered(u, grid, [cells * 2 * math.pi / n for n in _periods(grid)])


def smooth(grid: Grid, generator: torch.Generator, lead: Sequence[int], waves: float = 3.0) -> Tensor:
    """Random smooth fields of mean 0 and rms 1, float64, shape (*lead, *space).

    Args:
        grid: Where.
        generator: Source of the noise; the fields are made on its device.
        lead: Leading dimensions, all independent.
        waves: Mode number (waves in the box, along each axis) at which the amplitude has fallen to exp(−1/2).
    """
    noise = torch.randn(*lead, *grid.shape, generator=generator, device=generator.device, dtype=torch.float64)
    u = _filtered(noise, grid, [n / (m * waves) for n, m in zip(grid.shape, _periods(grid), strict=True)])
    space = tuple(range(-grid.ndim, 0))
    u = u - u.mean(dim=space, keepdim=True)
    return u / u.square().mean(dim=space, keepdim=True).sqrt()


def _periods(grid: Grid) -> list[int]:
    """Nodes in a period of each axis, reflection included."""
    return [a.size if a.periodic else 2 * a.size for a in grid.axes]


def _filtered(u: Tensor, grid: Grid, width: Sequence[float]) -> Tensor:
    """Along each axis, amplitudes of mode number m times exp(−(m·width)²/2)."""
    for j, (axis, s) in enumerate(zip(grid.axes, width, strict=True)):
        v = u.movedim(j - grid.ndim, -1)
        v = v if axis.periodic else torch.cat((v, v.flip(-1)), dim=-1)
        w = torch.fft.rfft(v)
        m = torch.arange(w.shape[-1], dtype=u.dtype, device=u.device)
        v = torch.fft.irfft(w * torch.exp(-((m * s) ** 2) / 2), n=v.shape[-1])[..., : axis.size]
        u = v.movedim(-1, j - grid.ndim)
    return u
