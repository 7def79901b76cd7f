"""A spec as a table to read."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .spec import FieldSpec

__all__ = ["spec_table", "table"]


def table(rows: list[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Rows as left-aligned columns; the first row is the head. Returns lines."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [(indent + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]


def spec_table(spec: "FieldSpec") -> str:
    """The printable form of a spec: variables, axes, time, and what else it states."""
    cells = int(np.prod(spec.grid.shape))
    units = "(no units)" if spec.time_units == "1" else spec.time_units
    clock = f"calendar {spec.calendar}" if spec.calendar else "numeric time"
    lines = [
        f"FieldSpec: {len(spec.variables)} variable(s) on {' x '.join(map(str, spec.grid.shape))} cells, "
        f"frames {spec.interval:g} {units} apart ({clock})"
    ]
    rows: list[tuple[str, ...]] = [("variable", "units", "kind", "range", "mean ± std", "valid cells")]
    for v in spec.variables:
        kind = f"vector along {v.component}" if v.kind == "vector" else v.kind
        extent = "-" if v.minimum is None or v.maximum is None else f"{v.minimum:.4g} … {v.maximum:.4g}"
        moments = "-" if v.mean is None or v.std is None else f"{v.mean:.4g} ± {v.std:.3g}"
        mask = spec.masks.get(v.name)
        valid = "all" if mask is None else f"{int(mask.sum())} ({100 * mask.sum() / cells:.1f} %)"
        rows.append((v.name, v.units or "not stated", kind, extent, moments, valid))
    lines += table(rows)
    rows = [("axis", "size", "from", "to", "units", "spacing", "periodic")]
    for axis in spec.grid.axes:
        first, last = axis.coordinates[0], axis.coordinates[-1]
        spacing = f"{axis.spacing:.6g}" if axis.regular else "irregular" if axis.size > 1 else "-"
        rows.append(
            (
                axis.name,
                str(axis.size),
                f"{first:.6g}",
                f"{last:.6g}",
                axis.units,
                spacing,
                "yes" if axis.periodic else "no",
            )
        )
    lines += table(rows)
    if spec.equation or spec.parameters:
        constants = ", ".join(f"{k} = {v:g}" for k, v in spec.parameters.items())
        lines.append(f"  equation {spec.equation or 'not stated'}{': ' + constants if constants else ''}")
    for name, aliases in spec.dims.items():
        lines.append(f"  {name} is called {', '.join(aliases)} in the files")
    if spec.split:
        lines.append(f"  one variable per value of {spec.split}")
    lines += [f"  {key}: {text}" for key, text in spec.attrs.items()]
    return "\n".join(lines)
