"""A localised covariance that is never formed: anomalies of the past, each modulated by a smooth random field.

    z = √(1 − a) T^{−½} Σ_t a_t ⊙ g_t + √a σ ⊙ ε,      g_t ~ N(0, ρ),   ε ~ N(0, I)

has the covariance (1 − a) S ∘ ρ + a diag S, with S the sample covariance of the anomalies a_t and ∘ the product by
elements (Schur's theorem; the "modulated ensemble" of Bishop & Hodyss 2009, doi:10.1111/j.1600-0870.2008.00371.x). It
is for fields too large to have a covariance in memory, and for records too short to tell one: S has the rank of the
record and is full of correlations by chance, while S ∘ ρ has full rank and forgets what is far away.

ρ is a Gaussian of the distance in latent cells, along periodic axes of the chord, as in the smoother's taper
(`window`). It is a product over the axes, and so is its root, of which only the significant eigenvectors are kept. The
radius is the one with which one half of a random thousand of the numbers is best told from the other, in the last
fifth of the record, which took no part. (Likelihood would not do: it is ruled by the directions of least variance, and
answers a record of seventy states with seven tenths of white noise.) a is small, for the rank alone.
"""

from collections.abc import Sequence
from math import pi, prod

import torch
from torch import Tensor

__all__ = ["Modulated"]

RADII = (1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0)  # latent cells
SHARE = 0.002  # a: with more of it draws are grainy, and no observation tells its neighbours
ANOMALIES = 200
"""Of the past, spread over the record."""
NUMBERS = 2**25
"""In all fields of a fit together, at most."""
_NUMBERS = 1000  # on which the radius is chosen
_SIGNIFICANT = 1e-4  # of the largest eigenvalue
_BATCH = 16


class Modulated:
    """The root of a covariance of fields ``(n, *latent)``.

    Arguments:
        anomalies: ``(T, n, *latent)``.
        periodic: of the axes.
        radius: of ρ, in latent cells.
        share: a, the white part.
    """

    def __init__(self, anomalies: Tensor, periodic: Sequence[bool], radius: float, share: float) -> None:
        self.anomalies, self.periodic, self.radius, self.share = anomalies, tuple(periodic), radius, share
        self.deviation = anomalies.square().mean(dim=0).sqrt()
        self.roots = [
            _axis_root(n, wraps, radius).to(anomalies)
            for n, wraps in zip(anomalies.shape[2:], self.periodic, strict=True)
        ]

    @classmethod
    def fit(cls, away: Tensor, periodic: Sequence[bool]) -> "Modulated":
        """From fields about their mean ``(N, n, *latent)``, in the order of time."""
        fitted, held = away[: len(away) - max(1, len(away) // 5)], away[-max(1, len(away) // 5) :]
        g = torch.Generator().manual_seed(0)
        alive = (away.square().mean(dim=0) > 0).flatten().nonzero()[:, 0].cpu()  # not land
        chosen = alive[torch.randperm(len(alive), generator=g)[:_NUMBERS]]
        x, y = (part.flatten(1)[:, chosen].double() for part in (fitted, held))
        S = x.T @ x / len(x)
        diagonal, half = torch.diag(S.diagonal()), len(chosen) // 2
        at = torch.unravel_index(chosen % prod(away.shape[2:]), away.shape[2:])
        missed = {}
        for radius in RADII:
            rho = torch.ones_like(S)
            for axis, wraps, i in zip(away.shape[2:], periodic, at, strict=True):
                rho *= _correlation(axis, wraps, radius)[i[:, None], i].to(rho)
            C = (1 - SHARE) * S * rho + SHARE * diagonal
            told = C[half:, :half] @ torch.linalg.solve(C[:half, :half], y[:, :half].T)
            missed[radius] = float((told.T - y[:, half:]).square().mean())
        few = torch.linspace(0, len(away) - 1, min(ANOMALIES, len(away))).long()
        return cls(away[few].float(), periodic, min(missed, key=missed.__getitem__), SHARE)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.anomalies.shape[1:])

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return len(self.anomalies) * prod(root.shape[1] for root in self.roots) + prod(self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)`` to fields ``(B, n, *latent)`` with the covariance above if that of x is 1."""
        white = prod(self.shape)
        smooth = x[:, : x.shape[1] - white]
        found = torch.cat([self._modulated(smooth[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])
        noise = x[:, x.shape[1] - white :].reshape(-1, *self.shape)
        out: Tensor = (1 - self.share) ** 0.5 * found + self.share**0.5 * self.deviation * noise
        return out

    def _modulated(self, x: Tensor) -> Tensor:
        g = x.reshape(len(x), len(self.anomalies), *(root.shape[1] for root in self.roots))
        for root in self.roots:
            g = torch.tensordot(g, root, dims=([2], [1]))  # the new axis comes last
        found: Tensor = torch.einsum("tn...,bt...->bn...", self.anomalies, g) / len(self.anomalies) ** 0.5
        return found

    def to(self, like: Tensor) -> "Modulated":
        return Modulated(self.anomalies.to(like), self.periodic, self.radius, self.share)

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps; half precision is far below what a record of this length knows."""
        return {
            "anomalies": self.anomalies.half(), "periodic": torch.tensor(self.periodic),
            "radius_share": torch.tensor([self.radius, self.share], dtype=torch.float64),
        }  # fmt: skip

    @classmethod
    def of(cls, kept: dict[str, Tensor]) -> "Modulated":
        """The inverse of `tensors`."""
        radius, share = kept["radius_share"].tolist()
        return cls(kept["anomalies"].float(), kept["periodic"].tolist(), radius, share)


def _correlation(n: int, wraps: bool, radius: float) -> Tensor:
    """ρ along one axis, ``(n, n)`` float64."""
    i = torch.arange(n, dtype=torch.float64)
    away = i[:, None] - i
    if wraps:
        away = n / pi * torch.sin(pi / n * away)
    return torch.exp(-0.5 * (away / radius).square())


def _axis_root(n: int, wraps: bool, radius: float) -> Tensor:
    """L ``(n, m)`` with L Lᵀ = ρ along one axis, up to eigenvalues that do not count; its rows have length 1."""
    value, vector = torch.linalg.eigh(_correlation(n, wraps, radius))
    kept = value > _SIGNIFICANT * value.max()
    root = vector[:, kept] * value[kept].sqrt()
    unit: Tensor = root / root.norm(dim=1, keepdim=True)
    return unit
