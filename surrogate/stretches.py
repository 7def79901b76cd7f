"""Diagnoses of whole Datasets, stretch by stretch: memory does not grow with the length or the number of the series.

A stretch is read, measured, and forgotten but for its norms. Residual fields of data in memory are kept; of lazy data
they are dask arrays, whose tasks read and measure their stretch again when somebody asks.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..datasets.states import States
from .diagnosis import Diagnosis

__all__ = ["lazy_fields", "measured", "stretches"]

BLOCK_BYTES = 2**22  # of states in float64; solvers take some twenty times as much
STRETCH = 128  # intervals in a stretch of the weak form, each a record of its own

Array = NDArray[Any]


def stretches(s: States, what: Diagnosis) -> list[tuple[int, int, int]]:
    """(first frame, end of the frames that are its own, end of what is read) of each stretch of a series."""
    last = s.frames - 1
    if what.form == "weak":
        n = max(1, round(last / STRETCH))
        cuts = pairwise(round(i * last / n) for i in range(n + 1))
        return [(a, b + (b == last), b + 1) for a, b in cuts]
    frame = 8 * len(s.law.variables) * math.prod(s.law.grid.shape)
    size = max(1, BLOCK_BYTES // frame)
    found, start = [], 0
    while start < s.frames:
        own = min(start + size, s.frames)
        if s.frames - own <= what.halo:  # what is left has no residual of its own
            own = s.frames
        found.append((start, own, min(own + what.halo, s.frames)))
        start = own
    return found


def measured(
    s: States, what: Diagnosis, fields: bool, device: str, progress: bool
) -> tuple[dict[str, Array], list[Array]]:
    """Norms, name -> (*leading, frames or windows, …), and the residual fields, one (*leading, frames, *space) a
    variable; none of them where they were not asked for, or the data are lazy."""
    fields = fields and not s.lazy
    tables: dict[str, list[Array]] = {}
    with tqdm(total=math.prod(s.shape) * s.frames, unit="frame", disable=not progress) as bar:
        for place in s.places:
            parts: dict[str, list[Array]] = {}
            for start, own, stop in stretches(s, what):
                u = s.read(place, start, stop).to(device)
                R, found = what.residuals(u)
                found |= what.states(u[: own - start])
                if fields:
                    found["fields"] = R
                if start == 0 and "invariant" in found:
                    found["magnitude"] = what.states(u[:1].abs())["invariant"]
                for name, value in found.items():
                    values = value.cpu().numpy()
                    parts.setdefault(name, []).append(values.astype(_kind(s)) if name == "fields" else values)
                bar.update(own - start)
            for name, pieces in parts.items():
                tables.setdefault(name, []).append(np.concatenate(pieces))
    joined = {name: np.stack(series).reshape(*s.shape, *series[0].shape) for name, series in tables.items()}
    for name, values in joined.items():
        if name.startswith("residual") or name == "fields":
            joined[name] = _padded(values, len(s.shape), what)
    whole = joined.pop("fields", None)
    return joined, [] if whole is None else list(np.moveaxis(whole, len(s.shape) + 1, 0))


def lazy_fields(s: States, what: Diagnosis, device: str) -> list[Any]:
    """The residual fields of lazy data, one dask array (*leading, frames, *space) a variable."""
    import dask
    import dask.array

    library: Any = dask  # whose functions have no types
    array: Any = dask.array
    kind, C, cuts = _kind(s), len(s.law.variables), stretches(s, what)
    weak = what.form == "weak"
    shape = (what.windows.grid(s.law.grid) if weak else s.law.grid).shape
    series = []
    for place in s.places:
        pieces = []
        for start, _, stop in cuts:
            n = len(what.windows.times(stop - start, s.interval)) if weak else stop - start - what.halo
            task = library.delayed(_field, pure=False)(s.arrays(place, start, stop), s.factors, what, device, kind)
            pieces.append(array.from_delayed(task, (n, C, *shape), kind))
        if not weak:
            gaps = [[array.full((n, C, *shape), np.nan, dtype=kind)] if n else [] for n in (what.first, what.last)]
            pieces = [*gaps[0], *pieces, *gaps[1]]
        series.append(array.concatenate(pieces))
    whole = array.stack(series).reshape((*s.shape, *series[0].shape))
    return [whole[(*(slice(None),) * (len(s.shape) + 1), c)] for c in range(C)]


def _field(arrays: list[Any], factors: Any, what: Diagnosis, device: str, kind: Any) -> Array:
    """One stretch of the residual field, (frames, C, *space)."""
    u = States.converted(arrays, factors).to(device)
    return np.asarray(what.fields(u).cpu().numpy().astype(kind))


def _padded(values: Array, axis: int, what: Diagnosis) -> Array:
    """Residuals along time, NaN at the frames that have none."""
    if what.form == "weak":
        return values
    pad = [(0, 0)] * values.ndim
    pad[axis] = (what.first, what.last)
    return np.pad(values, pad, constant_values=np.nan)


def _kind(s: States) -> Any:
    """Precision of the residual fields: that of the data."""
    return np.result_type(np.float32, *(a.dtype for a in s.ds.data_vars.values() if a.dtype.kind == "f"))
