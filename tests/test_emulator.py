"""The dynamics on latents: what starts as what, what noise is needed, what is never exceeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lapse.autoencoder.model import Autoencoder
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Grid
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.preparation import measure_increment, measure_residual, start_fast
from lapse.surrogate.state import State

PARTS = ("mean", "generator", "fast", "error")


def emulator(**options: Any) -> Emulator:
    """On a 16 x 24 box, latents 3 x 4 x 6, with weights that are not zero."""
    spec = FieldSpec((Variable("q", "1"), Variable("p", "1")), Grid.periodic_box((16, 24)), 1.0, "s")
    ae = Autoencoder(
        spec, Normaliser(spec), "convolutional", latent_channels=3, width=8, encoder_depth=1, decoder_depth=1
    )
    model = Emulator(ae, **{"width": 8, "depth": 2, "parts": PARTS, **options}).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith(("autoencoder", "error")):
                p.add_(0.05 * torch.randn(p.shape))
    return model


def a_state(model: Emulator, batch: int = 3) -> tuple[State, torch.Tensor]:
    phase = torch.nn.functional.normalize(torch.randn(batch, 4), dim=1)
    state = model.encode(torch.randn(batch, model.history, 2, 16, 24), torch.randn(batch, model.history, 4))
    return state, phase


@pytest.mark.parametrize("calendar", [False, True])
@pytest.mark.parametrize(("history", "position"), [(1, 0), (2, 3)])
def test_the_fast_net_starts_as_the_mean_net(calendar: bool, history: int, position: int) -> None:
    model = emulator(calendar=calendar, history=history, position=position)
    start_fast(model)
    state, phase = a_state(model)
    size = model.noise_size("fast")
    mean = model.advance(state, None, phase, "mean").z[:, -1]
    without = model.advance(state, torch.zeros(3, size), phase, "fast").z[:, -1]
    if calendar:  # the condition's first layer is copied too
        torch.testing.assert_close(without, mean, rtol=1e-5, atol=1e-6)
    else:
        # the mean net has no condition at all, so the fast net's own, which starts as nothing, is what is left
        for block in model.fast.blocks:  # type: ignore[union-attr]
            torch.nn.init.zeros_(block.modulation.linear.weight)  # type: ignore[union-attr,arg-type]
            torch.nn.init.zeros_(block.modulation.linear.bias)  # type: ignore[union-attr,arg-type]
        without = model.advance(state, torch.zeros(3, size), phase, "fast").z[:, -1]
        torch.testing.assert_close(without, mean, rtol=1e-5, atol=1e-6)
    noisy = model.advance(state, torch.randn(3, size), phase, "fast").z[:, -1]
    change = (mean - state.z[:, -1]).square().mean().sqrt()
    deviation = (noisy - mean).square().mean().sqrt()
    assert 0 < deviation < 0.5 * change


def test_what_blew_up_is_seen() -> None:
    model = emulator()
    state, _ = a_state(model)
    state.z[1] = torch.nan
    later = model.advance(state, torch.randn(3, model.noise_size("fast")))
    assert later.z.flatten(1).isfinite().all(dim=1).tolist() == [True, False, True]


def test_noise_sizes_are_those_of_the_maps() -> None:
    model = emulator(noise_maps=2, noise_vector=5)
    assert model.noise_size("mean") == 0
    assert model.noise_size("fast") == 2 * 4 * 6 + 5
    assert model.noise_size("quality") == 3 * 4 * 6
    grids = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert model.decode_noise_size == 2 * sum(a * b for a, b in grids)
    assert emulator(parts=("mean",)).decode_noise_size == 0


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_members_differ_by_their_noise_only(mode: Any) -> None:
    model = emulator(history=2)
    state, _ = a_state(model, 1)
    three = State(state.z.expand(3, -1, -1, -1, -1), state.carried.expand(3, -1))
    noise = torch.randn(2, model.noise_size(mode))
    with torch.no_grad():
        out = model.advance(three, torch.cat([noise, noise[:1]]), mode=mode)
        alone = model.advance(state, noise[1:], mode=mode)
    torch.testing.assert_close(out.z[0], out.z[2])
    torch.testing.assert_close(out.z[1:2], alone.z, rtol=1e-5, atol=1e-6)
    assert (out.z[0, -1] - out.z[1, -1]).abs().max() > 1e-3


def test_history_moves_on_by_one_frame() -> None:
    model = emulator(history=3)
    state, _ = a_state(model)
    later = model.advance(state, mode="mean")
    assert torch.equal(later.z[:, :2], state.z[:, 1:])
    assert torch.equal(later.carried, state.carried)
    # and every frame of it matters
    for k in range(3):
        other = State(state.z.clone(), state.carried)
        other.z[:, k] += 0.1
        moved = model.advance(other, mode="mean").z[:, -1]
        assert not torch.allclose(moved, later.z[:, -1] + 0.1 * (k == 2), atol=1e-4)


def test_what_is_carried_is_that_of_the_newest_frame() -> None:
    model = emulator(history=2)
    u = torch.randn(1, 2, 2, 16, 24)
    state = model.encode(u)
    torch.testing.assert_close(state.carried, u[:, 1].double().mean(dim=(-2, -1)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(state.latent.z, model.autoencoder.encode(u[:, 1]).z)


def test_with_nothing_to_add_quality_is_the_mean_net() -> None:
    model = emulator()
    state, _ = a_state(model)
    with torch.no_grad():
        model.residual.zero_()
        quality = model.advance(state, torch.randn(3, model.noise_size("quality")), mode="quality")
        torch.testing.assert_close(quality.z, model.advance(state, mode="mean").z)


def test_scales_are_measured_per_channel() -> None:
    model = emulator()
    scale = torch.tensor([0.1, 1.0, 10.0]).reshape(3, 1, 1)
    before = State(torch.randn(400, 1, 3, 4, 6), torch.zeros(400, 2))
    after = State(before.z + scale * torch.randn(400, 1, 3, 4, 6), before.carried)
    measure_increment(model, before, after)
    torch.testing.assert_close(model.increment, scale, rtol=0.03, atol=0)
    with torch.no_grad():
        predicted = model.predict_mean(before, model.context(before), None)
    exact = State((predicted + 0.5 * scale * torch.randn(400, 3, 4, 6))[:, None], before.carried)
    measure_residual(model, before, exact, None)
    torch.testing.assert_close(model.residual, 0.5 * scale, rtol=0.03, atol=0)


@pytest.mark.parametrize("parts", [("mean",), ("fast",), ("generator",), ("mean", "fast"), PARTS])
def test_modes_are_those_of_the_parts(parts: tuple[str, ...]) -> None:
    model = emulator(parts=parts)
    needs = {"mean": "mean", "fast": "fast", "quality": "generator"}
    assert set(model.modes) == {mode for mode, part in needs.items() if part in parts}
    assert list(model.modes) == [m for m in ("fast", "quality", "mean") if m in model.modes]  # the default first
    state, _ = a_state(model)
    for mode, part in needs.items():
        noise = torch.randn(3, model.noise_size(mode))  # type: ignore[arg-type]
        if part in parts:
            assert model.advance(state, noise, mode=mode).z.isfinite().all()  # type: ignore[arg-type]
        else:
            with pytest.raises(ValueError, match=f"no {part!r} network"):
                model.advance(state, noise, mode=mode)  # type: ignore[arg-type]


def test_misuse_is_said() -> None:
    model = emulator(calendar=True, history=2)
    state, phase = a_state(model)
    with pytest.raises(ValueError, match="need 2 context frames, got 1"):
        model.encode(torch.randn(1, 1, 2, 16, 24))
    with pytest.raises(ValueError, match="phase of the year"):
        model.advance(state, torch.randn(3, model.noise_size("fast")))
    with pytest.raises(ValueError, match=r"found noise none, wanted \(3, 112\)"):
        model.advance(state, None, phase)
    with pytest.raises(ValueError, match=r"found noise \(3, 5\)"):
        model.advance(state, torch.randn(3, 5), phase)
    with pytest.raises(ValueError, match="unknown mode 'slow'; known: mean, quality, fast"):
        model.advance(state, torch.randn(3, 5), phase, mode="slow")  # type: ignore[arg-type]


def test_a_config_builds_the_same_model() -> None:
    model = emulator(history=2, calendar=True, noise_maps=3, sampler="heun")
    twin = Emulator(model.autoencoder, **{**model.config, "parts": tuple(model.config["parts"])})
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config
