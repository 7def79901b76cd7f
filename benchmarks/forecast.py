"""Chaotic flow: every contender at equal training time, on the same data, judged by the same scores.

    python benchmarks/forecast.py [--size 64] [--minutes 20] [--seeds 0] [--only NAME …]

The contenders of `contenders.py` train for the same processor time. A contender and seed is a stage: it is trained and
scored once, and its scores are kept in ``benchmarks/results/forecast``, with what they depend on: the recipe, the
steps, the machine. A run that is stopped, or repeated with more seeds, goes on with what is missing, or of another
recipe. The last act compares and records all that is there.

Two cases. *clean*: all start from the true state. *uncertain*: the analysis is the truth plus a random field of 5 %
of the climatological standard deviation (the scaled difference of two training states), every member adds a draw of
its own, and every contender gets the same ones; truth and members are then exchangeable, and a perfect model is
calibrated.

*long*: the members of one start run for 1,000 frames. Their spectra, in five bands, are held against the least and the
largest power of that band in the frames of the test trajectories; what share of the frames of the training trajectories
lies in there is the most that can be asked for.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import CONTENDERS, DATA, Forecaster, NoisyInput, prepare, recipe, train
from torch import Tensor

from lapse.datasets.datamodule import FieldData
from lapse.physics.spectrum import band_power
from lapse.surrogate.metrics import central_coverage, fair_crps, rank, spread_factor
from lapse.surrogate.noise import member_generator
from lapse.surrogate.skill import starts
from lapse.surrogate.train import compose, field_data
from record import ROOT, Row, commit, machine, quick, record, results_folder, show

WORK = ROOT / "benchmarks" / "work" / "forecast"
MEMBERS, LEADS, LONG = 8, 20, 60 if quick() else 1000
STARTS = {32: 4, 64: 24, 256: 12}  # a pixel net's frame at 256² costs sixteen of one at 64²
ERROR = 0.05  # of the initial state, in climatological standard deviations
EDGES = (0.5, 1.5, 3.5, 7.5, 15.5, 1e9)  # of the bands of a long run, in rad per unit of length
HEADLINE = ("lapse-fast", "pixel-crps", "latent-diffusion-16")
DETERMINISTIC = ("pixel-mean", "fno")
COARSE = ("lapse-coarse", "lapse-coarse-small")
OURS = ("lapse-fast", *COARSE)  # of which something is asked


@torch.no_grad()
def evaluate(forecast: Forecaster, data: FieldData, u: Tensor, case: str, members: int = MEMBERS) -> dict[str, Any]:
    """Scores by lead of ``u (N, 1 + LEADS, C, *space)``, in normalised units; cases as in the module's docstring."""
    normaliser = data.normaliser
    truth = normaliser(u)
    sigma = float(truth.square().mean().sqrt())
    pool = torch.cat([f for f, _ in data.frames("train")])
    rng, picker = np.random.default_rng(0), torch.Generator().manual_seed(1)
    sums: list[dict[str, list[float]]] = [{"mse": [], "crps": [], "variance": [], "coverage": []} for _ in range(LEADS)]
    powers, true_powers = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for i in range(len(u)):
        generators = [member_generator(0, float(i), m) for m in range(members)]
        start = u[i, :1]
        if case == "uncertain":
            pairs = torch.randint(len(pool), (members + 1, 2), generator=picker)
            draws = ERROR * (pool[pairs[:, 0]] - pool[pairs[:, 1]]) / np.sqrt(2)
            start = start + draws[:1] + draws[1:]
        for k, (s, fields) in enumerate(zip(sums, forecast(start, generators, LEADS), strict=True), start=1):
            x, y = normaliser(fields).numpy(), truth[i, k].numpy()
            s["mse"].append(float(np.square(x.mean(0) - y).mean()))
            s["crps"].append(float(fair_crps(x, y).mean()))
            if len(x) > 1:
                s["variance"].append(float(x.var(0, ddof=1).mean()))
                s["coverage"].append(float(central_coverage(rank(x, y, rng), len(x), (0.9,)).mean()))
        powers += band_power(torch.from_numpy(x[:, 0]), data.spec.grid).mean(0)
        true_powers += band_power(torch.from_numpy(y[0]), data.spec.grid)
    leads = []
    for s in sums:
        mse = np.mean(s["mse"])
        row = {"rmse": float(np.sqrt(mse)) / sigma, "crps": float(np.mean(s["crps"])) / sigma}
        if s["variance"]:
            row["spread_skill"] = float(np.sqrt(spread_factor(members) * np.mean(s["variance"]) / mse))
            row["coverage_90"] = float(np.mean(s["coverage"]))
        leads.append(row)
    return {"leads": leads, "bands": (powers / true_powers).tolist()}


@torch.no_grad()
def long_run(forecast: Forecaster, data: FieldData, u: Tensor) -> dict[str, Any]:
    """`LONG` frames of `MEMBERS` members from ``u (1, C, *space)``: finite ones, spectra against the truth's range."""
    normaliser, grid = data.normaliser, data.spec.grid
    truth = powers_of(data, "test")
    least, largest = truth.min(dim=0).values, truth.max(dim=0).values
    inside, finite, powers = [], True, []
    generators = [member_generator(0, 0.0, m) for m in range(MEMBERS)]
    for k, fields in enumerate(forecast(u, generators, LONG), start=1):
        finite = finite and bool(torch.isfinite(fields).all())
        if k % (LONG // 20) == 0:
            power = band_power(normaliser(fields)[:, 0], grid, EDGES)
            inside.append((power >= least) & (power <= largest))
            powers.append(power.mean(dim=0))
    half = torch.stack(powers[len(powers) // 2 :]).mean(dim=0)
    return {
        "finite": finite,
        "inside": float(torch.stack(inside).double().mean()),
        "bands": (half / truth.mean(dim=0)).tolist(),
    }


def powers_of(data: FieldData, split: Any) -> Tensor:
    """Band powers ``(frames, bands)`` of the frames of a split."""
    return torch.cat([band_power(data.normaliser(f)[:, 0], data.spec.grid, EDGES) for f, _ in data.frames(split)])


def truth_inside(data: FieldData) -> float:
    """The share of the training trajectories' band powers within the range of the test trajectories'."""
    other, test = powers_of(data, "train"), powers_of(data, "test")
    return float(((other >= test.min(dim=0).values) & (other <= test.max(dim=0).values)).double().mean())


def contend(name: str, size: int, seed: int, minutes: float, data_path: Path) -> dict[str, Any]:
    """Train and score one contender, or read what an earlier run of the same recipe found."""
    label = "quick" if quick() else f"{size}-{minutes:g}"
    done = (WORK if quick() else results_folder() / "forecast") / label / f"{name}-{seed}.json"
    if done.exists() and (found := dict(json.loads(done.read_text())))["recipe"] == recipe(name, size, minutes):
        return found
    begin = time.process_time()
    folder = WORK / label / f"{name}-{seed}-{recipe(name, size, minutes)}"
    forecast, data, steps, _ = train(name, size, seed, minutes, data_path, folder)
    if isinstance(forecast, NoisyInput):
        validation, crps = starts(data, "val", 1 + LEADS, 6)[0], {}
        for forecast.noise in (0.005, 0.01, 0.02, 0.05):
            leads = evaluate(forecast, data, validation, "clean")["leads"]
            crps[forecast.noise] = np.mean([row["crps"] for row in leads])
        forecast.noise = min(crps, key=lambda noise: crps[noise])
    trained = time.process_time()
    u, _ = starts(data, "test", 1 + LEADS, STARTS[size])
    members = 1 if name in ("pixel-mean", "coarse-solver") else MEMBERS
    found = {
        "recipe": recipe(name, size, minutes), "commit": commit(), "machine": machine(), "steps": steps,
        "clean": evaluate(forecast, data, u, "clean", members),
    }  # fmt: skip
    # Sixteen evaluations a frame on pixels are dear, and nothing is asked of them there.
    if "diffusion" not in name or size < 256:
        found["uncertain"] = evaluate(forecast, data, u, "uncertain")
    if name.startswith("lapse") or (CONTENDERS[name]["mode"] == "fast" and size < 256):
        found["long"] = long_run(forecast, data, u[0, :1])
    found["minutes"] = {"training": (trained - begin) / 60, "scoring": (time.process_time() - trained) / 60}
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def persistence(data: FieldData, u: Tensor) -> list[float]:
    """RMSE of persistence by lead over the standard deviation."""
    x = data.normaliser(u)
    sigma = x.square().mean().sqrt()
    return [float((x[:, k] - x[:, 0]).square().mean().sqrt() / sigma) for k in range(1, u.shape[1])]


Scores = dict[str, dict[int, dict[str, Any]]]  # by contender and seed


def compare(size: int, scores: Scores, saturation: int, label: str) -> list[Row]:
    """The rows that the issue asks for, from whichever contenders have been run."""

    def mean(name: str, case: str, quantity: str) -> dict[tuple[int, str], float]:
        """Over the leads until persistence saturates, by seed and machine: of another, the same minutes are other
        steps, and the same seed another flow."""
        return {
            (s, f["machine"]["cpu"]): float(np.mean([row[quantity] for row in f[case]["leads"][:saturation]]))
            for s, f in scores.get(name, {}).items()
            if case in f
        }

    rows: list[Row] = []

    def add(check: str, values: list[float], target: str | None = None, unit: str = "σ") -> None:
        if values:
            rows.append(Row(f"2.1 {check} {label}", float(np.mean(values)), (min(values), max(values)), target, unit))

    def ratio(check: str, a: dict[tuple[int, str], float], b: dict[tuple[int, str], float], target: str | None) -> None:
        add(check, [a[s] / b[s] for s in sorted(set(a) & set(b))], target, "ratio")

    for name in scores:
        for case in ("clean", "uncertain"):
            for quantity in ("crps", "rmse"):
                add(f"{name} {quantity} {case}", list(mean(name, case, quantity).values()))
        for k in (1, 5, 10, 20):
            add(f"{name} rmse clean lead {k}", [f["clean"]["leads"][k - 1]["rmse"] for f in scores[name].values()])
    small = size < 256
    known = {n: np.mean(list(mean(n, "clean", "rmse").values())) for n in DETERMINISTIC if n in scores}
    for name in OURS:
        called = name.replace("lapse-fast", "fast")
        ours = mean(name, "clean", "crps")
        ratio(f"crps {called} / latent-16", ours, mean("latent-diffusion-16", "clean", "crps"), "<= 0.85")
        pixels = "<= 1.05" if small else "<= 0.9"
        ratio(f"crps {called} / pixel crps", ours, mean("pixel-crps", "clean", "crps"), pixels)
        ratio(f"crps {called} / pixel two-stage", ours, mean("pixel-two-stage", "clean", "crps"), None)
        if known:
            best = min(known, key=lambda n: known[n])
            check = f"rmse of {called}'s mean / best deterministic ({best})"
            wanted = "<= 1.05" if small else "<= 0.95"
            ratio(check, mean(name, "clean", "rmse"), mean(best, "clean", "rmse"), wanted)
        alone = mean("coarse-solver", "clean", "rmse")
        ratio(f"rmse of {called}'s mean / the coarse solver alone", mean(name, "clean", "rmse"), alone, None)
    for name in COARSE:
        for q in ("crps", "rmse"):
            ratio(f"{q} {name} / fast", mean(name, "clean", q), mean("lapse-fast", "clean", q), None)
    for name in (*HEADLINE, *COARSE, "lapse-quality", "pixel-two-stage"):
        uncertain = [f["uncertain"]["leads"] for f in scores.get(name, {}).values() if "uncertain" in f]
        for quantity, ideal, target, unit in (
            ("spread_skill", 1.0, "0.8..1.2", "ratio"), ("coverage_90", 0.9, "0.85..0.95", "share")
        ):  # fmt: skip
            values = [row[quantity] for leads in uncertain for row in leads]
            if values:
                what = {"spread_skill": "spread/skill", "coverage_90": "90 % coverage"}[quantity]
                worst = max(values, key=lambda v: abs(v - ideal))
                check, span = f"2.1 {name} {what}, worst lead, uncertain start {label}", (min(values), max(values))
                rows.append(Row(check, worst, span, target if name in OURS else None, unit))
        runs = [f["long"] for f in scores.get(name, {}).values() if "long" in f]
        ours_only = name in OURS
        add(f"{name} {LONG} frames: all members finite", [float(r["finite"]) for r in runs],
            ">= 1" if ours_only else None, "share of seeds")  # fmt: skip
        add(f"{name} {LONG} frames: spectra within the truth's range", [r["inside"] for r in runs],
            ">= 0.99" if ours_only else None, "share")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, choices=sorted(DATA))
    default = 0.05 if quick() else 20.0
    parser.add_argument("--minutes", type=float, default=default, help="training budget, processor minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    data_path, size = prepare(options.size, WORK)
    scores: Scores = {}
    for seed in options.seeds:
        for name in options.only:
            found = contend(name, size, seed, options.minutes, data_path)
            scores.setdefault(name, {})[seed] = found
            crps = np.mean([row["crps"] for row in found["clean"]["leads"]])
            print(f"{name} seed {seed}: mean CRPS {crps:.4f} σ over {LEADS} leads, {found['steps']}", flush=True)
    if not quick():  # what earlier runs found belongs to the table, too
        folder = results_folder() / "forecast" / f"{size}-{options.minutes:g}"
        for path in sorted(folder.glob("*.json")):
            name, seed = path.stem.rsplit("-", 1)
            kept = json.loads(path.read_text())
            if kept["recipe"] == recipe(name, size, options.minutes):
                scores.setdefault(name, {}).setdefault(int(seed), kept)
    data = field_data(compose([f"data.path={data_path}"]))
    drift = persistence(data, starts(data, "test", 1 + LEADS, STARTS[size])[0])
    saturation = next((k for k, e in enumerate(drift, start=1) if e >= 0.95 * max(drift)), LEADS)
    rows = compare(size, scores, saturation, f"at {options.size}², {options.minutes:g} CPU min")
    rows.append(Row(f"2.1 persistence rmse lead 1 at {options.size}²", drift[0], None, None, "σ"))
    check = f"2.1 training trajectories within the test trajectories' range at {options.size}²"
    rows.append(Row(check, truth_inside(data), None, None, "share"))
    rows.append(Row(f"2.1 persistence saturates at {options.size}²", saturation, None, None, "frames"))
    minutes = (time.perf_counter() - begin) / 60
    path = record("forecast", rows, minutes, stage=f"{options.size}-{options.minutes:g}")
    show([row for row in rows if row.target], path)


if __name__ == "__main__":
    main()
