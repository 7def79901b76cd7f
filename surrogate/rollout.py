"""Rollouts: frame after frame in latent space, decoded on the way out.

Every `Emulator.refresh` frames, and no oftener, a rollout goes on from what the encoder makes of its decoded fields.
The frame itself is yielded as it was, so what leaves does not show it.

The loop carries gradients (nothing in here switches them off), so that an objective of the forecast can be
differentiated with respect to the initial state. Members that leave the realm of finite numbers are reported, not
repaired.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..autoencoder.model import Latent
from .emulator import Emulator, Mode
from .noise import draw
from .state import State

__all__ = ["finite_members", "march", "refreshed", "repeat_state", "resumed", "rollout"]


def rollout(
    emulator: Emulator,
    state: State,
    steps: int,
    mode: Mode,
    generators: Sequence[torch.Generator] = (),
    phase: Tensor | None = None,
) -> Iterator[tuple[State, Tensor]]:
    """Yield ``(state, fields (B, C, *space))`` for each of ``steps`` frames, in physical units.

    Arguments:
        state: of batch size B, one entry a member.
        generators: one a member; each gives the noise of the step, then that of the decoder, frame by frame.
        phase: ``(steps + 1, 4)``, phase of the year and day from the initial frame on; None for models without a
            calendar.

    Raises ValueError where the mode needs noise and the number of generators is not B.
    """
    for following, at, errors in march(emulator, state, steps, mode, generators, phase):
        yield following, emulator.decode(following, at, errors)


def march(
    emulator: Emulator,
    state: State,
    steps: int,
    mode: Mode,
    generators: Sequence[torch.Generator] = (),
    phase: Tensor | None = None,
) -> Iterator[tuple[State, Tensor | None, Tensor | None]]:
    """`rollout` without its decoder: yields ``(state, phase (B, 4), noise of the decoder (B, decode_noise_size))``.

    The noise is drawn whether it is used or not, so that the generators move on as they do in a rollout.
    """
    size, decode_size = emulator.noise_size(mode), emulator.decode_noise_size
    batch = len(state.z)
    if (size or decode_size) and generators and len(generators) != batch:
        raise ValueError(f"need one generator a member: found {len(generators)} for {batch} members")
    if size and not generators:
        raise ValueError(f"mode {mode!r} is random: it needs one generator a member, {batch} in all")

    def at(k: int) -> Tensor | None:
        return None if phase is None else phase[k].to(state.z).expand(batch, 4)

    for k in range(steps):
        state = resumed(emulator, state, k, phase)
        noise = draw(generators, size).to(state.z) if size else None
        state = emulator.advance(state, noise, at(k), mode)
        # The mean net forecasts the mean: a drawn decoder error would only add to its error.
        errors = bool(decode_size and generators) and mode != "mean"
        yield state, at(k + 1), draw(generators, decode_size).to(state.z) if errors else None


def resumed(emulator: Emulator, state: State, frame: int, phases: Tensor | None = None) -> State:
    """What a rollout goes on from after so many frames: ``state``, every `Emulator.refresh` frames a `refreshed` one.

    ``phases (frames + 1, 4)`` are those of the rollout, from the initial frame on.
    """
    if emulator.refresh is None or frame == 0 or frame % emulator.refresh:
        return state
    return refreshed(emulator, state, None if phases is None else phases[frame + 1 - emulator.history : frame + 1])


def refreshed(emulator: Emulator, state: State, phase: Tensor | None = None) -> State:
    """The same fields as the encoder tells them: each frame of ``state`` decoded and encoded.

    Training looks at latents through the decoder alone, so what the decoder does not see of them is free to grow; in
    runs of hundreds of frames it would. ``phase (history, 4)`` is that of the frames, oldest first.
    """
    shape, autoencoder = state.z.shape, emulator.autoencoder
    at = None if phase is None else phase.to(state.z).repeat(shape[0], 1)
    frames = Latent(state.z.flatten(0, 1), state.carried.repeat_interleave(shape[1], dim=0))
    z = autoencoder.encode(autoencoder.decode(frames, at), at).z
    return State(z.reshape(shape), state.carried)


def repeat_state(state: State, members: int) -> State:
    """One state, ``members`` times."""
    return State(state.z.repeat_interleave(members, dim=0), state.carried.repeat_interleave(members, dim=0))


def finite_members(fields: Tensor) -> Tensor:
    """``(B, C, *space) -> (B,)``: whether all values of a member are finite."""
    return torch.isfinite(fields).flatten(1).all(dim=1)
