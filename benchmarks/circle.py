"""The unit circle, the toy problem of physics in training: points (x, y) with x² + y² = 1, learned from points alone.

    python benchmarks/circle.py     (as the first stage of `make bench-pidm`)

Item 4 of what the physics must show, in its simplest form: PIDM's own example (Bastek et al. 2025, arXiv:2403.14404,
section 4.1), where too strong a residual collapses all samples to one point. Contenders share network, schedule,
optimiser and *processor time*, what their losses cost included; samples come from one sampler. R = x² + y² − 1. A bin
of angles counts as filled with a quarter of its even share of 1,000 samples.
"""

import json
import math
import sys
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapse.surrogate.backbone import fourier_features
from lapse.surrogate.conflict import conflict_free_loss
from lapse.surrogate.denoiser import PreconditionedDenoiser
from lapse.surrogate.sampler import Heun
from lapse.surrogate.schedule import RectifiedFlow
from lapse.surrogate.virtual import Observation, virtual_losses
from record import ROOT, Row, quick, record, show

SECONDS = 0.5 if quick() else 6.0  # of processor time, each
SEEDS = (0,) if quick() else (0, 1, 2)
SAMPLES, BINS, STEPS = 1000, 36, 32
SCALE = 2**-0.5  # standard deviation of either coordinate


class Points(nn.Module):
    """A small network of (x, y), modulated by t."""

    def __init__(self, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, width), nn.SiLU())
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, h = self.embed(fourier_features(t, 8, 8.0)), self.first(x)
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            scale, shift = modulation(c).chunk(2, dim=1)
            h = F.silu(layer(h) * (1 + scale) + shift)
        return self.last(h)


def residual(points: Tensor) -> Tensor:
    return points.square().sum(dim=1) - 1


def observations(name: str, strength: float) -> Sequence[Observation]:
    estimate = {"plain": "mean", "pidm mean": "mean", "pidm sample": "sample", "pbfm": "unroll"}[name]
    return [Observation(residual, 0.0 if name == "plain" else strength, estimate=estimate)]


def trained(name: str, strength: float, seed: int, seconds: float = SECONDS) -> tuple[PreconditionedDenoiser, int]:
    """A denoiser after so much processor time, its weights averaged, and the steps that it took."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    net = Points()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    denoiser = PreconditionedDenoiser(net, RectifiedFlow())
    seen, parameters = observations(name, strength), list(net.parameters())
    start, steps, progress = time.process_time(), 0, 0.0
    while progress < 1:
        angle = 2 * math.pi * torch.rand(128, generator=g)
        x = torch.stack((angle.cos(), angle.sin()), dim=1) / SCALE
        t, epsilon = 0.005 + 0.99 * torch.rand(128, generator=g), torch.randn(128, 2, generator=g)
        unroll = 1 + int(4 * progress)
        data, physics = virtual_losses(denoiser, x, t, epsilon, seen, lambda x: SCALE * x, unroll=unroll)
        loss = data if physics is None else data + physics
        if name == "pbfm" and physics is not None:
            loss = conflict_free_loss([data, physics], parameters)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update_parameters(net)
        steps += 1
        progress = (time.process_time() - start) / seconds
    return PreconditionedDenoiser(average.module, RectifiedFlow()), steps


@torch.no_grad()
def measured(denoiser: PreconditionedDenoiser, seed: int) -> dict[str, float]:
    """Mean |R| of samples, share of filled bins of angles, and energy distance to as many points of the circle."""
    g = torch.Generator().manual_seed(1000 + seed)
    points = SCALE * Heun(denoiser, STEPS)(torch.randn(SAMPLES, 2, generator=g))
    angle = 2 * math.pi * torch.rand(SAMPLES, generator=g)
    truth = torch.stack((angle.cos(), angle.sin()), dim=1)
    counts = torch.histc(torch.atan2(points[:, 1], points[:, 0]), BINS, -math.pi, math.pi)
    between = 2 * torch.cdist(points, truth).mean() - torch.cdist(points, points).mean()
    return {
        "residual": float(residual(points).abs().mean()),
        "filled": float((counts >= SAMPLES / BINS / 4).float().mean()),
        "energy distance": float((between - torch.cdist(truth, truth).mean()).clamp(min=0).sqrt()),
    }


STRENGTHS = {"plain": 0.0, "pidm mean": 0.1, "pidm sample": 0.3, "pbfm": 1.0}  # chosen with seed 100


def run(name: str, seed: int) -> dict[str, float]:
    """Figures of one contender and seed; kept, so that a benchmark that was cut short goes on."""
    kept = ROOT / "benchmarks" / "work" / "pidm" / ("quick" if quick() else "circle") / f"{name}-{seed}.json"
    if not kept.exists():
        begin = time.process_time()
        denoiser, steps = trained(name, STRENGTHS[name], seed)
        figures = {**measured(denoiser, seed), "steps": steps, "minutes": (time.process_time() - begin) / 60}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(figures))
    return json.loads(kept.read_text())


def main(names: Sequence[str] = tuple(STRENGTHS)) -> None:
    torch.set_num_threads(1)
    found = {name: [run(name, seed) for seed in SEEDS] for name in names}
    if set(found) != set(STRENGTHS):
        return

    def row(check: str, values: list[float], target: str | None, unit: str) -> Row:
        return Row(check, sum(values) / len(values), (min(values), max(values)), target, unit)

    rows, each = [], f"{SECONDS:g} CPU s"
    for name, runs in found.items():
        if name != "plain":
            ratio = [r["residual"] / p["residual"] for r, p in zip(runs, found["plain"], strict=True)]
            rows.append(row(f"4 circle: residual, {name} / plain, {each}", ratio, "<= 0.3", "ratio"))
        rows.append(row(f"4 circle: bins of angles filled, {name}", [r["filled"] for r in runs],
                        None if name == "plain" else ">= 0.95", "share of 36"))  # fmt: skip
        rows.append(row(f"4 circle: residual, {name}", [r["residual"] for r in runs], None, "mean |R|"))
        rows.append(row(f"4 circle: energy distance, {name}", [r["energy distance"] for r in runs], None, "1"))
        rows.append(row(f"4 circle: training steps, {name}", [r["steps"] for r in runs], None, "steps"))
    path = record("pidm", rows, sum(r["minutes"] for runs in found.values() for r in runs), stage="circle")
    show(rows, path)


if __name__ == "__main__":
    main(sys.argv[1:] or tuple(STRENGTHS))  # some of them: trained, and recorded when all are there
