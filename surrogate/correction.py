"""Physics that the networks never saw: the effect of other parameters, added to every frame.

For the latents z₀ of a frame and z₁ of the model's next one, with D the decoder, N the normalisation and Φ_θ the
solver's map over the frame interval at parameters θ, the model trained at θ is made to forecast at θ′ by

    δ = P W N [ Φ_θ′(D(z₀)) − Φ_θ(D(z₀)) ]        what the change of parameters does to the next frame
    z₁ ← z₁ + K δ                                   one linear step, at the end of the frame

W = (1 + |k|²/k_s²)^(−1/2) keeps high wavenumbers from ruling, and P takes the first modes of an orthonormal cosine
basis on the patch of each latent cell, so that δ lives on the latent grid. K is one convolution, trained to turn a
change of P W N D into the smallest change of z that makes it: a damped Gauss–Newton step that is paid for in training;
for a linear decoder it is known in closed form (`gain`). It knows neither the equation nor its parameters.

Being a difference, δ leaves out whatever solver and networks disagree about: at θ′ = θ nothing changes, where a
correction towards Φ_θ(D(z₀)) itself takes away spread and accuracy, since the solver knows nothing of what the latents
lost (docs/decisions/0007). A frame costs a decode and two runs of the solver more.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.blocks import Conv, ResidualBlock, dct_patch_basis, space_to_depth
from ..autoencoder.model import Autoencoder, Latent
from ..physics.equation import Equation
from .gain import SpectralGain

__all__ = ["Correction"]

SMOOTHING = 4.0  # k_s, in periods of the longest axis


class Correction(nn.Module):
    """The gain K and the projection P W N of what it is fed with.

    Arguments:
        autoencoder: of the model, on a grid whose axes are periodic.
        modes: cosine modes kept of each patch and variable.

    Raises ValueError for a grid with bounded axes.
    """

    scale: Tensor
    basis: Tensor
    smoothing: Tensor

    def __init__(self, autoencoder: Autoencoder, modes: int = 6) -> None:
        super().__init__()
        grid, self.channels = autoencoder.spec.grid, len(autoencoder.spec.names)
        if not all(grid.periodic):
            raise ValueError(f"correction: found the grid ({grid}), wanted periodic axes only")
        c, *latent = autoencoder.latent_shape
        self.factor = tuple(n // m for n, m in zip(grid.shape, latent, strict=True))
        basis = dct_patch_basis(self.factor)[:modes].flatten(1)
        size = len(basis) * self.channels
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("smoothing", smoothing(grid.shape, [a.length for a in grid.axes]), persistent=False)
        self.register_buffer("scale", torch.ones(size, *(1,) * len(latent)))
        self.linear = is_linear(autoencoder)
        self.gain: nn.Module
        if self.linear:
            self.gain = SpectralGain(size, c, latent)
        else:
            self.gain = Conv(size, c, grid.periodic, kernel=5, zero=True, bias=False)  # no change, no step
        self.config: dict[str, Any] = {"modes": modes}

    def project(self, autoencoder: Autoencoder, u: Tensor) -> Tensor:
        """P W N u: fields in physical units ``(B, C, *space)`` to ``(B, C·modes, *latent)``."""
        x = autoencoder.normalise(u)
        dims = tuple(range(2, x.ndim))
        smooth = torch.fft.irfftn(torch.fft.rfftn(x, dim=dims) * self.smoothing.to(x), s=x.shape[2:], dim=dims)
        patches = space_to_depth(smooth, self.factor)
        patches = patches.reshape(len(x), self.channels, -1, *patches.shape[2:])
        return torch.einsum("mp,bcp...->bcm...", self.basis.to(x), patches).flatten(1, 2)

    def effect(self, autoencoder: Autoencoder, latent: Latent, trained: Equation, wanted: Equation) -> Tensor:
        """δ after one frame from ``latent``, ``(B, C·modes, *latent)``, in units of the normalised field."""
        u, interval = autoencoder.decode(latent), autoencoder.spec.interval
        after = wanted.advance(u, interval), trained.advance(u, interval)
        return self.project(autoencoder, after[0]) - self.project(autoencoder, after[1])

    def forward(self, z: Tensor, change: Tensor) -> Tensor:
        """z + K δ."""
        step: Tensor = self.gain(change / self.scale)
        return z + step


def is_linear(autoencoder: Autoencoder) -> bool:
    """Whether the decoder is linear, heads included, and the same at every latent cell."""
    network = autoencoder.network
    deep = any(isinstance(m, ResidualBlock) for m in network.modules())
    linear = {head.split(":")[0] for head in autoencoder.config["heads"]} <= {"mean", "divergence_free"}
    return not deep and not any(network.grid.extra) and linear


def smoothing(shape: tuple[int, ...], lengths: list[float]) -> Tensor:
    """W on the half spectrum of a real field of that ``shape``, on a box with sides ``lengths``."""
    k2 = torch.zeros(())
    for i, (n, length) in enumerate(zip(shape, lengths, strict=True)):
        frequencies = torch.fft.rfftfreq if i == len(shape) - 1 else torch.fft.fftfreq
        k = frequencies(n, d=1 / n) * max(lengths) / length
        k2 = k2 + k.reshape(-1, *(1,) * (len(shape) - 1 - i)).square()
    return (1 + k2 / SMOOTHING**2).rsqrt()
