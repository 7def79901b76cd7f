"""Exactness: what every sample conserves after decoding, what that costs, and what it does to the distribution.

    python benchmarks/exactness.py [--only shipped heads newton closed cost distribution drift]

The shipped model `kolmogorov64` carries the mean vorticity; every mode and, in the quality mode, every sampler is run
from its test split. Heads do not depend on training, so mass, positivity and divergence are tried on networks of the
same size with random weights, on shallow water (u, v along x and y, depth h). Nonlinear invariants are held by Newton's
method on frames of Kolmogorov flow and of shallow water that carry smooth errors of 10 %, at the values of the frames
without errors. Each figure is the worst over members, frames and variables.

Costs are processor seconds on one thread, the least of interleaved rounds. A distance is that between samples and
independent fields of the truth, with the constraint over without it, from the same noise. The drift of the mass is that
of a trained model of shallow water, over a thousand frames.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import lapse
from lapse.autoencoder.heads import Heads
from lapse.datasets.simulate import simulate
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.chain import Chain
from lapse.physics.cones import bounded
from lapse.physics.constraints import divergence, solenoidal, weighted_mean, with_mean, with_mean_square
from lapse.physics.equation import Equation, equation
from lapse.physics.grid import Grid
from lapse.physics.newton import violation, with_invariants
from lapse.physics.operators import grad
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.noise import draw, member_generator
from lapse.surrogate.package import build
from lapse.surrogate.rollout import repeat_state, rollout
from lapse.surrogate.sampler import SAMPLERS
from lapse.surrogate.skill import starts
from lapse.surrogate.stages import run_stage
from lapse.surrogate.state import State
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import ROOT, Row, quick, record, show

MEMBERS = 2
FRAMES = 1 if quick() else 10
STARTS = 3 if quick() else 24
SIZE = 64
LIMIT = {torch.float32: 1e-6, torch.float64: 1e-12}
SHORT = {torch.float32: "fp32", torch.float64: "fp64"}


def truth() -> Tensor:
    """Windows of Kolmogorov flow, (N, frames + 1, 1, 64, 64): the shipped model's test split; a short run if quick."""
    if quick():
        law = equation("kolmogorov", Grid.periodic_box(SIZE))
        u = law.spin_up(torch.Generator().manual_seed(0), 2 * STARTS, 0.2)
        frames = [u]
        for _ in range(FRAMES):
            frames.append(law.advance(frames[-1], 0.2))
        return torch.stack(frames, dim=1)
    config = compose(["experiment=kolmogorov64", f"data.path={ROOT / 'data' / 'kolmogorov64.zarr'}"])
    simulate("kolmogorov", config["data"]["path"], trajectories=80, frames=100, interval=0.2, resolution=64, stored=64,
             spin_up=20.0, seed=1, shard=4, batch=4, resume=True)  # fmt: skip
    return starts(field_data(config), "test", FRAMES + 1, 2 * STARTS)[0]


@torch.no_grad()
def samples(net: Emulator, u: Tensor, mode: str, frames: int) -> Iterator[Tensor]:
    """Decoded frames of `MEMBERS` members from each start ``u (N, C, *space)``: (N·members, C, *space), one a frame."""
    state = repeat_state(net.encode(u[:, None]), MEMBERS)
    generators = [member_generator(0, float(i // MEMBERS), i % MEMBERS) for i in range(len(state.z))]
    for _, fields in rollout(net, state, frames, mode, generators):  # type: ignore[arg-type]
        yield fields


def ways(net: Emulator) -> Iterator[tuple[str, str]]:
    """Every mode, and in the quality mode every sampler: label and mode; the emulator is set while it is yielded."""
    for mode in net.modes:
        if mode != "quality":
            yield mode, mode
            continue
        before = net.sampler
        for net.sampler in sorted(SAMPLERS):
            yield f"quality ({net.sampler})", mode
        net.sampler = before


def shipped(u: Tensor) -> list[Row]:
    """Mean vorticity of every sample of the shipped model, in both precisions."""
    rows = []
    for dtype in LIMIT:
        net = lapse.load("kolmogorov64").emulator.to(dtype)
        first = u[:: len(u) // 2, 0].to(dtype)
        carried = net.autoencoder.heads.carried(first).repeat_interleave(MEMBERS, dim=0)
        for label, mode in ways(net):
            worst = 0.0
            for fields in samples(net, first, mode, FRAMES):
                drift = (fields.double().mean(dim=(-2, -1)) - carried).abs()
                worst = max(worst, float((drift / fields.double().square().mean(dim=(-2, -1)).sqrt()).max()))
            name = f"3.3 mean vorticity after decoding, kolmogorov64, {label}, {SHORT[dtype]}"
            rows.append(Row(name, worst, None, f"<= {LIMIT[dtype]:g}", "of rms"))
    return rows


def shallow_spec(heads_for: str) -> tuple[FieldSpec, list[str]]:
    """Shallow water whose depth keeps its mass, or whose velocity has no divergence."""
    variables = (
        Variable("u", "m s-1", "vector", "x", group="velocity", std=1.0),
        Variable("v", "m s-1", "vector", "y", group="velocity", std=1.0),
        Variable("h", "m", "positive", std=0.1),
    )
    heads = ["positive", "mass"] if heads_for == "mass" else ["divergence_free", "positive", "mass", "mean"]
    if heads_for == "mass":
        heads = [*heads, "mean"]
    return FieldSpec(variables, Grid.periodic_box(SIZE), 0.2, "s"), heads


def random_network(spec: FieldSpec, heads: list[str], dtype: torch.dtype, small: bool = False) -> Emulator:
    """A network of the shipped model's size with random weights that move it."""
    torch.manual_seed(0)
    config = {
        "normaliser": {},
        "autoencoder": {"network": "convolutional", "latent_channels": 4, "factor": 4, "width": 16 if small else 64,
                        "encoder_depth": 2, "decoder_depth": 2, "heads": heads},
        "emulator": {"width": 16 if small else 64, "depth": 2 if small else 6,
                     "parts": ["mean", "generator", "fast", "error"]},
    }  # fmt: skip
    net = build(spec, config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return net.to(dtype).eval()


def heads() -> list[Row]:
    """Mass, positivity, mean and divergence of every sampler, with random weights, in both precisions."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    u[:, 2] = 0.3 + 0.1 * u[:, 2].abs()
    for case in ("mass", "divergence"):
        for dtype in LIMIT:
            spec, names = shallow_spec(case)
            net = random_network(spec, names, dtype, small=quick())
            first = u.to(dtype)
            carried = net.autoencoder.heads.carried(first).repeat_interleave(MEMBERS, dim=0)
            worst = {"mass": 0.0, "mean velocity": 0.0, "divergence": 0.0}
            least, many = float("inf"), 0
            for _, mode in ways(net):
                many += 1
                for fields in samples(net, first, mode, 1 if quick() else 3):
                    x = fields.double()
                    rms = x.square().mean(dim=(-2, -1)).sqrt()
                    drift = (x.mean(dim=(-2, -1)) - carried).abs()
                    worst["mass"] = max(worst["mass"], float((drift[:, 2] / carried[:, 2]).max()))
                    worst["mean velocity"] = max(worst["mean velocity"], float((drift / rms)[:, :2].max()))
                    size = grad(x[:, :2], spec.grid).square().mean().sqrt()
                    worst["divergence"] = max(
                        worst["divergence"], float(divergence(x[:, :2], spec.grid).abs().max() / size)
                    )
                    least = min(least, float(fields[:, 2].min()))
            unit = {"mass": "relative", "mean velocity": "of rms", "divergence": "of the velocity gradient's rms"}
            for name, value in worst.items():
                if (name == "divergence") == (case == "divergence"):
                    check = f"3.3 {name} after decoding, shallow water, worst of {many} samplers, {SHORT[dtype]}"
                    rows.append(Row(check, value, None, f"<= {LIMIT[dtype]:g}", unit[name]))
            if case == "mass":
                name = f"3.3 least depth after decoding, shallow water, {SHORT[dtype]}"
                rows.append(Row(name, least, None, "> 0", "m"))
    return rows


def invariants_of(law: Equation, names: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
    def invariants(u: Tensor) -> Tensor:
        found = law.invariants(u)
        return torch.stack([found[name] for name in names], dim=-1)

    return invariants


def perturbed(law: Equation, u: Tensor, share: float = 0.1) -> Tensor:
    """Frames with smooth errors of a share of each variable's deviation, as a decoder leaves them."""
    noise = law.initial(torch.Generator().manual_seed(1), len(u), torch.float64)
    mean = noise.mean(dim=(-2, -1), keepdim=True)
    sizes = (u - u.mean(dim=(-2, -1), keepdim=True)).square().mean(dim=(-2, -1), keepdim=True).sqrt()
    noise = (noise - mean) / (noise - mean).square().mean(dim=(-2, -1), keepdim=True).sqrt()
    return u + share * sizes * noise


def newton(frames: Tensor) -> list[Row]:
    """Steps of Newton's method to 1e-6, what five steps reach, and the distance to the truth before and after."""
    n = 32 if quick() else SIZE
    tank = equation("shallow_water", Grid.periodic_box(n))
    count = 4 if quick() else 24
    waves = tank.spin_up(torch.Generator().manual_seed(0), 2 * count, 0.2 if quick() else 2.0, torch.float64)
    eddies = frames[:, -1].double()
    flow = equation("kolmogorov", Grid.periodic_box(SIZE))
    cases = {
        "kolmogorov, energy and enstrophy": (flow, ("energy", "enstrophy"), eddies),
        "shallow water, mass, energy and potential enstrophy": (tank, ("mass", "energy", "potential_enstrophy"), waves),
    }
    rows = []
    for name, (law, which, u) in cases.items():
        invariants = invariants_of(law, which)
        half = len(u) // 2
        wanted = invariants(u[:half])
        wrong = perturbed(law, u[:half])
        rows.append(
            Row(
                f"3.3 {name}: violation before",
                float(violation(wrong, invariants, wanted).max()),
                None,
                None,
                "relative",
            )
        )
        for dtype in LIMIT:
            v = wrong.to(dtype)
            reached = {}
            for k in range(1, 6):
                moved = with_invariants(v, invariants, wanted, steps=k, tolerance=0.0, strict=None)
                reached[k] = float(violation(moved, invariants, wanted).max())
            steps = next((k for k, value in reached.items() if value <= 1e-6), None)
            rows += [
                Row(f"3.3 {name}: Newton steps to 1e-6, {SHORT[dtype]}", steps, None, "<= 5", "steps"),
                Row(f"3.3 {name}: violation after 5 steps, {SHORT[dtype]}", reached[5], None, "<= 1e-6", "relative"),
            ]
        mean = wrong.mean(dim=(-2, -1), keepdim=True)
        for factor in (1.25, 1.5):
            far = invariants(mean + factor * (wrong - mean))  # which can be attained
            reached = {}
            for k in range(1, 6):
                moved = with_invariants(wrong, invariants, far, steps=k, tolerance=0.0, strict=None)
                reached[k] = float(violation(moved, invariants, far).max())
            steps = next((k for k, value in reached.items() if value <= 1e-6), None)
            case = f"3.3 {name}: values of anomalies × {factor}"
            if factor == 1.25:
                rows.append(Row(f"{case}, Newton steps", steps, None, "<= 5", "steps"))
            rows.append(Row(f"{case}, violation after 5 steps", reached[5], None, None, "relative"))
        fixed = with_invariants(wrong, invariants, wanted)
        size = (u[:half] - u[:half].mean(dim=(-2, -1), keepdim=True)).square().mean().sqrt()
        worse, better = ((x - u[:half]).square().mean().sqrt() / size for x in (wrong, fixed))
        rows.append(Row(f"3.3 {name}: error with / without", float(better / worse), None, "<= 1.1", "ratio"))
        for kind, distance in distances(fixed, wrong, u[half:]).items():
            rows.append(Row(f"3.3 {name}: {kind} distance with / without", distance, None, "<= 1.1", "ratio"))
    return rows


def closed() -> list[Row]:
    """Closed forms on noise: projection on a box with a mean, a mean square, and a chain of three constraints."""
    grid = Grid.periodic_box(SIZE)
    w = grid.area_weights()
    rows = []
    for dtype, limit in LIMIT.items():
        u = torch.randn(8, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        box = bounded(u, 0.3, w, 0.0, 1.0)
        out = int(((box < 0) | (box > 1)).sum())
        rows += [
            Row(f"3.3 box [0, 1] with a mean: cells outside, {SHORT[dtype]}", out, None, "== 0", "cells"),
            Row(f"3.3 box [0, 1] with a mean: error of the mean, {SHORT[dtype]}",
                float((weighted_mean(box, w) / 0.3 - 1).abs().max()), None, f"<= {limit:g}", "relative"),
            Row(f"3.3 mean square in closed form, {SHORT[dtype]}",
                float((weighted_mean(with_mean_square(u, 2.0, w).double() ** 2, w) / 2 - 1).abs().max()), None,
                f"<= {limit:g}", "relative"),
        ]  # fmt: skip
        v = torch.randn(8, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        chain = Chain(
            divergence=lambda v: solenoidal(v, grid),
            energy=lambda v: v * (v.double().square().mean((-3, -2, -1), True) / 0.5).rsqrt().to(v.dtype),
            mean=lambda v: with_mean(v, 0.0, w),
            rounds=4,
        )
        name = f"3.3 chain of divergence, energy and mean: largest defect, {SHORT[dtype]}"
        rows.append(Row(name, max(chain.defects(chain(v)).values()), None, f"<= {limit:g}", "of rms"))
    return rows


def cost() -> list[Row]:
    """Share of the heads in the time of a sampled and decoded frame, mode by mode."""
    rounds = 3 if quick() else 15
    rows = []
    mass, mass_heads = shallow_spec("mass")
    free, free_heads = shallow_spec("divergence")
    cases = {
        "kolmogorov64, mean": lapse.load("kolmogorov64").emulator,
        "shallow water, mass": random_network(mass, mass_heads, torch.float32),
        "shallow water, mass and divergence": random_network(free, free_heads, torch.float32),
    }
    for name, net in cases.items():
        variables = len(net.autoencoder.spec.names)
        state = State(
            torch.randn(MEMBERS, 1, *net.latent_shape), torch.full((MEMBERS, variables), 0.3, dtype=torch.float64)
        )
        with torch.no_grad():
            fields = net.decode(state)
        for mode in net.modes:
            size = net.noise_size(mode)
            noise = torch.randn(len(state.z), size) if size else None
            whole, part = [], []
            for _ in range(rounds):
                begin = time.process_time()
                with torch.no_grad():
                    net.decode(net.advance(state, noise, None, mode))
                whole.append(time.process_time() - begin)
                begin = time.process_time()
                with torch.no_grad():
                    net.autoencoder.heads(fields, state.carried)
                part.append(time.process_time() - begin)
            share = min(part) / (min(whole) - min(part))
            rows.append(
                Row(f"3.3 heads' share of sampling time, {name}, {mode}", share, None, "<= 0.10", "of the rest")
            )
    return rows


@contextmanager
def without_heads(net: Emulator) -> Iterator[None]:
    """The same networks with no head at all."""
    kept = net.autoencoder.heads
    net.autoencoder.heads = Heads(net.autoencoder.spec)
    try:
        yield
    finally:
        net.autoencoder.heads = kept


def distances(constrained: Tensor, free: Tensor, reference: Tensor) -> dict[str, float]:
    """Sliced Wasserstein and energy distance to the reference, the constrained samples' over the free ones'.

    Fields (N, C, *space), scaled by each variable's deviation in the reference; 256 directions.
    """
    scale = reference.double().std(dim=(0, -2, -1), keepdim=True)
    flat = [(x.double() / scale).flatten(1) for x in (constrained, free, reference)]
    directions = torch.randn(flat[0].shape[1], 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    q = torch.linspace(0, 1, 101, dtype=torch.float64)
    a, b, r = ((x @ directions).quantile(q, dim=0) for x in flat)
    sliced = (a - r).square().mean().sqrt() / (b - r).square().mean().sqrt()

    def energy(x: Tensor, y: Tensor) -> Tensor:  # with each field's distance of nought to itself: never negative
        return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()

    ratio = energy(flat[0], flat[2]) / energy(flat[1], flat[2])
    return {"sliced Wasserstein": float(sliced), "energy": float(ratio)}


@torch.no_grad()
def distribution(u: Tensor) -> list[Row]:
    """Distance of the shipped model's samples at the last frame to other starts' truth, with and without its head."""
    net = lapse.load("kolmogorov64").emulator
    first, reference = u[::2, 0], u[1::2, -1]
    rows = []
    for mode in net.modes:
        state = repeat_state(net.encode(first[:, None]), MEMBERS)
        generators = [member_generator(0, float(i // MEMBERS), i % MEMBERS) for i in range(len(state.z))]
        for _ in range(FRAMES):
            noise = draw(generators, net.noise_size(mode)) if net.noise_size(mode) else None
            state = net.advance(state, noise, None, mode)
        error = draw(generators, net.decode_noise_size) if mode != "mean" else None
        held = net.decode(state, None, error)
        with without_heads(net):
            free = net.decode(state, None, error)
        for kind, ratio in distances(held, free, reference).items():
            name = f"3.3 kolmogorov64, {mode}: {kind} distance with / without its head"
            rows.append(Row(name, ratio, None, "<= 1.1", "ratio"))
    return rows


def drift() -> list[Row]:
    """Mass over a long forecast of shallow water, by a model of two minutes' training."""
    size, minutes, frames = (16, 0.02, 10) if quick() else (32, 0.7, 1000)
    with TemporaryDirectory() as name:
        path = Path(name) / "shallow.zarr"
        simulate("shallow_water", path, trajectories=12, frames=40, resolution=size, seed=2, shard=4, batch=4,
                 progress=False)  # fmt: skip
        overrides = [f"data.path={path}", "emulator.parts=[mean,fast]", "autoencoder.latent_channels=12",
                     "autoencoder.encoder_depth=0", "autoencoder.decoder_depth=0", "autoencoder.factor=4",
                     "training.fast.lr=4e-4"]  # fmt: skip
        config = compose(overrides)
        torch.manual_seed(0)
        data = field_data(config)
        net = new_emulator(config, data)
        for stage in ("autoencoder", "mean", "fast"):
            options = {**config["training"][stage], "steps": 10**6, "cpu_minutes": minutes}
            trainer = {**config["trainer"], "enable_progress_bar": False}
            how = {"shift": shifts(config, data.spec)(0), "seed": 0, "ema": 0.99, "every": 10**6}
            run_stage(stage, net, options, data, Path(name) / stage, trainer, **how)
        u, _ = starts(data, "test", 1, 2)
    net.eval()
    first, worst, finite = u[:, 0], 0.0, True
    mass = data.spec.names.index("h")
    initial = first[:, mass].double().mean(dim=(-2, -1)).repeat_interleave(MEMBERS)
    for fields in samples(net, first, "fast", frames):
        finite = finite and bool(torch.isfinite(fields).all())
        now = fields[:, mass].double().mean(dim=(-2, -1))
        worst = max(worst, float((now / initial - 1).abs().max()))
    return [
        Row(f"3.7 drift of the mass over {frames} frames, shallow water", worst, None, "<= 1e-6", "relative"),
        Row(f"3.7 all members finite over {frames} frames, shallow water", finite, None, "true", None),
    ]


STAGES: dict[str, Callable[[Tensor], list[Row]]] = {
    "shipped": shipped,
    "heads": lambda _: heads(),
    "newton": newton,
    "closed": lambda _: closed(),
    "cost": lambda _: cost(),
    "distribution": distribution,
    "drift": lambda _: drift(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(STAGES), default=list(STAGES), help="stages to run")
    wanted = parser.parse_args().only
    torch.set_num_threads(1)
    u = truth()
    for name in wanted:
        begin = time.perf_counter()
        rows = STAGES[name](u)
        show(rows, record("exactness", rows, (time.perf_counter() - begin) / 60, stage=name))


if __name__ == "__main__":
    main()
