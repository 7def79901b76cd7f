"""The figures of an autoencoder, against numpy by hand, and the residual floor of the solver's own frames."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from lapse.autoencoder.assess import assess, pca_error, residual_floor, vrmse
from lapse.autoencoder.model import Autoencoder
from lapse.datasets.datamodule import FieldData
from lapse.datasets.normalise import Normaliser
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.equation import equation
from lapse.physics.grid import Grid
from lapse.surrogate.skill import starts

INTERVAL = 0.2


def weights() -> torch.Tensor:
    """Of two variables on a 6 x 8 grid: rows of unequal area, and a mask on the second."""
    area = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)[:, None].expand(6, 8)
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[1, 2:4, 3:6] = False
    return area * mask


def test_vrmse_by_hand() -> None:
    w = weights()
    truth, u = torch.randn(5, 2, 6, 8) + 3, torch.randn(5, 2, 6, 8)
    want = []
    for c in range(2):
        wc, t, x = w[c].numpy(), truth[:, c].double().numpy(), u[:, c].double().numpy()
        error = spread = 0.0
        for frame, guess in zip(t, x, strict=True):
            error += np.average((guess - frame) ** 2, weights=wc)
            spread += np.average((frame - np.average(frame, weights=wc)) ** 2, weights=wc)
        want.append((error / spread) ** 0.5)
    np.testing.assert_allclose(vrmse(u, truth, w).numpy(), want, rtol=1e-12)
    spoilt = u.clone()
    spoilt[:, 1, 2:4, 3:6] = 1e9  # under the mask
    torch.testing.assert_close(vrmse(spoilt, truth, w), vrmse(u, truth, w), rtol=0, atol=0)
    assert torch.equal(vrmse(truth, truth, w), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("frames", [20, 200])  # fewer and more than there are numbers in a field
def test_pca_error_is_that_of_a_singular_value_decomposition(frames: int) -> None:
    w, count = weights(), 7
    mixing = torch.randn(12, 96)
    train = (torch.randn(frames, 12) @ mixing).reshape(frames, 2, 6, 8) + torch.linspace(0, 1, 8)
    test = (torch.randn(30, 12) @ mixing).reshape(30, 2, 6, 8) + torch.linspace(0, 1, 8)
    root = np.sqrt(w.numpy()).ravel()
    mean = train.double().numpy().reshape(frames, -1).mean(axis=0)
    modes = np.linalg.svd((train.double().numpy().reshape(frames, -1) - mean) * root)[2][:count]
    scaled = (test.double().numpy().reshape(30, -1) - mean) * root
    kept = np.divide(scaled @ modes.T @ modes, root, out=np.zeros_like(scaled), where=root > 0) + mean
    want = vrmse(torch.from_numpy(kept.reshape(30, 2, 6, 8)), test, w)
    found = pca_error(train, test, w, count)
    torch.testing.assert_close(found, want, rtol=1e-8, atol=0)
    assert (found > 0.1).all()
    assert pca_error(train, test, w, 96).max() < 1e-4  # twelve would do
    assert pca_error(train, train, w, 12).max() < 1e-5


@pytest.fixture(scope="module")
def flow() -> tuple[Any, torch.Tensor]:
    """Kolmogorov flow on 32², from two unlike starts: (law, frames (2, 6, 1, 32, 32) float32)."""
    law = equation("kolmogorov", Grid.periodic_box(32), viscosity=0.05)
    u = law.spin_up(torch.Generator().manual_seed(0), 2, duration=2.0, dtype=torch.float64)
    frames = [u]
    for _ in range(5):
        frames.append(law.advance(frames[-1], INTERVAL))
    return law, torch.stack(frames, dim=1).float()


def test_the_floor_of_the_solver_s_own_frames_is_round_off(flow: tuple[Any, torch.Tensor]) -> None:
    law, u = flow
    pairs = u.unfold(1, 2, 1).movedim(-1, 2).flatten(0, 1)
    noisy = pairs + 0.01 * pairs.std() * torch.randn(pairs.shape)
    floor = residual_floor(law, pairs, noisy, INTERVAL)
    assert floor["data"] < 1e-6  # float32 holds no more
    assert 0.01 < floor["reconstruction"] < 0.02  # noise of both frames, the first one's damped on the way
    assert floor["ratio"] == pytest.approx(floor["reconstruction"] / floor["data"])
    # the end of one trajectory and the begin of the next are no pair: that is what pairs are for
    broken = residual_floor(law, torch.stack([u[:1, -1], u[1:, 0]], dim=1), pairs[:1], INTERVAL)
    assert broken["data"] > 0.3


def dataset(u: torch.Tensor) -> xr.Dataset:
    n = u.shape[-1]
    return xr.Dataset(
        {"vorticity": (("trajectory", "time", "y", "x"), u[:, :, 0].numpy(), {"units": "s-1"})},
        {
            "time": ("time", INTERVAL * np.arange(u.shape[1]), {"units": "s"}),
            "y": ("y", 2 * np.pi * np.arange(n) / n, {"units": "m"}),
            "x": ("x", 2 * np.pi * np.arange(n) / n, {"units": "m"}),
        },
    )


def test_pairs_of_a_split_never_cross_trajectories(flow: tuple[Any, torch.Tensor]) -> None:
    """The residual floor through the data module, of a split that several trajectories share."""
    law, u = flow
    data = FieldData(
        dataset(u), 3, 4, infer={"periodic": {"y": True, "x": True}}, fractions=(0.5, 0.0, 0.5), by="time"
    )
    data.setup()
    pairs, phase = starts(data, "test", 2, 64)
    assert pairs.shape == (4, 2, 1, 32, 32) and phase.shape == (4, 2, 4)
    assert residual_floor(law, pairs, pairs, INTERVAL)["data"] < 1e-6
    known = [f for k in range(2) for f in u[k]]
    for a, b in pairs:
        i, j = (next(n for n, f in enumerate(known) if torch.equal(f, x)) for x in (a, b))
        assert j == i + 1 and i != 5
    assert starts(data, "train", 2, 3)[0].shape[:2] == (3, 2)
    assert (data.length, data.eval_length, data.eval_stride, data.batch_size) == (3, 3, 3, 4)


def test_assess_says_it_all_in_json(flow: tuple[Any, torch.Tensor]) -> None:
    law, u = flow
    spec = FieldSpec((Variable("vorticity", "s-1"),), Grid.periodic_box(32), INTERVAL, "s", equation="kolmogorov")
    frames = u.flatten(0, 1)
    phase = torch.zeros(len(frames), 4)
    ae = Autoencoder(spec, Normaliser(spec).fit([frames]), "convolutional", latent_channels=4, width=8,
                     encoder_depth=1, decoder_depth=1)  # fmt: skip
    ae.start_from(frames)
    pairs = u.unfold(1, 2, 1).movedim(-1, 2).flatten(0, 1), torch.zeros(10, 2, 4)
    found = assess(ae, (frames, phase), (frames, phase), law, pairs)
    json.dumps(found)
    assert found["frames"] == 12 and found["latent_numbers"] == 4 * 8 * 8 and found["compression"] == 4.0
    with torch.no_grad():
        decoded = ae.decode(ae.encode(frames))
    about = frames - frames.mean(dim=(2, 3), keepdim=True)
    assert found["vrmse"]["vorticity"] == pytest.approx(float((decoded - frames).norm() / about.norm()), rel=1e-5)
    k = np.fft.fftfreq(32, 1 / 32)
    k = np.rint(np.hypot(k[:, None], k))
    power, error = (np.abs(np.fft.fft2(x[:, 0].double().numpy())) ** 2 for x in (frames, decoded - frames))
    edges = (0.5, 0.5 * 32 ** (1 / 3), 0.5 * 32 ** (2 / 3), np.inf)
    inside = [(a <= k) & (k < b) for a, b in itertools.pairwise(edges)]
    want = [(error[:, i].sum() / power[:, i].sum()) ** 0.5 for i in inside]
    np.testing.assert_allclose(found["bands"]["vorticity"], want, rtol=1e-4)
    assert found["pca"]["vorticity"] < 1e-4  # twelve frames need twelve numbers
    assert found["encode_ms"] > 0 and found["decode_ms"] > 0
    floor = found["residual_floor"]
    assert floor["data"] < 1e-6 < floor["reconstruction"] and floor["ratio"] > 1
    assert "residual_floor" not in assess(ae, (frames, phase), (frames, phase))
    identity = Autoencoder(spec, Normaliser(spec).fit([frames]), "identity")
    lossless = assess(identity, (frames, phase), (frames, phase), law, pairs)
    assert lossless["vrmse"]["vorticity"] < 1e-6 and lossless["residual_floor"]["ratio"] < 3
