"""The climate of a model's latents: a Gaussian with the mean and the covariance of its training data.

    z = μ + B^½ x,      x ~ N(0, I),      B = F* diag(B_k) F

z are the latents of one start (all its context frames). Where the data are statistically the same after a shift by pᵢ
latent cells along axis i (as training with ``data.shift`` says), their covariance is block-diagonal in Bloch waves: F
is the unitary Fourier transform over the nᵢ/pᵢ repetitions of a cell of p₁ × p₂ × … latent cells, and there is a block
B_k for each wave vector k, as large as the numbers of a cell. An axis without such a symmetry is one cell, and a model
without any has one block, the whole covariance.

A block is estimated from few frames, so it is drawn to its diagonal, B ← (1 − a) B + a diag B, with the a for which the
last fifth of the frames, which took no part in the fit, is most likely (a cross-validated form of the shrinkage of
Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4).
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

if TYPE_CHECKING:
    from ..datasets.datamodule import FieldData
    from .emulator import Emulator

__all__ = ["LARGEST", "Climate", "fit_climate", "periods", "training_climate"]

LARGEST = 4096
"""Numbers of a cell beyond which there is no covariance of it."""
FEWEST = 20
"""Frames below which a covariance says nothing."""
_WINDOWS = 1500
_SHRINKAGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_BATCH = 64


class Climate:
    """Mean and covariance of latents.

    Attributes:
        mean: ``(n, *latent)``, with n = history · c channels.
        root: B_k^½, ``(K, b, b)`` complex: one block a wave vector (their order is that of a flattened FFT).
        cell: latent cells of a repetition along every axis.
        carried_mean, carried_std: of the conserved area means ``(C,)``, in physical units, float64.
        error: root mean square of u − D(E u), ``(C,)``, in normalised units.
    """

    def __init__(
        self, mean: Tensor, root: Tensor, cell: Sequence[int], carried_mean: Tensor, carried_std: Tensor, error: Tensor
    ) -> None:
        self.mean, self.root, self.cell = mean, root, tuple(int(p) for p in cell)
        self.carried_mean, self.carried_std, self.error = carried_mean, carried_std, error

    @property
    def size(self) -> int:
        """Standard normal numbers of one draw."""
        return self.mean.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """``x (B, size)``, standard normal if z is to be of the climate, to ``z (B, n, *latent)``; differentiable."""
        waves = to_waves(x.reshape(-1, *self.mean.shape), self.cell)
        coloured = torch.einsum("kij,mkj->mki", self.root.to(waves), waves)
        return self.mean + from_waves(coloured, self.mean.shape, self.cell)

    def to(self, like: Tensor) -> "Climate":
        """On the device and in the precision of a tensor; what is carried stays in float64."""
        kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return Climate(
            self.mean.to(like), self.root.to(like.device, kind), self.cell, self.carried_mean.to(like.device),
            self.carried_std.to(like.device), self.error.to(like),
        )  # fmt: skip

    def save(self, path: Path, weights_hash: str) -> None:
        """Write a safetensors file that says to which weights it belongs."""
        from safetensors.torch import save

        tensors = {
            "mean": self.mean.float(), "real": self.root.real.float(), "imaginary": self.root.imag.float(),
            "cell": torch.tensor(self.cell), "carried_mean": self.carried_mean, "carried_std": self.carried_std,
            "error": self.error.float(),
        }  # fmt: skip
        if not bool(tensors["imaginary"].any()):  # one block is real
            del tensors["imaginary"]
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
        imaginary = t.get("imaginary", torch.zeros_like(t["real"]))
        root = torch.complex(t["real"], imaginary)
        return cls(t["mean"], root, t["cell"].tolist(), t["carried_mean"], t["carried_std"], t["error"])


@torch.no_grad()
def fit_climate(
    emulator: "Emulator", u: Tensor, phase: Tensor | None = None, shift: Mapping[str, Any] | None = None
) -> Climate:
    """The climate of windows ``u (N, history, C, *space)`` in physical units, in the order of time.

    Arguments:
        phase: ``(N, history, 4)`` for models with a calendar.
        shift: axis to the cells of a shift after which the data are statistically the same, as in ``data.shift``.

    Raises SpecError for too few windows, and for latents too large to have a covariance.
    """
    autoencoder = emulator.autoencoder
    cell = periods(autoencoder.network, autoencoder.spec.grid.names, shift or {})
    numbers = emulator.history * emulator.latent_shape[0] * prod(cell)
    problems = []
    if len(u) < FEWEST:
        problems.append(Problem("climate", f"{len(u)} starts", f"at least {FEWEST}", "give more frames"))
    if numbers > LARGEST:
        fix = "train with data.shift where the data allow it, or with fewer latents"
        problems.append(Problem("climate", f"{numbers} latents in a cell", f"at most {LARGEST}", fix))
    if problems:
        raise SpecError(problems)
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
    root = _root(to_waves(z - mean, cell))
    error = (squares / len(u)).sqrt()
    return Climate(mean.float(), root.to(torch.complex64), cell, c.mean(dim=0), c.std(dim=0), error.float())


def training_climate(emulator: "Emulator", data: "FieldData", shift: Mapping[str, Any] | None) -> Climate | None:
    """The climate of the training split, from up to `_WINDOWS` windows spread over it in order.

    None for a split too short, and for latents too large, to have one.
    """
    h = emulator.history
    cell = periods(emulator.autoencoder.network, data.spec.grid.names, shift or {})
    if h * emulator.latent_shape[0] * prod(cell) > LARGEST:
        return None
    places = [(k, t) for r in data.splits["train"] for k in range(r.k0, r.k1) for t in range(r.t0, r.t1 - h + 1)]
    if len(places) < FEWEST:
        return None
    chosen = [places[int(i)] for i in torch.linspace(0, len(places) - 1, min(_WINDOWS, len(places)))]
    u = np.empty((len(chosen), h, *data.spec.shape), np.float32)
    for i, (k, t) in enumerate(chosen):
        data.source.read(k, k + 1, t, t + h, u[i : i + 1])
    phase = np.stack([data.source.phase[t : t + h] for _, t in chosen])
    calendar = data.spec.calendar is not None
    return fit_climate(emulator, torch.from_numpy(u), torch.from_numpy(phase) if calendar else None, shift)


def _root(waves: Tensor) -> Tensor:
    """Square roots of the blocks, shrunk, from ``waves (N, K, b)`` in the order of time."""
    held = waves[-max(1, len(waves) // 5) :]
    fitted = waves[: len(waves) - len(held)]
    blocks = torch.einsum("nki,nkj->kij", fitted, fitted.conj()) / len(fitted)
    scores = [_likelihood(_shrunk(blocks, a), held) for a in _SHRINKAGES]
    best = _SHRINKAGES[max(range(len(scores)), key=scores.__getitem__)]
    whole = _shrunk(torch.einsum("nki,nkj->kij", waves, waves.conj()) / len(waves), best)
    value, vector = torch.linalg.eigh(whole)
    return torch.einsum("kij,kj,klj->kil", vector, value.clamp(min=0).sqrt().to(vector.dtype), vector.conj())


def _shrunk(blocks: Tensor, a: float) -> Tensor:
    diagonal = torch.diagonal(blocks, dim1=1, dim2=2).real
    floor = 1e-6 * float(diagonal.mean()) + 1e-12
    return (1 - a) * blocks + torch.diag_embed(a * diagonal + floor).to(blocks.dtype)


def _likelihood(blocks: Tensor, waves: Tensor) -> float:
    """Mean log-likelihood of centred ``waves (N, K, b)``, up to a constant."""
    L, info = torch.linalg.cholesky_ex(blocks)
    if bool(info.any()):
        return -float("inf")
    logs = 2 * torch.diagonal(L, dim1=1, dim2=2).real.log().sum()
    r = torch.linalg.solve_triangular(L, waves.permute(1, 2, 0), upper=False)
    return -0.5 * float(logs + r.abs().square().sum() / len(waves))


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


def cell_mean(field: Tensor, cell: Sequence[int]) -> Tensor:
    """Mean of ``field (n, *latent)`` over the repetitions of the cell, repeated."""
    split = _split(field[None], cell)[0]
    axes = tuple(range(1, 1 + 2 * len(cell), 2))
    mean: Tensor = split.mean(dim=axes, keepdim=True).expand_as(split).reshape(field.shape)
    return mean


def to_waves(z: Tensor, cell: Sequence[int]) -> Tensor:
    """``z (B, n, *latent)`` to Bloch waves ``(B, K, b)``, unitary."""
    d = len(cell)
    split = _split(z, cell)
    over = tuple(range(2, 2 + 2 * d, 2))
    waves: Tensor = torch.fft.fftn(split, dim=over, norm="ortho")
    waves = waves.permute(0, *over, 1, *range(3, 3 + 2 * d, 2))
    return waves.reshape(len(z), -1, z.shape[1] * prod(cell))


def from_waves(waves: Tensor, shape: Sequence[int], cell: Sequence[int]) -> Tensor:
    """Inverse of `to_waves`, to real ``(B, *shape)``."""
    d = len(cell)
    counts = [n // p for n, p in zip(shape[1:], cell, strict=True)]
    split = waves.reshape(len(waves), *counts, shape[0], *cell)
    cells: Tensor = torch.fft.ifftn(split, dim=tuple(range(1, 1 + d)), norm="ortho").real
    order = [0, 1 + d] + [i for a in range(d) for i in (1 + a, 2 + d + a)]
    return cells.permute(*order).reshape(len(waves), *shape)


def _split(z: Tensor, cell: Sequence[int]) -> Tensor:
    """``(B, n, *latent)`` to ``(B, n, n₁/p₁, p₁, n₂/p₂, p₂, …)``."""
    sizes = [m for n, p in zip(z.shape[2:], cell, strict=True) for m in (n // p, p)]
    return z.reshape(*z.shape[:2], *sizes)
