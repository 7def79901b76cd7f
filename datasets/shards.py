"""A zarr store that many processes fill, one shard each, and that survives being killed.

Life of a store::

    writer = ShardedWriter.create(path, template, shards={"member": 50}, identity={"seed": 0})
    for block in writer.missing():               # any process, any subset, any order
        writer.write(compute(block), block)
    writer.finalise()

* *A shard has one writer.* A write that does not cover whole blocks (`layout`) is refused: two half-writes of
  one shard read, modify and write the same file, and one of them is lost in silence.
* *Markers decide.* ``.progress/i.j.done`` is made, atomically, after the block's shards have reached the disk
  (fsync). The presence of shards proves nothing: one that holds only fill values is never written, and of
  several variables a killed process may have written the first.
* *The manifest refuses a resume of something else.* ``manifest.json`` keeps the layout (dimensions, dtypes,
  chunks, hashes of the coordinates) and the caller's ``identity`` (seed, spec fingerprint, hash of the
  inputs). A resume that differs is refused with the differences; only dimensions named in ``grow`` may have
  become longer.
* *Creation is atomic*: the metadata is written beside the path and renamed into place.

This is the protocol of xarray's distributed region writes (https://docs.xarray.dev, "Distributed writes")
with alignment and completion made explicit. For local and shared file systems.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .layout import Block, StorePlan, blank, describe, differences

__all__ = ["Block", "ShardedWriter", "StoreError", "StorePlan", "blank", "write_atomically"]

FORMAT = "lapse-store 1"
MANY_FILES = 50_000  # file systems and quotas begin to suffer


class StoreError(RuntimeError):
    """A store that cannot be made, continued, written or completed. What was completed stays on disk."""


class ShardedWriter:
    """Writes whole blocks into a store. Picklable, and cheap to open in every process.

    Build it with `create`, which makes the store or continues it, or with `open`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        layout = manifest["layout"]
        self.plan = StorePlan(layout["sizes"], layout["shards"], layout["variables"])
        self._arrays: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

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
        """A new store with metadata, coordinates and static variables, and no block written yet.

        Args:
            template: dims, dtypes, attributes, coordinates. Values of sharded variables are not read
                (`blank`).
            shards: block length along each dimension that is divided among writers.
            chunks: chunk length along any dimension; by default a chunk is a shard.
            identity: JSON of whatever a resume must agree with.
            resume: continue the store if it exists.
            grow: dimensions which a resume may lengthen; complete blocks stay as they are.
            encoding: added to each sharded array's zarr encoding, for example ``{"compressors": …}``.

        Raises:
            StoreError: path exists and not ``resume``; it holds something else (listed); it cannot be
                written.
            ValueError: a layout that cannot be (`StorePlan.of`).
        """
        path, chunks = Path(path), dict(chunks or {})
        plan = StorePlan.of(template, shards, chunks)
        wanted = _json({"layout": describe(template, shards, chunks), "identity": identity or {}})
        if path.exists():
            if not resume:
                raise StoreError(f"{path} exists. Pass resume=True to continue it, or choose another path.")
            with _clear_errors(path, "resuming"):
                return cls._continue(path, template, wanted, shards, chunks, grow)
        if plan.files > MANY_FILES:
            warnings.warn(f"{path}: {plan}. Larger shards make fewer files.", stacklevel=2)
        manifest = {"format": FORMAT, "complete": False, **wanted}
        infant = path.with_name(f".{path.name}.{os.getpid()}.init")
        with _clear_errors(path, "creating"):
            try:
                shutil.rmtree(infant, ignore_errors=True)
                infant.parent.mkdir(parents=True, exist_ok=True)
                _write_metadata(infant, template, plan, dict(encoding or {}))
                (infant / ".progress").mkdir()
                write_atomically(infant / "manifest.json", json.dumps(manifest, indent=1))
                infant.rename(path)
            except BaseException:
                shutil.rmtree(infant, ignore_errors=True)
                raise
        for orphan in path.parent.glob(f".{path.name}.*.init"):  # of creations that were killed
            shutil.rmtree(orphan, ignore_errors=True)
        return cls(path, manifest)

    @classmethod
    def open(cls, path: str | Path) -> ShardedWriter:
        """The writer of an existing store. StoreError if there is none, or if `create` did not make it."""
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"{path} was not made by lapse: it has no manifest.json") from None
        except json.JSONDecodeError as e:
            raise StoreError(f"{path}/manifest.json is damaged: {e}") from None
        if manifest.get("format") != FORMAT:
            raise StoreError(f"{path}: found format {manifest.get('format')!r}, wanted {FORMAT!r}")
        return cls(path, manifest)

    @classmethod
    def _continue(
        cls,
        path: Path,
        template: xr.Dataset,
        wanted: dict[str, Any],
        shards: Mapping[str, int],
        chunks: Mapping[str, int],
        grow: Sequence[str],
    ) -> ShardedWriter:
        import zarr

        old = cls.open(path)
        found = {k: old.manifest[k] for k in wanted}
        longer = {d: n for d, n in old.plan.sizes.items() if d in grow and template.sizes.get(d, 0) > n}
        before = template.isel({d: slice(n) for d, n in longer.items()})
        asked = {**wanted, "layout": _json(describe(before, shards, chunks))}
        if lines := differences(found, asked):
            raise StoreError(f"{path} holds something else, so it is not continued:\n  " + "\n  ".join(lines))
        if not longer:
            return old
        new = cls(path, {**old.manifest, **wanted, "complete": False})
        # Every step can be repeated, and the manifest comes last: a kill in between is made good by the next
        # call.
        for block in old.plan.blocks():
            if new.plan.block(block.index) != block:  # the last block was shorter than a shard
                new._marker(block).unlink(missing_ok=True)
        for name, v in new.plan.variables.items():
            new._array(name).resize(tuple(v["shape"]))
        fixed = template.drop_vars(list(new.plan.variables))
        # xarray replaces the global attributes by those it is given: keep what was added since.
        fixed.attrs = {**zarr.open_group(path, mode="r", use_consolidated=False).attrs, **template.attrs}
        fixed = fixed.drop_vars([n for n, v in fixed.variables.items() if not set(v.dims) & set(longer)])
        for name in map(str, fixed.variables):
            shutil.rmtree(path / name, ignore_errors=True)
        with _quiet():
            fixed.to_zarr(path, mode="a", zarr_format=3, consolidated=False)
        _consolidate(path)
        write_atomically(path / "manifest.json", json.dumps(new.manifest, indent=1))
        return cls(path, new.manifest)

    def finalise(self, attrs: Mapping[str, Any] | None = None) -> None:
        """Declares the store complete: adds global ``attrs``, consolidates the metadata, clears litter.

        StoreError while blocks are missing.
        """
        import zarr

        if missing := self.missing():
            names = ", ".join(b.name for b in missing[:5])
            total = math.prod(self.plan.counts)
            raise StoreError(f"{self.path}: found {len(missing)} of {total} blocks missing ({names}, …)")
        with _clear_errors(self.path, "completing"):
            for litter in self.path.rglob("*.partial"):  # of writers that were killed
                litter.unlink(missing_ok=True)
            if attrs:
                zarr.open_group(self.path, mode="r+", use_consolidated=False).attrs.update(dict(attrs))
            _consolidate(self.path)
            self.manifest = {**self.manifest, "complete": True}
            write_atomically(self.path / "manifest.json", json.dumps(self.manifest, indent=1))

    @property
    def complete(self) -> bool:
        """Whether `finalise` was reached, as far as this writer knows."""
        return bool(self.manifest["complete"])

    def blocks(self) -> list[Block]:
        """All blocks, in order."""
        return self.plan.blocks()

    def done(self, block: Block) -> bool:
        """Whether the block has its completion marker."""
        return self._marker(block).exists()

    def forget(self, block: Block) -> None:
        """Removes the block's marker: it will be written again."""
        self._marker(block).unlink(missing_ok=True)

    def missing(self) -> list[Block]:
        """The blocks without a completion marker, in order: what a resume has to do."""
        with _clear_errors(self.path, "reading the markers of"):
            present = set(os.listdir(self.path / ".progress"))
        return [b for b in self.plan.blocks() if self._marker(b).name not in present]

    def part(self, i: int, n: int) -> list[Block]:
        """The missing blocks of worker ``i`` of ``n`` (0 <= i < n), whoever else is running."""
        if not 0 <= i < n:
            raise ValueError(f"found part {i} of {n}, wanted a part from 0 to {n - 1}")
        mine = {b.index for b in self.plan.blocks()[i::n]}
        return [b for b in self.missing() if b.index in mine]

    def write(self, values: xr.Dataset | Mapping[str, Any], region: Block | Mapping[str, slice]) -> None:
        """Writes every sharded variable over ``region``, flushes it to disk, then marks its blocks complete.

        Args:
            values: for each sharded variable an array of exactly the region's shape (a DataArray is
                transposed).
            region: a block, or slices along all sharded dimensions that begin and end where blocks do.

        Raises:
            ValueError: misaligned region, wrong variables or shapes; nothing is written then.
            StoreError: the file system refuses. No completed block is touched.
        """
        blocks = self.plan.covered(region.region if isinstance(region, Block) else region)
        first, last = blocks[0].region, blocks[-1].region
        names = {str(n) for n in (values.data_vars if isinstance(values, xr.Dataset) else values)}
        if names != set(self.plan.variables):
            raise ValueError(f"found variables {sorted(names)}, wanted {sorted(self.plan.variables)}")
        arrays: dict[str, NDArray[Any]] = {}
        for name, v in self.plan.variables.items():
            dims, value = v["dims"], values[name]
            array = np.asarray(value.transpose(*dims) if isinstance(value, xr.DataArray) else value)
            shape = tuple(
                last[d].stop - first[d].start if d in first else n for d, n in zip(dims, v["shape"], strict=True)
            )
            if array.shape != shape:
                raise ValueError(f"{name!r}: found shape {array.shape}, wanted {shape} over {tuple(dims)}")
            arrays[name] = array
        for block in blocks:
            with _clear_errors(self.path, f"writing block {block.name} of"):
                for name, array in arrays.items():
                    there = [block.region.get(d, slice(None)) for d in self.plan.variables[name]["dims"]]
                    here = [
                        slice(s.start - first[d].start, s.stop - first[d].start) if d in first else s
                        for d, s in zip(self.plan.variables[name]["dims"], there, strict=True)
                    ]
                    self._array(name)[tuple(there)] = array[tuple(here)]
                    self._flush(name, block)
                write_atomically(self._marker(block), "")

    def _marker(self, block: Block) -> Path:
        return self.path / ".progress" / f"{block.name}.done"

    def _array(self, name: str) -> Any:
        import zarr

        if name not in self._arrays:
            self._arrays[name] = zarr.open_array(self.path / name, mode="r+")
        return self._arrays[name]

    def _flush(self, name: str, block: Block) -> None:
        at = dict(zip(self.plan.shards, block.index, strict=True))
        key = self._array(name).metadata.encode_chunk_key(
            tuple(at.get(d, 0) for d in self.plan.variables[name]["dims"])
        )
        shard = self.path / name / key
        if shard.exists():  # a shard of nothing but fill values is not written
            _fsync(shard)
            _fsync(shard.parent)


def _json(value: Any) -> dict[str, Any]:
    """The value as it will come back from the manifest."""
    out: dict[str, Any] = json.loads(json.dumps(value))
    return out


@contextmanager
def _clear_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns the operating system's refusal (full disk, read-only, quota) into one StoreError."""
    try:
        yield
    except OSError as e:
        raise StoreError(
            f"{doing} {path} failed: {e.strerror or e} (errno {e.errno}). Blocks that have their marker are "
            "complete and safe; free or remount the disk, then resume."
        ) from e


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, text: str) -> None:
    """Either the old content or all of the new one, also after a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


@contextmanager
def _quiet() -> Iterator[None]:
    """zarr warns that v3 has no consolidated metadata yet, and of files that are not arrays (our
    manifest)."""
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
        pieces = tuple(min(s, n) for s, n in zip(v["shards"], v["shape"], strict=True))
        lazy[name] = template[name].copy(data=da.zeros(v["shape"], dtype=v["dtype"], chunks=pieces))
        lazy[name].encoding = {}
        encoding[name] = {"chunks": tuple(v["chunks"]), "shards": tuple(v["shards"]), **extra}
        if np.dtype(v["dtype"]).kind == "f":  # zarr v3 would take 0: a block not yet written must not look like data
            encoding[name]["fill_value"] = np.nan
    with _quiet():
        lazy.to_zarr(path, mode="w-", compute=False, encoding=encoding, zarr_format=3, consolidated=False)
    _consolidate(path)
