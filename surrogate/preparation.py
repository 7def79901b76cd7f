"""What an emulator is given before a stage trains: scales measured on encoded frames, weights of the net before."""

import torch
from torch import Tensor

from ..autoencoder.model import Latent
from .emulator import Emulator
from .gain import SpectralGain
from .state import State

__all__ = ["measure_correction", "measure_increment", "measure_residual", "start_fast", "start_operator"]


@torch.no_grad()
def measure_increment(emulator: Emulator, states: State, following: State) -> None:
    """Set the scale of one frame's change beyond the start, per latent channel, from encoded pairs."""
    emulator.increment.copy_(_rms(following.z[:, -1] - emulator.start(states, emulator.context(states))))


@torch.no_grad()
def measure_residual(emulator: Emulator, states: State, following: State, phase: Tensor | None) -> None:
    """Set the scale of the residual that the generator models, per latent channel, from encoded pairs."""
    start = emulator.expected(states, emulator.context(states), emulator.condition(phase))
    emulator.residual.copy_(_rms(following.z[:, -1] - start))


@torch.no_grad()
def measure_correction(emulator: Emulator, u: Tensor) -> None:
    """Set the scale of what the correction is fed with, per channel, from example fields ``(N, C, *space)``.

    For a linear decoder the gain itself is set, in closed form. Raises ValueError for a model without a correction.
    """
    correction, autoencoder = emulator.part("correction"), emulator.autoencoder
    if isinstance(correction.gain, SpectralGain):
        carried = autoencoder.heads.carried(u[:1])

        def forward(z: Tensor) -> Tensor:
            decoded = autoencoder.decode(Latent(z, carried.expand(len(z), -1)))
            seen: Tensor = correction.project(autoencoder, decoded)
            return seen

        return correction.gain.solve(forward)
    seen = correction.project(autoencoder, u)
    correction.scale.copy_(_rms(seen - seen.mean(dim=0)))


@torch.no_grad()
def start_fast(emulator: Emulator) -> None:
    """Start the fast net from the mean net: the same function, with weak noise inputs."""
    source, target = emulator.part("mean").state_dict(), emulator.part("fast").state_dict()
    for name, weight in source.items():
        if weight.shape == target[name].shape:
            target[name].copy_(weight)
    stem, given = target["stem.conv.weight"], source["stem.conv.weight"]
    known = emulator.known
    stem[:, :known] = given[:, :known]
    stem[:, known : known + emulator.noise_maps] *= 0.1
    stem[:, known + emulator.noise_maps :] = given[:, known:]
    if emulator.calendar:
        first, given = target["embed.0.weight"], source["embed.0.weight"]
        first[:, : given.shape[1]] = given
        first[:, given.shape[1] :] *= 0.1


@torch.no_grad()
def start_operator(emulator: Emulator) -> None:
    """Start the residual operator's net from the mean net."""
    emulator.part("operator").net.load_state_dict(emulator.part("mean").state_dict())


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=(0, *range(2, x.ndim))).sqrt().clamp(min=1e-6).reshape(-1, *(1,) * (x.ndim - 2))
