"""Real fields with holes: `model.augment` against optimal interpolation and climatology.

    python benchmarks/gaps.py [--only air sst currents] [--windows 4]                                (make bench-gaps)

    air        NCEP/NCAR Reanalysis 1 (Kalnay et al. 1996), the shipped air-temperature: five frames, 6 hours apart, of
               which a tenth of the cells, always the same, is known
    sst        NOAA ERSSTv5 (Huang et al. 2017), five months, likewise
    currents   ESA GlobCurrent v2 (Rio et al. 2014), three days from which slanted swaths are cut that move by three
               cells a day, half of the region

The models are those of the climate benchmark, trained on the first 70 % of each record; the windows lie in the rest.
What is known is known exactly. Errors are root mean squares over the hidden cells of all frames, by area, of the
ensemble mean.

Optimal interpolation knows the climatology of the training period, cell by cell, and the deviation from it; its
covariance is a function of distance and time (`interpolators.Kriging`). It is given the benefit of the doubt: reach,
decay, shape and nugget are those with the least error in the first test window itself. Data: see the climate benchmark.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from climate import CASES, climatology, fields_of, present, trained
from interpolators import Kriging
from numpy.typing import NDArray

from lapse.datasets.open import open_dataset
from lapse.surrogate.metrics import central_coverage, fair_crps, gaussian_crps, rank, spread_factor
from record import Row, quick, record, show

FRAMES = {"air": 2, "currents": 2, "sst": 2} if quick() else {"air": 5, "currents": 3, "sst": 5}
SAMPLES, ENSEMBLE = (4, 16) if quick() else (16, 128)
SHARE, SWATH = 0.1, 6  # of the cells that are known; cells across a swath
Array = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def known(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Bools:
    """What is known, ``(T, y, x)``."""
    if name != "currents":
        return np.broadcast_to(rng.random(shape[1:]) < SHARE, shape)
    t, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (x + y // 2 + 3 * t + rng.integers(2 * SWATH)) // SWATH % 2 == 0


def picture(path: Path, out: xr.Dataset, truth: xr.Dataset, where: Bools, name: str) -> None:
    """The last frame: truth, what was known, mean of the samples, one of them, and their spread."""
    import matplotlib.pyplot as plt

    u, x = truth[name].isel(time=-1), out[name].isel(time=-1)
    known = u.where(xr.DataArray(where[-1, 0], dims=u.dims))
    shown = {"truth": u, "known": known, "mean of 16": x.mean("member"), "one of them": x[0], "spread": x.std("member")}
    figure, axes = plt.subplots(1, 5, figsize=(14, 2.3), layout="constrained")
    for ax, (title, field) in zip(axes, shown.items(), strict=True):
        limits = {"vmin": 0} if title == "spread" else {"vmin": float(u.min()), "vmax": float(u.max())}
        colours = "magma" if title == "spread" else "viridis"
        image = ax.pcolormesh(field["lon"], field["lat"], field, cmap=colours, **limits)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=7)
        figure.colorbar(image, ax=ax, shrink=0.9).ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=90)
    plt.close(figure)


class Interpolated:
    """Optimal interpolation of windows of a record, about its climatology.

    Arguments:
        fields: ``(T, C, y, x)``, of which the first ``train`` frames are known.
        climate: climatology, likewise.
        latitude, longitude: of the axes, degrees.
        mask: valid cells ``(C, y, x)``.
    """

    def __init__(
        self, fields: Array, climate: Array, train: int, latitude: Array, longitude: Array, mask: Bools
    ) -> None:
        Y, X = np.meshgrid(latitude, longitude, indexing="ij")
        self.climate, self.mask = climate, mask
        std = (fields[:train] - climate[:train]).std(axis=0)
        self.std = np.maximum(std, 0.05 * std[mask].mean())  # a first thaw is not a million deviations
        self.krigings = [Kriging(Y[m], X[m]) for m in mask]

    def __call__(self, truth: Array, window: slice, where: Bools, weights: Array) -> Array:
        """Estimates of ``truth (frames, C, y, x)``, of which what is at ``where`` is known."""
        found = self.climate[window].copy()
        for c, (kriging, m) in enumerate(zip(self.krigings, self.mask, strict=True)):
            std = self.std[c][m]
            x, seen, unseen = (
                torch.from_numpy(np.ascontiguousarray(v))
                for v in ((truth - found)[:, c][:, m] / std, where[:, c][:, m], weights[:, c][:, m] * std**2)
            )
            found[:, c][:, m] += kriging(x.float(), seen, unseen).numpy() * std
        return found


def run(name: str, windows: int, drawn: Path | None = None) -> list[Row]:
    """Rows of one case."""
    case, (config, model) = CASES[name], trained(name)
    options, spec = config["data"], model.spec
    chosen = {"variables": list(spec.names)} | ({"time_units": options["time_units"]} if options["time_units"] else {})
    ds = model.check(open_dataset(case.path, **chosen))
    _, phase, fields, _ = fields_of(case, config)
    mask = spec.mask_tensor().numpy()  # (C, y, x)
    cut, count = int(0.7 * len(fields)), FRAMES[name]
    climate = climatology(fields.reshape(len(fields), -1), phase, cut, options["climatology"]).reshape(fields.shape)
    interpolated = Interpolated(fields, climate, cut, *(np.asarray(a.coordinates) for a in spec.grid.axes), mask)
    area = np.broadcast_to(spec.grid.area_weights().numpy(), mask.shape)
    starts = np.linspace(cut, len(fields) - count, windows + 2).astype(int)[1:-1]
    found: list[dict[str, float]] = []
    for w, start in enumerate(starts):
        window = slice(int(start), int(start) + count)
        truth = fields[window]
        where = known(name, (count, *truth.shape[2:]), np.random.default_rng(w))[:, None] & mask
        weights = np.where(~where & mask, area, 0.0)
        observed = ds.isel(time=window).copy()
        for c, n in enumerate(spec.names):
            observed[n] = observed[n].where(xr.DataArray(where[:, c], dims=("time", *spec.grid.names)))
        begin = time.process_time()
        out = model.augment(observed, SAMPLES, error=0.0, ensemble=ENSEMBLE, progress=False)
        seconds = time.process_time() - begin
        if drawn is not None and w == 0:
            picture(drawn, out, ds.isel(time=window), where, spec.names[0])
        samples = np.stack([out[n].values for n in spec.names], axis=2)  # (samples, T, C, y, x)
        off = np.where(where, np.abs(samples - truth).max(axis=0), 0.0)
        estimate = interpolated(truth, window, where, weights)
        spread = np.broadcast_to(interpolated.std, truth.shape)
        found.append(figures(samples, truth, estimate, climate[window], spread, weights))
        found[-1] |= {"misfit": float(np.nanmax(off)), "seconds": seconds}
        print({k: round(f, 4) for k, f in found[-1].items()}, flush=True)
    return rows(found, case.label, case.units)


def figures(
    samples: Array, truth: Array, estimate: Array, climate: Array, spread: Array, weights: Array
) -> dict[str, float]:
    """Scores over the cells that have a weight."""
    hidden = weights > 0
    v = weights[hidden] / weights[hidden].sum()
    ensemble, y = samples[:, hidden].astype(np.float64), truth[hidden]
    covered = central_coverage(rank(ensemble, y, np.random.default_rng(0)), SAMPLES, (0.9,))[0]

    def rms(x: Array) -> float:
        return float(np.sqrt((x - y) ** 2 @ v))

    return {
        "augment": rms(ensemble.mean(axis=0)), "optimal interpolation": rms(estimate[hidden]),
        "climatology": rms(climate[hidden]), "crps": float(fair_crps(ensemble, y) @ v),
        "crps of climatology": float(gaussian_crps(climate[hidden], spread[hidden], y) @ v),
        "coverage": float(covered @ v), "variance": float(ensemble.var(axis=0, ddof=1) @ v),
    }  # fmt: skip


def rows(found: list[dict[str, float]], label: str, units: str) -> list[Row]:
    def each(name: str) -> list[float]:
        return [f[name] for f in found]

    def row(what: str, values: list[float], unit: str, target: str | None = None) -> Row:
        return Row(f"4.3 {label}: {what}", float(np.mean(values)), (min(values), max(values)), target, unit)

    def ratio(a: str, b: str, target: str) -> Row:
        value, spread = sum(each(a)) / sum(each(b)), [x / y for x, y in zip(each(a), each(b), strict=True)]
        return Row(f"4.3 {label}: {a} / {b}", value, (min(spread), max(spread)), target, "ratio")

    squares = float(np.square(each("augment")).mean())
    skill = float(np.sqrt(spread_factor(SAMPLES) * np.mean(each("variance")) / squares))
    return [
        *(row(f"rmse of {n}", each(n), units) for n in ("augment", "optimal interpolation", "climatology")),
        ratio("augment", "optimal interpolation", "<= 1.0"), ratio("augment", "climatology", "<= 0.9"),
        ratio("crps", "crps of climatology", "<= 0.9"),
        row("coverage of 90 % intervals", each("coverage"), "1", "0.85..0.95"),
        Row(f"4.3 {label}: spread/skill", skill, None, None, "ratio"),
        row("largest misfit at what is known", each("misfit"), units, "<= 1e-4"),
        row("processor time of a window", each("seconds"), "s"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(FRAMES), default=sorted(FRAMES))
    parser.add_argument("--windows", type=int, default=1 if quick() else 4)
    parser.add_argument("--picture", type=Path, help="draw the first window of the first case that is run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in present(options.only):
        begin = time.process_time()
        found = run(name, options.windows, options.picture if name == options.only[0] else None)
        note = f"{CASES[name].label}: {options.windows} windows of {FRAMES[name]} frames, {SAMPLES} samples; one seed"
        show(found, record("gaps", found, (time.process_time() - begin) / 60, note, stage=name))


if __name__ == "__main__":
    main()
