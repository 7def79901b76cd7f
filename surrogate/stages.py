"""The stages of training, in their order, each a few lines: what learns, what it is shown, what it is asked for.

    autoencoder   everything between field and latent            D(E(u) + noise) = u
    error         the decoder-error model                        CRPS of what compression lost
    mean          the mean net, through the decoder, unrolled    mean square error
    generator     flow matching on the residual to the mean net  in the latent, weighted by what the decoder sees
    fast          one pass with noise, started from the mean net almost fair CRPS through the decoder, unrolled

A stage is resumed from its checkpoint, and skipped if it is complete; what the stages before it made is loaded first.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoder.training import Stage, fit
from ..datasets.datamodule import FieldData
from .emulator import Emulator
from .objectives import (
    decoder_error_loss,
    decoder_sensitivity,
    generator_loss,
    reconstruction_loss,
    rollout_loss,
)

__all__ = ["STAGES", "Shift", "run_stage", "unroll_at"]

_MEASURED = 256  # windows from which scales are measured before a stage


class Shift:
    """Random shifts along axes on which the physics is the same everywhere.

    Arguments:
        cells: for each spatial axis the period in cells by which a shift is allowed; 0 for none.
    """

    def __init__(self, cells: Sequence[int], sizes: Sequence[int], generator: torch.Generator) -> None:
        self.cells, self.sizes, self.generator = tuple(cells), tuple(sizes), generator

    def __call__(self, u: Tensor) -> Tensor:
        """``u (B, L, C, *space)``: each window by its own shift, the same for all its frames."""
        axes = [i for i, c in enumerate(self.cells) if c]
        if not axes:
            return u
        dims = [2 + i for i in axes]
        shifted = []
        for window in u:
            by = [
                self.cells[i] * int(torch.randint(self.sizes[i] // self.cells[i], (), generator=self.generator)) for i in axes
            ]
            shifted.append(torch.roll(window, by, dims))
        return torch.stack(shifted)


def unroll_at(schedule: Sequence[Sequence[float]], progress: float) -> int:
    """Frames to unroll at this share of a stage: the last entry ``[share, frames]`` that has begun."""
    return int([frames for share, frames in schedule if progress >= share][-1])


def _cut(u: Tensor, phase: Tensor, history: int, frames: int) -> tuple[Tensor, Tensor]:
    """Windows of ``history + frames``, and fewer of them the longer they are, so that a step costs about the same."""
    batch = max(1, len(u) // frames)
    return u[:batch, : history + frames], phase[:batch, : history + frames]


def _autoencoder(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, list[nn.Module], int]:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return reconstruction_loss(emulator.autoencoder, u, phase, options["noise"], generator)

    return objective, [emulator.autoencoder.network], 1


def _error(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, list[nn.Module], int]:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return decoder_error_loss(emulator, u, phase, generator)

    assert emulator.error is not None
    return objective, [emulator.error], 1


def _mean(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, list[nn.Module], int]:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        u, phase = _cut(u, phase, emulator.history, unroll_at(options["unroll"], progress))
        return rollout_loss(emulator, u, phase, "mean")

    assert emulator.mean is not None
    return objective, [emulator.mean], emulator.history + max(int(k) for _, k in options["unroll"])


def _generator(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, list[nn.Module], int]:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        if not hasattr(objective, "weight"):
            latent = emulator.autoencoder.encode(u[:, 0], phase[:, 0])
            objective.weight = decoder_sensitivity(emulator.autoencoder, latent, emulator.residual.flatten())  # type: ignore[attr-defined]
        return generator_loss(emulator, u, phase, objective.weight, options["context_noise"], generator)  # type: ignore[attr-defined]

    assert emulator.generator is not None
    return objective, [emulator.generator], emulator.history + 1


def _fast(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator) -> tuple[Any, list[nn.Module], int]:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        u, phase = _cut(u, phase, emulator.history, unroll_at(options["unroll"], progress))
        return rollout_loss(
            emulator, u, phase, "fast", options["members"], options["scales"], options["alpha"], generator
        )

    assert emulator.fast is not None
    return objective, [emulator.fast], emulator.history + max(int(k) for _, k in options["unroll"])


STAGES: dict[str, Callable[..., tuple[Any, list[nn.Module], int]]] = {
    "autoencoder": _autoencoder,
    "error": _error,
    "mean": _mean,
    "generator": _generator,
    "fast": _fast,
}


def run_stage(
    name: str,
    emulator: Emulator,
    options: Mapping[str, Any],
    data: FieldData,
    folder: Path,
    trainer: dict[str, Any],
    *,
    shift: Callable[[Tensor], Tensor],
    seed: int,
    ema: float | None,
    every: int,
) -> dict[str, Any]:
    """Train one stage, or load it if ``folder`` holds it complete; returns its record (steps, seconds, losses).

    Arguments:
        name: one of `STAGES`.
        options: the stage's entry of the training config.
        data: set up; its window length and batch size are set to what the stage needs.
        folder: for the checkpoint, the finished weights and the record.
        shift: augmentation of a batch of fields.
    """
    done, record = folder / "weights.pt", folder / "record.json"
    if done.exists() and record.exists():
        emulator.load_state_dict(torch.load(done, weights_only=True))
        return dict(json.loads(record.read_text()))
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    objective, parts, length = STAGES[name](emulator, options, generator)
    _measure(name, emulator, data, shift)
    data.length, data.batch_size = length, options["batch"]

    def shifted(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return objective(shift(u), phase, progress)  # type: ignore[no-any-return]

    stage = Stage(
        emulator, shifted, parts, options["steps"], options["lr"], cpu_minutes=options.get("cpu_minutes"),
        generator=generator, warmup=min(50, options["steps"] // 10 + 1),
    )  # fmt: skip
    fit(stage, data, folder, trainer, every, ema)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"stage": name, "steps": stage.global_step, "cpu_minutes": stage.spent / 60, "losses": stage.history}
    if stage.trainer.is_global_zero:
        torch.save(emulator.state_dict(), done)
        record.write_text(json.dumps(summary))
    return summary


@torch.no_grad()
def _measure(name: str, emulator: Emulator, data: FieldData, shift: Callable[[Tensor], Tensor]) -> None:
    """Whatever a stage needs to know of the data before it starts, from the first windows of a fixed order."""
    autoencoder, history = emulator.autoencoder, emulator.history
    data.length, data.batch_size = (1 if name == "autoencoder" else history + 1), _MEASURED
    u, phase = next(iter(data.windows("train")))
    if name == "autoencoder":
        u = shift(u)
        autoencoder.start_from(u[:, 0], phase[:, 0])
    elif name in ("mean", "generator", "fast"):
        u = shift(u)
        before, after = emulator.encode(u[:, :history], phase[:, :history]), emulator.encode(u[:, 1:], phase[:, 1:])
        if name == "mean" or (emulator.mean is None and bool((emulator.increment == 1).all())):
            emulator.measure_increment(before, after)
        if name == "generator":
            emulator.measure_residual(before, after, phase[:, history - 1])
        if name == "fast" and emulator.mean is not None:
            emulator.start_fast()

