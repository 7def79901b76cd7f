"""The autoencoder as the rest of lapse sees it: physical fields on one side, bounded latents on the other.

    encode:  u  ->  normalise  ->  network  ->  z,           with the conserved quantities c carried beside it
    decode:  (z, c)  ->  network  ->  physical units  ->  exact heads  ->  u

Normalisation lives in here, so that nothing outside ever sees a normalised field, and the heads come last, so that
whatever a sampler did to z, the field that leaves obeys its linear invariants to round-off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..datasets.normalise import Normaliser
from ..datasets.spec import FieldSpec
from .heads import Heads
from .network import ConvolutionalAutoencoder, PatchAutoencoder

__all__ = ["NETWORKS", "Autoencoder", "Latent"]

NETWORKS: dict[str, type[ConvolutionalAutoencoder] | type[PatchAutoencoder]] = {
    "convolutional": ConvolutionalAutoencoder,
    "identity": PatchAutoencoder,
}


@dataclass
class Latent:
    """A latent state: ``z (B, c, *latent)`` and the carried conserved quantities ``(B, k)``, in physical units."""

    z: Tensor
    carried: Tensor


class Autoencoder(nn.Module):
    """Fields in physical units ``(B, C, *space)`` <-> `Latent`.

    Arguments:
        spec: what the fields are.
        normaliser: fitted on the training split.
        network: a name in `NETWORKS`, and its keyword arguments; channels, space and periodicity come from the spec.
        heads: names of exact heads, see `autoencoder.heads`.
    """

    mask: Tensor | None

    def __init__(
        self, spec: FieldSpec, normaliser: Normaliser, network: str, heads: tuple[str, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"unknown autoencoder {network!r}; known: {', '.join(NETWORKS)}")
        self.spec = spec
        self.normaliser = normaliser
        self.network = NETWORKS[network](len(spec.names), spec.grid.shape, spec.grid.periodic, **kwargs)
        self.heads = Heads(spec, heads)
        self.register_buffer("mask", spec.mask_tensor() if spec.masks else None, persistent=False)
        self.config: Mapping[str, Any] = {"network": network, "heads": list(heads), **kwargs}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """``(c, *latent)``."""
        return self.network.latent_shape

    def normalise(self, u: Tensor, phase: Tensor | None = None) -> Tensor:
        """Physical -> normalised; masked cells become 0."""
        x: Tensor = self.normaliser(u, phase)
        return x

    def encode(self, u: Tensor, phase: Tensor | None = None) -> Latent:
        """``u (B, C, *space)`` in physical units, ``phase (B, 4)`` of the year and day, to its latent."""
        return Latent(self.network.encode(self.normalise(u, phase)), self.heads.carried(u))

    def decode(self, latent: Latent, phase: Tensor | None = None, error: Tensor | None = None) -> Tensor:
        """Latent to physical fields ``(B, C, *space)``; ``error`` is added to the normalised field before the heads."""
        return self.finish(self.network.decode(latent.z), latent.carried, phase, error)

    def finish(self, x: Tensor, carried: Tensor, phase: Tensor | None = None, error: Tensor | None = None) -> Tensor:
        """What the network decoded, ``x (B, C, *space)`` in normalised units, to physical fields."""
        if error is not None:
            x = x + error
        if self.mask is not None:
            x = x * self.mask
        u: Tensor = self.heads(self.normaliser.inverse(x, phase), carried)
        return u

    @torch.no_grad()
    def start_from(self, u: Tensor, phase: Tensor | None = None) -> None:
        """Initialise the linear path from example fields ``(N, C, *space)``."""
        self.network.start_from(self.normalise(u, phase))
