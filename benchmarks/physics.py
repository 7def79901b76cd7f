"""Equations: exact solutions, observed orders, an independent statement, gradients, counterfeits, and others' data.

    python benchmarks/physics.py                    # every stage
    python benchmarks/physics.py --only records     # one of exact, statements, orders, counterfeits, records

Item 1 of what the physics must show. The operators that the equations are made of are measured by `operators.py`, and
shocks by `shock.py`; `make bench-physics` runs the former first.

- *exact*: solver and residuals on solutions in closed form. Orders are log₂ of the ratio of two residuals, at frames
  one spacing and half of it apart, per unit of time.
- *statements*: right-hand sides against sympy, and gradients of residuals against differences of fourth order.
- *orders*: of every equation's step and residuals on a far more finely solved solution (`lapse.physics.order`).
- *counterfeits*: `lapse.physics.verify` on the usual box (Gray–Scott: a smaller one): the least score of a counterfeit
  over that of the truth, at the usual interval between frames.
- *records*: data that nobody here computed with a solver of this library, from the folder LAPSE_DATA: Allen–Cahn of
  Raissi, Perdikaris & Karniadakis (2019, doi:10.1016/j.jcp.2018.10.045), Kuramoto–Sivashinsky of Rudy et al. (2017,
  doi:10.1126/sciadv.1602614), and Kolmogorov flow from the solver exponax (Koehler et al. 2024, arXiv:2411.00180).
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lapse.physics import verify
from lapse.physics.allen_cahn import AllenCahn
from lapse.physics.burgers import Burgers
from lapse.physics.equation import SHIPPED, Equation, lookup
from lapse.physics.grid import Grid
from lapse.physics.heat import Heat
from lapse.physics.kdv import KdV
from lapse.physics.kolmogorov import Kolmogorov
from lapse.physics.kuramoto_sivashinsky import KuramotoSivashinsky
from lapse.physics.order import observed_orders
from lapse.physics.residual import FORMS, Form, residual, scale
from lapse.physics.shallow_water import ShallowWater
from record import ROOT, Row, quick, record, show

TAU = 2 * math.pi
DATA = Path(os.environ.get("LAPSE_DATA", ROOT.parent / "shared" / "data"))
SOLVED = [name for name in SHIPPED if not lookup(name).algebraic]
ORDER = "3.85..4.15"
SMALL: dict[str, dict[str, float]] = {  # boxes on which the usual parameters are resolved, and tests are quick
    "advection_diffusion": {"resolution": 32},
    "allen_cahn": {"resolution": 48, "length": 0.8},
    "burgers": {"resolution": 48, "length": 1.0},
    "gray_scott": {"resolution": 16, "length": 0.3},
    "heat": {"resolution": 16},
    "kdv": {"resolution": 64, "length": 1.0},
    "kolmogorov": {"resolution": 16},
    "kuramoto_sivashinsky": {"resolution": 24, "length": 8 * math.pi},
    "shallow_water": {"resolution": 16},
}


def line(n: int, length: float = TAU) -> Grid:
    return Grid.periodic_box(n, length, ("x",))


def small(name: str, dimension: int | None = None, **parameters: float) -> Equation:
    return lookup(name)(lookup(name).usual.grid(**SMALL[name], dimension=dimension), **parameters)


def start(e: Equation, seed: int = 0, time: float = 0.0) -> Tensor:
    """A random smooth state (1, C, *space), float64."""
    u = e.initial(torch.Generator().manual_seed(seed), 1, torch.float64)
    return e.advance(u, time) if time else u


# Exact solutions: an equation, its solution as a function of time, and a spacing at which residuals show their order.


def cole_hopf(e: Equation, t: float) -> Tensor:
    """u = −2ν φ_x/φ with φ = 1 + Σ a_k exp(−νk²t) cos(kx + p_k), which solves the heat equation."""
    (x,), nu = e.grid.meshgrid(), e.parameters["viscosity"]
    phi, slope = torch.ones_like(x), torch.zeros_like(x)
    for k, a, p in ((1, 0.5, 0.0), (2, 0.3, 1.0), (3, -0.1, 2.0)):
        decay = a * math.exp(-nu * k**2 * t)
        phi, slope = phi + decay * torch.cos(k * x + p), slope - decay * k * torch.sin(k * x + p)
    return (-2 * nu * slope / phi)[None]


def soliton(e: Equation, t: float, kappa: float = 1.0, x0: float = 20.0) -> Tensor:
    """u = (12βκ²/α) sech²(κ(x − x₀ − 4βκ²t)), wrapped round."""
    a, b, L = e.parameters["steepening"], e.parameters["dispersion"], e.grid.length[0]
    s = torch.remainder(e.grid.meshgrid()[0] - x0 - 4 * b * kappa**2 * t + L / 2, L) - L / 2
    return (12 * b * kappa**2 / a / torch.cosh(kappa * s) ** 2)[None]


def decaying_heat(e: Equation, t: float) -> Tensor:
    y, x = e.grid.meshgrid()
    return (torch.sin(2 * x + y) * math.exp(-5 * e.parameters["diffusivity"] * t))[None]


def taylor_green(e: Equation, t: float) -> Tensor:
    """Vortices cos 2x cos 2y, a steady Euler flow, decay at the rate 8ν + μ."""
    y, x = e.grid.meshgrid()
    decay = math.exp(-(8 * e.parameters["viscosity"] + e.parameters["drag"]) * t)
    return (2 * torch.cos(2 * x) * torch.cos(2 * y) * decay)[None]


def exact() -> list[Row]:
    cases: dict[str, tuple[Equation, Callable[[Equation, float], Tensor], float]] = {
        "decaying heat": (Heat(Grid.periodic_box(16), diffusivity=0.2), decaying_heat, 0.1),
        "Cole-Hopf": (Burgers(line(128), viscosity=0.3), cole_hopf, 0.1),
        "KdV soliton": (KdV(line(256, 40.0), steepening=6, dispersion=1, speed=2.5), soliton, 0.025),
        "Taylor-Green": (Kolmogorov(Grid.periodic_box(16), viscosity=0.1, forcing=0, speed=4), taylor_green, 0.1),
    }
    rows = []
    for name, (e, solution, h) in cases.items():
        at = partial(solution, e)

        def size(form: Form, h: float, e: Equation = e, at: Callable[[float], Tensor] = at) -> float:
            offsets = (-2, -1, 0, 1, 2) if form == "strong" else (-0.5, 0.5)
            r = residual(e, torch.stack([at(0.5 + i * h) for i in offsets]), h, form)
            return float(r.square().mean().sqrt()) / (1 if form == "strong" else h)

        for form in ("strong", "hermite"):
            rows.append(Row(f"3.1 {name}: order of the {form} residual", math.log2(size(form, h) / size(form, h / 2)),
                            None, ORDER, "order"))  # fmt: skip
        error = e.advance(at(0.0), 1.0) - at(1.0)
        rows.append(Row(f"3.1 {name}: solver after 1 s, error", float(error.norm() / at(1.0).norm()), None, "<= 1e-5",
                        "relative"))  # fmt: skip
    e = ShallowWater(Grid.periodic_box(32), viscosity=0.0)
    y, _ = e.grid.meshgrid()
    f, g, eta = e.parameters["coriolis"], e.parameters["gravity"], 0.01 * torch.cos(2 * y)
    u = torch.stack((0.02 * g / f * torch.sin(2 * y), torch.zeros_like(y), 0.1 + eta))  # f u = −g ∂h/∂y
    r = e.rhs(u).abs().amax(dim=(-2, -1)) / torch.stack((f * u[0].max(), f * u[0].max(), f * u[2].max()))
    return [*rows, Row("3.1 geostrophic balance: residual", float(r.max()), None, "<= 1e-10", "of its terms")]


def against_sympy() -> dict[str, float]:
    """Largest relative difference of each right-hand side from a textbook's, on waves whose products the grid holds."""
    import sympy

    x, y = sympy.symbols("x y")

    def laplace(f: sympy.Expr) -> sympy.Expr:
        return f.diff(x, 2) + f.diff(y, 2)

    def kolmogorov(p: dict[str, float], psi: sympy.Expr) -> tuple[list[sympy.Expr], list[sympy.Expr]]:
        w, u, v = laplace(psi), -psi.diff(y), psi.diff(x)
        curl = -(p["forcing"] * sympy.sin(p["wavenumber"] * y)).diff(y)
        return [w], [-u * w.diff(x) - v * w.diff(y) + p["viscosity"] * laplace(w) - p["drag"] * w + curl]

    def shallow_water(p: dict[str, float], u: sympy.Expr, v: sympy.Expr, h: sympy.Expr) -> tuple[list, list]:
        h = 0.1 + h / 50
        moved = [u * q.diff(x) + v * q.diff(y) for q in (u, v)]
        return [u, v, h], [
            -moved[0] + p["coriolis"] * v - p["gravity"] * h.diff(x) + p["viscosity"] * laplace(u),
            -moved[1] - p["coriolis"] * u - p["gravity"] * h.diff(y) + p["viscosity"] * laplace(v),
            -(h * u).diff(x) - (h * v).diff(y),
        ]

    def gray_scott(p: dict[str, float], u: sympy.Expr, v: sympy.Expr) -> tuple[list, list]:
        eaten = p["rate"] * u * v**2
        return [u, v], [
            p["diffusivity_u"] * laplace(u) - eaten + p["feed"] * (1 - u),
            p["diffusivity_v"] * laplace(v) + eaten - (p["feed"] + p["kill"]) * v,
        ]

    def scalar(rate: Callable[[dict[str, float], sympy.Expr], sympy.Expr]) -> Callable[..., tuple[list, list]]:
        return lambda p, u: ([u], [rate(p, u)])

    statements: dict[str, Callable[..., tuple[list, list]]] = {
        "advection_diffusion": scalar(
            lambda p, u: p["diffusivity"] * laplace(u) - p["velocity_x"] * u.diff(x) - p["velocity_y"] * u.diff(y)
        ),
        "allen_cahn": scalar(lambda p, u: p["diffusivity"] * laplace(u) + p["rate"] * u * (1 - u**2)),
        "burgers": scalar(lambda p, u: -u * u.diff(x) + p["viscosity"] * u.diff(x, 2)),
        "gray_scott": gray_scott,
        "heat": scalar(lambda p, u: p["diffusivity"] * laplace(u)),
        "kdv": scalar(lambda p, u: -p["steepening"] * u * u.diff(x) - p["dispersion"] * u.diff(x, 3)),
        "kolmogorov": kolmogorov,
        "kuramoto_sivashinsky": scalar(
            lambda p, u: -u * u.diff(x) - p["instability"] * u.diff(x, 2) - p["damping"] * u.diff(x, 4)
        ),
        "shallow_water": shallow_water,
    }
    given = {
        "advection_diffusion": {"velocity_x": 0.6, "velocity_y": -0.4},
        "kdv": {"steepening": 1.3, "dispersion": 7e-4},
        "kuramoto_sivashinsky": {"instability": 1.2, "damping": 0.7},
        "kolmogorov": {"forcing": 1.3, "wavenumber": 3},
    }
    found = {}
    for name, statement in statements.items():
        law = lookup(name)
        d = 1 if getattr(law, "dimensions", ()) == (1,) else 2
        e = law(law.usual.grid(24, TAU, d), **given.get(name, {}))
        y_ = y if d == 2 else sympy.Integer(0)
        waves = [
            0.3 + 0.5 * sympy.sin(x + 2 * y_) + 0.2 * sympy.cos(2 * x - y_ + 1),
            0.1 - 0.4 * sympy.cos(x - y_) + 0.3 * sympy.sin(2 * y_ + 0.5) * sympy.cos(x),
            0.2 * sympy.cos(2 * x + y_ - 1),
        ][: len(e.variables)]
        mesh = e.grid.meshgrid()

        def sample(fs: list, mesh: tuple[Tensor, ...] = mesh) -> Tensor:
            values = [sympy.lambdify((x, y), f, "numpy")(mesh[-1].numpy(), mesh[0].numpy()) for f in fs]
            return torch.stack([torch.as_tensor(v) * torch.ones_like(mesh[0]) for v in values])

        state, rate = statement(e.parameters, *waves)
        wanted = sample(rate)
        found[name] = float((e.rhs(sample(state)) - wanted).abs().max() / wanted.abs().max())
    return found


def gradient_error(e: Equation, form: Form) -> float:
    """Relative difference of the slope of ⟨r²⟩ along a random direction, by autograd and by differences."""
    h = min(e.usual.interval or math.inf, 2 * e.dt)
    frames = [start(e)]
    for _ in range(8 if form == "weak" else 4):
        frames.append(1.01 * e.advance(frames[-1], h))
    u = torch.stack(frames, dim=1)
    v = torch.stack([start(e, k) for k in range(u.shape[1])], dim=1)

    def square(a: Tensor) -> Tensor:
        return residual(e, u + a * v, h, form).square().mean()

    a = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(square(a), a)
    d = 1e-3
    with torch.no_grad():  # of fourth order, so that the quotient's own error stays below what is measured
        at = torch.tensor([d, 2 * d], dtype=torch.float64)
        one, two = (square(s) - square(-s) for s in at)
    return float(abs((8 * one - two) / (12 * d) / slope - 1))


def statements() -> list[Row]:
    rows = [
        Row(f"3.1 {name}: right-hand side against sympy, fp64", error, None, "<= 1e-10", "relative")
        for name, error in against_sympy().items()
    ]
    for name in SOLVED:
        worst = max(gradient_error(small(name), form) for form in FORMS)
        rows.append(Row(f"3.1 {name}: gradients of residuals", worst, None, "<= 1e-6", "relative"))
    return rows


def orders() -> list[Row]:
    rows = []
    for name in SOLVED:
        e = small(name)
        interval = e.usual.interval or math.inf
        found = observed_orders(e, start(e, time=interval), min(interval, 2 * e.dt))
        for what, p in found.items():
            check = f"3.1 {name}: order of the {what if what == 'step' else what + ' residual'}"
            rows.append(Row(check, "exact", None, None, "order") if p is None else Row(check, p, None, ORDER, "order"))
    return rows


def counterfeits() -> list[Row]:
    rows = []
    for name in ("burgers", "kuramoto_sivashinsky") if quick() else SOLVED:
        found = verify(lookup(name)(lookup(name).usual.grid()) if name != "gray_scott" else small(name), quiet=True)
        for form in found.truth:
            scores = {n: s for n, s in found.fakes[form].items() if n not in found.invisible}
            least = min(scores, key=lambda n: scores[n])
            check = f"3.1 {name}: least counterfeit / truth, {form}"
            target = "> 1" if form == "defect" else None
            rows.append(Row(check, scores[least] / found.truth[form], None, target, f"ratio ({least})"))
            rows.append(Row(f"3.1 {name}: truth at {found.interval:g} s, {form}", found.truth[form], None, None,
                            "relative"))  # fmt: skip
    return rows


# Others' data. Relative residuals are norms over all frames and nodes, of the residual and of what it is small against.


def ratio(r: Tensor, s: Tensor) -> float:
    return float(r.norm() / s.norm())


def allen_cahn_record() -> list[Row]:
    from scipy.io import loadmat

    file = loadmat(DATA / "raissi_1d" / "AC.mat")
    u, h = torch.from_numpy(file["uu"].T.copy())[:, None], float(file["tt"][0, 1])
    e = AllenCahn(line(512, 2.0), diffusivity=1e-4, rate=5.0)
    rows = []
    for form in ("strong", "hermite", "defect"):
        r, s = residual(e, u, h, form), scale(e, u, h, form)
        rows.append(Row(f"3.1 AC.mat: {form} residual", ratio(r, s), None, "<= 5e-4", "relative"))
    F = e.invariants(u)["free_energy"]
    risen = int((F.diff() >= 0).sum())
    rows.append(Row("3.1 AC.mat: steps at which the free energy does not fall", risen, None, "== 0", "of 200"))
    for factor in (0.5, 2.0):
        wrong = AllenCahn(line(512, 2.0), diffusivity=1e-4 * factor, rate=5.0)
        times = ratio(residual(wrong, u, h, "strong"), residual(e, u, h, "strong"))
        rows.append(
            Row(f"3.1 AC.mat: strong residual with diffusivity × {factor:g} / truth", times, None, ">= 10", "times")
        )
    return rows


def kuramoto_sivashinsky_record() -> list[Row]:
    from scipy.io import loadmat

    file = loadmat(DATA / "kuramoto_sivashinsky" / "kuramoto_sivishinky.mat")
    u, h = torch.from_numpy(file["uu"].T.copy())[:, None], float(file["tt"][0, 1])
    e = KuramotoSivashinsky(line(1024, 32 * math.pi))
    rows = []
    for form in ("strong", "hermite"):
        r, s = residual(e, u, h, form), scale(e, u, h, form)
        rows.append(Row(f"3.1 Kuramoto-Sivashinsky: {form} residual", ratio(r, s), None, "<= 2e-3", "relative"))
    for p in (2, 6):
        r, s = residual(e, u, h, "strong", p), scale(e, u, h, "strong", p)
        check = f"3.1 Kuramoto-Sivashinsky: strong residual, time differences of order {p}"
        rows.append(Row(check, ratio(r, s), None, None, "relative"))
    for factor in (0.5, 2.0):
        wrong = KuramotoSivashinsky(line(1024, 32 * math.pi), damping=factor)
        times = ratio(residual(wrong, u, h, "strong"), residual(e, u, h, "strong"))
        check = f"3.1 Kuramoto-Sivashinsky: strong residual with damping × {factor:g} / truth"
        rows.append(Row(check, times, None, ">= 10", "times"))
    return rows


def low(r: Tensor, k: float) -> Tensor:
    """Modes |k| <= k of fields on the box [0, 2π)²."""
    n = r.shape[-1]
    kx, ky = torch.fft.rfftfreq(n, 1 / n), torch.fft.fftfreq(n, 1 / n)[:, None]
    return torch.fft.irfft2(torch.fft.rfft2(r) * (kx**2 + ky**2 <= k**2), s=(n, n))


def kolmogorov_record() -> list[Row]:
    """Its axes are (time, x, y), and 4 cos 4y stands on the right of the vorticity equation: A = −1 here."""
    import xarray as xr

    with xr.open_dataset(DATA / "generated_kolmogorov_exponax_k4" / "kolmogorov_exponax_k4.nc") as file:
        velocity = torch.stack([torch.from_numpy(file[c].values).mT.double() for c in ("u", "v")], dim=1)
        h = float(file["time"][1] - file["time"][0])
    velocity = velocity[100 : 120 if quick() else None]

    def law(viscosity: float) -> Kolmogorov:
        return Kolmogorov(Grid.periodic_box(64), viscosity=viscosity, drag=0.1, forcing=-1.0, wavenumber=4)

    def relative(form: Form, accuracy: int | None = None, viscosity: float = 0.01, k: float = 10) -> float:
        e = law(viscosity)
        r, s = residual(e, w, h, form, accuracy), scale(e, w, h, form, accuracy)
        return ratio(low(r, k), low(s, k))

    w = law(0.01).vorticity(velocity)
    rows = []
    forms: tuple[tuple[str, Form, int | None], ...] = (
        ("strong residual, order 6 in time", "strong", 6),
        ("hermite residual", "hermite", None),
        ("defect", "defect", None),
    )
    for what, form, accuracy in forms:
        truth = relative(form, accuracy)
        rows.append(Row(f"3.1 exponax: {what}, |k| <= 10", truth, None, "<= 1e-2", "relative"))
        for viscosity in (0.005, 0.02):
            check = f"3.1 exponax: {what} with viscosity {viscosity:g} / with 0.01, |k| <= 10"
            rows.append(Row(check, relative(form, accuracy, viscosity) / truth, None, ">= 10", "times"))
    check = "3.1 exponax: strong residual, order 4 in time (which 0.1 s is too long for), |k| <= 10"
    rows.append(Row(check, relative("strong"), None, None, "relative"))
    for k in (6, 15, 99):
        check = f"3.1 exponax: defect, {'every mode' if k == 99 else f'|k| <= {k}'}"
        rows.append(Row(check, relative("defect", k=k), None, None, "relative"))
    return rows


def records() -> list[Row]:
    return [*allen_cahn_record(), *kuramoto_sivashinsky_record(), *kolmogorov_record()]


STAGES: dict[str, Callable[[], list[Row]]] = {
    "exact": exact,
    "statements": statements,
    "orders": orders,
    "counterfeits": counterfeits,
    "records": records,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), help="stages to run (default: all)")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    for name in only:
        if name == "records" and not (DATA / "raissi_1d").is_dir():
            print("records: no data; set LAPSE_DATA to the folder that holds raissi_1d and its neighbours")
            continue
        begin = time.perf_counter()
        rows = STAGES[name]()
        show(rows, record("physics", rows, (time.perf_counter() - begin) / 60, stage=name))


if __name__ == "__main__":
    main()
