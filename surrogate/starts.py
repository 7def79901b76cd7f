"""The starts of a forecast: which frames of a Dataset it needs, and these alone read and checked.

The structure of the whole Dataset (names, units, grid, times) is judged without its numbers; then the frames of the
starts and their history are selected, read and judged in full. A forecast from the last day of forty years reads one
day.
"""

import re
import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.check import check, examine
from ..datasets.fields import to_tensor
from ..datasets.infer import as_dataset
from ..datasets.names import role_of
from ..datasets.problem import Problem, SpecError, SpecWarning
from ..datasets.spec import FieldSpec
from ..datasets.time import phase as phase_of
from .noise import spelling

__all__ = ["initial_frames", "spread_windows"]

_LOADED = 2**31  # bytes of initial frames that are kept in memory; beyond, each start is read when its turn comes
_SAME = 1e-3  # of the frame interval: how far two numeric times may be apart and be the same
_ISO = re.compile(r"(\d{4,})-(\d\d)(?:-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?Z?)?)?")


def initial_frames(
    ds: xr.Dataset | xr.DataArray, spec: FieldSpec, history: int, init_times: Any
) -> tuple[xr.Dataset, list[int]]:
    """The canonical frames (`datasets.check`) that the starts need, and the position of each start among them.

    Arguments:
        ds: frames over time, perhaps over ``member``.
        history: frames that each start needs, its own included.
        init_times: "last", "all" or times; see `lapse.surrogate.forecast`.

    Raises SpecError with every problem of the whole's structure and of the needed frames' numbers.
    """
    ds = as_dataset(ds)
    whole, findings = examine(_skeleton(ds), spec, history, members=True, values=False)
    along = _time_dimensions(ds, spec)
    if whole is None:
        _, more = examine(ds.isel({d: slice(-history, None) for d in along}), spec, history, members=True, gaps=True)
        raise SpecError([*findings.problems, *(p for p in more.problems if p not in findings.problems)])
    if "trajectory" in whole.dims:
        found = f"{whole.sizes['trajectory']} trajectories"
        raise SpecError([Problem("dimension 'trajectory'", found, "one", "choose: ds.isel(trajectory=0)")])
    starts = _positions(whole["time"], init_times, history, spec)
    needed = sorted({i for p in starts for i in range(p - history + 1, p + 1)})
    counted = {d: whole["time"].values for d in along if d not in ds.coords}
    frames = ds.assign_coords(counted)[_used(ds, spec)].isel(dict.fromkeys(along, needed))
    if sum(v.nbytes for v in frames.data_vars.values()) <= _LOADED:
        frames = frames.load()
    canonical, more = examine(frames, spec, history, members=True, gaps=True)
    if canonical is None:
        raise SpecError(more.problems)
    for warning in dict.fromkeys([*findings.warnings, *more.warnings]):
        warnings.warn(str(warning), SpecWarning, stacklevel=4)
    return canonical, [needed.index(p) for p in starts]


def spread_windows(
    ds: xr.Dataset | xr.DataArray, spec: FieldSpec, length: int, count: int
) -> tuple[Tensor, Tensor | None]:
    """``count`` windows of ``length`` consecutive frames, spread evenly over a Dataset and its trajectories.

    Fields ``(N, length, C, *space)`` in physical units, and phases ``(N, length, 4)`` of models with a calendar. Only
    the frames of the windows are read. Raises SpecError for unfit data, ValueError where no window fits in.
    """
    ds = as_dataset(ds)
    _, findings = examine(_skeleton(ds), spec, values=False)
    if findings.problems:
        raise SpecError(findings.problems)
    along = _time_dimensions(ds, spec)
    runs, each = ds.sizes.get("trajectory", 1), min(ds.sizes[d] for d in along) - length + 1
    if each < 1:
        raise ValueError(f"found {each + length - 1} consecutive frames, wanted at least {length}")
    fields, phases = [], []
    for place in sorted({int(i) for i in np.linspace(0, runs * each - 1, min(count, runs * each))}):
        run, first = divmod(place, each)
        piece = ds[_used(ds, spec)].isel(dict.fromkeys(along, slice(first, first + length)))
        frames = check(piece.isel(trajectory=run) if "trajectory" in piece.dims else piece, spec)
        fields.append(to_tensor(frames, spec))
        if spec.calendar is not None:
            phases.append(torch.from_numpy(phase_of(frames["time"])))
    return torch.stack(fields), torch.stack(phases) if phases else None


def _used(ds: xr.Dataset, spec: FieldSpec) -> list[str]:
    """The variables to read; of split variables, whose names in the file are not kept, all."""
    return [str(n) for n in ds.data_vars if spec.split in ds.dims or n in spec.names]


def _skeleton(ds: xr.Dataset) -> xr.Dataset:
    """The Dataset with zeros for data, which are never made."""
    import dask.array as da

    return ds.assign({n: v.copy(data=da.zeros(v.shape, dtype=v.dtype, chunks=-1)) for n, v in ds.data_vars.items()})


def _time_dimensions(ds: xr.Dataset, spec: FieldSpec) -> list[str]:
    """Names that the time dimension goes by; none for a single frame without one."""
    told = spec.dims.get("time", ())
    return [str(d) for d in ds.dims if d in told] or [str(d) for d in ds.dims if role_of(ds, str(d)) == "time"]


def _positions(times: xr.DataArray, wanted: Any, history: int, spec: FieldSpec) -> list[int]:
    """Positions in ``times`` of the wanted starts; each needs ``history − 1`` frames before it."""
    count = times.sizes["time"]
    if isinstance(wanted, str) and wanted == "last":
        return [count - 1]
    if isinstance(wanted, str) and wanted == "all":
        return list(range(history - 1, count))
    values = np.atleast_1d(np.asarray(wanted.values if isinstance(wanted, xr.DataArray) else wanted))
    problems, found = [], []
    for value in values:
        position = _position(times.values, value, spec)
        if position is None:
            wanted_times = f"a time of the Dataset, {times.values[0]} … {times.values[-1]}"
            fix = "choose from ds.time, or init_times='last' or 'all'"
            problems.append(Problem("init_times", f"{value}", wanted_times, fix))
        elif position < history - 1:
            before, fix = f"{value} with {position} frame(s) before it", "start later, or give earlier frames too"
            problems.append(Problem("init_times", before, f"{history - 1} frame(s) before it", fix))
        elif position not in found:
            found.append(position)
    if problems:
        raise SpecError(problems)
    return found


def _position(times: NDArray[Any], value: Any, spec: FieldSpec) -> int | None:
    """Where a time stands among ``times``."""
    if spec.calendar is None:
        try:
            away = np.abs(times.astype(np.float64) - float(value))
        except (TypeError, ValueError):
            return None
        nearest = int(away.argmin())
        return nearest if away[nearest] <= _SAME * spec.interval else None
    text = _completed(value) if isinstance(value, str) else spelling(value)
    return next((i for i, t in enumerate(times) if spelling(t) == text), None)


def _completed(text: str) -> str:
    """ISO text, as short as it may be, as `spelling` writes it; this serves every calendar."""
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return text
    year, month, day, hour, minute, second, fraction = match.groups()
    micro = (fraction or "").ljust(6, "0")[:6]
    return f"{year}-{month}-{day or '01'}T{hour or '00'}:{minute or '00'}:{second or '00'}.{micro}"
