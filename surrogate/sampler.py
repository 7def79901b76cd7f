"""Samplers: deterministic integration of the probability-flow ODE from noise (t = 1) to data (t = 0).

With x̂ the denoiser's estimate and λ = α/σ, the flow is exactly linear between two evaluations (Song et al. 2020,
arXiv:2010.02502; Lu et al. 2022, arXiv:2206.00927):

    d(xₜ/σₜ) = x̂(xₜ, t) dλₜ     ⇒     xₛ/σₛ = xₜ/σₜ + ∫ x̂ dλ .

A sampler is a rule for that integral. `Euler` takes x̂ at the left end (this is DDIM), `Heun` averages both ends,
`AdamsBashforth` extrapolates x̂ from earlier steps at no further cost. All end with an estimate of the data, since
σ₀ = 0.

Near the data λ runs away: over the last interval but one of even times it doubles. Local errors of a second-order rule
then add up to steps⁻² log steps; times that are a little denser there, as they are by default, give steps⁻².

The step ``step(x_t, t, s)`` is the whole of a sampler; the loop is the same for all.
"""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoiser, expand

__all__ = ["SAMPLERS", "AdamsBashforth", "Euler", "Heun", "Sampler"]


class Sampler(ABC):
    """Integrates the flow of ``denoiser`` through ``steps`` intervals.

    Arguments:
        denoiser: the posterior mean and its schedule.
        steps: number of intervals; an interval costs one evaluation of the denoiser (`Heun`: two, but for the last).
        rho: the times are ((1 − i/steps)^rho), denser towards the data for rho > 1.
    """

    def __init__(self, denoiser: Denoiser, steps: int, rho: float = 1.5) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.denoiser, self.steps, self.rho = denoiser, steps, rho

    @property
    def times(self) -> Tensor:
        """``(steps + 1,)``, from 1 to 0."""
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64) ** self.rho

    def __call__(self, noise: Tensor, about: Tensor | None = None, time: float = 1.0) -> Tensor:
        """Turn standard normal ``noise (B, *)`` into samples of the same shape.

        Arguments:
            about: samples ``(B, *)``, about right, to which noise is added up to ``time`` and taken away again (Meng
                et al. 2022, arXiv:2108.01073): what is finer than that noise is drawn anew.
        """
        times = time * self.times.to(noise.device, noise.dtype)
        x_t = self.denoiser.schedule.sigma(times[:1]) * noise
        if about is not None:
            x_t = x_t + self.denoiser.schedule.alpha(times[:1]) * about
        self.start()
        for t, s in pairwise(times):
            x_t = self.step(x_t, t.expand(len(noise)), s.expand(len(noise)))
        return x_t

    def start(self) -> None:  # noqa: B027 - only multi-step rules remember anything
        """Forget the previous sample."""

    @abstractmethod
    def step(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """From time ``t (B,)`` to the earlier-noise time ``s (B,)``."""

    def flow(self, x_t: Tensor, x_hat: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Exact solution from ``t`` to ``s`` for a constant estimate ``x_hat``: xₛ = (σₛ/σₜ) xₜ + (αₛ − αₜ σₛ/σₜ) x̂."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.denoiser.schedule(t), self.denoiser.schedule(s)
        ratio = expand(sigma_s / sigma_t, x_t)
        return ratio * x_t + (expand(alpha_s, x_t) - expand(alpha_t, x_t) * ratio) * x_hat


class Euler(Sampler):
    """First order: x̂ at the start of the interval."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.flow(x_t, self.denoiser(x_t, t), t, s)


class Heun(Sampler):
    """Second order: the mean of x̂ at both ends; the last interval, which ends at σ = 0, is an Euler step."""

    def step(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        first = self.denoiser(x_t, t)
        x_s = self.flow(x_t, first, t, s)
        if bool((self.denoiser.schedule.sigma(s) <= 0).all()):
            return x_s
        return self.flow(x_t, 0.5 * (first + self.denoiser(x_s, s)), t, s)


class AdamsBashforth(Sampler):
    """Multi-step of order 2: x̂ is extrapolated over the interval from this evaluation and the one before.

    One evaluation an interval; the first is an Euler step. The line is drawn in the angle θ = arctan(σ/α), which is
    finite from noise (π/2) to data (0), where λ = cot θ is not: a line in λ would be off by more than Euler's constant
    at the few steps that are taken in practice. Its integral is known,

        ∫ θ dλ = θ cot θ − ln sin θ,

    and at the data, where λ is infinite, what is left of it is the value at θ = 0.
    """

    def start(self) -> None:
        self._last: tuple[Tensor, Tensor] | None = None

    def _angle(self, t: Tensor) -> Tensor:
        alpha, sigma = self.denoiser.schedule(t)
        return torch.atan2(sigma, alpha)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x_hat, theta = self.denoiser(x_t, t), self._angle(t)
        estimate = x_hat
        if self._last is not None:
            before, x_before = self._last
            weight = (_mean_angle(theta, self._angle(s)) - theta) / (theta - before)
            estimate = x_hat + expand(weight, x_t) * (x_hat - x_before)
        self._last = (theta, x_hat)
        return self.flow(x_t, estimate, t, s)


def _mean_angle(t: Tensor, s: Tensor) -> Tensor:
    """Mean of θ over [t, s] with respect to λ = cot θ."""

    def integral(theta: Tensor) -> Tensor:
        return theta / torch.tan(theta) - torch.log(torch.sin(theta))

    mean = (integral(s) - integral(t)) / (1 / torch.tan(s) - 1 / torch.tan(t))
    return torch.where(s > 0, mean, torch.zeros_like(mean))


SAMPLERS: dict[str, type[Sampler]] = {"euler": Euler, "heun": Heun, "ab2": AdamsBashforth}
