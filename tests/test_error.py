"""The decoder-error model: unit variance everywhere, correlation that falls off, and the amplitude that was put in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lapse.autoencoder.error import DecoderError
from lapse.autoencoder.model import Autoencoder
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Grid
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.metrics import central_coverage, rank
from lapse.surrogate.objectives import decoder_error_loss


def autoencoder(space: tuple[int, ...], variables: int = 1, **options: Any) -> Autoencoder:
    grid = Grid.periodic_box(space, names=("y", "x")[-len(space) :])
    spec = FieldSpec(tuple(Variable(f"q{i}", "1") for i in range(variables)), grid, 1.0, "s")
    options = {"latent_channels": variables, "width": 8, "encoder_depth": 0, "decoder_depth": 0, **options}
    return Autoencoder(spec, Normaliser(spec), "convolutional", **options)


@pytest.mark.parametrize("space", [(16, 12), (9, 13), (20,)])
def test_noise_has_unit_variance_in_every_cell(space: tuple[int, ...]) -> None:
    ae = autoencoder(space, 2)
    error = DecoderError(ae)
    with torch.no_grad():
        error.mixture.copy_(torch.randn(2, 4))
    count = 4000
    z = torch.randn(1, *ae.latent_shape).expand(count, *ae.latent_shape)
    draws = error(z, torch.randn(count, error.noise_size)).detach() / torch.sigmoid(torch.tensor(-3.0))
    variance, mean = draws.square().mean(dim=0), draws.mean(dim=0)
    # standard errors √(2/N) and 1/√N; five of them leave room for the largest of some hundred cells
    assert (variance - 1).abs().max() < 5 * (2 / count) ** 0.5
    assert mean.abs().max() < 5 / count**0.5
    cross = (draws[:, 0] * draws[:, 1]).mean(dim=0)
    assert cross.abs().max() < 5 / count**0.5  # variables are independent


def test_correlation_falls_with_distance_and_grows_with_coarse_weights() -> None:
    ae = autoencoder((32,))
    error = DecoderError(ae)
    z, noise = torch.zeros(3000, *ae.latent_shape), torch.randn(3000, error.noise_size)

    def correlation(mixture: list[float]) -> list[float]:
        with torch.no_grad():
            error.mixture.copy_(torch.tensor([mixture]))
            e = error(z, noise)[:, 0] / torch.sigmoid(torch.tensor(-3.0))
        return [float((e[:, 8:16] * e[:, 8 + d : 16 + d]).mean()) for d in (0, 1, 2, 4, 8, 14)]

    even = correlation([0.0, 0.0, 0.0, 0.0])
    assert even[:4] == sorted(even[:4], reverse=True) and abs(even[-1]) < 0.03
    assert 0.3 < even[1] < 0.9
    white, coarse = correlation([20.0, 0, 0, 0]), correlation([0, 0, 0, 20.0])
    assert max(map(abs, white[1:])) < 0.03
    assert coarse[1] > 0.9 and coarse[3] > 0.4


def rough_fields(level: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Fields of constant level plus noise without patch means, which 4 x 4 patch means therefore lose.

    Its standard deviation is 0.05 exp(level), ``(N, 1, 1, 1)``, which is returned too.
    """
    noise = torch.randn(len(level), 1, 4, 4, 4, 4, generator=generator)
    noise = (noise - noise.mean(dim=(3, 5), keepdim=True)) * (16 / 15) ** 0.5
    level = level.reshape(-1, 1, 1, 1)
    std = 0.05 * torch.exp(level)
    return 0.25 * level + std * noise.reshape(-1, 1, 16, 16), std


def test_the_fit_recovers_a_known_amplitude_and_is_calibrated() -> None:
    ae = autoencoder((16, 16))
    emulator = Emulator(ae, width=8, depth=1, parts=("error",))
    assert emulator.error is not None
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(emulator.error.parameters(), lr=0.05)
    for step in range(120):
        u, _ = rough_fields(2 * torch.rand(16, generator=generator) - 1, generator)
        loss = decoder_error_loss(emulator, u[:, None], torch.zeros(16, 1, 4), generator)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 120)
        optimiser.step()
    assert torch.softmax(emulator.error.mixture, dim=1)[0, 0] > 0.8  # the error is white, and so is the model

    level, members = torch.linspace(-0.8, 0.8, 60), 19
    u, std = rough_fields(level, generator)
    with torch.no_grad():
        latent = ae.encode(u)
        decoded = ae.decode(latent)
        noise = torch.randn(members, 60, emulator.error.noise_size, generator=generator)
        draws = torch.stack([ae.decode(latent, error=emulator.error(latent.z, n)) for n in noise])
    spread = (draws - decoded).square().mean(dim=(0, 2, 3, 4)).sqrt()
    assert ((spread / std.flatten()) - 1).abs().max() < 0.15  # the amplitude follows the state
    ranks = rank(draws.numpy(), u.numpy(), np.random.default_rng(0))
    coverage = central_coverage(ranks, members, (0.5, 0.9)).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(coverage, (0.5, 0.9), atol=0.03)


def test_the_loss_needs_the_part() -> None:
    emulator = Emulator(autoencoder((16, 16)), width=8, depth=1, parts=("mean",))
    assert emulator.decode_noise_size == 0
    with pytest.raises(ValueError, match="no decoder-error model"):
        decoder_error_loss(emulator, torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 4))
