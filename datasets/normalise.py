"""Physical units <-> numbers of order one, with the seasonal and daily cycle taken out where that is asked
for.

    forward   z = (x − μ − c(phase)) / σ,   0 under the mask
    inverse   x = μ + c(phase) + σ z

μ and σ are one number per variable: area-weighted over valid cells and over the training frames.
Components of one vector share σ, so that a rotation of the vector stays a rotation; a positive variable
stays in its linear scale. The climatology c is zero at will; otherwise it is, at every grid point, the
least-squares fit of

    {1, cos 2πja, sin 2πja : j ≤ n_year} ⊗ {1, cos 2πkd, sin 2πkd : k ≤ n_day}

with a and d the phases of year and day (`datasets.time.phase`), and σ is then the standard deviation about
it. Multiples of an angle come from powers of e^{2πia}, so numeric times, whose phase is 0, see the
constant only.

The fit streams: every batch of frames adds to the normal equations Φᵀ Φ and Φᵀ x in float64, with x taken
relative to the first frame at that point, so that the remainder Σx² − … does not cancel. Chunked and whole
fits agree to round-off.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .problem import SpecWarning
from .spec import FieldSpec

__all__ = ["Normaliser", "harmonics"]

_SMALLEST_EIGENVALUE = 1e-5
"""Relative to the largest; below it the training times do not determine a harmonic, and the fit leaves it
out.
"""


def harmonics(phase: Tensor, n_year: int, n_day: int) -> Tensor:
    """The basis at the given phases (…, 4), shape (…, (1 + 2 n_year)(1 + 2 n_day)); the first is 1."""
    year = _powers(phase[..., 0], phase[..., 1], n_year)
    day = _powers(phase[..., 2], phase[..., 3], n_day)
    return (year.unsqueeze(-1) * day.unsqueeze(-2)).flatten(-2)


def _powers(sin: Tensor, cos: Tensor, count: int) -> Tensor:
    terms = [torch.ones_like(sin)]
    s, c = torch.zeros_like(sin), torch.ones_like(cos)
    for _ in range(count):
        s, c = s * cos + c * sin, c * cos - s * sin
        terms += [c, s]
    return torch.stack(terms, dim=-1)


class Normaliser(nn.Module):
    """Normalisation of fields (…, C, *space), a part of the model: its state travels with the weights.

    n_year, n_day   harmonics of the yearly and daily cycle (0, 0: none)
    pointwise       subtract a mean of its own at every grid point; implied by harmonics

    Buffers, float32: `mean` and `std` (C,), `climatology` (K, C, *space) in physical units relative to `mean`
    (K = 0 without one), `mask` bool (C, *space), `fitted` bool. Until `fit` it is the identity on valid
    cells.
    """

    mean: Tensor
    std: Tensor
    climatology: Tensor
    mask: Tensor
    fitted: Tensor
    weights: Tensor

    def __init__(self, spec: FieldSpec, n_year: int = 0, n_day: int = 0, pointwise: bool = False) -> None:
        super().__init__()
        if n_year < 0 or n_day < 0:
            raise ValueError(f"found n_year={n_year}, n_day={n_day}; wanted numbers of harmonics, zero or more")
        self.n_year, self.n_day = n_year, n_day
        self.groups = spec.groups
        channels, *space = spec.shape
        terms = (1 + 2 * n_year) * (1 + 2 * n_day) if pointwise or n_year or n_day else 0
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.register_buffer("climatology", torch.zeros(terms, channels, *space))
        self.register_buffer("mask", spec.mask_tensor())
        self.register_buffer("fitted", torch.tensor(False))
        # Known from the spec, so not part of the state.
        self.register_buffer("weights", spec.grid.area_weights(), persistent=False)

    @property
    def cyclic(self) -> bool:
        """Whether forward and inverse need the phase."""
        return self.n_year > 0 or self.n_day > 0

    def offset(self, phase: Tensor | None = None) -> Tensor:
        """μ + c(phase) in physical units, shape (*phase.shape[:-1], C, *space); without a cycle (C,
        *space).
        """
        mean: Tensor = self.mean.reshape(-1, *(1,) * (self.mask.ndim - 1))
        if self.climatology.shape[0] == 0:
            return mean
        if not self.cyclic:
            return mean + self.climatology[0]
        if phase is None:
            raise ValueError(
                f"found no phase; wanted one of shape (…, 4), since the climatology has {self.n_year} "
                f"yearly and {self.n_day} daily harmonics. Usual fix: datasets.time.phase(times)"
            )
        basis = harmonics(phase.to(self.climatology.dtype), self.n_year, self.n_day)
        cycle: Tensor = torch.tensordot(basis, self.climatology, dims=1)
        return mean + cycle

    def forward(self, x: Tensor, phase: Tensor | None = None) -> Tensor:
        """Physical (…, C, *space) to normalised; masked cells, whatever they hold, become 0."""
        z = (x - self.offset(phase)) / self._scale()
        return torch.where(self.mask, z, torch.zeros_like(z))

    def inverse(self, z: Tensor, phase: Tensor | None = None) -> Tensor:
        """Normalised (…, C, *space) to physical; masked cells get the variable's mean."""
        x = self.offset(phase) + self._scale() * torch.where(self.mask, z, torch.zeros_like(z))
        return x

    def _scale(self) -> Tensor:
        return self.std.reshape(-1, *(1,) * (self.mask.ndim - 1))

    @torch.no_grad()
    def fit(self, frames: Iterable[Tensor | tuple[Tensor, Tensor | None]]) -> "Normaliser":
        """Fit to training frames, given in batches x (…, C, *space) or (x, phase (…, 4)); returns itself.

        Only valid cells are looked at. Raises ValueError for no frames, and for values that are not finite.
        A constant variable gets σ = 1.
        """
        terms = max(self.climatology.shape[0], 1)
        sums = _Sums.zeros(terms, self.mask)
        for batch in frames:
            x, phase = batch if isinstance(batch, tuple) else (batch, None)
            sums.add(x, self._basis(x, phase))
        if sums.count == 0:
            raise ValueError("found no training frames; wanted at least one")
        self._solve(sums)
        return self

    def _basis(self, x: Tensor, phase: Tensor | None) -> Tensor:
        """Basis functions of every frame of a batch, (N, K) float64."""
        count = x.reshape(-1, *self.mask.shape).shape[0]
        if not self.cyclic:
            return torch.ones(count, 1, dtype=torch.float64)
        if phase is None:
            raise ValueError("found frames without a phase; wanted (x, phase) pairs, since a cycle is to be fitted")
        return harmonics(phase.reshape(-1, 4).double(), self.n_year, self.n_day)

    def _solve(self, sums: "_Sums") -> None:
        gram = sums.gram / sums.count
        values, vectors = torch.linalg.eigh(gram)
        keep = values > _SMALLEST_EIGENVALUE * values[-1]
        if not keep.all() and sums.count > 1:
            warnings.warn(
                f"found training times that determine only {int(keep.sum())} of {keep.numel()} harmonics of "
                "the climatology; wanted times that cover the whole year and day. Usual fix: fewer harmonics "
                "(n_year, n_day) or a longer training period",
                SpecWarning,
                stacklevel=3,
            )
        inverse = (vectors[:, keep] / values[keep]) @ vectors[:, keep].T
        moments = sums.moments.flatten(1) / sums.count
        fit = (inverse @ moments).reshape(sums.moments.shape)
        # The share of ⟨x²⟩ that the fit explains is cᵀ⟨Φx⟩; what is left is the variance about it.
        explained = (fit * sums.moments).sum(0) / sums.count
        weights = self.weights.cpu() * self.mask.cpu()
        weights = weights / weights.flatten(1).sum(1).reshape(-1, *(1,) * (weights.ndim - 1))
        sizes = sums.moments[0] / sums.count + sums.first  # mean over time at every cell
        mean = (weights * sizes).flatten(1).sum(1)
        shift = mean.reshape(-1, *(1,) * (weights.ndim - 1))
        square = sums.squares / sums.count
        if self.climatology.shape[0]:
            variance = (weights * (square - explained)).flatten(1).sum(1)
            fit[0] += sums.first - shift
            self.climatology.copy_(torch.where(self.mask.cpu(), fit, torch.zeros_like(fit)))
        else:
            # ⟨(x − μ)²⟩ with x = first + d: ⟨d²⟩ + 2⟨d⟩(first − μ) + (first − μ)²
            away = sums.first - shift
            about = square + 2 * sums.moments[0] / sums.count * away + away**2
            variance = (weights * about).flatten(1).sum(1)
        std = variance.clamp(min=0).sqrt()
        for group in self.groups:
            channels = list(group)
            std[channels] = std[channels].square().mean().sqrt()
        # Rounding leaves a constant field a tiny variance, by which nothing should be divided.
        flat = std <= 1e-7 * mean.abs()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(flat, torch.ones_like(std), std))
        self.fitted.fill_(True)


@dataclass
class _Sums:
    """Running sums of a fit, float64: Φᵀ Φ (K, K), Φᵀ d (K, C, *space), Σd², with d = x − the first frame."""

    gram: Tensor
    moments: Tensor
    squares: Tensor
    first: Tensor
    mask: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, terms: int, mask: Tensor) -> "_Sums":
        valid = mask.cpu()
        blank = torch.zeros(valid.shape, dtype=torch.float64)
        moments = torch.zeros(terms, *valid.shape, dtype=torch.float64)
        return cls(torch.zeros(terms, terms, dtype=torch.float64), moments, blank, blank.clone(), valid)

    def add(self, x: Tensor, basis: Tensor) -> None:
        values = x.detach().cpu().double().reshape(-1, *self.mask.shape)
        values = torch.where(self.mask, values, torch.zeros_like(values))
        if values.shape[0] == 0:
            return
        if not torch.isfinite(values).all():
            channel = int((~torch.isfinite(values)).flatten(2).any(2).any(0).nonzero()[0, 0])
            raise ValueError(
                f"found values that are not finite in channel {channel} of the training frames; wanted "
                "numbers in every valid cell. Usual fix: run datasets.check, which tells where they are"
            )
        if self.count == 0:
            self.first = values[0].clone()
        values = values - self.first
        self.gram += basis.T @ basis
        self.moments += torch.tensordot(basis.T, values, dims=1)
        self.squares += values.square().sum(0)
        self.count += values.shape[0]
