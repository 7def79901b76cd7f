"""Complete fields given some of them: samples of the posterior over a window of time, and samples to enlarge data with.

What was observed (scattered points, tracks, some points of a grid, some frames, some variables) is NaN elsewhere. A
member is a draw from

    p(frames | observations)  ∝  p(first frame) p(model error) p(decoder error) p(observations | frames)

by an ensemble smoother (`window`): the start's prior is the climate of the training data in latent space (`climate`),
the dynamics and their noise are the model's own. The members agree exactly with observations whose error is nought and
spread elsewhere as far as dynamics, climate and compression leave them free.

Where nothing is hidden and no error is given, the samples are forecasts from the given frames, as trajectories that
can be added to training data; a coordinate ``generated`` marks them.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..datasets.fields import to_dataset
from ..datasets.problem import Problem, SpecError
from ..datasets.time import lead_coordinate, valid_time
from ..datasets.time import phase as phase_of
from .case import references
from .climate import Climate, fit_climate
from .emulator import Mode
from .noise import member_generator, spelling
from .observations import Errors, Observations, is_complete, observations
from .rollout import finite_members
from .window import Draws, Observed, Window

if TYPE_CHECKING:
    from .model import Model

__all__ = ["AugmentWarning", "augment", "generated", "judge", "known_climate"]

BLOCK = 128
"""Samples updated together."""
_LEAST = 4  # samples in a block: smaller batches are rounded otherwise (see `lapse.surrogate.forecast`)
_SUPPLY = 2**31  # the number of the first member behind the gains: no sample has it
_MORE = 4  # times as many before the first step
_FEWEST = 16  # members behind the gains
_FRAMES = 1000  # of a climate
_FAR = 2.0  # of the innovation statistic, whose expectation is 1


class AugmentWarning(UserWarning):
    """Samples that do not fit their observations as their errors say they should."""


def augment(
    model: "Model",
    observed: xr.Dataset | xr.DataArray,
    samples: int = 32,
    *,
    error: Errors = None,
    climate: xr.Dataset | None = None,
    before: int | None = None,
    steps: int | None = None,
    mode: Mode | None = None,
    seed: int = 0,
    ensemble: int = 128,
    progress: bool = True,
) -> xr.Dataset:
    """Sample complete fields given sparse, masked or noisy ones; or, with nothing hidden, trajectories to train on.

    Arguments:
        observed: fields in physical units over ``(time, *space)``, NaN where not observed. Frames, variables and grid
            points may be missing altogether.
        samples: members.
        error: standard deviation of the observations' errors, in the units of the model's spec: a number, a field, or
            either by variable; 0 is exact. None takes each variable's attribute ``observation_error``.
        climate: states of the kind that the model was trained on, which tell what is usual; None for what the model
            brings along.
        before: frames before the first observed one at which the members begin, so that the dynamics shape the first
            frame too, for the price of computing them. None: as many as the model's history needs.
        steps: only with nothing hidden: frames of the trajectories (default: as many as given).
        mode: of the dynamics, as in `forecast`.
        seed: a member is a function of (seed, first time, member).
        ensemble: members that supply the covariances and are not among the samples; more of them make the samples
            sharper, not better calibrated.

    Returns:
        Dataset over ``(member, time, *space)`` in physical units, NaN under the masks, every frame from the first
        observed to the last. ``valid (member,)`` is 0 for a member that is not finite. ``innovation (time,)`` is the
        squared misfit of each frame's observations before they were used, over the variance promised: 1 on average
        where model, climate and errors are what they claim to be. `forecast` takes the result as it is: its last
        frames are an ensemble of initial states.

        With nothing hidden: a Dataset over ``(trajectory, time, *space)``, see `lapse.surrogate.enlarge`.

    Raises SpecError for unfit input, for errors that are not told, and for a model without a climate if none is given.
    Warns (AugmentWarning) where observations and model disagree.
    """
    mode = mode or model.modes[0]
    _check_options(model, samples, before, steps, mode, ensemble)
    if error is None and is_complete(observed, model.spec):
        from .enlarge import enlarge

        return enlarge(model, observed, samples, steps=steps, mode=mode, seed=seed, progress=progress)
    if steps is not None:
        found, fix = f"steps={steps} and observations with holes or errors", "leave it out"
        raise SpecError([Problem("steps", found, "None: the window is what was observed", fix)])
    data = observations(observed, model.spec, error)
    hidden = max(before or 0, model.emulator.history - len(data.times))
    smoother = _Smoother(model, data, known_climate(model, climate), hidden, mode, seed, ensemble)
    return _assembled(model, data, smoother, samples, progress)


class _Smoother:
    """The window, its observations, and samples in blocks."""

    def __init__(
        self, model: "Model", data: Observations, climate: Climate, hidden: int, mode: Mode, seed: int, ensemble: int
    ) -> None:
        self.data, self.hidden, self.mode, self.seed = data, hidden, mode, seed
        own, o = next(model.emulator.parameters()), data.observed

        def padded(x: Tensor) -> Tensor:
            x = x.to(own.device) if x.dtype == torch.bool else x.to(own)
            return torch.cat([torch.zeros_like(x[:1]).expand(hidden, *x.shape[1:]), x])

        self.observed = Observed(padded(o.value), padded(o.error), padded(o.where))
        self.window = Window(model.emulator, climate, hidden + len(data.times), mode, _phases(model, data, hidden))
        self.start = data.times.values[0]
        self.supply = self.draw(range(_SUPPLY, _SUPPLY + ensemble))
        first = bool(self.observed.where[: model.emulator.history].any())
        more = range(_SUPPLY + ensemble, _SUPPLY + (_MORE if first else 1) * ensemble)
        self.more = self.draw(more, model.emulator.history)

    def draw(self, members: Iterable[int], frames: int | None = None) -> Draws:
        return self.window.draw([member_generator(self.seed, self.start, m) for m in members], frames)

    def block(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Samples ``first … last − 1``: fields ``(samples, T, C, *space)``; the innovation statistic ``(T,)``."""
        draws = self.draw(range(first, max(last, first + _LEAST)))
        members, innovation = self.window.smooth(self.observed, draws, self.supply, self.more)
        frames = list(self.window.fields(members, self.observed, draws))
        return torch.stack(frames[self.hidden :], dim=1)[: last - first].cpu(), innovation[self.hidden :]


def known_climate(model: "Model", given: xr.Dataset | None) -> Climate:
    """That of the given states, or the one that the model brings along; SpecError where there is neither."""
    if given is not None:
        own = next(model.emulator.parameters())
        shift = model.config.get("training", {}).get("data", {}).get("shift")
        return fit_climate(model.emulator, *references(model, given, _FRAMES, own), shift=shift)
    if model.climate is None:
        wanted = "a model with a climate, or climate="
        fix = f"climate=xr.open_dataset('training-data.nc'), the states that {model.name} was trained on"
        raise SpecError([Problem("climate", f"none in the package of {model.name!r}", wanted, fix)])
    return model.climate


def _phases(model: "Model", data: Observations, hidden: int) -> Tensor | None:
    """Phases of all frames ``(frames, 4)``, the hidden ones included."""
    if model.spec.calendar is None:
        return None
    phase = phase_of(data.times)
    if hidden:
        ahead = lead_coordinate(model.spec, hidden)
        earlier = valid_time(data.times.values[0], -ahead[::-1], model.spec)
        phase = np.concatenate([phase_of(earlier), phase])
    return torch.from_numpy(np.ascontiguousarray(phase))


def _assembled(model: "Model", data: Observations, smoother: _Smoother, samples: int, progress: bool) -> xr.Dataset:
    fields = []
    with tqdm(total=samples, unit="member", disable=not progress, desc="augment") as bar:
        for first in range(0, samples, BLOCK):
            last = min(first + BLOCK, samples)
            u, innovation = smoother.block(first, last)
            fields.append(u)
            bar.update(last - first)
    u = torch.cat(fields)
    alive = finite_members(u)
    u = torch.where(alive.reshape(-1, *(1,) * (u.ndim - 1)), u, torch.nan)
    member = xr.DataArray(np.arange(samples), dims="member", attrs={"standard_name": "realization", "units": "1"})
    flags = {"standard_name": "status_flag", "long_name": "member stayed finite",
             "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "blown_up valid"}  # fmt: skip
    about = {"long_name": "squared misfit before each update over its promised variance", "units": "1"}
    coords = {"member": member, "time": data.times, "generated": generated("member", samples)}
    what = f"{samples} samples given {data.count} observations"
    out = to_dataset(u, model.spec, ("member", "time"), coords)
    out = out.assign(
        valid=("member", alive.numpy().astype(np.int8), flags), innovation=("time", innovation.numpy(), about)
    ).assign_attrs(attributes(model, data.history, what, smoother.seed))
    out.attrs |= {
        "title": f"{what}, by {model.name}", "lapse_mode": smoother.mode, "lapse_input_fingerprint": _fingerprint(data)
    }  # fmt: skip
    if gone := int((~alive).sum()):
        warnings.warn(f"{gone} of {samples} members are not finite: NaN, and flagged in `valid`", stacklevel=4)
    judge(float(innovation.nanmean()), stacklevel=5)
    return out


def judge(innovation: float, stacklevel: int) -> None:
    """Warn where the mean innovation statistic says that observations and model do not go together."""
    if not innovation <= _FAR:
        warnings.warn(
            f"observations and model disagree: found squared misfits of {innovation:.3g} times the variance that "
            "climate, model and errors promise, wanted about 1. Usual fix: larger errors, a climate like the data, or "
            "a look at units and positions of the observations", AugmentWarning, stacklevel=stacklevel,
        )  # fmt: skip


def generated(dim: str, count: int) -> xr.DataArray:
    """The coordinate that marks what a model made."""
    attrs = {"standard_name": "status_flag", "long_name": "made by a surrogate model, not observed or simulated",
             "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "data generated"}  # fmt: skip
    return xr.DataArray(np.ones(count, np.int8), dims=dim, attrs=attrs)


def attributes(model: "Model", earlier: str, what: str, seed: int) -> dict[str, Any]:
    """Provenance, as forecasts have it."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{stamp}: lapse {__version__} augment, model {model.name}, {what}, seed {seed}"
    config = json.dumps(model.config, sort_keys=True, default=str).encode()
    return {
        "Conventions": "CF-1.11",
        "source": f"lapse {__version__} model {model.name} sha256:{model.weights_hash}",
        "history": f"{earlier}\n{line}" if earlier else line,
        "lapse_seed": seed,
        "lapse_model": model.name,
        "lapse_version": __version__,
        "lapse_config_hash": hashlib.sha256(config).hexdigest(),
    }


def _fingerprint(data: Observations) -> str:
    """sha256 of times, values, errors and places."""
    digest = hashlib.sha256()
    for time in data.times.values:
        digest.update(spelling(time).encode())
    for x in (data.observed.value, data.observed.error, data.observed.where):
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()


def _check_options(
    model: "Model", samples: int, before: int | None, steps: int | None, mode: str, ensemble: int
) -> None:
    problems = []
    for name, value, least in (
        ("samples", samples, 1), ("before", before, 0), ("steps", steps, 1), ("ensemble", ensemble, _FEWEST),
    ):  # fmt: skip
        if value is not None and value < least:
            problems.append(Problem(name, f"{value}", f"at least {least}", "leave it out for the default"))
    if mode not in model.modes:
        problems.append(Problem("mode", repr(mode), f"one of {', '.join(model.modes)}", "correct the word"))
    if problems:
        raise SpecError(problems)
