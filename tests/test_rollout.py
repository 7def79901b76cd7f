"""Rollouts: they are differentiable, draw what they say, and leave members alone."""

import copy

import pytest
import torch

from lapse.surrogate.model import Model
from lapse.surrogate.noise import member_generator
from lapse.surrogate.rollout import finite_members, repeat_state, rollout


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [member_generator(0, 0, m) for m in range(first, first + count)]


@pytest.mark.parametrize("mode", ["mean", "fast", "quality"])
def test_gradient_of_the_forecast_with_respect_to_the_initial_field(tiny_model: Model, mode: str) -> None:
    """d(objective of the last field)/d(initial field) against central differences along random directions, float64."""
    emulator = copy.deepcopy(tiny_model.emulator).double()
    random = torch.Generator().manual_seed(1)
    u = torch.randn(1, 2, 1, 16, 16, generator=random, dtype=torch.float64)
    weight = torch.randn(1, 1, 16, 16, generator=random, dtype=torch.float64)

    def objective(u: torch.Tensor) -> torch.Tensor:
        fields = [f for _, f in rollout(emulator, emulator.encode(u), 3, mode, generators(1))]
        return (weight * fields[-1]).mean() + fields[-1].mean()

    u.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(u), u)
    assert gradient.abs().max() > 1e-6
    for _ in range(3):
        d, h = torch.randn(u.shape, generator=random, dtype=torch.float64), 1e-5
        with torch.no_grad():
            difference = (objective(u + h * d) - objective(u - h * d)) / (2 * h)
        assert float((gradient * d).sum()) == pytest.approx(float(difference), rel=1e-6)
    # The head carries the area mean, so that its derivative by the field is known: one, spread over the cells.
    final = [f for _, f in rollout(emulator, emulator.encode(u), 3, mode, generators(1))][-1]
    (mean,) = torch.autograd.grad(final.mean(), u)
    torch.testing.assert_close(mean[:, 1], torch.full_like(mean[:, 1], 1 / 256), rtol=1e-9, atol=1e-12)
    assert mean[:, 0].abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_members_do_not_see_each_other(tiny_model: Model, mode: str) -> None:
    emulator = tiny_model.emulator
    u = torch.randn(1, 2, 1, 16, 16)
    with torch.no_grad():
        state = emulator.encode(u)
        together = [f for _, f in rollout(emulator, repeat_state(state, 8), 3, mode, generators(8))]
        apart = [f for _, f in rollout(emulator, repeat_state(state, 4), 3, mode, generators(4, first=4))]
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a[4:], b)
    assert together[-1].std(dim=0).min() > 0


def test_the_mean_draws_nothing(tiny_model: Model) -> None:
    emulator, noise = tiny_model.emulator, generators(2)
    before = [g.get_state() for g in noise]
    with torch.no_grad():
        state = repeat_state(emulator.encode(torch.randn(1, 2, 1, 16, 16)), 2)
        ((_, fields),) = rollout(emulator, state, 1, "mean", noise)
    assert torch.equal(fields[0], fields[1])
    assert all(torch.equal(g.get_state(), b) for g, b in zip(noise, before, strict=True))


@pytest.mark.parametrize(("count", "message"), [(0, "needs one generator a member, 3 in all"), (2, "2 for 3 members")])
def test_generators_must_be_one_a_member(tiny_model: Model, count: int, message: str) -> None:
    state = repeat_state(tiny_model.emulator.encode(torch.randn(1, 2, 1, 16, 16)), 3)
    with pytest.raises(ValueError, match=message):
        next(rollout(tiny_model.emulator, state, 1, "fast", generators(count)))


def test_finite_members() -> None:
    fields = torch.zeros(3, 2, 4, 4)
    fields[1, 1, 2, 3], fields[2, 0, 0, 0] = torch.nan, torch.inf
    assert finite_members(fields).tolist() == [True, False, False]
