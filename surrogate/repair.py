"""What a forecast lacks of a run that is known, as tendencies: the critic's answer, made part of the model.

With z_k the latents of the known frames u_k and Φ the step of the model (its members averaged),

    e_k = E(u_{k+1}) − Φ(z_k)         added to every step
    d_k = u_k − D(z_k)                added to every decoded frame

so that the forecast from u_0 is the known run itself, and the forecast from a state nearby is linearised about the
truth instead of about the model's own mistaken run: errors of the model's tangent are left, errors of its trajectory
are not. This is the model error of weak-constraint variational assimilation (Trémolet 2006, doi:10.1256/qj.05.224),
known instead of estimated. As a correction of a surrogate between runs of the costly model it is what trust-region
model management does (Alexandrov et al. 1998, doi:10.1007/BF01197433), but of order nought: values agree, gradients
need not, since none of the costly model is asked for; and so without that method's guarantee.

For several members the step is that of their mean: their mean after one step is the run's, later ones are near it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .emulator import Emulator, Mode
from .noise import draw, member_generator
from .rollout import resumed
from .state import State

__all__ = ["Repair"]


@dataclass
class Repair:
    """What is added: ``steps[k] (c, *latent)`` to the step from frame k, ``fields[k] (C, *space)`` to frame k + 1."""

    steps: list[Tensor]
    fields: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        emulator: Emulator,
        u: Tensor,
        run: Tensor,
        members: int,
        mode: Mode,
        *,
        seed: int = 0,
        init_time: Any = 0,
        context: Tensor | None = None,
        phase: Tensor | None = None,
    ) -> "Repair":
        """The repair for a known run.

        Arguments:
            u: the frames that the forecast starts from ``(history, C, *space)``, in physical units.
            run: the frames that follow ``(steps, C, *space)``.
            members, mode, seed, init_time, context, phase: of the forecast, as for `view.rolled`; every step is
                averaged over its members.
        """
        history, every = len(u), torch.cat([u, run.to(u)])
        phases = None if phase is None or context is None else torch.cat([context, phase[1 : len(run) + 1]]).to(u)
        codes = emulator.autoencoder.encode(every, phases)
        carried = codes.carried[history - 1 : history].expand(members, -1)
        generators = [member_generator(seed, init_time, m) for m in range(members)]
        size, decode_size = emulator.noise_size(mode), emulator.decode_noise_size if mode != "mean" else 0
        steps, fields = [], []
        every_member = (members, *(-1 for _ in range(codes.z.ndim)))
        state = State(codes.z[None, :history].expand(every_member), carried)
        for k in range(len(run)):
            z = codes.z
            noise = draw(generators, size).to(z) if size else None
            if decode_size:  # drawn in the order of `forecast`
                draw(generators, decode_size)
            state = resumed(emulator, state, k, phase)
            now = None if phase is None else phase[k].to(z).expand(members, -1)
            after = emulator.advance(state, noise, now, mode).z
            steps.append(z[history + k] - after[:, -1].mean(0))
            newest = z[None, history + k, None].expand(every_member)
            state = State(torch.cat([after[:, :-1], newest], dim=1), carried)
            known = State(codes.z[None, k + 1 : k + 1 + history], carried[:1])
            then = None if phase is None else phase[None, k + 1].to(z)
            fields.append(every[history + k] - emulator.decode(known, then)[0])
        return cls(steps, fields)
