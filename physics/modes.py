"""Fourier modes of a periodic box, packed without the modes that are not kept.

A real field on a periodic box is written

    u(x) = Σ_k û(k) exp(i k·x),   |k_j| L_j / 2π ≤ K_j,

with û the *amplitudes* (transforms carry the factor 1/n), so that the same packed array describes the field
on any grid that can hold it: sampling on a finer or coarser grid needs no rescaling. The last axis holds
wavenumbers 0 … K (the field is real), every other one 0 … K, −K … −1. The Nyquist mode of an even grid is
never kept: it has no derivative and no partner on a finer grid.

Quadratic products are exact (no aliasing error in any kept mode) when they are evaluated on at least 3K + 1 nodes,
products of degree d on (d + 1) K + 1 [Orszag 1971, doi:10.1175/1520-0469(1971)028<1074:OTEOAI>2.0.CO;2]. The familiar
two-thirds rule keeps K = (n−1)//3 of a grid of n nodes; with ``keep=None`` all modes of the grid are kept and products
are padded to 3/2 n instead. Both are the same Galerkin method seen from two grids.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .grid import Grid


def fast_size(n: int) -> int:
    """Smallest even number ≥ n without prime factors above 5: such transforms are quick."""
    m = n + n % 2
    while True:
        r = m
        for p in (2, 3, 5):
            while r % p == 0:
                r //= p
        if r == 1:
            return m
        m += 2


class Modes:
    """The modes |k_j| ≤ K_j of a periodic grid, and the transforms to and from them.

    Args:
        grid: Periodic grid, of any number of axes.
        keep: Largest kept mode number K, one for all axes or one each; None keeps all that the grid holds.

    Raises:
        ValueError: If an axis is not periodic, or the grid cannot hold ``keep``.
    """

    def __init__(self, grid: Grid, keep: int | Sequence[int] | None = None) -> None:
        if not all(grid.periodic):
            raise ValueError(f"modes: found the grid ({grid}), wanted periodic axes only")
        most = tuple((n - 1) // 2 for n in grid.shape)
        kept = (keep,) * grid.ndim if isinstance(keep, int) else tuple(most if keep is None else keep)
        if len(kept) != grid.ndim or any(not 0 <= k <= m for k, m in zip(kept, most, strict=False)):
            raise ValueError(f"modes: found keep={keep}, wanted at most {most} for a grid of shape {grid.shape}")
        self.grid = grid
        self.keep = kept
        self.lengths = grid.length
        self.shape = (*(2 * k + 1 for k in kept[:-1]), kept[-1] + 1)
        self.product_shape = self.nodes(2)

    def nodes(self, degree: int) -> tuple[int, ...]:
        """Size of the grid on which a product of `degree` fields is free of aliasing in every kept mode."""
        return tuple(fast_size((degree + 1) * k + 1) for k in self.keep)

    def wavenumbers(self) -> tuple[Tensor, ...]:
        """Angular wavenumbers k_j = 2π m / L_j (float64), one tensor for each axis, ready to broadcast."""
        out = []
        for j, (k, L) in enumerate(zip(self.keep, self.lengths, strict=True)):
            m = list(range(k + 1)) + ([] if j == len(self.keep) - 1 else list(range(-k, 0)))
            kj = torch.tensor(m, dtype=torch.float64) * (2 * math.pi / L)
            out.append(kj.reshape(-1, *(1,) * (len(self.keep) - 1 - j)))
        return tuple(out)

    def analyse(self, u: Tensor) -> Tensor:
        """Field (…, *n) on any periodic grid over the same box -> amplitudes (…, *shape).

        Modes that are not kept are dropped; n must hold the kept ones.
        """
        K = self.keep
        v: Tensor = torch.fft.rfft(u, dim=-1, norm="forward")[..., : K[-1] + 1]
        for dim in range(-2, -len(K) - 1, -1):
            v = torch.fft.fft(v, dim=dim, norm="forward")
            k, n = K[dim], v.shape[dim]
            v = torch.cat((v.narrow(dim, 0, k + 1), v.narrow(dim, n - k, k)), dim=dim)
        return v

    def synthesise(self, v: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Amplitudes (…, *self.shape) -> field (…, *shape); the grid's own shape unless another is named."""
        K = self.keep
        n = tuple(shape) if shape is not None else self.grid.shape
        for dim in range(-2, -len(K) - 1, -1):
            k, size = K[dim], list(v.shape)
            size[dim] = n[dim] - 2 * k - 1
            v = torch.cat((v.narrow(dim, 0, k + 1), v.new_zeros(size), v.narrow(dim, k + 1, k)), dim=dim)
            v = torch.fft.ifft(v, dim=dim, norm="forward")
        u: Tensor = torch.fft.irfft(v, n=n[-1], dim=-1, norm="forward")
        return u
