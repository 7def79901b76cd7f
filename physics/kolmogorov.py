"""Kolmogorov flow: two-dimensional turbulence driven by a sinusoidal body force, in vorticity form.

    ω_t + u·∇ω = ν ∇²ω − μ ω + ∇×F,      F = A sin(k_f y) x̂,      ∇×F = −A k_f cos(k_f y)

on a doubly periodic box with axes (y, x). Signs: ω = ∂v/∂x − ∂u/∂y; the stream function obeys ∇²ψ = ω,
u = −∂ψ/∂y, v = ∂ψ/∂x. The mean velocity is nought by choice of the frame, and so is the mean vorticity, as of
every periodic velocity.

Budgets of the area means E = ⟨u² + v²⟩/2 (energy), Z = ⟨ω²⟩/2 (enstrophy) and P = ⟨|∇ω|²⟩/2 (palinstrophy):

    dE/dt = ⟨u·F⟩ − 2ν Z − 2μ E          dZ/dt = ⟨ω ∇×F⟩ − 2ν P − 2μ Z

Advection takes the form of Basdevant (1983, doi:10.1016/0021-9991(83)90017-3),

    u·∇ω = (∂xx − ∂yy)(uv) + ∂xy(v² − u²),

which needs four transforms where the plain form needs five.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Fate, Usual, register
from .galerkin import Galerkin
from .grid import Grid

CFL = 2.5  # dt·k_max·U: the scheme is stable to 2.8, and at 2.5 its error over 0.2 time units is still 1e-6


@register("kolmogorov")
class Kolmogorov(Galerkin):
    """Forced two-dimensional turbulence; one variable, the vorticity in s-1.

    Args:
        grid: Doubly periodic grid with axes (y, x), in m.
        viscosity: ν, m2 s-1.
        drag: μ, linear (Rayleigh) friction, s-1.
        forcing: A, amplitude of the body force, m s-2.
        wavenumber: Number of periods of the force in the box; k_f = 2π wavenumber / L_y.
        speed: Bound U on |u| + |v|, m s-1, that sets the time step dt = 2.5 / (k_max U). None takes
            14 √(A / k_f), 7 m s-1 by default; the largest value met was 6.4 in 120 s at a viscosity of 0.0015.
        modes: Largest kept mode number; None keeps all the grid holds (see :class:`Galerkin`).

    Good values on the box [0, 2π)², measured with A = 1, μ = 0.1, k_f = 4 and frames 0.2 apart. `Decades` is
    how far the one-dimensional power spectrum of vorticity (the lesser fall of x and y) has dropped at mode
    number k, and `persistence` the error of an unchanged field in standard deviations after 1, 5, 10 and 20
    frames:

    ======  =========  =====  ==============  =============================  =======================
    grid    viscosity  modes  rms vorticity   decades at k                   persistence
    ======  =========  =====  ==============  =============================  =======================
    64²     0.012      None   3.5             4.0 at 19; 5.5 at 31           0.22, 0.79, 1.04, 1.13
    256²    0.0015     85     4.6             4.0 at 50; 4.8 at 63           0.55, 1.08, 1.3, 1.5
    256²    0.001      85     4.1             4.0 at 58; 4.4 at 85           0.58, 1.12, 1.3, 1.2
    ======  =========  =====  ==============  =============================  =======================
    """

    variables = ("vorticity",)
    units: ClassVar[Mapping[str, str]] = {"vorticity": "s-1"}
    parameter_units: ClassVar[Mapping[str, str]] = {
        "viscosity": "m2 s-1",
        "drag": "s-1",
        "forcing": "m s-2",
        "wavenumber": "1",
    }
    quantities: ClassVar[Mapping[str, str]] = {
        "mean_vorticity": "s-1",
        "energy": "m2 s-2",
        "enstrophy": "s-2",
        "palinstrophy": "m-2 s-2",
    }
    laws: ClassVar[Mapping[str, Fate]] = {"mean_vorticity": "conserved"}
    usual = Usual(dimension=2, length=2 * math.pi, resolution=64, interval=0.2)
    dimensions = (2,)

    def __init__(
        self,
        grid: Grid,
        *,
        viscosity: float = 0.012,
        drag: float = 0.1,
        forcing: float = 1.0,
        wavenumber: float = 4,
        speed: float | None = None,
        modes: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(grid, modes, viscosity=viscosity, drag=drag, forcing=forcing, wavenumber=wavenumber)
        for name, value in (("viscosity", viscosity), ("drag", drag)):
            if value < 0:
                raise ValueError(f"kolmogorov: found {name}={value}, wanted 0 or more")
        self.ky, self.kx = self.modes.wavenumbers()
        most = self.modes.keep[0]
        if wavenumber != int(wavenumber) or not 1 <= wavenumber <= most:
            raise ValueError(
                f"kolmogorov: found wavenumber={wavenumber}, wanted a whole number from 1 to {most}, the "
                "largest mode kept along y"
            )
        kf = 2 * math.pi * wavenumber / grid.length[0]
        self.speed = 14 * math.sqrt(abs(forcing) / kf) if speed is None else float(speed)
        if not self.speed > 0:
            raise ValueError(f"kolmogorov: found speed={speed}, forcing={forcing}, wanted a positive speed")
        self.kf = kf
        y = grid.meshgrid()[0]
        self.force = forcing * torch.sin(kf * y)
        self.curl_force = self.modes.analyse(-forcing * kf * torch.cos(kf * y))
        inverse = torch.where(self.k2 > 0, 1 / self.k2, 0.0)  # the mean has no stream function
        self.biot_savart = torch.stack((1j * self.ky * inverse, -1j * self.kx * inverse))  # (û, v̂) from ω̂
        # −(u·∇ω)^ from the amplitudes of (uv, v² − u²); complex, since a mixed product would convert at each call.
        self.advection = torch.stack((self.kx**2 - self.ky**2, self.kx * self.ky)).to(torch.complex128)

    @property
    def dt(self) -> float:
        return CFL / (self.kmax * self.speed)

    @property
    def spin_up_time(self) -> float:
        """40 s with the default drag: eight times the damping time 1/(2μ) of energy, and at least 20 s."""
        mu = self.parameters["drag"]
        return max(20.0, 4 / mu) if mu else 40.0

    def linear(self) -> Tensor:
        return -self.parameters["viscosity"] * self.k2 - self.parameters["drag"]

    def nonlinear(self, w: Tensor) -> Tensor:
        n = self.modes.product_shape
        u, v = self.modes.synthesise(self.constant("biot_savart", w) * w, n).unbind(dim=-3)
        pq = self.modes.analyse(torch.stack((u * v, (v - u) * (v + u)), dim=-3))
        p, q = (self.constant("advection", w) * pq).unbind(dim=-3)
        return (p + q + self.constant("curl_force", w))[..., None, :, :]

    def velocity(self, u: Tensor) -> Tensor:
        """Vorticity (…, 1, y, x) -> velocity (u, v) as (…, 2, y, x), in m s-1."""
        self.check(u)
        w = self.modes.analyse(u)
        return self.modes.synthesise(self.constant("biot_savart", w) * w)

    def vorticity(self, velocity: Tensor) -> Tensor:
        """Velocity (…, 2, y, x) -> vorticity ∂v/∂x − ∂u/∂y as (…, 1, y, x), in s-1."""
        wanted = (2, *self.grid.shape)
        if tuple(velocity.shape[-3:]) != wanted:
            raise ValueError(f"kolmogorov: found a velocity of shape {tuple(velocity.shape)}, wanted (…, {wanted})")
        u, v = self.modes.analyse(velocity).unbind(dim=-3)
        w = 1j * (self.kx.to(velocity) * v - self.ky.to(velocity) * u)
        return self.modes.synthesise(w)[..., None, :, :]

    def flux(self, u: Tensor) -> Tensor:
        return self.velocity(u).unsqueeze(-3) * u.unsqueeze(-4)

    def diffused(self, u: Tensor) -> Tensor:
        return self.parameters["viscosity"] * u

    def source(self, u: Tensor) -> Tensor:
        return self.modes.synthesise(self.constant("curl_force", u)) - self.parameters["drag"] * u

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Area means in float64: ``mean_vorticity`` (s-1), ``energy`` (m2 s-2), ``enstrophy`` (s-2) and
        ``palinstrophy`` (m-2 s-2)."""
        self.check(u)
        u = u.to(torch.float64)
        w = self.modes.analyse(u)
        gradient = self.modes.synthesise(1j * torch.cat((self.kx.to(u) * w, self.ky.to(u) * w), dim=-3))
        return {
            "mean_vorticity": u.mean(dim=(-3, -2, -1)),
            "energy": (self.velocity(u) ** 2).sum(dim=-3).mean(dim=(-2, -1)) / 2,
            "enstrophy": (u**2).mean(dim=(-3, -2, -1)) / 2,
            "palinstrophy": (gradient**2).sum(dim=-3).mean(dim=(-2, -1)) / 2,
        }

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Shifts along x; and x → −x with half a period of the force along y, which turns ω into −ω."""
        n, m = self.grid.shape[0], int(2 * self.parameters["wavenumber"])
        maps: dict[str, Callable[[Tensor], Tensor]] = {"translation": lambda u: u.roll(1, -1)}
        if n % m == 0:
            maps["shift and reflection"] = lambda u: -u.flip(-1).roll(n // m, -2)
        return maps

    def budget(self, u: Tensor) -> dict[str, Tensor]:
        """Rates of change of energy (m2 s-3) and of enstrophy (s-3), term by term, in float64.

        Each of ``energy_input``, ``energy_dissipation``, ``energy_drag`` (and the same for enstrophy)
        carries the sign with which it enters the rate of change, so that their sum is dE/dt or dZ/dt.
        """
        u = u.to(torch.float64)
        i = self.invariants(u)
        nu, mu = self.parameters["viscosity"], self.parameters["drag"]
        curl = self.modes.synthesise(self.curl_force.to(u.device))
        return {
            "energy_input": (self.velocity(u)[..., 0, :, :] * self.force.to(u)).mean(dim=(-2, -1)),
            "energy_dissipation": -2 * nu * i["enstrophy"],
            "energy_drag": -2 * mu * i["energy"],
            "enstrophy_input": (u[..., 0, :, :] * curl).mean(dim=(-2, -1)),
            "enstrophy_dissipation": -2 * nu * i["palinstrophy"],
            "enstrophy_drag": -2 * mu * i["enstrophy"],
        }

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random vorticity with a smooth spectrum about the forced wavenumber and an rms of 1.5 √(A k_f).

        With forcing 0 the rms is 3 s-1. The field is drawn on the generator's device.
        """
        noise = torch.randn(
            batch, 1, *self.grid.shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        k2 = self.k2.to(noise) / self.kf**2
        u = self.modes.synthesise(self.modes.analyse(noise) * k2 * torch.exp(-k2))
        rms = 1.5 * math.sqrt(abs(self.parameters["forcing"]) * self.kf) or 3.0
        return (rms * u / u.square().mean(dim=(-2, -1), keepdim=True).sqrt()).to(dtype)
