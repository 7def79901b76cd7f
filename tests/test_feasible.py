"""The feasible set: what is held is held to 1e-6 with bounds that bind, and the gradient is the tangent."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from lapse import FieldSpec, SpecError
from lapse.datasets.spec import Variable
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.surrogate.feasible import Feasible, Infeasible

BOX = Grid.periodic_box(16)


def vorticity(**changes) -> FieldSpec:
    variable = Variable("vorticity", "s-1", minimum=-6.0, maximum=6.0, mean=0.0, std=2.0)
    return FieldSpec((variable,), BOX, 0.2, "s", equation="kolmogorov").replace(**changes)


def waves(seed: int, shape: tuple[int, ...] = (1, 1, 16, 16), size: float = 2.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=random, dtype=torch.float64))
    spectrum[..., 5:-4, :] = 0
    spectrum[..., 5:] = 0
    u = torch.fft.irfft2(spectrum)
    return size * u / u.std()


LAW = equation("kolmogorov", BOX)


def energy(u: Tensor) -> Tensor:
    """Independently of the library's: Σ |ω̂|²/k² / 2 in numpy, over the modes that the solver keeps (not Nyquist's)."""
    w = np.fft.fft2(u.numpy()) / 256
    k = np.fft.fftfreq(16, 1 / 16)
    k2 = k[:, None] ** 2 + k**2
    k2[0, 0] = k2[8] = k2[:, 8] = np.inf
    return torch.from_numpy((np.abs(w) ** 2 / k2).sum(axis=(-2, -1)) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_energy_and_bounds_at_once(dtype: torch.dtype) -> None:
    given = waves(0)
    feasible = Feasible(vorticity(), given, {"vorticity": (-3.0, 2.5)}, ("mean", "energy"), equation=LAW)
    v = (waves(1, size=5.0) + 1.0).to(dtype)
    u = feasible(v)
    assert u.dtype == dtype
    u = u.double()
    assert float((u <= -3.0 + 1e-6).double().mean()) > 0.02, "a bound must bind, or nothing is tested"
    assert u.min() >= -3.0 - 1e-6 and u.max() <= 2.5 + 1e-6
    assert abs(float(u.mean() - given.mean())) / 2.0 < 1e-6
    assert float((energy(u) / energy(given) - 1).abs().max()) < 1e-6
    assert feasible.violation(u) < 1e-6
    again = feasible(u.to(dtype))
    assert (again - u).abs().max() < 1e-5, "a feasible field must stay as it is"


def test_an_energy_of_its_own() -> None:
    given = waves(0)
    feasible = Feasible(vorticity(), given, {}, {"mean": None, "energy": 0.25}, equation=LAW)
    assert float(energy(feasible(waves(2)))[0, 0]) == pytest.approx(0.25, rel=1e-9)


def test_radius_is_a_projection_onto_the_ball() -> None:
    """Without bounds the nearest point of the ball is on the line to its centre; inside nothing moves."""
    given = waves(0)
    feasible = Feasible(vorticity(), given, {}, (), radius=0.5)
    away = waves(3)
    rms = away.square().mean().sqrt()
    torch.testing.assert_close(feasible(given + away), given + away * (0.5 * 2.0 / rms))
    near = given + 0.1 * away
    assert torch.equal(feasible(near), near)


def test_radius_with_bounds_and_mean() -> None:
    given = waves(0)
    feasible = Feasible(vorticity(), given, {"vorticity": (-4.0, 4.0)}, ("mean",), radius=0.7)
    u = feasible(given + 3 * waves(4) + 2.0)
    assert feasible.distance(u[0]) <= 0.7 * (1 + 1e-9)
    assert abs(float(u.mean() - given.mean())) < 1e-9
    assert feasible.violation(u) < 1e-9


def test_derivative_of_the_map_matches_differences_with_bounds_that_bind() -> None:
    given = waves(0)
    feasible = Feasible(vorticity(), given, {"vorticity": (-3.0, 2.5)}, ("mean", "energy"), equation=LAW)
    weight, d = waves(5), waves(6)
    v = waves(1, size=4.0).requires_grad_(True)
    (gradient,) = torch.autograd.grad((weight * feasible(v)).sum(), v)
    h = 1e-5
    with torch.no_grad():
        difference = ((weight * feasible(v + h * d)).sum() - (weight * feasible(v - h * d)).sum()) / (2 * h)
    assert float((gradient * d).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_the_gradient_at_a_feasible_point_is_tangent() -> None:
    """Moving along the projected gradient changes neither mean nor energy to first order."""
    given = waves(0)
    feasible = Feasible(vorticity(), given, {}, ("mean", "energy"), equation=LAW)
    u = feasible(waves(7)).requires_grad_(True)
    (g,) = torch.autograd.grad((waves(8) * feasible(u)).sum(), u)
    assert abs(float(g.mean())) < 1e-12
    # The map scales about the mean: its kernel is the pattern itself, along which only the energy would change.
    pattern = u.detach() - u.detach().mean()
    assert abs(float((g * pattern).sum())) < 1e-9 * float(g.norm() * pattern.norm())


def test_mass_of_a_positive_variable() -> None:
    spec = FieldSpec((Variable("depth", "m", "positive", std=0.3),), BOX, 1.0, "s")
    given = 0.5 + 0.1 * waves(0)
    feasible = Feasible(spec, given, {}, ("mass",))
    u = feasible(given - 0.5 * waves(1))
    assert u.min() >= 0 and float((u == 0).double().mean()) > 0.05
    assert float(u.mean() / given.mean()) == pytest.approx(1, abs=1e-10)


def test_velocity_stays_free_of_divergence() -> None:
    variables = (Variable("u", "m s-1", "vector", "x", std=1.0), Variable("v", "m s-1", "vector", "y", std=1.0))
    spec = FieldSpec(variables, BOX, 1.0, "s")
    psi = waves(0)[0, 0]
    k = torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)

    def along(u: Tensor, axis: int) -> Tensor:
        wave = 1j * (k[:, None] if axis == -2 else k)
        return torch.fft.ifft2(wave * torch.fft.fft2(u)).real

    given = torch.stack([-along(psi, -2), along(psi, -1)])[None]
    feasible = Feasible(spec, given, "training", ("divergence_free", "mean"))
    u = feasible(given + waves(1, (1, 2, 16, 16)) + 0.5)
    assert (along(u[0, 0], -1) + along(u[0, 1], -2)).abs().max() < 1e-12
    assert (u - given).flatten(2).mean(2).abs().max() < 1e-12
    assert (u - given).abs().max() > 0.5


def test_masked_cells_are_left_alone() -> None:
    mask = np.ones((16, 16), dtype=bool)
    mask[:4] = False
    given = waves(0)
    feasible = Feasible(vorticity(masks={"vorticity": mask}, equation=None), given, "training", ("mean",))
    u = feasible(waves(1))
    assert torch.equal(u[..., :4, :], given[..., :4, :])
    assert float((u - given)[..., 4:, :].mean()) == pytest.approx(0, abs=1e-12)


def test_a_field_as_bound_freezes_cells() -> None:
    given = waves(0)
    frozen = xr.DataArray(given[0, 0].numpy(), dims=("y", "x"), coords={"x": np.arange(16)})
    low, high = frozen.where(frozen.x < 8, -10.0), frozen.where(frozen.x < 8, 10.0)
    feasible = Feasible(vorticity(), given, {"vorticity": (low, high)}, ("mean",))
    u = feasible(waves(1))
    assert torch.equal(u[..., :8], given[..., :8])
    assert float((u - given).mean()) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_held_is_said() -> None:
    feasible = Feasible(vorticity(), waves(0), {"vorticity": (1.0, 2.0)}, ("mean",))
    with pytest.raises(Infeasible, match=r"the mean of vorticity.*widen the bounds"):
        feasible(waves(1))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        Feasible(
            vorticity(),
            waves(0),
            {"pressure": (0, 1), "vorticity": (3.0, 1.0)},
            ("mass", "entropy", "energy"),
            0.0,
            LAW,
        )
    told = str(caught.value)
    for part in (
        "'pressure'",
        "least value above the greatest",
        "'mass'",
        "'entropy'",
        "one energy or a radius",
        "radius",
    ):
        assert part in told, told
    assert "enstrophy" in told, "the known quantities are listed"
    with pytest.raises(SpecError, match="another value than nought"):
        Feasible(vorticity(), torch.zeros(1, 1, 16, 16), {}, ("energy",), equation=LAW)
    with pytest.raises(SpecError, match=r"'divergence_free'.*velocity"):
        Feasible(vorticity(), waves(0), {}, ("divergence_free",))
    with pytest.raises(SpecError, match=r"'trained'.*'training' or a mapping"):
        Feasible(vorticity(), waves(0), "trained")
