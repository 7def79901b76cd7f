"""A forecast as an objective sees it: named torch fields in physical units, one entry a member.

    view["vorticity"]               (members, steps, *space)    all leads
    view.field("vorticity", 20)     (members, *space)           lead 20, that is 20 frame intervals after the start
    view.initial("vorticity")       (*space)                    the state that the forecast starts from
    view.area("vorticity", x=slice(1.0, 2.0))   (*space)        area weights of a region, sum 1

A view is lazy: a frame is computed when it is asked for and decoded when a field of it is, so an objective of lead 20
decodes one frame of twenty. It is made from a rollout (`rolled`), whose fields carry gradients, from tensors or from a
Dataset that `forecast` made; an objective written for one works on all.

Within a rollout every frame is a checkpoint (Chen et al. 2016, arXiv:1604.06174): only the latents between frames are
kept, what lies within a frame is computed again on the way back. Every rollout starts its members' generators anew, so
that two of them differ by their initial states alone (common random numbers).
"""

from collections.abc import Callable
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from ..datasets.fields import to_tensor
from ..datasets.problem import Problem, SpecError
from ..datasets.spec import FieldSpec
from .emulator import Emulator, Mode
from .noise import draw, member_generator
from .repair import Repair
from .rollout import resumed
from .state import State

__all__ = ["ForecastView", "rolled", "viewed"]


class ForecastView:
    """Fields of one forecast.

    Arguments:
        spec: names, units, grid and masks.
        steps, members: leads and ensemble size.
        frame: gives lead k, from 1, as ``(members, C, *space)`` in physical units; asked once a lead.
        start: the initial state ``(C, *space)``.
    """

    def __init__(
        self, spec: FieldSpec, steps: int, members: int, frame: Callable[[int], Tensor], start: Tensor
    ) -> None:
        self.spec, self.steps, self.members = spec, steps, members
        self._frame, self._start = frame, start
        self._frames: dict[int, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """All leads of a variable, ``(members, steps, *space)`` in its units."""
        return torch.stack([self.field(name, k) for k in range(1, self.steps + 1)], dim=1)

    def field(self, name: str, lead: int) -> Tensor:
        """One lead of a variable, ``(members, *space)`` in its units; lead 1 is one frame interval after the start.

        Raises SpecError for an unknown variable and for a lead that the forecast does not have.
        """
        channel = self._channel(name)
        if isinstance(lead, bool) or not isinstance(lead, int) or not 1 <= lead <= self.steps:
            wanted, fix = f"a whole number from 1 to {self.steps}, counted in frames", "correct it, or raise steps"
            raise SpecError([Problem("objective, lead", f"{lead!r}", wanted, fix)])
        return self.frame(lead)[:, channel]

    def frame(self, lead: int) -> Tensor:
        """All variables of one lead, ``(members, C, *space)``."""
        if lead not in self._frames:
            self._frames[lead] = self._frame(lead)
        return self._frames[lead]

    def initial(self, name: str) -> Tensor:
        """A variable of the initial state, ``(*space)`` in its units."""
        return self._start[self._channel(name)]

    def member(self, index: int) -> "ForecastView":
        """The same forecast with one member only."""
        return ForecastView(self.spec, self.steps, 1, lambda k: self.frame(k)[index : index + 1], self._start)

    def area(self, name: str, **where: slice) -> Tensor:
        """Area weights ``(*space)`` of a variable's valid cells within a region, sum 1.

        Arguments:
            where: a slice of coordinates for each axis that bounds the region, both ends included, in the axis's own
                units; on a periodic axis ``slice(5.5, 0.5)`` goes on across the edge.

        Raises SpecError for an unknown axis and for a region without a valid cell.
        """
        self._channel(name)
        grid = self.spec.grid
        inside = torch.ones(grid.shape, dtype=torch.bool)
        for axis, bounds in where.items():
            if axis not in grid.names:
                wanted = f"one of {', '.join(grid.names)}"
                raise SpecError([Problem("objective, region", f"axis {axis!r}", wanted, "correct the name")])
            shape = [-1 if n == axis else 1 for n in grid.names]
            inside = inside & self._within(axis, bounds).reshape(shape)
        mask = self.spec.masks.get(name)
        valid = inside if mask is None else inside & torch.from_numpy(mask)
        if not bool(valid.any()):
            told = ", ".join(f"{a}={b.start}…{b.stop}" for a, b in where.items())
            found = f"no valid cell of {name} in {told}" if inside.any() else f"no cell of the grid in {told}"
            raise SpecError([Problem("objective, region", found, f"cells of the grid ({grid})", "move or widen it")])
        weights = grid.area_weights() * valid
        like = self._start
        return (weights / weights.sum()).to(like.device, like.dtype)

    def _within(self, axis: str, bounds: slice) -> Tensor:
        a = self.spec.grid.axes[self.spec.grid.index(axis)]
        if not isinstance(bounds, slice) or bounds.step is not None:
            wanted = f"slice(first, last) of coordinates in {a.units}"
            raise SpecError([Problem(f"objective, region, {axis}", f"{bounds!r}", wanted, f"{axis}=slice(1.0, 2.0)")])
        x = torch.tensor(a.coordinates, dtype=torch.float64)
        first = float("-inf") if bounds.start is None else float(bounds.start)
        last = float("inf") if bounds.stop is None else float(bounds.stop)
        if first > last and a.periodic:
            return (x >= first) | (x <= last)
        return (x >= first) & (x <= last)

    def _channel(self, name: str) -> int:
        if name not in self.spec.names:
            wanted = f"one of {', '.join(self.spec.names)}"
            raise SpecError([Problem("objective", f"variable {name!r}", wanted, "correct the name")])
        return self.spec.names.index(name)


class _Checkpoint(torch.autograd.Function):
    """``function(*inputs)``, of which the inputs alone are kept: it runs again on the way back.

    The one of `torch.utils.checkpoint` loads torch's compiler, which takes seconds.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs = [x.detach().requires_grad_(True) for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.function(*inputs)
        return None, *torch.autograd.grad(out, inputs, gradients[0], allow_unused=True)


class _Rollout:
    """Latents of a forecast frame by frame, as far as they have been asked for."""

    def __init__(
        self, emulator: Emulator, state: State, mode: Mode, generators: list[torch.Generator], phase: Tensor | None,
        errors: bool, checkpointed: bool, repair: Repair | None,
    ) -> None:  # fmt: skip
        self.emulator, self.mode, self.phase, self.checkpointed = emulator, mode, phase, checkpointed
        self.repair = repair
        self.states, self.generators = [state], generators
        self.size = emulator.noise_size(mode)
        # The mean net forecasts the mean: a drawn decoder error would only add to its error.
        self.error_size = emulator.decode_noise_size if mode != "mean" else 0
        self.errors = errors and self.error_size > 0
        self.marks: list[list[Tensor]] = [[]]

    def state(self, k: int) -> State:
        while len(self.states) <= k:
            self._advance()
        return self.states[k]

    def _advance(self) -> None:
        last = self.states[-1]
        # Drawn in the order of `forecast`: the step's noise, then the decoder's, which waits until it is needed.
        noise = draw(self.generators, self.size).to(last.z) if self.size else None
        self.marks.append([g.get_state() for g in self.generators] if self.errors else [])
        if self.error_size:
            draw(self.generators, self.error_size)
        k = len(self.states) - 1
        phase = self._phase(k)

        def one_frame(z: Tensor, carried: Tensor) -> Tensor:
            state = resumed(self.emulator, State(z, carried), k, self.phase)
            z = self.emulator.advance(state, noise, phase, self.mode).z
            return z if self.repair is None else torch.cat([z[:, :-1], z[:, -1:] + self.repair.steps[k]], dim=1)

        self.states.append(State(self._run(one_frame, last.z, last.carried), last.carried))

    def decode(self, k: int) -> Tensor:
        state = self.state(k)
        noise = None
        if self.errors:
            noise = draw([_generator(mark) for mark in self.marks[k]], self.error_size).to(state.z)

        def decoded(z: Tensor, carried: Tensor) -> Tensor:
            u = self.emulator.decode(State(z, carried), self._phase(k), noise)
            return u if self.repair is None else u + self.repair.fields[k - 1]

        return self._run(decoded, state.z, state.carried)

    def _run(self, function: Callable[[Tensor, Tensor], Tensor], z: Tensor, carried: Tensor) -> Tensor:
        if not (self.checkpointed and torch.is_grad_enabled()):
            return function(z, carried)
        out: Tensor = _Checkpoint.apply(function, z, carried)  # type: ignore[no-untyped-call]
        return out

    def _phase(self, k: int) -> Tensor | None:
        z = self.states[0].z
        return None if self.phase is None else self.phase[k].to(z).expand(len(z), 4)


def _generator(mark: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(mark)
    return generator


def rolled(
    emulator: Emulator,
    u: Tensor,
    steps: int,
    members: int,
    mode: Mode,
    *,
    seed: int = 0,
    init_time: Any = 0,
    context: Tensor | None = None,
    phase: Tensor | None = None,
    errors: bool = True,
    checkpointed: bool = True,
    repair: Repair | None = None,
) -> tuple[ForecastView, Callable[[int], State]]:
    """The forecast from one state, differentiable with respect to it, and its latent state at lead k.

    Arguments:
        u: context frames ``(history, C, *space)`` in physical units.
        seed, init_time: of the members' generators, as `forecast` uses them: member m is that of `forecast`.
        context, phase: phases of the year and day of the context frames ``(history, 4)`` and from the start on
            ``(steps + 1, 4)``; None for models without a calendar.
        errors: draw the decoder's error.
        checkpointed: keep latents only, and compute the rest again on the way back.
        repair: what is added to every step and frame.
    """
    once = emulator.encode(u[None], None if context is None else context[None].to(u))
    state = State(once.z.expand(members, *once.z.shape[1:]), once.carried.expand(members, -1))
    generators = [member_generator(seed, init_time, m) for m in range(members)]
    rollout = _Rollout(emulator, state, mode, generators, phase, errors, checkpointed, repair)
    return ForecastView(emulator.autoencoder.spec, steps, members, rollout.decode, u[-1]), rollout.state


def viewed(fields: Tensor | xr.Dataset, spec: FieldSpec, start: Tensor | None = None) -> ForecastView:
    """Fields ``(members, steps, C, *space)``, or one start of a Dataset that `forecast` made, as a view.

    Arguments:
        start: the initial state ``(C, *space)``; NaN where it is not known.

    Raises SpecError for a Dataset with several starts.
    """
    if isinstance(fields, xr.Dataset):
        if fields.sizes.get("init_time", 1) != 1:
            found = f"{fields.sizes['init_time']} starts"
            raise SpecError([Problem("forecast", found, "one", "choose: fc.isel(init_time=0)")])
        one = fields.squeeze("init_time") if "init_time" in fields.dims else fields
        one = one if "member" in one.dims else one.expand_dims("member")
        fields = to_tensor(one[list(spec.names)].transpose("member", "lead_time", ...), spec)
    members, steps = fields.shape[:2]
    known = torch.full_like(fields[0, 0], torch.nan) if start is None else start
    values = fields
    return ForecastView(spec, steps, members, lambda k: values[:, k - 1], known)
