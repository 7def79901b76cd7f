"""Observed orders of accuracy, on a solution that is solved far more finely than what is judged by it.

Errors are measured at spacings that are halved again and again. The order is log₂ of the ratio of two consecutive
ones, taken at the finest pair that stands clear of round-off and of the fine solution's own error, where higher terms
of the expansion have died out (Roache 1998, Verification and validation in computational science and engineering). The
spacings go down in flights until the order stands still: a stiff law shows the order of its solver only at steps that
resolve its fastest decay. Where every error is lost in round-off there is no order to observe: the method is exact for
this law.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from .equation import Equation
from .residual import residual

STRIDES = (16, 8, 4, 2)  # of the fine solution's frames, coarsest first
SUBSTEPS = 4  # steps of the fine solution between its frames
FLIGHTS = 3  # each begins where the one before ended
CLEAR = 10.0  # times the doubt about a figure, from where on it counts
STILL = 0.05  # change of the order from one pair of spacings to the next


def series(equation: Equation, u: Tensor, interval: float, frames: int, steps: int) -> Tensor:
    """The solution from states (…, C, *space), `steps` steps a frame: (…, frames, C, *space), the first being u."""
    out = [u]
    for _ in range(frames - 1):
        out.append(equation.advance(out[-1], interval, steps))
    return torch.stack(out, dim=-equation.grid.ndim - 2)


def slopes(errors: Mapping[float, float], doubts: Mapping[float, float]) -> list[float]:
    """Observed orders from errors by spacing, at consecutive spacings clear of doubt, the finest pair last.

    >>> slopes({0.4: 2.56e-3, 0.2: 0.16e-3, 0.1: 1e-5, 0.05: 2e-9}, {0.4: 1e-9, 0.2: 1e-9, 0.1: 1e-9, 0.05: 1e-9})
    [4.0, 4.0]
    """
    clear = sorted((h for h in errors if errors[h] > CLEAR * doubts[h]), reverse=True)
    return [math.log(errors[a] / errors[b]) / math.log(a / b) for a, b in pairwise(clear)]


def observed_orders(equation: Equation, u: Tensor, interval: float) -> dict[str, float | None]:
    """Orders of the solver's "step", and of the residuals "strong", "defect" and "hermite" of the solution.

    Args:
        equation: The law and its solver.
        u: Smooth states (…, C, *space), float64.
        interval: The longest spacing of frames that is tried, at most a few steps of the solver.

    Residuals of pairs are divided by the time between the two, as the local error of a method of order p is of order
    p + 1. The defect takes one step a pair.
    """
    last, time = 4 * STRIDES[0], -equation.grid.ndim - 2
    orders: dict[str, float | None] = dict.fromkeys(_MEASURES)
    sought = set(_MEASURES)
    for _ in range(FLIGHTS):
        fine = interval / STRIDES[0]
        # Damped modes follow the others at a distance that depends on the step: let them take up that of the fine one.
        u = equation.advance(u, last * fine, last * SUBSTEPS)
        frames = series(equation, u, fine, last + 1, SUBSTEPS)
        coarser = series(equation, u, fine, last + 1, SUBSTEPS // 2)
        # Round-off as frames carry it: some units in the last place, independent from frame to frame.
        jitter = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(frames)
        shaken = frames + 4 * torch.finfo(frames.dtype).eps * frames.square().mean().sqrt() * jitter
        for name in sorted(sought):
            measure = _MEASURES[name]
            errors, doubts = {}, {}
            for s in STRIDES:
                r = measure(equation, frames, s, fine)
                doubt = float((measure(equation, coarser, s, fine) - r).norm())
                round_off = float((measure(equation, shaken, s, fine) - r).norm())
                errors[s * fine] = float(r.norm())
                doubts[s * fine] = doubt + round_off * (last if name == "step" else 1)
            p = slopes(errors, doubts)
            if p:
                orders[name] = p[-1]
            if len(p) < 2 or abs(p[-1] - p[-2]) < STILL:
                sought.remove(name)
        if not sought:
            break
        u, interval = frames.select(time, last), interval / STRIDES[0] * STRIDES[-1]
    return orders


def _step(equation: Equation, v: Tensor, s: int, fine: float) -> Tensor:
    last, time = 4 * STRIDES[0], -equation.grid.ndim - 2
    return equation.advance(v.select(time, 0), last * fine, last // s) - v.select(time, last)


def _strong(equation: Equation, v: Tensor, s: int, fine: float) -> Tensor:
    return residual(equation, _about_centre(equation, v, (-2 * s, -s, 0, s, 2 * s)), s * fine, "strong")


def _defect(equation: Equation, v: Tensor, s: int, fine: float) -> Tensor:
    u0, u1 = _about_centre(equation, v, (-s, s)).unbind(dim=-equation.grid.ndim - 2)
    return (u1 - equation.advance(u0, 2 * s * fine, 1)) / (2 * s * fine)


def _hermite(equation: Equation, v: Tensor, s: int, fine: float) -> Tensor:
    return residual(equation, _about_centre(equation, v, (-s, s)), 2 * s * fine, "hermite") / (2 * s * fine)


def _about_centre(equation: Equation, v: Tensor, offsets: tuple[int, ...]) -> Tensor:
    at = torch.tensor([2 * STRIDES[0] + i for i in offsets], device=v.device)
    return v.index_select(-equation.grid.ndim - 2, at)


_MEASURES = {"step": _step, "strong": _strong, "defect": _defect, "hermite": _hermite}
