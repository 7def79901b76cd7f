"""How large a latent should be: error floor, forecast error and time of several codes, at equal training time.

    python benchmarks/codes.py [--size 64] [--minutes 3] [--only NAME …]

A code and the mean net on it train for ``--minutes`` of processor time together, on the data of
`benchmarks/forecast.py`. Errors are those of the mean net, on the *validation* trajectories: this is where the codes of
the forecast benchmark are chosen. Codes marked "linear" have no residual blocks, so that encoder and decoder are lapped
linear maps of three latent cells a side.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import contenders
import numpy as np
import torch
from torch import Tensor

from lapse.datasets.datamodule import FieldData
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.skill import evaluate, starts
from lapse.surrogate.stages import run_stage
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import ROOT, Row, quick, record, show

WORK = ROOT / "benchmarks" / "work" / "codes"
LEADS = (1, 5, 10, 20)


def code(channels: int, factor: int, backbone: int, depth: int = 0, patch: int | None = None) -> list[str]:
    """Overrides of a convolutional code, and of the backbone on it."""
    return [
        "autoencoder=convolutional", f"autoencoder.latent_channels={channels}", f"autoencoder.factor={factor}",
        f"autoencoder.patch={patch or factor}", f"autoencoder.encoder_depth={depth}",
        f"autoencoder.decoder_depth={depth}", "autoencoder.width=64", "training.autoencoder.noise=0.02",
        f"emulator.width={backbone}", "data.heads=auto",
    ]  # fmt: skip


CODES: dict[int, dict[str, list[str]]] = {
    64: {
        "pixels, 16x16x16, net 64": [],
        "linear, 16x16x12, net 64": code(12, 4, 64),
        "linear, 16x16x8, net 64": code(8, 4, 64),
        "linear, 16x16x4, net 64": code(4, 4, 64),
        "16x16x4, net 64": code(4, 4, 64, depth=1),
        "linear, 8x8x48, net 128": code(48, 8, 128),
        "linear, 8x8x32, net 128": code(32, 8, 128),
        "linear, 8x8x32, net 96": code(32, 8, 96),
        "linear, 8x8x16, net 96": code(16, 8, 96),
    },
    256: {
        "pixels, 64x64x16, net 64": [],
        "16x16x32, patch 8, net 64": code(32, 16, 64, depth=1, patch=8),
        "16x16x64, patch 8, net 96": code(64, 16, 96, depth=1, patch=8),
        "linear, 16x16x64, net 96": code(64, 16, 96),
        "linear, 32x32x16, net 64": code(16, 8, 64),
        "linear, 32x32x24, net 64": code(24, 8, 64),
    },
}


def train(overrides: list[str], size: int, minutes: float, path: Path, folder: Path) -> tuple[Emulator, FieldData]:
    """A code and its mean net; finished stages are read from an earlier run."""
    small = ["emulator.width=8", *(["autoencoder.width=8"] if overrides else [])] if quick() else []
    config = compose([*contenders.settings(size, path, "pixel-mean"), *overrides, *small, "seed=0"])
    torch.manual_seed(0)
    data = field_data(config)
    emulator = new_emulator(config, data)
    share = contenders.LATENT.get(size, contenders.LATENT[64]) if overrides else 0.0
    for stage, part in (("autoencoder", share), ("mean", 1 - share)):
        if part:
            options = {**config["training"][stage], "steps": 10**7, "cpu_minutes": part * minutes}
            summary = run_stage(
                stage, emulator, options, data, folder / stage, {**config["trainer"], "enable_progress_bar": False},
                shift=shifts(config, data.spec)(0), seed=0, ema=config["training"]["ema"], every=10**6,
            )  # fmt: skip
            print(f"{folder.name}: {stage}, {summary['steps']} steps", flush=True)
    return emulator.eval(), data


@torch.no_grad()
def measure(emulator: Emulator, data: FieldData, u: Tensor, phase: Tensor) -> dict[str, Any]:
    """Floor, errors of the mean net over the standard deviation, and milliseconds per member and frame."""
    autoencoder = emulator.autoencoder
    truth = autoencoder.normalise(u, phase)
    sigma = float(truth.square().mean().sqrt())
    first = autoencoder.decode(autoencoder.encode(u[:, 0]))
    found = {"floor": float((autoencoder.normalise(first) - truth[:, 0]).square().mean().sqrt()) / sigma}
    skill = evaluate(emulator, u, phase, "mean", LEADS, 1)
    found.update({f"lead {k}": row["rmse"] / sigma for k, row in skill.items()})
    state = emulator.encode(u[:4, :1])
    for what, decode in (("ms", True), ("ms, latents", False)):
        times = []
        for _ in range(7):
            begin = time.process_time()
            after = emulator.advance(state, None, None, "mean")
            if decode:
                emulator.decode(after)
            times.append((time.process_time() - begin) / len(state.z))
        found[what] = 1e3 * float(np.median(times))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, choices=sorted(CODES))
    default = 0.02 if quick() else 3.0
    parser.add_argument("--minutes", type=float, default=default, help="training budget of a code, processor minutes")
    parser.add_argument("--only", nargs="+", help="codes whose name contains one of these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    label = f"{options.size}², {options.minutes:g} CPU min"
    rows: list[Row] = []
    path, size = contenders.prepare(options.size, WORK)
    work = WORK / ("quick" if quick() else f"{size}-{options.minutes:g}")
    for name, overrides in CODES[options.size].items():
        folder = work / name.replace(", ", "-").replace(" ", "_")
        done = folder / "figures.json"
        wanted = not options.only or any(part in name for part in options.only)
        if wanted and not done.exists():
            emulator, data = train(overrides, size, options.minutes, path, folder)
            windows = starts(data, "val", 1 + LEADS[-1], 2 if quick() else 16)
            done.write_text(json.dumps(measure(emulator, data, *windows)))
        if done.exists():
            for what, value in json.loads(done.read_text()).items():
                rows.append(Row(f"2.1 code {name}: {what}, {label}", value, None, None, "ms" if "ms" in what else "σ"))
    show(rows, record("codes", rows, (time.perf_counter() - begin) / 60, stage=label))


if __name__ == "__main__":
    main()
