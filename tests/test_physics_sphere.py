"""The sphere's operators against spherical harmonics, solid-body rotation, balanced flow and Stokes' theorem."""

import math

import numpy as np
import pytest
import torch

from lapse.physics.grid import Axis, Grid
from lapse.physics.sphere import EARTH_RADIUS, EARTH_ROTATION, Sphere

scipy_special = pytest.importorskip("scipy.special")


def globe(n, kind="offset", lons=None):
    """n rows: half a spacing off the poles, with rows at the poles, Gaussian, or one spacing off the poles (ERSST)."""
    if kind == "gaussian":
        lat = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(n)[0]))
    elif kind == "poles":
        lat = np.linspace(-90, 90, n)
    elif kind == "inset":
        lat = np.linspace(-90, 90, n + 2)[1:-1]
    else:
        lat = -90 + 180 / n * (np.arange(n) + 0.5)
    m = lons or 2 * n
    lon = Axis("lon", tuple(360 / m * np.arange(m)), "degrees_east", True)
    return Grid((Axis("lat", tuple(lat), "degrees_north"), lon))


def region(n):
    lat = Axis("lat", tuple(np.linspace(20, 70, n)), "degrees_north")
    return Grid((lat, Axis("lon", tuple(np.linspace(-30, 40, n)), "degrees_east")))


def harmonic(grid, l, m):
    lat, lon = (np.radians(t.numpy()) for t in grid.meshgrid())
    return torch.tensor(np.real(scipy_special.sph_harm_y(l, m, np.pi / 2 - lat, lon) * np.exp(0.3j)))


def rms(sphere, f):
    return sphere.mean(f**2).sqrt()


HARMONICS = [(1, 0), (1, 1), (4, 0), (5, 1), (5, 2), (6, 3), (9, 9)]


@pytest.mark.parametrize("kind", ["offset", "poles"])
@pytest.mark.parametrize(("l", "m"), HARMONICS)
def test_harmonics_are_eigenfunctions_of_the_laplacian_to_round_off(kind, l, m):
    grid = globe(24 + (kind == "poles"), kind, lons=40)
    sphere = Sphere(grid, radius=2.0)
    assert sphere.spectral
    f = harmonic(grid, l, m)
    eigenvalue = -l * (l + 1) / 4
    assert rms(sphere, sphere.laplacian(f) - eigenvalue * f) < 1e-12 * l * (l + 1)
    v = sphere.gradient(f)
    assert rms(sphere, sphere.divergence(v) - eigenvalue * f) < 1e-12 * l * (l + 1)
    # ⟨|∇f|²⟩ = −⟨f ∇²f⟩, by parts; sums over rows are of second order only
    assert abs(sphere.mean((v**2).sum(0)) + eigenvalue * sphere.mean(f**2)) < 0.02 * abs(eigenvalue)


@pytest.mark.parametrize("kind", ["offset", "poles", "gaussian", "inset"])
@pytest.mark.parametrize("accuracy", [2, 4, 6])
@pytest.mark.parametrize(("l", "m"), [(4, 0), (5, 1), (5, 2), (6, 3)])
def test_observed_order_on_the_globe(kind, accuracy, l, m):
    """Nominal everywhere, the rows at and beside the poles included."""
    errors = []
    for n in (36, 72):
        grid = globe(n + {"poles": 1, "inset": -1}.get(kind, 0), kind, lons=2 * n)
        sphere = Sphere(grid, 1.0, accuracy)
        f = harmonic(grid, l, m)
        e = sphere.laplacian(f) + l * (l + 1) * f
        errors.append((rms(sphere, e), e.abs().max()))
    mean, most = (math.log2(a / b) for a, b in zip(*errors, strict=True))
    # One spacing off the poles the gap across them is twice as wide, and its few rows rarer on the finer grid.
    assert abs(mean - accuracy) < (0.5 if kind == "inset" else 0.15), errors
    assert most > accuracy - 0.3, errors


@pytest.mark.parametrize("accuracy", [2, 4, 6])
def test_observed_order_in_a_region(accuracy):
    errors = []
    for n in (32, 64):
        grid = region(n)
        sphere = Sphere(grid, 1.0, accuracy)
        lat, lon = (torch.deg2rad(t) for t in grid.meshgrid())
        f = torch.cos(lat) ** 2 * torch.sin(2 * lon)  # Y₂₂
        v = torch.stack((2 * torch.cos(lat) * torch.cos(2 * lon), -torch.sin(2 * lat) * torch.sin(2 * lon)))
        errors.append(
            [
                rms(sphere, e)
                for e in (
                    sphere.gradient(f)[0] - v[0],
                    sphere.gradient(f)[1] - v[1],
                    sphere.divergence(v) + 6 * f,
                    sphere.laplacian(f) + 6 * f,
                )
            ]
        )
    for a, b in zip(*errors, strict=True):
        assert accuracy - 0.15 < math.log2(a / b) < accuracy + 1, errors


@pytest.mark.parametrize("kind", ["offset", "poles", "gaussian", "inset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solid_body_rotation_has_vorticity_2_omega_sin_phi(kind, dtype):
    grid = globe(37, kind, lons=36)
    sphere = Sphere(grid, accuracy=None if kind in ("offset", "poles") else 6)
    lat = torch.deg2rad(grid.meshgrid()[0])
    omega = EARTH_ROTATION
    v = torch.stack((omega * EARTH_RADIUS * torch.cos(lat), torch.zeros_like(lat))).to(dtype)
    exact = 2 * omega * torch.sin(lat)
    torch.testing.assert_close(sphere.coriolis(), exact, rtol=1e-14, atol=0)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12 if sphere.spectral else 1e-6}[dtype] * omega
    assert (sphere.vorticity(v) - exact).abs().max() < tolerance
    assert sphere.divergence(v).abs().max() < tolerance


def test_a_flow_over_the_pole_has_the_same_derivatives_there_as_elsewhere():
    """Solid-body rotation about an axis in the equatorial plane: ζ = 2Ω n·r, finite and one-valued at the poles."""
    for kind in ("poles", "offset"):
        grid = globe(25, kind, lons=48)
        for accuracy, tolerance in ((None, 1e-11), (4, 2e-3)):
            sphere = Sphere(grid, 1.0, accuracy)
            lat, lon = (torch.deg2rad(t) for t in grid.meshgrid())
            v = torch.stack((-torch.sin(lat) * torch.cos(lon), torch.sin(lon)))  # n×r for n along λ = 0 on the equator
            exact = 2 * torch.cos(lat) * torch.cos(lon)
            assert (sphere.vorticity(v) - exact).abs().max() < tolerance
            assert sphere.divergence(v).abs().max() < tolerance
            w = torch.stack((torch.sin(lon), torch.sin(lat) * torch.cos(lon)))  # −∇ of n·r: converges on n
            assert (sphere.gradient(exact / 2) + w).abs().max() < tolerance
            assert (sphere.divergence(w) - exact).abs().max() < tolerance


@pytest.mark.parametrize("accuracy", [None, 4])
def test_geostrophic_balance_is_steady(accuracy):
    """Williamson et al. (1992, doi:10.1016/S0021-9991(05)80016-6) test 2: a zonal flow that shallow water keeps."""
    grid = globe(48, "offset", lons=96)
    sphere = Sphere(grid, accuracy=accuracy)
    lat, lon = (torch.deg2rad(t) for t in grid.meshgrid())
    alpha, u0, gh0 = 0.7, 38.6, 2.94e4  # the axis of the flow is tilted, so it crosses the poles
    tilted = -torch.cos(lon) * torch.cos(lat) * math.sin(alpha) + torch.sin(lat) * math.cos(alpha)
    u = u0 * (torch.cos(lat) * math.cos(alpha) + torch.cos(lon) * torch.sin(lat) * math.sin(alpha))
    v = -u0 * torch.sin(lon) * math.sin(alpha)
    f = 2 * EARTH_ROTATION * tilted
    gh = gh0 - (EARTH_RADIUS * EARTH_ROTATION * u0 + u0**2 / 2) * tilted**2
    absolute = sphere.vorticity(torch.stack((u, v))) + f
    force = torch.stack((absolute * v, -absolute * u)) - sphere.gradient(gh + (u**2 + v**2) / 2)
    scale = sphere.gradient(gh).abs().max()
    assert force.abs().max() < (1e-11 if accuracy is None else 2e-4) * scale
    through = sphere.divergence(torch.stack((gh * u, gh * v)))
    assert through.abs().max() < (1e-11 if accuracy is None else 2e-3) * gh0 * u0 / EARTH_RADIUS


@pytest.mark.parametrize("kind", ["offset", "poles", "gaussian", "inset"])
@pytest.mark.parametrize("accuracy", [None, 2, 6])
def test_discrete_operators_commute(kind, accuracy):
    """∇×∇f = 0 and ∇·(k×∇ψ) = 0 to round-off, for one-valued noise."""
    grid = globe(15, kind, lons=20)
    sphere = Sphere(grid, 1.0, accuracy)
    f = torch.randn(2, *grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if kind == "poles":
        f[:, [0, -1]] = f[:, [0, -1], :1]
    inner = slice(1, -1) if kind == "poles" else slice(None)  # at a pole itself noise has no limit
    size = sphere.laplacian(f).abs().max()
    assert sphere.vorticity(sphere.gradient(f))[:, inner].abs().max() < 1e-12 * size
    v = sphere.from_stream_function(f)
    assert sphere.divergence(v)[:, inner].abs().max() < 1e-12 * size
    assert (sphere.vorticity(v) - sphere.divergence(sphere.gradient(f)))[:, inner].abs().max() < 1e-12 * size


def test_areas_add_up_and_means_are_those_of_the_sphere():
    for kind in ("offset", "poles", "gaussian", "inset"):
        sphere = Sphere(globe(30, kind))
        assert abs(float(sphere.areas().sum()) / (4 * math.pi * EARTH_RADIUS**2) - 1) < 1e-14
        lat = torch.deg2rad(sphere.grid.meshgrid()[0])
        assert abs(float(sphere.mean(torch.sin(lat) ** 2)) - 1 / 3) < 2e-3
        assert abs(float(sphere.mean(torch.sin(lat)))) < 1e-15
    part = Sphere(region(26), 1.0)
    exact = (math.sin(math.radians(71)) - math.sin(math.radians(19))) * math.radians(72.8)
    assert abs(float(part.areas().sum()) - exact) < 1e-12
    w = part.areas() / part.areas().mean()
    torch.testing.assert_close(w, part.grid.area_weights(), rtol=2e-4, atol=0)


def test_an_odd_number_of_longitudes_crosses_the_pole_too():
    even, odd = (Sphere(globe(20, lons=m), 1.0, 4) for m in (40, 41))
    for sphere in (even, odd):
        f = harmonic(sphere.grid, 5, 1)
        assert rms(sphere, sphere.laplacian(f) + 30 * f) < 0.05
    spectral = Sphere(odd.grid, 1.0)
    f = harmonic(odd.grid, 5, 1)
    assert rms(spectral, spectral.laplacian(f) + 30 * f) < 1e-11


def test_operators_are_differentiable():
    for sphere in (Sphere(globe(5, "poles", lons=6), 1.0), Sphere(region(5), 1.0)):
        f = torch.randn(sphere.grid.shape, dtype=torch.float64, requires_grad=True)
        v = torch.randn(2, *sphere.grid.shape, dtype=torch.float64, requires_grad=True)
        for operator, x in ((sphere.gradient, f), (sphere.laplacian, f), (sphere.divergence, v), (sphere.vorticity, v)):
            assert torch.autograd.gradcheck(operator, x)


def test_winds_of_a_reanalysis_are_nearly_geostrophic(lapse_data):
    """ERA-Interim at 500 hPa (July and January climatology, 0.75°): f k×v = −∇Φ between 30° and 70°."""
    xr = pytest.importorskip("xarray")
    ds = xr.open_dataset(lapse_data / "eraint_uvz" / "eraint_uvz.nc").sel(level=500).sortby("latitude")
    lat = Axis("lat", tuple(ds.latitude.values.astype(float)), "degrees_north")
    lon = Axis("lon", tuple(np.arange(480) * 0.75), "degrees_east", True)
    sphere = Sphere(Grid((lat, lon)), accuracy=4)
    wind, phi = (torch.tensor(np.asarray(a, dtype=float)) for a in (np.stack([ds.u, ds.v], 1), ds.z))
    gradient = sphere.gradient(phi)
    f = sphere.coriolis()
    balanced = torch.stack((-gradient[:, 1], gradient[:, 0]), dim=1) / f
    for band in (
        (lat_ >= 30) & (lat_ <= 70) for lat_ in (torch.tensor(lat.coordinates), -torch.tensor(lat.coordinates))
    ):
        error = (balanced - wind)[..., band, :].square().mean().sqrt() / wind[..., band, :].square().mean().sqrt()
        assert error < 0.12
        opposite = (balanced + wind)[..., band, :].square().mean().sqrt() / wind[..., band, :].square().mean().sqrt()
        assert opposite > 1.5  # a wrong sign, or f of the other hemisphere, would show


def test_bad_input_is_refused_with_both_sides():
    lat, lon = globe(6).axes
    with pytest.raises(ValueError, match=r"found axes \('lon', 'lat'\).*wanted \(latitude, longitude\)"):
        Sphere(Grid((lon, lat)))
    with pytest.raises(ValueError, match=r"found accuracy=3, radius=1.0, wanted 2, 4, 6 or None and R > 0"):
        Sphere(Grid((lat, lon)), 1.0, 3)
    with pytest.raises(ValueError, match="found a periodic longitude of 180 degrees, wanted 360"):
        Sphere(Grid((lat, Axis("lon", tuple(range(0, 180, 10)), "degrees_east", True))))
    with pytest.raises(ValueError, match="found a row at a pole and the longitude"):
        Sphere(Grid((Axis("lat", (80.0, 85.0, 90.0), "degrees_north"), Axis("lon", (0.0, 1.0), "degrees_east"))))
    with pytest.raises(ValueError, match="found latitudes up to 95, wanted -90 to 90"):
        Sphere(Grid((Axis("lat", (80.0, 95.0), "degrees_north"), lon)))
    with pytest.raises(ValueError, match=r"found a vector of shape \(3, 6, 12\), wanted"):
        Sphere(Grid((lat, lon))).divergence(torch.zeros(3, 6, 12))
    with pytest.raises(ValueError, match=r"found a field of shape \(12, 6\), wanted"):
        Sphere(Grid((lat, lon))).laplacian(torch.zeros(12, 6))
