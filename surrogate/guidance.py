"""Laws held while a sample is drawn: a denoiser that corrects what another one estimates.

    x̂ → C(x̂)      for noise levels t ≤ `below`

Every sampler takes it unchanged, and ends with an estimate of the data: with C in force at the last step, samples obey
whatever C makes true (exactly where the sampler's last step is C(x̂) itself, as in `Euler` and `Heun`; where it
extrapolates, as in `AdamsBashforth`, if the law is affine). Where C is a closed form (given values, a mean, a linear
law, a pressure that is solved for) this is the correction of ECI sampling (Cheng et al. 2025, arXiv:2412.01786)
without its mixing; where C is :func:`~lapse.physics.monotone.monotone` it is gradient guidance whose steps cannot
overshoot, and through which no gradient reaches the network.

It costs one C an evaluation of the denoiser. A single C on the finished sample is cheaper and, where the correction is
small, does as well (`docs/decisions`); try that first.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser, expand

__all__ = ["Guided"]


class Guided(Denoiser):
    """The denoiser ``C(x̂)``.

    Arguments:
        denoiser: gives x̂; its schedule is kept.
        correct: C, ``(B, …)`` to the same, in the denoiser's own variables.
        below: largest noise level at which C is applied; estimates from much noise are means over many samples, which
            need not obey a nonlinear law.
    """

    def __init__(self, denoiser: Denoiser, correct: Callable[[Tensor], Tensor], below: float = 1.0) -> None:
        self.denoiser, self.correct, self.below = denoiser, correct, below
        self.schedule = denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        estimate = self.denoiser(x_t, t)
        if bool((t > self.below).all()):
            return estimate
        return torch.where(expand(t, x_t) <= self.below, self.correct(estimate), estimate)
