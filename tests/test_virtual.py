"""Training with physics: weights against Gaussian conditioning and PIDM's formula, estimates, conflict-free updates."""

import math

import pytest
import torch

from lapse.surrogate.conflict import conflict_free, conflict_free_loss
from lapse.surrogate.denoiser import GaussianDenoiser, PreconditionedDenoiser
from lapse.surrogate.sampler import Euler
from lapse.surrogate.schedule import RectifiedFlow, VariancePreserving
from lapse.surrogate.virtual import Observation, flowed, posterior_variance, virtual_losses, weight

SCHEDULES = [RectifiedFlow(), VariancePreserving()]


def radius(x):
    return x.square().sum(dim=1) - 1


def net():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 2))
    return layers, PreconditionedDenoiser(lambda x, t: layers(torch.cat([x, t[:, None]], 1)), RectifiedFlow())


def batch(n=64):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, generator=g), torch.rand(n, generator=g) * 0.9 + 0.05, torch.randn(n, 2, generator=g)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_posterior_variance_is_that_of_a_gaussian(schedule):
    """x_s and x_t are jointly normal given x; the Schur complement of their covariance is the answer."""
    s, t = torch.tensor([0.05, 0.3, 0.6], dtype=torch.float64), torch.tensor([0.1, 0.4, 0.95], dtype=torch.float64)
    (a_s, b_s), (a_t, b_t) = schedule(s), schedule(t)
    # the forward step: x_t = (α_t/α_s) x_s + rest, so Cov(x_s, x_t | x) = (α_t/α_s) σ_s²
    covariance = a_t / a_s * b_s**2
    torch.testing.assert_close(posterior_variance(schedule, t, s), b_s**2 - covariance**2 / b_t**2)


def test_the_weight_is_pidms():
    """Σₜ = (1 − ᾱₜ₋₁)/(1 − ᾱₜ) βₜ of a variance-preserving diffusion; the last step but one stands in for the last."""
    N, schedule = 100, VariancePreserving()
    k = torch.arange(2, N, dtype=torch.float64)
    bar = [torch.cos(math.pi / 2 * i / N) ** 2 for i in (k - 1, k)]
    beta = 1 - bar[1] / bar[0]
    torch.testing.assert_close(weight(schedule, k / N, N), 0.5 / ((1 - bar[0]) / (1 - bar[1]) * beta))
    close = torch.tensor([0.001, 0.01, 0.02], dtype=torch.float64)
    assert weight(schedule, close, N).unique().numel() == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_losses_of_a_known_denoiser(schedule):
    """All data at one point of radius 2: whatever the noise, the estimate is that point, and R = 3."""
    point = torch.tensor([[2.0, 0.0]])
    denoiser = GaussianDenoiser(point, torch.tensor(0.0), schedule)
    t = torch.tensor([0.3, 0.7])
    x_t = torch.randn(2, 2)
    for n in (1, 3):
        torch.testing.assert_close(flowed(denoiser, x_t, t, n), point.expand(2, 2))
    o = Observation(radius, 0.1)
    torch.testing.assert_close(o.loss(point.expand(2, 2), schedule, t), 0.1 * 9 * weight(schedule, t).mean())
    unrolled = Observation(radius, 0.1, estimate="unroll", power=2.0)
    torch.testing.assert_close(unrolled.loss(point.expand(2, 2), schedule, t), 0.9 * (1 - t).square().mean())
    below = Observation(lambda x: x[:, 0] - 3, 5.0, "inequality")
    assert below.loss(point, schedule, t[:1]) == 0
    above = Observation(lambda x: 3 - x[:, 0], 5.0, "inequality")
    torch.testing.assert_close(above.loss(point, schedule, t[:1]), 5 * weight(schedule, t[:1]).mean())
    least = Observation(lambda x: x[:, 0], 0.25, "objective")
    torch.testing.assert_close(least.loss(point.expand(2, 2), schedule, t), torch.tensor(0.5))


def test_unrolling_is_the_samplers_own_flow():
    denoiser = GaussianDenoiser(torch.tensor(0.3), torch.tensor(1.5), RectifiedFlow())
    noise = torch.randn(5, 2)
    x_1 = denoiser.schedule.sigma(torch.ones(1)) * noise
    torch.testing.assert_close(flowed(denoiser, x_1, torch.ones(5), 7), Euler(denoiser, 7, rho=1.0)(noise))


def test_without_strength_it_is_the_plain_loss_bit_for_bit():
    layers, denoiser = net()
    x, t, epsilon = batch()
    plain = denoiser.loss(x, t, epsilon)
    for seen in ([], [Observation(radius, 0.0), Observation(radius, 0.0, estimate="unroll")]):
        got, physics = virtual_losses(denoiser, x, t, epsilon, seen)
        assert torch.equal(got, plain) and physics is None
        wanted, found = (torch.autograd.grad(f, list(layers.parameters()), retain_graph=True) for f in (plain, got))
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    data, physics = virtual_losses(denoiser, x, t, epsilon, [Observation(radius, 1e-3)])
    torch.testing.assert_close(data, plain)
    assert physics > 0


@pytest.mark.parametrize("estimate", ["mean", "sample", "unroll"])
def test_estimates_and_their_passes(estimate):
    """Mean: one pass. Sample: a second one at 1/N. Unroll: n of them. The residual takes what was decoded."""
    layers, _ = net()
    seen = []

    def network(x, t):
        seen.append(t)
        return layers(torch.cat([x, t[:, None]], 1))

    denoiser = PreconditionedDenoiser(network, RectifiedFlow())
    x, t, epsilon = batch(8)
    o = Observation(lambda u: u - 5, 1.0, estimate=estimate, steps=50)
    _, loss = virtual_losses(denoiser, x, t, epsilon, [o, o], lambda v: v + 5, unroll=3)
    assert len(seen) == {"mean": 1, "sample": 2, "unroll": 3}[estimate]
    if estimate == "sample":
        assert torch.equal(seen[1], torch.full_like(t, 1 / 50))
    x_t = (1 - t)[:, None] * x + t[:, None] * epsilon
    first = denoiser(x_t, t)
    if estimate == "mean":
        torch.testing.assert_close(loss, 2 * (weight(denoiser.schedule, t, 50)[:, None] * first.square()).mean())
    if estimate == "unroll":
        want = ((1 - t)[:, None] * flowed(denoiser, x_t, t, 3).square()).mean()
        torch.testing.assert_close(loss, 2 * want)


@pytest.mark.parametrize("m", [2, 3])
def test_conflict_free_updates_lower_every_loss(m):
    """Equal, positive cosines with all gradients, whatever their sizes; as long as they agree."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = 10.0 ** torch.randint(-3, 4, (m, 1), generator=g)
        gradients = list(sizes * torch.randn(m, 50, generator=g))
        update = conflict_free(gradients)
        cosines = torch.stack([torch.cosine_similarity(update, v, dim=0) for v in gradients])
        assert (cosines > 0).all()
        torch.testing.assert_close(cosines, cosines[:1].expand(m), rtol=1e-3, atol=1e-4)
        along = sum(v @ update for v in gradients) / update.norm()
        torch.testing.assert_close(update.norm(), along, rtol=1e-4, atol=1e-4)


def test_conflict_free_updates_of_simple_cases():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(conflict_free([a, b]), torch.tensor([2.0, 2.0]))  # on the bisector, (1 + 3)/√2 long
    torch.testing.assert_close(conflict_free([a, a]), 2 * a)
    torch.testing.assert_close(conflict_free([a]), a)
    assert conflict_free([a, -a]).norm() < 1e-6
    torch.testing.assert_close(conflict_free([a, torch.full((2,), float("nan"))]), a)
    assert torch.equal(conflict_free([0 * a, 0 * a]), 0 * a)


def test_the_conflict_free_loss_has_the_updates_gradient():
    layers, denoiser = net()
    x, t, epsilon = batch()
    losses = virtual_losses(denoiser, x, t, epsilon, [Observation(radius, 1e-2)])
    parameters = list(layers.parameters())
    each = [torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)]) for f in losses]
    loss = conflict_free_loss(losses, parameters)
    torch.testing.assert_close(loss, sum(losses))
    loss.backward()
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters]), conflict_free(each))


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=r"found kind='law', estimate='mean', wanted one of \('equality'"):
        Observation(radius, 1.0, "law")
    with pytest.raises(ValueError, match="found strength=-1, wanted 0 or more"):
        Observation(radius, -1)
