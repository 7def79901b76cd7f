"""The decoder-error model: what compression lost comes back as spread.

    x = D(z) + σ(s(z)) · ε,         ε = Σⱼ wⱼ εⱼ,   Σⱼ wⱼ² = 1

A deterministic decoder gives no spread to what the latents do not hold, so an ensemble from a latent model is
overconfident at short leads (published for latent emulators in arXiv:2507.02608). ε is a correlated Gaussian field of
unit variance: white noise on the grid and on grids coarser by 2, 4, …, each interpolated and scaled to unit variance in
every cell. The amplitude depends on the latent through one convolution s and is bounded by the field's own spread (σ is
the logistic function), since a latent from far outside would else be decoded to any size; the mixture w depends on the
variable only. Both are fitted with the fair CRPS of two samples on x − D(E(x)), in normalised units: s on single cells,
whose score does not depend on how errors are correlated, w on means over blocks of cells, whose score does. The exact
heads come after it.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Conv, alike
from .model import Autoencoder

__all__ = ["DecoderError", "even_error"]


class DecoderError(nn.Module):
    """Correlated, state-dependent noise on decoded fields.

    Arguments:
        autoencoder: whose error is modelled.
        scales: numbers of grids that the noise lives on; grid ``j`` is coarser by ``2ʲ``.
    """

    def __init__(self, autoencoder: Autoencoder, scales: int = 4) -> None:
        super().__init__()
        self.channels = len(autoencoder.spec.names)
        self.space = autoencoder.spec.grid.shape
        self.grids = [tuple(max(1, -(-n // 2**j)) for n in self.space) for j in range(scales)]
        c = autoencoder.latent_shape[0]
        self.amplitude = Conv(c, self.channels, autoencoder.network.grid.periodic, zero=True)
        nn.init.constant_(self.amplitude.conv.get_parameter("bias"), -3.0)
        self.mixture = nn.Parameter(torch.zeros(self.channels, scales))
        for j, grid in enumerate(self.grids):
            self.register_buffer(f"gain{j}", self._gain(grid), persistent=False)

    def _gain(self, grid: tuple[int, ...]) -> Tensor:
        """One over the standard deviation of interpolated white noise, cell by cell, from unit impulses per axis."""
        gains = torch.ones(())
        for n, m in zip(self.space, grid, strict=True):
            if m == n:
                variance = torch.ones(n)
            else:
                response = F.interpolate(torch.eye(m)[:, None], size=n, mode="linear", align_corners=False)[:, 0]
                variance = response.square().sum(dim=0)
            gains = gains[..., None] * variance.rsqrt()
        return gains

    @property
    def noise_size(self) -> int:
        """Standard normal numbers per field."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Of which for each grid."""
        return [self.channels * int(prod(g)) for g in self.grids]

    @property
    def _mode(self) -> str:
        return "linear" if len(self.space) == 1 else "bilinear"

    def scale(self, z: Tensor) -> Tensor:
        """σ(s(z)) in (0, 1), ``(B, C, *space)``: standard deviation of the error in every cell, normalised units."""
        s = F.interpolate(self.amplitude(z), size=self.space, mode=self._mode, align_corners=False)
        return alike(torch.sigmoid, s)

    def draw(self, noise: Tensor) -> Tensor:
        """ε ``(B, C, *space)``, of unit variance in every cell, from standard normal ``noise (B, noise_size)``."""
        weights = torch.softmax(self.mixture, dim=1).sqrt()
        epsilon = torch.zeros(len(noise), self.channels, *self.space, device=noise.device, dtype=noise.dtype)
        for j, (grid, part) in enumerate(zip(self.grids, torch.split(noise, self.sizes, dim=1), strict=True)):
            field = part.reshape(-1, self.channels, *grid)
            if grid != self.space:
                field = F.interpolate(field, size=self.space, mode=self._mode, align_corners=False)
            gain = getattr(self, f"gain{j}")
            epsilon = epsilon + weights[:, j].reshape(-1, *(1,) * len(self.space)) * gain * field
        return epsilon

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        """Latents ``z (B, c, *latent)`` and ``noise (B, noise_size)`` to normalised errors ``(B, C, *space)``."""
        return self.scale(z) * self.draw(noise)


def even_error(autoencoder: Autoencoder, error: Tensor) -> DecoderError:
    """For a model whose decoder error was not trained: as large everywhere, and spread evenly over the scales.

    ``error (C,)`` is its root mean square in normalised units.
    """
    model = DecoderError(autoencoder).to(error)
    with torch.no_grad():
        model.amplitude.conv.get_parameter("bias").copy_(torch.logit(error.clamp(1e-4, 0.9)))
    return model.requires_grad_(False)
