"""The network of the dynamics: where it does not know where it is, it commutes with shifts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lapse.surrogate.backbone import Backbone, fourier_features


def backbone(**options: Any) -> Backbone:
    net = Backbone(3, 2, (True, True), 8, 2, latent_shape=(6, 5), **options)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return net.double()


def test_it_commutes_with_shifts_unless_it_knows_the_place() -> None:
    x, c = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    moved = x.roll((2, 3), (2, 3))
    net = backbone(condition=4)
    torch.testing.assert_close(net(moved, c), net(x, c).roll((2, 3), (2, 3)), rtol=0, atol=1e-12)
    placed = backbone(condition=4, position=2)
    assert (placed(moved, c) - placed(x, c).roll((2, 3), (2, 3))).abs().max() > 1e-3


def test_a_wall_is_a_place() -> None:
    net = Backbone(1, 1, (False, True), 8, 1).double()
    with torch.no_grad():
        net.head.conv.weight.normal_()
    x = torch.randn(1, 1, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x.roll(2, 3)), net(x).roll(2, 3), rtol=0, atol=1e-12)
    assert (net(x.roll(2, 2)) - net(x).roll(2, 2)).abs().max() > 1e-3


def test_it_starts_at_zero_and_learns_what_the_condition_says() -> None:
    """The target is the sign of the condition, of which the maps say nothing."""
    net = Backbone(1, 1, (True,), 8, 1, condition=2)
    x, c = torch.randn(64, 1, 8), torch.randn(64, 2)
    assert torch.equal(net(x, c), torch.zeros(64, 1, 8))
    target = c[:, :1, None].sign().expand(64, 1, 8)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (net(x, c) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.5
    assert (net(x, c) - net(x, -c)).abs().mean() > 0.5


def test_dropout_is_for_training_only() -> None:
    net, x = backbone(dropout=0.5), torch.randn(1, 3, 6, 5, dtype=torch.float64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_fourier_features_are_cosines_and_sines_at_growing_frequencies() -> None:
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found = fourier_features(t, 8, largest=64.0)
    for row, value in zip(found.tolist(), t.tolist(), strict=True):
        angles = [math.pi * value * 64 ** (j / 3) for j in range(4)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=1e-4)
