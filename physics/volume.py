"""Finite volumes: balances that close to round-off in every cell, and shocks without overshoot.

A cell i of width Δᵢ between the faces i and i + 1 holds the mean uᵢ, and

    duᵢ/dt = −(F_{i+1} − F_i) / Δᵢ,

one term for each axis. What leaves a cell enters its neighbour, so ΣᵢΔᵢuᵢ changes by what passes the boundary alone.
An axis of n cells has n + 1 faces; on a periodic one the first and the last are the same.

States at the faces come from a line through each cell (MUSCL; van Leer 1979, doi:10.1016/0021-9991(79)90145-1),

    u_{i+1}⁻ = uᵢ + ½Δᵢ sᵢ,     u_i⁺ = uᵢ − ½Δᵢ sᵢ,     sᵢ = φ(backward quotient, forward quotient),

with a limiter φ that is nought at extrema, so that no new ones arise. The order is 2 where the solution is smooth
("none": in every norm; the others lose it at extrema, and keep it in the mean of the absolute error). The flux
between the two states is Rusanov's (local Lax–Friedrichs), F = ½(f(u⁻) + f(u⁺)) − ½a(u⁺ − u⁻), a the fastest signal:
entropic for every system, and more diffusive at contacts than solvers made for one.

Sides of a bounded axis (the boundary is the outer face, half a cell beyond the last node):

- "wall": the state is mirrored, and the components named in `odd` (velocity or momentum normal to the wall) change
  sign: no mass passes, pressure does.
- "outflow": the last cell continues.
- a tensor (C,) or one that broadcasts to a slab of cells: what is outside, for an inflow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .grid import Grid

Side = Literal["wall", "outflow"] | Tensor
Flux = Callable[[Tensor, str], Tensor]  # (state (…, C, *faces), axis) -> flux along that axis, of the same shape

GHOSTS = 2


def minmod(a: Tensor, b: Tensor) -> Tensor:
    """The smaller in size of two slopes of one sign, else nought: the most diffusive limiter of order 2."""
    return torch.where(a * b > 0, torch.where(a.abs() < b.abs(), a, b), 0.0)


def van_leer(a: Tensor, b: Tensor) -> Tensor:
    """Harmonic mean 2ab/(a + b) of two slopes of one sign, else nought; smooth, so gradients pass."""
    same = a * b > 0
    return torch.where(same, 2 * a * b / torch.where(same, a + b, 1.0), 0.0)


def central(a: Tensor, b: Tensor) -> Tensor:
    """No limiter: the mean of the two slopes. Overshoots at shocks."""
    return (a + b) / 2


LIMITERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"minmod": minmod, "van_leer": van_leer, "none": central}


class Volumes:
    """Finite volumes on a Cartesian grid.

    Args:
        grid: Axes in units of length, periodic or not, even or stretched.
        limiter: "van_leer", "minmod" or "none".
        sides: (left, right) sides of bounded axes by name; walls where nothing is said.
        odd: Channels that change sign at a wall, by the name of the axis that the wall ends.

    Raises:
        ValueError: For a latitude or longitude, an unknown limiter, or sides of an axis that has none.
    """

    def __init__(
        self,
        grid: Grid,
        limiter: str = "van_leer",
        sides: Mapping[str, tuple[Side, Side]] | None = None,
        odd: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if any(a.kind != "cartesian" for a in grid.axes):
            raise ValueError(
                f"finite volumes: found the grid ({grid}), wanted Cartesian axes (see lapse.physics.sphere)"
            )
        if limiter not in LIMITERS:
            raise ValueError(f"finite volumes: found limiter={limiter!r}, wanted one of {sorted(LIMITERS)}")
        for name in {*(sides or {}), *(odd or {})}:
            if name not in grid.names or (sides and name in sides and grid.axes[grid.index(name)].periodic):
                raise ValueError(
                    f"finite volumes: found sides or odd channels for the axis {name!r}, wanted bounded axes of the "
                    f"grid ({grid})"
                )
        self.grid = grid
        self.limiter = LIMITERS[limiter]
        self.sides: dict[str, tuple[Side, Side]] = dict(sides or {})
        self.odd = {name: tuple(channels) for name, channels in (odd or {}).items()}

    def padded(self, u: Tensor, name: str) -> Tensor:
        """State (…, C, *space) with two ghost cells at both ends of an axis."""
        self._check(u)
        dim = self._dim(name)
        n = u.shape[dim]
        if n < GHOSTS:
            raise ValueError(f"axis {name!r}: found {n} cells, wanted at least {GHOSTS}")
        first, last = u.narrow(dim, 0, GHOSTS), u.narrow(dim, n - GHOSTS, GHOSTS)
        if self.grid.axes[self.grid.index(name)].periodic:
            return torch.cat((last, u, first), dim=dim)
        left, right = self.sides.get(name, ("wall", "wall"))
        return torch.cat((self._ghosts(first, left, name, 0), u, self._ghosts(last, right, name, -1)), dim=dim)

    def reconstruct(self, u: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """States just before and just behind each of the n + 1 faces of an axis, both (…, C, *faces)."""
        dim = self._dim(name)
        p = self.padded(u, name)
        n = p.shape[dim]
        width = self._widths(p, name)
        between = (width.narrow(dim, 0, n - 1) + width.narrow(dim, 1, n - 1)) / 2
        quotient = (p.narrow(dim, 1, n - 1) - p.narrow(dim, 0, n - 1)) / between
        slope = self.limiter(quotient.narrow(dim, 0, n - 2), quotient.narrow(dim, 1, n - 2))
        half = width.narrow(dim, 1, n - 2) / 2 * slope
        inner = p.narrow(dim, 1, n - 2)
        return (inner + half).narrow(dim, 0, n - 3), (inner - half).narrow(dim, 1, n - 3)

    def difference(self, F: Tensor, name: str) -> Tensor:
        """(F_{i+1} − F_i)/Δᵢ: fluxes through the n + 1 faces of an axis -> cells (…, *space)."""
        i = self.grid.index(name)
        dim, n = self._dim(name), self.grid.shape[i]
        if F.shape[dim] != n + 1:
            raise ValueError(
                f"axis {name!r}: found fluxes through {F.shape[dim]} faces, wanted {n + 1}, one more than cells"
            )
        width = torch.tensor(self.grid.axes[i].widths, dtype=F.dtype, device=F.device)
        width = width.reshape(-1, *(1,) * (-dim - 1))
        return (F.narrow(dim, 1, n) - F.narrow(dim, 0, n)) / width

    def transport(self, u: Tensor, flux: Flux, speed: Flux) -> Tensor:
        """−∇·f(u), the rate of change of a hyperbolic system.

        Args:
            u: Cell means (…, C, *space).
            flux: f, (state, axis) -> flux of every channel along that axis.
            speed: (state, axis) -> size of the fastest signal along that axis, broadcastable to the state.
        """
        out = torch.zeros_like(u)
        for name in self.grid.names:
            before, behind = self.reconstruct(u, name)
            a = torch.maximum(speed(before, name), speed(behind, name))
            out = out - self.difference((flux(before, name) + flux(behind, name) - a * (behind - before)) / 2, name)
        return out

    def diffusion(self, u: Tensor, coefficient: Tensor | float = 1.0) -> Tensor:
        """∇·(κ∇u) from two-point fluxes, of order 2; no flux through walls, but for odd channels.

        Args:
            u: Cell means (…, C, *space).
            coefficient: κ, one number, or a field that broadcasts to u; at a face it is the mean of both sides.
        """
        out = torch.zeros_like(u)
        kappa = torch.as_tensor(coefficient, dtype=u.dtype, device=u.device).expand(u.shape)
        for name in self.grid.names:
            dim = self._dim(name)
            p = self.padded(u, name)
            # κ has no sides of its own: the nearest cell's stands for what is outside.
            k = self._repeated(kappa, name)
            n = p.shape[dim] - 2 * GHOSTS + 1
            width = self._widths(p, name)

            def pair(t: Tensor, dim: int = dim, n: int = n) -> tuple[Tensor, Tensor]:
                return t.narrow(dim, GHOSTS - 1, n), t.narrow(dim, GHOSTS, n)

            (a, b), (ka, kb), (wa, wb) = pair(p), pair(k), pair(width)
            out = out + self.difference((ka + kb) / (wa + wb) * (b - a), name)
        return out

    def total(self, u: Tensor) -> Tensor:
        """Σ Vᵢ uᵢ in float64: (…, C, *space) -> (…, C)."""
        self._check(u)
        volume = torch.ones(self.grid.shape, dtype=torch.float64, device=u.device)
        for name, axis in zip(self.grid.names, self.grid.axes, strict=True):
            volume = volume * torch.tensor(axis.widths, dtype=torch.float64, device=u.device).reshape(
                -1, *(1,) * (-self._dim(name) - 1)
            )
        return (u.to(torch.float64) * volume).sum(dim=tuple(range(-self.grid.ndim, 0)))

    def _ghosts(self, near: Tensor, side: Side, name: str, end: int) -> Tensor:
        dim = self._dim(name)
        if isinstance(side, Tensor):
            value = side.to(near)
            if value.ndim == 1:
                value = value.reshape(-1, *(1,) * self.grid.ndim)
            return value.expand(near.shape)
        if side == "outflow":
            return near.narrow(dim, 0 if end == 0 else GHOSTS - 1, 1).expand(near.shape)
        if side != "wall":
            raise ValueError(f"axis {name!r}: found the side {side!r}, wanted 'wall', 'outflow' or a tensor")
        sign = torch.ones(near.shape[-self.grid.ndim - 1], dtype=near.dtype, device=near.device)
        sign[list(self.odd.get(name, ()))] = -1
        return near.flip(dim) * sign.reshape(-1, *(1,) * self.grid.ndim)

    def _repeated(self, k: Tensor, name: str) -> Tensor:
        dim = self._dim(name)
        n = k.shape[dim]
        first, last = k.narrow(dim, 0, 1), k.narrow(dim, n - 1, 1)
        if self.grid.axes[self.grid.index(name)].periodic:
            first, last = last, first
        return torch.cat((*(first,) * GHOSTS, k, *(last,) * GHOSTS), dim=dim)

    def _widths(self, p: Tensor, name: str) -> Tensor:
        """Widths of the cells of a padded state, as wide outside as their mirror images, ready to broadcast."""
        w = self.grid.axes[self.grid.index(name)].widths
        full = (*w[GHOSTS - 1 :: -1], *w, *w[: -GHOSTS - 1 : -1])
        return torch.tensor(full, dtype=p.dtype, device=p.device).reshape(-1, *(1,) * (-self._dim(name) - 1))

    def _dim(self, name: str) -> int:
        return self.grid.index(name) - self.grid.ndim

    def _check(self, u: Tensor) -> None:
        d = self.grid.ndim
        if u.ndim <= d or tuple(u.shape[-d:]) != self.grid.shape:
            raise ValueError(
                f"finite volumes: found a state of shape {tuple(u.shape)}, wanted (…, C, *{self.grid.shape}) for the "
                f"grid ({self.grid})"
            )
