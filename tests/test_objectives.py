"""What the networks are asked for: scores against brute force and closed forms, rollouts against a plain loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lapse.autoencoder.model import Autoencoder, Latent
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Axis, Grid
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.objectives import (
    almost_fair_crps,
    decoder_sensitivity,
    field_weights,
    generator_loss,
    pyramid,
    reconstruction_loss,
    rollout_loss,
)
from lapse.surrogate.preparation import measure_residual
from lapse.surrogate.state import State


def globe(space: tuple[int, int] = (9, 12), masked: bool = True) -> FieldSpec:
    """Rows of unequal area and, in the first variable, a mask."""
    lat = Axis("lat", tuple(np.linspace(-60, 80, space[0])), "degrees_north")
    lon = Axis("lon", tuple(np.arange(space[1]) * 360 / space[1]), "degrees_east", periodic=True)
    mask = np.ones(space, bool)
    mask[2:5, 3:7] = False
    masks = {"t": mask} if masked else {}
    return FieldSpec((Variable("t", "K"), Variable("p", "Pa")), Grid((lat, lon)), 6.0, "hours", masks=masks)


def emulator(spec: FieldSpec, **options: Any) -> Emulator:
    u = 5 + 3 * torch.randn(100, *spec.shape)
    ae = Autoencoder(
        spec, Normaliser(spec).fit([u]), "convolutional", latent_channels=3, width=8, encoder_depth=1, decoder_depth=1
    )
    model = Emulator(ae, **{"width": 8, "depth": 1, "parts": ("mean", "generator", "fast"), **options}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("members", [2, 5])
def test_the_crps_by_brute_force(members: int, alpha: float) -> None:
    """α times the fair score plus 1 − α times the biased one."""
    x, y = torch.randn(members, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for c in range(4):
        xs = x[:, c].tolist()
        skill = sum(abs(a - float(y[c])) for a in xs) / members
        pairs = sum(abs(a - b) for a in xs for b in xs)
        fair, biased = skill - pairs / (2 * members * (members - 1)), skill - pairs / (2 * members**2)
        assert float(almost_fair_crps(x, y, alpha)[c]) == pytest.approx(alpha * fair + (1 - alpha) * biased, rel=1e-12)


@pytest.mark.parametrize("members", [2, 3, 10])
def test_the_fair_crps_of_gaussians_is_known_for_any_number_of_members(members: int) -> None:
    """Members from N(μ, s²), truth from N(0, 1): E|x − y| − E|x − x'|/2 with folded normals in closed form."""
    count, mu, s = 60_000, 0.7, 0.6
    score = almost_fair_crps(mu + s * torch.randn(members, count), torch.randn(count), alpha=1.0)
    v = math.sqrt(1 + s**2)
    apart = v * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * v**2)) + mu * math.erf(mu / (v * math.sqrt(2)))
    assert float(score.mean()) == pytest.approx(apart - s / math.sqrt(math.pi), abs=4 * float(score.std()) / count**0.5)


def test_one_member_has_no_fair_score() -> None:
    with pytest.raises(ValueError, match="two members"):
        almost_fair_crps(torch.zeros(1, 3), torch.zeros(3))


@pytest.mark.parametrize("space", [(8, 12), (9, 13), (13,)])
def test_the_pyramid_holds_weighted_means_over_blocks(space: tuple[int, ...]) -> None:
    weights = torch.rand(2, *space, dtype=torch.float64)
    weights[0].flatten()[:3] = 0
    weights[1, :4] = 0  # blocks without a valid cell
    weights = weights / weights.mean()
    x = torch.randn(3, 2, *space, dtype=torch.float64)
    levels = pyramid(x, weights, 3)
    assert len(levels) == 3 and levels[0][0] is x and levels[0][1] is weights
    for j, (fields, mass) in enumerate(levels):
        blocks = [range(0, n, 2**j) for n in space]
        assert fields.shape[2:] == tuple(map(len, blocks))
        assert float(mass.mean()) == pytest.approx(1)
        total = 0.0
        for index in np.ndindex(*fields.shape[2:]):
            cells = tuple(slice(2**j * i, 2**j * (i + 1)) for i in index)
            w, block = weights[(slice(None), *cells)], x[(slice(None), slice(None), *cells)]
            dims = tuple(range(1, 1 + len(space)))
            share = w.sum(dim=dims)
            mean = (w * block).sum(dim=tuple(d + 1 for d in dims)) / share.clamp(min=1e-300)
            if j:  # the first level is the field itself, masked cells and all
                torch.testing.assert_close(fields[(slice(None), slice(None), *index)], mean)
            torch.testing.assert_close(mass[(slice(None), *index)] / mass.sum(), share / weights.sum())
            total += float(share.sum())
        assert total == pytest.approx(float(weights.sum()))


def test_weights_are_area_and_mask_with_mean_one() -> None:
    spec = globe()
    model = emulator(spec)
    w = field_weights(model.autoencoder)
    area = np.cos(np.deg2rad(np.linspace(-60, 80, 9)))[:, None] * np.ones(12)
    both = np.stack([area * spec.masks["t"], area])
    np.testing.assert_allclose(w.numpy(), both / both.mean(), rtol=1e-5)


def loop(model: Emulator, u: Tensor, phase: Tensor, mode: Any, members: int, generator: torch.Generator) -> float:
    """`rollout_loss` at one scale, for one window at a time and in numpy."""
    h, (batch, length) = model.history, u.shape[:2]
    w = field_weights(model.autoencoder).numpy()
    size = model.noise_size(mode)
    noise = [torch.randn(batch * members, size, generator=generator) for _ in range(length - h)]
    total = []
    for b in range(batch):
        for m in range(members):
            state = model.encode(u[b : b + 1, :h], phase[b : b + 1, :h])
            for k in range(h, length):
                mine = noise[k - h][m * batch + b][None] if size else None
                state = model.advance(state, mine, phase[b : b + 1, k - 1], mode)
                field = model.autoencoder.normalise(model.decode(state, phase[b : b + 1, k]), phase[b : b + 1, k])
                total.append(((b, k, m), field[0].double().numpy()))
    fields = dict(total)
    scores = []
    for b in range(batch):
        for k in range(h, length):
            truth = model.autoencoder.normalise(u[b, k], phase[b, k]).double().numpy()
            x = [fields[b, k, m] for m in range(members)]
            if members == 1:
                scores.append((w * (x[0] - truth) ** 2).mean())
            else:
                pairs = sum(np.abs(p - q) for p in x for q in x) / (2 * members * (members - 1))
                fair = sum(np.abs(p - truth) for p in x) / members - (1 - 0.05 / members) * pairs
                scores.append((w * fair).mean())
    return float(np.mean(scores))


@pytest.mark.parametrize(("mode", "members", "history"), [("mean", 1, 1), ("mean", 1, 2), ("fast", 3, 2)])
def test_the_rollout_loss_is_that_of_a_plain_loop(mode: Any, members: int, history: int) -> None:
    model = emulator(globe(), history=history, calendar=True)
    u, phase = 5 + 3 * torch.randn(2, history + 3, *globe().shape), torch.randn(2, history + 3, 4)
    with torch.no_grad():
        want = loop(model, u, phase, mode, members, torch.Generator().manual_seed(3))
        found = rollout_loss(model, u, phase, mode, members, generator=torch.Generator().manual_seed(3))
    assert float(found) == pytest.approx(want, rel=1e-5)


def test_free_frames_are_neither_scored_nor_differentiated() -> None:
    """The loss and its gradient are those of a run that starts from the state where the free ones end."""
    model = emulator(globe(), history=2)
    u, phase = 5 + 3 * torch.randn(2, 7, *globe().shape), torch.zeros(2, 7, 4)
    found = rollout_loss(model, u, phase, "fast", 2, generator=torch.Generator().manual_seed(3), free=3)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        state = model.encode(u[:, :2])
        state = State(state.z.repeat(2, 1, 1, 1, 1), state.carried.repeat(2, 1))
        for _ in range(3):
            state = model.advance(state, torch.randn(4, model.noise_size("fast"), generator=noise))
    want, weights = torch.zeros(()), field_weights(model.autoencoder)
    for k in (5, 6):
        state = model.advance(state, torch.randn(4, model.noise_size("fast"), generator=noise))
        x = model.autoencoder.normalise(model.decode(state)).reshape(2, 2, *globe().shape)
        want = want + (weights * almost_fair_crps(x, model.autoencoder.normalise(u[:, k]))).mean() / 2
    torch.testing.assert_close(found, want)
    parameters = list(model.fast.parameters()) if model.fast is not None else []
    for one, other in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_scales_are_averaged() -> None:
    model, spec = emulator(globe()), globe()
    u, phase = 5 + 3 * torch.randn(3, 2, *spec.shape), torch.zeros(3, 2, 4)
    with torch.no_grad():
        found = rollout_loss(model, u, phase, "fast", 2, scales=3, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(6, model.noise_size("fast"), generator=torch.Generator().manual_seed(0))
        state = model.encode(u[:, :1])
        state = model.advance(State(state.z.repeat(2, 1, 1, 1, 1), state.carried.repeat(2, 1)), noise)
        x = model.autoencoder.normalise(model.decode(state)).reshape(2, 3, *spec.shape)
        y, w = model.autoencoder.normalise(u[:, 1]), field_weights(model.autoencoder)
        levels = zip(pyramid(x[0], w, 3), pyramid(x[1], w, 3), pyramid(y, w, 3), strict=True)
        scores = [(m * almost_fair_crps(torch.stack([a, b]), t)).mean() for (a, m), (b, _), (t, _) in levels]
        want = float(torch.stack(scores).mean())
    assert float(found) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("loss", ["reconstruction", "mean", "fast"])
def test_what_lies_under_the_mask_does_not_count(loss: str) -> None:
    """Values there change nothing, and cells of a polar row count for less than those of the equator."""
    spec = globe()
    model = emulator(spec)
    u, phase = 5 + 3 * torch.randn(2, 2, *spec.shape), torch.zeros(2, 2, 4)

    def value(v: Tensor) -> float:
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            if loss == "reconstruction":
                return float(reconstruction_loss(model.autoencoder, v, phase, 0.1, g))
            return float(rollout_loss(model, v, phase, loss, 2 if loss == "fast" else 1, generator=g))  # type: ignore[arg-type]

    spoilt = u.clone()
    spoilt[:, :, 0, 2:5, 3:7] = torch.tensor(1e5)
    assert value(spoilt) == value(u)
    frame = 0 if loss == "reconstruction" else 1
    moved = []
    for row in (0, 4, 8):  # at 60° S, 10° N and 80° N, in the last of which a cell is a sixth of one at the equator
        away = u.clone()
        away[:, frame, 1, row] += 1000.0
        moved.append(value(away) - value(u))
    assert moved[1] > moved[0] > moved[2] > 0
    if loss != "reconstruction":  # there the encoder sees the change too
        cosine = [math.cos(math.radians(d)) for d in (-60, 10, 80)]
        assert moved[2] / moved[1] == pytest.approx(cosine[2] / cosine[1], rel=0.05)


def test_the_generator_learns_the_residual_to_the_mean_net() -> None:
    """With the best network for the targets at hand, F = 0 for unit data, the loss is 1 for any weight of mean 1."""
    model = emulator(globe(masked=False), parts=("mean", "generator"))
    assert model.generator is not None
    for p in (*model.generator.head.parameters(),):
        nn.init.zeros_(p)
    u, phase = 5 + 3 * torch.randn(200, 2, *globe().shape), torch.zeros(200, 2, 4)
    before, after = model.encode(u[:, :1]), model.encode(u[:, 1:])
    measure_residual(model, before, after, None)
    weight = torch.tensor([0.5, 1.0, 1.5]).reshape(3, 1, 1)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        loss = np.mean([float(generator_loss(model, u, phase, weight, generator=g)) for _ in range(5)])
        ones = generator_loss(model, u, phase, torch.ones(3, 1, 1), 0.0, torch.Generator().manual_seed(1))
        shaken = generator_loss(model, u, phase, torch.ones(3, 1, 1), 0.5, torch.Generator().manual_seed(1))
    assert loss == pytest.approx(1.0, abs=0.05)
    assert abs(float(shaken) - float(ones)) > 1e-3  # noise on the context is noise on the mean net's answer


class Linear(nn.Module):
    """A decoder with known gains: channel i is spread over the field with gain g_i."""

    bound = None

    def __init__(self, gains: Tensor) -> None:
        super().__init__()
        self.gains = gains

    def decode(self, z: Tensor) -> Tensor:
        return (self.gains.reshape(-1, 1, 1) * z).sum(dim=1, keepdim=True)


def test_the_sensitivity_of_a_linear_decoder_is_its_squared_gain() -> None:
    gains, scale = torch.tensor([0.5, 1.0, 3.0]), torch.tensor([2.0, 1.0, 0.1])
    holder: Any = nn.Module()
    holder.network = Linear(gains)
    latent = Latent(torch.randn(16, 3, 8, 8), torch.zeros(16, 1))
    found = decoder_sensitivity(holder, latent, scale, probes=8, generator=torch.Generator().manual_seed(0))
    want = (gains * scale) ** 2
    assert found.shape == (3, 1, 1) and float(found.mean()) == pytest.approx(1, rel=1e-6)
    # mean squares of 8192 normal numbers: 1.6 % each
    torch.testing.assert_close(found.flatten(), want / want.mean(), rtol=0.06, atol=0)
    again = decoder_sensitivity(holder, latent, scale, probes=8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_losses_reach_the_weights_they_train() -> None:
    model = emulator(globe(), history=2)
    u, phase = 5 + 3 * torch.randn(2, 4, *globe().shape), torch.zeros(2, 4, 4)
    rollout_loss(model, u, phase, "fast", 2, 2).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.fast.parameters())  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.mean.parameters())  # type: ignore[union-attr]
    reconstruction_loss(model.autoencoder, u, phase, 0.1).backward()
    assert all(p.grad is not None for p in model.autoencoder.network.parameters())
