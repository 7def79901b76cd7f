"""A forecast beside the truth that judges it, matched by `align` and then read block by block.

A block is every member and variable of one start at a few leads, so that the memory needed does not grow with the
number of starts or leads: a forecast larger than memory is read lazily, each stored chunk once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from ..datasets.units import conversion, stated_units
from ..physics.grid import Axis, Grid
from .align import LAYOUT, canonical, match_leads, match_points, match_space, match_times, renamed

__all__ = ["Block", "Pairs", "pair"]

BLOCK_BYTES = 2**26  # of stored values; reading and sorting them takes a few times as much


@dataclass(frozen=True)
class Block:
    """All members of one start at a few leads, in memory.

    Attributes:
        init, leads: positions along init_time and lead_time.
        members: variable -> (M, leads, *space), as stored.
        truth: variable -> (leads, *space); empty where there is no truth.
        used: (M, leads), False for members that are flagged invalid or not finite.
    """

    init: int
    leads: NDArray[np.int64]
    members: dict[str, NDArray[Any]]
    truth: dict[str, NDArray[Any]]
    used: NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """A canonical forecast, where its truth is, and the grid both live on; made by `pair`.

    Attributes:
        fc: dims (init_time, member, lead_time, *space), coordinates ascending.
        truth: the caller's truth, lazily; None where a forecast is only described.
        weights: (*space), area weights with mean 1.
        masks: variable -> (*space), True where there is data.
        kept: (init, lead), False where the truth has no state and the caller wanted to drop such times.
        position: (init, lead) -> index along the truth's time; None where the truth has starts and leads itself.
        order: for each spatial axis, the truth's positions in the forecast's order.
    """

    fc: xr.Dataset
    truth: xr.Dataset | None
    variables: tuple[str, ...]
    units: dict[str, str]
    space: tuple[str, ...]
    grid: Grid
    weights: NDArray[np.float64]
    masks: dict[str, NDArray[np.bool_]]
    kept: NDArray[np.bool_]
    position: NDArray[np.int64] | None
    order: tuple[NDArray[np.int64], ...]
    nan: Literal["raise", "valid"]

    @property
    def members(self) -> int:
        """Members in the forecast, whether used or not."""
        return int(self.fc.sizes["member"])

    def blocks(self, inits: Sequence[int] | None = None, budget: int = BLOCK_BYTES) -> Iterator[Block]:
        """Blocks of at most `budget` bytes (but at least one lead); leads without a truth are left out."""
        one = self.fc.isel(init_time=0, lead_time=0)
        size = max(1, budget // max(1, sum(one[v].nbytes for v in self.variables)))
        chunk = max((self.fc[v].variable.chunksizes.get("lead_time", (1,))[0] for v in self.variables), default=1)
        if size > chunk:  # whole stored chunks, so that none is read twice
            size -= size % chunk
        for init in range(self.fc.sizes["init_time"]) if inits is None else inits:
            leads = np.flatnonzero(self.kept[init])
            for start in range(0, len(leads), size):
                yield self.read(init, leads[start : start + size])

    def read(self, init: int, leads: NDArray[np.int64]) -> Block:
        """One block. Raises SpecError for values that are not finite where they should be."""
        part = self.fc.isel(init_time=init, lead_time=leads)
        members = {v: part[v].transpose("member", "lead_time", *self.space).values for v in self.variables}
        truth = {v: self.truth_at(v, init, leads) for v in self.variables} if self.truth is not None else {}
        used = np.ones((self.members, len(leads)), dtype=bool)
        if "valid" in self.fc:
            frame = part[self.variables[0]].isel(dict.fromkeys(self.space, 0))
            used &= part["valid"].broadcast_like(frame).transpose("member", "lead_time").values.astype(bool)
        problems: list[Problem] = []
        start = str(self.fc["init_time"].values[init])
        flagged = ~used
        space = tuple(range(-len(self.space), 0))
        for v in self.variables:
            finite = (np.isfinite(members[v]) | ~self.masks[v]).all(axis=space)
            if self.nan == "raise" and (bad := ~finite & ~flagged).any():
                m, k = (int(a) for a in np.argwhere(bad)[0])
                found = f"{int(bad.sum())} fields of start {start} not finite, first member {m} at lead {leads[k]}"
                fix = "nan='valid' leaves such members out and counts them in members_used"
                problems.append(Problem(f"forecast {v!r}", found, "finite values outside the mask", fix))
            used = used & finite
            if v in truth and not (good := np.isfinite(truth[v][..., self.masks[v]])).all():
                found = f"{int((~good).sum())} values not finite, start {start}, leads {leads[0]} to {leads[-1]}"
                fix = "give spec= with its masks, or fill the gaps"
                problems.append(Problem(f"truth {v!r}", found, "NaN under one static mask and nowhere else", fix))
        if problems:
            raise SpecError(problems)
        return Block(init, leads, members, truth, used)

    def truth_at(self, v: str, init: int, leads: NDArray[np.int64]) -> NDArray[Any]:
        """The truth of one variable at some leads, (leads, *space), on the forecast's points."""
        assert self.truth is not None
        if self.position is None:
            field, lead = self.truth[v].isel(init_time=init, lead_time=leads), "lead_time"
        else:
            field, lead = self.truth[v].isel(time=self.position[init, leads]), "time"
        values = field.transpose(lead, *self.space).values
        for axis, order in enumerate(self.order, start=1):
            if (order != np.arange(values.shape[axis])).any() or len(order) != values.shape[axis]:
                values = np.take(values, order, axis=axis)
        return np.asarray(values)


def pair(
    fc: xr.Dataset | xr.DataArray,
    truth: xr.Dataset | xr.DataArray | None,
    *,
    spec: FieldSpec | None = None,
    variables: Sequence[str] | None = None,
    dims: Mapping[str, str] | None = None,
    weights: xr.DataArray | None = None,
    missing: Literal["raise", "drop"] = "raise",
    nan: Literal["raise", "valid"] = "raise",
) -> Pairs:
    """Match a forecast with its truth; the arguments are those of `lapse.score`.

    Raises SpecError with every mismatch of names, then of units, points and times.
    """
    if missing not in ("raise", "drop") or nan not in ("raise", "valid"):
        raise ValueError(f"missing is 'raise' or 'drop' and nan 'raise' or 'valid', got {missing!r} and {nan!r}")
    fc = canonical(fc, dims)
    truth = None if truth is None else renamed(truth, dims)
    names, space = _fields(fc, truth, spec, variables)
    problems: list[Problem] = []
    units = {v: _units(fc[v], spec, v) for v in names}
    grid = _grid(fc, space, spec, problems)
    kept = np.ones((fc.sizes["init_time"], fc.sizes["lead_time"]), dtype=bool)
    position, order = None, tuple(np.arange(n) for n in grid.shape)
    if truth is not None:
        truth, order = match_space(fc, truth, space, problems)
        for v in names:
            other = stated_units(truth[v])[0] or units[v]
            change = conversion(other, units[v])
            if change is None or not change.identity:
                wanted = f"the forecast's units {units[v]!r}"
                fix = "convert the truth, as model.check does"
                problems.append(Problem(f"truth {v!r}", f"units {other!r}", wanted, fix))
        if "time" in truth.dims:
            position, kept = match_times(fc, truth, problems, drop=missing == "drop")
        else:
            match_leads(fc, truth, problems)
    if problems:
        raise SpecError(problems)
    if position is not None and not kept.all():
        inits, leads = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
        fc = fc.isel(init_time=inits, lead_time=leads)
        kept, position = kept[np.ix_(inits, leads)], position[np.ix_(inits, leads)]
    area = grid.area_weights().numpy() if weights is None else _weights(weights, fc, space)
    everywhere = {v: np.ones(grid.shape, dtype=bool) for v in names}
    pairs = Pairs(fc, truth, names, units, space, grid, area, everywhere, kept, position, order, nan)
    return dataclasses.replace(pairs, masks={v: _mask(pairs, v, spec) for v in names})


def _fields(
    fc: xr.Dataset, truth: xr.Dataset | None, spec: FieldSpec | None, variables: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the variables to compare, and of their spatial dimensions."""
    fields = [str(v) for v in fc.data_vars if "lead_time" in fc[v].dims and set(fc[v].dims) - set(LAYOUT)]
    names = list(variables or (v for v in fields if spec is None or v in spec.names))
    problems = []
    if not names:
        found, wanted = f"variables {list(fc.data_vars)}", "a field with lead_time and space"
        problems.append(Problem("forecast", found, wanted, "check the dimensions, or name them with dims="))
    for v in names:
        if v not in fields:
            problems.append(Problem(f"forecast {v!r}", f"fields {fields}", f"a field {v!r}", "check variables="))
        elif set(fc[v].dims) - set(LAYOUT) != set(fc[names[0]].dims) - set(LAYOUT):
            found, wanted = f"dimensions {fc[v].dims}", f"those of {names[0]!r}: {fc[names[0]].dims}"
            problems.append(Problem(f"forecast {v!r}", found, wanted, "compare one grid at a time: variables="))
        if truth is not None and v not in truth:
            found = f"variables {list(truth.data_vars)}"
            problems.append(Problem(f"truth {v!r}", found, f"a variable {v!r}", "rename it, or choose variables="))
    if problems:
        raise SpecError(problems)
    space = tuple(str(d) for d in fc[names[0]].dims if d not in LAYOUT)
    if spec is not None and set(space) == set(spec.grid.names):
        space = spec.grid.names
    return tuple(names), space


def _units(field: xr.DataArray, spec: FieldSpec | None, name: str) -> str:
    declared = spec[name].units if spec is not None and name in spec.names else None
    return stated_units(field)[0] or declared or "1"


def _grid(fc: xr.Dataset, space: tuple[str, ...], spec: FieldSpec | None, problems: list[Problem]) -> Grid:
    """The spec's grid, since it knows what is periodic; else one from the coordinates, nothing periodic."""
    shape = tuple(fc.sizes[d] for d in space)
    own = "pass the forecast's own spec"
    if spec is not None and spec.grid.shape != shape:
        problems.append(Problem("forecast", f"grid {shape}", f"the spec's grid {spec.grid.shape}", own))
    elif spec is not None:
        for d, axis in zip(space, spec.grid.axes, strict=True):
            known = len(problems)
            if d in fc.coords:
                order = match_points(f"spec {d!r}", fc[d], axis.coordinates, problems)
                if len(problems) == known and (order != np.arange(axis.size)).any():
                    problems.append(Problem(f"spec {d!r}", "the points in another order", "the forecast's", own))
        return spec.grid
    axes = []
    for d, n in zip(space, shape, strict=True):
        c = fc[d].values.astype(np.float64) if d in fc.coords else np.arange(n)
        units = str(fc[d].attrs.get("units", "1")) if d in fc.coords else "1"
        try:
            axes.append(Axis(d, tuple(c.tolist()), units))
        except ValueError as error:
            problems.append(Problem(f"forecast {d!r}", str(error), "ascending, finite coordinates", "fc.sortby(…)"))
            axes.append(Axis(d, tuple(range(n)), units))
    return Grid(tuple(axes))


def _weights(weights: xr.DataArray, fc: xr.Dataset, space: tuple[str, ...]) -> NDArray[np.float64]:
    """The caller's weights on the forecast's points, with mean 1."""
    problems: list[Problem] = []
    for d in weights.dims:
        if d not in space:
            problems.append(Problem("weights", f"dimensions {weights.dims}", f"some of {space}", "sum over the others"))
        elif d in weights.coords and d in fc.coords:
            order = match_points(f"weights {d!r}", fc[d], weights[d].values, problems)
            weights = weights.isel({d: order})
    if problems:
        raise SpecError(problems)
    one = xr.DataArray(np.ones([fc.sizes[d] for d in space]), dims=space)
    w = (one * weights.drop_vars(list(weights.coords))).transpose(*space).values.astype(np.float64)
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        found = f"values from {w.min()} to {w.max()}"
        raise SpecError([Problem("weights", found, "finite weights, none negative, not all zero", "correct them")])
    return np.asarray(w / w.mean())


def _mask(pairs: Pairs, v: str, spec: FieldSpec | None) -> NDArray[np.bool_]:
    """True where a variable has data: from the spec, else where its first state is finite."""
    if spec is not None:
        return np.asarray(spec.masks.get(v, pairs.masks[v]))
    init, lead = (int(a) for a in np.argwhere(pairs.kept)[0])
    if pairs.truth is not None:
        mask = np.isfinite(pairs.truth_at(v, init, np.array([lead]))[0])
    else:
        first = pairs.fc[v].isel(init_time=init, lead_time=lead).transpose("member", *pairs.space).values
        mask = np.isfinite(first).any(axis=0)
    if not mask.any():
        where = "forecast" if pairs.truth is None else "truth"
        raise SpecError([Problem(f"{where} {v!r}", "nothing finite in its first state", "a field", "check the file")])
    return np.asarray(mask)
