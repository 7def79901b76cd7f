"""``lapse diagnose``: residuals and budgets of data, as a table and as a netCDF file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_options", "diagnose"]

FORMS = ("defect", "hermite", "strong", "weak")


def add_options(verb: ArgumentParser, assignment: Callable[[str], tuple[str, float]]) -> None:
    """What the verb takes beside data; `assignment` reads NAME=VALUE."""
    verb.add_argument("--equation", metavar="NAME", help="the law, such as kolmogorov (default: what the data state)")
    verb.add_argument(
        "--parameter", metavar="NAME=VALUE", action="append", default=[], type=assignment,
        help="of the equation, in SI units: viscosity=0.0015 (may be repeated; default: what the data state)",
    )  # fmt: skip
    verb.add_argument("--form", choices=FORMS, default="defect", help="of the residual (default defect)")
    verb.add_argument(
        "--floor", metavar="F", help="what is as good as it gets: a relative residual, or data that set it"
    )
    verb.add_argument("--periodic", metavar="AXIS", nargs="+", default=[], help="axes that go round, such as x y")
    for option, what in (
        ("variable", "name in the equation = name in the data: vorticity=vo"),
        ("dim", "role or axis = dimension of the data: time=t"),
        ("units", "name in the equation = units of the data: vorticity=s-1"),
    ):
        verb.add_argument(
            f"--{option}",
            metavar="NAME=TEXT",
            action="append",
            default=[],
            type=_names,
            help=f"{what} (may be repeated)",
        )
    verb.add_argument("--out", metavar="PATH", help="netCDF file for everything, the residual fields included")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def diagnose(options: Namespace) -> None:
    """Print how well data obey a law, and write all of it if asked to."""
    from ..datasets.open import open_dataset
    from .diagnose import diagnose as run
    from .tables import diagnosis_table
    from .verbs import _opened, _prepared, write_netcdf

    if options.out:
        _prepared(Path(options.out))
    floor: Any = options.floor
    if floor is not None:
        try:
            floor = float(floor)
        except ValueError:
            floor = open_dataset(floor, time_units=options.time_units)
    found = run(
        _opened(options.data, options), options.equation, form=options.form, floor=floor, fields=bool(options.out),
        variables=dict(options.variable), dims=dict(options.dim), units=dict(options.units),
        periodic=dict.fromkeys(options.periodic, True), device=options.device, progress=not options.quiet,
        **dict(options.parameter),
    )  # fmt: skip
    print(diagnosis_table(found))
    if options.out:
        write_netcdf(found, Path(options.out))
        print(f"all of it, with the residual fields: {options.out}")


def _names(text: str) -> tuple[str, str]:
    from argparse import ArgumentTypeError

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ArgumentTypeError(f"found {text!r}, wanted NAME=TEXT")
    return name, value
