"""How fast training windows come from one chunked zarr store, and how much memory that takes.

    python benchmarks/loading.py          # make bench-loading; QUICK=1 for a smoke test

The store is (time, y, x) float32, 64², in compressed chunks of 64 frames (1 MiB), sharded. Contenders hand out shuffled
batches of windows of L consecutive frames:

- *lapse*: a whole epoch of `datasets.windows.Windows`, every window of the store, read in pieces;
- *xbatcher*: its `BatchGenerator` behind its own torch `MapDataset` and a DataLoader, with and without dask; of
  the windows a part, since it takes the same time for each. The better of the two is the opponent;
- *raw*: every chunk read and decompressed once with zarr, in order, and nothing else done.

Before each run the kernel is asked to drop the store's files from its cache. Runs are interleaved and repeated; values
are medians, ranges are over repetitions. Memory is measured in a process of its own, over one epoch of a store several
times larger than the buffer that it is allowed.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from lapse.datasets.shards import ShardedWriter, blank
from lapse.datasets.spec import FieldSpec
from lapse.datasets.splits import Rectangle
from lapse.datasets.store import StoreSource
from lapse.datasets.windows import WindowLoader, Windows
from record import ROOT, Row, quick, record

SIZE, CHUNK, SHARD = 64, 64, 1024
FRAMES = 4096 if quick() else 65536  # 64 MiB or 1 GiB
LENGTHS = (2, 5, 9)
HEADLINE = 5  # one context frame and four to unroll
BATCH = 32
REPEATS = 1 if quick() else 5
BUFFER = (16 if quick() else 256) * 2**20
SAMPLES = 64 if quick() else 512  # windows that xbatcher is timed on


def make(path: Path) -> None:
    """Waves with a turbulent spectrum that turn at their own speeds: smooth fields that compress as such do."""
    rng = np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None])
    noise = rng.normal(size=(*k.shape, 2)) @ np.array([1, 1j])
    amplitude = np.where((k > 0) & (k < SIZE / 3), noise * np.maximum(k, 1) ** -2.5, 0)
    speed = rng.normal(size=k.shape) * k / 20
    axis = 2 * np.pi * np.arange(SIZE) / SIZE
    template = xr.Dataset(
        {"vorticity": (("time", "y", "x"), blank((FRAMES, SIZE, SIZE)), {"units": "s-1"})},
        {
            "time": ("time", 0.1 * np.arange(FRAMES), {"units": "s"}),
            "y": ("y", axis, {"units": "m", "periodic": "true"}),
            "x": ("x", axis, {"units": "m", "periodic": "true"}),
        },
    )
    writer = ShardedWriter.create(path, template, shards={"time": SHARD}, chunks={"time": CHUNK})
    for block in writer.missing():
        t = np.arange(block.region["time"].start, block.region["time"].stop)[:, None, None]
        field = np.fft.irfft2(amplitude * np.exp(1j * speed * t), (SIZE, SIZE)) * SIZE**2
        writer.write({"vorticity": field.astype(np.float32)}, block)
    writer.finalise()


def forget(path: Path) -> None:
    """Asks the kernel to drop the store's pages; it need not obey, and does so only for what is on disk."""
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def loader(path: Path, length: int) -> WindowLoader:
    with xr.open_zarr(path) as ds:
        source = StoreSource(path, FieldSpec.infer(ds.isel(time=slice(2))))
    windows = Windows(source, [Rectangle(0, 1, 0, FRAMES)], length, BATCH, shuffle=True, buffer=BUFFER)
    return WindowLoader(windows)


def run_lapse(path: Path, length: int) -> tuple[int, float]:
    batches = loader(path, length)
    start = time.perf_counter()
    count = sum(batch.fields.shape[0] for batch in batches)
    return count, time.perf_counter() - start


def run_raw(path: Path) -> tuple[int, float]:
    """Seconds for all chunks, eight in one call (zarr decompresses them side by side)."""
    array = zarr.open_array(path / "vorticity", mode="r")
    start = time.perf_counter()
    for t in range(0, FRAMES, 8 * CHUNK):
        array[t : t + 8 * CHUNK]
    return FRAMES, time.perf_counter() - start


def run_xbatcher(path: Path, length: int, chunks: dict[str, int] | None) -> tuple[int, float]:
    import torch
    import xbatcher
    from torch.utils.data import DataLoader, Subset
    from xbatcher.loaders.torch import MapDataset

    ds = xr.open_zarr(path, chunks=chunks)[["vorticity"]]
    generator = xbatcher.BatchGenerator(
        ds, {"time": length, "y": SIZE, "x": SIZE}, input_overlap={"time": length - 1}, preload_batch=False
    )
    # Unique chunks, far apart: as a shuffled epoch of a store larger than memory has them.
    some = np.random.default_rng(1).permutation(FRAMES - length + 1)[:SAMPLES].tolist()
    batches = DataLoader(Subset(MapDataset(generator), some), batch_size=BATCH)
    start = time.perf_counter()
    count = sum(torch.as_tensor(batch).shape[0] for batch in batches)
    return count, time.perf_counter() - start


MEMORY = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import resource, json
import torch
import loading

torch.set_num_threads(1)
loading.FRAMES = {frames}

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

batches = loading.loader(Path({path!r}), loading.HEADLINE)
before, seen = resident(), []
for _ in batches:
    seen.append(resident())
print(json.dumps({{"before": before, "seen": seen}}))
"""


def memory(path: Path) -> dict[str, float]:
    """MiB of resident memory over one epoch, in a fresh process."""
    script = MEMORY.format(here=str(Path(__file__).parent), path=str(path), frames=FRAMES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    seen = found["seen"]
    half = len(seen) // 2
    return {
        "above": max(seen) - found["before"],
        "growth": max(seen[half:]) - max(seen[:half]),
        "store": 4 * FRAMES * SIZE**2 / 2**20,
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    work = ROOT / "benchmarks" / "work" / "loading"
    shutil.rmtree(work, ignore_errors=True)
    path = work / "waves.zarr"
    make(path)
    on_disk = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 2**20
    try:
        import xbatcher  # noqa: F401

        xbatchers = {"xbatcher": None, "xbatcher with dask": {"time": CHUNK}}
    except ImportError:
        xbatchers = {}
    runs: dict[str, Callable[[], tuple[int, float]]] = {"raw": lambda: run_raw(path)}
    runs |= {f"lapse L={n}": lambda n=n: run_lapse(path, n) for n in LENGTHS}
    runs |= {name: lambda c=c: run_xbatcher(path, HEADLINE, c) for name, c in xbatchers.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            forget(path)
            count, seconds = run()
            rates[name].append(count / seconds)
            print(f"{name:20s} {count / seconds:10.0f} windows or frames/s", flush=True)
    used = memory(path)

    def figure(check: str, values: list[float], unit: str, target: str | None = None) -> Row:
        ends = (min(values), max(values))
        return Row(check, statistics.median(values), ends if len(values) > 1 else None, target, unit)

    def ratios(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(rates[a], rates[b], strict=True)]

    rows = [figure("5.0 raw: every chunk read and decompressed once", rates["raw"], "frames/s")]
    rows += [figure(f"5.0 lapse, windows of {n} frames", rates[f"lapse L={n}"], "windows/s") for n in LENGTHS]
    if xbatchers:
        rows += [figure(f"5.0 {name}, windows of {HEADLINE} frames", rates[name], "windows/s") for name in xbatchers]
        best = max(xbatchers, key=lambda name: statistics.median(rates[name]))
        rows.append(figure("5.1 windows/s, lapse / xbatcher", ratios(f"lapse L={HEADLINE}", best), "ratio", ">= 10"))
    for n in LENGTHS:
        values = [x * FRAMES / (FRAMES - n + 1) for x in ratios(f"lapse L={n}", "raw")]
        check = f"5.2 time of reading the chunks / time of an epoch, windows of {n} frames"
        rows.append(figure(check, values, "ratio", ">= 0.7"))
    rows += [
        Row("5.3 resident memory over an epoch, above that before it", used["above"], unit="MiB"),
        Row("5.3 growth of its peak from the first to the second half of the epoch, of the store's size",
            max(0.0, used["growth"]) / used["store"], target="<= 0.02", unit="ratio"),
    ]  # fmt: skip
    notes = [
        f"{FRAMES} frames of {SIZE}², {used['store']:.0f} MiB, {on_disk:.0f} MiB compressed, buffer "
        f"{BUFFER / 2**20:.0f} MiB, batches of {BATCH}, one process and no workers; lapse reads ahead in a thread."
    ]
    if not xbatchers:
        notes.append("xbatcher is not installed: pip install --no-deps xbatcher, and run again.")
    print(record("loading", rows, (time.perf_counter() - began) / 60, notes))
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
