"""One-step time integrators.

:class:`ETDRK4` is for du/dt = L u + N(u) with a diagonal, possibly stiff L (dissipation or waves in Fourier space):
the exponential time-differencing scheme of Cox & Matthews (2002, doi:10.1006/jcph.2002.6995), its
coefficients taken from contour integrals as in Kassam & Trefethen (2005, doi:10.1137/S1064827502410633),
since the closed forms cancel catastrophically for small L dt. It is of fourth order, and it keeps fixed
points of the equation exactly.

:func:`rk4` (classical, fourth order, for wave-like problems) and :func:`ssp_rk3` (strong stability
preserving, third order; Shu & Osher 1988, doi:10.1016/0021-9991(88)90177-5) are for du/dt = F(u).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


class ETDRK4:
    """Step of length dt for dv/dt = L v + N(v), v complex amplitudes.

    Args:
        linear: L, real (dissipation) or complex (waves), in double precision, broadcastable to v.
        dt: Step length.
        dtype: Real type of the amplitudes (float32 for complex64).
        points: Number of nodes of the contour integrals; 32 reach round-off.
    """

    def __init__(self, linear: Tensor, dt: float, dtype: torch.dtype = torch.float64, points: int = 32) -> None:
        waves = linear.is_complex()
        h = dt * linear.to(torch.complex128 if waves else torch.float64)
        turn = 2 * math.pi if waves else math.pi  # the upper half circle will do for real L
        theta = turn * (torch.arange(points, dtype=torch.float64, device=h.device) + 0.5) / points
        z = h[..., None] + torch.polar(torch.ones_like(theta), theta)

        def mean(f: Tensor) -> Tensor:
            return dt * (f if waves else f.real).mean(dim=-1)

        e = z.exp()
        Q = mean(((z / 2).exp() - 1) / z)
        f1 = mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3)
        f2 = mean((2 + z + e * (z - 2)) / z**3)
        f3 = mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3)
        coefficients: tuple[Tensor, ...] = (h.exp(), (h / 2).exp(), Q, f1, 2 * f2, f3)
        self.real = not waves
        if self.real:
            # Amplitudes are combined through their real view (twice as fast as complex arithmetic): each real
            # coefficient stands twice, once for the real and once for the imaginary part.
            pairs = (c.to(dtype)[..., None] for c in coefficients)
            coefficients = tuple(c.expand(*c.shape[:-1], 2).contiguous() for c in pairs)
        else:
            coefficients = tuple(c.to(torch.complex64 if dtype == torch.float32 else c.dtype) for c in coefficients)
        self.E, self.E2, self.Q, self.f1, self.f2, self.f3 = coefficients

    def __call__(self, v: Tensor, N: Function) -> Tensor:
        """Amplitudes after one step."""

        def nonlinear(w: Tensor) -> Tensor:
            return torch.view_as_real(N(torch.view_as_complex(w))) if self.real else N(w)

        w = torch.view_as_real(v) if self.real else v
        Nw = nonlinear(w)
        half = self.E2 * w
        a = torch.addcmul(half, self.Q, Nw)
        Na = nonlinear(a)
        b = torch.addcmul(half, self.Q, Na)
        Nb = nonlinear(b)
        c = torch.addcmul(self.E2 * a, self.Q, 2 * Nb - Nw)
        Nc = nonlinear(c)
        out = torch.addcmul(self.E * w, self.f1, Nw)
        out = torch.addcmul(out, self.f2, Na + Nb)
        out = torch.addcmul(out, self.f3, Nc)
        return torch.view_as_complex(out) if self.real else out


def rk4(u: Tensor, F: Function, dt: float) -> Tensor:
    """Classical fourth-order Runge–Kutta step."""
    k1 = F(u)
    k2 = F(u + dt / 2 * k1)
    k3 = F(u + dt / 2 * k2)
    k4 = F(u + dt * k3)
    return u + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


def ssp_rk3(u: Tensor, F: Function, dt: float) -> Tensor:
    """Third-order strong-stability-preserving Runge–Kutta step."""
    a = u + dt * F(u)
    b = 3 / 4 * u + 1 / 4 * (a + dt * F(a))
    return 1 / 3 * u + 2 / 3 * (b + dt * F(b))


def spectral_radius(F: Function, u: Tensor, iterations: int = 40) -> float:
    """Largest modulus of the eigenvalues of the Jacobian F′(u), to some per cent and from below.

    Power iteration on the growth ‖F′ᵏ v‖ from white noise, averaged over its last half, so that a pair of complex
    eigenvalues does not make it swing. Products F′(u) v are differences, so F need not be differentiable by torch.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u)
    Fu, eps = F(u), 1e-7 * max(float(u.norm()), 1.0)
    growth = []
    for _ in range(iterations):
        v = v / v.norm()
        v = (F(u + eps * v) - Fu) / eps
        if not (norm := float(v.norm())) > 0:
            return 0.0
        growth.append(math.log(norm))
    last = growth[iterations // 2 :]
    return math.exp(sum(last) / len(last))
