"""The release gate: whether the equation, as the model can see it, knows the next frame better than the model does.

A correction moves a model's frame towards what the solver makes of D(z₀), or towards the residual operator's guess of
that. Where compression loses much, D(z₀) is no longer the state that the flow was in, the model, which has learned what
usually follows, is the better forecaster, and correcting it does harm (docs/decisions/0007); where little is lost it is
the other way round (0050). Both are measured on held-out frames, in the projection that the correction acts on, and
nothing is corrected by who is not the better one.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..autoencoder.model import Latent
from ..physics.equation import Equation
from .emulator import Emulator, Mode

if TYPE_CHECKING:
    from .certificate import Certificate

__all__ = ["Corrector", "check_gate", "next_errors"]

Corrector = Literal["solver", "operator"]
_BATCH = 16


@torch.no_grad()
def next_errors(
    emulator: Emulator, known: Equation, u: Tensor, mode: Mode, members: int = 8
) -> dict[str, float]:
    """Errors of the next frame after ``u (N, history + 1, C, *space)`` without it, over the rms of the field.

    Of the "model" without any corrector (the mean of ``members``), of the "solver" from the decoded frame, and of the
    "operator" where there is one; empty for models without a gain.
    """
    projection, autoencoder, history = emulator.correction, emulator.autoencoder, emulator.history
    if projection is None:
        return {}
    generator, squares = torch.Generator().manual_seed(0), {"truth": 0.0}
    for first in range(0, len(u), _BATCH):
        frames = u[first : first + _BATCH].to(emulator.increment)
        state = emulator.encode(frames[:, :history])
        size, count = emulator.noise_size(mode), 1 if mode == "mean" else members
        found: list[Tensor] = []
        for _ in range(count):
            noise = torch.randn(len(frames), size, generator=generator).to(frames) if size else None
            z = emulator.free(state, noise, None, mode).z[:, -1]
            found.append(autoencoder.decode(Latent(z, state.carried)))
        guesses = {
            "model": torch.stack(found).mean(dim=0),
            "solver": known.advance(autoencoder.decode(state.latent), autoencoder.spec.interval),
        }
        if emulator.operator is not None:
            guesses["operator"] = autoencoder.decode(Latent(emulator.expect(state), state.carried))
        truth = projection.project(autoencoder, frames[:, history])
        squares["truth"] += float(truth.square().sum())
        for name, guess in guesses.items():
            away = projection.project(autoencoder, guess) - truth
            squares[name] = squares.get(name, 0.0) + float(away.square().sum())
    total = squares.pop("truth")
    return {name: (square / total) ** 0.5 for name, square in squares.items()}


def check_gate(emulator: Emulator, certificates: Mapping[str, "Certificate"], by: str) -> None:
    """Raise ValueError unless that corrector is there and was found more accurate than the model."""
    if by not in get_args(Corrector):
        raise ValueError(f"correct: found {by!r}, wanted one of {', '.join(get_args(Corrector))}")
    wanted = ["correction"] + (["operator"] if by == "operator" else [])
    parts = emulator.config["parts"]
    if absent := [p for p in wanted if p not in parts]:
        raise ValueError(
            f"correct={by!r}: found a model of {', '.join(parts)}, wanted one with {' and '.join(absent)}. Usual fix: "
            "train it with that in emulator.parts and in training.stages"
        )
    errors = next((c.errors for c in certificates.values() if by in c.errors), None)
    if errors is None:
        raise ValueError(
            f"correct={by!r}: found no measurement of whether it helps, wanted one. Usual fix: "
            "model.calibrate(held_out_data) first"
        )
    if not errors[by] < errors["model"]:
        raise ValueError(
            f"correct={by!r}: refused, since on held-out frames the {by}'s next frame is off by {errors[by]:.2%} of "
            f"the field and the model's own by {errors['model']:.2%}: correcting would do harm. It still audits "
            "(certify=True)"
        )
