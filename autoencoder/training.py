"""One stage of training, whatever is trained: a module, an objective, a schedule.

A stage is short enough to be read: AdamW, a warm-up, a cosine to zero, clipped gradients, and an average of the weights
(`EMAWeightAveraging` of Lightning). Progress runs from 0 to 1 and is counted in steps, or, with ``cpu_minutes``, in processor
time of this process, which is the fair currency on a shared machine: then the learning rate reaches zero exactly when
the budget is spent.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn

__all__ = ["Stage", "StopAtBudget", "callbacks", "fit"]

Objective = Callable[[Tensor, Tensor, float], Tensor]


class Stage(lightning.LightningModule):
    """Train ``parameters`` of ``module`` for ``objective(u, phase, progress)``.

    Arguments:
        module: what is trained; its state is the checkpoint.
        objective: from a batch of windows ``u (B, L, C, *space)``, ``phase (B, L, 4)`` and the progress in [0, 1] to a scalar.
        parameters: the parts of ``module`` that learn; everything else is frozen while the stage runs.
        steps: optimiser steps of the whole stage.
        lr, warmup, weight_decay, clip: of the optimiser; ``warmup`` in steps.
        cpu_minutes: end at this much processor time instead, whatever the steps.
        generator: that the objective draws from; its state travels in the checkpoint, so that a resumed run draws on.
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
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.objective = objective
        self.total = steps
        self.lr, self.warmup, self.weight_decay, self.clip = lr, warmup, weight_decay, clip
        self.budget = None if cpu_minutes is None else 60 * cpu_minutes
        self.spent = 0.0
        self.generator = generator
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for part in parameters:
            for parameter in part.parameters():
                parameter.requires_grad_(True)
        self.history: list[dict[str, float]] = []

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1]."""
        by_steps = self.global_step / self.total
        return min(1.0, by_steps if self.budget is None else max(by_steps, self.elapsed / self.budget))

    @property
    def elapsed(self) -> float:
        """Processor seconds of this stage, earlier runs of it included."""
        return self.spent + time.process_time() - self._start

    def on_fit_start(self) -> None:
        self._start = time.process_time()

    def on_fit_end(self) -> None:
        self.spent = self.elapsed

    def rate(self, step: int, progress: float) -> float:
        """Learning rate: linear warm-up, then a cosine from ``lr`` to zero in ``progress``."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.module.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.module.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.optimizers(use_pl_optimizer=False).param_groups:
            group["lr"] = self.rate(self.global_step, self.progress)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        u, phase = batch
        loss = self.objective(u, phase, self.progress)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], self.clip)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.history.append({"step": self.global_step, "loss": float(loss), "cpu_s": self.elapsed})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lapse_stage"] = {"spent": self.elapsed, "history": self.history}
        if self.generator is not None:
            checkpoint["lapse_stage"]["generator"] = self.generator.get_state()
        checkpoint["lapse_stage"]["torch"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.spent = checkpoint["lapse_stage"]["spent"]
        self.history = list(checkpoint["lapse_stage"]["history"])
        if self.generator is not None:
            self.generator.set_state(checkpoint["lapse_stage"]["generator"])
        torch.set_rng_state(checkpoint["lapse_stage"]["torch"])


class StopAtBudget(Callback):
    """End the run when the stage's progress reaches 1."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.progress >= 1:
            trainer.should_stop = True


def callbacks(folder: Path, every: int, ema: float | None) -> list[Callback]:
    """What every stage runs with: the budget, the last checkpoint in ``folder``, and the average of the weights."""
    found: list[Callback] = [
        StopAtBudget(),
        ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=every, save_top_k=1, enable_version_counter=False,
                        save_last=False, monitor=None, auto_insert_metric_name=False),
    ]  # fmt: skip
    if ema is not None:
        found.append(EMAWeightAveraging(decay=ema))
    return found


def fit(
    stage: Stage,
    data: lightning.LightningDataModule,
    folder: Path,
    trainer: dict[str, Any],
    every: int = 200,
    ema: float | None = 0.99,
) -> Stage:
    """Run a stage to its end, from its last checkpoint if there is one; afterwards the module holds the averaged weights.

    Arguments:
        data: gives batches ``(u, phase)``; the order of its loader is resumed too.
        folder: for the checkpoint, ``folder/last.ckpt``.
        trainer: keyword arguments of `lightning.Trainer` (accelerator, devices, strategy, precision, …).
        every: steps between checkpoints.
        ema: decay of the weights' average, None for none.
    """
    folder = Path(folder)
    last = folder / "last.ckpt"
    run = lightning.Trainer(
        max_steps=stage.total,
        callbacks=callbacks(folder, every, ema),
        default_root_dir=folder,
        logger=False,
        limit_val_batches=0,
        enable_model_summary=False,
        **trainer,
    )
    run.fit(stage, datamodule=data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    return stage
