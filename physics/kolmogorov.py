"""Kolmogorov flow: two-dimensional turbulence driven by a sinusoidal body force, in vorticity form.

    ω_t + u·∇ω = ν ∇²ω − μ ω + ∇×F,      F = A sin(k_f y) x̂,      ∇×F = −A k_f cos(k_f y)

on a doubly periodic box with axes (y, x). Signs: ω = ∂v/∂x − ∂u/∂y; the stream function obeys ∇²ψ = ω, u = −∂ψ/∂y,
v = ∂ψ/∂x. The flow has no mean velocity (it is at rest with the box) and no mean vorticity: periodic velocities
have none, and the equation keeps it so.

Budgets of the area means E = ⟨u² + v²⟩/2 (energy), Z = ⟨ω²⟩/2 (enstrophy) and P = ⟨|∇ω|²⟩/2 (palinstrophy):

    dE/dt = ⟨u·F⟩ − 2ν Z − 2μ E          dZ/dt = ⟨ω ∇×F⟩ − 2ν P − 2μ Z

The method is Fourier–Galerkin with exact, unaliased products; time is ETDRK4. Advection takes the form of Basdevant
(1983, doi:10.1016/0021-9991(83)90017-3), (∂xx − ∂yy)(uv) + ∂xy(v² − u²), which needs four transforms where the
plain form needs five.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .equation import Equation, register
from .grid import Grid
from .modes import Modes
from .stepping import ETDRK4

CFL = 1.0  # of the kept modes: dt·k_max·U


@register("kolmogorov")
class Kolmogorov(Equation):
    """Forced two-dimensional turbulence; one variable, the vorticity in s-1.

    Args:
        grid: Doubly periodic grid with axes (y, x), in m.
        viscosity: ν, m2 s-1.
        drag: μ, linear (Rayleigh) friction, s-1.
        forcing: A, amplitude of the body force, m s-2.
        wavenumber: Number of periods of the force in the box; k_f = 2π wavenumber / L_y.
        speed: Velocity scale U, m s-1, that sets the time step dt = 1 / (k_max U).
        modes: Largest kept mode number of each axis. None keeps every mode of the grid (products are padded to
            3/2 of its size); ``(n - 1) // 3`` is the two-thirds rule.
    """

    variables = ("vorticity",)
    units = {"vorticity": "s-1"}  # noqa: RUF012

    def __init__(
        self,
        grid: Grid,
        *,
        viscosity: float = 0.012,
        drag: float = 0.1,
        forcing: float = 1.0,
        wavenumber: float = 4,
        speed: float = 4.0,
        modes: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            grid, viscosity=viscosity, drag=drag, forcing=forcing, wavenumber=wavenumber, speed=speed
        )
        if grid.ndim != 2:
            raise ValueError(f"kolmogorov: found a grid with axes {grid.names}, wanted two axes (y, x)")
        self.modes = Modes(grid, modes)
        for k in ("viscosity", "drag"):
            if self.parameters[k] < 0:
                raise ValueError(f"kolmogorov: found {k}={self.parameters[k]}, wanted 0 or more")
        if speed <= 0:
            raise ValueError(f"kolmogorov: found speed={speed}, wanted a positive velocity scale")
        m = self.parameters["wavenumber"]
        if m != int(m) or not 1 <= m <= self.modes.keep[0]:
            raise ValueError(
                f"kolmogorov: found wavenumber={m}, wanted a whole number from 1 to {self.modes.keep[0]}, the "
                "largest mode that is kept along y"
            )
        ky, kx = self.modes.wavenumbers()
        k2 = ky**2 + kx**2
        inverse = torch.where(k2 > 0, 1 / k2, 0.0)  # the mean has no stream function
        self._linear = -viscosity * k2 - drag
        self._velocity = torch.stack((1j * ky * inverse, -1j * kx * inverse))  # (û, v̂) = this · ω̂
        self._product = torch.stack((kx**2 - ky**2, kx * ky)).to(torch.complex128)  # −(u·∇ω)^ from (uv, v² − u²)^
        kf = 2 * math.pi * m / grid.length[0]
        y0 = grid.axes[0].coordinates[0]
        y = torch.tensor(grid.axes[0].coordinates, dtype=torch.float64)[:, None]
        self._force = (forcing * torch.sin(kf * y)).expand(grid.shape).clone()
        self._curl = self.modes.analyse((-forcing * kf * torch.cos(kf * y)).expand(grid.shape))
        self._y0 = y0
        self._cache: dict[object, Tensor | ETDRK4] = {}

    @property
    def dt(self) -> float:
        kmax = max(float(k.max()) for k in self.modes.wavenumbers())
        return CFL / (kmax * self.parameters["speed"])

    @property
    def spin_up_time(self) -> float:
        return 40.0

    def rhs(self, u: Tensor) -> Tensor:
        self.check(u)
        w = self.modes.analyse(u[..., 0, :, :])
        linear = self._as("_linear", w)
        return self.modes.synthesise(linear * w + self._nonlinear(w))[..., None, :, :]

    def step(self, u: Tensor, dt: float) -> Tensor:
        return self.advance(u, dt, steps=1)

    def advance(self, u: Tensor, interval: float, steps: int | None = None) -> Tensor:
        self.check(u)
        n = self.steps(interval) if steps is None else steps
        w = self.modes.analyse(u[..., 0, :, :])
        stepper = self._stepper(interval / n, w)
        for _ in range(n):
            w = stepper(w, self._nonlinear)
        return self.modes.synthesise(w)[..., None, :, :]

    def velocity(self, u: Tensor) -> Tensor:
        """Vorticity (…, 1, y, x) -> velocity (u, v) as (…, 2, y, x), in m s-1."""
        self.check(u)
        w = self.modes.analyse(u)
        return self.modes.synthesise(self._as("_velocity", w) * w)

    def vorticity(self, velocity: Tensor) -> Tensor:
        """Velocity (…, 2, y, x) -> vorticity ∂v/∂x − ∂u/∂y as (…, 1, y, x), in s-1."""
        v = self.modes.analyse(velocity)
        ky, kx = (k.to(velocity) for k in self.modes.wavenumbers())
        w = 1j * (kx * v[..., 1, :, :] - ky * v[..., 0, :, :])
        return self.modes.synthesise(w)[..., None, :, :]

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Area means: vorticity (s-1), energy (m2 s-2), enstrophy (s-2) and palinstrophy (m-2 s-2); float64."""
        self.check(u)
        w = self.modes.analyse(u.to(torch.float64))
        ky, kx = (k.to(u.device) for k in self.modes.wavenumbers())
        gradient = self.modes.synthesise(torch.cat((1j * kx * w, 1j * ky * w), dim=-3))
        mean = (-2, -1)
        return {
            "mean_vorticity": u.to(torch.float64).mean(dim=mean)[..., 0],
            "energy": (self.velocity(u.to(torch.float64)) ** 2).sum(dim=-3).mean(dim=mean) / 2,
            "enstrophy": (u.to(torch.float64) ** 2).mean(dim=mean)[..., 0] / 2,
            "palinstrophy": (gradient**2).sum(dim=-3).mean(dim=mean) / 2,
        }

    def budget(self, u: Tensor) -> dict[str, Tensor]:
        """Rates of change of energy (m2 s-3) and enstrophy (s-3), term by term; float64.

        Each of ``energy_input``, ``energy_dissipation``, ``energy_drag`` (and the same for enstrophy) is signed as
        it enters the rate of change, so their sum is dE/dt or dZ/dt.
        """
        u = u.to(torch.float64)
        i = self.invariants(u)
        nu, mu = self.parameters["viscosity"], self.parameters["drag"]
        curl = self.modes.synthesise(self._as("_curl", self.modes.analyse(u)))
        return {
            "energy_input": (self.velocity(u)[..., 0, :, :] * self._force.to(u)).mean(dim=(-2, -1)),
            "energy_dissipation": -2 * nu * i["enstrophy"],
            "energy_drag": -2 * mu * i["energy"],
            "enstrophy_input": (u[..., 0, :, :] * curl).mean(dim=(-2, -1)),
            "enstrophy_dissipation": -2 * nu * i["palinstrophy"],
            "enstrophy_drag": -2 * mu * i["enstrophy"],
        }

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random vorticity with a smooth spectrum around the forced wavenumber and an rms of 3 s-1."""
        noise = torch.randn(
            batch, 1, *self.grid.shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        w = self.modes.analyse(noise)
        ky, kx = (k.to(noise.device) for k in self.modes.wavenumbers())
        k2 = ky**2 + kx**2
        k0 = 2 * math.pi * self.parameters["wavenumber"] / self.grid.length[0]
        u = self.modes.synthesise(w * k2 / k0**2 * torch.exp(-k2 / k0**2))
        return (3 * u / u.square().mean(dim=(-2, -1), keepdim=True).sqrt()).to(dtype)

    def _nonlinear(self, w: Tensor) -> Tensor:
        """−(u·∇ω)^ + (∇×F)^."""
        M = self.modes.product_shape
        u, v = self.modes.synthesise(self._as("_velocity", w) * w[..., None, :, :], M).unbind(dim=-3)
        pq = self.modes.analyse(torch.stack((u * v, (v - u) * (v + u)), dim=-3))
        return (self._as("_product", w) * pq).sum(dim=-3) + self._as("_curl", w)

    def _as(self, name: str, w: Tensor) -> Tensor:
        """A constant on the device of w and in its precision (cached: a conversion costs as much as a product)."""
        key = (name, w.dtype, w.device)
        if key not in self._cache:
            constant: Tensor = getattr(self, name)
            single = w.dtype in (torch.complex64, torch.float32)
            real, complex_ = (torch.float32, torch.complex64) if single else (torch.float64, torch.complex128)
            self._cache[key] = constant.to(w.device, complex_ if constant.is_complex() else real)
        out = self._cache[key]
        assert isinstance(out, Tensor)
        return out

    def _stepper(self, dt: float, w: Tensor) -> ETDRK4:
        key = (dt, w.dtype, w.device)
        if key not in self._cache:
            real = torch.float32 if w.dtype == torch.complex64 else torch.float64
            self._cache[key] = ETDRK4(self._linear.to(w.device), dt, real)
        out = self._cache[key]
        assert isinstance(out, ETDRK4)
        return out
