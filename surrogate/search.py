"""The search of an inverse design: one descent on the surrogate, or rounds of them between runs of the solver.

A round descends on the surrogate as the last good run of the solver repaired it (`repair`), and ends with a run of the
solver from what it found. With a the decrease that the solver confirms of the decrease p that the surrogate promised,

    a ≤ 0        the round is undone (as after a run that blew up), and the next goes at most half as far
    a < p/4      the next goes at most half as far
    a > 3p/4     a limit there is becomes twice as far

(trust regions: Conn, Gould & Toint 2000, doi:10.1137/1.9780898719857; by surrogates: Alexandrov et al. 1998,
doi:10.1007/BF01197433). How far is the root mean square over the controls. What L-BFGS has learnt of the curvature
is kept from round to round.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..datasets.problem import Problem, SpecError
from .case import Case
from .control import Control
from .critic import Critic
from .descent import LARGEST, METHODS, Evaluation, Iterate, Memory
from .manifold import Manifold
from .repair import Repair
from .state import State
from .stopping import CertifiedShare
from .targets import label

__all__ = ["Round", "Search"]

_STILL = 1e-5  # of the first gradient's norm: a stationary point
_PROBE = 0.1  # standard deviations: the perturbation whose gain sets the scale of the penalty
_SLACK = 1e-5  # of the reach: a step of exactly its length may be longer by rounding
_POOR, _GOOD = 0.25, 0.75  # of the promise: what the solver confirms


@dataclass
class Round:
    """A state that the solver ran from: what it achieved, whether it was the best until then, and the seconds spent."""

    found: Iterate
    achieved: float
    kept: bool
    seconds: float


class Search:
    """The function that is minimised, and the ways down.

    Arguments:
        case, control, manifold: start and objective, what varies, and the states that the model knows.
        sign: −1 to maximise, 1 to minimise.
        members, seed: of the forecast whose objective it is.
        prior: weight of the penalty.
        checkpointed: keep only latents of a rollout.
        certified: ends a descent before the first step from which fewer frames are certified than its limit.

    Attributes:
        repair: what the surrogate's forecasts are repaired by.
        path: all iterates so far, in the order of their making, those of rounds that were undone too.
    """

    def __init__(
        self, case: Case, control: Control, manifold: Manifold, sign: int, members: int, seed: int, prior: float,
        checkpointed: bool, certified: CertifiedShare | None = None,
    ) -> None:  # fmt: skip
        self.certified = certified
        self.case, self.control, self.manifold = case, control, manifold
        self.sign, self.members, self.seed, self.prior, self.checkpointed = sign, members, seed, prior, checkpointed
        self.scale: float | None = None
        self.repair: Repair | None = None
        self.path: list[Iterate] = []
        self._memory: Memory = []
        self._begin = time.process_time()

    def evaluate(self, x: Tensor) -> Evaluation:
        """The objective, signed, with its penalty."""
        at = x.detach().clone().requires_grad_(True)
        case, c = self.case, self.control
        with torch.enable_grad():
            u = c.fields(at)
            view, state = case.roll(
                u, self.members, self.seed, case.mode, errors=False, checkpointed=self.checkpointed, repair=self.repair
            )
            value = case.value(view)
            start = state(0)
            one = State(start.z[:1], start.carried[:1])
            distances = self.manifold.distances(u, one, case.newest)
            signed = self.sign * value
            if self.scale is None:
                self.scale = self._scale(signed, at)
            penalty = self.prior * self.scale * self.manifold.penalty(distances)
            total = signed + penalty
        about = {
            "objective": float(value.detach()),
            "penalty": float(penalty.detach()),
            "violation": c.feasible.violation(u),
            "distances": {k: float(d.detach()) for k, d in distances.items()},
        }
        return Evaluation(float(total.detach()), lambda: torch.autograd.grad(total, at)[0], about)

    def _scale(self, value: Tensor, at: Tensor) -> float:
        """What a perturbation of `_PROBE` along the gradient gains; raises where there is no gradient to follow."""
        name = f"objective {label(self.case.objective)!r}"
        if not bool(torch.isfinite(value)):
            raise ValueError(
                f"{name}: found {float(value.detach())} for the given state, wanted a finite number. Usual fix: look "
                "at model.forecast(ds, steps), and for a division or logarithm in the objective"
            )
        (g,) = torch.autograd.grad(value, at, retain_graph=True)
        norm = float(g.norm())
        if not math.isfinite(norm) or norm == 0:
            raise ValueError(
                f"{name}: found a gradient of norm {norm} by the initial condition, wanted a finite one above 0. "
                "Usual fix: start from another state, soften kinks (extreme has softness), or choose a lead and a "
                "region that the initial condition reaches"
            )
        return _PROBE * norm * math.sqrt(g.numel())

    def descend(self, method: str, iterations: int, step: float, progress: bool) -> Iterate:
        """One descent from the given state; the best of its iterates."""
        with self._bar(iterations, progress) as bar:
            return min(self._steps(self._first(), method, iterations, step, bar), key=lambda i: i.value)

    def rounds(
        self, critic: Critic, count: int, method: str, iterations: int, step: float, progress: bool
    ) -> tuple[list[Round], Iterate]:
        """Descents of ``iterations`` each, between runs of the solver.

        Returns:
            The start and what every round found, as the solver judged them, and the best of them.
        """
        x, reach = self._first(), math.inf
        out: list[Round] = []
        u = self._fields(x)
        run = critic.run(u)
        if not bool(torch.isfinite(run).all()):
            told, fix = "values that are not finite, from the given state", "run the solver from it by hand"
            raise SpecError([Problem(f"verify, {critic.name}", told, "finite values", fix)])
        now = critic.worth(u, run)
        self.repair = self._repair(u, run)
        with self._bar(count * iterations, progress) as bar:
            for k in range(count):
                steps = self._steps(x, method, iterations, min(step, reach / LARGEST), bar, k)
                first, found = self._within(x, reach, steps)
                far = _distance(found.x, x)
                if not out:
                    out.append(Round(first, now, True, first.about["seconds"]))
                if far == 0 and math.isinf(reach):
                    break
                if far == 0:  # nothing better within reach: nearer, and along the gradient
                    self._memory.clear()
                    reach /= 2
                    continue
                u = self._fields(found.x)
                run = critic.run(u)
                achieved = critic.worth(u, run)
                # Of several members' forecast no repair makes the solver's run: what the solver said is compared.
                gain = self.sign * (now - achieved) + first.about["penalty"] - found.about["penalty"]
                kept = gain > 0 and bool(torch.isfinite(run).all())
                out.append(Round(found, achieved, kept, time.process_time() - self._begin))
                if not kept or gain < _POOR * (first.value - found.value):
                    reach = far / 2
                elif gain > _GOOD * (first.value - found.value):
                    reach *= 2
                if kept:
                    x, now = found.x, achieved
                if kept and k + 1 < count:
                    self.repair = self._repair(u, run)
        return out, [r.found for r in out if r.kept][-1]

    def _first(self) -> Tensor:
        start = self.control.retract(self.control.start)
        if start is None:
            self.control.fields(self.control.start)  # says which constraint and why
        assert start is not None
        return start

    @torch.no_grad()
    def _fields(self, x: Tensor) -> Tensor:
        return self.control.fields(x)

    def _repair(self, u: Tensor, run: Tensor) -> Repair:
        case = self.case
        return Repair.of(
            case.model.emulator, u, run, self.members, case.mode, seed=self.seed, init_time=case.init_time,
            context=case.context, phase=case.phase,
        )  # fmt: skip

    def _steps(
        self, x: Tensor, method: str, iterations: int, step: float, bar: "tqdm[None]", number: int = 0
    ) -> Iterator[Iterate]:  # fmt: skip
        c, first, spent = self.control, None, self.path[-1].evaluations if self.path else 0
        steps = METHODS[method](self.evaluate, x, c.retract, c.tangent, iterations, step, self._memory)
        for k, iterate in enumerate(steps):
            iterate.evaluations += spent
            iterate.about["round"] = number
            ended = False
            if self.certified is not None:
                share = iterate.about["certified"] = self.certified(self._fields(iterate.x))
                if k == 0:
                    self.certified.begin(share)
                ended = share < self.certified.limit
            iterate.about["seconds"] = time.process_time() - self._begin
            self.path.append(iterate)
            bar.update(k > 0)
            bar.set_postfix(objective=iterate.about["objective"], refresh=False)
            if ended:
                return
            yield iterate
            norm = float(iterate.gradient.norm())
            first = norm if first is None else first
            if norm <= _STILL * first:
                break

    def _within(self, x: Tensor, reach: float, steps: Iterator[Iterate]) -> tuple[Iterate, Iterate]:
        """The first of the steps, and the best before one that went beyond ``reach``."""
        first = found = next(steps)
        for iterate in steps:
            if _distance(iterate.x, x) > reach * (1 + _SLACK):
                break
            found = min(found, iterate, key=lambda i: i.value)
        return first, found

    def _bar(self, total: int, progress: bool) -> "tqdm[None]":
        return tqdm(total=total, disable=not progress, desc="design", unit="step")


def _distance(x: Tensor, y: Tensor) -> float:
    """Root mean square."""
    return float((x - y).square().mean().sqrt())
