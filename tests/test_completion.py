"""Static fields given some of their values: the posterior's denoiser against closed forms, and `augment`."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.datamodule import FieldData
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.problem import SpecError
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.darcy import Darcy
from lapse.physics.grid import Grid
from lapse.surrogate.augment import AugmentWarning
from lapse.surrogate.completion import _Completion
from lapse.surrogate.denoiser import GaussianDenoiser
from lapse.surrogate.observations import observations
from lapse.surrogate.posterior import Posterior, conjugate_residuals
from lapse.surrogate.sampler import SAMPLERS
from lapse.surrogate.schedule import RectifiedFlow
from lapse.surrogate.static import StaticGenerator

GRID = Grid.walled_box(8)
STD = torch.tensor([0.8, 0.08]).reshape(2, 1, 1)


def model(network="identity"):
    """Untrained: its denoiser is that of independent unit normals."""
    variables = (Variable("log_permeability", "1", std=0.8), Variable("pressure", "Pa", std=0.08))
    spec = FieldSpec(variables, GRID, 1.0, "s", equation="darcy")
    more = {"patch": 2} if network == "identity" else {"latent_channels": 6, "factor": 2, "patch": 2, "width": 8}
    normaliser = Normaliser(spec)
    normaliser.std.copy_(STD.flatten())
    torch.manual_seed(0)
    return StaticGenerator(Autoencoder(spec, normaliser, network, **more), width=16, depth=1)


def independent(n=2000):
    """Fields of unit normals in every cell: what `model` draws."""
    return STD * torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def seen(m, u, where):
    return to_dataset(torch.where(where, u, torch.nan)[None], m.autoencoder.spec, ("time",), {"time": [0.0]})


def test_the_denoiser_given_observations_is_the_posterior_mean_in_closed_form():
    g = torch.Generator().manual_seed(0)
    mean, std = torch.randn(6, generator=g).double(), torch.rand(6, generator=g).double() + 0.5
    H, R = torch.randn(3, 6, generator=g).double(), torch.tensor([0.1, 0.2, 0.3]).double()
    y, x_t, t = torch.randn(3, generator=g).double(), torch.randn(4, 6, generator=g).double(), 0.4
    prior = GaussianDenoiser(mean, std, RectifiedFlow())
    posterior = Posterior(prior, lambda x: x @ H.T, y, R, iterations=3, tolerance=0.0)
    found = posterior(x_t, torch.full((4,), t, dtype=torch.float64))
    # x given x_t and y, all Gaussian: precisions add up
    precision = torch.diag(1 / std**2 + (1 - t) ** 2 / t**2) + H.T @ torch.diag(1 / R) @ H
    right = mean / std**2 + (1 - t) / t**2 * x_t + y @ torch.diag(1 / R) @ H
    torch.testing.assert_close(found, torch.linalg.solve(precision, right.T).T)


def test_samples_of_the_posterior_have_its_moments():
    std, R, y = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.25]).double(), torch.tensor([3.0]).double()
    H = torch.tensor([[1.0, 1.0]]).double()
    denoiser = Posterior(GaussianDenoiser(torch.zeros(2).double(), std, RectifiedFlow()), lambda x: x @ H.T, y, R)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    x = SAMPLERS["ab2"](denoiser, 32)(noise)
    S = torch.diag(std**2)
    gain = S @ H.T / (H @ S @ H.T + R)
    torch.testing.assert_close(x.mean(dim=0), (gain * y)[:, 0], atol=0.06, rtol=0)
    torch.testing.assert_close(x.T.cov(), S - gain @ H @ S, atol=0.08, rtol=0)


def test_conjugate_residuals_fall_for_a_matrix_that_is_not_symmetric():
    g = torch.Generator().manual_seed(0)
    A, b = torch.eye(8) + 0.6 * torch.randn(8, 8, generator=g), torch.randn(2, 8, generator=g)
    sizes = [(conjugate_residuals(lambda x: x @ A.T, b, k) @ A.T - b).norm(dim=1) for k in range(9)]
    for before, after in pairwise(sizes):
        assert (after <= before + 1e-5).all()
    assert (sizes[-1] < 1e-3 * sizes[0]).all()


def test_noise_added_about_samples_and_taken_away_again_keeps_their_law():
    std = torch.tensor([0.5, 2.0])
    about = std * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5000, 2, generator=torch.Generator().manual_seed(1))
    sampler = SAMPLERS["ab2"](GaussianDenoiser(torch.zeros(2), std, RectifiedFlow()), 32)
    again = sampler(noise, about, 0.6)
    torch.testing.assert_close(again.std(dim=0), std, rtol=0.04, atol=0)
    correlation = [float(torch.corrcoef(torch.stack([again[:, i], about[:, i]]))[0, 1]) for i in (0, 1)]
    assert 0.2 < correlation[0] < correlation[1] < 0.99  # noise of 0.6 hides 0.5 more than 2
    torch.testing.assert_close(sampler(noise, about, 1.0), sampler(noise))


def test_what_is_measured_of_latents_reproduces_their_covariance():
    m, u = model(), Darcy(GRID).initial(torch.Generator().manual_seed(0), 200)
    m.measure(u)
    x = m.standardised(u).flatten(1)
    torch.testing.assert_close(m.modes.T @ m.modes, x.T.cov(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(m.centre, x.mean(dim=0), atol=1e-5, rtol=0)
    assert (m.error < 1e-5).all()  # the identity loses nothing
    few = model()
    few.measure(u[:10])
    assert int((few.modes.norm(dim=1) > 1e-4).sum()) == 9  # ten fields, less their mean
    lossy = model("convolutional")
    lossy.measure(u)
    assert (lossy.error > 0.1).all()


def test_samples_given_noisy_cells_are_the_gaussian_posterior():
    m, error = model(), 0.5
    m.measure(independent())
    truth = independent(1)[0]
    where = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    ds = seen(m, truth, where)
    told = {"log_permeability": error * 0.8, "pressure": error * 0.08}
    out = m.augment(ds, 400, error=told, progress=False)
    x = torch.stack([torch.from_numpy(out[n].values[:, 0]) for n in told], dim=1) / STD
    share = 1 / (1 + error**2)
    torch.testing.assert_close(x.mean(dim=0)[where], share * (truth / STD)[where], atol=0.2, rtol=0)
    torch.testing.assert_close(x.mean(dim=0)[~where], torch.zeros(int((~where).sum())), atol=0.35, rtol=0)
    assert x.var(dim=0)[where].mean() == pytest.approx(1 - share, rel=0.1)
    assert x.var(dim=0)[~where].mean() == pytest.approx(1, rel=0.1)
    assert 0.5 < float(out.innovation) < 1.5 and out.sizes["time"] == 1 and (out.generated == 1).all()
    assert out["pressure"].attrs["units"] == "Pa"


@pytest.mark.parametrize("network", ["identity", "convolutional"])
def test_exact_observations_are_met_also_after_a_correction(network):
    m, law = model(network), Darcy(GRID)
    u = law.initial(torch.Generator().manual_seed(0), 100)
    m.measure(u)
    where = torch.zeros(2, 8, 8, dtype=torch.bool)
    where[0, ::3, ::3] = True
    for hold in (None, law.solved):
        out = m.augment(seen(m, u[0], where)[["log_permeability"]], 3, error=0.0, hold=hold, progress=False)
        y = out["log_permeability"].values[:, 0]
        np.testing.assert_array_equal(y[:, where[0]], np.broadcast_to(u[0, 0][where[0]], (3, int(where.sum()))))
        assert y.std(axis=0)[~where[0].numpy()].min() > 0
        p = torch.from_numpy(out["pressure"].values[:, 0])
        solved = law.pressure(torch.from_numpy(y))
        assert hold is None or float((p - solved).norm() / solved.norm()) < 1e-4


def test_a_sample_is_a_function_of_seed_and_member():
    m = model()
    m.measure(independent())
    g = torch.Generator().manual_seed(0)  # a denoiser of which the solver's Gaussian knows nothing
    with torch.no_grad():
        for p in m.backbone.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    where = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    ds = seen(m, independent(1)[0], where)
    few, many = (m.augment(ds, n, error=0.1, seed=4, progress=False) for n in (2, 40))
    xr.testing.assert_allclose(few, many.isel(member=slice(2)), atol=5e-4)
    other = m.augment(ds, 2, error=0.1, seed=5, progress=False)
    assert float(abs(other["pressure"] - few["pressure"]).max()) > 0


def test_what_a_lossy_decoder_loses_is_spread():
    """Half of the variance is lost in compression, and is drawn again where it was not observed."""
    m = model()
    m.measure(independent())
    m.error.fill_(0.5)  # as if
    where = torch.zeros(2, 8, 8, dtype=torch.bool)
    where[:, ::2, ::2] = True
    out = m.augment(seen(m, independent(1)[0], where), 300, error=0.0, progress=False)
    x = torch.stack([torch.from_numpy(out[n].values[:, 0]) for n in m.autoencoder.spec.names], dim=1) / STD
    far = torch.zeros_like(where)
    far[:, 1::2, 1::2] = True
    assert float(x.var(dim=0)[far].mean()) == pytest.approx(1.25, rel=0.2) and (x.var(dim=0)[where] < 1e-12).all()


def test_what_lies_under_a_mask_is_not_an_error_of_the_decoder():
    m = model("convolutional")
    u = Darcy(GRID).initial(torch.Generator().manual_seed(0), 50)
    m.measure(u)
    whole = m.error.clone()
    m.autoencoder.normaliser.mask[:, :4] = False
    u[:, :, :4] = torch.nan
    filled = torch.nan_to_num(u)
    m.measure(filled)
    assert torch.isfinite(m.error).all() and (m.error < 3 * whole).all()


def test_many_observations_are_taken_in_by_few_modes():
    """The gain in the space of the modes is that of the observations' space."""
    m = model()
    m.measure(independent())
    where = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.7
    data = observations(seen(m, independent(1)[0], where), m.autoencoder.spec, 0.1)
    c = _Completion(m, data, 0.7, 8, 4)
    whole = c.response @ c.response.T + torch.diag(c.variance.double())
    torch.testing.assert_close(c.gain.double(), torch.linalg.solve(whole, c.response), atol=1e-5, rtol=1e-4)
    left = 1 / (1 + m.modes.double().square().sum(dim=1) * (0.5 / 0.4) ** 2)
    whole = (c.response * left) @ c.response.T + torch.diag(c.variance.double())
    r = torch.randn(2, len(whole)).double()
    torch.testing.assert_close(c._gaussian(0.5, 0.4)(r), torch.linalg.solve(whole, r.T).T, atol=1e-6, rtol=1e-5)


def test_new_fields_can_be_trained_on(tmp_path):
    m, law = model(), Darcy(GRID)
    m.measure(independent())
    made = m.augment(None, 6, hold=law.solved, seed=2)
    assert dict(made.sizes) == {"trajectory": 6, "time": 1, "y": 8, "x": 8} and (made.generated == 1).all()
    torch.testing.assert_close(torch.from_numpy(made["log_permeability"].values[:, 0]), m.draw(6, seed=2)[:, 0])
    made.to_zarr(tmp_path / "made.zarr")
    data = FieldData(tmp_path / "made.zarr", 1, 2, fractions=(0.5, 0.2, 0.3), by="trajectory")
    data.setup()
    (fields, _) = next(iter(data.frames("train")))
    assert fields.shape[1:] == (2, 8, 8) and float(law.steady(fields.double()).abs().mean()) < 1e-3


def test_unfit_input_is_named():
    m = model()
    where = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    ds = seen(m, independent(1)[0], where)
    with pytest.raises(SpecError, match="was not trained"):
        m.augment(ds, error=0.1)
    m.measure(independent())
    with pytest.raises(SpecError, match="standard deviation in Pa"):
        m.augment(ds)
    with pytest.raises(SpecError, match="do not move"):
        m.augment(xr.concat([ds, ds.assign_coords(time=[1.0])], "time"), error=0.1)
    with pytest.raises(SpecError, match=r"(?s)samples.*redraw"):
        m.augment(ds, 0, error=0.1, redraw=0.0)
    with pytest.raises(SpecError, match="NaN everywhere"):
        m.augment(ds.where(ds.x > 5), error=0.1)
    with pytest.warns(AugmentWarning, match="disagree"):
        m.augment(20 * ds, 1, error=0.0, progress=False)
