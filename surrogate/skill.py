"""A quick look at forecast skill on a split, on tensors: for model cards and for choosing between settings.

The full scores, with starts, variables and calibration, are `lapse.surrogate.scores`; this one averages over variables
in normalised units, so that one figure stands for a model and a lead.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..datasets.datamodule import FieldData
from .metrics import fair_crps, spread_factor
from .noise import member_generator
from .objectives import field_weights
from .rollout import repeat_state, rollout

if TYPE_CHECKING:
    from .emulator import Emulator, Mode
    from .model import Model

__all__ = ["rollout_skill", "starts"]


@torch.no_grad()
def rollout_skill(
    model: "Model", data: FieldData, split: str, leads: Sequence[int], members: int = 8, count: int = 24
) -> dict[str, Any]:
    """Errors of every mode and of persistence: ``{"leads", "rows": {name: [text, …]}}``."""
    emulator = model.emulator
    history = emulator.history
    longest = max((r.t1 - r.t0 for r in data.splits[split]), default=0) - history  # type: ignore[index]
    leads = [k for k in leads if k <= longest]
    if not leads:
        return {"leads": [], "rows": {}}
    u, phase = starts(data, split, history + leads[-1], count)
    rows: dict[str, list[str]] = {"persistence": []}
    truth = emulator.autoencoder.normalise(u, phase)
    weights = field_weights(emulator.autoencoder)
    scale = truth.square().mul(weights).mean().sqrt()
    for k in leads:
        error = truth[:, history - 1 + k] - truth[:, history - 1]
        rows["persistence"].append(f"{float(error.square().mul(weights).mean().sqrt() / scale):.3f}")
    for mode in emulator.modes:
        n = 1 if mode == "mean" else members
        found = evaluate(emulator, u, phase, mode, leads, n)
        rows[mode] = [
            f"{f['rmse'] / float(scale):.3f}" + (f" ({f['spread_skill']:.2f})" if n > 1 else "") for f in found.values()
        ]
    return {"leads": list(leads), "rows": rows}


def starts(data: FieldData, split: str, length: int, count: int) -> tuple[Tensor, Tensor]:
    """``count`` windows of ``length`` frames spread over a split.

    Fields ``(N, length, C, *space)`` and phases ``(N, length, 4)``. None of them crosses from one trajectory into the
    next. They are spread evenly, but for the training split, whose order is random.
    """
    before = data.length, data.eval_length, data.eval_stride, data.batch_size
    data.length, data.eval_length, data.eval_stride, data.batch_size = length, length, 1, 1
    try:
        windows = data.windows(split)  # type: ignore[arg-type]
        total = windows.batches
        wanted = {int(i) for i in torch.linspace(0, total - 1, min(count, total))}
        picked = [batch for i, batch in enumerate(windows) if i in wanted]
    finally:
        data.length, data.eval_length, data.eval_stride, data.batch_size = before
    return torch.cat([b.fields for b in picked]), torch.cat([b.phase for b in picked])


@torch.no_grad()
def evaluate(
    emulator: "Emulator", u: Tensor, phase: Tensor, mode: "Mode", leads: Sequence[int], members: int, seed: int = 0
) -> dict[int, dict[str, float]]:
    """RMSE of the mean, fair CRPS, spread and spread/skill at some leads, in normalised units.

    Arguments:
        u, phase: windows ``(N, history + lead, C, *space)`` and ``(N, …, 4)``.
    """
    autoencoder, history = emulator.autoencoder, emulator.history
    weights = field_weights(autoencoder)
    sums: dict[int, dict[str, list[float]]] = {k: {"mse": [], "crps": [], "variance": []} for k in leads}
    for i in range(len(u)):
        state = repeat_state(emulator.encode(u[i : i + 1, :history], phase[i : i + 1, :history]), members)
        generators = [member_generator(seed, float(i), m) for m in range(members)]
        steps = rollout(emulator, state, max(leads), mode, generators, phase[i, history - 1 :])
        for k, (_, fields) in enumerate(steps, start=1):
            if k not in sums:
                continue
            at = phase[i, history - 1 + k]
            x = autoencoder.normalise(fields, at.expand(members, 4))
            y = autoencoder.normalise(u[i, history - 1 + k], at)
            sums[k]["mse"].append(float((weights * (x.mean(0) - y).square()).mean()))
            sums[k]["crps"].append(float((weights * torch.from_numpy(fair_crps(x.numpy(), y.numpy()))).mean()))
            sums[k]["variance"].append(float((weights * x.var(0)).mean()) if members > 1 else 0.0)
    out = {}
    for k, s in sums.items():
        mse, crps, variance = (sum(s[name]) / len(s[name]) for name in ("mse", "crps", "variance"))
        out[k] = {"rmse": mse**0.5, "crps": crps, "spread": variance**0.5,
                  "spread_skill": (spread_factor(members) * variance / mse) ** 0.5 if members > 1 else 0.0}  # fmt: skip
    return out
