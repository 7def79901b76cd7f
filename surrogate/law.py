"""The equation that a model's data obeys: what its spec names, on its grid, at its parameters or at others."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..datasets.spec import FieldSpec
from ..physics.equation import Equation, equation

__all__ = ["law", "solved"]


def law(spec: FieldSpec, parameters: Mapping[str, float] | None = None) -> Equation:
    """The equation of a spec, with some of its ``parameters`` replaced.

    Raises ValueError where the spec names no equation, or the equation's data came without such a parameter.
    """
    if spec.equation is None:
        raise ValueError(
            "found a spec that names no equation, wanted one. Usual fix: train on data that says so in its attribute "
            "`equation`, as `lapse simulate` writes it, or set data.equation"
        )
    given = dict(parameters or {})
    if unknown := sorted(set(given) - set(spec.parameters)):
        known = ", ".join(f"{k}={v:g}" for k, v in spec.parameters.items()) or "none"
        raise ValueError(f"{spec.equation}: found the parameters {', '.join(unknown)}, wanted some of {known}")
    return equation(spec.equation, spec.grid, **{**spec.parameters, **given})


def solved(law: Equation, spec: FieldSpec, u: Tensor, steps: int) -> Tensor:
    """The frames ``(B, steps, C, *space)`` of a spec's variables after states ``u (B, C, *space)``, in float64."""
    order = [spec.names.index(n) for n in law.variables]
    back = [law.variables.index(n) for n in spec.names]
    w, frames = u[:, order].double(), []
    for _ in range(steps):
        w = law.advance(w, spec.interval)
        frames.append(w[:, back])
    return torch.stack(frames, dim=1)
