"""Descent on a feasible set: projected L-BFGS and Adam, for functions that cost seconds.

    x ← R(x + t d),      d = −H g  (L-BFGS)   or   −m̂/(√v̂ + ε)  (Adam)

R takes a point to the feasible set and leaves feasible points alone. L-BFGS is Nocedal & Wright 2006, algorithm 7.4,
with the projected step of Kim, Sra & Dhillon 2010 (doi:10.1137/08073812X): what would leave the set at a bound that is
reached is taken out of gradient and direction, and the line search follows the path R(x + t d) until the value has
fallen by 10⁻⁴ of what the gradient promises for the displacement that is left (Armijo, with quadratic interpolation).
Pairs without positive curvature are not remembered. Adam is Kingma & Ba 2015 (arXiv:1412.6980); it may go uphill.

The function gives its value at once and its gradient on demand, so that a trial step that is refused costs no gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

__all__ = ["LARGEST", "METHODS", "Evaluation", "Iterate", "Memory", "adam", "lbfgs"]

LARGEST = 5.0
"""Times ``step`` is the largest step of L-BFGS."""
_PAIRS = 8
_ARMIJO = 1e-4
_TRIALS = 8  # of one line search


@dataclass
class Evaluation:
    """A value and, on demand, its gradient; ``about`` is whatever the function wants to hand on."""

    value: float
    gradient: Callable[[], Tensor]
    about: Any = None


@dataclass
class Iterate:
    """A feasible point: its value, the gradient without what the bounds take out, and the evaluations so far."""

    x: Tensor
    value: float
    gradient: Tensor
    about: Any
    evaluations: int


Function = Callable[[Tensor], Evaluation]
Retraction = Callable[[Tensor], Tensor | None]
"""To the feasible set; None where there is no feasible point near."""
Tangent = Callable[[Tensor, Tensor], Tensor]
"""From a feasible point and a direction to the part of the direction that does not leave the set."""
Memory = list[tuple[Tensor, Tensor]]
"""Displacements of L-BFGS and the changes of the gradient that came with them, the newest last."""


def lbfgs(
    function: Function, x: Tensor, retract: Retraction, tangent: Tangent, iterations: int, step: float,
    memory: Memory | None = None,
) -> Iterator[Iterate]:  # fmt: skip
    """Yield the start and every accepted point, each lower than the one before; ends early where none can be found.

    Arguments:
        x: a feasible start, of any shape.
        step: root mean square of the first step, and `LARGEST` times it of the largest.
        memory: what was learnt of a function like this one, and will be of this one: changed in place.
    """
    here, count = function(x), 1
    gradient = here.gradient()
    reduced = -tangent(x, -gradient)
    yield Iterate(x, here.value, reduced, here.about, count)
    pairs = [] if memory is None else memory
    for _ in range(iterations):
        found = None
        while found is None:
            d = tangent(x, -_inverse_hessian(reduced, pairs))
            rms = float(d.square().mean().sqrt())
            if rms > 0 and float((d * gradient).sum()) < 0:
                size = min(1.0, LARGEST * step / rms) if pairs else step / rms
                found, used = _line_search(function, retract, x, here.value, gradient, d, size)
                count += used
            if found is None and not pairs:  # not even along the gradient
                return
            if found is None:  # what was learnt misleads: forget it
                pairs.clear()
        moved, here = found
        after = here.gradient()
        s, y = moved - x, after - gradient
        if float((s * y).sum()) > 1e-10 * float(s.norm() * y.norm()):
            pairs.append((s, y))
            del pairs[:-_PAIRS]
        x, gradient = moved, after
        reduced = -tangent(x, -gradient)
        yield Iterate(x, here.value, reduced, here.about, count)


def adam(
    function: Function, x: Tensor, retract: Retraction, tangent: Tangent, iterations: int, step: float,
    memory: Memory | None = None,
) -> Iterator[Iterate]:  # fmt: skip
    """Yield the start and every point after it, not always lower; ``step`` is the learning rate, ``memory`` of no use.

    A step to where there is no finite value is halved, up to eight times; then the iteration ends.
    """
    here, count = function(x), 1
    reduced = -tangent(x, -here.gradient())
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    yield Iterate(x, here.value, reduced, here.about, count)
    for k in range(1, iterations + 1):
        m, v = 0.9 * m + 0.1 * reduced, 0.999 * v + 0.001 * reduced.square()
        d = tangent(x, -(m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-12))
        size = step
        for _ in range(_TRIALS):
            moved = retract(x + size * d)
            trial = None if moved is None else function(moved)
            count += trial is not None
            if moved is not None and trial is not None and isfinite(trial.value):
                break
            size /= 2
        else:
            return
        x, here = moved, trial
        reduced = -tangent(x, -here.gradient())
        yield Iterate(x, here.value, reduced, here.about, count)


METHODS = {"lbfgs": lbfgs, "adam": adam}


def _inverse_hessian(g: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """H g by the two-loop recursion."""
    q, alphas = g.clone(), []
    for s, y in reversed(pairs):
        alpha = float((s * q).sum() / (s * y).sum())
        q = q - alpha * y
        alphas.append(alpha)
    if pairs:
        s, y = pairs[-1]
        q = q * float((s * y).sum() / (y * y).sum())
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - float((y * q).sum() / (s * y).sum()))
    return q


def _line_search(
    function: Function, retract: Retraction, x: Tensor, value: float, gradient: Tensor, d: Tensor, size: float
) -> tuple[tuple[Tensor, Evaluation] | None, int]:
    """The first point along the projected path that is low enough, and the evaluations spent."""
    used = 0
    for _ in range(_TRIALS):
        moved = retract(x + size * d)
        shrink = 0.3
        if moved is not None:
            slope = float((gradient * (moved - x)).sum())
            if slope < 0:
                trial = function(moved)
                used += 1
                if isfinite(trial.value) and trial.value <= value + _ARMIJO * slope:
                    return (moved, trial), used
                if isfinite(trial.value):  # the least value of the parabola through what is known
                    shrink = min(max(-slope / (2 * (trial.value - value - slope)), 0.1), 0.5)
        size *= shrink
    return None, used
