"""Fields that do not move: a generator of single fields, without a context frame.

    z = E(u),   x = (z − m)/s,      x̂(xₜ, t) by flow matching of x itself,      u = D(m + s x)

The parts are those of the dynamics (autoencoder, backbone, schedule, denoiser, sampler), so a static model lives in the
latent space of an autoencoder or, with ``network="identity"``, in pixel space. Noise comes from outside: a sample is a
function of its own generator and of nothing else. Physics enters in training through `virtual` observations of decoded
fields, with the update of `conflict` if wanted, and in sampling through `guidance` or a correction of what was decoded.

Decoder heads that carry a conserved quantity from an encoded field have nothing to carry it from, and are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from ..autoencoder.model import Autoencoder, Latent
from .backbone import Backbone, fourier_features
from .conflict import conflict_free_loss
from .denoiser import Denoiser, PreconditionedDenoiser, logit_normal
from .noise import draw, sample_generator
from .sampler import SAMPLERS
from .schedule import RectifiedFlow
from .virtual import Observation, virtual_losses

__all__ = ["Physics", "StaticGenerator"]

TIME_FEATURES = 32
CARRIED = ("mean", "mass")
MODES = 256
"""Principal components that a model keeps of its training data."""
_BATCH = 128


@dataclass(frozen=True)
class Physics:
    """What training is to heed beside the data.

    Attributes:
        observations: see `lapse.surrogate.virtual`.
        conflict_free: combine data and physics by their directions instead of adding them up; the strength of the
            observations then has no effect on the update's direction.
        unroll: most Euler steps of the estimate "unroll"; they grow from 1 in equal shares of the training.
    """

    observations: Sequence[Observation] = ()
    conflict_free: bool = False
    unroll: int = 4

    def steps(self, progress: float) -> int:
        """Euler steps at this share of the training."""
        return min(self.unroll, 1 + int(progress * self.unroll))


class StaticGenerator(nn.Module):
    """Draws fields like those it was trained on.

    Arguments:
        autoencoder: trained, and frozen here.
        width, depth, position, dropout: of the backbone; ``position`` learned static maps tell it where it is.
        sampler, sampling_steps, rho: how samples are drawn, see `sampler`.
        time_mean, time_std: of the logit-normal training times. Above 0 there is more noise than signal in the median,
            which smooth fields want: their large scales are seen through much noise. Wider than for other models, since
            the last steps decide a residual, and are where it is held to the law in training.
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor
    modes: Tensor
    error: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        width: int = 64,
        depth: int = 6,
        position: int = 4,
        dropout: float = 0.0,
        sampler: str = "ab2",
        sampling_steps: int = 16,
        rho: float = 1.0,
        time_mean: float = 0.5,
        time_std: float = 1.5,
    ) -> None:
        super().__init__()
        if carried := [name for name in autoencoder.heads.names if name.split(":")[0] in CARRIED]:
            raise ValueError(
                f"static generator: found the heads {carried}, which carry what an encoded field had, wanted none of "
                "them: a sample was never encoded"
            )
        if sampler not in SAMPLERS:
            raise ValueError(f"static generator: found sampler {sampler!r}, wanted one of {', '.join(SAMPLERS)}")
        self.autoencoder = autoencoder
        c, *latent = autoencoder.latent_shape
        self.latent_shape = (c, *latent)
        flags = autoencoder.network.grid.periodic
        self.backbone = Backbone(c, c, flags, width, depth, TIME_FEATURES, latent, position, dropout)
        self.sampler, self.sampling_steps, self.rho = sampler, sampling_steps, rho
        self.time_mean, self.time_std = time_mean, time_std
        ones = torch.ones(c, *(1,) * len(latent))
        self.register_buffer("mean", 0 * ones)
        self.register_buffer("scale", ones.clone())
        size = int(prod(self.latent_shape))
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("modes", torch.zeros(min(MODES, size), size))
        self.register_buffer("error", torch.zeros(len(autoencoder.spec.names)))
        self.config: Mapping[str, Any] = {
            "width": width, "depth": depth, "position": position, "dropout": dropout, "sampler": sampler,
            "sampling_steps": sampling_steps, "rho": rho, "time_mean": time_mean,
            "time_std": time_std,
        }  # fmt: skip

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that a sample takes."""
        return int(prod(self.latent_shape))

    @torch.no_grad()
    def measure(self, u: Tensor) -> None:
        """Set what is known of the latents from example fields ``(N, C, *space)`` in physical units.

        Mean and scale of their channels; of standardised latents x the mean ``centre`` and the principal components
        ``modes``, each as long as its standard deviation, so that x ≈ centre + ξ modes with ξ ~ N(0, I); and ``error
        (C,)``, the root mean square of u − D(E u) in normalised units.
        """
        latent = torch.cat([self.autoencoder.encode(part).z for part in torch.split(u, _BATCH)])
        dims = (0, *range(2, latent.ndim))
        self.mean.copy_(latent.mean(dim=dims).reshape(self.mean.shape))
        self.scale.copy_(latent.std(dim=dims).clamp(min=1e-6).reshape(self.scale.shape))
        x = ((latent - self.mean) / self.scale).flatten(1)
        self.centre.copy_(x.mean(dim=0))
        away = (x - self.centre) / max(1, len(x) - 1) ** 0.5
        _, length, axes = torch.linalg.svd(away, full_matrices=False)
        count = min(len(self.modes), len(length))
        self.modes.zero_()[:count] = length[:count, None] * axes[:count]
        normaliser = self.autoencoder.normaliser
        std = normaliser.std.reshape(-1, *(1,) * (u.ndim - 2))
        square = torch.zeros_like(self.error)
        for x_part, u_part in zip(torch.split(x, _BATCH), torch.split(u, _BATCH), strict=True):
            off = (self.fields(x_part.reshape(-1, *self.latent_shape)) - u_part) / std
            square += torch.where(normaliser.mask, off, 0.0).square().flatten(2).sum(dim=(0, 2))
        self.error.copy_((square / (len(u) * normaliser.mask.flatten(1).sum(dim=1))).sqrt())

    def standardised(self, u: Tensor) -> Tensor:
        """Physical fields ``(B, C, *space)`` to x ``(B, c, *latent)``."""
        return (self.autoencoder.encode(u).z - self.mean) / self.scale

    def fields(self, x: Tensor) -> Tensor:
        """x to physical fields, differentiable."""
        carried = torch.zeros(len(x), len(self.autoencoder.spec.names), dtype=torch.float64, device=x.device)
        return self.autoencoder.decode(Latent(self.mean + self.scale * x, carried))

    def denoiser(self) -> PreconditionedDenoiser:
        """x̂(xₜ, t)."""

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.backbone(x_t, fourier_features(t, TIME_FEATURES))
            return out

        return PreconditionedDenoiser(network, RectifiedFlow())

    def loss(
        self, u: Tensor, physics: Physics | None = None, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Flow matching of physical fields ``u (B, C, *space)`` and, if any, what is observed of the estimates.

        Arguments:
            progress: share of the training that is done, for the curriculum.
        """
        with torch.no_grad():
            x = self.standardised(u)
        t = logit_normal(len(u), generator, mean=self.time_mean, std=self.time_std).to(u)
        epsilon = torch.randn(x.shape, generator=generator).to(u)
        denoiser = self.denoiser()
        if physics is None:
            return denoiser.loss(x, t, epsilon)
        seen, steps = physics.observations, physics.steps(progress)
        data, observed = virtual_losses(denoiser, x, t, epsilon, seen, self.fields, unroll=steps)
        if observed is None:
            return data
        if physics.conflict_free:
            return conflict_free_loss([data, observed], list(self.backbone.parameters()))
        return data + observed

    @torch.no_grad()
    def sample(
        self, noise: Tensor, steps: int | None = None, guide: Callable[[Denoiser], Denoiser] | None = None
    ) -> Tensor:
        """Physical fields ``(B, C, *space)`` from standard normal ``noise (B, noise_size)``.

        Arguments:
            steps: intervals of the sampler, instead of the model's own.
            guide: wraps the denoiser, see `guidance`.
        """
        if noise.ndim != 2 or noise.shape[1] != self.noise_size:
            raise ValueError(f"static generator: found noise {tuple(noise.shape)}, wanted (B, {self.noise_size})")
        denoiser: Denoiser = self.denoiser()
        guided = denoiser if guide is None else guide(denoiser)
        sampler = SAMPLERS[self.sampler](guided, steps or self.sampling_steps, self.rho)
        return self.fields(sampler(noise.reshape(len(noise), *self.latent_shape)))

    def augment(self, observed: xr.Dataset | xr.DataArray | None, samples: int = 32, **options: Any) -> xr.Dataset:
        """Samples of fields given sparse or noisy ones, or, given None, of new fields to train on.

        ``options`` as for `lapse.surrogate.completion.augment`.
        """
        from .completion import augment

        return augment(self, observed, samples, **options)

    def draw(self, samples: int, seed: int = 0, batch: int = 64, **options: Any) -> Tensor:
        """``samples`` fields, sample k a function of (seed, k); ``options`` are those of `sample`."""
        found = []
        for first in range(0, samples, batch):
            ids = range(first, min(samples, first + batch))
            noise = draw([sample_generator(seed, k) for k in ids], self.noise_size)
            found.append(self.sample(noise.to(self.mean), **options))
        return torch.cat(found)
