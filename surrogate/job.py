"""One ensemble forecast: its inputs, the Dataset that it will be, and the computation of any block of it.

The unit of work is a block of members of one start. Since a member depends only on (seed, init_time, member), the
blocks, their order, their size and the process that computes them leave no trace in the numbers. A block comes as
decoded fields (`Job.compute`), perhaps with an audit of them, or as the latents that they are decoded from
(`Job.latents`).
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from ..datasets.fields import space_coordinates, to_tensor
from ..datasets.layout import blank
from ..datasets.time import lead_coordinate, valid_time
from ..datasets.time import phase as phase_of
from .certificate import mode_key
from .emulator import Mode
from .noise import member_generator, spelling
from .rollout import finite_members, march, rollout
from .state import State
from .verdict import Verdict

if TYPE_CHECKING:
    from .model import Model

__all__ = ["SMALLEST_BATCH", "Job"]

_BLOCK_BYTES = 128 * 2**20  # of one block's fields in memory
_BLOCK = 64  # members, at most
_AT_ONCE = 16  # of which on a processor: the activations of more leave its cache, and each costs a quarter more
# Convolutions of a single row, and on some processors of two or three, round otherwise, which chaos amplifies: smaller
# blocks of random members are filled up, so that a member is the same, bit by bit, in a block of any size.
SMALLEST_BATCH = 4


class Job:
    """One forecast: its inputs, its template, and the computation of a block.

    Arguments:
        frames, positions: canonical frames, and the position of each start among them (`starts.initial_frames`).
        batch_size: members computed at once, and of a shard of fields; by default the shard has as many as make
            128 MiB, and 64 at most, which are computed at once on an accelerator, and 16 at a time on a processor.
        certify: share of the frames that are audited (True: all); see `certificate`.

    Raises ValueError for fewer than one step or member, for a mode that the model does not have, and for a model that
    cannot be certified.
    """

    def __init__(
        self, model: "Model", frames: xr.Dataset, positions: list[int], steps: int, members: int, seed: int,
        mode: Mode | None = None, batch_size: int | None = None, certify: bool | float = False,
    ) -> None:  # fmt: skip
        if steps < 1 or members < 1:
            raise ValueError(f"steps and members must be at least 1, got steps={steps} and members={members}")
        mode = mode or model.modes[0]
        if mode not in model.modes:
            raise ValueError(f"model {model.name!r} has no mode {mode!r}; it has {', '.join(model.modes)}")
        self.model, self.steps, self.members, self.seed, self.mode = model, steps, members, seed, mode
        self.ds, self.positions = frames, positions
        self.init = self.ds["time"].isel(time=self.positions)
        self.leads = lead_coordinate(model.spec, steps)
        self.valid_time = valid_time(self.init, self.leads, model.spec)
        self.device = model.device
        cells = int(np.prod(model.spec.shape)) * steps
        self.shard = batch_size or max(1, min(members, _BLOCK, _BLOCK_BYTES // (4 * cells)))
        self.block = batch_size or min(self.shard, _AT_ONCE if self.device.type == "cpu" else _BLOCK)
        self.verdict = Verdict(model, frames.attrs, mode, certify) if certify else None

    @property
    def identity(self) -> dict[str, Any]:
        """What a resume must agree with."""
        return {
            "spec": self.model.spec.fingerprint(), "weights": self.model.weights_hash, "seed": self.seed,
            "mode": mode_key(self.model.emulator, self.mode), "inputs": self.fingerprint,
            **({} if self.verdict is None else self.verdict.identity),
        }  # fmt: skip

    def coordinates(self) -> dict[str, Any]:
        """Coordinates of the result, with their CF names."""
        about = {"standard_name": "forecast_reference_time", "long_name": "start of the forecast"}
        init = xr.DataArray(self.init.values, dims="init_time", attrs=dict(self.init.attrs) | about)
        about = {"standard_name": "realization", "units": "1"}
        member = xr.DataArray(np.arange(self.members), dims="member", attrs=about)
        return {
            "init_time": init, "member": member, "lead_time": self.leads,
            "valid_time": (("init_time", "lead_time"), self.valid_time.values, self.valid_time.attrs),
            **space_coordinates(self.model.spec),
            **({} if self.verdict is None else self.verdict.coordinates(self.steps)),
        }  # fmt: skip

    def flags(self) -> tuple[tuple[str, str], NDArray[Any], dict[str, Any]]:
        """The variable ``valid`` without its numbers."""
        about = {"standard_name": "status_flag", "long_name": "member stayed finite",
                 "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "blown_up valid"}  # fmt: skip
        return ("init_time", "member"), blank((len(self.positions), self.members), np.int8), about

    def template(self) -> xr.Dataset:
        """Dims, coordinates and attributes of the result; the data takes no memory."""
        spec = self.model.spec
        dims = ("init_time", "member", "lead_time", *spec.grid.names)
        sizes = (len(self.positions), self.members, self.steps, *spec.grid.shape)
        data: dict[str, Any] = {}
        for v in spec.variables:
            names = {"units": v.units, "standard_name": v.standard_name, "long_name": v.long_name}
            data[v.name] = (dims, blank(sizes), {k: x for k, x in names.items() if x is not None})
        data["valid"] = self.flags()
        if self.verdict is not None:
            data |= self.verdict.variables((len(self.positions), self.members, self.steps))
        out = xr.Dataset(data, coords=self.coordinates(), attrs=self.attrs())
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
            **self.physics(),
            **({} if self.verdict is None else self.verdict.attrs),
        }

    def physics(self) -> dict[str, str]:
        """Parameters of the equation, where they are not those of the training data, and what corrects the frames."""
        emulator, told = self.model.emulator, {}
        if emulator.laws is not None:
            told["lapse_parameters"] = json.dumps(self.model.spec.parameters, sort_keys=True)
        if emulator.corrector is not None:
            told["lapse_correction"] = "operator" if emulator.corrector == "operator" else "solver"
        return told

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
        state, generators, phase = self._begin(index, first, last)
        fields = np.empty((last - first, self.steps, *spec.shape), dtype=np.float32)
        alive = torch.ones(last - first, dtype=torch.bool)
        for k, (_, frames) in enumerate(rollout(emulator, state, self.steps, self.mode, generators, phase)):
            frame = frames[: last - first].cpu()
            alive &= finite_members(frame)
            fields[:, k] = torch.where(_over(alive, frame), frame, torch.nan).numpy()
        out: dict[str, NDArray[Any]] = {"valid": alive.numpy().astype(np.int8)[None]}
        if self.verdict is not None:
            u = self.initial(index)[:, -1]
            out |= self.verdict.of(u[torch.arange(first, last) % len(u)].numpy(), fields, np.arange(first, last))
        for channel, name in enumerate(spec.names):
            values = fields[:, :, channel]
            mask = spec.masks.get(name)
            if mask is not None:
                values = np.where(mask, values, np.float32(np.nan))
            out[name] = values[None]
        return out

    @torch.no_grad()
    def latents(self, index: int, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The same members before they are decoded.

        ``latent (1, members, lead_time, channel, *latent axes)`` as float16, the conserved area means ``carried
        (1, members, variable)``, which do not change with the lead, and ``valid (1, members)``.
        """
        emulator, count = self.model.emulator, last - first
        state, generators, phase = self._begin(index, first, last)
        out = np.empty((count, self.steps, *emulator.latent_shape), dtype=np.float16)
        alive = torch.ones(count, dtype=torch.bool)
        for k, (following, _, _) in enumerate(march(emulator, state, self.steps, self.mode, generators, phase)):
            z = following.z[:count, -1].cpu()
            alive &= finite_members(z)
            out[:, k] = torch.where(_over(alive, z), z, torch.nan).numpy()
        carried = state.carried[:count].cpu().numpy()
        return {"latent": out[None], "carried": carried[None], "valid": alive.numpy().astype(np.int8)[None]}

    def _begin(self, index: int, first: int, last: int) -> tuple[State, list[torch.Generator], Tensor | None]:
        """The state that members start from, one generator for each, and the phases of start and leads."""
        u = self.initial(index)
        context, phase = self.phase(index)
        batch = torch.arange(first, last if self.mode == "mean" else max(last, first + SMALLEST_BATCH))
        unique, position = torch.unique(batch % len(u), return_inverse=True)
        rows = unique if len(u) == 1 or len(unique) >= SMALLEST_BATCH else unique.repeat(SMALLEST_BATCH)
        phases = None if context is None else context.to(self.device).expand(len(rows), -1, 4)
        once = self.model.emulator.encode(u[rows].to(self.device), phases)
        start = self.init.values[index]
        generators = [member_generator(self.seed, start, int(m)) for m in batch]
        return State(once.z[position], once.carried[position]), generators, phase

    def batches(self, first: int, last: int) -> list[tuple[int, int]]:
        """Members ``first … last − 1`` in pieces that are computed at once."""
        return [(i, min(i + self.block, last)) for i in range(first, last, self.block)]

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """``(start, first member, last member + 1)`` of every block."""
        for index in range(len(self.positions)):
            for first in range(0, self.members, self.block):
                yield index, first, min(first + self.block, self.members)


def _over(alive: Tensor, fields: Tensor) -> Tensor:
    """``(B,) -> (B, 1, …)``, to be broadcast over fields."""
    return alive.reshape(-1, *(1,) * (fields.ndim - 1))


def _hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
