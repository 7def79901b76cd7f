"""A Dataset of any layout -> consecutive states of an equation, in the equation's variables, order and units.

Where `check` holds data against a model's spec, this holds them against a law: its variables must be there (perhaps
under other names), in units that convert to the law's, on a grid the law is written for, in frames that are evenly
spaced in time. Any dimensions may come before: trajectories, members, starts of forecasts. Frames follow one another
along `time`, or along `lead_time` in forecasts.

Nothing is read before it is asked for, a stretch of frames at a time. Numbers are converted in float64, since a
residual is a small difference of large numbers.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..physics.equation import Equation
from .axes import build_grid
from .frames import clock_of
from .infer import as_dataset
from .integers import unpacked
from .laws import built, fits, metres, named
from .names import assign, standard_role
from .problem import Findings, SpecError, SpecWarning
from .time import DURATIONS
from .units import conversion, stated_units

__all__ = ["States", "states"]

BEFORE = ("trajectory", "init_time", "member")
ORDER = {"z": 0, "y": 1, "latitude": 1, "x": 2, "longitude": 2}


@dataclass(frozen=True)
class States:
    """What `states` makes of a Dataset.

    Attributes:
        law: the equation, on the data's grid (in its units of length).
        ds: its variables under its names, dims (*leading, time, *space), coordinates ascending; values and coordinates
            as the user has them, and lazy if they were.
        leading, time, space: names of the dimensions, as the user has them.
        interval: between frames, in the equation's unit of time.
        factors: (scale, offset) of each variable, from the user's units to the law's.
        notes: what was changed without loss.
    """

    law: Equation
    ds: xr.Dataset
    leading: tuple[str, ...]
    time: str
    space: tuple[str, ...]
    interval: float
    factors: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]

    @property
    def frames(self) -> int:
        """Number of frames of each series."""
        return int(self.ds.sizes[self.time])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the leading dimensions."""
        return tuple(self.ds.sizes[d] for d in self.leading)

    @property
    def places(self) -> Iterator[tuple[int, ...]]:
        """Every series, as positions along the leading dimensions."""
        return product(*(range(n) for n in self.shape))

    @property
    def lazy(self) -> bool:
        """Whether the values are still to be computed by dask."""
        return any(array.chunks is not None for array in self.ds.data_vars.values())

    def arrays(self, place: tuple[int, ...], start: int, stop: int) -> list[Any]:
        """Frames start to stop of one series, one array (frames, *space) a variable, of numpy or dask."""
        part = self.ds.isel({**dict(zip(self.leading, place, strict=True)), self.time: slice(start, stop)})
        return [part[v].data for v in self.law.variables]

    @staticmethod
    def converted(arrays: Sequence[Any], factors: Sequence[tuple[float, float]]) -> Tensor:
        """Such arrays as states (frames, C, *space), float64, in the law's units."""
        values = [
            np.asarray(a, dtype=np.float64) * scale + offset for a, (scale, offset) in zip(arrays, factors, strict=True)
        ]
        return torch.from_numpy(np.stack(values, axis=1))

    def read(self, place: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Frames start to stop of one series, (frames, C, *space), float64, in the law's units."""
        return self.converted(self.arrays(place, start, stop), self.factors)


def states(
    ds: xr.Dataset | xr.DataArray,
    equation: str | Equation | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    least: int = 2,
    variables: Mapping[str, str] | None = None,
    dims: Mapping[str, str | Sequence[str]] | None = None,
    periodic: Mapping[str, bool] | None = None,
    interval: float | None = None,
    time_units: str | None = None,
    units: Mapping[str, str] | None = None,
) -> States:
    """Read a Dataset as states of an equation, or raise one SpecError that names every problem.

    Args:
        ds: fields over time (or lead_time), space, and any of trajectory, init_time, member.
        equation: registered name, or an Equation, which brings its own parameters; None: the attribute `equation`.
        parameters: of the equation; those not given come from the attributes of a simulation, else they are the
            equation's defaults.
        least: frames that are needed.
        variables: name of a variable in the equation -> name in `ds`.
        dims, periodic, interval, time_units: as for `FieldSpec.infer`.
        units: name in the equation -> units of the data, where the file has none or wrong ones.
    """
    findings = Findings()
    ds = as_dataset(ds)
    law = named(ds, equation, findings)
    if law is None:
        raise SpecError(findings.problems)
    found = _fields(ds, law, variables, findings)
    factors = tuple(
        _factor(found[v], law.units[v], (units or {}).get(v), findings) for v in law.variables if v in found
    )
    roles = _roles(found, dims, findings) if found else None
    if roles is None:
        raise SpecError(findings.problems)
    time = next((d for role in ("time", "lead_time") for d, r in roles.items() if r == role), "time")
    leading = tuple(d for role in BEFORE for d, r in roles.items() if r == role)
    space = sorted((d for d in roles if d not in (*leading, time)), key=lambda d: ORDER.get(standard_role(roles[d]), 0))
    seconds = _interval(found, time, least, interval, time_units, findings)
    found, grid, notes, problems = build_grid(found, {d: roles[d] for d in space}, _by_dim(periodic, roles))
    findings.problems += problems
    grid = None if grid is None else metres(grid, findings)
    if isinstance(equation, Equation):
        whole: Equation | None = fits(equation, grid, findings)
    else:
        whole = None if grid is None else built(law, grid, ds, parameters or {}, findings)
    if findings.problems or whole is None:
        raise SpecError(findings.problems)
    found = found.transpose(*leading, time, *space)
    result = States(whole, found, leading, time, tuple(space), seconds, factors, (*findings.notes, *notes))
    if next(result.places, None) is None or not torch.isfinite(result.read(next(result.places), 0, 1)).all():
        text = "values that are not finite in the first frame" if 0 not in result.shape else "no series at all"
        fix = "cut out a part without gaps, or fill them: a residual needs each cell's neighbours"
        findings.problem("Dataset", text, "numbers in every cell", fix)
        raise SpecError(findings.problems)
    for warning in findings.warnings:
        warnings.warn(str(warning), SpecWarning, stacklevel=3)
    return result


def _fields(ds: xr.Dataset, law: type[Equation], variables: Mapping[str, str] | None, findings: Findings) -> xr.Dataset:
    """The law's variables under its names, those that there are."""
    has = ", ".join(map(str, ds.data_vars)) or "no variables"
    for name in set(variables or {}) - set(law.variables):
        findings.problem(f"variables[{name!r}]", f"no variable of {law.name}", ", ".join(law.variables), "correct it")
    names = {v: (variables or {}).get(v, v) for v in law.variables}
    arrays = {}
    for v, name in names.items():
        if name not in ds.data_vars:
            fix = f"variables={{{v!r}: …}} names it"
            findings.problem(f"variable {name!r}", f"only {has}", f"{v} in {law.units[v]}, for {law.name}", fix)
        elif ds[name].dtype.kind not in "iuf":
            findings.problem(f"variable {name!r}", f"{ds[name].dtype} values", "numbers", "ds.astype('float32')")
        else:
            arrays[v], note = unpacked(ds[name])
            if note:
                findings.note(note)
    return xr.Dataset(arrays, attrs=ds.attrs)


def _factor(array: xr.DataArray, wanted: str, told: str | None, findings: Findings) -> tuple[float, float]:
    """(scale, offset) that turn a variable's numbers into the law's units."""
    where, stated = f"variable {str(array.name)!r}", told or stated_units(array)[0]
    if stated is None:
        fix = f"units={{{str(array.name)!r}: {wanted!r}}}, if that is what they are"
        findings.warn(where, "no units attribute", f"units {wanted!r}, which are assumed", fix)
        return 1.0, 0.0
    change = conversion(stated, wanted)
    if change is None:
        fix = f"units={{{str(array.name)!r}: {wanted!r}}} if the attribute is wrong; else convert them"
        findings.problem(where, f"units {stated!r}", f"units that convert to {wanted!r}", fix)
        return 1.0, 0.0
    if not change.identity:
        findings.note(f"{array.name} read in {wanted} from {stated}")
    return change.scale, change.offset


def _roles(
    found: xr.Dataset, dims: Mapping[str, str | Sequence[str]] | None, findings: Findings
) -> dict[str, str] | None:
    """The role of each dimension; None where that is an open question."""
    used = {str(v): {str(d) for d in a.dims} for v, a in found.data_vars.items()}
    first = next(iter(used))
    for v, own in used.items():
        if own != used[first]:
            fix = "interpolate to one grid, and broadcast what lacks a dimension"
            findings.problem(f"variable {v!r}", f"dimensions {found[v].dims}", f"those of {first!r}", fix)
            return None
    before = len(findings.problems)
    roles, problems = assign(found, [str(d) for d in found[first].dims], dims)
    findings.problems += problems
    for d, role in roles.items():
        if found.sizes[d] == 0:
            findings.problem(f"dimension {d!r}", "size 0", "at least one value", "select frames and cells that exist")
        if role == "vertical":
            fix = f"ds.isel({d}=0), or dims={{'z': {d!r}}} if it is the third axis of the grid"
            findings.problem(f"dimension {d!r}", f"{found.sizes[d]} levels", "a horizontal field, or an axis z", fix)
    if {"time", "lead_time"} <= set(roles.values()):
        fix = "select one of the two, or say which is a trajectory: dims={'trajectory': …}"
        findings.problem("Dataset", "a time and a lead time", "one dimension along which frames follow", fix)
    return roles if len(findings.problems) == before else None


def _by_dim(periodic: Mapping[str, bool] | None, roles: Mapping[str, str]) -> dict[str, bool]:
    """`periodic` by the user's dimension, also where it names the role ("x")."""
    names = {role: d for d, role in roles.items()}
    return {(k if k in roles else names.get(k, k)): v for k, v in (periodic or {}).items()}


def _interval(
    ds: xr.Dataset, time: str, least: int, interval: float | None, time_units: str | None, findings: Findings
) -> float:
    """Seconds between frames; 0 where that is not known."""
    if time not in ds.dims:
        fix = "dims={'time': …} if it has another name"
        findings.problem("time", f"dimensions {tuple(ds.dims)}", "a time, or a lead time of forecasts", fix)
        return 0.0
    if ds.sizes[time] < least:
        fix = "select a longer stretch, or another form of the residual"
        findings.problem("time", f"{ds.sizes[time]} frame(s)", f"at least {least} for this form of the residual", fix)
        return 0.0
    frames: Any = xr.Dataset()
    if time in ds.coords:
        values, attrs = ds[time].values, ds[time].attrs
        if values.dtype.kind == "m":
            values, attrs = values.astype("m8[us]").astype(np.float64) / 1e6, {"units": "s"}
        frames = xr.Dataset(coords={"time": ("time", values, attrs)})
    elif "time" not in frames:
        frames = xr.Dataset({"frame": ("time", np.arange(ds.sizes[time]))})
    clock, problems = clock_of(frames, interval=interval, time_units=time_units)
    findings.problems += problems
    if clock is None:
        return 0.0
    if clock.time_units == "1":
        findings.note("times without units taken as seconds")
        return clock.interval
    change = conversion(clock.time_units, "s")
    if clock.time_units in DURATIONS:
        return clock.interval * DURATIONS[clock.time_units]
    if change is None:
        wanted = "a duration that converts to s"
        findings.problem("time", f"frames {clock.interval:g} {clock.time_units} apart", wanted, "time_units='s'")
        return 0.0
    return clock.interval * change.scale
