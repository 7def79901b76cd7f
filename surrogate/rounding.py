"""Latents as bytes: rounded by a share of the decoder's own error, and stored as second differences over the leads.

    n_k = ⌊z_k/q⌉ in −127 … 127,      stored: n_1, n_2 − n_1, n_3 − 2 n_2 + n_1, …  modulo 256

Rounding to a step q adds an error of q/√12 to every latent (Widrow & Kollár 2008), which the decoder passes on g times
as large; q makes that a wanted share of the error that the decoder has anyway: a share of a quarter adds three per cent
to it, of a half twelve. Differences are small where frames follow each other closely, and small numbers compress. A
byte spans the bounded latents at least: where that takes a larger q, it is taken.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .emulator import Emulator

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Rounding"]

_LARGEST = 127
_DRAWS = 32  # of latents, on which the decoder is tried
_SMALL = 0.01  # of a latent's scale: the perturbation that tells the gain


@dataclass(frozen=True)
class Rounding:
    """The step q, and the share of the decoder's error that was asked for."""

    share: float
    step: float

    @classmethod
    def of(cls, model: "Model", share: float) -> "Rounding":
        """The step for a model's latents.

        Raises ValueError for a share that is not above 0, and for a model that does not know its decoder's error or
        whose latents are not bounded.
        """
        emulator = model.emulator
        bound = emulator.autoencoder.network.bound
        if not share > 0:
            raise ValueError(f"rounding: found {share}, wanted a share above 0 of the decoder's error, such as 0.5")
        if emulator.error is None or bound is None:
            lack = "model of its decoder's error" if emulator.error is None else "bound for its latents"
            raise ValueError(
                f"rounding: {model.name!r} has no {lack}. Usual fix: leave it out, or train the stage 'error' of a "
                "convolutional autoencoder"
            )
        error, gain = _decoder(emulator)
        step = max(math.sqrt(12) * share * error / gain, bound / _LARGEST)
        return cls(share, float(f"{step:.3g}"))  # the same on machines that round differently

    def pack(self, z: NDArray[Any], axis: int) -> NDArray[np.int8]:
        """Latents to bytes, second differences along the ``axis`` of leads; what is not finite becomes 0."""
        n = np.clip(np.rint(np.nan_to_num(z.astype(np.float32)) / self.step), -_LARGEST, _LARGEST).astype(np.int8)
        first, rest = _parted(_differences(n, axis), axis)
        return np.concatenate([first, _differences(rest, axis)], axis=axis)

    def unpack(self, stored: NDArray[np.int8], axis: int) -> NDArray[np.float32]:
        """The inverse, but for the rounding."""
        first, rest = _parted(stored, axis)
        changes = np.concatenate([first, np.cumsum(rest, axis=axis, dtype=np.int8)], axis=axis)
        n = np.cumsum(changes, axis=axis, dtype=np.int8)
        return n.astype(np.float32) * np.float32(self.step)


def _parted(x: NDArray[np.int8], axis: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The first lead, and the others."""
    first, rest = np.split(x, [1], axis=axis)
    return first, rest


def _differences(x: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """From lead to lead, the first from 0; they wrap around, and so does the sum."""
    out: NDArray[np.int8] = np.diff(x, axis=axis, prepend=np.int8(0))
    return out


@torch.no_grad()
def _decoder(emulator: Emulator) -> tuple[float, float]:
    """Its error, and its gain from latents: root mean squares in normalised units, over random latents."""
    a, like = emulator.autoencoder, emulator.increment
    g = torch.Generator().manual_seed(0)
    z, away = torch.randn(2, _DRAWS, *emulator.latent_shape, generator=g).to(like)
    assert emulator.error is not None
    moved = a.network.decode(z + _SMALL * away) - a.network.decode(z)

    def rms(x: Tensor) -> float:
        squares = torch.where(a.normaliser.mask, x, 0.0).square().sum()
        return float((squares / (a.normaliser.mask.sum() * _DRAWS)).sqrt())

    return rms(emulator.error.scale(z)), rms(moved) / _SMALL
