"""The parts that every network of lapse is made of, for one- and two-dimensional grids.

All of them act on tensors ``(B, C, *space)`` and keep two properties on purpose:

* *padding is a fact of the grid*: a periodic axis wraps, a wall repeats its last cell, axis by axis;
* *normalisation never runs over space* (it would leak global statistics into every cell and break the exact
  commutation with shifts), only over channels.

A residual block starts as the identity, since its last convolution starts at zero (De et al. 2020,
arXiv:2002.10444); a network built from them starts near the linear map around it.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ChannelNorm",
    "Conv",
    "Linear",
    "Modulation",
    "ResidualBlock",
    "SiLU",
    "alike",
    "dct_patch_basis",
    "depth_to_space",
    "pad_axes",
    "space_to_depth",
]

# A last bit that depends on what else is computed makes a member of a forecast depend on those beside it, which chaos
# amplifies.
_ROWS = 16  # of which a matrix product gives each the same, whatever the others are
_LANES = 32  # elements that a processor's vector loop takes at once, at most; a rest goes through other formulas
_GRAIN = 32768  # elements below which torch does not share a loop among threads


def pad_axes(x: Tensor, width: int, periodic: Sequence[bool]) -> Tensor:
    """Extend every spatial axis of ``x (B, C, *space)`` by ``width`` cells on both sides.

    A periodic axis wraps around, any other repeats its edge value (zero normal derivative).
    """
    n = len(periodic)
    for i, wraps in enumerate(periodic):
        widths = [0] * (2 * n)
        widths[2 * (n - 1 - i)] = widths[2 * (n - 1 - i) + 1] = width
        x = F.pad(x, widths, mode="circular" if wraps else "replicate")
    return x


def space_to_depth(x: Tensor, factor: Sequence[int]) -> Tensor:
    """``(B, C, n₁f₁, n₂f₂, …) -> (B, C·f₁·f₂…, n₁, n₂, …)``; no information is lost."""
    batch, channels, *space = x.shape
    n = len(factor)
    split = [s for size, f in zip(space, factor, strict=True) for s in (size // f, f)]
    x = x.reshape(batch, channels, *split)
    order = [0, 1, *(3 + 2 * i for i in range(n)), *(2 + 2 * i for i in range(n))]
    x = x.permute(order)
    return x.reshape(batch, -1, *x.shape[2 + n :])


def depth_to_space(x: Tensor, factor: Sequence[int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    batch, _, *space = x.shape
    n = len(factor)
    x = x.reshape(batch, -1, *factor, *space)
    order = [0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i))]
    return x.permute(order).reshape(batch, x.shape[1], *(s * f for s, f in zip(space, factor, strict=True)))


def alike(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, element by element, with the same bits for an element wherever in ``x`` it stands."""
    size, threads, pieces = x.numel(), torch.get_num_threads(), 0
    while pieces != (pieces := min(threads, max(1, -(-size // _GRAIN)))):  # each thread's piece has a rest of its own
        size += -size % (_LANES * pieces)
    if size == x.numel():
        return function(x)
    return function(F.pad(x.flatten(), (0, size - x.numel())))[: x.numel()].view(x.shape)


class SiLU(nn.Module):
    """x / (1 + exp(−x)), `alike`."""

    def forward(self, x: Tensor) -> Tensor:
        return alike(F.silu, x)


class Conv(nn.Module):
    """Convolution of odd kernel size that pads each axis as the grid demands.

    Arguments:
        in_channels, out_channels: numbers of channels.
        periodic: one flag an axis; its length is the number of spatial dimensions (1 or 2).
        kernel: odd kernel size, the same along every axis.
        zero: start at zero (last layer of a residual branch).
        bias: add a constant to every output channel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, periodic: Sequence[bool], kernel: int = 3, zero: bool = False,
        bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if kernel % 2 != 1:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if len(periodic) not in (1, 2):
            raise ValueError(f"grids of 1 or 2 dimensions are supported, got {len(periodic)}")
        self.periodic = tuple(periodic)
        self.width = kernel // 2
        layer = nn.Conv1d if len(periodic) == 1 else nn.Conv2d
        self.conv = layer(in_channels, out_channels, kernel, bias=bias)
        if zero:
            nn.init.zeros_(self.conv.weight)
        if bias:
            nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad_axes(x, self.width, self.periodic) if self.width else x)
        return out


class Linear(nn.Linear):
    """`torch.nn.Linear` whose rows do not depend on how many there are.

    Matrix libraries choose their order of summation by the number of rows, up to a dozen; so they are filled up.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        return super().forward(F.pad(x, (0, 0, 0, -rows % _ROWS)))[:rows]


class ChannelNorm(nn.Module):
    """RMS normalisation over channels, cell by cell (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        rms = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.eps)
        out: Tensor = x * rms * self.gain.view(-1, *(1,) * (x.ndim - 2))
        return out


class Modulation(nn.Module):
    """Scale and shift of the channels by a condition vector (FiLM, arXiv:1709.07871); starts as the identity."""

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(condition, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        both: Tensor = self.linear(c).reshape(c.shape[0], -1, *(1,) * (x.ndim - 2))
        scale, shift = both.chunk(2, dim=1)
        return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """``x + W₂ σ(mod(W₁ norm(x), c))`` with 3-point convolutions W and σ = SiLU; the identity at the start."""

    def __init__(self, channels: int, periodic: Sequence[bool], condition: int = 0) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = Conv(channels, channels, periodic)
        self.modulation = Modulation(condition, channels) if condition else None
        self.conv2 = Conv(channels, channels, periodic, zero=True)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h: Tensor = self.conv1(self.norm(x))
        if self.modulation is not None:
            if c is None:
                raise ValueError("this block was built with a condition, but none was given")
            h = self.modulation(h, c)
        change: Tensor = self.conv2(alike(F.silu, h))
        return x + change


def dct_patch_basis(factor: Sequence[int]) -> Tensor:
    """Orthonormal DCT-II basis of a patch, ``(modes, *factor)``, ordered from smooth to rough.

    Source: Ahmed, Natarajan & Rao 1974, doi:10.1109/T-C.1974.223784.
    """
    rows = []
    for f in factor:
        k, i = torch.arange(f)[:, None], torch.arange(f)[None, :]
        basis = torch.cos(torch.pi * k * (2 * i + 1) / (2 * f)) * (2 / f) ** 0.5
        basis[0] = f**-0.5
        rows.append(basis)
    modes = sorted(product(*(range(f) for f in factor)), key=lambda m: (sum(j * j for j in m), m))
    patches = []
    for mode in modes:
        patch = torch.ones(())
        for row, j in zip(rows, mode, strict=True):
            patch = patch[..., None] * row[j]
        patches.append(patch)
    return torch.stack(patches)
