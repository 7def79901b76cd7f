"""One case of inverse design: a start, an objective, and the forecasts that judge a design.

Frames, phases and noise are those that `forecast` would use, so that what is predicted here is what it gives.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.check import check
from ..datasets.fields import to_tensor
from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from ..datasets.time import phase as phase_of
from ..physics.equation import Equation, equation
from .emulator import Mode
from .job import Job
from .repair import Repair
from .starts import initial_frames
from .state import State
from .targets import Objective, label
from .view import ForecastView, rolled

if TYPE_CHECKING:
    from collections.abc import Callable

    from .model import Model

__all__ = ["Case", "Prediction", "law", "references"]


@dataclass
class Prediction:
    """An objective over members: the risk that is designed for, each member's own value, and the 90 % interval."""

    value: float
    members: NDArray[np.float64]
    interval: tuple[float, float]


class Case:
    """A start of ``ds`` and an objective of the forecast from it.

    Attributes:
        given: context frames ``(history, C, *space)`` in physical units, in the networks' type and on their device.
        job: the forecast from it, for its provenance.
        context, phase: phases of these frames and of start and leads; None for models without a calendar.
    """

    def __init__(
        self,
        model: "Model",
        ds: xr.Dataset | xr.DataArray,
        objective: Objective,
        steps: int,
        init_time: Any,
        mode: Mode,
        seed: int,
    ) -> None:
        self.model, self.objective, self.steps, self.mode = model, objective, steps, mode
        spec, history = model.spec, model.emulator.history
        frames, positions = initial_frames(ds, spec, history, init_time)
        if len(positions) != 1:
            found, fix = f"{len(positions)} starts", "design from one at a time"
            raise SpecError([Problem("init_time", found, "one", fix)])
        if "member" in frames.dims:
            found, fix = f"{frames.sizes['member']} initial states", "choose: ds.isel(member=0)"
            raise SpecError([Problem("dimension 'member'", found, "one initial state", fix)])
        self.job = Job(model, frames, positions, steps, 1, seed, mode)
        self.frames = frames.isel(time=slice(positions[0] - history + 1, positions[0] + 1))
        own = next(model.emulator.parameters())
        self.given = self.job.initial(0)[0].to(own)
        self.init_time = self.job.init.values[0]
        context, phase = self.job.phase(0)
        self.context = None if context is None else context.to(own)
        self.phase = None if phase is None else phase.to(own)

    @property
    def newest(self) -> Tensor | None:
        """Phase of the newest context frame, ``(1, 4)``."""
        return None if self.context is None else self.context[-1:]

    @cached_property
    def law(self) -> Equation | None:
        """The equation that the spec names, None where it names none or one of other variables."""
        return law(self.model.spec)

    def roll(
        self, u: Tensor, members: int, seed: int, mode: Mode, *, errors: bool, checkpointed: bool,
        repair: Repair | None = None,
    ) -> "tuple[ForecastView, Callable[[int], State]]":  # fmt: skip
        """The forecast from context frames ``u``; see `lapse.surrogate.view.rolled`."""
        return rolled(
            self.model.emulator, u, self.steps, members, mode, seed=seed, init_time=self.init_time,
            context=self.context, phase=self.phase, errors=errors, checkpointed=checkpointed, repair=repair,
        )  # fmt: skip

    def value(self, view: ForecastView) -> Tensor:
        """The objective of a forecast, one number; members are averaged unless it did so itself.

        Raises SpecError for another shape, TypeError for what is no tensor.
        """
        out = self._checked(view)
        return out if out.ndim == 0 else out.mean()

    def _checked(self, view: ForecastView) -> Tensor:
        out = self.objective(view)
        where = f"objective {label(self.objective)!r}"
        if not isinstance(out, Tensor):
            raise TypeError(
                f"{where}: found a {type(out).__name__}, wanted a torch.Tensor with one number, or one a member. "
                "Usual fix: compute it with torch from the view's fields, without .item() or numpy"
            )
        if out.ndim and out.shape != (view.members,):
            wanted = f"one number, shape (), or one a member, shape ({view.members},)"
            fix = "reduce over space: view.field(name, lead).flatten(1).mean(1)"
            raise SpecError([Problem(where, f"shape {tuple(out.shape)}", wanted, fix)])
        return out

    def rehearse(self, members: int, gradient: bool = True) -> None:
        """Try the objective on the given state at all leads: unknown names, empty regions and lost gradients show now.

        Raises what the objective raises, SpecError and TypeError for what it returns, ValueError without a gradient
        where one is needed.
        """
        frame = self.given[-1].detach().clone().requires_grad_(True)
        many = frame.expand(members, *frame.shape)
        with torch.enable_grad():
            out = self.value(ForecastView(self.model.spec, self.steps, members, lambda k: many, frame))
        if gradient and not out.requires_grad:
            raise ValueError(
                f"objective {label(self.objective)!r}: found a number that does not depend on the fields in a way that "
                "torch can follow, wanted one with a gradient. Usual fix: no .detach(), .item(), numpy, comparison or "
                "rounding on the way from the view's fields"
            )

    @torch.no_grad()
    def predict(self, u: Tensor, members: int, seed: int, mode: Mode) -> Prediction:
        """The objective of the forecast that `forecast` would give under ``seed``, decoder's error included."""
        view, _ = self.roll(u, 1 if mode == "mean" else members, seed, mode, errors=True, checkpointed=False)
        each = self.members(view)
        return Prediction(float(self.value(view)), each, interval(each))

    def members(self, view: ForecastView) -> NDArray[np.float64]:
        """The objective of every member for itself, ``(members,)``."""
        out = self._checked(view)
        if out.ndim == 0:
            out = torch.stack([self._checked(view.member(m)).reshape(()) for m in range(view.members)])
        values: NDArray[np.float64] = out.double().cpu().numpy()
        return values


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Order statistics of M members between which one more lies with 90 %, as far as M allows (19 and more do)."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    low, high = np.quantile(values, (0.05, 0.95), method="weibull")
    return float(low), float(high)


def law(spec: FieldSpec) -> Equation | None:
    """The equation that a spec names, with its parameters, if its variables are the spec's."""
    if spec.equation is None:
        return None
    try:
        found = equation(spec.equation, spec.grid, **spec.parameters)
    except (KeyError, TypeError, ValueError):
        return None
    return found if set(found.variables) == set(spec.names) else None


def references(model: "Model", ds: xr.Dataset | xr.DataArray, count: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Up to ``count`` windows ``(N, history, C, *space)`` spread evenly over a Dataset, and their phases."""
    history = model.emulator.history
    frames = check(ds, model.spec, history, members=True, gaps=True, values=False)
    other = [d for d in ("trajectory", "member") if d in frames.dims]
    runs = int(np.prod([frames.sizes[d] for d in other]))
    times = frames.sizes["time"] - history + 1
    windows, phases = [], []
    for i in np.unique(np.linspace(0, runs * times - 1, min(count, runs * times)).astype(int)):
        run, time = divmod(int(i), times)
        at = dict(zip(other, np.unravel_index(run, [frames.sizes[d] for d in other]), strict=True)) if other else {}
        window = frames.isel({**at, "time": slice(time, time + history)})
        windows.append(to_tensor(window, model.spec))
        if model.spec.calendar is not None:
            phases.append(torch.from_numpy(phase_of(window["time"])))
    return torch.stack(windows).to(like), torch.stack(phases).to(like) if phases else None
