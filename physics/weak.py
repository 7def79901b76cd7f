"""The weak residual: a law as a balance, tested in windows of space and time.

An equation that states itself as ∂q/∂t + ∇·f = ∇²d + s (see :class:`~lapse.physics.equation.Equation`) holds in the
weak sense if for every smooth φ that vanishes at the sides of its window

    R[φ] = [∫φ q]_{t₀}^{t₁} − ∫∫ (q φ_t + f·∇φ + d ∇²φ + s φ)  =  0        (divided by ∫∫φ)

All derivatives stand on φ, so R is finite at shocks and contacts, where the strong form is not a function, and white
noise in u averages out where differences would magnify it. R has the units of ∂q/∂t. It is the weak form of LeVeque
(2002, doi:10.1017/CBO9780511791253, section 11.11), read as a measurement, as in Gurevich, Reinbold & Grigoriev (2019,
doi:10.1063/1.5120861) and Messenger & Bortz (2021, doi:10.1137/20M1343166).

The test functions are products of bumps (1 − ξ²)^p, ξ = (x − c)/H, with p = 4 in space, where φ is differentiated
twice, and p = 2 in time, where smoothness costs more noise than it saves error. Centres are half a half-width apart: a
whole one apart they would be blind to an error of the flux at a centre, since φ_x is nought there and at the edges of
the neighbours. Windows of bounded axes lie inside, those of periodic axes go round. In time the first and the last are
centred at the ends of the record and cut off there; the boundary term then holds the first or the last frame. A
prescribed first frame in its place anchors the residual: without one the zero field, and every constant, is a solution.

Integrals are sums over nodes times cell widths (the trapezoid rule, with Gregory's correction of order 4 at the ends
in time), corrected by the smallest multiple of φ times a polynomial for which the derivatives of polynomials of degree
1 (∂) and 2 (∂²) are exact. A constant state then has the residual nought to round-off, however large it is. For smooth
solutions the error is of order 2 in Δ, since φ_t has kinks, and of higher order in the cells' width.

Half-widths of 10 cells and 64 frames were chosen by measurement (docs/decisions, 0020): wider windows find smaller
errors in clean data, and hear the noise sooner, since their own error falls faster than the noise does. Short ones in
time hear more noise.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .balance import Balance
from .equation import Equation
from .grid import Axis, Grid

LEAST_NODES, LEAST_INSIDE = 12, 5  # of an axis, of a window
LEAST_FRAMES = 8  # with fewer the whole record is one window, and φ is 1 in time


@dataclass(frozen=True)
class Windows:
    """How large the windows are.

    Args:
        cells: Half-width along each axis, in cells; at most a quarter of the axis is taken.
        frames: Half-width in time, in frames; at most the record is taken.
        space_power, time_power: p of the bump (1 − ξ²)^p, 3 or more in space and 2 or more in time.
    """

    cells: int = 10
    frames: int = 64
    space_power: int = 4
    time_power: int = 2

    def __post_init__(self) -> None:
        if self.cells < 3 or self.frames < 2:
            raise ValueError(f"windows: found {self.cells} cells, {self.frames} frames, wanted at least 3 and 2")
        if self.space_power < 3 or self.time_power < 2:
            found = f"powers {self.space_power} in space, {self.time_power} in time"
            raise ValueError(f"windows: found {found}, wanted at least 3 and 2: φ must be smooth at its edges")

    def grid(self, grid: Grid) -> Grid:
        """Centres of the windows in space, as a grid."""
        return Grid(tuple(Axis(a.name, self._centres(a)[0], a.units, a.periodic) for a in grid.axes))

    def times(self, frames: int, interval: float) -> tuple[float, ...]:
        """Centres of the windows in time, from the first frame."""
        if frames < LEAST_FRAMES:
            return ((frames - 1) * interval / 2,)
        n = max(1, round(2 * (frames - 1) / self.frames))
        return tuple(i * (frames - 1) * interval / n for i in range(n + 1))

    def _centres(self, axis: Axis) -> tuple[tuple[float, ...], float]:
        """Centres of the windows along an axis, and their half-width."""
        if axis.kind != "cartesian":
            raise ValueError(f"axis {axis.name!r}: found units {axis.units!r}, wanted a Cartesian axis")
        if axis.size < LEAST_NODES:
            raise ValueError(
                f"axis {axis.name!r}: found {axis.size} nodes, wanted at least {LEAST_NODES} for the windows of the "
                "weak form"
            )
        x, first = axis.coordinates, axis.coordinates[0]
        H = min(self.cells, axis.size // 4) * axis.length / axis.size
        if axis.periodic:
            n = max(4, round(2 * axis.length / H))
            return tuple(first + i * axis.length / n for i in range(n)), H
        room = x[-1] - first - 2 * H
        n = max(1, round(2 * room / H))
        return tuple(first + H + i * room / n for i in range(n + 1)), H


@dataclass(frozen=True)
class _Rows:
    """One row a window: weights of ∫φ u, of ∂u (here −∫φ′u) and of ∂²u (here ∫φ″u), all divided by ∫φ."""

    mean: Tensor
    first: Tensor
    second: Tensor
    initial: Tensor  # share of u(t₀) in the boundary term of `first`


def weak(
    equation: Equation, u: Tensor, interval: float, windows: Windows | None = None, initial: Tensor | None = None
) -> Tensor:
    """The weak residual R[φ] of each window.

    Args:
        equation: A law that states its `flux`, on a Cartesian grid with at least 12 nodes along each axis.
        u: Frames (…, T, C, *space), `interval` apart.
        interval: Δ, in the equation's unit of time.
        windows: Their size.
        initial: First frame (…, C, *space) that the record should have begun with, the anchor; None: its own.

    Returns:
        (…, windows in time, C, *windows in space), in units of ∂q/∂t; `Windows.grid` and `Windows.times` say where.

    Raises:
        NotImplementedError: If the equation states no flux.
        ValueError: For an axis that is too short or not Cartesian, or fewer than two frames.
    """
    law = balance(equation, u)
    if initial is not None:
        equation.check(initial)
        initial = equation.conserved(initial)
    return torch.stack(terms(law, equation.grid, interval, windows, initial)).sum(0)


def scale(equation: Equation, u: Tensor, interval: float, windows: Windows | None = None) -> Tensor:
    """What the weak residual is small against: the largest term of the balance in each window, of the same shape."""
    return torch.stack(terms(balance(equation, u), equation.grid, interval, windows)).abs().amax(0)


def balance(equation: Equation, u: Tensor) -> Balance:
    """The terms of an equation's balance at the states (…, T, C, *space)."""
    equation.check(u)
    return Balance(equation.conserved(u), equation.flux(u), equation.diffused(u), equation.source(u))


def terms(
    law: Balance, grid: Grid, interval: float, windows: Windows | None = None, initial: Tensor | None = None
) -> list[Tensor]:
    """The terms of R[φ], each (…, windows in time, C, *windows in space): the time derivative, the derivative of the
    flux along each axis, of d likewise, and the source. `initial` is what q should have been in the first frame."""
    windows = windows or Windows()
    q, d = law.q, grid.ndim
    time = -d - 2
    if q.ndim < -time or q.shape[time] < 2:
        raise ValueError(f"weak residual: found a tensor of shape {tuple(q.shape)}, wanted (…, T, C, *space), T > 1")
    wanted = (*q.shape[: time + 1], d, *q.shape[time + 1 :])
    if tuple(law.flux.shape) != wanted:
        raise ValueError(f"weak residual: found a flux of shape {tuple(law.flux.shape)}, wanted {wanted}")
    t = _time_rows(windows, q.shape[time], float(interval))
    x = [_space_rows(windows, axis) for axis in grid.axes]
    mean = [rows.mean for rows in x]

    def over(v: Tensor, in_time: Tensor, in_space: list[Tensor]) -> Tensor:
        for dim, rows in ((time, in_time), *zip(range(-d, 0), in_space, strict=True)):
            v = torch.movedim(torch.movedim(v, dim, -1) @ rows.T.to(v), -1, dim)
        return v

    found = [over(q, t.first, mean)]
    if initial is not None:
        found[0] = found[0] + over((q.select(time, 0) - initial).unsqueeze(time), t.initial, mean)
    for j in range(d):
        component = law.flux.select(time, d - 1 - j)  # the components follow the axes from the last to the first
        found.append(over(component, t.mean, [r.first if i == j else r.mean for i, r in enumerate(x)]))
    if law.diffused is not None:
        for j in range(d):
            found.append(-over(law.diffused, t.mean, [r.second if i == j else r.mean for i, r in enumerate(x)]))
    if law.source is not None:
        found.append(-over(law.source.expand(q.shape), t.mean, mean))
    return found


@lru_cache(maxsize=16)
def _time_rows(windows: Windows, frames: int, interval: float) -> _Rows:
    nodes = torch.arange(frames, dtype=torch.float64) * interval
    weights = _gregory(frames) * interval
    if frames < LEAST_FRAMES:
        mean = (weights / weights.sum())[None]
        first, initial = torch.zeros(2, 1, frames, dtype=torch.float64)
        initial[0, 0] = 1 / nodes[-1]
        first[0, -1], first[0, 0] = initial[0, 0], -initial[0, 0]
        return _Rows(mean, first, torch.zeros_like(first), initial[:, :1])
    centres = windows.times(frames, interval)
    H = min(2 * nodes[-1] / (len(centres) - 1), nodes[-1])
    return _rows(
        nodes[None] - torch.tensor(centres, dtype=torch.float64)[:, None],
        weights,
        float(H),
        windows.time_power,
        ends=True,
    )


@lru_cache(maxsize=64)
def _space_rows(windows: Windows, axis: Axis) -> _Rows:
    centres, H = windows._centres(axis)
    y = torch.tensor(axis.coordinates, dtype=torch.float64) - torch.tensor(centres, dtype=torch.float64)[:, None]
    if axis.periodic:
        y = torch.remainder(y + axis.length / 2, axis.length) - axis.length / 2
    if (least := int((y.abs() < H).sum(1).min())) < LEAST_INSIDE:
        raise ValueError(
            f"axis {axis.name!r}: found a window of half-width {H:g} with {least} nodes, wanted at least "
            f"{LEAST_INSIDE} (interpolate to an axis that is less stretched, or take windows of more cells)"
        )
    return _rows(y, torch.tensor(axis.widths, dtype=torch.float64), H, windows.space_power, ends=False)


def _rows(y: Tensor, weights: Tensor, H: float, p: int, ends: bool) -> _Rows:
    """Rows for test functions (1 − ξ²)^p at the distances y (windows, nodes) from their centres."""
    xi = y / H
    r = (1 - xi**2).clamp(min=0)  # nought outside, and so are all powers that are taken of it
    total = (r**p * weights).sum(1, keepdim=True)
    mean = r**p * weights / total
    first = 2 * p * xi * r ** (p - 1) / H * weights / total
    second = 2 * p * (2 * (p - 1) * xi**2 * r ** (p - 2) - r ** (p - 1)) / H**2 * weights / total
    initial = torch.zeros_like(total)
    if ends:
        initial = r[:, :1] ** p / total
        first[:, :1] -= initial
        first[:, -1:] += r[:, -1:] ** p / total
    first = _exact(first, mean, xi, [0.0, 1 / H])
    second = _exact(second, mean, xi, [0.0, 0.0, 2 / H**2])
    return _Rows(mean, first, second, initial)


def _exact(rows: Tensor, mean: Tensor, xi: Tensor, wanted: list[float]) -> Tensor:
    """Rows plus `mean` times the polynomial in ξ for which 1, ξ, … give the wanted values."""
    V = torch.stack([xi**k for k in range(len(wanted))], dim=1)  # (windows, degree + 1, nodes)
    G = (V * mean[:, None]) @ V.mT
    c: Tensor = torch.linalg.solve(G, torch.tensor(wanted, dtype=V.dtype) - (V @ rows[:, :, None])[..., 0])
    corrected: Tensor = rows + mean * (c[:, None] @ V)[:, 0]
    return corrected


def _gregory(n: int) -> Tensor:
    """Weights of n equidistant nodes: the trapezoid rule, corrected to order 4 at both ends where n allows it."""
    w = torch.ones(n, dtype=torch.float64)
    ends = (3 / 8, 7 / 6, 23 / 24) if n >= 6 else (1 / 2,)
    for i, e in enumerate(ends):
        w[i] = w[n - 1 - i] = e
    return w
