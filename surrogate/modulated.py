"""A hybrid covariance that is never formed: anomalies of the past, each modulated by a smooth random field, and a part
that is the same everywhere.

    z = √(1 − a) T^{−½} Σ_t a_t ⊙ g_t + √a h,      g_t ~ N(0, ρ),   h ~ N(0, B)

has the covariance (1 − a) S ∘ ρ + a B, with S the sample covariance of the anomalies a_t, ∘ the product by elements
(Schur's theorem; the "modulated ensemble" of Bishop & Hodyss 2009, doi:10.1111/j.1600-0870.2008.00371.x) and B a
`homogeneous` one. It is for fields too large to have a covariance in memory, and for records too short to tell one: S
has the rank of the record and is full of correlations by chance, S ∘ ρ forgets what is far away, and B has the variance
in all those directions that the record never took (hybrids: Hamill & Snyder 2000,
doi:10.1175/1520-0493(2000)128<2905:AHEKFV>2.0.CO;2).

ρ is a Gaussian of the distance in latent cells, along periodic axes of the chord, as in the smoother's taper
(`localisation`). It is a product over the axes, and so is its root, of which only the significant eigenvectors are
kept. Radius and share are those with which one half of a random thousand of the numbers is best told from the other,
in the last fifth of the record, which took no part: by the ignorance log v + e²/v of each number, in the mean (Roulston
& Smith 2002, doi:10.1175/1520-0493(2002)130<1653:EPFUIT>2.0.CO;2), where a promise v that is not kept costs most; of
numbers that vary, since one that never did in the record and then does, such as at the edge of ice, would cost all.
(The likelihood of the half as a whole would not do: it is ruled by the directions of least variance.)
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .homogeneous import Homogeneous, chords
from .localisation import taper

__all__ = ["Modulated"]

RADII = (1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0)  # latent cells
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
ANOMALIES = 200
"""Of the past, spread over the record."""
NUMBERS = 2**25
"""In all fields of a fit together, at most."""
_NUMBERS = 1000  # on which radius and share are chosen
_ALIVE = 0.05  # of the mean variance: at the edge of ice the first thaw would be all that ignorance sees
_JITTER = 1e-6  # of the mean variance: channels that are alike make a covariance singular
_SIGNIFICANT = 1e-4  # of the largest eigenvalue
_BATCH = 16


class Modulated:
    """The root of a covariance of fields ``(n, *latent)``.

    Arguments:
        anomalies: ``(T, n, *latent)``.
        periodic: of the axes.
        radius: of ρ, in latent cells.
        share: a, that of B.
        rest: B; None for the one that the anomalies tell.
    """

    def __init__(
        self, anomalies: Tensor, periodic: Sequence[bool], radius: float, share: float, rest: Homogeneous | None = None
    ) -> None:
        self.anomalies, self.periodic, self.radius, self.share = anomalies, tuple(periodic), radius, share
        self.rest = Homogeneous.fit(anomalies, self.periodic) if rest is None else rest
        self.roots = [
            _axis_root(n, wraps, radius).to(anomalies)
            for n, wraps in zip(anomalies.shape[2:], self.periodic, strict=True)
        ]

    @classmethod
    def fit(cls, away: Tensor, periodic: Sequence[bool]) -> "Modulated":
        """From fields about their mean ``(N, n, *latent)``, in the order of time."""
        fitted, held = away[: len(away) - max(1, len(away) // 5)], away[-max(1, len(away) // 5) :]
        g = torch.Generator().manual_seed(0)
        variance = fitted.square().mean(dim=0).flatten().cpu()
        alive = (variance > _ALIVE * variance.mean()).nonzero()[:, 0]  # not land, nor what hardly ever varied
        chosen = alive[torch.randperm(len(alive), generator=g)[:_NUMBERS]]
        x, y = (part.flatten(1)[:, chosen].double() for part in (fitted, held))
        S, half = x.T @ x / len(x), len(chosen) // 2
        channel, at = chosen // prod(away.shape[2:]), torch.unravel_index(chosen % prod(away.shape[2:]), away.shape[2:])
        B = Homogeneous.fit(fitted, periodic).covariance(channel, at)
        ignorance, jitter = {}, _JITTER * S.diagonal().mean() * torch.eye(len(S), dtype=S.dtype)
        for radius in RADII:
            rho = torch.ones_like(S)
            for axis, wraps, i in zip(away.shape[2:], periodic, at, strict=True):
                rho *= taper(chords(axis, wraps), radius)[i[:, None], i].to(rho)
            for share in SHARES:
                C = (1 - share) * S * rho + share * B + jitter
                gain = torch.linalg.solve(C[:half, :half], C[:half, half:])  # (known, sought)
                variance = C[half:, half:].diagonal() - (C[:half, half:] * gain).sum(dim=0)
                variance = variance.clamp(min=float(jitter[0, 0]))
                score = variance.log() + (y[:, half:] - y[:, :half] @ gain).square() / variance
                ignorance[radius, share] = float(score.mean())
        best = min(ignorance, key=ignorance.__getitem__)
        few = torch.linspace(0, len(away) - 1, min(ANOMALIES, len(away))).long()
        return cls(away[few].float(), periodic, *best)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.anomalies.shape[1:])

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return len(self.anomalies) * prod(root.shape[1] for root in self.roots) + self.rest.size

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)`` to fields ``(B, n, *latent)`` with the covariance above if that of x is 1."""
        smooth, rest = torch.split(x, [self.size - self.rest.size, self.rest.size], dim=1)
        found = torch.cat([self._modulated(smooth[i : i + _BATCH]) for i in range(0, len(x), _BATCH)])
        out: Tensor = (1 - self.share) ** 0.5 * found + self.share**0.5 * self.rest(rest)
        return out

    def _modulated(self, x: Tensor) -> Tensor:
        g = x.reshape(len(x), len(self.anomalies), *(root.shape[1] for root in self.roots))
        for root in self.roots:
            g = torch.tensordot(g, root, dims=([2], [1]))  # the new axis comes last
        found: Tensor = torch.einsum("tn...,bt...->bn...", self.anomalies, g) / len(self.anomalies) ** 0.5
        return found

    def to(self, like: Tensor) -> "Modulated":
        return Modulated(self.anomalies.to(like), self.periodic, self.radius, self.share, self.rest.to(like))

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps; half precision is far below what a record of this length knows."""
        return {
            "anomalies": self.anomalies.half(), "periodic": torch.tensor(self.periodic),
            "radius_share": torch.tensor([self.radius, self.share], dtype=torch.float64),
            "mixing": self.rest.mixing.float(), "lengths": self.rest.lengths.float(),
        }  # fmt: skip

    @classmethod
    def of(cls, kept: dict[str, Tensor]) -> "Modulated":
        """The inverse of `tensors`."""
        radius, share = kept["radius_share"].tolist()
        anomalies, periodic = kept["anomalies"].float(), kept["periodic"].tolist()
        deviation = anomalies.square().mean(dim=0).sqrt()
        rest = Homogeneous(deviation, kept["mixing"], kept["lengths"], periodic)
        return cls(anomalies, periodic, radius, share, rest)


def _axis_root(n: int, wraps: bool, radius: float) -> Tensor:
    """L ``(n, m)`` with L Lᵀ = ρ along one axis, up to eigenvalues that do not count; its rows have length 1."""
    value, vector = torch.linalg.eigh(taper(chords(n, wraps), radius))
    kept = value > _SIGNIFICANT * value.max()
    root = vector[:, kept] * value[kept].sqrt()
    unit: Tensor = root / root.norm(dim=1, keepdim=True)
    return unit
