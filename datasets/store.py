"""Where training frames come from: a plain zarr store, or an array in memory.

Both are a `Source`: frames u[k, t] with k a trajectory (one, where the data has no such dimension) and t a
time, read as float32 arrays (k, t, C, *space) in physical units, with the phase of every time. Masked cells
hold the variable's mean, as `fields.to_tensor` has it.

A *plain* store needs nothing but reading: one float array for each variable, dims (time, *space) or
(anything, time, *space), on the spec's grid, in its units, not packed. It is read as zarr arrays, without
xarray and dask, whose bookkeeping costs more than the decompression (`benchmarks/loading.py`); its chunks
along trajectory and time are what `windows` aligns its reads to. What is not plain fits in memory, or is
made plain once with `convert`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .fields import to_tensor
from .shards import ShardedWriter, StoreError, blank
from .spec import FieldSpec
from .time import phase, steps_between

__all__ = ["MemorySource", "Source", "StoreSource", "convert"]

CHUNK_BYTES = 2**20
SHARD_BYTES = 2**27


class Source(Protocol):
    """Frames u[k, t], read in rectangles."""

    shape: tuple[int, ...]  # (trajectories, times, C, *space)
    chunks: tuple[int, int]  # trajectories and times that are decompressed together
    phase: NDArray[np.float32]  # (times, 4)
    breaks: tuple[int, ...]  # times t whose frame does not follow the one before it by one interval

    def read(self, k0: int, k1: int, t0: int, t1: int, out: NDArray[np.float32]) -> None:
        """Fills out, of shape (k1 - k0, t1 - t0, C, *space)."""


class MemorySource:
    """All frames as one array ``frames`` (K, T, C, *space) float32; nothing is left to be read."""

    def __init__(self, frames: NDArray[np.float32], phase: NDArray[np.float32], breaks: Sequence[int] = ()) -> None:
        if frames.ndim < 4 or phase.shape != (frames.shape[1], 4):
            raise ValueError(
                f"found frames {frames.shape} and phases {phase.shape}, wanted (K, T, C, *space) and (T, 4)"
            )
        self.frames = np.ascontiguousarray(frames, dtype=np.float32)
        self.shape = self.frames.shape
        self.chunks = (1, 1)
        self.phase = phase
        self.breaks = tuple(breaks)

    @classmethod
    def of(cls, ds: xr.Dataset, spec: FieldSpec) -> MemorySource:
        """Loads a canonical Dataset (the result of `datasets.check`); dims before time count as
        trajectories."""
        others = [str(d) for d in ds[spec.names[0]].dims if d not in ("time", *spec.grid.names)]
        fields = to_tensor(ds[list(spec.names)].transpose(*others, "time", *spec.grid.names), spec).numpy()
        T = ds.sizes["time"]
        return cls(fields.reshape(-1, T, *spec.shape), phase(ds["time"]), _breaks(ds["time"], spec))

    def read(self, k0: int, k1: int, t0: int, t1: int, out: NDArray[np.float32]) -> None:
        out[...] = self.frames[k0:k1, t0:t1]


class StoreSource:
    """A plain zarr store. Picklable; the arrays are opened where they are first read (in the worker).

    Raises:
        StoreError: the store is not plain, with all reasons (`obstacles`), or was never completed.
    """

    def __init__(self, path: str | Path, spec: FieldSpec) -> None:
        self.path = str(path)
        if reasons := obstacles(path, spec):
            raise StoreError(
                f"{path} cannot be read as plain arrays:\n  " + "\n  ".join(reasons) + "\nUsual fix: "
                "lapse.datasets.store.convert(ds, path, spec) writes a store that can"
            )
        self.names = spec.names
        self._fill: list[tuple[int, NDArray[np.bool_], float]] = []
        for c, v in enumerate(spec.variables):
            if v.name in spec.masks:
                self._fill.append((c, ~spec.masks[v.name], v.mean or 0.0))
        arrays = self._open()
        lead, time = next((1, *a.shape) if a.ndim == spec.grid.ndim + 1 else a.shape for a in arrays)[:2]
        self.shape = (lead, time, *spec.shape)
        cut = [(1, *a.chunks) if a.ndim == spec.grid.ndim + 1 else a.chunks for a in arrays]
        self.chunks = (math.lcm(*(c[0] for c in cut)), math.lcm(*(c[1] for c in cut)))
        times = _open_xarray(self.path)["time"]
        self.phase = phase(times) if spec.calendar else np.zeros((time, 4), np.float32)
        self.breaks = _breaks(times, spec)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def _open(self) -> list[Any]:
        if "_arrays" not in self.__dict__:
            import zarr

            self._arrays = [zarr.open_array(f"{self.path}/{n}", mode="r") for n in self.names]
        return self._arrays

    def read(self, k0: int, k1: int, t0: int, t1: int, out: NDArray[np.float32]) -> None:
        from zarr.buffer.cpu import NDBuffer

        for c, array in enumerate(self._open()):
            lead = array.ndim == out.ndim - 1
            region = (slice(k0, k1), slice(t0, t1)) if lead else (slice(t0, t1),)
            # Straight into its place: a copy less, and a fifth of the time for a store of one variable.
            place = NDBuffer.from_numpy_array(out[:, :, c] if lead else out[0, :, c])
            array.get_basic_selection(region, out=place)
        for c, masked, value in self._fill:
            out[:, :, c, masked] = value


def obstacles(path: str | Path, spec: FieldSpec) -> list[str]:
    """Why a path cannot be read as plain arrays of this spec; empty if it can."""
    import zarr

    try:
        group = zarr.open_group(path, mode="r")
    except Exception as e:  # zarr raises many kinds for what is not a group of arrays
        return [f"not a zarr group ({type(e).__name__})"]
    reasons = []
    manifest = Path(path) / "manifest.json"
    if manifest.is_file() and not json.loads(manifest.read_text()).get("complete", True):
        reasons.append("its writing was interrupted: found blocks missing, wanted a complete store (resume it)")
    arrays = dict(group.arrays()) if group.metadata.consolidated_metadata else _members(group, spec)
    if missing := [n for n in spec.names if n not in arrays]:
        return [*reasons, f"found no arrays {missing}, wanted one for each variable"]
    leads = set()
    for name in spec.names:
        a, wanted = arrays[name], spec[name].units
        named: Any = getattr(a.metadata, "dimension_names", None) or a.attrs.get("_ARRAY_DIMENSIONS", ())
        dims = tuple(named)
        if dims[-spec.grid.ndim - 1 :] != ("time", *spec.grid.names) or len(dims) > spec.grid.ndim + 2:
            want = ("time", *spec.grid.names)
            reasons.append(f"{name}: found dimensions {dims}, wanted {want} after at most one more")
            continue
        leads.add(a.shape[: a.ndim - spec.grid.ndim])
        if a.shape[-spec.grid.ndim :] != spec.grid.shape:
            reasons.append(f"{name}: found shape {a.shape}, wanted the grid's {spec.grid.shape} at its end")
        if a.dtype.kind != "f" or a.attrs.get("scale_factor", 1) != 1 or a.attrs.get("add_offset", 0) != 0:
            reasons.append(f"{name}: found packed or integer values ({a.dtype}), wanted floats")
        if a.attrs.get("units") != wanted:
            reasons.append(f"{name}: found units {a.attrs.get('units')!r}, wanted {wanted!r}")
    if reasons:
        return reasons
    if len(leads) > 1:
        reasons.append(f"found variables with leading shapes {sorted(leads)}, wanted one for all")
    ds = _open_xarray(path)
    for axis in spec.grid.axes:
        found = ds[axis.name].values if axis.name in ds.coords else None
        scale = max(abs(c) for c in axis.coordinates) or 1.0
        if found is None or not np.allclose(found, axis.coordinates, rtol=0, atol=1e-5 * scale):
            reasons.append(f"{axis.name}: found coordinates that differ from the spec's grid (order, offset)")
    if "time" not in ds.coords or (spec.calendar is None) != (ds["time"].dtype.kind in "iuf"):
        reasons.append("time: found no times of the spec's kind (dates or numbers)")
    return reasons


def _members(group: Any, spec: FieldSpec) -> dict[str, Any]:
    """The spec's arrays of a group, without listing it."""
    import zarr

    found = {n: group.get(n) for n in spec.names}
    return {n: a for n, a in found.items() if isinstance(a, zarr.Array)}


def _open_xarray(path: str | Path) -> xr.Dataset:
    import zarr

    consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    return xr.open_dataset(str(path), engine="zarr", chunks=None, consolidated=consolidated)


def _breaks(times: xr.DataArray, spec: FieldSpec) -> tuple[int, ...]:
    return tuple(int(i) + 1 for i in np.flatnonzero(steps_between(times, spec) != 1))


def convert(
    ds: xr.Dataset,
    path: str | Path,
    spec: FieldSpec,
    *,
    chunk: int | None = None,
    shard: int | None = None,
    resume: bool = False,
) -> Path:
    """Writes a canonical Dataset (the result of `datasets.check`, lazy or not) as a plain store; returns its
    path.

    Args:
        chunk: times in one chunk, default about a megabyte; shard: times in one shard, a multiple of it.
        resume: continue a store that was begun from the same times and spec.

    Raises StoreError as `ShardedWriter` does.
    """
    others = [str(d) for d in ds[spec.names[0]].dims if d not in ("time", *spec.grid.names)]
    if len(others) > 1:
        raise ValueError(f"found leading dimensions {others}, wanted at most one; stack them first")
    ds = ds[list(spec.names)].transpose(*others, "time", *spec.grid.names)
    frame = 4 * math.prod(spec.grid.shape)
    in_chunk = min(ds.sizes["time"], chunk or max(1, CHUNK_BYTES // frame))
    in_shard = shard or in_chunk * max(1, SHARD_BYTES // (frame * in_chunk))
    template = ds.copy()
    for v in spec.variables:
        values = blank(ds[v.name].shape)
        template[v.name] = ds[v.name].copy(data=values)
        template[v.name].encoding = {}
        if v.units is not None:
            template[v.name].attrs["units"] = v.units
    writer = ShardedWriter.create(
        path,
        template,
        shards={**dict.fromkeys(others, 1), "time": in_shard},
        chunks={**dict.fromkeys(others, 1), "time": in_chunk},
        identity={"spec": spec.fingerprint()},
        resume=resume,
    )
    for block in writer.missing():
        part = ds.isel(block.region)
        writer.write({n: np.asarray(part[n].values, dtype=np.float32) for n in spec.names}, block)
    writer.finalise()
    return Path(path)
