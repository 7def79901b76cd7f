"""Corrections of forecasts, physics that shifts, the residual operator and the certificate, on Kolmogorov flow at 64².

    python benchmarks/residual.py [--only correction shift certificate certificate-corrected operator] [--minutes 2.5]

The model is a mean net on a linear code of eight channels a patch (2.85 and 0.15 CPU minutes); its ensemble comes from
uncertain analyses, as in `benchmarks/forecast.py`. The residual operator starts from the mean net and trains for
``--minutes``, its labels included, and so does a second mean net, its opponent: the same net and budget, trained on as
before. It corrects the mean net, and samples of a generator on its residual (two minutes). Settings were chosen on
validation trajectories, the figures are from test trajectories and from runs of the solver at other parameters. The
residual is that of decoded neighbours in the projection of the correction, over the projected field; "floor" is the
same of encoded and decoded truth.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import contenders
import numpy as np
import torch
from torch import Tensor

from lapse.autoencoder.model import Latent
from lapse.datasets.datamodule import FieldData
from lapse.datasets.fields import to_tensor
from lapse.datasets.open import open_dataset
from lapse.datasets.simulate import simulate
from lapse.physics.equation import Equation
from lapse.physics.spectrum import band_power
from lapse.surrogate.audit import Audit
from lapse.surrogate.certificate import Certificate, calibrate
from lapse.surrogate.emulator import Emulator, Mode
from lapse.surrogate.gate import next_errors
from lapse.surrogate.law import law
from lapse.surrogate.metrics import fair_crps, spread_factor
from lapse.surrogate.model import Model
from lapse.surrogate.skill import starts
from lapse.surrogate.stages import run_stage
from lapse.surrogate.state import State
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import ROOT, Row, quick, record, show

WORK = ROOT / "benchmarks" / "work" / "residual"
MINUTES = {"autoencoder": 0.15, "mean": 2.85}
GENERATOR = 2.0  # minutes of the generator on the mean net's residual, where the operator corrects samples
LEADS = (1, 5, 10, 20)
ERROR = 0.05  # of uncertain analyses, in climatological standard deviations
OTHERS: dict[str, dict[str, float]] = {"forcing × 1.5": {"forcing": 1.5}, "viscosity × 0.7": {"viscosity": 0.7}}
Figures = dict[int, dict[str, float]]


@dataclass
class Bench:
    """The model, its data, and what every figure needs."""

    emulator: Emulator
    data: FieldData
    known: Equation

    def other(self, change: dict[str, float]) -> Equation:
        """The equation with a parameter multiplied."""
        own = self.emulator.autoencoder.spec.parameters
        return law(self.emulator.autoencoder.spec, {k: own[k] * v for k, v in change.items()})


def trained(minutes: float, operator: bool, more: bool) -> Bench:
    """Train what is not trained yet; ``more``: the mean net goes on for ``minutes``, in place of the operator."""
    path, size = contenders.prepare(64, WORK)
    # Eight channels lose little and leave something to correct.
    overrides = [o for o in contenders.settings(size, path, "lapse-fast") if not o.startswith("emulator.parts")]
    parts = f"emulator.parts=[mean,{'generator,' if operator or more else ''}correction,operator]"
    config = compose([*overrides, "autoencoder.latent_channels=8", parts, "seed=0"])
    torch.manual_seed(0)
    data = field_data(config)
    emulator = new_emulator(config, data)
    quickly = {"steps": 4, "cpu_minutes": None}
    folder = WORK / ("quick" if quick() else "64")

    def stage(name: str, place: str, **options: Any) -> None:
        chosen = {**config["training"][name], "steps": 10**7, **options, **(quickly if quick() else {})}
        summary = run_stage(
            name, emulator, chosen, data, folder / place, {**config["trainer"], "enable_progress_bar": False},
            shift=shifts(config, data.spec)(0), seed=0, ema=config["training"]["ema"], every=100,
        )  # fmt: skip
        print(f"{place}: {summary['steps']} steps", flush=True)

    for name, budget in MINUTES.items():
        stage(name, name, cpu_minutes=budget)
    if operator or more:
        stage("generator", "generator", cpu_minutes=GENERATOR)
    stage("correction", "correction")
    if more:
        stage("mean", f"mean-{minutes:g}", cpu_minutes=minutes, lr=1e-3, unroll=[[0.0, 4]])
    if operator:
        stage("operator", f"operator-{minutes:g}", cpu_minutes=minutes)
    return Bench(emulator.eval().requires_grad_(False), data, law(data.spec))


def uncertain(data: FieldData, u: Tensor, members: int) -> Tensor:
    """Analyses ``(N·members, C, *space)``: centre and members displaced by scaled differences of training states."""
    picker = torch.Generator().manual_seed(1)
    pool, _ = starts(data, "train", 1, 400)
    found = []
    for x in u:
        pairs = torch.randint(len(pool), (members + 1, 2), generator=picker)
        draws = ERROR * (pool[pairs[:, 0], 0] - pool[pairs[:, 1], 0]) / 2**0.5
        found.append(x + draws[:1] + draws[1:])
    return torch.cat(found)


def projected(emulator: Emulator, u: Tensor) -> Tensor:
    seen: Tensor = emulator.part("correction").project(emulator.autoencoder, u)
    return seen


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@torch.no_grad()
def evaluate(
    bench: Bench, u: Tensor, known: Equation, first: Tensor, leads: Sequence[int], mode: Mode = "mean"
) -> dict[str, Any]:
    """Scores against ``u (N, 1 + leads, C, *space)`` of forecasts from analyses ``first (N·members, C, *space)``."""
    emulator, data = bench.emulator, bench.data
    n, members = len(u), len(first) // len(u)
    truth = data.normaliser(u.flatten(0, 1)).reshape(u.shape)
    sigma = rms(truth)
    state, spent, found = emulator.encode(first[:, None]), 0.0, {}
    bands: list[float] = []
    random, size = torch.Generator().manual_seed(7), emulator.noise_size(mode)
    for k in range(1, max(leads) + 1):
        before, noise = state, torch.randn(len(first), size, generator=random) if size else None
        begin = time.process_time()
        state = emulator.advance(before, noise, None, mode)
        spent += time.process_time() - begin
        if k not in leads:
            continue
        decoded = emulator.decode(state)
        seen = projected(emulator, decoded)
        r = seen - projected(emulator, known.advance(emulator.decode(before), data.spec.interval))
        x, y = data.normaliser(decoded).reshape(n, members, *u.shape[2:]), truth[:, k]
        found[k] = {"residual": rms(r) / rms(seen), **scores_of(x, y, sigma)}
        power = [band_power(v[:, 0], data.spec.grid).mean(dim=0) for v in (x.flatten(0, 1), y)]
        bands = (power[0] / power[1]).tolist()
    return {"leads": found, "bands": bands, "ms": 1e3 * spent / (len(first) * max(leads))}


@torch.no_grad()
def floor(bench: Bench, u: Tensor, known: Equation) -> float:
    """The residual of encoded and decoded truth."""
    emulator = bench.emulator
    pair = [emulator.decode(emulator.encode(u[:, i : i + 1])) for i in (0, 1)]
    seen = projected(emulator, pair[1])
    return rms(seen - projected(emulator, known.advance(pair[0], bench.data.spec.interval))) / rms(seen)


@torch.no_grad()
def perfect(bench: Bench, u: Tensor, first: Tensor, leads: Sequence[int]) -> Figures:
    """Scores of the ensemble that the solver itself makes of the same analyses: no forecast can do better."""
    sigma, found = rms(bench.data.normaliser(u.flatten(0, 1))), {}
    for k in range(1, max(leads) + 1):
        first = bench.known.advance(first, bench.data.spec.interval)
        if k in leads:
            x, y = bench.data.normaliser(first).reshape(len(u), -1, *u.shape[2:]), bench.data.normaliser(u[:, k])
            found[k] = scores_of(x, y, sigma)
    return found


def scores_of(x: Tensor, y: Tensor, sigma: float) -> dict[str, float]:
    """Of ensembles ``x (N, members, C, *space)`` against ``y (N, C, *space)``, normalised."""
    error = float((x.mean(dim=1) - y).square().mean())
    members = x.shape[1]
    spread = float(x.var(dim=1).mean()) if members > 1 else 0.0
    crps = float(np.mean([fair_crps(a.numpy(), b.numpy()).mean() for a, b in zip(x, y, strict=True)]))
    ratio = (spread_factor(members) * spread / error) ** 0.5 if members > 1 else float("nan")
    return {"rmse": error**0.5 / sigma, "crps": crps / sigma, "spread/skill": ratio}


def told(name: str, found: dict[str, Any], quantities: Sequence[str]) -> list[Row]:
    """Rows of the figures by lead."""
    units = {"residual": "of the field", "spread/skill": "ratio"}
    return [
        Row(f"{name}: {q}, lead {k}", figures[q], None, None, units.get(q, "σ"))
        for q in quantities
        for k, figures in found["leads"].items()
    ]


def ratio(rows: list[Row], check: str, a: float, b: float, target: str | None) -> None:
    rows.append(Row(check, a / b, None, target, "ratio"))


def correction(bench: Bench) -> list[Row]:
    """The kill test: does it help to move each frame towards the solver, seen through the code?"""
    emulator, data = bench.emulator, bench.data
    leads = LEADS if not quick() else (1, 2)
    u, _ = starts(data, "test", 1 + max(leads), 2 if quick() else 12)
    base = floor(bench, u, bench.known)
    rows = [Row("3.5 floor of the residual: encoded truth", base, None, None, "of the field")]
    for case, first in (("clean", u[:, 0]), ("uncertain", uncertain(data, u[:, 0], 4 if quick() else 8))):
        scores = {}
        for name, corrector in (("none", None), ("solver", bench.known)):
            emulator.corrector = corrector
            scores[name] = evaluate(bench, u, bench.known, first, leads)
            quantities = ["residual", "rmse", "crps", *(["spread/skill"] if case == "uncertain" else [])]
            rows += told(f"3.5 {case}, corrected by {name}", scores[name], quantities)
        emulator.corrector = None
        last, none, solver = max(leads), scores["none"]["leads"], scores["solver"]["leads"]
        where = f"corrected by the solver / uncorrected, {case}, lead {last}"
        ratio(rows, f"3.7 excess residual, {where}", solver[last]["residual"] - base, none[last]["residual"] - base,
              "<= 0.5")  # fmt: skip
        ratio(rows, f"3.7 crps, {where}", solver[last]["crps"], none[last]["crps"], "<= 0.8")
        ratio(rows, f"3.7 rmse, {where}", solver[last]["rmse"], none[last]["rmse"], None)
        if case == "uncertain":
            ideal = perfect(bench, u, first, leads)
            for q in ("crps", "rmse"):
                check = f"3.7 {q}, the solver itself / uncorrected, uncertain, lead {last}"
                ratio(rows, check, ideal[last][q], none[last][q], None)
            for who, by_lead, target in (("corrected by", solver, "0.85..1.15"), ("of", ideal, None)):
                skill = [f["spread/skill"] for f in by_lead.values()]
                worst = max(skill, key=lambda v: abs(np.log(v)))
                check, span = f"3.5 spread/skill, {who} the solver, worst lead", (min(skill), max(skill))
                rows.append(Row(check, worst, span, target, "ratio"))
        change = abs(scores["solver"]["bands"][-1] - 1)
        rows.append(Row(f"3.5 top band, corrected by the solver, over the truth's, {case}", change, None, "<= 0.05",
                        "change"))  # fmt: skip
        ratio(rows, f"3.5 time of a frame, corrected by the solver / uncorrected, {case}", scores["solver"]["ms"],
              scores["none"]["ms"], None)  # fmt: skip
    return rows


def shift(bench: Bench) -> list[Row]:
    """Physics that the networks never saw."""
    emulator, data, rows = bench.emulator, bench.data, []
    leads = (1, 5, 10) if not quick() else (1, 2)
    for name, change in OTHERS.items():
        wanted = bench.other(change)
        u = [wanted.spin_up(torch.Generator().manual_seed(5), 2 if quick() else 8, 2.0 if quick() else 16.0)]
        for _ in range(max(leads)):
            u.append(wanted.advance(u[-1], data.spec.interval))
        w, last, scores = torch.stack(u, dim=1), max(leads), {}
        rows.append(Row(f"3.5 {name}: floor of the residual", floor(bench, w, wanted), None, None, "of the field"))
        for how in ("none", "effect", "solver"):
            emulator.laws = (bench.known, wanted) if how == "effect" else None
            emulator.corrector = wanted if how == "solver" else None
            scores[how] = evaluate(bench, w, wanted, w[:, 0], leads)
            rows += told(f"3.5 {name}, {how}", scores[how], ["residual", "rmse", "crps"])
        emulator.laws = emulator.corrector = None
        for how in ("effect", "solver"):
            for q in ("rmse", "crps"):
                a, b = (scores[h]["leads"][last][q] for h in (how, "none"))
                ratio(rows, f"3.5 shifted {name}: {q} by {how} / uncorrected, lead {last}", a, b, "<= 0.45")
            away = max(abs(b - 1) for b in scores[how]["bands"])
            rows.append(Row(f"3.5 shifted {name}: largest change of a band, {how}, lead {last}", away, None, "<= 0.1",
                            "change"))  # fmt: skip
    return rows


def own_runs(bench: Bench) -> tuple[Tensor, Tensor]:
    """Pairs of frames ``(N, 2, C, *space)`` to calibrate by, and states ``(N, C, *space)`` to judge.

    Coverage to two points wants hundreds of starts that know nothing of each other, which eight trajectories of the
    validation split do not hold. So the law runs 128 more, and states are taken 4 s apart, when a flow has forgotten
    itself: those of one half of the runs calibrate, those of the other are judged.
    """
    runs, frames = (8, 6) if quick() else (128, 9)
    grid, spec = bench.known.grid, bench.data.spec
    path = WORK / f"fresh-{runs}-{grid.shape[0]}.zarr"
    simulate(bench.known, path, trajectories=runs, frames=frames, interval=4.0, spin_up=2.0 if quick() else 20.0,
             seed=11, shard=8, batch=8, resume=True, progress=False)  # fmt: skip
    u = to_tensor(open_dataset(path).load(), spec)  # (run, frame, C, *space)
    held, fresh = u[: runs // 2].flatten(0, 1), u[runs // 2 :].flatten(0, 1)
    return torch.stack([held, bench.known.advance(held, spec.interval)], dim=1), fresh


def certificate(bench: Bench, corrector: Equation | None = None) -> list[Row]:
    """Coverage, sharpness, and what becomes of other physics; with or without the solver's correction."""
    emulator, data, rows = bench.emulator, bench.data, []
    leads, sigma = (3 if quick() else 20), data.normaliser.std
    model = Model(emulator, "bench", {})
    held, fresh = own_runs(bench)
    emulator.corrector, name = corrector, "uncorrected" if corrector is None else "corrected by the solver"
    bounds = calibrate(model, held, leads=leads, mode="mean")
    r = residuals(bench, fresh, Audit(data.spec, sigma), leads)
    inside = r <= bounds.of(bounds.bounds, leads)
    for (a, b), bound in zip(pairwise(bounds.edges), bounds.bounds, strict=True):
        where = f"leads {a} to {b - 1}, {name}"
        part = r[:, a - 1 : b - 1]
        holds = float(inside[:, a - 1 : b - 1].mean())
        rows.append(Row(f"3.6 90 % bound holds, {where}", holds, None, "0.88..0.94", "share"))
        sharp = float(np.median(bound / part))
        rows.append(Row(f"3.6 bound / residual, median, {where}", sharp, None, "<= 1.5", "ratio"))
    rows.append(Row(f"3.6 certified in the climate of training, {name}", verdict(bounds, r), None, None, "share"))
    rows.append(Row(f"3.6 residual of encoded truth, {name}", bounds.floor, None, None, "of the field"))
    rows.append(Row(f"3.6 median residual, last leads, {name}", bounds.medians[-1], None, None, "of the field"))
    for shifted, change in OTHERS.items():
        wanted = bench.other(change)
        u = wanted.spin_up(torch.Generator().manual_seed(6), 2 if quick() else 8, 2.0 if quick() else 16.0)
        r = residuals(bench, u, Audit(data.spec, sigma, wanted.parameters), leads)
        rows.append(Row(f"3.6 certified at {shifted}, {name}", verdict(bounds, r), None, "<= 0.1", "share"))
    emulator.corrector = None
    return rows


def certificate_corrected(bench: Bench) -> list[Row]:
    """The same of forecasts that the solver corrects."""
    return certificate(bench, bench.known)


def verdict(bounds: Certificate, r: np.ndarray) -> float:
    return float(bounds.judge(r, np.ones(r.shape, np.bool_)).mean())


@torch.no_grad()
def residuals(bench: Bench, u: Tensor, audit: Audit, leads: int) -> np.ndarray:
    """Residuals ``(N, leads)`` of decoded forecasts from ``u (N, C, *space)``."""
    state, before, found = bench.emulator.encode(u[:, None]), u, []
    for _ in range(leads):
        state = bench.emulator.advance(state, None, None, "mean")
        after = bench.emulator.decode(state)
        found.append(audit.residual(before, after))
        before = after
    return torch.stack(found, dim=1).numpy()


def operator(bench: Bench, opponent: Bench, minutes: float) -> list[Row]:
    """R_φ against the truth about the residual, the solver's correction, and a mean net of equal size and budget."""
    emulator, data = bench.emulator, bench.data
    leads = LEADS if not quick() else (1, 2)
    u, _ = starts(data, "test", 1 + max(leads), 2 if quick() else 12)
    label = f"{minutes:g} CPU min"
    rows = [
        Row(f"3.5 error of the next frame: {name}, {label}", value, None, None, "of the field")
        for name, value in next_errors(emulator, bench.known, u[:, :2], "mean").items()
    ]
    value = next_errors(opponent.emulator, bench.known, u[:, :2], "mean")["model"]
    rows.append(Row(f"3.5 error of the next frame: mean net trained on, {label}", value, None, None, "of the field"))
    rows += readings(bench, u, label)
    scores: dict[str, dict[str, Any]] = {}
    members = 2 if quick() else 4
    several = u[:, 0].repeat_interleave(members, dim=0)
    for mode, first in (("mean", u[:, 0]), ("quality", several)):
        for name, corrector in (("none", None), ("solver", bench.known), ("operator", "operator")):
            emulator.corrector = corrector
            scores[f"{mode}, {name}"] = evaluate(bench, u, bench.known, first, leads, mode)
    steps, emulator.sampling_steps = emulator.sampling_steps, 1
    scores["quality in one step, operator"] = evaluate(bench, u, bench.known, several, leads, "quality")
    emulator.sampling_steps, emulator.corrector = steps, None
    scores["mean net trained on, none"] = evaluate(opponent, u, bench.known, u[:, 0], leads)
    plain = emulator.mean
    emulator.mean = emulator.part("operator").net
    scores["operator's net as the mean net"] = evaluate(bench, u, bench.known, u[:, 0], leads)
    emulator.mean = plain
    for name, found in scores.items():
        quantities = ["residual", "rmse", "crps", *(["spread/skill"] if name.startswith("quality") else [])]
        rows += told(f"3.5 operator study, {label}, {name}", found, quantities)
        rows.append(Row(f"3.5 operator study, {label}, {name}: time of a frame", found["ms"], None, None, "ms"))
    base, last = floor(bench, u, bench.known), max(leads)
    for mode in ("mean", "quality"):
        none, learned, solver = (scores[f"{mode}, {name}"] for name in ("none", "operator", "solver"))
        for q in ("residual", "rmse", "crps"):
            kept = []
            for k in leads:
                a, b, c = (s["leads"][k][q] for s in (none, learned, solver))
                kept.append((a - b) / (a - max(c, base) if q == "residual" else a - c))
            rows.append(Row(f"3.5 share of the solver's gain that the operator keeps, {q}, least of all leads, {mode}, "
                            f"{label}", min(kept), (min(kept), max(kept)), ">= 0.75", "share"))  # fmt: skip
        target = "<= 1.2" if mode == "quality" else None
        ratio(rows, f"3.5 time of a frame, operator / uncorrected, {mode}, {label}", learned["ms"], none["ms"], target)
        ratio(rows, f"3.5 time added, operator / solver, {mode}, {label}", learned["ms"] - none["ms"],
              solver["ms"] - none["ms"], "<= 0.1")  # fmt: skip
        change = abs(learned["bands"][-1] - 1)
        rows.append(Row(f"3.5 top band, corrected by the operator, over the truth's, {mode}, {label}", change, None,
                        "<= 0.05", "change"))  # fmt: skip
    once, eight = scores["quality in one step, operator"], scores["quality, none"]
    where = f"one step with the operator / {steps} steps without, {label}"
    ratio(rows, f"3.5 crps, {where}, lead {last}", once["leads"][last]["crps"], eight["leads"][last]["crps"], "< 1")
    ratio(rows, f"3.5 time of a frame, {where}", once["ms"], eight["ms"], "<= 0.35")
    for q in ("rmse", "crps"):
        a, b = (scores[n]["leads"][last][q] for n in ("mean, operator", "mean net trained on, none"))
        check = f"3.5 {q}, corrected by the operator / mean net trained on as long, lead {last}, {label}"
        ratio(rows, check, a, b, None)
    return rows


@torch.no_grad()
def readings(bench: Bench, u: Tensor, label: str) -> list[Row]:
    """R_φ against the true residual: ranks of the norms, cosine of the gradients A*R."""
    emulator, data = bench.emulator, bench.data
    operator, projection = emulator.part("operator"), emulator.part("correction")
    autoencoder, generator = emulator.autoencoder, torch.Generator().manual_seed(3)
    first = emulator.encode(u[:, :1])
    second = emulator.encode(u[:, 1:2]).z[:, -1]
    expected = emulator.expect(first)
    forecast = emulator.free(first, None, None, "mean").z[:, -1]
    noise = torch.randn(second.shape, generator=generator)
    steady = first.z[:, -1]
    pairs = {
        "encoded": second, "forecast": forecast, "noise 0.03": second + 0.03 * noise, "noise": second + 0.1 * noise,
        "halfway": (second + forecast) / 2, "operator's own": expected, "persistence": steady,
        "shuffled": second.roll(1, 0), "adversarial": second - (forecast - second),
    }  # fmt: skip
    truth = projected(emulator, bench.known.advance(emulator.decode(first), data.spec.interval))
    own = projected(emulator, autoencoder.decode(Latent(expected, first.carried))) - truth
    norms: list[tuple[float, float]] = []
    cosines: list[float] = []
    for z in pairs.values():
        true = projected(emulator, autoencoder.decode(Latent(z, first.carried))) - truth
        read = operator.read(autoencoder, projection, expected, z, first.carried)
        gradients = [_pulled(emulator, first, r) for r in (true, read)]
        for i in range(len(z)):
            norms.append((rms(true[i]), rms(read[i])))
            if rms(true[i]) > 1.5 * rms(own[i]):
                cosines.append(float(torch.cosine_similarity(*(g[i].flatten() for g in gradients), dim=0)))
    ranks = [np.argsort(np.argsort(x)) for x in np.array(norms).T]
    spearman = float(np.corrcoef(*ranks)[0, 1])
    return [
        Row(f"3.5 spearman of R_phi's norm with the true one, {label}", spearman, None, ">= 0.9", "correlation"),
        Row(f"3.5 cosine of gradients, median where the residual is above 1.5 R_phi's error, {label}",
            float(np.median(cosines)) if cosines else float("nan"), None, ">= 0.9", "cosine"),
    ]  # fmt: skip


def _pulled(emulator: Emulator, state: State, r: Tensor) -> Tensor:
    """A*r: the gradient of ½|R|² with respect to z₁, where R is r."""
    with torch.enable_grad():
        z = state.z[:, -1].clone().requires_grad_(True)
        seen = projected(emulator, emulator.autoencoder.decode(Latent(z, state.carried)))
        (found,) = torch.autograd.grad((seen * r).sum(), z)
    return found


STAGES: dict[str, Callable[[Bench], list[Row]]] = {
    "correction": correction,
    "shift": shift,
    "certificate": certificate,
    "certificate-corrected": certificate_corrected,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*STAGES, "operator"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=2.5, help="of the operator and of its opponent (default 2.5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        begin = time.process_time()
        bench = trained(options.minutes, name == "operator", False)
        if name == "operator":
            rows = operator(bench, trained(options.minutes, False, True), options.minutes)
        else:
            rows = STAGES[name](bench)
        spent = (time.process_time() - begin) / 60
        label = name if name != "operator" else f"operator-{options.minutes:g}"
        note = "One seed. Milliseconds and minutes are processor time on a shared machine."
        show(rows, record("residual", rows, spent, note, stage=label))


if __name__ == "__main__":
    main()
