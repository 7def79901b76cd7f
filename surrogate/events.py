r"""Probabilities of an event, "below freezing", "gusts above 25 m/s", judged by how often it happened.

M members of which k exceed a threshold forecast the probability p = k/M of an event that happens (y = 1) or does not.
The Brier score BS = ⟨(p − y)²⟩ splits exactly over the M + 1 probabilities that can be forecast (Murphy 1973), with n_k
the share of forecasts and ȳ_k the frequency of the event where k/M was forecast, ȳ that over all:

    BS = Σ n_k (k/M − ȳ_k)²  −  Σ n_k (ȳ_k − ȳ)²  +  ȳ (1 − ȳ)
          reliability            resolution          uncertainty

A reliable forecast has ȳ_k = k/M: the diagonal of the reliability diagram. The score of few members is worse than
that of many from the same distribution, which the fair Brier score sets right (Ferro 2014): (k/M − y)² less
k (M − k)/(M² (M − 1)). The skill is the fair score's, over a forecast of ȳ always, which knows the season's frequency
in hindsight.

References:
    Murphy (1973), A new vector partition of the probability score, doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2
    Bröcker and Smith (2007), Increasing the reliability of reliability diagrams, doi:10.1175/WAF993.1
    Ferro (2014), Fair scores for ensemble forecasts, doi:10.1002/qj.2270
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..datasets.spec import FieldSpec
from .align import on_points
from .pairs import pair

__all__ = ["score_event"]

_MEANING = {
    "brier": ("fair Brier score", "mean square error of the probability, for any number of members; 0 at best"),
    "brier_skill": ("Brier skill", "1 - brier / uncertainty: above 0 is better than always forecasting the frequency"),
    "reliability": ("reliability", "part of the Brier score that calibration would remove; 0 at best"),
    "resolution": ("resolution", "how far the forecasts tell frequent from rare; as large as the uncertainty at best"),
    "uncertainty": ("uncertainty", "variance of the event, y(1 - y) of its frequency y"),
    "frequency": ("frequency of the event", "in the truth"),
    "mean_probability": ("mean probability forecast", "equal to the frequency where there is no bias"),
    "observed": ("frequency of the event at a forecast probability", "the diagonal is reliable"),
    "forecast": ("mean probability of a bin", "where a reliability diagram has its points"),
    "share": ("share of forecasts", "in each bin of probability"),
}


def score_event(
    fc: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray,
    variable: str,
    *,
    above: float | xr.DataArray | None = None,
    below: float | xr.DataArray | None = None,
    bins: int = 21,
    spec: FieldSpec | None = None,
    weights: xr.DataArray | None = None,
    missing: Literal["raise", "drop"] = "raise",
    nan: Literal["raise", "valid"] = "raise",
    dims: Mapping[str, str] | None = None,
) -> xr.Dataset:
    """How good the forecast probabilities of an event are: the Brier score, its parts, and the reliability diagram.

    Args:
        fc, truth, spec, weights, missing, nan, dims: as for `lapse.score`.
        variable: whose event it is.
        above, below: the threshold, one of the two, in the variable's units: a number, or a DataArray over some of
            lead_time and space, such as the 90th percentile of every cell.
        bins: of the diagram, of equal width; M members with M + 1 probabilities have no more than these. Few cases
            want few bins. The scores do not depend on them.

    Returns:
        Over ``lead_time``: ``brier`` (fair), ``brier_skill``, ``reliability``, ``resolution``, ``uncertainty``,
        ``frequency`` and ``mean_probability``; over ``(lead_time, bin)`` the diagram: ``forecast`` and ``observed``,
        NaN where nothing was forecast, and their ``share``. Averages are over starts and, with area weights, over
        cells.

    Raises SpecError as `lapse.score` does; ValueError without one threshold, for fewer than two members or two bins.
    """
    if (above is None) == (below is None):
        raise ValueError("found both or neither of above= and below=, wanted one threshold")
    pairs = pair(fc, truth, spec=spec, variables=[variable], dims=dims, weights=weights, missing=missing, nan=nan)
    M, leads = pairs.members, pairs.fc.sizes["lead_time"]
    if M < 2:
        raise ValueError(f"found {M} member, wanted two or more: a probability is a share of members")
    if bins < 2:
        raise ValueError(f"found bins={bins}, wanted 2 or more")
    threshold: Any = above if below is None else below
    sign = -1 if above is None else 1
    if isinstance(threshold, xr.DataArray):
        threshold = sign * on_points(f"threshold of {variable!r}", threshold, pairs.fc, pairs.space)
    else:
        threshold = np.full((leads, *(1 for _ in pairs.space)), sign * threshold)
    mask = pairs.masks[variable]
    w = pairs.weights[mask] / pairs.weights[mask].sum()
    n, happened = np.zeros((leads, M + 1)), np.zeros((leads, M + 1))  # by the number of members, of M
    fair, starts = np.zeros(leads), np.zeros(leads)
    for block in pairs.blocks():
        for i, lead in enumerate(block.leads):
            alive = block.used[:, i]
            m = int(alive.sum())
            if m < 2:
                continue
            at = np.broadcast_to(threshold[lead], mask.shape)[mask]
            k = (sign * block.members[variable][alive, i][:, mask] > at).sum(axis=0)
            y = (sign * block.truth[variable][i][mask] > at).astype(np.float64)
            fair[lead] += w @ ((k / m - y) ** 2 - k * (m - k) / (m * m * (m - 1)))
            place = np.rint(k * (M / m)).astype(np.int64)
            n[lead] += np.bincount(place, weights=w, minlength=M + 1)
            happened[lead] += np.bincount(place, weights=w * y, minlength=M + 1)
            starts[lead] += 1
    given = above if below is None else below
    level = "a threshold of each place" if isinstance(given, xr.DataArray) else f"{given:g} {pairs.units[variable]}"
    event = f"{variable} {'above' if below is None else 'below'} {level}"
    with np.errstate(invalid="ignore"):
        brier = fair / starts
    return _described(n, happened, brier, min(bins, M + 1), pairs.fc["lead_time"], event)


def _described(n: Any, happened: Any, brier: Any, bins: int, lead_time: xr.DataArray, event: str) -> xr.Dataset:
    """Scores and diagram of the shares ``(leads, M + 1)`` of forecasts and of events among them."""
    total = n.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, p = n / total[:, None], np.linspace(0, 1, n.shape[1])
        rate = happened.sum(axis=1) / total
        each = np.where(n > 0, happened / n, rate[:, None])
        uncertainty = rate * (1 - rate)
        scores = {
            "brier": brier, "brier_skill": 1 - brier / uncertainty,
            "reliability": (share * (p - each) ** 2).sum(axis=1),
            "resolution": (share * (each - rate[:, None]) ** 2).sum(axis=1),
            "uncertainty": uncertainty, "frequency": rate, "mean_probability": share @ p,
        }  # fmt: skip
        place = np.minimum((p * bins).astype(int), bins - 1) if bins < len(p) else np.arange(bins)
        joined = np.eye(bins)[place]
        inside = n @ joined
        diagram = {
            "forecast": (n * p) @ joined / inside, "observed": happened @ joined / inside,
            "share": inside / total[:, None],
        }  # fmt: skip
    data: dict[str, tuple[tuple[str, ...], Any]] = {name: (("lead_time",), a) for name, a in scores.items()}
    data |= {name: (("lead_time", "bin"), np.where(inside > 0, a, np.nan)) for name, a in diagram.items()}
    data["share"] = (("lead_time", "bin"), diagram["share"])
    out = xr.Dataset(data, {"lead_time": lead_time}, {"title": f"probability forecasts of {event}", "event": event})
    for name, (long_name, comment) in _MEANING.items():
        out[name].attrs = {"long_name": long_name, "units": "1", "comment": comment}
    return out
