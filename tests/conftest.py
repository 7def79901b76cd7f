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
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    import xarray as xr

    from lapse import FieldSpec
    from lapse.surrogate.model import Model

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


@pytest.fixture(scope="session")
def tiny_model() -> "Model":
    """A model of vorticity on a periodic 16 x 16 box, frames 0.2 s apart: random weights, all modes."""
    return random_model()


def random_model(**changes: Any) -> "Model":
    """A model with random weights that moves: one variable, width 8; ``changes`` are fields of its spec."""
    import torch

    from lapse import FieldSpec
    from lapse.datasets.spec import Variable
    from lapse.physics.grid import Grid
    from lapse.surrogate.model import Model
    from lapse.surrogate.package import build

    variables = (Variable("vorticity", "s-1", standard_name="atmosphere_relative_vorticity"),)
    spec = FieldSpec(variables, Grid.periodic_box(16), 0.2, "s", equation="kolmogorov").replace(**changes)
    network = {"network": "convolutional", "latent_channels": 2, "width": 8, "encoder_depth": 1, "decoder_depth": 1}
    config = {
        "name": "tiny",
        "normaliser": {},
        "autoencoder": {**network, "heads": ["mean"]},
        "emulator": {"width": 8, "depth": 1, "history": 2, "calendar": spec.calendar is not None,
                     "parts": ["mean", "generator", "fast", "error"]},
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        emulator = build(spec, config).eval()
        with torch.no_grad():
            for weights in emulator.parameters():  # the last layers of fresh networks are zero
                if weights.ndim > 1:
                    weights += 0.02 * torch.randn_like(weights)
    card = "# tiny\n\nRandom weights.\n\n## Fields\n\nas above\n\n## Autoencoder\n\nnot trained\n"
    return Model(emulator, "tiny", config, card)


@pytest.fixture(scope="session")
def make_model() -> "Callable[..., Model]":
    """`random_model`, for tests that need another spec."""
    return random_model


@pytest.fixture(scope="session")
def make_analyses() -> "Callable[[FieldSpec, Any], xr.Dataset]":
    """`random_analyses`, for such a spec."""
    return random_analyses


@pytest.fixture(scope="session")
def analyses(tiny_model: "Model") -> "xr.Dataset":
    """Five frames of random smooth vorticity that fit `tiny_model`."""
    return random_analyses(tiny_model.spec, 0.2 * np.arange(5))


def random_analyses(spec: "FieldSpec", times: Any) -> "xr.Dataset":
    """Frames at ``times``, of a few random waves each."""
    import xarray as xr

    from lapse.datasets.fields import space_coordinates

    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.arange(n) * 2 * np.pi / n for n in spec.grid.shape), indexing="ij")
    waves = [np.sin(a * x + b * y + 2 * np.pi * rng.random()) for a in range(3) for b in range(3)]
    fields = np.tensordot(rng.standard_normal((len(times), len(waves))), waves, 1).astype("float32")
    units = {} if spec.calendar else {"units": spec.time_units}
    return xr.Dataset(
        {"vorticity": (("time", *spec.grid.names), fields, {"units": "s-1"})},
        {"time": ("time", times, units), **space_coordinates(spec)},
        {"history": "made for a test"},
    )
