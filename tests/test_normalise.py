"""Normalisation: against numpy least squares, and the same however the frames are chunked."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lapse.datasets.normalise import Normaliser, harmonics
from lapse.datasets.problem import SpecWarning
from lapse.datasets.spec import FieldSpec, Variable
from lapse.datasets.time import phase
from lapse.physics.grid import Axis, Grid

GRID = Grid(
    (Axis("lat", (-60.0, 0.0, 45.0), "degrees_north"), Axis("lon", (0.0, 90.0, 180.0, 270.0), "degrees_east", True))
)


def spec_of(*variables, masks=None):
    return FieldSpec(tuple(variables), GRID, 6.0, "hours", "standard", masks=masks or {})


def two_years():
    return np.datetime64("2001-01-01", "s") + np.arange(2 * 365 * 4) * np.timedelta64(6, "h")


def design(times, n_year, n_day):
    """The same basis, from the angles themselves."""
    year = (times - times.astype("M8[Y]").astype("M8[s]")) / np.timedelta64(1, "s")
    year = 2 * np.pi * year / (365 * 86400)
    day = 2 * np.pi * ((times - times.astype("M8[D]").astype("M8[s]")) / np.timedelta64(1, "s")) / 86400
    a = [np.ones_like(year), *(f(k * year) for k in range(1, n_year + 1) for f in (np.cos, np.sin))]
    b = [np.ones_like(day), *(f(k * day) for k in range(1, n_day + 1) for f in (np.cos, np.sin))]
    return np.stack([u * v for u in a for v in b], axis=1)


def test_harmonics_are_multiples_of_the_angle():
    times = two_years()[::37]
    ours = harmonics(torch.from_numpy(phase(times)).double(), 3, 1).numpy()
    np.testing.assert_allclose(ours, design(times, 3, 1), atol=3e-6)


def test_climatology_is_least_squares():
    times = two_years()
    rng = np.random.default_rng(0)
    basis = design(times, 2, 1)
    truth = rng.normal(size=(basis.shape[1], 2, 3, 4)) * 5
    x = 280 + np.tensordot(basis, truth, axes=1) + rng.normal(size=(times.size, 2, 3, 4))
    normaliser = Normaliser(spec_of(Variable("a"), Variable("b")), n_year=2, n_day=1)
    angles = torch.from_numpy(phase(times))
    normaliser.fit([(torch.from_numpy(x).float(), angles)])

    coefficients, *_ = np.linalg.lstsq(basis, x.reshape(times.size, -1), rcond=None)
    fit = (basis @ coefficients).reshape(x.shape)
    ours = normaliser.offset(angles)
    np.testing.assert_allclose(ours.numpy(), fit, atol=2e-3)
    weights = GRID.area_weights().numpy()
    std = np.sqrt((weights * ((x - fit) ** 2).mean(axis=0)).sum(axis=(1, 2)) / weights.sum())
    np.testing.assert_allclose(normaliser.std.numpy(), std, rtol=1e-4)
    z = normaliser(torch.from_numpy(x).float(), angles)
    np.testing.assert_allclose(normaliser.inverse(z, angles).numpy(), x, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"pointwise": True}, {"n_year": 1, "n_day": 1}], ids=str)
def test_chunked_and_whole_fits_agree(options):
    times = two_years()[:1500]
    x = 3e4 + torch.randn(times.size, 1, 3, 4).double()
    angles = torch.from_numpy(phase(times))
    whole = Normaliser(spec_of(Variable("a")), **options).double().fit([(x, angles)])
    cuts = [0, 1, 2, 700, 1500]
    pieces = [(x[a:b], angles[a:b]) for a, b in pairwise(cuts)]
    parts = Normaliser(spec_of(Variable("a")), **options).double().fit(iter(pieces))
    for name in ("mean", "std", "climatology"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-8)


def test_mean_and_std_are_area_weighted_over_valid_cells():
    mask = np.ones((3, 4), dtype=bool)
    mask[1, 2] = False
    x = torch.randn(50, 2, 3, 4) * 3 + 7
    x[:, 0, 1, 2] = float("nan")
    normaliser = Normaliser(spec_of(Variable("a"), Variable("b"), masks={"a": mask})).fit([x[:20], x[20:]])
    weights = np.cos(np.deg2rad([-60.0, 0.0, 45.0]))[:, None] * np.array([60, 52.5, 45])[:, None] * mask
    values = np.nan_to_num(x[:, 0].double().numpy())
    mean = (weights * values).sum() / weights.sum() / 50
    std = np.sqrt((weights * (values - mean) ** 2).sum() / weights.sum() / 50)
    assert normaliser.mean[0].item() == pytest.approx(mean, rel=1e-5)
    assert normaliser.std[0].item() == pytest.approx(std, rel=1e-5)

    z = normaliser(x)
    assert (z[:, 0, 1, 2] == 0).all()
    assert torch.isfinite(z).all()
    back = normaliser.inverse(z)
    assert back[0, 0, 1, 2].item() == pytest.approx(mean, rel=1e-5)
    torch.testing.assert_close(back[:, 1], x[:, 1])


def test_components_of_a_vector_share_their_scale():
    u, v, w = (torch.randn(400, 3, 4) * s for s in (1.0, 3.0, 5.0))
    vector = {"kind": "vector", "group": "wind"}
    spec = spec_of(Variable("u", component="lon", **vector), Variable("v", component="lat", **vector), Variable("w"))
    normaliser = Normaliser(spec).fit([torch.stack([u, v, w], dim=1)])
    assert normaliser.std[0] == normaliser.std[1]
    assert normaliser.std[0].item() == pytest.approx(np.sqrt(5.0), rel=0.05)
    assert normaliser.std[2].item() == pytest.approx(5.0, rel=0.05)


def test_positive_variables_stay_linear():
    normaliser = Normaliser(spec_of(Variable("rain", kind="positive"))).fit([torch.rand(100, 1, 3, 4)])
    x = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1).expand(3, 1, 3, 4)
    z = normaliser(x)
    torch.testing.assert_close(z[2] - z[1], z[1] - z[0])


def test_constant_fields_are_not_divided_by_nothing():
    normaliser = Normaliser(spec_of(Variable("a"), Variable("b"))).fit([torch.full((9, 2, 3, 4), 101325.0)])
    assert normaliser.std.tolist() == [1.0, 1.0]
    assert normaliser(torch.full((1, 2, 3, 4), 101325.0)).abs().max() < 0.02


def test_state_travels_through_safetensors(tmp_path):
    spec = spec_of(Variable("a"), masks={"a": np.eye(3, 4, dtype=bool)})
    times = two_years()
    angles = torch.from_numpy(phase(times))
    first = Normaliser(spec, n_year=1).fit([(torch.randn(times.size, 1, 3, 4), angles)])
    save_file(first.state_dict(), tmp_path / "n.safetensors")
    second = Normaliser(spec, n_year=1)
    second.load_state_dict(load_file(tmp_path / "n.safetensors"))
    x = torch.randn(2, 5, 1, 3, 4)
    torch.testing.assert_close(second(x, angles[:10].reshape(2, 5, 4)), first(x, angles[:10].reshape(2, 5, 4)))
    assert bool(second.fitted) and not bool(Normaliser(spec).fitted)


def test_what_a_fit_refuses():
    normaliser = Normaliser(spec_of(Variable("a")), n_year=1)
    with pytest.raises(ValueError, match="no training frames"):
        normaliser.fit([])
    with pytest.raises(ValueError, match="without a phase"):
        normaliser.fit([torch.randn(5, 1, 3, 4)])
    with pytest.raises(ValueError, match="no phase"):
        normaliser(torch.randn(1, 1, 3, 4))
    with pytest.raises(ValueError, match="not finite in channel 0"):
        Normaliser(spec_of(Variable("a"))).fit([torch.full((1, 1, 3, 4), float("nan"))])
    with pytest.raises(ValueError, match="n_year=-1"):
        Normaliser(spec_of(Variable("a")), n_year=-1)


def test_a_cycle_that_the_times_do_not_cover_is_left_out_and_said():
    times = two_years()[::4][:400]  # always midnight: the daily cycle cannot be seen
    x = torch.randn(400, 1, 3, 4) + 5
    angles = torch.from_numpy(phase(times))
    with pytest.warns(SpecWarning, match="determine only 1 of 3 harmonics"):
        normaliser = Normaliser(spec_of(Variable("a")), n_day=1).fit([(x, angles)])
    torch.testing.assert_close(normaliser.offset(angles[:1])[0], x.mean(dim=0), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normaliser(spec_of(Variable("a"))).fit([x])


def test_numeric_time_sees_the_mean_alone():
    x = torch.randn(200, 1, 3, 4) + 5
    angles = torch.zeros(200, 4)
    with pytest.warns(SpecWarning):
        normaliser = Normaliser(spec_of(Variable("a")), n_year=2, n_day=1).fit([(x, angles)])
    torch.testing.assert_close(normaliser.offset(angles)[0], x.mean(dim=0), rtol=1e-4, atol=1e-4)
