"""What a field is: variables, units, kinds, grid, frame interval, masks, parameters.

A `FieldSpec` is the contract between a Dataset and a model. It is inferred from a Dataset
(`FieldSpec.infer`), edited with `replace`, printed as a table, written as JSON beside the weights, and
enforced by `datasets.check`.

A mask is True where a cell is valid and the same for every frame. On disk a mask is its run lengths in C
order, starting with a run of False, which may be empty: a land mask is a few hundred numbers, and the text
is the same on every machine.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..physics.grid import Grid
from .problem import Problem, SpecError, SpecWarning
from .variable import KINDS, Kind, Variable

if TYPE_CHECKING:
    import torch
    import xarray as xr

__all__ = ["FieldSpec", "Kind", "Problem", "SpecError", "SpecWarning", "Variable"]

FORMAT_VERSION = 1
_CALENDAR_UNITS = ("seconds", "minutes", "hours", "days", "months", "years")


@dataclass(frozen=True, eq=False)
class FieldSpec:
    """Variables on one grid, a frame interval apart.

    interval    Δ between frames in `time_units`: "seconds" … "days", "months" or "years" for calendar time
                (`calendar` is then CF's name of it), any unit for numeric time (`calendar` is None)
    masks       name -> bool array of the grid's shape, True = valid; only variables that have one
    parameters  physical constants of the data ("viscosity": 1e-3)
    equation    registered name of the governing equation, if known
    dims        names by which the axes are known in the files: {"x": ("x_u", "x_v"), "time": ("month",)}
    split       name of a dimension whose every value became a variable of its own (pressure levels)
    attrs       free text that is printed and kept
    """

    variables: tuple[Variable, ...]
    grid: Grid
    interval: float
    time_units: str
    calendar: str | None = None
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)
    equation: str | None = None
    attrs: dict[str, str] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...]] = field(default_factory=dict)
    split: str | None = None

    def __post_init__(self) -> None:
        problems = list(_inconsistencies(self))
        if problems:
            raise SpecError(problems)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables, in the order of a tensor's channels."""
        return tuple(v.name for v in self.variables)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *space)."""
        return (len(self.variables), *self.grid.shape)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Channels that share one scale: the components of each vector together, every other variable
        alone.
        """
        found: dict[tuple[str, str], list[int]] = {}
        for index, variable in enumerate(self.variables):
            together = variable.kind == "vector"
            key = ("vector", variable.group or "") if together else ("scalar", variable.name)
            found.setdefault(key, []).append(index)
        return tuple(tuple(channels) for channels in found.values())

    def __getitem__(self, name: str) -> Variable:
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise KeyError(f"no variable {name!r} in this spec; it has {', '.join(self.names)}")

    def mask_tensor(self) -> "torch.Tensor":
        """Valid cells, bool, shape (C, *space); all True for a variable without a mask."""
        import torch

        full = np.ones(self.grid.shape, dtype=np.bool_)
        return torch.from_numpy(np.stack([self.masks.get(name, full) for name in self.names]))

    def replace(self, **changes: Any) -> "FieldSpec":
        """A copy with some fields changed: `spec.replace(interval=12.0)`.

        `variables` also takes a mapping name -> fields to change:
        `spec.replace(variables={"rain": {"kind": "positive"}})`.
        """
        variables = changes.get("variables")
        if isinstance(variables, Mapping):
            for name in variables:
                self[name]
            changes["variables"] = tuple(
                dataclasses.replace(v, **variables[v.name]) if v.name in variables else v for v in self.variables
            )
        return dataclasses.replace(self, **changes)

    @classmethod
    def infer(
        cls,
        ds: "xr.Dataset | xr.DataArray",
        *,
        dims: Mapping[str, str | Sequence[str]] | None = None,
        periodic: Mapping[str, bool] | None = None,
        kinds: Mapping[str, str | Sequence[str]] | None = None,
        variables: Sequence[str] | None = None,
        equation: str | None = None,
        parameters: Mapping[str, float] | None = None,
        interval: float | None = None,
        time_units: str | None = None,
        calendar: str | None = None,
        units: Mapping[str, str] | None = None,
        split: str | None = None,
        ranges: bool = False,
    ) -> "FieldSpec":
        """Read the spec off a Dataset; nothing ambiguous is guessed, each keyword settles one question.

        dims        role or axis name -> dimension(s) of the Dataset: {"time": "month", "x": ("x_u", "x_v")}
        periodic    axis name -> bool; a longitude that spans 360° is periodic unless this says otherwise
        kinds       variable -> "positive", or "vector:x" for the component along axis x
        variables   which to use (default: all that have the time and every space dimension)
        interval, time_units, calendar
                    where the times do not tell; "days since 1900-01-01" turns bare numbers into dates
        units       variable -> units, where the file has none or wrong ones
        split       dimension (pressure levels) whose values become variables of their own: u_500, u_850
        ranges      measure minimum, maximum, mean and std of every variable; reads all data once

        Raises SpecError with every open question and the keyword that answers it.
        """
        from .infer import infer

        return infer(
            ds, dims=dims, periodic=periodic, kinds=kinds, variables=variables, equation=equation,
            parameters=parameters, interval=interval, time_units=time_units, calendar=calendar, units=units,
            split=split, ranges=ranges,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe dictionary, the inverse of `from_dict`."""
        return {
            "format_version": FORMAT_VERSION,
            "variables": [v.to_dict() for v in self.variables],
            "grid": self.grid.to_dict(),
            "interval": self.interval,
            "time_units": self.time_units,
            "calendar": self.calendar,
            "masks": {name: _runs(mask) for name, mask in self.masks.items()},
            "parameters": dict(self.parameters),
            "equation": self.equation,
            "attrs": dict(self.attrs),
            "dims": {name: list(aliases) for name, aliases in self.dims.items()},
            "split": self.split,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FieldSpec":
        """Read what `to_dict` wrote. Raises SpecError for another format version."""
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise SpecError(
                [
                    Problem(
                        "spec",
                        f"format_version {version!r}",
                        f"format_version {FORMAT_VERSION}",
                        "open it with the version of lapse that wrote it",
                    )
                ]
            )
        grid = Grid.from_dict(data["grid"])
        return cls(
            variables=tuple(Variable(**v) for v in data["variables"]),
            grid=grid,
            interval=float(data["interval"]),
            time_units=data["time_units"],
            calendar=data["calendar"],
            masks={name: _mask(runs, grid.shape) for name, runs in data["masks"].items()},
            parameters={k: float(v) for k, v in data["parameters"].items()},
            equation=data["equation"],
            attrs=dict(data["attrs"]),
            dims={name: tuple(aliases) for name, aliases in data["dims"].items()},
            split=data["split"],
        )

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON: equal specs, and only those, have equal fingerprints on every
        machine.
        """
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __str__(self) -> str:
        from .table import spec_table

        return spec_table(self)


def _inconsistencies(spec: FieldSpec) -> "list[Problem]":
    """Statements of a spec that contradict each other."""
    problems = []
    if not spec.variables:
        problems.append(Problem("spec", "no variables", "at least one", "name them with variables="))
    twice = sorted({name for name in spec.names if spec.names.count(name) > 1})
    if twice:
        problems.append(Problem("spec", f"variables named twice: {', '.join(twice)}", "unique names", "rename them"))
    for variable in spec.variables:
        if variable.kind not in KINDS:
            problems.append(
                Problem(
                    f"variable {variable.name!r}",
                    f"kind {variable.kind!r}",
                    "'scalar', 'positive' or 'vector'",
                    "correct kinds=",
                )
            )
        if (variable.kind == "vector") != (variable.component in spec.grid.names):
            problems.append(
                Problem(
                    f"variable {variable.name!r}",
                    f"kind {variable.kind!r} with component {variable.component!r}",
                    f"one of the axes {', '.join(spec.grid.names)} for a vector, none for other kinds",
                    f"kinds={{{variable.name!r}: 'vector:{spec.grid.names[-1]}'}}",
                )
            )
    if not (math.isfinite(spec.interval) and spec.interval > 0):
        problems.append(Problem("spec", f"interval {spec.interval}", "a positive number", "correct interval="))
    if spec.calendar is not None and spec.time_units not in _CALENDAR_UNITS:
        problems.append(
            Problem(
                "spec",
                f"time_units {spec.time_units!r} in calendar {spec.calendar!r}",
                f"one of {', '.join(_CALENDAR_UNITS)}",
                "correct time_units=",
            )
        )
    for name, mask in spec.masks.items():
        if name not in spec.names:
            problems.append(
                Problem(
                    f"mask {name!r}",
                    "no such variable",
                    f"one of {', '.join(spec.names)}",
                    "drop or rename the mask",
                )
            )
        elif mask.shape != spec.grid.shape or mask.dtype != np.bool_:
            problems.append(
                Problem(
                    f"mask {name!r}",
                    f"{mask.dtype} of shape {mask.shape}",
                    f"bool of shape {spec.grid.shape}",
                    "build it on the spec's grid",
                )
            )
        elif not mask.any():
            problems.append(Problem(f"mask {name!r}", "no valid cell", "at least one", "leave the variable out"))
    return problems


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def _mask(runs: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    values = np.arange(len(runs)) % 2 == 1
    flat = np.repeat(values, runs)
    if flat.size != math.prod(shape):
        raise SpecError(
            [
                Problem(
                    "mask",
                    f"run lengths for {flat.size} cells",
                    f"{math.prod(shape)} cells {shape}",
                    "restore spec.json: it was edited or cut short",
                )
            ]
        )
    return flat.reshape(shape)
