"""Does a Dataset fit a spec? Every problem at once, and whatever can be put right without loss is.

    problem    forbids to go on: raised, all together, as SpecError
    warning    SpecWarning: absent units, values far outside the training range, constant fields (`strict`
    raises them) note       a lossless change (axis turned, longitude shifted, units converted, cast to
    float32), said in `history`

The values are read once, block by block; a lazy Dataset stays lazy.
"""

import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

from .align import align
from .frames import check_times
from .infer import as_dataset
from .integers import unpacked
from .levels import split_dimension
from .problem import Findings, SpecError, SpecWarning
from .scan import Scan, scan
from .spec import FieldSpec, Variable
from .units import conversion, stated_units, stripped

__all__ = ["check", "examine"]

FAR = 0.5
"""Outside the training range by more than this many of its widths: a warning."""
ABSURD = 20.0
"""By more than this many: an error."""
PLAUSIBLE = 5.0
"""Without units, the mean may be this many training standard deviations off the training mean."""


def check(
    ds: xr.Dataset | xr.DataArray,
    spec: FieldSpec,
    history: int = 1,
    *,
    dims: Mapping[str, str | Sequence[str]] | None = None,
    members: bool = False,
    gaps: bool = False,
    values: bool = True,
    strict: bool = False,
) -> xr.Dataset:
    """The Dataset in canonical form, or a SpecError with every problem.

    Canonical: the spec's variables in its order and units, float32, dims (trajectory, member, time, *grid
    axes) as far as present, coordinates ascending and equal to the grid's, what was changed appended to
    `history`.

    history   frames that are needed at least
    dims      names of dimensions, as for `FieldSpec.infer`
    members   allow a member dimension
    gaps      allow missing frames (whole multiples of the interval between frames)
    values    look at the numbers, too (reads all data once)
    strict    treat warnings as problems
    """
    canonical, findings = examine(ds, spec, history, dims=dims, members=members, gaps=gaps, values=values)
    problems = findings.problems + (findings.warnings if strict else [])
    if problems:
        raise SpecError(problems)
    for warning in findings.warnings:
        warnings.warn(str(warning), SpecWarning, stacklevel=2)
    assert canonical is not None
    return canonical


def examine(
    ds: xr.Dataset | xr.DataArray,
    spec: FieldSpec,
    history: int = 1,
    *,
    dims: Mapping[str, str | Sequence[str]] | None = None,
    members: bool = False,
    gaps: bool = False,
    values: bool = True,
) -> tuple[xr.Dataset | None, Findings]:
    """As `check`, but returning what was found instead of raising; the Dataset is None where there are
    problems.
    """
    findings = Findings()
    ds = as_dataset(ds)
    if spec.split and spec.split in ds.dims:
        ds = split_dimension(ds, spec.split)
        findings.note(f"{spec.split} split into variables")
    names = _present(ds, spec, findings)
    if not names:
        return None, findings
    empty = sorted({str(d) for n in names for d in ds[n].dims if ds.sizes[d] == 0})
    for dim in empty:
        findings.problem(f"dimension {dim!r}", "size 0", "at least one value", "select frames and cells that exist")
    arrays = {name: _decoded(ds[name], findings) for name in names}
    ds = ds.assign({name: array for name, array in arrays.items() if array is not None})
    names = [name for name in names if arrays[name] is not None]
    if empty or not names:
        return None, findings
    aligned = align(ds, spec, names, dims, members, findings)
    if aligned is None:
        # Times and units can be judged all the same.
        _times_only(ds, spec, history, gaps, findings)
        for name in names:
            _converted(ds[name], spec[name], findings)
        return None, findings
    aligned = check_times(aligned, spec, history, gaps, findings)
    weights = spec.grid.area_weights().numpy()
    data = {}
    for name in names:
        array, stated = _converted(aligned[name], spec[name], findings)
        if array.dtype == np.float64:
            findings.note("float64 rounded to float32")
        array = array.astype(np.float32)
        if values:
            mask = spec.masks.get(name)
            found = scan(array, spec.grid.names, mask, weights)
            _judge(spec[name], found, stated, findings)
            if mask is not None and not found.all_nan[~mask].all():
                array = array.where(xr.DataArray(mask, dims=spec.grid.names))
                findings.note(f"values of {name} under its mask ignored")
        data[name] = array
    if findings.problems:
        return None, findings
    return _finished(aligned, spec, data, findings), findings


def _present(ds: xr.Dataset, spec: FieldSpec, findings: Findings) -> list[str]:
    has = ", ".join(map(str, ds.data_vars)) or "no variables"
    for variable in spec.variables:
        if variable.name not in ds.data_vars:
            alike = [
                str(n)
                for n, v in ds.data_vars.items()
                if variable.standard_name and v.attrs.get("standard_name") == variable.standard_name
            ]
            fix = f"ds.rename({{{alike[0]!r}: {variable.name!r}}})" if alike else "add it, or rename what holds it"
            findings.problem(f"variable {variable.name!r}", f"only {has}", "it among the variables", fix)
    extra = [str(n) for n in ds.data_vars if n not in spec.names]
    if extra:
        findings.note(f"ignored {', '.join(extra)}")
    return [name for name in spec.names if name in ds.data_vars]


def _decoded(array: xr.DataArray, findings: Findings) -> xr.DataArray | None:
    """Numbers: packed integers unpacked, other integers cast; None for what is no number."""
    where = f"variable {str(array.name)!r}"
    if array.dtype.kind == "f":
        return array
    if array.dtype.kind not in "iu":
        findings.problem(where, f"{array.dtype} values", "floating-point numbers", "ds.astype('float32'), if it is one")
        return None
    numbers, note = unpacked(array)
    if note:
        findings.note(note)
    return numbers


def _converted(array: xr.DataArray, variable: Variable, findings: Findings) -> tuple[xr.DataArray, bool]:
    """The variable in the spec's units, and whether its own units were stated."""
    where = f"variable {variable.name!r}"
    units, note = stated_units(array)
    if note:
        findings.note(note)
    if variable.units is None:
        return array, True
    if units is None:
        known = "are judged by the training range" if variable.mean is not None else "cannot be verified"
        fix = f"ds[{variable.name!r}].attrs['units'] = {variable.units!r}, if that is what they are"
        findings.warn(where, f"no units attribute, values {known}", f"units {variable.units!r}", fix)
        return array, False
    change = conversion(units, variable.units)
    if change is None:
        fix = f"convert to {variable.units!r}, or correct the attribute if it is wrong"
        findings.problem(where, f"units {units!r}", f"units {variable.units!r} or convertible to them", fix)
        return array, True
    if change.identity:
        return array, True
    findings.note(f"{variable.name} converted from {units} to {variable.units}")
    attrs = array.attrs
    array = array.astype(np.float64) * change.scale + change.offset
    return array.assign_attrs(attrs), True


def _judge(variable: Variable, found: Scan, stated: bool, findings: Findings) -> None:
    """What the numbers of a variable say."""
    where = f"variable {variable.name!r}"
    if found.inf:
        fix = "ds.where(np.isfinite(ds)) and fill, or leave these frames out"
        findings.problem(where, f"{found.inf} infinite values, first at {found.first_inf}", "finite values", fix)
    if found.nan_outside:
        if found.minimum > found.maximum and not found.inf:
            fix = "check the file, its _FillValue and the selection"
            findings.problem(where, "NaN in every valid cell", "numbers", fix)
            return
        places = ", ".join(str(p) for p in found.outside)
        wanted = "none outside the static mask of the training data"
        fix = "fill them: ds.interpolate_na or ds.fillna; or leave the frames with holes out"
        findings.problem(where, f"{found.nan_outside} NaN in valid cells, first at {places}", wanted, fix)
    if found.minimum > found.maximum:
        return
    if found.minimum == found.maximum and found.valid > 1 and variable.std != 0.0:
        fix = "check that the right variable was read"
        findings.warn(where, f"a constant field ({found.minimum:.6g} everywhere)", "a field that varies", fix)
    _range(variable, found, stated, findings)


def _range(variable: Variable, found: Scan, stated: bool, findings: Findings) -> None:
    where = f"variable {variable.name!r}"
    extent = f"values from {found.minimum:.6g} to {found.maximum:.6g} (mean {found.mean:.6g})"
    mean, std = variable.mean, variable.std
    if not stated and mean is not None and std and abs(found.mean - mean) > PLAUSIBLE * std:
        wanted = f"{variable.units} with a mean near {mean:.6g} ± {std:.3g}"
        fix = "convert the values and set the units attribute"
        findings.problem(where, f"{extent} without units, not plausible", wanted, fix)
        return
    if variable.kind == "positive" and found.minimum < 0:
        fix = "clip rounding errors with ds.clip(min=0), or declare the variable scalar"
        findings.warn(where, f"a positive variable with {extent}", "no negative values", fix)
    if variable.minimum is None or variable.maximum is None or variable.maximum <= variable.minimum:
        return
    width = variable.maximum - variable.minimum
    away = max(variable.minimum - found.minimum, found.maximum - variable.maximum) / width
    wanted = f"values near the training range {variable.minimum:.6g} to {variable.maximum:.6g} {variable.units or ''}"
    if away > ABSURD:
        fix = "check units, packing and fill values"
        findings.problem(where, f"{extent}, {away:.3g} widths outside", wanted.rstrip(), fix)
    elif away > FAR:
        fix = "check the units; a model knows nothing beyond its training range"
        findings.warn(where, f"{extent}, {away:.2g} widths outside", wanted.rstrip(), fix)


def _times_only(ds: xr.Dataset, spec: FieldSpec, history: int, gaps: bool, findings: Findings) -> None:
    """Judge the times of a Dataset whose space does not fit."""
    bare: Any = xr.Dataset(coords={"time": ds["time"]}) if "time" in ds.coords else None
    if bare is not None and ds["time"].ndim == 1:
        check_times(bare, spec, history, gaps, findings)


def _finished(ds: xr.Dataset, spec: FieldSpec, data: Mapping[str, xr.DataArray], findings: Findings) -> xr.Dataset:
    """The canonical Dataset, its attributes put right and the changes said in `history`."""
    from .. import __version__

    # Stale encodings (packing, chunks) would be applied to the converted numbers on writing.
    out = ds.assign(data)[list(data)].drop_encoding()
    for variable in spec.variables:
        if variable.units is not None:
            out[variable.name].attrs = stripped(out[variable.name].attrs) | {"units": variable.units}
    if findings.notes:
        line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: lapse {__version__} check: {'; '.join(findings.notes)}"
        out.attrs["history"] = "\n".join(filter(None, [str(ds.attrs.get("history", "")), line]))
    return out
