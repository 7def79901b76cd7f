"""Training data from an equation: random trajectories, solved finely, stored coarsely, in a zarr store.

A trajectory k starts from the equation's own random smooth state, runs ``spin_up`` time units until it has
forgotten it, and is then sampled every ``interval``. It is solved on a reference grid and stored on one or
more coarser grids by *Fourier truncation*: û(k) is kept for |k_j| < n_j/2 and dropped otherwise, so that the
stored field is the exact large-scale part of a resolved solution (and loses nothing where the spectrum has
decayed before the cut-off).

A law in which nothing moves (`Equation.static`, such as Darcy flow) gives samples instead: trajectory k is one draw of
`Equation.initial`, a single frame on the law's own grid.

Trajectory k depends on (seed, k) and on nothing else: its generator is seeded from numpy's
``SeedSequence([seed, k])``, and trajectories that share a batch do not share anything but the machine's time.
The bits are those of the processor and its libraries, which may take another path for a batch of one; another
machine or batch agrees to round-off, which chaos then amplifies.

Stores have dimensions (trajectory, time, *space), one shard for ``shard`` trajectories and chunks of several
frames, the parameters as JSON in their attributes, and all that `ShardedWriter` promises: a killed run is
resumed at the first trajectory that was not completed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ..physics.equation import Equation, lookup
from ..physics.equation import equation as build
from ..physics.grid import Grid
from ..physics.modes import Modes
from .shards import Block, ShardedWriter, StoreError, blank

__all__ = ["coarsen", "simulate", "trajectory_generator"]

CHUNK_BYTES = 2**20  # of one variable: large enough to be read at the disk's speed, small enough to shuffle


def trajectory_generator(seed: int, k: int) -> torch.Generator:
    """The generator of trajectory k. On the CPU, so that no device changes its numbers."""
    (state,) = np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


@cache
def _modes(grid: Grid, keep: tuple[int, ...]) -> Modes:
    return Modes(grid, keep)


def coarsen(u: Tensor, grid: Grid, shape: Sequence[int]) -> Tensor:
    """Fourier truncation of periodic fields ``(…, *grid.shape)`` to ``(…, *shape)``."""
    if tuple(shape) == grid.shape:
        return u
    modes = _modes(grid, tuple((n - 1) // 2 for n in shape))
    return modes.synthesise(modes.analyse(u), shape)


@dataclass(frozen=True)
class _Run:
    """Everything a worker needs to compute a block."""

    equation: Equation
    shapes: tuple[tuple[int, ...], ...]
    frames: int
    interval: float
    spin_up: float
    seed: int
    batch: int
    device: str
    dtype: torch.dtype

    @property
    def spin_up_pieces(self) -> int:
        return math.ceil(self.spin_up / self.interval) if self.spin_up > 0 else 0

    def compute(self, members: Sequence[int], bar: tqdm[Any]) -> list[np.ndarray]:
        """One array (trajectory, C, time, *space) for each stored shape."""
        grid, C = self.equation.grid, len(self.equation.variables)
        out = [np.empty((len(members), C, self.frames, *s), np.float32) for s in self.shapes]
        for first in range(0, len(members), self.batch):
            ids = members[first : first + self.batch]
            states = [self.equation.initial(trajectory_generator(self.seed, k), 1, self.dtype) for k in ids]
            u = torch.cat(states).to(self.device)
            for i in range(-self.spin_up_pieces, self.frames):
                if i < 0:
                    u = self.equation.advance(u, self.spin_up / self.spin_up_pieces)
                elif i > 0:
                    u = self.equation.advance(u, self.interval)
                self._watch(u, ids, i)
                if i >= 0:
                    for array, shape in zip(out, self.shapes, strict=True):
                        v = coarsen(u, grid, shape).to("cpu", torch.float32)
                        array[first : first + len(ids), :, i] = v.numpy()
                bar.update(len(ids))
        return out

    def _watch(self, u: Tensor, ids: Sequence[int], frame: int) -> None:
        finite = torch.isfinite(u.flatten(1)).all(dim=1)
        if not bool(finite.all()):
            bad = [k for k, ok in zip(ids, finite.tolist(), strict=True) if not ok]
            when = f"frame {frame}" if frame >= 0 else "the spin-up"
            raise FloatingPointError(
                f"{self.equation!r}: trajectories {bad} are not finite at {when}; "
                "use a smaller time step, a larger `speed` scale or more viscosity"
            )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(run: _Run, writers: Sequence[ShardedWriter], blocks: Sequence[Block], bar: tqdm[Any] | None = None) -> int:
    """Computes the trajectories of some blocks together and writes them block by block into every store."""
    members = [k for b in blocks for k in range(b.region["trajectory"].start, b.region["trajectory"].stop)]
    if bar is None:
        with _one_thread(), tqdm(disable=True) as silent:
            arrays = run.compute(members, silent)
    else:
        arrays = run.compute(members, bar)
    at = 0
    for block in blocks:
        n = block.length("trajectory")
        for writer, array in zip(writers, arrays, strict=True):
            if not writer.done(block):
                writer.write({v: array[at : at + n, c] for c, v in enumerate(run.equation.variables)}, block)
        at += n
    return len(members)


def _template(run: _Run, trajectories: int, shape: tuple[int, ...], attrs: Mapping[str, Any]) -> xr.Dataset:
    grid = run.equation.grid.resampled(shape)
    dims = ("trajectory", "time", *grid.names)
    coords: dict[str, Any] = {
        "trajectory": ("trajectory", np.arange(trajectories), {"long_name": "independent realisation"}),
        "time": (
            "time",
            np.arange(run.frames) * run.interval,
            {"units": "s", "axis": "T"}
            | (
                {"long_name": "one frame, since nothing moves", "static": "true"}
                if run.equation.static()
                else {"long_name": "time since the end of the spin-up"}
            ),
        ),
    }
    for a in grid.axes:
        about = {"units": a.units} | ({"axis": a.name.upper()} if a.name in ("x", "y", "z") else {})
        about |= {"periodic": "true"} if a.periodic else {}
        coords[a.name] = (a.name, np.array(a.coordinates), about)
    size = (trajectories, run.frames, *shape)
    data = {
        v: (dims, blank(size), {"units": run.equation.units[v], "long_name": v.replace("_", " ")})
        for v in run.equation.variables
    }
    return xr.Dataset(data, coords, dict(attrs))


def _stored_shapes(grid: Grid, stored: int | Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
    if stored is None:
        return (grid.shape,)
    if not all(grid.periodic):
        raise ValueError(f"found stored={stored} between walls, wanted None: Fourier truncation needs periodic axes")
    shapes = []
    for n in (stored,) if isinstance(stored, int) else tuple(stored):
        shape = tuple(m * n // grid.shape[-1] for m in grid.shape)
        if any(m * n % grid.shape[-1] for m in grid.shape) or not 4 <= n <= grid.shape[-1]:
            raise ValueError(
                f"found stored size {n}, wanted one between 4 and {grid.shape[-1]}, the size of the reference "
                f"along {grid.names[-1]!r}, that divides the other axes of {grid.shape} in the same ratio"
            )
        shapes.append(shape)
    return tuple(shapes)


def simulate(
    equation: str | Equation,
    path: str | Path,
    *,
    trajectories: int,
    frames: int | None = None,
    interval: float | None = None,
    resolution: int | Sequence[int] | None = None,
    length: float | Sequence[float] | None = None,
    dimension: int | None = None,
    stored: int | Sequence[int] | None = None,
    spin_up: float | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    shard: int | None = None,
    chunk: int | None = None,
    batch: int = 1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: Any = None,
    workers: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[Path, ...]:
    """Solves random trajectories of an equation and writes them as zarr v3 stores.

    Args:
        equation: registered name, built with ``parameters`` on its kind of box (periodic, as a rule) of
            ``dimension`` axes, of ``resolution`` nodes and ``length`` m (one number, or one for each axis), each the
            equation's usual one unless told otherwise; or an `Equation`, which brings its own grid and parameters.
        path: the store to make. With several ``stored`` sizes it must contain ``{size}``: one store a size.
        trajectories, frames: sizes of the store; frames are ``interval`` s apart (default: the equation's usual
            one), frame 0 at the end of the spin-up. Where nothing moves there is one frame and no interval.
        stored: nodes along the last axis after Fourier truncation; other axes keep their ratio. None: the
            reference.
        spin_up: s, default the equation's own ``spin_up_time``.
        shard: trajectories in one shard file, the unit that a resume redoes; default 1, or 64 where nothing moves.
        chunk: frames in one chunk, default about a megabyte.
        batch: trajectories advanced together: 1 is best on a CPU, many on a GPU.
        dtype: precision of the solver; the store is float32.
        scheduler: dask scheduler ("processes", "threads" or a distributed client) for shards in parallel;
            None: here.
        workers: number of dask's workers. Each computes on one thread.
        resume: continue a store of the same simulation; anything else is refused with the differences.

    Returns:
        The paths, one for each stored size.

    Raises:
        StoreError: path exists (and not ``resume``), holds something else, or cannot be written.
        FloatingPointError: a trajectory blew up; completed shards stay.
    """
    if isinstance(equation, str):
        grid = lookup(equation).usual.grid(resolution, length, dimension)
        equation = build(equation, grid, **(parameters or {}))
    elif parameters:
        raise ValueError("parameters belong to a named equation; an Equation instance brings its own")
    if equation.static():
        if frames not in (None, 1) or interval is not None or spin_up:
            raise ValueError(
                f"{equation.name!r}: found frames={frames}, interval={interval}, spin_up={spin_up}, wanted none of "
                "them, since nothing moves in this law, so each trajectory is one frame"
            )
        frames, interval = 1, 1.0
    interval = equation.usual.interval if interval is None else interval
    shard = (64 if equation.static() else 1) if shard is None else shard
    if frames is None:
        raise ValueError(f"{equation.name!r}: found no number of frames, wanted one")
    if interval is None:
        raise ValueError(f"{equation.name!r} has no usual interval; say how far apart the frames are, in s")
    for name, n in {"trajectories": trajectories, "frames": frames, "shard": shard, "batch": batch}.items():
        if n < 1:
            raise ValueError(f"found {name}={n}, wanted at least 1")
    if not interval > 0:
        raise ValueError(f"found interval={interval}, wanted a positive time in s")
    shapes = _stored_shapes(equation.grid, stored)
    paths = [Path(str(path).replace("{size}", str(s[-1]))) for s in shapes]
    if len(set(paths)) < len(shapes):
        raise ValueError(f"{len(shapes)} stored sizes need a path with '{{size}}' in it, got {str(path)!r}")
    duration = equation.spin_up_time if spin_up is None else float(spin_up)
    run = _Run(equation, shapes, frames, float(interval), duration, seed, batch, device, dtype)
    writers = [
        _open(run, trajectories, p, s, shard, chunk, parameters or {}, resume)
        for p, s in zip(paths, shapes, strict=True)
    ]
    missing = {b.index: b for w in writers for b in w.missing()}
    blocks = [missing[i] for i in sorted(missing)]
    per_task = max(1, batch // shard)
    tasks = [blocks[i : i + per_task] for i in range(0, len(blocks), per_task)]
    each = run.spin_up_pieces + frames
    done = trajectories - sum(b.length("trajectory") for b in blocks)
    if scheduler is None:
        with tqdm(
            total=trajectories * each,
            initial=done * each,
            desc=equation.name,
            unit="frame",
            disable=not progress,
        ) as bar:
            for task in tasks:
                _work(run, writers, task, bar)
    else:
        _distribute(run, writers, tasks, scheduler, workers, trajectories, done, progress)
    for writer in writers:
        writer.finalise({"title": _title(equation, trajectories)})
    return tuple(paths)


def _title(equation: Equation, trajectories: int) -> str:
    return f"{trajectories} trajectories of {equation.name}"


def _open(
    run: _Run,
    trajectories: int,
    path: Path,
    shape: tuple[int, ...],
    shard: int,
    chunk: int | None,
    parameters: Mapping[str, Any],
    resume: bool,
) -> ShardedWriter:
    e = run.equation
    call = {
        "equation": e.name,
        "parameters": {**e.parameters, **parameters},
        "reference": list(e.grid.shape),
        "length": list(e.grid.length),
        "interval": run.interval,
        "spin_up": run.spin_up,
        "seed": run.seed,
        "dtype": str(run.dtype).removeprefix("torch."),
    }
    from .. import __version__

    size = "x".join(map(str, shape))
    attrs = {
        "Conventions": "CF-1.11",
        "title": _title(e, trajectories),
        "source": f"lapse {__version__}: {e!r}, "
        + (f"on {size}" if e.static() else f"Fourier truncation to {size}"),
        "history": f"lapse {__version__} simulate",
        "equation": e.name,
        "parameters": json.dumps(e.parameters),
        "lapse_seed": run.seed,
        "lapse_version": __version__,
        "lapse_simulation": json.dumps(call),
    }
    frame = 4 * math.prod(shape)
    in_chunk = min(run.frames, chunk or max(1, CHUNK_BYTES // frame))
    # Single frames are read by the shard: one chunk each would take longer to open than to make.
    together = shard if e.static() else 1
    return ShardedWriter.create(
        path,
        _template(run, trajectories, shape, attrs),
        shards={"trajectory": shard},
        chunks={"trajectory": together, "time": in_chunk},
        identity=call,
        resume=resume,
        grow=("trajectory",),
    )


def _distribute(
    run: _Run,
    writers: Sequence[ShardedWriter],
    tasks: Sequence[Sequence[Block]],
    scheduler: Any,
    workers: int | None,
    trajectories: int,
    done: int,
    progress: bool,
) -> None:
    import dask
    from dask import callbacks

    library: Any = dask  # whose functions have no types
    Callback: Any = callbacks.Callback

    with tqdm(total=trajectories, initial=done, desc=run.equation.name, unit="trajectory", disable=not progress) as bar:

        def finished(key: Any, result: Any, *_: Any) -> None:
            if isinstance(result, int):
                bar.update(result)

        # pure=False: a task is an act of writing, not a value that dask may take from a cache.
        delayed = [library.delayed(_work, pure=False)(run, writers, task) for task in tasks]
        options = {} if workers is None else {"num_workers": workers}
        with Callback(posttask=finished):
            library.compute(*delayed, scheduler=scheduler, optimize_graph=False, **options)
        if missing := [b.name for w in writers for b in w.missing()]:
            raise StoreError(f"blocks {missing[:5]} were not written, though dask reports success")
