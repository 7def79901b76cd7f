"""Who takes part in the forecast benchmark: every contender's networks, budget by stage, and training.

All but neuraloperator's FNO are configurations of lapse: the same backbone on latents or on pixels (space-to-depth
patches of 4 cells), as mean net, as one-pass net with CRPS, or as diffusion. Contenders on latents share their
autoencoder, and those with a mean net that, too; each is charged for all of it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lapse.datasets.datamodule import FieldData
from lapse.datasets.simulate import simulate
from lapse.surrogate.coarse import CoarseSolver
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.model import Model
from lapse.surrogate.package import load
from lapse.surrogate.rollout import repeat_state, rollout
from lapse.surrogate.stages import run_stage
from lapse.surrogate.train import compose, field_data, new_emulator, shifts
from lapse.surrogate.train import train as train_model
from record import ROOT, quick

# Initial states (M, C, *space) in physical units, a generator for each member, and the number of frames.
Forecaster = Callable[[Tensor, Sequence[torch.Generator], int], Iterator[Tensor]]

DATA: dict[int, dict[str, Any]] = {
    64: {"trajectories": 80, "frames": 100, "interval": 0.2, "resolution": 64, "stored": 64, "spin_up": 20.0,
         "parameters": {"viscosity": 0.012}},
    256: {"trajectories": 24, "frames": 60, "interval": 0.1, "resolution": 256, "stored": 256, "spin_up": 10.0,
          "parameters": {"viscosity": 0.001, "modes": 85}},
}  # fmt: skip

# Chosen on validation trajectories: `benchmarks/codes.py`, decisions/0003 and 0006.
CODES: dict[int, dict[str, int]] = {
    64: {"latent_channels": 12, "factor": 4, "patch": 4, "width": 64, "encoder_depth": 0, "decoder_depth": 0},
    256: {"latent_channels": 64, "factor": 16, "patch": 16, "width": 64, "encoder_depth": 0, "decoder_depth": 0},
}
MODEL_MINUTES = 10.0  # of processor time, of `packaged` and of the opponents that it is compared with
WIDTH = {64: 64, 256: 96}  # of the backbone on latents
LATENT = {64: 0.05, 256: 0.06}  # the autoencoder's share of the budget
CONTENDERS: dict[str, dict[str, Any]] = {
    "lapse-fast": {"autoencoder": "convolutional", "shares": {"mean": 0.75, "fast": 0.25}, "mode": "fast"},
    "pixel-crps": {"autoencoder": "identity", "shares": {"fast": 1.0}, "mode": "fast"},
    # Not asked for: what of lapse's lead is its recipe, and would help on pixels as well.
    "pixel-two-stage": {"autoencoder": "identity", "shares": {"mean": 0.75, "fast": 0.25}, "mode": "fast"},
    "latent-diffusion-16": {"autoencoder": "convolutional", "shares": {"generator": 1.0}, "mode": "quality"},
    "pixel-mean": {"autoencoder": "identity", "shares": {"mean": 1.0}, "mode": "mean"},
    "lapse-quality": {"autoencoder": "convolutional", "shares": {"mean": 0.75, "generator": 0.25}, "mode": "quality"},
    "pixel-diffusion-16": {"autoencoder": "identity", "shares": {"generator": 1.0}, "mode": "quality"},
    "fno": {"autoencoder": "identity", "shares": {}, "mode": "mean"},
    # Not asked for: lapse-fast that starts from a coarse run of the known equation's solver; the same with a small net,
    # since that run does most of the work; and that run alone.
    "lapse-coarse": {"autoencoder": "convolutional", "shares": {"mean": 0.75, "fast": 0.25}, "mode": "fast"},
    "lapse-coarse-small": {"autoencoder": "convolutional", "shares": {"mean": 0.75, "fast": 0.25}, "mode": "fast"},
    "coarse-solver": {"autoencoder": "identity", "shares": {}, "mode": "mean"},
}  # fmt: skip
COARSE = {64: {"resolution": 32, "steps": 4}, 256: {"resolution": 64, "steps": 5}}  # decisions/0013


def settings(size: int, data_path: Path, name: str) -> list[str]:
    """Overrides of the training config for a contender."""
    contender = CONTENDERS[name]
    pixels, started = contender["autoencoder"] == "identity", "mean" in contender["shares"]
    like = size if size in CODES else 64
    # The one-pass pixel net starts from scratch, so it first learns short unrolls, as the mean net does for lapse.
    unroll = "[[0.0,2],[0.3,4],[0.6,8],[0.85,4,16]]" if started else "[[0.0,1],[0.4,2],[0.6,4],[0.85,8]]"
    out = [
        f"data.path={data_path}", f"data.shift={{x: 1, y: {size // 4}}}", f"autoencoder={contender['autoencoder']}",
        f"emulator.parts=[{','.join(contender['shares'])}]", f"emulator.width={64 if pixels else WIDTH[like]}",
        "emulator.depth=6", "emulator.position=4", f"data.heads={'[]' if pixels else 'auto'}",
        "training.mean.batch=8", "training.mean.unroll=[[0.0,1],[0.4,2],[0.7,4]]", "training.generator.batch=8",
        "training.autoencoder.batch=4", "training.fast.batch=8", f"training.fast.unroll={unroll}",
        f"training.fast.lr={4e-4 if started else 3e-3}",
        f"emulator.sampling_steps={16 if 'diffusion' in name else 8}",
    ]  # fmt: skip
    if name.startswith("lapse-coarse"):
        out.append(f"emulator.coarse={COARSE[like]}".replace("'", ""))
    if name == "lapse-coarse-small":
        out += ["emulator.width=32", "emulator.depth=3"]
    if not pixels:
        out += [f"autoencoder.{key}={value}" for key, value in CODES[like].items()]
        out.append("training.autoencoder.noise=0.02")
    if quick():
        out += ["emulator.width=8", "emulator.depth=1", *([] if pixels else ["autoencoder.width=8"])]
    return out


def budget(name: str, size: int) -> dict[str, float]:
    """Shares of the budget by stage, in the order of training."""
    shares: dict[str, float] = CONTENDERS[name]["shares"]
    if CONTENDERS[name]["autoencoder"] == "identity":
        return shares
    own = LATENT.get(size, LATENT[64])
    return {"autoencoder": own, **{stage: (1 - own) * share for stage, share in shares.items()}}


def recipe(name: str, size: int, minutes: float) -> str:
    """A hash of all that was decided about a contender: scores of another recipe are not its scores."""
    return _hash([DATA.get(size), settings(size, Path("data"), name), budget(name, size), minutes])


def common(name: str, size: int, minutes: float, stage: str) -> str:
    """A hash of all that was decided about a stage that contenders share."""
    kinds = ("data.", "autoencoder", "emulator.width", "emulator.depth", "emulator.position", "training.autoencoder")
    kinds = (*kinds, "training.mean", "emulator.coarse") if stage == "mean" else kinds
    given = [s for s in settings(size, Path("data"), name) if s.startswith(kinds)]
    shares = {k: v for k, v in budget(name, size).items() if k in ("autoencoder", stage)}
    return _hash([DATA.get(size), given, shares, minutes])


def _hash(given: list[Any]) -> str:
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:12]


def prepare(size: int, folder: Path) -> tuple[Path, int]:
    """The data of that size, made where it is missing, and its size; under QUICK=1 a small one in ``folder``."""
    path, plan = ROOT / "data" / f"kolmogorov{size}.zarr", DATA[size]
    if quick():
        small = {"trajectories": 10, "frames": 30, "spin_up": 2.0, "resolution": 32, "stored": 32}
        path, plan, size = folder / "quick.zarr", plan | small | {"parameters": {"viscosity": 0.05}}, 32
    simulate("kolmogorov", path, seed=1, shard=2 if quick() else 4, batch=4, resume=True, **plan)
    return path, size


def train(
    name: str, size: int, seed: int, minutes: float, data_path: Path, folder: Path
) -> tuple[Forecaster, FieldData, dict[str, int], Emulator | None]:
    """A trained contender, its data, its steps by stage, and its emulator where it has one."""
    if name == "fno":
        forecast, data, steps = train_fno(size, seed, minutes, data_path, folder)
        return forecast, data, {"fno": steps}, None
    config = compose([*settings(size, data_path, name), f"seed={seed}"])
    torch.manual_seed(seed)
    data = field_data(config)
    if name == "coarse-solver":
        return solve(CoarseSolver(data.spec, **COARSE.get(size, COARSE[64]))), data, {}, None
    emulator, steps_by_stage = new_emulator(config, data), {}
    for index, (stage, share) in enumerate(budget(name, size).items()):
        options = {**config["training"][stage], "steps": 10**7, "cpu_minutes": share * minutes}
        # What contenders have in common is trained once and charged to each.
        shared = stage in ("autoencoder", "mean") and CONTENDERS[name]["autoencoder"] == "convolutional"
        alike = f"{stage}-{seed}-{common(name, size, minutes, stage)}"
        where = folder.parent / alike if shared else folder / stage
        steps_by_stage[stage] = run_stage(
            stage, emulator, options, data, where, {**config["trainer"], "enable_progress_bar": False},
            shift=shifts(config, data.spec)(seed + index), seed=seed + index, ema=config["training"]["ema"], every=500,
        )["steps"]  # fmt: skip
    emulator.eval()
    return emulate(emulator, CONTENDERS[name]["mode"]), data, steps_by_stage, emulator


def packaged(folder: Path | None = None, data_path: Path | None = None, overrides: Sequence[str] = ()) -> Model:
    """lapse-fast at 64² after `MODEL_MINUTES`, as a model with all that a package has; trained where it is not there.

    The shipped kolmogorov64 had an accelerator's six minutes, which no opponent on a processor can be given.
    """
    folder = folder or ROOT / "benchmarks" / "work" / f"kolmogorov64-{MODEL_MINUTES:g}"
    if not (folder / "model" / "spec.json").exists():
        path = data_path or prepare(64, folder)[0]
        shares = {"autoencoder": 0.05, "error": 0.02, "mean": 0.7, "fast": 0.23}
        config = compose([
            *settings(64, path, "lapse-fast"), f"out={folder}", f"name={folder.name}",
            "emulator.parts=[mean,fast,error]", f"training.stages=[{','.join(shares)}]",
            *(f"training.{stage}.steps=10000000" for stage in shares),
            *(f"training.{stage}.cpu_minutes={MODEL_MINUTES * share}" for stage, share in shares.items()), *overrides,
        ])  # fmt: skip
        train_model(config, progress=False)
    return load(folder / "model")


def emulate(emulator: Emulator, mode: Any) -> Forecaster:
    """An emulator as a forecaster."""

    def run(u: Tensor, generators: Sequence[torch.Generator], frames: int) -> Iterator[Tensor]:
        state = emulator.encode(u[:, None])
        if len(u) == 1 and len(generators) > 1:
            state = repeat_state(state, len(generators))
        for _, fields in rollout(emulator, state, frames, mode, generators):
            yield fields

    return run


def solve(solver: CoarseSolver) -> Forecaster:
    """The solver on its coarse grid; finer modes stay as they are."""

    def run(u: Tensor, generators: Sequence[torch.Generator], frames: int) -> Iterator[Tensor]:
        u = u.expand(max(1, len(generators)), *u.shape[1:]) if len(u) == 1 else u
        for _ in range(frames):
            u = solver(u)
            yield u

    return run


@dataclass
class NoisyInput:
    """A deterministic net as a forecaster; members differ by noise on the input, in normalised units."""

    net: nn.Module
    normaliser: nn.Module
    noise: float = 0.0

    def __call__(self, u: Tensor, generators: Sequence[torch.Generator], frames: int) -> Iterator[Tensor]:
        x = self.normaliser(u)
        if len(generators) > 1 and self.noise:
            x = x + self.noise * torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
        for _ in range(frames):
            x = self.net(x)
            yield self.normaliser.inverse(x)


class PlainFNO(nn.Module):
    """neuraloperator's FNO as a next-frame net on normalised fields, with the position of the force as input."""

    def __init__(self, channels: int, space: Sequence[int], modes: int = 24, hidden: int = 32) -> None:
        super().__init__()
        from neuralop.models import FNO

        modes = min(modes, space[0] // 2)
        self.net = FNO((modes, modes), channels, channels, hidden, n_layers=4, positional_embedding="grid")
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.net(x)


def train_fno(
    size: int, seed: int, minutes: float, data_path: Path, folder: Path, overrides: Sequence[str] = ()
) -> tuple[NoisyInput, FieldData, int]:
    """The FNO, its data, and its steps; its noise is still to be chosen."""
    config = compose([*settings(size, data_path, "fno"), f"seed={seed}", *overrides])
    torch.manual_seed(seed)
    data = field_data(config)
    normaliser, shift = data.normaliser, shifts(config, data.spec)(seed)
    data.length, data.batch_size = 3, 8
    net = PlainFNO(len(data.spec.names), data.spec.grid.shape, hidden=8 if quick() else 32, modes=4 if quick() else 24)
    loader = data.train_dataloader()
    first = next(iter(data.windows("train"))).fields
    net.scale = float((normaliser(first[:, 1]) - normaliser(first[:, 0])).square().mean().sqrt())
    saved, step = folder / "fno.pt", 0
    if saved.exists():
        kept = torch.load(saved, weights_only=True)
        step = kept.pop("steps")
        net.net.load_state_dict(kept, strict=False)
    else:
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
        begin, seconds, progress = time.process_time(), 60 * minutes, 0.0
        while progress < 1:
            for batch in loader:
                progress = (time.process_time() - begin) / seconds
                if progress >= 1:
                    break
                for group in optimiser.param_groups:
                    group["lr"] = 2e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress))
                frames = 1 if progress < 0.7 else 2
                u = normaliser(shift(batch.fields[: 8 // frames]))
                x, loss = u[:, 0], torch.zeros(())
                for k in range(1, frames + 1):
                    x = net(x)
                    loss = loss + (x - u[:, k]).square().mean() / frames
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
                step += 1
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({k: v for k, v in net.net.state_dict().items() if k != "_metadata"} | {"steps": step}, saved)
    return NoisyInput(net.eval(), normaliser), data, step
