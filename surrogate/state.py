"""Where a rollout is: the latents of the last frames."""

from dataclasses import dataclass, field

from torch import Tensor

from ..autoencoder.model import Latent

__all__ = ["State"]


@dataclass
class State:
    """``z (B, history, c, *latent)``, newest frame last, and the carried conserved quantities ``(B, C)``.

    ``cells`` is what the network decodes of the newest frame, once it was: a coarse start needs it, too.
    Make a new State rather than change one.
    """

    z: Tensor
    carried: Tensor
    cells: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def latent(self) -> Latent:
        """The newest frame."""
        return Latent(self.z[:, -1], self.carried)
