"""States that a forecast meets, each with the solver's answer to it: what the residual operator learns from.

A label is a run of the solver, which costs several times as much as a step of the network. So states are labelled once
a round and drawn many times, each time moved by another symmetry of the physics. A round begins with frames of the
training data, encoded; rolls them out frame by frame, in later rounds corrected by the operator as it is by then, so
that it learns from its own mistakes; and blurs every state by white noise on its latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..physics.equation import Equation
from .emulator import Emulator
from .objectives import blurred
from .state import State

__all__ = ["Pool", "label_pool"]


@dataclass
class Pool:
    """N states with their ``phase (N, 4)``, and ``target (N, C, *space)``: the solver's next frames, normalised."""

    state: State
    phase: Tensor
    target: Tensor

    def draw(self, count: int, cell: Sequence[int], generator: torch.Generator) -> "Pool":
        """``count`` of them, each moved by whole cells of ``cell`` latent cells, as the physics allows (`periods`)."""
        chosen = torch.randint(len(self.target), (count,), generator=generator)
        z, target = self.state.z[chosen].clone(), self.target[chosen].clone()
        latent, space = z.shape[3:], target.shape[2:]
        for k in range(count):
            by = [p * int(torch.randint(m // p, (), generator=generator)) for p, m in zip(cell, latent, strict=True)]
            z[k] = z[k].roll(by, list(range(2, 2 + len(by))))
            wide = [b * (n // m) for b, n, m in zip(by, space, latent, strict=True)]
            target[k] = target[k].roll(wide, list(range(1, 1 + len(by))))
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
            noisy = blurred(state, noise, generator)
            before = autoencoder.decode(noisy.latent, at)
            target = autoencoder.normalise(known.advance(before, autoencoder.spec.interval), at)
            found.append((noisy.z, noisy.carried, at, target))
    z, carried, at, target = (torch.cat(x) for x in zip(*found, strict=True))
    return Pool(State(z, carried), at, target)
