"""Burgers' equation: the simplest law that makes shocks.

    u_t + (u²/2)_x = ν u_xx

- Momentum ⟨u⟩ is conserved to round-off, the law being in flux form.
- Energy ⟨u²⟩/2 falls at the rate ν⟨u_x²⟩, which in a shock of jump J stays at J³/12 per shock, however small ν is.
- A steady shock is u = c − (J/2) tanh(J (x − ct)/4ν): about 4ν/J wide, a few grid cells of which must fit into it.
- The substitution u = −2ν φ_x/φ of Cole (1951, doi:10.1090/qam/42889) and Hopf (1950,
  doi:10.1002/cpa.3160030302) turns it into φ_t = ν φ_xx, and so gives exact solutions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .balance import Balance
from .equation import Fate, Usual, register, translate
from .galerkin import Galerkin
from .grid import Grid

CFL = 1.5  # dt·k_max·U: stable to 2.8


@register("burgers")
class Burgers(Galerkin):
    """Burgers' equation on a periodic axis; one variable, u in m s-1.

    Args:
        grid: Periodic grid of one axis, in m.
        viscosity: ν, m2 s-1.
        speed: Bound U on |u|, m s-1, that sets the time step dt = 1.5 / (k_max U); 4 by default, with initial states
            of rms 1 m s-1. No velocity grows above its first maximum.
        modes: Largest kept mode number (see :class:`Galerkin`).

    With the default viscosity of 0.02 on [0, 2π) shocks form from the random initial states within 0.2 s. On 256 nodes
    the power spectrum then falls by 6.5 decades to the cut-off, and the error of the own time step is 5e-8 a frame.
    """

    variables = ("u",)
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1"}
    defaults: ClassVar[Mapping[str, float]] = {"viscosity": 0.02}
    parameter_units: ClassVar[Mapping[str, str]] = {"viscosity": "m2 s-1"}
    nonnegative = ("viscosity",)
    quantities: ClassVar[Mapping[str, str]] = {"momentum": "m s-1", "energy": "m2 s-2"}
    laws: ClassVar[Mapping[str, Fate]] = {"momentum": "conserved", "energy": "falling"}
    usual = Usual(dimension=1, length=2 * math.pi, resolution=256, interval=0.1)
    dimensions = (1,)

    def __init__(
        self, grid: Grid, *, speed: float = 4.0, modes: int | Sequence[int] | None = None, **parameters: float
    ) -> None:
        super().__init__(grid, modes, **parameters)
        self.speed = self.bound(speed)

    @property
    def dt(self) -> float:
        return CFL / (self.kmax * self.speed)

    def linear(self) -> Tensor:
        return -self.parameters["viscosity"] * self.k2

    def nonlinear(self, w: Tensor) -> Tensor:
        u = self.modes.synthesise(w, self.nodes)
        return -self.constant("gradient", w)[0] * self.modes.analyse(u * u / 2)

    def flux(self, u: Tensor) -> Tensor:
        return (u * u / 2).unsqueeze(-3)

    def diffused(self, u: Tensor) -> Tensor:
        return self.parameters["viscosity"] * u

    def entropy(self, u: Tensor) -> Balance:
        """Energy u²/2 with the flux u³/3; the viscosity ν spreads it, and takes ν u_x² away."""
        return Balance(u**2 / 2, (u**3 / 3).unsqueeze(-3), self.parameters["viscosity"] * u**2 / 2)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``momentum`` ⟨u⟩ (m s-1) and ``energy`` ⟨u²⟩/2 (m2 s-2)."""
        self.check(u)
        return {"momentum": self.mean(u)[..., 0], "energy": self.mean(u.to(torch.float64) ** 2)[..., 0] / 2}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "reflection": lambda u: -u.flip(-1)}
