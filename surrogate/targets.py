"""Objectives of inverse design: functions of a forecast that can be differentiated. Public as ``lapse.objectives``.

    peak = objectives.extreme("vorticity", lead=20, x=slice(1.0, 2.0), y=slice(1.0, 2.0))
    calm = objectives.region_mean("vorticity", lead=20, x=slice(4.0, 5.0))
    risk = objectives.cvar(peak, 0.9, tail="upper") - 0.1 * objectives.mean(calm)

An objective is any function of a `ForecastView` that returns one number, or one a member, computed with torch from the
view's fields. The helpers below are such functions that also know their units and can be added, subtracted and scaled.
Those that return one number a member are averaged over the members, unless `cvar` or another risk says otherwise.
Whether an objective is to be large or small is not its affair: `design` is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from .view import ForecastView

__all__ = ["Objective", "Target", "cvar", "extreme", "mean", "region_mean", "similarity", "transport"]

Objective = Callable[[ForecastView], Tensor]
"""From a forecast to one number, shape (), or one a member, shape (members,)."""
Leads = int | Sequence[int] | None
_SAME = 1e-6  # of a grid spacing: how far coordinates may be apart and be the same


@dataclass(frozen=True)
class Target:
    """An objective with a name and units, which composes: ``a + b``, ``a - b``, ``2 * a``, ``-a``, ``a / 3``.

    ``units(spec)`` gives the units, or None where they are mixed or unknown.
    """

    measure: Objective
    label: str
    units: Callable[[FieldSpec], str | None]

    def __call__(self, view: ForecastView) -> Tensor:
        return self.measure(view)

    def __add__(self, other: "Target | float") -> "Target":
        return self._joined(other, "+", torch.add)

    def __sub__(self, other: "Target | float") -> "Target":
        return self._joined(other, "-", torch.sub)

    def __mul__(self, factor: float) -> "Target":
        return Target(lambda view: factor * self(view), f"{factor:g} * ({self.label})", self.units)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Target":
        return self * (1 / divisor)

    def __neg__(self) -> "Target":
        return Target(lambda view: -self(view), f"-({self.label})", self.units)

    def _joined(self, other: "Target | float", sign: str, operation: Callable[..., Tensor]) -> "Target":
        if not isinstance(other, Target):
            shift = float(other)
            return Target(lambda view: operation(self(view), shift), f"{self.label} {sign} {shift:g}", self.units)
        theirs = other

        def units(spec: FieldSpec) -> str | None:
            a, b = self.units(spec), theirs.units(spec)
            return a if a == b else None

        label = f"{self.label} {sign} {theirs.label if sign == '+' else f'({theirs.label})'}"
        return Target(lambda view: operation(self(view), theirs(view)), label, units)


def region_mean(variable: str, *, lead: Leads, **where: slice) -> Target:
    """Area mean of a variable over a region, (members,), in the variable's units.

    Arguments:
        lead: frames after the start, from 1; of several the mean is taken, None takes all.
        where: ``x=slice(1.0, 2.0)`` bounds the region along an axis, see `ForecastView.area`; none takes all cells.
    """

    def measure(view: ForecastView) -> Tensor:
        weights = view.area(variable, **where)
        return torch.stack([(weights * view.field(variable, k)).flatten(1).sum(1) for k in _leads(lead, view)]).mean(0)

    return Target(measure, f"mean of {variable}{_place(lead, where)}", _units_of(variable))


def extreme(
    variable: str,
    *,
    lead: Leads,
    which: Literal["largest", "smallest"] = "largest",
    softness: float = 0.0,
    **where: slice,
) -> Target:
    """Largest or smallest value of a variable in a region, (members,), in the variable's units.

    Over several leads it is the most extreme of them all.

    Arguments:
        lead, where: as for `region_mean`.
        softness: τ in the variable's units. Above 0 the soft maximum τ log⟨exp(u/τ)⟩, an average with area weights,
            takes its place: it is below the true one, and lets all cells near the peak steer, not the peak alone.

    Raises ValueError for a negative softness and for another word than the two.
    """
    if which not in ("largest", "smallest") or softness < 0:
        raise ValueError(
            f"extreme: found which={which!r}, softness={softness}; wanted 'largest' or 'smallest', 0 or more"
        )
    sign = 1 if which == "largest" else -1

    def measure(view: ForecastView) -> Tensor:
        weights = view.area(variable, **where)
        inside = weights > 0
        u = sign * torch.stack([view.field(variable, k)[:, inside] for k in _leads(lead, view)], dim=1)
        if softness == 0:
            return sign * u.flatten(1).amax(dim=1)
        w = (weights[inside] / u.shape[1]).log()
        return sign * softness * torch.logsumexp((u / softness + w).flatten(1), dim=1)

    return Target(measure, f"{which} {variable}{_place(lead, where)}", _units_of(variable))


def transport(velocity: str, *, lead: Leads, carrying: str | None = None, **section: float | slice) -> Target:
    """Flow through a section of a plane, ∫ v c ds, (members,), in (velocity) (carried) (length).

    Arguments:
        velocity: the component across the section, positive along the axis that it crosses.
        carrying: a variable c that is carried, such as the depth; none takes 1.
        section: for the axis that is crossed a number, where (the nearest cells are taken); for the other axis a slice,
            from where to where; none takes its whole length: ``transport("u", x=3.0, y=slice(0.0, 1.0), lead=5)``.

    Raises SpecError where the section does not lie in the grid, and on a grid in degrees, whose lengths vary.
    """
    crossed = [a for a, at in section.items() if not isinstance(at, slice)]
    if len(crossed) != 1:
        raise ValueError(
            f"transport: found {len(crossed)} axes with a number, wanted one, the axis that is crossed: "
            "transport('u', x=3.0, y=slice(0.0, 1.0), lead=5)"
        )
    across, where = crossed[0], {a: s for a, s in section.items() if isinstance(s, slice)}
    place = float(section[across])  # type: ignore[arg-type]

    def measure(view: ForecastView) -> Tensor:
        grid = view.spec.grid
        if grid.ndim != 2 or any(a.kind != "cartesian" for a in grid.axes) or across not in grid.names:
            found = f"axis {across!r} on the grid ({grid})"
            raise SpecError([Problem("objective, section", found, "one of two axes in units of length", "see help")])
        axis, along = grid.axes[grid.index(across)], grid.axes[1 - grid.index(across)]
        x = torch.tensor(axis.coordinates, dtype=torch.float64)
        if not x[0] - axis.widths[0] / 2 <= place <= x[-1] + axis.widths[-1] / 2:
            wanted = f"{x[0]:g} to {x[-1]:g} {axis.units}"
            raise SpecError([Problem(f"objective, section, {across}", f"{place:g}", wanted, "move it into the grid")])
        nearest = float(x[(x - place).abs().argmin()])
        inside = view.area(velocity, **where, **{across: slice(nearest, nearest)}) > 0
        lengths = torch.tensor(along.widths, dtype=torch.float64).reshape([-1 if a is along else 1 for a in grid.axes])
        ds = inside * lengths.to(inside.device)
        flows = []
        for k in _leads(lead, view):
            v = view.field(velocity, k)
            flows.append((v if carrying is None else v * view.field(carrying, k)) * ds.to(v))
        return torch.stack(flows).flatten(2).sum(2).mean(0)

    def units(spec: FieldSpec) -> str | None:
        parts = [spec[velocity].units, *([] if carrying is None else [spec[carrying].units]), spec.grid.axes[0].units]
        return None if None in parts else " ".join(filter(None, parts))

    load = f" of {carrying}" if carrying else ""
    return Target(measure, f"transport{load} by {velocity} through {across}={place:g}{_place(lead, where)}", units)


def similarity(
    target: xr.Dataset | xr.DataArray, *, lead: Leads, variables: Sequence[str] | None = None, **where: slice
) -> Target:
    """How much of a pattern a forecast reproduces, 1 − ⟨(u − t)²⟩/⟨(t − ⟨t⟩)²⟩, (members,); 1 is all of it.

    Arguments:
        target: t, one frame in the forecast's units and on its grid; the mean over variables is taken.
        variables: those to compare; default: the target's that the forecast has.
        lead, where: as for `region_mean`.

    Raises SpecError for a target that does not fit the forecast's grid, that has NaN in the region, or no pattern.
    """
    given = target.to_dataset(name=target.name or (variables or ["target"])[0]) if _single(target) else target
    assert isinstance(given, xr.Dataset)

    def measure(view: ForecastView) -> Tensor:
        names = list(variables or [n for n in view.spec.names if n in given.data_vars])
        if not names:
            has, wanted = ", ".join(map(str, given.data_vars)) or "none", ", ".join(view.spec.names)
            raise SpecError([Problem("objective, target", f"variables {has}", f"some of {wanted}", "rename them")])
        skills = []
        for name in names:
            weights = view.area(name, **where)
            t = _pattern(given, name, view, weights)
            variance = (weights * (t - (weights * t).sum()).square()).sum()
            if not variance > 0:
                wanted = "a field that varies in the region"
                raise SpecError([Problem(f"objective, target {name}", "a constant", wanted, "use region_mean")])
            for k in _leads(lead, view):
                error = (weights * (view.field(name, k) - t).square()).flatten(1).sum(1)
                skills.append(1 - error / variance)
        return torch.stack(skills).mean(0)

    return Target(measure, f"similarity to a target{_place(lead, where)}", lambda spec: "1")


def mean(objective: Objective) -> Target:
    """Mean over the members, one number, in the objective's units."""
    return Target(
        lambda view: objective(view).mean(), f"mean over members of {label(objective)}", _units_like(objective)
    )


def cvar(objective: Objective, level: float, *, tail: Literal["upper", "lower"]) -> Target:
    """Conditional value at risk: the mean of the ``1 − level`` largest (upper) or smallest (lower) members.

    Rockafellar & Uryasev 2000 (doi:10.21314/JOR.2000.038); one number. Of M members the last one counts with the
    fraction of it that is needed. To be safe where small is good take the upper tail, where large is good the lower.

    Arguments:
        objective: with one number a member.
        level: 0 ≤ level < 1; 0 is the mean of all, 0.9 that of the worst tenth.

    Raises ValueError for another level or tail.
    """
    if not 0 <= level < 1 or tail not in ("upper", "lower"):
        raise ValueError(f"cvar: found level={level}, tail={tail!r}; wanted 0 <= level < 1 and 'upper' or 'lower'")

    def measure(view: ForecastView) -> Tensor:
        values = objective(view)
        if values.ndim != 1:
            found, wanted = f"shape {tuple(values.shape)}", "one number a member, shape (members,)"
            raise SpecError([Problem("objective of cvar", found, wanted, "apply cvar before mean, and only once")])
        ordered = values.sort(descending=tail == "upper").values
        count = (1 - level) * len(ordered)
        share = (count - torch.arange(len(ordered), dtype=torch.float64)).clamp(0, 1).to(ordered)
        return (share * ordered).sum() / count

    name = f"mean of the {tail} {100 * (1 - level):.3g} % of {label(objective)}"
    return Target(measure, name, _units_like(objective))


def label(objective: Objective) -> str:
    """What an objective calls itself: its label, else the function's name."""
    return objective.label if isinstance(objective, Target) else getattr(objective, "__name__", "objective")


def _single(target: xr.Dataset | xr.DataArray) -> bool:
    if not isinstance(target, xr.Dataset | xr.DataArray):
        found, fix = f"{type(target).__name__}", "xr.Dataset({'vorticity': (('y', 'x'), values)}, coords=…)"
        raise SpecError([Problem("objective, target", found, "an xarray Dataset or DataArray", fix)])
    return isinstance(target, xr.DataArray)


def _pattern(given: xr.Dataset, name: str, view: ForecastView, weights: Tensor) -> Tensor:
    """One variable of the target ``(*space)``, on the view's device and of its type."""
    grid, where = view.spec.grid, f"objective, target {name}"
    if name not in given.data_vars:
        has = ", ".join(map(str, given.data_vars))
        raise SpecError([Problem(where, f"only {has}", "it among the variables", "rename it, or name others")])
    a = given[name].squeeze(drop=True)
    if set(a.dims) != set(grid.names) or tuple(a.sizes[n] for n in grid.names) != grid.shape:
        found, wanted = f"sizes {dict(a.sizes)}", f"{dict(zip(grid.names, grid.shape, strict=True))}"
        raise SpecError([Problem(where, found, wanted, "choose one frame with isel, and interpolate to the grid")])
    for axis in grid.axes:
        if axis.name in a.coords:
            away = np.abs(a[axis.name].values - np.array(axis.coordinates)).max()
            if away > _SAME * min(axis.widths):
                found = f"{axis.name} off by up to {away:g} {axis.units}"
                raise SpecError([Problem(where, found, "the forecast's grid", "ds.interp, or ds.sortby the axis")])
    units, own = a.attrs.get("units"), view.spec[name].units
    if units is not None and own is not None and units != own:
        raise SpecError([Problem(where, f"units {units!r}", f"{own!r}", "convert it, model.check(ds) does")])
    t = torch.from_numpy(np.array(a.transpose(*grid.names).values, dtype=np.float64)).to(weights)
    t = torch.where(weights > 0, t, torch.zeros_like(t))
    if not bool(torch.isfinite(t).all()):
        raise SpecError([Problem(where, "NaN or infinite values", "numbers in the region", "fill them, or bound it")])
    return t


def _leads(lead: Leads, view: ForecastView) -> list[int]:
    if lead is None:
        return list(range(1, view.steps + 1))
    leads = [int(k) for k in lead] if isinstance(lead, Sequence) else [lead]
    if not leads:
        raise SpecError([Problem("objective, lead", "none", "at least one", "lead=range(1, 6), for instance")])
    return leads


def _place(lead: Leads, where: dict[str, slice]) -> str:
    """Where and when, for a label."""
    ends = {a: f"{s.start}…{s.stop}" if isinstance(s, slice) else repr(s) for a, s in where.items()}
    told = "".join(f", {a}={s}" for a, s in ends.items())
    if lead is None:
        return f"{told}, all leads"
    leads = [*lead] if isinstance(lead, Sequence) else [lead]
    return f"{told}, lead{'s' if len(leads) > 1 else ''} {', '.join(map(str, leads))}"


def _units_of(variable: str) -> Callable[[FieldSpec], str | None]:
    return lambda spec: spec[variable].units


def _units_like(objective: Objective) -> Callable[[FieldSpec], str | None]:
    return objective.units if isinstance(objective, Target) else (lambda spec: None)
