"""What can be said of a stretch of frames by the law alone, on tensors: `diagnose` puts the stretches together.

Residuals are of pairs of frames, or of more; a stretch therefore overlaps the next by `halo` frames. Everything else is
of single frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..physics.equation import Equation
from ..physics.operators import derivative, div
from ..physics.residual import Form, residual, rms, scale
from ..physics.spectrum import band_power, bands
from ..physics.weak import Windows, weak
from ..physics.weak import scale as weak_scale

__all__ = ["LEAST", "Diagnosis"]

LEAST: Mapping[str, int] = {"strong": 3, "defect": 2, "hermite": 2, "weak": 2}
"""Frames that each form of the residual needs."""
VELOCITY = {2: ("u", "v"), 3: ("u", "v", "w")}


@dataclass(frozen=True)
class Diagnosis:
    """The measurements of one law.

    Attributes:
        law: the equation.
        interval: between frames, in its unit of time.
        form: of the residual.
        frames: length of the whole series, which decides the order of the strong form's time derivative.
        windows: of the weak form.
    """

    law: Equation
    interval: float
    form: Form
    frames: int
    windows: Windows = field(default_factory=Windows)

    @property
    def halo(self) -> int:
        """Frames of a stretch that have no residual of their own."""
        return (4 if self.frames >= 5 else 2) if self.form == "strong" else 1

    @property
    def _accuracy(self) -> int | None:
        """Of the strong form's time difference, the same in every stretch."""
        return self.halo if self.form == "strong" else None

    @property
    def first(self) -> int:
        """The frame that the first residual stands at: the later one of a pair, the middle one of a stencil."""
        return self.halo // 2 if self.form == "strong" else 1

    @property
    def last(self) -> int:
        """Frames at the end that no residual stands at."""
        return self.halo - self.first

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Edges of three spectral bands."""
        return bands(self.law.grid)

    def fields(self, u: Tensor) -> Tensor:
        """The residual field of (T, C, *space): (T − halo, C, *space), or windows for the weak form."""
        if self.form == "weak":
            return weak(self.law, u, self.interval, self.windows)
        return residual(self.law, u, self.interval, self.form, self._accuracy)

    def residuals(self, u: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The field, and its norms: rms and rms of its scale (T′, C), and by band (T′, C, bands)."""
        R = self.fields(u)
        if self.form == "weak":
            S = weak_scale(self.law, u, self.interval, self.windows)
        else:
            S = scale(self.law, u, self.interval, self.form, self._accuracy)
        grid = self.law.grid
        out = {"residual_rms": rms(R, grid), "residual_scale": rms(S, grid)}
        if self.form != "weak":
            out["residual_band"] = band_power(R, grid, self.edges).sqrt()
            out["residual_band_scale"] = band_power(S, grid, self.edges).sqrt()
        return R, out

    def states(self, u: Tensor) -> dict[str, Tensor]:
        """Of each frame of (T, C, *space): finite (T), invariant (T, Q), seam (T, C, axes), boundary_error (T, sides),
        divergence and velocity_gradient (T); those that the law has."""
        out = {"finite": torch.isfinite(u).flatten(1).all(1)}
        if found := self.law.invariants(u):
            out["invariant"] = torch.stack(list(found.values()), dim=-1)
        if self.periodic:
            out["seam"] = torch.stack([self._seam(u, name) for name in self.periodic], dim=-1)
        if sides := self._boundary(u):
            out["boundary_error"] = torch.stack([e.square().flatten(1).mean(1).sqrt() for e in sides.values()], dim=-1)
        if self.velocity:
            v = u[:, [self.law.variables.index(name) for name in self.velocity]]
            grid, accuracy = self.law.grid, getattr(self.law, "accuracy", None)  # the operator that the law uses
            slopes = torch.stack([rms(derivative(v, grid, name, 1, accuracy), grid) for name in grid.names])
            out["divergence"] = rms(div(v, grid, accuracy), grid)
            out["velocity_gradient"] = slopes.square().sum((0, -1)).sqrt()
        return out

    @property
    def periodic(self) -> tuple[str, ...]:
        """Axes that go round."""
        return tuple(a.name for a in self.law.grid.axes if a.periodic and a.size > 1)

    @property
    def velocity(self) -> tuple[str, ...]:
        """Names of the velocity's components, where the law has them and the grid is Cartesian."""
        grid = self.law.grid
        names = VELOCITY.get(grid.ndim, ())
        flat = all(a.kind == "cartesian" for a in grid.axes)
        return names if flat and set(names) <= set(self.law.variables) else ()

    @cached_property
    def quantities(self) -> tuple[str, ...]:
        """Names of the law's invariants, as it reports them."""
        return tuple(self.law.invariants(self._still))

    @property
    def _still(self) -> Tensor:
        """A state without features, of positive values, to ask the law for names."""
        return torch.ones(1, len(self.law.variables), *self.law.grid.shape, dtype=torch.float64)

    @cached_property
    def sides(self) -> tuple[str, ...]:
        """Names of the sides at which the law knows the state."""
        return tuple(self._boundary(self._still))

    def _boundary(self, u: Tensor) -> dict[str, Tensor]:
        boundary: Callable[[Tensor], dict[str, Tensor]] | None = getattr(self.law, "boundary", None)
        return {} if boundary is None else boundary(u)

    def _seam(self, u: Tensor, name: str) -> Tensor:
        """Rms step from the last node of a periodic axis to its first, over that between neighbours: (T, C)."""
        d = self.law.grid.ndim
        dim = self.law.grid.index(name) - d
        step = (u.roll(-1, dim) - u).to(torch.float64).square()
        last = step.narrow(dim, step.shape[dim] - 1, 1).flatten(2).mean(-1)
        return (last / step.flatten(2).mean(-1)).sqrt()
