"""Fields that an initial condition may be: bounds, conserved quantities and a radius, all held at once and exactly.

A field v of any kind is taken to the feasible one

    u = clip(c + s (v − c) + λ, lower, upper)

with one number s for the frame and one number λ for every variable whose mean is held, such that the held quantities
q(u) have their wanted values. c is the area mean of v where an energy is held, so that s is the amplitude of the
pattern, and the given state where a radius is, so that s shortens the departure from it. What is not held has λ = 0 and
s = 1. Without bounds this is `physics.constraints.with_mean` and a rescaling; with them (s, λ) solve the small system
q(u(s, λ)) = q* by Newton's method in float64. A feasible field stays as it is.

The solution is differentiated as an implicit function: with θ = (s, λ) found without gradients,

    θ − J⁻¹ (q(u(v, θ)) − q*),      J = ∂q/∂θ held fixed,

has the same value and the right derivative by v. At a feasible v that derivative takes out what would change a held
quantity: it is the tangent of the constraints.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..autoencoder.heads import Heads, velocity_channels
from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from ..physics.constraints import solenoidal, weighted_mean
from ..physics.equation import Equation
from .bounds import Bounds, bound_problems, limits

__all__ = ["Feasible", "Infeasible"]

_EXACT = 1e-11  # relative, of the Newton iteration
_TOUCH = 1e-6  # of a standard deviation: this close to a bound is on it
_STEPS, _SMALLEST = 60, 1e-6  # of the iteration, and of the share of a step that is still taken


class Infeasible(ValueError):
    """No field near this one obeys bounds and constraints at once."""


def _linear(spec: FieldSpec) -> list[str]:
    """The constraints that hold a mean or a direction, whatever the equation."""
    return ["mean", "mass", "divergence_free", *(f"mean:{name}" for name in spec.names)]


class Feasible:
    """The feasible set about one given state, and the map into it.

    Arguments:
        spec: of the fields.
        given: the state ``(history, C, *space)`` in physical units, float64. What is held keeps its value.
        bounds: see `lapse.surrogate.bounds`.
        constraints: what is held: "mean" (area means of all variables), "mean:NAME" (of one), "mass" (of the positive
            ones), "divergence_free" (of the velocity), and at most one quantity that the equation names in its
            `invariants`, such as "energy". As a mapping, quantity to wanted value, None for the given state's.
        radius: the most that the state may depart from the given one, root mean square over cells and variables in
            training standard deviations; None is no limit.
        equation: the model's, for its invariants; None without one.

    Raises SpecError naming every constraint and bound that does not fit.
    """

    def __init__(
        self,
        spec: FieldSpec,
        given: Tensor,
        bounds: Bounds = "training",
        constraints: Sequence[str] | Mapping[str, float | None] = (),
        radius: float | None = None,
        equation: Equation | None = None,
    ) -> None:
        self.spec, self.given, self.radius, self.equation = spec, given.double(), radius, equation
        wanted = dict(constraints) if isinstance(constraints, Mapping) else dict.fromkeys(constraints)
        self.scale = torch.tensor([v.std or 1.0 for v in spec.variables], dtype=torch.float64).to(given.device)
        weights = (spec.mask_tensor() * spec.grid.area_weights()).to(given.device)
        self.weights, self.mask = weights, spec.mask_tensor().to(given.device)
        self.positive = torch.tensor([v.kind == "positive" for v in spec.variables]).to(given.device)
        self.quantity = next((k for k in wanted if k not in _linear(spec)), None)
        self.solenoidal = "divergence_free" in wanted
        self._check(wanted, bounds)
        self.held = torch.full_like(self.positive, "mean" in wanted)
        for i, name in enumerate(spec.names):
            self.held[i] |= f"mean:{name}" in wanted
        if "mass" in wanted:
            self.held = self.held | self.positive
        self.lower, self.upper = limits(bounds, spec, self.given, self.solenoidal)
        self.means = self._means(self.given)
        value = wanted.get(self.quantity or "")
        self.amount = None
        if self.quantity:
            own = self._quantity(self.given)
            self.amount = own if value is None else torch.full_like(own, float(value))
            if not bool((self.amount != 0).all()):
                fix = "start from a state that has some, or do not hold it"
                raise SpecError([Problem(f"constraints, {self.quantity}", "0", "another value than nought", fix)])

    # the map

    def __call__(self, v: Tensor) -> Tensor:
        """``v (history, C, *space)`` in physical units to the feasible field, same shape and type; differentiable.

        Raises Infeasible where the bounds leave no such field.
        """
        x = v.double()
        if not bool(torch.isfinite(x).all()):
            raise Infeasible(
                "initial condition: found values that are not finite, wanted numbers. Usual fix: shorter steps"
            )
        if self.solenoidal and (channels := velocity_channels(self.spec)):
            along = list(channels)
            x = x.index_copy(1, torch.tensor(along, device=x.device), solenoidal(x[:, along], self.spec.grid))
        x = torch.where(self.mask, x, self.given)
        return torch.stack([self._frame(x[h], h) for h in range(len(x))]).to(v.dtype)

    def violation(self, u: Tensor) -> float:
        """Largest breach of what is held: of means and bounds over the standard deviation, of others relative."""
        x = u.detach().double()
        scale = self.scale.reshape(-1, *(1,) * (x.ndim - 2))
        found = [torch.relu(self.lower - x) / scale, torch.relu(x - self.upper) / scale]
        found.append(((self._means(x) - self.means) / self.scale).abs()[:, self.held])
        if self.amount is not None:
            found.append(((self._quantity(x) - self.amount) / self.amount.abs().clamp(min=1e-300)).abs())
        if self.radius is not None:
            found.append(torch.relu(torch.stack([self.distance(x[h], h) for h in range(len(x))]) / self.radius - 1))
        return max(float(f.amax()) for f in found if f.numel())

    def distance(self, u: Tensor, h: int = -1) -> Tensor:
        """Root mean square departure of a frame ``(C, *space)`` from the given one, in standard deviations."""
        away = (u.double() - self.given[h]) / self.scale.reshape(-1, *(1,) * (u.ndim - 1))
        return ((self.weights * away.square()).sum() / self.weights.sum()).sqrt()

    def tangent(self, u: Tensor, d: Tensor) -> Tensor:
        """A direction ``d``, in standard deviations, at the feasible ``u`` without what would leave bounds or radius.

        What would change a held mean or energy is no part of a gradient that came through the map, and stays.
        """
        touch = _TOUCH * self.scale.reshape(-1, *(1,) * (u.ndim - 2))
        low, high = u <= self.lower + touch, u >= self.upper - touch
        d = d.masked_fill((low & (d < 0)) | (high & (d > 0)) | ~self.mask, 0.0)
        if self.radius is None:
            return d
        x = (u.double() - self.given) / self.scale.reshape(-1, *(1,) * (u.ndim - 2))
        out = []
        for h, along in enumerate(d.double()):
            n = self.weights * x[h]  # the outward normal of the ball
            outward = (n * along).sum() / n.square().sum().clamp(min=1e-300)
            on_it = bool(self.distance(u[h], h) >= self.radius * (1 - _TOUCH))
            out.append(along - n * outward.clamp(min=0) if on_it else along)
        return torch.stack(out).to(d.dtype)

    def _frame(self, v: Tensor, h: int) -> Tensor:
        if self.quantity is not None:
            return self._solved(v, h, scaled=True)
        u = self._solved(v, h, scaled=False)
        if self.radius is None or float(self.distance(u.detach(), h)) <= self.radius * (1 + _EXACT):
            return u
        return self._solved(v, h, scaled=True)

    def _solved(self, v: Tensor, h: int, scaled: bool) -> Tensor:
        """The feasible frame of ``v (C, *space)``, with the scale s among the unknowns or without."""
        means = int(self.held.sum())
        theta = v.new_zeros(means + scaled)  # λ in standard deviations, then s
        if scaled:
            theta[-1] = 1.0
        if len(theta):
            theta, jacobian = self._newton(v.detach(), theta, h, scaled)
            theta = theta - torch.linalg.solve(jacobian, self._defect(v, theta, h, scaled))
        return self._field(v, theta, h, scaled)

    def _field(self, v: Tensor, theta: Tensor, h: int, scaled: bool) -> Tensor:
        column = (-1, *(1,) * (v.ndim - 1))
        if scaled:
            centre = self.given[h] if self.quantity is None else self._means(v[None])[0].reshape(column)
            v = torch.where(self.mask, centre + theta[-1] * (v - centre), v)
        if self.held.any():
            shift = torch.zeros_like(self.scale).masked_scatter(self.held, theta[: int(self.held.sum())])
            v = v + (self.scale * shift).reshape(column)
        u = v.clamp(self.lower[h], self.upper[h])
        # A cell on its bound may lie past it by round-off, where clamp has no gradient, and could never leave it again.
        u = torch.where((u - v).abs() <= _TOUCH * self.scale.reshape(column), v + (u - v).detach(), u)
        return torch.where(self.mask, u, self.given[h])

    def _defect(self, v: Tensor, theta: Tensor, h: int, scaled: bool) -> Tensor:
        """How far the held quantities of u(v, θ) are from their wanted values, of order one."""
        u = self._field(v, theta, h, scaled)
        off = [((self._means(u[None])[0] - self.means[h]) / self.scale)[self.held]]
        if scaled and self.amount is not None:
            off.append(self._quantity(u[None]) / self.amount[h] - 1)
        elif scaled and self.radius is not None:
            off.append((self.distance(u, h) / self.radius - 1)[None])
        return torch.cat(off)

    @torch.no_grad()
    def _newton(self, v: Tensor, theta: Tensor, h: int, scaled: bool) -> tuple[Tensor, Tensor]:
        """θ with no defect, and the Jacobian of the defect there."""
        r = self._defect(v, theta, h, scaled)
        for _ in range(_STEPS):
            J = self._jacobian(v, theta, h, scaled)
            if r.abs().max() <= _EXACT and torch.linalg.matrix_rank(J) == len(theta):
                return theta, J
            step, size = torch.linalg.lstsq(J, r[:, None]).solution[:, 0], 1.0
            while size > _SMALLEST:
                trial = theta - size * step
                if scaled:
                    trial[-1] = trial[-1].clamp(min=0.5 * float(theta[-1]))  # an amplitude stays positive
                s = self._defect(v, trial, h, scaled)
                if s.norm() < r.norm():
                    break
                size /= 2
            else:
                break
            theta, r = trial, s
        raise Infeasible(
            f"initial condition: found no field within the bounds that keeps {self._names()} (the nearest is off by "
            f"{float(r.abs().max()):.2g}, relative); wanted room for them. Usual fix: widen the bounds, or hold less"
        )

    def _jacobian(self, v: Tensor, theta: Tensor, h: int, scaled: bool) -> Tensor:
        with torch.enable_grad():
            t = theta.clone().requires_grad_(True)
            rows = [torch.autograd.grad(r, t, retain_graph=True)[0] for r in self._defect(v, t, h, scaled)]
        return torch.stack(rows)

    # what is held

    def _means(self, u: Tensor) -> Tensor:
        """Area means over valid cells, ``(history, C)``."""
        return torch.stack([weighted_mean(u[:, i], w) for i, w in enumerate(self.weights)], dim=1)

    def _quantity(self, u: Tensor) -> Tensor:
        """The held quantity of the equation, ``(history,)``."""
        assert self.equation is not None and self.quantity is not None
        order = [self.spec.names.index(n) for n in self.equation.variables]
        return self.equation.invariants(u[:, order])[self.quantity]

    def _names(self) -> str:
        names = [f"the mean of {v.name}" for v, held in zip(self.spec.variables, self.held, strict=True) if held]
        if self.quantity:
            names.append(self.quantity)
        return ", ".join(names) + (f" and a departure of at most {self.radius:g}" if self.radius else "")

    def _check(self, wanted: Mapping[str, float | None], bounds: Bounds) -> None:
        """Raise SpecError with everything that does not fit the spec."""
        problems: list[Problem] = []
        known = _linear(self.spec)
        named = [k for k in wanted if k not in known]
        if self.equation is not None:
            known += list(self.equation.invariants(self._ordered()))
        no_law = "the model's spec names no equation; " if self.equation is None else ""
        for k in named:
            if k not in known:
                fix = f"{no_law}choose from these"
                problems.append(Problem("constraints", repr(k), f"one of {', '.join(known)}", fix))
        if len(named) + (self.radius is not None) > 1:
            found = ", ".join([*named, *([f"radius={self.radius:g}"] if self.radius is not None else [])])
            fix = "keep one; the others can be penalised in the objective"
            problems.append(Problem("constraints", found, "one energy or a radius, beside the means", fix))
        for k in _linear(self.spec):
            if wanted.get(k) is not None:
                fix = "give the wanted mean to ds itself"
                problems.append(Problem(f"constraints, {k}", f"{wanted[k]}", "None: the given state's is held", fix))
        if "mass" in wanted and not self.positive.any():
            fix = "declare the variable positive, or hold 'mean'"
            problems.append(Problem("constraints", "'mass'", "a variable of kind positive", fix))
        if self.radius is not None and not self.radius > 0:
            problems.append(Problem("radius", f"{self.radius}", "above 0, in standard deviations", "0.5, say"))
        if self.solenoidal:
            try:
                Heads(self.spec, ("divergence_free",))
            except ValueError as error:
                problems.append(Problem("constraints", "'divergence_free'", str(error), "leave it out"))
        problems += bound_problems(bounds, self.spec, self.solenoidal)
        if problems:
            raise SpecError(problems)

    def _ordered(self) -> Tensor:
        assert self.equation is not None
        return self.given[:, [self.spec.names.index(n) for n in self.equation.variables]]
