"""Physics in training and in sampling, on PIDM's own problems: the circle, and Darcy flow with its permeability.

    python benchmarks/pidm.py                                      # circle, then Darcy at 32² and 64²
    python benchmarks/pidm.py --only darcy64 --contenders plain latent

Item 4 of what the physics must show; the circle is `circle.py`. Joint samples of log-permeability and pressure on the
unit square in the set-up of Bastek et al. (2025, arXiv:2403.14404), from lapse's own simulator: finite volumes on
cells, a direct solver, so that the data obey the discrete law that judges them to the precision of float32 (PIDM:
second differences on nodes, boundary rows, least squares; its data obey it to 10⁻³). All contenders generate Y = ln K
and p, so that every sample is a permeability, and share data, backbone, optimiser, sampler and *processor time of
training*, the autoencoder's and all residuals' included:

    plain        flow matching in pixel space (patches)
    pidm-mean    plain, and the virtual observable of the mean estimate
    pidm-sample  plain, and that of the two-pass sample estimate
    pbfm         plain, and the residual of the unrolled prediction, 1 to 4 steps, conflict-free updates
    latent       flow matching in the latents of an autoencoder trained in the same time

and from their samples, without training:

    plain-guided     plain, each estimate near the data corrected by monotone descent of the residual (no solver)
    plain-corrected  plain, one correction of the finished fields (`lapse.physics.monotone`), permeability and pressure
    latent-corrected latent, that correction: this is "lapse"
    latent-solved    latent, its pressure replaced by the solution for its permeability (`Darcy.solved`)
    plain-solved     plain, likewise

Scores, on samples whose pressures were shifted to zero mean as PIDM does: mean |R|; the same over that of the data's
source; sliced Wasserstein distances of Y and of p to test data (512 directions, in standard deviations); energy
distance; the standard deviation of pressure over the data's; and two instruments: the law solved again for the
generated permeability on the same grid, and on one twice as fine (refined bilinearly, and averaged back), with the
relative difference of pressures. Settings were chosen on the validation split at 32², with other seeds. Budgets are
far below PIDM's (13 to 22 hours of a GPU).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import circle
import torch
import torch.nn.functional as F
from torch import Tensor

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.datamodule import FieldData
from lapse.datasets.simulate import simulate
from lapse.physics.darcy import Darcy
from lapse.physics.grid import Grid
from lapse.physics.monotone import monotone
from lapse.surrogate.denoiser import Denoiser
from lapse.surrogate.guidance import Guided
from lapse.surrogate.static import Physics, StaticGenerator
from lapse.surrogate.static_training import train_static
from lapse.surrogate.virtual import Observation
from record import ROOT, Row, quick, record, show

WORK = ROOT / "benchmarks" / "work" / "pidm"
TRAINED = ("plain", "pidm-mean", "pidm-sample", "pbfm", "latent")
DERIVED = {  # contender -> (whose samples, what is done)
    "plain-guided": ("plain", "guided"),
    "plain-corrected": ("plain", "corrected"),
    "latent-corrected": ("latent", "corrected"),
    "plain-solved": ("plain", "solved"),
    "latent-solved": ("latent", "solved"),
}
CONTENDERS = (*TRAINED, *DERIVED)
LAPSE = "latent-corrected"

N_DATA = 96 if quick() else 3072
SAMPLES = 16 if quick() else 256
RESOLVED = 4 if quick() else 16  # samples of the finer instrument, which costs 0.1 s each
MINUTES = {32: 0.03, 64: 0.03} if quick() else {32: 0.75, 64: 1.5}  # of processor time, each contender
COLOURS = ("cividis", "RdBu_r", "magma")  # of the three rows of a picture
AUTOENCODER = 0.3  # share of the latent contender's time
STRENGTH = {"pidm-mean": 1e-6, "pidm-sample": 1e-7, "pbfm": 1.0}
OPTIONS = {"batch": 16, "lr": 2e-3, "width": 64, "depth": 6, "time_mean": 0.5}


class Case:
    """Data and law at one resolution."""

    def __init__(self, n: int) -> None:
        self.n, self.law, self.folder = n, Darcy(Grid.walled_box(n)), WORK / ("quick" if quick() else str(n))
        path = self.folder / "darcy.zarr"
        (path,) = simulate(self.law, path, trajectories=N_DATA, seed=0, resume=path.exists(), progress=False)
        self.data = FieldData(path, 1, OPTIONS["batch"], fractions=(2 / 3, 1 / 6, 1 / 6), by="trajectory")
        self.data.setup()
        self.scale = float(self.law.wells.square().mean().sqrt())

    def fields(self, split: str) -> Tensor:
        return torch.cat([u for u, _ in self.data.frames(split)])

    def residual(self, u: Tensor) -> Tensor:
        """R over the rms of the source."""
        return self.law.steady(u) / self.scale

    def autoencoder(self, latent: bool) -> Autoencoder:
        options = {"network": "identity", "patch": self.n // 8}
        if latent:
            options = {
                "network": "convolutional", "latent_channels": 4 if quick() else 24, "factor": self.n // 8,
                "patch": self.n // 16, "width": 48, "encoder_depth": 1, "decoder_depth": 1, "position": 4,
            }  # fmt: skip
        return Autoencoder(self.data.spec, self.data.normaliser, **options)


def physics(case: Case, name: str, strength: float | None = None) -> Physics | None:
    if name not in STRENGTH:
        return None
    estimate = {"pidm-mean": "mean", "pidm-sample": "sample", "pbfm": "unroll"}[name]
    seen = Observation(case.residual, STRENGTH[name] if strength is None else strength, estimate=estimate)
    return Physics([seen], conflict_free=name == "pbfm")


def trained(case: Case, name: str, minutes: float, seed: int = 0, strength: float | None = None,
            folder: Path | None = None, **options: float) -> tuple[StaticGenerator, dict[str, int]]:  # fmt: skip
    """The model of a contender after its budget, and its steps."""
    torch.manual_seed(seed)
    options = {**OPTIONS, **options}
    autoencoder = case.autoencoder(latent=name == "latent")
    model = StaticGenerator(autoencoder, int(options["width"]), int(options["depth"]), time_mean=options["time_mean"])
    steps = train_static(
        model, case.data, folder or case.folder / f"{minutes:g}" / name, cpu_minutes=minutes, share=AUTOENCODER,
        batch=int(options["batch"]), lr=options["lr"], physics=physics(case, name, strength), seed=seed,
    )  # fmt: skip
    return model, steps


def corrected(case: Case, u: Tensor, steps: int = 2, inner: int = 8) -> Tensor:
    """Both fields, by the least change in their standard deviations; the pressure's solver preconditions."""
    deviation = torch.tensor([0.8, 0.08], dtype=torch.float64).reshape(2, 1, 1)
    done = []
    for part in u.split(64):
        factors = case.law.factors(part[:, 0])

        def precondition(r: Tensor, factors: object = factors) -> Tensor:
            return factors.solve(factors.solve(r)) * (case.scale / 0.08) ** 2

        done.append(
            monotone(part, case.residual, steps=steps, inner=inner, metric=deviation**2, precondition=precondition).u
        )
    return torch.cat(done)


def guide(case: Case, model: StaticGenerator, denoiser: Denoiser) -> Guided:
    """Monotone descent of the residual in every estimate near the data, without the solver."""
    deviation = torch.tensor([0.8, 0.08], dtype=torch.float64).reshape(2, 1, 1)

    def correct(x: Tensor) -> Tensor:
        u = monotone(model.fields(x), case.residual, steps=1, inner=6, metric=deviation**2).u
        return model.standardised(u)

    return Guided(denoiser, correct, below=0.3)


def sliced(a: Tensor, b: Tensor, directions: int = 512) -> float:
    """Sliced W₁ of two sets of fields ``(N, y, x)`` of equal number, in b's standard deviations."""
    g = torch.Generator().manual_seed(7)
    a, b = ((x.flatten(1).double() - b.mean()) / b.std() for x in (a, b))
    along = torch.randn(a.shape[1], directions, generator=g, dtype=torch.float64)
    along = along / along.norm(dim=0)
    return float(((a @ along).sort(dim=0).values - (b @ along).sort(dim=0).values).abs().mean()) * a.shape[1] ** 0.5


def energy(a: Tensor, b: Tensor) -> float:
    """Energy distance of two sets of fields ``(N, C, y, x)``, each channel in b's standard deviations."""
    deviation = b.std(dim=(0, 2, 3), keepdim=True)
    a, b = ((x / deviation).flatten(1).double() / (x[0].numel() ** 0.5) for x in (a, b))
    square = 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()
    return float(square.clamp(min=0).sqrt())


def finer(case: Case, u: Tensor) -> float:
    """Relative difference of pressures from those solved on a grid twice as fine."""
    law = Darcy(Grid.walled_box(2 * case.n))
    y = F.interpolate(u[:, :1].double(), scale_factor=2, mode="bilinear")[:, 0]
    p = F.avg_pool2d(torch.cat([law.pressure(part) for part in y.split(16)]), 2)
    return float(((u[:, 1] - p).flatten(1).norm(dim=1) / p.flatten(1).norm(dim=1)).mean())


@torch.no_grad()
def scores(case: Case, u: Tensor, truth: Tensor) -> dict[str, float]:
    """All figures of samples ``u (N, 2, y, x)`` beside as many test fields."""
    u = torch.stack((u[:, 0], u[:, 1] - u[:, 1].mean(dim=(-2, -1), keepdim=True)), dim=1)
    r = case.law.steady(u.double())
    p = torch.cat([case.law.pressure(part.double()) for part in u[:, 0].split(64)])
    again = (u[:, 1] - p).flatten(1).norm(dim=1) / p.flatten(1).norm(dim=1)
    return {
        "residual": float(r.abs().mean()),
        "relative residual": float(r.square().mean().sqrt()) / case.scale,
        "permeability": sliced(u[:, 0], truth[:, 0]),
        "pressure": sliced(u[:, 1], truth[:, 1]),
        "energy": energy(u, truth),
        "deviation": float(u[:, 1].std() / truth[:, 1].std()),
        "solved again": float(again.mean()),
        "solved finer": finer(case, u[:RESOLVED]),
    }


def contender(case: Case, name: str, split: str, minutes: float, samples: int = SAMPLES, **options: float) -> dict:
    """Scores of one contender on a split; kept, so that a benchmark that was cut short goes on."""
    kept = case.folder / f"{minutes:g}" / f"{name}-{split}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    seed = {"val": 11, "test": 12}[split]
    truth = case.fields(split)[:samples]
    begin = time.process_time()
    if name == "data":
        u, steps = case.fields("train")[:samples], {}
    else:
        source, how = DERIVED.get(name, (name, ""))
        model, steps = trained(case, source, minutes, **options)
        begin = time.process_time()
        wrap = partial(guide, case, model) if how == "guided" else None
        u = model.draw(samples, seed, guide=wrap)
        if how == "corrected":
            u = corrected(case, u)
        elif how == "solved":
            u = torch.cat([case.law.solved(part) for part in u.split(64)])
    spent = (time.process_time() - begin) / samples
    found = {**scores(case, u, truth), "sampling": spent, "steps": steps}
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(u[:4].clone(), kept.with_suffix(".pt"))
    kept.write_text(json.dumps(found))
    return found


def darcy(n: int, names: list[str], minutes: float) -> tuple[list[Row], list[str]]:
    """Rows of the case n × n."""
    case = Case(n)
    found = {name: contender(case, name, "test", minutes) for name in ("data", *names)}
    head = f"4 darcy {n}², {minutes:g} CPU min"
    rows = []
    units = {"residual": "mean |R|, s-1", "relative residual": "of the source's rms",
             "permeability": "sliced W1 of ln K", "pressure": "sliced W1", "energy": "distance",
             "deviation": "of the data's", "solved again": "relative",
             "solved finer": "relative", "sampling": "CPU s a sample"}  # fmt: skip
    for name, scored in found.items():
        for key, unit in units.items():
            rows.append(Row(f"{head}: {key}, {name}", scored[key], None, None, unit))
        for stage, steps in scored["steps"].items():
            rows.append(Row(f"{head}: training steps, {stage} of {name}", steps, None, None, "steps"))
    plain = found.get("plain")
    for name in names if plain else []:
        if name == "plain":
            continue
        mine = found[name]
        lapse = name == LAPSE
        for key, target in (("residual", "<= 0.1"), ("permeability", "<= 1.25"), ("pressure", "<= 1.25")):
            what = "residual" if key == "residual" else f"distance of {key}"
            rows.append(Row(f"{head}: {what}, {name} / plain", mine[key] / plain[key], None, target if lapse else None,
                            "ratio"))  # fmt: skip
        if lapse:
            rows.append(Row(f"{head}: deviation of pressure, lapse ({name})", mine["deviation"], None, "0.95..1.05",
                            "of the data's"))  # fmt: skip
    notes = [f"Darcy {n}²: {minutes:g} CPU minutes of training each, one seed, {SAMPLES} samples, {N_DATA} data."]
    return rows, notes


def picture(case: Case, minutes: float, names: list[str], path: Path) -> None:
    """The first sample of each contender: log-permeability, pressure, and the size of the residual."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, len(names), figsize=(2.1 * len(names), 5.6), layout="constrained", squeeze=False)
    for j, name in enumerate(names):
        u = torch.load(case.folder / f"{minutes:g}" / f"{name}-test.pt", weights_only=True)[:1].double()
        u[:, 1] -= u[:, 1].mean()
        shown = (u[0, 0], u[0, 1], (case.residual(u)[0].abs() + 1e-8).log10())
        ranges = ((-2.5, 2.5), (-0.3, 0.3), (-6, 3))
        for ax, field, (low, high), colours in zip(axes[:, j], shown, ranges, COLOURS, strict=True):
            image = ax.imshow(field, origin="lower", vmin=low, vmax=high, cmap=colours)
            ax.set_xticks([])
            ax.set_yticks([])
            if j == len(names) - 1:
                figure.colorbar(image, ax=ax, shrink=0.8)
        axes[0, j].set_title(name, fontsize=9)
    for ax, label in zip(axes[:, 0], ("ln K", "p, Pa", "log10 of |R| / rms f"), strict=True):
        ax.set_ylabel(label, fontsize=9)
    figure.savefig(path, dpi=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = ("circle", "darcy32", "darcy64")
    parser.add_argument("--only", nargs="*", choices=stages, default=stages[:2] if quick() else stages)
    parser.add_argument("--contenders", nargs="*", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--picture", type=Path, help="draw the first samples of an earlier run, and nothing else")
    parser.add_argument("--minutes", type=float, help="of processor time, to train each contender of Darcy flow")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for stage in options.only:
        begin = time.perf_counter()
        if stage == "circle":
            circle.main()
            continue
        n = int(stage.removeprefix("darcy"))
        minutes = options.minutes or MINUTES[n]
        if options.picture:
            picture(Case(n), minutes, ["data", *options.contenders], options.picture)
            continue
        rows, notes = darcy(16 if quick() else n, list(options.contenders), minutes)
        show(rows, record("pidm", rows, (time.perf_counter() - begin) / 60, notes, stage=stage))


if __name__ == "__main__":
    main()
