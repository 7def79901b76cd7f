"""One stage of training, whatever is trained: a module, an objective, a schedule.

A stage is short enough to be read: AdamW, a warm-up, a cosine to zero, clipped gradients, and an average of the weights
(`WeightAveraging` of Lightning). Progress runs from 0 to 1 and is counted in steps, or, with ``cpu_minutes``, in
processor time of this process, which is the fair currency on a shared machine: then the learning rate reaches zero
exactly when the budget is spent.

What a step draws is a function of (seed, step, rank) and of nothing else, so a run that was killed and resumed has the
loss curve of one that was not, and no two ranks draw the same noise.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn

__all__ = ["Stage", "StopAtBudget", "callbacks", "fit"]

Objective = Callable[[Tensor, Tensor, float], Tensor]


class Stage(lightning.LightningModule):
    """Train ``parameters`` of ``module`` for ``objective(u, phase, progress)``.

    Arguments:
        module: what is trained; its state is the checkpoint.
        objective: from a batch of windows ``u (B, L, C, *space)``, ``phase (B, L, 4)`` and the progress in [0, 1] to a
            scalar.
        parameters: the parts of ``module`` that learn; everything else is frozen and in evaluation mode meanwhile.
        steps: optimiser steps of the whole stage.
        lr, warmup, weight_decay, clip: of the optimiser; ``warmup`` in steps.
        cpu_minutes: end at this much processor time instead, whatever the steps.
        seed: of everything random in a step.
        generators: that the objective draws from; they are seeded before each step, as is torch's own.

    Attributes:
        history: a record ``{"step", "loss", "cpu_s"}`` for each step; ``step`` is 1 for the first.
        progress: share of the stage that is done, in [0, 1].
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        parameters: Sequence[nn.Module],
        steps: int,
        lr: float = 1e-3,
        warmup: int = 50,
        weight_decay: float = 1e-4,
        clip: float = 1.0,
        cpu_minutes: float | None = None,
        seed: int = 0,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.objective = objective
        self.total = steps
        self.lr, self.warmup, self.weight_decay, self.clip = lr, warmup, weight_decay, clip
        self.budget = None if cpu_minutes is None else 60 * cpu_minutes
        self.spent = 0.0
        self.progress = 0.0
        self.seed, self.generators = seed, tuple(generators)
        # Dropout of a frozen net would be noise in what the learning one is asked for. Lightning keeps the modes.
        module.eval().requires_grad_(False)
        for part in parameters:
            part.train().requires_grad_(True)
        self.history: list[dict[str, float]] = []

    @property
    def elapsed(self) -> float:
        """Processor seconds of this stage while it runs, earlier runs of it included."""
        return self.spent + time.process_time() - self._start

    def on_fit_start(self) -> None:
        self._start = time.process_time()

    def on_fit_end(self) -> None:
        self.spent = self.elapsed

    def on_train_start(self) -> None:
        self.measure_progress()

    def measure_progress(self) -> None:
        """Bring `progress` up to date; it is the same on every rank, though their processor times differ."""
        progress = self.global_step / self.total
        if self.budget is not None:
            mean = self.trainer.strategy.reduce(torch.tensor(self.elapsed, device=self.device), reduce_op="mean")
            progress = max(progress, float(mean) / self.budget)
        self.progress = min(1.0, progress)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then a cosine from ``lr`` to zero in ``progress``."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.module.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.module.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate(self.global_step, self.progress)
        mixed = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        own, *others = (int(word) for word in mixed.generate_state(1 + len(self.generators), np.uint32))
        torch.manual_seed(own)
        for generator, word in zip(self.generators, others, strict=True):
            generator.manual_seed(word)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        u, phase = batch
        loss = self.objective(u, phase, self.progress)
        self.log("loss", loss, prog_bar=True)
        # Here and not after the step, since Lightning writes checkpoints before it calls the module's own hook.
        self.history.append({"step": self.global_step + 1, "loss": float(loss.detach()), "cpu_s": self.elapsed})
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], self.clip)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lapse_stage"] = {"spent": self.elapsed, "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.spent = checkpoint["lapse_stage"]["spent"]
        self.history = list(checkpoint["lapse_stage"]["history"])


class StopAtBudget(Callback):
    """Measure the stage's progress after each step, and end the run when it reaches 1."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        pl_module.measure_progress()
        if pl_module.progress >= 1:
            trainer.should_stop = True


def callbacks(folder: Path, every: int, ema: float | None) -> list[Callback]:
    """What every stage runs with: the budget, the last checkpoint in ``folder``, and the average of the weights."""
    checkpoint = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=every, save_top_k=1, save_last=False, monitor=None,
        enable_version_counter=False, auto_insert_metric_name=False,
    )  # fmt: skip
    found: list[Callback] = [StopAtBudget(), checkpoint]
    if ema is not None:
        found.append(WeightAveraging(avg_fn=partial(_average, ema)))
    return found


def _average(decay: float, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """ā + (1 − decay)(w − ā). What is frozen stays exactly as it is, which decay·ā + (1 − decay)·w does not ensure."""
    return average + (1 - decay) * (value - average) if average.is_floating_point() else value


def fit(
    stage: Stage,
    data: lightning.LightningDataModule,
    folder: Path,
    trainer: dict[str, Any],
    every: int = 200,
    ema: float | None = 0.99,
) -> Stage:
    """Run a stage to its end, from its last checkpoint if there is one; the module then holds the averaged weights.

    Arguments:
        data: gives batches ``(u, phase)``; the order of its loader is resumed too.
        folder: for the checkpoint, ``folder/last.ckpt``.
        trainer: keyword arguments of `lightning.Trainer` (accelerator, devices, strategy, precision, …).
        every: steps between checkpoints.
        ema: decay of the weights' average, None for none.
    """
    folder = Path(folder)
    last = folder / "last.ckpt"
    run_with = callbacks(folder, every, ema)
    # Devices found, tips and reasons for stopping, five times over, would hide the stages' own lines.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run = lightning.Trainer(
        max_steps=stage.total,
        callbacks=run_with,
        default_root_dir=folder,
        logger=False,
        limit_val_batches=0,
        enable_model_summary=False,
        **trainer,
    )
    with warnings.catch_warnings():
        for meant in ("Found .* in eval mode", "You passed in a `val_dataloader`", "Checkpoint directory .* exists"):
            warnings.filterwarnings("ignore", message=meant)
        run.fit(stage, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    for callback in run_with:
        # Killed after the last step, before the result was written: Lightning then finds nothing left to do, and does
        # not put the average in place either. To do so twice is harmless.
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(run, stage)
    return stage
