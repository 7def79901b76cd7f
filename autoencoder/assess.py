"""What an autoencoder keeps: the figures that stand in every model card.

Errors are variance-scaled (VRMSE: root mean square error over the standard deviation about the area mean), by variable,
by spectral band, and beside a principal component analysis with as many numbers, fitted on the same training frames.
Where the equation is known the residual floor R(D(E u))/R(u) is given too: no physics in latent space can do better
than that.
"""

import time
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..datasets.spec import FieldSpec
from ..physics.equation import Equation
from ..physics.spectrum import band_power
from .model import Autoencoder

__all__ = ["assess", "pca_error", "residual_floor", "vrmse"]

_BATCH = 64


def vrmse(u: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """VRMSE of each variable: ``u, truth (N, C, *space)``, ``weights (C, *space)`` -> ``(C,)``, float64.

        √( Σ⟨(u − truth)²⟩ / Σ⟨(truth − ⟨truth⟩)²⟩ ),  ⟨·⟩ the weighted area mean, Σ over frames (arXiv:2412.00568)
    """
    space = tuple(range(2, u.ndim))
    u, truth = u.double(), truth.double()
    norm = weights.sum(dim=tuple(range(1, weights.ndim)))
    mean = ((weights * truth).sum(dim=space) / norm).reshape(*truth.shape[:2], *(1,) * len(space))
    error = (weights * (u - truth).square()).sum(dim=(0, *space))
    return (error / (weights * (truth - mean).square()).sum(dim=(0, *space))).sqrt()


def pca_error(train: Tensor, test: Tensor, weights: Tensor, count: int) -> Tensor:
    """VRMSE of each variable on ``test`` after keeping ``count`` principal components of ``train``.

    The components are of all variables together.
    Fields ``(N, C, *space)`` are normalised; components are orthonormal in the weighted inner product.
    """
    root = weights.double().sqrt().flatten()
    mean = train.double().mean(dim=0)
    centred = (train.double() - mean).flatten(1) * root
    count = min(count, min(centred.shape))
    if centred.shape[0] < centred.shape[1]:
        value, left = torch.linalg.eigh(centred @ centred.T)
        modes = centred.T @ left[:, -count:] / value[-count:].clamp(min=1e-12 * float(value[-1])).sqrt()
    else:
        modes = torch.linalg.eigh(centred.T @ centred)[1][:, -count:]
    kept = ((test.double() - mean).flatten(1) * root) @ modes @ modes.T
    safe = torch.where(root > 0, root, 1.0)
    return vrmse((kept / safe).reshape(test.shape) + mean, test, weights)


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, u: Tensor, phase: Tensor) -> Tensor:
    """D(E(u)) in physical units, in batches."""
    parts = []
    for i in range(0, len(u), _BATCH):
        p = phase[i : i + _BATCH]
        parts.append(autoencoder.decode(autoencoder.encode(u[i : i + _BATCH], p), p))
    return torch.cat(parts)


@torch.no_grad()
def assess(
    autoencoder: Autoencoder,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    equation: Equation | None = None,
    pairs: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Figures of an autoencoder, JSON-safe.

    Arguments:
        train, test: frames ``(N, C, *space)`` in physical units, and their phases ``(N, 4)``.
        equation: None where it is not known.
        pairs: consecutive frames ``(N, 2, C, *space)`` and their phases ``(N, 2, 4)``, for the residual floor.

    Returns:
        ``vrmse`` and ``pca`` by variable; ``bands``: relative error in the low, middle and high wavenumbers;
        ``compression``; ``latent_numbers``; ``encode_ms`` and ``decode_ms`` per frame; ``residual_floor`` if there are
        an equation and pairs.
    """
    spec: FieldSpec = autoencoder.spec
    u, phase = test
    decoded = reconstruct(autoencoder, u, phase)
    x, y = autoencoder.normalise(decoded, phase), autoencoder.normalise(u, phase)
    numbers = prod(autoencoder.latent_shape)
    weights = autoencoder.heads.weights
    found: dict[str, Any] = {
        "frames": len(u),
        "compression": autoencoder.network.compression,
        "latent_numbers": numbers,
        "vrmse": _named(spec, vrmse(x, y, weights)),
        "pca": _named(spec, pca_error(autoencoder.normalise(*train), y, weights, numbers)),
        "bands": {},
    }
    for i, name in enumerate(spec.names):
        if name not in spec.masks:  # a spectrum needs every cell
            error, power = (band_power(f[:, i], spec.grid).mean(dim=0) for f in (x - y, y))
            found["bands"][name] = (error / power.clamp(min=1e-30)).sqrt().tolist()
    found |= _times(autoencoder, u[:_BATCH], phase[:_BATCH])
    if equation is not None and pairs is not None:
        frames = reconstruct(autoencoder, pairs[0].flatten(0, 1), pairs[1].flatten(0, 1))
        found["residual_floor"] = residual_floor(equation, pairs[0], frames.reshape(pairs[0].shape), spec.interval)
    return found


def residual_floor(equation: Equation, u: Tensor, decoded: Tensor, interval: float) -> dict[str, float]:
    """Root mean square defect of consecutive frames, over that of the field: of the data, of D(E(·)), and their ratio.

    Arguments:
        u, decoded: pairs of consecutive frames ``(N, 2, C, *space)`` in physical units.
        interval: between the two.
    """

    def relative(v: Tensor) -> float:
        defect = equation.residual(v[:, 0].double(), v[:, 1].double(), interval)
        return float(defect.square().mean().sqrt() / v.double().square().mean().sqrt())

    data, reconstruction = relative(u), relative(decoded)
    return {"data": data, "reconstruction": reconstruction, "ratio": reconstruction / max(data, 1e-30)}


def _times(autoencoder: Autoencoder, u: Tensor, phase: Tensor) -> dict[str, float]:
    """Milliseconds per frame of a batch, the least of five runs."""
    encode, decode = [], []
    for _ in range(5):
        start = time.perf_counter()
        latent = autoencoder.encode(u, phase)
        middle = time.perf_counter()
        autoencoder.decode(latent, phase)
        encode.append(middle - start)
        decode.append(time.perf_counter() - middle)
    return {"encode_ms": 1e3 * min(encode) / len(u), "decode_ms": 1e3 * min(decode) / len(u)}


def _named(spec: FieldSpec, values: Tensor) -> dict[str, float]:
    return dict(zip(spec.names, values.tolist(), strict=True))
