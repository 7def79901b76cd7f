"""The residual operator, the correction of forecasts, other physics and the certificate, on Kolmogorov flow."""

import argparse
import time
from typing import Any

import contenders
import torch

from lapse.datasets.datamodule import FieldData
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.stages import run_stage
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from record import ROOT, quick

WORK = ROOT / "benchmarks" / "work" / "residual"
MINUTES = {"autoencoder": 0.15, "mean": 2.85, "fast": 4.0, "correction": 0.8}


def config_of(data_path: Any, parts: str = "mean,fast,correction") -> dict[str, Any]:
    overrides = contenders.settings(64, data_path, "lapse-fast")
    return compose([*[o for o in overrides if not o.startswith("emulator.parts")], f"emulator.parts=[{parts}]", "training.correction.damping=1e-3", "seed=0"])


def trained(data_path: Any, stages: list[str]) -> tuple[Emulator, FieldData]:
    config = config_of(data_path)
    torch.manual_seed(0)
    data = field_data(config)
    emulator = new_emulator(config, data)
    for stage in stages:
        options = {**config["training"][stage], "steps": 10**7, "cpu_minutes": MINUTES[stage]}
        begin = time.process_time()
        summary = run_stage(
            stage, emulator, options, data, WORK / ("quick" if quick() else "64") / stage, {**config["trainer"], "enable_progress_bar": False},
            shift=shifts(config, data.spec)(0), seed=0, ema=config["training"]["ema"], every=500,
        )  # fmt: skip
        print(f"{stage}: {summary['steps']} steps, {time.process_time() - begin:.0f} s", flush=True)
    return emulator.eval(), data


if __name__ == "__main__":
    torch.set_num_threads(1)
    trained(ROOT / "data" / "kolmogorov64.zarr", list(MINUTES))
