"""The equation of Allen and Cahn: two phases, u = ±1, that part and then coarsen.

    u_t = ε ∇²u + r (u − u³)

It is the steepest descent of the free energy

    𝓕 = ⟨ε |∇u|²/2 + r (u² − 1)²/4⟩,      d𝓕/dt = −⟨u_t²⟩ ≤ 0,

so 𝓕 falls along every solution: an inequality that a forecast can be held to. Nothing else is conserved. A flat
interface is u = tanh(x √(r/2ε)), steady; a curved one moves towards its centre of curvature at the speed ε times the
curvature (Allen & Cahn 1979, doi:10.1016/0001-6160(79)90196-2).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Fate, Usual, mirror, register, translate
from .galerkin import Galerkin
from .operators import grad


@register("allen_cahn")
class AllenCahn(Galerkin):
    """Allen–Cahn on a periodic box of one, two or three axes; one variable, the order parameter u (1).

    Args:
        grid: Periodic grid, in m.
        diffusivity: ε, m2 s-1.
        rate: r, s-1.
        modes: Largest kept mode number (see :class:`Galerkin`).

    Good values: interfaces are 2√(2ε/r) wide, and four cells should fit into one. The defaults (0.04 m) suit 128 nodes
    on a box of 2 m. The often used ε = 1e-4 m2 s-1, r = 5 s-1 on that box need 512.
    """

    variables = ("u",)
    units: ClassVar[Mapping[str, str]] = {"u": "1"}
    defaults: ClassVar[Mapping[str, float]] = {"diffusivity": 1e-3, "rate": 5.0}
    parameter_units: ClassVar[Mapping[str, str]] = {"diffusivity": "m2 s-1", "rate": "s-1"}
    nonnegative = ("diffusivity", "rate")
    quantities: ClassVar[Mapping[str, str]] = {"mean": "1", "free_energy": "s-1"}
    laws: ClassVar[Mapping[str, Fate]] = {"free_energy": "falling"}
    usual = Usual(dimension=1, length=2.0, resolution=128, interval=0.05)
    degree = 3

    @property
    def dt(self) -> float:
        # −3 r u² is the stiffest rate of the reaction; states above |u| = 1 fall back to it.
        return 0.1 / max(self.parameters["rate"], 1e-300)

    def linear(self) -> Tensor:
        return self.parameters["rate"] - self.parameters["diffusivity"] * self.k2

    def nonlinear(self, w: Tensor) -> Tensor:
        return -self.parameters["rate"] * self.modes.analyse(self.modes.synthesise(w, self.nodes) ** 3)

    def flux(self, u: Tensor) -> Tensor:
        return u.new_zeros(*u.shape[: -self.grid.ndim - 1], self.grid.ndim, 1, *self.grid.shape)

    def diffused(self, u: Tensor) -> Tensor:
        return self.parameters["diffusivity"] * u

    def source(self, u: Tensor) -> Tensor:
        return self.parameters["rate"] * (u - u**3)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``mean`` ⟨u⟩ (1) and ``free_energy`` 𝓕 (s-1)."""
        self.check(u)
        u = u.to(torch.float64)
        v = u.squeeze(-self.grid.ndim - 1)
        slope = grad(v, self.grid).square().sum(dim=-self.grid.ndim - 1)
        F = self.parameters["diffusivity"] * slope / 2 + self.parameters["rate"] * (v**2 - 1) ** 2 / 4
        return {"mean": self.mean(v), "free_energy": self.mean(F)}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "reflection": mirror, "exchange of phases": torch.neg}
