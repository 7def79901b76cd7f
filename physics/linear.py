"""The nearest fields that obey a linear law, in closed form, with the law eliminated once and for all.

For R(u) = A u − b the least change in the norm of M⁻¹ is

    u ← u − M Aᵀ (A M Aᵀ)⁺ R(u)

A is found by differentiating R once, and the pseudo-inverse is kept; from then on a correction is two products with
dense matrices. Redundant rows (walls stated twice) do no harm: singular values below 10⁻¹⁰ of the largest count as
nought. The memory is that of A, so this is for laws of at most some thousand unknowns that are the same for all
samples. A law with coefficients of each sample's own needs a solver of its own, such as `Darcy.factors`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["LinearLaw"]

LARGEST = 2**26  # entries of A


class LinearLaw:
    """``law(u)`` is u's projection on R(u) = 0.

    Args:
        residual: R, fields (B, *shape) -> (B, …), affine, the same for every sample.
        shape: Of a field.
        variances: M, positive, broadcastable to `shape`; evenly if None. Nought where nothing may change.

    Raises:
        ValueError: If R is not affine, or too large to be stored.
    """

    def __init__(
        self, residual: Callable[[Tensor], Tensor], shape: Sequence[int], variances: Tensor | None = None
    ) -> None:
        self.residual, self.shape = residual, tuple(shape)
        zero = torch.zeros(1, *self.shape, dtype=torch.float64)
        b, n = residual(zero).flatten(), zero.numel()
        if n * len(b) > LARGEST:
            raise ValueError(
                f"linear law: found {len(b)} rows for {n} unknowns, wanted at most {LARGEST:.0e} entries (use a solver)"
            )
        A = (residual(torch.eye(n, dtype=torch.float64).reshape(n, *self.shape)).flatten(1) - b).T
        probe = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        straight = residual(probe.reshape(2, *self.shape)).flatten(1) - b
        if not torch.allclose(straight, probe @ A.T, rtol=1e-8, atol=1e-8 * float(straight.abs().max())):
            raise ValueError("linear law: found a residual that is not affine, wanted R(u) = A u − b (see monotone)")
        M = torch.ones(self.shape, dtype=torch.float64) if variances is None else variances.to(torch.float64)
        self._lift = M.expand(self.shape).flatten()[:, None] * A.T
        self._inverse = torch.linalg.pinv(A @ self._lift, rtol=1e-10, hermitian=True)

    def __call__(self, u: Tensor) -> Tensor:
        """``u (…, *shape)`` to the nearest field that obeys the law, in its precision; differentiable."""
        x = u.to(torch.float64).reshape(-1, *self.shape)
        lift, inverse = self._lift.to(x.device), self._inverse.to(x.device)
        for _ in range(2):  # the second time takes away the round-off of the first
            missing = self.residual(x).flatten(1) @ inverse.T
            x = x - (missing @ lift.T).reshape(x.shape)
        return x.reshape(u.shape).to(u.dtype)
