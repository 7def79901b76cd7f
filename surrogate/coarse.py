"""A coarse run of the equation's own solver, for networks to start from.

    ℓ(z) = E( u + R [ Φ_c(T u) − T u ] ),        u = D(z)

T truncates a field to a coarser grid, Φ_c is the solver's map over the frame interval there, and R interpolates back:
what the coarse grid does not hold, persists. The networks see z and ℓ(z) and learn what such a run misses, and nothing
that it knows (a learned correction: Um et al. 2020, arXiv:2007.00016; Kochkov et al. 2021,
doi:10.1073/pnas.2101784118). It also knows the equation's parameters, so that a model goes along when they change.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..datasets.spec import FieldSpec
from ..physics.grid import Grid
from ..physics.operators import refine, truncate
from .law import law

__all__ = ["CoarseSolver"]


class CoarseSolver:
    """``fields (B, C, *space) -> fields`` one frame interval later, roughly.

    Arguments:
        spec: of the model; it names the equation and holds its parameters.
        resolution: nodes along the longest axis; other axes keep their ratio. None: the grid of the spec.
        steps: of the solver in a frame interval; None: as many as it takes of its own accord on the coarse grid.

    Raises ValueError for a spec without an equation, one whose state is seen in part, and where a coarser grid does not
    exist.
    """

    def __init__(self, spec: FieldSpec, resolution: int | None = None, steps: int | None = None) -> None:
        self.spec, self.resolution, self.steps = spec, resolution, steps
        if steps is not None and steps < 1:
            raise ValueError(f"emulator.coarse.steps: found {steps}, wanted 1 or more, or null for the solver's own")
        self.grid = spec.grid if resolution is None else _coarser(spec.grid, resolution)
        self.law = law(spec.replace(grid=self.grid, masks={}))
        if sorted(self.law.variables) != sorted(spec.names):
            found, wanted = ", ".join(spec.names), ", ".join(self.law.variables)
            raise ValueError(f"emulator.coarse: found the variables {found}, wanted those of {spec.equation}, {wanted}")
        if spec.masks or self.law.algebraic:
            found = "masked cells" if spec.masks else f"{', '.join(self.law.algebraic)} without a rate of change"
            raise ValueError(f"emulator.coarse: found {found}, wanted a law that moves every variable in every cell")
        self.order = [spec.names.index(n) for n in self.law.variables]
        self.back = [self.law.variables.index(n) for n in spec.names]

    def at(self, parameters: Mapping[str, float]) -> "CoarseSolver":
        """The same at other parameters of the equation."""
        known = {k: v for k, v in parameters.items() if k in self.spec.parameters}
        spec = self.spec.replace(parameters={**self.spec.parameters, **known})
        return CoarseSolver(spec, self.resolution, self.steps)

    def __call__(self, u: Tensor) -> Tensor:
        whole, kind = self.grid is self.spec.grid, u.dtype
        u = u if kind == torch.float64 else u.float()  # solvers know nothing of half precision
        known = u[:, self.order] if len(self.order) > 1 else u
        before = known if whole else truncate(known, self.spec.grid, self.grid)
        after = self.law.advance(before, self.spec.interval, self.steps)
        if not whole:
            after = known + refine(after - before, self.grid, self.spec.grid)
        return (after[:, self.back] if len(self.back) > 1 else after).to(kind)


def _coarser(grid: Grid, resolution: int) -> Grid:
    longest = max(grid.shape)
    if not all(grid.periodic) or not 4 <= resolution <= longest:
        wanted = f"periodic axes and 4 to {longest} nodes, or null for the grid of the data"
        raise ValueError(f"emulator.coarse.resolution: found {resolution} and the grid ({grid}), wanted {wanted}")
    shape = [round(n * resolution / longest) for n in grid.shape]
    if any(m < min(4, n) for m, n in zip(shape, grid.shape, strict=True)):
        raise ValueError(f"emulator.coarse.resolution: found {resolution}, {shape} nodes, wanted 4 or more an axis")
    return grid.resampled(shape)
