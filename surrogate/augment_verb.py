"""``lapse augment``: complete fields from sparse observations, or trajectories to train on, into a file."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

__all__ = ["add_options", "augment"]


def add_options(verb: ArgumentParser) -> None:
    """What the verb takes beside a model and data."""
    verb.add_argument("--samples", type=int, default=32, metavar="N", help="members (default 32)")
    verb.add_argument(
        "--error", metavar="[NAME=]VALUE", action="append", default=[], type=_error,
        help="standard deviation of the observations' errors, 0 for exact ones; for one variable with its name (may be "
        "repeated; default: the attribute observation_error of each variable)",
    )  # fmt: skip
    verb.add_argument(
        "--climate", metavar="PATH", help="states like the training data (default: what the model brings along)"
    )
    verb.add_argument("--before", type=int, metavar="N", help="frames before the first observed one to begin at")
    verb.add_argument("--steps", type=int, metavar="N", help="frames of each trajectory, where nothing is hidden")
    verb.add_argument(
        "--ensemble", type=int, default=128, metavar="N", help="members that supply covariances (default 128)"
    )
    verb.add_argument(
        "--mode", choices=("fast", "quality", "mean"), help="of the dynamics (default: the model's first)"
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the members (default 0)")
    verb.add_argument("--out", required=True, metavar="PATH", help="a new netCDF file (.nc) or zarr store (.zarr)")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def augment(options: Namespace) -> None:
    """Sample, say how well the samples fit, and write them."""
    from ..datasets.open import open_dataset
    from ..datasets.shards import StoreError
    from .package import load
    from .verbs import _opened, _prepared, write_netcdf

    out = Path(options.out)
    kind = out.suffix.lower()
    if kind not in (".nc", ".zarr"):
        raise ValueError(f"--out: found {options.out!r}, wanted a name that ends with .nc or .zarr")
    if out.exists():
        raise StoreError(f"{out} exists: delete it, or choose another name")
    _prepared(out)
    model = load(options.model, options.device)
    climate = None if options.climate is None else open_dataset(options.climate, time_units=options.time_units)
    found = model.augment(
        _opened(options.data, options), options.samples, error=_errors(options.error), climate=climate,
        before=options.before, steps=options.steps, mode=options.mode, seed=options.seed,
        ensemble=options.ensemble, progress=not options.quiet,
    )  # fmt: skip
    if kind == ".nc":
        write_netcdf(found, out)
    else:
        found.to_zarr(out)
    fit = ""
    if "innovation" in found:
        fit = f"; squared misfits {float(found['innovation'].mean()):.2f} times the variance promised"
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in found.sizes.items())}{fit}")


def _error(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(f"found {text!r}, wanted VALUE or NAME=VALUE with a number") from None


def _errors(given: list[tuple[str, float]]) -> Any:
    """A number for all variables, or numbers by name; None where there is none."""
    if any(not name for name, _ in given):
        if len(given) > 1:
            raise ValueError("--error: found a number for all variables beside others, wanted one, or a name for each")
        return given[0][1]
    return dict(given) or None
