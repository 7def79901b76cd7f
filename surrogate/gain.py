"""The gain of a linear decoder, in closed form: no training, no truncation.

Where D is linear and the same everywhere, A = P W N D is a convolution on the periodic latent grid, so Fourier waves do
not mix: A_k (modes × channels) takes the latents' amplitudes of wave k to the projection's. The smallest change of the
latents that makes a given change δ of the projection, damped by λ, is then

    K_k = A_k* (A_k A_k* + λ)⁻¹                       (Tikhonov; the damped Gauss–Newton step, here exact)

with λ a thousandth of the mean square singular value. Where the change that is wanted is itself that from one latent to
another, K_k A_k moves the first to the second as far as the projection sees it, without a decode.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["SpectralGain"]

DAMPING = 1e-3


class SpectralGain(nn.Module):
    """δ ``(B, modes, *latent)`` to the least change of z ``(B, channels, *latent)``.

    Arguments:
        modes, channels: of what comes in and goes out.
        latent: shape of the latent grid, periodic along every axis.
    """

    inverse: Tensor
    product: Tensor

    def __init__(self, modes: int, channels: int, latent: Sequence[int]) -> None:
        super().__init__()
        self.latent = tuple(latent)
        half = (*self.latent[:-1], self.latent[-1] // 2 + 1)
        self.register_buffer("inverse", torch.zeros(*half, channels, modes, 2))  # K: real and imaginary part
        self.register_buffer("product", torch.zeros(*half, channels, channels, 2))  # K A

    @torch.no_grad()
    def solve(self, forward: Callable[[Tensor], Tensor]) -> None:
        """Set the gain from A, which takes latents ``(N, channels, *latent)`` to projections ``(N, modes, *latent)``.

        Raises ValueError for an A that is not affine.
        """
        channels, dims = self.inverse.shape[-3], tuple(range(2, 2 + len(self.latent)))
        z = torch.zeros(channels + 3, channels, *self.latent).to(self.inverse)
        z.flatten(2)[torch.arange(channels), torch.arange(channels), 0] = 1.0
        z[-3:-1] = torch.randn(z[-3:-1].shape, generator=torch.Generator().manual_seed(0)).to(z)
        r = forward(torch.cat([z, z[-3:-2] + z[-2:-1]]))
        r, both = r[:-1] - r[-2], r[-1] - r[-2]
        response = torch.fft.rfftn(r[:channels].double(), dim=dims)  # (channels, modes, *half)
        A = response.movedim((1, 0), (-2, -1))
        found = self._filter(A, z[-3:-2])
        if not torch.allclose(r[-3] + r[-2], both, rtol=0, atol=1e-3) or not torch.allclose(
            found, r[-3:-2].to(found), rtol=0, atol=1e-3
        ):
            raise ValueError("gain: found a decoder that is not linear and the same everywhere, wanted one that is")
        AA = A @ A.mH
        damping = DAMPING * AA.diagonal(dim1=-2, dim2=-1).real.mean()
        K = A.mH @ torch.linalg.inv(AA + damping * torch.eye(AA.shape[-1], dtype=AA.dtype, device=AA.device))
        self.inverse.copy_(torch.view_as_real(K))
        self.product.copy_(torch.view_as_real((K @ A).contiguous()))

    def forward(self, change: Tensor) -> Tensor:
        return self._filter(torch.view_as_complex(self.inverse), change)

    def between(self, z: Tensor, wanted: Tensor) -> Tensor:
        """K A (wanted − z), both latents."""
        return self._filter(torch.view_as_complex(self.product), wanted - z)

    def _filter(self, multiplier: Tensor, x: Tensor) -> Tensor:
        dims = tuple(range(2, 2 + len(self.latent)))
        kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        waves = torch.fft.rfftn(x, dim=dims).movedim(1, -1)
        moved = torch.einsum("...oi,b...i->b...o", multiplier.to(kind), waves)
        back: Tensor = torch.fft.irfftn(moved.movedim(-1, 1), s=self.latent, dim=dims)
        return back
