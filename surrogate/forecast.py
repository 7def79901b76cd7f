"""Ensemble forecasts as Datasets, in memory or streamed into a zarr store.

    dims          (init_time, member, lead_time, *the input's own spatial dims)
    coordinates   valid_time (init_time, lead_time), and CF standard names on all of them
    valid         (init_time, member): 0 where a member left the realm of finite numbers; from there on it is NaN

The unit of work is a block of members of one start. In a store a block is a shard: it has one writer, it is written at
once and then marked, and a resume does what has no mark. Since a member depends only on (seed, init_time, member),
the blocks, their order and their size leave no trace in the numbers.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..datasets.fields import space_coordinates, to_tensor
from ..datasets.layout import blank
from ..datasets.shards import ShardedWriter
from ..datasets.spec import FieldSpec
from ..datasets.time import lead_coordinate, valid_time
from ..datasets.time import phase as phase_of
from .emulator import Mode, State
from .noise import member_generator, spelling
from .rollout import finite_members, rollout
from .starts import initial_frames
from .tables import lead_label

if TYPE_CHECKING:
    from .model import Model

__all__ = ["forecast"]

_BLOCK_BYTES = 128 * 2**20  # of one block's fields in memory
_SHARE_OF_MEMORY = 0.25
_TOLD = 5  # members named in a warning
# Matrix libraries take another path for three rows or fewer and round otherwise, which chaos amplifies: smaller blocks
# of random members are filled up, so that a member is the same, bit by bit, in a block of any size.
_SMALLEST_BATCH = 4


def forecast(
    model: "Model",
    ds: xr.Dataset | xr.DataArray,
    steps: int,
    members: int = 32,
    *,
    seed: int = 0,
    init_times: Any = "last",
    mode: Mode | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Forecast ``members`` futures of ``steps`` frames from one or several starts.

    Arguments:
        ds: analyses in physical units, at least ``history`` frames up to each start; of a lazy Dataset only these are
            read. With a ``member`` dimension they are an ensemble of initial states, and forecast member m starts from
            initial member m modulo their number.
        steps, members: leads (the first is one frame interval after the start) and ensemble size.
        seed: of the ensemble; a member is a function of (seed, init_time, member).
        init_times: "last", "all" (every time with enough history), or one or more times of ``ds``: as ISO text,
            datetime64, datetime, cftime, or numbers in the spec's unit of time.
        mode: "fast" (one network evaluation a frame), "quality" (multi-step flow matching) or "mean"; default is the
            model's first.
        store: path of a zarr store to stream into; the result is then opened lazily from it.
        resume: continue a store, adding missing blocks and, if ``members`` has grown, new members.
        batch_size: members computed at once, and per shard of a store; a store that is continued keeps its own.

    Returns:
        Dataset in physical units, NaN under the masks.

    Raises SpecError for unfit input, MemoryError where the result would take more than a quarter of the
    memory and no store is given, StoreError where writing fails; completed blocks are kept.
    """
    if steps < 1 or members < 1:
        raise ValueError(f"steps and members must be at least 1, got steps={steps} and members={members}")
    mode = mode or model.modes[0]
    if mode not in model.modes:
        raise ValueError(f"model {model.name!r} has no mode {mode!r}; it has {', '.join(model.modes)}")
    job = _Job(model, ds, steps, members, seed, init_times, mode, batch_size)
    if store is None:
        return job.in_memory(progress)
    return job.into_store(Path(store), resume, progress)


class _Job:
    """One forecast: its inputs, its template, and the computation of a block."""

    def __init__(
        self, model: "Model", ds: xr.Dataset | xr.DataArray, steps: int, members: int, seed: int, init_times: Any,
        mode: Mode, batch_size: int | None,
    ) -> None:  # fmt: skip
        self.model, self.steps, self.members, self.seed, self.mode = model, steps, members, seed, mode
        emulator, spec = model.emulator, model.spec
        self.ds, self.positions = initial_frames(ds, spec, emulator.history, init_times)
        self.init = self.ds["time"].isel(time=self.positions)
        self.leads = lead_coordinate(spec, steps)
        self.valid_time = valid_time(self.init, self.leads, spec)
        self.device = model.device
        cells = int(np.prod(spec.shape)) * steps
        self.block = batch_size or max(1, min(members, 64, _BLOCK_BYTES // (4 * cells)))

    def template(self) -> xr.Dataset:
        """Dims, coordinates and attributes of the result; the data takes no memory."""
        spec = self.model.spec
        dims = ("init_time", "member", "lead_time", *spec.grid.names)
        sizes = (len(self.positions), self.members, self.steps, *spec.grid.shape)
        data: dict[str, Any] = {}
        for v in spec.variables:
            names = {"units": v.units, "standard_name": v.standard_name, "long_name": v.long_name}
            data[v.name] = (dims, blank(sizes), {k: x for k, x in names.items() if x is not None})
        flags = {"standard_name": "status_flag", "long_name": "member stayed finite",
                 "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "blown_up valid"}  # fmt: skip
        data["valid"] = (dims[:2], blank(sizes[:2], np.int8), flags)
        about = {"standard_name": "forecast_reference_time", "long_name": "start of the forecast"}
        init = xr.DataArray(self.init.values, dims="init_time", attrs=dict(self.init.attrs) | about)
        about = {"standard_name": "realization", "units": "1"}
        member = xr.DataArray(np.arange(self.members), dims="member", attrs=about)
        coords = {
            "init_time": init, "member": member, "lead_time": self.leads,
            "valid_time": (("init_time", "lead_time"), self.valid_time.values, self.valid_time.attrs),
            **space_coordinates(spec),
        }  # fmt: skip
        out = xr.Dataset(data, coords=coords, attrs=self.attrs())
        out["lead_time"].encoding = dict(self.leads.encoding)
        return out

    def attrs(self) -> dict[str, Any]:
        """Provenance, as DESIGN section 3 names it."""
        model = self.model
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = f"{stamp}: lapse {__version__} forecast, model {model.name}, {self.members} members, {self.steps} steps"
        earlier = str(self.ds.attrs.get("history", ""))
        return {
            "Conventions": "CF-1.11",
            "title": f"{self.members}-member ensemble forecast by {model.name}",
            "source": f"lapse {__version__} model {model.name} sha256:{model.weights_hash}",
            "history": f"{earlier}\n{line}" if earlier else line,
            "lapse_seed": self.seed,
            "lapse_model": model.name,
            "lapse_mode": self.mode,
            "lapse_version": __version__,
            "lapse_config_hash": _hash(model.config),
            "lapse_input_fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the initial frames and their times."""
        digest = hashlib.sha256()
        for index, time in enumerate(self.init.values):
            digest.update(spelling(time).encode())
            digest.update(self.initial(index).numpy().tobytes())
        return digest.hexdigest()

    def initial(self, index: int) -> Tensor:
        """Context frames of one start, ``(initial members, history, C, *space)``."""
        last = self.positions[index]
        frames = self.ds.isel(time=slice(last - self.model.emulator.history + 1, last + 1))
        if "member" in frames.dims:
            frames = frames.transpose("member", "time", ...)
        u = to_tensor(frames, self.model.spec)
        return u if "member" in frames.dims else u[None]

    def phase(self, index: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Phases of the context frames ``(history, 4)`` and of start and leads ``(steps + 1, 4)``."""
        if self.model.spec.calendar is None:
            return None, None
        last = self.positions[index]
        context = phase_of(self.ds["time"].isel(time=slice(last - self.model.emulator.history + 1, last + 1)))
        leads = phase_of(self.valid_time.isel(init_time=index))
        return torch.from_numpy(context), torch.from_numpy(np.concatenate([context[-1:], leads]))

    @torch.no_grad()
    def compute(self, index: int, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Members ``first … last − 1`` of start ``index``: arrays ``(1, members, lead_time, *space)``."""
        emulator, spec = self.model.emulator, self.model.spec
        u = self.initial(index)
        context, phase = self.phase(index)
        batch = torch.arange(first, last if self.mode == "mean" else max(last, first + _SMALLEST_BATCH))
        unique, position = torch.unique(batch % len(u), return_inverse=True)
        rows = unique if len(u) == 1 or len(unique) >= _SMALLEST_BATCH else unique.repeat(_SMALLEST_BATCH)
        phases = None if context is None else context.to(self.device).expand(len(rows), -1, 4)
        once = emulator.encode(u[rows].to(self.device), phases)
        state = State(once.z[position], once.carried[position])
        start = self.init.values[index]
        generators = [member_generator(self.seed, start, int(m)) for m in batch]
        fields = np.empty((last - first, self.steps, *spec.shape), dtype=np.float32)
        alive = torch.ones(last - first, dtype=torch.bool)
        for k, (_, frames) in enumerate(rollout(emulator, state, self.steps, self.mode, generators, phase)):
            frame = frames[: last - first].cpu()
            alive &= finite_members(frame)
            fields[:, k] = torch.where(alive.reshape(-1, *(1,) * (frame.ndim - 1)), frame, torch.nan).numpy()
        out: dict[str, NDArray[Any]] = {"valid": alive.numpy().astype(np.int8)[None]}
        for channel, name in enumerate(spec.names):
            values = fields[:, :, channel]
            mask = spec.masks.get(name)
            if mask is not None:
                values = np.where(mask, values, np.float32(np.nan))
            out[name] = values[None]
        return out

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """``(start, first member, last member + 1)`` of every block."""
        for index in range(len(self.positions)):
            for first in range(0, self.members, self.block):
                yield index, first, min(first + self.block, self.members)

    def in_memory(self, progress: bool) -> xr.Dataset:
        """The whole forecast as arrays."""
        size = 4 * len(self.positions) * self.members * self.steps * int(np.prod(self.model.spec.shape))
        limit = _SHARE_OF_MEMORY * _memory()
        if size > limit:
            raise MemoryError(
                f"the forecast would take {size / 2**30:.1f} GiB, above the limit of {limit / 2**30:.1f} GiB (a "
                "quarter of the memory); stream it with store='forecast.zarr', which is opened lazily"
            )
        template = self.template()
        arrays = {name: np.empty(v.shape, v.dtype) for name, v in template.data_vars.items()}
        total = len(self.positions) * self.members
        with tqdm(total=total, unit="member", disable=not progress, desc="forecast") as bar:
            for index, first, last in self.blocks():
                for name, values in self.compute(index, first, last).items():
                    arrays[name][index : index + 1, first:last] = values
                bar.update(last - first)
        out = template.assign({n: (template[n].dims, a, template[n].attrs) for n, a in arrays.items()})
        _report(out, self.model.spec)
        return out

    def into_store(self, path: Path, resume: bool, progress: bool) -> xr.Dataset:
        """The forecast as a zarr store, a block at a time."""
        identity = {
            "spec": self.model.spec.fingerprint(), "weights": self.model.weights_hash, "seed": self.seed,
            "mode": self.mode, "inputs": self.fingerprint,
        }  # fmt: skip
        template = self.template()
        if resume and path.exists():
            begun = ShardedWriter.open(path)
            self.block = begun.plan.shards.get("member", self.block)
            if begun.plan.sizes.get("member") != self.members:  # else the attributes stay as they are
                template.attrs["history"] = self._continued(path, template.attrs["history"])
        writer = ShardedWriter.create(
            path, template, shards={"init_time": 1, "member": self.block}, chunks={"member": 1},
            identity=identity, resume=resume, grow=("member",),
        )  # fmt: skip
        missing = writer.missing()
        total = len(writer.blocks())
        with tqdm(total=total, initial=total - len(missing), unit="block", disable=not progress, desc=path.name) as bar:
            for block in missing:
                members = block.region["member"]
                writer.write(self.compute(block.region["init_time"].start, members.start, members.stop), block)
                bar.update()
        writer.finalise()
        return self._opened(path)

    def _continued(self, path: Path, line: str) -> str:
        """The history of a store that grows: its own, then this forecast's line."""
        import zarr

        earlier = zarr.open_group(path, mode="r", use_consolidated=False).attrs.get("history", "")
        return f"{earlier}\n{line.splitlines()[-1]}" if earlier else line

    def _opened(self, path: Path) -> xr.Dataset:
        """The store, lazily, with times of the type that the starts have."""
        times = self.init.dtype
        unit: Any = np.datetime_data(times)[0] if times.kind == "M" else "us"
        out: xr.Dataset = xr.open_zarr(path, decode_times=xr.coders.CFDatetimeCoder(time_unit=unit))
        _report(out, self.model.spec)
        return out


def _report(fc: xr.Dataset, spec: FieldSpec) -> None:
    """Warn of the members that blew up: how many, which, and from which lead on."""
    starts, members = np.nonzero(fc["valid"].values == 0)
    if not len(starts):
        return
    told = []
    for i, m in list(zip(starts, members, strict=True))[:_TOLD]:
        fields = fc[list(spec.names)].isel(init_time=i, member=m).to_dataarray()
        gone = fields.isnull().all(spec.grid.names).any("variable")
        first = lead_label(fc["lead_time"], int(gone.values.argmax()))
        told.append(f"member {fc['member'].values[m]} of the start {fc['init_time'].values[i]} from lead {first} on")
    if more := len(starts) - len(told):
        told.append(f"and {more} more")
    warnings.warn(
        f"{len(starts)} of {fc['valid'].size} members blew up: {'; '.join(told)}. "
        "They are NaN from there on and flagged in `valid`; scores leave them out",
        stacklevel=5,
    )


def _hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
