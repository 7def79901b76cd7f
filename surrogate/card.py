"""The model card: what a model is, how it was trained, and what it was measured to do on data it never saw."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from ..autoencoder.assess import assess
from ..datasets.datamodule import FieldData
from .law import law
from .skill import rollout_skill, starts

if TYPE_CHECKING:
    from .model import Model

__all__ = ["write_card"]

_FRAMES = 400  # of the test split that the autoencoder is assessed on
_PAIRS = 64  # of consecutive frames that the residual floor is measured on
_PCA = 6000  # training frames that the principal components are taken from: too few would flatter the model
_LEADS = (1, 2, 5, 10, 20)


def write_card(model: "Model", data: FieldData, records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; every figure in it is measured here, on the test split (on validation where there is no test split)."""
    name = "test" if data.splits["test"] else "val"
    train, test = gather(data, "train", _PCA), gather(data, name, _FRAMES)
    known = law(model.spec) if model.spec.equation else None
    # Gathered frames end one trajectory and begin the next; the residual needs true neighbours.
    pairs = None if known is None else starts(data, name, 2, _PAIRS)
    figures = assess(model.emulator.autoencoder, train, test, known, pairs)
    frames = sum(r.t1 - r.t0 for r in data.splits["train"])
    trajectories = max(r.k1 for r in data.splits["train"]) - min(r.k0 for r in data.splits["train"])
    lines = [
        f"# {model.name}",
        "",
        f"A lapse model (version {__version__}), trained on {frames} frames"
        f"{f' of each of {trajectories} trajectories' if trajectories > 1 else ''}; "
        f"the figures below are from the {name} split.",
        "",
        "## Fields",
        "",
        "```",
        str(model.spec),
        "```",
        "",
        "## Autoencoder",
        "",
        f"{figures['latent_numbers']} numbers a frame, {figures['compression']:.1f} times fewer than the field; "
        f"encode {figures['encode_ms']:.2f} ms, decode {figures['decode_ms']:.2f} ms a frame on this machine.",
        "",
        "| variable | VRMSE | PCA with as many numbers | error in low / middle / high wavenumbers |",
        "|---|---|---|---|",
    ]
    for variable, error in figures["vrmse"].items():
        bands = " / ".join(f"{b:.3f}" for b in figures["bands"].get(variable, [])) or "masked"
        lines.append(f"| {variable} | {error:.4f} | {figures['pca'][variable]:.4f} | {bands} |")
    if "residual_floor" in figures:
        floor = figures["residual_floor"]
        lines += [
            "",
            f"Residual floor: {floor['reconstruction']:.2e} of the field after decoding, {floor['data']:.2e} for the "
            "data.",
        ]
    lines += [
        "",
        "## Forecasts",
        "",
        f"Root mean square error of the mean of 8 members over the {name} data's standard deviation; spread/skill in "
        "brackets.",
        "",
    ]
    skill = rollout_skill(model, data, name, _LEADS)
    lines += [
        "| lead (frames) | " + " | ".join(str(k) for k in skill["leads"]) + " |",
        "|---" * (len(skill["leads"]) + 1) + "|",
    ]
    for row, values in skill["rows"].items():
        lines.append(f"| {row} | " + " | ".join(values) + " |")
    lines += ["", "## Training", "", "| stage | steps | CPU minutes |", "|---|---|---|"]
    lines += [f"| {r['stage']} | {r['steps']} | {r['cpu_minutes']:.1f} |" for r in records]
    training = model.config["training"]
    lines += ["", f"Seed {training['seed']}. Options of the data that were set:", ""]
    lines += [f"- `{key}`: {value}" for key, value in training["data"].items() if value not in (None, [], {}, "")]
    lines.append("")
    return "\n".join(lines)


def gather(data: FieldData, name: str, limit: int) -> tuple[Tensor, Tensor]:
    """About ``limit`` frames spread evenly over a split, ``(n, C, *space)``, and their phases ``(n, 4)``."""
    total = sum((r.k1 - r.k0) * (r.t1 - r.t0) for r in data.splits[name])  # type: ignore[index]
    stride = max(1, total // limit)
    fields, phases, index = [], [], 0
    for u, phase in data.frames(name):  # type: ignore[arg-type]
        first = -index % stride
        fields.append(u[first::stride])
        phases.append(phase[first::stride])
        index += len(u)
    return torch.cat(fields), torch.cat(phases)
