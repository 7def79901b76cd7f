"""Fit of the linear start: how strong a ridge, how wide a pool, judged by forecasts of frames that the fit did not see.

The last fifth of every stretch of training frames is held out, and each pair (pool, ridge) is fitted to the rest. The
one taken has the least geometric mean, over the leads that training will unroll to, of the mean square error of decoded
fields, among those whose repeated action does not grow. Then all training frames are fitted. The validation and test
splits are not looked at.
"""

from math import exp, log
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..datasets.datamodule import FieldData
from .propagator import Equations, Propagator

if TYPE_CHECKING:
    from .emulator import Emulator

__all__ = ["encoded", "fit_propagator", "growth"]

POOLS = (0, 1, 3)
RIDGES = (0.01, 0.03, 0.1, 0.3)
_NUMBERS = 2**27  # latent numbers up to which a training split is encoded
_STARTS = 96  # of held-out forecasts
_BATCH = 64
_FRAMES = 200  # over which a map must not grow


@torch.no_grad()
def fit_propagator(emulator: "Emulator", data: FieldData, weights: Tensor, horizon: int) -> tuple[int, float]:
    """Fit ``emulator.propagator`` to the training split; returns the pool and the ridge that were chosen.

    Arguments:
        weights: of cells in the error, ``(C, *space)``.
        horizon: frames of the forecasts that choose.

    Raises ValueError for training stretches too short to hold anything out.
    """
    propagator = emulator.propagator
    if propagator is None:
        raise ValueError("found a model without a linear start; wanted emulator.linear set")
    history = emulator.history
    runs = encoded(emulator, data)
    propagator.start_from(torch.cat([r[:: max(1, sum(map(len, runs)) // 2000)] for r in runs]))
    early, late = Equations(propagator), Equations(propagator)
    held = []
    for run in runs:
        cut = len(run) - max(len(run) // 5, history + 1)
        if cut <= history:
            continue
        _add(early, run[:cut], history)
        _add(late, run[cut - history :], history)  # the targets from `cut` on
        last = min(horizon, len(run) - cut - history)
        held.append(run[cut:].unfold(0, history + last, 1).movedim(-1, 1))
    if not held:
        raise ValueError(f"found training stretches of {[len(r) for r in runs]} frames, too short for a linear start")
    length = min(h.shape[1] for h in held)
    windows = torch.cat([h[:, :length] for h in held])
    windows = windows[torch.linspace(0, len(windows) - 1, min(_STARTS, len(windows))).long()]
    found = []
    for pool in (0,) if propagator.shared else POOLS:
        equations = early.pooled(pool)
        for ridge in RIDGES:
            propagator.weight.copy_(equations.solve(ridge))
            grows = growth(propagator, windows[:4, :history]) > 1
            found.append((grows, _score(emulator, windows, weights), pool, ridge))
    _, _, pool, ridge = min(found)
    early.gram += late.gram
    early.moment += late.moment
    propagator.weight.copy_(early.pooled(pool).solve(ridge))
    return pool, ridge


def growth(propagator: Propagator, z: Tensor) -> float:
    """Factor a frame by which ``z (B, history, c, *latent)`` grows under repeated action, late in `_FRAMES` of them."""
    sizes = []
    for _ in range(_FRAMES):
        z = torch.cat([z[:, 1:], propagator(z)[:, None]], dim=1)
        size = float(z.norm())
        sizes.append(log(max(size, 1e-300)))
        z = z / max(size, 1e-300)
    late = sizes[_FRAMES // 2 :]
    return exp(sum(late) / len(late))


@torch.no_grad()
def encoded(emulator: "Emulator", data: FieldData) -> list[Tensor]:
    """Latents of every stretch of the training split, ``(T, c, *latent)`` each, as many stretches as fit in memory."""
    runs, numbers = [], 0
    history = emulator.history
    for r in data.splits["train"]:
        for k in range(r.k0, r.k1):
            parts = []
            for t in range(r.t0, r.t1, _BATCH):
                last = min(t + _BATCH, r.t1)
                u = torch.empty(1, last - t, *data.spec.shape)
                data.source.read(k, k + 1, t, last, u.numpy())
                phase = torch.from_numpy(data.source.phase[t:last]).to(emulator.increment)
                parts.append(emulator.autoencoder.encode(u[0].to(emulator.increment), phase).z.cpu())
            run = torch.cat(parts)
            numbers += run.numel()
            if runs and numbers > _NUMBERS:
                return runs
            if len(run) > history + 1:
                runs.append(run)
    return runs


def _add(equations: Equations, run: Tensor, history: int) -> None:
    windows = run.unfold(0, history + 1, 1).movedim(-1, 1)
    for i in range(0, len(windows), _BATCH):
        part = windows[i : i + _BATCH]
        equations.add(part[:, :history], part[:, history])


def _score(emulator: "Emulator", windows: Tensor, weights: Tensor) -> float:
    """Mean over the leads of the logarithm of the mean square error of decoded, normalised fields."""
    network, history = emulator.autoencoder.network, emulator.history
    propagator = emulator.propagator
    assert propagator is not None
    z = windows[:, :history]
    total = []
    for k in range(history, windows.shape[1]):
        z = torch.cat([z[:, 1:], propagator(z)[:, None]], dim=1)
        error = network.decode(z[:, -1]) - network.decode(windows[:, k])
        total.append(log(float((weights * error.square()).mean().nan_to_num(1e30)) + 1e-30))
    return sum(total) / len(total)
