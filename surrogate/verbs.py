"""What the verbs of the command line do, each with the options that `cli` has parsed.

They print what a reader wants to know and write what was asked for; a file is written beside its place and renamed, so
that there is a whole one or none. What goes wrong is raised.
"""

import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from ..datasets.check import check as check_data
from ..datasets.open import open_dataset
from ..datasets.problem import Problem, SpecError
from ..datasets.shards import ShardedWriter, StoreError
from ..datasets.spec import FieldSpec
from .augment_verb import augment
from .design_verb import design
from .diagnose_verb import diagnose
from .ensemble_verb import ensemble, opened_forecast
from .model import Model
from .package import load, shipped

__all__ = [
    "augment",
    "check",
    "design",
    "diagnose",
    "ensemble",
    "forecast",
    "inspect",
    "report",
    "score",
    "simulate",
    "train",
    "write_netcdf",
]


def simulate(options: Namespace) -> None:
    """Make training data."""
    from ..datasets.simulate import simulate as make
    from ..physics.equation import lookup

    law = lookup(options.equation)
    interval = options.interval or law.usual.interval
    frames = 100 if options.frames is None and not law.static() else options.frames
    (path,) = make(
        options.equation, options.out, trajectories=options.trajectories, frames=frames,
        interval=options.interval, resolution=options.resolution, length=options.length, dimension=options.dimension,
        stored=options.stored, spin_up=options.spin_up, seed=options.seed,
        parameters=dict(options.parameter), batch=options.batch, device=options.device,
        scheduler="processes" if options.workers else None, workers=options.workers, resume=options.resume,
        progress=not options.quiet,
    )  # fmt: skip
    what = "samples" if law.static() else f"trajectories of {frames} frames, {interval:g} s apart"
    print(f"{path}: {options.trajectories} {what}")


def train(options: Namespace) -> None:
    """Train a model, and print its card."""
    if options.show and not options.overrides:
        return _show_configs()
    if options.show:
        from omegaconf import OmegaConf

        return print(OmegaConf.to_yaml(_composed(["data.path=MY.zarr", *options.overrides])), end="")
    config = _composed(options.overrides)
    from .train import train as run

    if os.environ.get("RANK", "0") == "0":
        print(f"training {config['name']!r} on {config['data']['path']}, checkpoints and model in {config['out']}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    try:
        model = run(config, progress=not options.quiet)
    except SystemExit as stop:  # Lightning's answer to an interruption
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{model.card}\nmodel: {Path(config['out']) / 'model'}")


def forecast(options: Namespace) -> None:
    """Forecast an ensemble into a zarr store or a netCDF file."""
    out = Path(options.out)
    kind = out.suffix.lower()
    if kind not in (".zarr", ".nc"):
        raise ValueError(f"--out: found {str(out)!r}, wanted a name that ends with .zarr or .nc")
    if options.resume and kind == ".nc":
        raise ValueError("--resume: a netCDF file is written at once; only a zarr store can be continued")
    if out.exists() and not options.resume:
        fix = "continue it with --resume, " if kind == ".zarr" else ""
        raise StoreError(f"{out} exists: {fix}delete it, or choose another name")
    _prepared(out)
    model = load(options.model, options.device)
    ds = _opened(options.data, options)
    starts = options.init_time[0] if options.init_time in (["last"], ["all"]) else options.init_time
    fc = model.forecast(
        ds, options.steps, options.members, seed=options.seed, init_times=starts, mode=options.mode,
        store=out if kind == ".zarr" else None, resume=options.resume, batch_size=options.batch_size,
        correct=options.correct, certify=options.certify, progress=not options.quiet,
    )  # fmt: skip
    if kind == ".nc":
        write_netcdf(fc, out)
    sizes = ", ".join(f"{d} {n}" for d, n in fc.sizes.items())
    print(f"{out}: {sizes}; {int((fc['valid'] == 1).sum())} of {fc['valid'].size} members finite to the end")
    if "certified" in fc:
        print(f"certified: {float(fc['certified'].mean()):.0%} of the frames (of the residual, not of the error)")


def score(options: Namespace) -> None:
    """Print the skill table, and write all scores if asked to."""
    from .scores import score as compare
    from .tables import skill_table

    if options.out:
        _prepared(Path(options.out))
    fc = opened_forecast(options.forecast, options.model)
    model = _model_of(options, fc)
    truth = _truth(options, model)
    baselines, why_not = _persistence(fc, truth)
    spec = None if model is None else model.spec
    scores = compare(fc, truth, spec=spec, baselines=baselines, nan=options.nan, missing=options.missing)
    print(skill_table(scores, rows=options.rows))
    if why_not:
        print(f"(no persistence: {why_not})")
    if options.out:
        write_netcdf(scores, Path(options.out))
        print(f"all scores: {options.out}")


def check(options: Namespace) -> None:
    """Say that there is no problem, or raise them all."""
    ds = _opened(options.data, options)
    if options.model is None:
        spec = FieldSpec.infer(ds, time_units=options.time_units)
        found = check_data(ds, spec, members=True)
        purpose = "can be trained on"
    else:
        model = load(options.model)
        spec, purpose = model.spec, f"are what {model.name} needs"
        found = model.check(ds, members=True)
    print(spec)
    changed = str(found.attrs.get("history", "")).removeprefix(str(ds.attrs.get("history", ""))).strip()
    if changed:
        print(f"put right without loss: {changed.split(' check: ', 1)[-1]}")
    print(f"no problem: {found.sizes['time']} frames of {options.data} {purpose}")


def inspect(options: Namespace) -> None:
    """Print what a model, data or a forecast is."""
    place = Path(options.path)
    if options.path in shipped() or (place / "config.json").exists() or (place / "model" / "config.json").exists():
        model = load(options.path)
        print(model.card if options.card else f"{model!r}\n\n{_figures(model)}")
        return
    try:
        ds = _opened(options.path, options)
    except FileNotFoundError as error:
        names = ", ".join(shipped()) or "none"
        raise FileNotFoundError(f"{error}; shipped models are {names}") from None
    if (place / "manifest.json").exists():
        writer = ShardedWriter.open(place)
        missing, total = len(writer.missing()), len(writer.blocks())
        print(f"a store of lapse, {f'{missing} of {total} blocks missing: --resume' if missing else 'complete'}")
    print("sizes:", ", ".join(f"{d} {n}" for d, n in ds.sizes.items()))
    if "lead_time" in ds.dims:
        print("\n".join(f"{k}: {ds[k].values.min()} … {ds[k].values.max()}" for k in ("init_time", "lead_time")))
    else:
        _print_spec(ds, options)
    for key, value in ds.attrs.items():
        print(f"{key}: {value}")


def report(options: Namespace) -> None:
    """Write the HTML page."""
    from .report import report as write

    _prepared(Path(options.out))
    fc = opened_forecast(options.forecast, options.model)
    model = _model_of(options, fc)
    truth = _truth(options, model)
    baselines, why_not = _persistence(fc, truth)
    told: dict[str, Any] = {} if model is None else {"spec": model.spec, "model_card": model.card or None}
    path = write(
        fc, truth, path=options.out, title=options.title, baselines=baselines, start=options.start,
        nan=options.nan, missing=options.missing, **told,
    )  # fmt: skip
    if why_not:
        print(f"(no persistence: {why_not})")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _truth(options: Namespace, model: Model | None) -> xr.Dataset:
    """The truth; where its files name the axes in their own way, renamed as the model's spec knows them."""
    truth = _opened(options.truth, options)
    if model is not None and not set(model.spec.grid.names) <= {str(d) for d in truth.dims}:
        truth = check_data(truth, model.spec, gaps=True, values=False)
    return truth


def write_netcdf(ds: xr.Dataset, path: Path) -> None:
    """Write a file, whole or not at all. Raises StoreError where it cannot be written."""
    infant = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        ds.to_netcdf(infant, engine="netcdf4")
        infant.replace(path)
    except (OSError, RuntimeError) as error:  # netCDF4 reports a full disk as RuntimeError: "NetCDF: HDF error"
        raise StoreError(
            f"writing {path} failed: {error}. Free or remount the disk, or choose another place"
        ) from error
    finally:
        infant.unlink(missing_ok=True)


def _prepared(path: Path) -> None:
    """Make the folder of a file to come. Raises StoreError, before any work, where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"making the folder of {path} failed: {error.strerror}. Choose another place") from error
    if not os.access(path.parent, os.W_OK):
        raise StoreError(f"{path}: its folder cannot be written. Change its permissions, or choose another place")


def _opened(path: str, options: Namespace) -> xr.Dataset:
    """Data of the command line, opened lazily and cut as --select says."""
    ds = open_dataset(path, time_units=options.time_units)
    chosen = dict(options.select)
    if strange := [d for d in chosen if d not in ds.dims]:
        has = ", ".join(map(str, ds.dims))
        raise SpecError([Problem(f"--select {d}", "no such dimension", f"one of {has}", "correct it") for d in strange])
    try:
        return ds.isel(chosen)
    except IndexError as error:
        sizes = ", ".join(f"{d} {n}" for d, n in ds.sizes.items())
        raise ValueError(f"--select: {error}; sizes are {sizes}") from error


def _model_of(options: Namespace, fc: xr.Dataset) -> Model | None:
    """The model that --model names, or the shipped one that made the forecast, by its weights' hash."""
    if options.model is not None:
        return load(options.model)
    name = fc.attrs.get("lapse_model")
    if name not in shipped():
        return None
    model = load(name)
    return model if str(fc.attrs.get("source", "")).endswith(model.weights_hash) else None


def _persistence(fc: xr.Dataset, truth: xr.Dataset) -> tuple[dict[str, xr.Dataset], str]:
    """Persistence as a baseline, or none and the reason."""
    from .align import canonical
    from .baselines import persistence

    ours = canonical(fc, None)
    try:
        found = persistence(truth, ours["init_time"], ours["lead_time"], valid_time=ours.get("valid_time"))
    except SpecError as error:
        return {}, "; ".join(p.found for p in error.problems)
    return {"persistence": found}, ""


def _composed(overrides: list[str]) -> dict[str, Any]:
    """The training config; ValueError, with the likely fix, for what hydra does not take."""
    from hydra.errors import HydraException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    from .train import compose

    try:
        return compose(overrides)
    except MissingMandatoryValue as error:
        raise ValueError(f"no {error.full_key}. Usual fix: lapse train {error.full_key}=MY.zarr") from error
    except (HydraException, OmegaConfBaseException) as error:
        told = str(error).split("\nConfig search path")[0].split("\nTo append")[0].strip()
        raise ValueError(f"{told}\n{_nearest(overrides)}".rstrip()) from error


def _nearest(overrides: list[str]) -> str:
    """For keys that the default config does not have, the one that may have been meant."""
    from difflib import get_close_matches

    from .train import compose

    known = list(_keys(compose(["data.path=MY.zarr"])))
    keys = [o.partition("=")[0] for o in overrides]
    found = []
    for key in keys:
        if key not in known and (near := get_close_matches(key, known, n=1, cutoff=0.7)):
            found.append(f"Usual fix: {near[0]} instead of {key}")
    return "\n".join([*found, "(lapse train --show lists all options)"])


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += _keys(value, f"{prefix}{key}.")
    return found


def _show_configs() -> None:
    """The config files as they are, comments and all."""
    folder = Path(__file__).parent.parent / "configs"
    for file in sorted(folder.rglob("*.yaml"), key=lambda f: (len(f.parts), f)):
        print(f"--- {file.relative_to(folder).with_suffix('')}\n{file.read_text().strip()}\n")


def _figures(model: Model) -> str:
    """The card without its table of fields, which the model's repr has shown."""
    sections = model.card.split("\n## ")
    kept = [s for s in sections if not s.startswith("Fields\n")]
    return "\n## ".join(kept).strip() or "no model card"


def _print_spec(ds: xr.Dataset, options: Namespace) -> None:
    try:
        print(FieldSpec.infer(ds, time_units=options.time_units))
    except SpecError as error:
        print(ds)
        print(f"not yet training data, {error}")
