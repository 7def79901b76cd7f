"""Training of a static generator: its autoencoder first, if it has one to learn, then the generator on its latents.

Both stages share one budget, of steps or of processor time, and are resumed from their checkpoints; a finished one is
loaded. What a step draws is a function of (seed, step), as in every stage of lapse.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.training import Objective, Stage, fit
from ..datasets.datamodule import FieldData
from .objectives import reconstruction_loss
from .static import Physics, StaticGenerator

__all__ = ["train_static"]

EXAMPLES = 2048  # fields from which the latents' moments are measured
STARTS = 512  # from which the autoencoder starts


def train_static(
    model: StaticGenerator,
    data: FieldData,
    folder: str | Path,
    *,
    steps: int = 3000,
    cpu_minutes: float | None = None,
    share: float = 0.3,
    batch: int = 16,
    lr: float = 2e-3,
    noise: float = 0.05,
    physics: Physics | None = None,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    every: int = 1000,
) -> dict[str, int]:
    """Train a model on the training split, and leave it ready to draw; returns the steps of each stage.

    Arguments:
        model: with an untrained autoencoder whose normaliser is the data's.
        data: set up.
        folder: for checkpoints and finished weights.
        steps, cpu_minutes: of both stages together; processor time instead of steps, if given.
        share: of the budget for the autoencoder, if it learns at all.
        batch, lr: of both.
        noise: largest latent noise that the decoder is trained under.
        physics: what the generator is to heed beside the data.
        trainer: keyword arguments of `lightning.Trainer`.
        every: steps between checkpoints.
    """
    folder, autoencoder = Path(folder), model.autoencoder
    data.length, data.batch_size = 1, batch
    examples, n = [], 0
    for u, _ in data.frames("train"):
        examples.append(u)
        n += len(u)
        if n >= EXAMPLES:
            break
    sample = torch.cat(examples)[:EXAMPLES]
    learns = any(True for _ in autoencoder.network.parameters())
    generator = torch.Generator()
    taken: dict[str, int] = {}

    def stage(name: str, objective: Objective, part: nn.Module, portion: float) -> None:
        done = folder / name / "weights.pt"
        if done.exists():
            kept = torch.load(done, weights_only=True)
            model.load_state_dict(kept["state"])
            taken[name] = int(kept["steps"])
            return
        budget = None if cpu_minutes is None else portion * cpu_minutes
        total = max(1, round(portion * steps)) if cpu_minutes is None else 10**9
        run = Stage(model, objective, [part], total, lr, cpu_minutes=budget, seed=seed, generators=(generator,))
        fit(run, data, folder / name, {"accelerator": "cpu", "enable_progress_bar": False, **(trainer or {})}, every)
        taken[name] = int(run.global_step)
        done.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": model.state_dict(), "steps": taken[name]}, done.with_suffix(".part"))
        done.with_suffix(".part").replace(done)  # whole or not at all

    def reconstruct(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return reconstruction_loss(autoencoder, u, phase, noise, generator)

    def generate(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return model.loss(u[:, 0], physics, progress, generator)

    if learns:
        autoencoder.start_from(sample[:STARTS])
        stage("autoencoder", reconstruct, autoencoder.network, share)
    model.measure(sample)
    stage("generator", generate, model.backbone, 1 - share if learns else 1.0)
    model.eval().requires_grad_(False)
    return taken
