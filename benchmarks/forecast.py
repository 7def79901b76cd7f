"""Chaotic flow: every contender at equal training time, on the same data, judged by the same scores.

    python benchmarks/forecast.py [--size 64] [--minutes 20] [--seeds 0] [--only NAME …]

Each contender trains for the same processor time, its autoencoder included (contenders on latents share the
autoencoder's weights and are all charged for it). A contender and seed is a stage: it is trained and scored once, its
figures are kept under `benchmarks/work/forecast`, and a run that is stopped goes on with the next. The last act
compares and records.

Two cases. *clean*: all start from the true state. *uncertain*: the analysis is the truth plus a random field of 5 %
of the climatological standard deviation (the scaled difference of two training states), every member adds a draw of
its own, and every contender gets the same ones; truth and members are then exchangeable, and a perfect model is
calibrated.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lapse.datasets.datamodule import FieldData
from lapse.datasets.simulate import simulate
from lapse.physics.spectrum import band_power
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.metrics import central_coverage, fair_crps, rank, spread_factor
from lapse.surrogate.noise import member_generator
from lapse.surrogate.rollout import repeat_state, rollout
from lapse.surrogate.skill import starts
from lapse.surrogate.stages import run_stage
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import ROOT, Row, quick, record

WORK = ROOT / "benchmarks" / "work" / "forecast"
MEMBERS, LEADS, STARTS = 8, 20, 24
ERROR = 0.05  # of the initial state, in climatological standard deviations
Forecaster = Callable[[Tensor, Sequence[torch.Generator]], Iterator[Tensor]]

DATA: dict[int, dict[str, Any]] = {
    64: {"trajectories": 80, "frames": 100, "interval": 0.2, "resolution": 64, "stored": 64, "spin_up": 20.0,
         "parameters": {"viscosity": 0.012}},
    256: {"trajectories": 24, "frames": 60, "interval": 0.1, "resolution": 256, "stored": 256, "spin_up": 10.0,
          "parameters": {"viscosity": 0.001, "modes": 85}},
}  # fmt: skip

# At 64² the field is resolved, so that a lapped linear code loses little and costs almost nothing (decisions/0006).
CODES: dict[int, dict[str, int]] = {
    64: {"latent_channels": 8, "factor": 4, "patch": 4, "width": 64, "encoder_depth": 0, "decoder_depth": 0},
    256: {"latent_channels": 32, "factor": 16, "patch": 8, "width": 64, "encoder_depth": 1, "decoder_depth": 1},
}
# Shares of the budget by stage. The networks of all contenders but the FNO are the same backbone.
LATENT = {64: 0.05, 256: 0.15}  # the autoencoder's share; of the rest, the mean net takes two fifths where there is one
CONTENDERS: dict[str, dict[str, Any]] = {
    "lapse-fast": {"autoencoder": "convolutional", "parts": ["mean", "fast"],
                   "shares": {"mean": 0.42, "fast": 0.58}, "mode": "fast"},
    "pixel-crps": {"autoencoder": "identity", "parts": ["fast"], "shares": {"fast": 1.0}, "mode": "fast"},
    "latent-diffusion-16": {"autoencoder": "convolutional", "parts": ["generator"],
                            "shares": {"generator": 1.0}, "mode": "quality"},
    "pixel-mean": {"autoencoder": "identity", "parts": ["mean"], "shares": {"mean": 1.0}, "mode": "mean"},
    "lapse-quality": {"autoencoder": "convolutional", "parts": ["mean", "generator"],
                      "shares": {"mean": 0.42, "generator": 0.58}, "mode": "quality"},
    "pixel-diffusion-16": {"autoencoder": "identity", "parts": ["generator"], "shares": {"generator": 1.0},
                           "mode": "quality"},
    "fno": {},
}  # fmt: skip


def settings(size: int, data_path: Path, name: str) -> list[str]:
    """Overrides of the training config for a contender."""
    contender = CONTENDERS[name]
    period = size // 4
    out = [
        f"data.path={data_path}", f"data.shift={{x: 1, y: {period}}}", f"autoencoder={contender['autoencoder']}",
        f"emulator.parts=[{','.join(contender['parts'])}]", "emulator.width=64", "emulator.depth=6",
        "emulator.position=4", "data.heads=[]" if contender["autoencoder"] == "identity" else "data.heads=auto",
        "training.mean.batch=8", "training.mean.unroll=[[0.0,1],[0.4,2],[0.7,4]]", "training.generator.batch=8",
        "training.autoencoder.batch=4", "training.fast.batch=8",
        "emulator.sampling_steps=16" if "diffusion" in name else "emulator.sampling_steps=8",
    ]  # fmt: skip
    if contender["autoencoder"] == "convolutional":
        out += [f"autoencoder.{key}={value}" for key, value in CODES[size if size in CODES else 64].items()]
        out.append("training.autoencoder.noise=0.02")
    # The one-pass pixel net starts from scratch, so it first learns short unrolls, as the mean net does for lapse.
    started = "mean" in contender["parts"]
    out.append(
        "training.fast.unroll=" + ("[[0.0,2],[0.3,4],[0.6,8]]" if started else "[[0.0,1],[0.4,2],[0.6,4],[0.85,8]]")
    )
    out.append("training.fast.lr=" + ("1.5e-3" if started else "3.0e-3"))
    if quick():
        out += [
            "emulator.width=8",
            "emulator.depth=1",
            *(["autoencoder.width=8"] if contender["autoencoder"] != "identity" else []),
        ]
    return out


def budget(name: str, size: int) -> dict[str, float]:
    """Shares of the budget by stage, in the order of training."""
    shares: dict[str, float] = CONTENDERS[name]["shares"]
    if CONTENDERS[name]["autoencoder"] == "identity":
        return shares
    own = LATENT.get(size, LATENT[64])
    return {"autoencoder": own, **{stage: (1 - own) * share for stage, share in shares.items()}}


def train_emulator(
    name: str, size: int, seed: int, minutes: float, data_path: Path, folder: Path
) -> tuple[Emulator, FieldData]:
    """A contender that is a configuration of lapse itself."""
    config = compose([*settings(size, data_path, name), f"seed={seed}"])
    torch.manual_seed(seed)
    data = field_data(config)
    emulator = new_emulator(config, data)
    for index, (stage, share) in enumerate(budget(name, size).items()):
        options = {**config["training"][stage], "steps": 10**7, "cpu_minutes": share * minutes}
        # What contenders have in common is trained once and charged to each.
        shared = (
            folder.parent / f"shared-{seed}" / stage
            if stage in ("autoencoder", "mean") and name != "pixel-mean"
            else folder / stage
        )
        run_stage(
            stage, emulator, options, data, shared, {**config["trainer"], "enable_progress_bar": False},
            shift=shifts(config, data.spec)(seed + index), seed=seed + index, ema=config["training"]["ema"], every=500,
        )  # fmt: skip
    return emulator.eval(), data


def emulate(emulator: Emulator, mode: Any) -> Forecaster:
    """Initial states ``(M, C, *space)`` in physical units to frames, by an emulator."""

    def run(u: Tensor, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
        state = emulator.encode(u[:, None])
        if len(u) == 1 and len(generators) > 1:
            state = repeat_state(state, len(generators))
        for _, fields in rollout(emulator, state, LEADS, mode, generators):
            yield fields

    return run


class PlainFNO(nn.Module):
    """neuraloperator's FNO as a next-frame net on normalised fields, with the position of the force as input."""

    def __init__(self, channels: int, space: Sequence[int], modes: int = 24, hidden: int = 32) -> None:
        super().__init__()
        from neuralop.models import FNO

        modes = min(modes, space[0] // 2)
        self.net = FNO((modes, modes), channels, channels, hidden, n_layers=4, positional_embedding="grid")
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.net(x)


def train_fno(size: int, seed: int, minutes: float, data_path: Path, folder: Path) -> tuple[Forecaster, FieldData]:
    """The FNO, deterministic; its ensemble comes from input noise, whose size is chosen on the validation split."""
    config = compose([*settings(size, data_path, "pixel-mean"), f"seed={seed}"])
    torch.manual_seed(seed)
    data = field_data(config)
    normaliser, shift = data.normaliser, shifts(config, data.spec)(seed)
    data.length, data.batch_size = 3, 8
    net = PlainFNO(len(data.spec.names), data.spec.grid.shape, hidden=8 if quick() else 32, modes=4 if quick() else 24)
    saved = folder / "fno.pt"
    loader = data.train_dataloader()
    first = next(iter(data.windows("train"))).fields
    net.scale = float((normaliser(first[:, 1]) - normaliser(first[:, 0])).square().mean().sqrt())
    if saved.exists():
        net.net.load_state_dict(torch.load(saved, weights_only=True), strict=False)
    else:
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
        begin, budget, step, progress = time.process_time(), 60 * minutes, 0, 0.0
        while progress < 1:
            for batch in loader:
                progress = (time.process_time() - begin) / budget
                if progress >= 1:
                    break
                for group in optimiser.param_groups:
                    group["lr"] = 2e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress))
                frames = 1 if progress < 0.7 else 2
                u = normaliser(shift(batch.fields[: max(1, 8 // frames)]))
                x, loss = u[:, 0], torch.zeros(())
                for k in range(1, frames + 1):
                    x = net(x)
                    loss = loss + (x - u[:, k]).square().mean() / frames
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
                step += 1
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({k: v for k, v in net.net.state_dict().items() if k != "_metadata"}, saved)
        print(f"fno: {step} steps", flush=True)
    net.eval()

    def run(u: Tensor, generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
        x = normaliser(u)
        if len(u) == 1 and len(generators) > 1:
            draws = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
            x = x + noise * draws
        for _ in range(LEADS):
            x = net(x)
            yield normaliser.inverse(x)

    noise = 0.0
    validation, _ = starts(data, "val", 1 + LEADS, 6)
    best = np.inf
    for candidate in (0.005, 0.01, 0.02, 0.05):
        noise = candidate
        crps = np.mean([f["crps"] for f in evaluate(run, data, validation, "clean")["leads"]])
        if crps < best:
            best, chosen = crps, candidate
    noise = chosen
    return run, data


@torch.no_grad()
def evaluate(forecast: Forecaster, data: FieldData, u: Tensor, case: str, members: int = MEMBERS) -> dict[str, Any]:
    """Scores by lead of ``u (N, 1 + LEADS, C, *space)``, in normalised units; cases as in the module's docstring."""
    normaliser = data.normaliser
    truth = normaliser(u)
    sigma = float(truth.square().mean().sqrt())
    pool = torch.cat([f for f, _ in data.frames("train")])
    rng, picker = np.random.default_rng(0), torch.Generator().manual_seed(1)
    sums = [{"mse": [], "crps": [], "variance": [], "coverage": []} for _ in range(LEADS)]
    bands_members, bands_truth = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for i in range(len(u)):
        generators = [member_generator(0, float(i), m) for m in range(members)]
        start = u[i, :1]
        if case == "uncertain":
            pairs = torch.randint(len(pool), (members + 1, 2), generator=picker)
            draws = ERROR * (pool[pairs[:, 0]] - pool[pairs[:, 1]]) / np.sqrt(2)
            start = start + draws[:1] + draws[1:]
        for k, fields in enumerate(forecast(start, generators)):
            x, y = normaliser(fields).numpy(), truth[i, k + 1].numpy()
            s = sums[k]
            s["mse"].append(float(np.square(x.mean(0) - y).mean()))
            s["crps"].append(float(fair_crps(x, y).mean()))
            if len(x) > 1:
                s["variance"].append(float(x.var(0, ddof=1).mean()))
                s["coverage"].append(float(central_coverage(rank(x, y, rng), len(x), (0.9,)).mean()))
            if k == LEADS - 1:
                bands_members += band_power(torch.from_numpy(x[:, 0]), data.spec.grid).mean(0)
                bands_truth += band_power(torch.from_numpy(y[0]), data.spec.grid)
    leads = []
    for s in sums:
        mse = np.mean(s["mse"])
        row = {"rmse": float(np.sqrt(mse)) / sigma, "crps": float(np.mean(s["crps"])) / sigma}
        if s["variance"]:
            row["spread_skill"] = float(np.sqrt(spread_factor(members) * np.mean(s["variance"]) / mse))
            row["coverage_90"] = float(np.mean(s["coverage"]))
        leads.append(row)
    return {"leads": leads, "bands": (bands_members / bands_truth).tolist()}


def run_contender(name: str, size: int, seed: int, minutes: float, data_path: Path) -> dict[str, Any]:
    """Train and score one contender, or read what an earlier run found."""
    root = WORK / ("quick" if quick() else f"{size}-{minutes:g}")
    folder = root / f"{name}-{seed}"
    done = folder / "scores.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    if name == "fno":
        forecast, data = train_fno(size, seed, minutes, data_path, folder)
    else:
        emulator, data = train_emulator(name, size, seed, minutes, data_path, folder)
        forecast = emulate(emulator, CONTENDERS[name]["mode"])
    u, _ = starts(data, "test", 1 + LEADS, 4 if quick() else STARTS)
    deterministic = name == "pixel-mean"
    found = {
        "clean": evaluate(forecast, data, u, "clean", 1 if deterministic else MEMBERS),
        "uncertain": evaluate(forecast, data, u, "uncertain"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(found))
    return found


def persistence(data: FieldData, u: Tensor) -> list[float]:
    """RMSE of persistence by lead over the standard deviation."""
    x = data.normaliser(u)
    sigma = x.square().mean().sqrt()
    return [float((x[:, k] - x[:, 0]).square().mean().sqrt() / sigma) for k in range(1, u.shape[1])]


def compare(size: int, scores: dict[str, dict[int, dict[str, Any]]], saturation: int, minutes: float) -> list[Row]:
    """The rows that the issue asks for, from whichever contenders have been run."""

    def mean(name: str, case: str, quantity: str) -> dict[int, float]:
        return {
            s: float(np.mean([row[quantity] for row in f[case]["leads"][:saturation]]))
            for s, f in scores.get(name, {}).items()
        }

    def ratio(check: str, a: dict[int, float], b: dict[int, float], target: str) -> list[Row]:
        seeds = sorted(set(a) & set(b))
        if not seeds:
            return []
        values = [a[s] / b[s] for s in seeds]
        return [Row(check, float(np.mean(values)), (min(values), max(values)), target, "ratio")]

    label = f"at {size}², {minutes:g} CPU min"
    fast = mean("lapse-fast", "clean", "crps")
    rows: list[Row] = []
    for name in scores:
        for case in ("clean", "uncertain"):
            for quantity in ("crps", "rmse"):
                values = list(mean(name, case, quantity).values())
                rows.append(
                    Row(
                        f"2.1 {name} {quantity} {case} {label}",
                        float(np.mean(values)),
                        (min(values), max(values)),
                        None,
                        "σ",
                    )
                )
        for k in (1, 5, 10, 20):
            values = [f["clean"]["leads"][k - 1]["rmse"] for f in scores[name].values()]
            rows.append(
                Row(
                    f"2.1 {name} rmse clean lead {k} {label}",
                    float(np.mean(values)),
                    (min(values), max(values)),
                    None,
                    "σ",
                )
            )
    rows += ratio(f"2.1 crps fast / latent-16 {label}", fast, mean("latent-diffusion-16", "clean", "crps"), "<= 0.85")
    rows += ratio(
        f"2.1 crps fast / pixel crps {label}",
        fast,
        mean("pixel-crps", "clean", "crps"),
        "<= 1.05" if size == 64 else "<= 0.9",
    )
    deterministic = [n for n in ("pixel-mean", "fno") if n in scores]
    if deterministic and fast:
        best = min(deterministic, key=lambda n: np.mean(list(mean(n, "clean", "rmse").values())))
        rows += ratio(
            f"2.1 rmse of fast's mean / best deterministic ({best}) {label}",
            mean("lapse-fast", "clean", "rmse"),
            mean(best, "clean", "rmse"),
            "<= 1.05" if size == 64 else "<= 0.95",
        )
    for name in ("lapse-fast", "lapse-quality", "pixel-crps", "latent-diffusion-16"):
        for f in list(scores.get(name, {}).values())[:1]:
            ours = name == "lapse-fast"
            skill = [row["spread_skill"] for row in f["uncertain"]["leads"]]
            cover = [row["coverage_90"] for row in f["uncertain"]["leads"]]
            where = f"worst lead, uncertain start {label}"
            rows.append(Row(f"2.1 {name} spread/skill, {where}", max(skill, key=lambda v: abs(np.log(v))),
                            (min(skill), max(skill)), "0.8..1.2" if ours else None, "ratio"))  # fmt: skip
            rows.append(Row(f"2.1 {name} 90 % coverage, {where}", max(cover, key=lambda v: abs(v - 0.9)),
                            (min(cover), max(cover)), "0.85..0.95" if ours else None, "share"))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, choices=sorted(DATA))
    parser.add_argument(
        "--minutes", type=float, default=0.05 if quick() else 20.0, help="training budget, processor minutes"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    plan = DATA[options.size]
    data_path = ROOT / "data" / f"kolmogorov{options.size}.zarr"
    if quick():
        data_path = WORK / "quick.zarr"
        plan = {
            **plan,
            "trajectories": 10,
            "frames": 30,
            "spin_up": 2.0,
            "resolution": 32,
            "stored": 32,
            "parameters": {"viscosity": 0.05},
        }
    simulate("kolmogorov", data_path, seed=1, shard=2 if quick() else 4, batch=4, resume=True, **plan)
    scores: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in options.only:
            scores.setdefault(name, {})[seed] = run_contender(
                name, 32 if quick() else options.size, seed, options.minutes, data_path
            )
            crps = np.mean([row["crps"] for row in scores[name][seed]["clean"]["leads"]])
            print(f"{name} seed {seed}: mean CRPS {crps:.4f} σ over {LEADS} leads", flush=True)
    data = field_data(compose([f"data.path={data_path}"]))
    u, _ = starts(data, "test", 1 + LEADS, STARTS)
    drift = persistence(data, u)
    saturation = next((k + 1 for k, e in enumerate(drift) if e >= 0.95 * max(drift)), LEADS)
    rows = compare(options.size, scores, saturation, options.minutes)
    rows.append(Row(f"2.1 persistence rmse lead 1 at {options.size}²", drift[0], None, None, "σ"))
    rows.append(Row(f"2.1 persistence saturates at {options.size}²", saturation, None, None, "frames"))
    path = record("forecast", rows, (time.perf_counter() - begin) / 60, stage=f"{options.size}-{options.minutes:g}")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
