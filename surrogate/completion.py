"""Complete static fields given some of their values: samples of the posterior of a static generator.

Three steps, from what is cheap and about right to what is exact:

1. A draw of the Gaussian of the training data's latents, x = centre + ξ modes, moved by what was observed (Matheron's
   rule, as in `window`):  x ← x + Mᵀ Bᵀ (B Bᵀ + R)⁻¹ (y + ê − h(x)),  with B the derivative of h along the modes M.
   Exact for Gaussian data, and all that optimal interpolation could do.
2. Noise is added up to the time ``redraw`` and taken away again with the generator's denoiser given the observations
   (`posterior`), which draws anew what is finer than that noise: what is not Gaussian in the data comes in here.
3. The decoder's error, as smooth and as large as it was in training, is drawn given the observations (`interpolation`):
   where these are exact, the fields go through them. R above holds it beside the observations' own errors.

What a law says may be held on the finished fields.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..autoencoder.error import even_error
from ..datasets.fields import to_dataset
from ..datasets.problem import Problem, SpecError
from .augment import generated, judge
from .interpolation import through
from .noise import draw, sample_generator
from .observations import Errors, Observations, observations
from .posterior import Posterior
from .sampler import SAMPLERS

if TYPE_CHECKING:
    from .static import StaticGenerator

__all__ = ["augment"]

BLOCK = 32
"""Samples computed together."""
REDRAW = 0.7
"""Time up to which noise is added to the Gaussian's draws."""
STEPS = 8
"""Of the sampler, from there to the data."""
_LEAST_ERROR = 1e-3  # standard deviations: observations that were free of any would leave nothing to invert


def augment(
    model: "StaticGenerator",
    observed: xr.Dataset | xr.DataArray | None,
    samples: int = 32,
    *,
    error: Errors = None,
    hold: Callable[[Tensor], Tensor] | None = None,
    redraw: float = REDRAW,
    steps: int = STEPS,
    iterations: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Sample complete fields given sparse or noisy ones; or, given nothing, new fields to train on.

    Arguments:
        model: trained.
        observed: one field of each variable in physical units over the spatial axes (a time of length 1 may be there),
            NaN where not observed; variables and grid points may be missing altogether. None: nothing is known.
        samples: members.
        error: standard deviation of the observations' errors: a number, a field, or either by variable, in the units of
            the model's spec; 0 is exact. None takes each variable's attribute ``observation_error``.
        hold: a correction of finished fields ``(B, C, *space)``, such as `Darcy.solved`, or `monotone` with a metric of
            nought where observations are exact: these are put back after it.
        redraw: time in (0, 1] from which the generator draws anew; a larger one trusts the Gaussian less.
        steps, iterations: of the sampler, and at most of the solver in each of its steps.
        seed: a sample is a function of (seed, member).

    Returns:
        Dataset over ``(member, time, *space)`` in physical units, with one time; given None over ``(trajectory, time,
        *space)``, as `lapse.datasets.simulate` writes static fields. A coordinate ``generated`` marks the samples.
        ``innovation ()`` is the squared misfit of the observations before they were used over the variance that was
        promised: 1 on average where the model knows fields like these.

    Raises SpecError for unfit input or errors that are not told. Warns (AugmentWarning) where observations and model
    disagree.
    """
    _check_options(samples, redraw, steps, iterations, seed)
    if observed is None:
        return _unconditional(model, samples, hold, seed)
    data = observations(observed, model.autoencoder.spec, error)
    if len(data.times) != 1:
        found, fix = f"{len(data.times)} frames", "choose one: ds.isel(time=0)"
        raise SpecError([Problem("time", found, "one: these fields do not move", fix)])
    if not bool(model.modes.any()):
        found, fix = "a generator that was not trained", "train_static, or model.measure(fields)"
        raise SpecError([Problem("model", found, "one that knows its training data", fix)])
    completion = _Completion(model, data, redraw, steps, iterations)
    fields = []
    with tqdm(total=samples, unit="member", disable=not progress, desc="augment") as bar:
        for first in range(0, samples, BLOCK):
            members = range(first, min(first + BLOCK, samples))
            u = completion.sample(seed, members)
            fields.append(u if hold is None else completion.exact(hold(u)))
            bar.update(len(members))
    what = f"{samples} samples given {data.count} observations"
    member = xr.DataArray(np.arange(samples), dims="member", attrs={"standard_name": "realization", "units": "1"})
    coords = {"member": member, "time": data.times, "generated": generated("member", samples)}
    spec = model.autoencoder.spec
    out = to_dataset(torch.cat(fields)[:, None], spec, ("member", "time"), coords)
    about = {"long_name": "squared misfit before the update over its promised variance", "units": "1"}
    judge(completion.innovation, stacklevel=4)
    out = out.assign(innovation=((), completion.innovation, about))
    return out.assign_attrs(_attributes(model, data.history, what, seed))


class _Completion:
    """What was observed, and the draws given it."""

    @torch.no_grad()
    def __init__(
        self, model: "StaticGenerator", data: Observations, redraw: float, steps: int, iterations: int
    ) -> None:
        self.model, self.redraw = model, redraw
        like, o = model.mean, data.observed
        self.std = model.autoencoder.normaliser.std.reshape(-1, *(1,) * (o.value.ndim - 2)).to(like)
        self.where = o.where[0].to(like.device)
        self.value, self.r = o.value[0].to(like), o.error[0].to(like) / self.std
        self.free = self.where & (self.r == 0)
        self.error = even_error(model.autoencoder, model.error.clamp(min=_LEAST_ERROR))
        self.at = self.where.flatten().nonzero()[:, 0]
        self.goal = (self.value / self.std).flatten()[self.at]
        decoder = model.error.reshape(self.std.shape).expand(self.where.shape).flatten()[self.at]
        self.variance = self.r.flatten()[self.at] ** 2 + decoder**2 + _LEAST_ERROR**2
        self.response = self._response()  # B
        # (B Bᵀ + R)⁻¹ B in the space of the modes, of which there are few however many observations there are
        self.weighted = (self.response / self.variance.double()[:, None]).T
        self.normal = self.weighted @ self.response
        eye = torch.eye(len(self.normal), dtype=torch.float64, device=like.device)
        self.gain = torch.linalg.solve(eye + self.normal, self.weighted).T.to(like)  # (count, modes)
        off = self.goal - self.seen(model.centre.reshape(1, *model.latent_shape))[0]
        promised = self.response.square().sum(dim=1) + self.variance
        self.innovation = float((off.square() / promised).mean())
        denoiser = Posterior(model.denoiser(), self.seen, self.goal, self.variance, self._gaussian, iterations)
        self.sampler = SAMPLERS[model.sampler](denoiser, steps, model.rho)

    def seen(self, x: Tensor) -> Tensor:
        """What is observed of the fields of ``x (B, c, *latent)``, normalised, ``(B, count)``."""
        return (self.model.fields(x) / self.std).flatten(1)[:, self.at]

    def _response(self) -> Tensor:
        """∂h/∂ξ over a standard deviation of each mode, ``(count, modes)`` float64."""
        m = self.model
        found = []
        for part in torch.split(m.modes, BLOCK):
            away = part.reshape(-1, *m.latent_shape)
            about = m.centre.reshape(m.latent_shape)
            found.append((self.seen(about + away) - self.seen(about - away)) / 2)
        return torch.cat(found).T.double()

    def _gaussian(self, alpha: float, sigma: float) -> Callable[[Tensor], Tensor]:
        """(J V Jᵀ + R)⁻¹ if the data were the Gaussian of the modes."""
        left = 1 + self.model.modes.double().square().sum(dim=1) * (alpha / sigma) ** 2
        factor = torch.linalg.cholesky(torch.diag(left) + self.normal)

        def inverse(r: Tensor) -> Tensor:
            wide = r.double() / self.variance
            return (wide - torch.cholesky_solve(self.response.T @ wide.T, factor).T @ self.weighted).to(r)

        return inverse

    @torch.no_grad()
    def sample(self, seed: int, members: Sequence[int]) -> Tensor:
        """Fields ``(B, C, *space)`` in physical units."""
        m = self.model
        cells = self.where.numel()
        sizes = [len(m.modes), cells, m.noise_size, self.error.noise_size, cells]
        drawn = draw([sample_generator(seed, k) for k in members], sum(sizes))
        xi, errors, noise, decoder, others = torch.split(drawn.to(m.mean), sizes, dim=1)
        goal = self.goal + self.variance.sqrt() * errors[:, self.at]
        x = (m.centre + xi @ m.modes).reshape(-1, *m.latent_shape)
        x = x + ((goal - self.seen(x)) @ self.gain @ m.modes).reshape(x.shape)
        x = self.sampler(noise.reshape(x.shape), x, self.redraw)
        return self._decoded(x, decoder, others.reshape(-1, *self.where.shape))

    def _decoded(self, x: Tensor, n: Tensor, errors: Tensor) -> Tensor:
        """Fields with a decoder's error, drawn from its noise ``n`` given the observations and their ``errors``."""
        m = self.model
        a, z = m.autoencoder, m.mean + m.scale * x
        body, scale = a.network.decode(z), self.error.scale(z)
        carried = torch.zeros(len(x), len(a.spec.names), dtype=torch.float64, device=x.device)

        def normalised(n: Tensor) -> Tensor:
            off = body + scale * self.error.draw(n)
            u: Tensor = a.heads(a.normaliser.inverse(off if a.mask is None else off * a.mask), carried)
            return u / self.std

        goal, variance = self.value / self.std + self.r * errors, torch.where(self.where, self.r**2, 0.0)
        n = through(normalised, n, goal, self.where, self.free, variance)
        return self.exact(normalised(n) * self.std)

    def exact(self, u: Tensor) -> Tensor:
        """With exact observations put back."""
        return torch.where(self.free, self.value, u)


def _unconditional(
    model: "StaticGenerator", samples: int, hold: Callable[[Tensor], Tensor] | None, seed: int
) -> xr.Dataset:
    u = model.draw(samples, seed)
    u = u if hold is None else hold(u)
    spec, what = model.autoencoder.spec, f"{samples} fields"
    time = xr.DataArray([0.0], dims="time", attrs={"units": spec.time_units, "static": "true"})
    coords = {"trajectory": np.arange(samples), "time": time, "generated": generated("trajectory", samples)}
    out = to_dataset(u[:, None], spec, ("trajectory", "time"), coords)
    return out.assign_attrs(_attributes(model, "", what, seed))


def _attributes(model: "StaticGenerator", earlier: str, what: str, seed: int) -> Mapping[str, Any]:
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        digest.update(name.encode() + x.detach().cpu().numpy().tobytes())
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    line = f"{stamp}: lapse {__version__} augment, static generator, {what}, seed {seed}"
    return {
        "Conventions": "CF-1.11",
        "title": f"{what}, by a static generator",
        "source": f"lapse {__version__} static generator sha256:{digest.hexdigest()}",
        "history": f"{earlier}\n{line}" if earlier else line,
        "lapse_seed": seed,
        "lapse_version": __version__,
    }


def _check_options(samples: int, redraw: float, steps: int, iterations: int, seed: int) -> None:
    problems = []
    for name, value in (("samples", samples), ("steps", steps), ("iterations", iterations)):
        if value < 1:
            problems.append(Problem(name, f"{value}", "at least 1", "leave it out for the default"))
    if seed < 0:
        problems.append(Problem("seed", f"{seed}", "0 or more", "leave it out for the default"))
    if not 0 < redraw <= 1:
        problems.append(Problem("redraw", f"{redraw}", "a time in (0, 1]", "leave it out for the default"))
    if problems:
        raise SpecError(problems)
