"""One pass over a variable, block by block: where it is NaN or infinite, and its moments.

Fields on disk are larger than memory. A block is a run of whole frames, as many as fit in `BLOCK` bytes;
moments of blocks are merged with the formula of Chan, Golub and LeVeque (1979), in float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Scan", "blocks", "scan"]

BLOCK = 32 * 2**20


@dataclass
class Scan:
    """What one pass found. Arrays have the shape of space; moments are over finite valid cells.

    `valid` counts those, `outside` lists the first few places (by dimension) of NaN in cells that the mask
    calls valid.
    """

    any_nan: NDArray[np.bool_]
    all_nan: NDArray[np.bool_]
    frames: int = 0
    valid: int = 0
    nan_outside: int = 0
    outside: list[dict[str, int]] = field(default_factory=list)
    inf: int = 0
    first_inf: dict[str, int] | None = None
    minimum: float = math.inf
    maximum: float = -math.inf
    mean: float = 0.0
    weight: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Weighted standard deviation over time and space."""
        return math.sqrt(max(self.squares, 0.0) / self.weight) if self.weight else math.nan

    def merge(self, values: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Add finite `values` with `weights`, both flat."""
        weight = float(weights.sum())
        if values.size == 0:
            return
        self.valid += values.size
        self.minimum, self.maximum = (
            min(self.minimum, float(values.min())),
            max(self.maximum, float(values.max())),
        )
        if weight == 0.0:
            return
        mean = float((weights * values).sum() / weight)
        squares = float((weights * (values - mean) ** 2).sum())
        total = self.weight + weight
        away = mean - self.mean
        self.squares += squares + away**2 * self.weight * weight / total
        self.mean += away * weight / total
        self.weight = total


def blocks(array: xr.DataArray, space: Sequence[str], limit: int = BLOCK) -> Iterator[tuple[dict[str, int], Any]]:
    """Runs of frames ({leading dim: first index}, values (n, *space)), loaded one at a time, in order."""
    leading = [str(d) for d in array.dims if d not in space]
    leading.sort(key=lambda d: array.sizes[d] > 1)  # stable: a dimension of one goes first, so that runs are long
    array = array.transpose(*leading, *space)
    if not leading:
        yield {}, array.values[None]
        return
    *outer, last = leading
    frame = max(1, math.prod(array.sizes[d] for d in space)) * max(array.dtype.itemsize, 4)
    length = max(1, limit // frame)
    for index in product(*(range(array.sizes[d]) for d in outer)):
        place = dict(zip(outer, index, strict=True))
        for start in range(0, array.sizes[last], length):
            yield {**place, last: start}, array.isel({**place, last: slice(start, start + length)}).values


def scan(
    array: xr.DataArray,
    space: Sequence[str],
    mask: NDArray[np.bool_] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> Scan:
    """Read `array` once. `mask` (True = valid) and `weights` have the shape of space."""
    shape = tuple(array.sizes[d] for d in space)
    valid = np.ones(shape, dtype=np.bool_) if mask is None else mask
    area = np.ones(shape) if weights is None else weights
    found = Scan(np.zeros(shape, dtype=np.bool_), np.ones(shape, dtype=np.bool_))
    for place, block in blocks(array, space):
        values = np.asarray(block, dtype=np.float64 if block.dtype.itemsize > 4 else np.float32)
        nan, inf = np.isnan(values), np.isinf(values)
        found.any_nan |= nan.any(axis=0)
        found.all_nan &= nan.all(axis=0)
        found.frames += len(values)
        wrong = nan & valid
        if wrong.any():
            found.nan_outside += int(wrong.sum())
            for where in np.argwhere(wrong)[: 3 - len(found.outside)]:
                found.outside.append(_place(place, where, space))
        inf &= valid
        if inf.any():
            found.inf += int(inf.sum())
            found.first_inf = found.first_inf or _place(place, np.argwhere(inf)[0], space)
        good = ~nan & ~inf & valid
        found.merge(values[good].astype(np.float64), np.broadcast_to(area, values.shape)[good])
    return found


def _place(block: dict[str, int], where: NDArray[np.int64], space: Sequence[str]) -> dict[str, int]:
    place = dict(block)
    if place:
        last = list(place)[-1]
        place[last] += int(where[0])
    return place | {d: int(i) for d, i in zip(space, where[1:], strict=True)}
