"""How far a designed state is from the states that the model knows, and what that costs.

    reconstruction   rms of u − D(E(u)) over the training standard deviation: what the autoencoder cannot represent
    latent           (mean |ζ|⁸)^⅛ of ζ = (E(u) − μ)/σ, channel by channel: latents beyond the usual range
    denoiser         mean of ‖x̂(x_t) − x‖²/c_out² for x = (z₁ − m(z₀))/σ, z₁ the fast mode's first frame: whether the
                     generator, which was trained on true transitions, takes the surrogate's for one (the loss bounds
                     −log p(z₁ | z₀): Kingma & Gao 2023, arXiv:2303.00848)

Each is compared with its greatest value L over reference states; the penalty is Σ max(0, ρ/L − 1)². It is nought
among states like the reference, so it does not bias a design there, and it is a wall beyond (a trust region). The
denoiser is asked where the model has both a generator and a fast net, at fixed times and with fixed noise.
"""

import torch
from torch import Tensor

from .denoiser import expand
from .emulator import Emulator, State

__all__ = ["SLACK", "Manifold"]

SLACK = 1.1
"""Times the greatest value over the reference states is the limit."""
FEW = 8
"""Below so many reference states their latents do not tell a range."""
_FLOOR = 1e-6  # of a reconstruction distance, whose root has no derivative at nought
_TIMES = (0.25, 0.5, 0.75)
_MEMBERS = 4  # whose first frames the denoiser looks at


class Manifold:
    """The three distances and their limits.

    Arguments:
        emulator: the model.
        states: reference windows ``(N, history, C, *space)`` in physical units.
        context: their phases ``(N, history, 4)``; None for models without a calendar.
    """

    def __init__(self, emulator: Emulator, states: Tensor, context: Tensor | None = None) -> None:
        self.emulator = emulator
        self.asks = emulator.generator is not None and emulator.fast is not None
        with torch.no_grad():
            known = emulator.encode(states, context)
            maps = known.z.flatten(0, 1).transpose(0, 1).flatten(1)  # (c, frames and cells)
            column = (-1, *(1,) * (known.z.ndim - 3))
            self.mean = maps.mean(1).reshape(column)
            self.std = maps.std(1).clamp(min=1e-6).reshape(column)
            self.least, self.greatest = maps.amin(1).reshape(column), maps.amax(1).reshape(column)
            phase = None if context is None else context[:, -1]
            first = None
            if self.asks:
                noise = self._noise(len(known.z), emulator.noise_size("fast"), known.z)
                first = emulator.advance(known, noise, phase, "fast").z[:, -1]
            found = [
                self.distances(states[i], _row(known, i), None if first is None else first[i : i + 1], _phase(phase, i))
                for i in range(len(states))
            ]
        self.count = len(states)
        self.limits = {k: SLACK * max(float(d[k]) for d in found) for k in found[0]}

    def distances(self, u: Tensor, state: State, first: Tensor | None, phase: Tensor | None) -> dict[str, Tensor]:
        """The distances, each a number.

        Arguments:
            u: the state ``(history, C, *space)`` in physical units, and its latent ``state`` of batch size 1.
            first: the newest latents one frame later, ``(members, c, *latent)``.
            phase: of the newest frame, ``(1, 4)``.
        """
        autoencoder = self.emulator.autoencoder
        kept = self.emulator.decode(state, phase)[0]
        mask, std = autoencoder.normaliser.mask, autoencoder.normaliser.std
        away = (u[-1] - kept) / std.reshape(-1, *(1,) * (kept.ndim - 1))
        lost = torch.where(mask, away, 0.0).square().sum() / mask.sum()
        out = {"reconstruction": (lost + _FLOOR**2).sqrt()}
        zeta = (state.z[0] - self.mean) / self.std
        out["latent"] = zeta.square().square().square().mean() ** 0.125
        if self.asks and first is not None:
            out["denoiser"] = self._surprise(state, first[:_MEMBERS], phase)
        return out

    def penalty(self, distances: dict[str, Tensor]) -> Tensor:
        """Σ max(0, ρ/L − 1)²."""
        over = [torch.relu(rho / self.limits[k] - 1).square() for k, rho in distances.items()]
        return torch.stack(over).sum()

    def _surprise(self, state: State, first: Tensor, phase: Tensor | None) -> Tensor:
        """The denoising loss of the transition from ``state`` to ``first``."""
        e, count = self.emulator, len(first) * len(_TIMES)
        many = State(state.z.expand(count, *state.z.shape[1:]), state.carried.expand(count, -1))
        condition = e.condition(None if phase is None else phase.expand(count, 4))
        context = e.context(many)
        start = e.predict_mean(many, context, condition) if e.mean is not None else many.z[:, -1]
        x = (first.repeat_interleave(len(_TIMES), dim=0) - start) / e.residual
        t = torch.tensor(_TIMES * len(first), dtype=x.dtype, device=x.device)
        epsilon = self._noise(len(_TIMES), x[0].numel(), x).repeat(len(first), 1).reshape(x.shape)
        denoiser = e.denoiser(context, start, condition)
        alpha, sigma = (expand(c, x) for c in denoiser.schedule(t))
        error = (denoiser(alpha * x + sigma * epsilon, t) - x).square()
        return (error * (alpha**2 + sigma**2) / sigma**2).mean()

    def _noise(self, rows: int, size: int, like: Tensor) -> Tensor:
        return torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).to(like)


def _row(state: State, i: int) -> State:
    return State(state.z[i : i + 1], state.carried[i : i + 1])


def _phase(phase: Tensor | None, i: int) -> Tensor | None:
    return None if phase is None else phase[i : i + 1]
