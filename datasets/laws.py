"""Which law a Dataset is to be held against: its name, its grid in metres, its parameters.

A simulation of ours states all three in its attributes: `equation`, `parameters` (JSON), and `lapse_simulation` with
what belongs to its solver. What the caller says goes before.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..physics.equation import REGISTRY, SHIPPED, Equation, lookup
from ..physics.grid import Axis, Grid
from .problem import Findings
from .units import conversion

__all__ = ["built", "fits", "metres", "named"]


def named(ds: xr.Dataset, equation: str | Equation | None, findings: Findings) -> type[Equation] | None:
    """The class of the equation that the caller or the Dataset names; None where that is a problem."""
    if isinstance(equation, Equation):
        return type(equation)
    name = ds.attrs.get("equation") if equation is None else equation
    known = ", ".join(sorted({*REGISTRY, *SHIPPED}))
    if not isinstance(name, str):
        fix = f"equation={next(iter(sorted(SHIPPED)))!r}, or an Equation of your own"
        findings.problem("equation", "none named, none in the Dataset's attributes", f"one of {known}", fix)
        return None
    try:
        return lookup(name)
    except KeyError:
        findings.problem("equation", repr(name), f"one of {known}", "correct the name, or register it first")
        return None


def metres(grid: Grid, findings: Findings) -> Grid:
    """The grid with Cartesian axes in m."""
    axes = []
    for axis in grid.axes:
        change = conversion(axis.units, "m")
        if axis.kind != "cartesian" or (change is not None and change.identity):
            axes.append(axis)
        elif axis.units == "1":
            findings.note(f"{axis.name}, without units, taken in m")
            axes.append(Axis(axis.name, axis.coordinates, "m", axis.periodic))
        elif change is None:
            fix = f"ds[{axis.name!r}].attrs['units'] = 'm', if that is what they are"
            findings.problem(f"axis {axis.name!r}", f"units {axis.units!r}", "units of length", fix)
            axes.append(axis)
        else:
            findings.note(f"{axis.name} read in m from {axis.units}")
            axes.append(Axis(axis.name, tuple(c * change.scale for c in axis.coordinates), "m", axis.periodic))
    return Grid(tuple(axes))


def fits(law: Equation, grid: Grid | None, findings: Findings) -> Equation:
    """An equation that the caller brought, held against the data's grid."""
    if grid is not None:
        same = law.grid.shape == grid.shape and all(
            np.allclose(a.widths, b.widths, rtol=1e-3) for a, b in zip(law.grid.axes, grid.axes, strict=True)
        )
        if not same:
            fix = "build the equation on the grid of the data, or name it and let the data say"
            findings.problem("equation", f"the grid ({law.grid})", f"the data's ({grid})", fix)
    return law


def built(
    law: type[Equation], grid: Grid, ds: xr.Dataset, told: Mapping[str, Any], findings: Findings
) -> Equation | None:
    """The equation on a grid, with the parameters that the Dataset states or the caller tells."""
    parameters = {**(_stated(ds, grid) if ds.attrs.get("equation") == law.name else {}), **told}
    try:
        return law(grid, **parameters)
    except (TypeError, ValueError) as error:
        text, _, wanted = str(error).removeprefix(f"{law.name}: ").removeprefix("found ").partition(", wanted ")
        bounded = [a.name for a in grid.axes if not a.periodic]
        fix = "correct the parameters"
        if "grid" in text:
            fix = "select or interpolate to such a grid"
            if "periodic" in wanted and bounded and all(a.kind == "cartesian" for a in grid.axes):
                fix = f"periodic={{{', '.join(f'{n!r}: True' for n in bounded)}}}, if the field goes round there"
        findings.problem(f"equation {law.name!r}", text, wanted or "parameters that it is defined for", fix)
        return None


def _stated(ds: xr.Dataset, grid: Grid) -> dict[str, Any]:
    """Parameters in the attributes of a simulation; those of its solver only where the grid is the solver's."""

    def read(name: str) -> dict[str, Any]:
        try:
            found = json.loads(ds.attrs.get(name, "{}"))
        except (TypeError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    call = read("lapse_simulation")
    solver = call.get("parameters", {}) if call.get("reference") == list(grid.shape) else {}
    return {**solver, **read("parameters")}
