"""The autoencoder's networks: any grid, the start as patch-wise PCA, exact commutation with shifts, bounded latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lapse.autoencoder.model import Autoencoder
from lapse.autoencoder.network import ConvolutionalAutoencoder, PatchAutoencoder, equalising_rotation, saturate
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Grid

SMALL: dict[str, Any] = {"width": 8, "encoder_depth": 1, "decoder_depth": 1}
GRIDS = [
    ((25, 53), (False, False)),
    ((25, 53), (True, True)),
    ((16, 24), (True, True)),
    ((37,), (True,)),
    ((37,), (False,)),
]


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """With weights that are not zero where training starts at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.double()


@pytest.mark.parametrize(("space", "periodic"), GRIDS)
@pytest.mark.parametrize(
    "options", [{"factor": 4, "patch": 4}, {"factor": 8, "patch": 2}, {"factor": 4, "position": 2}]
)
def test_any_grid_is_encoded_and_decoded(
    space: tuple[int, ...], periodic: tuple[bool, ...], options: dict[str, Any]
) -> None:
    network = ConvolutionalAutoencoder(2, space, periodic, 3, **SMALL, **options)
    x = torch.randn(2, 2, *space)
    z = network.encode(x)
    assert z.shape == (2, *network.latent_shape) == (2, 3, *(-(-n // options["factor"]) for n in space))
    assert network.decode(z).shape == x.shape
    network.decode(network.encode(x)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("space", "periodic"), GRIDS)
def test_with_as_many_numbers_as_a_patch_nothing_is_lost(space: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    """The linear path is then a rotation, on padded grids too; small fields, that the bound leaves alone."""
    network = ConvolutionalAutoencoder(2, space, periodic, 2 * 2 ** len(space), factor=2, patch=2, **SMALL).double()
    x = 1e-4 * torch.randn(2, 2, *space, dtype=torch.float64)
    torch.testing.assert_close(network.decode(network.encode(x)), x, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("space", "factor", "keep"), [((24, 16), 4, 3), ((32,), 8, 5)])
def test_the_start_is_patchwise_pca(space: tuple[int, ...], factor: int, keep: int) -> None:
    n, channels = len(space), 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, channels, *space, generator=generator, dtype=torch.float64)
    for axis in range(2, 2 + n):  # smooth, so that the spectrum falls
        x = x + x.roll(1, axis) + x.roll(2, axis)
    network = ConvolutionalAutoencoder(channels, space, (True,) * n, keep, factor=factor, patch=factor, **SMALL)
    network = network.double()
    network.start_from(x)

    cells = [x.numpy()]
    for axis in range(2, 2 + n):
        cells = [part for c in cells for part in np.split(c, space[axis - 2] // factor, axis)]
    patches = np.concatenate([c.reshape(len(x), -1) for c in cells])
    values = np.linalg.svd(patches, compute_uv=False) ** 2 / len(patches)
    small = 1e-4 * x  # where s(z) is z
    error = (network.decode(network.encode(small)) - small).square().sum() / small.square().sum()
    assert error.item() == pytest.approx(values[keep:].sum() / values.sum(), rel=1e-5)
    latents = network.encode(small) / 1e-4
    variance = latents.movedim(1, -1).flatten(0, -2).square().mean(dim=0)
    torch.testing.assert_close(variance, torch.ones(keep, dtype=torch.float64), rtol=1e-5, atol=0)

    # An error of the latents is as large as the error of the field that it makes, whatever its direction.
    z, change = torch.zeros_like(latents), torch.randn_like(latents)
    made = network.decode(z + change) - network.decode(z)
    gain = made.square().sum(dim=tuple(range(1, made.ndim))) / change.square().sum(dim=tuple(range(1, change.ndim)))
    torch.testing.assert_close(gain, torch.full_like(gain, values[:keep].mean()), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", [[1.0], [4.0, 4.0, 4.0], [10.0, 1.0, 0.1, 1e-9], [0.0, 0.0]])
def test_a_rotation_that_equalises_variances(variance: list[float]) -> None:
    v = torch.tensor(variance, dtype=torch.float64)
    Q = equalising_rotation(v)
    torch.testing.assert_close(Q.T @ Q, torch.eye(len(v), dtype=torch.float64), rtol=0, atol=1e-14)
    diagonal = (Q.T @ torch.diag(v) @ Q).diagonal()
    torch.testing.assert_close(diagonal, v.mean().expand(len(v)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("space", "factor", "patch"), [((16, 24), 4, 4), ((16, 24), 8, 2), ((32,), 4, 2)])
def test_shifts_by_the_factor_pass_through_on_periodic_grids(space: tuple[int, ...], factor: int, patch: int) -> None:
    n = len(space)
    network = awake(ConvolutionalAutoencoder(2, space, (True,) * n, 3, factor=factor, patch=patch, **SMALL))
    x = torch.randn(2, 2, *space, dtype=torch.float64)
    dims, by = tuple(range(2, 2 + n)), tuple(range(1, 1 + n))
    moved = x.roll([factor * b for b in by], dims)
    z = network.encode(x)
    torch.testing.assert_close(network.encode(moved), z.roll(by, dims), rtol=0, atol=1e-12)
    wanted = network.decode(z).roll([factor * b for b in by], dims)
    torch.testing.assert_close(network.decode(z.roll(by, dims)), wanted, rtol=0, atol=1e-12)
    # and learned positions break it on purpose
    placed = awake(ConvolutionalAutoencoder(2, space, (True,) * n, 3, factor=factor, patch=patch, position=2, **SMALL))
    assert (placed.encode(moved) - placed.encode(x).roll(by, dims)).abs().max() > 1e-3


def test_latents_are_bounded_and_those_well_inside_untouched() -> None:
    z = torch.linspace(-3.5, 3.5, 101, dtype=torch.float64)
    torch.testing.assert_close(saturate(z), z, rtol=0.01, atol=0)
    torch.testing.assert_close(saturate(z / 2), z / 2, rtol=1e-4, atol=0)
    far = torch.tensor([-3e38, -1e6, -50.0, -5.0, 5.0, 50.0, 1e6, 3e38])
    found = saturate(far)
    assert (found.abs() <= 5 * (1 + 1e-6)).all()
    torch.testing.assert_close(found[[0, 1, 2]], torch.full((3,), -5.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(found[[5, 6, 7]], torch.full((3,), 5.0), rtol=1e-4, atol=0)
    wide = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert (saturate(wide).diff() > 0).all() and torch.equal(saturate(wide), -saturate(-wide))
    blown = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], requires_grad=True)
    assert saturate(blown).isfinite().tolist() == [True, False, False, False]
    network = awake(ConvolutionalAutoencoder(1, (16, 16), (True, True), 2, **SMALL))
    assert network.encode(1e4 * torch.randn(2, 1, 16, 16, dtype=torch.float64)).abs().max() <= 5


def test_compression_counts_numbers() -> None:
    assert ConvolutionalAutoencoder(2, (16, 24), (True, True), 4, **SMALL).compression == 2 * 16 * 24 / (4 * 4 * 6)
    padded = ConvolutionalAutoencoder(1, (25, 53), (False, False), 4, **SMALL)
    assert padded.compression == pytest.approx(25 * 53 / (4 * 7 * 14))
    assert PatchAutoencoder(3, (16, 24), (True, True)).compression == 1
    assert PatchAutoencoder(1, (37,), (True,)).compression == pytest.approx(37 / 40)


@pytest.mark.parametrize(("space", "periodic"), GRIDS)
def test_the_identity_is_one(space: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    network, x = PatchAutoencoder(2, space, periodic), torch.randn(2, 2, *space)
    assert torch.equal(network.decode(network.encode(x)), x)
    assert network.bound is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 6, "patch": 4}, "power of two"),
        ({"factor": 12, "patch": 4}, "power of two"),
        ({"factor": 2, "patch": 4}, "power of two"),
        ({"latent_channels": 17}, "exceeds the 16 numbers"),
        ({"periodic": (True,)}, "differ in length"),
    ],
)
def test_contradictions_are_said(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"channels": 1, "space": (16, 16), "periodic": (True, True), "latent_channels": 2}
    options |= SMALL
    with pytest.raises(ValueError, match=message):
        ConvolutionalAutoencoder(**{**options, **changes})


def test_the_autoencoder_speaks_physical_units() -> None:
    """Normalised inside, masked cells at the mean, decoder errors added in normalised units."""
    grid = Grid.periodic_box(8)
    mask = np.ones((8, 8), bool)
    mask[:2] = False
    spec = FieldSpec((Variable("q", "kg m-3"),), grid, 1.0, "s", masks={"q": mask})
    u = 40.0 + 7.0 * torch.randn(50, 1, 8, 8)
    autoencoder = Autoencoder(spec, Normaliser(spec).fit([u]), "identity", patch=4)
    valid = torch.from_numpy(mask)
    latent = autoencoder.encode(u)
    torch.testing.assert_close(autoencoder.decode(latent)[:, :, valid], u[:, :, valid])
    mean, std = u[:, 0, valid].mean(), u[:, 0, valid].std(correction=0)
    torch.testing.assert_close(autoencoder.decode(latent)[:, :, ~valid], mean.expand(50, 1, 16))
    torch.testing.assert_close(latent.carried[:, 0], u[:, 0, valid].double().mean(dim=1))
    shifted = autoencoder.decode(latent, error=torch.full_like(u, 0.5))
    torch.testing.assert_close(shifted[:, :, valid], u[:, :, valid] + 0.5 * std, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(shifted[:, :, ~valid], mean.expand(50, 1, 16))
    with pytest.raises(ValueError, match="known: convolutional, identity"):
        Autoencoder(spec, Normaliser(spec), "magic")
