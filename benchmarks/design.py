"""Inverse design of two flows, verified in the true solver, against other searches at equal time.

    python benchmarks/design.py [--only kolmogorov shallow_water] [--fno-minutes 40]           (make bench-design)

Three objectives for each flow, each for several starts, all at lead 10:

    kolmogorov      box       largest mean vorticity in a square of 1 m, within 0.5 standard deviations of the start
                    pattern   most similar to a given field, at the start's energy
                    calm      smallest peak of vorticity, at the start's energy
    shallow_water   surge     largest mean depth in a square of 1 m, within 0.5 standard deviations of the start
                    pattern   most similar to given fields, at the start's energy
                    crest     smallest peak of the depth, at the start's energy

Distances are root mean square, over all variables. The models are trained here, for as long as `MINUTES` says: on 64²
as the forecast benchmark's lapse-fast (`contenders.packaged`), and on 32² the second. The design of lapse, over latents
and in the mode "mean", comes first; the processor time of its search is the budget of every other search (`searches`)
from the same start, over the same feasible set, each scored by what the solver makes of its answer. Then lapse designs
again with `repairs`, where the solver runs between rounds of the search; those runs count, and the others get as long
as that took. The Fourier neural operator was trained on the same data for as long as the model of lapse, unless
--fno-minutes says otherwise. Gradients through the solver itself have no target: where a solver is cheap and
differentiable, as here, they are the opponent to respect.

The stage `many` samples designs of "box" from the climate (`Model.designs`) and has the solver judge each. The stage
`parameters` has the shipped kolmogorov64 find the forcing, drag or viscosity of another flow from one of its frames:
the solver makes the target at values that no network saw, from starts of test trajectories.

The stage `certified` has the shipped kolmogorov64 search without a radius, held by nothing, by the wall around known
states, or by the certificate as a stopping rule (`design(…, certify=True)`), and the solver judge what each found.

The predicted interval is widened by what verified designs from other starts fell short (`lapse.surrogate.trust`).

Gains are improvements over the given state. Processor time stands for wall-clock time, which on a shared machine
measures others' work as well; everything runs on one thread. Models, operators and designs are kept under
`benchmarks/work`, and a benchmark that was stopped goes on after its last design. Kolmogorov flow has the data of
the forecast benchmark, which the first of the two to run makes.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from contenders import DATA, MODEL_MINUTES, packaged, train_fno
from searches import SEARCHES, Run, Task
from torch import Tensor

import lapse
from lapse import objectives
from lapse.datasets.fields import to_dataset
from lapse.datasets.simulate import simulate
from lapse.surrogate.feasible import Feasible
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.targets import Target
from lapse.surrogate.train import compose, train
from lapse.surrogate.trust import widened, widening
from lapse.surrogate.view import rolled
from record import ROOT, Row, quick, record, show

LEAD = 2 if quick() else 10
STARTS = {"kolmogorov": 1 if quick() else 7, "shallow_water": 1 if quick() else 4}  # of each objective
STAGES = (*STARTS, "parameters", "many", "certified")
COMPARED = 1 if quick() else 2  # of which against the other searches
VERIFIED = 3 if quick() else 4  # more starts of each objective, whose designs tell how wide intervals must be
ITERATIONS = 2 if quick() else 12  # in every round
REPAIRS = 2 if quick() else 4
WORK = ROOT / "benchmarks" / "work" / ("quick" if quick() else "design")
TARGETS = {"fno": ">= 1.2", "evolution": "> 1", "random": "> 1"}
TANK = {"trajectories": 10 if quick() else 32, "frames": 4 if quick() else 50, "interval": 0.5,
        "resolution": 16 if quick() else 32}  # fmt: skip
MINUTES = {"kolmogorov": MODEL_MINUTES, "shallow_water": 4.0}  # of processor time, of each model and each operator
SHARES = {"autoencoder": 0.15, "error": 0.05, "mean": 0.45, "fast": 0.35}  # of the tank's, by stage


def data(flow: str) -> Path:
    """The training data of a flow; made where it is not there."""
    path, plan = WORK / f"{flow}.zarr", dict(TANK)
    if flow == "kolmogorov":
        plan = DATA[64] | ({"trajectories": 10, "frames": 4, "spin_up": 0.2} if quick() else {})
        path = path if quick() else ROOT / "data" / "kolmogorov64.zarr"
    elif quick():
        plan["spin_up"] = 0.5
    simulate(flow, path, seed=1, shard=2 if quick() else 4, batch=4, resume=True, progress=False, **plan)
    return path


def trained(flow: str) -> Model:
    """The model of a flow; trained where it is not there."""
    if flow == "kolmogorov" and not quick():
        return packaged()
    folder = WORK / f"{flow}-{MINUTES[flow]:g}"
    if not (folder / "model" / "spec.json").exists():
        share = 0.01 if quick() else 1.0
        small = ["autoencoder.width=8", "emulator.width=8", "emulator.depth=1"]
        config = compose([
            f"data.path={data(flow)}", "data.shift={x: 1, y: 1}", f"out={folder}", f"name={flow}",
            "autoencoder.latent_channels=12", "autoencoder.width=48", "autoencoder.encoder_depth=1",
            "autoencoder.decoder_depth=1", "emulator.width=64", "emulator.depth=5", "emulator.parts=[mean,fast,error]",
            "training.stages=[autoencoder,error,mean,fast]", "training.mean.unroll=[[0.0,1],[0.4,2],[0.7,4]]",
            "training.fast.unroll=[[0.0,2],[0.4,4],[0.8,8]]", "training.mean.batch=8", "training.fast.batch=8",
            "training.autoencoder.batch=8", *(small if quick() else []),
            *(f"training.{stage}.cpu_minutes={share * part * MINUTES[flow]}" for stage, part in SHARES.items()),
            *(f"training.{stage}.steps={4 if quick() else 10**6}" for stage in SHARES),
        ])  # fmt: skip
        if quick():
            config["training"]["mean"]["unroll"] = config["training"]["fast"]["unroll"] = [[0.0, 2]]
        train(config, progress=False)
    return lapse.load(str(folder / "model"))


def operator(flow: str, minutes: float, size: int) -> Run:
    """The Fourier neural operator of a flow, trained for so long."""
    folder = WORK / f"fno-{flow}-{minutes:g}"
    forecaster, _, steps = train_fno(size, 0, minutes, data(flow), folder)
    print(f"fno: {steps} steps", flush=True)
    net, normaliser = forecaster.net.requires_grad_(False), forecaster.normaliser

    def run(u: Tensor) -> Iterator[Tensor]:
        x = normaliser(u)
        while True:
            x = net(x)
            yield normaliser.inverse(x)

    return run


def states_of(flow: str, model: Model, count: int, seed: int = 2024) -> Tensor:
    """States of the flow ``(count, C, *space)``, one a trajectory that no training saw; kept."""
    name = f"states-{flow}-{count}" + (f"-{seed}" if seed != 2024 else "")
    path, solver = WORK / f"{name}.pt", law(model.spec)
    if path.is_file():
        kept: Tensor = torch.load(path, weights_only=True)
        return kept
    long = 20.0 if flow == "kolmogorov" else solver.spin_up_time
    with torch.no_grad():
        u = solver.spin_up(torch.Generator().manual_seed(seed), count, 0.5 if quick() else long)
    out = u[:, [solver.variables.index(n) for n in model.spec.names]]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(out, path)
    return out


def frames_of(states: Tensor, model: Model) -> xr.Dataset:
    """States as frames one interval apart, which they are not: `design` wants a time."""
    times = {"time": ("time", model.spec.interval * np.arange(len(states)), {"units": model.spec.time_units})}
    return to_dataset(states, model.spec, ("time",), times)


def tasks(flow: str, model: Model, states: Tensor, fno: Run, starts: int, seed: int = 0) -> Iterator[Task]:
    """Every objective from every start."""
    solver, every, rng = law(model.spec), frames_of(states, model), np.random.default_rng(seed)
    energy: dict[str, Any] = {"constraints": ("mean", "energy"), "bounds": "training"}
    near: dict[str, Any] = {"constraints": ("mean",), "radius": 0.5, "bounds": "training"}
    lead = {"lead": LEAD}
    for i in range(starts):
        x, y = (slice(a, a + 1) for a in rng.uniform(0.5, 4.5, 2))
        for k in range(3):
            j = (3 * i + k) % len(states)
            similar = objectives.similarity(every.isel(time=(j + 5) % len(states), drop=True), **lead)
            chosen: tuple[str, Target, str, dict[str, Any]]
            if flow == "kolmogorov":
                chosen = (
                    ("box", objectives.region_mean("vorticity", x=x, y=y, **lead), "maximise", near),
                    ("pattern", similar, "maximise", energy),
                    ("calm", objectives.extreme("vorticity", softness=0.3, **lead), "minimise", energy),
                )[k]
            else:
                depth = float(model.spec["h"].std or 1.0)
                chosen = (
                    ("surge", objectives.region_mean("h", x=x, y=y, **lead), "maximise", near),
                    ("pattern", similar, "maximise", energy),
                    ("crest", objectives.extreme("h", softness=0.1 * depth, **lead), "minimise", energy),
                )[k]
            name, objective, sense, options = chosen
            feasible = Feasible(model.spec, states[j : j + 1], equation=solver, **options)
            ds = every.isel(time=[j])
            yield Task(name, ds, states[j], objective, sense, LEAD, options, feasible, solver, fno, model)


def designed(task: Task, reference: xr.Dataset, seed: int, **options: Any) -> xr.Dataset:
    return task.model.design(
        task.ds, task.objective, LEAD, sense=task.sense, seed=seed, reference=reference, progress=False, over="latent",
        mode="mean", checkpoint=False, iterations=ITERATIONS, predicted=19, compare=("fast",) if quick() else None,
        **task.options, **options,
    )  # fmt: skip


def judged(task: Task, reference: xr.Dataset, seed: int, against: bool, **options: Any) -> dict[str, Any]:
    """One design and, if wanted, the other searches from its start: what the solver makes of each, JSON-safe."""
    begin = time.process_time()
    out = designed(task, reference, seed, **options)
    spent = float(out["seconds_by_run"][-1] if "seconds_by_run" in out else out["seconds"][-1])
    given = task.score(task.start)
    best = torch.stack([torch.from_numpy(out[n].values[-1]) for n in task.model.spec.names])
    achieved = {"lapse": task.score(best)}
    if against:
        achieved |= {name: task.score(search(task, spent, seed)) for name, search in SEARCHES.items()}
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


def calibrated(flow: str, model: Model, fno: Run, folder: Path) -> float:
    """How much wider intervals must be: from verified designs, of other starts than those that are judged."""
    states = states_of(flow, model, 3 * VERIFIED, seed=2025)
    every, found = frames_of(states, model), []
    for seed, task in enumerate(tasks(flow, model, states, fno, VERIFIED, seed=1)):
        path = folder / f"verified-{seed}.nc"
        if quick() or not path.is_file():
            out = designed(task, every, 1000 + seed, verify="solver")
            out[["achieved", "interval_by_mode"]].to_netcdf(path)
        found.append(xr.load_dataset(path))
    return widening(found)


def run(flow: str, fno_minutes: float | None) -> None:
    """All designs of a flow, and its record."""
    begin = time.process_time()
    model, own = trained(flow), MINUTES[flow]
    minutes = 0.02 if quick() else fno_minutes or own
    fno = operator(flow, minutes, model.spec.grid.shape[0])
    states = states_of(flow, model, 8 if quick() else 3 * STARTS[flow])
    spent = time.process_time() - begin
    folder, found = WORK / f"{flow}-{model.weights_hash[:8]}-{LEAD}-{ITERATIONS}-{minutes:g}", []
    folder.mkdir(parents=True, exist_ok=True)
    every, repaired = frames_of(states, model), []

    def kept(name: str, task: Task, seed: int, **options: Any) -> dict[str, Any]:
        path = folder / f"{name}.json"
        if quick() or not path.is_file():
            result = judged(task, every, seed, seed // 3 < COMPARED, **options)
            path.write_text(json.dumps(result, indent=1))
            print(name, task.name, {k: round(v, 3) for k, v in result["gains"].items()}, flush=True)
        out: dict[str, Any] = json.loads(path.read_text())
        return out

    for seed, task in enumerate(tasks(flow, model, states, fno, STARTS[flow])):
        found.append(kept(f"{seed}", task, seed))
        if seed // 3 < COMPARED:
            repaired.append(kept(f"repaired-{REPAIRS}-{seed}", task, seed, verify="solver", repairs=REPAIRS))
    factor = calibrated(flow, model, fno, folder)
    for f in found:
        f["widened"] = widened(f["interval"], factor)
    label = {"kolmogorov": "", "shallow_water": ", shallow water"}[flow]
    out = [
        *gains(found, label, minutes >= own),
        *gains(repaired, f", repaired{label}", minutes >= own),
        *rows(found, label),
        Row(f"2.2 widening of intervals, from {3 * VERIFIED} verified designs{label}", factor, None, None, "times"),
        *(memory(model, states[0]) if flow == "kolmogorov" else ()),
        Row(f"2.2 training of the model of lapse{label}", own, None, None, "CPU min"),
        Row(f"2.2 training of the fno{label}", minutes, None, None, "CPU min"),
    ]  # fmt: skip
    note = (
        f"{flow}: {len(found)} designs at lead {LEAD}; of each objective {COMPARED} starts against the other searches, "
        "at equal processor time"
    )
    path = record("design", out, (spent + sum(f["seconds"] for f in [*found, *repaired])) / 60, note, stage=flow)
    show(out, path)


SOUGHT = {  # flows at other parameters, and the ranges that they are sought in
    "forcing": ({"forcing": 1.4}, {"forcing": (0.5, 2.0)}),
    "drag": ({"drag": 0.25}, {"drag": (0.05, 0.4)}),
    "viscosity": ({"viscosity": 0.018}, {"viscosity": (0.008, 0.03)}),
    "forcing and drag": ({"forcing": 1.3, "drag": 0.2}, {"forcing": (0.5, 2.0), "drag": (0.05, 0.4)}),
}


def tuned() -> None:
    """Parameters of a flow from how it looks at the last lead."""
    begin, out = time.perf_counter(), []
    model = lapse.load("kolmogorov64")
    flow = xr.open_zarr(data("kolmogorov"))
    starts = [flow.isel(trajectory=-1 - k, time=slice(-3, -1)).load() for k in range(1 if quick() else 3)]
    for name, (true, ranges) in list(SOUGHT.items())[: 1 if quick() else None]:
        errors, likeness, seconds = [], [], []
        for ds in starts:
            target = model.at(**true).solve(ds, LEAD).isel(init_time=0, lead_time=-1, drop=True)
            spent = time.process_time()
            best = model.design(
                ds, objectives.similarity(target, lead=LEAD), LEAD, sense="maximise", over="parameters", bounds=ranges,
                mode="mean", iterations=ITERATIONS, predicted=19, compare=(), verify="solver", progress=False,
            )  # fmt: skip
            seconds.append(time.process_time() - spent)
            found = dict(best["parameters"].to_series())
            errors += [abs(found[p] / v - 1) for p, v in true.items()]
            likeness.append((float(best["achieved_given"]), float(best["achieved"])))
            print(name, found, likeness[-1], flush=True)
        given, achieved = (list(x) for x in zip(*likeness, strict=True))
        mean, what = float(np.mean(errors)), f"2.2 {name} of another flow, from one frame at lead {LEAD}"
        out += [
            Row(f"{what}: error of what was found", mean, _range(errors), None, "relative"),
            Row(f"{what}: likeness by the solver, found", float(np.mean(achieved)), _range(achieved), None, "1"),
            Row(f"{what}: likeness by the solver, given", float(np.mean(given)), _range(given), None, "1"),
            Row(f"{what}: processor time", float(np.mean(seconds)), _range(seconds), None, "s"),
        ]
    show(out, record("design", out, (time.perf_counter() - begin) / 60, (), stage="parameters"))


def many() -> None:
    """Samples of the initial conditions that end in a large mean vorticity of a box."""
    begin = time.perf_counter()
    model = lapse.load("kolmogorov64")
    ds = xr.open_zarr(data("kolmogorov")).isel(trajectory=-1, time=slice(-3, -1)).load()
    box = objectives.region_mean("vorticity", lead=LEAD, x=slice(1.0, 2.0), y=slice(3.0, 4.0))
    count, spent = 2 if quick() else 8, time.process_time()
    found = model.designs(ds, box, LEAD, sense="maximise", samples=count, iterations=4 if quick() else 60, mode="mean",
                          verify="solver", progress=False)  # fmt: skip
    seconds = (time.process_time() - spent) / count
    sigma = 3 * found.attrs["temperature"]
    usual, good, achieved = (found[n].values for n in ("objective_by_iteration", "objective", "achieved"))
    spread = float(found["vorticity"].std("member").mean()) / float(model.spec["vorticity"].std or 1.0)
    what = "2.2 many designs of box"
    out = [
        Row(f"{what}: achieved by the solver, above draws of the climate",
            float(achieved.mean() - usual[:, 0].mean()) / sigma, None, None, "standard deviations of the climate"),
        Row(f"{what}: achieved by the solver", float(achieved.mean()), _range(list(achieved)), None, "s-1"),
        Row(f"{what}: objective of draws of the climate", float(usual[:, 0].mean()), _range(list(usual[:, 0])), None,
            "s-1"),
        Row(f"{what}: gap, objective to achieved", float(np.abs(good - achieved).mean()), None, None, "s-1"),
        Row(f"{what}: spread among the initial conditions", spread, None, None, "of the climate's standard deviation"),
        Row(f"{what}: acceptance", float(found["acceptance"].mean()), _range(list(found["acceptance"].values)), None,
            "1"),
        Row(f"{what}: processor time of a sample", seconds, None, None, "s"),
    ]  # fmt: skip
    show(out, record("design", out, (time.perf_counter() - begin) / 60, (), stage="many"))


def certified() -> None:
    """Searches within the training data's bounds that nothing else holds, or the wall around known states, or the
    certificate as a stopping rule.
    """
    begin = time.perf_counter()
    model, count = lapse.load("kolmogorov64"), 2 if quick() else 8
    every = xr.open_zarr(data("kolmogorov")).isel(time=slice(-3, -1)).load()
    reference = every.isel(trajectory=slice(-16, -8))
    box = objectives.region_mean("vorticity", lead=LEAD, x=slice(1.0, 2.0), y=slice(3.0, 4.0))
    ways: dict[str, dict[str, Any]] = {
        "held by nothing": {"prior": 0.0}, "held by the wall": {"reference": reference},
        "certified": {"prior": 0.0, "certify": True},
    }  # fmt: skip
    out = []
    for what, options in ways.items():
        kept = [
            model.design(
                every.isel(trajectory=-1 - k), box, LEAD, sense="maximise", mode="fast", members=4, predicted=32,
                iterations=3 if quick() else 30, compare=("fast",), verify="solver", progress=False, **options,
            )
            for k in range(count)
        ]  # fmt: skip
        predicted, given, achieved, before = (
            np.array([float(d[n]) for d in kept])
            for n in ("predicted_objective", "predicted_objective_given", "achieved", "achieved_given")
        )
        there = np.isfinite(achieved)
        figures = {
            "from the given states, by the solver": (before, "s-1"),
            "predicted": (predicted, "s-1"),
            "the solver stays finite": (there.astype(float), "share"),
            "achieved by the solver": (achieved[there], "s-1"),
            "gap over the predicted gain": ((np.abs(predicted - achieved) / np.abs(predicted - given))[there], "1"),
            "certified share of the design's forecast": (np.array([model_share(model, d) for d in kept]), "1"),
            "steps": (np.array([accepted(d) for d in kept]), "1"),
            "processor time of the search": (np.array([float(d["seconds"][-1]) for d in kept]), "s"),
        }
        for name, (values, unit) in figures.items():
            if len(values):
                value, span = float(values.mean()), _range(values.tolist())
                out.append(Row(f"2.2 box, {what}: {name}", value, span, None, unit))
    show(out, record("design", out, (time.perf_counter() - begin) / 60, (), stage="certified"))


def accepted(design: xr.Dataset) -> float:
    """Steps of the search, without the one that ended it."""
    ended = "certified" in design and bool(design["certified"][-1] < design["certified"].attrs["limit"])
    return float(design.sizes["iteration"] - 1 - ended)


def model_share(model: Model, design: xr.Dataset) -> float:
    """The share of certified frames of the forecast from a design, by members that took no part in the search."""
    return float(model.forecast(design, LEAD, 8, seed=1, certify=True, progress=False)["certified"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--fno-minutes", type=float, help="processor minutes that the operator is trained for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    own = {"parameters": tuned, "many": many, "certified": certified}
    for stage in options.only:
        own.get(stage, partial(run, stage, options.fno_minutes))()


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


def gains(found: list[dict[str, Any]], label: str, fair: bool) -> list[Row]:
    """Gains by objective and search; the operator's target is for ``fair`` training, as long as lapse's model had."""
    out = []
    units = {"pattern": "1", "surge": "m", "crest": "m"}
    for objective in dict.fromkeys(f["objective"] for f in found):
        own, what = [f for f in found if f["objective"] == objective], f"{objective}{label}"
        for name in ("lapse", *SEARCHES):
            pairs = [(f["gains"]["lapse"], f["gains"][name]) for f in own if name in f["gains"]]
            ours, theirs = (list(x) for x in zip(*pairs, strict=True))
            unit = units.get(objective, "s-1")
            out.append(Row(f"2.2 {what}: gain of {name}", float(np.mean(theirs)), _range(theirs), None, unit))
            if name != "lapse":
                ratio, each = times(float(np.mean(ours)), float(np.mean(theirs))), [times(a, b) for a, b in pairs]
                check = f"2.2 {what}: gain, lapse / {name}"
                target = TARGETS.get(name) if fair or name != "fno" else None
                out.append(Row(check, ratio, _range(each), target, "ratio"))
    seconds = [f["search"] for f in found]
    mean = float(np.mean(seconds))
    return [*out, Row(f"2.2 processor time of a search{label}", mean, _range(seconds), None, "s")]


def rows(found: list[dict[str, Any]], label: str) -> list[Row]:
    """What holds of all designs."""
    out = []
    kinds = {"widened": "the widened", "interval": "the hull of all modes'", "fast": "the fast mode's"}
    for key, whose in kinds.items():
        hits = float(np.mean([f[key][0] <= f["achieved"]["lapse"] <= f[key][1] for f in found]))
        check = f"2.2 designs with the achieved value in {whose} 90 % interval{label}"
        out.append(Row(check, hits, None, ">= 0.8" if key == "widened" else None, f"share of {len(found)}"))
    widths = [abs(f["widened"][1] - f["widened"][0]) / abs(f["gains"]["lapse"]) for f in found]
    gaps, breaches = ([f[k] for f in found] for k in ("gap", "violation"))
    doubted = float(np.mean([bool(f["doubts"]) for f in found]))
    gap = f"2.2 gap, predicted to achieved / predicted gain{label}"
    return [
        *out,
        Row(f"2.2 width of the widened interval / achieved gain{label}", float(np.median(widths)), _range(widths), None,
            "ratio"),
        Row(gap, float(np.median(gaps)), _range(gaps), None, "ratio"),
        Row(f"2.2 designs with a warning of exploitation{label}", doubted, None, None, "share"),
        Row(f"2.2 largest violation of constraints{label}", max(breaches), _range(breaches), "<= 1e-6", "1"),
    ]  # fmt: skip


def times(ours: float, theirs: float, most: float = 99.0) -> float:
    """Gain over gain, at most ``most``: which stands for the opponents that found nothing, or harm."""
    if theirs <= 0:
        return most if ours > 0 else 0.0
    return min(ours / theirs, most)


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


if __name__ == "__main__":
    main()
