"""What is kept of an ensemble: its fields, its latents, or only its statistics.

A `Keep` says how the store of an ensemble is laid out, computes one block of it, and opens it again; `ensemble` does
the rest (parts, markers, resume) in the same way for all. Latents and statistics have modules of their own.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.shards import Block, StoreError
from .job import Job

if TYPE_CHECKING:
    from .ensemble import Ensemble

__all__ = ["KEPT", "Fields", "Keep", "keeper", "open_lazily"]

KEPT = ("fields", "latents", "statistics")
FOLDER = ".lapse"  # inside a store, where zarr does not look


class Keep(Protocol):
    """One answer to the question what is kept.

    Attributes:
        name: in `KEPT`.
        shard: members of one block.
        options: JSON from which `keeper` makes the same again.
    """

    name: str
    shard: int

    @property
    def options(self) -> dict[str, Any]: ...

    def home(self, path: Path) -> Path:
        """Where the blocks of the ensemble at ``path`` are written."""
        ...

    def layout(self, job: Job) -> tuple[xr.Dataset, dict[str, int], dict[str, int]]:
        """Template, shards and chunks of the blocks' store."""
        ...

    def identity(self, job: Job) -> dict[str, Any]:
        """What a resume must agree with."""
        ...

    def prepare(self, ensemble: "Ensemble") -> None:
        """After creation and before any block."""
        ...

    def compute(self, ensemble: "Ensemble", block: Block) -> dict[str, NDArray[Any]]:
        """The arrays of one block."""
        ...

    def complete(self, ensemble: "Ensemble") -> None:
        """After the last block."""
        ...

    def open(self, ensemble: "Ensemble") -> xr.Dataset:
        """What the ensemble became, opened lazily."""
        ...


class Fields:
    """Every member's fields, one shard a block of members, one chunk a member."""

    name = "fields"

    def __init__(self, shard: int) -> None:
        self.shard = shard

    @property
    def options(self) -> dict[str, Any]:
        return {"shard": self.shard}

    def home(self, path: Path) -> Path:
        return path

    def layout(self, job: Job) -> tuple[xr.Dataset, dict[str, int], dict[str, int]]:
        return job.template(), {"init_time": 1, "member": self.shard}, {"member": 1}

    def identity(self, job: Job) -> dict[str, Any]:
        return job.identity

    def prepare(self, ensemble: "Ensemble") -> None:
        pass

    def compute(self, ensemble: "Ensemble", block: Block) -> dict[str, NDArray[Any]]:
        job, members = ensemble.job, block.region["member"]
        index = block.region["init_time"].start
        parts = (job.compute(index, a, b) for a, b in job.batches(members.start, members.stop))
        return joined(parts, members.stop - members.start)

    def complete(self, ensemble: "Ensemble") -> None:
        pass

    def open(self, ensemble: "Ensemble") -> xr.Dataset:
        return open_lazily(ensemble.path, ensemble.job)


def keeper(name: str, options: dict[str, Any]) -> Keep:
    """The `Keep` of that name. Raises ValueError for an unknown one."""
    if name not in KEPT:
        raise ValueError(f"keep: found {name!r}, wanted one of {', '.join(KEPT)}")
    module = import_module(f".{name}", __package__) if name != "fields" else sys.modules[__name__]
    kind = getattr(module, name.capitalize())
    try:
        made: Keep = kind(**options)
    except TypeError as error:
        raise ValueError(f"keep={name!r} does not take these options: {error}") from None
    return made


def joined(parts: Iterable[dict[str, NDArray[Any]]], count: int) -> dict[str, NDArray[Any]]:
    """Batches of ``count`` members in all, one after the other along axis 1, each dropped once it is in its place."""
    out: dict[str, NDArray[Any]] = {}
    done = 0
    for part in parts:
        some = len(next(iter(part.values()))[0])
        if some == count:
            return part
        if not out:
            out = {n: np.empty((1, count, *a.shape[2:]), a.dtype) for n, a in part.items()}
        for n, a in part.items():
            out[n][:, done : done + some] = a
        done += some
    return out


def open_lazily(path: Path, job: Job, **options: Any) -> xr.Dataset:
    """A store of ours, lazily, with times of the type that the starts have."""
    if not (path / "zarr.json").exists():
        raise StoreError(f"{path}: found no data yet; run all parts, then finalise")
    times = job.init.dtype
    unit: Any = np.datetime_data(times)[0] if times.kind == "M" else "us"
    out: xr.Dataset = xr.open_zarr(path, decode_times=xr.coders.CFDatetimeCoder(time_unit=unit), **options)
    return out
