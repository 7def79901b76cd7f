"""Fit of the linear start: how strong a ridge, how wide a pool, what it leaves unexplained.

1. The last fifth of every stretch of training frames is held out, and each pair (pool, ridge) is fitted to the rest.
   The one taken has the least geometric mean, over the leads that training will unroll to, of the mean square error
   of decoded fields. The validation and test splits are not looked at.
2. All training frames are fitted, then its own forecasts too: states at 1, 2, 4, … frames, with the truth of the next
   frame as their target. A map fitted to the truth alone may amplify, frame by frame, what the truth never holds; a few
   rounds of this teach it not to (imitation learning knows it as DAgger, Ross et al. 2011, arXiv:1011.0686).
3. Innovations are what it misses of the training frames, larger by as much as it misses more of frames that a fit did
   not see, both relative to what persistence misses.
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
_ROUNDS = (2, 6)  # of its own forecasts: the least, and the most while it still grows
_OWN = 300  # starts of them
_SHARE = 0.5  # weight of a round, relative to the truth


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
            found.append((_score(emulator, windows, weights), pool, ridge))
    _, pool, ridge = min(found)
    propagator.weight.copy_(early.pooled(pool).solve(ridge))
    cuts = [(run, len(run) - len(run) // 5) for run in runs]
    seen = [_missed(propagator, run[:cut], history) for run, cut in cuts if cut > history]
    unseen = [_missed(propagator, run[cut:], history) for run, cut in cuts if len(run) - cut > history]
    early.add_from(late)
    propagator.weight.copy_(early.pooled(pool).solve(ridge))
    _learn_from_forecasts(early, runs, history, pool, ridge)
    left = torch.cat([_missed(propagator, run, history)[0] for run in runs])
    propagator.measure_innovation(left, max(1.0, _ratio(unseen) / max(_ratio(seen), 1e-6)))
    return pool, ridge


def _missed(propagator: Propagator, run: Tensor, history: int) -> tuple[Tensor, Tensor]:
    """What the map and persistence miss of every frame of a stretch, ``(N, c, *latent)`` each."""
    windows = run.unfold(0, history + 1, 1).movedim(-1, 1)
    left = [w[:, history] - propagator(w[:, :history]) for w in torch.split(windows, _BATCH)]
    return torch.cat(left), windows[:, history] - windows[:, history - 1]


def _ratio(missed: list[tuple[Tensor, Tensor]]) -> float:
    ours, persistence = (sum(float(m[i].square().sum()) for m in missed) for i in (0, 1))
    return float((ours / max(persistence, 1e-30)) ** 0.5)


def _learn_from_forecasts(truth: Equations, runs: list[Tensor], history: int, pool: int, ridge: float) -> None:
    """Add rounds of the map's own forecasts to the equations, and solve them again."""
    propagator = truth.propagator
    longest = min(32, min(map(len, runs)) // 3 - history)
    leads = [k for k in (1, 2, 4, 8, 16, 32) if k <= longest]
    if not leads:
        return
    count = sum(len(run) - history for run in runs)
    windows = torch.cat([run.unfold(0, history + leads[-1] + 1, 1).movedim(-1, 1) for run in runs])
    windows = windows[torch.linspace(0, len(windows) - 1, min(_OWN, len(windows))).long()]
    for k in range(_ROUNDS[1]):
        if k >= _ROUNDS[0] and growth(propagator, windows[:2, :history]) < 1:
            return
        own, z = Equations(propagator), windows[:, :history]
        for lead in range(1, leads[-1] + 1):
            z = torch.cat([z[:, 1:], propagator(z)[:, None]], dim=1)
            if lead in leads:
                own.add(z, windows[:, history + lead])
        truth.add_from(own, _SHARE * count / (len(windows) * len(leads)))
        propagator.weight.copy_(truth.pooled(pool).solve(ridge))


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
    runs: list[Tensor] = []
    numbers = 0
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
