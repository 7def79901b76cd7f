"""The reaction of Gray and Scott: u feeds v, v eats u, and patterns grow, split and wander.

    u_t = D_u ∇²u − r u v² + F (1 − u)
    v_t = D_v ∇²v + r u v² − (F + k) v

u is fed at the rate F from a reservoir at 1, v is washed out at F + k (Pearson 1993, doi:10.1126/science.261.5118.189).
u = 1, v = 0 is stable: patterns need a finite start. The reaction keeps u + v, so that the total is budgeted by feed
and wash-out alone,

    d⟨u + v⟩/dt = F (1 − ⟨u⟩) − (F + k)⟨v⟩,

whatever the pattern. From 0 ≤ u ≤ 1 and 0 ≤ v, both stay positive and u stays below 1.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Usual, mirror, register, translate
from .galerkin import Galerkin
from .smooth import smooth


@register("gray_scott")
class GrayScott(Galerkin):
    """Gray–Scott on a periodic box of one, two or three axes; variables u and v, concentrations (1).

    Args:
        grid: Periodic grid, in m.
        diffusivity_u, diffusivity_v: D_u and D_v, m2 s-1.
        feed: F, s-1.
        kill: k, s-1.
        rate: r, s-1.
        modes: Largest kept mode number (see :class:`Galerkin`).

    Good values, with D_u = 2e-5, D_v = 1e-5 and r = 1 on a box of 1 m and 64 nodes: F = 0.04, k = 0.06 (the default)
    grows worms, F = 0.03, k = 0.062 spots that divide, F = 0.014, k = 0.045 waves that never settle.
    """

    variables = ("u", "v")
    quantities: ClassVar[Mapping[str, str]] = {"total": "1", "product": "1"}
    units: ClassVar[Mapping[str, str]] = {"u": "1", "v": "1"}
    defaults: ClassVar[Mapping[str, float]] = {
        "diffusivity_u": 2e-5,
        "diffusivity_v": 1e-5,
        "feed": 0.04,
        "kill": 0.06,
        "rate": 1.0,
    }
    parameter_units: ClassVar[Mapping[str, str]] = {
        "diffusivity_u": "m2 s-1",
        "diffusivity_v": "m2 s-1",
        "feed": "s-1",
        "kill": "s-1",
        "rate": "s-1",
    }
    nonnegative = ("diffusivity_u", "diffusivity_v", "feed", "kill", "rate")
    usual = Usual(dimension=2, length=1.0, resolution=64, interval=20.0)
    degree = 3

    @property
    def dt(self) -> float:
        p = self.parameters  # where u + v <= 1 no rate of the reaction exceeds r; the scheme is stable to 2.8
        return 2 / max(p["rate"], p["feed"] + p["kill"], 1e-300)

    @property
    def spin_up_time(self) -> float:
        """20 times the time 1/F in which the reservoir renews the tank: patterns have spread."""
        return 20 / max(self.parameters["feed"], 1e-3)

    def linear(self) -> Tensor:
        p = self.parameters
        return torch.stack(
            (-p["diffusivity_u"] * self.k2 - p["feed"], -p["diffusivity_v"] * self.k2 - p["feed"] - p["kill"])
        )

    def nonlinear(self, w: Tensor) -> Tensor:
        u, v = self.modes.synthesise(w, self.nodes).unbind(dim=-self.grid.ndim - 1)
        reaction = self.parameters["rate"] * self.modes.analyse(u * v * v)
        return torch.stack((self.constant("supply", w) - reaction, reaction), dim=-self.grid.ndim - 1)

    @property
    def supply(self) -> Tensor:
        """Amplitudes of F: all in the mean."""
        out = torch.zeros(self.modes.shape, dtype=torch.complex128)
        out[(0,) * self.grid.ndim] = self.parameters["feed"]
        return out

    def flux(self, u: Tensor) -> Tensor:
        return u.new_zeros(*u.shape[: -self.grid.ndim - 1], self.grid.ndim, 2, *self.grid.shape)

    def diffused(self, u: Tensor) -> Tensor:
        D = torch.tensor([self.parameters["diffusivity_u"], self.parameters["diffusivity_v"]], dtype=u.dtype)
        return D.to(u.device).reshape(-1, *(1,) * self.grid.ndim) * u

    def source(self, u: Tensor) -> Tensor:
        p = self.parameters
        a, b = u.unbind(dim=-self.grid.ndim - 1)
        r = p["rate"] * a * b * b
        return torch.stack((p["feed"] * (1 - a) - r, r - (p["feed"] + p["kill"]) * b), dim=-self.grid.ndim - 1)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``total`` ⟨u + v⟩ and ``product`` ⟨v⟩ (1)."""
        self.check(u)
        a, b = self.mean(u).unbind(dim=-1)
        return {"total": a + b, "product": b}

    def budget(self, u: Tensor) -> dict[str, Tensor]:
        """What feed and wash-out do to the total, in s-1 and float64; their sum is d⟨u + v⟩/dt."""
        self.check(u)
        a, b = self.mean(u).unbind(dim=-1)
        p = self.parameters
        return {"feed": p["feed"] * (1 - a), "washout": -(p["feed"] + p["kill"]) * b}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"translation": translate, "reflection": mirror}

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A full tank with smooth random patches in which half of u is gone and v is a quarter."""
        field = smooth(self.grid, generator, (batch,))
        patch = torch.sigmoid(6 * (field - 0.8))  # about a fifth of the box
        return torch.stack((1 - patch / 2, patch / 4), dim=1).to(dtype)
