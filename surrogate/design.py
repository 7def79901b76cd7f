"""Inverse design: the initial condition whose forecast is best, found by gradients through the rollout.

    maximise or minimise  J(u₀) = risk over members m of  objective(forecast from u₀ with the noise of m)
    over feasible u₀ (`feasible`: bounds, conserved quantities, a radius), with a wall around the states that the
    model knows (`manifold`)

The members' noise is the same at every evaluation (common random numbers), so J is a smooth deterministic function and
a gradient means something. The price is that a design may suit those few members: what is reported as prediction comes
from other members, with the decoder's error drawn too, as `forecast` would give them. That a design leans on errors of
the surrogate shows in distances to known states beyond those of data, in modes that disagree, and in new members that
do worse; sooner or later every optimiser finds such errors, and ``verify="solver"`` tells.

If the truth were one more of a mode's M members, it would lie between their (M + 1)·5 % and 95 % order statistics with
90 %. The modes are different networks, and an optimiser exploits the errors of one of them: the interval that is
reported reaches from the least to the greatest end of all modes' intervals.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import xarray as xr
from torch import Tensor

from ..datasets.problem import Problem, SpecError
from .bounds import Bounds
from .case import Case, Prediction, references
from .control import CONTROLS
from .critic import Critic, Solver
from .descent import METHODS
from .designed import Verdict, assemble, suspicions
from .emulator import Mode
from .feasible import Feasible
from .manifold import Manifold
from .parameters import ParameterSearch, Ranges, range_problems, tuned
from .search import Round, Search
from .stopping import CertifiedShare
from .targets import Objective
from .trust import widening

if TYPE_CHECKING:
    from .model import Model

__all__ = ["DesignWarning", "design"]

_REFERENCES = 16  # states that tell what is usual
_FEWEST = 19  # members for a 90 % interval between order statistics


class DesignWarning(UserWarning):
    """A design that may owe its objective to errors of the surrogate."""


def design(
    model: "Model",
    ds: xr.Dataset | xr.DataArray,
    objective: Objective,
    steps: int,
    *,
    sense: Literal["maximise", "minimise"],
    over: Literal["initial_condition", "latent", "parameters"] = "initial_condition",
    bounds: Bounds = "training",
    constraints: Sequence[str] | Mapping[str, float | None] | None = None,
    radius: float | None = None,
    method: Literal["lbfgs", "adam"] = "lbfgs",
    iterations: int = 30,
    step: float = 0.1,
    members: int = 8,
    seed: int = 0,
    mode: Mode | None = None,
    init_time: Any = "last",
    prior: float = 1.0,
    reference: xr.Dataset | None = None,
    predicted: int = 32,
    compare: Sequence[Mode] | None = None,
    checkpoint: bool = True,
    verify: Literal["solver"] | Solver | None = None,
    repairs: int = 0,
    verified: Sequence[xr.Dataset] = (),
    certify: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """The initial condition near a given one whose forecast has the largest or smallest objective.

    Arguments:
        ds: analyses in physical units, at least ``history`` frames up to the start; the search begins there.
        objective: of the forecast, see `lapse.objectives`; any function of a `ForecastView` that returns one number, or
            one a member, computed with torch.
        steps: leads of the forecast, from 1; frames beyond the last one that the objective looks at are not computed.
        sense: "maximise" or "minimise".
        over: vary the fields themselves, the latents that they are decoded from, or parameters of the equation from the
            given state (`lapse.surrogate.parameters`), for models that can be `at` others. For parameters there is
            nothing to constrain, no ``radius``, no ``prior`` and no ``repairs``.
        bounds: "training" (the range of the training data), or (least, greatest) by variable; see
            `lapse.surrogate.bounds`. Over "parameters" their names and ranges, such as ``{"forcing": (0.5, 2.0)}``.
        constraints: what the design shares exactly with the given state: "mean", "mean:NAME", "mass",
            "divergence_free", and at most one of the equation's invariants such as "energy"; a mapping gives the latter
            a value of its own. None: what the model's exact heads conserve.
        radius: the most that the design may depart from the given state: root mean square in training standard
            deviations. None is no limit.
        method: projected "lbfgs", every step of which is better than the last, or "adam".
        iterations: at most, in every round.
        step: of "lbfgs" the first step's root mean square, of "adam" the learning rate, in standard deviations; over
            "parameters" in shares of their ranges.
        members: whose mean (or other risk) is optimised, with the noise that `forecast` gives them under ``seed``.
        mode: as in `forecast`; "mean" has no noise and takes one member, and leaves the prediction to another mode.
        init_time: the start, one time of ``ds``, or "last".
        prior: weight of the penalty beyond the reference states (`lapse.surrogate.manifold`), 0 for none. With weight 1
            a distance twice the limit costs what the best perturbation of 0.1 standard deviations gains.
        reference: states that tell what is usual, best those that the model was not trained on; default: ``ds``, of
            which 16 are taken.
        predicted: new members, those of ``seed + 1``, that give the prediction and its interval; 19 or more.
        compare: modes whose predictions are set against the design's and widen its interval; default: all that the
            model has. The quality mode takes 19 members, and longer than all others together.
        checkpoint: keep only latents of a rollout and compute the rest again: a quarter of the time for a memory that
            hardly grows with ``steps``.
        verify: "solver" runs the equation that the model's spec names from the given and the designed state; a function
            runs the user's own solver: it takes the designed frames as a Dataset and returns the ``steps`` frames after
            them, one an interval.
        repairs: rounds of the search, each on a surrogate that was repaired to reproduce the solver's run from the
            best state so far (`lapse.surrogate.repair`), at most ``repairs + 1`` runs of ``verify``, and one more where
            the search starts from another state than the given one, as over "latent". 0: one round on the surrogate as
            it is.
        verified: earlier designs of this kind, nine or more, that the solver verified: the interval becomes as much
            wider as theirs fell short (`lapse.surrogate.trust`).
        certify: end the search before the first state whose forecast has fewer certified frames than is usual, or than
            that from the start (`lapse.surrogate.stopping`); not with ``repairs`` and not over "parameters". A step
            then costs a run of the solver over all frames of all members more.

    Returns:
        Dataset that `forecast` takes as it is: the designed variables over ``(time, *space)``, and the given ones as
        ``NAME_given``; over ``iteration`` the ``objective``, ``penalty``, ``gradient_norm``, ``violation``,
        ``evaluations``, ``seconds`` (of this process) and, with ``repairs``, ``round``; over ``member`` the
        ``predicted`` objective and that of the given state, ``predicted_given``; ``interval``, ``predicted_objective``
        (members averaged, or as the risk says), and both by ``mode``; the ``distance`` to known states with its
        ``distance_limit``; with ``verify`` what the solver ``achieved``, and from the given state ``achieved_given``;
        with ``repairs`` also over ``run``, the first from the search's start and one for every round,
        ``achieved_by_run``, ``seconds_by_run`` and ``kept_by_run``; with ``certify`` over ``iteration`` the share of
        ``certified`` frames, the last one below its attribute ``limit`` if that ended the search. Predictions are
        always those of the surrogate as it is. Over "parameters" the fields are as given, and ``parameters`` holds what
        was found, beside ``parameters_given`` and ``parameters_by_iteration``.

    Raises SpecError for unfit input and for an objective that does not fit the forecast, `Infeasible` where bounds and
    constraints leave nothing, ValueError for an objective that is not finite or has no gradient. Warns (DesignWarning)
    where the design seems to exploit the surrogate.
    """
    mode = mode or model.modes[0]
    compared = model.modes if compare is None else tuple(compare)
    members = 1 if mode == "mean" else members
    factor = widening(verified) if verified else 1.0
    _check_options(
        model, sense, over, method, steps, iterations, step, members, predicted, prior, repairs, verify,
        (mode, *compared), bounds, constraints, radius, certify,
    )  # fmt: skip
    case = Case(model, ds, objective, steps, init_time, mode, seed)
    critic = None if verify is None else Critic(case, verify)
    case.rehearse(members, gradient=over != "parameters")
    sign = -1 if sense == "maximise" else 1
    options: dict[str, Any] = {
        "sense": sense, "over": over, "method": method, "members": members, "seed": seed, "predicted": predicted,
        "steps": steps, "widening": factor,
    }  # fmt: skip
    if over == "parameters":
        tuning = ParameterSearch(case, cast(Ranges, bounds), sign, members, seed)
        best = tuning.descend(method, iterations, step, progress)
        moved = tuning.at(best.about["parameters"])
        verdict = _judge(moved, case, case.given, predicted, seed + 1, compared)
        if critic is not None:
            other = Critic(moved, critic.solver)
            verdict.achieved = other.worth(case.given, other.run(case.given))
            verdict.achieved_given, verdict.critic = critic.worth(case.given, critic.run(case.given)), other.name
        verdict.widening = factor
        options["bounds"] = bounds
        doubts = suspicions(best, verdict, {}, members)
        if len(tuning.path) == 1:
            doubts.append("no step from the start was better: the objective may not change with these parameters")
        if sign * (verdict.designed.value - verdict.given.value) > 0:
            doubts.append(f"the model's own parameters, outside the bounds, do better: {verdict.given.value:.4g}")
        out = assemble(moved, case.given, tuning.path, [], best, verdict, {}, options, doubts)
        return tuned(_warned(out, doubts), tuning)
    held = conserved(model) if constraints is None else constraints
    feasible = Feasible(model.spec, case.given, bounds, held, radius, case.law)
    manifold = Manifold(
        model.emulator, *references(model, ds if reference is None else reference, _REFERENCES, case.given)
    )
    control = CONTROLS[over](model.emulator, feasible, manifold, case.given, case.context)
    certified = CertifiedShare(case, members, seed) if certify else None
    search = Search(case, control, manifold, sign, members, seed, prior, checkpoint, certified)
    rounds: list[Round] = []
    if critic is None or repairs == 0:
        best = search.descend(method, iterations, step, progress)
    else:
        rounds, best = search.rounds(critic, repairs, method, iterations, step, progress)
    with torch.no_grad():
        u = control.fields(best.x)
    verdict = _judge(case, case, u, predicted, seed + 1, compared)
    verdict.widening = factor
    if critic is not None:
        verdict.critic = critic.name
        verdict.achieved = [r for r in rounds if r.kept][-1].achieved if rounds else critic.worth(u, critic.run(u))
        with torch.no_grad():
            begun = bool(rounds) and torch.allclose(control.fields(rounds[0].found.x), case.given, rtol=1e-6, atol=0.0)
        verdict.achieved_given = rounds[0].achieved if begun else critic.worth(case.given, critic.run(case.given))
    doubts = suspicions(best, verdict, manifold.limits, members, sense if rounds else None)
    doubts += [] if certified is None else certified.doubts
    options |= {"constraints": list(held), "radius": radius, "prior": prior, "repairs": repairs}
    options |= {} if certified is None else {"certified_limit": certified.limit}
    return _warned(assemble(case, u, search.path, rounds, best, verdict, manifold.limits, options, doubts), doubts)


def _warned(out: xr.Dataset, doubts: Sequence[str]) -> xr.Dataset:
    for text in doubts:
        warnings.warn(f"this design may exploit the surrogate: {text}", DesignWarning, stacklevel=4)
    return out


def conserved(model: "Model") -> list[str]:
    """The constraints that a model's exact heads stand for."""
    names = model.emulator.autoencoder.heads.names
    return [n for n in names if n != "positive"]


def _judge(
    case: Case, before: Case, u: Tensor, members: int, seed: int, modes: Sequence[Mode]
) -> Verdict:
    """Predictions by members that took no part in the search, of ``u`` and, by the case ``before``, of the given state;
    a mode that has spread comes first."""
    by_mode: dict[str, Prediction] = {}
    for k, mode in enumerate(sorted({case.mode: None, **dict.fromkeys(modes)}, key=lambda mode: mode == "mean")):
        by_mode[mode] = case.predict(u, members if k == 0 or mode == "fast" else _FEWEST, seed, mode)
    given = before.predict(before.given, members, seed, cast(Mode, next(iter(by_mode))))
    return Verdict(by_mode, given)


def _check_options(
    model: "Model", sense: str, over: str, method: str, steps: int, iterations: int, step: float, members: int,
    predicted: int, prior: float, repairs: int, verify: object, modes: Sequence[str], bounds: Bounds,
    constraints: object, radius: float | None, certify: bool,
) -> None:  # fmt: skip
    """Raise SpecError with every option that cannot be."""
    problems = []

    def word(where: str, found: str, known: Sequence[str], fix: str = "correct the word") -> None:
        if found not in known:
            problems.append(Problem(where, repr(found), f"one of {', '.join(known)}", fix))

    def least(where: str, found: float, wanted: str, good: bool) -> None:
        if not good:
            problems.append(Problem(where, f"{found}", wanted, "leave it out for the default"))

    word("sense", sense, ("maximise", "minimise"))
    word("over", over, (*CONTROLS, "parameters"))
    word("method", method, tuple(METHODS))
    for mode in modes:
        word("mode", mode, model.modes)
    if steps < 1:
        problems.append(Problem("steps", f"{steps}", "at least 1", "the leads of the forecast, in frames"))
    least("iterations", iterations, "at least 1", iterations >= 1)
    least("step", step, "above 0", step > 0)
    least("members", members, "at least 1", members >= 1)
    least("predicted", predicted, f"at least {_FEWEST}, for a 90 % interval", predicted >= _FEWEST)
    least("prior", prior, "0 or more", prior >= 0)
    least("repairs", repairs, "0 or more", repairs >= 0)
    if repairs > 0 and verify is None:
        fix = 'verify="solver", or a function that runs your solver'
        problems.append(Problem("repairs", f"{repairs} and verify=None", "a solver to repair by", fix))
    if certify and (repairs > 0 or over == "parameters"):
        found = "certify beside repairs" if repairs > 0 else "certify over parameters"
        problems.append(Problem("certify", found, "a search on the model as it is", "leave one of them out"))
    if over == "parameters":
        problems += range_problems(bounds, model.spec)
        for where, value in (("constraints", constraints), ("radius", radius), ("repairs", repairs)):
            if value is not None and value != 0:
                problems.append(Problem(where, f"{value!r}", "none: the state is given", "leave it out"))
    if problems:
        raise SpecError(problems)
