"""Intervals of designs, widened by what verified ones fell short."""

import numpy as np
import pytest
import xarray as xr

from lapse import SpecError
from lapse.surrogate.trust import hull, widened, widening


def verified(achieved: float, intervals: list[list[float]]) -> xr.Dataset:
    return xr.Dataset({"achieved": ((), achieved), "interval_by_mode": (("mode", "bound"), intervals)})


def test_the_factor_is_an_order_statistic_of_the_scores() -> None:
    """Nine scores 1 … 9: the ⌈10 · 0.9⌉-th of them; a mode without members has no say."""
    designs = [verified(float(k), [[-1.0, 0.5], [0.0, 1.0], [np.nan, np.nan]]) for k in range(1, 10)]
    assert widening(designs) == 9.0
    assert widening([*designs, verified(0.0, [[-1.0, 1.0]])]) == 9.0  # ⌈11 · 0.9⌉ = 10 of 10
    assert widening(designs * 3) == 9.0
    assert widening([verified(0.1, [[-1.0, 1.0]])] * 9) == 1.0, "never narrower"
    assert widened((-1.0, 1.0), 9.0) == (-9.0, 9.0) and widened((2.0, 4.0), 2.0) == (1.0, 5.0)
    assert np.isnan(hull(np.array([[np.nan, np.nan]]))[0])


def test_what_was_widened_holds_the_next_design_with_ninety_per_cent() -> None:
    """Whatever the model's error is like: here a bias of two half widths, with heavy tails."""
    rng, hits = np.random.default_rng(0), []
    for _ in range(1500):
        errors = 2 + rng.standard_t(3, size=20)
        factor = widening([verified(float(e), [[-1.0, 1.0]]) for e in errors[:19]])
        low, high = widened((-1.0, 1.0), factor)
        hits.append(low <= errors[19] <= high)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.025)


def test_what_does_not_tell_is_named_at_once() -> None:
    designs = [xr.Dataset(), verified(1.0, [[np.nan, np.nan]]), verified(1.0, [[0.0, 1.0]])]
    with pytest.raises(SpecError) as caught:
        widening(designs)
    assert [p.where for p in caught.value.problems] == ["verified", "verified[0]", "verified[1]"]
