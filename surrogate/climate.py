"""The climate of a model's latents: a Gaussian with the mean and the covariance of its training data.

    z = μ + B^½ x,      x ~ N(0, I)

z are the latents of one start (all its context frames). Where they are few, or statistically the same after shifts,
their covariance is kept whole (`bloch`); where it would be too large for memory, and for what the record can tell, it
is the localised one of the record's own anomalies (`modulated`).
"""

from collections.abc import Mapping, Sequence
from math import lcm, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..autoencoder.network import ConvolutionalAutoencoder, PatchAutoencoder
from ..datasets.problem import Problem, SpecError
from .bloch import Bloch, cell_mean
from .modulated import NUMBERS, Modulated

if TYPE_CHECKING:
    from ..datasets.datamodule import FieldData
    from .emulator import Emulator

__all__ = ["LARGEST", "Climate", "fit_climate", "periods", "training_climate"]

LARGEST = 4096
"""Numbers of a cell beyond which there is no covariance of it."""
FEWEST = 20
"""Frames below which a covariance says nothing."""
_WINDOWS = 1500
_BATCH = 64


class Climate:
    """Mean and covariance of latents.

    Attributes:
        mean: ``(n, *latent)``, with n = history · c channels.
        root: B^½.
        carried_mean, carried_std: of the conserved area means ``(C,)``, in physical units, float64.
        error: root mean square of u − D(E u), ``(C,)``, in normalised units.
    """

    def __init__(
        self, mean: Tensor, root: Bloch | Modulated, carried_mean: Tensor, carried_std: Tensor, error: Tensor
    ) -> None:
        self.mean, self.root = mean, root
        self.carried_mean, self.carried_std, self.error = carried_mean, carried_std, error

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return self.root.size

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)``, standard normal if z is to be of the climate, to ``z (B, n, *latent)``; differentiable."""
        return self.mean + self.root(x)

    def to(self, like: Tensor) -> "Climate":
        """On the device and in the precision of a tensor; what is carried stays in float64."""
        return Climate(
            self.mean.to(like), self.root.to(like), self.carried_mean.to(like.device), self.carried_std.to(like.device),
            self.error.to(like),
        )  # fmt: skip

    def save(self, path: Path, weights_hash: str) -> None:
        """Write a safetensors file that says to which weights it belongs."""
        from safetensors.torch import save

        tensors = {
            "mean": self.mean.float(), "carried_mean": self.carried_mean, "carried_std": self.carried_std,
            "error": self.error.float(), **self.root.tensors(),
        }  # fmt: skip
        path.write_bytes(save({k: v.cpu().contiguous() for k, v in tensors.items()}, {"sha256": weights_hash}))

    @classmethod
    def load(cls, path: Path, weights_hash: str) -> "Climate | None":
        """Read what `save` wrote; None where there is no file, or one of other weights."""
        from safetensors import safe_open

        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            if (file.metadata() or {}).get("sha256") != weights_hash:
                return None
            t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        root = Modulated.of(t) if "anomalies" in t else Bloch.of(t, t["mean"].shape)
        return cls(t["mean"], root, t["carried_mean"], t["carried_std"], t["error"])


@torch.no_grad()
def fit_climate(
    emulator: "Emulator", u: Tensor, phase: Tensor | None = None, shift: Mapping[str, Any] | None = None
) -> Climate:
    """The climate of windows ``u (N, history, C, *space)`` in physical units, in the order of time.

    Arguments:
        phase: ``(N, history, 4)`` for models with a calendar.
        shift: axis to the cells of a shift after which the data are statistically the same, as in ``data.shift``.

    Raises SpecError for too few windows, and for latents of which too few fit into memory.
    """
    autoencoder = emulator.autoencoder
    cell, most = _extent(emulator, shift)
    if most < FEWEST:
        fix = "train with data.shift where the data allow it, or with fewer latents"
        found = f"{prod(emulator.latent_shape)} latents in a frame"
        raise SpecError([Problem("climate", found, f"so few that {FEWEST} starts fit into memory", fix)])
    if len(u) < FEWEST:
        raise SpecError([Problem("climate", f"{len(u)} starts", f"at least {FEWEST}", "give more frames")])
    kept = torch.linspace(0, len(u) - 1, min(most, len(u))).long()
    u, phase = u[kept], None if phase is None else phase[kept]
    latents, carried, squares = [], [], torch.zeros(len(autoencoder.spec.names), dtype=torch.float64)
    mask = autoencoder.normaliser.mask.cpu()
    for i in range(0, len(u), _BATCH):
        frames = u[i : i + _BATCH].to(emulator.increment)
        phases = None if phase is None else phase[i : i + _BATCH].to(emulator.increment)
        state = emulator.encode(frames, phases)
        newest = None if phases is None else phases[:, -1]
        away = autoencoder.normalise(emulator.decode(state, newest), newest)
        away = (away - autoencoder.normalise(frames[:, -1], newest)).double().square().cpu()
        squares += torch.where(mask, away, 0.0).flatten(2).sum(dim=2).sum(dim=0) / mask.flatten(1).sum(dim=1)
        latents.append(state.z.flatten(1, 2).cpu().double())
        carried.append(state.carried.cpu().double())
    z, c = torch.cat(latents), torch.cat(carried)
    mean = cell_mean(z.mean(dim=0), cell)
    whole = _numbers(emulator, cell) <= LARGEST
    root = Bloch.fit(z - mean, cell) if whole else Modulated.fit(z - mean, autoencoder.network.grid.wraps)
    error = (squares / len(u)).sqrt()
    return Climate(mean.float(), root, c.mean(dim=0), c.std(dim=0), error.float())


def training_climate(emulator: "Emulator", data: "FieldData", shift: Mapping[str, Any] | None) -> Climate | None:
    """The climate of the training split, from windows spread over it in order.

    None for a split too short to have one, and for latents too large.
    """
    h, (_, most) = emulator.history, _extent(emulator, shift)
    places = [(k, t) for r in data.splits["train"] for k in range(r.k0, r.k1) for t in range(r.t0, r.t1 - h + 1)]
    if min(most, len(places)) < FEWEST:
        return None
    chosen = [places[int(i)] for i in torch.linspace(0, len(places) - 1, min(most, len(places)))]
    u = np.empty((len(chosen), h, *data.spec.shape), np.float32)
    for i, (k, t) in enumerate(chosen):
        data.source.read(k, k + 1, t, t + h, u[i : i + 1])
    phase = np.stack([data.source.phase[t : t + h] for _, t in chosen])
    calendar = data.spec.calendar is not None
    return fit_climate(emulator, torch.from_numpy(u), torch.from_numpy(phase) if calendar else None, shift)


def _extent(emulator: "Emulator", shift: Mapping[str, Any] | None) -> tuple[tuple[int, ...], int]:
    """The latent cells of a repetition, and the most starts that a climate looks at."""
    autoencoder = emulator.autoencoder
    cell = periods(autoencoder.network, autoencoder.spec.grid.names, shift or {})
    if _numbers(emulator, cell) <= LARGEST:
        return cell, _WINDOWS
    return cell, min(_WINDOWS, NUMBERS // (emulator.history * prod(emulator.latent_shape)))


def _numbers(emulator: "Emulator", cell: Sequence[int]) -> int:
    """Of a cell."""
    return emulator.history * emulator.latent_shape[0] * prod(cell)


def periods(
    network: ConvolutionalAutoencoder | PatchAutoencoder, names: Sequence[str], shift: Mapping[str, Any]
) -> tuple[int, ...]:
    """Latent cells after which the statistics repeat, along every axis: its whole length where they do not."""
    grid, found = network.grid, []
    for name, n, factor, wraps in zip(names, grid.latent, grid.factor, grid.periodic, strict=True):
        cells = int(shift.get(name) or 0)
        period = lcm(cells, factor) // factor if cells else n
        found.append(period if wraps and n % period == 0 else n)
    return tuple(found)
