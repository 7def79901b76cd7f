"""A forecast on one self-contained HTML page: what it is, how it looks, how good it is, what it does to the budgets.

Without a truth the page describes the forecast alone. Pictures are of one start, scores of all. Only what is shown is
read, block by block, so that a forecast larger than memory has its page too.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.spec import FieldSpec
from . import page
from .figures import INK, budget_figure, calibration_figure, score_figure, spectrum_figure, still_figure, svg
from .film import Budget, Film, gather, percentiles
from .moments import Physics
from .pairs import Pairs, pair
from .scores import equation_physics, score
from .sprites import coarsening, colour_scale, palette, picture, sprite
from .tables import lead_label, skill_rows

__all__ = ["report"]

_MOST_BYTES = 7_000_000
_FACTS = {
    "source": "source", "lapse_model": "model", "lapse_mode": "mode", "lapse_seed": "seed",
    "lapse_version": "lapse version", "lapse_config_hash": "config hash",
    "lapse_input_fingerprint": "input fingerprint", "institution": "institution",
    "references": "references",
}  # fmt: skip


def report(
    fc: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None = None,
    scores: xr.Dataset | None = None,
    path: str | Path = "report.html",
    *,
    title: str | None = None,
    baselines: Mapping[str, xr.Dataset] | None = None,
    spec: FieldSpec | None = None,
    model_card: str | None = None,
    physics: Physics | None = None,
    variables: Sequence[str] | None = None,
    start: int = 0,
    nan: Literal["raise", "valid"] = "raise",
    missing: Literal["raise", "drop"] = "raise",
    dims: Mapping[str, str] | None = None,
) -> Path:
    """Write the page and return its path.

    Args:
        fc, truth, baselines, spec, physics, variables, nan, missing, dims: as for `lapse.score`.
        scores: what `lapse.score` returned for them; computed here if there is a truth and none are given.
        path: of the HTML file.
        title: heading; by default the forecast's own title.
        model_card: text to append, shown as it is.
        start: position of the start that is shown.

    Raises:
        SpecError: as `lapse.score` does.
        IndexError: for a start that the forecast does not have.
    """
    if truth is not None and scores is None:
        scores = score(
            fc, truth, baselines=baselines, spec=spec, variables=variables, nan=nan, missing=missing,
            physics=physics, dims=dims,
        )  # fmt: skip
    pairs = pair(fc, truth, spec=spec, variables=variables, nan="valid", missing=missing, dims=dims)
    if not -pairs.fc.sizes["init_time"] <= start < pairs.fc.sizes["init_time"]:
        raise IndexError(f"found start={start}, wanted one of the forecast's {pairs.fc.sizes['init_time']} starts")
    if physics is None and spec is not None:
        physics = equation_physics(spec, pairs.variables)
    films, budgets = gather(pairs, start % pairs.fc.sizes["init_time"], spec, physics)
    heading = title or str(pairs.fc.attrs.get("title", "Forecast report"))
    out = Path(path)
    factor = coarsening(films)
    while True:
        text = _compose(pairs, films, budgets, scores, heading, model_card, start, factor)
        if len(text) <= _MOST_BYTES or factor >= 16:
            break
        factor *= 2
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


def _compose(
    pairs: Pairs, films: list[Film], budgets: list[Budget], scores: xr.Dataset | None, title: str,
    model_card: str | None, start: int, factor: int,
) -> str:  # fmt: skip
    leads = pairs.fc["lead_time"]
    sections = [("forecast", "Forecast", _about(pairs)), ("fields", "Fields", _fields(pairs, films, start, factor))]
    if scores is not None:
        sections.append(("scores", "Scores", _scores(scores)))
    sections.append(("spectra", "Spectra", _spectra(films, leads)))
    if scores is not None and bool(scores["spread_skill"].notnull().any()):
        sections.append(("calibration", "Calibration", _calibration(scores)))
    sections.append(("physics", "Physics", _physics(budgets, leads, scores)))
    if scores is not None:
        note = '<p class="note">Means over all starts. CRPS is fair; a ratio below 1 is better than the baseline.</p>'
        sections.append(("table", "Table", page.section(note, page.table(skill_rows(scores, rows=8)))))
    if model_card:
        card = page.escape(model_card)
        body = f"<details open><summary>as shipped with the model</summary><pre>{card}</pre></details>"
        sections.append(("card", "Model card", body))
    I, M, L = (pairs.fc.sizes[d] for d in ("init_time", "member", "lead_time"))
    subtitle = f"{_count(M, 'member')}, {_count(L, 'lead')} to {lead_label(leads, L - 1)}, {_count(I, 'start')}"
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return page.page(title, subtitle, page.tiles(_headlines(pairs, scores)), sections, f"Written {written} by lapse.")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _moment(time: Any) -> str:
    """A time as people write it: "2014-05-16 06:00", or the number."""
    if isinstance(time, np.datetime64):
        return str(np.datetime_as_string(time, unit="m")).replace("T", " ")
    return f"{time:.6g}" if isinstance(time, float | int | np.number) else str(time)


def _number(a: float) -> str:
    return f"{a:.3g}" if np.isfinite(a) else "–"


def _headlines(pairs: Pairs, scores: xr.Dataset | None) -> list[tuple[str, str]]:
    if scores is None:
        return []
    several = len(pairs.variables) > 1
    v = pairs.variables[0]
    s = scores.sel(variable=v)
    of = f" of {v}" if several else ""
    units = "" if pairs.units[v] == "1" else f" {pairs.units[v]}"
    last = lead_label(scores["lead_time"], scores.sizes["lead_time"] - 1)
    items = [(f"{_number(float(s['crps'].mean()))}{units}", f"fair CRPS{of}, mean over leads")]
    if "baseline_crps" in s:
        for b in s["baseline"].values[:2]:
            ratio = float(s["crps"].mean() / s["baseline_crps"].sel(baseline=b).mean())
            items.append((f"{ratio:.2f} ×", f"the CRPS of {b}{of}, mean over leads"))
    items.append((_number(float(s["vrmse"].isel(lead_time=-1))), f"variance-scaled error{of} at {last}"))
    if bool(s["spread_skill"].notnull().any()):
        low, high = float(s["spread_skill"].min()), float(s["spread_skill"].max())
        items.append((f"{low:.2f} – {high:.2f}", f"spread/skill{of} over leads; 1 is calibrated"))
    if s.sizes["level"] and bool(s["spread_skill"].notnull().any()):
        level = float(s["level"][-1])
        items.append((f"{float(s['coverage'].isel(level=-1).mean()):.0%}", f"inside the {level:.0%} interval{of}"))
    used, M = int(scores["members_used"].min()), pairs.members
    if used < M:
        items.append((f"{used} of {M}", "members used where fewest are; the others were not finite"))
    return items


def _about(pairs: Pairs) -> str:
    fc = pairs.fc
    starts = [_moment(t) for t in fc["init_time"].values]
    shown = ", ".join(starts[:3]) + (f" … {starts[-1]}" if len(starts) > 3 else "")
    axes = "; ".join(
        f"{d}: {a.size} points, {a.coordinates[0]:g} to {a.coordinates[-1]:g}{'' if a.units == '1' else ' ' + a.units}"
        for d, a in zip(pairs.space, pairs.grid.axes, strict=True)
    )
    names = ", ".join(v if pairs.units[v] == "1" else f"{v} [{pairs.units[v]}]" for v in pairs.variables)
    items: dict[str, object] = {label: fc.attrs[key] for key, label in _FACTS.items() if key in fc.attrs}
    items |= {"variables": names, "grid": axes, "starts": shown}
    history = str(fc.attrs.get("history", "")).strip()
    lines = f"<details><summary>History</summary><pre>{page.escape(history)}</pre></details>" if history else ""
    return page.section(page.facts(items), lines)


def _fields(pairs: Pairs, films: list[Film], start: int, factor: int) -> str:
    leads = pairs.fc["lead_time"]
    label = page.escape(_moment(pairs.fc["init_time"].values[start]))
    scale = "Truth, mean and members share one colour scale; cells without data are grey."
    if pairs.grid.ndim == 1:
        scale = "Shading is the mean ± one spread; below, every panel over space and lead."
    parts = [f'<p class="note">Start {label}. {scale}</p>']
    for film in films:
        names = ", ".join(film.panels)
        alt = f"{film.variable} at several leads: {names}"
        kind = "still" if film.grid.ndim == 1 else "still replaced"
        still = page.figure(svg(still_figure(film, leads)), alt, kind=kind)
        heading = page.escape(film.variable if film.units == "1" else f"{film.variable} [{film.units}]")
        build = _curves if film.grid.ndim == 1 else _sheets
        parts += [f"<h3>{heading}</h3>", build(film, leads, factor), still]
    return page.section(*parts)


def _labels(film: Film, leads: xr.DataArray) -> dict[str, Any]:
    delay = max(80, min(400, 6000 // len(film.leads)))  # milliseconds: some six seconds in all
    return {"labels": [f"lead {lead_label(leads, i)}" for i in film.leads], "delay": delay}


def _sheets(film: Film, leads: xr.DataArray, factor: int) -> str:
    sheets: list[dict[str, Any]] = []
    panels = []
    for name, frames in film.panels.items():
        colours, low, high = colour_scale(film, name)
        made = sprite(picture(frames, film.grid), colours, low, high, factor)
        sheets.append({"uri": made.uri, "width": made.width, "height": made.height, "columns": made.columns})
        stops = ",".join("#{:02x}{:02x}{:02x}".format(*c) for c in palette(colours, 11))
        ends = (_number(low), _number((low + high) / 2), _number(high))
        panels.append((name, f"linear-gradient(90deg,{stops})", *ends))
    cell = 165 if sheets[0]["width"] <= 1.3 * sheets[0]["height"] else 290
    return page.player({"panels": sheets, **_labels(film, leads)}, panels, "", cell)


def _curves(film: Film, leads: xr.DataArray, factor: int) -> str:
    step = max(1, film.grid.shape[0] // 512)
    low, high = percentiles(np.stack([u for n, u in film.panels.items() if n not in ("spread", "error")]), 0, 100)
    if not high > low:
        low, high = low - 1, high + 1
    axis = film.grid.axes[0]
    look = {
        "truth": ("ink", 1.6), "ensemble mean": (INK["forecast"][0], 2.4), "forecast": (INK["forecast"][0], 2.2),
        "member": (INK["second"][0], 1.0), "other": (INK["third"][0], 1.0),
    }  # fmt: skip
    curves, keys, members = [], [], 0
    for name, frames in film.panels.items():
        if name in ("spread", "error"):
            continue
        kind = name if name in look else ("member", "other")[members % 2]
        members += name not in look
        colour, width = look[kind]
        curves.append({"frames": _rounded(frames[:, ::step]), "colour": colour, "width": width})
        shade = "var(--ink)" if colour == "ink" else colour
        keys.append(f'<span><i style="background:{shade}"></i>{page.escape(name)}</span>')
    margin = 0.04 * (high - low)
    spec: dict[str, Any] = {
        "x": [float(f"{c:.6g}") for c in axis.coordinates[::step]], "range": [low - margin, high + margin],
        "axis": axis.name if axis.units == "1" else f"{axis.name} [{axis.units}]", "curves": curves,
        "colours": {"band": INK["forecast"][0]}, **_labels(film, leads),
    }  # fmt: skip
    if "spread" in film.panels and np.isfinite(film.panels["spread"]).any():
        mean, spread = film.panels["ensemble mean"][:, ::step], film.panels["spread"][:, ::step]
        spec["band"] = [_rounded(mean - spread), _rounded(mean + spread)]
    return page.player(spec, [], f'<div class="key">{"".join(keys)}</div>', 0)


def _rounded(u: NDArray[Any]) -> list[list[float | None]]:
    return [[float(f"{a:.4g}") if np.isfinite(a) else None for a in row] for row in u.tolist()]


def _scores(scores: xr.Dataset) -> str:
    parts = []
    for v in scores["variable"].values:
        s = scores.sel(variable=v)
        first, last = (_number(float(s["crps"][i])) for i in (0, -1))
        alt = f"Scores of {v} by lead: CRPS from {first} at the first lead to {last} at the last"
        parts += [f"<h3>{page.escape(v)}</h3>", page.figure(svg(score_figure(scores, str(v))), alt)]
    return page.section('<p class="note">Means over all starts and cells, weighted by area.</p>', *parts)


def _spectra(films: list[Film], leads: xr.DataArray) -> str:
    note = "Isotropic power by wavenumber at the first, middle and last lead of the start shown."
    parts = [f'<p class="note">{note}</p>']
    for film in films:
        alt = f"Power spectra of {film.variable}: members" + (" and truth" if "truth" in film.panels else "")
        parts += [f"<h3>{page.escape(film.variable)}</h3>", page.figure(svg(spectrum_figure(film, leads)), alt)]
    return page.section(*parts)


def _calibration(scores: xr.Dataset) -> str:
    note = "A flat histogram is reliable, a U overconfident, a dome underconfident. Coverage should lie on its level."
    parts = [f'<p class="note">{note}</p>']
    for v in scores["variable"].values:
        cover = [f"{float(c):.0%}" for c in scores["coverage"].sel(variable=v).mean("lead_time")]
        alt = f"Rank histograms of {v}, and coverage by lead, on average {', '.join(cover)}"
        parts += [f"<h3>{page.escape(v)}</h3>", page.figure(svg(calibration_figure(scores, str(v))), alt)]
    return page.section(*parts)


def _physics(budgets: list[Budget], leads: xr.DataArray, scores: xr.Dataset | None) -> str:
    note = "Budgets of every member of the start shown; an area mean that the equation conserves is a straight line."
    names = ", ".join(b.name for b in budgets)
    picture_of = page.figure(svg(budget_figure(budgets, leads)), f"Budgets by lead: {names}")
    parts = [f'<p class="note">{note}</p>', picture_of]
    if scores is not None:
        last = scores.isel(lead_time=-1)
        rows = [["quantity", "units", "error (cRMSE)", "drift"]]
        for v in last["variable"].values:
            at = last.sel(variable=v)
            figures = [_number(float(at[k])) for k in ("crmse", "drift")]
            rows.append([f"area mean of {v}", str(at["units"].values), *figures])
        for q in last["quantity"].values if "physics_crmse" in last else []:
            at = last.sel(quantity=q)
            rows.append([str(q), "", *(_number(float(at[k])) for k in ("physics_crmse", "physics_drift"))])
        parts += ["<h3>At the last lead, over all starts</h3>", page.table(rows)]
    return page.section(*parts)
