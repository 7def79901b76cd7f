"""Physics that the networks never saw: the projection, the gain, and forecasts held to the solver."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lapse
from lapse.autoencoder.model import Autoencoder
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Axis, Grid
from lapse.surrogate.correction import Correction, smoothing
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.objectives import correction_loss
from lapse.surrogate.preparation import measure_correction

PARAMETERS = {"viscosity": 0.05, "drag": 0.1, "forcing": 1.0, "wavenumber": 2.0}
SPEC = FieldSpec(
    (Variable("vorticity", "s-1"),), Grid.periodic_box(16), 0.2, "s", parameters=PARAMETERS, equation="kolmogorov"
)


def linear(spec: FieldSpec = SPEC, parts: tuple[str, ...] = ("mean", "correction")) -> Emulator:
    """Latents that are a rotation of the patches, though a decoder that could do more, and a mean net that changes
    nothing."""
    ae = Autoencoder(
        spec, Normaliser(spec), "convolutional", latent_channels=16, width=4, encoder_depth=0, decoder_depth=1
    )
    ae.network.bound = None
    return Emulator(ae, width=4, depth=1, parts=parts).eval()


def states(count: int) -> Tensor:
    u: Tensor = law(SPEC).initial(torch.Generator().manual_seed(1), count)
    return 0.1 * u / u.std()  # where the latents' bound leaves them alone


@cache
def gained() -> dict[str, Tensor]:
    """Weights of a model whose gain is fitted; the loss is quadratic in it."""
    model = linear()
    u, phase = states(48), torch.zeros(48, 1, 4)
    model.autoencoder.start_from(u)
    measure_correction(model, u)
    correction = model.part("correction")
    model.requires_grad_(False)
    correction.requires_grad_(True)
    optimiser = torch.optim.LBFGS(correction.parameters(), max_iter=60, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = correction_loss(model, u[:, None], phase, 0.05, 0.5, 1e-4, torch.Generator().manual_seed(2))
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return model.state_dict()


def trained() -> Emulator:
    model = linear()
    model.load_state_dict(gained())
    return model.requires_grad_(False)


def test_the_projection_keeps_a_mode_but_for_its_weight() -> None:
    """With every mode of a patch P is a rotation, so that the norm of P W u is that of W u."""
    correction = Correction(linear().autoencoder, modes=16)
    y, x = torch.meshgrid(*[torch.arange(16) * 2 * math.pi / 16] * 2, indexing="ij")
    for ky, kx in ((0, 1), (2, 0), (3, 4)):
        u = torch.cos(ky * y + kx * x)[None, None]
        found = correction.project(linear().autoencoder, u).square().sum()
        wanted = u.square().sum() / (1 + (ky**2 + kx**2) / 16)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_the_smoothing_counts_periods_of_the_longest_axis() -> None:
    w = smoothing((8, 16), [1.0, 2.0])
    assert w.shape == (8, 9)
    torch.testing.assert_close(w[0, 4], torch.tensor(2.0).rsqrt())  # four periods of the long axis
    torch.testing.assert_close(w[2, 0], torch.tensor(2.0).rsqrt())  # two of the short one are as long


def test_the_gain_turns_the_effect_of_a_force_into_latents() -> None:
    model = trained()
    u = states(6)
    state = model.encode(u[:, None])
    before, after = law(SPEC), law(SPEC, {"forcing": 1.2})
    model.obey(before, after)
    wanted = after.advance(u, SPEC.interval) - before.advance(u, SPEC.interval)
    model.laws = None
    still = model.decode(model.advance(state, mode="mean"))
    model.obey(before, after)
    found = model.decode(model.advance(state, mode="mean")) - still
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_the_same_parameters_change_nothing() -> None:
    model = trained()
    state = model.encode(states(3)[:, None])
    plain = model.advance(state, mode="mean").z
    model.obey(law(SPEC), law(SPEC, PARAMETERS))
    assert torch.equal(model.advance(state, mode="mean").z, plain)


def test_a_model_at_other_parameters_says_so_and_leaves_the_first_alone(tmp_path: Path) -> None:
    first = Model(trained(), "toy", {"name": "toy"})
    ds = to_dataset(states(1), SPEC, ["time"], {"time": ("time", np.zeros(1), {"units": "s"})})
    plain = first.forecast(ds, 3, 2, mode="mean", progress=False)
    other = first.at(forcing=1.5)
    assert other.spec.parameters == {**PARAMETERS, "forcing": 1.5}
    assert first.spec.parameters == PARAMETERS
    assert first.emulator.laws is None
    fc = first.forecast(ds, 3, 2, mode="mean", parameters={"forcing": 1.5}, progress=False)
    assert '"forcing": 1.5' in fc.attrs["lapse_parameters"]
    assert "lapse_parameters" not in plain.attrs
    assert not np.allclose(fc["vorticity"], plain["vorticity"])
    # A change of a change counts from the training data's parameters.
    back = other.at(forcing=1.0).forecast(ds, 3, 2, mode="mean", progress=False)
    np.testing.assert_array_equal(back["vorticity"], plain["vorticity"])
    with pytest.raises(ValueError, match="save that one"):
        other.save(tmp_path / "model")


def test_what_cannot_be_is_refused() -> None:
    toy = Model(linear(parts=("mean",)), "toy", {})
    with pytest.raises(ValueError, match=r"emulator\.parts"):
        toy.at(forcing=2.0)
    with pytest.raises(ValueError, match=r"found the parameters gravity, wanted some of viscosity=0\.05"):
        Model(linear(), "toy", {}).at(gravity=3.0)
    with pytest.raises(ValueError, match="names no equation"):
        law(SPEC.replace(equation=None))
    bounded = Grid(tuple(Axis(a.name, a.coordinates, a.units) for a in SPEC.grid.axes))
    with pytest.raises(ValueError, match="periodic"):
        linear(SPEC.replace(grid=bounded))


def test_the_shipped_model_follows_a_force_it_never_saw() -> None:
    model = lapse.load("kolmogorov64")
    stronger = law(model.spec, {"forcing": 1.5})
    generator = torch.Generator().manual_seed(11)
    u = law(model.spec).spin_up(generator, 3, duration=15.0)
    truth = u
    for _ in range(5):
        truth = stronger.advance(truth, model.spec.interval)

    def error(m: Model) -> float:
        state = m.emulator.encode(u[:, None])
        for _ in range(5):
            state = m.emulator.advance(state, mode="mean")
        return float((m.emulator.decode(state) - truth).norm())

    with torch.no_grad():
        assert error(model.at(forcing=1.5)) < 0.6 * error(model)
