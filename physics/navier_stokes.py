"""Incompressible Navier–Stokes in two dimensions, in velocity and pressure.

    u_t + (u·∇)u = −∇p + ν∇²u − μu + F,      ∇·u = 0,      F = A sin(k_f y) x̂,

with p the pressure over the density, on axes (y, x) that are periodic or end at walls, inlets and outlets.

Pressure has no rate of change: it is whatever keeps the velocity free of divergence. The right-hand side therefore
states the rates of u and v and, in the row of p, the constraint:

    rhs = ( −(u·∇)u − ∇p + ν∇²u − μu + F ,  −∇·u )

so that −rhs *is* the residual of a steady flow (:meth:`NavierStokes.steady`), and with u_t in its first two rows that
of a series (the strong form of :func:`lapse.physics.residual.residual`). This is an equation to judge fields by. It
has no solver: between walls a step needs a pressure of its own making, on a staggered grid that the stored fields are
not on. On a periodic box `kolmogorov` solves the same law in vorticity form; that the two agree is a test.

The law itself is :func:`rates`, written for whatever gradient and Laplacian it is handed, so that a spectral-element
field can be judged on its own nodes by the same lines as one on a grid.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .constraints import from_stream_function
from .differences import ACCURACIES, difference_matrix, difference_weights
from .equation import Equation, register
from .grid import Axis, Grid
from .operators import curl, div, grad, inverse_laplacian, laplacian
from .smooth import smooth

Side = Literal["wall", "open"] | tuple[float, float] | Tensor


def rates(
    velocity: Tensor,
    pressure: Tensor,
    grad: Callable[[Tensor], Tensor],
    laplacian: Callable[[Tensor], Tensor],
    viscosity: float,
    drag: float = 0.0,
    force: Tensor | None = None,
) -> Tensor:
    """The law: (−(u·∇)u − ∇p + ν∇²u − μu + F, −∇·u), stacked.

    Args:
        velocity: (…, 2, y, x), components along x and y.
        pressure: p, over the density, (…, y, x).
        grad: Field (…, y, x) -> (…, 2, y, x), ∂/∂x then ∂/∂y.
        laplacian: Field -> field.
        viscosity: ν.
        drag: μ.
        force: F, broadcastable to `velocity`.

    Returns:
        (…, 3, y, x).
    """
    u, v = velocity.unbind(dim=-3)
    du, dv = grad(u), grad(v)
    diffusion = torch.stack((laplacian(u), laplacian(v)), dim=-3)
    advection = torch.stack(((velocity * du).sum(dim=-3), (velocity * dv).sum(dim=-3)), dim=-3)
    acceleration = viscosity * diffusion - advection - grad(pressure) - drag * velocity
    if force is not None:
        acceleration = acceleration + force
    divergence = du.select(-3, 0) + dv.select(-3, 1)
    return torch.cat((acceleration, -divergence.unsqueeze(-3)), dim=-3)


@register("navier_stokes")
class NavierStokes(Equation):
    """Velocity (m s-1) and pressure over density (m2 s-2); no solver, see above.

    Args:
        grid: Axes (y, x), in m.
        accuracy: Order of finite differences, 2, 4 or 6; None: spectral along periodic axes, else 2.
        sides: What is known at the (left, right) sides of bounded axes: "wall" (no slip), "open" (nothing), or the
            velocity: (u, v), or a profile (2, n) along the side. Used by :meth:`boundary` alone.
        sides_at: Where they are: at the outer "faces" of the cells, half a cell beyond the last nodes, as everywhere
            in this library, or at the last "nodes", as in files of many finite-difference and spectral codes.
        viscosity: ν, m2 s-1.
        drag: μ, s-1.
        forcing: A, m s-2.
        wavenumber: Number of periods of the force along y; k_f = 2π wavenumber / L_y.
    """

    variables = ("u", "v", "p")
    quantities: ClassVar[Mapping[str, str]] = {
        "momentum_x": "m s-1",
        "momentum_y": "m s-1",
        "energy": "m2 s-2",
        "enstrophy": "s-2",
        "divergence": "s-2",
    }
    units: ClassVar[Mapping[str, str]] = {"u": "m s-1", "v": "m s-1", "p": "m2 s-2"}
    algebraic: ClassVar[tuple[str, ...]] = ("p",)
    defaults: ClassVar[Mapping[str, float]] = {"viscosity": 0.01, "drag": 0.0, "forcing": 0.0, "wavenumber": 4}
    parameter_units: ClassVar[Mapping[str, str]] = {
        "viscosity": "m2 s-1",
        "drag": "s-1",
        "forcing": "m s-2",
        "wavenumber": "1",
    }
    nonnegative = ("viscosity", "drag", "wavenumber")

    def __init__(
        self,
        grid: Grid,
        *,
        accuracy: int | None = None,
        sides: Mapping[str, tuple[Side, Side]] | None = None,
        sides_at: Literal["faces", "nodes"] = "faces",
        **parameters: float,
    ) -> None:
        super().__init__(grid, **parameters)
        if grid.ndim != 2 or any(a.kind != "cartesian" for a in grid.axes):
            raise ValueError(f"navier_stokes: found the grid ({grid}), wanted two Cartesian axes (y, x)")
        if accuracy not in (None, *ACCURACIES):
            raise ValueError(f"navier_stokes: found accuracy={accuracy}, wanted 2, 4, 6 or None")
        for name in sides or {}:
            if name not in grid.names or grid.axes[grid.index(name)].periodic:
                raise ValueError(f"navier_stokes: found sides of the axis {name!r}, wanted bounded axes of ({grid})")
        self.accuracy = accuracy
        self.sides: dict[str, tuple[Side, Side]] = dict(sides or {})
        self.sides_at = sides_at
        k = 2 * torch.pi * self.parameters["wavenumber"] / grid.length[0]
        along_x = self.parameters["forcing"] * torch.sin(k * grid.meshgrid()[0])
        self.force = torch.stack((along_x, torch.zeros_like(along_x)))

    def rhs(self, u: Tensor) -> Tensor:
        """Rates of u and v, and −∇·u in the row of p."""
        self.check(u)
        return rates(
            u[..., :2, :, :],
            u[..., 2, :, :],
            lambda f: grad(f, self.grid, self.accuracy),
            lambda f: laplacian(f, self.grid, self.accuracy),
            self.parameters["viscosity"],
            self.parameters["drag"],
            self.force.to(u) if self.parameters["forcing"] else None,
        )

    def steady(self, u: Tensor) -> Tensor:
        """Residual of a flow that is claimed to be steady, (…, 3, y, x): momentum (m s-2), continuity (s-1)."""
        return -self.rhs(u)

    def pressure(self, velocity: Tensor) -> Tensor:
        """Pressure of zero mean that keeps a velocity free of divergence on a periodic box: (…, 2, y, x) -> (…, y, x).

        ∇²p = ∇·(F − (u·∇)u), with the derivatives that the residual takes.

        Raises:
            ValueError: Between walls (the problem then lacks its boundary values), or for finite differences.
        """
        if self.accuracy is not None:
            raise ValueError(f"pressure: found accuracy={self.accuracy}, wanted spectral derivatives on a periodic box")
        nothing = torch.zeros_like(velocity[..., :1, :, :])
        acceleration = self.rhs(torch.cat((velocity, nothing), dim=-3))[..., :2, :, :]
        return inverse_laplacian(div(acceleration, self.grid), self.grid)

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random velocities of few waves and rms 1 m s-1, free of divergence, and their pressure.

        Periodic boxes only.
        """
        psi = smooth(self.grid, generator, (batch,))
        velocity = from_stream_function(psi, self.grid)
        velocity = velocity / velocity.square().sum(-3, True).mean((-2, -1), True).sqrt()
        return torch.cat((velocity, self.pressure(velocity).unsqueeze(-3)), dim=-3).to(dtype)

    def boundary(self, u: Tensor) -> dict[str, Tensor]:
        """Velocity at the sides less what is prescribed there: "x-", "x+", "y-", "y+" -> (…, 2, nodes of the side).

        At a face the velocity is that of the polynomial through the nearest nodes, one more than the accuracy.
        """
        self.check(u)
        out = {}
        for name, sides in self.sides.items():
            i = self.grid.index(name)
            axis = self.grid.axes[i]
            for end, side in zip((0, -1), sides, strict=True):
                if isinstance(side, str) and side == "open":
                    continue
                value = _at(u[..., :2, :, :], axis, i - 2, end, self.sides_at, (self.accuracy or 2) + 1)
                wanted = torch.zeros(2) if isinstance(side, str) else torch.as_tensor(side)
                wanted = wanted.to(value)
                out[f"{name}{'+' if end else '-'}"] = value - (wanted[:, None] if wanted.ndim == 1 else wanted)
        return out

    def interior(self, fluid: Tensor) -> Tensor:
        """Nodes whose finite differences see fluid only: boolean (y, x), from the boolean mask of fluid nodes.

        Raises:
            ValueError: If derivatives are spectral: they see every node.
        """
        ok = fluid.clone()
        for i, axis in enumerate(self.grid.axes):
            if axis.periodic and self.accuracy is None:
                raise ValueError(f"interior: found spectral derivatives along {axis.name!r}, wanted an accuracy")
            solid = (~fluid).to(torch.float64)
            for order in (1, 2):
                reach = (difference_matrix(axis, order, self.accuracy or 2) != 0).to(solid)
                seen = reach @ solid if i == 0 else solid @ reach.T
                ok &= seen == 0
        return ok

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Area means in float64: momentum (m s-1), ``energy`` ⟨u² + v²⟩/2 (m2 s-2), ``enstrophy`` ⟨ω²⟩/2 (s-2) and
        ``divergence`` ⟨(∇·u)²⟩ (s-2), which should be nought."""
        self.check(u)
        w = u[..., :2, :, :].to(torch.float64)
        return {
            "momentum_x": self.mean(w[..., 0, :, :]),
            "momentum_y": self.mean(w[..., 1, :, :]),
            "energy": self.mean((w**2).sum(dim=-3)) / 2,
            "enstrophy": self.mean(curl(w, self.grid, self.accuracy) ** 2) / 2,
            "divergence": self.mean(div(w, self.grid, self.accuracy) ** 2),
        }

    # As a balance: ∂(u, v, 0)/∂t + ∇·(u u + p, …) = ∇²(νu, νv, 0) + F − μu, which holds where ∇·u = 0.

    def conserved(self, u: Tensor) -> Tensor:
        return torch.cat((u[..., :2, :, :], torch.zeros_like(u[..., 2:, :, :])), dim=-3)

    def flux(self, u: Tensor) -> Tensor:
        a, b, p = u.unbind(dim=-3)
        along_x, along_y = torch.stack((a * a + p, a * b, a), dim=-3), torch.stack((a * b, b * b + p, b), dim=-3)
        return torch.stack((along_x, along_y), dim=-4)

    def diffused(self, u: Tensor) -> Tensor:
        return self.parameters["viscosity"] * self.conserved(u)

    def source(self, u: Tensor) -> Tensor:
        force = torch.cat((self.force, torch.zeros_like(self.force[:1]))).to(u)
        return force - self.parameters["drag"] * self.conserved(u)


def _at(u: Tensor, axis: Axis, dim: int, end: int, where: str, points: int) -> Tensor:
    """Values at a side of an axis."""
    if where == "nodes":
        return u.select(dim, end)
    x, n = axis.coordinates, min(points, axis.size)
    face = x[0] - axis.widths[0] / 2 if end == 0 else x[-1] + axis.widths[-1] / 2
    start = 0 if end == 0 else axis.size - n
    w = torch.tensor(difference_weights(x[start : start + n], face, 0), dtype=u.dtype, device=u.device)
    return torch.movedim(u.narrow(dim, start, n), dim, -1) @ w
