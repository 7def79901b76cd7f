"""Ensemble forecasts as Datasets, in memory or streamed into a zarr store.

    dims          (init_time, member, lead_time, *the input's own spatial dims)
    coordinates   valid_time (init_time, lead_time), and CF standard names on all of them
    valid         (init_time, member): 0 where a member left the realm of finite numbers; from there on it is NaN
    residual, certified (init_time, member, lead_time): of forecasts that are certified, see `verdict`

In memory the members come block by block (`job`); into a store they go through an `ensemble`, in which a block is a
shard: it has one writer, it is written at once and then marked, and a resume does what has no mark. The store may hold
the fields, their latents, or the statistics of members that are never stored (`keep`).
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from tqdm import tqdm

from ..datasets.spec import FieldSpec
from .emulator import Mode
from .job import Job
from .starts import initial_frames
from .tables import lead_label
from .verdict import doubts

if TYPE_CHECKING:
    from .model import Model

__all__ = ["forecast"]

Kept = Literal["fields", "latents", "statistics"]

_SHARE_OF_MEMORY = 0.25
_TOLD = 5  # members named in a warning


def forecast(
    model: "Model",
    ds: xr.Dataset | xr.DataArray,
    steps: int,
    members: int = 32,
    *,
    seed: int = 0,
    init_times: Any = "last",
    mode: Mode | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    keep: Kept = "fields",
    certify: bool | float = False,
    progress: bool = True,
) -> xr.Dataset:
    """Forecast ``members`` futures of ``steps`` frames from one or several starts.

    Arguments:
        ds: analyses in physical units, at least ``history`` frames up to each start; of a lazy Dataset only these are
            read. With a ``member`` dimension they are an ensemble of initial states, and forecast member m starts from
            initial member m modulo their number.
        steps, members: leads (the first is one frame interval after the start) and ensemble size.
        seed: of the ensemble; a member is a function of (seed, init_time, member).
        init_times: "last", "all" (every time with enough history), or one or more times of ``ds``: as ISO text,
            datetime64, datetime, cftime, or numbers in the spec's unit of time.
        mode: "fast" (one network evaluation a frame), "quality" (multi-step flow matching) or "mean"; default is the
            model's first.
        store: path of a zarr store to stream into; the result is then opened lazily from it.
        resume: continue a store, adding missing blocks and, if ``members`` has grown, new members.
        batch_size: members computed at once, and per shard of a store; a store that is continued keeps its own.
        keep: what is stored: "fields"; "latents", from which the fields are decoded when they are asked for; or
            "statistics" over the members, which are never stored. `Model.ensemble` has more options.
        certify: audit every decoded frame against the model's equation, or a share of them (0.1: one in ten), and add
            the variables ``residual`` and ``certified`` and the coordinate ``residual_bound`` (see `verdict`). They
            speak of how well the equation is obeyed, not of the distance from what will happen.

    Returns:
        Dataset in physical units, NaN under the masks.

    Raises ValueError where a model cannot be certified, SpecError for unfit input, MemoryError where the result would
    take more than a quarter of the memory and no store is given, StoreError where writing fails; completed blocks are
    kept.
    """
    if steps < 1 or members < 1:
        raise ValueError(f"steps and members must be at least 1, got steps={steps} and members={members}")
    if store is None and keep == "latents":
        raise ValueError("keep='latents' needs a store: store='forecast.zarr'")
    if certify and keep != "fields":
        raise ValueError(f"certify: found keep={keep!r}, wanted keep='fields': only decoded frames can be audited")
    frames, positions = initial_frames(ds, model.spec, model.emulator.history, init_times)
    job = Job(model, frames, positions, steps, members, seed, mode, batch_size, certify)
    if store is None and keep == "fields":
        return _in_memory(job, progress)
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return _into_store(job, Path(folder) / "ensemble.zarr", False, keep, members, progress).load()
    return _into_store(job, Path(store), resume, keep, batch_size, progress)


def _in_memory(job: Job, progress: bool) -> xr.Dataset:
    """The whole forecast as arrays."""
    size = 4 * len(job.positions) * job.members * job.steps * int(np.prod(job.model.spec.shape))
    limit = _SHARE_OF_MEMORY * _memory()
    if size > limit:
        raise MemoryError(
            f"the forecast would take {size / 2**30:.1f} GiB, above the limit of {limit / 2**30:.1f} GiB (a "
            "quarter of the memory); stream it with store='forecast.zarr', which is opened lazily"
        )
    template = job.template()
    arrays = {name: np.empty(v.shape, v.dtype) for name, v in template.data_vars.items()}
    total = len(job.positions) * job.members
    with tqdm(total=total, unit="member", disable=not progress, desc="forecast") as bar:
        for index, first, last in job.blocks():
            for name, values in job.compute(index, first, last).items():
                arrays[name][index : index + 1, first:last] = values
            bar.update(last - first)
    out = template.assign({n: (template[n].dims, a, template[n].attrs) for n, a in arrays.items()})
    _report(out, job.model.spec)
    return out


def _into_store(job: Job, path: Path, resume: bool, keep: Kept, shard: int | None, progress: bool) -> xr.Dataset:
    """The forecast through a store, opened lazily from there."""
    from .ensemble import planned

    ensemble = planned(job, keep, shard=shard).create(path, resume=resume)
    ensemble.run(progress=progress)
    ensemble.finalise()
    out = ensemble.open()
    if keep != "statistics":
        _report(out, job.model.spec)
    return out


def _report(fc: xr.Dataset, spec: FieldSpec) -> None:
    """Warn of starts whose frames are not certified, and of members that blew up: which, and from which lead on."""
    if "certified" in fc and (doubtful := doubts(fc)):
        others = f" and {len(doubtful) - _TOLD} starts more" if len(doubtful) > _TOLD else ""
        warnings.warn(
            f"certified are only {', '.join(doubtful[:_TOLD])}{others}: they obey the equation less well than "
            "forecasts in the climate that the model was trained in, or go beyond the leads of its certificate",
            stacklevel=5,
        )
    starts, members = np.nonzero(fc["valid"].values == 0)
    if not len(starts):
        return
    told = []
    for i, m in list(zip(starts, members, strict=True))[:_TOLD]:
        fields = fc[list(spec.names)].isel(init_time=i, member=m).to_dataarray()
        gone = fields.isnull().all(spec.grid.names).any("variable")
        first = lead_label(fc["lead_time"], int(gone.values.argmax()))
        told.append(f"member {fc['member'].values[m]} of the start {fc['init_time'].values[i]} from lead {first} on")
    if more := len(starts) - len(told):
        told.append(f"and {more} more")
    warnings.warn(
        f"{len(starts)} of {fc['valid'].size} members blew up: {'; '.join(told)}. "
        "They are NaN from there on and flagged in `valid`; scores leave them out",
        stacklevel=5,
    )


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
