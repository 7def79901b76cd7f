"""The opponents of `model.augment`: optimal interpolation with a measured or a fitted covariance, and a U-Net.

    Interpolation   the measured climatological covariance of a flow with symmetries, in space and time
    Kriging         an analytical covariance about a climatology: distance on the sphere and time, for real data
    UNet            regression of complete fields from observed ones (Ronneberger et al. 2015, arXiv:1505.04597)
"""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from record import quick

FORCE = 16  # cells of a period of the flow's force
Array = NDArray[np.float32]


class Interpolation:
    """The best linear estimate of ``frames`` consecutive frames, from training fields ``(N, T, n, n)``."""

    def __init__(self, fields: Tensor, frames: int, stride: int) -> None:
        n = fields.shape[-1]
        self.mean = fields.mean(dim=(0, 1, 3)).reshape(-1, FORCE).mean(dim=0).repeat(n // FORCE)[:, None]
        away, total, count = fields - self.mean, None, 0
        for first in range(0, fields.shape[1] - frames + 1, stride):
            waves = torch.fft.rfft(away[:, first : first + frames], dim=-1, norm="ortho")
            for shift in range(0, n, FORCE):
                w = waves.roll(shift, 2).flatten(1, 2)
                c = torch.einsum("nik,njk->kij", w, w.conj())
                total, count = (c if total is None else total + c), count + len(w)
        assert total is not None
        self.covariance = torch.fft.irfft((total / count).permute(1, 2, 0), n=n, dim=-1).reshape(
            frames, n, frames, n, n
        )
        self.n = n

    def __call__(self, y: Tensor, sensors: Tensor, frames: list[int], nugget: float) -> Tensor:
        """Estimates of ``frames`` from their values ``y (T, n, n)`` at ``sensors (n, n)``."""
        at = sensors.nonzero()
        t = torch.tensor(frames).repeat_interleave(len(at))
        i, j = at.repeat(len(frames), 1).unbind(dim=1)
        C, n = self.covariance, self.n
        K = C[t[:, None], i[:, None], t, i, (j[:, None] - j) % n].double() + nugget**2 * torch.eye(len(t))
        weights = torch.linalg.solve(K, (y - self.mean)[t, i, j].double()).float()
        I, J = (a.reshape(-1) for a in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
        found = [C[k, I[:, None], t, i, (J[:, None] - j) % n] @ weights for k in frames]
        return torch.stack(found).reshape(-1, n, n) + self.mean


class Kriging:
    """Optimal interpolation of standardised anomalies, one variable at a time, on the sphere.

        C = exp(−(d/L)^p) exp(−|τ|/T),  with a nugget; d the chord's distance, τ the difference in time

    (By the great circle the Gaussian, p = 2, is not positive definite on a sphere.) L, T, p and the nugget are those
    with the least error in the window that is seen first, which is a benefit of the doubt.

    Arguments:
        latitude, longitude: of the cells ``(cells,)``, degrees.
    """

    LENGTHS = (200.0, 400.0, 800.0, 1600.0, 3200.0)  # km
    TIMES = (3.0, 10.0)  # frames
    POWERS = (1.0, 2.0)
    NUGGETS = (0.1, 0.3)  # of the deviation

    def __init__(self, latitude: Array, longitude: Array) -> None:
        a, b = np.deg2rad(latitude), np.deg2rad(longitude)
        unit = np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)])
        self.distance = torch.from_numpy(6371.0 * np.sqrt(np.maximum(2 - 2 * unit.T @ unit, 0))).float()
        self.settings: tuple[float, ...] | None = None

    def __call__(self, x: Tensor, where: Tensor, weights: Tensor) -> Tensor:
        """Estimates ``(frames, cells)`` of standardised anomalies ``x``, of which those at ``where`` are known.

        ``weights`` are those of the squares of the errors, by which the settings are chosen.
        """
        if self.settings is None:
            tried = list(product(self.LENGTHS, self.TIMES, self.POWERS, self.NUGGETS))[: 2 if quick() else None]
            errors = [float((weights * (self.estimate(x, where, *s) - x).square()).sum()) for s in tried]
            self.settings = tried[int(np.argmin(errors))]
            print(f"interpolation with length, decay, power and nugget {self.settings}", flush=True)
        return self.estimate(x, where, *self.settings)

    def estimate(self, x: Tensor, where: Tensor, length: float, decay: float, power: float, nugget: float) -> Tensor:
        t, at = where.nonzero().unbind(dim=1)

        def covariance(ta: Tensor, a: Tensor) -> Tensor:
            d, tau = self.distance[a][:, at], (ta[:, None] - t).abs()
            return torch.exp(-((d / length) ** power) - tau / decay)

        K = covariance(t, at) + (nugget**2 + 1e-4) * torch.eye(len(t))
        weights = torch.cholesky_solve(x[t, at][:, None], torch.linalg.cholesky(K))[:, 0]
        cells = torch.arange(x.shape[1])
        return torch.stack([covariance(torch.full_like(cells, k), cells) @ weights for k in range(len(x))])


class UNet(nn.Module):
    """Fields ``(B, C, n, n)``, frames or variables, from observed ones and from where they were; standardised.

    ``padding`` is `torch.nn.Conv2d`'s: "circular" for periodic fields, "replicate" between walls.
    """

    def __init__(self, channels: int, width: int = 32, levels: int = 3, padding: str = "circular") -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Sequential:
            conv = [nn.Conv2d(k, b, 3, padding=1, padding_mode=padding) for k in (a, b)]
            return nn.Sequential(conv[0], nn.GroupNorm(8, b), nn.SiLU(), conv[1], nn.GroupNorm(8, b), nn.SiLU())

        wide = [width * 2**k for k in range(levels + 1)]
        self.down = nn.ModuleList([block(2 * channels, wide[0])] + [block(a, 2 * a) for a in wide[:-1]])
        self.up = nn.ModuleList([block(3 * a, a) for a in reversed(wide[:-1])])
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        x, kept = torch.cat([x * where, where], dim=1), []
        for k, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if k else x)
            kept.append(x)
        for block in self.up:
            kept.pop()
            x = block(torch.cat([F.interpolate(x, scale_factor=2), kept[-1]], dim=1))
        return self.out(x)


def train_unet(
    draw: Callable[[], tuple[Tensor, Tensor, Tensor]], channels: int, minutes: float, path: Path, **options: Any
) -> UNet:
    """The U-Net trained on batches (observed, where, truth) that ``draw`` makes, kept in ``path``.

    ``options`` as for `UNet`.
    """
    torch.manual_seed(0)
    net = UNet(channels, 8 if quick() else 32, **options)
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    begin, seconds, steps, progress = time.process_time(), 60 * minutes, 0, 0.0
    while (progress := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (steps + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress))
        observed, where, truth = draw()
        loss = (net(observed, where) - truth).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        steps += 1
    print(f"{path.stem}: {steps} steps, loss {float(loss.detach()):.4f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net.eval()


def windows(fields: Tensor, frames: int, share: float) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Batches of windows of standardised ``fields (N, T, n, n)``, of whose cells a ``share`` is observed.

    Sensors are drawn anew for every window, and windows are moved by the flow's symmetries, as in the model's training.
    """
    rng, n = np.random.default_rng(0), fields.shape[-1]

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        picked = []
        for _ in range(8):
            k, t = rng.integers(len(fields)), rng.integers(fields.shape[1] - frames + 1)
            by = (int(rng.integers(n // FORCE)) * FORCE, int(rng.integers(n)))
            picked.append(fields[k, t : t + frames].roll(by, (-2, -1)))
        x = torch.stack(picked)
        return x, (torch.rand(8, 1, n, n) < share).float().expand_as(x), x

    return draw
