"""The stages of training, in their order, each a few lines: what learns, what it is shown, what it is asked for.

    autoencoder   everything between field and latent            D(E(u) + noise) = u
    error         the decoder-error model                        CRPS of what compression lost
    mean          the mean net, through the decoder, unrolled    mean square error
    generator     flow matching on the residual to the mean net  in the latent, weighted by what the decoder sees
    fast          one pass with noise, started from the mean net almost fair CRPS through the decoder, unrolled
    correction    the gain that turns changes of fields to ones of latents  the least change of the latents that does it
    operator      the latent residual operator             the solver's next frame of any state that a forecast meets

A stage is resumed from its checkpoint, and skipped if it is complete; what the stages before it made is loaded first.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from ..autoencoder.training import Stage, fit
from ..datasets.datamodule import FieldData
from . import preparation
from .climate import periods
from .emulator import Emulator
from .law import law
from .objectives import (
    correction_loss,
    decoder_error_loss,
    decoder_sensitivity,
    field_weights,
    generator_loss,
    operator_loss,
    reconstruction_loss,
    rollout_loss,
)
from .pool import Pool, label_pool
from .regression import fit_propagator

__all__ = ["STAGES", "Shift", "run_stage", "unroll_at"]

_LEARNED = {
    "autoencoder": ("autoencoder.",),
    "error": ("error.",),
    "mean": ("mean.", "increment", "propagator."),
    "generator": ("generator.", "increment", "residual", "propagator."),
    "fast": ("fast.", "increment", "propagator."),
    "correction": ("correction.",),
    "operator": ("operator.",),
}  # what of a model's state a stage is responsible for
_MEASURED = 256  # windows from which scales are measured before a stage
_HORIZON = 8  # frames by which a linear start is chosen for a stage that does not unroll


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
            draws = [int(torch.randint(self.sizes[i] // self.cells[i], (), generator=self.generator)) for i in axes]
            shifted.append(torch.roll(window, [self.cells[i] * n for i, n in zip(axes, draws, strict=True)], dims))
        return torch.stack(shifted)


def unroll_at(schedule: Sequence[Sequence[float]], progress: float) -> tuple[int, int]:
    """Frames to unroll at this share of a stage, and the most that are run free before them.

    That is the last entry ``[share, frames]`` or ``[share, frames, most]`` that has begun.
    """
    frames, *most = [entry[1:] for entry in schedule if progress >= entry[0]][-1]
    return int(frames), int(most[0]) if most else 0


def _cut(
    u: Tensor, phase: Tensor, history: int, frames: int, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, int]:
    """Windows of ``history + free + frames``, and ``free``, drawn from 0 to ``most`` so that early leads count, too.

    There are fewer windows the longer they are, so that a step costs about the same: a frame without a gradient costs
    a third of one with it.
    """
    free = int(torch.randint(most + 1, (), generator=generator)) if most else 0
    batch, length = max(1, int(len(u) / (frames + free / 3))), history + free + frames
    return u[:batch, :length], phase[:batch, :length], free


@dataclass
class Plan:
    """What a stage trains: an objective, the modules that learn, and the frames of a window."""

    objective: Callable[[Tensor, Tensor, float], Tensor]
    parts: list[nn.Module]
    length: int


@dataclass
class Given:
    """What a stage may know before it begins: windows ``u (N, L, C, *space)`` with ``phase (N, L, 4)``, the symmetries
    of the physics, and a folder for what it would lose in a kill.
    """

    u: Tensor
    phase: Tensor
    shift: Shift
    folder: Path


def _autoencoder(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return reconstruction_loss(emulator.autoencoder, u, phase, options["noise"], generator)

    return Plan(objective, [emulator.autoencoder.network], 1)


def _error(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return decoder_error_loss(emulator, u, phase, generator)

    return Plan(objective, [_part(emulator, "error")], 1)


def _mean(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        u, phase, free = _cut(u, phase, emulator.history, *unroll_at(options["unroll"], progress), generator)
        noise = options["context_noise"]
        return rollout_loss(emulator, u, phase, "mean", generator=generator, context_noise=noise, free=free)

    return Plan(objective, [_part(emulator, "mean")], emulator.history + _longest(options))


def _generator(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    u, phase = (x[: options["batch"], 0] for x in (given.u, given.phase))
    latent = emulator.autoencoder.encode(u, phase)
    # Once and from fixed windows, so that a resumed run weighs the channels alike.
    weight = decoder_sensitivity(emulator.autoencoder, latent, emulator.residual.flatten(), generator=generator)

    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return generator_loss(emulator, u, phase, weight.to(u), options["context_noise"], generator)

    return Plan(objective, [_part(emulator, "generator")], emulator.history + 1)


def _fast(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        u, phase, free = _cut(u, phase, emulator.history, *unroll_at(options["unroll"], progress), generator)
        return rollout_loss(
            emulator, u, phase, "fast", options["members"], options["scales"], options["alpha"], generator,
            options["context_noise"], free,
        )  # fmt: skip

    return Plan(objective, [_part(emulator, "fast")], emulator.history + _longest(options))


def _correction(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return correction_loss(emulator, u, phase, options["noise"], options["mixing"], options["damping"], generator)

    return Plan(objective, [_part(emulator, "correction")], 1)


def _operator(emulator: Emulator, options: Mapping[str, Any], generator: torch.Generator, given: Given) -> Plan:
    known, history = law(emulator.autoencoder.spec), emulator.history
    u, phase = given.u[: options["starts"], :history], given.phase[: options["starts"], :history]
    autoencoder, pools = emulator.autoencoder, dict[int, Pool]()
    names = autoencoder.spec.grid.names
    cell = periods(autoencoder.network, names, dict(zip(names, given.shift.cells, strict=True)))

    def pool(turn: int) -> Pool:
        """Of a round; after a kill it is read, since the operator that corrected its rollouts is not there any more."""
        path = given.folder / f"pool-{turn}-{getattr(rank_zero_only, 'rank', 0)}.pt"
        if turn not in pools and path.exists():
            pools[turn] = Pool.load(path)
        if turn not in pools:
            noise, frames = options["noise"], options["frames"]
            pools[turn] = label_pool(emulator, u, phase, known, noise, frames, turn > 0, generator)
            pools[turn].save(path)
        return pools[turn]

    def objective(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        # A round of its own mistakes in the second half, beside what it learned from in the first.
        turns = [pool(turn) for turn in ((0, 1) if progress > 0.5 else (0,))]
        turn = turns[int(torch.randint(len(turns), (), generator=generator))]
        return operator_loss(emulator, turn.draw(options["batch"], cell, generator))

    return Plan(objective, [_part(emulator, "operator")], history)


def _longest(options: Mapping[str, Any]) -> int:
    return max(sum(unroll_at([entry], 1.0)) for entry in options["unroll"])


def _part(emulator: Emulator, name: str) -> nn.Module:
    try:
        part: nn.Module = emulator.part(name)
    except ValueError as error:
        raise ValueError(f"stage {name!r}: {error}; or leave the stage out of training.stages") from None
    return part


STAGES: dict[str, Callable[[Emulator, Mapping[str, Any], torch.Generator, Given], Plan]] = {
    "autoencoder": _autoencoder,
    "error": _error,
    "mean": _mean,
    "generator": _generator,
    "fast": _fast,
    "correction": _correction,
    "operator": _operator,
}


def run_stage(
    name: str,
    emulator: Emulator,
    options: Mapping[str, Any],
    data: FieldData,
    folder: Path,
    trainer: dict[str, Any],
    *,
    shift: Shift,
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

    Raises ValueError for a stage whose part the model lacks, and for weights of another model in ``folder``.
    """
    done, record = folder / "weights.pt", folder / "record.json"
    if done.exists() and record.exists():
        _restore(emulator, name, done)
        return dict(json.loads(record.read_text()))
    if name != "autoencoder":
        _part(emulator, name)
    generator = torch.Generator().manual_seed(seed)
    emulator.eval()
    begin = time.process_time()
    plan = STAGES[name](emulator, options, generator, _measure(name, emulator, options, data, shift, folder))
    if not any(True for part in plan.parts for _ in part.parameters()):  # autoencoder=identity
        return {"stage": name, "steps": 0, "cpu_minutes": 0.0, "losses": []}
    data.length, data.batch_size = plan.length, options["batch"]

    def shifted(u: Tensor, phase: Tensor, progress: float) -> Tensor:
        return plan.objective(shift(u), phase, progress)

    stage = Stage(
        emulator, shifted, plan.parts, options["steps"], options["lr"], cpu_minutes=options.get("cpu_minutes"),
        warmup=min(50, options["steps"] // 10 + 1), seed=seed, generators=(generator, shift.generator),
    )  # fmt: skip
    if emulator.propagator is not None:
        stage.spent = time.process_time() - begin  # its fit is training too
    fit(stage, data, folder, trainer, every, ema)
    summary = {"stage": name, "steps": stage.global_step, "cpu_minutes": stage.spent / 60, "losses": stage.history}
    if stage.trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        learned = {k: v for k, v in emulator.state_dict().items() if k.startswith(_LEARNED[name])}
        # Each appears whole or not at all, the record last: it says that the stage is complete.
        torch.save(learned, done.with_suffix(".part"))
        done.with_suffix(".part").replace(done)
        record.with_suffix(".part").write_text(json.dumps(summary))
        record.with_suffix(".part").replace(record)
    return summary


def _restore(emulator: Emulator, name: str, path: Path) -> None:
    """Load what a finished stage learned."""
    found = emulator.load_state_dict(torch.load(path, weights_only=True), strict=False)
    missing = [k for k in found.missing_keys if k.startswith(_LEARNED[name])]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"{path}: found weights of another model (lacking {missing[:3]}, beyond it {found.unexpected_keys[:3]}). "
            "Usual fix: another out=, or remove the folder"
        )


@torch.no_grad()
def _measure(
    name: str, emulator: Emulator, options: Mapping[str, Any], data: FieldData, shift: Shift, folder: Path
) -> Given:
    """Whatever a stage needs to know of the data before it starts, from the first windows of a fixed order: these."""
    data.trainer = None  # of the stage before: every rank is to measure the same windows
    autoencoder, history = emulator.autoencoder, emulator.history
    data.length, data.batch_size = (1 if name == "autoencoder" else history + 1), 1
    batches = list(islice(data.windows("train"), _MEASURED))
    u, phase = torch.cat([b.fields for b in batches]), torch.cat([b.phase for b in batches])
    u = shift(u)
    if name == "autoencoder":
        autoencoder.start_from(u[:, 0], phase[:, 0])
    elif name == "correction":
        preparation.measure_correction(emulator, u[:, 0])
    elif name == "operator":
        preparation.start_operator(emulator)
    elif name != "error":
        before, after = emulator.encode(u[:, :history], phase[:, :history]), emulator.encode(u[:, 1:], phase[:, 1:])
        if name == "mean" or (emulator.mean is None and bool((emulator.increment == 1).all())):
            if emulator.propagator is not None:
                horizon = _longest(options) if "unroll" in options else _HORIZON
                fit_propagator(emulator, data, field_weights(autoencoder), horizon)
            preparation.measure_increment(emulator, before, after)
        if name == "generator":
            preparation.measure_residual(emulator, before, after, phase[:, history - 1])
        if name == "fast" and emulator.mean is not None:
            preparation.start_fast(emulator)
    return Given(u, phase, shift, folder)
