"""Complete fields given some of them: samples of the posterior over a window of time, and samples to enlarge data with.

What was observed (scattered points, tracks, some points of a grid, some frames, some variables) is NaN elsewhere. A
member is a draw from

    p(frames | observations)  ∝  p(first frame) p(model error) p(decoder error) p(observations | frames)

by `window`: the start's prior is the climate of the training data in latent space, the dynamics are the model's own,
and the search for a member perturbs prior and observations (randomised maximum likelihood). The members agree exactly
with observations whose error is nought and spread elsewhere as far as dynamics, climate and compression leave them
free. A common best estimate is found first, and each member's search starts from there.

Where nothing is hidden and no error is given, the samples are forecasts from the given frames, as trajectories that
can be added to training data; a coordinate ``generated`` marks them.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
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
from .window import Observed, Prior, Window

if TYPE_CHECKING:
    from .model import Model

__all__ = ["AugmentWarning", "augment"]

BLOCK = 8
"""Members computed together."""
EXPLICIT = 1024
"""Latents up to which the curvature of the cost by the start is computed, which a search then needs few steps for."""
_LEAST = 4  # members in a block: smaller batches are rounded otherwise (see `lapse.surrogate.forecast`)
_FRAMES = 1000  # of a climate
_FAR = 2.0  # of the misfit, whose expectation is 1
_TOLERANCE = 1e-3


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
    evaluations: int = 60,
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
        before: frames before the first observed one at which the members begin. The dynamics then shape the first
            frame too, for the price of computing them. None: as many as the model's history needs.
        steps: only with nothing hidden: frames of the trajectories (default: as many as given).
        mode: of the dynamics, as in `forecast`.
        seed: a member is a function of (seed, first time, member).
        evaluations: at most, of the cost and its gradient: for the common best estimate, and again for each member.

    Returns:
        Dataset over ``(member, time, *space)`` in physical units, NaN under the masks, every frame from the first
        observed to the last. ``valid (member,)`` is 0 for a member that is not finite. ``misfit (member,)`` is twice
        the cost over the number of observations, 1 on average where model, climate and errors are what they claim to
        be. `forecast` takes it as it is: its last frames are an ensemble of initial states.

        With nothing hidden: a Dataset over ``(trajectory, time, *space)``, see `lapse.surrogate.enlarge`.

    Raises SpecError for unfit input, for errors that are not told, and for a model without a climate if none is given.
    Warns (AugmentWarning) where the misfit is far above 1: the search has not ended, or the errors are too small.
    """
    mode = mode or model.modes[0]
    _check_options(model, samples, before, steps, mode, evaluations)
    if error is None and is_complete(observed, model.spec):
        from .enlarge import enlarge

        return enlarge(model, observed, samples, steps=steps, mode=mode, seed=seed, progress=progress)
    if steps is not None:
        found, fix = f"steps={steps} and observations with holes or errors", "leave it out"
        raise SpecError([Problem("steps", found, "None: the window is what was observed", fix)])
    data = observations(observed, model.spec, error)
    hidden = max(before or 0, model.emulator.history - len(data.times))
    search = _Search(model, data, _climate(model, climate), hidden, mode, seed, evaluations)
    return _assembled(model, data, search, samples, progress)


class _Search:
    """The window, the best estimate, and blocks of members."""

    def __init__(
        self, model: "Model", data: Observations, climate: Climate, hidden: int, mode: Mode, seed: int, evaluations: int
    ) -> None:
        self.model, self.data, self.hidden = model, data, hidden
        self.seed, self.evaluations, self.mode = seed, evaluations, mode
        own = next(model.emulator.parameters())
        o = data.observed

        def padded(x: Tensor) -> Tensor:
            x = x.to(own.device) if x.dtype == torch.bool else x.to(own)
            return torch.cat([torch.zeros_like(x[:1]).expand(hidden, *x.shape[1:]), x])

        self.observed = Observed(padded(o.value), padded(o.error), padded(o.where))
        frames = hidden + len(data.times)
        self.window = Window(model.emulator, climate, frames, mode, _phases(model, data, hidden))
        shape = (1, frames, *model.spec.shape)
        none = Prior(own.new_zeros(1, self.window.size), own.new_zeros(shape), own.new_zeros(shape))
        best = self.window.fit(self.observed, none, none.x, evaluations, _TOLERANCE)
        self.window.linearise(best.x)
        self.inverse = None
        if climate.size <= EXPLICIT:
            self.inverse = self.window.curvature(self.observed, best.x)
            best = self.window.fit(self.observed, none, best.x, evaluations, _TOLERANCE, self.inverse)
        self.best = best.x

    def block(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Members ``first … last − 1``: fields ``(members, T, C, *space)`` and misfits ``(members,)``."""
        start = self.data.times.values[0]
        count = max(last - first, _LEAST)
        prior = self.window.draw([member_generator(self.seed, start, first + i) for i in range(count)])
        # Where curvature is not known the search ends early, and what it has not reached must look like the prior.
        begin = prior.x if self.inverse is None else self.best
        found = self.window.fit(
            self.observed, prior, begin.expand(count, -1), self.evaluations, _TOLERANCE, self.inverse
        )
        frames = [u for _, u in self.window.fields(found.x, self.observed, prior)]
        fields = torch.stack(frames[self.hidden :], dim=1)
        misfit = 2 * found.value / self.data.count
        return fields[: last - first].cpu(), misfit[: last - first].cpu()


def _climate(model: "Model", given: xr.Dataset | None) -> Climate:
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


def _blocks(samples: int) -> Iterator[tuple[int, int]]:
    for first in range(0, samples, BLOCK):
        yield first, min(first + BLOCK, samples)


def _assembled(model: "Model", data: Observations, search: _Search, samples: int, progress: bool) -> xr.Dataset:
    fields, misfits = [], []
    with tqdm(total=samples, unit="member", disable=not progress, desc="augment") as bar:
        for first, last in _blocks(samples):
            u, misfit = search.block(first, last)
            fields.append(u)
            misfits.append(misfit)
            bar.update(last - first)
    u, misfit = torch.cat(fields), torch.cat(misfits)
    alive = finite_members(u)
    u = torch.where(alive.reshape(-1, *(1,) * (u.ndim - 1)), u, torch.nan)
    member = xr.DataArray(np.arange(samples), dims="member", attrs={"standard_name": "realization", "units": "1"})
    flags = {"standard_name": "status_flag", "long_name": "member stayed finite",
             "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "blown_up valid"}  # fmt: skip
    about = {"long_name": "twice the cost over the number of observations", "units": "1"}
    coords = {"member": member, "time": data.times, "generated": generated("member", samples)}
    out = to_dataset(u, model.spec, ("member", "time"), coords)
    out = out.assign(
        valid=("member", alive.numpy().astype(np.int8), flags), misfit=("member", misfit.numpy(), about)
    ).assign_attrs(attributes(model, data.history, f"{samples} samples given {data.count} observations", search.seed))
    out.attrs |= {
        "title": f"{samples} samples by {model.name} given {data.count} observations",
        "lapse_mode": search.mode, "lapse_input_fingerprint": _fingerprint(data),
    }  # fmt: skip
    _judge(float(misfit[alive].mean()) if bool(alive.any()) else float("nan"), int((~alive).sum()), samples)
    return out


def _judge(misfit: float, gone: int, samples: int) -> None:
    if gone:
        warnings.warn(f"{gone} of {samples} members are not finite: NaN, and flagged in `valid`", stacklevel=4)
    if not misfit <= _FAR:
        warnings.warn(
            f"the samples miss the observations by more than their errors explain: found a misfit of {misfit:.3g}, "
            "wanted about 1. Usual fix: more evaluations; larger errors; a shorter window; a climate like the data",
            AugmentWarning, stacklevel=4,
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
    model: "Model", samples: int, before: int | None, steps: int | None, mode: str, evaluations: int
) -> None:
    problems = []
    for name, value, least in (
        ("samples", samples, 1), ("before", before, 0), ("steps", steps, 1), ("evaluations", evaluations, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            problems.append(Problem(name, f"{value}", f"at least {least}", "leave it out for the default"))
    if mode not in model.modes:
        problems.append(Problem("mode", repr(mode), f"one of {', '.join(model.modes)}", "correct the word"))
    if problems:
        raise SpecError(problems)
