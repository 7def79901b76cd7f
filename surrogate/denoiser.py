"""Denoisers: the mean of the data given a noisy state, x̂ = E[x | xₜ].

Everything that samples only needs this one function, so guidance is a denoiser that wraps another, and a Gaussian
with a known answer can stand in for the network (that is how the samplers are tested).

The preconditioning follows Karras et al. 2022 (arXiv:2206.00364, eq. 7), written for a path xₜ = αₜ x + σₜ ε and data
of unit variance, with the network F:

    x̂(xₜ) = c_skip xₜ + c_out F(c_in xₜ, t),
    c_in = 1/√(αₜ² + σₜ²),   c_skip = αₜ/(αₜ² + σₜ²),   c_out = σₜ/√(αₜ² + σₜ²),

so that F always sees unit variance and is asked for unit variance, and the loss weight 1/c_out² makes every noise level
count alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import Schedule

__all__ = ["Denoiser", "GaussianDenoiser", "PreconditionedDenoiser", "expand", "logit_normal"]

Network = Callable[[Tensor, Tensor], Tensor]


def expand(t: Tensor, like: Tensor) -> Tensor:
    """``t (B,)`` as ``(B, 1, …)`` with the number of dimensions of ``like``."""
    return t.reshape(-1, *(1,) * (like.ndim - 1))


class Denoiser(ABC):
    """x̂ = E[x | xₜ] for a schedule.

    ``denoiser(x_t, t)`` takes ``x_t (B, *)`` and ``t (B,)`` and returns the estimate of the data, ``(B, *)``.
    """

    schedule: Schedule

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The posterior mean of the data."""


class GaussianDenoiser(Denoiser):
    """The exact denoiser of data x ~ N(mean, std²), independent in every component."""

    def __init__(self, mean: Tensor, std: Tensor, schedule: Schedule) -> None:
        self.mean, self.std, self.schedule = mean, std, schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (expand(c, x_t) for c in self.schedule(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)


class PreconditionedDenoiser(Denoiser):
    """A network ``F(c_in xₜ, t)`` turned into a denoiser of unit-variance data."""

    def __init__(self, network: Network, schedule: Schedule) -> None:
        self.network, self.schedule = network, schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (expand(c, x_t) for c in self.schedule(t))
        norm = alpha**2 + sigma**2
        c_in, c_skip, c_out = norm.rsqrt(), alpha / norm, sigma * norm.rsqrt()
        return c_skip * x_t + c_out * self.network(c_in * x_t, t)

    def loss(self, x: Tensor, t: Tensor, epsilon: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean of ``weight · ‖x̂ − x‖² / c_out²`` over the batch, at noise ``epsilon`` and times ``t (B,)``."""
        alpha, sigma = (expand(c, x) for c in self.schedule(t))
        x_t = alpha * x + sigma * epsilon
        error = (self(x_t, t) - x).square() * (alpha**2 + sigma**2) / sigma**2
        return (error if weight is None else error * weight).mean()


def logit_normal(n: int, generator: torch.Generator | None = None, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """``n`` training times in (0, 1): sigmoid of a normal variable (Esser et al. 2024, arXiv:2403.03206)."""
    return torch.sigmoid(mean + std * torch.randn(n, generator=generator)).clamp(1e-3, 1 - 1e-3)
