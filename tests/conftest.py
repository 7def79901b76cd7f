"""What every test shares: one thread, fixed seeds, and the way to real data and to the benchmarks' code."""

import os

# Set before anyone imports torch or numpy, and inherited by every process that a test starts: on a machine
# with other work to do, two OpenMP threads are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# No deadline, since a busy machine is no bug; derandomised, since a red test must be red again when rerun.
hypothesis.settings.register_profile("lapse", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("lapse")


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """Seeds every global generator before each test. torch is seeded only if something has imported it."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def lapse_data() -> Path:
    """The folder with real data sets: LAPSE_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("LAPSE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data not found: set LAPSE_DATA to the folder that holds it")
    return folder


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports `benchmarks/NAME.py` as benchmarks import one another: by its bare name, from its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module
