"""A covariance that is the same everywhere but for its size: what is known of any place is known of all.

    z = σ ⊙ (M g),      g_k ~ N(0, C_k),   C_k = exp(−d/ℓ_k) along every axis,   M Mᵀ = R

with σ the standard deviation of every number, R the correlations of the channels within a cell, averaged over all
cells, M = E Λ^½ its eigenvectors, and ℓ_k the length along which component k forgets, from its correlation with the
next cell. Averages over space make these few numbers known even from a short record, whose anomalies span far fewer
directions than there are. An exponential falls off slowly among small scales, as geophysical fields do; by the chord
along periodic axes it is positive definite there, too (Schoenberg 1938), and products of such are.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .localisation import chord

__all__ = ["Homogeneous", "chords"]

_LEAST, _MOST = 0.02, 0.995  # correlation with the next cell


class Homogeneous:
    """The root of a covariance of fields ``(n, *latent)``.

    Arguments:
        deviation: σ ``(n, *latent)``.
        mixing: M ``(n, n)``.
        lengths: ℓ ``(n,)``, in latent cells.
        periodic: of the axes.
    """

    def __init__(self, deviation: Tensor, mixing: Tensor, lengths: Tensor, periodic: Sequence[bool]) -> None:
        self.deviation, self.mixing, self.lengths, self.periodic = deviation, mixing, lengths, tuple(periodic)
        self.roots = [
            torch.linalg.cholesky(self._along(n, wraps)).to(deviation)
            for n, wraps in zip(deviation.shape[1:], self.periodic, strict=True)
        ]

    @classmethod
    def fit(cls, anomalies: Tensor, periodic: Sequence[bool]) -> "Homogeneous":
        """From fields about their mean ``(T, n, *latent)``; what never varies, such as land, is left out."""
        deviation = anomalies.square().mean(dim=0).sqrt()
        alive = deviation > 0
        a = torch.where(alive, anomalies / deviation.clamp(min=1e-30), 0.0)
        both = (alive.flatten(1).to(a) @ alive.flatten(1).to(a).T).clamp(min=1)
        R = torch.einsum("tnc,tmc->nm", a.flatten(2), a.flatten(2)) / len(a) / both
        value, vector = torch.linalg.eigh(R.double())
        mixing = vector * value.clamp(min=0).sqrt()
        mixing = mixing / mixing.norm(dim=1, keepdim=True).clamp(min=1e-30)
        parts = torch.einsum("nk,tn...->tk...", vector.to(a), a)
        sea, (near, size) = alive.any(dim=0), torch.zeros(2, a.shape[1], dtype=torch.float64)
        for axis, n in enumerate(anomalies.shape[2:], start=2):
            both_sea = sea.narrow(axis - 2, 0, n - 1) & sea.narrow(axis - 2, 1, n - 1)
            x, y = (parts.narrow(axis, first, n - 1).double() * both_sea for first in (0, 1))
            dims = (0, *range(2, x.ndim))
            near += (x * y).sum(dim=dims)
            size += 0.5 * (x.square() + y.square()).sum(dim=dims)
        correlation = (near / size.clamp(min=1e-300)).clamp(_LEAST, _MOST)
        return cls(deviation, mixing.to(a), (-1 / correlation.log()).to(a), periodic)

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return prod(self.deviation.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)`` to fields ``(B, n, *latent)`` with the covariance above if that of x is 1."""
        g = x.reshape(len(x), *self.deviation.shape)
        for axis, root in enumerate(self.roots, start=2):
            g = torch.einsum("kij,bk...j->bk...i", root, g.movedim(axis, -1)).movedim(-1, axis)
        return self.deviation * torch.einsum("nk,bk...->bn...", self.mixing, g)

    def covariance(self, channel: Tensor, at: Sequence[Tensor]) -> Tensor:
        """Between numbers ``(N,)`` that are told by their channel and their cell along every axis, ``(N, N)``."""
        out = torch.zeros(len(channel), len(channel), dtype=torch.float64)
        grids = [chords(n, wraps) for n, wraps in zip(self.deviation.shape[1:], self.periodic, strict=True)]
        away = sum(grid[i[:, None], i] for grid, i in zip(grids, at, strict=True))
        m = self.mixing.double()[channel]
        for k, length in enumerate(self.lengths.double()):
            out += m[:, k, None] * m[:, k] * torch.exp(-away / length)
        sigma = self.deviation.double()[(channel, *at)]
        return sigma[:, None] * sigma * out

    def to(self, like: Tensor) -> "Homogeneous":
        return Homogeneous(self.deviation.to(like), self.mixing.to(like), self.lengths.to(like), self.periodic)

    def _along(self, n: int, wraps: bool) -> Tensor:
        """exp(−d/ℓ) ``(n of components, N, N)``, float64."""
        return torch.exp(-chords(n, wraps) / self.lengths.double().cpu()[:, None, None])


def chords(n: int, wraps: bool) -> Tensor:
    """Distances between n cells of one axis ``(n, n)``, float64, in cells; along a periodic axis the chord."""
    i = torch.arange(n, dtype=torch.float64)
    away = (i[:, None] - i).abs()
    return chord(away, n) if wraps else away
