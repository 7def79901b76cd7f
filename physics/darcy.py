"""Darcy flow: slow flow through a porous plane, between impermeable walls.

    −∇·(K ∇p) = f  in the box,      K ∂p/∂n = 0  at its walls,      ⟨p⟩ = 0,      K = K₀ exp(Y)

The state is the pair (Y, p) of log-permeability and pressure; Y, not K, since every real Y is a permeability, and since
Y is what is normal in the field and in the usual random models. Nothing moves: the law ties p to Y, and a sample is a
draw of Y with its pressure. The benchmark's numbers (Zhu & Zabaras 2018, doi:10.1016/j.jcp.2018.04.018; Jacobsen et
al. 2025, arXiv:2312.10527; Bastek et al. 2025, arXiv:2403.14404) are the defaults: the unit square, a well of strength
f = 10 in the square of side 0.125 at the origin and one of −10 in the opposite corner, and Y of exponential covariance
exp(−|s − s′|/0.1), cut off after 64 terms of its expansion (`karhunen.py`).

*Discretisation.* Finite volumes on the cells of the grid. Through the face between cells a and b passes the flux

    K_ab (p_a − p_b)/h,      K_ab = 2 K_a K_b/(K_a + K_b),

which is exact in one dimension for cells of different K; through a wall, none. The source is averaged over cells.
What leaves a cell enters the next, so Σ R = 0 for any fields at all, and

    A(Y) p = f̄,      A symmetric and positive semidefinite, its only null vector the constant,

is solved directly (`tridiagonal.py`). The residual A p − f̄ of a solution is round-off; that of the same solution stored
in float32 is about 10⁻⁷ K p/h², and nothing can be told below it. (The authors named above differentiate out ∇K·∇p on
nodes, stack the boundary conditions below, and solve by least squares, which leaves a residual of 10⁻³.)

A residual is small for a shrunk pressure, too: p = 0 scores ‖R‖ = ‖f‖, and noise of a thousandth of p scores more. It
says nothing without the pressure's standard deviation beside it.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Equation, Usual, register
from .grid import Axis, Grid
from .karhunen import KarhunenLoeve
from .tridiagonal import BlockTridiagonal

__all__ = ["Darcy", "Factors"]


class Factors:
    """A(Y), eliminated once: what is linear in the pressure costs little from here on.

    Args:
        law: The equation.
        y: Log-permeability (…, y, x), any precision; the elimination is done in float64.
    """

    def __init__(self, law: "Darcy", y: Tensor) -> None:
        k_x, k_y = law.transmissibility(y.detach().to(torch.float64))
        diagonal = torch.zeros(y.shape, dtype=torch.float64, device=y.device)
        diagonal[..., :, 1:] += k_x
        diagonal[..., :, :-1] += k_x
        diagonal[..., 1:, :] += k_y
        diagonal[..., :-1, :] += k_y
        # Held at nought in one cell. For a right-hand side of zero sum that takes no flux, so nothing is lost.
        diagonal[..., 0, 0] *= 2
        self._system = BlockTridiagonal(diagonal, k_x, k_y)

    def solve(self, b: Tensor) -> Tensor:
        """p of zero mean with A p = b − ⟨b⟩, (…, y, x), in b's precision; differentiable by b."""
        x = b.to(torch.float64)
        x = self._system.solve(x - x.mean(dim=(-2, -1), keepdim=True))
        return (x - x.mean(dim=(-2, -1), keepdim=True)).to(b.dtype)


@register("darcy")
class Darcy(Equation):
    """Log-permeability ln(K/K₀) and pressure (Pa) of a steady flow; a law to draw samples from and to judge them by.

    Args:
        grid: Two Cartesian axes (y, x) between walls, in m, evenly spaced.
        permeability: K₀, over the viscosity, m2 Pa-1 s-1.
        source: f in its square, s-1; the drain has its negative.
        width: Side of both squares, m.
        deviation: Standard deviation of Y, before the cut-off.
        correlation: Length of its covariance, m.
        terms: Of its expansion.

    Attributes:
        wells: f̄, (y, x), s-1.
    """

    variables = ("log_permeability", "pressure")
    units: ClassVar[Mapping[str, str]] = {"log_permeability": "1", "pressure": "Pa"}
    algebraic: ClassVar[tuple[str, ...]] = ("log_permeability", "pressure")
    defaults: ClassVar[Mapping[str, float]] = {
        "permeability": 1.0,
        "source": 10.0,
        "width": 0.125,
        "deviation": 1.0,
        "correlation": 0.1,
        "terms": 64,
    }
    parameter_units: ClassVar[Mapping[str, str]] = {
        "permeability": "m2 Pa-1 s-1",
        "source": "s-1",
        "width": "m",
        "deviation": "1",
        "correlation": "m",
        "terms": "1",
    }
    positive = ("permeability", "width", "correlation", "terms")
    nonnegative = ("deviation",)
    quantities: ClassVar[Mapping[str, str]] = {"pressure": "Pa", "power": "Pa s-1", "imbalance": "s-1"}
    order = 2
    usual = Usual(length=1.0, walls=True)
    dt = float("inf")

    def __init__(self, grid: Grid, **parameters: float) -> None:
        super().__init__(grid, **parameters)
        even = all(a.kind == "cartesian" and not a.periodic and a.size > 1 and a.regular for a in grid.axes)
        if grid.ndim != 2 or not even:
            raise ValueError(
                f"darcy: found the grid ({grid}), wanted two even Cartesian axes (y, x) that end at walls "
                "(Grid.walled_box)"
            )
        self.wells = self.parameters["source"] * (self._square(0) - self._square(-1))
        self._field: KarhunenLoeve | None = None

    def rhs(self, u: Tensor) -> Tensor:
        """∇·(K∇p) + f̄ in the row of the pressure, which is nought if it holds; nought in that of Y."""
        r = self.steady(u)
        return torch.stack((torch.zeros_like(r), -r), dim=-3)

    def steady(self, u: Tensor) -> Tensor:
        """R = −∇·(K∇p) − f̄, (…, 2, y, x) -> (…, y, x), s-1; its sum is nought whatever the fields."""
        self.check(u)
        y, p = u.unbind(dim=-3)
        residual: Tensor = self.apply(y, p) - self.wells.to(u)
        return residual

    def apply(self, y: Tensor, p: Tensor) -> Tensor:
        """A(Y) p = −∇·(K∇p), (…, y, x)."""
        k_x, k_y = self.transmissibility(y)
        q_x, q_y = k_x * -p.diff(dim=-1), k_y * -p.diff(dim=-2)
        wall_x, wall_y = torch.zeros_like(p[..., :, :1]), torch.zeros_like(p[..., :1, :])
        along = torch.cat((wall_x, q_x, wall_x), dim=-1).diff(dim=-1)
        return along + torch.cat((wall_y, q_y, wall_y), dim=-2).diff(dim=-2)

    def transmissibility(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """K at the faces over h²: between neighbours along x, (…, y, x − 1), and along y, (…, y − 1, x)."""
        h_y, h_x = self.grid.spacing
        resistance = torch.exp(-y) / self.parameters["permeability"]  # 1/K of the cells
        return (
            2 / (resistance[..., :, 1:] + resistance[..., :, :-1]) / h_x**2,
            2 / (resistance[..., 1:, :] + resistance[..., :-1, :]) / h_y**2,
        )

    def factors(self, y: Tensor) -> Factors:
        """A(Y) ready for many right-hand sides; no gradient reaches Y through it."""
        return Factors(self, y)

    def pressure(self, y: Tensor, factors: Factors | None = None) -> Tensor:
        """p of zero mean that solves the law for a log-permeability: (…, y, x) -> the same, and its precision.

        Differentiable by Y, as an implicit function: p − A⁻¹(A(Y) p − f̄) with p and A⁻¹ held has the value p and the
        derivative −A⁻¹ ∂A/∂Y p.
        """
        factors = self.factors(y) if factors is None else factors
        f = self.wells.to(y.device)
        with torch.no_grad():
            p = factors.solve(f.expand(y.shape))
            p = p - factors.solve(self.apply(y.to(torch.float64), p) - f)  # takes away the round-off of the first
        if y.requires_grad:
            p = p - factors.solve(self.apply(y.to(torch.float64), p) - f)
        return p.to(y.dtype)

    def solved(self, u: Tensor) -> Tensor:
        """The state with its own log-permeability and the pressure that belongs to it: the residual of both is nought.

        This is the closed form of a correction that is allowed to move the pressure only. It costs one elimination a
        state: 1 ms at 32², 10 ms at 64² on one core.
        """
        self.check(u)
        y = u[..., 0, :, :]
        return torch.stack((y, self.pressure(y)), dim=-3)

    def field(self) -> KarhunenLoeve:
        """The expansion that log-permeabilities are drawn from."""
        if self._field is None:
            p = self.parameters
            height, width = self.grid.length
            self._field = KarhunenLoeve((height, width), p["correlation"], int(p["terms"]))
        return self._field

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random log-permeabilities and their pressures. One draw is the same field of Y on every grid of the box."""
        xi = torch.randn(batch, int(self.parameters["terms"]), generator=generator, device=generator.device)
        y = self.parameters["deviation"] * self.field().draw(self.grid, xi)
        # Rounded first: a pressure belongs to the log-permeability that is stored, not to one a little beside it.
        y = y.to(dtype).to(torch.float64)
        return torch.stack((y, self.pressure(y)), dim=-3).to(dtype)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Means in float64: ``pressure`` ⟨p⟩ (Pa), nought; ``power`` ⟨K|∇p|²⟩ (Pa s-1), what the flow dissipates, and
        ``imbalance`` of it, ⟨p R⟩/⟨|p|⟩ (s-1), nought for a solution."""
        self.check(u)
        y, p = u.to(torch.float64).unbind(dim=-3)
        return {
            "pressure": self.mean(p),
            "power": self.mean(p * self.apply(y, p)),
            "imbalance": self.mean(p * self.steady(u.to(torch.float64))) / self.mean(p.abs()).clamp_min(1e-300),
        }

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Maps of solutions to solutions: reflection at the diagonal (square boxes), and half a turn with −p."""

        def turned(u: Tensor) -> Tensor:
            return torch.stack((u[..., 0, :, :], -u[..., 1, :, :]), dim=-3).flip(-2, -1)

        maps: dict[str, Callable[[Tensor], Tensor]] = {"turned": turned}
        if self.grid.shape[0] == self.grid.shape[1] and self.grid.length[0] == self.grid.length[1]:
            maps["transposed"] = lambda u: u.mT
        return maps

    def _square(self, end: int) -> Tensor:
        """Share of each cell that lies in the square at the lower (0) or upper (−1) ends of both axes."""
        y, x = (_share(a, self.parameters["width"], end) for a in self.grid.axes)
        return y[:, None] * x


def _share(axis: Axis, width: float, end: int) -> Tensor:
    x, h = torch.tensor(axis.coordinates, dtype=torch.float64), axis.spacing
    s = x - x[0] if end == 0 else (x - x[-1]).flip(0).abs().flip(0)
    return ((width - s) / h).clamp(0, 1)  # s is where the cell begins, seen from that end
