"""Samples of exp(−Φ(x)) N(x; 0, I) by a Langevin chain whose steps do not shrink with the dimension.

    x′ = [(2 − δ) x − 2 δ ∇Φ(x) + √(8 δ) ξ] / (2 + δ),      ξ ~ N(0, I)

accepted with min(1, exp(ρ(x, x′) − ρ(x′, x))),

    ρ(u, v) = Φ(u) + ½ (v − u)·∇Φ(u) + ¼ δ (u + v)·∇Φ(u) + ¼ δ |∇Φ(u)|²

(Cotter, Roberts, Stuart & White 2013, doi:10.1214/13-STS421, the preconditioned Crank–Nicolson Langevin proposal): for
Φ = 0 every step is accepted, whatever δ. In the first half of a chain Φ grows from nought to its full weight, so that
chains from different draws may end in different valleys, and δ is fitted to an acceptance of 0.57; the second half is
a Markov chain that leaves the distribution as it is. The last state is the sample: chains that begin with independent
draws give independent samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Link", "langevin"]

_ACCEPTANCE = 0.57  # at which such chains mix best (Roberts & Rosenthal 1998)
_FIRST = 0.2  # δ
_LARGEST = 2.0  # where x′ is free of x


@dataclass
class Link:
    """A state of the chain: Φ there, what else the potential told, and the share of steps accepted after the fit."""

    x: Tensor
    value: float
    about: Any
    acceptance: float


Potential = Callable[[Tensor], tuple[float, Tensor, Any]]
"""x to Φ(x), ∇Φ(x), and whatever is to be handed on; Φ may be infinite, where the gradient is not asked for."""


def langevin(potential: Potential, x: Tensor, steps: int, generator: torch.Generator) -> Iterator[Link]:
    """Yield the start and the state after every step.

    Arguments:
        potential: Φ.
        x: a draw of N(0, I).
        steps: of which the first half is not yet in equilibrium.
        generator: of the chain.
    """
    delta, taken, counted = _FIRST, 0, 0
    value, g, about = potential(x)
    yield Link(x, value, about, math.nan)
    half = max(1, steps // 2)
    for k in range(steps):
        weight = min(1.0, (k + 1) / half)
        noise = torch.randn(x.shape, generator=generator).to(x)
        moved = ((2 - delta) * x - 2 * delta * weight * g + math.sqrt(8 * delta) * noise) / (2 + delta)
        other, g_moved, about_moved = potential(moved)
        chance = 0.0
        if math.isfinite(other):
            forth = _rho(x, moved, weight * value, weight * g, delta)
            back = _rho(moved, x, weight * other, weight * g_moved, delta)
            chance = math.exp(min(0.0, forth - back))
        dice = float(torch.rand((), generator=generator))
        if dice < chance:
            x, value, g, about = moved, other, g_moved, about_moved
        if k < half:
            delta = min(_LARGEST, delta * math.exp((chance - _ACCEPTANCE) / math.sqrt(k + 1)))
        else:
            taken, counted = taken + (dice < chance), counted + 1
        yield Link(x, value, about, taken / counted if counted else math.nan)


def _rho(u: Tensor, v: Tensor, value: float, g: Tensor, delta: float) -> float:
    return value + float(((v - u) * g / 2 + delta / 4 * ((u + v) * g + g.square())).sum())
