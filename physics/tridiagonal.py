"""A direct solver for five-point stencils: block elimination along the rows of a grid, in batches.

A symmetric system on a plane of cells couples each cell with its four neighbours. Row by row it is block tridiagonal,

    −Cᵢ₋₁ xᵢ₋₁ + Dᵢ xᵢ − Cᵢ xᵢ₊₁ = bᵢ,      Dᵢ tridiagonal,  Cᵢ diagonal,

and is eliminated from the first row to the last:

    S₀ = D₀,   Sᵢ = Dᵢ − Cᵢ₋₁ Sᵢ₋₁⁻¹ Cᵢ₋₁,      Sᵢ symmetric and positive definite where the system is.

The inverses Sᵢ⁻¹ are kept, so that every further right-hand side costs no more than two products of matrix and vector
a row: for n × n cells 2 n³ multiplications, after n⁴ for the elimination. That is exact to round-off, needs no
library beyond torch, runs on any device, and treats a batch of systems at once. Up to some 128 cells a side nothing
iterative is faster on smooth right-hand sides of any number; far beyond that use multigrid.
"""

import torch
from torch import Tensor

__all__ = ["BlockTridiagonal"]


class BlockTridiagonal:
    """The eliminated system, ready to be solved for any number of right-hand sides.

    Args:
        diagonal: Diagonal of the whole matrix, (…, y, x).
        along: Coupling (positive where −coupling is the entry) of each cell with the next of its row, (…, y, x − 1).
        across: The same with the next row, (…, y − 1, x).

    Raises:
        ValueError: If the matrix is not positive definite.
    """

    def __init__(self, diagonal: Tensor, along: Tensor, across: Tensor) -> None:
        rows = diagonal.shape[-2]
        self.across = across
        inverses: list[Tensor] = []
        for i in range(rows):
            S = torch.diag_embed(diagonal[..., i, :])
            off = torch.diag_embed(along[..., i, :], offset=1)
            S = S - off - off.mT
            if i:
                c = across[..., i - 1, :]
                S = S - c[..., :, None] * inverses[-1] * c[..., None, :]
            L, info = torch.linalg.cholesky_ex(S)
            if bool((info != 0).any()):
                raise ValueError(
                    f"tridiagonal: found a matrix that is not positive definite (row {i}), wanted one that is. Usual "
                    "fix: positive coefficients, or a condition that fixes the mean"
                )
            inverses.append(torch.cholesky_inverse(L))
        self.inverses = inverses

    def solve(self, b: Tensor) -> Tensor:
        """x of A x = b, (…, y, x); leading dimensions broadcast with those of the matrix."""
        y: list[Tensor] = []
        for i, inverse in enumerate(self.inverses):
            row = b[..., i, :]
            if i:
                row = row + self.across[..., i - 1, :] * _times(self.inverses[i - 1], y[-1])
            y.append(row + torch.zeros_like(inverse[..., 0]))  # as many as there are systems
        x = [_times(self.inverses[-1], y[-1])]
        for i in range(len(y) - 2, -1, -1):
            x.append(_times(self.inverses[i], y[i] + self.across[..., i, :] * x[-1]))
        return torch.stack(x[::-1], dim=-2)


def _times(A: Tensor, x: Tensor) -> Tensor:
    product: Tensor = (A @ x.unsqueeze(-1)).squeeze(-1)
    return product
