"""A window of frames as a function of independent standard normal numbers, and what they must be to fit observations.

    x = (x₀, c, n₁ … , e₀ …) ~ N(0, I)
    z₀ = climate(x₀),   carried means from c,   zₖ₊₁ = step(zₖ, nₖ₊₁),   uₖ = D(zₖ) + σ(s) (coarse eₖ + white wₖ)

Everything that a forecast draws is a control here, and so is its start: model error is not left out (weak-constraint
4D-Var). The white part wₖ of the decoder's error needs no search: given the rest it is Gaussian and independent from
cell to cell.

A sample of the posterior of x given y = H u + η is the minimum of a perturbed cost (randomised maximum likelihood:
Kitanidis 1995, doi:10.1029/95WR00945; Oliver, He & Reynolds 1996; an ensemble of data assimilations),

    ½ |x − x̂|² + ½ Σ (H u(x) − y − η̂ + H σ ŵ)² / (r² + σ²),        x̂, ŵ ~ N(0, I),  η̂ ~ N(0, r²),

with the white part then w = ŵ + σ/(r² + σ²) (y + η̂ − H u(x) − H σ ŵ). It is exact where u is linear, and close where
the window is short against the growth of errors. For r = 0 the sample goes through the observations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..autoencoder.error import DecoderError
from .climate import Climate
from .emulator import Emulator, Mode, State
from .minimise import Found, Inverse, minimise

__all__ = ["Observed", "Prior", "Window"]

_FLOOR = 1e-3  # standard deviations: the least error of an observation in the cost, which must stay finite
_FIT = 1e-5  # standard deviations: how close the heads are brought to exact observations before these are set
_ROUNDS = 50
_STEP = 0.05  # of a difference, in standard deviations of the prior
_BATCH = 64  # differences computed together


@dataclass
class Observed:
    """``value``, ``error`` (a standard deviation) and ``where`` (bool), each ``(T, C, *space)``; in physical units."""

    value: Tensor
    error: Tensor
    where: Tensor


@dataclass
class Prior:
    """What a member draws: x̂ ``(B, size)``, ŵ and η̂/r ``(B, T, C, *space)``, all standard normal."""

    x: Tensor
    white: Tensor
    error: Tensor


class Window:
    """``frames`` consecutive frames of an emulator.

    Arguments:
        frames: at least the emulator's history.
        mode: of the steps.
        phase: ``(frames, 4)`` of the year and day; None for models without a calendar.
    """

    def __init__(self, emulator: Emulator, climate: Climate, frames: int, mode: Mode, phase: Tensor | None) -> None:
        self.emulator, self.frames, self.mode = emulator, frames, mode
        own = next(emulator.parameters())
        self.climate = climate.to(own)
        self.phase = None if phase is None else phase.to(own)
        self.steps = frames - emulator.history
        self.noise = emulator.noise_size(mode)
        self.channels, *self.space = emulator.autoencoder.spec.shape
        self.model = emulator.error if emulator.error is not None else _plain_error(emulator, self.climate.error)
        self.coarse = sum(self.model.sizes[1:])
        self.mixture = (
            torch.softmax(self.model.mixture.detach(), dim=1)[:, 0].sqrt().reshape(-1, *[1] * len(self.space))
        )
        self.sizes = [self.climate.size, self.channels, self.steps * self.noise, frames * self.coarse]
        column = (-1, *[1] * len(self.space))
        self.std = emulator.autoencoder.normaliser.std.reshape(column)
        self.scale = self._usual_scale(own)

    @property
    def size(self) -> int:
        """Control numbers of a member."""
        return sum(self.sizes)

    def draw(self, generators: Sequence[torch.Generator]) -> Prior:
        """A prior draw a member, each from its own generator."""
        shape = (self.frames, self.channels, *self.space)
        parts = []
        for g in generators:
            parts.append([torch.randn(n, generator=g) for n in (self.size, prod(shape), prod(shape))])
        x, white, error = (torch.stack(p).to(self.std) for p in zip(*parts, strict=True))
        return Prior(x, white.reshape(-1, *shape), error.reshape(-1, *shape))

    # forward

    def states(self, x: Tensor) -> Iterator[State]:
        """The latent state of every frame, from controls ``(B, size)``."""
        x0, xc, noise, _ = torch.split(x, self.sizes, dim=1)
        c, history = self.climate, self.emulator.history
        z = c(x0).reshape(len(x), history, *self.emulator.latent_shape)
        carried = c.carried_mean + c.carried_std * xc.double()
        for k in range(history):
            yield State(z[:, : k + 1], carried)
        state = State(z, carried)
        draws = noise.reshape(len(x), self.steps, self.noise)
        for k in range(self.steps):
            phase = self._phase(history - 1 + k, len(x))
            state = self.emulator.advance(state, draws[:, k] if self.noise else None, phase, self.mode)
            yield state

    def decode(self, k: int, state: State, x: Tensor, white: Tensor | None = None) -> Tensor:
        """Frame k ``(B, C, *space)`` in physical units; ``white (B, C, *space)`` is the white part wₖ."""
        return self._headed(self._body(state), k, state, x, white)

    def _body(self, state: State) -> Tensor:
        return self.emulator.autoencoder.network.decode(state.latent.z)

    def _headed(self, body: Tensor, k: int, state: State, x: Tensor, white: Tensor | None) -> Tensor:
        """As `Autoencoder.decode`, from what its network gave."""
        a = self.emulator.autoencoder
        coarse = torch.split(x, self.sizes, dim=1)[3].reshape(len(x), self.frames, -1)[:, k]
        none = torch.zeros(len(x), self.model.sizes[0]).to(coarse)
        error = self.model.draw(torch.cat([none, coarse], dim=1))
        if white is not None:
            error = error + self.mixture * white
        v = body + self.scale[k] * error
        if a.mask is not None:
            v = v * a.mask
        u: Tensor = a.heads(a.normaliser.inverse(v, self._phase(k, len(x))), state.carried)
        return u

    def _phase(self, k: int, batch: int) -> Tensor | None:
        return None if self.phase is None else self.phase[k].expand(batch, 4)

    # the decoder's error

    def _usual_scale(self, own: Tensor) -> Tensor:
        """Root mean square σ(s) over a few states of the climate, for every frame."""
        x = torch.randn(16, self.climate.size, generator=torch.Generator().manual_seed(0)).to(own)
        with torch.no_grad():
            z = self.climate(x).reshape(16, -1, *self.emulator.latent_shape)[:, -1]
            scale = self.model.scale(z).square().mean(dim=0).sqrt()
        return scale.expand(self.frames, *scale.shape).clone()

    @torch.no_grad()
    def linearise(self, x: Tensor) -> None:
        """Take σ(s) from the states of one member ``(1, size)``."""
        self.scale = torch.cat([self.model.scale(state.latent.z) for state in self.states(x)])

    # the search

    def fit(
        self, observed: Observed, prior: Prior, start: Tensor, evaluations: int, tolerance: float,
        inverse: Inverse | None = None,
    ) -> Found:  # fmt: skip
        """The controls that minimise the cost, for every member of ``prior``, from ``start (B, size)``."""
        target, variance = self._target(observed, prior)
        seen = observed.where.flatten(1).any(dim=1).tolist()

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                at = x.detach().requires_grad_(True)
                cost = 0.5 * (at - prior.x).square().sum(dim=1)
                for k, state in enumerate(self.states(at)):
                    if seen[k]:
                        r = (self.decode(k, state, at) - target[:, k]) / self.std
                        r = torch.where(observed.where[k], r, 0.0)
                        cost = cost + 0.5 * (r.square() / variance[k]).flatten(1).sum(dim=1)
                (gradient,) = torch.autograd.grad(cost.sum(), at)
            return cost.detach(), gradient

        return minimise(function, start, evaluations, tolerance, inverse)

    @torch.no_grad()
    def curvature(self, observed: Observed, x: Tensor) -> Inverse:
        """The inverse of I + JᵀJ, with J the derivative of the misfits by x₀ about the member ``x (1, size)``.

        Differences in as many directions as there are latents; for the other controls, of which each does little, it
        is the identity.
        """
        zero = torch.zeros_like(observed.value)[None]
        _, variance = self._target(observed, Prior(x, zero, zero))
        weight = variance.rsqrt() / self.std
        count = self.climate.size
        base, columns = self._seen(observed, x, weight), []
        for i in range(0, count, _BATCH):
            rows = torch.arange(i, min(i + _BATCH, count), device=x.device)
            moved = x.repeat(len(rows), 1)
            moved[torch.arange(len(rows)), rows] += _STEP
            columns.append((self._seen(observed, moved, weight) - base).double() / _STEP)
        J = torch.cat(columns)
        H = torch.eye(count, dtype=torch.float64, device=x.device) + J @ J.T
        whole = torch.linalg.inv(H).to(x)
        return lambda q: torch.cat([q[:, :count] @ whole, q[:, count:]], dim=1)

    def _seen(self, observed: Observed, x: Tensor, weight: Tensor) -> Tensor:
        """Weighted fields at all observations, ``(B, count)``."""
        found = [
            (self.decode(k, state, x) * weight[k])[:, observed.where[k]]
            for k, state in enumerate(self.states(x))
            if bool(observed.where[k].any())
        ]
        return torch.cat(found, dim=1)

    def _target(self, observed: Observed, prior: Prior) -> tuple[Tensor, Tensor]:
        """What the fields without their white part are to be near, and the variance of the difference, normalised."""
        white = self.mixture * self.scale
        r = observed.error / self.std
        target = observed.value + self.std * (r * prior.error - white * prior.white)
        return torch.where(observed.where, target, 0.0), r.square() + white.square() + _FLOOR**2

    @torch.no_grad()
    def fields(self, x: Tensor, observed: Observed, prior: Prior) -> Iterator[tuple[State, Tensor]]:
        """Every frame's state and fields, the white part conditioned on the observations; exact ones are met exactly.

        The heads act on the whole field, so that conditioning and heads are applied in turn until both hold.
        """
        amplitude = self.mixture * self.scale
        for k, state in enumerate(self.states(x)):
            w, where = prior.white[:, k], observed.where[k]
            body, r = self._body(state), observed.error[k] / self.std
            u = self._headed(body, k, state, x, w)
            if bool(where.any()):
                gain = amplitude[k].square() / (r.square() + amplitude[k].square() + _FLOOR**2)
                exact = where & (observed.error[k] == 0)
                gain = torch.where(exact, torch.ones_like(gain), gain)
                goal = observed.value[k] + observed.error[k] * prior.error[:, k]
                wanted = u + torch.where(where, gain * (goal - u), 0.0)
                for _ in range(_ROUNDS):
                    off = torch.where(where, (wanted - u) / self.std, 0.0)
                    if float(off.abs().max()) <= _FIT:
                        break
                    w = w + off / amplitude[k].clamp(min=1e-6)
                    u = self._headed(body, k, state, x, w)
                u = torch.where(exact, observed.value[k], u)
            yield state, u


def _plain_error(emulator: Emulator, error: Tensor) -> DecoderError:
    """For a model whose decoder error was not trained: of the same size everywhere, spread evenly over the scales."""
    model = DecoderError(emulator.autoencoder).to(error)
    level = error.clamp(1e-4, 0.9)
    with torch.no_grad():
        model.amplitude.conv.get_parameter("bias").copy_(torch.logit(level))
    return model
