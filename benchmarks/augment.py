"""Sparse sensors on chaotic flow: `model.augment` against optimal interpolation, a U-Net, and samples that saw nothing.

    python benchmarks/augment.py [--windows 4] [--models kolmogorov64 equal]

Test trajectories of Kolmogorov flow at 64², which took part in no training. A window is five frames of which 5 % of the
cells, the same in every frame, are observed: exactly, or with an error of 5 % of the climatological standard deviation.
Errors are relative L2 over all frames of a window, of the ensemble mean; ratios are of errors averaged over windows,
and their range is over windows.

Two models: the shipped kolmogorov64, and one that was trained as long as the U-Net ("equal", `contenders.packaged`).

Optimal interpolation is the best linear estimate with the climatological covariance in space and time, from all
training trajectories, averaged over the flow's symmetries (any shift along x, a period of the force along y). It is
given the benefit of the doubt twice: its nugget is the best of four on the test windows themselves, and so is whether
it looks at all frames or at each alone. The U-Net regresses frames from what was observed, one net for five frames and
one for a single frame, on windows and sensors drawn anew in every step.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
import xarray as xr
from contenders import MODEL_MINUTES, packaged, prepare
from interpolators import Array, Interpolation, train_unet, windows
from numpy.typing import NDArray
from torch import Tensor

from lapse.datasets.simulate import simulate
from lapse.surrogate.metrics import central_coverage, rank, spread_factor
from lapse.surrogate.model import Model
from lapse.surrogate.package import load
from lapse.surrogate.state import State
from record import ROOT, Row, quick, record, show

SHARE, FRAMES, ERROR = 0.05, 5, 0.05
SAMPLES, ENSEMBLE, LEADS = (4, 16, 10) if quick() else (16, 128, 10)
NUGGETS = (0.003, 0.01, 0.03, 0.1)  # climatological standard deviations
CASES = ("exact", "5 % error", "one frame, exact")
WORK = ROOT / "benchmarks" / "work" / ("quick" if quick() else "augment")
Bools = NDArray[np.bool_]


class Opponents:
    """What else completes a frame: optimal interpolation, and a U-Net for each number of frames."""

    def __init__(self, known: Tensor, minutes: float) -> None:
        self.interpolation = Interpolation(known, FRAMES, 2 if quick() else 5)
        self.mean, self.std = float(known.mean()), float(known.std())
        x = (known - self.mean) / self.std
        self.unets = {
            n: train_unet(windows(x, n, SHARE), n, minutes, WORK / f"unet-{n}-{minutes:g}.pt") for n in (1, FRAMES)
        }

    @torch.no_grad()
    def __call__(self, y: Array, sensors: Bools, error: float, truth: Array) -> dict[str, Array]:
        """Estimates of all frames ``(T, n, n)`` by name; of the interpolations the one nearest to the truth."""
        place, values, on = list(range(len(y))), torch.from_numpy(y), torch.from_numpy(sensors)
        tried = []
        for nugget in (max(k * self.std, error) for k in NUGGETS):
            tried.append(self.interpolation(values, on, place, nugget).numpy())
            tried.append(np.concatenate([self.interpolation(values, on, [k], nugget).numpy() for k in place]))
        x, where = ((values - self.mean) / self.std)[None], on.float().expand(1, len(y), *on.shape)
        regressed = self.unets[len(y)](x, where)[0] * self.std + self.mean
        if error == 0:
            regressed = torch.where(on, values, regressed)
        return {
            "optimal interpolation": min(tried, key=lambda v: relative(v, truth)), "a U-Net": regressed.numpy()
        }  # fmt: skip


def relative(x: Any, truth: Any) -> float:
    return float(np.linalg.norm(x - truth) / np.linalg.norm(truth))


def data() -> tuple[xr.DataArray, int, int]:
    """All trajectories, how many of them are for training, and the first that nothing was trained or chosen on."""
    if not quick():
        path, _ = prepare(64, WORK)
        return xr.open_zarr(path)["vorticity"], 56, 64
    (small,) = simulate(
        "kolmogorov", WORK / "augment.zarr", trajectories=2, frames=18, interval=0.2,
        resolution=64, spin_up=2.0, parameters={"viscosity": 0.012}, resume=True, progress=False,
    )  # fmt: skip
    return xr.open_zarr(small)["vorticity"], 1, 1


def run(name: str, tests: xr.DataArray, opponents: Opponents) -> list[Row]:
    """All cases of a window of each of the trajectories, for one model."""
    model = load("kolmogorov64") if name == "kolmogorov64" or quick() else packaged()
    start = 3 if quick() else 30
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for w in range(tests.sizes["trajectory"]):
        u = tests.isel(trajectory=w, time=slice(start, start + FRAMES + LEADS)).load()
        rng = np.random.default_rng(w)
        sensors = rng.random(u.shape[1:]) < SHARE
        noise = ERROR * opponents.std * rng.standard_normal(u.shape).astype(np.float32)
        for case in found:
            count, error = 1 if case.startswith("one") else FRAMES, ERROR * opponents.std if "error" in case else 0.0
            y = (u + (noise if error else 0)).isel(time=slice(0, count))
            found[case].append(one(model, opponents, u, y, sensors, error))
            print(case, w, {k: round(v, 4) for k, v in found[case][-1].items()}, flush=True)
    return rows(found, "" if name == "kolmogorov64" else f", {MODEL_MINUTES:g} CPU min")


def one(
    model: Model, opponents: Opponents, u: xr.DataArray, y: xr.DataArray, sensors: Bools, error: float
) -> dict[str, float]:
    """All figures of one window."""
    count = y.sizes["time"]
    truth = u.values[:count]
    observed = y.where(xr.DataArray(sensors, dims=("y", "x"))).to_dataset(name="vorticity")
    observed["vorticity"].attrs = {"units": "s-1"}
    begin = time.process_time()
    out = model.augment(observed, SAMPLES, error=error, ensemble=ENSEMBLE, progress=False)
    seconds = time.process_time() - begin
    x = out["vorticity"].values
    hidden = np.broadcast_to(~sensors, truth.shape)
    estimates = opponents(y.values, sensors, error, truth)
    ranks = rank(x[:, hidden], truth[hidden], np.random.default_rng(0))
    row = {
        "augment": relative(x.mean(axis=0), truth),
        "unguided": relative(unguided(model, SAMPLES, count), truth),
        **{name: relative(v, truth) for name, v in estimates.items()},
        "coverage": float(central_coverage(ranks, SAMPLES, (0.9,)).mean()),
        "variance": float(x.var(axis=0, ddof=1).mean()),
        "square": float(np.square(x.mean(axis=0) - truth).mean()),
        "seconds": seconds,
    }
    if error == 0:
        row["agreement"] = float(np.abs(x - truth)[:, ~hidden].max())
    if count == FRAMES:  # what a forecast makes of the last frame
        last = int(y["time"].size) - 1
        ours = model.forecast(out, LEADS, SAMPLES, progress=False)
        given = observed.isel(time=[last]).copy()
        given["vorticity"] = (("time", "y", "x"), estimates["optimal interpolation"][-1:], {"units": "s-1"})
        theirs = model.forecast(given, LEADS, SAMPLES, progress=False)
        later = u.values[count + LEADS - 1]
        row["forecast"] = relative(ours["vorticity"].values[0, :, -1].mean(axis=0), later)
        row["forecast_oi"] = relative(theirs["vorticity"].values[0, :, -1].mean(axis=0), later)
    return row


def unguided(model: Model, samples: int, frames: int) -> Array:
    """Mean of samples that saw nothing: draws of the model's climate, advanced."""
    emulator, climate = model.emulator, model.climate
    assert climate is not None
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = climate(torch.randn(samples, climate.size, generator=g)).reshape(samples, 1, *emulator.latent_shape)
        state = State(z, climate.carried_mean.expand(samples, -1))
        found = [emulator.decode(state)]
        for _ in range(frames - 1):
            state = emulator.advance(state, torch.randn(samples, emulator.noise_size("fast"), generator=g))
            found.append(emulator.decode(state))
    mean: Array = torch.stack(found).mean(dim=1)[:, 0].numpy()
    return mean


def rows(found: dict[str, list[dict[str, float]]], label: str) -> list[Row]:
    out = []
    for case, figures in found.items():

        def ratio(a: str, b: str, figures: list[dict[str, float]] = figures) -> tuple[float, tuple[float, float]]:
            each = [f[a] / f[b] for f in figures]
            return sum(f[a] for f in figures) / sum(f[b] for f in figures), (min(each), max(each))

        def mean(a: str, figures: list[dict[str, float]] = figures) -> tuple[float, tuple[float, float]]:
            each = [f[a] for f in figures]
            return float(np.mean(each)), (min(each), max(each))

        def add(
            what: str, value: tuple[float, tuple[float, float]], unit: str, target: str | None = None, c: str = case
        ) -> None:
            out.append(Row(f"4.3 {what}, {c}{label}", value[0], value[1], target, unit))

        others = ("optimal interpolation", "a U-Net")
        best = min(others, key=lambda name: mean(name)[0])
        add("relative L2 of augment", mean("augment"), "1")
        for name in others:
            add(f"relative L2 of {name}", mean(name), "1")
            add(f"relative L2 augment / {name}", ratio("augment", name), "ratio", "<= 0.9" if name == best else None)
        add("relative L2 augment / unguided", ratio("augment", "unguided"), "ratio", "<= 0.5")
        add("coverage of 90 % intervals", mean("coverage"), "1", "0.85..0.95")
        spread, square = mean("variance")[0], mean("square")[0]
        skill = float(np.sqrt(spread_factor(SAMPLES) * spread / square))
        out.append(Row(f"4.3 spread/skill, {case}{label}", skill, unit="1"))
        if "agreement" in figures[0]:
            add("largest misfit at exact observations", mean("agreement"), "s-1", "== 0")
        if "forecast" in figures[0]:
            what = f"relative L2 at lead {LEADS}, from augment's last frame / from optimal interpolation's"
            add(what, ratio("forecast", "forecast_oi"), "ratio")
        add("processor time of a window", mean("seconds"), "s")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = ("kolmogorov64", "equal")
    parser.add_argument("--windows", type=int, default=1 if quick() else 4)
    parser.add_argument("--models", nargs="+", choices=models, default=models[:1] if quick() else models)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fields, train, first = data()
    known = torch.from_numpy(fields.isel(trajectory=slice(0, train)).values)
    opponents = Opponents(known, 0.02 if quick() else MODEL_MINUTES)
    tests = fields.isel(trajectory=np.linspace(first, fields.sizes["trajectory"] - 1, options.windows).astype(int))
    for name in options.models:
        begin = time.process_time()
        figures = run(name, tests, opponents)
        note = f"{options.windows} windows of {FRAMES} frames, {SAMPLES} samples, {ENSEMBLE} behind the gains; one seed"
        show(figures, record("augment", figures, (time.process_time() - begin) / 60, note, stage=name))


if __name__ == "__main__":
    main()
