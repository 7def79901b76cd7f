"""Several constraints at once: maps in a defined order, and a check that none undoes another.

A chain applies its maps from first to last. That is exact if each keeps what those before it made true: a shift of the
mean keeps the divergence, a projection of the velocity keeps its mean, a positive rescaling keeps the sign. Order the
maps so, *the one that must hold to round-off last*.

Where no order does (a box and a divergence, say), `rounds` repeats the sweep: for projections onto convex sets with a
common point this converges to such a point (von Neumann; Bregman 1967, doi:10.1016/0041-5553(67)90040-7), linearly.

*The check.* Every map must be idempotent: what obeys its law it leaves alone. Then a field obeys all laws if and only
if each map leaves it alone, so the *defect* of a map at a field x,

    ‖C(x) − x‖∞ / rms(x),

is a violation that needs no second statement of the law. Constraints without a common point (two different means)
leave defects, and :meth:`Chain.check` names them. (:func:`~lapse.physics.constraints.with_mass` is not idempotent; in
a chain :func:`~lapse.physics.cones.bounded` does its work.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Constraint = Callable[[Tensor], Tensor]


class Chain:
    """Constraints in order: ``Chain(divergence=…, mean=…)(u)``.

    Args:
        rounds: Most sweeps; the last one ends early when all defects are within the tolerance.
        tolerance: Largest defect that counts as none; None: 1e-6 for float32 fields, 1e-12 for float64.
        **constraints: Maps by name, in the order of application; each idempotent and differentiable.

    >>> import torch
    >>> def ends(u): return torch.cat((torch.zeros(1), u[1:]))
    >>> chain = Chain(mean=lambda u: u - u.mean(), ends=ends, rounds=60)
    >>> out = chain(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    >>> [round(float(v), 9) for v in out], sorted(chain.check(out))
    ([0.0, -2.0, 2.0], ['ends', 'mean'])
    """

    def __init__(self, *, rounds: int = 1, tolerance: float | None = None, **constraints: Constraint) -> None:
        if rounds < 1 or not constraints:
            raise ValueError(
                f"chain: found rounds={rounds} and {len(constraints)} constraints, wanted at least one of each"
            )
        self.rounds, self.tolerance, self.constraints = rounds, tolerance, constraints

    def __call__(self, u: Tensor) -> Tensor:
        """The constrained field. Says nothing about whether all constraints hold: see :meth:`check`."""
        for sweep in range(self.rounds):
            if sweep and max(self.defects(u).values()) <= self._within(u):
                break
            for constraint in self.constraints.values():
                u = constraint(u)
        return u

    @torch.no_grad()
    def defects(self, u: Tensor) -> dict[str, float]:
        """By how much each constraint would still move u: the largest change over u's rms."""
        size = float(u.to(torch.float64).square().mean().sqrt()) or 1.0
        return {name: float((c(u) - u).abs().max()) / size for name, c in self.constraints.items()}

    def check(self, u: Tensor) -> dict[str, float]:
        """The defects of a field that went through the chain, all within the tolerance.

        Raises:
            ValueError: If a constraint does not hold, with what undid it.
        """
        limit = self._within(u)
        found = self.defects(u)
        if broken := {name: d for name, d in found.items() if not d <= limit}:
            shown = ", ".join(f"{name} by {d:.1e}" for name, d in broken.items())
            raise ValueError(
                f"chain: found {shown} violated after {' -> '.join(self.constraints)} ({self.rounds} rounds), wanted "
                f"at most {limit:.0e} (another order, more rounds, or constraints that do not contradict each other)"
            )
        return found

    def _within(self, u: Tensor) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return 1e-12 if u.dtype == torch.float64 else 1e-6
