"""``lapse design``: inverse design for an objective that a command line can spell, one of the helpers by its name."""

import warnings
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model
    from .targets import Target

__all__ = ["add_options", "design"]

OBJECTIVES = ("region_mean", "largest", "smallest", "similarity")


def add_options(verb: ArgumentParser) -> None:
    """What the verb takes beside a model and data."""
    goal = verb.add_mutually_exclusive_group(required=True)
    for sense in ("maximise", "minimise"):
        goal.add_argument(f"--{sense}", choices=OBJECTIVES, help="mean or extreme in a region, or likeness to --target")
    verb.add_argument("--variable", metavar="NAME", help="of the objective (default: the model's, if it has one)")
    verb.add_argument("--lead", type=int, required=True, metavar="N", help="of the objective, in frames")
    verb.add_argument(
        "--region", metavar="AXIS=A:B", action="append", default=[], type=_region,
        help="coordinates that bound it, such as x=1.0:2.0 (may be repeated; default: everywhere)",
    )  # fmt: skip
    verb.add_argument("--target", metavar="DATA", help="pattern for similarity: its last frame")
    verb.add_argument("--softness", type=float, default=0.0, metavar="U", help="of an extreme, in the variable's units")
    verb.add_argument("--out", required=True, metavar="PATH", help="netCDF file")
    verb.add_argument("--init-time", default="last", metavar="TIME", help='start: "last" (default) or a time of DATA')
    verb.add_argument(
        "--over", choices=("initial_condition", "latent"), default="initial_condition", help="what varies"
    )
    verb.add_argument(
        "--vary", metavar="NAME=A:B", action="append", default=[], type=_region,
        help="a parameter of the equation and its range, such as forcing=0.5:2 (may be repeated): instead of the state",
    )  # fmt: skip
    verb.add_argument("--hold", metavar="NAME", nargs="+", help="mean, mass, divergence_free, energy, …")
    verb.add_argument("--radius", type=float, metavar="R", help="largest departure, rms in standard deviations")
    verb.add_argument("--iterations", type=int, metavar="N", help="at most (default 30; of --samples 60)")
    verb.add_argument("--members", type=int, metavar="N", help="optimised together (default 8; of --samples 4)")
    verb.add_argument(
        "--mode", choices=("fast", "quality", "mean"), help="of the forecast (default: the model's first)"
    )
    verb.add_argument("--compare", nargs="*", metavar="MODE", help="modes to set against it (default: all)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the members (default 0)")
    verb.add_argument("--verify", action="store_true", help="run the true solver from the design")
    verb.add_argument(
        "--repairs", type=int, default=0, metavar="N",
        help="rounds of the search, each on a model repaired by the solver's last run (default 0: one, unrepaired)",
    )  # fmt: skip
    verb.add_argument(
        "--samples", type=int, metavar="N",
        help="draw so many good initial conditions of the model's climate instead of one optimum near the given state",
    )  # fmt: skip
    verb.add_argument("--temperature", type=float, metavar="T", help="of --samples, in the objective's units")
    verb.add_argument("--certify", action="store_true", help="end where fewer frames than usual are certified")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def design(options: Namespace) -> None:
    """Design an initial condition, print what became of the objective, and write a netCDF file."""
    from .design import DesignWarning
    from .package import load
    from .verbs import _opened, _prepared, write_netcdf

    out = Path(options.out)
    if out.suffix.lower() != ".nc":
        raise ValueError(f"--out: found {options.out!r}, wanted a name that ends with .nc")
    _prepared(out)
    model = load(options.model, options.device)
    variable = options.variable or (model.spec.names[0] if len(model.spec.names) == 1 else None)
    if variable is None:
        raise ValueError(f"--variable: found none, wanted one of {', '.join(model.spec.names)}")
    objective = _objective(options, variable)
    common: dict[str, Any] = {
        "sense": "maximise" if options.maximise else "minimise", "mode": options.mode, "seed": options.seed,
        "init_time": options.init_time, "verify": "solver" if options.verify or options.repairs else None,
        "progress": not options.quiet,
        **{k: v for k in ("iterations", "members") if (v := getattr(options, k)) is not None},
    }  # fmt: skip
    if options.samples is not None:
        return _sampled(model, objective, options, common, out)
    if options.temperature is not None:
        raise ValueError("--temperature: found it without --samples, wanted both or neither")
    with warnings.catch_warnings():
        warnings.simplefilter("always", DesignWarning)
        if options.vary and options.over != "initial_condition":
            raise ValueError(f"--vary: found --over {options.over}, wanted one of the two")
        ranges = {name: (ends.start, ends.stop) for name, ends in options.vary}
        over: dict[str, Any] = {"over": "parameters", "bounds": ranges} if ranges else {"over": options.over}
        best = model.design(
            _opened(options.data, options), objective, options.lead, **over, **common, constraints=options.hold,
            radius=options.radius, compare=options.compare, repairs=options.repairs, certify=options.certify,
        )
    write_netcdf(best, out)
    units = best["predicted"].attrs.get("units", "")
    low, high = best["interval"].values
    print(f"{objective.label}, {units}")
    print(f"given     {float(best['predicted_objective_given']):.4g}")
    print(f"designed  {float(best['predicted_objective']):.4g}  (90 %: {low:.4g} to {high:.4g})")
    if "achieved" in best:
        print(f"solver    {float(best['achieved']):.4g}  (given: {float(best['achieved_given']):.4g})")
    for name in best["parameter"].values if options.vary else ():
        print(f"{name:<9} {float(best['parameters'].sel(parameter=name)):.4g}")
    what = "parameters" if options.vary else "initial condition"
    print(f"{out}: the designed {what}, and how it was found")


def _sampled(model: "Model", objective: "Target", options: Namespace, common: dict[str, Any], out: Path) -> None:
    """Many designs instead of one."""
    from .verbs import _opened, write_netcdf

    given = {"--over": options.over != "initial_condition", "--vary": options.vary, "--hold": options.hold,
             "--radius": options.radius is not None, "--compare": options.compare is not None,
             "--repairs": options.repairs, "--certify": options.certify}  # fmt: skip
    if beside := [name for name, used in given.items() if used]:
        raise ValueError(f"--samples: found {', '.join(beside)} beside it, wanted neither: samples are of the climate")
    many = model.designs(
        _opened(options.data, options), objective, options.lead, samples=options.samples,
        temperature=options.temperature, **common,
    )  # fmt: skip
    write_netcdf(many, out)
    print(f"{objective.label}, {many['objective'].attrs.get('units', '')}")
    usual = many["objective_by_iteration"].isel(iteration=0)
    for name, values in {"climate": usual, "designs": many["objective"], "solver": many.get("achieved")}.items():
        if values is not None:
            low, high = float(values.min()), float(values.max())
            print(f"{name:<9} {float(values.mean()):.4g}  (from {low:.4g} to {high:.4g})")
    print(f"{out}: {options.samples} initial conditions, an ensemble that forecast takes as it is")


def _objective(options: Namespace, variable: str) -> "Target":
    from ..datasets.open import open_dataset
    from .targets import extreme, region_mean, similarity

    name, where = options.maximise or options.minimise, dict(options.region)
    if name == "similarity":
        if options.target is None:
            raise ValueError("--target: found none, wanted the data whose last frame is the pattern")
        target = open_dataset(options.target, time_units=options.time_units)
        target = target.isel(time=-1, drop=True) if "time" in target.dims else target
        return similarity(target, lead=options.lead, variables=[variable], **where)
    if name == "region_mean":
        return region_mean(variable, lead=options.lead, **where)
    return extreme(variable, lead=options.lead, which=name, softness=options.softness, **where)


def _region(text: str) -> tuple[str, slice]:
    from argparse import ArgumentTypeError

    axis, _, ends = text.partition("=")
    first, colon, last = ends.partition(":")
    try:
        if not (axis and colon):
            raise ValueError
        return axis, slice(float(first) if first else None, float(last) if last else None)
    except ValueError:
        raise ArgumentTypeError(f"found {text!r}, wanted NAME=A:B with numbers, such as x=1.0:2.0") from None
