"""Exact constraints in closed form: differentiable maps from any tensor to one that obeys a law.

They are meant as the last layer of a decoder: what passes through them conserves to round-off, whatever the
network before them does. Sums are taken in float64, so that float32 fields are as exact as float32 can hold
them.

==========================  =================================================  =============================
constraint                  map                                                nearest?
==========================  =================================================  =============================
mean, budget                shift                                              yes
any few linear functionals  u + W⁻¹Aᵀ(AW⁻¹Aᵀ)⁻¹(b − Au)                         yes
mass of a positive field    softplus, then rescaled (`cones` has the nearest)  no, but smooth
no divergence               û − k(k·û)/|k|² (Leray), or a stream function      the first
mean square (energy)        rescaled about the mean                            yes
values, first frames        overwritten                                        yes
==========================  =================================================  =============================

"Nearest" is in the (area-weighted) mean square. Inequalities are in `cones.py`, nonlinear invariants without a closed
form in `newton.py`, several constraints at once in `chain.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import Axis, Grid
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


def with_budget(u: Tensor, mean: Tensor | float, rate: Tensor, interval: float, weights: Tensor) -> Tensor:
    """Frames whose means follow a known budget: ⟨uₖ⟩ = m₀ + Δ Σ_{j≤k} S_j.

    Args:
        u: Frames (…, T, *space), Δ, 2Δ, …, TΔ after the start.
        mean: m₀, mean at the start, broadcastable to (…).
        rate: S, mean rate of change (sources less sinks, per unit area) over each interval, (…, T).
        interval: Δ.
        weights: As in :func:`weighted_mean`.
    """
    start = torch.as_tensor(mean, dtype=torch.float64, device=u.device)
    return with_mean(u, start[..., None] + interval * rate.to(torch.float64).cumsum(dim=-1), weights)


def with_functionals(u: Tensor, functionals: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Least change after which several linear functionals have given values: Σ aₖ u = bₖ.

    Means over regions, moments, momenta or transports, all at once: only a K × K matrix is solved.

    Args:
        u: Field (…, *dims).
        functionals: a, (K, *dims), few and linearly independent.
        values: b, broadcastable to (…, K).
        weights: Positive, broadcastable to dims: the change is least in Σ w δ²; evenly if None. Area weights change
            cells by what they cover instead of by how many they are.

    Raises:
        ValueError: If shapes disagree, or the functionals depend on each other.
    """
    dims = tuple(functionals.shape[1:])
    if tuple(u.shape[-len(dims) :]) != dims:
        raise ValueError(f"with_functionals: found a field of shape {tuple(u.shape)}, wanted (…, *{dims})")
    A = functionals.to(u.device, torch.float64)
    w = torch.ones(dims, dtype=torch.float64, device=u.device)
    w = w if weights is None else w * weights.to(w)
    lifted = (A / w).flatten(1)
    A = A.flatten(1)
    gram = A @ lifted.T
    scale = gram.diagonal().sqrt()
    if not torch.linalg.cond(gram / (scale[:, None] * scale)) < 1e12:
        raise ValueError(
            f"with_functionals: found {len(A)} functionals that depend on each other, wanted them independent"
        )
    x = u.to(torch.float64)
    for _ in range(2):  # the second time takes away the round-off of the first
        missing = values.to(x) - x.flatten(-len(dims)) @ A.T
        x = x + (torch.linalg.solve(gram, missing.unsqueeze(-1)).squeeze(-1) @ lifted).unflatten(-1, dims)
    return x.to(u.dtype)


def with_mean_square(u: Tensor, value: Tensor | float, weights: Tensor) -> Tensor:
    """Field of given ⟨u²⟩ and unchanged ⟨u⟩, rescaled about its mean: an energy or enstrophy, held in closed form.

    Args:
        u: Field (…, *space), not constant.
        value: Wanted ⟨u²⟩, above ⟨u⟩², broadcastable to (…).
        weights: As in :func:`weighted_mean`.

    Raises:
        ValueError: If the value is not above ⟨u⟩², or the field is constant.
    """
    x = u.to(torch.float64)
    mean = weighted_mean(x, weights)
    anomaly = x - _expand(mean, weights)
    variance = weighted_mean(anomaly**2, weights)
    wanted = torch.as_tensor(value, dtype=torch.float64, device=u.device) - mean**2
    if not bool((wanted > 0).all() and (variance > 0).all()):
        raise ValueError(
            f"with_mean_square: found a wanted variance ⟨u²⟩ − ⟨u⟩² of {wanted.min():g} and one of {variance.min():g}, "
            "wanted both positive (a larger value, or a field that is not constant)"
        )
    return (_expand(mean, weights) + anomaly * _expand((wanted / variance).sqrt(), weights)).to(u.dtype)


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


def solenoidal(velocity: Tensor, grid: Grid) -> Tensor:
    """Divergence-free part of ``velocity (…, 2, y, x)`` on a periodic plane, its mean flow included.

    This is the orthogonal (Leray) projection û − k (k·û)/|k|², so it never takes a field further from a
    divergence-free truth. k is the wavenumber of the discrete derivative, nought for a Nyquist mode: with |k|² of the
    Laplacian instead, applying it twice would not be applying it once.
    """
    if grid.ndim != 2 or not all(grid.periodic):
        raise ValueError(f"solenoidal: found the grid ({grid}), wanted two periodic axes (y, x)")
    spectrum = torch.fft.rfft2(velocity.double())
    ky, kx = (_wavenumbers(axis, half) for axis, half in zip(grid.axes, (False, True), strict=True))
    k = torch.stack([kx.expand(len(ky), -1), ky[:, None].expand(-1, len(kx))]).to(velocity.device)
    square = k.square().sum(dim=0)
    along = (k * spectrum).sum(dim=-3, keepdim=True) / torch.where(square > 0, square, 1.0)
    free: Tensor = torch.fft.irfft2(spectrum - k * along, s=grid.shape)
    return free.to(velocity.dtype)


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


def with_values(u: Tensor, where: Tensor, values: Tensor | float) -> Tensor:
    """Dirichlet values: `values` where `where` is True, u elsewhere; no gradient reaches an overwritten u.

    Args:
        u: Field (…, *space).
        where: Boolean, broadcastable to u, e.g. :func:`sides`.
        values: Broadcastable to u.
    """
    if where.dtype != torch.bool:
        raise TypeError(
            f"with_values: found a mask of type {where.dtype}, wanted torch.bool (True where values are given)"
        )
    return torch.where(where, torch.as_tensor(values, dtype=u.dtype, device=u.device), u)


def with_initial(u: Tensor, first: Tensor, dim: int) -> Tensor:
    """A series whose first frames are those given.

    Args:
        u: Frames along `dim`.
        first: As many frames as are known along `dim`, else of u's shape.
        dim: Dimension of time.
    """
    n, T = first.shape[dim], u.shape[dim]
    if n > T:
        raise ValueError(f"with_initial: found {n} known frames for a series of {T}, wanted no more than there are")
    return torch.cat((first.to(u), u.narrow(dim, n, T - n)), dim=dim)


def sides(grid: Grid, names: Sequence[str] | None = None, width: int = 1) -> Tensor:
    """Mask (*space) of the outermost `width` nodes of bounded axes; of those axes that are named, or of all."""
    out = torch.zeros(grid.shape, dtype=torch.bool)
    for i, axis in enumerate(grid.axes):
        if not axis.periodic and (names is None or axis.name in names):
            out.movedim(i, 0)[[*range(width), *range(-width, 0)]] = True
    return out


def _wavenumbers(axis: Axis, half: bool) -> Tensor:
    make = torch.fft.rfftfreq if half else torch.fft.fftfreq
    k: Tensor = make(axis.size, d=axis.spacing, dtype=torch.float64)
    if axis.size % 2 == 0:
        k[axis.size // 2] = 0
    return 2 * torch.pi * k


def _weights(u: Tensor, weights: Tensor) -> Tensor:
    d = weights.ndim
    if d == 0 or tuple(u.shape[-d:]) != tuple(weights.shape):
        raise ValueError(f"found a field of shape {tuple(u.shape)}, wanted (…, *{tuple(weights.shape)}), the weights'")
    return weights.to(u.device, torch.float64)


def _expand(m: Tensor, weights: Tensor) -> Tensor:
    return m[(..., *(None,) * weights.ndim)]
