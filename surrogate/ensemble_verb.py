"""``lapse ensemble init | run | finalise | status``: an ensemble that any number of processes make together."""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add_steps", "ensemble", "opened_forecast"]


def add_steps(
    verb: ArgumentParser,
    make: "Callable[[_SubParsersAction[ArgumentParser], str, str], ArgumentParser]",
    data: Callable[[ArgumentParser, str, str], None],
) -> None:
    """The four steps; ``make`` and ``data`` are those of `cli`, so that all verbs look alike."""
    steps = verb.add_subparsers(dest="step", required=True, metavar="STEP")
    init = make(steps, "init", "print the plan of an ensemble and make its store, without computing")
    init.add_argument("model", metavar="MODEL", help="name of a shipped model, or a directory")
    data(init, "data", "analyses to start from")
    init.add_argument("--steps", type=int, required=True, metavar="N", help="leads, in frame intervals of the model")
    init.add_argument("--members", type=int, required=True, metavar="N", help="of the ensemble")
    init.add_argument("--out", required=True, metavar="PATH", help="folder to make, such as ensemble.zarr")
    init.add_argument(
        "--keep", choices=("fields", "latents", "statistics"), default="fields",
        help="the members' fields (default), the latents they are decoded from, or statistics over members",
    )  # fmt: skip
    init.add_argument(
        "--rounding", type=float, metavar="SHARE",
        help="latents as bytes: what rounding adds, as a share of the decoder's error, such as 0.5",
    )  # fmt: skip
    _device(init)
    init.add_argument("--seed", type=int, default=0, metavar="N", help="of the ensemble (default 0)")
    init.add_argument("--mode", choices=("fast", "quality", "mean"), help="of the model (default: its first)")
    init.add_argument(
        "--init-time", nargs="+", default=["last"], metavar="TIME", help='"last" (default), "all", or times of DATA'
    )
    init.add_argument("--batch-size", type=int, metavar="N", help="members computed at once (default: by their size)")
    init.add_argument("--shard", type=int, metavar="N", help="members of a block, which one process writes")
    init.add_argument("--resume", action="store_true", help="repeat an init, also with more members")
    init.add_argument("--plan", action="store_true", help="print the plan, and stop")
    only = init.add_argument_group("of statistics")
    only.add_argument("--truth", metavar="DATA", help="states at the valid times, for scores")
    only.add_argument(
        "--exceed", metavar="NAME=VALUE", action="append", default=[], type=_threshold,
        help="count members above a value of a variable, in its units (may be repeated)",
    )  # fmt: skip
    only.add_argument("--quantiles", type=float, nargs="+", metavar="Q", help="between 0 and 1 (default 5, 25, … %%)")
    only.add_argument("--bins", type=int, metavar="N", help="of the sketch of each cell's distribution (default 64)")

    run = make(steps, "run", "compute what is missing, or one part of it")
    _place(run)
    run.add_argument("--part", default="1/1", metavar="I/N", help="every N-th block, from 1/N to N/N (default all)")
    run.add_argument("--executor", choices=("dask",), help="on a cluster of dask.distributed (extra: hpc)")
    run.add_argument("--scheduler", metavar="ADDRESS", help="of that cluster (default: a new one on this machine)")
    run.add_argument("--workers", type=int, metavar="N", help="of a cluster on this machine (default: one a core)")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    _place(make(steps, "finalise", "declare it complete, and merge statistics"))
    state = make(steps, "status", "say how far it is, also while others write")
    state.add_argument("path", metavar="PATH", help="what init made")
    state.add_argument("--json", action="store_true", help="for programs")


def ensemble(options: Namespace) -> None:
    """One of the four steps."""
    {"init": _init, "run": _run, "finalise": _finalise, "status": _status}[options.step](options)


def _init(options: Namespace) -> None:
    from .package import load
    from .verbs import _opened, _prepared

    _prepared(Path(options.out))
    model = load(options.model, options.device)
    starts = options.init_time[0] if options.init_time in (["last"], ["all"]) else options.init_time
    more: dict[str, Any] = {"quantiles": options.quantiles, "bins": options.bins}
    more = {k: v for k, v in more.items() if v is not None}
    exceed: dict[str, list[float]] = {}
    for name, value in options.exceed:
        exceed.setdefault(name, []).append(value)
    if exceed:
        more["exceed"] = exceed
    if options.truth:
        more["truth"] = _opened(options.truth, options)
    if more and options.keep != "statistics":
        raise ValueError(f"--{', --'.join(more)}: only with --keep statistics")
    if options.rounding is not None:
        if options.keep != "latents":
            raise ValueError("--rounding: only with --keep latents")
        more["rounding"] = options.rounding
    plan = model.ensemble(
        _opened(options.data, options), options.steps, options.members, keep=options.keep, seed=options.seed,
        init_times=starts, mode=options.mode, batch_size=options.batch_size, shard=options.shard, **more,
    )  # fmt: skip
    print(plan)
    if not options.plan:
        plan.create(options.out, resume=options.resume)
        print(f"{options.out}: begun. Next: lapse ensemble run {options.out} [--part I/N], then finalise")


def _run(options: Namespace) -> None:
    from .ensemble import Ensemble, parse_part

    part = parse_part(options.part)
    ensemble = Ensemble.at(options.path, _model(options), options.device)
    client: Any = options.scheduler
    if options.executor == "dask" and client is None and options.workers is not None:
        from .cluster import local

        client = local(options.workers)
    done = ensemble.run(part, executor=options.executor, client=client, progress=not options.quiet)
    print(f"{options.path}: part {options.part}, {done} blocks computed")


def _finalise(options: Namespace) -> None:
    from .ensemble import Ensemble

    ensemble = Ensemble.at(options.path, _model(options), options.device)
    ensemble.finalise()
    fc = ensemble.open()
    sizes = ", ".join(f"{d} {n}" for d, n in fc.sizes.items())
    gone = int((fc["valid"] == 0).sum()) if "valid" in fc else int(fc["blown_up"].sum())
    print(f"{options.path}: complete; {sizes}; {gone} members blew up")


def _status(options: Namespace) -> None:
    from .status import status

    found = status(options.path)
    print(json.dumps(found.to_dict()) if options.json else found)


def opened_forecast(path: str, model: str | None) -> Any:
    """A forecast of the command line; of an ensemble that keeps latents the fields that they decode to."""
    from ..datasets.open import open_dataset
    from .ensemble import Ensemble, described
    from .keep import FOLDER
    from .package import load

    place = Path(path)
    if (place / FOLDER / "job.json").exists() and described(place)["keep"] == "latents":
        return Ensemble.at(place, None if model is None else load(model)).open()
    return open_dataset(path)


def _model(options: Namespace) -> Any:
    from .package import load

    return None if options.model is None else load(options.model, options.device)


def _place(step: ArgumentParser) -> None:
    step.add_argument("path", metavar="PATH", help="what init made")
    step.add_argument("--model", metavar="MODEL", help="where the model lies now (default: where it lay at init)")
    _device(step)


def _device(step: ArgumentParser) -> None:
    step.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ArgumentTypeError(f"found {text!r}, wanted NAME=VALUE with a number") from None
