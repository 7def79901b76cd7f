"""The dynamics on latents: one frame forward, in two speeds.

With z the latents of the last frames, ℓ(z) a start that needs no network and s the scale of what it misses:

    mean net        m(z) = ℓ(z) + s M(z)                                 deterministic, trained through the decoder
    quality         z₁ = m(z) + σ r,  r = sampler(x̂(·; z, m(z)), noise)   flow matching on the residual to the mean net
    fast            z₁ = ℓ(z) + q + s G(z, noise)                         one evaluation, CRPS through the decoder

ℓ is persistence, z₀, or a coarse run of the equation's solver (`CoarseSolver`), and q is 0; or ℓ is a linear map fitted
before and q its innovation, which G then sees as its maps of noise (`Propagator`). M, F (inside x̂) and G are three
sets of weights of one `Backbone`; G starts from M. A rollout stays in latent space, but for a rare refreshed frame
(`rollout`). Noise always comes from outside, as a flat vector of `noise_size` numbers a member and frame, so that a
member is a function of its own generator and of nothing else.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..autoencoder.error import DecoderError
from ..autoencoder.model import Autoencoder
from ..autoencoder.network import saturate
from ..physics.equation import Equation
from .backbone import Backbone, fourier_features
from .coarse import CoarseSolver
from .correction import Correction
from .denoiser import PreconditionedDenoiser
from .gain import SpectralGain
from .propagator import Propagator
from .residual import ResidualOperator
from .sampler import SAMPLERS
from .schedule import RectifiedFlow
from .state import State

__all__ = ["Emulator", "Mode"]

Mode = Literal["mean", "quality", "fast"]
TIME_FEATURES = 32


class Emulator(nn.Module):
    """Autoencoder, mean net, generator and fast net of one model.

    Arguments:
        autoencoder: trained, and frozen while the dynamics are trained.
        history: context frames.
        width, depth: of every backbone.
        position: learned static maps (0: the dynamics are the same everywhere).
        calendar: give the networks the phase of the year and day.
        noise_maps, noise_vector: channels of the fast mode's noise on the latent grid, and numbers of its global noise.
        sampler, sampling_steps: how the quality mode samples.
        dropout: of the backbones, while training.
        linear: ``reach``, ``components`` and ``innovations`` of the `Propagator` that the networks start from; None for
            persistence.
        coarse: ``resolution`` and ``steps`` of the `CoarseSolver` that they start from instead; None for persistence.
        refresh: frames after which a rollout goes on from what the encoder makes of its decoded fields; None: never.

    Attributes:
        laws: the equation that the networks were trained under and the one that they shall obey, where these differ.
        corrector: what every frame is moved towards by the gain: the answer of this equation's solver, or of the
            residual operator ("operator").
    """

    mean: Backbone | None
    generator: Backbone | None
    fast: Backbone | None
    error: DecoderError | None
    correction: Correction | None
    propagator: Propagator | None
    operator: ResidualOperator | None
    laws: tuple[Equation, Equation] | None = None
    corrector: Equation | Literal["operator"] | None = None
    increment: Tensor
    residual: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        history: int = 1,
        width: int = 96,
        depth: int = 6,
        position: int = 0,
        calendar: bool = False,
        noise_maps: int = 4,
        noise_vector: int = 16,
        sampler: str = "ab2",
        sampling_steps: int = 8,
        dropout: float = 0.0,
        parts: tuple[str, ...] = ("mean", "generator", "fast"),
        linear: Mapping[str, int] | None = None,
        refresh: int | None = 20,
        coarse: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        if coarse is not None and (linear is not None or calendar):
            raise ValueError("emulator.coarse: found it beside emulator.linear or emulator.calendar, wanted it alone")
        if refresh is not None and refresh < history:
            raise ValueError(
                f"emulator.refresh: found {refresh}, wanted at least history, {history}, or null for never"
            )
        self.autoencoder = autoencoder
        self.history = history
        self.refresh = refresh
        self.calendar = calendar
        # Beside a linear map, the maps of noise are its innovations.
        self.noise_maps, self.noise_vector = noise_maps if linear is None else autoencoder.latent_shape[0], noise_vector
        self.sampler, self.sampling_steps = sampler, sampling_steps
        c, *latent = autoencoder.latent_shape
        self.latent_shape = (c, *latent)
        phase = 4 if calendar else 0
        flags = autoencoder.network.grid.periodic

        def net(maps: int, condition: int) -> Backbone:
            return Backbone(maps, c, flags, width, depth, condition, latent, position, dropout)

        # What the coarse solver makes of the newest frame is beside the frames that the networks see.
        self.known = known = (history + (coarse is not None)) * c
        self.mean = net(known, phase) if "mean" in parts else None
        context = known + (c if self.mean is not None else 0)
        self.generator = net(context + c, phase + TIME_FEATURES) if "generator" in parts else None
        self.fast = net(known + self.noise_maps, phase + noise_vector) if "fast" in parts else None
        self.error = DecoderError(autoencoder) if "error" in parts else None
        self.correction = Correction(autoencoder) if "correction" in parts else None
        shared = position == 0
        self.propagator = Propagator(c, latent, flags, history, shared=shared, **linear) if linear is not None else None
        self.coarse = CoarseSolver(autoencoder.spec, **coarse) if coarse is not None else None
        self.operator = ResidualOperator(net(known, phase)) if "operator" in parts else None
        ones = torch.ones(c, *(1,) * len(latent))
        self.register_buffer("increment", ones.clone())
        self.register_buffer("residual", ones.clone())
        self.config: Mapping[str, Any] = {
            "history": history, "width": width, "depth": depth, "position": position, "calendar": calendar,
            "noise_maps": noise_maps, "noise_vector": noise_vector, "sampler": sampler,
            "sampling_steps": sampling_steps, "dropout": dropout, "parts": list(parts),
            "linear": None if linear is None else dict(linear), "refresh": refresh,
            "coarse": None if coarse is None else dict(coarse),
        }  # fmt: skip

    # states

    def encode(self, u: Tensor, phase: Tensor | None = None) -> State:
        """``u (B, history, C, *space)`` in physical units, ``phase (B, history, 4)``, oldest frame first."""
        batch, history = u.shape[:2]
        if history != self.history:
            raise ValueError(f"need {self.history} context frames, got {history}")
        latent = self.autoencoder.encode(u.flatten(0, 1), None if phase is None else phase.flatten(0, 1))
        z = latent.z.reshape(batch, history, *self.latent_shape)
        return State(z, latent.carried.reshape(batch, history, -1)[:, -1])

    def decode(self, state: State, phase: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Newest frame in physical units ``(B, C, *space)``.

        ``noise (B, decode_noise_size)``, standard normal, adds the decoder's error.
        """
        wanted, cells = state.z.requires_grad and torch.is_grad_enabled(), state.cells
        if cells is None or (wanted and not cells.requires_grad):
            cells = self.autoencoder.network.decode(state.z[:, -1])
        if self.coarse is not None:
            state.cells = cells
        error = None
        if noise is not None and self.error is not None:
            error = self.error(state.z[:, -1], noise)
        return self.autoencoder.finish(cells, state.carried, phase, error)

    def push(self, state: State, z: Tensor) -> State:
        """The state one frame later, with ``z (B, c, *latent)`` as its newest frame."""
        limit = self.autoencoder.network.bound
        if limit is not None:
            z = saturate(z, limit)
        return State(torch.cat([state.z[:, 1:], z[:, None]], dim=1), state.carried)

    # one frame

    def noise_size(self, mode: Mode) -> int:
        """Standard normal numbers that one member needs for one frame forward."""
        if mode not in get_args(Mode):
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(get_args(Mode))}")
        if mode == "mean":
            return 0
        if mode == "fast" and self.propagator is not None:
            return self.propagator.noise_size + self.noise_vector
        if mode == "fast":
            return self.noise_maps * int(prod(self.latent_shape[1:])) + self.noise_vector
        return int(prod(self.latent_shape))

    @property
    def decode_noise_size(self) -> int:
        """Standard normal numbers that one member needs for one decoded frame."""
        return 0 if self.error is None else self.error.noise_size

    def advance(
        self, state: State, noise: Tensor | None = None, phase: Tensor | None = None, mode: Mode = "fast"
    ) -> State:
        """One frame forward, corrected by the `corrector`, and under the wanted one of `laws` where there are any.

        Arguments:
            state: of batch size B.
            noise: ``(B, noise_size(mode))``, standard normal.
            phase: ``(B, 4)``, phase of the year and day of the *newest* frame of ``state``.
            mode: one of `modes`.

        Raises ValueError for a mode that this model was not built for, and for noise of another shape.
        """
        following = self.free(state, noise, phase, mode)
        if isinstance(self.corrector, Equation):
            return self._towards(self.corrector, state, following)
        if self.corrector == "operator":
            following = self.corrected(state, following, phase)
        if self.laws is None or self.coarse is not None:
            return following
        return self._under(self.laws, state, following)

    def free(self, state: State, noise: Tensor | None, phase: Tensor | None, mode: Mode) -> State:
        """One frame forward by the networks alone; arguments as for `advance`."""
        context, condition = self.context(state), self.condition(phase)
        if mode == "mean":
            return self.push(state, self.predict_mean(state, context, condition))
        if noise is None or noise.shape != (len(state.z), self.noise_size(mode)):
            found = "none" if noise is None else tuple(noise.shape)
            raise ValueError(f"mode {mode!r}: found noise {found}, wanted {(len(state.z), self.noise_size(mode))}")
        if mode == "fast":
            return self.push(state, self.predict_fast(state, context, condition, noise))
        start = self.expected(state, context, condition)
        x = noise.reshape(len(noise), *self.latent_shape)
        sampler = SAMPLERS[self.sampler](self.denoiser(context, start, condition), self.sampling_steps)
        return self.push(state, start + self.residual * sampler(x))

    def context(self, state: State) -> Tensor:
        """What the networks see of a state, ``(B, known, *latent)``: its frames, and with a coarse solver the start."""
        frames = state.z.flatten(1, 2)
        if self.coarse is None:
            return frames
        following = self.autoencoder.encode(self.coarse(self.decode(state)))
        return torch.cat([frames, following.z], dim=1)

    def condition(self, phase: Tensor | None) -> Tensor | None:
        """What the networks are told beside the maps."""
        if not self.calendar:
            return None
        if phase is None:
            raise ValueError("this model needs the phase of the year and day, (batch, 4)")
        return phase

    def start(self, state: State, context: Tensor) -> Tensor:
        """What the networks add to, ``(B, c, *latent)``: the newest frame, or the next one by the linear map or the
        coarse solver, which is in the ``context``."""
        if self.coarse is not None:
            return context[:, -self.latent_shape[0] :]
        return state.z[:, -1] if self.propagator is None else self.propagator(state.z)

    def expected(self, state: State, context: Tensor, condition: Tensor | None) -> Tensor:
        """What the generator adds to, ``(B, c, *latent)``: the mean net's next frame, or the start without one."""
        return self.start(state, context) if self.mean is None else self.predict_mean(state, context, condition)

    def predict_mean(self, state: State, context: Tensor, condition: Tensor | None) -> Tensor:
        """The mean net's next frame."""
        change: Tensor = self.part("mean")(context, condition)
        return self.start(state, context) + self.increment * change

    def predict_fast(self, state: State, context: Tensor, condition: Tensor | None, noise: Tensor) -> Tensor:
        """The fast net's next frame, a sample."""
        cells = noise.shape[1] - self.noise_vector
        start, vector = self.start(state, context), noise[:, cells:]
        if self.propagator is None:
            maps = noise[:, :cells].reshape(len(noise), self.noise_maps, *self.latent_shape[1:])
        else:
            innovation = self.propagator.innovation(noise[:, :cells])
            start, maps = start + innovation, innovation / self.increment
        c = vector if condition is None else torch.cat([condition, vector], dim=1)
        change: Tensor = self.part("fast")(torch.cat([context, maps], dim=1), c)
        return start + self.increment * change

    def denoiser(self, context: Tensor, start: Tensor, condition: Tensor | None) -> PreconditionedDenoiser:
        """Denoiser of the unit-variance residual ``(z₁ − start)/σ``, given context frames and the mean net's answer."""
        backbone = self.part("generator")
        maps = context if self.mean is None else torch.cat([context, start], dim=1)

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            features = fourier_features(t, TIME_FEATURES)
            c = features if condition is None else torch.cat([condition, features], dim=1)
            out: Tensor = backbone(torch.cat([maps, x_t], dim=1), c)
            return out

        return PreconditionedDenoiser(network, RectifiedFlow())

    def part(self, name: str) -> Any:
        """The part of that name. Raises ValueError for a model without it."""
        found = self._modules.get(name)
        if found is None:
            raise ValueError(
                f"found a model of {', '.join(self.config['parts']) or 'no parts'} and no {name!r} network, wanted one "
                "that has it. Usual fix: name it in emulator.parts and in training.stages"
            )
        return found

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that this model can run."""
        found: list[Mode] = []
        if self.fast is not None:
            found.append("fast")
        if self.generator is not None:
            found.append("quality")
        if self.mean is not None:
            found.append("mean")
        return tuple(found)

    # towards an equation

    def obey(self, trained: Equation, wanted: Equation) -> None:
        """Add to every frame from now on the effect that the ``wanted`` equation has beyond the ``trained`` one.

        A coarse solver to start from runs the ``wanted`` equation from then on, which is that effect; other models need
        a gain, and ValueError is raised without. A correction towards an equation goes by the ``wanted`` one, too.
        """
        if self.coarse is not None:
            self.coarse = self.coarse.at(wanted.parameters)
        else:
            self.part("correction")
        self.laws = (trained, wanted)
        if isinstance(self.corrector, Equation):
            self.corrector = wanted

    def _under(self, laws: tuple[Equation, Equation], before: State, after: State) -> State:
        correction = self.part("correction")
        change = correction.effect(self.autoencoder, before.latent, *laws)
        moved = correction(after.z[:, -1], change)  # not bounded a second time: no change of laws, no change
        return State(torch.cat([after.z[:, :-1], moved[:, None]], dim=1), after.carried)

    def expect(self, state: State, phase: Tensor | None = None) -> Tensor:
        """m_φ(z₀): the latents that the residual operator expects one frame after ``state``."""
        context, condition = self.context(state), self.condition(phase)
        expected: Tensor = self.part("operator").follow(self.start(state, context), self.increment, context, condition)
        return expected

    def corrected(self, before: State, after: State, phase: Tensor | None = None) -> State:
        """The frame ``after``, moved by the gain to what the residual operator expects after ``before``."""
        correction, expected = self.part("correction"), self.expect(before, phase)
        if isinstance(correction.gain, SpectralGain):  # K R_φ without a decode
            return self.push(before, after.z[:, -1] + correction.gain.between(after.z[:, -1], expected))
        r = self.part("operator").read(self.autoencoder, correction, expected, after.z[:, -1], after.carried)
        return self.push(before, correction(after.z[:, -1], -r))

    def _towards(self, known: Equation, before: State, after: State) -> State:
        """The frame ``after``, moved by the gain to what the solver makes of the decoded frame ``before``."""
        correction, autoencoder = self.part("correction"), self.autoencoder
        wanted = known.advance(autoencoder.decode(before.latent), autoencoder.spec.interval)
        change = correction.project(autoencoder, wanted)
        change = change - correction.project(autoencoder, autoencoder.decode(after.latent))
        return self.push(before, correction(after.z[:, -1], change))
