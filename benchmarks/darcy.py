"""Sparse sensors on Darcy flow: a static generator's `augment` against optimal interpolation and a U-Net.

    python benchmarks/darcy.py [--fields 16] [--minutes 20]

Test fields of `pidm.py`'s set-up at 64² and its latent model. At 5 % of the cells the log-permeability Y and the
pressure p are observed exactly, or with errors of 10 % of their standard deviations, or the pressure alone with errors
of 5 %. Errors are relative L2 of the ensemble mean, of each variable and of both (root mean square of the two);
ratios are of errors averaged over fields, and their range is over fields.

*lapse* holds the law on every sample where permeabilities are observed, by the least change of both variables where
nothing is observed exactly (`lapse.physics.monotone`).

Optimal interpolation is the best linear estimate with the covariance of both variables in all cells, from all training
fields. Y is a Gaussian field of 64 terms, so that for Y from observations of Y this *is* the posterior mean, with the
prior known exactly; and 205 exact observations of 64 unknowns leave nothing open. It is given the benefit of the doubt:
its nugget is the best of several, field by field. The U-Net regresses both fields, one net for each case, trained as
long as the model (autoencoder and all) on sensors and errors drawn anew in every step and on the law's symmetries.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pidm
import torch
from interpolators import UNet, train_unet
from torch import Tensor

from lapse.datasets.fields import to_dataset
from lapse.physics.monotone import monotone
from lapse.surrogate.metrics import central_coverage, rank, spread_factor
from record import Row, quick, record, show

SHARE = 0.05
SAMPLES = 4 if quick() else 32
NUGGETS = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15)  # standard deviations


@dataclass(frozen=True)
class Sensors:
    """What is observed: of which variables (Y, p), and with which error, in standard deviations."""

    name: str
    variables: tuple[bool, bool]
    error: float


CASES = (
    Sensors("10 % error", (True, True), 0.1),
    Sensors("pressure alone, 5 % error", (False, True), 0.05),
    Sensors("exact", (True, True), 0.0),
)


def draws(fields: Tensor, sensors: Sensors) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Batches for the U-Net from standardised ``fields (N, 2, n, n)``, by the law's symmetries four times as many."""
    rng, n = np.random.default_rng(0), fields.shape[-1]
    on = torch.tensor(sensors.variables).reshape(1, 2, 1, 1)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        u = fields[torch.from_numpy(rng.integers(len(fields), size=8))]
        if rng.random() < 0.5:
            u = u.mT
        if rng.random() < 0.5:
            u = u.flip(-2, -1) * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
        where = ((torch.rand(8, 1, n, n) < SHARE) & on).float()
        return u + sensors.error * torch.randn_like(u), where, u

    return draw


class Interpolation:
    """The best linear estimate from the covariance of training fields, standardised."""

    def __init__(self, fields: Tensor) -> None:
        self.mean = fields.mean(dim=0)
        self.away = (fields - self.mean).flatten(1).double() / (len(fields) - 1) ** 0.5

    def __call__(self, y: Tensor, where: Tensor, nugget: float) -> Tensor:
        at = where.flatten()
        seen = self.away[:, at]
        K = seen.T @ seen + nugget**2 * torch.eye(seen.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(K, (y - self.mean).flatten()[at].double())
        return self.mean + (self.away.T @ (seen @ weights)).reshape(y.shape).float()


def relative(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Relative L2 of Y, of p and of both, for fields ``(2, n, n)``."""
    y, p = ((x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).tolist()
    return {"permeability": y, "pressure": p, "both": ((y * y + p * p) / 2) ** 0.5}


class Bench:
    """Data, model and opponents."""

    def __init__(self, minutes: float) -> None:
        self.case, self.minutes = pidm.Case(16 if quick() else 64), minutes
        self.std = self.case.data.normaliser.std.reshape(2, 1, 1).float()
        self.known = self.case.fields("train") / self.std
        self.interpolation = Interpolation(self.known)
        self.model, _ = pidm.trained(self.case, "latent", minutes)
        self.tests = self.case.fields("test")
        self.unguided = self.model.draw(SAMPLES, seed=3).mean(dim=0)

    @cache  # noqa: B019 - there is one bench
    def unet(self, sensors: Sensors) -> UNet:
        """Of a case, trained where it is not there yet."""
        path = self.case.folder / f"{self.minutes:g}" / f"unet-{CASES.index(sensors)}.pt"
        return train_unet(draws(self.known, sensors), 2, self.minutes, path, padding="replicate")

    def one(self, k: int, sensors: Sensors) -> dict[str, float]:
        """All figures of test field k."""
        truth, where, y = self.observed(k, sensors)
        begin = time.process_time()
        x = self.samples(where, y, sensors)
        seconds = time.process_time() - begin
        estimates = {
            "augment": x.mean(dim=0), "unguided": self.unguided, "a U-Net": self.regressed(y, where, sensors),
            "optimal interpolation": self.interpolated(y, where, sensors, truth),
        }  # fmt: skip
        found = {f"{n}, {v}": e for n, x in estimates.items() for v, e in relative(x, truth).items()}
        for c, name in enumerate(("permeability", "pressure")):
            hidden = ~where[c]
            ranks = rank(x[:, c, hidden].numpy(), truth[c, hidden].numpy(), np.random.default_rng(0))
            found[f"coverage, {name}"] = float(central_coverage(ranks, SAMPLES, (0.9,)).mean())
            found[f"variance, {name}"] = float(x[:, c].var(dim=0).mean())
            found[f"square, {name}"] = float((x[:, c].mean(dim=0) - truth[c]).square().mean())
        found["misfit"] = float(((x - y) / self.std)[:, where].abs().max())
        return {**found, "seconds": seconds}

    def observed(self, k: int, sensors: Sensors) -> tuple[Tensor, Tensor, Tensor]:
        """Test field k, where it is observed, and with errors everywhere: each ``(2, n, n)``."""
        truth, g = self.tests[k], torch.Generator().manual_seed(k)
        at = torch.rand(truth.shape[1:], generator=g) < SHARE
        where = torch.stack([at & on for on in map(torch.tensor, sensors.variables)])
        return truth, where, truth + sensors.error * self.std * torch.randn(truth.shape, generator=g)

    def samples(self, where: Tensor, y: Tensor, sensors: Sensors) -> Tensor:
        """Of `augment`, ``(SAMPLES, 2, n, n)``."""
        spec = self.case.data.spec
        ds = to_dataset(torch.where(where, y, torch.nan)[None], spec, ("time",), {"time": [0.0]})
        ds = ds[[n for n, on in zip(spec.names, sensors.variables, strict=True) if on]]
        error = {n: sensors.error * float(s) for n, s in zip(spec.names, self.std, strict=True) if n in ds}
        hold = self.law_held(where & (sensors.error == 0)) if sensors.variables[0] else None
        out = self.model.augment(ds, SAMPLES, error=error, hold=hold, progress=False)
        return torch.stack([torch.from_numpy(out[n].values[:, 0]) for n in spec.names], dim=1)

    def law_held(self, kept: Tensor) -> Callable[[Tensor], Tensor]:
        """The law by the least change of both variables, in their standard deviations, but for what is ``kept``."""
        free = (self.std**2 * ~kept).double()

        def hold(u: Tensor) -> Tensor:
            factors = self.case.law.factors(u[:, 0])
            scale = (self.case.scale / float(self.std[1])) ** 2
            found = monotone(u, self.case.residual, steps=2, inner=8, metric=free,
                             precondition=lambda r: factors.solve(factors.solve(r)) * scale)  # fmt: skip
            return found.u

        return hold

    def regressed(self, y: Tensor, where: Tensor, sensors: Sensors) -> Tensor:
        net = self.unet(sensors)
        with torch.no_grad():
            x: Tensor = net((y / self.std)[None], where.float()[None])[0] * self.std
        return torch.where(where, y, x) if sensors.error == 0 else x

    def interpolated(self, y: Tensor, where: Tensor, sensors: Sensors, truth: Tensor) -> Tensor:
        tried = [self.interpolation(y / self.std, where, n) * self.std for n in NUGGETS if n >= sensors.error]
        return min(tried, key=lambda x: relative(x, truth)["both"])


def rows(sensors: Sensors, found: list[dict[str, float]]) -> list[Row]:
    """The figures of a case."""

    def mean(name: str) -> float:
        return float(np.mean([f[name] for f in found]))

    def spread(name: str, over: str) -> tuple[float, float]:
        each = [f[name] / f[over] for f in found]
        return min(each), max(each)

    out, case = [], f"4.3 darcy, {sensors.name}:"
    for v in ("both", "permeability", "pressure"):
        for name in ("augment", "unguided", "optimal interpolation", "a U-Net"):
            each = [f[f"{name}, {v}"] for f in found]
            span = min(each), max(each)
            out.append(Row(f"{case} relative L2 of {v}, {name}", mean(f"{name}, {v}"), span, None, "1"))
        for name, target in (("unguided", "<= 0.5"), ("optimal interpolation", "<= 0.9"), ("a U-Net", "<= 0.9")):
            mine, other = f"augment, {v}", f"{name}, {v}"
            out.append(
                Row(f"{case} relative L2 of {v}, augment / {name}", mean(mine) / mean(other), spread(mine, other),
                    target if v == "both" and all(sensors.variables) else None, "ratio")
            )  # fmt: skip
    for v in ("permeability", "pressure"):
        each = [f[f"coverage, {v}"] for f in found]
        out.append(
            Row(f"{case} coverage of 90 % intervals, {v}", mean(f"coverage, {v}"), (min(each), max(each)),
                "0.85..0.95", "1")
        )  # fmt: skip
        ratio = (spread_factor(SAMPLES) * mean(f"variance, {v}") / mean(f"square, {v}")) ** 0.5
        out.append(Row(f"{case} spread/skill, {v}", ratio, None, None, "1"))
    worst = max(f["misfit"] for f in found)
    target = "== 0" if sensors.error == 0 else None
    out.append(Row(f"{case} largest misfit of a sample at observations", worst, None, target, "standard deviations"))
    out.append(Row(f"{case} processor time of a field", mean("seconds"), None, None, "s"))
    return out


def picture(bench: Bench, k: int, path: Path) -> None:
    """Both variables of test field k: truth, sensors, mean, two samples, spread; observed with 10 % error."""
    import matplotlib.pyplot as plt

    truth, where, y = bench.observed(k, CASES[0])
    x = bench.samples(where, y, CASES[0])
    names = ("truth", "observed, 10 % error", "mean of the samples", "a sample", "another", "spread")
    shown = (truth, torch.where(where, y, torch.nan), x.mean(dim=0), x[0], x[1], x.std(dim=0))
    figure, axes = plt.subplots(2, len(names), figsize=(2.1 * len(names), 4.2), layout="constrained")
    for i, (high, colours, label) in enumerate(((2.5, "cividis", "ln K"), (0.3, "RdBu_r", "p, Pa"))):
        for ax, name, field in zip(axes[i], names, shown, strict=True):
            spread = name == "spread"
            limits = {"vmin": 0} if spread else {"vmin": -high, "vmax": high}
            image = ax.imshow(field[i], origin="lower", cmap="magma" if spread else colours, **limits)
            ax.set_xticks([])
            ax.set_yticks([])
            if i == 0:
                ax.set_title(name, fontsize=9)
            if name in ("another", "spread"):
                figure.colorbar(image, ax=ax, shrink=0.8)
        axes[i, 0].set_ylabel(label, fontsize=9)
    figure.savefig(path, dpi=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fields", type=int, default=2 if quick() else 16, help="of the test set")
    parser.add_argument("--minutes", type=float, default=0.03 if quick() else 20, help="of training, each")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CASES], default=[c.name for c in CASES])
    parser.add_argument("--picture", type=Path, help="draw the first test field, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.minutes)
    if options.picture:
        picture(bench, 0, options.picture)
        return
    for sensors in (c for c in CASES if c.name in options.only):
        begin, found = time.perf_counter(), []
        for k in range(options.fields):
            found.append(bench.one(k, sensors))
            print(sensors.name, k, {n: round(v, 4) for n, v in found[-1].items()}, flush=True)
        note = f"{options.fields} fields, {SAMPLES} samples, {options.minutes:g} CPU minutes of training each, one seed"
        made = rows(sensors, found)
        show(made, record("darcy", made, (time.perf_counter() - begin) / 60, note, stage=sensors.name))


if __name__ == "__main__":
    main()
