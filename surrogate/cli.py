"""The command line: ``lapse VERB …``. Here stand the options and what an error looks like; `verbs` does the work.

Nothing heavy is imported before the options are known, so that ``lapse --help`` answers at once. An error is one
readable message on standard error and a non-zero exit: 2 for a wrong command line, 130 for an interruption, else 1.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from .augment_verb import add_options as _augment_options
from .design_verb import add_options as _design_options
from .diagnose_verb import add_options as _diagnose_options
from .ensemble_verb import add_steps as _ensemble_steps

__all__ = ["main"]

_EPILOG = """\
environment:
  LAPSE_THREADS  threads of a computation on the CPU (default 1: on a machine with other work, two are
                 many times slower than one; raise it where the cores are yours)

Every verb has its own --help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own) and return its exit status."""
    options = _parser().parse_args(arguments)
    spell = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"lapse: warning: {message}\n"
    try:
        _set_threads()
        getattr(import_module(".verbs", __package__), options.verb)(options)
    except KeyboardInterrupt:
        print(f"\nlapse: interrupted. {_KEPT.get(options.verb, 'Nothing was written.')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `lapse … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"lapse: error: {_message(error)}", file=sys.stderr)
        return 1
    finally:
        warnings.formatwarning = spell
    return 0


_EQUATIONS = (
    "equations: advection_diffusion, allen_cahn, burgers, gray_scott, heat, kdv, kolmogorov, kuramoto_sivashinsky, "
    "shallow_water; and darcy, in which nothing moves: trajectories are samples of one frame"
)

_PARTS = """\
  lapse ensemble init MODEL DATA --steps 40 --members 10000 --keep latents --out ens.zarr
  lapse ensemble run ens.zarr --part 3/8        any process, machine and order; twice does no harm
  lapse ensemble status ens.zarr                at any time
  lapse ensemble finalise ens.zarr"""

_KEPT = {
    "ensemble": "Completed blocks are kept: the same command goes on from them (init: with --resume).",
    "forecast": "Completed blocks of a zarr store are kept: the same command with --resume goes on from them.",
    "simulate": "Completed trajectories are kept: the same command with --resume goes on from them.",
    "train": "Finished stages and the last checkpoint are kept: the same command goes on from them.",
}


def _message(error: Exception) -> str:
    """What went wrong; where lapse did not foresee it, with the error's name and the way to its place."""
    own = isinstance(error, ValueError | OSError | MemoryError | FloatingPointError)
    if own or type(error).__module__.startswith("lapse."):
        return str(error) or type(error).__name__
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{type(error).__name__}: {text}\n(--debug shows where)"


def _set_threads() -> None:
    """One thread on the CPU, or as many as LAPSE_THREADS says, for this process and those that it starts."""
    told = os.environ.get("LAPSE_THREADS")
    if told is not None and not (told.isdigit() and int(told) > 0):
        raise ValueError(f"LAPSE_THREADS: found {told!r}, wanted a whole number from 1")
    os.environ["OMP_NUM_THREADS"] = told or os.environ.get("OMP_NUM_THREADS", "1")
    torch = import_module("torch")
    if told or not torch.cuda.is_available():
        torch.set_num_threads(int(told or 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lapse",
        description="Ensemble forecasts from simulation or reanalysis snapshots (zarr or netCDF).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lapse {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for build in (_simulate, _train, _forecast, _ensemble, _design, _augment, _score):
        build(verbs)
    for build in (_diagnose, _check, _inspect, _report):
        build(verbs)
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, epilog: str | None = None
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return verb


def _quiet(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quiet", action="store_true", help="no progress bars")


def _data(verb: argparse.ArgumentParser, name: str, what: str) -> None:
    """A path of data, and how to read it."""
    verb.add_argument(name, metavar=name.upper(), help=f"{what}: zarr or netCDF, one store, a folder or a pattern")
    verb.add_argument(
        "--select",
        metavar="DIM=I",
        action="append",
        default=[],
        type=_selection,
        help="take position I, or I:J, along a dimension: trajectory=0, time=:100 (may be repeated)",
    )
    verb.add_argument("--time-units", metavar="UNITS", help='for times without units: "days since 1900-01-01", or "s"')


def _simulate(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "simulate", "make training data from an equation", _EQUATIONS)
    verb.add_argument("equation", metavar="EQUATION", help="registered name, such as kolmogorov")
    verb.add_argument("out", metavar="OUT", help="zarr store to make")
    verb.add_argument("--trajectories", type=int, default=16, metavar="N", help="independent runs (default 16)")
    verb.add_argument("--frames", type=int, metavar="N", help="frames of each (default 100; darcy 1)")
    verb.add_argument(
        "--interval",
        type=float,
        metavar="S",
        help="between frames, in s (default: the equation's usual one, such as 0.2 for kolmogorov)",
    )
    verb.add_argument(
        "--resolution", type=int, metavar="N", help="nodes a side of the solver (default: the equation's usual one)"
    )
    verb.add_argument("--dimension", type=int, metavar="D", help="axes of the box (default: the equation's usual one)")
    verb.add_argument(
        "--stored",
        type=int,
        metavar="N",
        help="nodes a side of the store, after Fourier truncation (default: the solver's)",
    )
    verb.add_argument("--length", type=float, metavar="M", help="side of the box, in m (default: usual)")
    verb.add_argument("--spin-up", type=float, metavar="S", help="time before frame 0, in s (default: the equation's)")
    verb.add_argument(
        "--parameter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_assignment,
        help="of the equation, in SI units: viscosity=0.0015 (may be repeated)",
    )
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the random initial states (default 0)")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    verb.add_argument(
        "--batch", type=int, default=1, metavar="N", help="trajectories advanced together (default 1, best on a CPU)"
    )
    verb.add_argument("--workers", type=int, metavar="N", help="processes, each on one thread (default: this one)")
    verb.add_argument("--resume", action="store_true", help="continue the same simulation, also with more trajectories")
    _quiet(verb)


def _train(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(
        verbs,
        "train",
        "train a model from a config, and measure it",
        "examples:\n"
        "  lapse train data.path=MY.zarr name=mine            defaults on your own data -> runs/mine/model\n"
        "  lapse train experiment=kolmogorov64                a config that ships with lapse\n"
        "  lapse train experiment=kolmogorov64 training.mean.cpu_minutes=5 trainer=gpu\n"
        "  lapse train --show                                 every option with its default and meaning\n\n"
        "Groups: autoencoder, emulator, training, trainer (cpu, gpu, ddp, slurm), experiment. Training that was\n"
        "stopped or killed goes on from its last checkpoint when the same command is given again.",
    )
    verb.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="hydra overrides of the config")
    verb.add_argument("--show", action="store_true", help="print the config, or without overrides its files, and stop")
    _quiet(verb)


def _forecast(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "forecast", "forecast an ensemble")
    verb.add_argument("model", metavar="MODEL", help="name of a shipped model, or a directory")
    _data(verb, "data", "analyses to start from")
    verb.add_argument("--steps", type=int, required=True, metavar="N", help="leads, in frame intervals of the model")
    verb.add_argument("--members", type=int, default=32, metavar="N", help="of the ensemble (default 32)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the ensemble (default 0)")
    verb.add_argument(
        "--mode",
        choices=("fast", "quality", "mean"),
        help="one evaluation a frame, a multi-step sampler, or the deterministic mean net (default: the model's first)",
    )
    verb.add_argument(
        "--init-time",
        nargs="+",
        default=["last"],
        metavar="TIME",
        help='starts: "last" (default), "all", or times of the data such as 2001-01-31T06',
    )
    verb.add_argument(
        "--out",
        required=True,
        metavar="PATH",
        help="forecast.zarr (streamed, of any size, can be resumed) or forecast.nc (made in memory)",
    )
    verb.add_argument("--resume", action="store_true", help="continue a zarr store, also with more members")
    verb.add_argument(
        "--correct",
        choices=("solver", "operator"),
        help="move every frame towards what the equation makes of the one before, where that was found to help",
    )
    verb.add_argument(
        "--certify",
        nargs="?",
        const=1.0,
        default=False,
        type=float,
        metavar="SHARE",
        help="audit all frames, or a share of them, by the model's equation: adds `residual` and `certified`",
    )
    verb.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="members computed together, and per shard of a store (default: by their size)",
    )
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    _quiet(verb)


def _design(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "design", "find the initial condition whose forecast is best")
    verb.add_argument("model", metavar="MODEL", help="name of a shipped model, or a directory")
    _data(verb, "data", "analyses, the last of which the search starts from")
    _design_options(verb)
    _quiet(verb)


def _augment(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "augment", "sample complete fields given sparse ones, or trajectories to train on")
    verb.add_argument("model", metavar="MODEL", help="name of a shipped model, or a directory")
    _data(verb, "data", "observations, NaN where there is none")
    _augment_options(verb)
    _quiet(verb)


def _diagnose(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "diagnose", "measure how well data obey a law, without a model")
    _data(verb, "data", "simulation, analyses or forecast")
    _diagnose_options(verb, _assignment)
    _quiet(verb)


def _ensemble(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "ensemble", "make a large ensemble in parts, by many processes", _PARTS)
    _ensemble_steps(verb, _verb, _data)


def _truth(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model",
        metavar="MODEL",
        help="whose spec tells masks, periodic axes (for spectra) and the equation (for budgets); "
        "default: the shipped model that made the forecast, if it is one",
    )
    verb.add_argument(
        "--nan",
        choices=("raise", "valid"),
        default="raise",
        help='"valid" leaves out members that are not finite, and counts them (default raise)',
    )
    verb.add_argument(
        "--missing",
        choices=("raise", "drop"),
        default="raise",
        help='"drop" leaves out valid times that the truth lacks (default raise)',
    )


def _score(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "score", "score a forecast against the truth and against persistence")
    verb.add_argument("forecast", metavar="FC", help="zarr store or netCDF file")
    _data(verb, "truth", "states at the valid times (persistence needs those at the starts)")
    verb.add_argument("--out", metavar="PATH", help="netCDF file for all scores")
    verb.add_argument("--rows", type=int, default=6, metavar="N", help="leads in the printed table (default 6)")
    _truth(verb)


def _check(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(
        verbs,
        "check",
        "name every problem of data at once",
        "With MODEL: is DATA what the model needs? Without: can a model be trained on DATA?",
    )
    verb.add_argument("model", metavar="MODEL", nargs="?", help="name of a shipped model, or a directory")
    _data(verb, "data", "to check; all of it is read")


def _inspect(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "inspect", "describe a model, data or a forecast")
    _data(verb, "path", "a model's name or directory, or data")
    verb.add_argument("--card", action="store_true", help="the whole card of a model")


def _report(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = _verb(verbs, "report", "show a forecast on one HTML page")
    verb.add_argument("forecast", metavar="FC", help="zarr store or netCDF file")
    _data(verb, "truth", "states at the valid times (persistence needs those at the starts)")
    verb.add_argument("--out", default="report.html", metavar="PATH", help="HTML file (default report.html)")
    verb.add_argument("--title", help="heading (default: the forecast's)")
    verb.add_argument(
        "--start", type=int, default=0, metavar="I", help="position of the start in the pictures (default 0)"
    )
    _truth(verb)


def _selection(text: str) -> tuple[str, int | slice]:
    dim, _, position = text.partition("=")
    first, colon, last = position.partition(":")
    try:
        if not colon:
            return dim, int(position)
        return dim, slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted DIM=I or DIM=I:J") from None


def _assignment(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.lstrip("+-").isdecimal() else float(value)  # a number of modes is whole
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted NAME=VALUE with a number") from None


if __name__ == "__main__":
    sys.exit(main())
