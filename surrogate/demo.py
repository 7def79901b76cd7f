"""The main job in one command: ``python -m lapse.surrogate.demo``.

Simulates a truth from a seed that the model never saw, with the equation that the model's spec names and its own solver
at the model's grid; forecasts an ensemble from it; scores that against the truth and against persistence; writes
``forecast.zarr``, ``forecast.nc`` and ``report.html``; prints a table, the physics beside the accuracy.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from .model import Model

__all__ = ["main"]

SEED = 271828  # of the truth: no training set is simulated from it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    options = _options(arguments)
    # One thread, as for every verb of the command line: two on a busy machine are many times slower.
    os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("LAPSE_THREADS", "1"))
    begun = time.perf_counter()
    print("lapse demo: loading the libraries …", flush=True)
    import torch

    from ..datasets.open import open_dataset
    from .baselines import persistence
    from .package import PackageError, load
    from .report import report
    from .scores import score
    from .tables import skill_table
    from .verbs import write_netcdf

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        model = load(options.model)
    except PackageError as error:
        print(f"lapse demo: error: {error}", file=sys.stderr)
        return 1
    if model.spec.equation is None:
        print(f"lapse demo: error: model {model.name!r} names no equation to take a truth from", file=sys.stderr)
        return 1
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for old in ("truth.zarr", "forecast.zarr"):
        shutil.rmtree(out / old, ignore_errors=True)

    history = model.emulator.history
    print(f"1/4  a truth from seed {options.seed}, which the model never saw: {model.spec.equation} on "
          f"{'×'.join(map(str, model.spec.grid.shape))} cells", flush=True)  # fmt: skip
    truth = open_dataset(_truth(model, out / "truth.zarr", history + options.steps, options.seed)).isel(trajectory=0)
    every = f"{model.spec.interval:g} {model.spec.time_units}"
    print(f"2/4  {options.members} members × {options.steps} frames of {every}, model {model.name}", flush=True)
    clock = time.perf_counter()
    start = truth.isel(time=slice(history))
    blocks = max(4, options.members // 8)  # of members: small, so that the progress bar moves
    fc = model.forecast(start, options.steps, options.members, store=out / "forecast.zarr", batch_size=blocks)
    seconds = time.perf_counter() - clock
    fc = fc.load()
    (out / "forecast.nc").unlink(missing_ok=True)
    write_netcdf(fc, out / "forecast.nc")
    print("3/4  scores against the truth and against persistence", flush=True)
    baselines = {"persistence": persistence(truth, fc["init_time"], fc["lead_time"], valid_time=fc["valid_time"])}
    scores = score(fc, truth, spec=model.spec, baselines=baselines, nan="valid")
    print("4/4  the report", flush=True)
    page = report(
        fc, truth, scores, out / "report.html", baselines=baselines, spec=model.spec, nan="valid",
        model_card=model.card or None,
    )  # fmt: skip
    print()
    print(skill_table(scores))
    print()
    print(_aligned(_physics(fc, scores, model)))
    print()
    frames = options.members * options.steps
    print(f"{frames} member-frames in {seconds:.1f} s ({1e3 * seconds / frames:.1f} ms each); all in "
          f"{time.perf_counter() - begun:.0f} s")  # fmt: skip
    for path, what in (
        (page, "open it in a browser: the fields in motion, scores, spectra, calibration, physics"),
        (out / "forecast.zarr", 'xarray.open_zarr("…"), then ds.lapse.score(truth)'),
        (out / "forecast.nc", "the same as one file"),
        (out / "truth.zarr", "what really happened"),
    ):
        print(f"  {path!s:<24}  {what}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lapse.surrogate.demo", description="The main job in one command.")
    parser.add_argument("--model", default="kolmogorov64", help="shipped name or directory (default kolmogorov64)")
    parser.add_argument("--members", type=int, default=32, metavar="N", help="of the ensemble (default 32)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="frames to forecast (default 40)")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"of the truth (default {SEED})")
    parser.add_argument("--out", default="demo", metavar="FOLDER", help="where to write (default demo)")
    return parser.parse_args(arguments)


def _truth(model: "Model", path: Path, frames: int, seed: int) -> Path:
    """One trajectory of the model's equation on the model's grid."""
    from ..datasets.simulate import simulate
    from ..physics.equation import equation

    spec = model.spec
    assert spec.equation is not None
    law = equation(spec.equation, spec.grid, **spec.parameters)
    (made,) = simulate(law, path, trajectories=1, frames=frames, interval=model.spec.interval, stored=None, seed=seed)
    return made


def _physics(fc: "xr.Dataset", scores: "xr.Dataset", model: "Model") -> list[list[str]]:
    """Rows of figures at some leads, the heading first: conserved means, budgets, spectrum, who stayed finite."""
    import numpy as np

    from .tables import lead_label, spread_leads

    at = spread_leads(scores.sizes["lead_time"], 5)
    rows = [["physics", *(lead_label(scores["lead_time"], i) for i in at)]]
    weights, space = model.spec.grid.area_weights().numpy(), model.spec.grid.names
    for v in model.spec.names:
        means = (fc[v] * weights).mean(space)
        away = abs(means - means.isel(lead_time=0).mean()).max(("init_time", "member")) / fc[v].std()
        rows.append([f"area mean of {v}: largest drift / std", *(f"{float(away[i]):.1e}" for i in at)])
    for q in scores["quantity"].values if "quantity" in scores.dims else []:
        if str(q).removeprefix("mean_") not in model.spec.names:  # area means stand above
            ours, true = (scores[f"physics_{name}"].sel(quantity=q) for name in ("members", "truth"))
            rows.append([f"{q}: members / truth", *(f"{float(ours[i] / true[i]):.3f}" for i in at)])
    for v in model.spec.names:
        s = scores.sel(variable=v)
        for b in range(scores.sizes["band"]):
            low, high = float(scores["band_low"][b]), float(scores["band_high"][b])
            if bool((s["spectrum_truth"].isel(band=b) > 0).all()):
                label = f"k {low:.3g}–{high:.3g}" if np.isfinite(high) else f"k {low:.3g} and above"
                ratio = [f"{float(s['spectrum_ratio'][i, b]):.3f}" for i in at]
                rows.append([f"power of {v}, {label}: members / truth", *ratio])
    finite = [int(fc[v].isel(lead_time=i).notnull().all(space).sum()) for v in model.spec.names[:1] for i in at]
    rows.append([f"finite members, of {fc.sizes['init_time'] * fc.sizes['member']}", *map(str, finite)])
    return rows


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        figures = [x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *figures]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
