"""Every benchmark runs from end to end in its quick form, and writes the rows that it promises."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROMISED = {
    "accelerator": ["2.2 accelerator, training, fast stage, 2 windows of 4 frames, float32"],
    "augment": ["4.3 relative L2 augment / opt", "4.3 relative L2 of a U-Net", "4.3 coverage", "4.3 largest misfit at"],
    "coarse": ["3.5 lapse-coarse-small, 32², viscosity × 0.7: rmse gone along / as it is, lead 10"],
    "codes": ["2.1 code linear, 16x16x12, net 64: floor", "2.1 code linear, 16x16x12, net 64: lead 20"],
    "darcy": ["4.3 darcy, exact: relative L2 of both, augment / opt", "4.3 darcy, 10 % error: coverage of 90 %"],
    "ensembles": ["4.1 peak memory", "4.1 after kills the same", "4.1 decoded member / direct one", "4.1 online mean"],
    "design": ["2.2 surge, shallow water: gain, lapse / fno", "2.2 designs with the achieved", "2.2 largest violation"],
    "exactness": ["3.3 mean vorticity after", "3.3 kolmogorov, energy and enstrophy: Newton", "3.7 drift of the mass"],
    "latents": ["4 mean after decoding", "4 mass after decoding", "4 divergence after decoding"],
    "operators": ["3.1 order of finite differences 6", "3.1 order of the sphere", "3.1 spectral laplacian"],
    "physics": ["3.1 KdV soliton: order of the hermite", "3.1 burgers: right-hand side against", "3.1 burgers: least"],
    "pidm": ["4 circle: residual, pidm sample / plain", "4 darcy 16², 0.03 CPU min: residual, plain-corrected / plain"],
    "residual": ["3.7 crps, corrected by the solver", "3.5 shifted forcing", "3.6 90 % bound holds", "3.5 spearman"],
    "shipped": ["3.5 kolmogorov64 at drag × 3: crps with the effect / as it is, lead 2"],
    "shock": ["3.2 dam break, stoker: weak residual", "3.2 dam break, ritter: drifting", "3.2 dam break, stoker: ent"],
    "speed": ["2.2 pixel crps / fast decoded", "2.2 import lapse loads"],
    "student": ["4.3 student, own enlarged / few", "4.3 student, few: VRMSE over 3 leads"],
    "forecast": ["2.1 rmse of fast's mean / best", "2.1 lapse-fast spread/skill", "2.1 persistence saturates"],
}
OPTIONS = {
    "accelerator": ["--device", "cpu", "--only", "training"],
    "codes": ["--only", "linear, 16x16x12"],
    "design": ["--only", "shallow_water"],
    "forecast": ["--only", "lapse-fast", "pixel-mean"],
    "pidm": ["--only", "circle", "darcy32", "--contenders", "plain", "pidm-sample", "plain-corrected"],
    "physics": ["--only", "exact", "statements", "counterfeits"],
}


def on_real_data(name: str, only: str, data: Path) -> dict[str, float]:
    """The figures of a benchmark's quick form on one data set."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--only", only]
    environment = os.environ | {"QUICK": "1", "OMP_NUM_THREADS": "1", "LAPSE_DATA": str(data)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads((ROOT / "benchmarks" / "work" / "quick" / f"{name}.json").read_text())["rows"]
    return {row["check"]: row["value"] for row in rows}


def test_quick_forms_on_real_data(lapse_data: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(on_real_data, *which, lapse_data) for which in (("climate", "sst"), ("gaps", "air"))]
    errors, filled = (found.result() for found in asked)
    # a linear start, hardly trained beyond: between the noise of a month and no skill at all
    assert 0.2 < errors["3 rmse of the mean, ERSSTv5, lead 1"] < errors["3 rmse of persistence, ERSSTv5, lead 1"]
    assert errors["3 members that blew up, ERSSTv5"] == 0
    # gaps, by the shipped model
    errors = [filled[f"4.3 NCEP air temperature: rmse of {n}"] for n in ("augment", "climatology")]
    assert errors[0] < 0.8 * errors[1]
    assert filled["4.3 NCEP air temperature: largest misfit at what is known"] == 0


def quick_form(name: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *OPTIONS.get(name, [])]
    environment = os.environ | {"QUICK": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> "Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]":
    """The quick forms that were asked for, two at a time: each is a process of one thread."""
    asked = {item.name for item in request.session.items}
    with ThreadPoolExecutor(2) as pool:
        yield {n: pool.submit(quick_form, n) for n in sorted(PROMISED) if f"test_quick_form[{n}]" in asked}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_quick_form(name: str, runs: "dict[str, Future[subprocess.CompletedProcess[str]]]") -> None:
    run = runs[name].result()
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads((ROOT / "benchmarks" / "work" / "quick" / f"{name}.json").read_text())["rows"]
    for promised in PROMISED[name]:
        found = [row for row in rows if row["check"].startswith(promised)]
        assert found, f"{promised!r} is missing from {[row['check'] for row in rows]}"
        assert all(row["value"] is not None for row in found)
    if name in ("latents", "exactness"):  # what holds to round-off holds with any weights
        assert all(row["met"] for row in rows if "after decoding" in row["check"] and row["target"])
