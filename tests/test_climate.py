"""The climate of latents: unitary waves, the covariance it was given, symmetries, and a file for one model only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lapse import SpecError
from lapse.surrogate.bloch import Bloch, cell_mean, from_waves, to_waves
from lapse.surrogate.climate import Climate, fit_climate, periods
from lapse.surrogate.homogeneous import Homogeneous
from lapse.surrogate.model import Model
from lapse.surrogate.modulated import Modulated
from lapse.surrogate.package import load, shipped


def shrunk_climate(z: torch.Tensor, cell: tuple[int, ...]) -> Climate:
    """The climate of latents as they are, without an autoencoder."""
    mean = cell_mean(z.mean(dim=0), cell)
    nought = torch.zeros(1, dtype=torch.float64)
    return Climate(mean, Bloch.fit(z - mean, cell).to(mean), nought, nought, torch.zeros(1))


@pytest.mark.parametrize("cell", [(4, 6), (1, 1), (2, 3), (4, 1)])
def test_waves_are_unitary_and_go_back(cell: tuple[int, ...]) -> None:
    z = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    waves = to_waves(z, cell)
    assert waves.shape == (5, 24 // (cell[0] * cell[1]), 3 * cell[0] * cell[1])
    assert torch.allclose(waves.abs().square().sum(), z.square().sum())
    assert torch.allclose(from_waves(waves, z.shape[1:], cell), z, atol=1e-12)


def test_draws_have_the_covariance_of_the_data() -> None:
    """Of 4000 independent states of a known Gaussian, every entry within the sampling error."""
    A = torch.randn(12, 12, dtype=torch.float64) / 3
    z = (torch.randn(4000, 12, dtype=torch.float64) @ A.T).reshape(-1, 2, 2, 3) + 1.5
    climate = shrunk_climate(z, (2, 3))
    draws = climate(torch.randn(8000, climate.size, dtype=torch.float64)).flatten(1)
    wanted = A @ A.T
    assert (torch.cov(draws.T) - wanted).abs().max() < 0.1 * wanted.diagonal().max()
    assert (draws.mean(dim=0) - 1.5).abs().max() < 0.1


def test_a_symmetry_is_shared_by_all_draws() -> None:
    """White noise, smoothed along a ring: one shift is enough to know its covariance, from few states."""
    white = torch.randn(60, 1, 16, dtype=torch.float64)
    z = white + 0.5 * (white.roll(1, -1) + white.roll(-1, -1))
    draws = shrunk_climate(z, (1,))(torch.randn(4000, 16, dtype=torch.float64))[:, 0]
    for lag, wanted in ((0, 1.5), (1, 1.0), (2, 0.25), (5, 0.0)):
        assert float((draws * draws.roll(lag, -1)).mean()) == pytest.approx(wanted, abs=0.12)
    # Without the symmetry 60 states leave spurious correlations, which shrinkage holds down.
    free = shrunk_climate(z, (16,))(torch.randn(4000, 16, dtype=torch.float64))[:, 0]
    assert float(free.square().mean()) == pytest.approx(1.5, abs=0.25)
    assert abs(float((free[:, 0] * free[:, 8]).mean())) < 0.4


def test_periods_follow_the_shifts_of_the_training(make_model: Callable[..., Model]) -> None:
    network = make_model().emulator.autoencoder.network  # 4 x 4 latent cells of 4 x 4 cells
    assert periods(network, ("y", "x"), {}) == (4, 4)
    assert periods(network, ("y", "x"), {"x": 1, "y": 8}) == (2, 1)
    assert periods(network, ("y", "x"), {"y": 6}) == (4, 4)  # 12 cells do not divide 16


def smooth_fields(count: int, n: int, width: float, seed: int) -> torch.Tensor:
    """Draws of a Gaussian with the covariance exp(−½ (d/width)²) on a line, ``(count, 1, n)``."""
    i = torch.arange(n, dtype=torch.float64)
    C = torch.exp(-0.5 * ((i[:, None] - i) / width).square()) + 1e-9 * torch.eye(n, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(count, n, generator=g, dtype=torch.float64) @ torch.linalg.cholesky(C).T)[:, None]


def test_modulated_anomalies_have_the_localised_covariance() -> None:
    """(1 − a) S ∘ ρ + a B, entry by entry, within the sampling error; on a ring ρ goes round."""
    a = torch.randn(7, 2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root = Modulated(a, (False, True), radius=2.0, share=0.3)
    g = torch.Generator().manual_seed(1)
    draws = root(torch.randn(20000, root.size, dtype=torch.float64, generator=g)).flatten(1)
    S = a.flatten(1).T @ a.flatten(1) / 7
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(8.0), indexing="ij")
    chord = 8 / torch.pi * torch.sin(torch.pi / 8 * (x.flatten()[:, None] - x.flatten()))
    rho = torch.exp(-0.5 * ((y.flatten()[:, None] - y.flatten()).square() + chord.square()) / 4).repeat(2, 2)
    channel, at = torch.arange(48) // 24, torch.unravel_index(torch.arange(48) % 24, (3, 8))
    wanted = 0.7 * S * rho + 0.3 * root.rest.covariance(channel, at)
    assert (draws.T @ draws / len(draws) - wanted).abs().max() < 0.06 * wanted.diagonal().max()


def test_a_homogeneous_covariance_is_found_from_few_fields() -> None:
    """Two channels that share a part, each forgetting along its own length, stronger to the right; land stays out."""
    n, g = 48, torch.Generator().manual_seed(2)
    i = torch.arange(n, dtype=torch.float64)
    roots = [torch.linalg.cholesky(torch.exp(-(i[:, None] - i).abs() / length)) for length in (1.0, 8.0)]
    sea = torch.rand(n, n, generator=g) > 0.15  # islands
    sea[:, :5], sea[9:13, 9:13] = False, True

    def fields(count: int) -> torch.Tensor:
        a, b = (root @ torch.randn(count, n, n, generator=g, dtype=torch.float64) @ root.T for root in roots)
        both = torch.stack([0.6 * a + 1.2 * b, 0.6 * a - 1.2 * b], dim=1)
        return both * (1 + i / n) * sea

    root = Homogeneous.fit(fields(6), (False, False))
    assert sorted(root.lengths.tolist()) == pytest.approx([1.0, 8.0], rel=0.3)
    draws = root(torch.randn(400, root.size, generator=g, dtype=torch.float64))
    assert bool((draws[..., :5] == 0).all())
    channel, row, column = torch.tensor([[0, 0, 1, 0, 1], [9, 9, 9, 12, 9], [9, 10, 9, 9, 12]])
    truth = fields(3000)[:, channel, row, column].T
    wanted, found = truth @ truth.T / 3000, root.covariance(channel, (row, column))
    sizes = wanted.diagonal().sqrt(), found.diagonal().sqrt()
    correlations = [C / (d[:, None] * d) for C, d in zip((wanted, found), sizes, strict=True)]
    assert (correlations[0] - correlations[1]).abs().max() < 0.12, "six fields tell them, though no single cell's size"
    drawn = draws[:, channel, row, column].T
    assert (drawn @ drawn.T / 400 - found).abs().max() < 0.2 * found.max()


def test_a_short_record_is_localised_as_far_as_it_must() -> None:
    """Of 40 fields with a reach of 3 cells: nearer to the truth than the sample covariance, and neighbours agree."""
    z = smooth_fields(40, 60, 3.0, seed=0)
    root = Modulated.fit(z, (False,))
    assert 2.0 <= root.radius <= 14.0
    g = torch.Generator().manual_seed(1)
    draws = root(torch.randn(4000, root.size, generator=g)).double()[:, 0]
    i = torch.arange(60.0)
    truth = torch.exp(-0.5 * ((i[:, None] - i) / 3.0).square())
    mine, sample = draws.T @ draws / len(draws), z[:, 0].T @ z[:, 0] / len(z)
    assert (mine - truth).square().mean() < 0.5 * (sample - truth).square().mean()
    assert float((draws[:, :-1] * draws[:, 1:]).mean() / draws.square().mean()) > 0.85


def test_large_latents_have_a_climate_too(
    tmp_path: Path, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapse.surrogate.climate.LARGEST", 10)
    model = make_model()
    model.climate = fit_climate(model.emulator, torch.randn(40, 2, 1, 16, 16))
    back = load(model.save(tmp_path / "large")).climate
    x = torch.randn(3, model.climate.size)
    assert back is not None and torch.allclose(back(x), model.climate(x), atol=2e-3)
    assert back(x).shape == (3, *model.climate.mean.shape)
    assert back.size > back.mean.numel(), "a smooth field for every anomaly, beside the homogeneous part"
    with pytest.raises(SpecError, match="so few that 20 starts fit"):
        monkeypatch.setattr("lapse.surrogate.climate.NUMBERS", 19 * back.mean.numel())
        fit_climate(model.emulator, torch.randn(40, 2, 1, 16, 16))


def test_a_file_belongs_to_one_model(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model()
    u = torch.randn(40, 2, 1, 16, 16)
    model.climate = fit_climate(model.emulator, u, shift={"x": 1})
    model.save(tmp_path / "with")
    back = load(tmp_path / "with").climate
    x = torch.randn(3, model.climate.size)
    assert back is not None and torch.allclose(back(x), model.climate(x), atol=1e-6)
    assert torch.equal(back.carried_mean, model.climate.carried_mean)
    assert Climate.load(tmp_path / "with" / "climate.safetensors", "of other weights") is None
    model.climate = None
    assert load(model.save(tmp_path / "without")).climate is None


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_bring_their_climate(name: str) -> None:
    climate = load(name).climate  # type: ignore[union-attr]
    z = climate(torch.randn(8, climate.size, generator=torch.Generator().manual_seed(0)))
    assert bool(torch.isfinite(z).all()) and 0.3 < float((z - climate.mean).square().mean().sqrt()) < 3


def test_few_frames_are_refused(make_model: Callable[..., Model]) -> None:
    with pytest.raises(SpecError, match="5 starts; wanted at least 20"):
        fit_climate(make_model().emulator, torch.randn(5, 2, 1, 16, 16))
