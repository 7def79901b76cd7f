"""Inverse design against models whose best initial condition is known, and what is promised of every design."""

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import lapse
from lapse import FieldSpec, SpecError, objectives
from lapse.datasets.fields import space_coordinates
from lapse.datasets.spec import Variable
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.surrogate import cli
from lapse.surrogate.augment import known_climate
from lapse.surrogate.case import Case, interval, references
from lapse.surrogate.control import CONTROLS
from lapse.surrogate.design import DesignWarning
from lapse.surrogate.designs import _Sampling, designs
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.feasible import Feasible
from lapse.surrogate.manifold import Manifold
from lapse.surrogate.model import Model
from lapse.surrogate.package import build
from lapse.surrogate.repair import Repair
from lapse.surrogate.search import Search
from lapse.surrogate.targets import Target
from lapse.surrogate.view import ForecastView, rolled, viewed

STD = 2.0


class Shift(Emulator):
    """A law with a known answer: the field moves by four cells along x a frame; "fast" adds a number to all."""

    def predict_mean(self, state, context, condition):
        return torch.roll(state.z[:, -1], 1, dims=-1)

    def predict_fast(self, state, context, condition, noise):
        return self.predict_mean(state, context, condition) + 0.1 * noise[:, -1].reshape(-1, 1, 1, 1)


def shift_model() -> Model:
    """`Shift` on 16 x 16 cells in pixel space (patches of 4), in float64."""
    variable = Variable("vorticity", "s-1", minimum=-8.0, maximum=8.0, mean=0.0, std=STD)
    spec = FieldSpec((variable,), Grid.periodic_box(16, 16.0), 1.0, "s")
    config = {
        "name": "shift", "normaliser": {},
        "autoencoder": {"network": "identity", "heads": []},
        "emulator": {"width": 4, "depth": 1, "parts": ["mean", "fast"], "noise_maps": 1, "noise_vector": 1},
    }  # fmt: skip
    emulator = build(spec, config)
    emulator.__class__ = Shift
    return Model(emulator.double().eval(), "shift", config)


def states(spec: FieldSpec, count: int = 12, seed: int = 0) -> xr.Dataset:
    """Smooth random frames."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.arange(n) * 2 * np.pi / n for n in spec.grid.shape), indexing="ij")
    waves = [np.sin(a * x + b * y + 2 * np.pi * rng.random()) for a in range(3) for b in range(3)]
    fields = np.tensordot(rng.standard_normal((count, 9)), waves, 1)
    fields -= fields.mean(axis=(1, 2), keepdims=True)
    data = {"vorticity": (("time", "y", "x"), fields.astype("float32"), {"units": "s-1"})}
    times = {"time": ("time", spec.interval * np.arange(count), {"units": "s"})}
    return xr.Dataset(data, {**times, **space_coordinates(spec)}, {"history": "made for a test"})


@pytest.fixture(scope="module")
def shift() -> Model:
    return shift_model()


QUIET: dict[str, Any] = {"progress": False, "prior": 0.0, "compare": ()}
BOX = {"x": slice(6.0, 9.0), "y": slice(4.0, 5.0)}


def sensitivity(lead: int) -> np.ndarray:
    """d(mean over BOX at a lead)/d(initial cell) under `Shift`: the box, moved back."""
    weights = np.zeros((16, 16))
    weights[4:6, 6:10] = 1 / 8
    return np.roll(weights, -4 * lead, axis=1)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_the_best_perturbation_of_a_given_size(shift: Model, method: str) -> None:
    """J = ⟨s, u⟩ on the ball of radius r about u₀ among fields of equal mean: u₀ + r σ √N ŝ with ŝ the unit s − ⟨s⟩."""
    ds = states(shift.spec)
    target = objectives.region_mean("vorticity", lead=3, **BOX)
    out = shift.design(
        ds, target, 3, sense="maximise", mode="mean", radius=0.5, constraints=("mean",), bounds={}, method=method,
        iterations=60 if method == "adam" else 30, step=0.05 if method == "adam" else 0.1, **QUIET,
    )  # fmt: skip
    s = sensitivity(3)
    s = (s - s.mean()) / np.linalg.norm(s - s.mean())
    given = ds["vorticity"].values[-1]
    best = given + 0.5 * STD * 16 * s
    wanted = (sensitivity(3) * best).sum()
    found = out["vorticity"].values[0]
    assert float(out["predicted_objective"]) == pytest.approx(wanted, rel=1e-4 if method == "lbfgs" else 2e-2)
    np.testing.assert_allclose(found, best, atol=0.02 if method == "lbfgs" else 1.0)
    assert float(out["violation"].max()) < 1e-6
    assert abs(found.astype(float).mean() - given.mean()) < 1e-6
    assert np.sqrt(((found - given) ** 2).mean()) / STD < 0.5 + 1e-6


def test_bounds_that_bind_everywhere(shift: Model) -> None:
    """Without a held mean a linear objective is best on its bounds; cells that do not matter stay as they were."""
    ds = states(shift.spec)
    target = objectives.region_mean("vorticity", lead=2, **BOX)
    bounds = {"vorticity": (-5.0, 4.0)}
    out = shift.design(
        ds, target, 2, sense="minimise", mode="mean", constraints=(), bounds=bounds, iterations=40, step=1.0, **QUIET
    )
    matters = sensitivity(2) > 0
    found = out["vorticity"].values[0]
    np.testing.assert_allclose(found[matters], -5.0, atol=1e-5)
    np.testing.assert_allclose(found[~matters], ds["vorticity"].values[-1][~matters], atol=1e-5)
    assert float(out["predicted_objective"]) == pytest.approx(-5.0, abs=1e-5)


def test_the_initial_condition_may_be_part_of_the_objective(shift: Model) -> None:
    """max ⟨s, u⟩ − ½ α ⟨(u − u₀)²⟩ has its peak at u₀ + (N/α) s."""
    ds = states(shift.spec)
    given = torch.from_numpy(ds["vorticity"].values[-1].astype("float64"))
    gain = objectives.region_mean("vorticity", lead=1, **BOX)

    def worth(view: ForecastView) -> Tensor:
        return gain(view) - 0.5 * 10.0 * (view.initial("vorticity") - given).square().mean()

    out = shift.design(ds, worth, 1, sense="maximise", mode="mean", bounds={}, constraints=(), **QUIET)
    np.testing.assert_allclose(out["vorticity"].values[0], given.numpy() + 256 / 10.0 * sensitivity(1), atol=1e-3)
    assert "units" not in out["predicted"].attrs and out["predicted"].attrs["long_name"] == "worth"


def test_references_are_spread_over_runs_and_times(tiny: Model) -> None:
    runs = xr.concat([states(tiny.spec, 7, seed=k) for k in range(3)], "trajectory")
    windows, phases = references(tiny, runs, 5, torch.zeros(1))
    assert phases is None and windows.shape == (5, 2, 1, 16, 16)
    for window, (run, time) in zip(windows, [(0, 0), (0, 4), (1, 2), (2, 0), (2, 5)], strict=True):
        wanted = runs["vorticity"].isel(trajectory=run, time=slice(time, time + 2))
        np.testing.assert_allclose(window[:, 0], wanted)


def test_a_target_pattern_is_found_where_it_came_from(shift: Model) -> None:
    ds = states(shift.spec, 4)  # too few to tell a range of latents, which would bound them
    truth = states(shift.spec, seed=5)["vorticity"].isel(time=0, drop=True)
    arrived = truth.copy(data=np.roll(truth.values, 8, axis=1)).to_dataset(name="vorticity")
    out = shift.design(
        ds,
        objectives.similarity(arrived, lead=2),
        2,
        sense="maximise",
        over="latent",
        mode="mean",
        iterations=80,
        **QUIET,
    )
    np.testing.assert_allclose(out["vorticity"].values[0], truth.values, atol=0.05)
    assert float(out["predicted_objective"]) > 0.999
    assert bool((np.diff(out["objective"]) > 0).all()), "no step of L-BFGS goes back"


def test_members_share_their_noise_and_the_prediction_does_not(shift: Model) -> None:
    """Under `Shift` a member's objective at lead k is the mean one plus 0.1 (ε₁ + … + ε_k), whatever the state."""
    ds = states(shift.spec)
    target = objectives.region_mean("vorticity", lead=4, **BOX)
    options = dict(sense="maximise", mode="fast", members=3, radius=0.2, bounds={}, iterations=3, **QUIET)
    a = shift.design(ds, target, 4, predicted=400, **options)
    b = shift.design(ds, target, 4, predicted=400, **options)
    for name in ("vorticity", "objective", "predicted"):
        np.testing.assert_array_equal(a[name], b[name])
    other = shift.design(ds, target, 4, seed=1, **options)
    assert abs(float(other["objective"][0] - a["objective"][0])) > 1e-3
    noise = a["predicted"] - float((sensitivity(4) * a["vorticity"].values[0]).sum())
    assert float(noise.std()) == pytest.approx(0.2, rel=0.15)
    np.testing.assert_allclose(
        a["predicted"] - a["predicted_given"], float(a["predicted"][0] - a["predicted_given"][0])
    )
    low, high = a["interval"].values
    inside = (a["predicted"] >= low) & (a["predicted"] <= high)
    assert float(inside.mean()) == pytest.approx(0.9, abs=0.01)


def test_an_interval_holds_one_more_member_with_ninety_per_cent() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(2000):
        values = rng.gumbel(size=20)
        low, high = interval(values[:19])
        hits.append(low <= values[19] <= high)
    assert np.mean(hits) == pytest.approx(0.9, abs=0.02)


def test_risk_over_members_takes_the_bad_tail(shift: Model) -> None:
    ds = states(shift.spec)
    target = objectives.region_mean("vorticity", lead=2, **BOX)
    options = dict(sense="maximise", mode="fast", members=10, radius=0.2, bounds={}, iterations=2, **QUIET)
    mean = shift.design(ds, target, 2, **options)
    careful = shift.design(ds, objectives.cvar(target, 0.9, tail="lower"), 2, **options)
    assert float(careful["objective"][-1]) < float(mean["objective"][-1])
    np.testing.assert_allclose(careful["predicted"], mean["predicted"], atol=1e-5)  # each member for itself
    worst = np.sort(careful["predicted"].values)[:4]  # 3.2 of 32
    assert float(careful["predicted_objective"]) == pytest.approx((worst[:3].sum() + 0.2 * worst[3]) / 3.2, abs=1e-6)


# a model with networks


def with_statistics(make_model: Callable[..., Model]) -> Model:
    variable = Variable("vorticity", "s-1", minimum=-6.0, maximum=6.0, mean=0.0, std=STD)
    parameters = {"viscosity": 0.02}
    return make_model(variables=(variable,), parameters=parameters)


@pytest.fixture(scope="module")
def tiny(make_model: Callable[..., Model]) -> Model:
    return with_statistics(make_model)


@pytest.mark.parametrize(("over", "mode"), [("initial_condition", "fast"), ("latent", "fast"), ("latent", "quality")])
def test_gradient_of_what_is_minimised_matches_differences(tiny: Model, over: str, mode: str) -> None:
    """Objective and penalty through constraints, rollout and decoder, in float64, with checkpoints."""
    model = copy.copy(tiny)
    model.emulator = copy.deepcopy(tiny.emulator).double()
    ds = states(model.spec)
    target = objectives.extreme("vorticity", lead=[2, 3], softness=0.5) + objectives.region_mean("vorticity", lead=3)
    case = Case(model, ds, target, 3, "last", mode, 0)
    feasible = Feasible(model.spec, case.given, {"vorticity": (-3.5, 3.5)}, ("mean", "energy"), None, case.law)
    manifold = Manifold(model.emulator, *references(model, ds, 4, case.given))
    manifold.limits = {k: 0.5 * v for k, v in manifold.limits.items()}  # so that the penalty takes part
    control = CONTROLS[over](model.emulator, feasible, manifold, case.given, case.context)
    search = Search(case, control, manifold, -1, 2, 0, 0.1, True)
    x = control.retract(control.start)
    assert x is not None
    search.evaluate(x)
    random = torch.Generator().manual_seed(1)
    x = x + 0.05 * torch.randn(x.shape, generator=random, dtype=torch.float64)
    here = search.evaluate(x)
    assert here.about["penalty"] > 1e-3 * abs(here.about["objective"])
    g = here.gradient()
    for _ in range(3):
        d, h = torch.randn(x.shape, generator=random, dtype=torch.float64), 1e-6
        difference = (search.evaluate(x + h * d).value - search.evaluate(x - h * d).value) / (2 * h)
        assert float((g * d).sum()) == pytest.approx(difference, rel=2e-5)


def test_checkpoints_change_the_memory_and_nothing_else(tiny: Model) -> None:
    emulator = tiny.emulator

    def run(steps: int, checkpointed: bool) -> tuple[int, Tensor]:
        held: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        u = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        kept = {p.untyped_storage().data_ptr() for p in [*emulator.parameters(), *emulator.buffers()]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            view, _ = rolled(emulator, u, steps, 4, "fast", checkpointed=checkpointed)
            value = view.field("vorticity", steps).square().mean()
        size = sum(n for p, n in held.items() if p not in kept)
        return size, torch.autograd.grad(value, u)[0]

    (short, _), (long, g), (all_of_it, h) = run(3, True), run(12, True), run(12, False)
    torch.testing.assert_close(g, h)
    per_frame = (long - short) / 9
    assert per_frame * 5 < all_of_it / 12, "a frame must keep its latents and noise, and little else"


def test_the_design_holds_its_promises(tiny: Model) -> None:
    """Mean and energy exact, bounds obeyed, prediction = forecast of the returned field, labels, provenance."""
    ds = states(tiny.spec)
    target = objectives.region_mean("vorticity", lead=3, x=slice(1, 3), y=slice(2, 4))
    out = tiny.design(
        ds, target, 3, sense="maximise", constraints=("mean", "energy"), bounds={"vorticity": (-3.0, 3.5)},
        iterations=6, members=3, seed=7, predicted=20, verify="solver", progress=False,
    )  # fmt: skip
    found, given = out["vorticity"], ds["vorticity"].isel(time=slice(-2, None))
    assert found.dims == ("time", "y", "x") and found.attrs["units"] == "s-1"
    xr.testing.assert_equal(out["vorticity_given"].drop_attrs(), given.drop_attrs())
    assert float(found.min()) >= -3.0 - 1e-6 and float(found.max()) <= 3.5 + 1e-6
    law = equation("kolmogorov", tiny.spec.grid, viscosity=0.02)
    a, b = (law.invariants(torch.from_numpy(u.values[:, None].astype("float64"))) for u in (found, given))
    assert float((a["energy"] / b["energy"] - 1).abs().max()) < 1e-6
    assert float((a["mean_vorticity"] - b["mean_vorticity"]).abs().max()) / STD < 1e-6
    assert float(out["violation"].max()) < 1e-6
    assert float(out["objective"][-1]) > float(out["objective"][0])

    fc = tiny.forecast(out, 3, 20, seed=8, progress=False)
    np.testing.assert_allclose(target(viewed(fc, tiny.spec)), out["predicted"], atol=1e-4)
    assert float(out["predicted_objective"]) == pytest.approx(float(out["predicted"].mean()), abs=1e-6)
    assert set(out["mode"].values) == {"fast", "quality", "mean"}

    u = torch.from_numpy(found.values[-1:, None].astype("float64"))
    for _ in range(3):
        u = law.advance(u, 0.2)
    cells = found.copy(data=np.broadcast_to(u[:, 0].numpy(), found.shape)).sel(x=slice(1, 3), y=slice(2, 4))
    assert float(out["achieved"]) == pytest.approx(float(cells.isel(time=0).mean()), rel=1e-5)

    assert out["predicted"].attrs["units"] == "s-1" and "mean of vorticity" in out["predicted"].attrs["long_name"]
    wanted = {"Conventions", "title", "source", "history", "lapse_seed", "lapse_model", "lapse_version"}
    assert wanted | {"lapse_config_hash", "lapse_input_fingerprint"} <= set(out.attrs)
    assert out.attrs["history"].startswith("made for a test\n")
    assert (
        out.attrs["lapse_input_fingerprint"] == tiny.forecast(ds, 1, 1, progress=False).attrs["lapse_input_fingerprint"]
    )
    assert json.loads(out.attrs["lapse_design"])["sense"] == "maximise"
    assert json.loads(json.dumps(out.to_dict()["attrs"])) == out.attrs


def test_the_interval_is_widened_as_verified_designs_call_for(tiny: Model) -> None:
    ds = states(tiny.spec)
    target = objectives.region_mean("vorticity", lead=2, x=slice(1, 3), y=slice(2, 4))
    options: dict[str, Any] = {"sense": "maximise", "iterations": 1, "members": 2, "progress": False, "radius": 0.3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        first = tiny.design(ds, target, 2, verify="solver", **options)
        again = tiny.design(ds, target, 2, verified=[first] * 9, **options)
    low, high = again["interval"].values
    assert low <= float(first["achieved"]) <= high, "what is known of this very design is held"
    assert json.loads(again.attrs["lapse_design"])["widening"] > 1
    assert "as verified designs call for" in again["interval"].attrs["comment"]
    np.testing.assert_array_equal(first["interval_by_mode"], again["interval_by_mode"])
    with pytest.raises(SpecError, match="3 designs; wanted at least 9"):
        tiny.design(ds, target, 2, verified=[first] * 3, **options)


# repairs by the solver


@pytest.mark.parametrize(("mode", "members"), [("mean", 1), ("fast", 1), ("quality", 1)])
@pytest.mark.parametrize("calendar", [False, True])
def test_a_repaired_forecast_is_the_known_run(make_model: Callable[..., Model], mode, members, calendar) -> None:
    """Whatever networks and run say, and past refreshed frames, too; from another start it is another forecast."""
    own = {"interval": 6.0, "time_units": "hours", "calendar": "standard", "equation": None} if calendar else {}
    emulator = copy.deepcopy(make_model(**own).emulator).double()
    emulator.refresh = 2
    random = torch.Generator().manual_seed(0)
    run = 2 * torch.randn(8, 1, 16, 16, generator=random, dtype=torch.float64)
    u, run = run[:2], run[2:]
    phase = torch.rand(8, 4, generator=random, dtype=torch.float64) if calendar else None
    about = {"seed": 3, "context": phase[:2] if calendar else None, "phase": phase[1:] if calendar else None}
    repair = Repair.of(emulator, u, run, members, mode, **about)

    def forecast(start: Tensor) -> Tensor:
        view, _ = rolled(emulator, start, 6, members, mode, errors=False, repair=repair, **about)
        return view["vorticity"][0]

    with torch.no_grad():
        torch.testing.assert_close(forecast(u), run[:, 0], rtol=0, atol=1e-10)
        assert float((forecast(u + 0.1) - run[:, 0]).abs().max()) > 1e-3


class Own:
    """A solver of the user's: fields move as in `Shift`, by a law of growth that the model knows nothing of."""

    def __init__(self, law: Callable[[np.ndarray], np.ndarray], steps: int = 2, interval: float = 1.0) -> None:
        self.law, self.steps, self.interval, self.seen = law, steps, interval, []

    def __call__(self, ds: xr.Dataset) -> xr.Dataset:
        self.seen.append(ds)
        frames, u = [], ds["vorticity"].isel(time=-1).values
        for k in range(self.steps):
            u = np.roll(self.law(u) if k == 0 else u, 4, axis=1)
            frames.append(ds["vorticity"].isel(time=-1, drop=True).copy(data=u))
        time = float(ds["time"][-1]) + self.interval * np.arange(1.0, self.steps + 1)
        return xr.concat(frames, "time").assign_coords(time=time).to_dataset()


def test_repairs_take_out_what_the_solver_knows_better(shift: Model) -> None:
    """A truth that is the model's answer and a number beside it: the repaired design hits, the other misses by it."""
    ds, solver = states(shift.spec), Own(lambda u: u + 0.5)
    mean = objectives.region_mean("vorticity", lead=2, **BOX)

    def miss(view: ForecastView) -> Tensor:
        return (mean(view) - 1.0).square()

    options: dict[str, Any] = dict(sense="minimise", mode="mean", constraints=(), bounds={}, iterations=20, **QUIET)
    plain = shift.design(ds, miss, 2, verify=solver, **options)
    assert float(plain["achieved"]) == pytest.approx(0.25, abs=1e-3)
    assert len(solver.seen) == 2 and "achieved_by_run" not in plain
    solver.seen.clear()
    out = shift.design(ds, miss, 2, verify=solver, repairs=2, **options)
    assert float(out["achieved"]) < 1e-6
    assert len(solver.seen) == 3 == out.sizes["run"], "one run from the given state, one for every round"
    assert float(out["achieved_given"]) == pytest.approx(float(out["objective"][0]), abs=1e-6)
    assert out["round"].values[0] == 0 and out["round"].values[-1] == 1
    assert bool((np.diff(out["evaluations"]) > 0).all()) and bool((np.diff(out["seconds"]) >= 0).all())
    xr.testing.assert_allclose(solver.seen[0]["vorticity"].drop_attrs(), out["vorticity_given"].drop_attrs())
    assert "Own" in out["achieved"].attrs["comment"] and json.loads(out.attrs["lapse_design"])["repairs"] == 2


@pytest.mark.parametrize("blows_up", [False, True])
def test_a_round_that_the_solver_does_not_confirm_is_undone(shift: Model, blows_up: bool) -> None:
    """The truth loses what goes too far: v = u − c (u − u₀)², best at u₀ + 1/(2c); the model sees no end of it."""
    ds, c = states(shift.spec), 0.25
    given = ds["vorticity"].values[-1]
    target = objectives.region_mean("vorticity", lead=2, **BOX)
    options: dict[str, Any] = dict(sense="maximise", mode="mean", constraints=(), bounds={}, iterations=4, **QUIET)

    def law(u: np.ndarray) -> np.ndarray:
        too_far = blows_up and np.abs(u - given).max() > 4
        return np.full_like(u, np.nan) if too_far else u - c * (u - given) ** 2

    with warnings.catch_warnings():
        warnings.simplefilter("error", DesignWarning)
        out = shift.design(ds, target, 2, verify=Own(law), repairs=12, step=2.0, **options)
    runs = out["achieved_by_run"].values - float(out["achieved_given"])
    assert np.isnan(runs).any() if blows_up else runs.min() < 0, "some round went too far"
    assert float(out["achieved"]) == np.nanmax(out["achieved_by_run"].values)
    runs = runs[np.isfinite(runs)]
    assert runs.max() == pytest.approx(1 / (4 * c), rel=0.05)
    assert out.sizes["run"] > 6, "a round that finds nothing within reach does not end the search"
    assert float(out["kept_by_run"].sum()) < out.sizes["run"] and bool((np.diff(out["seconds_by_run"]) > 0).all())
    moved = (out["vorticity"].values[0] - given)[sensitivity(2) > 0]
    np.testing.assert_allclose(moved, 1 / (2 * c), rtol=0.3)


def test_a_solver_may_answer_as_a_forecast_is_laid_out(tiny: Model) -> None:
    target = objectives.region_mean("vorticity", lead=2)
    options: dict[str, Any] = {"sense": "maximise", "mode": "mean", "iterations": 2, "repairs": 1, "constraints": ()}
    a = tiny.design(states(tiny.spec), target, 2, verify="solver", progress=False, **options)
    b = tiny.design(states(tiny.spec), target, 2, verify=lambda ds: tiny.solve(ds, 2), progress=False, **options)
    np.testing.assert_allclose(a["achieved_by_run"], b["achieved_by_run"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a["vorticity"], b["vorticity"], atol=1e-3)


def test_with_many_members_the_solver_still_judges(shift: Model) -> None:
    """A risk over members is not the solver's number, so promised and confirmed must not be mixed up."""
    ds = states(shift.spec)
    given = ds["vorticity"].values[-1]
    target = objectives.cvar(objectives.region_mean("vorticity", lead=2, **BOX), 0.9, tail="lower")
    options: dict[str, Any] = dict(sense="maximise", mode="fast", members=10, constraints=(), bounds={}, **QUIET)
    for law, best in ((lambda u: 2 * given - u, 0.0), (lambda u: u - 0.25 * (u - given) ** 2, 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DesignWarning)
            out = shift.design(ds, target, 2, verify=Own(law), repairs=8, iterations=3, step=0.5, **options)
        assert float(out["achieved"]) >= float(out["achieved_given"])
        assert float(out["achieved"]) == out["achieved_by_run"].values[out["kept_by_run"].values == 1].max()
        assert float(out["achieved"] - out["achieved_given"]) == pytest.approx(best, abs=0.1)


def test_over_latents_the_given_state_is_what_was_given(tiny: Model) -> None:
    """Its decoded latents are another state, from which the search begins."""
    ds, target = states(tiny.spec), objectives.region_mean("vorticity", lead=2, x=slice(1, 3), y=slice(2, 4))
    options: dict[str, Any] = {"sense": "maximise", "mode": "mean", "over": "latent", "constraints": (), **QUIET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        plain, repaired = (
            tiny.design(ds, target, 2, verify="solver", repairs=n, iterations=2, **options) for n in (0, 1)
        )
    assert float(repaired["achieved_given"]) == pytest.approx(float(plain["achieved_given"]), rel=1e-6)
    assert abs(float(repaired["achieved_by_run"][0] - repaired["achieved_given"])) > 1e-3
    doubted = "no better than the given state" in repaired.attrs["lapse_design_doubts"]
    assert doubted == (float(repaired["achieved"]) <= float(repaired["achieved_given"]))


def test_no_gain_by_the_solver_is_told(shift: Model) -> None:
    ds = states(shift.spec)
    given = ds["vorticity"].values[-1]
    target = objectives.region_mean("vorticity", lead=2, **BOX)
    with pytest.warns(DesignWarning, match="by the solver it is no better than the given state"):
        out = shift.design(
            ds, target, 2, sense="maximise", mode="mean", verify=Own(lambda u: 2 * given - u), repairs=2, iterations=3,
            **QUIET,
        )  # fmt: skip
    np.testing.assert_allclose(out["vorticity"].values[0], given, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "told"),
    [
        (lambda ds: ds["vorticity"], "verify, <lambda>: found a DataArray; wanted a Dataset of the frames that follow"),
        (Own(lambda u: u, steps=3), "time=3.*times 12.0 to 14.0; wanted the 2 frames that follow 11.0"),
        (Own(lambda u: u, interval=2.0), "times 13.0 to 15.0; wanted the 2 frames .* 11.0, one an interval of 1 s"),
        (Own(lambda u: u * np.nan), "not finite, from the given state"),
        (lambda ds: ds.rename(vorticity="w"), "vorticity"),
    ],
)
def test_unfit_answers_of_a_solver(shift: Model, solver: Callable[[xr.Dataset], xr.Dataset], told: str) -> None:
    target = objectives.region_mean("vorticity", lead=2, **BOX)
    with pytest.raises(SpecError, match=told):
        shift.design(
            states(shift.spec), target, 2, sense="maximise", mode="mean", verify=solver, iterations=1, repairs=1,
            **QUIET,
        )  # fmt: skip


def test_files_and_the_accessor(tiny: Model, tmp_path) -> None:
    ds = states(tiny.spec)
    target = objectives.extreme("vorticity", lead=2)
    options: dict[str, Any] = {"sense": "minimise", "iterations": 1, "members": 2, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        a, b = tiny.design(ds, target, 2, **options), ds.lapse.design(tiny, target, 2, **options)
    np.testing.assert_array_equal(a["vorticity"], b["vorticity"])
    a.to_netcdf(tmp_path / "design.nc")
    with xr.open_dataset(tmp_path / "design.nc") as back:
        xr.testing.assert_allclose(back.load(), a)


def test_a_design_that_leaves_known_states_is_pulled_back_and_told(tiny: Model) -> None:
    ds = states(tiny.spec)
    target = objectives.extreme("vorticity", lead=1, softness=1.0)
    options: dict[str, Any] = {"sense": "maximise", "bounds": {}, "members": 2, "iterations": 12, "step": 0.5}
    with pytest.warns(DesignWarning, match=r"distance to known states is .*, beyond the reference's"):
        free = tiny.design(ds, target, 1, prior=0.0, progress=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        held = tiny.design(ds, target, 1, prior=10.0, progress=False, **options)
    beyond = [float((d["distance"].sel(state="designed") / d["distance_limit"]).max()) for d in (free, held)]
    assert beyond[0] > 1.5 and beyond[1] < 0.75 * beyond[0]
    assert "beyond the reference" in free.attrs["lapse_design_doubts"]
    assert float(free["penalty"].max()) == 0 < float(held["penalty"].max())


def test_the_shipped_model_tells_flow_from_what_is_none() -> None:
    """States of the flow that were no reference cost nothing; noise and double strength do."""
    model = lapse.load("kolmogorov64")
    law = equation("kolmogorov", model.spec.grid, **model.spec.parameters)
    flow = law.spin_up(torch.Generator().manual_seed(3), 12, 2.0)
    manifold = Manifold(model.emulator, flow[:10, None])

    def distances(u: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return manifold.distances(u[None], model.emulator.encode(u[None, None]), None)

    for u in flow[10:]:
        assert float(manifold.penalty(distances(u))) < 0.02
    noise = torch.randn(flow[0].shape, generator=torch.Generator().manual_seed(1))
    for u, name in ((flow[10] + noise, "reconstruction"), (2 * flow[10], "latent")):
        found = distances(u)
        assert float(found[name]) > 1.05 * manifold.limits[name]
        assert float(manifold.penalty(found)) > 0.05


def test_a_calendar_and_masks(make_model: Callable[..., Model], make_analyses: Callable[..., xr.Dataset]) -> None:
    mask = np.ones((16, 16), dtype=bool)
    mask[:3] = False
    variable = Variable("vorticity", "s-1", minimum=-6.0, maximum=6.0, mean=0.0, std=STD)
    calendar: dict[str, Any] = {"interval": 6.0, "time_units": "hours", "calendar": "standard", "equation": None}
    model = make_model(variables=(variable,), masks={"vorticity": mask}, **calendar)
    times = np.datetime64("2001-01-01", "ns") + np.arange(6) * np.timedelta64(6, "h")
    ds = make_analyses(model.spec, times)
    ds["vorticity"] = ds["vorticity"].where(xr.DataArray(mask, dims=("y", "x")))
    target = objectives.region_mean("vorticity", lead=2, y=slice(2.0, 4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        out = model.design(ds, target, 2, sense="maximise", members=2, iterations=2, predicted=19, progress=False)
    assert float(out["objective"][-1]) > float(out["objective"][0])
    assert bool(out["vorticity"].isel(y=slice(3)).isnull().all()) and bool(
        out["vorticity"].isel(y=slice(3, None)).notnull().all()
    )
    assert out["time"].values[-1] == times[-1]
    fc = model.forecast(out, 2, 19, seed=1, progress=False)
    np.testing.assert_allclose(target(viewed(fc, model.spec)), out["predicted"], atol=1e-4)


# what is refused


def no_gradient(view: ForecastView) -> Tensor:
    return torch.tensor(float(view.field("vorticity", 1).detach().mean()))


@pytest.mark.parametrize(
    ("objective", "error", "told"),
    [
        (no_gradient, ValueError, r"'no_gradient': found a number that does not depend.*no \.detach\(\)"),
        (lambda view: view.field("vorticity", 1).mean().item(), TypeError, r"found a float, wanted a torch.Tensor"),
        (lambda view: view.field("vorticity", 1), SpecError, r"shape \(2, 16, 16\).*one a member, shape \(2,\)"),
        (lambda view: view.field("vorticity", 1).sub(99).log().mean(), ValueError, "found nan.*wanted a finite number"),
        (lambda view: 0 * view.field("vorticity", 1).mean(), ValueError, r"gradient of norm 0\.0.*above 0"),
        (objectives.region_mean("pressure", lead=1), SpecError, r"'pressure'; wanted one of vorticity"),
        (objectives.region_mean("vorticity", lead=1, x=slice(70, 80)), SpecError, r"no cell of the grid in x=70…80"),
        (objectives.region_mean("vorticity", lead=3), SpecError, r"found 3; wanted a whole number from 1 to 2"),
    ],
)  # fmt: skip
def test_unfit_objectives(tiny: Model, objective: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        tiny.design(states(tiny.spec), objective, 2, sense="maximise", members=2, progress=False)


def test_every_unfit_option_is_named_at_once(tiny: Model) -> None:
    target: Target = objectives.region_mean("vorticity", lead=1)
    with pytest.raises(SpecError) as caught:
        tiny.design(
            states(tiny.spec), target, 0, sense="maximize", over="parameters", method="cma", iterations=0, step=-1.0,  # type: ignore[arg-type]
            members=0, predicted=5, prior=-1.0, mode="slow", repairs=1,  # type: ignore[arg-type]
        )  # fmt: skip
    told = str(caught.value)
    assert told.startswith("12 problems"), told
    parts = ("'maximize'", "names and ranges", "'cma'", "steps: found 0", "at least 19", "'slow'", "repair by")
    for part in parts:
        assert part in told


def test_unfit_starts_and_solvers(tiny: Model, shift: Model) -> None:
    target = objectives.region_mean("vorticity", lead=1)
    ds = states(tiny.spec)
    with pytest.raises(SpecError, match=r"11 starts; wanted one"):
        tiny.design(ds, target, 1, sense="maximise", init_time="all")
    with pytest.raises(SpecError, match=r"2 initial states; wanted one.*isel\(member=0\)"):
        tiny.design(xr.concat([ds, ds], "member"), target, 1, sense="maximise")
    with pytest.raises(ValueError, match=r"verify: found 'solver' .* equation None.*function of your own solver"):
        shift.design(states(shift.spec), target, 1, sense="maximise", verify="solver")
    with pytest.raises(TypeError, match="sense"):
        tiny.design(ds, target, 1)


# parameters


@pytest.fixture(scope="module")
def flow() -> tuple[Model, xr.Dataset]:
    """The shipped model and two frames of waves that it takes for a flow."""
    model = lapse.load("kolmogorov64")
    ds = states(model.spec, 2)
    ds["vorticity"] = (3 * ds["vorticity"] / ds["vorticity"].std()).assign_attrs(units="s-1")
    return model, ds


def test_the_drag_that_made_a_flow_is_found(flow: tuple[Model, xr.Dataset]) -> None:
    model, ds = flow
    truth = model.forecast(ds, 2, 1, mode="mean", parameters={"drag": 0.5}, progress=False)  # the model's own world
    target = truth.isel(init_time=0, lead_time=1, member=0, drop=True)
    likeness = objectives.similarity(target, lead=2)
    out = model.design(
        ds, likeness, 2, sense="maximise", over="parameters", bounds={"drag": (0.05, 1.0)}, mode="mean", iterations=6,
        predicted=19, compare=(), verify="solver", progress=False,
    )  # fmt: skip
    assert list(out.parameter.values) == ["drag"] and float(out["parameters_given"][0]) == 0.1
    assert float(out["parameters"][0]) == pytest.approx(0.5, rel=0.02)
    assert float(out["achieved_given"]) < float(out["achieved"]) <= 1
    xr.testing.assert_equal(out["vorticity"], out["vorticity_given"].rename("vorticity"))
    np.testing.assert_allclose(out["parameters_by_iteration"][0], 0.1)
    assert model.spec.parameters["drag"] == 0.1 and model.emulator.laws is None  # the model is as it was
    found = dict(out["parameters"].to_series())
    again = model.forecast(out, 2, 1, parameters=found, mode="mean", progress=False)
    assert float(abs(again["vorticity"]).max()) > 0
    assert out.attrs["title"].startswith("parameters designed")
    assert json.loads(out.attrs["lapse_parameters"])["drag"] == found["drag"]
    assert int(out["evaluations"][0]) == 3 and json.loads(out.attrs["lapse_design"])["bounds"] == {"drag": [0.05, 1.0]}
    assert float(out["objective"][0]) == pytest.approx(float(out["predicted_objective_given"]), abs=1e-6)


def test_a_solver_of_ones_own_is_told_the_parameters(flow: tuple[Model, xr.Dataset]) -> None:
    model, ds = flow
    told = []

    def own(frames: xr.Dataset) -> xr.Dataset:
        told.append(json.loads(frames.attrs["parameters"])["forcing"])
        return model.at(forcing=told[-1]).solve(frames, 1).isel(init_time=0, drop=True)

    def strongest(view: ForecastView) -> Tensor:  # of which torch knows no gradient
        return view.field("vorticity", 1)[..., 10:14, 10:20].detach().mean()

    out = model.design(
        ds, strongest, 1, sense="maximise", over="parameters", bounds={"forcing": (0.5, 1.5)}, mode="mean",
        iterations=2, predicted=19, compare=(), verify=own, progress=False,
    )  # fmt: skip
    assert told == [float(out["parameters"][0]), 1.0] and 0.1 < abs(told[0] - 1) <= 0.5
    assert float(out["achieved"]) > float(out["achieved_given"])


def test_parameters_that_change_nothing_are_told(flow: tuple[Model, xr.Dataset]) -> None:
    model, ds = flow
    still = lambda view: view.initial("vorticity").mean() + 0 * view.field("vorticity", 1).mean()  # noqa: E731
    with pytest.warns(DesignWarning, match="may not change with these parameters"):
        model.design(
            ds, still, 1, sense="maximise", over="parameters", bounds={"drag": (0.05, 1.0)}, mode="mean", predicted=19,
            compare=(), progress=False,
        )  # fmt: skip


def test_unfit_ranges_of_parameters(flow: tuple[Model, xr.Dataset], shift: Model) -> None:
    model, ds = flow
    target = objectives.region_mean("vorticity", lead=1)
    with pytest.raises(SpecError) as caught:
        model.design(
            ds, target, 1, sense="maximise", over="parameters", radius=0.1, constraints=["mean"],
            bounds={"gravity": (0, 1), "drag": (0.3, 0.1), "forcing": ("a", 2)},
        )  # fmt: skip
    told = str(caught.value)
    for part in ("5 problems", "no such parameter", "viscosity=0.012", "least < greatest", "radius", "constraints"):
        assert part in told, told
    with pytest.raises(SpecError, match="bounds: found 'training'"):
        model.design(ds, target, 1, sense="maximise", over="parameters")
    for bounds in ({"wavenumber": (2, 6)}, {"viscosity": (-0.01, 0.03)}):
        with pytest.raises(SpecError, match="all of whose values the equation takes"):
            model.design(ds, target, 1, sense="maximise", over="parameters", bounds=bounds)
    broken = lambda view: view.field("vorticity", 1).sub(99).log().mean()  # noqa: E731
    with pytest.raises(ValueError, match=r"found nan.*wanted a finite number"):
        model.design(ds, broken, 1, sense="maximise", over="parameters", bounds={"drag": (0.05, 1.0)}, progress=False)


# many designs

MEAN: dict[str, Any] = {"progress": False, "mode": "mean"}


def test_designs_are_samples_of_the_tilted_climate(shift: Model) -> None:
    """The mean of a box is linear in the fields: the climate's spread, three standard deviations above its mean."""
    usual = states(shift.spec, 40)
    box = objectives.region_mean("vorticity", lead=1, **BOX)
    sampling = _Sampling(Case(shift, usual, box, 1, "last", "mean", 0), known_climate(shift, usual), -1, 1, 0)
    x = torch.zeros(sampling.size, dtype=torch.float64, requires_grad=True)
    mean = sampling.objective(x)
    sigma = float(torch.autograd.grad(mean, x)[0].norm())
    assert sampling.usual(200) == pytest.approx(sigma, rel=0.15)
    out = shift.designs(
        usual, box, 1, sense="maximise", samples=24, iterations=20, climate=usual, temperature=sigma / 3, **MEAN
    )
    tilted = out["objective"]
    assert float(tilted.mean()) == pytest.approx(float(mean.detach()) + 3 * sigma, abs=0.7 * sigma)
    assert float(tilted.std()) == pytest.approx(sigma, rel=0.4) and (out["acceptance"] > 0.99).all()
    assert out["vorticity"].dims == ("member", "time", "y", "x") and tilted.attrs["units"] == "s-1"
    fc = shift.forecast(out, 1, 24, mode="mean", progress=False)  # every member from its own state
    got = fc["vorticity"].isel(init_time=0, lead_time=0).sel(**BOX).mean(("x", "y"))
    np.testing.assert_allclose(got, tilted, rtol=1e-4)
    low = shift.designs(usual, box, 1, sense="minimise", samples=2, iterations=20, climate=usual, **MEAN)
    assert float(low["objective"].max()) < float(mean.detach())


def test_a_design_is_a_function_of_seed_and_number_and_the_solver_has_its_say(shift: Model) -> None:
    usual = states(shift.spec, 40)
    box = objectives.region_mean("vorticity", lead=1, **BOX)
    options = {"sense": "maximise", "iterations": 6, "climate": usual, "temperature": 0.5, "seed": 3, **MEAN}

    def solver(frames):
        return frames.isel(time=[-1]).roll(x=4).assign_coords(x=frames.x, time=frames.time[-1:] + 1.0)

    two = shift.designs(usual, box, 1, samples=2, verify=solver, **options)
    three = usual.lapse.designs(shift, box, 1, samples=3, **options)
    xr.testing.assert_allclose(two["vorticity"], three["vorticity"].isel(member=slice(2)))
    np.testing.assert_allclose(two["achieved"], two["objective"], rtol=1e-5)  # this law is known
    assert (two["generated"] == 1).all() and two.attrs["temperature"] == 0.5


def test_unfit_options_and_objectives_are_named(shift: Model) -> None:
    usual = states(shift.spec, 40)
    box = objectives.region_mean("vorticity", lead=1, **BOX)
    with pytest.raises(SpecError, match=r"(?s)5 problems.*sense.*mode.*samples.*iterations.*temperature"):
        designs(shift, usual, box, 1, sense="up", mode="slow", samples=0, iterations=1, temperature=0.0)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="climate"):
        shift.designs(usual, box, 1, sense="maximise", **MEAN)
    with pytest.raises(ValueError, match=r"standard deviation of 0\.0 over the climate"):
        flat = lambda view: 0 * view.field("vorticity", 1).mean()  # noqa: E731
        shift.designs(usual, flat, 1, sense="maximise", climate=usual, **MEAN)
    rough = lambda view: (100 * view.field("vorticity", 1)).sin().flatten(1).mean(1)  # noqa: E731
    with pytest.warns(UserWarning, match="chains accepted less than"):
        shift.designs(
            usual, rough, 1, sense="maximise", samples=1, iterations=4, temperature=1e-6, climate=usual, **MEAN
        )


# the command line


@pytest.fixture
def folder(tiny: Model, tmp_path, monkeypatch: pytest.MonkeyPatch):
    tiny.save(tmp_path / "model")
    ds = states(tiny.spec, 6)
    ds.to_netcdf(tmp_path / "flow.nc")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_is_the_method(tiny: Model, folder, capsys: pytest.CaptureFixture[str]) -> None:
    line = "design model flow.nc --maximise region_mean --lead 2 --region x=1:3 --region y=2: --iterations 1"
    options = "--members 2 --radius 0.3 --seed 3 --mode fast --compare --hold mean --repairs 1 --quiet --out best.nc"
    assert cli.main([*line.split(), *options.split()]) == 0
    told = capsys.readouterr().out
    assert "mean of vorticity, x=1.0…3.0, y=2.0…None, lead 2, s-1" in told and "solver" in told
    target = objectives.region_mean("vorticity", lead=2, x=slice(1, 3), y=slice(2, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        wanted = tiny.design(
            states(tiny.spec, 6), target, 2, sense="maximise", iterations=1, members=2, radius=0.3, seed=3,
            mode="fast", compare=(), constraints=["mean"], verify="solver", repairs=1, progress=False,
        )  # fmt: skip
    with xr.open_dataset("best.nc") as found:
        for name in ("vorticity", "predicted", "achieved"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("--maximise region_mean --lead 2 --out best.zarr", 1, "wanted a name that ends with .nc"),
        ("--maximise similarity --lead 2 --out best.nc", 1, "--target: found none"),
        ("--minimise largest --variable u --lead 2 --out best.nc", 1, "variable 'u'; wanted one of vorticity"),
        ("--minimise largest --lead 2 --region x=3 --out best.nc", 2, "wanted NAME=A:B"),
        ("--lead 2 --out best.nc", 2, "--maximise --minimise is required"),
        ("--maximise largest --minimise largest --lead 2 --out best.nc", 2, "not allowed with"),
        ("--maximise largest --lead 2 --samples 2 --radius 1 --certify --out a.nc", 1, "found --radius, --certify"),
        ("--maximise largest --lead 2 --temperature 1 --out a.nc", 1, "--temperature: found it without --samples"),
        ("--maximise largest --lead 2 --certify --out a.nc", 1, "has no certificate of mode 'fast'"),
    ],
)
def test_what_the_verb_refuses(folder, capsys: pytest.CaptureFixture[str], words: str, status: int, told: str) -> None:
    try:
        found = cli.main(["design", "model", "flow.nc", *words.split()])
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert told in capsys.readouterr().err


def test_the_verb_varies_parameters(flow: tuple[Model, xr.Dataset], tmp_path, capsys) -> None:
    flow[1].to_netcdf(tmp_path / "flow.nc")
    words = "--maximise region_mean --variable vorticity --lead 1 --region x=1:2 --mode mean --iterations 1 --compare"
    cli.main(["design", "kolmogorov64", str(tmp_path / "flow.nc"), *words.split(), "--vary", "forcing=0.5:1.5",
              "--out", str(tmp_path / "best.nc"), "--quiet"])  # fmt: skip
    told = capsys.readouterr().out
    best = xr.open_dataset(tmp_path / "best.nc")
    assert f"forcing   {float(best['parameters'][0]):.4g}" in told and "the designed parameters" in told


def test_the_verb_samples_many_designs(flow: tuple[Model, xr.Dataset], tmp_path, capsys) -> None:
    model, ds = flow
    ds.to_netcdf(tmp_path / "flow.nc")
    words = "--maximise region_mean --lead 1 --region x=1:2 --mode mean --iterations 2 --samples 2 --temperature 0.5"
    cli.main(["design", "kolmogorov64", str(tmp_path / "flow.nc"), *words.split(), "--out", str(tmp_path / "many.nc"),
              "--verify", "--seed", "3", "--quiet"])  # fmt: skip
    told = capsys.readouterr().out
    box = objectives.region_mean("vorticity", lead=1, x=slice(1, 2))
    wanted = model.designs(
        ds, box, 1, sense="maximise", samples=2, iterations=2, temperature=0.5, seed=3, mode="mean", verify="solver",
        progress=False,
    )  # fmt: skip
    with xr.open_dataset(tmp_path / "many.nc") as found:
        for name in ("vorticity", "objective", "achieved"):
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert f"designs   {float(wanted['objective'].mean()):.4g}" in told and "solver" in told and "climate" in told


def test_the_verb_designs_towards_a_pattern(folder, capsys: pytest.CaptureFixture[str]) -> None:
    line = "design model flow.nc --maximise similarity --target flow.nc --lead 1 --iterations 1 --members 2 --out a.nc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        assert cli.main([*line.split(), "--compare", "--quiet"]) == 0
    assert "similarity to a target, lead 1, 1" in capsys.readouterr().out
