"""States that a forecast meets, each with the solver's answer to it: what the residual operator learns from.

A label is a run of the solver, which costs several times as much as a step of the network. So states are labelled once
a round and drawn many times, each time moved by another symmetry of the physics. A round begins with frames of the
training data, encoded; rolls them out frame by frame, in later rounds corrected by the operator as it is by then, so
that it learns from its own mistakes; and blurs every state by white noise on its latents.
"""

from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..physics.equation import Equation
from .emulator import Emulator, State

if TYPE_CHECKING:
    from .stages import Shift

__all__ = ["Pool", "label_pool"]


@dataclass
class Pool:
    """N states with their ``phase (N, 4)``, and ``target (N, C, *space)``: the solver's next frames, normalised."""

    state: State
    phase: Tensor
    target: Tensor

    def draw(self, count: int, shift: "Shift", generator: torch.Generator) -> "Pool":
        """``count`` of them, each moved by a shift that leaves the physics alone."""
        chosen = torch.randint(len(self.target), (count,), generator=generator)
        z, target = self.state.z[chosen].clone(), self.target[chosen].clone()
        factor = [n // m for n, m in zip(target.shape[2:], z.shape[3:], strict=True)]
        whole = [lcm(cells, f) // f if cells else 0 for cells, f in zip(shift.cells, factor, strict=True)]
        axes = [i for i, cells in enumerate(whole) if cells and z.shape[3 + i] % cells == 0]
        for k in range(count if axes else 0):
            by = [whole[i] * int(torch.randint(z.shape[3 + i] // whole[i], (), generator=generator)) for i in axes]
            z[k] = z[k].roll(by, [2 + i for i in axes])
            target[k] = target[k].roll([n * factor[i] for n, i in zip(by, axes, strict=True)], [1 + i for i in axes])
        return Pool(State(z, self.state.carried[chosen]), self.phase[chosen], target)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save([self.state.z, self.state.carried, self.phase, self.target], part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Pool":
        z, carried, phase, target = torch.load(path, weights_only=True)
        return cls(State(z, carried), phase, target)


@torch.no_grad()
def label_pool(
    emulator: Emulator, u: Tensor, phase: Tensor, known: Equation, noise: float, frames: int, corrected: bool,
    generator: torch.Generator, batch: int = 16,
) -> Pool:  # fmt: skip
    """A round: windows ``u (N, history, C, *space)`` and each of ``frames`` frames after them, labelled.

    Arguments:
        noise: largest of the levels of white noise on the latents; each state has its own, uniform below it.
        corrected: roll out with the operator's correction.
    """
    autoencoder, mode, found = emulator.autoencoder, emulator.modes[0], []
    size = emulator.noise_size(mode)
    for first in range(0, len(u), batch):
        at = phase[first : first + batch, -1]
        state = emulator.encode(u[first : first + batch], phase[first : first + batch])
        for k in range(frames + 1):
            if k:
                draws = torch.randn(len(at), size, generator=generator).to(u) if size else None
                after = emulator.free(state, draws, at, mode)
                state = emulator.corrected(state, after, at) if corrected else after
            level = noise * torch.rand(len(at), *(1,) * (state.z.ndim - 1), generator=generator).to(u)
            z = state.z + level * torch.randn(state.z.shape, generator=generator).to(u)
            blurred = State(z, state.carried)
            before = autoencoder.decode(blurred.latent, at)
            target = autoencoder.normalise(known.advance(before, autoencoder.spec.interval), at)
            found.append((z, state.carried, at, target))
    z, carried, at, target = (torch.cat(x) for x in zip(*found, strict=True))
    return Pool(State(z, carried), at, target)
