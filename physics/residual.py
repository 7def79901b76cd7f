"""Residuals: by how much a series of frames u(t₀), u(t₀ + Δ), … breaks the law u_t = F(u).

Four forms of one law, since none serves every purpose:

=========  ==========================================  ===========  ===============================================
form       residual field                              of truth     for
=========  ==========================================  ===========  ===============================================
`strong`   δ_t u − F(u), δ_t a centred difference      Δ², Δ⁴, Δ⁶   densely sampled, smooth fields
`defect`   u₁ − Φ_Δ(u₀), Φ the solver's own map        the step's   any Δ; costs a solver run
`hermite`  u₁ − u₀ − Δ/2 (F₀ + F₁) + Δ²/12 (Ḟ₁ − Ḟ₀)   Δ⁵           moderate Δ; no solver, and both frames alike
`weak`     balance over cells of space and time        see `weak`   shocks and noise
=========  ==========================================  ===========  ===============================================

Ḟ = F′(u) F is the second time derivative along solutions, a directional derivative of the right-hand side. The
Hermite form is Hermite's two-point quadrature: of the truth it leaves Δ⁵ u⁽⁵⁾/720 (Hairer, Nørsett & Wanner 1993,
section II.13). It contains one power of F more than the strong form, so it weighs high wavenumbers more.

A residual is a *field*. Its norm (:func:`rms`), and the amplitude that the norm is judged by (:func:`scale`,
:func:`relative`), are other functions: a field that is shrunk towards nought has a small residual, too. Where the
law is nonlinear even the relative residual can be fooled, so an accuracy or a distance belongs beside it.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import jvp

from .equation import Equation
from .grid import Grid
from .operators import ddt

Form = Literal["strong", "defect", "hermite", "weak"]
FORMS: tuple[Form, ...] = get_args(Form)


def residual(
    equation: Equation, u: Tensor, interval: float, form: Form = "defect", accuracy: int | None = None
) -> Tensor:
    """The residual field of consecutive frames.

    Args:
        equation: The law.
        u: Frames (…, T, C, *space), `interval` apart, in the equation's units.
        interval: Δ, in the equation's unit of time.
        form: "strong", "defect", "hermite" or "weak".
        accuracy: Order p in Δ of the strong form's time difference: 2, 4 or 6; None: 4, or 2 if T < 5.

    Returns:
        "strong": (…, T − p, C, *space), at the frames where the centred difference exists, in units of du/dt.
        "defect", "hermite": (…, T − 1, C, *space), in units of u. "weak": a coarser field, see
        :mod:`lapse.physics.weak`.

    Raises:
        ValueError: If the form is unknown, there are too few frames, or Δ is not positive.
    """
    _check(equation, u, interval, form)
    if form == "weak":
        from .weak import weak

        r: Tensor = weak(equation, u, interval)
        return r
    if form == "strong":
        rate = _rate(equation, u, interval, accuracy)
        lost = u.shape[_time(equation)] - rate.shape[_time(equation)]
        return rate - equation.rhs(u.narrow(_time(equation), lost // 2, rate.shape[_time(equation)]))
    if equation.algebraic:
        raise ValueError(
            f"residual: found {equation.algebraic} of {equation.name} without a rate of change, wanted the strong or "
            f"the weak form (the {form} form advances every variable)"
        )
    u0, u1 = _pairs(equation, u)
    if form == "defect":
        return u1 - equation.advance(u0, interval)
    F: Tensor
    dF: Tensor
    F, dF = jvp(equation.rhs, (u,), (equation.rhs(u),))[:2]
    (F0, F1), (dF0, dF1) = _pairs(equation, F), _pairs(equation, dF)
    return u1 - u0 - interval / 2 * (F0 + F1) + interval**2 / 12 * (dF1 - dF0)


def scale(equation: Equation, u: Tensor, interval: float, form: Form = "defect", accuracy: int | None = None) -> Tensor:
    """What the residual of that form is small against, a field of its shape: δ_t u, or the change u₁ − u₀.

    For "weak" it is the largest term of the balance (see :mod:`lapse.physics.weak`).
    """
    _check(equation, u, interval, form)
    if form == "weak":
        from .weak import scale as weak_scale

        s: Tensor = weak_scale(equation, u, interval)
        return s
    if form == "strong":
        return _rate(equation, u, interval, accuracy)
    u0, u1 = _pairs(equation, u)
    return u1 - u0


def rms(r: Tensor, grid: Grid) -> Tensor:
    """Area-weighted root mean square over space: (…, *space) -> (…), float64.

    A residual on another grid (the weak form's windows) is weighted evenly.
    """
    r = r.to(torch.float64)
    space = tuple(range(-grid.ndim, 0))
    weights = grid.area_weights().to(r.device) if tuple(r.shape[-grid.ndim :]) == grid.shape else r.new_ones(())
    return (weights * r.square()).mean(dim=space).sqrt()


def relative(r: Tensor, scale: Tensor, grid: Grid, over_time: bool = False) -> Tensor:
    """Amplitude-normalised residual, rms(r)/rms(scale), for each frame and variable: (…, T′, C), float64.

    Args:
        r: Residual field (…, T′, C, *space) of any form.
        scale: What :func:`scale` says of the same frames and form.
        grid: Their grid.
        over_time: Take both means over time, too: (…, C). Frames in which little happens then count for little.
    """
    a, b = rms(r, grid), rms(scale, grid)
    return (a.square().mean(dim=-2) / b.square().mean(dim=-2)).sqrt() if over_time else a / b


def _rate(equation: Equation, u: Tensor, interval: float, accuracy: int | None) -> Tensor:
    """δ_t u, and 0 for variables that have no rate of change (their row of the law is a constraint)."""
    rate = ddt(u, interval, _time(equation), accuracy)
    if not equation.algebraic:
        return rate
    evolves = torch.tensor([v not in equation.algebraic for v in equation.variables], device=u.device)
    return rate * evolves.to(u.dtype).reshape(-1, *(1,) * equation.grid.ndim)


def _time(equation: Equation) -> int:
    return -equation.grid.ndim - 2


def _pairs(equation: Equation, u: Tensor) -> tuple[Tensor, Tensor]:
    """Each frame but the last, and its successor."""
    dim = _time(equation)
    n = u.shape[dim] - 1
    return u.narrow(dim, 0, n), u.narrow(dim, 1, n)


def _check(equation: Equation, u: Tensor, interval: float, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"residual: found form={form!r}, wanted one of {FORMS}")
    equation.check(u)
    frames = u.shape[_time(equation)] if u.ndim >= -_time(equation) else 0
    least = 3 if form == "strong" else 2
    if frames < least:
        raise ValueError(
            f"residual: found {frames} frames in a tensor of shape {tuple(u.shape)}, wanted (…, T, C, *space) with "
            f"at least {least} for the {form} form"
        )
    if not interval > 0:
        raise ValueError(f"residual: found interval={interval}, wanted a positive time between frames")
