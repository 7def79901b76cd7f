"""Ensembles kept as latents, and opened as the fields that they decode to.

A stored frame is the bounded latent z as float16, with the area means c that the heads restore, kept once a member.
Opened, it is

    u = heads(D(z) + σ(s(z)) ε),        ε from the member's own generator

decoded when it is asked for: a selection of members, leads, regions or variables decodes the frames it needs, some at
a time, and no others. ε is drawn anew from (seed, init_time, member): the generator runs through the noise of the
leads before, so that a decoded frame is that of a direct forecast but for the rounding of z to 11 bits. Latents mean
nothing to other weights, hence the hash of theirs is kept and compared.

Sizes: a latent frame of float16 is 2 × (compression of the autoencoder) times smaller than its field in float32. With
`rounding` it becomes bytes that compress (module of that name), and a decoded frame is within the rounding of a direct
one instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from xarray.backends import BackendArray
from xarray.core import indexing

from ..autoencoder.model import Latent
from ..datasets.layout import blank
from ..datasets.shards import Block
from .job import SMALLEST_BATCH, Job
from .keep import joined, open_lazily
from .noise import draw, member_generator
from .rounding import Rounding
from .state import State

if TYPE_CHECKING:
    from .ensemble import Ensemble

__all__ = ["Latents"]

_CHUNK_BYTES = 2**18  # of latents that are read together
_BATCH = 64  # frames decoded at once
_REMEMBERED = 2**26  # bytes of decoded fields kept for the next variable of the same selection


class Latents:
    """Every member's latents as float16; a chunk holds all leads of some members.

    Arguments:
        shard: members of one block.
        rounding: share of the decoder's own error that rounding to bytes may add, such as 0.5; None for float16.
        step: of the rounding, where it was chosen before.
    """

    name = "latents"

    def __init__(self, shard: int, rounding: float | None = None, step: float | None = None) -> None:
        self.shard, self.rounding, self.step = shard, rounding, step

    @property
    def options(self) -> dict[str, Any]:
        return {"shard": self.shard, "rounding": self.rounding, "step": self.step}

    def rounded(self, job: Job) -> Rounding | None:
        """How latents become bytes. Raises ValueError for a model whose latents cannot."""
        if self.rounding is None:
            return None
        if self.step is None:
            self.step = Rounding.of(job.model, self.rounding).step
        return Rounding(self.rounding, self.step)

    def home(self, path: Path) -> Path:
        return path

    def layout(self, job: Job) -> tuple[xr.Dataset, dict[str, int], dict[str, int]]:
        shape, starts = job.model.emulator.latent_shape, len(job.positions)
        axes = ("channel", *(f"latent_{name}" for name in job.model.spec.grid.names))
        dims = ("init_time", "member", "lead_time", *axes)
        names, rounded = list(job.model.spec.names), self.rounded(job)
        about: dict[str, Any] = {"long_name": "latent state, to be decoded by the model", "units": "1"}
        if rounded is not None:
            about |= {"comment": "whole steps, as second differences over the leads modulo 256", "step": rounded.step}
        kind = np.float16 if rounded is None else np.int8
        data: dict[str, Any] = {
            "latent": (dims, blank((starts, job.members, job.steps, *shape), kind), about),
            "carried": (("init_time", "member", "variable"), blank((starts, job.members, len(names))),
                        {"long_name": f"area means that the decoder restores, of {', '.join(names)}"}),
            "valid": job.flags(),
        }  # fmt: skip
        out = xr.Dataset(data, coords=job.coordinates(), attrs=job.attrs() | {"lapse_keep": "latents"})
        out["lead_time"].encoding = dict(job.leads.encoding)
        member = kind().itemsize * job.steps * int(np.prod(shape))
        most = max(1, min(self.shard, _CHUNK_BYTES // member))
        chunk = max(n for n in range(1, most + 1) if self.shard % n == 0)
        return out, {"init_time": 1, "member": self.shard}, {"member": chunk}

    def identity(self, job: Job) -> dict[str, Any]:
        return {**job.identity, "keep": self.name} | ({} if self.rounding is None else {"rounding": self.rounding})

    def prepare(self, ensemble: "Ensemble") -> None:
        model = ensemble.job.model
        if model.emulator.autoencoder.network.bound is None:
            raise ValueError(
                f"keep='latents': the latents of {model.name!r} are not bounded, and float16 ends at 65504. "
                "Usual fix: keep='fields', or a convolutional autoencoder"
            )
        if model.weights_hash == "unsaved":
            raise ValueError(
                f"keep='latents': {model.name!r} has no hash by which its latents would be known again. "
                "Usual fix: lapse.load(model.save('my_model'))"
            )

    def compute(self, ensemble: "Ensemble", block: Block) -> dict[str, NDArray[Any]]:
        job, members = ensemble.job, block.region["member"]
        index = block.region["init_time"].start
        parts = (job.latents(index, a, b) for a, b in job.batches(members.start, members.stop))
        found, rounded = joined(parts, members.stop - members.start), self.rounded(job)
        return found if rounded is None else found | {"latent": rounded.pack(found["latent"], axis=2)}

    def complete(self, ensemble: "Ensemble") -> None:
        pass

    def open(self, ensemble: "Ensemble") -> xr.Dataset:
        job = ensemble.job
        # Without dask: a graph with a task for every frame would cost more than the frames.
        stored = open_lazily(ensemble.path, job, chunks=None)
        source = _Source(job, stored, self.rounded(job))
        template = job.template()
        fields = {}
        for channel, name in enumerate(job.model.spec.names):
            v = template[name].variable
            lazy = indexing.LazilyIndexedArray(_Decoded(source, channel, v.shape))
            fields[name] = xr.Variable(v.dims, lazy, v.attrs)
        about = {k: v for k, v in stored.attrs.items() if k != "lapse_keep"}
        return xr.Dataset({**fields, "valid": stored["valid"]}, stored.coords, about)


class _Source:
    """Decodes any members and leads of one start. Picklable: what it holds is a model and a store."""

    def __init__(self, job: Job, stored: xr.Dataset, rounded: Rounding | None) -> None:
        self.job, self.rounded = job, rounded
        self.latent, self.carried = stored["latent"].variable, stored["carried"].variable
        self.valid = stored["valid"].variable
        self._last: tuple[Any, list[NDArray[np.float32]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def frames(self, key: tuple[Any, ...], shape: tuple[int, ...], channel: int) -> NDArray[np.float32]:
        """One variable over ``key``, an outer index over (init_time, member, lead_time, *space)."""
        starts, members, leads = (np.atleast_1d(np.arange(n)[k]) for n, k in zip(shape, key[:3], strict=False))
        space = key[3:]
        asked = (starts.tolist(), members.tolist(), leads.tolist(), repr(space))
        if self._last is None or self._last[0] != asked:
            region = np.ix_(*(np.atleast_1d(np.arange(n)[k]) for n, k in zip(shape[3:], space, strict=True)))
            cut = tuple(r.size for r in region)
            spec = self.job.model.spec
            out = [np.empty((len(starts), len(members), len(leads), *cut), np.float32) for _ in spec.names]
            for i, start in enumerate(starts):
                for m, k, u in self._decoded(int(start), members, leads):
                    for c, name in enumerate(spec.names):
                        values = u[c] if name not in spec.masks else np.where(spec.masks[name], u[c], np.float32("nan"))
                        out[c][i, m, k] = values[region]
            self._last = (asked, out) if sum(a.nbytes for a in out) <= _REMEMBERED else None
        else:
            out = self._last[1]
        values = out[channel]
        if self._last is not None:
            values = values.copy()
        dropped = tuple(axis for axis, k in enumerate(key) if isinstance(k, int | np.integer))
        return np.asarray(values.squeeze(axis=dropped) if dropped else values)

    @torch.no_grad()
    def _decoded(
        self, start: int, members: NDArray[Any], leads: NDArray[Any]
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """``(position among members, position among leads, fields (C, *space))``, in batches of frames."""
        job = self.job
        _, phase = job.phase(start)
        for some in _pieces(len(members), max(1, _BATCH // len(leads))):
            rows = members[some]
            # Read at once: a chunk holds all leads of several members.
            z = self._latents(start, rows, leads)
            carried = self.carried[start].isel(member=rows).values
            noise = self._noise(start, rows, leads)
            where = [(m, k) for m in range(len(rows)) for k in range(len(leads))]
            for piece in _pieces(len(where), _BATCH):
                at = where[piece]
                filled = at + [at[-1]] * (SMALLEST_BATCH - len(at))
                m, k = (np.array(i) for i in zip(*filled, strict=True))
                state = State(torch.from_numpy(z[m, k])[:, None], torch.from_numpy(carried[m]))
                errors = None if noise is None else noise[m, k]
                at_leads = None if phase is None else phase[leads[k] + 1]
                u = self._decode(state, at_leads, errors).cpu().numpy()
                for j, (a, b) in enumerate(at):
                    yield some.start + a, b, u[j]

    def _latents(self, start: int, members: NDArray[Any], leads: NDArray[Any]) -> NDArray[np.float32]:
        """``(members, leads, c, *latent)``."""
        stored = self.latent[start].isel(member=members)
        if self.rounded is None:
            return stored.isel(lead_time=leads).values.astype(np.float32)
        z = self.rounded.unpack(stored.isel(lead_time=slice(max(leads) + 1)).values, axis=1)[:, leads]
        z[self.valid[start].isel(member=members).values == 0] = np.nan
        return z

    def _decode(self, state: State, phase: Tensor | None, errors: Tensor | None) -> Tensor:
        device = self.job.device
        latent = Latent(state.z[:, -1].to(device), state.carried.to(device))
        moved = State(latent.z[:, None], latent.carried)
        return self.job.model.emulator.decode(
            moved, None if phase is None else phase.to(latent.z), None if errors is None else errors.to(latent.z)
        )

    def _noise(self, start: int, members: NDArray[Any], leads: NDArray[Any]) -> Tensor | None:
        """The decoder's noise ``(members, leads, size)``, drawn as the rollout draws it; None where it draws none."""
        job, emulator = self.job, self.job.model.emulator
        size, step = emulator.decode_noise_size, emulator.noise_size(job.mode)
        if not size or job.mode == "mean":
            return None
        generators = [member_generator(job.seed, job.init.values[start], int(m)) for m in members]
        wanted = {int(k): i for i, k in enumerate(leads)}
        out = torch.empty(len(members), len(leads), size)
        for k in range(max(wanted) + 1):
            draw(generators, step)
            noise = draw(generators, size)
            if k in wanted:
                out[:, wanted[k]] = noise
        return out


class _Decoded(BackendArray):
    """One variable, as xarray's lazy indexing reads it."""

    def __init__(self, source: _Source, channel: int, shape: tuple[int, ...]) -> None:
        self.source, self.channel = source, channel
        self.shape, self.dtype = shape, np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.float32]:
        return self.source.frames(key, self.shape, self.channel)


def _pieces(count: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
