"""Audits: by how much a decoded frame breaks its equation, given the frame before.

    r(u₀, u₁) = ‖(u₁ − Φ_Δ(u₀)) / σ‖ / ‖(u₁ − ⟨u₁⟩) / σ‖

Φ_Δ is the solver's map over the frame interval, ⟨·⟩ the area mean, ‖·‖ the area-weighted root mean square over cells
and variables, and σ the training data's standard deviation of a variable. It is the defect (`lapse.physics.residual`)
in white norm, since that is what sees another viscosity, over the frame's own amplitude, so that a field that is shrunk
does not look better.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.spec import FieldSpec
from .law import law

__all__ = ["Audit", "nearest"]


class Audit:
    """Measures residuals of decoded neighbours.

    Arguments:
        spec: what the fields are; it names the equation.
        sigma: standard deviations of the variables, ``(C,)``.
        parameters: of the equation, where they are not those of ``spec``.
        share: of the frames that are to be audited, in (0, 1]; the nearest 1/n is taken.

    Raises ValueError for a spec without an equation, for other variables than the equation's, and for a share beyond
    (0, 1].
    """

    def __init__(
        self, spec: FieldSpec, sigma: Tensor, parameters: Mapping[str, float] | None = None, share: float = 1.0
    ) -> None:
        if spec.equation is None:
            raise ValueError(
                "certify: found a model whose spec names no equation, wanted one: there is no law to audit by. Usual "
                "fix: leave certify out, or train on data that says what it obeys (attribute `equation`)"
            )
        if not 0 < share <= 1:
            raise ValueError(f"certify: found the share {share:g}, wanted one above 0 and at most 1 (True: all frames)")
        self.law = law(spec, parameters)
        if sorted(self.law.variables) != sorted(spec.names) or spec.masks:
            found = ", ".join(spec.names) + (" with masks" if spec.masks else "")
            raise ValueError(f"certify: found {found}, wanted {self.law.name}'s {', '.join(self.law.variables)} alone")
        self.order = [spec.names.index(v) for v in self.law.variables]
        self.interval, self.every = spec.interval, max(1, round(1 / share))
        self.sigma = sigma.detach().reshape(-1, *(1,) * spec.grid.ndim)[self.order]
        weights = spec.grid.area_weights()
        self.weights = (weights / weights.mean()).to(self.sigma)

    @property
    def share(self) -> float:
        """Share of the frames that is audited."""
        return 1 / self.every

    def audited(self, members: NDArray[Any], steps: int) -> NDArray[np.bool_]:
        """Which leads of which members are audited, ``(len(members), steps)``: every n-th, members taking turns."""
        chosen: NDArray[np.bool_] = (np.arange(steps) + np.asarray(members)[:, None]) % self.every == 0
        return chosen

    @torch.no_grad()
    def residual(self, u0: Tensor, u1: Tensor) -> Tensor:
        """r of pairs ``(B, C, *space)`` in physical units, ``(B,)``; NaN where a frame is not finite."""
        u0, u1 = u0[:, self.order], u1[:, self.order]
        weights, sigma = self.weights.to(u1), self.sigma.to(u1)
        defect = (u1 - self.law.advance(u0, self.interval)) / sigma
        away = (u1 - (weights * u1).mean(dim=tuple(range(2, u1.ndim)), keepdim=True)) / sigma
        a, b = ((weights * x.square()).flatten(1).mean(dim=1) for x in (defect, away))
        return (a / b.clamp(min=torch.finfo(b.dtype).tiny)).sqrt()


def nearest(audited: NDArray[np.bool_]) -> NDArray[np.intp]:
    """For every lead of a member ``(members, steps)`` the position of the audited one nearest to it, of two the
    earlier."""
    lead = np.arange(audited.shape[1])
    away = np.abs(lead[:, None] - lead[None, :])[None] + np.where(audited, 0, len(lead) + 1)[:, None, :]
    found: NDArray[np.intp] = away.argmin(axis=2)
    return found
