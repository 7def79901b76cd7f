"""Compression and exactness: what the shipped autoencoder keeps against PCA, and what every sample conserves.

    python benchmarks/latents.py

The error of `kolmogorov64` is taken on its test split (the same seed and split as in training); the data is made if
it is missing. Exactness does not depend on training, so the heads are also tried on models with random weights, on
shallow water (mass, positive depth) and on velocities (divergence), for members of every mode after twenty frames.
"""

import time

import torch
from torch import Tensor

from lapse.autoencoder.assess import assess
from lapse.datasets.simulate import simulate
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.constraints import divergence
from lapse.physics.grid import Grid
from lapse.surrogate.card import gather
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.law import law
from lapse.surrogate.noise import member_generator
from lapse.surrogate.package import build, load
from lapse.surrogate.rollout import repeat_state, rollout
from lapse.surrogate.skill import starts
from lapse.surrogate.train import compose, field_data
from record import ROOT, Row, quick, record, show

MEMBERS, FRAMES = 4, 20


def compression() -> list[Row]:
    """Error of the shipped model against PCA with as many numbers."""
    config = compose(["experiment=kolmogorov64", f"data.path={ROOT / 'data' / 'kolmogorov64.zarr'}"])
    simulate("kolmogorov", config["data"]["path"], trajectories=80, frames=100, interval=0.2, resolution=64, stored=64,
             spin_up=20.0, seed=1, shard=4, batch=4, resume=True)  # fmt: skip
    model, data = load("kolmogorov64"), field_data(config)
    kept, test = model.emulator.autoencoder, gather(data, "test", 400)
    figures = assess(kept, gather(data, "train", 6000), test, law(model.spec), starts(data, "test", 2, 8))
    error, pca = figures["vrmse"]["vorticity"], figures["pca"]["vorticity"]
    rows = [
        Row("4 compression, kolmogorov64", figures["compression"], None, ">= 8", "times fewer numbers"),
        Row("4 error / PCA with as many numbers, kolmogorov64", error / pca, None, "<= 0.5", "ratio"),
        Row("4 VRMSE, kolmogorov64", error, None, None, "1"),
        Row("4 VRMSE of PCA with as many numbers", pca, None, None, "1"),
        Row("4 encode, kolmogorov64", figures["encode_ms"], None, None, "ms a frame"),
        Row("4 decode, kolmogorov64", figures["decode_ms"], None, None, "ms a frame"),
    ]
    for band, value in zip(("low", "middle", "high"), figures["bands"]["vorticity"], strict=True):
        rows.append(Row(f"4 relative error in {band} wavenumbers, kolmogorov64", value, None, None, "1"))
    floor = figures["residual_floor"]
    rows.append(
        Row("4 residual floor after decoding, kolmogorov64", floor["reconstruction"], None, None, "of the field's rms")
    )
    rows.append(Row("4 residual of the data, kolmogorov64", floor["data"], None, None, "of the field's rms"))
    return rows


def random_model(spec: FieldSpec, heads: list[str], dtype: torch.dtype) -> Emulator:
    """A model with random weights and the given heads."""
    torch.manual_seed(0)
    config = {
        "normaliser": {},
        "autoencoder": {"network": "convolutional", "latent_channels": 4, "factor": 4, "width": 16, "heads": heads},
        "emulator": {"width": 16, "depth": 2, "sampling_steps": 4, "parts": ["mean", "generator", "fast", "error"]},
    }
    net = build(spec, config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return net.to(dtype).eval()


@torch.no_grad()
def samples(net: Emulator, u: Tensor) -> dict[str, Tensor]:
    """The last frame of every mode's rollout from ``u (1, 1, C, *space)``, ``(members, C, *space)``."""
    out = {}
    for mode in net.modes:
        generators = [member_generator(0, 0.0, m) for m in range(MEMBERS)]
        for _, fields in rollout(net, repeat_state(net.encode(u), MEMBERS), FRAMES, mode, generators):
            out[mode] = fields
    return out


def exactness() -> list[Row]:
    """Worst violation over all modes and members, relative to the field's own size."""
    n = 32 if quick() else 64
    grid = Grid.periodic_box(n)
    g = torch.Generator().manual_seed(0)
    along_x = Variable("u", "m s-1", "vector", "x", group="velocity", std=1.0)
    along_y = Variable("v", "m s-1", "vector", "y", group="velocity", std=1.0)
    depth = Variable("h", "m", "positive", std=1.0)
    vorticity = Variable("vorticity", "s-1", std=1.0)
    cases = {
        "mean": ((vorticity,), ["mean"], torch.randn(1, 1, 1, n, n, generator=g) + 3),
        "mass": ((along_x, along_y, depth), ["positive", "mass"], torch.rand(1, 1, 3, n, n, generator=g) + 0.5),
        "divergence": ((along_x, along_y), ["divergence_free", "mean"], torch.randn(1, 1, 2, n, n, generator=g)),
    }
    rows = []
    for name, (variables, heads, u) in cases.items():
        spec = FieldSpec(variables, grid, 0.2, "s")
        worst = 0.0
        for fields in samples(random_model(spec, heads, torch.float32), u).values():
            x = fields.double()
            if name == "divergence":
                scale = x.square().mean().sqrt() * n / 2
                worst = max(worst, float(divergence(x, grid).abs().max() / scale))
            else:
                channel = 2 if name == "mass" else 0
                before = u[0, 0, channel].double().mean()
                worst = max(worst, float((x[:, channel].mean(dim=(1, 2)) / before - 1).abs().max()))
        rows.append(
            Row(f"4 {name} after decoding, worst of all modes and members, fp32", worst, None, "<= 1e-6", "relative")
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows = exactness() + ([] if quick() else compression())
    path = record("latents", rows, (time.perf_counter() - begin) / 60)
    show(rows, path)


if __name__ == "__main__":
    main()
