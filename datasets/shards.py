"""A zarr store that many processes fill, one shard each, and that survives being killed.

Life of a store::

    writer = ShardedWriter.create(path, template, shards={"member": 50}, chunks={"member": 1}, identity={"seed": 0})
    for block in writer.missing():               # any process, any subset, any order
        writer.write(compute(block), block)
    writer.finalise()

* *A shard has one writer.* The dimensions named in ``shards`` cut every array into blocks; block (i, j) holds exactly
  one shard file of every array. A write that does not cover whole blocks is refused, because two half-writes of one
  shard read, modify and write the same file and lose data silently.
* *Markers decide.* ``.progress/i.j.done`` is made, atomically, after the block's shards have reached the disk (fsync).
  The presence of chunks proves nothing: a shard of fill values is never written, and a killed process leaves shards
  of which nobody knows whether their neighbours were finished.
* *The manifest refuses a resume of something else.* ``manifest.json`` keeps the layout (dimensions, dtypes, chunks,
  hashes of the coordinates) and the caller's ``identity`` (seed, spec fingerprint, hash of the inputs); a resume that
  differs is refused with the differences, except that the dimensions named in ``grow`` may have become longer.
* *Creation is atomic*: the metadata is written beside the path and renamed into place.

The protocol is that of xarray's distributed region writes (https://docs.xarray.dev, "Distributed writes") with the
alignment rule of zarr v3 sharding (https://zarr-specs.readthedocs.io, codec ``sharding_indexed``). Local file systems.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

__all__ = ["Block", "ShardedWriter", "StoreError", "StorePlan", "blank"]

FORMAT = "lapse-store 1"
MANY_FILES = 50_000


class StoreError(RuntimeError):
    """A store that cannot be created, continued, written or completed; what was completed stays on disk."""


class Block(NamedTuple):
    """One unit of work: one shard of every array. ``region`` maps each sharded dimension to its slice."""

    index: tuple[int, ...]
    region: dict[str, slice]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.index))


def blank(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    """An array of this shape that takes no memory (stride 0): data of a template, whose values are never read."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


@dataclass(frozen=True)
class StorePlan:
    """The layout of a store: which dimensions are cut into shards and chunks, and what that costs in files."""

    sizes: dict[str, int]  # of the sharded dimensions
    shards: dict[str, int]
    variables: dict[str, dict[str, Any]]  # name -> dims, shape, dtype, chunks, shards

    @classmethod
    def of(cls, template: xr.Dataset, shards: Mapping[str, int], chunks: Mapping[str, int]) -> StorePlan:
        """Lays out ``template``; a dimension not named is not cut. A shard is rounded up to whole chunks.

        Raises ValueError for unknown dimensions, a shard that is no multiple of its chunk, or an array that has some
        but not all of the sharded dimensions (its shards would have several writers).
        """
        sizes = {str(d): int(n) for d, n in template.sizes.items()}
        for what, cut in (("shards", shards), ("chunks", chunks)):
            if unknown := sorted(set(cut) - set(sizes)):
                raise ValueError(f"{what} name dimensions {unknown}; the template has {sorted(sizes)}")
            if bad := {d: n for d, n in cut.items() if n < 1}:
                raise ValueError(f"{what} must be at least 1, found {bad}")
        for d, n in shards.items():
            if n % chunks.get(d, n):
                raise ValueError(
                    f"a shard of {n} along {d!r} is no multiple of its chunk {chunks[d]}; "
                    f"use {-(-n // chunks[d]) * chunks[d]}"
                )
        variables: dict[str, dict[str, Any]] = {}
        for name, v in template.data_vars.items():
            cut_dims = [d for d in shards if d in v.dims]
            if not cut_dims:
                continue  # static: a mask, a topography; written once with the coordinates
            if len(cut_dims) != len(shards):
                raise ValueError(
                    f"{name!r} has dimensions {v.dims} but blocks are cut along {tuple(shards)}: "
                    "its shards would have several writers"
                )
            if v.dtype.kind not in "fiub":
                raise ValueError(f"{name!r} has dtype {v.dtype}; blocks hold numbers and booleans only")
            c = [min(chunks.get(str(d), shards.get(str(d), sizes[str(d)])), sizes[str(d)]) for d in v.dims]
            c = [chunks[str(d)] if d in shards and d in chunks else k for d, k in zip(v.dims, c, strict=True)]
            s = [shards.get(str(d), -(-sizes[str(d)] // k) * k) for d, k in zip(v.dims, c, strict=True)]
            variables[str(name)] = {
                "dims": [str(d) for d in v.dims],
                "shape": [int(n) for n in v.shape],
                "dtype": str(v.dtype),
                "chunks": c,
                "shards": s,
            }
        if not variables:
            raise ValueError(f"no data variable of the template has the dimensions {tuple(shards)}")
        return cls({d: sizes[d] for d in shards}, {d: int(n) for d, n in shards.items()}, variables)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many blocks there are along each sharded dimension."""
        return tuple(-(-self.sizes[d] // n) for d, n in self.shards.items())

    @property
    def bytes(self) -> int:
        return sum(int(np.prod(v["shape"])) * np.dtype(v["dtype"]).itemsize for v in self.variables.values())

    @property
    def files(self) -> int:
        return int(np.prod(self.grid)) * len(self.variables)

    def block(self, index: Sequence[int]) -> Block:
        cut = zip(index, self.shards.items(), strict=True)
        region = {d: slice(i * n, min((i + 1) * n, self.sizes[d])) for i, (d, n) in cut}
        return Block(tuple(index), region)

    def blocks(self) -> list[Block]:
        return [self.block(i) for i in itertools.product(*map(range, self.grid))]

    def __str__(self) -> str:
        blocks = " x ".join(f"{n} along {d}" for n, d in zip(self.grid, self.shards, strict=True))
        return (
            f"{len(self.variables)} arrays, blocks: {blocks}; {self.files} files, "
            f"{self.bytes / 1e6:.1f} MB uncompressed, {self.bytes / 1e6 / max(self.files, 1):.2f} MB a file"
        )


@contextmanager
def _clear_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns the operating system's refusal (full disk, read-only, quota) into one StoreError."""
    try:
        yield
    except OSError as e:
        raise StoreError(
            f"{doing} {path} failed: {e.strerror or e} (errno {e.errno}). Blocks with a marker are complete and "
            "safe; free or remount the disk and resume."
        ) from e


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_atomically(path: Path, text: str) -> None:
    """Either the old content or all of the new one, also after a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with temporary.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    _fsync(path.parent)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()]
        return {k: v for part in parts for k, v in part.items()}
    return {prefix: value}


def _difference(found: Any, wanted: Any) -> list[str]:
    a, b = _flat(found), _flat(wanted)
    nothing = "(absent)"
    return [
        f"{k}: the store has {a.get(k, nothing)!r}, asked for {b.get(k, nothing)!r}"
        for k in sorted(a.keys() | b.keys())
        if a.get(k, nothing) != b.get(k, nothing)
    ]


def _digest(v: xr.Variable) -> str:
    values = np.asarray(v.values)
    raw = repr(values.tolist()).encode() if values.dtype.kind == "O" else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(repr((v.dims, v.shape, str(values.dtype))).encode() + raw).hexdigest()[:16]


def _describe(template: xr.Dataset, shards: Mapping[str, int], chunks: Mapping[str, int]) -> dict[str, Any]:
    plan = StorePlan.of(template, shards, chunks)
    static = [n for n in template.variables if n not in plan.variables]
    return {
        "sizes": plan.sizes,
        "shards": plan.shards,
        "variables": plan.variables,
        "static": {str(n): _digest(template.variables[n]) for n in static},
    }


class ShardedWriter:
    """Writes whole blocks into an existing store; picklable, cheap to open in every process.

    Build it with `create` (makes the store, or continues it) or `open` (the store must exist).
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        layout = manifest["layout"]
        self.plan = StorePlan(layout["sizes"], layout["shards"], layout["variables"])
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    # -- life of the store ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        template: xr.Dataset,
        *,
        shards: Mapping[str, int],
        chunks: Mapping[str, int] | None = None,
        identity: Mapping[str, Any] | None = None,
        resume: bool = False,
        grow: Sequence[str] = (),
        encoding: Mapping[str, Any] | None = None,
    ) -> ShardedWriter:
        """A new store with the metadata, coordinates and static variables of ``template``; no block is written.

        Args:
            template: dims, dtypes, attributes and coordinates; values of the sharded variables are not read (`blank`).
            shards: block length along each dimension that is divided among writers.
            chunks: length of the unit of compression along any dimension; default one chunk a shard.
            identity: JSON of whatever a resume must agree with (seed, fingerprints, versions of the model).
            resume: continue the store if it exists; a difference of layout or identity is a StoreError that lists it.
            grow: dimensions which a resume may lengthen; complete blocks are kept as they are.
            encoding: added to each array's zarr encoding, for example ``{"compressors": …}``.
        """
        path, chunks = Path(path), dict(chunks or {})
        wanted = json.loads(json.dumps({"layout": _describe(template, shards, chunks), "identity": identity or {}}))
        if path.exists():
            if not resume:
                raise StoreError(f"{path} exists. Pass resume=True to continue it, or choose another path.")
            with _clear_errors(path, "resuming"):
                return cls._continue(path, template, wanted, dict(shards), chunks, grow)
        manifest = {"format": FORMAT, "complete": False, **wanted}
        plan = StorePlan.of(template, shards, chunks)
        if plan.files > MANY_FILES:
            warnings.warn(f"{path}: {plan}. Larger shards make fewer files.", stacklevel=2)
        infant = path.with_name(f".{path.name}.{os.getpid()}.init")
        with _clear_errors(path, "creating"):
            try:
                shutil.rmtree(infant, ignore_errors=True)
                infant.parent.mkdir(parents=True, exist_ok=True)
                _write_metadata(infant, template, plan, dict(encoding or {}))
                (infant / ".progress").mkdir()
                _write_atomically(infant / "manifest.json", json.dumps(manifest, indent=1))
                os.rename(infant, path)
            except BaseException:
                shutil.rmtree(infant, ignore_errors=True)
                raise
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | Path) -> ShardedWriter:
        """The writer of an existing store. StoreError if there is none, or if it was not made by `create`."""
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except FileNotFoundError:
            raise StoreError(f"{path} is not a store of lapse: it has no manifest.json") from None
        except json.JSONDecodeError as e:
            raise StoreError(f"{path}/manifest.json is damaged: {e}") from None
        if manifest.get("format") != FORMAT:
            raise StoreError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT!r}")
        return cls(path, manifest)

    @classmethod
    def _continue(
        cls,
        path: Path,
        template: xr.Dataset,
        wanted: dict[str, Any],
        shards: dict[str, int],
        chunks: dict[str, int],
        grow: Sequence[str],
    ) -> ShardedWriter:
        old = cls.open(path)
        found = {k: old.manifest[k] for k in ("layout", "identity")}
        longer = {d: n for d, n in old.plan.sizes.items() if d in grow and template.sizes.get(d, 0) > n}
        like_before = template.isel({d: slice(n) for d, n in longer.items()})
        asked = {**wanted, "layout": json.loads(json.dumps(_describe(like_before, shards, chunks)))}
        if difference := _difference(found, asked):
            raise StoreError(
                f"{path} holds something else, so it is not continued:\n  " + "\n  ".join(difference)
            )
        if not longer:
            return old
        new = cls(path, {**old.manifest, **wanted, "complete": False})
        # Every step can be repeated; the manifest comes last, so that a kill in between is taken up by the next call.
        for block in old.plan.blocks():
            if new.plan.block(block.index) != block:  # a half-filled last block becomes a longer one
                new._marker(block).unlink(missing_ok=True)
        for name, v in new.plan.variables.items():
            new._array(name).resize(tuple(v["shape"]))
        static = template.drop_vars(list(new.plan.variables))
        longer_static = [n for n in static.variables if set(static.variables[n].dims) & set(longer)]
        if longer_static:
            for name in longer_static:
                shutil.rmtree(path / str(name), ignore_errors=True)
            with _quiet():
                static = static.drop_vars([n for n in static.variables if n not in longer_static]).drop_attrs(deep=False)
                static.to_zarr(path, mode="a", zarr_format=3, consolidated=False)
        _consolidate(path)
        _write_atomically(path / "manifest.json", json.dumps(new.manifest, indent=1))
        return cls(path, new.manifest)

    def finalise(self, attrs: Mapping[str, Any] | None = None) -> None:
        """Declares the store complete: global attributes, consolidated metadata. StoreError while blocks are missing."""
        import zarr

        if missing := self.missing():
            names = ", ".join(b.name for b in missing[:5])
            total = int(np.prod(self.plan.grid))
            raise StoreError(f"{self.path} is not complete: {len(missing)} of {total} blocks missing ({names} …)")
        with _clear_errors(self.path, "completing"):
            for litter in self.path.rglob("*.partial"):  # of writers that were killed
                litter.unlink(missing_ok=True)
            if attrs:
                zarr.open_group(self.path, mode="r+", use_consolidated=False).attrs.update(dict(attrs))
            _consolidate(self.path)
            self.manifest = {**self.manifest, "complete": True}
            _write_atomically(self.path / "manifest.json", json.dumps(self.manifest, indent=1))

    # -- blocks --------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    def blocks(self) -> list[Block]:
        """All blocks, in order."""
        return self.plan.blocks()

    def done(self, block: Block) -> bool:
        return self._marker(block).exists()

    def missing(self) -> list[Block]:
        """The blocks without a completion marker, in order: what a resume has to do."""
        try:
            present = set(os.listdir(self.path / ".progress"))
        except FileNotFoundError:
            present = set()
        return [b for b in self.plan.blocks() if f"{b.name}.done" not in present]

    def part(self, i: int, n: int) -> list[Block]:
        """The missing blocks that belong to worker ``i`` of ``n`` (0 <= i < n), whoever else is running."""
        if not 0 <= i < n:
            raise ValueError(f"part {i} of {n}: parts are numbered from 0 to n - 1")
        mine = {b.index for k, b in enumerate(self.plan.blocks()) if k % n == i}
        return [b for b in self.missing() if b.index in mine]

    def write(self, values: xr.Dataset | Mapping[str, Any], region: Block | Mapping[str, slice]) -> None:
        """Writes every sharded variable over ``region``, flushes it to disk, then marks its blocks complete.

        Args:
            values: one array for each sharded variable, of exactly the region's shape, in the order of the store's dims.
            region: a block, or slices along all sharded dimensions that begin and end at block borders.

        Raises ValueError for a misaligned region or wrong shapes, before anything is written, and StoreError if the
        file system refuses; earlier blocks are not touched by either.
        """
        blocks = self._aligned(region.region if isinstance(region, Block) else region)
        origin = {d: min(b.region[d].start for b in blocks) for d in self.plan.shards}
        end = {d: max(b.region[d].stop for b in blocks) for d in self.plan.shards}
        if set(values) != set(self.plan.variables):
            raise ValueError(f"the store has variables {sorted(self.plan.variables)}, got {sorted(map(str, values))}")
        arrays: dict[str, np.ndarray] = {}
        for name, v in self.plan.variables.items():
            value = values[name]
            a = np.asarray(value.transpose(*v["dims"]) if isinstance(value, xr.DataArray) else value)
            shape = tuple(end[d] - origin[d] if d in end else n for d, n in zip(v["dims"], v["shape"], strict=True))
            if a.shape != shape:
                raise ValueError(f"{name!r}: the region has shape {shape} over {tuple(v['dims'])}, got {a.shape}")
            arrays[name] = a
        for block in blocks:
            with _clear_errors(self.path, f"writing block {block.name} of"):
                for name, a in arrays.items():
                    dims = self.plan.variables[name]["dims"]
                    there = tuple(block.region.get(d, slice(None)) for d in dims)
                    here = tuple(
                        slice(s.start - origin[d], s.stop - origin[d]) if d in origin else s
                        for d, s in zip(dims, there, strict=True)
                    )
                    self._array(name)[there] = a[here]
                    self._flush(name, block)
                _write_atomically(self._marker(block), "")

    # -- internals -----------------------------------------------------------------------------------------------

    def _marker(self, block: Block) -> Path:
        return self.path / ".progress" / f"{block.name}.done"

    def _array(self, name: str) -> Any:
        import zarr

        if name not in self._arrays:
            self._arrays[name] = zarr.open_array(self.path / name, mode="r+")
        return self._arrays[name]

    def _flush(self, name: str, block: Block) -> None:
        dims = self.plan.variables[name]["dims"]
        at = dict(zip(self.plan.shards, block.index, strict=True))
        shard = self.path / name / self._array(name).metadata.encode_chunk_key(tuple(at.get(d, 0) for d in dims))
        if shard.exists():  # a shard of nothing but fill values is not written
            _fsync(shard)
            _fsync(shard.parent)

    def _aligned(self, region: Mapping[str, slice]) -> list[Block]:
        if set(region) != set(self.plan.shards):
            raise ValueError(f"a region names the dimensions {tuple(self.plan.shards)}, got {tuple(region)}")
        ranges = []
        for d, n in self.plan.shards.items():
            size = self.plan.sizes[d]
            start, stop, step = region[d].indices(size)
            given = region[d].stop
            fits = start % n == 0 and (stop % n == 0 or stop == size) and step == 1 and start < stop
            if not fits or (given is not None and given > size):
                raise ValueError(
                    f"{d}={start if region[d].start is None else region[d].start}:{given} is not aligned: along {d!r} "
                    f"(length {size}) blocks begin at multiples of {n}; a shard has one writer"
                )
            ranges.append(range(start // n, -(-stop // n)))
        return [self.plan.block(i) for i in itertools.product(*ranges)]


@contextmanager
def _quiet() -> Iterator[None]:
    """zarr warns that consolidated metadata is not in the v3 specification, and of files that are not arrays (ours)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component")
        yield


def _consolidate(path: Path) -> None:
    import zarr

    with _quiet():
        zarr.consolidate_metadata(path)


def _write_metadata(path: Path, template: xr.Dataset, plan: StorePlan, extra: dict[str, Any]) -> None:
    import dask.array as da

    lazy, encoding = template.copy(), {}
    for name, v in plan.variables.items():
        chunks = tuple(min(s, n) for s, n in zip(v["shards"], v["shape"], strict=True))
        lazy[name] = template[name].copy(data=da.zeros(v["shape"], dtype=v["dtype"], chunks=chunks))
        lazy[name].encoding = {}
        nan = np.dtype(v["dtype"]).kind == "f"
        encoding[name] = {"chunks": tuple(v["chunks"]), "shards": tuple(v["shards"]), **extra}
        if nan:  # else zarr v3 takes 0, and a block that is not written yet would look like data
            encoding[name]["fill_value"] = np.nan
    with _quiet():
        lazy.to_zarr(path, mode="w-", compute=False, encoding=encoding, zarr_format=3, consolidated=False)
    _consolidate(path)
