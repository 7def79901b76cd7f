"""Scores of ensemble forecasts: how far, how calibrated, how alike in spectrum and in budgets.

`score` takes the moments of every variable, start and lead (`moments`), averages them, and only then divides. Ratios
(VRMSE, spread/skill, spectra) are therefore ratios of means over all starts, not means of ratios.

Scores that mean something only beside another come together: a CRPS beside the spread/skill ratio, a budget beside the
accuracy. The formulas are in `metrics`; every score carries its definition and its source in its attributes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from .align import canonical, positions
from .moments import Moments, Physics, moments
from .pairs import Pairs, pair

__all__ = ["Physics", "equation_physics", "score", "summarised"]

Array = NDArray[np.float64]
Scores = dict[str, tuple[tuple[str, ...], Array]]

_DOI = "https://doi.org/"
_FERRO = f"Ferro (2014), {_DOI}10.1002/qj.2270"
_FORTIN = f"Fortin et al. (2014), {_DOI}10.1175/JHM-D-14-0008.1"
_AGAIN = "the forecast's score, of the baseline, over the same starts, leads and cells"
_OWN = "defined by the physics function"
_MEANING: dict[str, tuple[str, str, str]] = {  # long_name, units, comment
    "crps": (
        "fair continuous ranked probability score",
        "field",
        f"mean |x - y| - 1/2 mean |x - x'|, unbiased for any number of members; of one: the absolute error. {_FERRO}",
    ),
    "rmse": ("error of the ensemble mean", "field", "sqrt <(mean - truth)^2> over space and starts"),
    "vrmse": (
        "variance-scaled error of the ensemble mean",
        "1",
        "sqrt(<(mean - truth)^2> / <(truth - <truth>)^2>), <truth> the spatial mean at its time: 1 is no better than "
        f"that mean. Ohana et al. (2024), {_DOI}10.48550/arXiv.2412.00568",
    ),
    "bias": ("mean error of the ensemble mean", "field", "<mean - truth> over space and starts"),
    "spread": ("ensemble spread", "field", f"sqrt <unbiased member variance>; undefined for one member. {_FORTIN}"),
    "spread_skill": (
        "spread/skill ratio",
        "1",
        f"sqrt((M + 1)/M <member variance> / <(mean - truth)^2>): 1 is calibrated, below 1 overconfident. {_FORTIN}",
    ),
    "coverage": (
        "coverage of the central interval",
        "1",
        "share of truths inside, in expectation the level for a reliable ensemble of any size: order statistics are "
        f"interpolated in probability. Czado et al. (2009), {_DOI}10.1111/j.1541-0420.2009.01191.x",
    ),
    "rank_histogram": (
        "rank of the truth among the members",
        "1",
        "relative frequency, ties broken at random: flat is reliable, a U overconfident. Hamill (2001), "
        f"{_DOI}10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2",
    ),
    "spectrum_ratio": ("power of the members over the truth's", "1", "by band: below 1 too smooth, above 1 too rough"),
    "spectrum_members": ("power of the members", "square", "by band, the mean over members"),
    "spectrum_truth": ("power of the truth", "square", "by band"),
    "crmse": (
        "error of the area mean",
        "field",
        "sqrt <(m - m_truth)^2> over members and starts, m the area-weighted mean of the field. "
        f"Takamoto et al. (2022), {_DOI}10.48550/arXiv.2210.07182",
    ),
    "drift": ("drift of the area mean", "field", "<m - m_truth> over members and starts, m the area-weighted mean"),
    "physics_members": ("physical quantity, mean over members", "", _OWN),
    "physics_truth": ("physical quantity of the truth", "", _OWN),
    "physics_crmse": ("error of the physical quantity", "", f"sqrt <(q - q_truth)^2>, q {_OWN}"),
    "physics_drift": ("drift of the physical quantity", "", f"<q - q_truth>, q {_OWN}"),
    "baseline_crps": ("fair CRPS of the baseline", "field", _AGAIN),
    "baseline_rmse": ("error of the baseline's mean", "field", _AGAIN),
    "baseline_vrmse": ("variance-scaled error of the baseline's mean", "1", _AGAIN),
    "crps_skill": ("CRPS skill", "1", "1 - crps / baseline_crps: above 0 is better than the baseline"),
    "members_used": ("members in the scores", "1", "those neither flagged invalid nor non-finite"),
    "starts_used": ("starts in the scores", "1", "those that have a truth at this lead"),
}


def score(
    fc: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    *,
    baselines: Mapping[str, xr.Dataset] | None = None,
    spec: FieldSpec | None = None,
    variables: Sequence[str] | None = None,
    nan: Literal["raise", "valid"] = "raise",
    missing: Literal["raise", "drop"] = "raise",
    coverage: Sequence[float] = (0.5, 0.8, 0.9),
    by_init: bool = False,
    weights: xr.DataArray | None = None,
    physics: Physics | None = None,
    dims: Mapping[str, str] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Score a forecast against the truth; a lazily opened forecast is read block by block.

    Args:
        fc: forecast with the dimensions (init_time, member, lead_time, *space) and the coordinate valid_time. A missing
            member or init_time dimension counts as one. Members that a boolean variable ``valid`` (init_time, member)
            calls invalid are left out and counted.
        truth: the same variables in the same units, over ``time`` or over (init_time, lead_time). Its axes may run the
            other way, and longitudes may be shifted by 360°.
        baselines: name -> forecast with the same starts and leads, such as those of `lapse.surrogate.baselines`.
        spec: what the fields are: masks, periodic axes (for spectra), the equation (for budgets). Without it, the mask
            is where the first truth is NaN, no axis is periodic, and the budgets are the area means.
        variables: names to score; by default all fields of `fc` (that are in the spec).
        nan: "raise", or "valid" to leave out and count members that are not finite somewhere outside the mask.
        missing: "raise", or "drop" to leave out the valid times that the truth does not have.
        coverage: nominal levels of the central intervals, between 0 and 1.
        by_init: keep the dimension init_time instead of averaging over starts.
        weights: area weights over some of the spatial dimensions, instead of the cells' areas (cos latitude).
        physics: further quantities to compare with the truth's (see `Physics`); by default the invariants of the
            spec's equation, if it names one.
        dims: our name -> name in `fc` or `truth`, such as ``{"member": "number"}``, where metadata do not tell.
        seed: of the random ranks of ties.

    Returns:
        Scores over (variable, lead_time) and, where it applies, level, rank, band, baseline or quantity; the coordinate
        ``units`` holds the units of each variable.

    Raises:
        SpecError: naming every mismatch of names, units, points and times, or values that are not finite.
    """
    if not all(0 < level < 1 for level in coverage):
        raise ValueError(f"found coverage levels {tuple(coverage)}, wanted them between 0 and 1")
    pairs = pair(fc, truth, spec=spec, variables=variables, dims=dims, weights=weights, missing=missing, nan=nan)
    if physics is None and spec is not None:
        physics = equation_physics(spec, pairs.variables)
    m = moments(pairs, tuple(coverage), physics, seed)
    lead = ("init_time", "lead_time") if by_init else ("lead_time",)
    mean = np.asarray if by_init else _mean_over_starts
    scores = _accuracy(m, mean, lead) | _calibration(m, mean, lead) | _spectra(m, mean, lead) | _budgets(m, mean, lead)
    for i, (name, baseline) in enumerate((baselines or {}).items()):
        theirs = _same_pairs(pairs, name, baseline, truth, spec, weights, dims)
        for s, (d, values) in _accuracy(moments(theirs, (), None, seed, spectra=False), mean, lead).items():
            empty = np.empty((len(baselines or {}), *values.shape))
            scores.setdefault(f"baseline_{s}", (("baseline", *d), empty))[1][i] = values
    if baselines:
        del scores["baseline_bias"]
        d, theirs_crps = scores["baseline_crps"]
        scores["crps_skill"] = (d, 1 - _ratio(np.broadcast_to(scores["crps"][1], theirs_crps.shape), theirs_crps))
    scores["members_used"] = (("init_time", "lead_time"), m["used"])
    scores["starts_used"] = (("lead_time",), pairs.kept.sum(axis=0))
    return _described(scores, m, pairs, tuple(coverage), tuple(baselines or ()))


def summarised(m: Moments, pairs: Pairs, coverage: tuple[float, ...]) -> xr.Dataset:
    """The scores of moments that came from elsewhere (`statistics`), over starts, without spectra and baselines."""
    lead = ("lead_time",)
    mean = _mean_over_starts
    scores = _accuracy(m, mean, lead) | _calibration(m, mean, lead) | _budgets(m, mean, lead)
    scores["members_used"] = (("init_time", "lead_time"), m["used"])
    scores["starts_used"] = (lead, pairs.kept.sum(axis=0))
    return _described(scores, m, pairs, coverage, ()).drop_dims("band")


def equation_physics(spec: FieldSpec, variables: Sequence[str]) -> Physics | None:
    """The invariants of the spec's equation as a physics function; None without an equation or its variables."""
    if spec.equation is None:
        return None
    from ..physics.equation import equation

    law = equation(spec.equation, spec.grid, **spec.parameters)
    if not set(law.variables) <= set(variables):
        return None

    def invariants(ds: xr.Dataset) -> xr.Dataset:
        import torch

        lead = [d for d in ("member", "lead_time") if d in ds.dims]
        space = [d for d in ds[law.variables[0]].dims if d not in lead]
        u = np.stack([ds[v].transpose(*lead, *space).values for v in law.variables], axis=len(lead))
        found = law.invariants(torch.from_numpy(u).double())
        return xr.Dataset({name: (lead, value.numpy()) for name, value in found.items()})

    return invariants


def _mean_over_starts(a: Array) -> Array:
    """Mean over axis 1, leaving out starts without a value."""
    there = np.isfinite(a)
    count = there.sum(axis=1)
    total = np.where(there, a, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _ratio(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0))


def _accuracy(m: Moments, mean: Callable[[Array], Array], lead: tuple[str, ...]) -> Scores:
    dims, square = ("variable", *lead), mean(m["square"])
    return {
        "crps": (dims, mean(m["crps"])),
        "rmse": (dims, np.sqrt(square)),
        "vrmse": (dims, np.sqrt(_ratio(square, mean(m["signal"])))),
        "bias": (dims, mean(m["error"])),
    }


def _calibration(m: Moments, mean: Callable[[Array], Array], lead: tuple[str, ...]) -> Scores:
    dims = ("variable", *lead)
    skill = np.where(np.isfinite(m["inflated"]), m["square"], np.nan)  # of the starts that have a spread
    return {
        "spread": (dims, np.sqrt(mean(m["variance"]))),
        "spread_skill": (dims, np.sqrt(_ratio(mean(m["inflated"]), mean(skill)))),
        "coverage": ((*dims, "level"), mean(m["coverage"])),
        "rank_histogram": ((*dims, "rank"), mean(m["histogram"])),
    }


def _spectra(m: Moments, mean: Callable[[Array], Array], lead: tuple[str, ...]) -> Scores:
    dims, power, truth = ("variable", *lead, "band"), mean(m["power"]), mean(m["power_truth"])
    return {
        "spectrum_ratio": (dims, _ratio(power, truth)),
        "spectrum_members": (dims, power),
        "spectrum_truth": (dims, truth),
    }


def _budgets(m: Moments, mean: Callable[[Array], Array], lead: tuple[str, ...]) -> Scores:
    dims, quantity = ("variable", *lead), ("quantity", *lead)
    out: Scores = {"crmse": (dims, np.sqrt(mean(m["mean_square"]))), "drift": (dims, mean(m["mean_error"]))}
    if "physics" in m:
        q = mean(m["physics"])
        out["physics_members"], out["physics_truth"] = (quantity, q[..., 0]), (quantity, q[..., 1])
        out["physics_crmse"], out["physics_drift"] = (quantity, np.sqrt(q[..., 2])), (quantity, q[..., 3])
    return out


def _same_pairs(
    pairs: Pairs, name: str, baseline: xr.Dataset, truth: xr.Dataset | xr.DataArray, spec: FieldSpec | None,
    weights: xr.DataArray | None, dims: Mapping[str, str] | None,
) -> Pairs:  # fmt: skip
    """A baseline, paired with the truth at exactly the forecast's starts and leads."""
    other = canonical(baseline, dims)
    at = {d: positions(pairs.fc[d], other[d]) for d in ("init_time", "lead_time")}
    if not any((p < 0).any() for p in at.values()):
        other = other.isel(at)
        theirs = pair(
            other, truth, spec=spec, variables=pairs.variables, dims=dims, weights=weights, missing="drop"
        )
        if theirs.kept.shape == pairs.kept.shape and (theirs.kept == pairs.kept).all():
            return theirs
    found = f"{other.sizes['init_time']} starts and {other.sizes['lead_time']} leads"
    fix = "make it with the forecast's init_time, lead_time and valid_time"
    raise SpecError([Problem(f"baseline {name!r}", found, "the starts, leads and valid times of the forecast", fix)])


def _described(
    scores: Scores, m: Moments, pairs: Pairs, levels: tuple[float, ...], baselines: tuple[str, ...]
) -> xr.Dataset:
    bins = m["histogram"].shape[-1]
    meaning = "members below the truth" if bins == pairs.members + 1 else f"members below the truth, in {bins} bins"
    coords: dict[str, Any] = {
        "variable": list(pairs.variables),
        "units": ("variable", [pairs.units[v] for v in pairs.variables]),
        "level": ("level", list(levels), {"long_name": "nominal level of the central interval"}),
        "rank": ("rank", np.arange(bins), {"long_name": meaning}),
    }
    coords |= {c: pairs.fc[c] for c in ("init_time", "lead_time", "valid_time") if c in pairs.fc.coords}
    low, high = m["bands"][:-1], m["bands"][1:]
    inverse = {a.units for a in pairs.grid.axes}
    wave = {"units": f"rad/({inverse.pop()})"} if len(inverse) == 1 else {}
    centre = np.sqrt(low * np.where(np.isfinite(high), high, 2 * low))
    coords["band"] = ("band", centre, {"long_name": "central wavenumber of the band", **wave})
    coords["band_low"], coords["band_high"] = ("band", low, wave), ("band", high, wave)
    if "quantities" in m:
        coords["quantity"] = m["quantities"].tolist()
    if baselines:
        coords["baseline"] = list(baselines)
    kept = {k: v for k, v in pairs.fc.attrs.items() if k in ("source", "history") or str(k).startswith("lapse_")}
    attrs = {"Conventions": "CF-1.11", "title": "scores of an ensemble forecast", **kept}
    out = xr.Dataset({name: (d, values) for name, (d, values) in scores.items()}, coords=coords, attrs=attrs)
    alike = set(pairs.units.values())
    field = alike.pop() if len(alike) == 1 else "as the coordinate units says"
    squared = field if field == "1" else f"({field})^2"
    for name in out.data_vars:
        long_name, units, comment = _MEANING[str(name)]
        out[name].attrs = {"long_name": long_name, "comment": comment}
        if units:
            out[name].attrs["units"] = {"1": "1", "field": field, "square": squared}[units]
    return out
