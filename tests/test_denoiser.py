"""The preconditioning, by algebra and on data whose best network is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lapse.surrogate.denoiser import GaussianDenoiser, PreconditionedDenoiser, logit_normal
from lapse.surrogate.schedule import RectifiedFlow, Schedule, VariancePreserving

SCHEDULES: list[Schedule] = [RectifiedFlow(), VariancePreserving()]
by_name = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
T = torch.linspace(0.05, 1, 20, dtype=torch.float64)


class Spy:
    """A network that answers with a given function and remembers what it was shown."""

    def __init__(self, answer: float | Tensor = 0.0, slope: Tensor | float = 0.0) -> None:
        self.answer, self.slope = answer, slope

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = x
        return self.answer + self.slope * x


@by_name
def test_the_network_sees_and_is_asked_for_unit_variance(schedule: Schedule) -> None:
    spy = Spy()
    denoiser = PreconditionedDenoiser(spy, schedule)
    alpha, sigma = (c[:, None] for c in schedule(T))
    x_t = torch.randn(20, 5, dtype=torch.float64)
    skip = denoiser(x_t, T)
    c_in = spy.seen / x_t
    torch.testing.assert_close(c_in**2 * (alpha**2 + sigma**2), torch.ones_like(c_in))
    spy.answer = 1.0
    c_out, c_skip = (denoiser(x_t, T) - skip), skip / x_t
    # of data and noise of unit variance: what the network has to say has unit variance, and is uncorrelated with x_t
    target_variance = (1 - c_skip * alpha) ** 2 + (c_skip * sigma) ** 2
    torch.testing.assert_close(target_variance, c_out**2)
    torch.testing.assert_close(alpha - c_skip * (alpha**2 + sigma**2), torch.zeros_like(c_skip))


@by_name
def test_it_is_exact_with_the_best_linear_network(schedule: Schedule) -> None:
    """For data N(m, s²) the best F is affine in its input; with it the denoiser is the Gaussian one."""
    mean, std = torch.tensor([0.0, -0.7, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.3, 1.5], dtype=torch.float64)
    alpha, sigma = (c[:, None] for c in schedule(T))
    norm = alpha**2 + sigma**2
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    slope = (gain - alpha / norm) * norm / sigma
    offset = mean * (1 - gain * alpha) * norm.sqrt() / sigma
    x_t = 3 * torch.randn(20, 3, dtype=torch.float64)
    ours = PreconditionedDenoiser(Spy(offset, slope), schedule)(x_t, T)
    torch.testing.assert_close(ours, GaussianDenoiser(mean, std, schedule)(x_t, T), rtol=1e-10, atol=1e-12)
    assert slope[:, 0].abs().max() < 1e-12  # data of unit variance: F = 0


@by_name
def test_the_gaussian_denoiser_is_the_posterior_mean(schedule: Schedule) -> None:
    """By regression of data on noisy data: the residual is uncorrelated with everything linear."""
    denoiser = GaussianDenoiser(torch.tensor([1.0]), torch.tensor([0.5]), schedule)
    x = 1 + 0.5 * torch.randn(200_000, 1)
    t = torch.full((len(x),), 0.4)
    alpha, sigma = schedule(t[:1])
    x_t = alpha * x + sigma * torch.randn_like(x)
    error = x - denoiser(x_t, t)
    assert abs(float(error.mean())) < 4 * 0.5 / len(x) ** 0.5
    assert abs(float((error * (x_t - x_t.mean())).mean())) < 4 * 0.5 / len(x) ** 0.5
    known = 0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)
    assert float(error.var()) == pytest.approx(float(known), rel=0.02)


@by_name
def test_every_noise_level_counts_alike(schedule: Schedule) -> None:
    """With F = 0, the best answer for unit Gaussian data, the weighted loss is 1 at any time."""
    denoiser, n = PreconditionedDenoiser(Spy(), schedule), 40_000
    for t in (0.02, 0.3, 0.7, 0.98):
        loss = denoiser.loss(torch.randn(n, 2), torch.full((n,), t), torch.randn(n, 2))
        assert float(loss) == pytest.approx(1.0, abs=4 * (2 / (2 * n)) ** 0.5)


def test_the_loss_by_hand() -> None:
    x, epsilon = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    weight = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    denoiser = PreconditionedDenoiser(Spy(0.3, -0.2), RectifiedFlow())
    total = 0.0
    for i in range(4):
        s = float(t[i])
        x_t = (1 - s) * x[i] + s * epsilon[i]
        norm = (1 - s) ** 2 + s**2
        x_hat = (1 - s) / norm * x_t + s / norm**0.5 * (0.3 - 0.2 * x_t / norm**0.5)
        total += float((weight * (x_hat - x[i]) ** 2 * norm / s**2).mean()) / 4
    assert float(denoiser.loss(x, t, epsilon, weight)) == pytest.approx(total, rel=1e-12)


def test_training_times_are_logit_normal() -> None:
    n = 40_000
    t = logit_normal(n, torch.Generator().manual_seed(0), mean=-0.4, std=1.2)
    for p in (0.05, 0.25, 0.5, 0.75, 0.95):
        z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1)))
        want = 1 / (1 + math.exp(-(-0.4 + 1.2 * z)))
        assert float((t <= want).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)
    assert t.min() >= 1e-3 and t.max() <= 1 - 1e-3
    again = logit_normal(n, torch.Generator().manual_seed(0), mean=-0.4, std=1.2)
    assert torch.equal(t, again)
    edges = logit_normal(1000, std=50.0)
    assert edges.min() == 1e-3 and edges.max() == 1 - 1e-3
