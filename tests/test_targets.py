"""Objectives against numpy on labelled data, and the view that they read from."""

import numpy as np
import pytest
import torch
import xarray as xr

from lapse import FieldSpec, SpecError, objectives
from lapse.datasets.spec import Variable
from lapse.physics.grid import Axis, Grid
from lapse.surrogate.model import Model
from lapse.surrogate.view import ForecastView, rolled, viewed

LAT = Axis("lat", tuple(np.linspace(-60, 60, 7)), "degrees_north")
LON = Axis("lon", tuple(np.arange(0, 360, 30.0)), "degrees_east", periodic=True)
PLANE = Grid((Axis("y", (0.0, 1.0, 3.0, 4.0), "m"), Axis("x", tuple(np.arange(6) * 0.5), "m", periodic=True)))


def random_view(grid: Grid, names: tuple[str, ...], members: int = 3, steps: int = 4, **changes) -> ForecastView:
    spec = FieldSpec(tuple(Variable(n, "m s-1") for n in names), grid, 1.0, "s").replace(**changes)
    fields = torch.randn(members, steps, *spec.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return viewed(fields, spec, fields[0, 0])


def labelled(view: ForecastView, name: str) -> xr.DataArray:
    coords = {a.name: list(a.coordinates) for a in view.spec.grid.axes}
    dims = ("member", "lead", *view.spec.grid.names)
    return xr.DataArray(view[name].numpy(), dims=dims, coords={"lead": range(1, view.steps + 1), **coords})


def test_region_mean_is_weighted_by_area_and_labelled() -> None:
    view = random_view(Grid((LAT, LON)), ("t",))
    truth = labelled(view, "t").sel(lat=slice(0, 60), lon=slice(30, 120))
    wanted = truth.weighted(np.cos(np.deg2rad(truth.lat))).mean(("lat", "lon"))
    found = objectives.region_mean("t", lead=2, lat=slice(0, 60), lon=slice(30, 120))(view)
    np.testing.assert_allclose(found, wanted.sel(lead=2), rtol=1e-12)
    some = objectives.region_mean("t", lead=[1, 3], lat=slice(0, 60), lon=slice(30, 120))(view)
    np.testing.assert_allclose(some, wanted.sel(lead=[1, 3]).mean("lead"), rtol=1e-12)
    all_leads = objectives.region_mean("t", lead=None, lat=slice(0, 60), lon=slice(30, 120))(view)
    np.testing.assert_allclose(all_leads, wanted.mean("lead"), rtol=1e-12)


def test_a_region_goes_on_across_a_periodic_edge() -> None:
    view = random_view(Grid((LAT, LON)), ("t",))
    truth = labelled(view, "t").sel(lon=[330, 0, 30])
    wanted = truth.weighted(np.cos(np.deg2rad(truth.lat))).mean(("lat", "lon")).sel(lead=1)
    np.testing.assert_allclose(objectives.region_mean("t", lead=1, lon=slice(330, 30))(view), wanted, rtol=1e-12)


def test_masked_cells_do_not_count() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 2] = mask[3, 4] = True
    view = random_view(PLANE, ("t",), masks={"t": mask})
    cells = labelled(view, "t").values[:, 1][:, mask]
    np.testing.assert_allclose(objectives.extreme("t", lead=2)(view), cells.max(1))
    widths = np.array([1.5, 1.0])  # of the cells in y: half-way between the nodes, ends symmetric
    np.testing.assert_allclose(objectives.region_mean("t", lead=2)(view), (cells * widths).sum(1) / widths.sum())


def test_extreme_and_its_soft_form() -> None:
    view = random_view(PLANE, ("t",))
    box = {"x": slice(0.4, 1.6), "y": slice(0.5, 3.5)}
    cells = labelled(view, "t").sel(**box, lead=[2, 3])
    for which, wanted in (("largest", cells.max(("lead", "x", "y"))), ("smallest", cells.min(("lead", "x", "y")))):
        hard = objectives.extreme("t", lead=range(2, 4), which=which, **box)(view)
        np.testing.assert_allclose(hard, wanted, rtol=1e-12)
        soft = objectives.extreme("t", lead=range(2, 4), which=which, softness=1e-3, **box)(view)
        np.testing.assert_allclose(soft, wanted, atol=1e-2)
    mean = objectives.extreme("t", lead=2, softness=1e6)(view)
    np.testing.assert_allclose(mean, objectives.region_mean("t", lead=2)(view), atol=1e-5)


def test_transport_through_a_section() -> None:
    """∫ v c ds with the cells' widths; across y the lengths are those of x."""
    view = random_view(PLANE, ("v", "c"))
    v, c = labelled(view, "v").sel(lead=3), labelled(view, "c").sel(lead=3)
    widths = xr.DataArray([1.0, 1.5, 1.5, 1.0], dims="y")
    wanted = (v * c * widths).sel(x=1.0).sel(y=slice(0.5, 4)).sum("y")
    found = objectives.transport("v", carrying="c", lead=3, x=1.1, y=slice(0.5, 4))
    np.testing.assert_allclose(found(view), wanted, rtol=1e-12)
    np.testing.assert_allclose(objectives.transport("v", lead=3, y=3.0)(view), 0.5 * v.sel(y=3.0).sum("x"), rtol=1e-12)
    assert found.units(view.spec) == "m s-1 m s-1 m"
    with pytest.raises(SpecError, match=r"found 7; wanted 0 to 2.5 m"):
        objectives.transport("v", lead=1, x=7.0)(view)
    with pytest.raises(SpecError, match="units of length"):
        objectives.transport("t", lead=1, lon=30.0)(random_view(Grid((LAT, LON)), ("t",)))
    with pytest.raises(ValueError, match="wanted one, the axis that is crossed"):
        objectives.transport("v", lead=1, y=slice(0, 1))


def test_similarity_to_a_pattern() -> None:
    view = random_view(PLANE, ("t",))
    pattern = labelled(view, "t").isel(member=1, lead=0, drop=True).to_dataset(name="t")
    found = objectives.similarity(pattern, lead=1)(view)
    assert float(found[1]) == pytest.approx(1)
    t, w = pattern["t"].values, np.array([1.0, 1.5, 1.5, 1.0])[:, None] / 30
    error = (w * (labelled(view, "t").values[0, 0] - t) ** 2).sum()
    assert float(found[0]) == pytest.approx(1 - error / (w * (t - (w * t).sum()) ** 2).sum())
    shifted = pattern.assign_coords(x=pattern.x + 0.25)
    bad = {
        "off by up to 0.25 m": shifted,
        "one frame": pattern.isel(x=slice(4)),
        "rename": pattern.rename(t="q"),
        "NaN": pattern.where(pattern.x > 0),
        "a constant": 0 * pattern,
        "units 'K'": pattern.assign(t=pattern["t"].assign_attrs(units="K")),
    }
    for told, target in bad.items():
        with pytest.raises(SpecError, match=told):
            objectives.similarity(target, lead=1)(view)
    with pytest.raises(SpecError, match="found ndarray"):
        objectives.similarity(t, lead=1)


def test_cvar_is_the_mean_of_the_tail() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
    view = random_view(PLANE, ("t",), members=5)

    def risk(level: float, tail: str) -> float:
        return float(objectives.cvar(lambda _: values, level, tail=tail)(view))

    assert risk(0.0, "upper") == pytest.approx(3.0)
    assert risk(0.8, "upper") == pytest.approx(5.0)
    assert risk(0.6, "lower") == pytest.approx(1.5)
    assert risk(0.7, "upper") == pytest.approx((5.0 + 0.5 * 4.0) / 1.5)
    assert risk(0.95, "upper") == pytest.approx(5.0)
    for level, tail in ((1.0, "upper"), (0.5, "both")):
        with pytest.raises(ValueError, match="wanted 0 <= level < 1"):
            risk(level, tail)
    with pytest.raises(SpecError, match="cvar before mean"):
        objectives.cvar(objectives.mean(lambda _: values), 0.5, tail="upper")(view)


def test_objectives_compose_and_know_their_units() -> None:
    view = random_view(PLANE, ("t",))
    a, b = objectives.region_mean("t", lead=1), objectives.extreme("t", lead=2)
    both = 2 * a - b / 4 + 1.5
    torch.testing.assert_close(both(view), 2 * a(view) - b(view) / 4 + 1.5)
    torch.testing.assert_close((-a + b)(view), b(view) - a(view))
    assert both.units(view.spec) == "m s-1"
    assert (a + objectives.similarity(xr.Dataset(), lead=1)).units(view.spec) is None
    assert both.label == "2 * (mean of t, lead 1) - (0.25 * (largest t, lead 2)) + 1.5"
    mean = objectives.mean(a) - 0.5 * objectives.cvar(b, 0.5, tail="upper")
    assert mean(view).ndim == 0


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (objectives.region_mean("pressure", lead=1), r"'pressure'; wanted one of t"),
        (objectives.region_mean("t", lead=5), r"found 5; wanted a whole number from 1 to 4"),
        (objectives.region_mean("t", lead=0), r"found 0; wanted a whole number from 1 to 4"),
        (objectives.region_mean("t", lead=[]), r"found none; wanted at least one"),
        (objectives.region_mean("t", lead=1, z=slice(0, 1)), r"axis 'z'; wanted one of y, x"),
        (objectives.region_mean("t", lead=1, x=slice(7, 9)), r"no cell of the grid in x=7…9.*0 to 2.5 m, periodic"),
        (objectives.region_mean("t", lead=1, x=1.0), r"found 1.0; wanted slice\(first, last\) of coordinates in m"),
    ],
)
def test_what_does_not_fit_is_said(objective: objectives.Target, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        objective(random_view(PLANE, ("t",)))


@pytest.mark.parametrize("mode", ["fast", "quality", "mean"])
def test_a_rolled_view_is_the_forecast(tiny_model: Model, analyses: xr.Dataset, mode: str) -> None:
    """Frame by frame and member by member what `forecast` gives, in whatever order it is asked."""
    fc = tiny_model.forecast(analyses, 3, 5, seed=4, mode=mode, progress=False)
    theirs = viewed(fc, tiny_model.spec)
    u = torch.from_numpy(analyses["vorticity"].values[-2:, None])
    start = analyses["time"].values[-1]
    with torch.no_grad():
        ours, _ = rolled(tiny_model.emulator, u, 3, 5, mode, seed=4, init_time=start)
        third = ours.field("vorticity", 3)
    torch.testing.assert_close(third, theirs.field("vorticity", 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["vorticity"], theirs["vorticity"], rtol=0, atol=1e-5)
    assert torch.equal(ours.initial("vorticity"), u[-1, 0])
    assert torch.equal(ours.member(2)["vorticity"], ours["vorticity"][2:3])
    two = xr.concat([fc, fc.assign_coords(init_time=fc.init_time + 1)], "init_time")
    with pytest.raises(SpecError, match=r"2 starts; wanted one"):
        viewed(two, tiny_model.spec)


def test_a_view_computes_what_is_asked_for_and_no_more(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"advance": 0, "decode": 0}
    for name in counted:
        original = getattr(type(tiny_model.emulator), name)

        def spy(self, *args, original=original, name=name, **kwargs):
            counted[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(type(tiny_model.emulator), name, spy)
    view, _ = rolled(tiny_model.emulator, torch.randn(2, 1, 16, 16), 9, 2, "fast", checkpointed=False)
    assert counted == {"advance": 0, "decode": 0}
    view.field("vorticity", 4)
    view.field("vorticity", 4)
    assert counted == {"advance": 4, "decode": 1}
