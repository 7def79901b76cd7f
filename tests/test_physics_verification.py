"""Verification tells a sound equation from one with a wrong sign, a wrong order or a false claim."""

import math

import pytest
import torch

import lapse.physics
from lapse.physics.burgers import Burgers
from lapse.physics.equation import Equation
from lapse.physics.fakes import fakes, solves
from lapse.physics.grid import Axis, Grid
from lapse.physics.heat import Heat
from lapse.physics.navier_stokes import NavierStokes
from lapse.physics.operators import derivative, laplacian
from lapse.physics.smooth import smear, smooth
from lapse.physics.stepping import ETDRK4, rk4, spectral_radius, ssp_rk3

LINE = Grid.periodic_box(32, names=("x",))


class Written(Equation):
    """Burgers' equation in the words that users have, with nothing else."""

    name = "written"
    variables = ("u",)
    units = {"u": "m s-1"}  # noqa: RUF012

    def rhs(self, u):
        return 0.2 * laplacian(u, self.grid) - u * derivative(u, self.grid, "x")


def test_an_equation_of_a_few_lines_passes(capsys):
    report = lapse.physics.verify(Written(LINE), 0.1)
    assert report.ok and set(report.fit) >= {"strong", "defect", "hermite"}
    assert report.interval == 0.1 and report.orders["step"] == pytest.approx(4, abs=0.15)
    printed = capsys.readouterr().out
    assert printed.strip() == str(report) and "shrunk throughout" in printed and "PROBLEM" not in printed


def test_default_step_is_stable_and_the_solution_is_that_of_the_exponential_solver():
    e, other = Written(LINE), Burgers(LINE, viscosity=0.2)
    rho = 0.2 * 16**2  # of diffusion; advection adds to it
    assert 0.9 / (rho + 16 * 3) < e.dt < 1.1 / rho
    u = e.initial(torch.Generator().manual_seed(0), 3, torch.float64)
    assert u.shape == (3, 1, 32)
    torch.testing.assert_close(e.advance(u, 1.0), other.advance(u, 1.0), rtol=0, atol=1e-4)
    assert e.invariants(u) == {} and e.symmetries() == {} and e.spin_up_time == 0

    class Fixed(Written):
        dt = 0.004

    assert Fixed(LINE).steps(0.1) == 25


def test_a_solver_that_solves_another_law_is_found():
    class Wrong(Written):
        def step(self, u, dt):
            return rk4(u, lambda v: self.rhs(v) - 0.05 * v, dt)

    report = lapse.physics.verify(Wrong(LINE), 0.1, quiet=True)
    assert not report.ok
    assert any("order of strong" in p for p in report.problems) and any(
        "order of hermite" in p for p in report.problems
    )


def test_a_step_of_lower_order_is_found():
    class Third(Written):
        def step(self, u, dt):
            return ssp_rk3(u, self.rhs, dt)

    report = lapse.physics.verify(Third(LINE), 0.1, quiet=True)
    assert any(p.startswith("the order of step is 3.0") for p in report.problems)

    class Honest(Third):
        order = 3

    assert lapse.physics.verify(Honest(LINE), 0.1, quiet=True).ok


def test_false_laws_and_symmetries_are_found():
    class Claims(Written):
        laws = {"energy": "conserved", "loss": "falling"}  # noqa: RUF012

        def invariants(self, u):
            energy = self.mean(u**2)[..., 0] / 2
            return {"energy": energy, "loss": -energy}

        def symmetries(self):
            return {"reflection": lambda u: u.flip(-1)}

    problems = lapse.physics.verify(Claims(LINE), 0.1, quiet=True).problems
    assert [p.split(" by")[0] for p in problems] == [
        "drift of energy drifts",
        "rise of loss drifts",
        "symmetry: reflection fails",
    ]


def test_an_exact_solver_has_no_order_and_copies_of_solutions_are_not_judged():
    report = lapse.physics.verify(Heat(Grid.periodic_box(16)), quiet=True)
    assert report.ok and report.orders["step"] is None and report.orders["strong"] == pytest.approx(4, abs=0.05)
    assert report.invisible == {"shrunk throughout", "smeared throughout"}
    assert "solves the equation, too" in str(report) and "exact" in str(report)


def test_equations_without_a_solver_are_refused():
    with pytest.raises(ValueError, match=r"verify: found \('p',\) of navier_stokes without a rate of change"):
        lapse.physics.verify(NavierStokes(Grid.periodic_box(16)))


def test_fakes_are_what_they_say():
    e = Burgers(LINE)
    u = smooth(LINE, torch.Generator().manual_seed(0), (2, 6, 1))
    found = fakes(e, u)
    for v in found.values():
        assert v.shape == u.shape
    for name in ("shrunk", "smeared", "lagged", "noisy"):
        assert torch.equal(found[name][:, :3], u[:, :3])
    torch.testing.assert_close(found["shrunk"][:, 3:], 0.95 * u[:, 3:])
    assert torch.equal(found["lagged"][:, 3:], u[:, 2:5])
    noise = (found["noisy"] - u)[:, 3:]
    assert noise.std().item() == pytest.approx(0.01, rel=0.1)
    torch.testing.assert_close(found["shrunk throughout"], 0.95 * u)
    assert solves(e, u) == frozenset() and len(solves(Heat(LINE), u)) == 2


@pytest.mark.parametrize("periodic", [True, False])
def test_smear_is_a_gaussian_filter(periodic):
    """exp(−k²s²/2) on a wave (a cosine between walls), the mean kept."""
    n = 24
    x = torch.arange(n, dtype=torch.float64)
    k = 2 * math.pi * 3 / n if periodic else math.pi * 3 / n
    wave = torch.cos(k * (x if periodic else x + 0.5))
    grid = Grid((Axis("x", tuple(x.tolist()), "m", periodic),))
    wanted = 2 + wave * math.exp(-((1.5 * k) ** 2) / 2)
    torch.testing.assert_close(smear(2 + wave, grid, 1.5), wanted, rtol=0, atol=1e-13)
    u = smooth(grid, torch.Generator().manual_seed(0), (50,))
    torch.testing.assert_close(u.mean(-1), torch.zeros(50).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(u.square().mean(-1), torch.ones(50).double())


def test_etdrk4_with_waves():
    """v' = iωv + v²: order 4; and without v² a rotation by ωt, to round-off, at any step."""
    L = torch.tensor([3j, 1e5j, 0j], dtype=torch.complex128)
    v = torch.ones(3, dtype=torch.complex128)
    torch.testing.assert_close(ETDRK4(L, 0.7)(v, torch.zeros_like), (0.7 * L).exp(), rtol=1e-10, atol=0)
    v0, t = 0.3 + 0.2j, 1.0
    exact = 1 / ((1 / v0 + 1 / 3j) * torch.exp(torch.tensor(-3j * t)) - 1 / 3j)

    def error(n):
        v, step = torch.tensor([v0], dtype=torch.complex128), ETDRK4(L[:1], t / n)
        for _ in range(n):
            v = step(v, lambda v: v**2)
        return abs(v[0] - exact).item()

    assert math.log2(error(8) / error(16)) == pytest.approx(4, abs=0.15)
    single = ETDRK4(L[:1], 0.1, torch.float32)(v[:1].to(torch.complex64), lambda v: v**2)
    double = ETDRK4(L[:1], 0.1)(v[:1], lambda v: v**2)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(single.to(torch.complex128), double, rtol=1e-5, atol=0)


def test_spectral_radius():
    grid = Grid.periodic_box(33, names=("x",))
    u = smooth(grid, torch.Generator().manual_seed(0), (1,))
    assert spectral_radius(lambda v: laplacian(v, grid), u) == pytest.approx(16**2, rel=0.05)
    assert spectral_radius(lambda v: 3 * derivative(v, grid, "x"), u) == pytest.approx(48, rel=0.1)  # a complex pair
    assert spectral_radius(torch.zeros_like, u) == 0
