"""Seconds per member and frame, of everything in one run: networks, with and without decoding, and the solver.

    python benchmarks/speed.py

The cost of a network does not depend on its weights, so they are random; sizes are those of `benchmarks/forecast.py`.
Contenders take turns (A B C A B C …) on one thread and the least of the rounds counts, since a busy machine only ever
adds time.

Against the solver the comparison is at equal accuracy: the solver runs on the coarsest grid whose error after ten
frames is still no larger than the surrogate's, as the forecast benchmark measured it. Where there is no such
measurement yet, the row is left out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import contenders
import torch

from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.physics.operators import refine, truncate
from lapse.surrogate.coarse import CoarseSolver
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.package import build
from lapse.surrogate.state import State
from lapse.surrogate.train import compose
from record import ROOT, Row, quick, record, show

ROUNDS = 2 if quick() else 5
MEMBERS = 4 if quick() else 16  # as many as a forecast computes at once on a processor (decisions/0070)


def known(size: int) -> FieldSpec:
    """Of the benchmark's flow."""
    interval = contenders.DATA[size]["interval"]
    return FieldSpec((Variable("vorticity", "s-1"),), Grid.periodic_box(size), interval, "s", equation="kolmogorov")


def emulator(name: str, size: int) -> Emulator:
    """A contender of the forecast benchmark with random weights, its last layers too."""
    config = compose([*contenders.settings(size, ROOT / "unused.zarr", name)])
    autoencoder = {**config["autoencoder"], "heads": []}
    net = build(known(size), {"normaliser": {}, "autoencoder": autoencoder, "emulator": config["emulator"]})
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return net.eval()


@torch.no_grad()
def frame(net: Emulator, mode: str, decode: bool, members: int = MEMBERS) -> Callable[[], None]:
    """One frame of so many members after the other, on the device of the networks, as in a rollout."""
    at = net.increment.device
    carried = torch.zeros(members, 1, dtype=torch.float64, device=at)
    states = [State(torch.randn(members, 1, *net.latent_shape, device=at), carried)]
    noise = torch.randn(members, net.noise_size(mode), device=at)  # type: ignore[arg-type]

    @torch.no_grad()
    def run() -> None:
        states.append(net.advance(states.pop(), noise, None, mode))  # type: ignore[arg-type]
        if decode:
            net.decode(states[0])

    return run


def coarse_run(size: int) -> Callable[[], None]:
    """A frame of the solver that the coarse contenders start from."""
    solver = CoarseSolver(known(size), **contenders.COARSE[size])
    u = 3 * torch.randn(MEMBERS, 1, size, size)

    @torch.no_grad()
    def run() -> None:
        solver(u)

    return run


def timed(jobs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Processor seconds per member of each job, the least of interleaved rounds."""
    best = dict.fromkeys(jobs, float("inf"))
    for run in jobs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in jobs.items():
            begin = time.process_time()
            run()
            best[name] = min(best[name], (time.process_time() - begin) / MEMBERS)
    return best


def solver_error(size: int, coarse: int, viscosity: float, interval: float, frames: int = 10) -> tuple[float, float]:
    """Relative error of the solver on ``coarse²`` against ``size²`` after ``frames``, and its seconds a frame."""
    fine_grid, grid = Grid.periodic_box(size), Grid.periodic_box(coarse)
    fine = equation("kolmogorov", fine_grid, viscosity=viscosity, modes=(size - 1) // 3)
    rough = equation("kolmogorov", grid, viscosity=viscosity)
    spin = equation(
        "kolmogorov", Grid.periodic_box(min(size, 128)), viscosity=viscosity, modes=(min(size, 128) - 1) // 3
    )
    u = spin.spin_up(torch.Generator().manual_seed(0), 1, 5.0 if quick() else 20.0)
    u = refine(u, spin.grid, fine_grid) if spin.grid != fine_grid else u
    v = truncate(u, fine_grid, grid) if coarse < size else u
    begin = time.process_time()
    for _ in range(frames):
        v = rough.advance(v, interval)
    seconds = (time.process_time() - begin) / frames
    for _ in range(frames):
        u = fine.advance(u, interval)
    back = refine(v, grid, fine_grid) if coarse < size else v
    return float((back - u).square().mean().sqrt() / u.square().mean().sqrt()), seconds


def measured_error(size: int) -> float | None:
    """RMSE of lapse fast after ten frames in the forecast benchmark, in standard deviations; None if it was not run."""
    path = ROOT / "benchmarks" / "results" / "forecast.json"
    if not path.is_file():
        return None
    rows = json.loads(path.read_text())["rows"]
    found = [r["value"] for r in rows if r["check"].startswith(f"2.1 lapse-fast rmse clean lead 10 at {size}²")]
    return min(found) if found else None


def main() -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows: list[Row] = []
    for size in (64,) if quick() else (64, 256):
        fast, pixel = emulator("lapse-fast", size), emulator("pixel-crps", size)
        jobs = {
            "lapse fast, decoded": frame(fast, "fast", True),
            "lapse fast, latents": frame(fast, "fast", False),
            "lapse coarse, decoded": frame(emulator("lapse-coarse", size), "fast", True),
            "lapse coarse small, decoded": frame(emulator("lapse-coarse-small", size), "fast", True),
            "coarse solver alone": coarse_run(size),
            "lapse quality, decoded": frame(emulator("lapse-quality", size), "quality", True),
            "pixel crps": frame(pixel, "fast", True),
            "pixel diffusion 16": frame(emulator("pixel-diffusion-16", size), "quality", True),
        }
        best = timed(jobs)
        rows += [
            Row(f"2.2 {name}, {size}²", 1e3 * s, None, None, "ms per member and frame") for name, s in best.items()
        ]
        decoded, latents = best["lapse fast, decoded"], best["lapse fast, latents"]
        rows.append(
            Row(
                f"2.2 pixel diffusion 16 / fast decoded, {size}²",
                best["pixel diffusion 16"] / decoded,
                None,
                ">= 30",
                "times",
            )
        )
        for name in ("coarse", "coarse small"):
            times = best["pixel diffusion 16"] / best[f"lapse {name}, decoded"]
            rows.append(Row(f"2.2 pixel diffusion 16 / {name} decoded, {size}²", times, None, ">= 30", "times"))
        large = size == 256
        rows.append(
            Row(
                f"2.2 pixel crps / fast decoded, {size}²",
                best["pixel crps"] / decoded,
                None,
                ">= 1.5" if large else None,
                "times",
            )
        )
        rows.append(
            Row(
                f"2.2 pixel crps / fast latents, {size}²",
                best["pixel crps"] / latents,
                None,
                ">= 5" if large else None,
                "times",
            )
        )
        error = measured_error(size)
        if error is not None:
            viscosity, interval = (0.012, 0.2) if size == 64 else (0.001, 0.1)
            for coarse in (n for n in (24, 32, 48, 64, 96, 128, 192, 256) if n <= size):
                reached, seconds = solver_error(size, coarse, viscosity, interval)
                if reached <= error:
                    rows.append(
                        Row(f"2.2 solver at equal accuracy runs on, {size}²", coarse, None, None, "cells a side")
                    )
                    rows.append(
                        Row(
                            f"2.2 solver at equal accuracy / fast decoded, {size}²",
                            seconds / decoded,
                            None,
                            None,
                            "times",
                        )
                    )
                    break
    code = "import sys, lapse; print(int(any(m in sys.modules for m in ('torch', 'lightning', 'neuralop'))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    rows.append(Row("2.2 import lapse loads torch, lightning or neuralop", int(loaded.stdout), None, "== 0", "modules"))
    path = record("speed", rows, (time.perf_counter() - begin) / 60)
    show(rows, path)


if __name__ == "__main__":
    main()
