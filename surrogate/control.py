"""What a design varies: the fields of the initial condition themselves, or the latents that they are decoded from.

    initial_condition   u = F(u₀ + σ x)     x in training standard deviations, from nought
    latent              u = F(D(z))         z from E(u₀), within the range of the reference latents

F is the map to the feasible set, so that u is what is forecast, returned and verified in either case: latents are a
way to write smooth, plausible fields, not another start of the forecast.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..autoencoder.model import Latent
from .emulator import Emulator
from .feasible import Feasible, Infeasible
from .manifold import FEW, Manifold

__all__ = ["CONTROLS", "Control", "FieldControl", "LatentControl"]


class Control(ABC):
    """A vector x, and the feasible fields u(x) ``(history, C, *space)`` in physical units.

    Arguments:
        emulator, feasible, manifold: the model, the feasible set, and the states that it knows.
        u: the given state ``(history, C, *space)``.
        phase: of its frames ``(history, 4)``; None for models without a calendar.

    Attributes:
        start: x of the given state.
    """

    start: Tensor

    def __init__(
        self, emulator: Emulator, feasible: Feasible, manifold: Manifold, u: Tensor, phase: Tensor | None
    ) -> None:
        self.emulator, self.feasible, self.manifold, self.phase = emulator, feasible, manifold, phase
        self.given = u
        column = (-1, *(1,) * (u.ndim - 2))
        self.scale = feasible.scale.to(u.dtype).reshape(column)
        self.start = self.first()

    @abstractmethod
    def first(self) -> Tensor:
        """x of the given state."""

    @abstractmethod
    def fields(self, x: Tensor) -> Tensor:
        """u(x), differentiable. Raises Infeasible."""

    @abstractmethod
    def retract(self, x: Tensor) -> Tensor | None:
        """The feasible point that x stands for; None where there is none."""

    @abstractmethod
    def tangent(self, x: Tensor, d: Tensor) -> Tensor:
        """A direction ``d`` at the feasible ``x`` without what would leave the bounds."""


class FieldControl(Control):
    """Every cell of every variable and context frame."""

    def first(self) -> Tensor:
        return torch.zeros_like(self.given)

    def fields(self, x: Tensor) -> Tensor:
        return self.feasible(self.given + self.scale * x)

    @torch.no_grad()
    def retract(self, x: Tensor) -> Tensor | None:
        try:
            return (self.fields(x) - self.given) / self.scale
        except Infeasible:
            return None

    def tangent(self, x: Tensor, d: Tensor) -> Tensor:
        return self.feasible.tangent(self.given + self.scale * x, d)


class LatentControl(Control):
    """The autoencoder's latents of every context frame."""

    def first(self) -> Tensor:
        with torch.no_grad():
            self.encoded = self.emulator.autoencoder.encode(self.given, self.phase)
        z = self.encoded.z
        if self.manifold.count < FEW:  # too few to tell a range
            infinite = torch.full_like(z, torch.inf)
            self.lower, self.upper = -infinite, infinite
        else:
            self.lower, self.upper = torch.minimum(self.manifold.least, z), torch.maximum(self.manifold.greatest, z)
        return z

    def fields(self, x: Tensor) -> Tensor:
        return self.feasible(self.emulator.autoencoder.decode(Latent(x, self.encoded.carried), self.phase))

    @torch.no_grad()
    def retract(self, x: Tensor) -> Tensor | None:
        z = x.clamp(self.lower, self.upper)
        try:
            self.fields(z)
        except Infeasible:
            return None
        return z

    def tangent(self, x: Tensor, d: Tensor) -> Tensor:
        return d.masked_fill(((x <= self.lower) & (d < 0)) | ((x >= self.upper) & (d > 0)), 0.0)


CONTROLS: dict[str, type[Control]] = {"initial_condition": FieldControl, "latent": LatentControl}
