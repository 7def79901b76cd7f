"""Bounds on an initial condition, cell by cell, in physical units.

    "training"                      the range of the training data, widened where the given state exceeds it
    {"vorticity": (-10.0, 10.0)}    numbers, or fields over space; None leaves an end open; others are free
    {}                              none

A variable of kind "positive" is never below nought. Fields as bounds freeze what must not be designed: where least and
greatest are both the given state, the design is the given state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.problem import Problem
from ..datasets.spec import FieldSpec

__all__ = ["Bounds", "bound_problems", "limits"]

Bounds = str | Mapping[str, tuple[Any, Any]]


def limits(bounds: Bounds, spec: FieldSpec, given: Tensor, solenoidal: bool) -> tuple[Tensor, Tensor]:
    """Least and greatest values, of the shape ``(history, C, *space)`` of ``given``, infinite where there is none.

    With ``solenoidal`` the components of a vector have none: a clipped velocity is not free of divergence.
    """
    lower, upper = torch.full_like(given, -torch.inf), torch.full_like(given, torch.inf)
    for i, variable in enumerate(spec.variables):
        if variable.kind == "positive":
            lower[:, i] = 0.0
        if not isinstance(bounds, str):
            for ends, value in zip((lower, upper), bounds.get(variable.name, (None, None)), strict=True):
                if value is not None:
                    ends[:, i] = torch.from_numpy(_values(value, spec)).to(ends)
            continue
        free = (solenoidal and variable.kind == "vector") or variable.minimum is None or variable.maximum is None
        if not free:
            lower[:, i] = given[:, i].clamp(max=variable.minimum)
            upper[:, i] = given[:, i].clamp(min=variable.maximum)
    return lower, upper


def bound_problems(bounds: Bounds, spec: FieldSpec, solenoidal: bool) -> list[Problem]:
    """Everything about the bounds that does not fit the spec."""
    if isinstance(bounds, str):
        fix = "bounds={'vorticity': (-10, 10)}, or {} for none"
        return [] if bounds == "training" else [Problem("bounds", repr(bounds), "'training' or a mapping", fix)]
    problems = []
    for name, pair in bounds.items():
        where = f"bounds of {name!r}"
        if name not in spec.names:
            problems.append(Problem(where, "no such variable", f"one of {', '.join(spec.names)}", "correct the name"))
            continue
        if not isinstance(pair, Sequence) or len(pair) != 2:
            problems.append(Problem(where, f"{pair!r}", "a pair (least, greatest)", "None leaves an end open"))
            continue
        if solenoidal and spec[name].kind == "vector":
            problems.append(Problem(where, "bounds", "none on a divergence-free velocity", "leave one of them out"))
        try:
            low, high = (None if x is None else _values(x, spec) for x in pair)
        except ValueError as error:
            problems.append(
                Problem(where, str(error), f"numbers, or fields {spec.grid.shape}", "interpolate to the grid")
            )
            continue
        if low is not None and high is not None and bool((low > high).any()):
            problems.append(Problem(where, "a least value above the greatest", "least <= greatest", "swap them"))
    return problems


def _values(value: Any, spec: FieldSpec) -> NDArray[np.float64]:
    """A bound as an array over space. Raises ValueError for one that does not fit, or NaN."""
    if isinstance(value, xr.DataArray):
        value = value.transpose(*[n for n in spec.grid.names if n in value.dims])
        value = value.broadcast_like(xr.DataArray(np.empty(spec.grid.shape), dims=spec.grid.names))
        value = value.transpose(*spec.grid.names).values
    out = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), spec.grid.shape))
    if np.isnan(out).any():
        raise ValueError("NaN among the values")
    return out
