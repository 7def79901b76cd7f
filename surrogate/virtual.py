"""Training with physics: what a law says of a sample is observed, virtually, and the network is to explain it.

A residual R(u) of decoded fields, nought where the law holds, is observed to be r̂ = 0 under N(r̂; R(x*), Σ̄ₜ). With x* an
estimate of the data from the noisy state the likelihood adds to the loss of the denoiser (Bastek, Sun & Kochmann 2025,
arXiv:2403.14404, eq. 12)

    E [ wₜ ‖x − x̂(xₜ, t)‖² + 1/(2Σ̄ₜ) ‖R(x*)‖² ],      Σ̄ₜ = Σₜ/c,

with Σₜ the variance of the reverse step that is still to come,

    Σₜ = Var[xₛ | xₜ, x] = σₛ² (1 − (αₜ/αₛ)² σₛ²/σₜ²),      s = t − 1/N,

the posterior variance of a diffusion of N steps on any schedule. It is tight near the data, where x* can be held to the
law, and lax near the noise, where it cannot: the mean of many solutions is no solution. At the last step (s = 0)
nothing is left to vary; the step before it stands in.

x* is one of

    mean     x̂ itself. Cheap, and biased: the law of the mean is not the mean of the law (Jensen), so samples are
             pulled towards fields that obey the law on average, such as those of small amplitude.
    sample   one deterministic step t → 1/N, and x̂ there: close to a draw, for a second pass of the network.
    unroll   n Euler steps of the flow to the data (Baldan et al. 2026, arXiv:2506.08604), n growing with training.

Three kinds of observation: an equality (R), an inequality (max(0, h), lawful where h ≤ 0), both Gaussian as above, and
an objective (J, a scalar a sample), whose exponential likelihood adds c J(x*) without a weight.

The residual is a function of decoded fields, and may be a learned operator on latents as well: whatever `decode` gives
it. A penalty like this never comes alone: a strong one shrinks amplitude and diversity. Measure both beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .denoiser import Denoiser, PreconditionedDenoiser, expand
from .schedule import Schedule

__all__ = ["Observation", "flowed", "posterior_variance", "virtual_losses", "weight"]

Estimate = Literal["mean", "sample", "unroll"]
Kind = Literal["equality", "inequality", "objective"]
Decode = Callable[[Tensor], Tensor]
STEPS = 100  # N, of the diffusion whose posterior variance sets the weight


def posterior_variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Var[xₛ | xₜ, x] for s < t, both ``(B,)``."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return sigma_s**2 * (1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2)


def weight(schedule: Schedule, t: Tensor, steps: int = STEPS) -> Tensor:
    """1/(2Σₜ) for a diffusion of ``steps`` steps, ``t (B,)``."""
    t = t.clamp(min=2 / steps)
    return 0.5 / posterior_variance(schedule, t, t - 1 / steps)


@dataclass(frozen=True)
class Observation:
    """What is observed of decoded fields.

    Attributes:
        residual: fields ``(B, …)`` to ``(B, …)``, differentiable, scaled to order one for a bad sample; for an
            inequality h (lawful where ≤ 0), for an objective a number a sample.
        strength: c. 0 observes nothing.
        kind: equality, inequality or objective.
        estimate: what stands for the sample: mean, sample or unroll.
        power: for "unroll" the weight is (1 − t)^power instead of 1/(2Σₜ).
        steps: N.
    """

    residual: Callable[[Tensor], Tensor]
    strength: float
    kind: Kind = "equality"
    estimate: Estimate = "mean"
    power: float = 1.0
    steps: int = STEPS

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.estimate not in get_args(Estimate):
            raise ValueError(
                f"observation: found kind={self.kind!r}, estimate={self.estimate!r}, wanted one of {get_args(Kind)} "
                f"and one of {get_args(Estimate)}"
            )
        if not self.strength >= 0:
            raise ValueError(f"observation: found strength={self.strength}, wanted 0 or more")

    def loss(self, fields: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """Mean over batch and entries of the weighted misfit of ``fields (B, …)`` estimated at times ``t (B,)``."""
        r = self.residual(fields)
        if self.kind == "objective":
            return self.strength * r.mean()
        if self.kind == "inequality":
            r = torch.relu(r)
        w = (1 - t) ** self.power if self.estimate == "unroll" else weight(schedule, t, self.steps)
        return self.strength * (expand(w, r) * r.square()).mean()


def flowed(denoiser: Denoiser, x_t: Tensor, t: Tensor, steps: int, first: Tensor | None = None) -> Tensor:
    """The data that ``steps`` Euler steps of the flow make of ``x_t``, with gradients through all of them.

    Arguments:
        first: the denoiser's estimate at ``(x_t, t)``, where it is known already.
    """
    estimate = denoiser(x_t, t) if first is None else first
    for i in range(1, steps):
        s = t * (1 - i / steps)
        x_t = _towards(denoiser.schedule, x_t, estimate, t * (1 - (i - 1) / steps), s)
        estimate = denoiser(x_t, s)
    return estimate


def _towards(schedule: Schedule, x_t: Tensor, estimate: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The flow from t to s for a constant estimate."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = expand(sigma_s / sigma_t, x_t)
    return ratio * x_t + (expand(alpha_s, x_t) - expand(alpha_t, x_t) * ratio) * estimate


def virtual_losses(
    denoiser: PreconditionedDenoiser,
    x: Tensor,
    t: Tensor,
    epsilon: Tensor,
    observations: Sequence[Observation],
    decode: Decode = lambda x: x,
    channels: Tensor | None = None,
    unroll: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """The denoiser's loss, and what the observations add to it (None where all have strength 0).

    Arguments:
        x: data of unit variance, ``(B, …)``; ``t (B,)`` and ``epsilon`` like x: times and noise.
        decode: from what the denoiser speaks of to the fields that residuals take.
        channels: weights of the denoiser's loss.
        unroll: Euler steps of the estimate "unroll".
    """
    active = [o for o in observations if o.strength]
    if not active:
        return denoiser.loss(x, t, epsilon, channels), None
    schedule = denoiser.schedule
    alpha, sigma = (expand(c, x) for c in schedule(t))
    x_t = alpha * x + sigma * epsilon
    first = denoiser(x_t, t)
    error = (first - x).square() * (alpha**2 + sigma**2) / sigma**2
    data = (error if channels is None else error * channels).mean()
    fields: dict[tuple[str, int], Tensor] = {}
    physics = x.new_zeros(())
    for o in active:
        key = (o.estimate, o.steps)
        if key not in fields:
            fields[key] = decode(_estimate(denoiser, x_t, t, first, o, unroll))
        physics = physics + o.loss(fields[key], schedule, t)
    return data, physics


def _estimate(denoiser: Denoiser, x_t: Tensor, t: Tensor, first: Tensor, o: Observation, unroll: int) -> Tensor:
    if o.estimate == "mean":
        return first
    if o.estimate == "unroll":
        return flowed(denoiser, x_t, t, unroll, first)
    s = torch.minimum(t, torch.full_like(t, 1 / o.steps))
    return denoiser(_towards(denoiser.schedule, x_t, first, t, s), s)
