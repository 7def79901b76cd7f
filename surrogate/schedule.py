"""Noise schedules: the path between data and noise.

    xₜ = αₜ x + σₜ ε,      ε ~ N(0, I),     t ∈ [0, 1],   t = 0 the data, t = 1 (almost) pure noise

A schedule is just the two functions α and σ. `RectifiedFlow` is the straight path of Liu et al. 2022 (arXiv:2209.03003)
and Lipman et al. 2022 (arXiv:2210.02747); `VariancePreserving` keeps αₜ² + σₜ² = 1.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["RectifiedFlow", "Schedule", "VariancePreserving"]


class Schedule(ABC):
    """The law of xₜ given x."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """αₜ, same shape as ``t``; α₀ = 1, falling."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """σₜ, same shape as ``t``; rising, σ₁ > 0."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha(t), self.sigma(t)


class RectifiedFlow(Schedule):
    """αₜ = 1 − t, σₜ = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


class VariancePreserving(Schedule):
    """αₜ = cos(½πt), σₜ = sin(½πt) (the trigonometric path of arXiv:2410.11081)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * torch.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * torch.pi * t)
