"""Inverse design on Kolmogorov flow, verified in the true solver, against other searches at equal time.

    python benchmarks/design.py [--fno-minutes 40]           (make bench-design)

Three objectives, each for several starts, all at lead 10 of the shipped model kolmogorov64:

    box       largest mean vorticity in a square of 1 m, within 0.5 standard deviations (root mean square) of the start
    pattern   most similar to a given field, at the start's energy
    calm      smallest peak of vorticity, at the start's energy

The design of lapse, over latents and in the mode "mean", comes first; the processor time of its search is the budget
of every other search from the same start, over the same feasible set, each scored by what the solver makes of its
answer:

    fno         the same L-BFGS with gradients through neuraloperator's Fourier neural operator, which was trained on
                the same data for as long as the model of lapse, unless --fno-minutes says otherwise
    evolution   differential evolution (Storn and Price 1997, doi:10.1023/A:1008202821328; scipy's) on the solver, over
                48 Fourier amplitudes of the perturbation
    random      the best of random feasible states, each run by the solver
    adjoint     the same L-BFGS with gradients through the solver itself: no target was set for it, and where a solver
                is cheap and differentiable, as here, it is the opponent to respect

Gains are improvements over the given state. Processor time stands for wall-clock time, which on a shared machine
measures others' work as well; everything runs on one thread. Designs and the trained operator are kept under
`benchmarks/work`, and a benchmark that was stopped goes on after its last design. The data is that of the forecast
benchmark, which the first of the two to run makes.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from contenders import DATA, train_fno
from numpy.typing import NDArray
from torch import Tensor

import lapse
from lapse import objectives
from lapse.datasets.fields import to_dataset
from lapse.datasets.simulate import simulate
from lapse.physics.equation import Equation
from lapse.surrogate.case import law
from lapse.surrogate.descent import Evaluation, lbfgs
from lapse.surrogate.feasible import Feasible, Infeasible
from lapse.surrogate.model import Model
from lapse.surrogate.targets import Target
from lapse.surrogate.view import rolled, viewed
from record import ROOT, Row, quick, record, show

LEAD = 2 if quick() else 10
STARTS = 1 if quick() else 7  # of each objective: 21 designs
COMPARED = 1 if quick() else 2  # of which against the other searches
ITERATIONS = 2 if quick() else 12
WORK = ROOT / "benchmarks" / "work"
MODES = 3  # of the Fourier parametrisation: (2 · 3 + 1)² − 1 amplitudes
AMPLITUDE = 0.3  # the largest of them, in standard deviations
Run = Callable[[Tensor], Iterator[Tensor]]  # states (n, C, *space) to the frames that follow, without end


@dataclass
class Task:
    """One objective from one start, and the feasible set."""

    name: str
    ds: xr.Dataset
    start: Tensor
    objective: Target
    sense: str
    options: dict[str, Any]
    feasible: Feasible
    solver: Equation
    fno: Run
    model: Model

    def solved(self, u: Tensor) -> Iterator[Tensor]:
        """The frames that the solver makes of states."""
        while True:
            u = self.solver.advance(u, self.model.spec.interval)
            yield u

    def value(self, u: Tensor, run: Run | None = None) -> Tensor:
        """The objective (n,) of states ``(n, C, *space)``, as the solver or another ``run`` foresees it."""
        frames = [frame for frame, _ in zip((run or self.solved)(u), range(LEAD), strict=False)]
        return self.objective(viewed(torch.stack(frames, dim=1), self.model.spec, u[0]))

    def loss(self, u: Tensor, run: Run | None = None) -> Tensor:
        return self.value(u, run) * (-1 if self.sense == "maximise" else 1)

    def score(self, u: Tensor) -> float:
        """The objective of one state ``(C, *space)`` by the solver, in float64."""
        with torch.no_grad():
            return float(self.value(u[None].double())[0])


def operator(minutes: float) -> Run:
    """The trained Fourier neural operator; kept, since it takes as long as it says."""
    path, size = ROOT / "data" / "kolmogorov64.zarr", 64
    plan = DATA[size]
    if quick():
        path = WORK / "quick" / "design.zarr"
        plan = plan | {"trajectories": 10, "frames": 4, "spin_up": 0.2}
    simulate("kolmogorov", path, seed=1, shard=2 if quick() else 4, batch=4, resume=True, progress=False, **plan)
    forecaster, _, steps = train_fno(size, 0, minutes, path, WORK / f"design-fno-{minutes:g}{'-quick' * quick()}")
    print(f"fno: {steps} steps", flush=True)
    net, normaliser = forecaster.net.requires_grad_(False), forecaster.normaliser

    def run(u: Tensor) -> Iterator[Tensor]:
        x = normaliser(u)
        while True:
            x = net(x)
            yield normaliser.inverse(x)

    return run


def simulated(model: Model, count: int) -> Tensor:
    """States of the flow ``(count, 1, y, x)``, one a trajectory; kept, since they take a minute."""
    path = WORK / f"design-{'quick' if quick() else count}.pt"
    if path.is_file():
        states: Tensor = torch.load(path, weights_only=True)
        return states
    solver = law(model.spec)
    assert solver is not None
    with torch.no_grad():
        states = solver.spin_up(torch.Generator().manual_seed(2024), count, 1.0 if quick() else 20.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(states, path)
    return states


def tasks(model: Model, states: Tensor, fno: Run) -> Iterator[Task]:
    """Every objective from every start."""
    solver = law(model.spec)
    assert solver is not None
    times = {"time": ("time", 0.2 * np.arange(len(states)), {"units": "s"})}
    every = to_dataset(states, model.spec, ("time",), times)
    rng = np.random.default_rng(0)
    for i in range(STARTS):
        for k, name in enumerate(("box", "pattern", "calm")):
            j = (3 * i + k) % len(states)
            ds = every.isel(time=[j])
            x, y = rng.uniform(0.5, 4.5, 2)
            energy = {"constraints": ("mean", "energy"), "bounds": "training"}
            objective, sense, options = {
                "box": (
                    objectives.region_mean("vorticity", lead=LEAD, x=slice(x, x + 1), y=slice(y, y + 1)),
                    "maximise",
                    {"constraints": ("mean",), "radius": 0.5, "bounds": "training"},
                ),
                "pattern": (
                    objectives.similarity(every.isel(time=(j + 5) % len(states), drop=True), lead=LEAD),
                    "maximise",
                    energy,
                ),
                "calm": (objectives.extreme("vorticity", lead=LEAD, softness=0.3), "minimise", energy),
            }[name]
            feasible = Feasible(model.spec, states[j : j + 1], equation=solver, **options)
            yield Task(name, ds, states[j], objective, sense, options, feasible, solver, fno, model)


# the searches: each a function of (task, seconds of processor time, seed) that returns its best state


def evolution(task: Task, seconds: float, seed: int) -> Tensor:
    """Differential evolution on the solver, a population of states at once, from perturbations about the given one."""
    from scipy.optimize import differential_evolution

    begin, basis = time.process_time(), fourier(task)
    best, best_loss = task.start, np.inf

    def loss(amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, population)
        nonlocal best, best_loss
        found = np.full(amplitudes.shape[1], np.inf)
        for first in range(0, len(found), 8):
            if time.process_time() - begin > seconds:
                break
            states = feasible_states(task, amplitudes[:, first : first + 8].T @ basis)
            with torch.no_grad():
                found[first : first + 8] = task.loss(states).double().numpy()
            k = int(found[first : first + 8].argmin())
            if found[first + k] < best_loss:
                best, best_loss = states[k], found[first + k]
        return found

    differential_evolution(
        loss, [(-AMPLITUDE, AMPLITUDE)] * len(basis), maxiter=10**6, popsize=1, tol=0, atol=0, polish=False, seed=seed,
        vectorized=True, updating="deferred", x0=np.zeros(len(basis)),
        callback=lambda intermediate_result: time.process_time() - begin > seconds,
    )  # fmt: skip
    return best


def random_members(task: Task, seconds: float, seed: int) -> Tensor:
    """The best of random states: perturbations with the flow's spectrum, of the whole radius or at the energy."""
    begin, random = time.process_time(), torch.Generator().manual_seed(seed)
    best, best_loss = task.start, np.inf
    std = task.model.spec.variables[0].std or 1.0
    while time.process_time() - begin < seconds:
        with torch.no_grad():
            drawn = task.solver.initial(random, 8)
            size = torch.rand(8, 1, 1, 1, generator=random) if task.feasible.radius is None else 1.0
            kicks = size * std * drawn / drawn.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            states = feasible_states(task, kicks.double().numpy().reshape(8, -1) / std)
            loss = task.loss(states)
        if float(loss.min()) < best_loss:
            best, best_loss = states[int(loss.argmin())], float(loss.min())
    return best


def descent(task: Task, seconds: float, run: Run | None) -> Tensor:
    """L-BFGS with gradients through ``run``, float32, as `lapse.design` does it through its own networks."""
    begin, std = time.process_time(), task.model.spec.variables[0].std or 1.0
    given = task.start[None]

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


OPPONENTS: dict[str, Callable[[Task, float, int], Tensor]] = {
    "fno": fno, "evolution": evolution, "random": random_members, "adjoint": adjoint,
}  # fmt: skip
TARGETS = {"fno": ">= 1.2", "evolution": "> 1", "random": "> 1"}


def fourier(task: Task) -> NDArray[np.float64]:
    """Real Fourier modes up to `MODES` ``(n, cells)``, of root mean square 1 each."""
    y, x = (
        2 * np.pi * m.numpy() / L
        for m, L in zip(task.model.spec.grid.meshgrid(), task.model.spec.grid.length, strict=True)
    )
    rows = []
    for a in range(MODES + 1):
        for b in range(-MODES, MODES + 1):
            if a > 0 or b > 0:
                rows += [np.cos(a * y + b * x), np.sin(a * y + b * x)]
    return np.sqrt(2) * np.stack(rows).reshape(len(rows), -1)


def feasible_states(task: Task, kicks: NDArray[np.float64]) -> Tensor:
    """The feasible states of perturbations ``(n, cells)`` in standard deviations, (n, C, *space) float32."""
    std = task.model.spec.variables[0].std or 1.0
    fields = task.start + std * torch.from_numpy(kicks).float().reshape(len(kicks), *task.start.shape)
    with torch.no_grad():
        return torch.cat([task.feasible(f[None]) for f in fields])


def designed(task: Task, reference: xr.Dataset, seed: int, **options: Any) -> xr.Dataset:
    """The design of lapse, with its prediction."""
    told = {
        "over": "latent", "mode": "mean", "checkpoint": False, "iterations": ITERATIONS, "predicted": 19,
        "compare": ("fast",) if quick() else None, **task.options, **options,
    }  # fmt: skip
    return task.model.design(
        task.ds, task.objective, LEAD, sense=task.sense, seed=seed, reference=reference, progress=False, **told
    )


def judged(task: Task, reference: xr.Dataset, seed: int, against: bool) -> dict[str, Any]:
    """One design and, if wanted, the other searches from its start: what the solver makes of each, JSON-safe."""
    begin = time.process_time()
    out = designed(task, reference, seed)
    spent = float(out["seconds"][-1])
    given = task.score(task.start)
    achieved = {"lapse": task.score(torch.from_numpy(out["vorticity"].values))}
    if against:
        achieved |= {name: task.score(search(task, spent, seed)) for name, search in OPPONENTS.items()}
    sign = 1 if task.sense == "maximise" else -1
    predicted = float(out["predicted_objective"])
    return {
        "objective": task.name,
        "given": given,
        "achieved": achieved,
        "gains": {name: sign * (value - given) for name, value in achieved.items()},
        "predicted": dict(zip(out["mode"].values.tolist(), out["predicted_by_mode"].values.tolist(), strict=True)),
        "interval": out["interval"].values.tolist(),
        "fast": out["interval_by_mode"].sel(mode="fast").values.tolist(),
        "gap": abs(predicted - achieved["lapse"]) / abs(predicted - float(out["predicted_objective_given"])),
        "distance": (out["distance"].sel(state="designed") / out["distance_limit"]).values.tolist(),
        "violation": float(out["violation"].max()),
        "doubts": out.attrs["lapse_design_doubts"],
        "search": spent,
        "seconds": time.process_time() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fno-minutes", type=float, help="processor minutes that the operator is trained for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begin = time.process_time()
    model = lapse.load("kolmogorov64")
    trained = sum(float(stage["cpu_minutes"] or 0) for stage in model.config["training"]["stages"])
    minutes = 0.02 if quick() else options.fno_minutes or trained
    run = operator(minutes)
    states = simulated(model, 8 if quick() else 3 * STARTS)
    times = {"time": ("time", 0.2 * np.arange(len(states)), {"units": "s"})}
    reference = to_dataset(states, model.spec, ("time",), times)
    spent = time.process_time() - begin
    folder = WORK / f"design-{model.weights_hash[:8]}-{LEAD}-{ITERATIONS}-{minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed, task in enumerate(tasks(model, states, run)):
        path = folder / f"{seed}.json"
        if quick() or not path.is_file():
            result = judged(task, reference, seed, seed // 3 < COMPARED)
            path.write_text(json.dumps(result, indent=1))
            print(task.name, {k: round(v, 3) for k, v in result["gains"].items()}, flush=True)
        found.append(json.loads(path.read_text()))
    out = [
        *rows(found), *memory(model, states[0]),
        Row("2.2 training of the model of lapse", trained, None, None, "CPU min"),
        Row("2.2 training of the fno", minutes, None, None, "CPU min"),
    ]  # fmt: skip
    note = (
        f"{3 * STARTS} designs of Kolmogorov flow at lead {LEAD}; of each objective {COMPARED} starts against other "
        "searches, at equal processor time. Not run: shallow water, of which no model is shipped."
    )
    path = record("design", out, (spent + sum(f["seconds"] for f in found)) / 60, note)
    show(out, path)


def memory(model: Model, state: Tensor) -> list[Row]:
    """What the graph of one gradient holds, for four members, with checkpoints and without, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in [*model.emulator.parameters(), *model.emulator.buffers()]}
    held: dict[bool, float] = {}
    for checkpointed in (True, False):
        sizes: dict[int, int] = {}

        def pack(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            u = state[None].clone().requires_grad_(True)
            view, _ = rolled(model.emulator, u, LEAD, 4, "fast", errors=False, checkpointed=checkpointed)
            view.field("vorticity", LEAD).mean()
        held[checkpointed] = sum(n for p, n in sizes.items() if p not in weights) / 2**20
    return [
        Row(f"2.2 memory held for a gradient, lead {LEAD}, 4 members, checkpoints", held[True], None, None, "MiB"),
        Row(f"2.2 memory held for a gradient, lead {LEAD}, 4 members, without", held[False], None, None, "MiB"),
    ]


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """The figures: gains by objective and search, then what holds of all designs."""
    out = []
    for objective in ("box", "pattern", "calm"):
        own = [f for f in found if f["objective"] == objective]
        unit = "1" if objective == "pattern" else "s-1"
        for name in ("lapse", *OPPONENTS):
            pairs = [(f["gains"]["lapse"], f["gains"][name]) for f in own if name in f["gains"]]
            ours, theirs = (list(x) for x in zip(*pairs, strict=True))
            out.append(Row(f"2.2 {objective}: gain of {name}", float(np.mean(theirs)), _range(theirs), None, unit))
            if name != "lapse":
                ratio, each = float(np.mean(ours) / np.mean(theirs)), [a / b for a, b in pairs]
                check = f"2.2 {objective}: gain, lapse / {name}"
                out.append(Row(check, ratio, _range(each), TARGETS.get(name), "ratio"))
    for key, what in (("interval", "the hull of all modes'"), ("fast", "the fast mode's")):
        hits = float(np.mean([f[key][0] <= f["achieved"]["lapse"] <= f[key][1] for f in found]))
        target = ">= 0.8" if key == "interval" else None
        out.append(Row(f"2.2 designs with the achieved value in {what} 90 % interval", hits, None, target, "share"))
    widths = [abs(f["interval"][1] - f["interval"][0]) / abs(f["gains"]["lapse"]) for f in found]
    gaps, breaches, seconds = ([f[k] for f in found] for k in ("gap", "violation", "search"))
    doubted = float(np.mean([bool(f["doubts"]) for f in found]))
    return [
        *out,
        Row("2.2 width of the interval / achieved gain", float(np.median(widths)), _range(widths), None, "ratio"),
        Row("2.2 gap, predicted to achieved / predicted gain", float(np.median(gaps)), _range(gaps), None, "ratio"),
        Row("2.2 designs with a warning of exploitation", doubted, None, None, "share"),
        Row("2.2 largest violation of constraints", max(breaches), _range(breaches), "<= 1e-6", "1"),
        Row("2.2 processor time of a search", float(np.mean(seconds)), _range(seconds), None, "s"),
    ]


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


if __name__ == "__main__":
    main()
