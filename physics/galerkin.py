"""Equations solved by a Fourier–Galerkin method on a periodic box.

The state is kept as packed amplitudes (see `modes.py`) for a whole frame interval; a subclass states its
stiff, diagonal linear part L and everything else, N, both acting on amplitudes:

    dŵ/dt = L ŵ + N(ŵ).

Quadratic products are evaluated on a grid fine enough to be free of aliasing, so the semi-discrete equations
inherit whatever the exact ones conserve through quadratic identities. Time is ETDRK4.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .equation import Equation
from .grid import Grid
from .modes import Modes
from .stepping import ETDRK4

_AXES = {1: "one periodic axis (x)", 2: "two periodic axes (y, x)", 3: "three periodic axes (z, y, x)"}


class Galerkin(Equation):
    """An equation on a periodic box whose last axis is x.

    Args:
        grid: Where states are sampled.
        modes: Largest kept mode number, one for all axes or one each. None keeps every mode of the grid, with
            products padded to 3/2 of its size (twice its size for cubic ones); ``(n - 1) // 3`` is the two-thirds
            rule, whose quadratic products fit the grid.
        **parameters: Physical parameters.

    Attributes:
        dimensions: Numbers of axes on which the equation makes sense.
        degree: Of the highest product in :meth:`nonlinear`, which decides the size of the grid for it.
        gradient: The symbol i k of the gradient, (d, *modes.shape), components along the axes from the last (x) on.
    """

    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3)
    degree: ClassVar[int] = 2

    def __init__(self, grid: Grid, modes: int | Sequence[int] | None = None, **parameters: float) -> None:
        super().__init__(grid, **parameters)
        if grid.ndim not in self.dimensions or not all(grid.periodic):
            wanted = " or ".join(_AXES[d] for d in self.dimensions)
            raise ValueError(f"{self.name}: found the grid ({grid}), wanted {wanted}")
        self.modes = Modes(grid, modes)
        self.nodes = self.modes.nodes(self.degree)
        k = self.modes.wavenumbers()
        self.k2 = sum((kj**2 for kj in k[:-1]), start=k[-1] ** 2)
        self.kmax = max(float(kj.max()) for kj in k)
        one = torch.ones_like(self.k2)
        self.gradient = torch.stack([1j * kj * one for kj in reversed(k)])
        self._cast: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._steppers: dict[tuple[float, torch.dtype, torch.device], ETDRK4] = {}

    @abstractmethod
    def linear(self) -> Tensor:
        """L: float64 or complex128, broadcastable to amplitudes (C, *modes.shape)."""

    @abstractmethod
    def nonlinear(self, w: Tensor) -> Tensor:
        """N: amplitudes (…, C, *modes.shape) -> the same shape."""

    def rhs(self, u: Tensor) -> Tensor:
        self.check(u)
        w = self.modes.analyse(u)
        L = self.linear()
        return self.modes.synthesise(L.to(w if L.is_complex() else u) * w + self.nonlinear(w))

    def step(self, u: Tensor, dt: float) -> Tensor:
        return self.advance(u, dt, steps=1)

    def advance(self, u: Tensor, interval: float, steps: int | None = None) -> Tensor:
        self.check(u)
        n = self.steps(interval) if steps is None else steps
        w = self.modes.analyse(u)
        stepper = self._stepper(interval / n, u)
        for _ in range(n):
            w = stepper(w, self.nonlinear)
        return self.modes.synthesise(w)

    def bound(self, speed: float) -> float:
        """A speed that limits the time step. Raises ValueError unless it is positive."""
        if not 0 < speed < math.inf:
            raise ValueError(f"{self.name}: found speed={speed}, wanted a positive speed")
        return float(speed)

    def constant(self, name: str, w: Tensor) -> Tensor:
        """An attribute on the device of w and in its precision; cached, since converting costs as much as using."""
        key = (name, w.dtype, w.device)
        if key not in self._cast:
            value: Tensor = getattr(self, name)
            single = w.dtype in (torch.complex64, torch.float32)
            real, complex_ = (torch.float32, torch.complex64) if single else (torch.float64, torch.complex128)
            self._cast[key] = value.to(w.device, complex_ if value.is_complex() else real)
        return self._cast[key]

    def _stepper(self, dt: float, u: Tensor) -> ETDRK4:
        key = (dt, u.dtype, u.device)
        if key not in self._steppers:
            self._steppers[key] = ETDRK4(self.linear().to(u.device), dt, u.dtype)
        return self._steppers[key]
