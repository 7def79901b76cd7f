"""Exact constraints: closed-form, differentiable maps from any tensor to one that obeys a law.

They are meant as the last layer of a decoder: what passes through them conserves to round-off, whatever the
network before them does. Sums are taken in float64, so that float32 fields are as exact as float32 can hold
them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import Grid
from .operators import derivative, div, inverse_laplacian


def weighted_mean(u: Tensor, weights: Tensor) -> Tensor:
    """Σ w u / Σ w over the trailing axes, in float64: (…, *space) -> (…).

    Args:
        u: Field (…, *space).
        weights: Non-negative weights (*space), e.g. ``Grid.area_weights()``, times a mask if there is one.
    """
    w = _weights(u, weights)
    dims = tuple(range(-weights.ndim, 0))
    return (u.to(torch.float64) * w).sum(dim=dims) / w.sum()


def with_mean(u: Tensor, mean: Tensor | float, weights: Tensor) -> Tensor:
    """Shift a field to a given weighted mean: u + (mean − ⟨u⟩).

    Args:
        u: Field (…, *space).
        mean: Wanted mean, broadcastable to (…).
        weights: As in :func:`weighted_mean`.
    """
    wanted = torch.as_tensor(mean, dtype=torch.float64, device=u.device)
    shift = wanted - weighted_mean(u, weights)
    return (u.to(torch.float64) + _expand(shift, weights)).to(u.dtype)


def with_mass(u: Tensor, mass: Tensor | float, weights: Tensor, scale: float = 1.0) -> Tensor:
    """Positive field of given mean: p · mass / ⟨p⟩ with p = scale · softplus(u / scale).

    Where u is well above `scale`, p is u; the rescaling keeps the sign, so positivity and mass hold together.

    Args:
        u: Field (…, *space), of any sign.
        mass: Wanted weighted mean, positive, broadcastable to (…).
        weights: As in :func:`weighted_mean`.
        scale: Width of the bend of softplus, in units of u; a few per cent of the field's typical value is
        good.

    Raises:
        ValueError: If a mass or the scale is not positive.
    """
    wanted = torch.as_tensor(mass, dtype=torch.float64, device=u.device)
    if not scale > 0 or not bool((wanted > 0).all()):
        raise ValueError(f"with_mass: found scale={scale} and a least mass of {wanted.min():g}, wanted both positive")
    p = scale * F.softplus(u.to(torch.float64) / scale)
    out = p * _expand(wanted / weighted_mean(p, weights), weights)
    return out.to(u.dtype).clamp_min(torch.finfo(u.dtype).tiny)  # float32 may round a tiny value to nought


def from_stream_function(psi: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """Velocity (u, v) = (−∂ψ/∂y, ∂ψ/∂x): (…, y, x) -> (…, 2, y, x), free of divergence.

    :func:`divergence` with the same `accuracy` is zero to round-off, because the discrete derivatives
    commute.
    """
    if grid.ndim != 2:
        raise ValueError(f"from_stream_function: found a grid with axes {grid.names}, wanted two axes (y, x)")
    y, x = grid.names
    p = psi.to(torch.float64)
    u, v = -derivative(p, grid, y, 1, accuracy), derivative(p, grid, x, 1, accuracy)
    return torch.stack((u, v), dim=-3).to(psi.dtype)


def from_vorticity(omega: Tensor, grid: Grid) -> Tensor:
    """Velocity of the vorticity ω − ⟨ω⟩ on a periodic grid: (…, y, x) -> (…, 2, y, x), free of divergence."""
    return from_stream_function(inverse_laplacian(omega.to(torch.float64), grid), grid).to(omega.dtype)


def divergence(v: Tensor, grid: Grid, accuracy: int | None = None) -> Tensor:
    """∇·v with the operator that :func:`from_stream_function` is free of: (…, 2, y, x) -> (…, y, x)."""
    return div(v, grid, accuracy)


def masked(u: Tensor, mask: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    """u where the mask is True, `fill` elsewhere; gradients do not pass the mask, nor does NaN.

    Args:
        u: Field (…, *space).
        mask: Boolean, broadcastable to u, True where the field is valid.
        fill: Value outside the mask, broadcastable to u.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"masked: found a mask of type {mask.dtype}, wanted torch.bool (True where valid)")
    return torch.where(mask, u, torch.as_tensor(fill, dtype=u.dtype, device=u.device))


def _weights(u: Tensor, weights: Tensor) -> Tensor:
    d = weights.ndim
    if d == 0 or tuple(u.shape[-d:]) != tuple(weights.shape):
        raise ValueError(f"found a field of shape {tuple(u.shape)}, wanted (…, *{tuple(weights.shape)}), the weights'")
    return weights.to(u.device, torch.float64)


def _expand(m: Tensor, weights: Tensor) -> Tensor:
    return m[(..., *(None,) * weights.ndim)]
