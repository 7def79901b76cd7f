"""Scores and diagnoses as short aligned text, for the command line and the report."""

import numpy as np
import xarray as xr

__all__ = ["diagnosis_table", "lead_label", "skill_table", "spread_leads"]

_COLUMNS = {"CRPS": "crps", "RMSE": "rmse", "VRMSE": "vrmse", "spread/skill": "spread_skill"}


def skill_table(scores: xr.Dataset, *, rows: int = 6) -> str:
    """A table of at most `rows` leads of each variable, first to last; CRPS over each baseline's, below 1 is better.

    >>> s = xr.Dataset({"crps": (("variable", "lead_time"), [[0.5]]), "rmse": (("variable", "lead_time"), [[1.0]])},
    ...                coords={"variable": ["h"], "lead_time": [0.1]})
    >>> print(skill_table(s))
    variable  lead  CRPS  RMSE
    h         0.1    0.5     1
    """
    lines = skill_rows(scores, rows=rows)
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    text = []
    for line in lines:
        padded = zip(line, widths, strict=True)
        cells = [cell.ljust(w) if c < 2 else cell.rjust(w) for c, (cell, w) in enumerate(padded)]
        text.append("  ".join(cells).rstrip())
    if "physics_crmse" in scores:
        last = scores.isel(lead_time=-1)
        for q in last["quantity"].values:
            error, drift = (float(last[f"physics_{s}"].sel(quantity=q)) for s in ("crmse", "drift"))
            true = float(last["physics_truth"].sel(quantity=q))
            text.append(f"{q} at the last lead: error {error:.2g}, drift {drift:+.2g}, of {true:.3g}")
    return "\n".join(text)


def skill_rows(scores: xr.Dataset, *, rows: int = 6) -> list[list[str]]:
    """The cells of `skill_table`, the heading first."""
    if "init_time" in scores["crps"].dims:
        raise ValueError("found scores by start, wanted their mean; usual fix: call score without by_init")
    columns = {title: name for title, name in _COLUMNS.items() if name in scores and scores[name].notnull().any()}
    level = float(scores["level"].values[-1]) if "coverage" in scores and scores.sizes["level"] else None
    baselines = [str(b) for b in scores["baseline"].values] if "baseline_crps" in scores else []
    covers = [] if level is None or "spread/skill" not in columns else [f"in {level:.0%}"]
    lines = [["variable", "lead", *columns, *covers, *(f"CRPS/{b}" for b in baselines)]]
    for v in scores["variable"].values:
        for i in spread_leads(scores.sizes["lead_time"], rows):
            s = scores.sel(variable=v).isel(lead_time=i)
            line = [str(v), lead_label(scores["lead_time"], i)]
            line += [f"{float(s[name]):.3g}" for name in columns.values()]
            line += [f"{float(s['coverage'][-1]):.1%}" for _ in covers]
            line += [f"{float(s['crps'] / s['baseline_crps'].sel(baseline=b)):.3g}" for b in baselines]
            lines.append(line)
    return lines


def spread_leads(count: int, most: int) -> list[int]:
    """At most `most` positions among `count` leads, evenly spread, the first and the last included."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def lead_label(leads: xr.DataArray, i: int) -> str:
    """A lead as people write it: "6 h", "3 d", or the number with the coordinate's units."""
    value = leads.values[i]
    if not isinstance(value, np.timedelta64):
        units = str(leads.attrs.get("units", ""))
        return f"{value:.6g} {units}".strip() if units not in ("", "1") else f"{value:.6g}"
    unit, size = lead_unit(leads)
    return f"{value / np.timedelta64(1, 'us') / 1e6 / size:g} {unit}"


def lead_unit(leads: xr.DataArray) -> tuple[str, float]:
    """The largest of days, hours, minutes and seconds that divides every lead, and its seconds."""
    micro = leads.values.astype("m8[us]").astype(np.int64)
    for unit, seconds in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if (micro % int(seconds * 1e6) == 0).all():
            return unit, seconds
    return "s", 1.0


def lead_values(leads: xr.DataArray) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], str]:
    """Leads as numbers for an axis, and their unit."""
    if leads.dtype.kind == "m":
        unit, size = lead_unit(leads)
        return leads.values.astype("m8[us]").astype(np.float64) / 1e6 / size, unit
    return leads.values.astype(np.float64), str(leads.attrs.get("units", ""))


def diagnosis_table(found: xr.Dataset) -> str:
    """What `lapse.diagnose` has found, over all series and frames, as text."""
    lines = [f"{found.attrs['equation']} {found.attrs['parameters']}, {found.attrs['residual_form']} residual"]
    bands = [str(b) for b in found["band"].values] if "band" in found.coords else []
    floor = ["over floor"] if "residual_over_floor" in found else []
    rows = [["", "rms", "units", "relative", *floor, *bands]]
    for v in found["variable"].values:
        one = found.sel(variable=v)
        row = [str(v), _number(_root(one["residual_rms"])), str(one["units"].values)]
        relative = _root(one["residual_rms"]) / _root(one["residual_scale"])
        row += [_number(relative), *(_number(relative / float(one["residual_floor"])) for _ in floor)]
        row += [_number(_root(one["residual_band_relative"].sel(band=b))) for b in bands]
        rows.append(row)
    lines += _aligned(rows)
    if "quantity" in found.dims:
        time = found["invariant"].dims[-1]
        rows = [["", "at first", "units", "at last", "largest drift", "relative", ""]]
        for q in found["quantity"].values:
            one = found.sel(quantity=q)
            ends = [_number(float(one["invariant"].isel({time: i}).mean())) for i in (0, -1)]
            drift, relative = (float(abs(one[n]).max()) for n in ("drift", "drift_relative"))
            unit, fate = str(one["quantity_units"].values), str(one["fate"].values)
            rows.append([str(q), ends[0], unit, ends[1], _number(drift), _number(relative), fate])
        lines += ["", *_aligned(rows)]
    for name in ("divergence_relative", "boundary_error", "seam"):
        if name in found:
            about, largest = found[name].attrs, _number(float(found[name].max()))
            unit = "" if about["units"] == "1" else f" {about['units']}"
            lines.append(f"{about['long_name']}, at most: {largest}{unit}")
    if lost := found.attrs["frames_not_finite"]:
        lines.append(f"{lost} frames are not finite, and left out")
    return "\n".join(lines)


def _root(values: xr.DataArray) -> float:
    """Root mean square over everything, of what is finite."""
    square = values.values[np.isfinite(values.values)] ** 2
    return float(np.sqrt(square.mean())) if square.size else float("nan")


def _number(value: float) -> str:
    return f"{value:.3g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
