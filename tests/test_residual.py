"""The residual operator, the closed-form gain, and corrections that are refused where they would do harm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lapse.autoencoder.model import Autoencoder, Latent
from lapse.datasets.fields import to_dataset
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.equation import Equation
from lapse.physics.grid import Grid
from lapse.surrogate.certificate import calibrate
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.gain import DAMPING, SpectralGain
from lapse.surrogate.gate import next_errors
from lapse.surrogate.law import law
from lapse.surrogate.model import Model
from lapse.surrogate.objectives import operator_loss
from lapse.surrogate.pool import Pool, label_pool
from lapse.surrogate.preparation import measure_correction
from lapse.surrogate.stages import STAGES, Given, Shift
from lapse.surrogate.state import State

PARAMETERS = {"viscosity": 0.05, "drag": 0.1, "forcing": 1.0, "wavenumber": 2.0}
SPEC = FieldSpec(
    (Variable("vorticity", "s-1"),), Grid.periodic_box(16), 0.2, "s", parameters=PARAMETERS, equation="kolmogorov"
)
PHASE = torch.zeros(8, 1, 4)


@cache
def flow() -> Equation:
    return law(SPEC)


@cache
def states(count: int) -> Tensor:
    """Pairs of frames, (count, 2, C, *space)."""
    u = flow().spin_up(torch.Generator().manual_seed(1), count, duration=5.0)
    return torch.stack([u, flow().advance(u, SPEC.interval)], dim=1)


def build(channels: int = 14) -> Emulator:
    """A linear code, a mean net and an operator that change nothing; the gain is set."""
    torch.manual_seed(0)
    normaliser = Normaliser(SPEC)
    normaliser.fit([states(24)[:, 0]])
    ae = Autoencoder(
        SPEC, normaliser, "convolutional", ("mean",), latent_channels=channels, width=4, encoder_depth=0,
        decoder_depth=0,
    )  # fmt: skip
    ae.start_from(states(24)[:, 0])
    emulator = Emulator(ae, width=8, depth=1, parts=("mean", "correction", "operator")).eval()
    measure_correction(emulator, states(24)[:, 0])
    return emulator.requires_grad_(False)


def project(emulator: Emulator, state: State) -> Tensor:
    return emulator.part("correction").project(emulator.autoencoder, emulator.decode(state))


def test_the_gain_is_damped_least_squares() -> None:
    emulator = build(8)
    gain, ae = emulator.part("correction").gain, emulator.autoencoder

    def forward(z: Tensor) -> Tensor:
        return emulator.part("correction").project(ae, ae.decode(Latent(z, torch.zeros(len(z), 1))))

    unit = torch.eye(128).reshape(128, 8, 4, 4)
    A = (forward(unit) - forward(0 * unit[:1])).flatten(1).T.double()  # (96, 128)
    damping = DAMPING * (A @ A.T).diagonal().mean()
    K = A.T @ torch.linalg.inv(A @ A.T + damping * torch.eye(96))
    change = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
    found = gain(change.reshape(3, 6, 4, 4)).flatten(1)
    torch.testing.assert_close(found, (change.double() @ K.T).float(), rtol=1e-3, atol=1e-4)


def test_between_latents_the_gain_needs_no_decode() -> None:
    """K R_φ by R_φ = A(z₁) − A(m), decoded and projected, and by K A (m − z₁)."""
    emulator = build(8)
    correction, ae = emulator.part("correction"), emulator.autoencoder
    z, wanted = torch.randn(2, 4, 8, 4, 4, generator=torch.Generator().manual_seed(5))
    read = emulator.part("operator").read(ae, correction, wanted, z, torch.zeros(4, 1))
    torch.testing.assert_close(correction.gain.between(z, wanted), correction.gain(-read), rtol=1e-3, atol=1e-3)


def test_a_decoder_that_is_not_linear_has_no_such_gain() -> None:
    with pytest.raises(ValueError, match="not linear"):
        SpectralGain(2, 2, (4, 4)).solve(lambda z: z**3)
    bump = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match="the same everywhere"):
        SpectralGain(2, 2, (4, 4)).solve(lambda z: bump * z)


def test_a_frame_corrected_by_the_solver_obeys_it() -> None:
    emulator = build()
    before = emulator.encode(states(8)[:, :1])
    wanted = emulator.part("correction").project(emulator.autoencoder, flow().advance(emulator.decode(before), 0.2))
    free = (project(emulator, emulator.advance(before, mode="mean")) - wanted).norm()
    emulator.corrector = flow()
    corrected = (project(emulator, emulator.advance(before, mode="mean")) - wanted).norm()
    assert float(corrected / free) < 0.02


def test_the_operator_is_separable_and_its_first_term_exact() -> None:
    emulator = build()
    correction, operator = emulator.part("correction"), emulator.part("operator")
    for weights in operator.net.head.parameters():
        weights.copy_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(4)))
    before, after = (emulator.encode(states(8)[:, i : i + 1]) for i in (0, 1))
    expected = emulator.expect(before)

    def read(z: Tensor) -> Tensor:
        return operator.read(emulator.autoencoder, correction, expected, z, before.carried)

    assert float(read(expected).abs().max()) == 0
    difference = read(after.z[:, -1]) - read(before.z[:, -1])
    torch.testing.assert_close(difference, project(emulator, after) - project(emulator, before), rtol=0, atol=1e-5)
    # Corrected, what is seen of the frame is what the operator expects.
    emulator.corrector = "operator"
    found = project(emulator, emulator.advance(before, mode="mean"))
    wanted = project(emulator, State(expected[:, None], before.carried))
    assert float((found - wanted).norm() / (wanted - project(emulator, before)).norm()) < 0.05


def pool(emulator: Emulator, frames: int = 0, corrected: bool = False, noise: float = 0.0) -> Pool:
    generator = torch.Generator().manual_seed(0)
    return label_pool(emulator, states(8)[:, :1], PHASE, flow(), noise, frames, corrected, generator)


def test_the_loss_is_the_distance_to_the_solver() -> None:
    """An operator that expects no change, and a model that makes none: every state is an encoded one."""
    emulator, u = build(), states(8)[:, :1]
    decoded = emulator.decode(emulator.encode(u))
    wanted = ((flow().advance(decoded, 0.2) - decoded) / emulator.autoencoder.normaliser.std.reshape(1, 1, 1)).square()
    for frames, corrected in ((0, False), (2, False), (2, True)):
        found = operator_loss(emulator, pool(emulator, frames, corrected))
        assert float(found) == pytest.approx(float(wanted.mean()), rel=1e-2)


def test_a_pool_holds_every_frame_of_its_rollouts_and_what_the_solver_makes_of_them() -> None:
    emulator = build()
    found = pool(emulator, frames=2, noise=0.1)
    assert len(found.target) == 3 * 8 and found.phase.shape == (24, 4)
    decoded = emulator.decode(found.state)
    wanted = emulator.autoencoder.normalise(flow().advance(decoded, SPEC.interval))
    torch.testing.assert_close(found.target, wanted, rtol=0, atol=1e-5)


def test_what_is_drawn_from_a_pool_is_moved_by_symmetries_alone(tmp_path: Path) -> None:
    """Latents and labels by the same whole cells: the solver still makes the label of the state."""
    emulator = build()
    found = pool(emulator)
    found.save(tmp_path / "pool.pt")
    cell = (2, 1)  # the force has a period of 8 cells along y, and a latent cell 4
    drawn = Pool.load(tmp_path / "pool.pt").draw(16, cell, torch.Generator().manual_seed(1))
    wanted = emulator.autoencoder.normalise(flow().advance(emulator.decode(drawn.state), SPEC.interval))
    torch.testing.assert_close(drawn.target, wanted, rtol=0, atol=1e-4)
    still = [bool((y == found.target).flatten(1).all(dim=1).any()) for y in drawn.target]
    assert sum(still) < 8  # one shift of eight is by nothing


def test_the_stage_teaches_the_operator_alone(tmp_path: Path) -> None:
    emulator = build()
    given = Given(states(8), PHASE.expand(8, 2, 4), Shift((8, 1), (16, 16), torch.Generator()), tmp_path)
    options = {"noise": 0.02, "frames": 2, "starts": 8, "batch": 8}
    plan = STAGES["operator"](emulator, options, torch.Generator().manual_seed(0), given)
    assert plan.parts == [emulator.operator]
    parameters = list(plan.parts[0].requires_grad_(True).parameters())
    optimiser, losses = torch.optim.Adam(parameters, lr=1e-2), []
    for step in range(40):
        optimiser.zero_grad()
        loss = plan.objective(states(8)[:, :1], PHASE, step / 40)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(not p.requires_grad for p in emulator.mean.parameters())  # type: ignore[union-attr]
    # What the second round's rollouts were corrected by is gone after a kill: its labels are kept.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool-0-0.pt", "pool-1-0.pt"]


def test_the_gate_tells_who_knows_the_next_frame_better() -> None:
    """Of a nearly lossless code the solver is right; of a code of two numbers a patch it is not."""
    fine = next_errors(build(), flow(), states(24), "mean")
    assert fine["solver"] < 0.2 * fine["model"]
    assert fine["operator"] == pytest.approx(fine["model"], rel=1e-3)  # neither changes anything
    coarse = next_errors(build(2), flow(), states(24), "mean")
    assert coarse["solver"] > 2 * fine["solver"]


def test_a_correction_is_released_refused_or_unknown(tmp_path: Path) -> None:
    model = Model(build(), "toy", {"name": "toy"})
    with pytest.raises(ValueError, match=r"model\.calibrate"):
        model.corrected("solver")
    model.certificates["mean"] = calibrate(model, states(24), leads=3)
    with pytest.raises(ValueError, match="correcting would do harm"):
        model.corrected("operator")
    other = model.corrected("solver")
    assert model.emulator.corrector is None
    with pytest.raises(ValueError, match="wanted one of solver, operator"):
        model.corrected("luck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="save that one"):
        other.save(tmp_path / "toy")
    ds = to_dataset(states(24)[:1, 0], SPEC, ["time"], {"time": ("time", np.zeros(1), {"units": "s"})})
    with pytest.raises(ValueError, match=r"no certificate of mode 'mean\+solver'"):
        other.forecast(ds, 2, 2, certify=True, progress=False)
    found = calibrate(other, states(24), leads=3)
    model.certificates[found.mode] = found
    fc = model.forecast(ds, 3, 2, correct="solver", certify=True, progress=False)
    plain = model.forecast(ds, 3, 2, progress=False)
    assert fc.attrs["lapse_correction"] == "solver"
    assert "lapse_correction" not in plain.attrs
    truth = flow().advance(states(24)[:1, 0], 3 * SPEC.interval).numpy()
    errors = [float(np.abs(x["vorticity"].isel(lead_time=-1).values - truth).mean()) for x in (fc, plain)]
    assert errors[0] < 0.3 * errors[1]
    # Towards the solver at other parameters, which needs no effect beside.
    other = model.corrected("solver").at(forcing=2.0)
    assert other.emulator.corrector.parameters["forcing"] == 2.0
