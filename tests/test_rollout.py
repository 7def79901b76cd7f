"""Rollouts: they are differentiable, draw what they say, and leave members alone."""

import copy
from collections.abc import Callable

import pytest
import torch

import lapse
from lapse.physics.equation import equation
from lapse.physics.grid import Axis, Grid
from lapse.physics.spectrum import band_power
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.model import Model
from lapse.surrogate.noise import member_generator
from lapse.surrogate.rollout import finite_members, refreshed, repeat_state, rollout
from lapse.surrogate.state import State


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


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_members_do_not_see_each_other_on_an_odd_grid(make_model: Callable[..., Model], mode: str) -> None:
    """Neither the numbers of a field nor those of a batch fill the processor's vectors."""
    axes = Axis("y", tuple(range(11)), "m"), Axis("x", tuple(range(13)), "m", periodic=True)
    emulator = make_model(grid=Grid(axes), equation=None).emulator
    u = torch.randn(1, 2, 1, 11, 13)
    with torch.no_grad():
        state = emulator.encode(u)
        together = [f for _, f in rollout(emulator, repeat_state(state, 13), 2, mode, generators(13))]
        for first, count in ((0, 5), (6, 7), (9, 4)):
            few = [f for _, f in rollout(emulator, repeat_state(state, count), 2, mode, generators(count, first=first))]
            for a, b in zip(together, few, strict=True):
                assert torch.equal(a[first : first + count], b), (first, count)


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


def test_a_rollout_goes_on_from_the_encoders_latents_every_so_often(tiny_model: Model) -> None:
    """What is yielded is the frame itself; the next one follows from D and E of it, context frames included."""
    emulator = copy.deepcopy(tiny_model.emulator)
    emulator.refresh = 2
    with torch.no_grad():
        start = repeat_state(emulator.encode(torch.randn(1, 2, 1, 16, 16)), 4)
        found = [s for s, _ in rollout(emulator, start, 3, "mean")]
        free = emulator.advance(emulator.advance(start, mode="mean"), mode="mean")
        assert torch.equal(found[1].z, free.z)
        again = refreshed(emulator, free)
        for k in range(2):
            before = emulator.decode(State(free.z[:, : k + 1], free.carried))
            z = emulator.autoencoder.encode(before).z
            torch.testing.assert_close(again.z[:, k], z)
        assert not torch.allclose(again.z, free.z, rtol=1e-3)
        assert torch.equal(found[2].z, emulator.advance(again, mode="mean").z)


def test_refresh_cannot_be_shorter_than_the_context(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match=r"emulator\.refresh: found 1, wanted at least history, 2"):
        Emulator(tiny_model.emulator.autoencoder, history=2, refresh=1)


def test_a_long_run_keeps_its_climate() -> None:
    """Two hundred frames of the shipped flow: band powers stay near the truth's. Without refreshing they do not."""
    model = lapse.load("kolmogorov64")
    emulator, grid = copy.deepcopy(model.emulator), model.spec.grid
    law = equation("kolmogorov", grid, viscosity=0.012)
    u = law.spin_up(torch.Generator().manual_seed(5), 4, 20.0)
    edges = (0.5, 3.5, 7.5, 1e9)
    largest = {}
    for refresh in (20, None):
        emulator.refresh = refresh
        with torch.no_grad():
            *_, (_, fields) = rollout(emulator, emulator.encode(u[:, None]), 200, "fast", generators(4))
        ratio = band_power(fields[:, 0], grid, edges).mean(dim=0) / band_power(u[:, 0], grid, edges).mean(dim=0)
        largest[refresh] = float(ratio.log().abs().max())
    assert largest[20] < 1.1 < largest[None]  # a factor of three
