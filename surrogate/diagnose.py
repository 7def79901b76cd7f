"""Diagnostics of any Dataset by a law, without a model: residuals, drifts, divergence, boundaries.

    lapse.diagnose(ds, equation="kolmogorov", viscosity=0.012)      ds.lapse.diagnose("kolmogorov", viscosity=0.012)

A residual says how well consecutive frames obey the law. It is reported raw (its rms, in physical units), relative to
what it is small against (the change between frames, for pairs of them), over the floor that other data reach (a
simulation of the same law, stored as coarsely), and by band of wavenumber. No residual stands alone: a field that is
shrunk towards nought has a small one, too, and where the law is linear any multiple of a solution is a solution. Show
an error or a score beside it.

Series are read in stretches of a few frames, one after another, so that memory does not grow with their length or
number; norms are computed at once, fields of lazy data on demand.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.infer import as_dataset
from ..datasets.problem import Problem, SpecError
from ..datasets.states import States, states
from ..physics.equation import Equation
from ..physics.residual import Form
from ..physics.weak import Windows
from .diagnosis import LEAST, Diagnosis
from .stretches import lazy_fields, measured, stretches

__all__ = ["diagnose"]

Array = NDArray[Any]

_MEANING = {  # long_name, units, comment
    "residual_rms": ("residual", "residual", "area-weighted root mean square over space"),
    "residual_scale": (
        "what the residual is small against",
        "residual",
        "root mean square over space of the change between frames (defect, hermite), of the rate of change (strong), "
        "or of the largest term of the balance (weak)",
    ),
    "residual_relative": ("relative residual", "1", "residual_rms / residual_scale"),
    "residual_overall": ("relative residual of the series", "1", "root of the ratio of mean squares over all frames"),
    "residual_floor": ("relative residual of what is as good as it gets", "1", "as told, or measured on other data"),
    "residual_over_floor": ("relative residual over the floor", "1", "1 is as good as the data that set the floor"),
    "residual_band": ("residual by band", "residual", "root of its power in the band"),
    "residual_band_relative": ("relative residual by band", "1", "root of the ratio of powers in the band"),
    "invariant": ("area mean that the law conserves or budgets", "quantity", "defined in the equation's documentation"),
    "drift": ("change since the first frame", "quantity", "of a conserved quantity an error, of others their budget"),
    "drift_relative": (
        "relative change since the first frame",
        "1",
        "over the first value or, where that is less than a thousandth of what the field's absolute values would have, "
        "over the latter",
    ),
    "seam": (
        "step across the end of a periodic axis",
        "1",
        "rms step from the last cell to the first over that between neighbours: about 1 where the field goes round",
    ),
    "boundary_error": ("state at the boundary less what is prescribed there", "m s-1", "root mean square along it"),
    "divergence": ("divergence of the velocity", "s-1", "area-weighted root mean square over space"),
    "divergence_relative": ("relative divergence", "1", "divergence over the rms of all gradients of velocity"),
    "finite": ("whether every value of the frame is finite", "1", "other frames are left out of residual_overall"),
}


def diagnose(
    ds: xr.Dataset | xr.DataArray,
    equation: str | Equation | None = None,
    *,
    form: Form = "defect",
    floor: "xr.Dataset | xr.DataArray | float | Mapping[str, float] | None" = None,
    fields: bool = True,
    windows: Windows | None = None,
    variables: Mapping[str, str] | None = None,
    dims: Mapping[str, str | Sequence[str]] | None = None,
    periodic: Mapping[str, bool] | None = None,
    interval: float | None = None,
    time_units: str | None = None,
    units: Mapping[str, str] | None = None,
    device: str = "cpu",
    progress: bool = False,
    **parameters: Any,
) -> xr.Dataset:
    """Residuals and budgets of a Dataset, by a law.

    Args:
        ds: fields over (time, *space) or (lead_time, *space) of forecasts, and any of trajectory, init_time, member.
            Dask arrays are read stretch by stretch, and the residual fields are then lazy, too.
        equation: registered name ("kolmogorov"), or an `Equation`; None: the attribute `equation` of a simulation.
        form: "defect" (u₁ − Φ_Δ(u₀), runs the solver), "hermite" (no solver; frames close together), "strong" (densely
            sampled and smooth) or "weak" (balance over windows, for shocks and noise).
        floor: what is as good as it gets: data to diagnose in the same way (by the parameters that they state, else by
            the same), or the relative residual itself, one for all variables or one each.
        fields: also the residual fields, ``residual_<variable>``.
        windows: size of the weak form's windows.
        variables: name in the equation -> name in `ds`, such as ``{"vorticity": "vo"}``.
        dims: role or axis -> dimension, such as ``{"time": "t"}``, where metadata do not tell.
        periodic: axis -> bool, such as ``{"x": True}``, where the coordinate's attribute does not tell.
        interval, time_units: between frames, where the times do not tell.
        units: name in the equation -> units of the data, where the file has none or wrong ones.
        device: where to compute.
        progress: show a bar.
        **parameters: of the equation, in SI units; by default those that a simulation's attributes state, else the
            equation's own.

    Returns:
        A Dataset over (variable, quantity, band, *leading, time) in the equation's units, each with its meaning in its
        attributes. Residuals of pairs stand at the later frame and are NaN where there is none; those of the weak form
        have dimensions of their own, ``time_window`` and ``<axis>_window``.

    Raises:
        SpecError: naming every problem: variables, units, grid, times, parameters, frames that are too few.
        NotImplementedError: for the weak form of an equation that states no flux.
    """
    if form not in get_args(Form):
        raise ValueError(f"diagnose: found form={form!r}, wanted one of {get_args(Form)}")
    how: dict[str, Any] = {"variables": variables, "dims": dims, "periodic": periodic, "interval": interval,
                           "time_units": time_units, "units": units}  # fmt: skip
    s = states(ds, equation, parameters, least=LEAST[form], **how)
    what = Diagnosis(s.law, s.interval, form, s.frames, windows or Windows())
    least = _floor(floor, equation, s, how | {"form": form, "windows": windows, "device": device}, parameters)
    tables, stored = measured(s, what, fields, device, progress)
    out = _assembled(ds, s, what, tables, least)
    if not fields:
        return out
    for v, unit, array in zip(*_rows(s.law, form), stored or lazy_fields(s, what, device), strict=True):
        about = {"units": unit, "long_name": f"{form} residual of {v}"}
        out[f"residual_{v}"] = (_field_dims(s, form), array, about)
    return out


def _rows(law: Equation, form: Form) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units of the residual's rows."""
    if form == "weak":
        units = law.balanced or law.units
        return tuple(law.balanced or law.variables), tuple(_rate(u) for u in units.values())
    rate = form == "strong"
    return law.variables, tuple(_rate(law.units[v]) if rate else law.units[v] for v in law.variables)


def _rate(units: str) -> str:
    """Units of a rate of change: m s-1 -> m s-2."""
    before = re.search(r"(^| )s-(\d+)$", units)
    if before:
        return f"{units[: before.start()]}{before[1]}s-{int(before[2]) + 1}"
    return "s-1" if units == "1" else f"{units} s-1"


def _field_dims(s: States, form: Form) -> tuple[str, ...]:
    if form == "weak":
        return (*s.leading, "time_window", *(f"{d}_window" for d in s.space))
    return (*s.leading, s.time, *s.space)


def _floor(
    floor: Any, equation: str | Equation | None, s: States, how: dict[str, Any], parameters: Mapping[str, Any]
) -> Array | None:
    """The relative residual that is as good as it gets, one number a row; None: not told.

    Data are judged by the parameters that they state, so that they obey even where those of the diagnosis are off.
    """
    if floor is None:
        return None
    names, _ = _rows(s.law, how["form"])
    if isinstance(floor, xr.Dataset | xr.DataArray):
        floor = as_dataset(floor)
        law: str | Equation = equation if isinstance(equation, Equation) else s.law.name
        if floor.attrs.get("equation") == s.law.name:
            law, parameters = s.law.name, {}
        elif isinstance(law, str):
            parameters = {**s.law.parameters, **parameters}
        other = diagnose(floor, law, fields=False, **how, **parameters)
        R, S = (_mean_square(other[f"residual_{x}"]) for x in ("rms", "scale"))
        return np.asarray(np.sqrt((R / S).values))
    if isinstance(floor, Mapping):
        if missing := [v for v in names if v not in floor]:
            fix = f"floor={{{', '.join(f'{v!r}: …' for v in names)}}}"
            raise SpecError([Problem("floor", f"none for {', '.join(missing)}", "one for each variable", fix)])
        return np.array([float(floor[v]) for v in names])
    return np.full(len(names), float(floor))


def _mean_square(values: xr.DataArray) -> xr.DataArray:
    """Over everything but the variable, of the frames that are finite."""
    return (values**2).mean([d for d in values.dims if d != "variable"])


def _assembled(
    ds: xr.Dataset | xr.DataArray, s: States, what: Diagnosis, tables: Mapping[str, Array], least: Array | None
) -> xr.Dataset:
    """The tables as a Dataset, with what follows from them."""
    weak = what.form == "weak"
    frame = (*s.leading, s.time)
    along = (*s.leading, "time_window") if weak else frame

    def table(name: str, dims: Sequence[str], *columns: str) -> xr.DataArray:
        return xr.DataArray(tables[name], dims=(*dims, *columns)).transpose(*columns[:1], ..., *columns[1:])

    out = xr.Dataset(coords=_coordinates(s, what))
    R, S = (table(f"residual_{x}", along, "variable") for x in ("rms", "scale"))
    out["residual_rms"], out["residual_scale"], out["residual_relative"] = R, S, _ratio(R, S)
    whole = (R + S).notnull().all("variable")
    out["residual_overall"] = np.sqrt(_ratio(*((x.where(whole) ** 2).mean(along[-1]) for x in (R, S))))
    if least is not None:
        out["residual_floor"] = ("variable", least)
        out["residual_over_floor"] = out["residual_overall"] / out["residual_floor"]
    if not weak:
        band, size = (table(f"residual_band{x}", along, "variable", "band") for x in ("", "_scale"))
        out["residual_band"], out["residual_band_relative"] = band, _ratio(band, size)
    if "invariant" in tables:
        q, size = (table(name, frame, "quantity") for name in ("invariant", "magnitude"))
        first, size = q.isel({s.time: 0}), abs(size.isel({s.time: 0}))
        out["invariant"], out["drift"] = q, q - first
        out["drift_relative"] = _ratio(out["drift"], abs(first).where(abs(first) > 1e-3 * size, size))
    if "seam" in tables:
        out["seam"] = table("seam", frame, "field", "axis").transpose("axis", "field", ...)
    if "boundary_error" in tables:
        out["boundary_error"] = table("boundary_error", frame, "side")
    if "divergence" in tables:
        out["divergence"] = table("divergence", frame)
        out["divergence_relative"] = _ratio(out["divergence"], table("velocity_gradient", frame))
    out["finite"] = table("finite", frame)
    own = {"residual": _common(_rows(s.law, what.form)[1]), "quantity": _common(s.law.quantities.values())}
    for name in out.data_vars:
        long_name, units, comment = _MEANING[str(name)]
        about = {"long_name": long_name, "units": own.get(units, units), "comment": comment}
        out[name].attrs = {k: v for k, v in about.items() if v}
    out.attrs = _attributes(ds, s, what, out)
    return out


def _ratio(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
    return a / b.where(b > 0)


def _common(units: Iterable[str]) -> str:
    """The units of several rows: theirs if they are alike."""
    alike = set(units)
    return alike.pop() if len(alike) == 1 else "as the coordinate of their names says" if alike else ""


def _coordinates(s: States, what: Diagnosis) -> dict[str, Any]:
    law = s.law
    names, units = _rows(law, what.form)
    coords: dict[str, Any] = {
        "variable": ("variable", list(names), {"long_name": "row of the residual"}),
        "units": ("variable", list(units)),
    }
    if what.periodic:
        coords["axis"] = ("axis", list(what.periodic), {"long_name": "periodic axis"})
        coords["field"] = ("field", list(law.variables))
    for d in (*s.leading, s.time, *s.space):
        if d in s.ds.coords:
            coords[d] = s.ds[d].variable
    coords |= {str(c): s.ds[c].variable for c in s.ds.coords if c not in coords and set(s.ds[c].dims) <= set(s.ds.dims)}
    if what.quantities:
        told = {"long_name": "what the law does to it: conserved, falling, or budgeted by terms of either sign"}
        coords["quantity"] = list(what.quantities)
        coords["quantity_units"] = ("quantity", [law.quantities.get(q, "") for q in what.quantities])
        coords["fate"] = ("quantity", [law.laws.get(q, "budgeted") for q in what.quantities], told)
    if what.sides:
        coords["side"] = list(what.sides)
    if what.form != "weak":
        low, high = np.array(what.edges[:-1]), np.array(what.edges[1:])
        wave = {"units": "rad m-1"}
        coords["band"] = ("band", ["low", "middle", "high"], {"long_name": "band of wavenumber"})
        coords["band_low"], coords["band_high"] = ("band", low, wave), ("band", high, wave)
        return coords
    times = np.concatenate([
        s.interval * start + np.array(what.windows.times(stop - start, s.interval))
        for start, _, stop in stretches(s, what)
    ])  # fmt: skip
    coords["time_window"] = ("time_window", times, {"units": "s", "long_name": "centre of the window, since the start"})
    for d, axis in zip(s.space, what.windows.grid(law.grid).axes, strict=True):
        coords[f"{d}_window"] = (
            f"{d}_window",
            list(axis.coordinates),
            {"units": "m", "long_name": "centre of the window"},
        )
    return coords


def _attributes(ds: xr.Dataset | xr.DataArray, s: States, what: Diagnosis, out: xr.Dataset) -> dict[str, Any]:
    from .. import __version__

    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: lapse {__version__} diagnose"
    line += f" ({'; '.join(s.notes)})" if s.notes else ""
    lost = int((~out["finite"]).sum())
    return {
        "Conventions": "CF-1.11",
        "title": f"diagnostics by the law {s.law.name}, {what.form} residual",
        "history": "\n".join(filter(None, [str(ds.attrs.get("history", "")), line])),
        "equation": s.law.name,
        "parameters": json.dumps(s.law.parameters),
        "residual_form": what.form,
        "interval_s": s.interval,
        "frames_not_finite": lost,
        "lapse_version": __version__,
    }
