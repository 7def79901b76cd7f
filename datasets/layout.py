"""How the arrays of a store are cut: blocks for writers, shards for files, chunks for compression.

Along each *sharded* dimension an array is cut into pieces of fixed length; one piece of all of them is a
*block*, the unit of work of one writer, and holds exactly one shard file of every array. Dimensions that are
not sharded lie whole in each shard. Inside a shard, *chunks* are the unit of compression and of reading. A
shard is a whole number of chunks, as the codec ``sharding_indexed`` of zarr v3 demands
(https://zarr-specs.readthedocs.io).

Arrays without a sharded dimension (a mask, a topography) are static: they are written once, with the
coordinates.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Block", "StorePlan", "blank", "describe", "differences"]


@dataclass(frozen=True)
class Block:
    """One unit of work: one shard of every array. ``region`` maps each sharded dimension to its slice."""

    index: tuple[int, ...]
    region: dict[str, slice]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.index))

    def length(self, dim: str) -> int:
        return int(self.region[dim].stop - self.region[dim].start)


def blank(shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
    """An array that takes no memory (stride 0): data for a template, where only shape and dtype count."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


@dataclass(frozen=True)
class StorePlan:
    """The layout of a store, before there is one: blocks, shards and chunks, and what they cost in files."""

    sizes: dict[str, int]  # of the sharded dimensions
    shards: dict[str, int]
    variables: dict[str, dict[str, Any]]  # name -> dims, shape, dtype, chunks, shards

    @classmethod
    def of(cls, template: xr.Dataset, shards: Mapping[str, int], chunks: Mapping[str, int]) -> StorePlan:
        """Lays out ``template``.

        Args:
            shards: block length of each sharded dimension.
            chunks: chunk length of any dimension; a dimension not named is not cut within its shard.

        Raises:
            ValueError: unknown dimensions; a shard that is no multiple of its chunk; an array with some but
                not all of the sharded dimensions, whose shards would have several writers.
        """
        sizes = {str(d): int(n) for d, n in template.sizes.items()}
        for what, cut in (("shards", shards), ("chunks", chunks)):
            if unknown := sorted(set(cut) - set(sizes)):
                raise ValueError(f"{what}: found dimensions {unknown}, wanted some of {sorted(sizes)}")
            if bad := {d: n for d, n in cut.items() if n < 1}:
                raise ValueError(f"{what}: found {bad}, wanted lengths of at least 1")
        for d, n in shards.items():
            if n % chunks.get(d, n):
                fit = math.ceil(n / chunks[d]) * chunks[d]
                raise ValueError(f"found shards of {n} and chunks of {chunks[d]} along {d!r}, wanted {fit}")
        variables: dict[str, dict[str, Any]] = {}
        for name, v in template.data_vars.items():
            dims = [str(d) for d in v.dims]
            sharded = [d for d in shards if d in dims]
            if not sharded:
                continue
            if len(sharded) < len(shards):
                raise ValueError(
                    f"{name!r}: found dimensions {tuple(dims)}, wanted all of {tuple(shards)} or none: "
                    "else its shards would have several writers"
                )
            if v.dtype.kind not in "fiub":
                raise ValueError(f"{name!r}: found dtype {v.dtype}, wanted numbers or booleans")
            in_chunk = [chunks.get(d, shards.get(d, sizes[d])) for d in dims]
            in_chunk = [c if d in shards else min(c, sizes[d]) for d, c in zip(dims, in_chunk, strict=True)]
            in_shard = [shards.get(d, math.ceil(sizes[d] / c) * c) for d, c in zip(dims, in_chunk, strict=True)]
            variables[str(name)] = {
                "dims": dims,
                "shape": [sizes[d] for d in dims],
                "dtype": str(v.dtype),
                "chunks": in_chunk,
                "shards": in_shard,
            }
        if not variables:
            raise ValueError(f"found no data variable with the dimensions {tuple(shards)} in the template")
        return cls({d: sizes[d] for d in shards}, {d: int(n) for d, n in shards.items()}, variables)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many blocks there are along each sharded dimension."""
        return tuple(math.ceil(self.sizes[d] / n) for d, n in self.shards.items())

    @property
    def bytes(self) -> int:
        return sum(math.prod(v["shape"]) * np.dtype(v["dtype"]).itemsize for v in self.variables.values())

    @property
    def files(self) -> int:
        return math.prod(self.counts) * len(self.variables)

    def block(self, index: Sequence[int]) -> Block:
        cut = zip(index, self.shards.items(), strict=True)
        return Block(tuple(index), {d: slice(i * n, min((i + 1) * n, self.sizes[d])) for i, (d, n) in cut})

    def blocks(self) -> list[Block]:
        return [self.block(i) for i in itertools.product(*map(range, self.counts))]

    def covered(self, region: Mapping[str, slice]) -> list[Block]:
        """The blocks that a region is made of. ValueError if it cuts through one."""
        if set(region) != set(self.shards):
            raise ValueError(f"found a region over {tuple(region)}, wanted one over {tuple(self.shards)}")
        ranges = []
        for d, n in self.shards.items():
            size, given = self.sizes[d], region[d]
            start, stop, step = given.indices(size)
            proper = step == 1 and start < stop and (given.stop is None or given.stop <= size)
            if not (proper and start % n == 0 and (stop % n == 0 or stop == size)):
                raise ValueError(
                    f"found {d}={given.start}:{given.stop}, wanted whole blocks: along {d!r} (length {size}) "
                    f"they begin at multiples of {n}, and a shard has one writer"
                )
            ranges.append(range(start // n, -(-stop // n)))
        return [self.block(i) for i in itertools.product(*ranges)]

    def __str__(self) -> str:
        blocks = " x ".join(f"{n} along {d}" for n, d in zip(self.counts, self.shards, strict=True))
        return (
            f"{len(self.variables)} arrays, blocks: {blocks}; {self.files} files, "
            f"{self.bytes / 1e6:.1f} MB uncompressed, {self.bytes / 1e6 / max(self.files, 1):.2f} MB a file"
        )


def describe(template: xr.Dataset, shards: Mapping[str, int], chunks: Mapping[str, int]) -> dict[str, Any]:
    """The layout as JSON, with a hash of each coordinate and static variable: what a resume must agree
    with."""
    plan = StorePlan.of(template, shards, chunks)
    static = {str(n): _digest(v) for n, v in template.variables.items() if n not in plan.variables}
    return {"sizes": plan.sizes, "shards": plan.shards, "variables": plan.variables, "static": static}


def differences(found: Any, wanted: Any) -> list[str]:
    """Line by line, where two nested mappings differ; empty if they agree."""
    a, b = _flat(found), _flat(wanted)
    absent = "(absent)"
    return [
        f"{k}: the store has {a.get(k, absent)!r}, asked for {b.get(k, absent)!r}"
        for k in sorted(a.keys() | b.keys())
        if a.get(k, absent) != b.get(k, absent)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not (isinstance(value, Mapping) and value):
        return {prefix: value}
    parts = [_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
    return {k: v for part in parts for k, v in part.items()}


def _digest(v: xr.Variable) -> str:
    values = np.asarray(v.values)
    objects = values.dtype.kind == "O"  # cftime dates, strings
    raw = repr(values.tolist()).encode() if objects else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(repr((v.dims, v.shape, str(values.dtype))).encode() + raw).hexdigest()[:16]
