"""Schedules and samplers on a Gaussian, whose denoiser and whose probability flow are known in closed form.

For data N(m, s²) the flow maps ε at t = 1 to x₀ = m + s ε whenever α₁ = 0, so moments and every single sample are
known, and so is the order at which they are approached.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lapse.surrogate.denoiser import GaussianDenoiser
from lapse.surrogate.sampler import SAMPLERS, Sampler
from lapse.surrogate.schedule import RectifiedFlow, Schedule, VariancePreserving


class Parabola(Schedule):
    """A third path, so that nothing leans on the two that are shipped."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**2

    def sigma(self, t: Tensor) -> Tensor:
        return t * (1 + t) / 2


SCHEDULES: list[Schedule] = [RectifiedFlow(), VariancePreserving(), Parabola()]
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.0, 1.7])


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Schedule) else str(value)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_a_path_leads_from_data_to_noise(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert float(alpha[0]) == 1 and float(sigma[0]) == 0
    assert abs(float(alpha[-1])) < 1e-15 and float(sigma[-1]) == 1
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()


def test_the_shipped_paths_are_what_they_are_called() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = RectifiedFlow()(t)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(t))
    alpha, sigma = VariancePreserving()(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(torch.atan2(sigma, alpha), 0.5 * math.pi * t)  # at constant angular speed


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("rule", sorted(SAMPLERS))
def test_samples_have_the_moments_of_the_target(rule: str, schedule: Schedule) -> None:
    count = 20_000
    sampler = SAMPLERS[rule](GaussianDenoiser(MEAN, STD, schedule), 64 if rule != "euler" else 400)
    x = sampler(torch.randn(count, 3))
    # four standard errors, and 1 % for the discretisation
    assert ((x.mean(dim=0) - MEAN).abs() < 4 * STD / count**0.5 + 0.01 * STD).all()
    assert ((x.std(dim=0) / STD - 1).abs() < 4 / (2 * count) ** 0.5 + 0.01).all()
    third = ((x - x.mean(dim=0)) ** 3).mean(dim=0) / x.std(dim=0) ** 3
    assert (third.abs() < 4 * (6 / count) ** 0.5).all()


def flow_error(rule: str, schedule: Schedule, steps: int, rho: float = 1.5) -> float:
    """Largest distance from the exact flow, over starts, means and standard deviations."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].expand(9, 3)
    mean, std = MEAN.double(), STD.double()
    x = SAMPLERS[rule](GaussianDenoiser(mean, std, schedule), steps, rho)(noise)
    return float((x - (mean + std * noise)).abs().max())


@pytest.mark.parametrize("rho", [1.5, 2.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize(("rule", "order"), [("euler", 1), ("heun", 2), ("ab2", 2)])
def test_the_flow_is_approached_at_the_rule_s_order(rule: str, order: int, schedule: Schedule, rho: float) -> None:
    steps = [64, 128, 256]
    errors = [flow_error(rule, schedule, n, rho) for n in steps]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert np.mean(orders) == pytest.approx(order, abs=0.25), (errors, orders)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=name)
@pytest.mark.parametrize("evaluations", [8, 16])
def test_at_few_evaluations_a_second_order_pays(schedule: Schedule, evaluations: int) -> None:
    """At equal cost, and at the few evaluations that are made in practice."""
    euler, ab2 = (flow_error(rule, schedule, evaluations) for rule in ("euler", "ab2"))
    heun = flow_error("heun", schedule, evaluations // 2)
    assert ab2 < heun < 1.1 * euler and 4 * ab2 < euler


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=name)
@pytest.mark.parametrize("rule", ["heun", "ab2"])
def test_even_times_cost_a_logarithm(rule: str, schedule: Schedule) -> None:
    """steps² times the error grows with the logarithm of the steps; times that are denser near the data spare it."""
    even, denser = ([n**2 * flow_error(rule, schedule, n, rho) for n in (128, 256, 512)] for rho in (1.0, 1.5))
    assert even[0] < even[1] < even[2] < 2 * even[0] and even[2] > 1.15 * even[0]
    assert denser[2] < 1.1 * denser[0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("rule", sorted(SAMPLERS))
def test_a_known_answer_is_reached_in_one_step(rule: str, schedule: Schedule) -> None:
    """A constant estimate makes the flow linear, which every rule integrates exactly, from any number of steps."""
    denoiser = GaussianDenoiser(MEAN.double(), torch.zeros(3, dtype=torch.float64), schedule)
    for steps in (1, 2, 5):
        x = SAMPLERS[rule](denoiser, steps)(torch.randn(4, 3, dtype=torch.float64))
        torch.testing.assert_close(x, MEAN.double().expand(4, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "cost"), [("euler", 6), ("ab2", 6), ("heun", 11)])
def test_evaluations_are_as_stated(rule: str, cost: int) -> None:
    class Counting(GaussianDenoiser):
        calls = 0

        def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
            assert t.shape == (len(x_t),)
            self.calls += 1
            return super().__call__(x_t, t)

    denoiser = Counting(MEAN, STD, RectifiedFlow())
    SAMPLERS[rule](denoiser, 6)(torch.randn(2, 3))
    assert denoiser.calls == cost


@pytest.mark.parametrize("rule", sorted(SAMPLERS))
def test_a_sampler_forgets_and_members_do_not_meet(rule: str) -> None:
    sampler: Sampler = SAMPLERS[rule](GaussianDenoiser(MEAN, STD, RectifiedFlow()), 5)
    noise = torch.randn(6, 3)
    first = sampler(noise)
    assert torch.equal(sampler(noise), first)
    torch.testing.assert_close(sampler(noise[2:4]), first[2:4])


def test_times_run_from_noise_to_data() -> None:
    times = SAMPLERS["euler"](GaussianDenoiser(MEAN, STD, RectifiedFlow()), 4, rho=2.0).times
    assert times.tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    with pytest.raises(ValueError, match="at least 1"):
        SAMPLERS["euler"](GaussianDenoiser(MEAN, STD, RectifiedFlow()), 0)


def test_azula_agrees() -> None:
    """Another library's Euler sampler, on the same path and denoiser, takes the same steps."""
    why = "azula is not installed (pip install --no-deps azula einops)"
    parts = ("denoise", "noise", "sample")
    denoise, noise, sample = (pytest.importorskip(f"azula.{p}", reason=why, exc_type=ImportError) for p in parts)
    ours = GaussianDenoiser(MEAN.double(), STD.double(), RectifiedFlow())

    class Theirs(denoise.Denoiser):  # type: ignore[misc]
        schedule = noise.RectifiedSchedule(alpha_min=1e-12, sigma_min=1e-12)

        def forward(self, x_t: Tensor, t: Tensor) -> object:
            return denoise.DiracPosterior(ours(x_t, t.expand(len(x_t))))

    x = torch.randn(5, 3, dtype=torch.float64)
    wanted = sample.DDIMSampler(Theirs(), steps=7, silent=True, dtype=torch.float64)(x)
    torch.testing.assert_close(SAMPLERS["euler"](ours, 7, rho=1.0)(x), wanted, rtol=0, atol=1e-9)
