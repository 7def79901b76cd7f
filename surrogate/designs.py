"""Many designs: samples of the initial conditions whose forecasts are good, in proportion to how usual they are.

    p(u₀) ∝ exp(± J(u₀) / T) p_climate(u₀)

with J the objective of the forecast and the climate of the training data as the prior. Where one optimum would hide
that there are others, or how little they have in common, independent chains (`langevin`) from different draws of the
climate show it. T is a temperature: for an objective that is linear in a Gaussian climate, the samples' mean lies σ²/T
beyond the climate's and their spread is the climate's own, σ; the default T = σ/3 asks for three standard deviations.
"""

import json
import math
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..autoencoder.model import Latent
from ..datasets.fields import to_dataset
from ..datasets.problem import Problem, SpecError
from .augment import generated, known_climate
from .case import Case
from .climate import Climate
from .critic import Critic, Solver
from .emulator import Mode
from .langevin import Link, langevin
from .noise import sample_generator
from .targets import Objective, Target, label

if TYPE_CHECKING:
    from .model import Model

__all__ = ["designs"]

_LIFT = 3.0  # standard deviations of the climate: the default temperature
_USUAL = 32  # draws of the climate that tell them
_STUCK = 0.1  # acceptance below which a chain has hardly moved


def designs(
    model: "Model",
    ds: xr.Dataset | xr.DataArray,
    objective: Objective,
    steps: int,
    *,
    sense: Literal["maximise", "minimise"],
    samples: int = 8,
    temperature: float | None = None,
    iterations: int = 60,
    members: int = 4,
    seed: int = 0,
    mode: Mode | None = None,
    init_time: Any = "last",
    climate: xr.Dataset | None = None,
    verify: Literal["solver"] | Solver | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Sample initial conditions whose forecasts have a large or small objective, as usual as they can be.

    Arguments:
        ds: analyses in physical units; they tell the time of the start, and units and grid are checked.
        objective, steps, sense, mode, init_time, verify: as for `design`.
        samples: independent chains, each of which gives one design.
        temperature: T, in the objective's units; None is a third of its standard deviation over the climate.
        iterations: steps of each chain, a forecast and its gradient each; half of them lead to the distribution.
        members: of the forecast whose objective counts; 1 in the mode "mean".
        seed: a design is a function of (seed, number).
        climate: states like the training data, for models that bring no climate along.

    Returns:
        Dataset over ``(member, time, *space)`` in physical units, an ensemble of initial states that `forecast` takes
        as it is. Over ``member``: ``objective`` as the search has it, ``acceptance`` of the chain, with ``verify``
        what the solver ``achieved``; ``objective_by_iteration (member, iteration)``, whose first column is that of
        draws of the climate. Attribute ``temperature``.

    Raises SpecError for unfit input, ValueError for an objective that is not finite or has no gradient. Warns where a
    chain hardly moved.
    """
    mode = mode or model.modes[0]
    members = 1 if mode == "mean" else members
    _check_options(model, sense, mode, samples, iterations, members, temperature)
    case = Case(model, ds, objective, steps, init_time, mode, seed)
    critic = None if verify is None else Critic(case, verify)
    case.rehearse(members)
    sampling = _Sampling(case, known_climate(model, climate), -1 if sense == "maximise" else 1, members, seed)
    own = temperature or sampling.usual(_USUAL) / _LIFT
    links: list[list[Link]] = []
    with tqdm(total=samples * iterations, disable=not progress, desc="designs", unit="step") as bar:
        for k in range(samples):
            links.append([])
            for link in sampling.chain(k, own, iterations):
                links[-1].append(link)
                bar.update(len(links[-1]) > 1)
                bar.set_postfix(objective=link.about, refresh=False)
    if stuck := sum(chain[-1].acceptance < _STUCK for chain in links):
        warnings.warn(
            f"{stuck} of {samples} chains accepted less than {_STUCK:.0%} of their steps and are not samples yet. "
            "Usual fix: more iterations, or a higher temperature", stacklevel=3,
        )  # fmt: skip
    return _assembled(case, sampling, links, critic, own, {
        "sense": sense, "temperature": own, "iterations": iterations, "members": members, "seed": seed, "mode": mode,
        "steps": steps,
    })  # fmt: skip


class _Sampling:
    """Initial conditions as functions of standard normal numbers, and their objective."""

    def __init__(self, case: Case, climate: Climate, sign: int, members: int, seed: int) -> None:
        self.case, self.sign, self.members, self.seed = case, sign, members, seed
        self.climate = climate.to(case.given)
        self.size = self.climate.size + len(climate.carried_mean)

    def fields(self, x: Tensor) -> Tensor:
        """Context frames ``(history, C, *space)`` from ``x (size,)``, differentiable."""
        emulator, c = self.case.model.emulator, self.climate
        history = emulator.history
        z = c(x[None, : c.size]).reshape(history, *emulator.latent_shape)
        carried = c.carried_mean + c.carried_std * x[c.size :].double()
        return emulator.autoencoder.decode(Latent(z, carried.expand(history, -1)), self.case.context)

    def objective(self, x: Tensor) -> Tensor:
        view, _ = self.case.roll(
            self.fields(x), self.members, self.seed, self.case.mode, errors=False, checkpointed=True
        )
        return self.case.value(view)

    def start(self, k: int) -> tuple[Tensor, torch.Generator]:
        """A draw of the climate, and the generator that made it."""
        g = sample_generator(self.seed, k)
        return torch.randn(self.size, generator=g).to(self.case.given), g

    @torch.no_grad()
    def usual(self, count: int) -> float:
        """Standard deviation of the objective over the climate."""
        values = torch.stack([self.objective(self.start(k)[0]).double() for k in range(count)])
        found = float(values.std())
        if not math.isfinite(found) or found == 0:
            raise ValueError(
                f"objective {label(self.case.objective)!r}: found a standard deviation of {found} over the climate, "
                "wanted a finite one above 0. Usual fix: temperature=, or an objective that is finite for usual states"
            )
        return found

    def chain(self, k: int, temperature: float, iterations: int) -> Iterator[Link]:
        def potential(x: Tensor) -> tuple[float, Tensor, float]:
            at = x.detach().requires_grad_(True)
            with torch.enable_grad():
                value = self.objective(at)
                (g,) = torch.autograd.grad(value, at)
            phi = self.sign * float(value.detach()) / temperature
            if not bool(torch.isfinite(g).all()):
                phi = math.inf
            return phi, self.sign / temperature * g, float(value.detach())

        x, g = self.start(k)
        return langevin(potential, x, iterations, g)


def _assembled(
    case: Case, sampling: _Sampling, links: list[list[Link]], critic: Critic | None, temperature: float,
    options: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    spec, samples = case.model.spec, len(links)
    with torch.no_grad():
        u = torch.stack([sampling.fields(chain[-1].x) for chain in links])
    units = case.objective.units(spec) if isinstance(case.objective, Target) else None
    about = {"long_name": label(case.objective)} | ({"units": units} if units else {})
    member = xr.DataArray(np.arange(samples), dims="member", attrs={"standard_name": "realization", "units": "1"})
    coords = {"member": member, "time": case.frames["time"], "generated": generated("member", samples)}
    out = to_dataset(u, spec, ("member", "time"), coords)
    out = out.assign(
        objective=("member", [chain[-1].about for chain in links], about),
        acceptance=("member", [chain[-1].acceptance for chain in links], {"units": "1"}),
        objective_by_iteration=(("member", "iteration"), [[link.about for link in chain] for chain in links], about),
    ).assign_coords(iteration=np.arange(len(links[0])))
    if critic is not None:
        achieved = [critic.worth(frames, critic.run(frames)) for frames in u]
        out["achieved"] = ("member", achieved, about | {"comment": f"by the solver, {critic.name}"})
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    what = f"{samples} designs, {options['sense']} {label(case.objective)}"
    line = f"{stamp}: lapse {__version__} designs, model {case.model.name}, {what}"
    earlier = str(case.frames.attrs.get("history", ""))
    return out.assign_attrs(case.job.attrs()).assign_attrs(
        title=f"{what}, by {case.model.name}", history=f"{earlier}\n{line}" if earlier else line,
        temperature=temperature, lapse_design=json.dumps(options, default=str),
    )  # fmt: skip


def _check_options(
    model: "Model", sense: str, mode: str, samples: int, iterations: int, members: int, temperature: float | None
) -> None:
    problems = []
    for where, found, known in (("sense", sense, ("maximise", "minimise")), ("mode", mode, model.modes)):
        if found not in known:
            problems.append(Problem(where, repr(found), f"one of {', '.join(known)}", "correct the word"))
    for where, value, least in (("samples", samples, 1), ("iterations", iterations, 2), ("members", members, 1)):
        if value < least:
            problems.append(Problem(where, f"{value}", f"at least {least}", "leave it out for the default"))
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        fix = "leave it out for the default"
        problems.append(Problem("temperature", f"{temperature}", "above 0, in the objective's units", fix))
    if problems:
        raise SpecError(problems)
