"""What the networks are trained for: one function a stage, each from a batch of windows to a scalar.

Windows are ``u (B, L, C, *space)`` in physical units with ``phase (B, L, 4)``. Every loss is taken on normalised
fields, weighted by the area of the cells and restricted to valid ones, after the exact heads: that is where the user
looks. Losses in the latent metric spend the network's capacity on directions that the decoder ignores; only the
generator, whose target lives in the latent, is trained there, and then weighted by how much the decoder sees of each
channel.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoder.model import Autoencoder, Latent
from .denoiser import logit_normal
from .emulator import Emulator, Mode
from .state import State

if TYPE_CHECKING:
    from .pool import Pool

__all__ = [
    "almost_fair_crps",
    "blurred",
    "correction_loss",
    "decoder_error_loss",
    "decoder_sensitivity",
    "field_weights",
    "generator_loss",
    "operator_loss",
    "pyramid",
    "reconstruction_loss",
    "rollout_loss",
]


def field_weights(autoencoder: Autoencoder) -> Tensor:
    """Area weights times mask ``(C, *space)``: a plain mean of ``weights · square`` is the mean over valid cells."""
    weights = autoencoder.heads.weights
    return (weights / weights.mean()).float()


def almost_fair_crps(members: Tensor, truth: Tensor, alpha: float = 0.95) -> Tensor:
    """Almost fair CRPS, element by element (Lang et al. 2024, arXiv:2412.15832, eq. 4).

        1/M Σ|xᵢ − y| − (1 − (1 − α)/M)/(2 M (M − 1)) ΣΣ|xᵢ − xⱼ|

    Arguments:
        members: ``(M, …)``, M ≥ 2.
        truth: ``(…)``.
        alpha: 1 is the fair CRPS, 0 the biased one. Slightly below 1 keeps a member from hiding behind another.
    """
    m = len(members)
    if m < 2:
        raise ValueError(f"the fair CRPS needs two members or more, got {m}")
    skill = (members - truth).abs().mean(dim=0)
    spread = (members[:, None] - members[None]).abs().sum(dim=(0, 1)) / (2 * m * (m - 1))
    return skill - (1 - (1 - alpha) / m) * spread


def reconstruction_loss(
    autoencoder: Autoencoder, u: Tensor, phase: Tensor, noise: float, generator: torch.Generator | None = None
) -> Tensor:
    """Weighted mean square of D(E(u) + τ ε) − u, τ uniform in (0, noise): makes the decoder smooth around its codes."""
    u, phase = u[:, 0], phase[:, 0]
    latent = autoencoder.encode(u, phase)
    level = noise * torch.rand(len(u), *(1,) * (latent.z.ndim - 1), generator=generator).to(u)
    epsilon = torch.randn(latent.z.shape, generator=generator).to(u)
    decoded = autoencoder.decode(Latent(latent.z + level * epsilon, latent.carried), phase)
    error = autoencoder.normalise(decoded, phase) - autoencoder.normalise(u, phase)
    return (field_weights(autoencoder) * error.square()).mean()


def decoder_error_loss(
    emulator: Emulator, u: Tensor, phase: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Fair CRPS of two draws of the decoder-error model against the field that was compressed.

    On single cells it fits the amplitude, and on means over blocks of 2, 4, … cells, the spacings of the noise's grids,
    the mixture. Each is held still for the other's part: a mixture of smooth fields cannot follow errors that cancel
    within a block, and would make up for it with a smaller amplitude.
    """
    error = emulator.error
    if error is None:
        raise ValueError("this model has no decoder-error model")
    autoencoder = emulator.autoencoder
    u, phase = u[:, 0], phase[:, 0]
    with torch.no_grad():
        latent = autoencoder.encode(u, phase)
    weights, scales = field_weights(autoencoder), len(error.grids)
    amplitude = error.scale(latent.z)
    cells: list[Tensor] = []
    blocks: list[Tensor] = []
    for _ in range(2):
        epsilon = error.draw(torch.randn(len(u), error.noise_size, generator=generator).to(u))
        for members, noise in ((cells, amplitude * epsilon.detach()), (blocks, amplitude.detach() * epsilon)):
            members.append(autoencoder.normalise(autoencoder.decode(latent, phase, noise), phase))
    truth = autoencoder.normalise(u, phase)
    loss = (weights * almost_fair_crps(torch.stack(cells), truth, 1.0)).mean()
    levels = zip(*(pyramid(x, weights, scales)[1:] for x in (*blocks, truth)), strict=True)
    for (first, weight), (second, _), (target, _) in levels:
        loss = loss + (weight * almost_fair_crps(torch.stack([first, second]), target, 1.0)).mean()
    return loss / scales


def rollout_loss(
    emulator: Emulator,
    u: Tensor,
    phase: Tensor,
    mode: Mode,
    members: int = 1,
    scales: int = 1,
    alpha: float = 0.95,
    generator: torch.Generator | None = None,
    context_noise: float = 0.0,
    free: int = 0,
) -> Tensor:
    """Unrolled through the decoder over ``L − history`` frames.

    One member (the mean net): weighted mean square error. Two or more (the fast net): almost fair CRPS, averaged over
    fields pooled over blocks of 1, 2, 4, … cells (``scales`` of them), so that members must be coherent and not only
    right in every cell. ``context_noise`` is the largest noise on the latents of the context: what a rollout will bring
    anyway, and against learning a short record by heart. The first ``free`` frames are run without a gradient and are
    not scored (the pushforward of Brandstetter et al. 2022, arXiv:2202.03376): they bring the net to the states of its
    own long runs at a third of the price.
    """
    autoencoder, history = emulator.autoencoder, emulator.history
    batch, length = u.shape[:2]
    with torch.no_grad():
        state = blurred(emulator.encode(u[:, :history], phase[:, :history]), context_noise, generator)
    if members > 1:
        state = State(_repeat(state.z, members), _repeat(state.carried, members))
    weights = field_weights(autoencoder)
    size = emulator.noise_size(mode)
    total = u.new_zeros(())
    for k in range(history, length):
        noise = torch.randn(batch * members, size, generator=generator).to(u) if size else None
        with torch.set_grad_enabled(k >= history + free and torch.is_grad_enabled()):
            state = emulator.advance(state, noise, _repeat(phase[:, k - 1], members), mode)
        if k < history + free:
            continue
        target = _repeat(phase[:, k], members)
        field = autoencoder.normalise(emulator.decode(state, target), target)
        truth = autoencoder.normalise(u[:, k], phase[:, k])
        if members == 1:
            total = total + (weights * (field - truth).square()).mean()
            continue
        levels = zip(pyramid(field, weights, scales), pyramid(truth, weights, scales), strict=True)
        for (fields, weight), (truths, _) in levels:
            score = almost_fair_crps(fields.reshape(members, batch, *fields.shape[1:]), truths, alpha)
            total = total + (weight * score).mean() / scales
    return total / (length - history - free)


def generator_loss(
    emulator: Emulator,
    u: Tensor,
    phase: Tensor,
    weight: Tensor,
    context_noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Flow matching of the next frame's residual to the mean net, channels weighted by ``weight (c, 1, …)``.

    Context frames get a little noise, as they will have in a rollout.
    """  # fmt: skip
    history = emulator.history
    with torch.no_grad():
        state = emulator.encode(u[:, :history], phase[:, :history])
        following = emulator.autoencoder.encode(u[:, history], phase[:, history]).z
        state = blurred(state, context_noise, generator)
        context, condition = emulator.context(state), emulator.condition(phase[:, history - 1])
        start = emulator.expected(state, context, condition)
        target = (following - start) / emulator.residual
    t = logit_normal(len(u), generator).to(u)
    epsilon = torch.randn(target.shape, generator=generator).to(u)
    return emulator.denoiser(context, start, condition).loss(target, t, epsilon, weight)


def correction_loss(
    emulator: Emulator,
    u: Tensor,
    phase: Tensor,
    noise: float,
    mixing: float,
    damping: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """What is left of a change of the fields after the correction has undone it, plus ``damping`` times its own step.

    Latents are changed by white noise of a level uniform in (0, ``noise``) and by a share uniform in (0, ``mixing``) of
    the way to another state of the batch: every direction, and above all those in which states differ.
    """  # fmt: skip
    autoencoder, correction = emulator.autoencoder, emulator.correction
    if correction is None:
        raise ValueError("this model has no correction")
    with torch.no_grad():
        latent = autoencoder.encode(u[:, 0], phase[:, 0])
        z = latent.z
        level, share = torch.rand(2, len(z), *(1,) * (z.ndim - 1), generator=generator).to(z)
        away = z + noise * level * torch.randn(z.shape, generator=generator).to(z) + mixing * share * (z.roll(1, 0) - z)
        wanted = correction.project(autoencoder, autoencoder.decode(latent, phase[:, 0]))
        moved = Latent(away, latent.carried)
        change = wanted - correction.project(autoencoder, autoencoder.decode(moved, phase[:, 0]))
    back = correction(away, change)
    found = correction.project(autoencoder, autoencoder.decode(Latent(back, latent.carried), phase[:, 0]))
    loss: Tensor = ((found - wanted) / correction.scale).square().mean() + damping * (back - away).square().mean()
    return loss


def operator_loss(emulator: Emulator, drawn: "Pool") -> Tensor:
    """Mean square of D(m_φ(z₀)) − Φ(D(z₀)), normalised, over states z₀ of a pool."""
    autoencoder = emulator.autoencoder
    expected = Latent(emulator.expect(drawn.state, drawn.phase), drawn.state.carried)
    found = autoencoder.normalise(autoencoder.decode(expected, drawn.phase), drawn.phase)
    return (field_weights(autoencoder) * (found - drawn.target).square()).mean()


@torch.no_grad()
def decoder_sensitivity(
    autoencoder: Autoencoder, latent: Latent, scale: Tensor, probes: int = 4, generator: torch.Generator | None = None
) -> Tensor:
    """What the decoder sees of each latent channel, ``(c, 1, …)``, mean 1.

    Mean square change of the normalised field for random changes by a tenth of ``scale (c,)``, ``probes`` of them.
    """
    base = autoencoder.network.decode(latent.z)
    found = []
    for channel in range(latent.z.shape[1]):
        change = torch.zeros_like(latent.z)
        response = latent.z.new_zeros(())
        for _ in range(probes):
            draw = torch.randn(latent.z[:, channel].shape, generator=generator).to(latent.z)
            change[:, channel] = 0.1 * scale[channel] * draw
            response = response + (autoencoder.network.decode(latent.z + change) - base).square().mean()
        found.append(response)
    seen = torch.stack(found)
    return (seen / seen.mean()).reshape(-1, *(1,) * (latent.z.ndim - 2))


def pyramid(x: Tensor, weights: Tensor, scales: int) -> list[tuple[Tensor, Tensor]]:
    """Weighted means over blocks of 1, 2, 4, … cells along every axis, each with the blocks' weights, of mean 1.

    ``x (B, C, *space)`` and ``weights (C, *space)``, of mean 1 and zero in masked cells, come first, as they are. A
    block at the edge of a grid of any size stands for the cells that it has.
    """
    pool = F.avg_pool1d if x.ndim == 3 else F.avg_pool2d
    fields, mass, moment = [(x, weights)], weights, x * weights
    for _ in range(scales - 1):
        odd = [side for n in reversed(x.shape[2:]) for side in (0, n % 2)]
        mass, moment = pool(F.pad(mass, odd), 2), pool(F.pad(moment, odd), 2)
        x = moment / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        fields.append((x, mass / mass.mean()))
    return fields


def blurred(state: State, noise: float, generator: torch.Generator | None) -> State:
    """The state with noise on its latents, of a level uniform in (0, ``noise``) for each window."""
    if not noise:
        return state
    level = noise * torch.rand(len(state.z), *(1,) * (state.z.ndim - 1), generator=generator).to(state.z)
    return State(state.z + level * torch.randn(state.z.shape, generator=generator).to(state.z), state.carried)


def _repeat(x: Tensor, members: int) -> Tensor:
    """``(B, …) -> (members·B, …)``, member-major."""
    return x if members == 1 else x.repeat(members, *(1,) * (x.ndim - 1))
