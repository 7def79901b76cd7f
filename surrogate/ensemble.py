"""Ensembles that many processes make together: planned, divided into parts, killed, resumed and completed.

    plan = model.ensemble(ds, steps=40, members=10_000, keep="latents")     # nothing is computed: read it
    ensemble = plan.create("ens.zarr")
    ensemble.run(part=(3, 8))                                               # any process, any machine, any order
    status("ens.zarr")                                                      # at any time
    ensemble.finalise();  ds = ensemble.open()

The store of an ensemble is a `ShardedWriter`'s: a block of members of one start has one file of every array, one
writer at a time, and a marker once it is on the disk. Part i of n is every n-th block, so that parts never meet; a part
that is run twice finds its markers and does nothing; a block that is computed twice is the same twice, since a member
is a function of (seed, init_time, member). Beside the data, ``.lapse/`` holds what a worker needs to know: the job, the
path and hash of the model, and the frames that the members start from; the input data is not needed again.
"""

import json
import os
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from tqdm import tqdm

from ..datasets.layout import StorePlan
from ..datasets.shards import MANY_FILES, Block, ShardedWriter, StoreError, write_atomically
from .job import Job
from .keep import FOLDER, Keep, keeper
from .status import Status, status

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Ensemble", "Plan", "Status", "parse_part", "planned", "status"]

FORMAT = "lapse-ensemble 1"
_BLOCKS = 64  # of an ensemble, at least, where it is large enough: work for as many processes


@dataclass(frozen=True)
class Plan:
    """An ensemble before it is begun: what will be computed, in which pieces, and what it will take on the disk."""

    job: Job
    keep: Keep

    @property
    def store(self) -> StorePlan:
        """Blocks, shards and chunks."""
        return StorePlan.of(*self.keep.layout(self.job))

    @property
    def fields(self) -> int:
        """Bytes of the ensemble's fields, float32."""
        job = self.job
        return 4 * len(job.positions) * job.members * job.steps * int(np.prod(job.model.spec.shape))

    def __str__(self) -> str:
        job, store = self.job, self.store
        blocks = int(np.prod(store.counts))
        lines = [
            f"{job.members:,} members x {job.steps} leads x {len(job.positions)} start(s) by {job.model.name} "
            f"(mode {job.mode}, seed {job.seed}), keeping {self.keep.name}",
            f"{blocks:,} blocks of up to {self.keep.shard:,} members, computed {job.block:,} at a time; "
            f"{len(store.variables)} shards a block",
            f"{store.files:,} files, {_size(store.bytes)} before compression, {_size(store.bytes // store.files)} each"
            f" (all fields: {_size(self.fields)})",
        ]
        if store.files > MANY_FILES:
            lines.append(f"WARNING: more than {MANY_FILES:,} files; a larger shard= (--shard) makes fewer")
        return "\n".join(lines)

    def create(self, path: str | Path, *, resume: bool = False) -> "Ensemble":
        """Make the store, or with ``resume`` continue one of the same job, perhaps with more members.

        Raises StoreError where something else is there or where it cannot be written.
        """
        path, job, keep = Path(path), self.job, self.keep
        home = keep.home(path)
        if path.exists() and not resume:
            raise StoreError(f"{path} exists. Continue it (resume=True, --resume), or choose another path")
        if resume and home.exists():
            keep = copy(keep)
            keep.shard = _begun(path, home, keep)
        template, shards, chunks = keep.layout(job)
        if resume and home.exists():
            begun = ShardedWriter.open(home)
            if begun.plan.sizes != {d: template.sizes[d] for d in begun.plan.sizes}:  # else attributes stay as they are
                template.attrs["history"] = _continued(home, str(template.attrs["history"]))
            _redo_the_last(begun, path, job.members)
        writer = ShardedWriter.create(
            home, template, shards=shards, chunks=chunks, identity=keep.identity(job), resume=resume,
            grow=tuple(d for d in ("member", "group") if d in shards),
        )  # fmt: skip
        ensemble = Ensemble(path, job, keep, writer)
        keep.prepare(ensemble)
        _describe(ensemble)
        return ensemble


def planned(job: Job, keep: str, *, shard: int | None = None, **options: Any) -> Plan:
    """The plan of a job.

    Arguments:
        keep: "fields", "latents" or "statistics".
        shard: members of a block; by default 64, or as many as make 128 MiB of fields; of what is small some times as
            many, as long as there are enough blocks to share out.
        options: of the statistics, or of the latents.
    """
    if shard is None:
        shard = job.shard
        if keep != "fields":
            blocks = max(1, _BLOCKS // len(job.positions))
            shard *= max(1, -(-job.members // (blocks * shard)))
    if shard < 1:
        raise ValueError(f"shard: found {shard}, wanted at least one member")
    return Plan(job, keeper(keep, {"shard": shard, **options}))


class Ensemble:
    """An ensemble on the disk; made by `Plan.create`, opened by `Ensemble.at`."""

    def __init__(self, path: Path, job: Job, keep: Keep, writer: ShardedWriter) -> None:
        self.path, self.job, self.keep, self.writer = path, job, keep, writer

    @classmethod
    def at(cls, path: str | Path, model: "Model | None" = None, device: str = "cpu") -> "Ensemble":
        """Open an ensemble that was begun, in any process.

        Arguments:
            model: by default the one it was begun with, loaded from its place.
            device: where that is put.

        Raises StoreError where there is no ensemble, where the model is another one or is not found.
        """
        path = Path(path)
        told = described(path)
        made_by = told["model"]
        if model is None:
            model = _load(path, made_by, device)
        if model.weights_hash != made_by["weights"]:
            raise StoreError(
                f"{path} was made by {made_by['name']} sha256:{made_by['weights'][:12]}…, not by {model.name} "
                f"sha256:{model.weights_hash[:12]}…. Usual fix: lapse.load({made_by['source'] or made_by['name']!r})"
            )
        frames = xr.load_dataset(
            path / FOLDER / "initial.nc", decode_times=xr.coders.CFDatetimeCoder(time_unit="us"), decode_timedelta=False
        )
        if frames["time"].dtype.kind == "M":
            frames["time"] = ("time", frames["time"].values.astype(told["time_dtype"]), frames["time"].attrs)
        job = Job(
            model, frames, told["positions"], told["steps"], told["members"], told["seed"], told["mode"], told["batch"],
            told["certify"],
        )  # fmt: skip
        keep = keeper(told["keep"], told["options"])
        writer = ShardedWriter.open(keep.home(path))
        begun = writer.manifest["identity"]
        if begun.get("spec") != model.spec.fingerprint():
            raise StoreError(
                f"{path} was begun by {model.name} with another spec (parameters of its equation, say); found "
                f"{model.spec.fingerprint()[:12]}…, wanted {str(begun.get('spec'))[:12]}…. Usual fix: hand over the "
                "model that it was begun with (model=)"
            )
        if begun.get("inputs") != job.fingerprint:
            raise StoreError(f"{path}/{FOLDER}/initial.nc is not what the ensemble was begun with; init it anew")
        return cls(path, job, keep, writer)

    def run(
        self,
        part: tuple[int, int] = (1, 1),
        *,
        executor: Literal["dask"] | None = None,
        client: Any = None,
        progress: bool = True,
    ) -> int:
        """Compute the missing blocks of part i of n (1 ≤ i ≤ n), and return how many that were.

        Arguments:
            executor: "dask" computes them on a cluster of dask.distributed, one model a worker.
            client: of the cluster, or its scheduler's address; by default a new one on this machine.

        Raises StoreError where writing fails; completed blocks are kept.
        """
        i, n = part
        if not 1 <= i <= n:
            raise ValueError(f"found part {i}/{n}, wanted one from 1/{n} to {n}/{n}")
        missing = self.writer.part(i - 1, n)
        total = len(self.writer.plan.blocks()[i - 1 :: n])
        name = f"{self.path.name} {i}/{n}" if n > 1 else self.path.name
        with tqdm(total=total, initial=total - len(missing), unit="block", disable=not progress, desc=name) as bar:
            if executor == "dask":
                from .cluster import compute

                compute(self, missing, client, bar.update)
            elif executor is None:
                for block in missing:
                    self.write(block)
                    bar.update()
            else:
                raise ValueError(f"executor: found {executor!r}, wanted 'dask' or None")
        return len(missing)

    def write(self, block: Block) -> None:
        """Compute one block, write it and mark it."""
        self.writer.write(self.keep.compute(self, block), block)

    def finalise(self) -> None:
        """Declare the ensemble complete, and make of its blocks what was to be kept. StoreError while some miss."""
        self.writer.finalise()
        self.keep.complete(self)

    def open(self) -> xr.Dataset:
        """The ensemble as a lazy Dataset; of latents the fields, decoded on demand; else its statistics."""
        return self.keep.open(self)


def parse_part(text: str) -> tuple[int, int]:
    """``"3/8"`` as (3, 8). Raises ValueError for anything else."""
    i, slash, n = text.partition("/")
    if slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise ValueError(f"found part {text!r}, wanted I/N with 1 <= I <= N, such as 3/8")


def described(path: Path) -> dict[str, Any]:
    """The description of an ensemble. StoreError where there is none, or none that this version can read."""
    try:
        told: dict[str, Any] = json.loads((path / FOLDER / "job.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path} is no ensemble: found no {FOLDER}/job.json. Begin one with `lapse ensemble init`; "
            "if that was interrupted, repeat it with --resume"
        ) from None
    if told.get("format") != FORMAT:
        raise StoreError(f"{path}: found format {told.get('format')!r}, wanted {FORMAT!r}")
    return told


def _describe(ensemble: Ensemble) -> None:
    """Write what workers need; the description comes last, and vouches for the rest."""
    job, folder = ensemble.job, ensemble.path / FOLDER
    model = job.model
    told = {
        "format": FORMAT, "keep": ensemble.keep.name, "options": ensemble.keep.options, "steps": job.steps,
        "members": job.members, "seed": job.seed, "mode": job.mode, "positions": job.positions, "batch": job.block,
        "time_dtype": str(job.init.dtype), "certify": 0 if job.verdict is None else job.verdict.audit.share,
        "model": {"name": model.name, "weights": model.weights_hash,
                  "source": None if model.source is None else str(model.source.resolve())},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    frames, infant = job.ds.drop_encoding(), folder / f"initial.nc.{os.getpid()}.partial"
    try:
        frames.to_netcdf(infant, engine="netcdf4")
        infant.replace(folder / "initial.nc")
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"writing {folder}/initial.nc failed: {error}. Free the disk, then init with resume"
        ) from error
    finally:
        infant.unlink(missing_ok=True)
    write_atomically(folder / "job.json", json.dumps(told, indent=1))


def _load(path: Path, made_by: dict[str, Any], device: str) -> "Model":
    from .package import PackageError, load, shipped

    source = made_by["source"] if made_by["source"] and Path(made_by["source"]).is_dir() else made_by["name"]
    if source not in shipped() and not Path(source).is_dir():
        raise StoreError(
            f"{path} was made by {made_by['name']} sha256:{made_by['weights'][:12]}…, which is not found at "
            f"{made_by['source'] or 'any place: it was never saved'}. Usual fix: say where it is (model=, --model)"
        )
    try:
        return load(source, device)
    except PackageError as error:
        raise StoreError(f"the model of {path} cannot be loaded: {error}") from error


def _begun(path: Path, home: Path, keep: Keep) -> int:
    """Members of a block, which a continued store keeps, whatever is asked for."""
    if not (path / FOLDER / "job.json").exists():
        return ShardedWriter.open(home).plan.shards.get("member", keep.shard)
    told = described(path)
    if told["keep"] != keep.name:
        raise StoreError(f"{path} keeps {told['keep']}, asked for {keep.name}. Choose another path")
    return int(told["options"]["shard"])


def _redo_the_last(begun: ShardedWriter, path: Path, members: int) -> None:
    """A last group that was cut short by the number of members is computed again with the new ones."""
    if "group" not in begun.plan.shards or not (path / FOLDER / "job.json").exists():
        return
    told = described(path)
    if members > told["members"] and told["members"] % told["options"]["shard"]:
        for block in begun.blocks():
            if block.region["group"].stop == begun.plan.sizes["group"]:
                begun.forget(block)


def _continued(home: Path, line: str) -> str:
    """The history of a store that grows: its own, then this job's line."""
    import zarr

    earlier = zarr.open_group(home, mode="r", use_consolidated=False).attrs.get("history", "")
    return f"{earlier}\n{line.splitlines()[-1]}" if earlier else line


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
