"""One accelerator: whether it computes what the processor computes, frames a second, training, memory.

    python benchmarks/accelerator.py [--only agreement forecast training ranks] [--device cuda]

*agreement*: a forecast of `kolmogorov64` on the accelerator against the same members on the processor.
*forecast*: member-frames a second of the networks of `benchmarks/forecast.py` with random weights, as their cost does
not depend on them, in float32, with TF32, in bfloat16 and compiled; and of the solver, many states at a time.
*training*: windows a second of the fast stage through Lightning, in the same kinds, with the memory that it takes.
*ranks*: two processes that share one accelerator, against one; gloo, since NCCL wants an accelerator for each.

Times are those of the wall, after warming up, with the accelerator idle before and after; the median of the rounds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import torch
from speed import emulator, frame

import lapse
from lapse.datasets.simulate import simulate
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.surrogate.rollout import rollout
from lapse.surrogate.stages import run_stage
from lapse.surrogate.state import State
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import Row, quick, record, show

KINDS = ("float32", "tf32", "bfloat16", "bfloat16 compiled")
MEMBERS = {64: 4096, 256: 256}  # computed together
STEPS = 8 if quick() else 60  # of training that are timed
PRECISION = {"float32": "32-true", "tf32": "32-true", "bfloat16": "bf16-mixed", "bfloat16 compiled": "bf16-mixed"}


@contextmanager
def kind_of(name: str) -> Iterator[None]:
    """TF32 for products and convolutions, or neither."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "float32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def wait(device: str) -> None:
    """Until the accelerator has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(job: Callable[[], Any], device: str, rounds: int = 5) -> float:
    """Median of the rounds, after two that warm up."""
    times = []
    for i in range(rounds + 2):
        wait(device)
        begin = time.perf_counter()
        job()
        wait(device)
        if i >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times))


def agreement(device: str) -> list[Row]:
    """Fast forecasts of the shipped flow model, on either device, from the same noise."""
    model = lapse.load("kolmogorov64")
    grid = model.spec.grid
    law = equation("kolmogorov", grid, viscosity=0.012)
    u = law.spin_up(torch.Generator().manual_seed(0), 1, 2.0 if quick() else 10.0)
    leads, found, rows = (1, 10), {}, []
    for where, kind in (("cpu", "float32"), (device, "float32"), (device, "tf32")):
        net = model.emulator.to(where)
        with kind_of(kind), torch.no_grad():
            state = net.encode(u[:, None].to(where))
            state = State(state.z.expand(4, *state.z.shape[1:]), state.carried.expand(4, -1))
            generators = [torch.Generator().manual_seed(m) for m in range(4)]
            frames = [f.cpu() for _, f in rollout(net, state, max(leads), "fast", generators)]
        found[where, kind] = frames
    model.emulator.to("cpu")
    reference = found["cpu", "float32"]
    for (where, kind), frames in found.items():
        for k in leads if where != "cpu" else ():
            error = float((frames[k - 1] - reference[k - 1]).norm() / reference[k - 1].norm())
            target = "<= 1e-4" if kind == "float32" else None
            check = f"2.2 accelerator, kolmogorov64, {kind}: difference from the processor, lead {k}"
            rows.append(Row(check, error, None, target, "relative"))
    return rows


def forecast(device: str) -> list[Row]:
    """Member-frames a second."""
    rows: list[Row] = []
    for size in (64,) if quick() else (64, 256):
        members = 4 if quick() else MEMBERS[size]
        jobs = {
            "lapse fast, decoded": ("lapse-fast", "fast", True),
            "lapse fast, latents": ("lapse-fast", "fast", False),
            "pixel crps": ("pixel-crps", "fast", True),
            "pixel diffusion 16": ("pixel-diffusion-16", "quality", True),
        }
        for kind in KINDS:
            rates, compiled = {}, kind.endswith("compiled")
            nets = {c: emulator(c, size).to(device) for c, mode, _ in jobs.values() if mode == "fast" or not compiled}
            if compiled:
                for net in nets.values():
                    net.part("fast").compile()
            for name, (contender, mode, decode) in jobs.items():
                if contender not in nets:
                    continue
                net = nets[contender]
                if device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                half = torch.autocast(device, torch.bfloat16) if kind.startswith("bf") else nullcontext()
                with kind_of(kind), half:
                    job = frame(net, mode, decode, members)
                    rates[name] = members / seconds(job, device, 3 if "diffusion" in name else 5)
                check = f"2.2 accelerator, {name}, {kind}, {size}²"
                rows.append(Row(check, rates[name], None, None, "member-frames/s"))
                if device != "cpu" and kind == "float32":
                    peak = torch.cuda.max_memory_allocated() / 2**30
                    check = f"2.2 accelerator, {name}: memory at {members} members, {size}²"
                    rows.append(Row(check, peak, None, None, "GiB"))
            if "pixel diffusion 16" in rates:
                ratio = rates["lapse fast, decoded"] / rates["pixel diffusion 16"]
                check = f"2.2 accelerator, pixel diffusion 16 / fast decoded, {kind}, {size}²"
                rows.append(Row(check, ratio, None, None, "times"))
            for what in ("decoded", "latents"):
                ratio = rates[f"lapse fast, {what}"] / rates["pixel crps"]
                check = f"2.2 accelerator, pixel crps / fast {what}, {kind}, {size}²"
                rows.append(Row(check, ratio, None, None, "times"))
        viscosity, interval = (0.012, 0.2) if size == 64 else (0.001, 0.1)
        law = equation("kolmogorov", Grid.periodic_box(size), viscosity=viscosity)
        many = 4 if quick() else 256
        u = law.initial(torch.Generator().manual_seed(0), many).to(device)
        for _ in range(2 if quick() else 10):
            u = law.advance(u, interval)
        rate = many / seconds(lambda u=u, law=law, h=interval: law.advance(u, h), device, 3)
        rows.append(Row(f"2.2 accelerator, solver on {size}², float32", rate, None, None, "member-frames/s"))
    return rows


def small_data(folder: Path) -> Path:
    """A few trajectories: what they hold does not matter here."""
    path = folder / "kolmogorov64.zarr"
    simulate("kolmogorov", path, seed=1, trajectories=10 if quick() else 40, frames=32, interval=0.2, resolution=64,
             spin_up=2.0, batch=10, shard=10, parameters={"viscosity": 0.012}, progress=False)  # fmt: skip
    return path


def timed_stage(
    data_path: Path, folder: Path, trainer: dict[str, Any], batch: int, compiled: bool
) -> tuple[float, float]:
    """Windows a second of the fast stage at four unrolled frames, and GiB of memory at the most."""
    overrides = [*contenders.settings(64, data_path, "lapse-fast"), "training.fast.unroll=[[0.0,4]]",
                 f"training.fast.batch={4 * batch}", f"training.fast.steps={20 + STEPS}"]  # fmt: skip
    config = compose(overrides)
    data = field_data(config)
    emulator = new_emulator(config, data)
    emulator.autoencoder.network.bound = None  # untrained, and so that no frame is far outside it
    if compiled:
        emulator.part("fast").compile()
    stamps: list[float] = []

    def shift(u: torch.Tensor) -> torch.Tensor:
        stamps.append(time.perf_counter())
        return own(u)

    own = shifts(config, data.spec)(0)
    shift.generator = own.generator  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run_stage("fast", emulator, config["training"]["fast"], data, folder, trainer | {"enable_progress_bar": False},
              shift=shift, seed=0, ema=0.99, every=10**6)  # type: ignore[arg-type]  # fmt: skip
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return batch / float(np.median(np.diff(stamps[-STEPS:]))), peak


def training(device: str) -> list[Row]:
    """Windows a second through Lightning, and memory."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = small_data(folder)
        for batch in (2,) if quick() else (2, 64):
            for kind in KINDS if batch > 2 else ("float32", "bfloat16"):
                if device == "cpu" and kind != "float32":
                    continue
                trainer = {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}
                with kind_of(kind):
                    rate, peak = timed_stage(path, folder / f"{kind}-{batch}", trainer | {"precision": PRECISION[kind]},
                                             batch, kind.endswith("compiled"))  # fmt: skip
                what = f"2.2 accelerator, training, fast stage, {batch} windows of 4 frames, {kind}"
                rows.append(Row(what, rate, None, None, "windows/s"))
                if device != "cpu":
                    rows.append(Row(f"{what}: memory", peak, None, None, "GiB"))
    return rows


def ranks(device: str) -> list[Row]:
    """Windows a second of two processes that share the accelerator, over those of one."""
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        path = small_data(Path(name))
        for n in (1, 2):
            out = Path(name) / f"rate-{n}"
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--standalone", __file__]
            command += ["--rank", str(path), str(out), "--device", device]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            rates[n] = n * float(out.read_text())
    one, two = "one process under torchrun, 32 windows of 4 frames", "two processes on one accelerator / one"
    return [
        Row(f"2.2 accelerator, training, {one}", rates[1], None, None, "windows/s"),
        Row(f"2.2 accelerator, training, {two}", rates[2] / rates[1], None, None, "ratio"),
    ]


def rank(path: Path, out: Path, device: str) -> None:
    """What each process of `ranks` does; the first writes its rate."""
    from lightning.pytorch.strategies import DDPStrategy

    n = int(os.environ["WORLD_SIZE"])
    shared = [torch.device("cuda", 0)] * n if device == "cuda" else None
    strategy = DDPStrategy(parallel_devices=shared, process_group_backend="gloo")
    trainer = {"accelerator": "gpu" if device == "cuda" else "cpu", "strategy": strategy, "devices": n,
               "use_distributed_sampler": False, "precision": "32-true"}  # fmt: skip
    if device == "cuda":
        del trainer["devices"]
    rate, _ = timed_stage(path, out.parent / f"ranks-{n}", trainer, 2 if quick() else 32, False)
    if os.environ["RANK"] == "0":
        out.write_text(str(rate))


STAGES = {"agreement": agreement, "forecast": forecast, "training": training, "ranks": ranks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--rank", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank:
        rank(*options.rank, options.device)
        return
    for name in options.only:
        begin = time.perf_counter()
        rows = STAGES[name](options.device)
        path = record("accelerator", rows, (time.perf_counter() - begin) / 60, stage=name)
        show(rows, path)


if __name__ == "__main__":
    main()
