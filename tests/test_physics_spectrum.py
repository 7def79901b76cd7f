"""Spectra: Parseval's identity, single modes, and two independent implementations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.physics.grid import Axis, Grid
from lapse.physics.spectrum import band_power, bands, fundamental, power_spectrum, resolved


def bounded(n, dx=1.0, name="x"):
    return Axis(name, tuple(dx * (i + 0.5) for i in range(n)), "m")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(2, 13), st.booleans(), st.floats(0.1, 10)), min_size=1, max_size=2),
    st.integers(0, 2**31),
)
def test_parseval_holds_to_round_off(axes, seed):
    grid = Grid(
        tuple(Axis(f"a{j}", tuple(d * i for i in range(n)), "m", periodic) for j, (n, periodic, d) in enumerate(axes))
    )
    u = torch.randn(3, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    k, E = power_spectrum(u, grid)
    mean_square = (u**2).flatten(1).mean(1)
    torch.testing.assert_close(E.sum(-1), mean_square, rtol=1e-13, atol=0)
    assert E.shape == (3, len(k)) and (E >= 0).all()
    everything = band_power(u, grid).sum(-1)
    torch.testing.assert_close(everything, mean_square - E[:, 0], rtol=1e-12, atol=1e-13)


def test_a_single_mode_lands_in_its_bin_with_half_its_squared_amplitude():
    g = Grid.periodic_box((32, 32))
    y, x = g.meshgrid()
    k, E = power_spectrum(3 * torch.cos(3 * x + 4 * y) + 2, g)
    assert k[5] == pytest.approx(5)
    assert E[5].item() == pytest.approx(4.5, abs=1e-12)
    assert E[0].item() == pytest.approx(4, abs=1e-12)
    assert E.sum().item() == pytest.approx(8.5, abs=1e-12)


def test_wavenumbers_of_an_anisotropic_box():
    g = Grid.periodic_box((20, 40), length=(2 * math.pi, 8 * math.pi))
    _, x = g.meshgrid()
    k, E = power_spectrum(torch.cos(2 * x), g)  # mode number 8 of the long axis
    assert k[E.argmax()].item() == pytest.approx(2)
    assert fundamental(g) == pytest.approx(1)
    assert resolved(g) == pytest.approx(5)  # the long axis has 40 nodes over 4 periods of the short one


def test_cosine_modes_of_a_bounded_axis():
    g = Grid((bounded(25, 2.0),))
    x = g.meshgrid()[0]
    k, E = power_spectrum(torch.cos(math.pi * 7 * x / 50), g)
    assert E[7].item() == pytest.approx(0.5, abs=1e-13)
    assert k[7].item() == pytest.approx(7 * math.pi / 50)


def test_a_ramp_has_a_steep_spectrum_on_a_bounded_axis():
    """A periodic spectrum of a ramp falls as k⁻², because of its jump; the cosine one falls as k⁻⁴."""
    g = Grid((bounded(256),))
    _, E = power_spectrum(g.meshgrid()[0], g)
    odd = torch.arange(5, 40, 2)
    slope = np.polyfit(np.log(odd.numpy()), np.log(E[odd].numpy()), 1)[0]
    assert slope == pytest.approx(-4, abs=0.1)


def test_agreement_with_the_cosine_transform_of_scipy():
    fft = pytest.importorskip("scipy.fft")
    g = Grid((bounded(12, name="y"), bounded(15)))
    u = torch.randn(12, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c2 = fft.dctn(u.numpy(), type=2, norm="ortho") ** 2 / u.numel()
    m = np.hypot(np.arange(12)[:, None] * math.pi / 12, np.arange(15) * math.pi / 15)
    expected = np.bincount(np.rint(m / (math.pi / 12)).astype(int).ravel(), weights=c2.ravel())
    np.testing.assert_allclose(power_spectrum(u, g)[1].numpy(), expected, rtol=1e-10, atol=1e-13)


def test_agreement_with_xrft():
    xrft = pytest.importorskip("xrft")
    xr = pytest.importorskip("xarray")
    g = Grid.periodic_box((18, 20))
    u = torch.randn(18, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coords = {a.name: np.array(a.coordinates) for a in g.axes}
    p = xrft.power_spectrum(xr.DataArray(u.numpy(), dims=g.names, coords=coords), scaling="spectrum")
    k = 2 * math.pi * np.hypot(p.freq_y.values[:, None], p.freq_x.values)
    power = p.transpose("freq_y", "freq_x").values
    power = power * float((u**2).mean()) / power.sum()  # xrft's own normalisation, checked by test_parseval
    expected = np.bincount(np.rint(k).astype(int).ravel(), weights=power.ravel())
    np.testing.assert_allclose(power_spectrum(u, g)[1].numpy(), expected, rtol=1e-10)


def test_bands_are_thirds_in_the_logarithm():
    g = Grid.periodic_box(64)
    low, a, b, top = bands(g)
    assert (low, top) == (0.5, math.inf)
    assert a / low == pytest.approx(b / a) == pytest.approx(32 / b)
    _, x = g.meshgrid()
    u = torch.cos(x) + 2 * torch.cos(5 * x) + 3 * torch.cos(30 * x)
    torch.testing.assert_close(band_power(u, g), torch.tensor([0.5, 2.0, 4.5], dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        band_power(u, g, (4.0, 6.0)), torch.tensor([2.0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_spectra_are_differentiable():
    g = Grid((bounded(4, name="y"), *Grid.periodic_box(5, names=("x",), length=5.0).axes))
    u = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: power_spectrum(u, g)[1], u)


def test_bad_input_is_refused_with_both_sides():
    g = Grid.periodic_box((4, 6))
    with pytest.raises(ValueError, match=r"found a field of shape \(6, 4\), wanted .*4, 6"):
        power_spectrum(torch.zeros(6, 4), g)
    with pytest.raises(ValueError, match="wanted two or more that ascend"):
        band_power(torch.zeros(4, 6), g, (2.0, 1.0))
