"""The model as a scientist meets it: Dataset in, Dataset out.

A `Model` is an `Emulator` with its spec, its name and its card. Everything that comes in is checked against the
spec, in physical units; everything that leaves carries units, CF names and its provenance.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..autoencoder.model import Latent
from ..datasets.check import check
from ..datasets.fields import to_dataset, to_tensor
from ..datasets.spec import FieldSpec
from ..datasets.time import phase as phase_of
from .augment import augment
from .certificate import Certificate, calibrate
from .climate import Climate
from .design import design
from .designs import designs
from .emulator import Emulator, Mode
from .ensemble import Plan, planned
from .forecast import Kept, forecast
from .gate import Corrector, check_gate
from .job import Job
from .law import law
from .solve import solve
from .starts import initial_frames, spread_windows
from .targets import Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Model"]

_BATCH = 64  # frames encoded or decoded at once


class Model:
    """A trained surrogate.

    Attributes:
        spec: what it was trained on: variables, units, grid, frame interval, masks.
        emulator: the networks.
        name, config, card: as in its package; ``card`` is the model card in Markdown.
        climate: mean and covariance of the training latents, which `augment` needs; None where the package has none.
        certificates: bounds of the residual by mode, for certified forecasts; see `calibrate`.
    """

    def __init__(
        self, emulator: Emulator, name: str, config: dict[str, Any], card: str = "", source: Path | None = None
    ) -> None:
        self.emulator = emulator
        self.name = name
        self.config = config
        self.card = card
        self.source = source
        self.climate: Climate | None = None
        self.certificates: dict[str, Certificate] = {}

    @property
    def spec(self) -> FieldSpec:
        """What the model was trained on."""
        return self.emulator.autoencoder.spec

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes it can forecast in, the default first."""
        return self.emulator.modes

    @property
    def weights_hash(self) -> str:
        """sha256 of the weights file; "unsaved" for a model that was never written."""
        return str(self.config.get("sha256", "unsaved"))

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.emulator.parameters()).device

    def at(self, **parameters: float) -> "Model":
        """This model under physical parameters that it never saw: ``model.at(forcing=1.5).forecast(ds, …)``.

        Every frame then gets the effect that the change of parameters has by the equation's own solver (see
        `lapse.surrogate.correction`), in whatever is done with the model; one with a coarse start runs it at the new
        ones. Its spec has the new parameters, so that diagnostics and the solver's verdict on a design go by them too.

        Raises ValueError for a model with neither a correction nor a coarse start, for data without an equation, and
        for an unknown parameter.
        """
        emulator = deepcopy(self.emulator)
        trained = law(self.spec) if emulator.laws is None else emulator.laws[0]
        emulator.obey(trained, law(self.spec, parameters))
        emulator.autoencoder.spec = self.spec.replace(parameters={**self.spec.parameters, **parameters})
        model = Model(emulator, self.name, self.config, self.card, self.source)
        model.certificates = self.certificates
        return model

    def corrected(self, by: Corrector) -> "Model":
        """This model with every frame moved towards what the equation makes of the frame before it.

        Arguments:
            by: "solver": a decode and a run of the equation's solver a frame, at this model's parameters; "operator":
                the learned residual operator instead, one network evaluation.

        The gain of the stage `correction` moves what the projection sees of a frame (`lapse.surrogate.correction`).
        Members lose the spread that was the model's error: begin with an ensemble of analyses.

        Raises ValueError for a model without the parts, and by the release gate: where on held-out frames the corrector
        is not more accurate than the model itself (`Certificate.errors`), correcting would do harm, as for strongly
        compressed codes.
        """
        check_gate(self.emulator, self.certificates, by)
        emulator = deepcopy(self.emulator)
        emulator.corrector = "operator" if by == "operator" else law(self.spec)
        model = Model(emulator, self.name, self.config, self.card, self.source)
        model.certificates = self.certificates
        return model

    def calibrate(
        self,
        ds: xr.Dataset | xr.DataArray,
        leads: int = 40,
        *,
        mode: Mode | None = None,
        starts: int = 120,
        seed: int = 0,
    ) -> Certificate:
        """Calibrate the certificate of forecasts in ``mode`` on data that took no part in training.

        Arguments:
            ds: true frames over time, of one or several trajectories.
            leads: the longest lead that the certificate shall speak of.
            starts: taken from ``ds``, evenly.

        The model keeps it in `certificates`, and `save` writes it. That of a corrected model is filed with the model
        that it was made from, too. Raises ValueError for a model without an equation and for too few
        starts.
        """
        history = self.emulator.history
        longest = history + (1 if self.spec.calendar is None else leads)
        u, phase = spread_windows(ds, self.spec, longest, starts)
        u = u[:, : history + 1]
        found = calibrate(self, u, phase, leads=leads, mode=mode, seed=seed, split="given")
        self.certificates[found.mode] = found
        return found

    def check(self, ds: xr.Dataset | xr.DataArray, *, members: bool = False) -> xr.Dataset:
        """The Dataset as the model needs it, or a `SpecError` that names every problem at once.

        Arguments:
            ds: at least ``history`` consecutive frames.
            members: allow a ``member`` dimension, an ensemble of initial states.
        """
        return check(ds, self.spec, history=self.emulator.history, members=members)

    def forecast(
        self,
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
        keep: Kept = "fields",
        parameters: Mapping[str, float] | None = None,
        correct: Corrector | None = None,
        certify: bool | float = False,
        progress: bool = True,
    ) -> xr.Dataset:
        """An ensemble forecast, ``(init_time, member, lead_time, *space)``; see `lapse.surrogate.forecast`.

        ``parameters``, for instance ``{"forcing": 1.5}``, are those that differ from the training data's; see `at`.
        ``correct`` moves every frame towards the equation; see `corrected`.
        """
        model = self if correct is None else self.corrected(correct)
        model = model.at(**parameters) if parameters else model
        return forecast(
            model, ds, steps, members, seed=seed, init_times=init_times, mode=mode, store=store, resume=resume,
            batch_size=batch_size, keep=keep, certify=certify, progress=progress,
        )  # fmt: skip

    def ensemble(
        self,
        ds: xr.Dataset | xr.DataArray,
        steps: int,
        members: int,
        *,
        keep: Kept = "fields",
        seed: int = 0,
        init_times: Any = "last",
        mode: Mode | None = None,
        batch_size: int | None = None,
        shard: int | None = None,
        **options: Any,
    ) -> Plan:
        """The plan of an ensemble that several processes make together; see `lapse.surrogate.ensemble`.

        Nothing is computed: print the plan, then ``plan.create("ens.zarr")`` begins it. ``options`` are those of
        `lapse.surrogate.statistics.Statistics`, or ``rounding`` of `lapse.surrogate.latents.Latents`.
        """
        frames, positions = initial_frames(ds, self.spec, self.emulator.history, init_times)
        job = Job(self, frames, positions, steps, members, seed, mode, batch_size)
        return planned(job, keep, shard=shard, **options)

    def design(self, ds: xr.Dataset | xr.DataArray, objective: Objective, steps: int, **options: Any) -> xr.Dataset:
        """The initial condition near a given one whose forecast has the largest or smallest objective.

        ``options`` as for `lapse.surrogate.design.design`; ``sense="maximise"`` or ``"minimise"`` must be among them.
        """
        return design(self, ds, objective, steps, **options)

    def designs(self, ds: xr.Dataset | xr.DataArray, objective: Objective, steps: int, **options: Any) -> xr.Dataset:
        """Many initial conditions with a large or small objective, samples of a distribution over ``(member, …)``.

        ``options`` as for `lapse.surrogate.designs.designs`; ``sense="maximise"`` or ``"minimise"`` must be among them.
        """
        return designs(self, ds, objective, steps, **options)

    def augment(self, observed: xr.Dataset | xr.DataArray, samples: int = 32, **options: Any) -> xr.Dataset:
        """Samples of complete fields given sparse, masked or noisy ones, with dims ``(member, time, *space)``.

        ``options`` as for `lapse.surrogate.augment.augment`, of which ``error`` is the one that is mostly needed.
        """
        return augment(self, observed, samples, **options)

    def solve(self, ds: xr.Dataset | xr.DataArray, steps: int, *, init_times: Any = "last") -> xr.Dataset:
        """What the equation's own solver makes of the same starts, laid out as a forecast: see `lapse.surrogate.solve`.

        ValueError for a model of data without an equation of lapse.
        """
        return solve(self, ds, steps, init_times=init_times)

    @torch.no_grad()
    def encode(self, ds: xr.Dataset | xr.DataArray) -> xr.Dataset:
        """Latents of every frame: ``latent (…, channel, *latent axes)``, conserved means ``carried (…, variable)``."""
        ds = check(ds, self.spec, history=1, members=True)
        fields, leading, phase = self._frames(ds)
        parts = [
            self.emulator.autoencoder.encode(fields[i].to(self.device), self._rows(phase, i))
            for i in _batches(len(fields))
        ]
        z, carried = torch.cat([p.z for p in parts]).cpu(), torch.cat([p.carried for p in parts]).cpu()
        sizes = [ds.sizes[d] for d in leading]
        axes = [f"latent_{name}" for name in self.spec.grid.names]
        out = xr.Dataset(
            {
                "latent": ((*leading, "channel", *axes), z.reshape(*sizes, *z.shape[1:]).numpy(), {"units": "1"}),
                "carried": ((*leading, "variable"), carried.reshape(*sizes, -1).numpy()),
            },
            coords={**{d: ds[d] for d in leading if d in ds.coords}, "variable": list(self.spec.names)},
            attrs={"lapse_model": self.name, "source": f"lapse {self.name} sha256:{self.weights_hash}"},
        )
        return out

    @torch.no_grad()
    def decode(self, latents: xr.Dataset) -> xr.Dataset:
        """Fields of latents that `encode` made, in physical units. Raises ValueError for those of another model."""
        made_by = latents.attrs.get("source", "")
        if made_by and not made_by.endswith(self.weights_hash):
            raise ValueError(f"these latents come from {made_by!r}, not from {self.name} sha256:{self.weights_hash}")
        own = self.emulator.latent_shape
        leading = [str(d) for d in latents["latent"].dims[: -len(own)]]
        z = torch.from_numpy(np.ascontiguousarray(latents["latent"].values)).reshape(-1, *own)
        carried = torch.from_numpy(np.ascontiguousarray(latents["carried"].values)).reshape(len(z), -1)
        phase = self._phase(latents, leading)
        decode = self.emulator.autoencoder.decode
        fields = torch.cat(
            [
                decode(Latent(z[i].to(self.device), carried[i].to(self.device)), self._rows(phase, i)).cpu()
                for i in _batches(len(z))
            ]
        )
        sizes = [latents.sizes[d] for d in leading]
        coords = {d: latents[d] for d in leading if d in latents.coords}
        about = {"lapse_model": self.name, "source": latents.attrs.get("source", "")}
        return to_dataset(fields.reshape(*sizes, *self.spec.shape), self.spec, leading, coords, about)

    def reconstruction(self, ds: xr.Dataset | xr.DataArray) -> xr.Dataset:
        """What the autoencoder keeps of each frame: decode(encode(ds)), to be compared with ``ds``."""
        return self.decode(self.encode(ds))

    def save(self, path: str | Path) -> Path:
        """Write the package: weights, config, spec and card."""
        from .package import save

        return save(self, path)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.emulator.parameters())
        latent = "×".join(map(str, self.emulator.latent_shape))
        network = self.emulator.autoencoder.network
        return (
            f"<lapse.Model {self.name!r}: {count / 1e6:.2f} M weights, latent {latent} "
            f"({network.compression:.1f}× smaller), modes {', '.join(self.modes)}>\n{self.spec}"
        )

    def _frames(self, ds: xr.Dataset) -> tuple[Tensor, list[str], Tensor | None]:
        """All frames as one batch, the names of their dims, and their phases."""
        fields = to_tensor(ds, self.spec)
        space = self.spec.grid.names
        leading = [str(d) for d in ds[self.spec.names[0]].dims if d not in space]
        return fields.reshape(-1, *self.spec.shape), leading, self._phase(ds, leading)

    def _phase(self, ds: xr.Dataset, leading: Sequence[str]) -> Tensor | None:
        """Phase of every frame in the order of the flattened leading dims, None for a model without a calendar."""
        if self.spec.calendar is None:
            return None
        values: NDArray[np.float32] = phase_of(ds["time"])
        expanded = xr.DataArray(values, dims=("time", "component"))
        sizes = {d: ds.sizes[d] for d in leading}
        full = expanded.expand_dims({d: n for d, n in sizes.items() if d != "time"}).transpose(*leading, "component")
        return torch.from_numpy(np.ascontiguousarray(full.values)).reshape(-1, 4)

    def _rows(self, phase: Tensor | None, rows: slice) -> Tensor | None:
        return None if phase is None else phase[rows].to(self.device)


def _batches(count: int) -> list[slice]:
    return [slice(i, i + _BATCH) for i in range(0, count, _BATCH)]
