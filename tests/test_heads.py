"""Exact heads: constraints to round-off for whatever a decoder says, alone and together, where the data obeys them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lapse.autoencoder.heads import HEADS, Heads, solenoidal, suggest_heads
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.constraints import divergence, from_stream_function
from lapse.physics.grid import Axis, Grid

GRID = Grid.periodic_box((16, 24))
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def flow(**masks: np.ndarray) -> FieldSpec:
    """A depth, a velocity and a tracer on a periodic box."""
    variables = (
        Variable("h", "m", "positive", std=0.3),
        Variable("u", "m s-1", "vector", component="x"),
        Variable("v", "m s-1", "vector", component="y"),
        Variable("c", "1"),
    )
    return FieldSpec(variables, GRID, 1.0, "s", masks=dict(masks))


def globe(mask: np.ndarray | None = None) -> FieldSpec:
    lat = Axis("lat", tuple(np.linspace(-60, 80, 8)), "degrees_north")
    lon = Axis("lon", tuple(np.arange(0, 360, 30.0)), "degrees_east", periodic=True)
    masks = {} if mask is None else {"t": mask, "p": mask}
    return FieldSpec((Variable("t", "K"), Variable("p", "Pa", "positive")), Grid((lat, lon)), 6.0, "hours", masks=masks)


def area_mean(u: torch.Tensor, spec: FieldSpec) -> torch.Tensor:
    """By numpy, over valid cells."""
    w = spec.grid.area_weights().numpy() * spec.mask_tensor().numpy()
    x = u.detach().double().numpy()
    return torch.from_numpy((w * x).sum(axis=(-2, -1)) / w.sum(axis=(-2, -1)))


def smooth_velocity(batch: int, dtype: torch.dtype) -> torch.Tensor:
    """Divergence-free, with a mean flow."""
    y, x = GRID.meshgrid()
    a = torch.randn(batch, 3, 1, 1, dtype=torch.float64)
    psi = a[:, 0] * torch.sin(x + 2 * y) + a[:, 1] * torch.cos(2 * x - y) + a[:, 2] * torch.sin(y)
    return (from_stream_function(psi, GRID) + torch.randn(batch, 2, 1, 1, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_heads_hold_together_for_any_decoder(dtype: torch.dtype) -> None:
    heads, tolerance = Heads(flow(), HEADS), TOLERANCE[dtype]
    truth = torch.cat([0.5 + torch.rand(5, 1, 16, 24), smooth_velocity(5, torch.float32), torch.randn(5, 1, 16, 24)], 1)
    carried = heads.carried(truth.to(dtype))
    assert carried.dtype == torch.float64
    torch.testing.assert_close(carried, area_mean(truth, flow()), rtol=1e-6, atol=1e-7)
    decoded = 3 * torch.randn(5, 4, 16, 24, dtype=dtype) - 1
    u = heads(decoded, carried)
    assert u.dtype == dtype
    found = area_mean(u, flow())
    assert ((found[:, 0] - carried[:, 0]) / carried[:, 0]).abs().max() <= tolerance
    assert (found - carried)[:, 1:].abs().max() <= tolerance * u.std()
    assert (u[:, 0] > 0).all()
    velocity = u[:, 1:3].double()
    gradients = divergence(decoded[:, 1:3].double(), GRID).square().mean().sqrt()
    assert divergence(velocity, GRID).abs().max() <= tolerance * gradients
    torch.testing.assert_close(heads(u, carried), u, rtol=0.1, atol=0.1)  # what obeys already is hardly touched


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mean", "positive", "mass"])
def test_each_head_leaves_the_other_variables_alone(name: str, dtype: torch.dtype) -> None:
    heads = Heads(flow(), ("positive", "mass") if name == "mass" else (name,))
    decoded = torch.randn(3, 4, 16, 24, dtype=dtype)
    carried = torch.tensor([[2.0, 0.1, -0.2, 5.0]], dtype=torch.float64).expand(3, 4)
    u = heads(decoded, carried)
    if name == "mean":
        assert torch.equal(u[:, 0], decoded[:, 0])
        assert (area_mean(u, flow())[:, 1:] - carried[:, 1:]).abs().max() <= 5 * TOLERANCE[dtype]
        shape = (x[:, 3] - x[:, 3].mean((1, 2), keepdim=True) for x in (u, decoded))
        torch.testing.assert_close(*shape, rtol=0, atol=1e-5)
    else:
        assert torch.equal(u[:, 1:], decoded[:, 1:])
        assert (u[:, 0] > 0).all()


@pytest.mark.parametrize("names", [("positive",), ("positive", "mass")])
def test_positive_is_strict_far_below_zero_and_harmless_far_above(names: tuple[str, ...]) -> None:
    heads = Heads(flow(), names)
    decoded = torch.full((1, 4, 16, 24), 2.0)
    decoded[:, 0, :8] = -1e4
    u = heads(decoded, torch.ones(1, 4, dtype=torch.float64))
    assert (u[:, 0] > 0).all() and u.isfinite().all()
    above = torch.full((1, 4, 16, 24), 2.0)
    kept = heads(above, torch.full((1, 4), 2.0, dtype=torch.float64))
    torch.testing.assert_close(kept[:, 0], above[:, 0])


def test_the_projection_is_one() -> None:
    wild = torch.randn(3, 2, 16, 24, dtype=torch.float64)
    once = solenoidal(wild, GRID)
    torch.testing.assert_close(solenoidal(once, GRID), once, rtol=0, atol=1e-12)
    # orthogonal: what it removes has no part along what it keeps, so it never leads away from a solenoidal truth
    assert ((wild - once) * once).sum().abs() <= 1e-10 * wild.square().sum()
    free = smooth_velocity(3, torch.float64)
    torch.testing.assert_close(solenoidal(free, GRID), free, rtol=0, atol=1e-12)
    assert ((once - free).square().sum() < (wild - free).square().sum()).all()


def test_the_components_are_found_by_their_axes() -> None:
    """The channels' order is the file's; which one is along x stands in the spec."""
    spec = flow()
    swapped = FieldSpec((spec["v"], spec["u"]), GRID, 1.0, "s")
    free = smooth_velocity(2, torch.float64)
    out = Heads(swapped, ("divergence_free",))(free.flip(1), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(out, free.flip(1), rtol=0, atol=1e-12)


def test_means_are_those_of_valid_area() -> None:
    mask = np.ones((8, 12), bool)
    mask[2:5, 3:7] = False
    spec = globe(mask)
    heads = Heads(spec, ("positive", "mass", "mean"))
    truth = 2 + torch.rand(4, 2, 8, 12)
    carried = heads.carried(truth)
    torch.testing.assert_close(carried, area_mean(truth, spec), rtol=1e-7, atol=0)
    spoilt = torch.where(torch.from_numpy(mask), truth, torch.full_like(truth, 1e6))
    assert torch.equal(heads.carried(spoilt), carried)
    u = heads(torch.randn(4, 2, 8, 12), carried)
    torch.testing.assert_close(area_mean(u, spec), carried, rtol=1e-6, atol=1e-6)
    plain = u.double().mean(dim=(-2, -1))
    assert (plain - carried).abs().max() > 1e-3  # the unweighted mean is another one


def test_gradients_are_those_of_the_map() -> None:
    grid = Grid.periodic_box((4, 6))
    variables = (
        Variable("h", "m", "positive"), Variable("u", "m s-1", "vector", component="x"),
        Variable("v", "m s-1", "vector", component="y"),
    )  # fmt: skip
    heads = Heads(FieldSpec(variables, grid, 1.0, "s"), HEADS)
    u = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    carried = (1 + torch.rand(2, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(heads, (u, carried))


def moving(frames: int = 6) -> torch.Tensor:
    """Frames of `flow` that conserve all there is to conserve: patterns that are carried along."""
    h = 2 + torch.rand(1, 16, 24)
    first = torch.cat([h, smooth_velocity(1, torch.float32)[0], torch.randn(1, 16, 24)])
    return torch.stack([first.roll((k, 2 * k), (1, 2)) for k in range(frames)])


def test_heads_are_suggested_where_the_data_obeys_them() -> None:
    u = moving()
    assert suggest_heads(flow(), u) == ("divergence_free", "positive", "mass", "mean")
    losing = u.clone()
    losing[:, 0] *= torch.linspace(1, 0.99, len(u))[:, None, None]
    assert suggest_heads(flow(), losing) == ("divergence_free", "positive", "mean")
    drifting = u.clone()
    drifting[:, 3] += torch.linspace(0, 0.01, len(u))[:, None, None]
    assert suggest_heads(flow(), drifting) == ("divergence_free", "positive", "mass", "mean:u", "mean:v")
    diverging = u.clone()
    diverging[:, 1] += 0.1 * torch.sin(GRID.meshgrid()[1]).float()
    assert suggest_heads(flow(), diverging) == ("positive", "mass", "mean")
    assert suggest_heads(flow(), torch.rand(6, 4, 16, 24)) == ("positive",)
    later = u.clone()
    later[-1, 0] *= 1.001  # one frame is enough
    assert "mass" not in suggest_heads(flow(), later)
    for frames in (u, drifting):
        assert Heads(flow(), suggest_heads(flow(), frames)).names == suggest_heads(flow(), frames)


def test_the_mean_of_one_variable_alone() -> None:
    spec = FieldSpec((Variable("h", "m"), Variable("q", "kg kg-1")), GRID, 1.0, "s")
    u = torch.randn(3, 2, 16, 24)
    carried = Heads(spec).carried(torch.randn(3, 2, 16, 24))
    out = Heads(spec, ("mean:h",))(u, carried)
    assert torch.equal(out[:, 1], u[:, 1])
    torch.testing.assert_close(out[:, 0].double().mean(dim=(-2, -1)), carried[:, 0], rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match=r"unknown heads mean:x; known: .*mean:h, mean:q"):
        Heads(spec, ("mean:x",))


def test_one_frame_tells_nothing_of_conservation() -> None:
    assert suggest_heads(flow(), moving(1)) == ("divergence_free", "positive")


@pytest.mark.parametrize(
    ("spec", "names", "message"),
    [
        (flow(), ("magic",), "unknown heads magic; known: divergence_free"),
        (globe(), ("divergence_free",), "two periodic axes"),
        (FieldSpec((Variable("t", "K"),), GRID, 1.0, "s"), ("positive",), "kind 'positive'"),
        (FieldSpec((Variable("t", "K"),), GRID, 1.0, "s"), ("divergence_free",), "two periodic axes"),
        (flow(), ("mass",), "name both"),
        (FieldSpec((Variable("t", "K"),), Grid.periodic_box(8, names=("x",)), 1.0, "s"), HEADS[:1], "two periodic"),
        (flow(u=np.eye(16, 24) > 0), ("divergence_free",), "every cell"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused(spec: FieldSpec, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Heads(spec, names)


def test_no_heads_do_nothing() -> None:
    u: Any = torch.randn(2, 4, 16, 24)
    assert torch.equal(Heads(flow())(u, torch.zeros(2, 4)), u)
