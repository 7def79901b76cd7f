"""Ensembles at scale: memory, the price of writing, kills, latents, statistics that were never stored.

    python benchmarks/ensembles.py                    # 1,000 members of kolmogorov64
    python benchmarks/ensembles.py --members 10000    # as issue 4 asks; ten times as long

The flow is the shipped model's own. Every measured run is a forked process that starts with the model loaded and its
peak memory reset, so that peaks compare. Times are processor time: on a machine with other work the clock says little.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from lapse import load, open_dataset
from lapse.datasets.simulate import simulate
from lapse.surrogate.ensemble import Ensemble, status
from lapse.surrogate.model import Model
from record import ROOT, Row, quick, record, show

WORK = ROOT / "benchmarks" / "work" / f"ensembles-{os.getpid()}"
FORK = multiprocessing.get_context("fork")
SEED = 5
ROUNDING = 0.5  # of the decoder's error, for latents as bytes
STAGES = ("latents", "splits", "kills", "fields", "statistics")


def in_child(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What ``work`` measures in a process of its own, and that process's peak memory in MiB, also above its start."""
    receive, send = FORK.Pipe(duplex=False)

    def memory(what: str) -> float:
        line = next(r for r in Path("/proc/self/status").read_text().splitlines() if r.startswith(what))
        return int(line.split()[1]) / 1024

    def run() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
        start = memory("VmRSS")
        found = work()
        send.send({**found, "peak": memory("VmHWM"), "above": memory("VmHWM") - start})

    child = FORK.Process(target=run)
    child.start()
    send.close()
    found: dict[str, float] = receive.recv()  # EOFError where the child failed
    child.join()
    return found


def timed(model: Model, ds: xr.Dataset, path: Path, steps: int, members: int, **options: Any) -> dict[str, float]:
    """One ensemble in a child: processor seconds of computing and of writing, and their ratio by the clock."""

    def now() -> NDArray[np.float64]:
        return np.array([time.process_time(), time.perf_counter()])

    def work() -> dict[str, float]:
        compute, write = np.zeros(2), np.zeros(2)
        ensemble = model.ensemble(ds, steps, members, seed=SEED, **options).create(path)
        for block in ensemble.writer.missing():
            begin = now()
            arrays = ensemble.keep.compute(ensemble, block)
            middle = now()
            ensemble.writer.write(arrays, block)
            compute += middle - begin
            write += now() - middle
        begin = now()
        ensemble.finalise()
        write += now() - begin
        return {"compute": float(compute[0]), "write": float(write[0]), "clock": float(write[1] / compute[1])}

    return in_child(work)


def scale(model: Model, ds: xr.Dataset, keep: str, members: int, steps: int) -> list[Row]:
    """Memory and the price of writing, at a tenth of the members and at all of them."""
    runs = {}
    for count in (members // 10, members):
        options: dict[str, Any] = {"keep": keep}
        if keep == "statistics":
            options["shard"] = members // 10
        runs[count] = timed(model, ds, WORK / f"{keep}-{count}.zarr", steps, count, **options)
        print(f"{count} members, {keep}: {runs[count]}", flush=True)
    few, many = runs[members // 10], runs[members]
    rows = [
        Row(f"4.1 peak memory, {members} / {members // 10} members, {keep}", many["peak"] / few["peak"], None,
            "<= 1.1", "ratio"),
        Row(f"4.1 peak memory of {members} members, {keep}", many["peak"], None, None, "MiB"),
        Row(f"4.1 of which above the loaded model, {keep}", many["above"], None, None,
            f"MiB; {few['above']:.0f} of {members // 10} members"),
        Row(f"4.1 writing / generating, {keep}", many["write"] / many["compute"], None, "<= 0.25", "ratio"),
        Row(f"4.1 writing / generating by the clock, {keep}", many["clock"], None, None, "ratio"),
        Row(f"4.1 generating, {keep}", 1000 * many["compute"] / (members * steps), None, None,
            "CPU ms a member and frame"),
    ]  # fmt: skip
    if keep == "fields":
        first, every = (xr.open_zarr(WORK / f"fields-{n}.zarr") for n in (members // 10, members))
        mine, theirs = first["vorticity"], every["vorticity"].isel(member=slice(members // 10))
        same = all(bool((mine[0, :, k].values == theirs[0, :, k].values).all()) for k in range(steps))
        check = f"4.1 first {members // 10} of {members} members are those of {members // 10}"
        finite = int((every["valid"] == 1).sum())
        rows += [
            Row(check, same, None, "true"),
            Row(f"4.1 finite members of {members}", finite, None, f"== {members}", "members"),
        ]
    return rows


def online(members: int) -> list[Row]:
    """The statistics against the stored fields, where both stages were run."""
    fields, statistics = (WORK / f"{keep}-{members}.zarr" for keep in ("fields", "statistics"))
    if not (fields.exists() and statistics.exists()):
        return []
    where = f"of {members}, in blocks of {members // 10}"
    return offline(xr.open_zarr(fields)["vorticity"], xr.open_zarr(statistics), where)


def offline(fields: xr.DataArray, online: xr.Dataset, where: str) -> list[Row]:
    """Online statistics against those of the stored members, a lead at a time."""
    mean, variance, beyond, away, spread = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(fields.sizes["lead_time"]):
        x = fields.isel(init_time=0, lead_time=k).values
        found = online.isel(init_time=0, lead_time=k).load()
        true_variance = x.var(axis=0, ddof=1, dtype=np.float64)
        std = float(np.sqrt(true_variance).mean())
        mean = max(mean, float(np.abs(found["vorticity_mean"] - x.mean(axis=0, dtype=np.float64)).max()) / std)
        variance = max(variance, float(np.abs(found["vorticity_variance"] / true_variance - 1).max()))
        error = np.abs(found["vorticity_quantile"].values - np.quantile(x, online["quantile"].values, axis=0))
        beyond = max(beyond, float((error - found["vorticity_quantile_error"].values).max()))
        away, spread = away + float(error.mean()), spread + std
    return [
        Row(f"4.1 online mean {where}", mean, None, "<= 1e-5", "of the spread, largest error"),
        Row(f"4.1 online variance {where}", variance, None, "<= 1e-5", "relative, largest error"),
        Row(f"4.1 quantiles within their bound, {where}", beyond <= 1e-5, None, "true"),
        Row(f"4.1 quantiles {where}", away / spread, None, None, "of the spread, mean error"),
    ]


def splits(model: Model, ds: xr.Dataset, members: int, steps: int) -> list[Row]:
    """The same statistics from blocks of several sizes."""
    made = []
    for shard, batch in ((members, members), (members // 3, 16), (members // 2, 5)):
        path = WORK / f"split-{shard}.zarr"
        timed(model, ds, path, steps, members, keep="statistics", shard=shard, batch_size=batch, truth=ds,
              init_times=ds["time"].values[:1])  # fmt: skip
        made.append((xr.open_zarr(path).load(), xr.open_dataset(path / "scores.nc").load()))
    (first, scores), worst, quantiles = made[0], 0.0, 0.0
    for other, theirs in made[1:]:
        for a, b in ((first, other), (scores, theirs)):
            for name in a.data_vars:
                gap = float(np.abs(a[name] - b[name]).max() / np.maximum(np.abs(a[name]).max(), 1e-30))
                worst = max(worst, gap)
                quantiles = max(quantiles, gap if "quantile" in str(name) else 0.0)
    return [
        Row("4.1 statistics and scores under three splits", worst, None, "<= 1e-5", "relative, largest difference"),
        Row("4.1 quantiles under three splits", quantiles, None, "<= 1e-5", "relative, largest difference"),
    ]


def kills(model: Model, ds: xr.Dataset, members: int, steps: int, count: int) -> list[Row]:
    """Four workers, one of them killed at a random moment, again and again; then a resume."""
    rows = []
    for keep in ("fields", "statistics"):
        path = WORK / f"killed-{keep}.zarr"
        options: dict[str, Any] = {"keep": keep, "shard": 4, "batch_size": 4}
        model.ensemble(ds, steps, members, seed=SEED, **options).create(path)
        dice, killed, during = random.Random(0), 0, 0

        def worker(part: int, path: Path = path) -> None:
            Ensemble.at(path, model).run((part, 4), progress=False)

        running: dict[int, Any] = {}
        while killed < count and status(path).done < status(path).blocks:
            for part in range(1, 5):
                if part not in running or (not running[part].is_alive() and running[part].exitcode != 0):
                    running[part] = FORK.Process(target=worker, args=(part,))
                    running[part].start()
            before = status(path).done
            time.sleep(dice.uniform(0.0, 0.2))
            while status(path).done == before and any(p.is_alive() for p in running.values()):
                time.sleep(0.005)
            victim = running[dice.randint(1, 4)]
            if victim.is_alive():
                os.kill(victim.pid, signal.SIGKILL)
                victim.join()
                killed += 1
                during += any(path.rglob("*.partial"))
        for process in running.values():
            if process.is_alive():
                process.kill()
            process.join()
        resumed = Ensemble.at(path, model)
        left = resumed.run(progress=False)
        resumed.finalise()
        whole = WORK / f"unkilled-{keep}.zarr"
        timed(model, ds, whole, steps, members, **options)
        a, b = xr.open_zarr(path).load(), xr.open_zarr(whole).load()
        equal = all(np.array_equal(a[n].values, b[n].values, equal_nan=True) for n in b.data_vars)
        complete = int(a["members_used"].sum()) if keep == "statistics" else int((a["valid"] == 1).sum())
        rows += [
            Row(f"4.1 SIGKILLs of one of four workers, {keep}", killed, None, f">= {count}", "kills"),
            Row(f"4.1 blocks left for the resume, {keep}", left, None, None, "blocks"),
            Row(f"4.1 members after kills and resume, {keep}", complete, None, f"== {members}", "members"),
            Row(f"4.1 after kills the same, bit by bit, as without, {keep}", equal, None, "true"),
        ]
    return rows


def latents(model: Model, ds: xr.Dataset, members: int, steps: int) -> list[Row]:
    """Size and truth of an ensemble that is kept as latents."""
    path = WORK / "latents.zarr"
    spent = timed(model, ds, path, steps, members, keep="latents")
    direct = WORK / f"direct-{members}.zarr"
    timed(model, ds, direct, steps, members)
    fields = xr.open_zarr(direct)["vorticity"].load()
    lazy = Ensemble.at(path, model).open()["vorticity"]
    begin = time.process_time()
    lazy.isel(member=members // 2, lead_time=steps - 1, x=slice(8)).load()
    one = time.process_time() - begin
    error = np.abs(lazy.values - fields.values)
    again = bool(
        (Ensemble.at(path, model).open()["vorticity"].isel(member=1).values == lazy.isel(member=1).values).all()
    )
    coarse = WORK / "bytes.zarr"
    timed(model, ds, coarse, steps, members, keep="latents", rounding=ROUNDING)
    off = Ensemble.at(coarse, model).open()["vorticity"].values - fields.values
    known = float(model.emulator.error.scale(torch.zeros(1, *model.emulator.latent_shape)).square().mean().sqrt())
    size = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in (path, direct, coarse)}
    plan = {k: model.ensemble(ds, steps, members, keep=k).store.bytes for k in ("fields", "latents")}
    return [
        Row("4.1 latents, times smaller than fields", plan["fields"] / plan["latents"], None, ">= 50", "times"),
        Row("4.1 latents, times smaller than fields, both compressed on disk", size[direct] / size[path], None, None,
            "times"),
        Row(f"4.1 latents as bytes, rounding {ROUNDING:g}, on disk, times smaller than fields",
            plan["fields"] / size[coarse], None, ">= 50", "times"),
        Row(f"4.1 decoded member / direct one, rounding {ROUNDING:g}, rms",
            float(np.sqrt((off**2).mean())) / float(model.spec["vorticity"].std or 1.0) / known, None, None,
            "of the decoder's error"),
        Row("4.1 decoded member / direct one", float(error.max() / np.abs(fields.values).max()), None, "<= 2e-3",
            "of the largest value, largest error"),
        Row("4.1 decoded member / direct one, rms", float(np.sqrt((error**2).mean()) / fields.values.std()), None,
            "<= 4.9e-4", "of the standard deviation; 2^-11 is 4.9e-4"),
        Row("4.1 a decoded member is the same again", again, None, "true"),
        Row("4.1 one frame from latents", 1000 * one, None, None, "CPU ms"),
        Row("4.1 writing / generating by the clock, latents", spent["clock"], None, None, "ratio"),
        Row("4.1 writing / generating, latents", spent["write"] / spent["compute"], None, "<= 0.25", "ratio"),
        Row("4.1 generating, latents", 1000 * spent["compute"] / (members * steps), None, None,
            "CPU ms a member and frame"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--members", type=int, default=40 if quick() else 1000, help="a multiple of 10")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, help="some stages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, small = (2, 8) if quick() else (10, 100)
    simulate("kolmogorov", WORK / "flow.zarr", trajectories=1, frames=steps + 2, interval=0.2, resolution=64,
             spin_up=0.5 if quick() else 20.0, seed=9, progress=False)  # fmt: skip
    ds = open_dataset(WORK / "flow.zarr").isel(trajectory=0).load()
    start = ds.isel(time=slice(0, 2))
    model = load("kolmogorov64")
    stages: dict[str, Callable[[], list[Row]]] = {
        "latents": lambda: latents(model, start, 5 * small, steps),
        "splits": lambda: splits(model, ds, small, steps),
        "kills": lambda: kills(model, start, (4 if quick() else 10) * small, 3, 2 if quick() else 20),
        "fields": lambda: scale(model, start, "fields", options.members, steps),
        "statistics": lambda: scale(model, start, "statistics", options.members, steps) + online(options.members),
    }
    ratio = model.emulator.autoencoder.network.compression
    note = f"latents hold {ratio:.3g} times fewer numbers than fields, and float16 halves them: {2 * ratio:.3g} times"
    try:
        for name in options.only:
            begin = time.perf_counter()
            rows = stages[name]()
            show(rows, record("ensembles", rows, (time.perf_counter() - begin) / 60, note, stage=name))
        print(f"{(time.process_time() + sum(os.times()[2:4])) / 60:.1f} CPU minutes")
    finally:
        if FORK.parent_process() is None:
            shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
