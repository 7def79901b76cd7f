"""Figures of scores and of films, as SVG that follows the reader's light or dark theme.

matplotlib draws with the colours of `INK`; `svg` then replaces each by a CSS variable and puts both themes into the
picture itself, so that a figure stays right wherever it is embedded. Lines use the colours of Okabe and Ito (2008),
which readers with any form of colour blindness can tell apart.
"""

import base64
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .film import Budget, Film
from .sprites import GREY, colour_scale, palette, picture
from .tables import lead_label, lead_values, spread_leads

__all__ = ["budget_figure", "calibration_figure", "score_figure", "spectrum_figure", "still_figure", "svg"]

INK = {  # name: (light, dark)
    "ink": ("#1c2431", "#e7ebf1"),
    "muted": ("#5c6779", "#9aa6b8"),
    "rule": ("#dfe4eb", "#2d3644"),
    "forecast": ("#0072b2", "#56b4e9"),
    "second": ("#d55e00", "#f0894a"),
    "third": ("#009e73", "#33c79b"),
    "fourth": ("#b0568c", "#e29ac0"),
    "fifth": ("#8a7300", "#e0c341"),
}
_C = {name: light for name, (light, _) in INK.items()}
_CYCLE = ("second", "third", "fourth", "fifth")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def svg(figure: Figure) -> str:
    """The figure as a data URI."""
    text = io.StringIO()
    with _style():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", text.getvalue(), flags=re.S)
    body = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", _FONT, body)
    for name, (light, _) in INK.items():
        body = body.replace(light, f"var(--{name})")
    themes = [";".join(f"--{name}:{pair[i]}" for name, pair in INK.items()) for i in (0, 1)]
    css = f"svg{{{themes[0]}}}@media(prefers-color-scheme:dark){{svg{{{themes[1]}}}}}"
    body = re.sub(r"(<svg[^>]*>)", rf"\1<style>{css}</style>", body, count=1)
    return f"data:image/svg+xml;base64,{base64.b64encode(body.encode()).decode()}"


def _style() -> AbstractContextManager[None]:
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "lapse", "font.size": 9.5, "font.family": "DejaVu Sans",
            "text.color": _C["ink"], "axes.labelcolor": _C["muted"], "axes.titlecolor": _C["ink"],
            "xtick.color": _C["muted"], "ytick.color": _C["muted"], "axes.edgecolor": _C["rule"],
            "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 9,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": _C["rule"],
            "grid.linewidth": 0.8, "axes.axisbelow": True, "figure.facecolor": "none", "axes.facecolor": "none",
            "savefig.facecolor": "none", "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.9,
            "lines.solid_capstyle": "round", "xtick.major.size": 0, "ytick.major.size": 0,
            "axes.formatter.limits": (-3, 4), "axes.formatter.use_mathtext": False, "axes.unicode_minus": True,
        }
    )  # fmt: skip


def _panels(count: int, columns: int, height: float = 2.55, width: float = 9.6) -> tuple[Figure, list[Any]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # type: ignore[union-attr,call-arg]
    axes = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _plain(text: str) -> str:
    """Text that matplotlib must not read as mathematics."""
    return text.replace("$", r"\$")


def _with_units(name: str, units: str) -> str:
    return _plain(f"{name} [{units}]" if units not in ("", "1") else name)


def _lead_axis(axis: Any, leads: xr.DataArray) -> NDArray[np.float64]:
    values, unit = lead_values(leads)
    axis.set_xlabel(_with_units("lead time", unit))
    if len(values) > 1:
        axis.set_xlim(values[0], values[-1])
    return values


def score_figure(scores: xr.Dataset, variable: str) -> Figure:
    """CRPS and RMSE beside the baselines', error beside spread, and their ratio, by lead."""
    s = scores.sel(variable=variable)
    units = str(s["units"].values)
    ensemble = bool(s["spread_skill"].notnull().any())
    names = [str(b) for b in s["baseline"].values] if "baseline_crps" in s else []
    with _style():
        figure, axes = _panels(4 if ensemble else 2, 2)
        mark = "o" if s.sizes["lead_time"] < 12 else ""
        titles = {"crps": "CRPS, fair", "rmse": "Error of the ensemble mean" if ensemble else "Error"}
        for axis, (key, title) in zip(axes, titles.items(), strict=False):
            t = _lead_axis(axis, s["lead_time"])
            for b, colour in zip(names, _CYCLE * len(names), strict=False):
                line = s[f"baseline_{key}"].sel(baseline=b)
                axis.plot(t, line, color=_C[colour], marker=mark, ms=3.5, label=_plain(b))
            axis.plot(t, s[key], color=_C["forecast"], marker=mark, ms=3.5, lw=2.4, label="this forecast")
            axis.set_title(_with_units(title, units))
            axis.set_ylim(bottom=0)
        if ensemble:
            t = _lead_axis(axes[2], s["lead_time"])
            M = s["members_used"].mean("init_time")
            factor = ((M + 1) / M) ** 0.5
            axes[2].plot(t, s["rmse"], color=_C["ink"], label="error of the mean")
            axes[2].plot(t, s["spread"] * factor, color=_C["forecast"], ls=(0, (4, 2)), label="spread × √((M+1)/M)")
            axes[2].set_title(_with_units("Error and spread", units))
            axes[2].set_ylim(bottom=0)
            axes[2].legend()
            t = _lead_axis(axes[3], s["lead_time"])
            axes[3].axhspan(0.8, 1.2, color=_C["third"], alpha=0.13, lw=0)
            axes[3].axhline(1, color=_C["muted"], lw=1)
            axes[3].plot(t, s["spread_skill"], color=_C["forecast"], marker=mark, ms=3.5)
            axes[3].set_ylim(0, max(1.5, 1.1 * float(s["spread_skill"].max())))
            axes[3].set_title("Spread/skill: 1 is calibrated")
        if names:
            _legend(figure, axes[:2])
    return figure


def calibration_figure(scores: xr.Dataset, variable: str) -> Figure:
    """Rank histograms at the first, middle and last lead, and coverage by lead."""
    s = scores.sel(variable=variable)
    at = spread_leads(s.sizes["lead_time"], 3)
    bins = s.sizes["rank"]
    with _style():
        figure, axes = _panels(len(at) + 1, len(at) + 1, height=2.5)
        top = max(2.0, 1.1 * bins * float(s["rank_histogram"].isel(lead_time=at).max()))
        for axis, i in zip(axes, at, strict=False):
            axis.bar(range(bins), bins * s["rank_histogram"].isel(lead_time=i), width=0.9, color=_C["forecast"])
            axis.axhline(1, color=_C["ink"], lw=1.2, ls=(0, (4, 2)))
            axis.set_title(_plain(f"Ranks at {lead_label(s['lead_time'], i)}"))
            axis.set(xlabel="members below the truth", ylim=(0, top))
            axis.set_xticks([0, bins - 1], labels=["none", "all"])
            axis.grid(axis="x", visible=False)
        axes[0].set_ylabel("frequency / flat")
        axis = axes[-1]
        t = _lead_axis(axis, s["lead_time"])
        for level, colour in zip(s["level"].values, ("forecast", *_CYCLE) * s.sizes["level"], strict=False):
            axis.axhline(100 * level, color=_C[colour], lw=1, ls=(0, (4, 2)))
            line = 100 * s["coverage"].sel(level=level)
            axis.plot(t, line, color=_C[colour], marker="o" if t.size < 12 else "", ms=3.5, label=f"{level:.0%}")
        axis.set(title="Coverage [%]", ylim=(0, 102))
        axis.legend(
            title="interval (dashed: nominal)", ncols=3, loc="lower center", title_fontsize=8, columnspacing=0.9,
            handlelength=1.1, borderaxespad=0.1,
        )  # fmt: skip
    return figure


def spectrum_figure(film: Film, leads: xr.DataArray) -> Figure:
    """Isotropic power of truth and members at the first, middle and last lead of a film."""
    count = max(1, len(film.spectra))
    with _style():
        figure, axes = _panels(count, count, height=2.6)
        drawn = [E[:, 1:].ravel() for _, E, _ in film.spectra.values()]
        drawn += [true[1:] for _, _, true in film.spectra.values() if true is not None]
        positive = np.concatenate(drawn) if drawn else np.ones(1)
        peak = float(positive.max()) if positive.max() > 0 else 1.0
        floor = max(float(positive[positive > 0].min()) if (positive > 0).any() else peak, 1e-10 * peak)
        for axis, (lead, (k, E, true)) in zip(axes, film.spectra.items(), strict=False):
            k, E = k[1:], np.maximum(E[:, 1:], 1e-300)
            if len(E) > 1:
                axis.fill_between(
                    k, E.min(axis=0), E.max(axis=0), color=_C["forecast"], alpha=0.22, lw=0, label="members, range"
                )
            label = "members, mean" if len(E) > 1 else "forecast"
            axis.plot(k, E.mean(axis=0), color=_C["forecast"], label=label)
            if true is not None:
                axis.plot(k, np.maximum(true[1:], 1e-300), color=_C["ink"], lw=1.3, ls=(0, (4, 2)), label="truth")
            axis.set(xscale="log", yscale="log", title=_plain(f"at {lead_label(leads, lead)}"), xlabel="wavenumber")
            axis.set_ylim(0.5 * floor, 2 * peak)
            axis.grid(which="minor", visible=False)
            axis.tick_params(which="minor", size=0)
            axis.minorticks_off()
        axes[0].set_ylabel(_with_units("power", "" if film.units in ("", "1") else f"({film.units})²"))
        _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend for all panels, above them; curves of one name are one entry."""
    entries = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=len(entries), fontsize=8.5)


def budget_figure(budgets: Sequence[Budget], leads: xr.DataArray) -> Figure:
    """Scalars by lead: all members as a range, their mean, and the truth."""
    columns = min(3, max(2, len(budgets)))
    with _style():
        figure, axes = _panels(len(budgets), columns, height=2.4)
        for axis, b in zip(axes, budgets, strict=True):
            t = _lead_axis(axis, leads)
            there = np.isfinite(b.members).any(axis=0)
            m = b.members[:, there]
            if len(m) > 1:
                low, high = np.nanmin(m, axis=0), np.nanmax(m, axis=0)
                axis.fill_between(t[there], low, high, color=_C["forecast"], alpha=0.22, lw=0, label="members, range")
            label = "members, mean" if len(m) > 1 else "forecast"
            axis.plot(t[there], np.nanmean(m, axis=0), color=_C["forecast"], label=label)
            if b.truth is not None:
                axis.plot(t, b.truth, color=_C["ink"], lw=1.3, ls=(0, (4, 2)), label="truth")
            axis.set_title(_with_units(b.name, b.units))
            low, high = axis.get_ylim()
            scale = max(abs(low), abs(high), b.scale)
            if high - low < 1e-4 * scale:  # conserved to round-off, which must not look like a drift
                axis.set_ylim((low + high) / 2 - 1e-2 * scale, (low + high) / 2 + 1e-2 * scale)
                note = f"varies by {np.nanmax(np.ptp(m, axis=1)):.1e}".replace("e-0", "e-")
                axis.text(0.5, 0.08, note, transform=axis.transAxes, ha="center", color=_C["muted"], fontsize=8.5)
        _legend(figure, axes)
    return figure


def still_figure(film: Film, leads: xr.DataArray) -> Figure:
    """A film at rest: first, middle and last lead of each panel; of a 1D field, each panel over space and lead."""
    names = list(film.panels)
    line = film.grid.ndim == 1
    at = [0] if line else spread_leads(len(film.leads), 3)
    with _style():
        rows, columns = (1, 1) if line else picture(film.reference, film.grid).shape[-2:]
        height = 2.5 if line else len(at) * (9.6 / len(names) * rows / columns + 0.1) + 0.3
        figure = Figure(figsize=(9.6, min(height, 14.0)), layout="constrained")
        axes = figure.subplots(len(at), len(names), squeeze=False)
        for j, name in enumerate(names):
            colours, low, high = colour_scale(film, name)
            land = (GREY[0] / 255, GREY[1] / 255, GREY[2] / 255)
            cmap = ListedColormap(palette(colours, 255) / 255).with_extremes(bad=land)
            frames = film.panels[name][None] if line else picture(film.panels[name], film.grid)
            look = {"vmin": low, "vmax": high, "aspect": "auto" if line else "equal", "interpolation": "nearest"}
            for row, i in zip(axes, at, strict=True):
                row[j].imshow(np.ma.masked_invalid(frames[i]), cmap=cmap, **look)
                row[j].set(xticks=[], yticks=[])
                row[j].grid(visible=False)
            axes[0, j].set_title(_plain(name))
            if line:
                axes[0, j].set_xlabel(film.grid.names[0])
        for row, i in zip(axes, at, strict=True):
            row[0].set_ylabel("lead time ↓" if line else _plain(lead_label(leads, film.leads[i])))
    return figure
