"""Noise of a member: a function of (seed, init_time, member), in one spelling, and standard normal."""

from datetime import datetime
from typing import Any

import cftime
import numpy as np
import pytest
import torch

from lapse.surrogate.noise import draw, member_generator, spelling


def numbers(seed: int = 0, init_time: Any = 0.0, member: int = 0, size: int = 8) -> list[float]:
    return draw([member_generator(seed, init_time, member)], size)[0].tolist()


def test_a_member_depends_on_seed_start_and_index_alone() -> None:
    wanted = numbers(3, 1.5, 7)
    for _ in range(5):
        numbers(np.random.randint(100), np.random.rand(), np.random.randint(100))
    torch.manual_seed(99)
    assert numbers(3, 1.5, 7) == wanted
    others = [numbers(4, 1.5, 7), numbers(3, 1.75, 7), numbers(3, 1.5, 8)]
    assert all(set(o).isdisjoint(wanted) for o in others)


def test_order_and_company_do_not_matter() -> None:
    together = draw([member_generator(0, 0, m) for m in range(6)], 10)
    backwards = draw([member_generator(0, 0, m) for m in reversed(range(6))], 10)
    assert torch.equal(together, backwards.flip(0))
    assert torch.equal(together[4:5], draw([member_generator(0, 0, 4)], 10))


def test_a_longer_forecast_begins_with_the_shorter() -> None:
    short, long = member_generator(0, 0, 0), member_generator(0, 0, 0)
    first = torch.cat([draw([short], 6) for _ in range(2)])
    assert torch.equal(first, torch.cat([draw([long], 6) for _ in range(5)])[:2])


@pytest.mark.parametrize(
    "same",
    [
        (np.datetime64("2001-02-03T06"), np.datetime64("2001-02-03T06:00:00", "ns"), datetime(2001, 2, 3, 6),
         cftime.DatetimeNoLeap(2001, 2, 3, 6), cftime.DatetimeGregorian(2001, 2, 3, 6)),
        (3, 3.0, np.float64(3), np.int16(3), np.array(3.0)),
        (0.0, -0.0),
    ],
    ids=["dates", "numbers", "zero"],
)  # fmt: skip
def test_one_instant_has_one_spelling(same: tuple[Any, ...]) -> None:
    assert len({spelling(t) for t in same}) == 1
    assert len({tuple(numbers(init_time=t)) for t in same}) == 1


def test_spelling_is_the_documented_one() -> None:
    assert spelling(np.datetime64("2001-02-03", "D")) == "2001-02-03T00:00:00.000000"
    assert spelling(cftime.Datetime360Day(1, 2, 30, 4, 5, 6, 7)) == "0001-02-30T04:05:06.000007"
    assert spelling(np.float32(0.5)) == "0.5"
    microseconds = [cftime.DatetimeNoLeap(2001, 1, 1, 0, 0, 0, us) for us in (0, 1)]
    assert spelling(microseconds[0]) != spelling(microseconds[1])


def test_the_numbers_are_those_of_the_documented_recipe() -> None:
    """Stated anew, so that no later change alters published ensembles unseen."""
    import hashlib

    start = int.from_bytes(hashlib.sha256(b"2001-01-01T00:00:00.000000").digest()[:8], "big")
    (state,) = np.random.SeedSequence([5, start, 2]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state) & (2**63 - 1))
    assert numbers(5, np.datetime64("2001-01-01"), 2, 4) == torch.randn(4, generator=generator).tolist()


def test_moments_and_independence() -> None:
    """Within five standard errors of zero mean, unit variance, normal kurtosis and no correlation of neighbours."""
    x = draw([member_generator(0, 0.2 * (m % 10), m // 10) for m in range(200)], 2000).double()
    n = x.numel()
    assert abs(x.mean()) < 5 / n**0.5
    assert abs(x.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs((x[1:] * x[:-1]).mean()) < 5 / n**0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 5 / n**0.5


@pytest.mark.parametrize(("seed", "member"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed: int, member: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        member_generator(seed, 0, member)
