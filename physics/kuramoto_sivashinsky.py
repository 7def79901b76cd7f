"""The equation of Kuramoto and Sivashinsky: chaos in one dimension.

    u_t = −u u_x − α u_xx − β u_xxxx

Long waves (k² < α/β) grow, since α stands with the sign of a negative viscosity; short ones are damped by β; steepening
carries energy from the first to the second. On a box much longer than the fastest growing wave, 2π√(2β/α), the motion
is chaotic (Kuramoto 1978, doi:10.1143/PTPS.64.346; Sivashinsky 1977, doi:10.1016/0094-5765(77)90096-0).

The mean ⟨u⟩ is conserved to round-off. The energy ⟨u²⟩/2 is budgeted: d/dt ⟨u²⟩/2 = α⟨u_x²⟩ − β⟨u_xx²⟩.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Fate, Usual, register, translate
from .galerkin import Galerkin
from .grid import Grid
from .operators import derivative

CFL = 1.0  # dt·k_max·U: stable to 2.8


@register("kuramoto_sivashinsky")
class KuramotoSivashinsky(Galerkin):
    """Kuramoto–Sivashinsky on a periodic axis; one variable, u in m s-1.

    Args:
        grid: Periodic grid of one axis, in m.
        instability: α, m2 s-1.
        damping: β, m4 s-1.
        speed: Bound U on |u|, m s-1, that sets the time step dt = 1 / (k_max U). None takes 4 α √(α/β): the largest
            value met on the attractor was 3.3.
        modes: Largest kept mode number (see :class:`Galerkin`).

    With α = β = 1 on a box of 32π m and 96 nodes the power spectrum falls by 5 decades to the cut-off, the rms is
    1.3 m s-1, and errors grow tenfold in 26 s. More nodes only make the law stiffer.
    """

    variables = ("u",)
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1"}
    defaults: ClassVar[Mapping[str, float]] = {"instability": 1.0, "damping": 1.0}
    parameter_units: ClassVar[Mapping[str, str]] = {"instability": "m2 s-1", "damping": "m4 s-1"}
    positive = ("instability", "damping")
    quantities: ClassVar[Mapping[str, str]] = {"mean": "m s-1", "energy": "m2 s-2"}
    laws: ClassVar[Mapping[str, Fate]] = {"mean": "conserved"}
    usual = Usual(dimension=1, length=32 * math.pi, resolution=96, interval=1.0)
    dimensions = (1,)

    def __init__(
        self, grid: Grid, *, speed: float | None = None, modes: int | Sequence[int] | None = None, **parameters: float
    ) -> None:
        super().__init__(grid, modes, **parameters)
        a, b = self.parameters["instability"], self.parameters["damping"]
        self.unit = a * math.sqrt(a / b)  # of velocity
        self.speed = 4 * self.unit if speed is None else self.bound(speed)

    @property
    def dt(self) -> float:
        return CFL / (self.kmax * self.speed)

    @property
    def spin_up_time(self) -> float:
        """50 growth times 4β/α² of the fastest growing wave."""
        return 200 * self.parameters["damping"] / self.parameters["instability"] ** 2

    def linear(self) -> Tensor:
        return self.parameters["instability"] * self.k2 - self.parameters["damping"] * self.k2**2

    def nonlinear(self, w: Tensor) -> Tensor:
        u = self.modes.synthesise(w, self.nodes)
        return -self.constant("gradient", w)[0] * self.modes.analyse(u * u / 2)

    def flux(self, u: Tensor) -> Tensor:
        x = self.grid.names[0]
        growth = self.parameters["instability"] * derivative(u, self.grid, x, 1)
        return (u * u / 2 + growth + self.parameters["damping"] * derivative(u, self.grid, x, 3)).unsqueeze(-3)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``mean`` ⟨u⟩ (m s-1) and ``energy`` ⟨u²⟩/2 (m2 s-2)."""
        self.check(u)
        return {"mean": self.mean(u)[..., 0], "energy": self.mean(u.to(torch.float64) ** 2)[..., 0] / 2}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "reflection": lambda u: -u.flip(-1)}

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random smooth states of mean 0 and an rms of α √(α/β), which is about that on the attractor."""
        return self.unit * super().initial(generator, batch, dtype)
