"""The latent residual operator R_φ: what a pair of latents breaks its equation by, without decoding or solving.

For the latents z₀ of a frame and z₁ of the next, with D the decoder, Φ the solver's map over the frame interval, N the
normalisation, and W and P the smoothing and the projection of `correction`,

    R(z₀, z₁) = P W N [ D(z₁) − Φ(D(z₀)) ]          what it shall be
    R_φ(z₀, z₁) = A(z₁) − F(z₀)                     the form of every one-step defect: separable
    A = P W N D                                     exact, nothing of it is learned
    F = A ∘ m_φ,     m_φ(z) = ℓ(z) + s M_φ(z)       the only part that is

s is the scale of one frame's change. m_φ is a net of the mean net's kind, started from it, and trained on decoded
states of every sort that a forecast meets (encoded, noised, rolled out, corrected) with the solver's answer to D(z₀) as
its target. That target is free of what compression lost, unlike the frame that really came next. Any pair (z₀, z₁) can
then be read, and z₁ ← z₁ − K R_φ is the correction, with K the gain of `correction`.

Where the decoder is linear, R_φ is A(z₁ − m_φ(z₀)): a correction towards another mean net. Its worth is then that of
its labels (docs/decisions/0051).
"""

from torch import Tensor, nn

from ..autoencoder.model import Autoencoder, Latent
from .backbone import Backbone
from .correction import Correction

__all__ = ["ResidualOperator"]


class ResidualOperator(nn.Module):
    """F of R_φ; ``net`` is M_φ."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.net = net

    def follow(self, start: Tensor, increment: Tensor, context: Tensor, condition: Tensor | None) -> Tensor:
        """m_φ: latents one frame later, as the solver would have it, from the emulator's ``start (B, c, *latent)``."""
        change: Tensor = self.net(context, condition)
        return start + increment * change

    def read(
        self, autoencoder: Autoencoder, projection: Correction, expected: Tensor, found: Tensor, carried: Tensor
    ) -> Tensor:
        """R_φ of z₁ = ``found``, given m_φ(z₀) = ``expected``: ``(B, C·modes, *latent)``, in normalised units."""
        a, f = (projection.project(autoencoder, autoencoder.decode(Latent(z, carried))) for z in (found, expected))
        return a - f
