"""An ensemble smoother in latent space: members of a window of frames, updated frame by frame by what was observed.

Every member starts from a draw of the climate, is advanced by the model with noise of its own, and at every observed
frame its latents of this frame and of all frames that it has (the smoother: van Leeuwen & Evensen 1996) move by

    z ← z + K (y + η̂ − H D(z) − H s ê),      K = (ρ ∘ cov(z, H D)) (ρ ∘ cov(H D, H D) + H s² Hᵀ + R)⁻¹

with observation errors η̂ ~ N(0, R) and a decoder error s ê drawn for the member (Burgers, van Leeuwen & Evensen 1998).
The covariances come from *another* ensemble, of which no sample is a member. Hence a sample depends on no other sample;
and since truth and sample are draws of the same prior that the same K updates, the samples' spread is the error of
their mean whatever K is, as far as D is linear and prior and model are right: an imperfect K costs accuracy, not
calibration (an ensemble that supplies its own K is overconfident: Houtekamer & Mitchell 1998).

ρ tapers spurious correlations with distance, by a Gaussian of the chord along periodic axes, which is positive definite
there too. Its radius is chosen anew at every frame: the one for which one half of the ensemble best finds the latents
of the other half from their decoded observations. As long as nothing needs to be advanced, members cost little, and
more of them supply the covariances.

The decoder's error comes last. Given the latents it is Gaussian with the known covariance C of `autoencoder.error`, so

    ê ← ê + C Hᵀ (H C Hᵀ + R)⁻¹ (y + η̂ − H D(z) − H s ê)

draws it from its posterior (Matheron's rule, by conjugate gradients): an interpolation of the misfits as smooth as the
decoder's errors are. For R = 0 the sample goes through the observations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..autoencoder.error import even_error
from .climate import Climate
from .emulator import Emulator, Mode
from .interpolation import through
from .localisation import Distances, Gain, chord, significant, taper
from .state import State

__all__ = ["Draws", "Members", "Observed", "Window"]

_RADII = (1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, float("inf"))  # of the taper, in cells
_CHUNK = 1024  # observations taken in at once
_LEAST_ERROR = 1e-3  # standard deviations: observations that were free of any would leave nothing to invert
_BATCH = 32  # members advanced together


@dataclass
class Observed:
    """``value``, ``error`` (a standard deviation) and ``where`` (bool), each ``(T, C, *space)``; in physical units."""

    value: Tensor
    error: Tensor
    where: Tensor


@dataclass
class Draws:
    """What a member draws, standard normal: start, carried means, noise of the steps, and for every frame the decoder's
    error and the observations' errors: ``(B, n)``, ``(B, C)``, ``(B, steps, n)``, ``(B, T, n)``, ``(B, T, C, *space)``.
    """

    start: Tensor
    carried: Tensor
    noise: Tensor
    decoder: Tensor
    error: Tensor

    def joined(self, more: "Draws") -> "Draws":
        """With the members of ``more`` after these, as far as both know frames."""
        frames = more.decoder.shape[1]
        return Draws(
            torch.cat([self.start, more.start]), torch.cat([self.carried, more.carried]),
            torch.cat([self.noise[:, : more.noise.shape[1]], more.noise]),
            torch.cat([self.decoder[:, :frames], more.decoder]), torch.cat([self.error[:, :frames], more.error]),
        )  # fmt: skip


@dataclass
class Members:
    """Latents of all frames so far ``(B, T, c, *latent)``, and the carried means ``(B, C)`` float64."""

    z: Tensor
    carried: Tensor


class Window:
    """``frames`` consecutive frames of an emulator.

    Arguments:
        frames: at least the emulator's history.
        mode: of the steps.
        phase: ``(frames, 4)`` of the year and day; None for models without a calendar.
    """

    def __init__(self, emulator: Emulator, climate: Climate, frames: int, mode: Mode, phase: Tensor | None) -> None:
        self.emulator, self.frames, self.mode = emulator, frames, mode
        own = next(emulator.parameters())
        self.climate = climate.to(own)
        self.phase = None if phase is None else phase.to(own)
        self.channels, *self.space = emulator.autoencoder.spec.shape
        trained = emulator.error
        self.model = even_error(emulator.autoencoder, self.climate.error) if trained is None else trained
        self.std = emulator.autoencoder.normaliser.std.reshape(-1, *[1] * len(self.space))

    def draw(self, generators: Sequence[torch.Generator], frames: int | None = None) -> Draws:
        """Each member's from its own generator, for the first ``frames`` frames or all."""
        shape = (frames or self.frames, self.channels, *self.space)
        steps = shape[0] - self.emulator.history
        noise, error = self.emulator.noise_size(self.mode), self.model.noise_size
        sizes = [self.climate.size, self.channels, steps * noise, shape[0] * error, prod(shape)]
        rows = [torch.cat([torch.randn(n, generator=g) for n in sizes]) for g in generators]
        whole = torch.stack(rows) if rows else torch.zeros(0, sum(sizes))
        start, carried, draws, decoder, errors = torch.split(whole.to(self.std), sizes, dim=1)
        count = len(generators)
        return Draws(
            start, carried, draws.reshape(count, steps, noise), decoder.reshape(count, shape[0], error),
            errors.reshape(count, *shape),
        )  # fmt: skip

    # the smoother

    @torch.no_grad()
    def smooth(self, observed: Observed, draws: Draws, supply: Draws, more: Draws) -> tuple[Members, Tensor]:
        """The samples that ``draws`` make, updated by what is observed.

        ``supply`` makes the ensemble behind K; ``more``, of the first ``history`` frames, joins it there.

        Also the innovation statistic of every frame ``(T,)``: the mean over its observations of (y − mean H D)² over
        the variance that ensemble and errors promise, 1 on average if they are right; NaN where nothing is observed.
        """
        behind = supply.joined(more)
        samples, others = self._start(draws), self._start(behind)
        history, innovation = self.emulator.history, torch.full((self.frames,), torch.nan)
        for k in range(self.frames):
            if k == history:
                count, behind = len(supply.start), supply
                others = Members(others.z[:count], others.carried[:count])
            if k >= history:
                samples, others = self._advance(samples, draws, k), self._advance(others, supply, k)
            places = observed.where[k].flatten().nonzero()[:, 0]
            # Errors are independent, so that observations may be taken in one part after the other. The parts are
            # spread over the frame: a strip of observations would be trusted alone before its neighbours are heard.
            count = -(-len(places) // _CHUNK)
            for part in range(count):
                found = self._update(observed, k, places[part::count], samples, draws, others, behind)
                innovation[k] = found if part == 0 else innovation[k]
        return samples, innovation

    def _start(self, draws: Draws) -> Members:
        c = self.climate
        z = c(draws.start).reshape(len(draws.start), self.emulator.history, *self.emulator.latent_shape)
        return Members(z, c.carried_mean + c.carried_std * draws.carried.double())

    def _advance(self, m: Members, draws: Draws, k: int) -> Members:
        """With frame k, one more than the members have."""
        history, random, found = self.emulator.history, draws.noise.shape[2] > 0, []
        for i in range(0, len(m.z), _BATCH):
            rows = slice(i, i + _BATCH)
            state = State(m.z[rows, -history:], m.carried[rows])
            noise = draws.noise[rows, k - history] if random else None
            state = self.emulator.advance(state, noise, self._phase(k - 1, len(state.z)), self.mode)
            found.append(state.z[:, -1])
        return Members(torch.cat([m.z, torch.cat(found)[:, None]], dim=1), m.carried)

    def _update(
        self, observed: Observed, k: int, places: Tensor, samples: Members, draws: Draws, others: Members, supply: Draws
    ) -> float:
        """Move both ensembles by the observations of frame k at ``places``; their innovation statistic before."""
        std = self.std.expand(observed.value[k].shape).flatten()[places]
        y, r = observed.value[k].flatten()[places] / std, observed.error[k].flatten()[places] / std
        seen = self._seen(others, k, places, std)
        error, spread = self._errors(others, supply, k, places)
        noise = r**2 + spread.square().mean(dim=0) + _LEAST_ERROR**2
        distances = self._distances(places)
        radius = self._radius(others, k, seen, noise, distances)
        misfit = y + r * supply.error[:, k].flatten(1)[:, places] - seen - error
        own_error, _ = self._errors(samples, draws, k, places)
        own_misfit = y + r * draws.error[:, k].flatten(1)[:, places] - self._seen(samples, k, places, std) - own_error
        gain = Gain(seen, noise, distances.between, radius)
        shape = samples.z.shape[2:]
        weights, own_weights = gain.weights(misfit), gain.weights(own_misfit)
        near = taper(distances.latent, radius).repeat(shape[0], 1)
        for j in range(others.z.shape[1]):  # frames after k, too, as far as the start has drawn them
            cross = gain.covariance(others.z[:, j].flatten(1)) * near
            others.z[:, j] += (weights @ cross.T).reshape(-1, *shape)
            samples.z[:, j] += (own_weights @ cross.T).reshape(-1, *shape)
        # An area mean has no place to taper about: what its correlations owe to chance is taken off them.
        cross = significant(gain.covariance(others.carried), others.carried, seen)
        others.carried += weights.double() @ cross.T.double()
        samples.carried += own_weights.double() @ cross.T.double()
        promised = seen.var(dim=0) * (1 + 1 / len(seen)) + noise
        return float(((y - seen.mean(dim=0)).square() / promised).mean())

    def _radius(self, others: Members, k: int, seen: Tensor, noise: Tensor, distances: Distances) -> float:
        """Of the taper for which the first half finds the second half's latents best."""
        half = len(seen) // 2
        z = others.z[:, k].flatten(1)
        known, sought = z[:half], z[half:]
        g = torch.Generator().manual_seed(k)
        errors = torch.randn(len(seen) - half, len(noise), generator=g).to(noise) * noise.sqrt()
        misfit = seen[half:] + errors - seen[:half].mean(dim=0)
        best, lowest = float("inf"), float("inf")
        for radius in _RADII:
            gain = Gain(seen[:half], noise, distances.between, radius)
            near = taper(distances.latent, radius).repeat(others.z.shape[2], 1)
            estimate = known.mean(dim=0) + gain.weights(misfit) @ (gain.covariance(known) * near).T
            loss = float((estimate - sought).square().mean())
            if loss < lowest:
                best, lowest = radius, loss
        return best

    def _seen(self, m: Members, k: int, places: Tensor, std: Tensor) -> Tensor:
        """Decoded and normalised at observed places, ``(B, count)``."""
        found = []
        for i in range(0, len(m.z), _BATCH):
            u = self._decode(m.z[i : i + _BATCH, k], m.carried[i : i + _BATCH], k)
            found.append(u.flatten(1)[:, places] / std)
        return torch.cat(found)

    def _errors(self, m: Members, draws: Draws, k: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """The members' drawn decoder errors at observed places, and their standard deviations, ``(B, count)``."""
        scale = self.model.scale(m.z[:, k])
        error = (scale * self.model.draw(draws.decoder[:, k])).flatten(1)[:, places]
        return error, scale.flatten(1)[:, places]

    def _distances(self, places: Tensor) -> Distances:
        """Between observed places, and from latent cells to them, in cells; along periodic axes the chord."""
        grid, like = self.emulator.autoencoder.network.grid, self.std
        index = torch.unravel_index(places % prod(self.space), self.space)
        at = torch.stack(index, dim=1).to(like)
        centres = [
            torch.arange(n, dtype=like.dtype, device=like.device) * f + (f - 1) / 2
            for n, f in zip(grid.latent, grid.factor, strict=True)
        ]
        latent = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).reshape(-1, len(centres))

        def between(a: Tensor, b: Tensor) -> Tensor:
            away = a[:, None] - b[None]
            for axis, (n, wraps) in enumerate(zip(self.space, grid.wraps, strict=True)):
                if wraps:
                    away[..., axis] = chord(away[..., axis], n)
            return away.square().sum(dim=-1).sqrt()

        return Distances(between(at, at), between(latent, at))

    # fields

    @torch.no_grad()
    def fields(self, m: Members, observed: Observed, draws: Draws) -> Iterator[Tensor]:
        """Every frame ``(B, C, *space)`` in physical units, with the decoder's error given the observations."""
        for k in range(self.frames):
            z, n, where = m.z[:, k], draws.decoder[:, k], observed.where[k]
            body = self.emulator.autoencoder.network.decode(z)
            scale = self.model.scale(z)

            def normalised(n: Tensor, k: int = k, body: Tensor = body, scale: Tensor = scale) -> Tensor:
                return self._headed(body + scale * self.model.draw(n), m.carried, k) / self.std

            if bool(where.any()):
                exact = where & (observed.error[k] == 0)
                r = observed.error[k] / self.std
                goal, variance = observed.value[k] / self.std + r * draws.error[:, k], torch.where(where, r**2, 0.0)
                n = through(normalised, n, goal, where, exact, variance)
                yield torch.where(exact, observed.value[k], normalised(n) * self.std)
            else:
                yield normalised(n) * self.std

    def _decode(self, z: Tensor, carried: Tensor, k: int) -> Tensor:
        return self._headed(self.emulator.autoencoder.network.decode(z), carried, k)

    def _headed(self, x: Tensor, carried: Tensor, k: int) -> Tensor:
        """What `Autoencoder.decode` does after its network: normalised fields to physical ones that obey the heads."""
        a = self.emulator.autoencoder
        if a.mask is not None:
            x = x * a.mask
        u: Tensor = a.heads(a.normaliser.inverse(x, self._phase(k, len(x))), carried)
        return u

    def _phase(self, k: int, batch: int) -> Tensor | None:
        return None if self.phase is None else self.phase[k].expand(batch, 4)
