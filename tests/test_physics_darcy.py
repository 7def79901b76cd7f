"""Darcy flow against manufactured solutions, sympy, dense algebra, its own symmetries, and bad input."""

import pytest
import torch
import xarray as xr

from lapse.datasets.simulate import simulate, trajectory_generator
from lapse.datasets.spec import FieldSpec
from lapse.physics.darcy import Darcy
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.physics.karhunen import KarhunenLoeve
from lapse.physics.tridiagonal import BlockTridiagonal
from lapse.physics.volume import Volumes

PI = torch.pi


def law(n=16, **parameters):
    return Darcy(Grid.walled_box(n), **parameters)


def draws(e, batch=3, seed=0):
    return e.initial(torch.Generator().manual_seed(seed), batch, torch.float64)


def matrix(e, y):
    """A(Y) as a dense matrix, column by column."""
    n = y.numel()
    columns = torch.eye(n, dtype=torch.float64).reshape(n, *y.shape)
    return e.apply(y.expand(n, *y.shape), columns).reshape(n, n).T


def manufactured(n):
    """Y and p that no wall disturbs (∂p/∂n = 0), and −∇·(K∇p) by sympy at the nodes."""
    import sympy

    x, y = sympy.symbols("x y")
    Y = sympy.sin(2 * x + y) / 2 + x * y
    p = sympy.cos(sympy.pi * x) * sympy.cos(2 * sympy.pi * y) + sympy.cos(sympy.pi * y) / 2
    K = sympy.exp(Y)
    f = -sympy.diff(K * p.diff(x), x) - sympy.diff(K * p.diff(y), y)
    at = Grid.walled_box(n).meshgrid()
    return [torch.as_tensor(sympy.lambdify((y, x), g, "numpy")(*(a.numpy() for a in at))) for g in (Y, p, f)]


def test_solutions_converge_with_order_two():
    """Against the pressure that sympy made the source for."""
    errors = []
    for n in (16, 32, 64):
        e = law(n)
        Y, p, f = manufactured(n)
        got = e.factors(Y).solve(f)
        errors.append((got - (p - p.mean())).square().mean().sqrt() / p.square().mean().sqrt())
    orders = (torch.stack(errors[:-1]) / torch.stack(errors[1:])).log2()
    assert errors[0] < 0.02 and torch.allclose(orders, torch.full((2,), 2.0, dtype=torch.float64), atol=0.15), orders


def test_the_residual_agrees_with_sympy_inside():
    """The independent statement −K∇²p − ∇K·∇p: the flux form misses it by O(h²), away from the walls."""
    misfit = []
    for n in (32, 64):
        Y, p, f = manufactured(n)
        inside = (slice(n // 8, -n // 8),) * 2
        misfit.append((law(n).apply(Y, p) - f)[inside].abs().max() / f.abs().max())
    assert misfit[1] < 2e-3 and 1.85 < torch.log2(misfit[0] / misfit[1]) < 2.15


def test_constant_permeability_is_the_diffusion_of_finite_volumes():
    e = Darcy(Grid.walled_box((8, 12), (1.0, 2.0)), permeability=0.3)
    p = torch.randn(2, 8, 12, dtype=torch.float64)
    want = -0.3 * Volumes(e.grid).diffusion(p[:, None])[:, 0]
    torch.testing.assert_close(e.apply(torch.zeros_like(p), p), want)


def test_the_operator_is_symmetric_and_its_null_space_are_the_constants():
    e = law(8)
    y = 1.5 * torch.randn(8, 8, dtype=torch.float64)
    A = matrix(e, y)
    torch.testing.assert_close(A, A.T, rtol=0, atol=1e-10)
    value = torch.linalg.eigvalsh(A)
    assert abs(value[0]) < 1e-10 * value[-1] and value[1] > 1e-4 * value[-1]
    assert A.sum(1).abs().max() < 1e-9


def test_solving_and_judging_agree_to_round_off():
    e = law(32)
    u = draws(e)
    assert e.steady(u).abs().max() < 1e-12 * (e.apply(u[:, 0], u[:, 1].abs())).abs().max()
    assert u[:, 1].mean((-2, -1)).abs().max() < 1e-15
    again = e.solved(torch.stack((u[:, 0], torch.randn_like(u[:, 1])), 1))
    torch.testing.assert_close(again, u, rtol=0, atol=1e-12)
    worse = torch.stack((u[:, 0], 0.2 * u[:, 1]), 1)
    assert e.steady(worse).square().mean() > 0.5 * e.wells.square().mean()  # a shrunk pressure leaves the source
    assert e.invariants(u)["imbalance"].abs().max() < 1e-12
    torch.testing.assert_close(e.invariants(u)["power"], (e.wells * u[:, 1]).mean((-2, -1)))


@pytest.mark.parametrize("n", [16, 20])
def test_the_source_is_balanced_on_any_grid(n):
    """Cells that the squares cut through get their share: 10 times the squares' area of 1/64."""
    e = law(n)
    assert abs(e.wells.sum()) < 1e-12
    torch.testing.assert_close(e.wells.clamp(min=0).mean(), torch.tensor(10 / 64, dtype=torch.float64))
    assert e.wells[0, 0] == 10 and e.wells[-1, -1] == -10


def test_residuals_sum_to_nought_whatever_the_fields():
    e = law()
    r = e.steady(torch.randn(4, 2, 16, 16, dtype=torch.float64))
    assert r.sum((-2, -1)).abs().max() < 1e-9 * r.abs().sum()
    rows = e.rhs(torch.randn(2, 16, 16))
    assert torch.equal(rows[0], torch.zeros(16, 16))


def test_symmetries_take_solutions_to_solutions():
    e = law(16)
    u = draws(e)
    assert set(e.symmetries()) == {"turned", "transposed"}
    for S in e.symmetries().values():
        assert e.steady(S(u)).abs().max() < 1e-10 and (S(u) - u).abs().max() > 0.1
    assert set(Darcy(Grid.walled_box((8, 16), (1.0, 2.0))).symmetries()) == {"turned"}


def test_pressure_is_differentiable_by_permeability():
    e = law(8)
    y = draws(e, 1)[:, 0].requires_grad_()
    assert torch.autograd.gradcheck(e.pressure, y, fast_mode=True)
    assert torch.autograd.gradcheck(lambda u: e.steady(u), draws(e, 1).requires_grad_(), fast_mode=True)


def test_elimination_agrees_with_dense_algebra():
    e = Darcy(Grid.walled_box((6, 9)))
    y = torch.randn(6, 9, dtype=torch.float64)
    A = matrix(e, y) + torch.eye(54, dtype=torch.float64)
    k_x, k_y = e.transmissibility(y)
    b = torch.randn(4, 6, 9, dtype=torch.float64)
    got = BlockTridiagonal(A.diagonal().reshape(6, 9), k_x, k_y).solve(b)
    torch.testing.assert_close(got.flatten(1), torch.linalg.solve(A, b.flatten(1).T).T)
    with pytest.raises(ValueError, match="not positive definite"):
        BlockTridiagonal(-torch.ones(6, 9), k_x, k_y)


def test_random_fields_have_the_covariance_of_the_expansion():
    """Against the dense eigenproblem on the nodes; orthonormal; the same draw is the same field on every grid."""
    field, n = KarhunenLoeve((1.0, 1.0), 0.1, 64), 24
    grid = Grid.walled_box(n)
    points = torch.stack(grid.meshgrid(), -1).reshape(-1, 2)
    value, vector = torch.linalg.eigh(torch.exp(-torch.cdist(points, points) / 0.1) / n**2)
    torch.testing.assert_close(field.eigenvalues[:20], value.flip(0)[:20], rtol=0.02, atol=0)
    modes = field.modes(grid).flatten(1)
    dense = (vector[:, -64:] * value[-64:]) @ vector[:, -64:].T * n**2
    assert (modes.T @ modes - dense).norm() < 0.02 * dense.norm()
    fine = field.modes(Grid.walled_box(96)).flatten(1)
    torch.testing.assert_close(fine @ fine.T / 96**2, torch.diag(field.eigenvalues), rtol=0, atol=1e-7)
    xi = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    coarse = field.draw(Grid.walled_box(32), xi)
    blocks = torch.nn.functional.avg_pool2d(field.draw(Grid.walled_box(96), xi)[None], 3)[0]
    assert (blocks - coarse).abs().max() < 0.05 * coarse.std()


def test_the_simulator_writes_samples(tmp_path):
    (path,) = simulate("darcy", tmp_path / "a.zarr", trajectories=3, resolution=16, seed=5, progress=False)
    ds = xr.open_zarr(path).load()
    assert dict(ds.sizes) == {"trajectory": 3, "time": 1, "y": 16, "x": 16}
    spec = FieldSpec.infer(ds)  # no interval to be told
    assert spec.equation == "darcy" and spec.grid == Grid.walled_box(16)
    assert spec.names == ("log_permeability", "pressure")
    e = equation(spec.equation, spec.grid, **spec.parameters)
    u = torch.stack([torch.from_numpy(ds[v].values[:, 0]) for v in spec.names], 1)
    torch.testing.assert_close(u[2], e.initial(trajectory_generator(5, 2), 1)[0])
    assert e.steady(u.double()).abs().max() < 1e-4  # what float32 leaves
    with pytest.raises(ValueError, match=r"found frames=2, .* nothing moves"):
        simulate("darcy", tmp_path / "b.zarr", trajectories=1, frames=2)
    with pytest.raises(ValueError, match="found stored=8 between walls, wanted None"):
        simulate("darcy", tmp_path / "b.zarr", trajectories=1, stored=8)


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=r"wanted two even Cartesian axes .* that end at walls"):
        Darcy(Grid.periodic_box(8))
    with pytest.raises(ValueError, match="darcy: found width=-1, wanted a positive number"):
        law(8, width=-1)
    with pytest.raises(NotImplementedError, match="nothing moves in this law"):
        law(8).advance(torch.zeros(2, 8, 8), 1.0)
    with pytest.raises(ValueError, match="wanted two sides, a positive length and 1 to 576 terms"):
        KarhunenLoeve((1.0, 1.0), 0.1, 577)
    with pytest.raises(ValueError, match="walled box: found 2 sizes and 3 lengths"):
        Grid.walled_box((2, 2), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"found a state of shape \(2, 4, 4\), wanted"):
        law(8).steady(torch.zeros(2, 4, 4))
