"""Conduction of heat: the temperature T spreads with the diffusivity κ.

    T_t = κ ∇²T

A wave of wavenumber k decays as exp(−κ k² t), which the exponential solver reproduces to round-off at any step. The
mean ⟨T⟩ is conserved; the variance ⟨(T − ⟨T⟩)²⟩ falls at the rate 2κ⟨|∇T|²⟩. The law is linear and the same
everywhere: sums, multiples and smoothed copies of solutions are solutions, and no residual can tell them from the
truth.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Fate, Usual, mirror, register, translate
from .galerkin import Galerkin


@register("heat")
class Heat(Galerkin):
    """Heat conduction on a periodic box of one, two or three axes; one variable, the temperature in K.

    Args:
        grid: Periodic grid, in m.
        diffusivity: κ, m2 s-1. With the default of 0.05 a wave of k = 2 m-1 is halved in 3.5 s.
        modes: Largest kept mode number (see :class:`Galerkin`).
    """

    variables = ("temperature",)
    units: ClassVar[Mapping[str, str]] = {"temperature": "K"}
    defaults: ClassVar[Mapping[str, float]] = {"diffusivity": 0.05}
    parameter_units: ClassVar[Mapping[str, str]] = {"diffusivity": "m2 s-1"}
    nonnegative = ("diffusivity",)
    quantities: ClassVar[Mapping[str, str]] = {"mean": "K", "variance": "K2"}
    laws: ClassVar[Mapping[str, Fate]] = {"mean": "conserved", "variance": "falling"}
    usual = Usual(dimension=2, length=2 * math.pi, resolution=64, interval=0.2)

    @property
    def dt(self) -> float:
        """Infinite: every step is exact."""
        return math.inf

    def linear(self) -> Tensor:
        return -self.parameters["diffusivity"] * self.k2

    def nonlinear(self, w: Tensor) -> Tensor:
        return torch.zeros_like(w)

    def flux(self, u: Tensor) -> Tensor:
        return u.new_zeros(*u.shape[: -self.grid.ndim - 1], self.grid.ndim, 1, *self.grid.shape)

    def diffused(self, u: Tensor) -> Tensor:
        return self.parameters["diffusivity"] * u

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``mean`` ⟨T⟩ (K) and ``variance`` ⟨(T − ⟨T⟩)²⟩ (K2)."""
        self.check(u)
        mean = self.mean(u)[..., 0]
        return {"mean": mean, "variance": self.mean(u.to(torch.float64) ** 2)[..., 0] - mean**2}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "reflection": mirror, "multiple": lambda u: -2 * u + 1}
