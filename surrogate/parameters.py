"""Design over the parameters of an equation: the forcing, the viscosity, the depth whose forecast is best.

The state is given. A forecast under other parameters is the model's own with the effect of the change added to every
frame (`correction`), and there are few of them: derivatives are central differences of whole forecasts with the same
noise (common random numbers make them smooth), two a parameter. Parameters are counted in shares of their ranges.
"""

import time
from collections.abc import Mapping
from copy import copy
from math import isfinite

import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ..datasets.problem import Problem
from ..datasets.spec import FieldSpec
from .case import Case
from .descent import METHODS, Evaluation, Iterate
from .law import law
from .targets import label

__all__ = ["ParameterSearch", "Ranges", "range_problems", "tuned"]

_DIFFERENCE = 0.01  # of a range
_INSIDE = 0.3141  # a share of a range that is no whole number
_STILL = 1e-5  # of the first gradient's norm: a stationary point

Ranges = Mapping[str, tuple[float, float]]


class ParameterSearch:
    """The function that is minimised, and the way down.

    Arguments:
        case: start, objective and model; the search begins at the model's parameters, or at the end of a range that
            leaves them out.
        ranges: least and greatest value of what varies, in the parameters' own units.
        sign: −1 to maximise, 1 to minimise.
        members, seed: of the forecast whose objective it is.

    Attributes:
        path: all iterates so far.
        rollouts: forecasts so far.

    Raises ValueError for a model that cannot be ``at`` other parameters.
    """

    def __init__(self, case: Case, ranges: Ranges, sign: int, members: int, seed: int) -> None:
        self.given, self.sign, self.members, self.seed = case, sign, members, seed
        self.names = list(ranges)
        ends = torch.tensor([tuple(map(float, ranges[n])) for n in self.names], dtype=torch.float64)
        self.low, self.width = ends[:, 0], ends[:, 1] - ends[:, 0]
        self.path: list[Iterate] = []
        self.rollouts = 0
        self._moving = self.at({})  # one copy of the networks for all forecasts

    def at(self, parameters: Mapping[str, float]) -> Case:
        """The case at other parameters."""
        case = copy(self.given)
        case.__dict__.pop("law", None)  # of the old ones
        case.model = case.model.at(**parameters)
        case.job = copy(case.job)
        case.job.model = case.model
        return case

    def parameters(self, x: Tensor) -> dict[str, float]:
        """The values that shares of the ranges stand for."""
        return dict(zip(self.names, (self.low + self.width * x).tolist(), strict=True))

    def descend(self, method: str, iterations: int, step: float, progress: bool) -> Iterate:
        """The best iterate of one descent."""
        given = torch.tensor([self.given.model.spec.parameters[n] for n in self.names], dtype=torch.float64)
        x, begin, first = ((given - self.low) / self.width).clamp(0, 1), time.process_time(), None
        with tqdm(total=iterations, disable=not progress, desc="design", unit="step") as bar:
            for k, iterate in enumerate(METHODS[method](self.evaluate, x, _within, _tangent, iterations, step)):
                iterate.evaluations = self.rollouts  # those of the differences, too
                iterate.about["seconds"] = time.process_time() - begin
                self.path.append(iterate)
                bar.update(k > 0)
                norm = float(iterate.gradient.norm())
                first = norm if first is None else first
                if norm <= _STILL * first:
                    break
        return min(self.path, key=lambda i: i.value)

    def evaluate(self, x: Tensor) -> Evaluation:
        """The objective, signed; its gradient by differences, on one side where the other is out of range."""
        value = self.objective(x)
        if not self.path and not isfinite(value):
            raise ValueError(
                f"objective {label(self.given.objective)!r}: found {value} for the given state, wanted a finite "
                "number. Usual fix: look at model.forecast(ds, steps), and for a division or logarithm in the objective"
            )
        about = {
            "objective": self.sign * value, "penalty": 0.0, "violation": 0.0, "distances": {},
            "parameters": self.parameters(x),
        }  # fmt: skip

        def gradient() -> Tensor:
            steps = _DIFFERENCE * torch.eye(len(x), dtype=x.dtype)
            ends = [(_within(x + d), _within(x - d)) for d in steps]
            slopes = [(self.objective(a) - self.objective(b)) / float((a - b).sum()) for a, b in ends]
            return torch.tensor(slopes, dtype=x.dtype)

        return Evaluation(value, gradient, about)

    @torch.no_grad()
    def objective(self, x: Tensor) -> float:
        """Signed, of the forecast at these shares of the ranges."""
        self.rollouts += 1
        case = self._moving
        emulator = case.model.emulator
        assert emulator.laws is not None  # it is a model `at` some parameters
        emulator.obey(emulator.laws[0], law(case.model.spec, self.parameters(x)))
        view, _ = case.roll(case.given, self.members, self.seed, case.mode, errors=False, checkpointed=False)
        return self.sign * float(case.value(view))


def tuned(out: xr.Dataset, search: ParameterSearch) -> xr.Dataset:
    """The result with the parameters that were found, those of the model, and those of every iterate."""
    best = min(search.path, key=lambda i: i.value)
    spec = search.given.model.spec

    def row(parameters: Mapping[str, float]) -> list[float]:
        return [parameters[n] for n in search.names]

    units = {"comment": "units as in the equation"}
    return out.assign(
        parameters=("parameter", row(best.about["parameters"]), {"long_name": "designed parameters"} | units),
        parameters_given=("parameter", row(spec.parameters), {"long_name": "parameters of the model"} | units),
        parameters_by_iteration=(("iteration", "parameter"), [row(i.about["parameters"]) for i in search.path], units),
    ).assign_coords(parameter=search.names)


def range_problems(ranges: object, spec: FieldSpec) -> list[Problem]:
    """Everything about the ranges of parameters that does not fit the spec."""
    known = ", ".join(f"{k}={v:g}" for k, v in spec.parameters.items()) or "none"
    if not isinstance(ranges, Mapping) or not ranges:
        found, fix = repr(ranges), "bounds={'forcing': (0.5, 2.0)}"
        wanted = f"names and ranges of the parameters that vary, of {known}"
        return [Problem("bounds", found, wanted, fix)]
    problems = []
    for name, pair in ranges.items():
        where = f"bounds of {name!r}"
        if name not in spec.parameters:
            problems.append(Problem(where, "no such parameter", f"one of {known}", "correct the name"))
            continue
        try:
            low, high = map(float, pair)
            good = torch.isfinite(torch.tensor([low, high])).all() and low < high
        except (TypeError, ValueError):
            good = False
        if not good:
            fix = "bounds={'forcing': (0.5, 2.0)}"
            problems.append(Problem(where, f"{pair!r}", "two numbers, least < greatest", fix))
            continue
        for value in (low, high, low + _INSIDE * (high - low)):  # a whole number has no differences
            try:
                law(spec, {name: value})
            except ValueError as reason:
                wanted = "a range all of whose values the equation takes"
                problems.append(Problem(where, str(reason), wanted, "narrow it"))
                break
    return problems


def _within(x: Tensor) -> Tensor:
    return x.clamp(0, 1)


def _tangent(x: Tensor, d: Tensor) -> Tensor:
    """Without what would leave the ranges."""
    return torch.where(((x <= 0) & (d < 0)) | ((x >= 1) & (d > 0)), 0.0, d)
