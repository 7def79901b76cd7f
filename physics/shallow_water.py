"""Rotating shallow water on an f-plane: geostrophic eddies and inertia–gravity waves.

    u_t = (ζ + f) v − ∂x(g h + (u² + v²)/2) + ν ∇²u
    v_t = −(ζ + f) u − ∂y(g h + (u² + v²)/2) + ν ∇²v          ζ = ∂v/∂x − ∂u/∂y
    h_t = −∂x(h u) − ∂y(h v)

on a doubly periodic box with axes (y, x); h is the total depth, g the gravity, f the Coriolis parameter.

- Mass ⟨h⟩ is conserved to round-off: its equation is in flux form, and the mean of a derivative is nought.
- Energy ⟨h (u² + v²)/2 + g (h − ⟨h⟩)²/2⟩ is conserved but for viscosity. In this vector-invariant form
  (Sadourny 1975, doi:10.1175/1520-0469(1975)032<0680:TDOFDM>2.0.CO;2) the work of pressure cancels exactly
  in the Galerkin method; what is left, ⟨P(hu)·(ζ + f) k×u⟩, is as small as the part of hu that the kept
  modes miss.
- Potential enstrophy ⟨h q²⟩/2 with q = (ζ + f)/h is conserved but for viscosity, too.

Small waves about rest obey Ω² = f² + g H |k|². The geostrophic state f v = g ∂h/∂x, f u = −g ∂h/∂y with
one-dimensional variation is steady.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .balance import Balance
from .equation import Fate, Usual, register
from .galerkin import Galerkin
from .grid import Grid
from .operators import laplacian

CFL = 2.0  # dt·k_max·speed of the fastest signal; the scheme is stable to 2.8
EDDY = 4  # mode number about which the initial eddies lie
WAVES = 0.1  # rms height of the initial waves, relative to that of the eddies


@register("shallow_water")
class ShallowWater(Galerkin):
    """Rotating shallow water; variables u and v (m s-1) along x and y, and the total depth h (m).

    The defaults are those of a tank: a box of 2π m with 10 cm of water, waves of 1 m s-1 and a deformation
    radius √(gH)/f of 0.33 m.

    Measured at 64² with the defaults from the end of the spin-up, frames 0.5 s apart: an rms Rossby number
    ζ/f of 0.1, largest velocity 0.25 m s-1, depths from 7.8 cm up. The one-dimensional power spectra at mode
    number 31 lie 4.6 (velocity) and 6.7 decades (depth) below their maximum, and deeper later. An unchanged
    field is off by 0.23, 0.54 and 0.85 standard deviations of velocity after 1, 20 and 40 frames. Nothing
    forces the flow: it loses a quarter of its energy in 30 s. The relative error of the own time step is 2e-5 a frame.

    Args:
        grid: Doubly periodic grid with axes (y, x), in m.
        gravity: g, m s-2.
        coriolis: f, s-1.
        mean_depth: H, m; of the initial states and of the waves that limit the time step.
        viscosity: ν, m2 s-1.
        speed: Rms velocity of the initial eddies, m s-1. The time step assumes no velocity above five times
            this.
        modes: Largest kept mode number; None keeps all the grid holds (see :class:`Galerkin`).
    """

    variables = ("u", "v", "h")
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1", "v": "m s-1", "h": "m"}
    parameter_units: ClassVar[Mapping[str, str]] = {
        "gravity": "m s-2",
        "coriolis": "s-1",
        "mean_depth": "m",
        "viscosity": "m2 s-1",
    }
    quantities: ClassVar[Mapping[str, str]] = {"mass": "m", "energy": "m3 s-2", "potential_enstrophy": "m-1 s-2"}
    balanced: ClassVar[Mapping[str, str]] = {"hu": "m2 s-1", "hv": "m2 s-1", "h": "m"}
    laws: ClassVar[Mapping[str, Fate]] = {"mass": "conserved"}
    usual = Usual(dimension=2, length=2 * math.pi, resolution=64, interval=0.5)
    dimensions = (2,)

    def __init__(
        self,
        grid: Grid,
        *,
        gravity: float = 9.81,
        coriolis: float = 3.0,
        mean_depth: float = 0.1,
        viscosity: float = 5e-4,
        speed: float = 0.12,
        modes: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(grid, modes, gravity=gravity, coriolis=coriolis, mean_depth=mean_depth, viscosity=viscosity)
        for name, value in (("gravity", gravity), ("mean_depth", mean_depth), ("speed", speed)):
            if not value > 0:
                raise ValueError(f"shallow_water: found {name}={value}, wanted a positive number")
        if viscosity < 0:
            raise ValueError(f"shallow_water: found viscosity={viscosity}, wanted 0 or more")
        self.speed = float(speed)
        self.wave_speed = math.sqrt(gravity * mean_depth)
        self.ky, self.kx = self.modes.wavenumbers()

    @property
    def dt(self) -> float:
        # The fastest wave runs along the diagonal of the spectral box, the fastest flow along an axis.
        signal = math.sqrt(2) * self.wave_speed + 5 * self.speed
        return min(CFL / (self.kmax * signal), 1 / max(abs(self.parameters["coriolis"]), 1e-300))

    @property
    def spin_up_time(self) -> float:
        """Two turnover times of the initial eddies: fronts have formed and waves have dispersed."""
        return 2 * self.grid.length[0] / (EDDY * self.speed)

    def linear(self) -> Tensor:
        viscous = -self.parameters["viscosity"] * self.k2
        return torch.stack((viscous, viscous, torch.zeros_like(viscous)))

    def nonlinear(self, w: Tensor) -> Tensor:
        f, g = self.parameters["coriolis"], self.parameters["gravity"]
        n = self.modes.product_shape
        ikx, iky = self.constant("gradient", w).unbind(dim=-3)
        u_, v_, h_ = w.unbind(dim=-3)
        zeta_ = ikx * v_ - iky * u_
        u, v, h, zeta = self.modes.synthesise(torch.stack((u_, v_, h_, zeta_), dim=-3), n).unbind(dim=-3)
        products = torch.stack((zeta * v, zeta * u, (u * u + v * v) / 2, h * u, h * v), dim=-3)
        zv, zu, kinetic, hu, hv = self.modes.analyse(products).unbind(dim=-3)
        B = g * h_ + kinetic
        return torch.stack((zv + f * v_ - ikx * B, -zu - f * u_ - iky * B, -ikx * hu - iky * hv), dim=-3)

    def conserved(self, u: Tensor) -> Tensor:
        """Momentum and depth (hu, hv, h): what is balanced across a bore, where velocity is not."""
        a, b, h = u.unbind(dim=-3)
        return torch.stack((h * a, h * b, h), dim=-3)

    def flux(self, u: Tensor) -> Tensor:
        a, b, h = u.unbind(dim=-3)
        pressure = self.parameters["gravity"] * h**2 / 2
        along_x = torch.stack((h * a * a + pressure, h * a * b, h * a), dim=-3)
        along_y = torch.stack((h * a * b, h * b * b + pressure, h * b), dim=-3)
        return torch.stack((along_x, along_y), dim=-4)

    def source(self, u: Tensor) -> Tensor:
        """Coriolis force and h ν∇²(u, v); the latter is no divergence, so it is taken as it stands."""
        a, b, h = u.unbind(dim=-3)
        f, nu = self.parameters["coriolis"], self.parameters["viscosity"]
        x, y = f * b, -f * a
        if nu:
            x, y = x + nu * laplacian(a, self.grid), y + nu * laplacian(b, self.grid)
        return torch.stack((h * x, h * y, torch.zeros_like(h)), dim=-3)

    def entropy(self, u: Tensor) -> Balance:
        """Energy h(u² + v²)/2 + gh²/2 with the flux (h(u² + v²)/2 + gh²)(u, v): bores dissipate it. The work of the
        viscosity, ν h (u, v)·∇²(u, v), is taken as it stands."""
        a, b, h = u.unbind(dim=-3)
        g, nu = self.parameters["gravity"], self.parameters["viscosity"]
        kinetic, potential = h * (a * a + b * b) / 2, g * h**2 / 2
        flux = (kinetic + 2 * potential)[..., None, :, :] * u[..., :2, :, :]
        work = nu * h * (a * laplacian(a, self.grid) + b * laplacian(b, self.grid)) if nu else None
        source = None if work is None else work.unsqueeze(-3)
        return Balance((kinetic + potential).unsqueeze(-3), flux.unsqueeze(-3), None, source)

    def vorticity(self, u: Tensor) -> Tensor:
        """Relative vorticity ζ = ∂v/∂x − ∂u/∂y of states (…, 3, y, x), as (…, 1, y, x), in s-1."""
        self.check(u)
        w = self.modes.analyse(u)
        ikx, iky = self.constant("gradient", w).unbind(dim=-3)
        return self.modes.synthesise(ikx * w[..., 1, :, :] - iky * w[..., 0, :, :])[..., None, :, :]

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Area means in float64: ``mass`` ⟨h⟩ (m), ``energy`` (m3 s-2) and ``potential_enstrophy`` (m-1 s-2)."""
        self.check(u)
        s = u.to(torch.float64)
        a, b, h = s.unbind(dim=-3)
        f, g = self.parameters["coriolis"], self.parameters["gravity"]
        mass = h.mean(dim=(-2, -1))
        eta = h - mass[..., None, None]
        return {
            "mass": mass,
            "energy": (h * (a**2 + b**2) / 2 + g * eta**2 / 2).mean(dim=(-2, -1)),
            "potential_enstrophy": ((self.vorticity(s)[..., 0, :, :] + f) ** 2 / h).mean(dim=(-2, -1)) / 2,
        }

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Shifts along either axis, and half a turn about the vertical, which reverses the velocity."""

        def half_turn(u: Tensor) -> Tensor:
            sign = torch.tensor([-1.0, -1.0, 1.0], dtype=u.dtype, device=u.device)[:, None, None]
            return sign * u.flip(-2, -1)

        return {"translation": lambda u: u.roll((2, 1), (-2, -1)), "half turn": half_turn}

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random eddies in geostrophic balance, plus a tenth (in rms height) of inertia–gravity waves.

        The field is drawn on the generator's device. With coriolis 0 no height balances the eddies: they
        start on a flat surface, and the waves take an rms height of a hundredth of the mean depth.
        """
        noise = torch.randn(
            batch, 3, *self.grid.shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        f, g = self.parameters["coriolis"], self.parameters["gravity"]
        H, c = self.parameters["mean_depth"], self.wave_speed
        k0 = 2 * math.pi * EDDY / self.grid.length[0]
        ky, kx, k2 = (k.to(noise) for k in (self.ky, self.kx, self.k2))
        envelope = k2 / k0**2 * torch.exp(-k2 / k0**2)
        psi, right, left = (self.modes.analyse(noise) * envelope).unbind(dim=-3)

        def rms(w: Tensor) -> Tensor:
            return self.modes.synthesise(w).square().mean(dim=(-2, -1), keepdim=True).sqrt()

        u, v = -1j * ky * psi, 1j * kx * psi
        amplitude = self.speed / (rms(u).square() + rms(v).square()).sqrt()
        u, v, eta = amplitude * u, amplitude * v, amplitude * f / g * psi
        waves = WAVES * rms(eta) if f else torch.full_like(amplitude, H / 100)
        Omega = (f**2 + c**2 * k2).sqrt() * torch.where((kx > 0) | ((kx == 0) & (ky > 0)), 1.0, -1.0)
        inverse = torch.where(k2 > 0, 1 / (H * k2), 0.0)
        for a, sign in ((right, 1), (left, -1)):  # polarisation of a plane wave exp i(k·x − Ωt); Ω is odd in k
            a = a * waves / (math.sqrt(2) * rms(a))
            u = u + a * (sign * Omega * kx + 1j * f * ky) * inverse
            v = v + a * (sign * Omega * ky - 1j * f * kx) * inverse
            eta = eta + a
        state = self.modes.synthesise(torch.stack((u, v, eta), dim=-3))
        depth = torch.tensor([0.0, 0.0, H], dtype=torch.float64, device=noise.device)
        return (state + depth[:, None, None]).to(dtype)
