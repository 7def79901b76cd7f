"""Proof that an equation's solver and residuals do what they say, before anyone minimises one of them.

1. *Order.* From a solution that is far more finely solved, the error of the solver's step and the residuals of that
   solution are measured at a row of spacings, each half the one before. The observed order is the slope between the
   finest two that stand clear of round-off; residuals of pairs of frames count per unit of time. A solver without any
   error above round-off (heat) has no order: it is exact.
2. *Floor.* The relative residual of the equation's own data, frames one usual interval apart, rounded to float32 as
   stored data are. Nothing can be told below it.
3. *Sensitivity.* The same figure for counterfeits (`fakes.py`). A form that scores one of them no worse than the truth
   is not fit for that interval, and the report says so: the strong form is unfit at most intervals worth forecasting.
4. *Laws.* Drift of what is conserved, rise of what must fall, and by how much the symmetries fail to commute with the
   flow.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .equation import Equation, lookup
from .fakes import fakes, solves
from .order import observed_orders, series
from .residual import FORMS, Form, relative, residual, scale

SUBSTEPS = 4  # times more steps than the solver takes of its own accord, for data to be judged


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        equation: The equation, as it prints itself.
        interval: Time between the frames of `truth` and `fakes`.
        orders: Observed orders: of the solver's "step", and of each form of residual per unit of time. None: exact.
        nominal: What the orders should be.
        truth: Relative residual of the equation's own data, by form.
        fakes: The same for the counterfeits, by form and name.
        invisible: Counterfeits that solve the equation themselves, and so are not judged.
        drifts: Change of what is conserved and rise of what must fall, over their size.
        symmetries: Failure of the symmetries to commute with the flow, over the size of the state.
    """

    equation: str
    interval: float
    orders: dict[str, float | None]
    nominal: dict[str, float]
    truth: dict[Form, float]
    fakes: dict[Form, dict[str, float]]
    invisible: frozenset[str] = frozenset()
    drifts: dict[str, float] = field(default_factory=dict)
    symmetries: dict[str, float] = field(default_factory=dict)

    @property
    def fit(self) -> tuple[Form, ...]:
        """Forms that score every visible counterfeit worse than the truth."""
        return tuple(
            form
            for form, truth in self.truth.items()
            if all(score > truth for name, score in self.fakes[form].items() if name not in self.invisible)
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the equation, in words; nothing if all is well."""
        found = [
            f"the order of {name} is {p:.2f}, wanted {self.nominal[name]:g} ± 0.15"
            for name, p in self.orders.items()
            if p is not None and abs(p - self.nominal[name]) > 0.15
        ]
        if "defect" not in self.fit:
            found.append("the defect scores a counterfeit as well as the truth")
        found += [f"{name} drifts by {d:.1e}, wanted at most 1e-6" for name, d in self.drifts.items() if d > 1e-6]
        found += [f"{name} fails by {d:.1e}, wanted round-off" for name, d in self.symmetries.items() if d > 1e-8]
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        forms = tuple(self.truth)
        lines = [f"{self.equation}, frames {self.interval:g} apart", ""]
        lines += [f"{'observed order':<22}" + "".join(f"{n:>12}" for n in self.orders)]
        shown = ["exact" if p is None else f"{p:.2f}" for p in self.orders.values()]
        lines += [f"{'':<22}" + "".join(f"{s:>12}" for s in shown)]
        lines += [f"{'(nominal)':<22}" + "".join(f"{self.nominal[n]:>12g}" for n in self.orders), ""]
        lines += [f"{'relative residual':<22}" + "".join(f"{form:>12}" for form in forms)]
        rows = {"truth": self.truth, **{n: {f: self.fakes[f][n] for f in forms} for n in self.fakes[forms[0]]}}
        for name, row in rows.items():
            remark = "   solves the equation, too" if name in self.invisible else ""
            lines += [f"{name:<22}" + "".join(f"{row[form]:>12.2e}" for form in forms) + remark]
        lines += [f"{'fit for use':<22}" + "".join(f"{'yes' if f in self.fit else 'no':>12}" for f in forms), ""]
        lines += [f"{name:<30}{d:>10.1e}" for name, d in {**self.drifts, **self.symmetries}.items()]
        return "\n".join([*lines, *(f"PROBLEM: {p}" for p in self.problems)]).rstrip()


def verify(
    equation: Equation | str, interval: float | None = None, *, seed: int = 0, quiet: bool = False
) -> Verification:
    """Measure an equation, print the findings, and return them.

    Args:
        equation: An equation, or the name of one, which is then built on its usual box.
        interval: Time between frames; the equation's usual one, else ten of its steps.
        seed: Of the initial state; the solution starts after the equation's spin-up.
        quiet: Do not print.

    Raises:
        ValueError: If the equation has no solver, since a variable has no rate of change.
    """
    if isinstance(equation, str):
        known = lookup(equation)
        equation = known(known.usual.grid())
    if equation.algebraic:
        raise ValueError(
            f"verify: found {equation.algebraic} of {equation.name} without a rate of change, wanted an equation with "
            "a solver"
        )
    Delta = interval or equation.usual.interval or 10 * equation.dt
    u = equation.spin_up(torch.Generator().manual_seed(seed), 1, dtype=torch.float64)
    exact = series(equation, u, Delta, frames=17, steps=SUBSTEPS * equation.steps(Delta))
    data = exact.float().double()
    counterfeits = fakes(equation, data)
    forms = FORMS if states_a_balance(equation) else FORMS[:-1]

    def score(v: Tensor, form: Form) -> float:
        r, s = residual(equation, v, Delta, form), scale(equation, v, Delta, form)
        return float(relative(r, s, equation.grid, over_time=True).square().mean().sqrt())

    found = Verification(
        equation=repr(equation),
        interval=Delta,
        orders=observed_orders(equation, u, min(Delta, 2 * equation.dt)),
        nominal={"step": equation.order, "strong": 4, "defect": equation.order, "hermite": 4},
        truth={form: score(data, form) for form in forms},
        fakes={form: {name: score(v, form) for name, v in counterfeits.items()} for form in forms},
        invisible=solves(equation, u),
        drifts=_drifts(equation, exact),
        symmetries={
            f"symmetry: {name}": _distance(equation.advance(S(u), Delta), S(equation.advance(u, Delta)))
            for name, S in equation.symmetries().items()
        },
    )
    if not quiet:
        print(found)
    return found


def states_a_balance(equation: Equation) -> bool:
    """Whether the equation has a weak form."""
    return type(equation).flux is not Equation.flux


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _drifts(equation: Equation, u: Tensor) -> dict[str, float]:
    """Largest change of what is conserved, or rise of what must fall, over a series of one member.

    The size of an invariant is that of |u|: a mean may be nought.
    """
    found, size = equation.invariants(u), equation.invariants(u.abs())
    out = {}
    for name, fate in equation.laws.items():
        if fate == "budgeted":
            continue
        I = found[name].flatten()
        change = (I - I[0]).abs().max() if fate == "conserved" else I.diff().max().clamp(min=0)
        out[f"{'drift' if fate == 'conserved' else 'rise'} of {name}"] = float(change / size[name].abs().max())
    return out
