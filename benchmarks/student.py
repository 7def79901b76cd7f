"""Does a data set that a model enlarged teach a student more? neuraloperator's FNO on few and on more trajectories.

    python benchmarks/student.py                                                                  (make bench-student)
    python benchmarks/student.py --minutes 2                 # too short to learn much from any data: it does not help

The student forecasts Kolmogorov flow at 64² one frame at a time. It learns, for the same processor time, from

    few             ten trajectories
    enlarged        those and fifty that the shipped kolmogorov64 made from frames of the ten (`model.augment`); the
                    model was trained on fifty-six trajectories, the ten among them
    own enlarged    those and fifty that a model made which was trained on the ten alone: nothing new is known
    many            fifty-six trajectories: what the enlargement could at best be worth

and is scored on test trajectories that no training saw: VRMSE of its rollout, averaged over leads 1 to 20.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from contenders import packaged, prepare, train_fno

from lapse.datasets.simulate import simulate
from lapse.surrogate.model import Model
from lapse.surrogate.package import load
from record import ROOT, Row, quick, record, show

WORK = ROOT / "benchmarks" / "work" / ("quick" if quick() else "student")
FEW, MANY, MADE, FIRST = (4, 7, 3, 8) if quick() else (10, 56, 50, 64)  # trajectories; FIRST of the test split
LEADS = 3 if quick() else 20
MINUTES = 0.03 if quick() else 20.0  # of processor time, of every student


def selection(ds: xr.Dataset, name: str) -> Path:
    """The training data of a student, as a store; one more trajectory at its end is not trained on."""
    path = WORK / f"{name}.zarr"
    if not path.exists():
        known = ds.isel(trajectory=slice(0, MANY if name == "many" else FEW))
        if name.endswith("enlarged"):
            teacher = load("kolmogorov64") if name == "enlarged" or quick() else own_teacher(ds)
            known = xr.concat([known, generated(teacher, known)], "trajectory")
        known = xr.concat([known, ds.isel(trajectory=[FIRST - 1])], "trajectory")
        plain = xr.Dataset({"vorticity": known["vorticity"].chunk({"trajectory": 1})}).assign_attrs(ds.attrs)
        plain["vorticity"].encoding = {}
        plain.drop_vars([c for c in plain.coords if c not in ("time", "y", "x")]).to_zarr(
            path, mode="w", consolidated=False
        )
    return path


def own_teacher(ds: xr.Dataset) -> Model:
    """A model like the benchmark's lapse-fast, trained on the few trajectories alone."""
    return packaged(WORK / "teacher", selection(ds, "few"), (f"data.fractions={fractions(FEW + 1)}",))


def fractions(count: int) -> list[float]:
    """All trajectories but the last for training."""
    return [1 - 1 / count, 1 / count, 0.0]


def generated(teacher: Model, known: xr.Dataset) -> xr.Dataset:
    """Trajectories from frames of the known ones, as many of each."""
    frames = known.sizes["time"]
    parts = [
        teacher.augment(known.isel(trajectory=k), -(-MADE // FEW), steps=frames, seed=k, progress=False)
        for k in range(FEW)
    ]
    made = xr.concat(parts, "trajectory").isel(trajectory=slice(0, MADE))
    return made[["vorticity"]].drop_vars(["start_time", "generated"])


def score(student: Path, ds: xr.Dataset, minutes: float, seed: int) -> tuple[list[float], int]:
    """VRMSE at every lead, and the student's steps."""
    count = xr.open_zarr(student).sizes["trajectory"]
    forecaster, _, steps = train_fno(
        64, seed, minutes, student, WORK / f"fno-{student.stem}-{minutes:g}-{seed}",
        (f"data.fractions={fractions(count)}",),
    )  # fmt: skip
    u = torch.from_numpy(ds["vorticity"].isel(trajectory=slice(FIRST, None)).values)
    starts = np.arange(0, u.shape[1] - LEADS, 25)
    first = torch.cat([u[:, t] for t in starts])[:, None]
    found, deviation = [], float(u.std())
    with torch.no_grad():
        for k, frame in enumerate(forecaster(first, [torch.Generator()], LEADS), start=1):
            truth = torch.cat([u[:, t + k] for t in starts])[:, None]
            found.append(float((frame - truth).square().mean().sqrt()) / deviation)
    return found, steps


def data() -> xr.Dataset:
    """All trajectories."""
    if not quick():
        return xr.open_zarr(prepare(64, WORK)[0])
    (path,) = simulate(
        "kolmogorov", WORK / "flow.zarr", trajectories=9, frames=6, interval=0.2, resolution=64, spin_up=2.0,
        parameters={"viscosity": 0.012}, resume=True, progress=False,
    )  # fmt: skip
    return xr.open_zarr(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of every student's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    ds, errors, rows = data(), {}, []
    short = "" if options.minutes == MINUTES else f", {options.minutes:g} CPU min"
    for name in ("few", "enlarged", "own enlarged", "many"):
        runs = [score(selection(ds, name), ds, options.minutes, seed) for seed in options.seeds]
        each = [float(np.mean(curve)) for curve, _ in runs]
        errors[name] = each
        print(f"{name}: {each}, {[steps for _, steps in runs]} steps", flush=True)
        check = f"4.3 student, {name}{short}: VRMSE over {LEADS} leads"
        rows.append(Row(check, float(np.mean(each)), _range(each), None, "1"))
        for lead in sorted({1, LEADS // 2, LEADS}):
            value = float(np.mean([curve[lead - 1] for curve, _ in runs]))
            rows.append(Row(f"4.3 student, {name}{short}: VRMSE, lead {lead}", value, None, None, "1"))
        rows.append(Row(f"4.3 student, {name}{short}: training steps", runs[0][1], None, None, "steps"))
    for name, target in (("enlarged", None if short else "<= 0.9"), ("own enlarged", None), ("many", None)):
        each = [a / b for a, b in zip(errors[name], errors["few"], strict=True)]
        rows.append(Row(f"4.3 student, {name} / few{short}", float(np.mean(each)), _range(each), target, "ratio"))
    note = f"{options.minutes:g} CPU minutes for every student, {len(options.seeds)} seed(s); the last lead is {LEADS}"
    stage = f"{options.minutes:g} minutes"
    show(rows, record("student", rows, (time.process_time() - begin) / 60, note, stage=stage))


def _range(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if len(values) > 1 else None


if __name__ == "__main__":
    main()
