"""The critic: what the true solver makes of a designed state.

Either the equation that a model's spec names, run in float64, or the user's own solver: a function that takes the
designed frames as a Dataset, as `design` returns them, and gives back the frames that follow, one an interval.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.check import check
from ..datasets.fields import to_dataset, to_tensor
from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from ..datasets.time import lead_coordinate, valid_time
from .case import Case
from .law import solved
from .noise import spelling
from .view import viewed

__all__ = ["Critic", "Solver"]

Solver = Callable[[xr.Dataset], xr.Dataset]
"""From frames ``(time, *space)`` in physical units, newest last, with the attribute ``parameters`` (JSON), to the
``steps`` frames after the newest, over ``time`` or, as `forecast` lays them out, over ``lead_time``."""


class Critic:
    """The solver for one case.

    Arguments:
        case: start, objective and number of frames.
        solver: "solver" for the equation of the model's spec, or the user's own.

    Raises ValueError where the spec names no equation in the model's variables.
    """

    def __init__(self, case: Case, solver: Literal["solver"] | Solver) -> None:
        spec = case.model.spec
        if not callable(solver) and (solver != "solver" or case.law is None):
            raise ValueError(
                f"verify: found {solver!r} and a model of {', '.join(spec.names)} with the equation {spec.equation!r}; "
                "wanted 'solver' and an equation of lapse.physics in these variables, or a function from the designed "
                "Dataset to the frames that follow. Usual fix: verify=None, or such a function of your own solver"
            )
        self.case, self.solver = case, solver
        self.name = getattr(solver, "__name__", type(solver).__name__) if callable(solver) else repr(case.law)

    @torch.no_grad()
    def run(self, u: Tensor) -> Tensor:
        """The frames ``(steps, C, *space)``, float64, after the frames ``u (history, C, *space)``.

        What the solver may say of a state that no flow would be in, it may say: values are not judged. Raises SpecError
        where a solver of the user's gives back other frames than were wanted.
        """
        if callable(self.solver):
            return self._asked(u, self.solver)
        assert self.case.law is not None
        return solved(self.case.law, self.case.model.spec, u[-1:], self.case.steps)[0]

    @torch.no_grad()
    def worth(self, u: Tensor, run: Tensor) -> float:
        """The objective of a ``run`` from ``u``."""
        return float(self.case.value(viewed(run[None], self.case.model.spec, u[-1].to(run))))

    def _asked(self, u: Tensor, solver: Solver) -> Tensor:
        case, spec = self.case, self.case.model.spec
        attrs = {"parameters": json.dumps(dict(spec.parameters))}
        found = solver(to_dataset(u, spec, ("time",), {"time": case.frames["time"]}, attrs))
        where = f"verify, {self.name}"
        if not isinstance(found, xr.Dataset):
            wanted, fix = "a Dataset of the frames that follow", "return frames over time, one an interval"
            raise SpecError([Problem(where, f"a {type(found).__name__}", wanted, fix)])
        start, wanted_leads = case.frames["time"].values[-1], lead_coordinate(spec, case.steps)
        if "lead_time" in found.dims:  # laid out as a forecast
            found = found.isel(init_time=0, drop=True) if "init_time" in found.dims else found
            counted = lead_coordinate(spec, found.sizes["lead_time"])
            leads = found["lead_time"] if "lead_time" in found.coords else counted
            found = found[[n for n in spec.names if n in found]].drop_vars(["lead_time", "valid_time"], errors="ignore")
            found = found.rename(lead_time="time").assign_coords(time=valid_time(start, leads, spec).values)
        frames = check(found, spec, gaps=True, values=False)
        times = frames["time"].values if "time" in frames.dims else np.empty(0)
        if "trajectory" in frames.dims or not _same(times, valid_time(start, wanted_leads, spec).values, spec):
            sizes = ", ".join(f"{k}={n}" for k, n in frames.sizes.items())
            told = f"{sizes}, times {times[0]} to {times[-1]}" if len(times) else sizes
            interval = f"{spec.interval:g} {spec.time_units}"
            wanted = f"the {case.steps} frames that follow {start}, one an interval of {interval}"
            raise SpecError([Problem(where, told, wanted, "cut the solver's output to them, and set their times")])
        return to_tensor(frames, spec).to(u.device, torch.float64)


def _same(found: NDArray[Any], wanted: NDArray[Any], spec: FieldSpec) -> bool:
    """Whether these are the same times, numeric ones to a thousandth of the interval."""
    if len(found) != len(wanted):
        return False
    if spec.calendar is None:
        return bool(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= 1e-3 * spec.interval)
    return [spelling(t) for t in found] == [spelling(t) for t in wanted]
