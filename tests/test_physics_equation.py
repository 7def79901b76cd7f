"""The registry and what every equation shares."""

import pytest
import torch

from lapse.physics.equation import REGISTRY, Equation, equation, register
from lapse.physics.grid import Axis, Grid

BOX = Grid.periodic_box(16)


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
def test_equations_are_built_by_name(name):
    e = equation(name, BOX, viscosity=0.02)
    assert e.name == name and e.parameters["viscosity"] == 0.02
    assert set(e.units) == set(e.variables)
    again = equation(name, BOX, **e.parameters)  # what a file stores suffices to build it again
    assert again.parameters == e.parameters
    assert "16x16" in repr(e) and "viscosity=0.02" in repr(e)


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residual_of_a_solution_is_nought_and_of_a_lag_is_not(name, dtype):
    e = equation(name, BOX)
    u0 = e.initial(torch.Generator().manual_seed(0), 2, dtype)
    assert u0.dtype == dtype and u0.shape == (2, len(e.variables), 16, 16)
    u1 = e.advance(u0, 0.3)
    assert torch.equal(e.residual(u0, u1, 0.3), torch.zeros_like(u1))
    torch.testing.assert_close(e.residual(u0, u0, 0.3), u0 - u1)
    assert e.residual(u0, u0, 0.3).abs().amax() > 1e-2


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
def test_initial_states_are_functions_of_the_generator_alone(name):
    e = equation(name, BOX)
    a, b = (e.initial(torch.Generator().manual_seed(s), 2) for s in (1, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, e.initial(torch.Generator().manual_seed(2), 2))
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
def test_a_trajectory_does_not_depend_on_its_batch(name):
    e = equation(name, BOX)
    u = e.initial(torch.Generator().manual_seed(0), 3, torch.float64)
    together = e.advance(u, 0.5)
    torch.testing.assert_close(e.advance(u[1:2], 0.5), together[1:2], rtol=0, atol=1e-13)
    torch.testing.assert_close(e.advance(u[None], 0.5)[0], together, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
def test_rhs_is_the_derivative_of_the_flow_map(name):
    e = equation(name, BOX)
    u = e.initial(torch.Generator().manual_seed(0), 1, torch.float64)
    h = 1e-3
    rate = (8 * (e.step(u, h) - e.step(u, -h)) - e.step(u, 2 * h) + e.step(u, -2 * h)) / (12 * h)
    torch.testing.assert_close(rate, e.rhs(u), rtol=0, atol=1e-7 * e.rhs(u).abs().max().item())


@pytest.mark.parametrize("name", ["kolmogorov", "shallow_water"])
def test_the_flow_map_is_differentiable(name):
    e = equation(name, Grid.periodic_box(10))
    u = e.initial(torch.Generator().manual_seed(0), 1, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: e.advance(u, 0.1, steps=2), u, fast_mode=True)


def test_interval_is_divided_into_whole_steps():
    e = equation("kolmogorov", BOX)
    assert e.steps(3 * e.dt) == 3
    assert e.steps(3.01 * e.dt) == 4
    assert e.steps(1e-9) == 1


def test_names_are_unique():
    equation("kolmogorov", BOX)

    class Other(Equation):
        pass

    with pytest.raises(ValueError, match=r"found .*Kolmogorov.* registered already, wanted a free name"):
        register("kolmogorov")(Other)
    assert REGISTRY["kolmogorov"].__name__ == "Kolmogorov"


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(KeyError, match=r"found no equation 'euler', wanted one of \[.*'kolmogorov', .*'shallow_water'"):
        equation("euler", BOX)
    e = equation("kolmogorov", BOX)
    with pytest.raises(ValueError, match=r"found a state of shape \(1, 8, 8\), wanted \(…, 1, 16, 16\)"):
        e.advance(torch.zeros(1, 8, 8), 1.0)
    with pytest.raises(TypeError, match=r"found a state of type torch.bfloat16, wanted float32 or float64"):
        e.rhs(torch.zeros(1, 16, 16, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="found viscosity=nan, wanted a finite number"):
        equation("kolmogorov", BOX, viscosity=float("nan"))
    walls = Grid((Axis("y", (0.0, 1.0, 2.0), "m"), Grid.periodic_box(4).axes[1]))
    with pytest.raises(ValueError, match=r"bounded.*wanted two periodic axes"):
        equation("shallow_water", walls)
