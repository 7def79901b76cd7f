"""Deep-compression convolutional autoencoder: the network between normalised fields and bounded latents.

    z = s(P x + E(x)),     x̂ = Pᵀ z + D(z),     s(z) = z (1 + (z/5)⁸)^(−1/8)

``P`` keeps the leading principal components of f×f patches of the training data, so the network starts as patch-wise
PCA, the near-identity start that decides the error at short budgets; ``E`` and ``D`` are residual networks on
space-to-depth patches, with every convolution at reduced resolution (Chen et al. 2024, arXiv:2410.10733). ``s`` bounds
the latents (as in Rozet et al. 2025, arXiv:2507.02608), so that a rollout cannot run away, and leaves what is well
inside the bound alone: z/√(1 + (z/5)²) would bend it, which the decoder then has to undo (docs/decisions/0008). There
is no KL term and no adversary.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Conv, ResidualBlock, dct_patch_basis, depth_to_space, space_to_depth

__all__ = ["ConvolutionalAutoencoder", "PatchAutoencoder", "saturate"]


def saturate(z: Tensor, bound: float = 5.0) -> Tensor:
    """z (1 + (z/bound)⁸)^(−1/8): the identity to 1 % below 0.7·bound, never beyond bound.

    What is not finite stays so: a member that blew up must be seen.
    """
    # The eighth power of a large finite number overflows, and z·0 would turn it into a harmless looking zero.
    y = z.clamp(-10 * bound, 10 * bound)
    # Squares and roots, since a power rounds by where in memory a number lies: a member would depend on its batch.
    root = (1 + (y / bound).square().square().square()).sqrt().sqrt()
    return torch.where(z.isfinite(), y * torch.rsqrt(root), z)


class _Grid:
    """Sizes that both autoencoders share: the field grid, padded to a multiple of the factor, and the latent grid."""

    def __init__(self, space: Sequence[int], periodic: Sequence[bool], factor: Sequence[int]) -> None:
        if not len(space) == len(periodic) == len(factor):
            raise ValueError(
                f"space {tuple(space)}, periodic {tuple(periodic)} and factor {tuple(factor)} differ in length"
            )
        self.space = tuple(space)
        self.factor = tuple(factor)
        self.latent = tuple(-(-n // f) for n, f in zip(space, factor, strict=True))
        self.extra = tuple(m * f - n for n, m, f in zip(space, self.latent, factor, strict=True))
        # An axis that has to be extended no longer closes on itself inside the network.
        self.periodic = tuple(p and e == 0 for p, e in zip(periodic, self.extra, strict=True))
        self.wraps = tuple(periodic)

    def extend(self, x: Tensor) -> Tensor:
        """Pad the end of each axis to a multiple of the factor: wrapped if periodic, else by its edge value."""
        n = len(self.space)
        for i, (extra, wraps) in enumerate(zip(self.extra, self.wraps, strict=True)):
            if extra:
                widths = [0] * (2 * n)
                widths[2 * (n - 1 - i) + 1] = extra
                x = F.pad(x, widths, mode="circular" if wraps else "replicate")
        return x

    def crop(self, x: Tensor) -> Tensor:
        for i, size in enumerate(self.space):
            x = x.narrow(2 + i, 0, size)
        return x


class ConvolutionalAutoencoder(nn.Module):
    """Normalised fields ``(B, C, *space)`` <-> bounded latents ``(B, latent_channels, *latent)``.

    Arguments:
        channels, space, periodic: the field grid.
        latent_channels: numbers kept per latent cell.
        factor: total reduction of each axis (a power of two times ``patch``).
        patch: space-to-depth of the first layer; all convolutions run below it.
        width: channels of the first level, doubled at each further level up to ``2·width``.
        encoder_depth, decoder_depth: residual blocks at every level. The decoder runs for every frame of every
            member, hence it may be shallower than the encoder.
        position: learned static maps seen by encoder and decoder (orography, coast), 0 for homogeneous flows.
    """

    def __init__(
        self,
        channels: int,
        space: Sequence[int],
        periodic: Sequence[bool],
        latent_channels: int,
        factor: int = 4,
        patch: int = 4,
        width: int = 96,
        encoder_depth: int = 3,
        decoder_depth: int = 3,
        position: int = 0,
    ) -> None:
        super().__init__()
        n = len(space)
        ratio = factor // patch
        if ratio * patch != factor or ratio & (ratio - 1):
            raise ValueError(f"factor must be patch times a power of two, got factor {factor} and patch {patch}")
        self.bound: float | None = 5.0
        self.grid = _Grid(space, periodic, (factor,) * n)
        self.latent_shape = (latent_channels, *self.grid.latent)
        self.patch = (patch,) * n
        flags = self.grid.periodic
        widths = [width * min(2**i, 2) for i in range(ratio.bit_length())]
        cells = channels * patch**n
        top = tuple(m * ratio for m in self.grid.latent)

        self.position = nn.Parameter(0.02 * torch.randn(1, position, *top)) if position else None
        down: list[nn.Module] = [Conv(cells + position, widths[0], flags, kernel=1)]
        down += [ResidualBlock(widths[0], flags) for _ in range(encoder_depth)]
        for before, after in pairwise(widths):
            down += [_SpaceToDepth(n), Conv(before * 2**n, after, flags, kernel=1)]
            down += [ResidualBlock(after, flags) for _ in range(encoder_depth)]
        down.append(Conv(widths[-1], latent_channels, flags, zero=True))
        self.encoder = nn.Sequential(*down)

        latent_position = (1, position, *self.grid.latent)
        self.latent_position = nn.Parameter(0.02 * torch.randn(latent_position)) if position else None
        up: list[nn.Module] = [Conv(latent_channels + position, widths[-1], flags)]
        up += [ResidualBlock(widths[-1], flags) for _ in range(decoder_depth)]
        for before, after in pairwise(reversed(widths)):
            up += [Conv(before, after * 2**n, flags, kernel=1), _DepthToSpace(n)]
            up += [ResidualBlock(after, flags) for _ in range(decoder_depth)]
        up.append(Conv(widths[0], cells, flags, zero=True))
        self.decoder = nn.Sequential(*up)

        basis = dct_patch_basis((factor,) * n)[:latent_channels].reshape(-1, 1, *(factor,) * n)
        if latent_channels > basis.shape[0] * channels:
            raise ValueError(
                f"latent_channels {latent_channels} exceeds the {factor**n * channels} numbers of a patch; "
                "take fewer channels or a larger factor"
            )
        start = torch.zeros(latent_channels, channels, *(factor,) * n)
        for i in range(latent_channels):
            start[i, i % channels] = basis[i // channels, 0]
        self.analysis = nn.Parameter(start)
        self.synthesis = nn.Parameter(start.clone())

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Set the linear path to the leading principal components of the patches of ``x (N, C, *space)``, rotated.

        The rotation gives all channels the same variance, unity over ``x`` (but for the bound), and leaves the linear
        path an isometry up to one factor: an error of the latents is as large as the error of the field that it makes.
        """
        patches = space_to_depth(self.grid.extend(x), self.grid.factor).movedim(1, -1).flatten(0, -2).double()
        covariance = patches.T @ patches / patches.shape[0]
        value, vector = torch.linalg.eigh(covariance)
        keep = self.latent_shape[0]
        modes = vector[:, -keep:] @ equalising_rotation(value[-keep:])
        scale = value[-keep:].mean().clamp(min=1e-12).sqrt()
        shape = self.analysis.shape
        self.analysis.copy_((modes / scale).T.reshape(shape))
        self.synthesis.copy_((modes * scale).T.reshape(shape))

    def encode(self, x: Tensor) -> Tensor:
        x = self.grid.extend(x)
        patches = space_to_depth(x, self.patch)
        if self.position is not None:
            patches = torch.cat([patches, self.position.expand(x.shape[0], *self.position.shape[1:])], dim=1)
        stride = self.grid.factor
        convolve = F.conv1d if len(stride) == 1 else F.conv2d
        return saturate(convolve(x, self.analysis, stride=stride) + self.encoder(patches))

    def decode(self, z: Tensor) -> Tensor:
        stride = self.grid.factor
        transpose = F.conv_transpose1d if len(stride) == 1 else F.conv_transpose2d
        h = z
        if self.latent_position is not None:
            h = torch.cat([z, self.latent_position.expand(z.shape[0], *self.latent_position.shape[1:])], dim=1)
        detail = depth_to_space(self.decoder(h), self.patch)
        return self.grid.crop(transpose(z, self.synthesis, stride=stride) + detail)

    @property
    def compression(self) -> float:
        """Numbers of a field over numbers of its latent."""
        channels = int(self.analysis.shape[1])
        return channels * int(prod(self.grid.space)) / int(prod(self.latent_shape))


def equalising_rotation(variance: Tensor) -> Tensor:
    """Rotation ``Q (n, n)`` for which Qᵀ diag(variance) Q has one value all along its diagonal, the mean.

    Plane rotations, n − 1 of them, each of which brings one entry to the mean (Bendel & Mickey 1978,
    doi:10.1080/03610917808812085).
    """
    n, mean = len(variance), float(variance.mean())
    S, Q = torch.diag(variance), torch.eye(n, dtype=variance.dtype)
    for _ in range(n - 1):
        i, j = int(S.diagonal().argmax()), int(S.diagonal().argmin())
        above, below, across = float(S[i, i]) - mean, float(S[j, j]) - mean, float(S[i, j])
        if above <= 1e-12 * abs(mean) or below >= 0:
            break
        t = (-across - (across**2 - above * below) ** 0.5) / below
        c = (1 + t * t) ** -0.5
        turn = torch.tensor([[c, -c * t], [c * t, c]], dtype=variance.dtype)
        Q[:, [i, j]] = Q[:, [i, j]] @ turn
        S[:, [i, j]] = S[:, [i, j]] @ turn
        S[[i, j]] = turn.T @ S[[i, j]]
    return Q


class PatchAutoencoder(nn.Module):
    """No compression: latents are the space-to-depth patches themselves (``autoencoder=identity``).

    With it the whole of lapse runs in pixel space, on the same grid of tokens; it is the opponent of every latent
    claim.
    """

    def __init__(self, channels: int, space: Sequence[int], periodic: Sequence[bool], patch: int = 4) -> None:
        super().__init__()
        n = len(space)
        self.bound: float | None = None
        self.grid = _Grid(space, periodic, (patch,) * n)
        self.latent_shape: tuple[int, ...] = (channels * patch**n, *self.grid.latent)

    def start_from(self, x: Tensor) -> None:
        """Nothing to learn."""

    def encode(self, x: Tensor) -> Tensor:
        return space_to_depth(self.grid.extend(x), self.grid.factor)

    def decode(self, z: Tensor) -> Tensor:
        return self.grid.crop(depth_to_space(z, self.grid.factor))

    @property
    def compression(self) -> float:
        """1 by construction, up to the padding of axes that are not a multiple of the patch."""
        channels = self.latent_shape[0] // int(prod(self.grid.factor))
        return channels * int(prod(self.grid.space)) / int(prod(self.latent_shape))


class _SpaceToDepth(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.factor = (2,) * n

    def forward(self, x: Tensor) -> Tensor:
        return space_to_depth(x, self.factor)


class _DepthToSpace(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.factor = (2,) * n

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(x, self.factor)
