"""The opponents of the design benchmark: other ways to look for the best state, within the same set and time.

Each search is a function of (task, seconds of processor time, seed) that returns its best state ``(C, *space)``; the
solver then says what that is worth.

    fno         L-BFGS with gradients through neuraloperator's Fourier neural operator
    adjoint     L-BFGS with gradients through the solver
    evolution   differential evolution (Storn and Price 1997, doi:10.1023/A:1008202821328; scipy's) on the solver, over
                48 Fourier amplitudes a variable, from a population about the given state
    random      the best of random feasible states by the solver
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from lapse.physics.equation import Equation
from lapse.surrogate.descent import Evaluation, lbfgs
from lapse.surrogate.feasible import Feasible, Infeasible
from lapse.surrogate.model import Model
from lapse.surrogate.targets import Target
from lapse.surrogate.view import viewed

MODES = 3  # of the Fourier parametrisation: (2 · 3 + 1)² − 1 amplitudes a variable
POPULATION, FIRST, LARGEST = 16, 0.1, 0.5  # states, and the size of their amplitudes in standard deviations
BATCH = 8  # states that the solver runs at once
Run = Callable[[Tensor], Iterator[Tensor]]  # states (n, C, *space) to the frames that follow, without end


@dataclass
class Task:
    """One objective from one start, and the feasible set."""

    name: str
    ds: xr.Dataset
    start: Tensor
    objective: Target
    sense: str
    lead: int
    options: dict[str, Any]
    feasible: Feasible
    solver: Equation
    fno: Run
    model: Model

    @property
    def std(self) -> Tensor:
        """Standard deviations ``(C, 1, …)``."""
        spec = self.model.spec
        return torch.tensor([v.std or 1.0 for v in spec.variables]).reshape(-1, *(1 for _ in spec.grid.shape))

    def solved(self, u: Tensor) -> Iterator[Tensor]:
        """The frames that the solver makes of states."""
        spec, own = self.model.spec, self.solver.variables
        w, back = u[:, [spec.names.index(n) for n in own]], [own.index(n) for n in spec.names]
        while True:
            w = self.solver.advance(w, spec.interval)
            yield w[:, back]

    def value(self, u: Tensor, run: Run | None = None) -> Tensor:
        """The objective (n,) of states ``(n, C, *space)``, as the solver or another ``run`` foresees it."""
        frames = [frame for frame, _ in zip((run or self.solved)(u), range(self.lead), strict=False)]
        return self.objective(viewed(torch.stack(frames, dim=1), self.model.spec, u[0]))

    def loss(self, u: Tensor, run: Run | None = None) -> Tensor:
        return self.value(u, run) * (-1 if self.sense == "maximise" else 1)

    def score(self, u: Tensor) -> float:
        """The objective of one state ``(C, *space)`` by the solver, in float64."""
        with torch.no_grad():
            return float(self.value(u[None].double())[0])

    def about(self, kicks: Tensor) -> Tensor:
        """The feasible states next to perturbations ``(n, C, *space)`` in standard deviations, float32."""
        with torch.no_grad():
            return torch.cat([self.feasible((self.start + self.std * k.float())[None]) for k in kicks])


def evolution(task: Task, seconds: float, seed: int) -> Tensor:
    from scipy.optimize import differential_evolution

    begin, basis, rng = time.process_time(), fourier(task), np.random.default_rng(seed)
    best, best_loss = task.start, np.inf

    def loss(amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:  # (amplitudes, states)
        nonlocal best, best_loss
        found = np.full(amplitudes.shape[1], np.inf)
        for first in range(0, len(found), BATCH):
            if time.process_time() - begin > seconds:
                break
            some = torch.from_numpy(amplitudes[:, first : first + BATCH].T.copy())
            states = task.about(torch.einsum("na,a...->n...", some, basis))
            with torch.no_grad():
                found[first : first + BATCH] = task.loss(states).double().numpy()
            k = int(found[first : first + BATCH].argmin())
            if found[first + k] < best_loss:
                best, best_loss = states[k], found[first + k]
        return found

    first = FIRST * rng.standard_normal((POPULATION, len(basis)))
    first[0] = 0.0  # the given state
    differential_evolution(
        loss, [(-LARGEST, LARGEST)] * len(basis), maxiter=10**6, tol=0, atol=0, polish=False, seed=seed,
        vectorized=True, updating="deferred", init=first.clip(-LARGEST, LARGEST),
        callback=lambda intermediate_result: time.process_time() - begin > seconds,
    )  # fmt: skip
    return best


def random_members(task: Task, seconds: float, seed: int) -> Tensor:
    """Perturbations with the spectra of the flow, of the whole radius or of any size up to a standard deviation."""
    begin, random = time.process_time(), torch.Generator().manual_seed(seed)
    best, best_loss = task.start, np.inf
    order = [task.solver.variables.index(n) for n in task.model.spec.names]
    while time.process_time() - begin < seconds:
        with torch.no_grad():
            kicks = (task.solver.initial(random, BATCH) - task.solver.initial(random, BATCH))[:, order] / task.std
            size = torch.rand(BATCH, 1, 1, 1, generator=random) if task.feasible.radius is None else 1.0
            states = task.about(size * kicks / kicks.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())
            loss = task.loss(states)
        if float(loss.min()) < best_loss:
            best, best_loss = states[int(loss.argmin())], float(loss.min())
    return best


def descent(task: Task, seconds: float, run: Run | None) -> Tensor:
    """L-BFGS with gradients through ``run``, float32, as `lapse.design` does it through its own networks."""
    begin, std, given = time.process_time(), task.std, task.start[None]

    def evaluate(x: Tensor) -> Evaluation:
        at = x.clone().requires_grad_(True)
        with torch.enable_grad():
            loss = task.loss(task.feasible(given + std * at), run).sum()
        return Evaluation(float(loss.detach()), lambda: torch.autograd.grad(loss, at)[0])

    def retract(x: Tensor) -> Tensor | None:
        try:
            with torch.no_grad():
                return (task.feasible(given + std * x) - given) / std
        except Infeasible:
            return None

    start = retract(torch.zeros_like(given))
    assert start is not None
    best = given
    for iterate in lbfgs(evaluate, start, retract, lambda x, d: task.feasible.tangent(given + std * x, d), 1000, 0.1):
        best = given + std * iterate.x
        if time.process_time() - begin > seconds:
            break
    with torch.no_grad():
        return task.feasible(best)[0]


def adjoint(task: Task, seconds: float, seed: int) -> Tensor:
    return descent(task, seconds, None)


def fno(task: Task, seconds: float, seed: int) -> Tensor:
    return descent(task, seconds, task.fno)


SEARCHES: dict[str, Callable[[Task, float, int], Tensor]] = {
    "fno": fno, "evolution": evolution, "random": random_members, "adjoint": adjoint,
}  # fmt: skip


def fourier(task: Task) -> Tensor:
    """Real Fourier modes up to `MODES` of one variable each ``(n, C, *space)``, of root mean square 1."""
    grid, channels = task.model.spec.grid, len(task.model.spec.names)
    y, x = (2 * np.pi * m.double() / L for m, L in zip(grid.meshgrid(), grid.length, strict=True))
    waves = []
    for a in range(MODES + 1):
        for b in range(-MODES, MODES + 1):
            if a > 0 or b > 0:
                waves += [torch.cos(a * y + b * x), torch.sin(a * y + b * x)]
    each = 2**0.5 * torch.stack(waves)
    out = torch.zeros(channels, len(each), channels, *grid.shape, dtype=torch.float64)
    for c in range(channels):
        out[c, :, c] = each
    return out.flatten(0, 1)
