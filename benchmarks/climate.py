"""Real climate data: ensemble forecasts against the baselines that are hard to beat at short records.

    python benchmarks/climate.py [--only air currents sst]

The first 70 % of each record fits everything (model and baselines), the last 30 % is scored; a forecast counts when
its start and its target lie in the last 30 %. Baselines: climatology (the model's harmonics of year and day),
persistence, anomaly persistence, damped anomaly persistence (a coefficient per cell and lead), and ridge regression of
the leading principal components, one lead at a time; the ridge and the number of components are chosen on the last
fifth of the training period. Each is dressed with a normal distribution whose spread is its own training error in each
cell.

Data is found through LAPSE_DATA (default ../shared/data): NCEP/NCAR Reanalysis 1 surface air temperature (Kalnay et
al. 1996), ESA GlobCurrent v2 surface currents (Rio et al. 2014), NOAA ERSSTv5 (Huang et al. 2017). None of it is part
of the project.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lapse.datasets.normalise import harmonics
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.metrics import central_coverage, fair_crps, gaussian_crps, rank, spread_factor
from lapse.surrogate.model import Model
from lapse.surrogate.noise import member_generator
from lapse.surrogate.package import load
from lapse.surrogate.rollout import repeat_state, rollout
from lapse.surrogate.train import compose, field_data, train
from record import ROOT, Row, quick, record

Array = NDArray[np.float64]
DATA = Path(os.environ.get("LAPSE_DATA", ROOT.parent / "shared" / "data"))
WORK = ROOT / "benchmarks" / "work" / "climate"


@dataclass(frozen=True)
class Case:
    """One data set: how to train on it, the leads that are asked for, and the targets."""

    experiment: str
    path: Path
    leads: dict[int, float]  # frames: the best baseline's error as the issue states it
    label: str
    units: str
    model: str | None = None  # a shipped model, if there is one


CASES = {
    "air": Case("ncep", DATA / "ncep_air_temperature" / "air_temperature.zarr", {1: 1.40, 4: 2.29, 12: 3.02},
                "NCEP air temperature", "K", "air-temperature"),
    "currents": Case("globcurrent", DATA / "globcurrent_agulhas" / "GlobCurrent_example_data",
                     {1: 0.137, 5: 0.222, 10: 0.307}, "GlobCurrent", "m/s"),
    "sst": Case("ersst", DATA / "ersstv5_global" / "sst.mnmean.nc", {1: 0.3406, 3: 0.4802}, "ERSSTv5", "degC"),
}  # fmt: skip


def fields_of(case: Case, config: dict[str, Any]) -> tuple[Array, Array, NDArray[np.float32], Array]:
    """All frames over valid cells ``(T, cells)``, phases, float32 fields ``(T, C, *space)``, weights ``(cells,)``."""
    data = field_data(config)
    source = data.source
    out = np.empty((1, source.shape[1], *source.shape[2:]), np.float32)
    source.read(0, 1, 0, source.shape[1], out)
    mask = data.spec.mask_tensor().numpy()
    weights = np.where(mask, data.spec.grid.area_weights().numpy(), 0.0)
    flat = out[0].reshape(len(out[0]), -1).astype(np.float64)
    keep = weights.reshape(-1) > 0
    w = weights.reshape(-1)[keep]
    return flat[:, keep], source.phase.astype(np.float64), out[0], w / w.mean()


def rms(error: Array, w: Array) -> float:
    return float(np.sqrt((np.square(error) @ w).mean() / w.sum()))


def climatology(x: Array, phase: Array, train: int, cycles: tuple[int, int]) -> Array:
    """The harmonics of year and day ``(T, cells)`` that fit the first ``train`` frames of ``x`` best."""
    basis = harmonics(torch.from_numpy(phase), *cycles).numpy()
    fit, *_ = np.linalg.lstsq(basis[:train], x[:train], rcond=None)
    return basis @ fit


def baselines(
    x: Array, phase: Array, w: Array, train: int, starts: NDArray[np.int64], lead: int, cycles: tuple[int, int]
) -> dict[str, tuple[Array, Array]]:
    """Forecasts at ``starts + lead`` of every baseline, with training error by cell: ``{name: (mean, std)}``."""
    climate = climatology(x, phase, train, cycles)
    a = x - climate
    early = np.arange(train - lead)
    found: dict[str, tuple[Array, Array]] = {}

    def add(name: str, of: Any) -> None:
        error = (
            of(early) + climate[early + lead] - x[early + lead] if name != "persistence" else x[early] - x[early + lead]
        )
        mean = of(starts) + climate[starts + lead] if name != "persistence" else x[starts]
        found[name] = (mean, np.sqrt(np.square(error).mean(axis=0)))

    add("climatology", lambda t: np.zeros((len(t), x.shape[1])))
    add("persistence", lambda t: x[t])
    add("anomaly persistence", lambda t: a[t])
    rho = np.clip((a[early] * a[early + lead]).mean(0) / np.maximum(np.square(a[early]).mean(0), 1e-30), -1, 1)
    add("damped persistence", lambda t: rho * a[t])
    root = np.sqrt(w)
    _, _, v = np.linalg.svd(a[:train] * root, full_matrices=False)
    best = None
    cut = int(0.8 * train)
    for count in (5, 10, 20, 40):
        modes = v[:count].T
        p = (a * root) @ modes
        for ridge in (1e-3, 1e-1):
            first, last = np.arange(cut - lead), np.arange(cut, train - lead)
            m = _ridge(p[first], p[first + lead], ridge)
            error = rms((p[last] @ m) @ modes.T / root - a[last + lead], w)
            if best is None or error < best[0]:
                best = (error, count, ridge)
    assert best is not None
    modes = v[: best[1]].T
    p = (a * root) @ modes
    m = _ridge(p[early], p[early + lead], best[2])
    add("linear regression of components", lambda t: (p[t] @ m) @ modes.T / root)
    return found


def _ridge(p: Array, q: Array, ridge: float) -> Array:
    gram = p.T @ p
    return np.asarray(np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), p.T @ q))


@torch.no_grad()
def forecasts(
    emulator: Emulator, u: NDArray[np.float32], phase: Array, starts: NDArray[np.int64], leads: list[int], members: int
) -> dict[int, Array]:
    """Ensembles at the leads, ``{lead: (members, starts, cells)}`` over valid cells."""
    autoencoder, history = emulator.autoencoder, emulator.history
    keep = (autoencoder.heads.weights > 0).numpy().reshape(-1)
    out = {k: np.empty((members, len(starts), int(keep.sum()))) for k in leads}
    ph = torch.from_numpy(phase.astype(np.float32))
    for i, t in enumerate(starts):
        frames = torch.from_numpy(u[t - history + 1 : t + 1])[None]
        state = repeat_state(emulator.encode(frames, ph[None, t - history + 1 : t + 1]), members)
        generators = [member_generator(0, float(t), m) for m in range(members)]
        steps = rollout(emulator, state, max(leads), emulator.modes[0], generators, ph[t : t + max(leads) + 1])
        for k, (_, fields) in enumerate(steps, start=1):
            if k in out:
                out[k][:, i] = fields.flatten(1)[:, keep].numpy()
    return out


def trained(name: str, shipped: bool = True) -> tuple[dict[str, Any], Model]:
    """The config of a case and its model: the shipped one if wanted, or one that is trained where it is not there."""
    case = CASES[name]
    overrides = [f"experiment={case.experiment}", f"data.path={case.path}", f"out={WORK / name}"]
    if quick():
        overrides += [f"training.{s}.cpu_minutes=0.02" for s in ("autoencoder", "mean", "generator", "fast")]
        overrides += [f"training.{s}.steps=3" for s in ("error", "mean", "fast")]
        overrides += [f"out={WORK / 'quick' / name}"]
    config = compose(overrides)
    if case.model is not None and shipped:
        return config, load(case.model)
    folder = Path(config["out"]) / "model"
    return config, load(folder) if folder.exists() else train(config, progress=False)


def run(name: str) -> list[Row]:
    """Rows of one case."""
    case, (config, model) = CASES[name], trained(name, shipped=not quick())
    x, phase, u, w = fields_of(case, config)
    frames = len(x)
    cut = int(0.7 * frames)
    leads = list(case.leads)
    stride = max(1, (frames - cut) // (10 if quick() else 150))
    stride += stride % 2 == 0  # odd, so that starts meet every hour of the day
    members = 4 if quick() else 32
    rows = []
    starts = np.arange(cut + model.emulator.history - 1, frames - max(leads), stride)
    ensembles = forecasts(model.emulator, u, phase, starts, leads, members)
    rng = np.random.default_rng(0)
    for lead, target in case.leads.items():
        truth = x[starts + lead]
        ensemble = ensembles[lead]
        others = baselines(x, phase, w, cut, starts, lead, tuple(config["data"]["climatology"]))
        errors = {n: rms(mean - truth, w) for n, (mean, _) in others.items()}
        best = min(errors, key=errors.__getitem__)
        ours = rms(ensemble.mean(0) - truth, w)
        crps = float((fair_crps(ensemble, truth) @ w).mean() / w.sum())
        theirs = {n: float((gaussian_crps(m, s, truth) @ w).mean() / w.sum()) for n, (m, s) in others.items()}
        dressed = min(theirs, key=theirs.__getitem__)
        variance = float((ensemble.var(0, ddof=1) @ w).mean() / w.sum())
        ratio = float(np.sqrt(spread_factor(members) * variance)) / ours
        coverage = float((central_coverage(rank(ensemble, truth, rng), members, (0.9,))[0] @ w).mean() / w.sum())
        tag = f"{case.label}, lead {lead}"
        limit = target * (0.9 if name == "air" and lead == 1 else 1.0)
        rows += [
            Row(f"3 rmse of the mean, {tag}", ours, None, f"<= {limit:.4g}", case.units),
            Row(f"3 rmse of the mean / best baseline here ({best}), {tag}", ours / errors[best], None,
                "<= 0.9" if name == "air" and lead == 1 else "<= 1.0", "ratio"),
            Row(f"3 crps / best dressed baseline ({dressed}), {tag}", crps / theirs[dressed],
                None, "<= 1.0", "ratio"),
            Row(f"3 spread/skill, {tag}", ratio, None, "0.8..1.2", "ratio"),
            Row(f"3 90 % coverage, {tag}", coverage, None, None, "share"),
        ]  # fmt: skip
        rows += [Row(f"3 rmse of {n}, {tag}", e, None, None, case.units) for n, e in errors.items()]
    blown = int(sum((~np.isfinite(e)).any(axis=-1).sum() for e in ensembles.values()))
    rows.append(Row(f"3 members that blew up, {case.label}", blown, None, "== 0", "members"))
    return rows


def present(names: list[str]) -> Iterator[str]:
    """Those of the cases whose data are there; says which are not."""
    for name in names:
        if CASES[name].path.exists():
            yield name
        else:
            print(f"{name}: skipped, {CASES[name].label} was not found; set LAPSE_DATA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in present(options.only):
        begin = time.perf_counter()
        rows = run(name)
        path = record("climate", rows, (time.perf_counter() - begin) / 60, stage=name)
        for row in rows:
            if row.target:
                print(
                    f"{row.check}: {row.value:.4g} (target {row.target}, {'met' if row.met else 'missed'})", flush=True
                )
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
