"""The parts of the networks: permutations against torch's, padding against numpy's, exact commutation with shifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lapse.autoencoder.blocks import (
    ChannelNorm,
    Conv,
    Linear,
    Modulation,
    ResidualBlock,
    SiLU,
    alike,
    dct_patch_basis,
    depth_to_space,
    pad_axes,
    space_to_depth,
)


@pytest.mark.parametrize(("space", "factor"), [((12,), (4,)), ((12,), (1,)), ((8, 12), (4, 2)), ((6, 9), (2, 3))])
def test_depth_to_space_inverts_space_to_depth(space: tuple[int, ...], factor: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *space)
    y = space_to_depth(x, factor)
    assert y.shape == (2, 3 * int(np.prod(factor)), *(n // f for n, f in zip(space, factor, strict=True)))
    assert torch.equal(depth_to_space(y, factor), x)
    z = torch.randn_like(y)
    assert torch.equal(space_to_depth(depth_to_space(z, factor), factor), z)


def test_space_to_depth_is_the_permutation_of_torch() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(space_to_depth(x, (4, 4)), F.pixel_unshuffle(x, 4))
    z = torch.randn(2, 32, 3, 5)
    assert torch.equal(depth_to_space(z, (4, 4)), F.pixel_shuffle(z, 4))


def test_a_patch_holds_its_own_cells() -> None:
    """Cell (y, x) of the result holds the patch that begins at (2y, 3x), whatever the order within."""
    x = torch.arange(6 * 9, dtype=torch.float32).reshape(1, 1, 6, 9)
    y = space_to_depth(x, (2, 3))
    for i in range(3):
        for j in range(3):
            patch = x[0, 0, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
            assert sorted(y[0, :, i, j].tolist()) == sorted(patch.flatten().tolist())


@pytest.mark.parametrize("periodic", [(True,), (False,), (True, True), (True, False), (False, True), (False, False)])
def test_padding_wraps_periodic_axes_and_repeats_walls(periodic: tuple[bool, ...]) -> None:
    x = torch.randn(2, 3, *(5, 7)[: len(periodic)])
    want = x.numpy()
    for i, wraps in enumerate(periodic):
        widths = [(0, 0)] * want.ndim
        widths[2 + i] = (2, 2)
        want = np.pad(want, widths, mode="wrap" if wraps else "edge")
    np.testing.assert_array_equal(pad_axes(x, 2, periodic).numpy(), want)


def test_a_convolution_commutes_with_shifts_along_periodic_axes() -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    both = Conv(3, 4, (True, True), kernel=5).double()
    torch.testing.assert_close(both(x.roll((2, 3), (2, 3))), both(x).roll((2, 3), (2, 3)), rtol=0, atol=1e-13)
    mixed = Conv(3, 4, (False, True)).double()
    torch.testing.assert_close(mixed(x.roll(3, 3)), mixed(x).roll(3, 3), rtol=0, atol=1e-13)
    assert (mixed(x.roll(2, 2)) - mixed(x).roll(2, 2)).abs().max() > 1e-3  # a wall is a place
    line = Conv(3, 4, (True,)).double()
    torch.testing.assert_close(line(x[..., 0].roll(2, 2)), line(x[..., 0]).roll(2, 2), rtol=0, atol=1e-13)


def test_a_convolution_is_the_sum_it_claims_to_be() -> None:
    conv, x = Conv(1, 1, (True,)).double(), torch.randn(1, 1, 9, dtype=torch.float64)
    w = conv.conv.weight[0, 0].tolist()
    want = [sum(w[k] * float(x[0, 0, (i + k - 1) % 9]) for k in range(3)) for i in range(9)]
    np.testing.assert_allclose(conv(x)[0, 0].detach().numpy(), want, atol=1e-14)


def test_convolutions_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="odd"):
        Conv(1, 1, (True,), kernel=2)
    with pytest.raises(ValueError, match="1 or 2 dimensions"):
        Conv(1, 1, (True, True, True))


@pytest.mark.parametrize("features", [20, 128, 256])
def test_rows_do_not_depend_on_how_many_there_are(features: int) -> None:
    layer, x = Linear(features, 64), torch.randn(40, features)
    with torch.no_grad():
        whole = layer(x)
        torch.testing.assert_close(whole, x @ layer.weight.T + layer.bias)
        for first, last in ((0, 1), (3, 5), (7, 12), (20, 37)):
            assert torch.equal(layer(x[first:last]), whole[first:last]), (first, last)


@pytest.mark.parametrize("function", [F.silu, torch.sigmoid, F.softplus])
def test_elements_do_not_depend_on_their_place(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The last few of a tensor are those that a vector loop leaves over."""
    x = 3 * torch.randn(1000)
    whole = alike(function, x)
    torch.testing.assert_close(whole, function(x))
    for first, last in ((0, 1), (1, 32), (5, 68), (900, 999)):
        assert torch.equal(alike(function, x[first:last].reshape(-1, 1))[:, 0], whole[first:last]), (first, last)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = 3 * torch.randn(131_168)
        whole = alike(function, many)
        for size in (32_769, 65_568, 98_400):
            assert torch.equal(alike(function, many[:size]), whole[:size]), size
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(SiLU()(x[:5]), alike(F.silu, x)[:5])


@pytest.mark.parametrize("condition", [0, 5])
def test_a_residual_block_starts_as_the_identity(condition: int) -> None:
    block, x = ResidualBlock(4, (True, False), condition), torch.randn(3, 4, 6, 8)
    c = torch.randn(3, condition) if condition else None
    assert torch.equal(block(x, c), x)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1)
    assert not torch.allclose(block(x, c), x)


def test_a_conditioned_block_asks_for_its_condition() -> None:
    with pytest.raises(ValueError, match="condition"):
        ResidualBlock(4, (True,), 3)(torch.randn(1, 4, 8))


def test_modulation_starts_as_the_identity_and_then_scales_and_shifts() -> None:
    x, c = torch.randn(2, 3, 5), torch.randn(2, 4)
    film = Modulation(4, 3)
    assert torch.equal(film(x, c), x)
    with torch.no_grad():
        film.linear.bias.copy_(torch.tensor([1.0, 0.0, 2.0, 0.5, -1.0, 0.0]))
    want = x * torch.tensor([2.0, 1.0, 3.0])[:, None] + torch.tensor([0.5, -1.0, 0.0])[:, None]
    torch.testing.assert_close(film(x, c), want)


def test_channel_norm_sees_one_cell_at_a_time() -> None:
    norm, x = ChannelNorm(6).double(), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    y = norm(x)
    torch.testing.assert_close(y.square().mean(dim=1), torch.ones(2, 4, 5, dtype=torch.float64), rtol=1e-4, atol=0)
    moved = x.clone()
    moved[0, :, 1, 2] = 100 * torch.randn(6, dtype=torch.float64)
    other = torch.ones(2, 4, 5, dtype=torch.bool)
    other[0, 1, 2] = False
    assert torch.equal(norm(moved).movedim(1, -1)[other], y.movedim(1, -1)[other])
    assert not torch.allclose(norm(moved)[0, :, 1, 2], y[0, :, 1, 2])


@pytest.mark.parametrize("factor", [(4,), (8, 8), (2, 6)])
def test_the_cosine_basis_is_orthonormal_and_goes_from_smooth_to_rough(factor: tuple[int, ...]) -> None:
    basis = dct_patch_basis(factor).double()
    rows = basis.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=2e-6)
    torch.testing.assert_close(rows[0], torch.full_like(rows[0], len(rows) ** -0.5), rtol=1e-6, atol=0)

    def wavenumber(mode: torch.Tensor) -> int:
        """Squared, counted in changes of sign along each axis."""
        total = 0
        for axis in range(mode.ndim):
            lines = mode.movedim(axis, -1).reshape(-1, mode.shape[axis])
            total += int((lines[0].sign().diff() != 0).sum()) ** 2
        return total

    roughness = [wavenumber(mode) for mode in basis]
    assert roughness == sorted(roughness)
