"""The Langevin chain against distributions that are known."""

import math

import numpy as np
import pytest
import torch

from lapse.surrogate.langevin import langevin


def last(potential, start, steps, seed):
    g = torch.Generator().manual_seed(seed)
    return list(langevin(potential, start(g), steps, g))[-1]


def test_the_chain_samples_a_gaussian_posterior():
    """Φ = ½ (a·x − y)²/r with a normal prior: mean and variance along a are known, and across it nothing changes."""
    a, y, r = torch.tensor([3.0, 0.0, 0.0]).double(), 2.0, 0.5

    def potential(x):
        off = float(a @ x) - y
        return 0.5 * off * off / r, off / r * a, None

    ends = [last(potential, lambda g: torch.randn(3, generator=g).double(), 60, k) for k in range(500)]
    x = torch.stack([e.x for e in ends])
    variance = 1 / (1 + 9 / r)
    assert float(x[:, 0].mean()) == pytest.approx(variance * 3 * y / r, abs=0.05)
    assert float(x[:, 0].var()) == pytest.approx(variance, rel=0.2)
    torch.testing.assert_close(x[:, 1:].var(dim=0), torch.ones(2).double(), atol=0.15, rtol=0)
    assert 0.3 < np.mean([e.acceptance for e in ends]) < 0.85


def test_one_long_chain_keeps_a_distribution_that_is_not_gaussian():
    """Φ = x⁴/4: the second moment by quadrature. A wrong acceptance would show here."""
    x = torch.linspace(-6, 6, 4001).double()
    density = torch.exp(-(x**4) / 4 - x**2 / 2)
    second = float((density * x**2).sum() / density.sum())
    g = torch.Generator().manual_seed(0)
    chain = langevin(lambda x: (float(x**4 / 4), x**3, None), torch.zeros(1).double(), 12000, g)
    kept = torch.cat([link.x for link in chain])[6000:]
    assert float(kept.square().mean()) == pytest.approx(second, rel=0.06)


def test_chains_from_different_draws_find_both_answers_and_walls_are_not_crossed():
    def potential(x):  # wells at ±2, and nothing beyond 4
        if float(x.abs()) > 4:
            return math.inf, torch.full_like(x, math.nan), None
        return 8 * (float(x**2) / 4 - 1) ** 2, 8 * x * (x**2 / 4 - 1), None

    found = [last(potential, lambda g: torch.randn(1, generator=g).double(), 60, k) for k in range(40)]
    x = torch.cat([f.x for f in found])
    assert 8 <= int((x > 0).sum()) <= 32 and float((x.abs() - 1.8).abs().mean()) < 0.4


def test_without_an_objective_every_step_is_taken():
    g = torch.Generator().manual_seed(0)
    *_, end = langevin(lambda x: (0.0, torch.zeros_like(x), None), torch.zeros(500), 20, g)
    assert end.acceptance == 1 and float(end.x.std()) == pytest.approx(1, rel=0.1)
