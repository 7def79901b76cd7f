"""Sparse sensors on chaotic flow: `model.augment` against optimal interpolation and against samples that saw nothing.

    python benchmarks/augment.py [--data data/kolmogorov64.zarr] [--windows 4]

Test trajectories of the shipped kolmogorov64 (none of them took part in its training, see docs/models.md for the
command that makes the data). A window is five frames of which 5 % of the cells, the same in every frame, are observed:
exactly, or with an error of 5 % of the climatological standard deviation. Errors are relative L2 over all frames of a
window, of the ensemble mean; ratios are of errors averaged over windows, and their range is over windows.

Optimal interpolation is the best linear estimate with the climatological covariance in space and time, from all
training trajectories, averaged over the flow's symmetries (any shift along x, a period of the force along y). It is
given the benefit of the doubt twice: its nugget is the best of four on the test windows themselves, and so is whether
it looks at all frames or at each alone.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from lapse.datasets.simulate import simulate
from lapse.surrogate.metrics import central_coverage, rank, spread_factor
from lapse.surrogate.package import load
from record import ROOT, Row, quick, record, show

SHARE, FRAMES, ERROR, FORCE = 0.05, 5, 0.05, 16
SAMPLES, ENSEMBLE, LEADS = 16, 128, 10
NUGGETS = (0.003, 0.01, 0.03, 0.1)  # climatological standard deviations
Array = NDArray[np.float32]


class Interpolation:
    """The best linear estimate of ``frames`` consecutive frames, from training fields ``(N, T, n, n)``."""

    def __init__(self, fields: Tensor, frames: int, stride: int) -> None:
        n = fields.shape[-1]
        self.mean = fields.mean(dim=(0, 1, 3)).reshape(-1, FORCE).mean(dim=0).repeat(n // FORCE)[:, None]
        away, total, count = fields - self.mean, None, 0
        for first in range(0, fields.shape[1] - frames + 1, stride):
            waves = torch.fft.rfft(away[:, first : first + frames], dim=-1, norm="ortho")
            for shift in range(0, n, FORCE):
                w = waves.roll(shift, 2).flatten(1, 2)
                c = torch.einsum("nik,njk->kij", w, w.conj())
                total, count = (c if total is None else total + c), count + len(w)
        assert total is not None
        self.covariance = torch.fft.irfft((total / count).permute(1, 2, 0), n=n, dim=-1).reshape(
            frames, n, frames, n, n
        )
        self.n = n

    def __call__(self, y: Tensor, sensors: Tensor, frames: list[int], nugget: float) -> Tensor:
        """Estimates of ``frames`` from their values ``y (T, n, n)`` at ``sensors (n, n)``."""
        at = sensors.nonzero()
        t = torch.tensor(frames).repeat_interleave(len(at))
        i, j = at.repeat(len(frames), 1).unbind(dim=1)
        C, n = self.covariance, self.n
        K = C[t[:, None], i[:, None], t, i, (j[:, None] - j) % n].double() + nugget**2 * torch.eye(len(t))
        weights = torch.linalg.solve(K, (y - self.mean)[t, i, j].double()).float()
        I, J = (a.reshape(-1) for a in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
        found = [C[k, I[:, None], t, i, (J[:, None] - j) % n] @ weights for k in frames]
        return torch.stack(found).reshape(-1, n, n) + self.mean


def relative(x: Any, truth: Any) -> float:
    return float(np.linalg.norm(x - truth) / np.linalg.norm(truth))


def data(path: Path) -> tuple[xr.DataArray, int]:
    """All trajectories, and the number of the first one that the model never saw."""
    if not quick():
        if not path.exists():
            raise FileNotFoundError(f"{path}: found no such store; docs/models.md has the command that makes it")
        return xr.open_zarr(path)["vorticity"], 64
    (small,) = simulate(
        "kolmogorov", ROOT / "benchmarks" / "work" / "quick" / "augment.zarr", trajectories=2, frames=18, interval=0.2,
        resolution=64, spin_up=2.0, parameters={"viscosity": 0.012}, resume=True, progress=False,
    )  # fmt: skip
    return xr.open_zarr(small)["vorticity"], 1


def run(path: Path, windows: int) -> tuple[list[Row], list[str]]:
    model = load("kolmogorov64")
    fields, first = data(path)
    std = float(model.spec["vorticity"].std or 1.0)
    samples, ensemble = (4, 16) if quick() else (SAMPLES, ENSEMBLE)
    train = 56 if not quick() else 1  # of the trajectories 56 … 63 the validation split is made
    known = torch.from_numpy(fields.isel(trajectory=slice(0, train)).values)
    interpolation = Interpolation(known, FRAMES, 2 if quick() else 5)
    tests = np.linspace(first, fields.sizes["trajectory"] - 1, windows).astype(int)
    start = 3 if quick() else 30
    print(f"covariance of {train} trajectories known", flush=True)
    found: dict[str, list[dict[str, float]]] = {"exact": [], "5 % error": [], "one frame, exact": []}
    for w, trajectory in enumerate(tests):
        u = fields.isel(trajectory=int(trajectory), time=slice(start, start + FRAMES + LEADS)).load()
        rng = np.random.default_rng(w)
        sensors = rng.random(u.shape[1:]) < SHARE
        noise = ERROR * std * rng.standard_normal(u.shape).astype(np.float32)
        for case in found:
            count, error = (1 if case.startswith("one") else FRAMES), (ERROR * std if "error" in case else 0.0)
            y = (u + (noise if error else 0)).isel(time=slice(0, count))
            found[case].append(one(model, interpolation, u, y, sensors, error, samples, ensemble, std))
            print(case, trajectory, {k: round(v, 4) for k, v in found[case][-1].items()}, flush=True)
    return rows(found), [
        f"{windows} windows of {FRAMES} frames, {samples} samples, {ensemble} members behind the gains; one seed",
        "no regression U-Net among the opponents, no Darcy flow, no real data: see decisions/0030",
    ]


def one(
    model: Any, interpolation: Interpolation, u: xr.DataArray, y: xr.DataArray, sensors: NDArray[np.bool_],
    error: float, samples: int, ensemble: int, std: float,
) -> dict[str, float]:  # fmt: skip
    """All figures of one window."""
    count = y.sizes["time"]
    truth = u.values[:count]
    observed = y.where(xr.DataArray(sensors, dims=("y", "x"))).to_dataset(name="vorticity")
    observed["vorticity"].attrs = {"units": "s-1"}
    begin = time.process_time()
    out = model.augment(observed, samples, error=error, ensemble=ensemble, progress=False)
    seconds = time.process_time() - begin
    x = out["vorticity"].values
    hidden = np.broadcast_to(~sensors, truth.shape)
    place, values, on = list(range(count)), torch.from_numpy(y.values), torch.from_numpy(sensors)
    estimates = {}
    for nugget in NUGGETS:
        whole = interpolation(values, on, place, max(nugget * std, error))
        alone = torch.cat([interpolation(values, on, [k], max(nugget * std, error)) for k in place])
        estimates |= {("all", nugget): whole.numpy(), ("alone", nugget): alone.numpy()}
    errors = {k: relative(v, truth) for k, v in estimates.items()}
    best = min(errors, key=errors.__getitem__)
    ranks = rank(x[:, hidden], truth[hidden], np.random.default_rng(0))
    row = {
        "augment": relative(x.mean(axis=0), truth),
        "oi": errors[best],
        "unguided": relative(unguided(model, samples, count), truth),
        "coverage": float(central_coverage(ranks, samples, (0.9,)).mean()),
        "variance": float(x.var(axis=0, ddof=1).mean()),
        "square": float(np.square(x.mean(axis=0) - truth).mean()),
        "seconds": seconds,
    }
    if error == 0:
        row["agreement"] = float(np.abs(x - truth)[:, ~hidden].max())
    if count == FRAMES:  # what a forecast makes of the last frame
        last = int(y["time"].size) - 1
        ours = model.forecast(out, LEADS, samples, progress=False)
        given = observed.isel(time=[last]).copy()
        given["vorticity"] = (("time", "y", "x"), estimates[best][-1:], {"units": "s-1"})
        theirs = model.forecast(given, LEADS, samples, progress=False)
        later = u.values[count + LEADS - 1]
        row["forecast"] = relative(ours["vorticity"].values[0, :, -1].mean(axis=0), later)
        row["forecast_oi"] = relative(theirs["vorticity"].values[0, :, -1].mean(axis=0), later)
    return row


def unguided(model: Any, samples: int, frames: int) -> Array:
    """Mean of samples that saw nothing: draws of the model's climate, advanced."""
    from lapse.surrogate.emulator import State

    emulator, climate = model.emulator, model.climate
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


def rows(found: dict[str, list[dict[str, float]]]) -> list[Row]:
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
            out.append(Row(f"4.3 {what}, {c}", value[0], value[1], target, unit))

        add("relative L2 of augment", mean("augment"), "1")
        add("relative L2 of optimal interpolation", mean("oi"), "1")
        add("relative L2 augment / optimal interpolation", ratio("augment", "oi"), "ratio", "<= 0.9")
        add("relative L2 augment / unguided", ratio("augment", "unguided"), "ratio", "<= 0.5")
        add("coverage of 90 % intervals", mean("coverage"), "1", "0.85..0.95")
        spread, square = mean("variance")[0], mean("square")[0]
        samples = 4 if quick() else SAMPLES
        out.append(Row(f"4.3 spread/skill, {case}", float(np.sqrt(spread_factor(samples) * spread / square)), unit="1"))
        if "agreement" in figures[0]:
            add("largest misfit at exact observations", mean("agreement"), "s-1", "== 0")
        if "forecast" in figures[0]:
            what = f"relative L2 at lead {LEADS}, from augment's last frame / from optimal interpolation's"
            add(what, ratio("forecast", "forecast_oi"), "ratio")
        add("processor time of a window", mean("seconds"), "s")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "kolmogorov64.zarr")
    parser.add_argument("--windows", type=int, default=1 if quick() else 4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    figures, notes = run(options.data, options.windows)
    show(figures, record("augment", figures, (time.process_time() - begin) / 60, notes))


if __name__ == "__main__":
    main()
