"""Counterfeits of a solution, which a residual must score worse than the truth.

They are what surrogates get wrong: amplitude is lost, fine structure is lost, motion lags behind, noise is added. A
fake sets in at the middle of a series, as when a forecast takes over from data, or it holds `throughout`. The latter is
harder to see; it cannot be seen at all where the fake is itself a solution, as a multiple or a smoothed copy is if the
law is linear (:func:`solves`).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .equation import Equation
from .smooth import smear

SHRINK, CELLS, NOISE = 0.95, 2.0, 0.01  # factor; width of the filter in cells; standard deviation over rms


def fakes(equation: Equation, u: Tensor) -> dict[str, Tensor]:
    """Counterfeits of a series of frames (…, T, C, *space), by name; the noise is always the same."""
    time = -equation.grid.ndim - 2
    T = u.shape[time]
    half = T // 2
    start, rest = u.narrow(time, 0, half), u.narrow(time, half, T - half)

    def from_middle(v: Tensor) -> Tensor:
        return torch.cat((start, v), dim=time)

    space = tuple(range(-equation.grid.ndim, 0))
    noise = torch.randn(rest.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rest)
    size = (rest - rest.mean(dim=space, keepdim=True)).square().mean(dim=space, keepdim=True).sqrt()
    throughout = {f"{name} throughout": f(u) for name, f in _maps(equation).items()}
    return {
        **{name: from_middle(f(rest)) for name, f in _maps(equation).items()},
        "lagged": from_middle(u.narrow(time, half - 1, T - half)),
        "noisy": from_middle(rest + NOISE * size * noise),
        **throughout,
    }


def solves(equation: Equation, u: Tensor, tolerance: float = 1e-9) -> frozenset[str]:
    """Which of the fakes that hold throughout are solutions themselves: F(S u) = S F(u), of states (…, C, *space)."""
    F = equation.rhs(u)
    return frozenset(
        f"{name} throughout"
        for name, S in _maps(equation).items()
        if float((equation.rhs(S(u)) - S(F)).norm()) <= tolerance * float(F.norm())
    )


def _maps(equation: Equation) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Fakes that act on each frame by itself."""
    return {"shrunk": lambda u: SHRINK * u, "smeared": lambda u: smear(u, equation.grid, CELLS)}
