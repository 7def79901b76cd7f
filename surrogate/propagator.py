"""A linear start for the dynamics: the next frame by ridge regression on what lies around it, cell by cell.

    z₁(x) = z₀(x) + Aₓ f(x) + q(x),    f(x) = (last frames at x and its neighbours, leading components of whole frames)
    Aₓ    = argmin Σ_t |z₁ − z₀ − A f|² + r |A|²,   over the frames t and the cells within `pool` of x
    q     = Σⱼ qⱼ ξⱼ + σ(x) η(x),  ξ, η ~ N(0, 1):  what the map leaves unexplained, its leading components and the rest

It is an empirical normal mode forecast (Hasselmann 1988, doi:10.1029/JD093iD09p11015; Penland 1989) that knows where it
is: short records of a fixed region determine it in closed form, which no network trained on them reaches, and the
networks then learn what is left. The neighbours carry advection and waves, the components what acts from afar; pooling
the normal equations of neighbouring cells makes up for a short record (geographically weighted regression, Brunsdon et
al. 1996, doi:10.1111/j.1538-4632.1996.tb00936.x). `surrogate.regression` chooses r and the pool on held-out frames.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from ..autoencoder.blocks import pad_axes

__all__ = ["Equations", "Propagator"]

_LARGEST = 2**28
"""Numbers of the normal equations beyond which there is no fit: 2 GiB."""


class Propagator(nn.Module):
    """Latents of the last frames ``(B, history, c, *latent)`` to the next, ``(B, c, *latent)``.

    Before `surrogate.regression` has fitted it, it is persistence without innovations.

    Arguments:
        channels, latent, periodic, history: of the latents.
        reach: neighbours on either side along every axis.
        components: leading principal components of a frame that every cell sees, of each context frame.
        shared: one map for all cells, where the dynamics are the same everywhere.
        innovations: components of what the map leaves unexplained; what is left beyond them is drawn cell by cell.

    Raises ValueError for components of a shared map, which would not be the same everywhere.
    """

    weight: Tensor
    modes: Tensor
    patterns: Tensor
    local: Tensor

    def __init__(
        self, channels: int, latent: Sequence[int], periodic: Sequence[bool], history: int, reach: int = 1,
        components: int = 0, shared: bool = False, innovations: int = 20,
    ) -> None:  # fmt: skip
        super().__init__()
        if shared and components:
            raise ValueError(
                f"found {components} components for dynamics that are the same everywhere (position 0), wanted none. "
                "Usual fix: emulator.position, or no components"
            )
        self.latent, self.periodic, self.reach, self.shared = tuple(latent), tuple(periodic), reach, shared
        features = history * (channels * (2 * reach + 1) ** len(self.latent) + components)
        self.register_buffer("weight", torch.zeros(1 if shared else prod(self.latent), features, channels))
        self.register_buffer("modes", torch.zeros(components, channels * prod(self.latent)))
        self.register_buffer("patterns", torch.zeros(innovations, channels * prod(self.latent)))
        self.register_buffer("local", torch.zeros(channels, *self.latent))

    def forward(self, z: Tensor) -> Tensor:
        change = torch.matmul(self.features(z).permute(2, 0, 1), self.weight)  # (cells, B, c)
        return z[:, -1] + change.permute(1, 2, 0).reshape(z[:, -1].shape)

    @property
    def noise_size(self) -> int:
        """Standard normal numbers of one `innovation`."""
        return len(self.patterns) + self.local.numel()

    def innovation(self, noise: Tensor) -> Tensor:
        """``(B, noise_size)``, standard normal, to the random part of one frame, ``(B, c, *latent)``."""
        count = len(self.patterns)
        far = (noise[:, :count] @ self.patterns).reshape(-1, *self.local.shape)
        near: Tensor = self.local * noise[:, count:].reshape(-1, *self.local.shape)
        return far + near

    def features(self, z: Tensor) -> Tensor:
        """``(B, history, c, *latent)`` to ``(B, features, cells)``."""
        frames = z.flatten(1, 2)
        padded = pad_axes(frames, self.reach, self.periodic) if self.reach else frames
        found = []
        for offset in product(range(2 * self.reach + 1), repeat=len(self.latent)):
            x = padded
            for axis, (first, size) in enumerate(zip(offset, self.latent, strict=True)):
                x = x.narrow(2 + axis, first, size)
            found.append(x)
        if len(self.modes):
            far = (z.flatten(2) @ self.modes.T.to(z)).flatten(1)
            found.append(far.reshape(*far.shape, *(1,) * len(self.latent)).expand(-1, -1, *self.latent))
        return torch.cat(found, dim=1).flatten(2)

    @torch.no_grad()
    def start_from(self, frames: Tensor) -> None:
        """Take the components from ``frames (N, c, *latent)``, each as large as a latent number is on average."""
        if not len(self.modes):
            return
        x = frames.flatten(1).double()
        modes, deviation = _components(x, len(self.modes))
        self.modes.copy_(modes * (x.square().mean().sqrt() / deviation)[:, None])

    @torch.no_grad()
    def measure_innovation(self, left: Tensor, factor: float) -> None:
        """Take the innovations from what the map left unexplained, ``left (N, c, *latent)``, times ``factor``."""
        x = factor * left.flatten(1).double()
        count = min(len(self.patterns), len(x) // 4, x.shape[1])
        self.patterns.zero_()
        if count:
            modes, deviation = _components(x, count)
            self.patterns[:count] = (modes * deviation[:, None]).to(self.patterns)
        rest = x.square().mean(dim=0) - self.patterns.double().square().sum(dim=0)
        self.local.copy_(rest.clamp(min=0).sqrt().reshape(self.local.shape))


def _components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading ``count`` principal components of ``x (N, D)``, orthonormal rows, and the deviation along each."""
    if min(x.shape) < count:
        raise ValueError(f"found {len(x)} frames of {x.shape[1]} numbers, wanted {count} of each or more")
    if len(x) < x.shape[1]:
        value, left = torch.linalg.eigh(x @ x.T)
        modes = left.T @ x / value.clamp(min=1e-12 * float(value[-1]) + 1e-30).sqrt()[:, None]
    else:
        value, vector = torch.linalg.eigh(x.T @ x)
        modes = vector.T
    deviation = (value / len(x)).clamp(min=1e-12 * float(value[-1]) + 1e-30).sqrt()
    return modes[-count:].flip(0), deviation[-count:].flip(0)


class Equations:
    """Normal equations of every cell, summed over windows as they come.

    Attributes:
        gram, moment: ``(cells, F, F)`` and ``(cells, F, c)``, float64; F features, one cell for a shared map.

    Raises ValueError where they would not fit into memory.
    """

    def __init__(self, propagator: Propagator) -> None:
        self.propagator = propagator
        cells, features, channels = propagator.weight.shape
        if cells * features**2 > _LARGEST:
            raise ValueError(
                f"the linear start would need {cells} systems of {features} unknowns. Usual fix: less reach, fewer "
                "components or history, or fewer latents"
            )
        self.gram = torch.zeros(cells, features, features, dtype=torch.float64)
        self.moment = torch.zeros(cells, features, channels, dtype=torch.float64)

    def add(self, z: Tensor, following: Tensor) -> None:
        """Windows ``z (B, history, c, *latent)`` and what came next, ``(B, c, *latent)``."""
        f = self.propagator.features(z.double()).permute(2, 1, 0)  # (cells, F, B)
        y = (following - z[:, -1]).double().flatten(2).permute(2, 0, 1)  # (cells, B, c)
        if self.propagator.shared:
            f, y = f.permute(1, 0, 2).flatten(1)[None], y.flatten(0, 1)[None]
        self.gram += f @ f.mT
        self.moment += f @ y

    def add_from(self, other: "Equations", share: float = 1.0) -> None:
        """Those of another set of windows, weighed."""
        self.gram += share * other.gram
        self.moment += share * other.moment

    def pooled(self, pool: int) -> "Equations":
        """Each cell's, with those of the cells within ``pool`` along every axis added."""
        if not pool or self.propagator.shared:
            return self
        found = object.__new__(Equations)
        found.propagator = self.propagator
        found.gram, found.moment = (self._summed(x, pool) for x in (self.gram, self.moment))
        return found

    def solve(self, ridge: float) -> Tensor:
        """Weights ``(cells, F, c)``; ``ridge`` is relative to the mean square of a feature."""
        features = self.gram.shape[1]
        size = self.gram.diagonal(dim1=1, dim2=2).mean(dim=1)
        size = ridge * size + 1e-6 * size.mean() + 1e-30  # features of masked cells are nought
        system = self.gram + size[:, None, None] * torch.eye(features, dtype=torch.float64)
        return torch.cholesky_solve(self.moment, torch.linalg.cholesky(system))

    def _summed(self, x: Tensor, pool: int) -> Tensor:
        latent, tail = self.propagator.latent, x.shape[1:]
        x = x.reshape(*latent, -1)
        for axis, (n, wraps) in enumerate(zip(latent, self.propagator.periodic, strict=True)):
            first = x.movedim(axis, 0)
            total = first.clone()
            for k in range(1, min(pool, (n - 1) // 2 if wraps else n - 1) + 1):
                if wraps:
                    total += first.roll(k, 0) + first.roll(-k, 0)
                else:
                    total[k:] += first[:-k]
                    total[:-k] += first[k:]
            x = total.movedim(0, axis)
        return x.reshape(-1, *tail)
