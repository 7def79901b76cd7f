"""How far a designed state is from the states that the model knows, and what that costs.

    reconstruction   rms of u − D(E(u)) over the training standard deviation: what the autoencoder cannot represent
    cycle            the same of v − D(E(v)) for v = D(E(u)): whether the latents are a code that a field encodes to
    latent           (mean |ζ|⁸)^⅛ of ζ = (E(u) − μ)/σ, channel by channel: latents beyond the usual range
    denoiser         mean of ‖x̂(σ_t ε)‖²/c_out², t in {¼, ½, ¾}: the loss of a generator that is shown "the mean net is
                     right", x = 0. It was trained on what the mean net misses, and so tells where it misses much (the
                     loss bounds −log p of the mean net's frame: Kingma & Gao 2023, arXiv:2303.00848)

Each is compared with its greatest value L over reference states; the penalty is Σ max(0, ρ/L − 1)². It is nought
among states like the reference, so it does not bias a design there, and it is a wall beyond (a trust region). The
denoiser is asked where the model has both a generator and a mean net, with noise that is always the same.
"""

import torch
from torch import Tensor

from .emulator import Emulator
from .state import State

__all__ = ["FEW", "SLACK", "Manifold"]

SLACK = 1.1
"""Times the greatest value over the reference states is the limit."""
FEW = 8
"""Below so many reference states their latents do not tell a range."""
_FLOOR = 1e-6  # of a root mean square, whose root has no derivative at nought
_TIMES = (0.25, 0.5, 0.75)


class Manifold:
    """The distances and their limits.

    Arguments:
        emulator: the model.
        states: reference windows ``(N, history, C, *space)`` in physical units.
        context: their phases ``(N, history, 4)``; None for models without a calendar.
    """

    def __init__(self, emulator: Emulator, states: Tensor, context: Tensor | None = None) -> None:
        self.emulator = emulator
        self.asks = emulator.generator is not None and emulator.mean is not None
        with torch.no_grad():
            known = emulator.encode(states, context)
            maps = known.z.flatten(0, 1).transpose(0, 1).flatten(1)  # (c, frames and cells)
            column = (-1, *(1,) * (known.z.ndim - 3))
            self.mean = maps.mean(1).reshape(column)
            self.std = maps.std(1).clamp(min=1e-6).reshape(column)
            self.least, self.greatest = maps.amin(1).reshape(column), maps.amax(1).reshape(column)
            found = [
                self.distances(
                    states[i],
                    State(known.z[i : i + 1], known.carried[i : i + 1]),
                    None if context is None else context[i, -1:],
                )
                for i in range(len(states))
            ]
        self.count = len(states)
        self.limits = {k: SLACK * max(float(d[k]) for d in found) for k in found[0]}

    def distances(self, u: Tensor, state: State, phase: Tensor | None) -> dict[str, Tensor]:
        """The distances, each a number.

        Arguments:
            u: the state ``(history, C, *space)`` in physical units, and its latent ``state`` of batch size 1.
            phase: of the newest frame, ``(1, 4)``.
        """
        autoencoder = self.emulator.autoencoder
        kept = self.emulator.decode(state, phase)
        again = autoencoder.decode(autoencoder.encode(kept, phase), phase)
        zeta = (state.z[0] - self.mean) / self.std
        out = {
            "reconstruction": self._rms(u[-1] - kept[0]),
            "cycle": self._rms((kept - again)[0]),
            "latent": zeta.square().square().square().mean() ** 0.125,
        }
        return out | {"denoiser": self._expected_miss(state, phase)} if self.asks else out

    def penalty(self, distances: dict[str, Tensor]) -> Tensor:
        """Σ max(0, ρ/L − 1)²."""
        over = [torch.relu(rho / self.limits[k] - 1).square() for k, rho in distances.items()]
        return torch.stack(over).sum()

    def _rms(self, x: Tensor) -> Tensor:
        """Root mean square of ``x (C, *space)`` over valid cells, in standard deviations."""
        normaliser = self.emulator.autoencoder.normaliser
        away = torch.where(normaliser.mask, x / normaliser.std.reshape(-1, *(1,) * (x.ndim - 1)), 0.0)
        return (away.square().sum() / normaliser.mask.sum() + _FLOOR**2).sqrt()

    def _expected_miss(self, state: State, phase: Tensor | None) -> Tensor:
        """The generator's loss for x = 0."""
        e, count = self.emulator, len(_TIMES)
        many = State(state.z.expand(count, *state.z.shape[1:]), state.carried.expand(count, -1))
        condition = e.condition(None if phase is None else phase.expand(count, 4))
        context = e.context(many)
        start = e.predict_mean(many, context, condition)
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).to(start)
        denoiser = e.denoiser(context, start, condition)
        return denoiser.loss(torch.zeros_like(start), torch.tensor(_TIMES).to(start), noise)
