"""Fields that do not move: the generator of single fields, guidance, and corrections that never raise a residual."""

import pytest
import torch

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.constraints import with_mean
from lapse.physics.darcy import Darcy
from lapse.physics.grid import Grid
from lapse.physics.linear import LinearLaw
from lapse.physics.monotone import monotone
from lapse.surrogate.denoiser import GaussianDenoiser
from lapse.surrogate.guidance import Guided
from lapse.surrogate.noise import sample_generator
from lapse.surrogate.sampler import SAMPLERS
from lapse.surrogate.schedule import RectifiedFlow
from lapse.surrogate.static import Physics, StaticGenerator
from lapse.surrogate.virtual import Observation

GRID = Grid.walled_box(8)


def model(heads=(), network="identity", **options):
    variables = (Variable("log_permeability", "1", std=0.8), Variable("pressure", "Pa", std=0.08))
    spec = FieldSpec(variables, GRID, 1.0, "s", equation="darcy")
    more = {"patch": 2} if network == "identity" else {"latent_channels": 6, "factor": 2, "patch": 2, "width": 8}
    normaliser = Normaliser(spec)
    normaliser.std.copy_(torch.tensor([0.8, 0.08]))
    normaliser.mean.zero_()
    torch.manual_seed(0)
    return StaticGenerator(Autoencoder(spec, normaliser, network, heads, **more), width=16, depth=1, **options)


def states(n=6, seed=0):
    return Darcy(GRID).initial(torch.Generator().manual_seed(seed), n)


def test_a_sample_is_a_function_of_its_seed_and_number():
    m = model()
    m.measure(states())
    together = m.draw(5, seed=3, batch=5)
    torch.testing.assert_close(m.draw(5, seed=3, batch=2), together)
    noise = torch.randn(1, m.noise_size, generator=sample_generator(3, 4))
    torch.testing.assert_close(m.sample(noise), together[4:])
    assert together.shape == (5, 2, 8, 8) and (m.draw(5, seed=4) - together).abs().min() > 0


def test_an_untrained_generator_draws_the_gaussian_of_its_scales():
    """The last layer starts at nought, so the denoiser is that of unit normals: samples have the measured moments."""
    m = model(sampling_steps=32)
    u = states(64)
    m.measure(u)
    drawn = m.draw(256)
    torch.testing.assert_close(drawn.std((0, 2, 3)), u.std((0, 2, 3)), rtol=0.1, atol=0)
    torch.testing.assert_close(m.fields(m.standardised(u)), u)


def test_training_lowers_the_loss_and_physics_the_residual():
    law, u = Darcy(GRID), states(32)
    held_out, residual = [], []
    for strength in (0.0, 3e-3):
        m = model()
        m.measure(u)
        seen = Physics([Observation(law.steady, strength)])
        optimiser = torch.optim.Adam(m.backbone.parameters(), 3e-3)
        before = float(m.loss(u, None, 0.0, torch.Generator().manual_seed(99)))
        for i in range(50):
            loss = m.loss(u[:16], seen, i / 50, torch.Generator().manual_seed(i))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(m.backbone.parameters(), 1.0)
            optimiser.step()
        held_out.append(float(m.loss(u, None, 0.0, torch.Generator().manual_seed(99))) / before)
        residual.append(law.steady(m.draw(16)).abs().mean())
    assert held_out[0] < 0.97
    assert residual[1] < 0.8 * residual[0]


def test_latents_decode_to_samples():
    m = model(network="convolutional")
    m.autoencoder.start_from(states(32))
    m.measure(states(32))
    assert m.draw(2).shape == (2, 2, 8, 8) and m.noise_size == 6 * 16


def test_without_physics_the_loss_is_the_plain_one_bit_for_bit():
    m, u = model(), states()
    seen = Observation(lambda v: v, 0.0)
    plain, *others = (
        m.loss(u, law, 0.5, torch.Generator().manual_seed(0))
        for law in (None, Physics(), Physics([seen]), Physics([seen], conflict_free=True))
    )
    assert all(torch.equal(other, plain) for other in others)


def test_the_conflict_free_update_goes_to_the_backbone_alone():
    m, u = model(), states()
    seen = Observation(Darcy(GRID).steady, 1.0, estimate="unroll")
    m.autoencoder.requires_grad_(False)
    m.loss(u, Physics([seen], conflict_free=True), 1.0, torch.Generator().manual_seed(0)).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.backbone.parameters())
    assert [Physics(unroll=4).steps(p) for p in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_guided_samplers_end_on_the_law():
    """A mean in closed form holds for every sampler; none is touched above the noise level that was asked for."""
    denoiser = GaussianDenoiser(torch.zeros(1, 4, 4), torch.tensor(1.0), RectifiedFlow())
    weights = torch.ones(4, 4, dtype=torch.float64)
    guided = Guided(denoiser, lambda x: with_mean(x, 2.5, weights))
    for sampler in SAMPLERS.values():
        x = sampler(guided, 6)(torch.randn(3, 1, 4, 4))
        torch.testing.assert_close(x.mean((1, 2, 3)), torch.full((3,), 2.5))
    late = Guided(denoiser, lambda x: x + 1e3, below=0.3)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(late(x, torch.full((2,), 0.4)), denoiser(x, torch.full((2,), 0.4)))
    mixed = late(x, torch.tensor([0.2, 0.4]))
    assert mixed[0].mean() > 900 and mixed[1].mean() < 100


def test_a_linear_law_is_met_by_the_nearest_field():
    """Given permeability, the pressure in closed form; least in the norm asked for, against dense least squares."""
    y = states(1)[:, 0].double()
    law = Darcy(GRID)
    p = torch.randn(5, 8, 8, dtype=torch.float64)
    project = LinearLaw(lambda p: law.apply(y, p) - law.wells, (8, 8))
    got = project(p)
    assert (law.apply(y, got) - law.wells).abs().max() < 1e-9
    torch.testing.assert_close(got - got.mean((-2, -1), keepdim=True), law.pressure(y).expand(5, 8, 8))
    torch.testing.assert_close(got.mean((-2, -1)), p.mean((-2, -1)))  # of all solutions that of the nearest mean
    a = torch.randn(3, 7, dtype=torch.float64)
    variances = torch.rand(7, dtype=torch.float64) + 0.1
    u = torch.randn(7, dtype=torch.float64)
    change = LinearLaw(lambda x: x @ a.T - 1, (7,), variances)(u) - u
    want = torch.linalg.lstsq(a * variances.sqrt(), (1 - a @ u)[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(change, variances.sqrt() * want)
    with pytest.raises(ValueError, match="a residual that is not affine"):
        LinearLaw(lambda x: x**2, (7,))


def test_monotone_correction_never_raises_a_residual():
    """Whatever the law, the start and the metric; a sample that obeys is left alone."""

    def awkward(x):
        return torch.sin(3 * x) + x[:, :1] * x.flip(1) - 0.3

    x = 3 * torch.randn(40, 6, dtype=torch.float64)
    for options in ({}, {"metric": torch.rand(6)}, {"damping": 0.1}, {"inner": 1}):
        found = monotone(x, awkward, steps=6, **options)
        assert (found.residual.diff(dim=0) <= 0).all()
        torch.testing.assert_close(found.residual[-1], awkward(found.u).square().mean(1).sqrt())
        assert found.residual[-1].mean() < 0.9 * found.residual[0].mean()
    lawful = monotone(x, lambda v: 0 * v, steps=2)
    assert torch.equal(lawful.u, x)
    with pytest.raises(ValueError, match="found steps=0 and inner=10, wanted at least 1"):
        monotone(x, awkward, steps=0)
    with pytest.raises(ValueError, match="not finite"):
        monotone(x * float("nan"), awkward)


def test_monotone_correction_of_a_linear_law_is_the_projection():
    a = torch.randn(3, 8, dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64)
    found = monotone(x, lambda v: v @ a.T - 1, steps=1, inner=3)
    torch.testing.assert_close(found.u, LinearLaw(lambda v: v @ a.T - 1, (8,))(x))
    frozen = torch.tensor([0.0] * 4 + [1.0] * 4)
    kept = monotone(x, lambda v: v @ a.T - 1, steps=1, inner=3, metric=frozen)
    assert torch.equal(kept.u[:, :4], x[:, :4]) and kept.residual[-1].max() < 1e-10


def test_darcy_is_corrected_in_few_steps_with_its_solver_as_preconditioner():
    """Noise of a tenth of a standard deviation: three steps bring the residual down by a hundred and more."""
    law, u = Darcy(GRID), states(8).double()
    deviation = torch.tensor([0.8, 0.08], dtype=torch.float64).reshape(2, 1, 1)
    noisy = u + 0.1 * deviation * torch.randn_like(u)
    factors = law.factors(noisy[:, 0])
    found = monotone(noisy, law.steady, metric=deviation**2, steps=3, inner=8,
                     precondition=lambda r: factors.solve(factors.solve(r)) / 0.08**2)  # fmt: skip
    assert (found.residual[-1] < 1e-2 * found.residual[0]).all()
    assert ((found.u - u) / deviation).square().mean() < 1.1 * ((noisy - u) / deviation).square().mean()
    plain = monotone(noisy, law.steady, metric=deviation**2, steps=3, inner=8)
    assert (plain.residual[-1] < plain.residual[0]).all() and (plain.residual[-1] > found.residual[-1]).all()


def test_bad_input_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=r"found the heads \['mean'\], .* a sample was never encoded"):
        model(heads=("mean",))
    with pytest.raises(ValueError, match="found sampler 'rk9', wanted one of"):
        model(sampler="rk9")
    with pytest.raises(ValueError, match=r"found noise \(2, 3\), wanted \(B, 128\)"):
        model().sample(torch.randn(2, 3))
