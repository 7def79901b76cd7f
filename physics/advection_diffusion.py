"""Advection and diffusion of a tracer c in a uniform wind.

    c_t + U·∇c = κ ∇²c

In the frame that moves with U this is conduction of heat (`heat.py`): a wave of wavenumber k turns at the rate U·k and
decays as exp(−κ k² t), both exact in the exponential solver at any step. Mean and variance are as there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Usual, register, translate
from .grid import Grid
from .heat import Heat


@register("advection_diffusion")
class AdvectionDiffusion(Heat):
    """Advection and diffusion on a periodic box of one, two or three axes; one variable, the tracer (1).

    Args:
        grid: Periodic grid, in m.
        diffusivity: κ, m2 s-1; 0 is pure advection.
        velocity_x, velocity_y, velocity_z: Components of U, m s-1. Those of axes that the grid lacks are to be 0.
        modes: Largest kept mode number (see :class:`Galerkin`).
    """

    variables = ("tracer",)
    quantities: ClassVar[Mapping[str, str]] = {"mean": "1", "variance": "1"}
    units: ClassVar[Mapping[str, str]] = {"tracer": "1"}
    defaults: ClassVar[Mapping[str, float]] = {
        "diffusivity": 0.01,
        "velocity_x": 1.0,
        "velocity_y": 0.0,
        "velocity_z": 0.0,
    }
    parameter_units: ClassVar[Mapping[str, str]] = {
        "diffusivity": "m2 s-1",
        "velocity_x": "m s-1",
        "velocity_y": "m s-1",
        "velocity_z": "m s-1",
    }
    usual = Usual(dimension=1, length=2 * math.pi, resolution=128, interval=0.2)

    def __init__(self, grid: Grid, modes: int | Sequence[int] | None = None, **parameters: float) -> None:
        super().__init__(grid, modes, **parameters)
        U = [self.parameters[f"velocity_{x}"] for x in ("x", "y", "z")]
        if any(U[grid.ndim :]):
            raise ValueError(
                f"advection_diffusion: found the velocity {tuple(U)} on {grid.ndim} axes, wanted 0 along the axes that "
                "the grid lacks"
            )
        self.wind = torch.tensor(U[: grid.ndim], dtype=torch.float64)

    def linear(self) -> Tensor:
        wind = self.wind.to(self.gradient.dtype).reshape(-1, *(1,) * self.grid.ndim)
        return super().linear() - (wind * self.gradient).sum(dim=0)

    def flux(self, u: Tensor) -> Tensor:
        return self.wind.to(u).reshape(-1, 1, *(1,) * self.grid.ndim) * u.unsqueeze(-self.grid.ndim - 2)

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "multiple": lambda u: -2 * u + 1}
