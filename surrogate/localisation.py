"""The gain of an ensemble whose covariances are tapered with distance.

    K = (ρ ∘ cov(z, h)) (ρ ∘ cov(h, h) + N)⁻¹,      ρ = exp(−½ (distance/radius)²)

with h what is observed of its members and N the variance of its errors. An ensemble of hundreds shows correlations by
chance between what is far apart, which ρ takes away (Houtekamer & Mitchell 2001,
doi:10.1175/1520-0493(2001)129<0123:ASEKFF>2.0.CO;2).
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

__all__ = ["Distances", "Gain", "chord", "significant", "taper"]


@dataclass
class Distances:
    """``between`` observed places ``(count, count)``, and from ``latent`` cells to them ``(cells, count)``."""

    between: Tensor
    latent: Tensor


class Gain:
    """(ρ ∘ cov(h, h) + noise)⁻¹ and covariances with h, from decoded observations h ``(M, count)`` of an ensemble."""

    def __init__(self, seen: Tensor, noise: Tensor, distances: Tensor, radius: float) -> None:
        self.away = (seen - seen.mean(dim=0)).double()
        self.members = len(seen)
        whole = self.away.T @ self.away / (self.members - 1) * taper(distances, radius).double()
        self.factor = torch.linalg.cholesky(whole + torch.diag(noise.double()))
        self.like = seen

    def weights(self, misfit: Tensor) -> Tensor:
        """``(B, count)`` to the same, times the inverse."""
        return torch.cholesky_solve(misfit.double().T, self.factor).T.to(self.like)

    def covariance(self, x: Tensor) -> Tensor:
        """Of ``x (M, n)`` with what is observed, ``(n, count)``."""
        a = (x - x.mean(dim=0)).double()
        return (a.T @ self.away / (self.members - 1)).to(self.like)


def chord(away: Tensor, n: int) -> Tensor:
    """Distance on a ring of n cells by the chord, of cells that are ``away`` from each other along it; in cells."""
    return n / pi * torch.sin(pi / n * away)


def taper(distance: Tensor, radius: float) -> Tensor:
    """exp(−½ (distance/radius)²), positive definite for distances in a space of any dimension (Schoenberg 1938)."""
    return torch.exp(-0.5 * (distance / radius).square())


def significant(cross: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """Covariances ``(n, count)`` with the part that a sample of this size shows by chance taken off."""
    size = x.double().var(dim=0)[:, None] * seen.double().var(dim=0)[None]
    r2 = cross.double().square() / size.clamp(min=1e-300)
    kept = 1 - (1 - r2.clamp(max=1)) / (len(x) * r2.clamp(min=1e-300))
    return cross * kept.clamp(min=0).to(cross)
