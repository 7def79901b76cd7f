"""Grids: geometry, area weights, JSON, and errors that print both sides."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapse.physics.grid import Axis, Grid


def test_periodic_box_excludes_its_right_end():
    g = Grid.periodic_box((4, 8), length=(2.0, 4.0))
    assert g.names == ("y", "x")
    assert g.axes[0].coordinates == (0.0, 0.5, 1.0, 1.5)
    assert g.axes[1].coordinates[-1] == 3.5
    assert g.length == (2.0, 4.0)
    assert g.spacing == (0.5, 0.5)
    assert g.periodic == (True, True)


def test_area_weights_of_a_globe_are_the_sphere_s():
    dlat = 1.0
    lat = tuple(-89.5 + dlat * i for i in range(180))
    g = Grid(
        (Axis("lat", lat, "degrees_north"), Axis("lon", tuple(map(float, range(0, 360, 10))), "degrees_east", True))
    )
    w = g.area_weights()
    assert w.shape == g.shape and w.dtype == torch.float64
    assert w.mean().item() == pytest.approx(1, abs=1e-14)
    tropics = (torch.tensor(lat).abs() < 30).nonzero()[:, 0]
    assert (w[tropics].sum() / w.sum()).item() == pytest.approx(0.5, abs=1e-4)  # sin 30° of the sphere
    mean_sin2 = (w * torch.sin(torch.deg2rad(torch.tensor(lat, dtype=torch.float64)))[:, None] ** 2).mean()
    assert mean_sin2.item() == pytest.approx(1 / 3, abs=1e-4)


def test_area_weights_of_poles_are_not_negative():
    g = Grid((Axis("lat", tuple(float(x) for x in range(-90, 91, 30)), "degrees_north"),))
    assert g.area_weights().min() >= 0


def test_irregular_axis_uses_cell_widths():
    a = Axis("z", (0.0, 1.0, 3.0, 7.0), "m")
    assert a.widths == (1.0, 1.5, 3.0, 4.0)
    assert not a.regular
    torch.testing.assert_close(
        Grid((a,)).area_weights(), torch.tensor([1.0, 1.5, 3.0, 4.0], dtype=torch.float64) * 4 / 9.5
    )
    with pytest.raises(ValueError, match=r"gaps from 1 to 4 m, wanted an evenly spaced axis"):
        _ = a.spacing


def test_float32_coordinates_are_regular():
    lon = torch.arange(0, 3600, dtype=torch.float32) / 10
    assert Axis("lon", tuple(lon.tolist()), "degrees_east", periodic=True).length == pytest.approx(360, rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True), st.booleans())
def test_json_round_trip_is_exact(values, geographic):
    a = Axis("q", tuple(sorted(values)), "degrees_north" if geographic else "m")
    g = Grid((a, *Grid.periodic_box(5, names=("x",)).axes))
    assert Grid.from_dict(json.loads(json.dumps(g.to_dict()))) == g
    assert hash(Grid.from_dict(g.to_dict())) == hash(g)


@pytest.mark.parametrize(
    ("units", "kind"), [("degrees_north", "latitude"), ("degree_east", "longitude"), ("m", "cartesian")]
)
def test_kind_comes_from_units(units, kind):
    assert Axis("q", (0.0, 1.0), units).kind == kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("x", ()), "found no coordinates"),
        (lambda: Axis("x", (0.0, math.nan)), "found nan at index 1"),
        (lambda: Axis("x", (0.0, 2.0, 1.0)), r"found 2.0 followed by 1.0 at index 1, wanted strictly ascending"),
        (lambda: Axis("x", (0.0, 1.0, 3.0), periodic=True), "wanted an evenly spaced periodic axis"),
        (lambda: Grid(()), "found no axes"),
        (lambda: Grid((Axis("x", (0.0,)), Axis("x", (0.0,)))), "wanted distinct names"),
        (lambda: Grid.periodic_box((4, 4, 4)), "found 3 sizes and 2 lengths, wanted one for each of the axes"),
        (lambda: Axis("x", (0.0,)).spacing, "found a single node"),
    ],
)
def test_bad_input_is_refused_with_both_sides(make, message):
    with pytest.raises(ValueError, match=message):
        make()
