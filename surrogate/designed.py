"""What a design hands back: the Dataset, its provenance, and what speaks against it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from .. import __version__
from ..datasets.fields import to_dataset
from .case import Case, Prediction
from .descent import Iterate
from .search import Round
from .targets import Target, label
from .trust import hull, widened

__all__ = ["Verdict", "assemble", "suspicions"]


_BEYOND = 1.25  # of the limit: the penalty is a soft wall, and designs lean on it
_DISAGREEMENT = 0.05  # of the gain, between modes


@dataclass
class Verdict:
    """What forecasts, by mode, and the solver say of the designed and the given state."""

    by_mode: dict[str, Prediction]
    given: Prediction
    widening: float = 1.0
    achieved: float | None = None
    achieved_given: float | None = None
    critic: str = ""

    @property
    def mode(self) -> str:
        """The mode that predicts; the others are set against it."""
        return next(iter(self.by_mode))

    @property
    def designed(self) -> Prediction:
        """Its prediction."""
        return self.by_mode[self.mode]

    @property
    def interval(self) -> tuple[float, float]:
        """From the least to the greatest end of the intervals of all modes that have one, widened."""
        return widened(hull(np.array([p.interval for p in self.by_mode.values()])), self.widening)


def suspicions(
    best: Iterate, verdict: Verdict, limits: Mapping[str, float], members: int, repaired: str | None = None
) -> list[str]:
    """Signs that the optimiser leans on errors of the surrogate, each a sentence.

    Where rounds were ``repaired`` (then the sense of the search), the solver's word is the only one that counts.
    """
    if repaired is not None and verdict.achieved is not None and verdict.achieved_given is not None:
        gain = (verdict.achieved - verdict.achieved_given) * (1 if repaired == "maximise" else -1)
        return [] if gain > 0 else [f"by the solver it is no better than the given state, {verdict.achieved_given:.4g}"]
    found = [
        f"the design's {name} distance to known states is {rho:.3g}, beyond the reference's {limits[name]:.3g}"
        for name, rho in best.about["distances"].items()
        if rho > _BEYOND * limits[name]
    ]
    own, new, mode = best.about["objective"], verdict.designed, verdict.mode
    gain, random = abs(new.value - verdict.given.value), len(new.members) > 1
    width = new.interval[1] - new.interval[0] if np.isfinite(new.interval).all() else 0.0
    error = float(new.members.std(ddof=1)) * (1 / members + 1 / len(new.members)) ** 0.5 if random else 0.0
    if abs(own - new.value) > 3 * error + 0.25 * gain:
        found.append(
            f"new members of mode {mode!r} predict {new.value:.4g} where the search had {own:.4g}: raise members, or "
            "search in that mode"
        )
    for name, other in verdict.by_mode.items():
        if abs(other.value - new.value) > max(width, _DISAGREEMENT * gain):
            found.append(f"mode {name!r} predicts {other.value:.4g} where {mode!r} predicts {new.value:.4g}")
    if random and gain < 0.5 * width:
        found.append(f"the gain of {gain:.3g} is within half the 90 % interval's width, {width:.3g}")
    return found


def assemble(
    case: Case, u: Tensor, path: Sequence[Iterate], rounds: Sequence[Round], best: Iterate, verdict: Verdict,
    limits: Mapping[str, float], options: Mapping[str, Any], doubts: Sequence[str],
) -> xr.Dataset:  # fmt: skip
    """The result, see `lapse.surrogate.design`."""
    spec = case.model.spec
    times = {"time": case.frames["time"]}
    designed = to_dataset(u.detach(), spec, ("time",), times)
    given = to_dataset(case.given, spec, ("time",), times)
    out = designed.assign({f"{n}_given": given[n].assign_attrs(long_name=f"{n}, as given") for n in spec.names})
    units = case.objective.units(spec) if isinstance(case.objective, Target) else None
    about = {"long_name": label(case.objective)} | ({"units": units} if units else {})

    def history(key: str) -> list[Any]:
        return [i.about[key] for i in path]

    names = list(best.about["distances"])
    first, v = path[0].about["distances"], verdict
    data: dict[str, Any] = {
        "objective": ("iteration", history("objective"), about | {"comment": "of the members optimised"}),
        "penalty": ("iteration", history("penalty"), {"long_name": "for leaving known states, in objective's units"}),
        "gradient_norm": ("iteration", [float(i.gradient.norm()) for i in path]),
        "violation": ("iteration", history("violation"), {"long_name": "largest breach of constraints", "units": "1"}),
        "seconds": ("iteration", history("seconds"), {"long_name": "processor time of the search", "units": "s"}),
        "evaluations": ("iteration", [i.evaluations for i in path], {"long_name": "rollouts so far"}),
        "predicted": ("member", v.designed.members, about | {"comment": f"new members, mode {v.mode}"}),
        "predicted_given": ("member", v.given.members, about | {"comment": "new members, from the given state"}),
        "predicted_objective": ((), v.designed.value, about),
        "predicted_objective_given": ((), v.given.value, about),
        "interval": ("bound", list(v.interval), about | {
            "comment": "90 %, from the least to the greatest end" + (
                f", widened {v.widening:.3g} times, as verified designs call for" if v.widening > 1 else "")
        }),
        "predicted_by_mode": ("mode", [p.value for p in v.by_mode.values()], about),
        "interval_by_mode": (("mode", "bound"), [p.interval for p in v.by_mode.values()], about),
    }  # fmt: skip
    if "certified_limit" in options:
        told = {"long_name": "share of certified frames", "units": "1", "limit": options["certified_limit"]}
        data["certified"] = ("iteration", history("certified"), told)
    if names:
        distances = [[first[k], best.about["distances"][k]] for k in names]
        data["distance"] = (("measure", "state"), distances, {"units": "1"})
        about_limit = {"units": "1", "long_name": "of reference states"}
        data["distance_limit"] = ("measure", [limits[k] for k in names], about_limit)
    for name, value in (("achieved", v.achieved), ("achieved_given", v.achieved_given)):
        if value is not None:
            data[name] = ((), value, about | {"comment": f"by the solver, {v.critic}"})
    coords: dict[str, Any] = {
        "iteration": np.arange(len(path)), "member": np.arange(len(v.designed.members)), "bound": ["low", "high"],
        "mode": list(v.by_mode), **({"measure": names, "state": ["given", "designed"]} if names else {}),
    }  # fmt: skip
    if rounds:
        coords["round"] = ("iteration", history("round"), {"long_name": "round of the search"})
        told = {"comment": f"by the solver, {v.critic}, from the search's start and from what every round found"}
        data["achieved_by_run"] = ("run", [r.achieved for r in rounds], about | told)
        spent = {"long_name": "processor time of the search by then, runs in this process included", "units": "s"}
        data["seconds_by_run"] = ("run", [r.seconds for r in rounds], spent)
        kept = {"long_name": "the search went on from there", "units": "1"}
        data["kept_by_run"] = ("run", np.array([r.kept for r in rounds], dtype=np.int8), kept)
    out = out.assign_coords(coords).assign(data)
    return out.assign_attrs(_attrs(case, options, doubts))


def _attrs(case: Case, options: Mapping[str, Any], doubts: Sequence[str]) -> dict[str, Any]:
    """Provenance, as forecasts have it."""
    model, own = case.model, case.job.attrs()
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{stamp}: lapse {__version__} design, model {model.name}, {options['sense']} {label(case.objective)}"
    earlier = str(case.frames.attrs.get("history", ""))
    what = "parameters" if options["over"] == "parameters" else "initial condition"
    return own | {
        "title": f"{what} designed with {model.name}",
        "history": f"{earlier}\n{line}" if earlier else line,
        "lapse_design": json.dumps(dict(options), default=str),
        "lapse_design_doubts": "\n".join(doubts),
    }
