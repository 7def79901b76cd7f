"""What the library knows of a law: one equation, written once.

The right-hand side of an :class:`Equation` serves the solver that makes data, the residual that judges it
and the invariants that are reported. States are tensors ``(…, C, *space)`` in physical units, float32 or
float64, with C the equation's `variables` in order and `space` the shape of its grid; leading dimensions are
free.

The residual of a pair of frames is the *defect*

    R(u₀, u₁) = u₁ − Φ_Δ(u₀),

with Φ_Δ the solver's own map over the interval Δ between frames. Frames lie many time steps apart, so finite
differences in time would measure their own error instead. The residual is a field: its norm, weighting and
reduction belong to whoever reports it, beside the floor that the data itself reaches.

The step of a solver is fixed by the equation's parameters and never by the states at hand, so that a
trajectory does not depend on which others share its batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from .balance import Balance
from .constraints import weighted_mean
from .grid import Grid
from .smooth import smooth
from .stepping import rk4, spectral_radius

Fate = Literal["conserved", "falling", "budgeted"]


@dataclass(frozen=True)
class Usual:
    """Where an equation's default parameters mean something: what a simulation by name takes unless told otherwise.

    Attributes:
        dimension: Number of axes of the periodic box.
        length: Side of the box, in m.
        resolution: Nodes a side.
        interval: Time between frames, in s; None if there is none worth proposing.
        walls: Whether the box ends at walls instead of being periodic.
    """

    dimension: int = 2
    length: float = 2 * math.pi
    resolution: int = 64
    interval: float | None = None
    walls: bool = False

    def grid(
        self,
        resolution: int | Sequence[int] | None = None,
        length: float | Sequence[float] | None = None,
        dimension: int | None = None,
    ) -> Grid:
        """That box, or one that differs as told; its axes are (x), (y, x) or (z, y, x).

        Args:
            resolution: Nodes, one number for all axes or one each.
            length: Sides, in m, likewise.
            dimension: 1, 2 or 3; what the other arguments say where they are sequences, else the usual one.
        """
        for given in (resolution, length):
            if dimension is None and isinstance(given, Sequence):
                dimension = len(given)
        d = self.dimension if dimension is None else dimension
        if d not in (1, 2, 3):
            raise ValueError(f"found dimension={d}, wanted 1, 2 or 3")
        return (Grid.walled_box if self.walls else Grid.periodic_box)(
            self.resolution if resolution is None else resolution,
            self.length if length is None else length,
            ("z", "y", "x")[-d:],
        )


class Equation(ABC):
    """A law on a grid. Its `variables`, their `units` and :meth:`rhs` are enough; the rest has defaults.

    Args:
        grid: Where states are sampled.
        **parameters: Physical parameters, kept in `parameters`; those of `defaults` may be left out.

    Attributes:
        name: Registered name.
        variables: Names of the channels, in order.
        units: Units of the variables.
        defaults: Values of the parameters that are not given. If there are any, no other parameter is accepted.
        parameter_units: Units of the parameters.
        positive, nonnegative: Parameters of which that is demanded.
        algebraic: Variables without a rate of change; their row of :meth:`rhs` is a constraint, nought if it holds.
        order: Order of accuracy of :meth:`step`.
        quantities: Units of the :meth:`invariants`.
        balanced: Names and units of the rows of :meth:`conserved`, if they are not the variables.
        laws: What becomes of each of the :meth:`invariants`; those that are not named are "budgeted": their rate of
            change has terms of either sign.
        usual: Box and frame interval for which the default parameters are meant.
    """

    name: ClassVar[str]
    variables: ClassVar[tuple[str, ...]]
    units: ClassVar[Mapping[str, str]]
    defaults: ClassVar[Mapping[str, float]] = {}
    parameter_units: ClassVar[Mapping[str, str]] = {}
    positive: ClassVar[tuple[str, ...]] = ()
    nonnegative: ClassVar[tuple[str, ...]] = ()
    algebraic: ClassVar[tuple[str, ...]] = ()
    quantities: ClassVar[Mapping[str, str]] = {}
    balanced: ClassVar[Mapping[str, str]] = {}
    laws: ClassVar[Mapping[str, Fate]] = {}
    order: ClassVar[int] = 4
    usual: ClassVar[Usual] = Usual()

    def __init__(self, grid: Grid, **parameters: float) -> None:
        self.grid = grid
        if self.defaults and (unknown := sorted(set(parameters) - set(self.defaults))):
            raise TypeError(f"{self.name}: found the parameters {unknown}, wanted some of {sorted(self.defaults)}")
        self.parameters: dict[str, float] = {k: float(v) for k, v in {**self.defaults, **parameters}.items()}
        for k, v in self.parameters.items():
            if not math.isfinite(v):
                raise ValueError(f"{self.name}: found {k}={v}, wanted a finite number")
            if k in self.positive and v <= 0:
                raise ValueError(f"{self.name}: found {k}={v:g}, wanted a positive number")
            if k in self.nonnegative and v < 0:
                raise ValueError(f"{self.name}: found {k}={v:g}, wanted 0 or more")
        self._dt: float | None = None

    @abstractmethod
    def rhs(self, u: Tensor) -> Tensor:
        """du/dt, same shape as u."""

    @classmethod
    def static(cls) -> bool:
        """Whether no variable has a rate of change: fields of such a law do not move, they only obey it."""
        return set(cls.algebraic) == set(cls.variables)

    @property
    def dt(self) -> float:
        """Largest time step that the solver takes of its own accord.

        By default 1/ρ, with ρ the spectral radius of the Jacobian of :meth:`rhs` at one state of :meth:`initial`,
        found by power iteration: a bit more than a third of what :func:`~lapse.physics.stepping.rk4` bears
        (|λ| dt < 2.6 in all stable directions), so states may grow to twice the speed of the initial ones. A class
        that knows better says so in one line, `dt = 1e-3`, or as a property.
        """
        if self._dt is None:
            u = self.initial(torch.Generator().manual_seed(0), 1, torch.float64)
            rho = spectral_radius(self.rhs, u)
            self._dt = 1 / rho if rho > 0 else math.inf
        return self._dt

    def step(self, u: Tensor, dt: float) -> Tensor:
        """State after one time step of length dt, whatever its stability. By default classical Runge–Kutta.

        A law with :attr:`algebraic` variables judges states and does not advance them: NotImplementedError.
        """
        if self.algebraic:
            still = ", ".join(self.algebraic)
            why = "nothing moves in this law" if self.static() else f"{still} has no rate of change"
            raise NotImplementedError(
                f"{self.name}: found no time step, since {why}; wanted the strong or steady residual of given states, "
                "or another form of the law"
            )
        return rk4(u, self.rhs, dt)

    def invariants(self, u: Tensor) -> dict[str, Tensor]:
        """Area means that the equation conserves or budgets, each of shape ``u.shape[:-1-ndim]``."""
        return {}

    def symmetries(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Maps S of states that commute with the flow: S(Φ(u)) = Φ(S(u))."""
        return {}

    def initial(self, generator: torch.Generator, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random smooth initial states, shape (batch, C, *space).

        By default each variable is a random field of few waves, of mean 0 and rms 1 in its units, drawn on the
        generator's device.
        """
        return smooth(self.grid, generator, (batch, len(self.variables))).to(dtype)

    @property
    def spin_up_time(self) -> float:
        """Time after which states started from :meth:`initial` have forgotten it. By default 0."""
        return 0.0

    def steps(self, interval: float) -> int:
        """Number of steps no longer than :attr:`dt` that make up an interval."""
        return max(1, math.ceil(abs(interval) / self.dt * (1 - 1e-9)))

    def advance(self, u: Tensor, interval: float, steps: int | None = None) -> Tensor:
        """Φ_Δ(u): integrate over a frame interval.

        Args:
            u: States (…, C, *space).
            interval: Δ, in the equation's unit of time.
            steps: Number of equal steps; as many as :attr:`dt` asks for if None.
        """
        self.check(u)
        n = self.steps(interval) if steps is None else steps
        for _ in range(n):
            u = self.step(u, interval / n)
        return u

    def residual(self, u0: Tensor, u1: Tensor, interval: float) -> Tensor:
        """Defect field u₁ − Φ_Δ(u₀), in the variables' own units, shape of u₁."""
        self.check(u1)
        return u1 - self.advance(u0, interval)

    # The law as a balance, for the weak form (see `weak.py`); an equation that states none has no weak residual:
    #
    #     ∂q/∂t + ∇·f = ∇²d + s        q = conserved(u), f = flux(u), d = diffused(u), s = source(u)

    def flux(self, u: Tensor) -> Tensor:
        """f(u), the flux without its diffusive part, (…, d, C, *space); its components point along the axes from the
        last to the first, as those of every vector. Raises NotImplementedError where the equation states none."""
        raise NotImplementedError(
            f"{self.name}: found no flux, wanted the law as a balance ∂q/∂t + ∇·f = ∇²d + s for the weak form (write "
            "a method flux(u) that returns (…, d, C, *space), or use another form of the residual)"
        )

    def conserved(self, u: Tensor) -> Tensor:
        """q(u), the quantities that are balanced, (…, C, *space); u itself unless a subclass says otherwise."""
        return u

    def diffused(self, u: Tensor) -> Tensor | None:
        """d(u), whose Laplacian is the diffusive part of the balance (ν u for a viscosity ν); None: nothing does."""
        return None

    def source(self, u: Tensor) -> Tensor | None:
        """s(u), what is neither flux nor diffusion, (…, C, *space); None: nothing."""
        return None

    def entropy(self, u: Tensor) -> Balance:
        """The balance of a convex function of the state that shocks can only lower (see `entropy.py`), with C = 1.
        Raises NotImplementedError where the equation states none."""
        raise NotImplementedError(
            f"{self.name}: found no entropy, wanted a method entropy(u) that returns the Balance of a convex function "
            "of the state"
        )

    def spin_up(
        self,
        generator: torch.Generator,
        batch: int,
        duration: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Random states after `duration` (default :attr:`spin_up_time`), shape (batch, C, *space)."""
        u = self.initial(generator, batch, dtype)
        return self.advance(u, self.spin_up_time if duration is None else duration)

    def mean(self, f: Tensor) -> Tensor:
        """Area mean over space, in float64: (…, *space) -> (…)."""
        return weighted_mean(f, self.grid.area_weights())

    def check(self, u: Tensor) -> None:
        """Raise ValueError or TypeError unless u is a state of this equation."""
        wanted = (len(self.variables), *self.grid.shape)
        if tuple(u.shape[-len(wanted) :]) != wanted:
            raise ValueError(
                f"{self.name}: found a state of shape {tuple(u.shape)}, wanted (…, {', '.join(map(str, wanted))}) "
                f"for the variables {self.variables} on a grid of shape {self.grid.shape}"
            )
        if u.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{self.name}: found a state of type {u.dtype}, wanted float32 or float64")

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v:g}" for k, v in self.parameters.items())
        return f"{type(self).__name__}({'x'.join(map(str, self.grid.shape))}, {values})"


def translate(u: Tensor) -> Tensor:
    """A symmetry of laws that are the same everywhere on periodic axes: states moved by a cell along the last."""
    return u.roll(1, -1)


def mirror(u: Tensor) -> Tensor:
    """A symmetry of laws without direction, of scalars: states reflected along the last axis."""
    return u.flip(-1)


REGISTRY: dict[str, type[Equation]] = {}
SHIPPED = {  # name -> module of this folder
    name: name
    for name in (
        "advection_diffusion",
        "allen_cahn",
        "burgers",
        "darcy",
        "gray_scott",
        "heat",
        "kdv",
        "kolmogorov",
        "kuramoto_sivashinsky",
        "navier_stokes",
        "shallow_water",
    )
}

E = TypeVar("E", bound=type[Equation])


def register(name: str) -> Callable[[E], E]:
    """Class decorator: make an equation known by name, for configurations and files."""

    def enter(cls: E) -> E:
        if REGISTRY.get(name, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"equation {name!r}: found {REGISTRY[name]} registered already, wanted a free name")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return enter


def lookup(name: str) -> type[Equation]:
    """The class of a registered equation.

    Raises:
        KeyError: If no such equation is registered; the message lists those that are.
    """
    if name in SHIPPED and name not in REGISTRY:
        import_module(f".{SHIPPED[name]}", __package__)
    if name not in REGISTRY:
        raise KeyError(f"found no equation {name!r}, wanted one of {sorted({*REGISTRY, *SHIPPED})}")
    return REGISTRY[name]


def equation(name: str, grid: Grid, **parameters: float) -> Equation:
    """Build a registered equation, e.g. ``equation("kolmogorov", Grid.periodic_box(64), viscosity=0.01)``.

    Raises:
        KeyError: If no such equation is registered; the message lists those that are.
    """
    return lookup(name)(grid, **parameters)
