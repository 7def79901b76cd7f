"""The one network of the latent dynamics: a residual convolutional net on the latent grid.

Mean net, flow-matching generator and one-pass fast mode are three sets of weights of this class. Its input are
maps on the latent grid (context frames, a noisy state or a noise map) and a condition vector (diffusion time,
phase of the year and day, physical parameters, a global noise vector), its output maps on the same grid.

Learned static maps tell the network where it is; they are switched off (``position=0``) for flows whose physics
does not depend on place, and then the network commutes with shifts exactly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoder.blocks import Conv, Linear, ResidualBlock, SiLU

__all__ = ["Backbone", "fourier_features"]


def fourier_features(t: Tensor, size: int, largest: float = 64.0) -> Tensor:
    """``(B,) -> (B, size)``: cosines and sines of ``t`` at geometrically spaced frequencies (arXiv:2006.10739)."""
    frequency = torch.logspace(0, torch.log10(torch.tensor(largest)).item(), size // 2, device=t.device, dtype=t.dtype)
    angle = torch.pi * t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Backbone(nn.Module):
    """``(maps (B, in_channels, *latent), condition (B, condition)) -> (B, out_channels, *latent)``.

    Arguments:
        in_channels, out_channels: channels of the input and output maps.
        periodic: one flag an axis of the latent grid.
        width, depth: channels and number of residual blocks.
        condition: length of the condition vector (0: unconditional).
        latent_shape, position: shape of the latent grid and number of learned static maps.
        dropout: after every block, while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        periodic: Sequence[bool],
        width: int,
        depth: int,
        condition: int = 0,
        latent_shape: Sequence[int] = (),
        position: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.static = nn.Parameter(0.02 * torch.randn(1, position, *latent_shape)) if position else None
        self.dropout = dropout
        self.embed = None
        embedded = 2 * width if condition else 0
        if condition:
            layers = [Linear(condition, embedded), SiLU(), Linear(embedded, embedded), SiLU()]
            self.embed = nn.Sequential(*layers)
        self.stem = Conv(in_channels + position, width, periodic)
        self.blocks = nn.ModuleList(ResidualBlock(width, periodic, embedded) for _ in range(depth))
        self.head = Conv(width, out_channels, periodic, zero=True)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.static is not None:
            x = torch.cat([x, self.static.expand(x.shape[0], *self.static.shape[1:])], dim=1)
        c = None if self.embed is None else self.embed(condition)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, c)
            if self.dropout:
                h = F.dropout(h, self.dropout, self.training)
        out: Tensor = self.head(h)
        return out
