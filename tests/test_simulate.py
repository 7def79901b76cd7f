"""The simulator against the equation itself, and against kills, full disks and other batches."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from lapse.datasets.shards import ShardedWriter, StoreError
from lapse.datasets.simulate import coarsen, simulate, trajectory_generator
from lapse.datasets.spec import FieldSpec
from lapse.datasets.store import StoreSource
from lapse.physics.equation import Equation, equation
from lapse.physics.grid import Grid

SMALL: dict[str, Any] = {
    "frames": 5, "interval": 0.2, "spin_up": 0.5, "seed": 3, "resolution": 32, "stored": 16, "progress": False,
    "parameters": {"modes": 10, "viscosity": 0.05},
}  # fmt: skip


def make(path: Path, trajectories: int = 3, **options: Any) -> xr.Dataset:
    (out,) = simulate("kolmogorov", path, trajectories=trajectories, **{**SMALL, **options})
    return xr.open_zarr(out).load()


def flow() -> Equation:
    return equation("kolmogorov", Grid.periodic_box(32), modes=10, viscosity=0.05)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return make(tmp_path_factory.mktemp("simulate") / "a.zarr")


def test_truncation_is_exact_on_waves_and_drops_the_rest() -> None:
    fine, shape = Grid.periodic_box((32, 48)), (16, 24)
    coarse = fine.resampled(shape)

    def field(grid: Grid, *modes: tuple[int, int]) -> torch.Tensor:
        y, x = grid.meshgrid()
        return sum((torch.cos(p * y + q * x + p - q) for p, q in modes), torch.zeros(grid.shape, dtype=torch.float64))

    kept, dropped = [(0, 0), (3, 2), (7, -11), (-5, 0)], [(8, 0), (9, 1), (0, 12), (3, 15)]
    got = coarsen(field(fine, *kept, *dropped)[None, None], fine, shape)
    torch.testing.assert_close(got[0, 0], field(coarse, *kept), atol=1e-12, rtol=0)
    u = torch.randn(2, 1, 32, 48)
    assert coarsen(u, fine, (32, 48)) is u


def test_frames_are_the_equations_own(reference: xr.Dataset) -> None:
    """Spin-up in equal pieces no longer than a frame, then one interval a frame, then truncation."""
    e = flow()
    u = e.initial(trajectory_generator(3, 2), 1)
    for _ in range(3):
        u = e.advance(u, 0.5 / 3)
    for t in range(5):
        want = coarsen(u, e.grid, (16, 16))[0, 0].numpy()
        np.testing.assert_array_equal(reference.vorticity[2, t], want)
        u = e.advance(u, 0.2)


def test_the_store_says_what_it_is(reference: xr.Dataset, tmp_path: Path) -> None:
    ds = reference
    assert ds.vorticity.dims == ("trajectory", "time", "y", "x")
    np.testing.assert_allclose(ds.time, [0, 0.2, 0.4, 0.6, 0.8])
    assert ds.time.attrs["units"] == "s" and ds.vorticity.attrs["units"] == "s-1"
    np.testing.assert_allclose(ds.x, 2 * np.pi * np.arange(16) / 16)
    assert json.loads(ds.attrs["parameters"])["viscosity"] == 0.05
    assert ds.attrs["equation"] == "kolmogorov" and ds.attrs["lapse_seed"] == 3
    spec = FieldSpec.infer(ds)
    assert spec.equation == "kolmogorov" and spec.grid.periodic == (True, True)
    assert spec.interval == pytest.approx(0.2) and spec.time_units == "s" and spec.calendar is None
    assert spec.parameters["viscosity"] == 0.05


def test_a_trajectory_depends_on_seed_and_number_only(reference: xr.Dataset, tmp_path: Path) -> None:
    """In other shards, with more of them: the same, bit for bit; in another batch to round-off, since a Fourier
    transform of one field may sum in another order than that of two."""
    more = make(tmp_path / "a.zarr", 4, shard=3)
    np.testing.assert_array_equal(more.vorticity[:3], reference.vorticity)
    together = make(tmp_path / "b.zarr", batch=3, shard=2)
    np.testing.assert_allclose(together.vorticity, reference.vorticity, rtol=0, atol=2e-5)
    more = make(tmp_path / "c.zarr", 4, batch=2)
    np.testing.assert_allclose(more.vorticity[:3], reference.vorticity, rtol=0, atol=2e-5)
    other = make(tmp_path / "d.zarr", 1, seed=4)
    assert np.abs(other.vorticity[0] - reference.vorticity[0]).max() > 0.1
    v = reference.vorticity.values
    assert min(np.abs(v[i] - v[j]).max() for i in range(3) for j in range(i)) > 0.1


def test_dask_workers_write_the_same_store(reference: xr.Dataset, tmp_path: Path) -> None:
    xr.testing.assert_identical(make(tmp_path / "p.zarr", scheduler="threads", workers=2), reference)


def test_several_sizes_are_truncations_of_one_run(tmp_path: Path) -> None:
    paths = simulate("kolmogorov", tmp_path / "k{size}.zarr", trajectories=2, **{**SMALL, "stored": (8, 16, 32)})
    assert [p.name for p in paths] == ["k8.zarr", "k16.zarr", "k32.zarr"]
    small, medium, full = (xr.open_zarr(p).load() for p in paths)
    want = coarsen(torch.from_numpy(full.vorticity.values), Grid.periodic_box(32), (16, 16))
    np.testing.assert_allclose(medium.vorticity, want, atol=1e-5)
    assert small.vorticity.shape == (2, 5, 8, 8)
    with pytest.raises(ValueError, match=r"\{size\}"):
        simulate("kolmogorov", tmp_path / "k.zarr", trajectories=2, **{**SMALL, "stored": (8, 16)})
    with pytest.raises(ValueError, match="found stored size 64"):
        simulate("kolmogorov", tmp_path / "k.zarr", trajectories=2, **{**SMALL, "stored": 64})


def test_chunks_and_shards_are_as_asked(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", 5, shard=2, chunk=2)
    array = zarr.open_array(tmp_path / "a.zarr" / "vorticity")
    assert array.shards == (2, 6, 16, 16) and array.chunks == (1, 2, 16, 16)
    ds = xr.open_zarr(tmp_path / "a.zarr")
    source = StoreSource(tmp_path / "a.zarr", FieldSpec.infer(ds))
    out = np.empty((5, 5, 1, 16, 16), np.float32)
    source.read(0, 5, 0, 5, out)
    np.testing.assert_array_equal(out[:, :, 0], ds.vorticity)


def test_a_resume_may_add_trajectories_but_change_nothing(reference: xr.Dataset, tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", 2)
    grown = make(tmp_path / "a.zarr", 3, resume=True)
    xr.testing.assert_identical(grown, reference)
    with pytest.raises(StoreError, match=r"identity\.parameters\.viscosity: the store has 0\.05, asked for 0\.06"):
        make(tmp_path / "a.zarr", 3, resume=True, parameters={"modes": 10, "viscosity": 0.06})
    with pytest.raises(StoreError, match=r"identity\.seed: the store has 3, asked for 5"):
        make(tmp_path / "a.zarr", 3, resume=True, seed=5)
    with pytest.raises(StoreError, match=r"exists\. Pass resume=True"):
        make(tmp_path / "a.zarr", 3)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_simulate import SMALL
from lapse.datasets.shards import StoreError
from lapse.datasets.simulate import simulate

if __name__ == "__main__":
    print("ready", flush=True)
    try:
        simulate("kolmogorov", {path!r}, trajectories={n}, resume=True, **{{**SMALL, **{options}}})
    except StoreError as e:
        print(e, file=sys.stderr)
        sys.exit(3)
"""


def script(tmp_path: Path, path: Path, n: int, options: dict[str, Any]) -> list[str]:
    file = tmp_path / "run.py"
    file.write_text(SCRIPT.format(tests=str(Path(__file__).parent), path=str(path), n=n, options=options))
    return [sys.executable, str(file)]


def test_killed_and_resumed_it_is_the_store_of_an_uninterrupted_run(tmp_path: Path) -> None:
    options = {"frames": 8, "interval": 0.4}
    whole = make(tmp_path / "whole.zarr", 12, **options)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = script(tmp_path, tmp_path / "a.zarr", 12, options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    markers = tmp_path / "a.zarr" / ".progress"
    while process.poll() is None and not (markers.is_dir() and len(list(markers.glob("*.done"))) >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(ShardedWriter.open(tmp_path / "a.zarr").missing())
    assert 0 < left <= 9
    times = {p: p.stat().st_mtime_ns for p in markers.glob("*.done")}
    resumed = make(tmp_path / "a.zarr", 12, resume=True, **options)
    xr.testing.assert_identical(resumed, whole)
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())  # what was done is not done again
    content = [
        {str(f.relative_to(p)): f.read_bytes() for f in p.rglob("*") if f.is_file()}
        for p in (tmp_path / "a.zarr", tmp_path / "whole.zarr")
    ]
    assert content[0] == content[1]


def test_a_limit_on_files_ends_in_a_clear_error_and_keeps_what_is_done(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the kernel refuses the write in the middle of a shard."""
    make(tmp_path / "a.zarr", 2, stored=32)
    before = xr.open_zarr(tmp_path / "a.zarr").vorticity[:2].load()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    done = subprocess.run(
        script(tmp_path, tmp_path / "a.zarr", 3, {"stored": 32}), preexec_fn=limit, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "writing block 2" in done.stderr and "File too large" in done.stderr and "resume" in done.stderr
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").vorticity[:2], before)
    assert [b.index for b in ShardedWriter.open(tmp_path / "a.zarr").missing()] == [(2,)]
    resumed = make(tmp_path / "a.zarr", 3, resume=True, stored=32)
    np.testing.assert_array_equal(resumed.vorticity, make(tmp_path / "b.zarr", 3, stored=32).vorticity)


def test_a_blow_up_is_named_and_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = flow()
    ordinary, calls = e.advance, []

    def fails_in_the_second(u: torch.Tensor, interval: float, steps: int | None = None) -> torch.Tensor:
        calls.append(interval)
        return ordinary(u, interval, steps) * (float("nan") if len(calls) == 7 + 5 else 1)

    monkeypatch.setattr(e, "advance", fails_in_the_second)
    options = {k: v for k, v in SMALL.items() if k not in ("parameters", "resolution")}
    with pytest.raises(FloatingPointError, match=r"trajectories \[1\] are not finite at frame 2"):
        simulate(e, tmp_path / "a.zarr", trajectories=3, **options)
    assert [b.index for b in ShardedWriter.open(tmp_path / "a.zarr").missing()] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "found frames=0"),
        ({"interval": 0.0}, "found interval=0.0"),
        ({"shard": 0}, "found shard=0"),
        ({"stored": 2}, "found stored size 2"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "a.zarr", **options)
    with pytest.raises(ValueError, match="brings its own"):
        simulate(flow(), tmp_path / "a.zarr", trajectories=1, **SMALL)
