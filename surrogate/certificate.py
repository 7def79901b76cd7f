"""A certificate on what leaves the library: bounds of how well the frames of a forecast obey their equation.

Every audited frame of a member has a residual r (`audit`), measured after decoding, as it is handed out; before the
first lead stands the analysis. The bound b(k) of lead k is split conformal (Lei et al. 2018,
doi:10.1080/01621459.2017.1307116): the ⌈(n + 1) 0.9⌉-th smallest of n residuals of forecasts from held-out starts, in
bins of leads 1, 2, 3–4, 5–8, …. Of frames that are exchangeable with those, 90 % stay below it, in each bin. One frame
cannot tell a small shift of the physics from chance, a series of them can: g(k), the mean of r/b over a member's
audited leads up to k, has a bound of its own, of level 95 %. A frame is certified if both hold. Frames between audited
ones take the verdict of the nearest.

The certificate speaks of the residual only. A forecast that is certified obeys the equation as well as nine in ten
frames of the model do in the climate that it was trained in; it may still be far from what will happen.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .audit import Audit, nearest
from .emulator import Emulator, Mode
from .gate import next_errors
from .noise import member_generator
from .rollout import rollout
from .skill import starts

if TYPE_CHECKING:
    from ..datasets.datamodule import FieldData
    from .model import Model

__all__ = [
    "Certificate",
    "bins",
    "calibrate",
    "conformal",
    "load_certificates",
    "mode_key",
    "save_certificates",
    "training_certificate",
]

LEVEL, HISTORY_LEVEL = 0.9, 0.95
FEWEST = 20  # starts below which a bound at these levels does not exist, or hardly
_BATCH = 16


@dataclass(frozen=True)
class Certificate:
    """Bounds of the residual of one mode's forecasts, by bins of leads.

    Attributes:
        mode: of the forecasts that it was calibrated on, and what corrects them: "fast", "fast+solver", …
        edges: first lead of every bin, in frames, and the first beyond the last.
        bounds: b of every bin, 90 %.
        medians: of the residuals of every bin.
        history: bound of g of every bin, 95 %.
        share: of the frames of a member that are certified; 19 in 20 members of the calibration have more.
        floor: median residual of true neighbours that were encoded and decoded, which no forecast can do better than.
        data: median residual of the true neighbours themselves.
        errors: of the next frame after held-out encoded ones, over the projected field (see `correction`): of the model
            (the mean of its members), of the solver seen through the autoencoder, of the residual operator; only of
            models with a gain.
        starts, samples: starts of the calibration, and residuals in every bin.
        split: where they come from.
    """

    mode: str
    edges: tuple[int, ...]
    bounds: tuple[float, ...]
    medians: tuple[float, ...]
    history: tuple[float, ...]
    share: float
    floor: float
    data: float
    starts: int
    samples: tuple[int, ...]
    split: str
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def leads(self) -> int:
        """The last lead that it speaks of."""
        return self.edges[-1] - 1

    def of(self, values: Sequence[float], steps: int) -> NDArray[np.float32]:
        """``values``, one a bin, at the leads 1 … ``steps``; NaN beyond the last bin."""
        lead = np.arange(1, steps + 1)
        place = np.searchsorted(np.asarray(self.edges), lead, side="right") - 1
        found = np.asarray(values, np.float32)[np.minimum(place, len(values) - 1)]
        return np.where(place < len(values), found, np.float32(np.nan))

    def judge(self, residual: NDArray[np.float32], audited: NDArray[np.bool_]) -> NDArray[np.int8]:
        """Verdicts on ``residual (members, steps)``, NaN where none was measured: 1 certified, 0 not."""
        steps = residual.shape[1]
        bound, history = (self.of(v, steps) for v in (self.bounds, self.history))
        ratio = np.where(audited, residual / bound, 0.0)
        mean = np.cumsum(ratio, axis=1) / np.maximum(np.cumsum(audited, axis=1), 1)
        with np.errstate(invalid="ignore"):
            holds = (residual <= bound) & (mean <= history)
        return np.take_along_axis(holds, nearest(audited), axis=1).astype(np.int8)

    def lines(self) -> list[str]:
        """The certificate in Markdown, for a model card."""
        heads = [str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in pairwise(self.edges)]
        rows = {"median": self.medians, "90 % bound": self.bounds}
        return [
            "## Certificate",
            "",
            f"Relative defect u₁ − Φ(u₀) of decoded neighbours, mode `{self.mode}`, from {self.starts} starts of the "
            f"{self.split} split. Encoded and decoded truth: {self.floor:.2e}; the data: {self.data:.2e}. It says how "
            "well forecasts obey the equation, not how far they are from the truth.",
            "",
            "| lead (frames) | " + " | ".join(heads) + " |",
            "|---" * (len(heads) + 1) + "|",
            *(f"| {name} | " + " | ".join(f"{v:.4f}" for v in values) + " |" for name, values in rows.items()),
            "",
        ]


def save_certificates(found: Mapping[str, Certificate], path: Path, weights_hash: str) -> None:
    """Write JSON that says to which weights they belong."""
    path.write_text(json.dumps({"sha256": weights_hash, "certificates": [asdict(c) for c in found.values()]}) + "\n")


def load_certificates(path: Path, weights_hash: str) -> dict[str, Certificate]:
    """Read what `save_certificates` wrote, by mode; empty where there is no file, or one of other weights."""
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found = [] if told.get("sha256") != weights_hash else told["certificates"]
    certificates: dict[str, Certificate] = {}
    for one in found:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        certificates[one["mode"]] = Certificate(**values)
    return certificates


def bins(leads: int) -> tuple[int, ...]:
    """Edges of bins that double: 1, 2, 3–4, 5–8, …, up to ``leads``; a last one of less than half joins its neighbour.

    >>> bins(4), bins(20), bins(32)
    ((1, 2, 3, 5), (1, 2, 3, 5, 9, 21), (1, 2, 3, 5, 9, 17, 33))
    """
    edges = [1, *(2**i + 1 for i in range(leads.bit_length()) if 2**i < leads), leads + 1]
    if len(edges) > 3 and edges[-1] - edges[-2] < edges[-2] - edges[-3]:
        del edges[-2]
    return tuple(edges)


def conformal(scores: NDArray[Any], level: float) -> float:
    """The ⌈(n + 1) level⌉-th smallest of n scores; infinite where n is too small for the level."""
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


@torch.no_grad()
def calibrate(
    model: "Model",
    u: Tensor,
    phase: Tensor | None = None,
    *,
    leads: int = 40,
    mode: Mode | None = None,
    seed: int = 0,
    split: str = "val",
) -> Certificate:
    """Calibrate on forecasts from held-out starts, one member each.

    Arguments:
        u: windows ``(N, history + 1, C, *space)`` in physical units: the starts' context, and one true frame more for
            the floor.
        phase: ``(N, history + leads, 4)`` for models with a calendar.
        leads: the longest lead that it shall speak of.
        mode: of the forecasts, the model's default one if None.

    Raises ValueError as `Audit` does, for fewer than 20 starts, and where a tenth of the members blow up.
    """
    emulator, history = model.emulator, model.emulator.history
    mode = mode or model.modes[0]
    audit = Audit(model.spec, emulator.autoencoder.normaliser.std)
    if len(u) < FEWEST:
        raise ValueError(f"calibrate: found {len(u)} starts, wanted at least {FEWEST}. Usual fix: more frames")
    residuals, floors, data = [], [], []
    batch = _BATCH if phase is None else 1  # starts of one batch share the phases of their leads
    for first in range(0, len(u), batch):
        rows = slice(first, first + batch)
        frames = u[rows].to(model.device)
        phases = None if phase is None else phase[rows].to(model.device)
        context = None if phases is None else phases[:, :history]
        state = emulator.encode(frames[:, :history], context)
        generators = [member_generator(seed, float(first + i), 0) for i in range(len(frames))]
        before, measured = frames[:, history - 1], []
        along = None if phases is None else phases[0, history - 1 :]
        for _, after in rollout(emulator, state, leads, mode, generators, along):
            measured.append(audit.residual(before, after).cpu())
            before = after
        residuals.append(torch.stack(measured, dim=1))
        pair = frames[:, history - 1 : history + 1]
        seen = None if phases is None else phases[:, history - 1 : history + 1].flatten(0, 1)
        autoencoder = emulator.autoencoder
        decoded = autoencoder.decode(autoencoder.encode(pair.flatten(0, 1), seen), seen).reshape(pair.shape)
        floors.append(audit.residual(decoded[:, 0], decoded[:, 1]).cpu())
        data.append(audit.residual(pair[:, 0], pair[:, 1]).cpu())
    # A member that blew up is no sample of what is obeyed: it counts as worse than any bound.
    r = torch.cat(residuals).nan_to_num(nan=math.inf).numpy()
    edges = bins(leads)
    cut = [slice(a - 1, b - 1) for a, b in pairwise(edges)]
    bounds = [conformal(r[:, c].ravel(), LEVEL) for c in cut]
    if not np.isfinite(bounds).all():
        gone = float(np.isinf(r[:, -1]).mean())
        raise ValueError(f"calibrate: found {gone:.0%} of the members blown up, wanted fewer than a tenth")
    whole = np.concatenate([np.full(c.stop - c.start, b) for c, b in zip(cut, bounds, strict=True)])
    mean = np.cumsum(r / whole, axis=1) / np.arange(1, leads + 1)
    found = Certificate(
        mode_key(emulator, mode), edges, tuple(bounds), tuple(float(np.median(r[:, c])) for c in cut),
        tuple(conformal(mean[:, c].ravel(), HISTORY_LEVEL) for c in cut), 0.0,
        float(torch.cat(floors).median()), float(torch.cat(data).median()), len(u), tuple(r[:, c].size for c in cut),
        split, next_errors(emulator, audit.law, u, mode) if phase is None else {},
    )  # fmt: skip
    certified = found.judge(r, np.ones(r.shape, np.bool_)).mean(axis=1)
    return replace(found, share=1 - conformal(1 - certified, HISTORY_LEVEL))


def mode_key(emulator: Emulator, mode: str) -> str:
    """What a certificate is filed under: the mode, and what corrects it."""
    if emulator.corrector is None:
        return mode
    return f"{mode}+{'operator' if emulator.corrector == 'operator' else 'solver'}"


def training_certificate(model: "Model", data: "FieldData", leads: int, count: int) -> Certificate | None:
    """The certificate of a model that was just trained, from its validation split.

    None where the data obey no known equation, or are too few.
    """
    history = model.emulator.history
    if model.spec.equation is None:
        return None
    longest = history + leads if model.spec.calendar is not None else history + 1
    try:
        u, phase = starts(data, "val", longest, count)
        return calibrate(model, u[:, : history + 1], None if model.spec.calendar is None else phase, leads=leads)
    except (ValueError, RuntimeError) as reason:
        warnings.warn(f"no certificate: {reason}", stacklevel=2)
        return None
