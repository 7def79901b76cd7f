"""The equation of Korteweg and de Vries: long waves whose steepening and dispersion balance.

    u_t + α u u_x + β u_xxx = 0

Solitons travel unchanged and pass through one another (Zabusky & Kruskal 1965, doi:10.1103/PhysRevLett.15.240):

    u = (12 β κ²/α) sech²(κ (x − x₀ − 4βκ² t)).

Of the infinitely many conserved means, three are reported: mass ⟨u⟩, momentum ⟨u²⟩/2 and energy
⟨α u³/6 − β u_x²/2⟩. The Galerkin method conserves the first to round-off, and the second but for the error of the time
step; the third holds as far as u³ is resolved.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Fate, Usual, register, translate
from .galerkin import Galerkin
from .grid import Grid
from .operators import derivative

CFL = 1.0  # dt·k_max·|α| U: stable to 2.8; at 1 the error over the usual interval is about 1e-5


@register("kdv")
class KdV(Galerkin):
    """Korteweg–de Vries on a periodic axis; one variable, u in m s-1.

    The defaults are those of Zabusky and Kruskal: α = 1, β = 0.022² on a box of length 2; cos πx then breaks up into
    eight solitons within 3.6/π s.

    Args:
        grid: Periodic grid of one axis, in m.
        steepening: α, 1.
        dispersion: β, m3 s-1.
        speed: Bound U on |u|, m s-1, that sets the time step dt = 1 / (k_max |α| U); 5 by default, with initial
            states of rms 1 m s-1, from which solitons of up to 4.1 were seen to grow.
        modes: Largest kept mode number (see :class:`Galerkin`).
    """

    variables = ("u",)
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1"}
    defaults: ClassVar[Mapping[str, float]] = {"steepening": 1.0, "dispersion": 0.022**2}
    parameter_units: ClassVar[Mapping[str, str]] = {"steepening": "1", "dispersion": "m3 s-1"}
    quantities: ClassVar[Mapping[str, str]] = {"mass": "m s-1", "momentum": "m2 s-2", "energy": "m3 s-3"}
    laws: ClassVar[Mapping[str, Fate]] = {"mass": "conserved", "momentum": "conserved", "energy": "conserved"}
    usual = Usual(dimension=1, length=2.0, resolution=128, interval=0.05)
    dimensions = (1,)

    def __init__(
        self, grid: Grid, *, speed: float = 5.0, modes: int | Sequence[int] | None = None, **parameters: float
    ) -> None:
        super().__init__(grid, modes, **parameters)
        self.speed = self.bound(speed)

    @property
    def dt(self) -> float:
        return CFL / (self.kmax * max(abs(self.parameters["steepening"]) * self.speed, 1e-300))

    def linear(self) -> Tensor:
        return -self.parameters["dispersion"] * self.gradient[0] ** 3

    def nonlinear(self, w: Tensor) -> Tensor:
        u = self.modes.synthesise(w, self.nodes)
        return -self.parameters["steepening"] * self.constant("gradient", w)[0] * self.modes.analyse(u * u / 2)

    def flux(self, u: Tensor) -> Tensor:
        uxx = derivative(u, self.grid, self.grid.names[0], 2)
        return (self.parameters["steepening"] * u * u / 2 + self.parameters["dispersion"] * uxx).unsqueeze(-3)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``mass`` ⟨u⟩ (m s-1), ``momentum`` ⟨u²⟩/2 (m2 s-2) and ``energy`` (m3 s-3)."""
        self.check(u)
        u = u.to(torch.float64)
        ux = derivative(u, self.grid, self.grid.names[0])
        energy = self.parameters["steepening"] * u**3 / 6 - self.parameters["dispersion"] * ux**2 / 2
        means = (self.mean(f)[..., 0] for f in (u, u**2 / 2, energy))
        return dict(zip(("mass", "momentum", "energy"), means, strict=True))

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate}
