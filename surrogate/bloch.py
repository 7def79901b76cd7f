"""A covariance that is the same after shifts, in Bloch waves.

    B = F* diag(B_k) F,      B^½ = F* diag(B_k^½) F

Where data are statistically the same after a shift by pᵢ latent cells along axis i (as training with ``data.shift``
says), their covariance is block-diagonal in Bloch waves: F is the unitary Fourier transform over the nᵢ/pᵢ repetitions
of a cell of p₁ × p₂ × … latent cells, and there is a block B_k for each wave vector k, as large as the numbers of a
cell. An axis without such a symmetry is one cell, and data without any have one block, the whole covariance.

A block is estimated from few frames, so it is drawn to its diagonal, B ← (1 − a) B + a diag B, with the a for which the
last fifth of the frames, which took no part in the fit, is most likely (a cross-validated form of the shrinkage of
Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4).
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["Bloch", "cell_mean", "from_waves", "to_waves"]

SHRINKAGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class Bloch:
    """The root of a covariance of fields ``(n, *latent)``.

    Arguments:
        root: B_k^½, ``(K, b, b)`` complex: one block a wave vector (their order is that of a flattened FFT).
        shape: of the fields, ``(n, *latent)``.
        cell: latent cells of a repetition along every axis.
    """

    def __init__(self, root: Tensor, shape: Sequence[int], cell: Sequence[int]) -> None:
        self.root, self.shape, self.cell = root, tuple(shape), tuple(int(p) for p in cell)

    @classmethod
    def fit(cls, away: Tensor, cell: Sequence[int]) -> "Bloch":
        """From fields about their mean ``(N, n, *latent)``, in the order of time."""
        return cls(_root(to_waves(away, cell)).to(torch.complex64), away.shape[1:], cell)

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return prod(self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)`` to fields ``(B, n, *latent)`` whose covariance is B if that of x is 1."""
        waves = to_waves(x.reshape(-1, *self.shape), self.cell)
        return from_waves(torch.einsum("kij,mkj->mki", self.root.to(waves), waves), self.shape, self.cell)

    def to(self, like: Tensor) -> "Bloch":
        kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return Bloch(self.root.to(like.device, kind), self.shape, self.cell)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps."""
        kept = {"real": self.root.real.float(), "cell": torch.tensor(self.cell)}
        if bool(self.root.imag.any()):  # one block is real
            kept["imaginary"] = self.root.imag.float()
        return kept

    @classmethod
    def of(cls, kept: dict[str, Tensor], shape: Sequence[int]) -> "Bloch":
        """The inverse of `tensors`."""
        real = kept["real"]
        return cls(torch.complex(real, kept.get("imaginary", torch.zeros_like(real))), shape, kept["cell"].tolist())


def _root(waves: Tensor) -> Tensor:
    """Square roots of the blocks, shrunk, from ``waves (N, K, b)`` in the order of time."""
    held = waves[-max(1, len(waves) // 5) :]
    fitted = waves[: len(waves) - len(held)]
    blocks = torch.einsum("nki,nkj->kij", fitted, fitted.conj()) / len(fitted)
    scores = [_likelihood(_shrunk(blocks, a), held) for a in SHRINKAGES]
    best = SHRINKAGES[max(range(len(scores)), key=scores.__getitem__)]
    whole = _shrunk(torch.einsum("nki,nkj->kij", waves, waves.conj()) / len(waves), best)
    value, vector = torch.linalg.eigh(whole)
    return torch.einsum("kij,kj,klj->kil", vector, value.clamp(min=0).sqrt().to(vector.dtype), vector.conj())


def _shrunk(blocks: Tensor, a: float) -> Tensor:
    diagonal = torch.diagonal(blocks, dim1=1, dim2=2).real
    floor = 1e-6 * float(diagonal.mean()) + 1e-12
    return (1 - a) * blocks + torch.diag_embed(a * diagonal + floor).to(blocks.dtype)


def _likelihood(blocks: Tensor, waves: Tensor) -> float:
    """Mean log-likelihood of centred ``waves (N, K, b)`` given covariances ``(K, b, b)``, up to a constant."""
    L, info = torch.linalg.cholesky_ex(blocks)
    if bool(info.any()):
        return -float("inf")
    logs = 2 * torch.diagonal(L, dim1=1, dim2=2).real.log().sum()
    r = torch.linalg.solve_triangular(L, waves.permute(1, 2, 0), upper=False)
    return -0.5 * float(logs + r.abs().square().sum() / len(waves))


def cell_mean(field: Tensor, cell: Sequence[int]) -> Tensor:
    """Mean of ``field (n, *latent)`` over the repetitions of the cell, repeated."""
    split = _split(field[None], cell)[0]
    axes = tuple(range(1, 1 + 2 * len(cell), 2))
    mean: Tensor = split.mean(dim=axes, keepdim=True).expand_as(split).reshape(field.shape)
    return mean


def to_waves(z: Tensor, cell: Sequence[int]) -> Tensor:
    """``z (B, n, *latent)`` to Bloch waves ``(B, K, b)``, unitary."""
    d = len(cell)
    split = _split(z, cell)
    over = tuple(range(2, 2 + 2 * d, 2))
    waves: Tensor = torch.fft.fftn(split, dim=over, norm="ortho")
    waves = waves.permute(0, *over, 1, *range(3, 3 + 2 * d, 2))
    return waves.reshape(len(z), -1, z.shape[1] * prod(cell))


def from_waves(waves: Tensor, shape: Sequence[int], cell: Sequence[int]) -> Tensor:
    """Inverse of `to_waves`, to real ``(B, *shape)``."""
    d = len(cell)
    counts = [n // p for n, p in zip(shape[1:], cell, strict=True)]
    split = waves.reshape(len(waves), *counts, shape[0], *cell)
    cells: Tensor = torch.fft.ifftn(split, dim=tuple(range(1, 1 + d)), norm="ortho").real
    order = [0, 1 + d] + [i for a in range(d) for i in (1 + a, 2 + d + a)]
    return cells.permute(*order).reshape(len(waves), *shape)


def _split(z: Tensor, cell: Sequence[int]) -> Tensor:
    """``(B, n, *latent)`` to ``(B, n, n₁/p₁, p₁, n₂/p₂, p₂, …)``."""
    sizes = [m for n, p in zip(z.shape[2:], cell, strict=True) for m in (n // p, p)]
    return z.reshape(*z.shape[:2], *sizes)
