"""Kinds of variables: what the user says, then what CF names say.

CF calls the components of a vector "eastward_…" and "northward_…" on the sphere, "x_…" and "y_…" on a plane
(CF standard names, guidelines for vector components). The rest of the name ties the components together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..physics.grid import Grid
from .problem import Problem
from .variable import KINDS, Variable

__all__ = ["with_kinds"]

_PREFIXES = {"eastward_": "longitude", "northward_": "latitude", "x_": "x", "y_": "y", "z_": "z"}


def with_kinds(
    variables: Sequence[Variable], grid: Grid, kinds: Mapping[str, str | Sequence[str]] | None
) -> tuple[tuple[Variable, ...], list[Problem]]:
    """The variables with kind, component and group filled in, and what does not fit."""
    stated = dict(kinds or {})
    names = [v.name for v in variables]
    problems = [
        Problem(f"kinds[{name!r}]", "no such variable", f"one of {', '.join(names)}", "correct the name")
        for name in stated
        if name not in names
    ]
    done = []
    for variable in variables:
        if variable.name in stated:
            word = stated[variable.name]
            kind, *rest = word.split(":") if isinstance(word, str) else tuple(word)
            if kind not in KINDS or (kind == "vector") != (bool(rest) and rest[0] in grid.names):
                problems.append(
                    Problem(
                        f"kinds[{variable.name!r}]",
                        repr(word),
                        "'scalar', 'positive' or 'vector:AXIS' with AXIS one of " + ", ".join(grid.names),
                        f"kinds={{{variable.name!r}: 'vector:{grid.names[-1]}'}}",
                    )
                )
            elif kind == "vector":
                group = rest[1] if len(rest) > 1 else None
                variable = replace(variable, kind="vector", component=rest[0], group=group)
            else:
                variable = replace(variable, kind="positive" if kind == "positive" else "scalar")
        else:
            variable = _by_name(variable, grid)
        done.append(variable)
    return _grouped(_without_singles(done, stated)), problems


def _by_name(variable: Variable, grid: Grid) -> Variable:
    for name in (variable.standard_name, variable.name):
        for prefix, wanted in _PREFIXES.items():
            axis = next((a for a in grid.axes if wanted in (a.kind, a.name)), None)
            if axis is not None and name and name.startswith(prefix):
                return replace(variable, kind="vector", component=axis.name, group=name.removeprefix(prefix))
    return variable


def _without_singles(variables: list[Variable], stated: Mapping[str, object]) -> list[Variable]:
    """A recognised component without a partner is a scalar: nothing shares its scale."""
    along: dict[str | None, set[str | None]] = {}
    for v in variables:
        if v.kind == "vector":
            along.setdefault(v.group, set()).add(v.component)
    return [
        replace(v, kind="scalar", component=None, group=None)
        if v.kind == "vector" and v.name not in stated and len(along[v.group]) < 2
        else v
        for v in variables
    ]


def _grouped(variables: list[Variable]) -> tuple[Variable, ...]:
    """One group for each vector: where a name occurs k times along an axis (levels, say), the k-th belong
    together.

    Stated components without a group are tied together by their units.
    """
    seen: dict[tuple[str, str | None], int] = {}
    done = []
    for v in variables:
        if v.kind == "vector":
            stem = v.group or f"vector [{v.units or 'no units'}]"
            count = seen[stem, v.component] = seen.get((stem, v.component), 0) + 1
            v = replace(v, group=stem if count == 1 else f"{stem} ({count})")
        done.append(v)
    return tuple(done)
